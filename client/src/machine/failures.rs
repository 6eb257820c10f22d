//! What each failure leads to.

use std::time::Duration;

use tidewire_protocol::ResyncReason;

use super::{Action, Asked, Doing, LONG_POLL_DOUBT_MAX, Machine, Outcome, Turn};
use crate::transport::Failure;

/// What a failure adds that came after [`PROXY_PATIENCE_MIN`]: something on the way ends what is held.
pub(super) const DOUBT_HELD: u32 = 5;
/// What a failure adds that came sooner: a server was started anew, a cable was pulled.
const DOUBT_SHORT: u32 = 1;
/// Proxies that end long requests wait for longer than this.
const PROXY_PATIENCE_MIN: Duration = Duration::from_secs(4);
/// Shortest and longest delay that a server may ask for.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);
/// The delay where a busy server names none.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(2);
/// Failures in a row after which what is not complete is left for another server, which must begin
/// again from the last complete cursor: longer than a restart takes.
pub(super) const PARTIAL_PATIENCE_MAX: u32 = 4;
/// Longest delay of a busy server that is waited for in such a place.
const PATIENCE_EACH_MAX: Duration = Duration::from_secs(60);
/// Failures in a row, for each server, after which `--once` gives up: about eight seconds.
pub(super) const ONCE_ATTEMPTS_MAX: u32 = 5;
/// Busy answers in a row after which `--once` gives up.
const ONCE_BUSY_MAX: u32 = 60;

impl Machine {
    pub(super) fn fetch_failed(&mut self, failure: Failure, took: Duration) -> Vec<Action> {
        let asked = self.in_flight.take().unwrap_or(Asked::Pull(Duration::ZERO));
        // So it is where a server is started anew, with another configuration perhaps; not where something
        // on the way cuts every socket before it has told anything.
        self.lost |= std::mem::take(&mut self.pushing) && self.push.attempts() == 0;
        if asked == Asked::Listen {
            return self.listen_failed(failure);
        }
        if asked.is_held() && failure.is_of_the_way() {
            let held = took >= PROXY_PATIENCE_MIN;
            self.long_poll_doubt += if held { DOUBT_HELD } else { DOUBT_SHORT };
        }
        if self.unapplied > 0 {
            self.held = Some(failure);
            return Vec::new();
        }
        self.fail(failure)
    }

    /// A server that can still be pulled from is no failure: a rung down, and up again later.
    fn listen_failed(&mut self, failure: Failure) -> Vec<Action> {
        if !failure.is_of_the_way() {
            return self.fail(failure);
        }
        let delay = self.push.next_delay();
        if self.options.push_only {
            self.error = Some(failure.to_string());
            return self.unreachable(failure, delay);
        }
        self.push_after = delay;
        vec![self.pull(Duration::ZERO)]
    }

    /// The one place that says what each failure leads to.
    pub(super) fn fail(&mut self, failure: Failure) -> Vec<Action> {
        self.error = Some(failure.to_string());
        self.pushing = false;
        match failure {
            Failure::Unauthorized(_) | Failure::Challenged(_) | Failure::Forbidden(_) => {
                self.refused(failure)
            }
            Failure::Resync(reason) => self.resync(reason),
            Failure::Busy { retry_after, .. } => {
                self.online = true;
                self.busy += 1;
                if self.options.once && self.busy > ONCE_BUSY_MAX {
                    return self.give_up(Outcome::Unreachable(failure));
                }
                let delay = retry_after.unwrap_or(RETRY_AFTER_DEFAULT);
                let delay = delay.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX);
                let pause = self.retry.spread(delay);
                if delay <= PATIENCE_EACH_MAX && self.waits_for_its_server(self.busy) {
                    self.doing = Doing::BackingOff { is_told: true };
                    return vec![Action::Arm(pause)];
                }
                self.go_on_after(pause, true)
            }
            Failure::Unreachable(_) | Failure::Garbage(_) | Failure::Server { .. } => {
                self.unreachable(failure, Duration::ZERO)
            }
        }
    }

    /// Only the server's own word costs the data of an app that wants it so.
    fn refused(&mut self, failure: Failure) -> Vec<Action> {
        self.online = true;
        self.doing = Doing::NeedsAuth;
        let wipes = self.options.wipe && !matches!(failure, Failure::Challenged(_));
        let mut actions = if wipes { vec![Action::Wipe] } else { Vec::new() };
        if !matches!(failure, Failure::Forbidden(_)) {
            actions.push(Action::WaitForToken);
        } else if self.options.once {
            actions.extend(self.give_up(Outcome::Refused(failure)));
        } else {
            actions.extend([Action::WaitForToken, Action::Arm(self.options.poll_interval)]);
        }
        actions
    }

    /// What is not complete is of use to its own server alone, which may be back in a moment.
    fn waits_for_its_server(&self, attempts: u32) -> bool {
        self.resume.partial && attempts <= PARTIAL_PATIENCE_MAX
    }

    /// The next try is no sooner than after `least`.
    fn unreachable(&mut self, failure: Failure, least: Duration) -> Vec<Action> {
        if self.long_poll_doubt >= LONG_POLL_DOUBT_MAX {
            self.polling = true;
            self.probe_after = self.probe.next_delay();
        }
        self.online = false;
        let delay = self.retry.next_delay().max(least);
        let servers = u32::try_from(self.servers.count()).unwrap_or(u32::MAX);
        if self.options.once && self.retry.attempts() >= ONCE_ATTEMPTS_MAX.saturating_mul(servers) {
            return self.give_up(Outcome::Unreachable(failure));
        }
        if self.waits_for_its_server(self.retry.attempts()) {
            self.doing = Doing::BackingOff { is_told: false };
            return vec![Action::Arm(delay)];
        }
        self.go_on_after(delay, false)
    }

    /// With the next server of the list, at once; where all have failed, with the one whose pause ends
    /// first, when it ends. `is_told`: the present one has named the pause itself.
    fn go_on_after(&mut self, pause: Duration, is_told: bool) -> Vec<Action> {
        let before = self.servers.current();
        let turn = self.servers.failed(pause, is_told);
        self.take_turn(turn, before)
    }

    fn take_turn(&mut self, turn: Turn, before: usize) -> Vec<Action> {
        let mut actions = self.turned_from(before);
        match turn {
            Turn::Now => actions.extend(self.start()),
            Turn::In(delay) => {
                self.doing = Doing::BackingOff { is_told: self.servers.is_told() };
                actions.push(Action::Arm(delay));
            }
        }
        actions
    }

    fn turned_from(&self, before: usize) -> Vec<Action> {
        let now = self.servers.current();
        if now == before { Vec::new() } else { vec![Action::UseServer(now)] }
    }

    fn resync(&mut self, reason: ResyncReason) -> Vec<Action> {
        self.online = true;
        // A cursor from inside a copy is honoured only by the log that gave it out; the last
        // complete one may still be good here.
        if self.resume.partial && reason == ResyncReason::ForeignLog {
            return self.prepare(Action::DropPartial);
        }
        // Another server's log may reach back to it.
        let before = self.servers.current();
        let patience = match self.refusal_waits < PARTIAL_PATIENCE_MAX {
            true => PATIENCE_EACH_MAX,
            false => Duration::ZERO,
        };
        let Some(turn) = self.servers.refused(patience) else {
            return self.prepare(Action::BeginFill);
        };
        self.refusal_waits += u32::from(turn != Turn::Now);
        self.take_turn(turn, before)
    }

    fn prepare(&mut self, action: Action) -> Vec<Action> {
        self.doing = Doing::Preparing;
        self.collections_due = true;
        self.resync.next_delay();
        vec![action]
    }

    fn give_up(&mut self, outcome: Outcome) -> Vec<Action> {
        self.doing = Doing::Halted;
        self.online = false;
        vec![Action::Halt(outcome)]
    }
}

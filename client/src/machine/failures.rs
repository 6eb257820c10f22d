//! What each failure leads to.

use std::time::Duration;

use tidewire_protocol::ResyncReason;

use super::{Action, Asked, Doing, LONG_POLL_DOUBT_MAX, Machine, Outcome};
use crate::transport::Failure;

/// What a failure adds that came after [`PROXY_PATIENCE_MIN`]: something on the way ends what is held.
pub(super) const DOUBT_HELD: u32 = 5;
/// What a failure adds that came sooner: a server was started anew, a cable was pulled.
const DOUBT_SHORT: u32 = 1;
/// Proxies that end long requests wait for longer than this.
const PROXY_PATIENCE_MIN: Duration = Duration::from_secs(4);
/// Longest delay that a server may ask for.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);
/// The delay where a busy server names none.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(2);
/// Failures in a row after which `--once` gives up: about eight seconds.
pub(super) const ONCE_ATTEMPTS_MAX: u32 = 5;
/// Busy answers in a row after which `--once` gives up.
const ONCE_BUSY_MAX: u32 = 60;

impl Machine {
    pub(super) fn fetch_failed(&mut self, failure: Failure, took: Duration) -> Vec<Action> {
        let asked = self.in_flight.take().unwrap_or(Asked::Pull(Duration::ZERO));
        self.pushing = false;
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
        if self.options.push_only || !failure.is_of_the_way() {
            return self.fail(failure);
        }
        self.push_after = self.push.next_delay();
        vec![self.pull(Duration::ZERO)]
    }

    /// The one place that says what each failure leads to.
    pub(super) fn fail(&mut self, failure: Failure) -> Vec<Action> {
        self.error = Some(failure.to_string());
        match failure {
            Failure::Unauthorized(_) => {
                self.online = true;
                self.doing = Doing::NeedsAuth;
                vec![Action::WaitForToken]
            }
            Failure::Forbidden(_) => {
                self.online = true;
                self.doing = Doing::NeedsAuth;
                if self.options.once {
                    return self.give_up(Outcome::Refused(failure));
                }
                vec![Action::WaitForToken, Action::Arm(self.options.poll_interval)]
            }
            Failure::Resync(reason) => self.resync(reason),
            Failure::Busy { retry_after, .. } => {
                self.online = true;
                self.busy += 1;
                if self.options.once && self.busy > ONCE_BUSY_MAX {
                    return self.give_up(Outcome::Unreachable(failure));
                }
                let delay = retry_after.unwrap_or(RETRY_AFTER_DEFAULT).min(RETRY_AFTER_MAX);
                self.doing = Doing::BackingOff;
                vec![Action::Arm(self.retry.spread(delay))]
            }
            Failure::Unreachable(_) | Failure::Garbage(_) | Failure::Server { .. } => {
                self.unreachable(failure)
            }
        }
    }

    fn unreachable(&mut self, failure: Failure) -> Vec<Action> {
        if self.long_poll_doubt >= LONG_POLL_DOUBT_MAX {
            self.polling = true;
            self.probe_after = self.probe.next_delay();
        }
        self.online = false;
        self.doing = Doing::BackingOff;
        let delay = self.retry.next_delay();
        if self.options.once && self.retry.attempts() >= ONCE_ATTEMPTS_MAX {
            return self.give_up(Outcome::Unreachable(failure));
        }
        vec![Action::Arm(delay)]
    }

    fn resync(&mut self, reason: ResyncReason) -> Vec<Action> {
        self.online = true;
        self.doing = Doing::Preparing;
        self.collections_due = true;
        self.resync.next_delay();
        // A cursor from inside a copy is honoured only by the log that gave it out; the last
        // complete one may still be good elsewhere.
        let only_partial = self.resume.partial && reason == ResyncReason::ForeignLog;
        vec![if only_partial { Action::DropPartial } else { Action::BeginFill }]
    }

    fn give_up(&mut self, outcome: Outcome) -> Vec<Action> {
        self.doing = Doing::Halted;
        self.online = false;
        vec![Action::Halt(outcome)]
    }
}

//! What the client does next, decided without any I/O: an event goes in, actions come out. Sockets,
//! timers and the database are the driver's.
//!
//! One pull is in flight at most, and at most [`UNAPPLIED_MAX`] pages wait for the replica, so the next
//! page comes while the last one is written. The ladder is push → long poll → poll: what waits for
//! news goes down a rung when something on the way breaks it, and up again when a try succeeds.

use std::time::Duration;

use tidewire_protocol::ResyncReason;

use crate::backoff::Backoff;
use crate::page::PageHead;
use crate::replica::{Applied, Resume};
use crate::status::{State, TransportName};
use crate::transport::Failure;

/// Pages fetched and not yet applied, at most.
pub const UNAPPLIED_MAX: u32 = 2;
/// How long the server is asked to hold a long poll. A dead connection is found this much later, and
/// the grace of the transport.
pub const LONG_POLL_WAIT: Duration = Duration::from_secs(20);
/// Long polls may fail in a row, plain pulls working in between, until this is reached; then the client
/// only polls.
pub const LONG_POLL_DOUBT_MAX: u32 = 10;
/// What a failure adds that came after [`PROXY_PATIENCE_MIN`]: something on the way ends what is held.
const DOUBT_HELD: u32 = 5;
/// What a failure adds that came sooner: a server was started anew, a cable was pulled.
const DOUBT_SHORT: u32 = 1;
/// Proxies that end long requests wait for longer than this.
const PROXY_PATIENCE_MIN: Duration = Duration::from_secs(4);
/// A long poll without news that is answered sooner than this is not held: the client slows itself.
const HELD_MIN: Duration = Duration::from_secs(1);
/// Delays after failures.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Delays while a server does not hold long polls.
const PACE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Delays between resyncs that follow each other without success.
const RESYNC: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5 * 60));
/// Delays before long polls are tried again while polling.
const PROBE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(60 * 60));
/// Delays before a push socket is tried again where it failed; long polls go on meanwhile.
const PUSH: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10 * 60));
/// Longest delay that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);
/// The delay where a busy server names none.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(2);
/// Failures in a row after which `--once` gives up: about eight seconds.
const ONCE_ATTEMPTS_MAX: u32 = 5;
/// Busy answers in a row after which `--once` gives up.
const ONCE_BUSY_MAX: u32 = 60;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The replica is open, or was begun anew: go on from here.
    Opened(Resume),
    /// The list of collections is in, or can't be had.
    Collections(Result<(), Failure>),
    /// A page came, checked, `took` after it was asked for.
    Fetched {
        /// What the page says of itself.
        head: PageHead,
        /// From request to answer.
        took: Duration,
    },
    /// The pull failed, `took` after it was asked for.
    FetchFailed {
        /// Why.
        failure: Failure,
        /// From request to failure.
        took: Duration,
    },
    /// The push socket is open.
    Listening,
    /// The replica has committed (or staged) the oldest page that was not applied.
    Applied(Applied),
    /// The timer that was armed last has run out.
    Timer,
    /// Somebody wants the news now.
    PullNow,
    /// The machine slept, or its clock jumped: connections may be dead without saying so.
    Woke,
    /// There is a new token; the replica goes on from here.
    TokenSet(Resume),
    /// The list of collections may have changed.
    CollectionsDue,
}

/// What is to be done, in this order. A pull, a request for the list and the wait for a token disarm
/// the timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for a page.
    Pull {
        /// A cursor; empty for "from nothing".
        since: String,
        /// How long the server may hold the answer.
        wait: Duration,
    },
    /// Hear the next that the push socket tells.
    Listen {
        /// A cursor.
        since: String,
        /// The replica is complete there.
        complete: bool,
    },
    /// Drop the pull that is in flight, or hang up.
    CancelPull,
    /// Ask for the list of collections.
    FetchCollections,
    /// Give the page that has just come to the replica.
    Apply,
    /// Forget what was copied or staged since the last complete page; answered by [`Event::Opened`].
    DropPartial,
    /// Start again from nothing beside the old data; answered by [`Event::Opened`].
    BeginFill,
    /// Wake the machine after this; replaces an earlier timer.
    Arm(Duration),
    /// Get another token.
    WaitForToken,
    /// The end.
    Halt(Outcome),
}

/// How a run ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `once`: caught up.
    CaughtUp,
    /// `once`: the server can't be reached, or is not ready for too long.
    Unreachable(Failure),
    /// `once`: access refused.
    Refused(Failure),
}

/// How the machine is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Stop when caught up, and give up early.
    pub once: bool,
    /// Never hold a poll.
    pub poll_only: bool,
    /// Listen to the push socket where it works.
    pub push: bool,
    /// Wait for news by the push socket alone.
    pub push_only: bool,
    /// The time between two polls.
    pub poll_interval: Duration,
    /// For the jitter.
    pub seed: u64,
}

/// What is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// A pull with this `wait`.
    Pull(Duration),
    /// The push socket's next.
    Listen,
}

impl Asked {
    /// The server may hold the answer.
    fn is_held(self) -> bool {
        self != Self::Pull(Duration::ZERO)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Nothing yet.
    Starting,
    /// The replica is being opened or begun anew, or the list of collections is on its way.
    Preparing,
    /// A pull is in flight or a page is being applied.
    Pulling,
    /// Caught up, with the timer armed for the next pull.
    Resting,
    /// After a failure, with the timer armed for the next try.
    BackingOff,
    NeedsAuth,
    Halted,
}

/// The client without its hands.
#[derive(Debug)]
pub struct Machine {
    options: Options,
    doing: Doing,
    /// The next pull's.
    since: String,
    in_flight: Option<Asked>,
    /// The push socket is open and was heard.
    pushing: bool,
    /// Time left before a push socket is tried again.
    push_after: Duration,
    unapplied: u32,
    /// The last page said that there is more.
    has_more: bool,
    /// A failure that came while pages were still being applied; its turn comes after them.
    held: Option<Failure>,
    resume: Resume,
    collections_due: bool,
    /// The next wait is polled, not held.
    polling: bool,
    /// Grows with long polls that fail, is gone with one that works.
    long_poll_doubt: u32,
    /// Time left before a long poll is tried again, while polling.
    probe_after: Duration,
    /// The last long poll was answered at once, with nothing.
    held_short: bool,
    online: bool,
    busy: u32,
    error: Option<String>,
    retry: Backoff,
    pace: Backoff,
    resync: Backoff,
    probe: Backoff,
    push: Backoff,
}

impl Machine {
    /// A machine that waits for [`Event::Opened`].
    #[must_use]
    pub fn new(options: Options) -> Self {
        let backoff = |(first, cap), n| Backoff::new(first, cap, options.seed.wrapping_add(n));
        Self {
            options,
            doing: Doing::Starting,
            since: String::new(),
            in_flight: None,
            pushing: false,
            push_after: Duration::ZERO,
            unapplied: 0,
            has_more: true,
            held: None,
            resume: Resume::default(),
            collections_due: true,
            polling: options.poll_only,
            long_poll_doubt: 0,
            probe_after: Duration::ZERO,
            held_short: false,
            online: false,
            busy: 0,
            error: None,
            retry: backoff(RETRY, 0),
            pace: backoff(PACE, 1),
            resync: backoff(RESYNC, 2),
            probe: backoff(PROBE, 3),
            push: backoff(PUSH, 4),
        }
    }

    /// Takes an event; says what to do.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        if self.doing == Doing::Halted {
            return Vec::new();
        }
        match event {
            Event::Opened(resume) => self.opened(resume),
            Event::Collections(result) => self.collections(result),
            Event::Fetched { head, took } => self.fetched(&head, took),
            Event::FetchFailed { failure, took } => self.fetch_failed(failure, took),
            Event::Listening => self.listening(),
            Event::Applied(applied) => self.applied(applied),
            Event::Timer => self.timer(),
            Event::PullNow => self.hurry(false),
            Event::Woke => self.hurry(true),
            Event::TokenSet(resume) => self.token_set(resume),
            Event::CollectionsDue => {
                self.collections_due = true;
                Vec::new()
            }
        }
    }

    /// What to show.
    #[must_use]
    pub fn state(&self) -> State {
        let caught_up = !self.has_more && !self.resume.partial && self.resume.initialized;
        match self.doing {
            Doing::Halted => State::Stopped,
            Doing::NeedsAuth => State::NeedsAuth,
            _ if !self.online && self.error.is_some() => State::Offline,
            _ if !self.online => State::Starting,
            _ if !caught_up && self.resume.initialized && self.resume.filling => State::Resyncing,
            _ if !caught_up => State::Syncing,
            _ if self.polling => State::Polling,
            _ => State::Live,
        }
    }

    /// How changes come in at present.
    #[must_use]
    pub fn transport(&self) -> TransportName {
        match self.doing {
            _ if !self.online => TransportName::None,
            Doing::Halted | Doing::Starting | Doing::NeedsAuth => TransportName::None,
            _ if self.pushing => TransportName::Push,
            _ if self.polling => TransportName::Poll,
            _ => TransportName::LongPoll,
        }
    }

    /// Whether the last exchange with the server worked.
    #[must_use]
    pub fn online(&self) -> bool {
        self.online && self.doing != Doing::Halted
    }

    /// What is wrong, for people.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// The driver stops for a reason of its own.
    pub fn halt(&mut self, error: Option<String>) {
        self.doing = Doing::Halted;
        self.online = false;
        self.error = error;
    }

    fn opened(&mut self, resume: Resume) -> Vec<Action> {
        self.reposition(resume);
        let mut actions = Vec::new();
        self.pushing = false;
        if self.in_flight.take().is_some() {
            actions.push(Action::CancelPull);
        }
        if self.resync.attempts() > 1 {
            self.doing = Doing::BackingOff;
            actions.push(Action::Arm(self.resync.next_delay()));
        } else {
            actions.extend(self.start());
        }
        actions
    }

    fn reposition(&mut self, resume: Resume) {
        self.since.clone_from(&resume.since);
        self.resume = resume;
        self.has_more = true;
        self.unapplied = 0;
        self.held = None;
    }

    /// The list of collections first, where it may have changed, then pages.
    fn start(&mut self) -> Vec<Action> {
        if self.collections_due {
            self.doing = Doing::Preparing;
            return vec![Action::FetchCollections];
        }
        vec![self.pull(Duration::ZERO)]
    }

    fn pull(&mut self, wait: Duration) -> Action {
        self.doing = Doing::Pulling;
        self.in_flight = Some(Asked::Pull(wait));
        Action::Pull { since: self.since.clone(), wait }
    }

    fn listen(&mut self) -> Action {
        self.doing = Doing::Pulling;
        self.in_flight = Some(Asked::Listen);
        Action::Listen { since: self.since.clone(), complete: !self.resume.partial }
    }

    fn listening(&mut self) -> Vec<Action> {
        if self.in_flight != Some(Asked::Listen) {
            return Vec::new();
        }
        self.heard();
        self.pushed();
        vec![self.listen()]
    }

    /// The server answered.
    fn heard(&mut self) {
        self.online = true;
        self.error = None;
        self.busy = 0;
        self.retry.reset();
    }

    /// The push socket works.
    fn pushed(&mut self) {
        self.pushing = true;
        self.polling = self.options.poll_only;
        self.long_poll_doubt = 0;
        self.held_short = false;
        self.push.reset();
    }

    fn collections(&mut self, result: Result<(), Failure>) -> Vec<Action> {
        match result {
            // A server that does not tell, or tells nonsense, may still serve pages.
            Ok(()) | Err(Failure::Server { .. } | Failure::Forbidden(_) | Failure::Resync(_)) => {
                self.collections_due = false;
                vec![self.pull(Duration::ZERO)]
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn fetched(&mut self, head: &PageHead, took: Duration) -> Vec<Action> {
        let asked = self.in_flight.take().unwrap_or(Asked::Pull(Duration::ZERO));
        if head.has_more && head.cursor == self.since {
            let failure = Failure::Garbage("the cursor of a page stands still".into());
            return self.fail(failure);
        }
        self.heard();
        if asked == Asked::Listen {
            self.pushed();
        } else if asked.is_held() {
            self.push_after = self.push_after.saturating_sub(took);
            self.polling = self.options.poll_only;
            self.long_poll_doubt = 0;
            self.probe.reset();
            self.held_short = head.count == 0 && took < HELD_MIN;
            if !self.held_short {
                self.pace.reset();
            }
        }
        self.since.clone_from(&head.cursor);
        self.has_more = head.has_more;
        self.unapplied += 1;
        let mut actions = vec![Action::Apply];
        if self.has_more && self.unapplied < UNAPPLIED_MAX {
            actions.push(self.pull(Duration::ZERO));
        }
        actions
    }

    fn applied(&mut self, applied: Applied) -> Vec<Action> {
        self.unapplied = self.unapplied.saturating_sub(1);
        self.resume.initialized |= applied.complete;
        self.resume.partial = !applied.complete;
        self.resume.filling &= !applied.complete;
        if applied.complete {
            self.resync.reset();
        }
        if self.unapplied == 0
            && let Some(failure) = self.held.take()
        {
            return self.fail(failure);
        }
        if self.doing != Doing::Pulling || self.in_flight.is_some() {
            return Vec::new();
        }
        if self.has_more {
            return vec![self.pull(Duration::ZERO)];
        }
        if self.unapplied > 0 {
            return Vec::new();
        }
        if applied.complete && self.options.once {
            self.doing = Doing::Halted;
            return vec![Action::Halt(Outcome::CaughtUp)];
        }
        self.rest()
    }

    /// Nothing more at present: waits for news in the way that the ladder's rung says.
    fn rest(&mut self) -> Vec<Action> {
        if self.collections_due {
            return self.start();
        }
        if self.options.push_only || (self.options.push && self.push_after.is_zero()) {
            return vec![self.listen()];
        }
        if self.polling {
            self.doing = Doing::Resting;
            let mut delay = self.probe.spread(self.options.poll_interval);
            if !self.options.poll_only {
                delay = delay.min(self.probe_after);
                self.probe_after -= delay;
            }
            if self.options.push {
                delay = delay.min(self.push_after);
                self.push_after -= delay;
            }
            return vec![Action::Arm(delay)];
        }
        if self.held_short {
            self.doing = Doing::Resting;
            return vec![Action::Arm(self.pace.next_delay())];
        }
        let wait = match self.options.push {
            true => self.push_after.clamp(Duration::from_secs(1), LONG_POLL_WAIT),
            false => LONG_POLL_WAIT,
        };
        vec![self.pull(wait)]
    }

    fn timer(&mut self) -> Vec<Action> {
        match self.doing {
            Doing::Resting if self.polling && self.probe_is_due() => {
                vec![self.pull(LONG_POLL_WAIT)]
            }
            Doing::Resting if !self.polling => vec![self.pull(LONG_POLL_WAIT)],
            Doing::Resting | Doing::BackingOff => self.start(),
            // A refused token is tried again only where its access may grow (403).
            Doing::NeedsAuth => self.start(),
            Doing::Starting | Doing::Preparing | Doing::Pulling | Doing::Halted => Vec::new(),
        }
    }

    fn probe_is_due(&self) -> bool {
        !self.options.poll_only && self.probe_after.is_zero()
    }

    /// A pull at once; after a sleep also in place of one whose connection may be dead.
    fn hurry(&mut self, woke: bool) -> Vec<Action> {
        let held = self.in_flight.is_some_and(Asked::is_held);
        match self.doing {
            Doing::Pulling if held || (woke && self.in_flight.is_some()) => {
                vec![Action::CancelPull, self.pull(Duration::ZERO)]
            }
            // A busy server has said when it wants to be asked again.
            Doing::BackingOff if self.busy > 0 && !woke => Vec::new(),
            Doing::Resting | Doing::BackingOff => {
                self.retry.reset();
                self.start()
            }
            _ => Vec::new(),
        }
    }

    fn token_set(&mut self, resume: Resume) -> Vec<Action> {
        let mut actions = Vec::new();
        self.pushing = false;
        if self.in_flight.take().is_some() {
            actions.push(Action::CancelPull);
        }
        self.reposition(resume);
        self.collections_due = true;
        self.error = None;
        actions.extend(self.start());
        actions
    }

    fn fetch_failed(&mut self, failure: Failure, took: Duration) -> Vec<Action> {
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
    fn fail(&mut self, failure: Failure) -> Vec<Action> {
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

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

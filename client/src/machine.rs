//! What the client does next, decided without any I/O: an event goes in, actions come out. Sockets,
//! timers and the database are the driver's.
//!
//! One pull is in flight at most, and at most [`UNAPPLIED_MAX`] pages wait for the replica, so the next
//! page comes while the last one is written. The ladder is push → long poll → poll: what waits for
//! news goes down a rung when something on the way breaks it, and up again when a try succeeds.

mod failures;
mod passed;
mod servers;
mod words;

use std::time::Duration;

use crate::backoff::Backoff;
use crate::page::PageHead;
use crate::replica::{Applied, Resume};
use crate::status::{State, TransportName};
use crate::transport::Failure;

use passed::Passed;
use servers::{Servers, Turn};
pub use words::{Action, Event, Options, Outcome};

/// Pages fetched and not yet applied, at most.
pub const UNAPPLIED_MAX: u32 = 2;
/// How long the server is asked to hold a long poll. A dead connection is found this much later, and
/// the grace of the transport.
pub const LONG_POLL_WAIT: Duration = Duration::from_secs(20);
/// Long polls may fail in a row, plain pulls working in between, until this is reached; then the client
/// only polls.
pub const LONG_POLL_DOUBT_MAX: u32 = 10;
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
    /// After a failure, with the timer armed for the next try. `is_told`: when, the server that is asked then
    /// has said.
    BackingOff {
        is_told: bool,
    },
    NeedsAuth,
    Halted,
}

/// The client without its hands.
#[derive(Debug)]
pub struct Machine {
    options: Options,
    doing: Doing,
    servers: Servers,
    /// The next pull's.
    since: String,
    /// The cursors before it.
    passed: Passed,
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
    /// A socket that was heard was lost: its server may come back with another list of collections.
    lost: bool,
    /// The list of collections is asked for, or being written.
    listing: bool,
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
    /// Waits for servers that have not been asked for a cursor which others refuse.
    refusal_waits: u32,
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
            servers: Servers::new(options.servers),
            since: String::new(),
            passed: Passed::default(),
            in_flight: None,
            pushing: false,
            push_after: Duration::ZERO,
            unapplied: 0,
            has_more: true,
            held: None,
            resume: Resume::default(),
            collections_due: true,
            lost: false,
            listing: false,
            polling: options.poll_only,
            long_poll_doubt: 0,
            probe_after: Duration::ZERO,
            held_short: false,
            online: false,
            busy: 0,
            refusal_waits: 0,
            error: None,
            retry: backoff(RETRY, 0),
            pace: backoff(PACE, 1),
            resync: backoff(RESYNC, 2),
            probe: backoff(PROBE, 3),
            push: backoff(PUSH, 4),
        }
    }

    /// So much time has gone by since the last event. Without it the machine's time stands still.
    pub fn passed(&mut self, time: Duration) {
        self.servers.passed(time);
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
            Event::Wiped(resume) => {
                self.reposition(resume);
                // The list of collections went too.
                self.collections_due = true;
                Vec::new()
            }
            Event::TokenSet(resume) => self.token_set(resume),
            Event::TokenRenewed => self.token_renewed(),
            Event::Rebuild => self.rebuild(),
            Event::CollectionsDue => {
                self.collections_due = true;
                Vec::new()
            }
        }
    }

    /// What to show.
    #[must_use]
    pub fn state(&self) -> State {
        let caught_up = self.caught_up();
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

    /// The push socket is open: a token of the same subject can be renewed on it.
    #[must_use]
    pub fn renews(&self) -> bool {
        self.pushing && self.doing == Doing::Pulling
    }

    /// Nothing is asked at present, and nobody can hurry it: a token is missing, or a busy server has said
    /// when it wants to be asked again.
    pub(crate) fn asks_nothing(&self) -> bool {
        matches!(self.doing, Doing::BackingOff { .. } | Doing::NeedsAuth | Doing::Halted)
    }

    /// Everything is being copied, the first time or anew.
    pub(crate) fn copies(&self) -> bool {
        self.resume.filling || !self.resume.initialized
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

    fn caught_up(&self) -> bool {
        !self.has_more && !self.resume.partial && self.resume.initialized
    }

    fn opened(&mut self, resume: Resume) -> Vec<Action> {
        self.reposition(resume);
        let mut actions = self.cancel();
        if self.resync.attempts() > 1 {
            self.doing = Doing::BackingOff { is_told: false };
            actions.push(Action::Arm(self.resync.next_delay()));
        } else {
            actions.extend(self.start());
        }
        actions
    }

    /// Drops what is in flight, if anything is.
    fn cancel(&mut self) -> Vec<Action> {
        self.pushing = false;
        self.in_flight.take().map(|_| Action::CancelPull).into_iter().collect()
    }

    fn reposition(&mut self, resume: Resume) {
        self.since.clone_from(&resume.since);
        self.passed.clear();
        self.servers.forget_refusals();
        self.resume = resume;
        self.has_more = true;
        self.unapplied = 0;
        self.held = None;
        self.listing = false;
        self.refusal_waits = 0;
    }

    /// The list of collections first, where it may have changed, then pages.
    fn start(&mut self) -> Vec<Action> {
        if self.collections_due {
            self.doing = Doing::Preparing;
            self.listing = true;
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
        self.collections_due |= std::mem::take(&mut self.lost);
        self.error = None;
        self.busy = 0;
        self.retry.reset();
        self.servers.worked();
        self.refusal_waits = 0;
    }

    /// The push socket works.
    fn pushed(&mut self) {
        self.pushing = true;
        self.polling = self.options.poll_only;
        self.long_poll_doubt = 0;
        self.held_short = false;
    }

    fn collections(&mut self, result: Result<(), Failure>) -> Vec<Action> {
        if !std::mem::take(&mut self.listing) {
            // It was asked for before all was begun anew, and is asked for again.
            return Vec::new();
        }
        match result {
            // A server that does not tell, or tells nonsense, may still serve pages.
            Ok(()) | Err(Failure::Server { .. } | Failure::Forbidden(_) | Failure::Resync(_)) => {
                self.collections_due = false;
                let goes_on = self.pushing && self.caught_up();
                vec![if goes_on { self.listen() } else { self.pull(Duration::ZERO) }]
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn fetched(&mut self, head: &PageHead, took: Duration) -> Vec<Action> {
        let asked = self.in_flight.take().unwrap_or(Asked::Pull(Duration::ZERO));
        if head.has_more && head.cursor == self.since {
            return self.fail(Failure::Garbage("the cursor of a page stands still".into()));
        }
        if head.cursor != self.since && self.passed.holds(&head.cursor) {
            return self.fail(Failure::Garbage("a page that came before came again".into()));
        }
        self.heard();
        if asked == Asked::Listen {
            self.pushed();
            // A welcome alone proves little: something on the way may cut every socket after it.
            self.push.reset();
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
        self.move_to(&head.cursor);
        self.has_more = head.has_more;
        self.unapplied += 1;
        let mut actions = vec![Action::Apply];
        if self.has_more && self.unapplied < UNAPPLIED_MAX {
            actions.push(self.pull(Duration::ZERO));
        }
        actions
    }

    fn move_to(&mut self, cursor: &str) {
        if self.since != cursor {
            self.passed.add(&self.since);
            cursor.clone_into(&mut self.since);
        }
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
            Doing::Resting | Doing::BackingOff { .. } => self.start(),
            // A refused token is tried again only where its access may grow (403).
            Doing::NeedsAuth => self.start(),
            Doing::Starting | Doing::Preparing | Doing::Pulling | Doing::Halted => Vec::new(),
        }
    }

    fn probe_is_due(&self) -> bool {
        !self.options.poll_only && self.probe_after.is_zero()
    }

    /// A pull at once, in place of one that the server may hold; after a sleep in place of any, whose
    /// connection may be dead.
    fn hurry(&mut self, woke: bool) -> Vec<Action> {
        let held = self.in_flight.is_some_and(Asked::is_held);
        self.pushing &= !woke;
        match self.doing {
            // The socket stays open meanwhile.
            Doing::Pulling if self.in_flight == Some(Asked::Listen) && !woke => {
                vec![self.pull(Duration::ZERO)]
            }
            Doing::Pulling if held || (woke && self.in_flight.is_some()) => {
                vec![Action::CancelPull, self.pull(Duration::ZERO)]
            }
            // A busy server has said when it wants to be asked again.
            Doing::BackingOff { is_told: true } if !woke => Vec::new(),
            Doing::Resting | Doing::BackingOff { .. } => {
                // Who is only asked for more has not come back: the patience with it is not renewed.
                if woke {
                    self.retry.reset();
                }
                self.start()
            }
            _ => Vec::new(),
        }
    }

    fn token_set(&mut self, resume: Resume) -> Vec<Action> {
        let mut actions = self.cancel();
        self.reposition(resume);
        self.collections_due = true;
        self.error = None;
        actions.extend(self.start());
        actions
    }

    /// The same subject's next token: what is told goes on, by the new one.
    fn token_renewed(&mut self) -> Vec<Action> {
        self.collections_due = true;
        match self.in_flight {
            Some(Asked::Listen) => vec![self.listen()],
            // Its answer would be about the old one.
            Some(Asked::Pull(wait)) => vec![self.pull(wait)],
            None => Vec::new(),
        }
    }

    /// The app wants everything anew.
    fn rebuild(&mut self) -> Vec<Action> {
        let mut actions = self.cancel();
        self.held = None;
        self.listing = false;
        self.doing = Doing::Preparing;
        self.collections_due = true;
        actions.push(Action::BeginFill);
        actions
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

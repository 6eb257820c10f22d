//! What goes into the machine and what comes out.

use std::time::Duration;

use crate::page::PageHead;
use crate::replica::{Applied, Resume};
use crate::transport::Failure;

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
    /// The replica's data is gone, for want of a token; it stands as at first.
    Wiped(Resume),
    /// There is a new token; the replica goes on from here.
    TokenSet(Resume),
    /// There is a new token of the same subject, while [`super::Machine::renews`].
    TokenRenewed,
    /// Everything is to be copied anew, beside the old data.
    Rebuild,
    /// The list of collections may have changed.
    CollectionsDue,
}

/// What is to be done, in this order. A pull, a request for the list and the wait for a token disarm
/// the timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Turn to this server of the list; nothing is in flight.
    UseServer(usize),
    /// Ask for a page; takes the place of a wait for the push socket's next, which stays open.
    Pull {
        /// A cursor; empty for "from nothing".
        since: String,
        /// How long the server may hold the answer.
        wait: Duration,
    },
    /// Hear the next that the push socket tells; takes the place of an earlier wait for it.
    Listen {
        /// A cursor.
        since: String,
        /// The replica is complete there.
        complete: bool,
    },
    /// Drop the pull that is in flight, and hang up.
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
    /// Remove all data, unless there is another token already; answered by [`Event::Wiped`].
    Wipe,
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
    /// The number of servers in the list.
    pub servers: usize,
    /// Stop when caught up, and give up early.
    pub once: bool,
    /// Never hold a poll.
    pub poll_only: bool,
    /// Listen to the push socket where it works.
    pub push: bool,
    /// Wait for news by the push socket alone.
    pub push_only: bool,
    /// Remove all data when the server refuses the token.
    pub wipe: bool,
    /// The time between two polls.
    pub poll_interval: Duration,
    /// For the jitter.
    pub seed: u64,
}

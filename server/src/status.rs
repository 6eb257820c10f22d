//! What the parts say about themselves: written by capture, shown by serve and the operator's program.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// Where capture stands. Published through a watch: readers see the latest state, not each one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceStatus {
    /// What capture is doing.
    pub phase: SourcePhase,
    /// Copies that are not finished, by collection name.
    pub copies: BTreeMap<String, CopyProgress>,
    /// The log has held all of the source: it is served, whatever is being copied.
    pub whole: bool,
    /// The source's own time when last heard of (cluster time, 0 before).
    pub operation_time: u64,
    /// Everything up to this cluster time is in the log (0 before).
    pub high_water: u64,
    /// The source was last heard of at this moment (milliseconds since 1970, 0 before).
    pub heard_at_ms: i64,
    /// `high_water` last moved at this moment (milliseconds since 1970, 0 before).
    pub advanced_at_ms: i64,
    /// How far the source's oplog reaches back; `None` where that can't be read.
    pub oplog: Option<OplogLeft>,
    /// Why the stream is not running, for people.
    pub trouble: Option<String>,
    /// Documents and events that could not be carried since the server started.
    pub quarantined: u64,
    /// Documents that are in quarantine now.
    pub in_quarantine: u64,
    /// The comparison under way of a collection that is copied.
    pub checking: Option<(String, CopyProgress)>,
    /// The last scrub, or the one under way.
    pub scrub: ScrubStatus,
}

/// How a scrub stands, and what it has found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScrubStatus {
    /// Counts the scrubs since the server started.
    pub number: u64,
    /// Where it stands.
    pub state: ScrubState,
    /// By an operator; else it is the background's.
    pub asked_for: bool,
    /// Its collections.
    pub collections: Vec<Scrubbed>,
    /// When the last scrub that came to its end did so (milliseconds since 1970, 0 before).
    pub finished_at_ms: i64,
    /// Documents that scrubs have mended since the server started.
    pub mended_total: u64,
}

/// Where a scrub stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScrubState {
    /// There was none yet.
    #[default]
    None,
    /// Under way.
    Running,
    /// All of it was compared.
    Finished,
    /// The source could not be read for too long.
    CutOff,
}

/// What a scrub has found in a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// The collection's name.
    pub name: String,
    /// It was compared to its end.
    pub done: bool,
    /// Documents of the source.
    pub documents: u64,
    /// Documents that the log did not have so.
    pub upserted: u64,
    /// Documents that the log alone had.
    pub deleted: u64,
}

impl Scrubbed {
    /// A collection that is still to be compared.
    #[must_use]
    pub fn waiting(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

/// A source with a majority commits at least every 10 s, if only a mark of its own; one that answers and
/// commits nothing for longer than this has lost it.
const STANDSTILL_MS_MAX: i64 = 25_000;

impl SourceStatus {
    /// For how many seconds the source has committed nothing, where it follows that it can't.
    #[must_use]
    pub fn standstill_seconds(&self, now_ms: i64) -> Option<i64> {
        let still_ms = now_ms - self.advanced_at_ms;
        let is_still = self.advanced_at_ms > 0 && still_ms > STANDSTILL_MS_MAX;
        is_still.then_some(still_ms / 1_000)
    }

    /// The present moment as `heard_at_ms` counts.
    #[must_use]
    pub fn now_ms() -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// What capture is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourcePhase {
    /// Not connected yet.
    #[default]
    Connecting,
    /// Copies run; the tail runs too.
    Copying,
    /// The log follows the source.
    Following,
    /// The source can't be reached; what the log has is served.
    Unreachable,
    /// The source does not let us in, or read what we follow; what the log has is served.
    Refused,
    /// The log can't be written (its disk is full, failing, read-only); what it has is served, and the
    /// source is followed again as soon as it can be.
    Unwritable,
    /// Stopped for a reason that needs a person.
    Failed,
}

/// How far the copy of one collection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyProgress {
    /// Documents read so far.
    pub documents: u64,
    /// The source's estimate of how many there are.
    pub documents_total: u64,
    /// It is the collection's first copy: readers do not get to see the collection before its end.
    pub first: bool,
}

/// What is left of the source's oplog, behind where the log stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OplogLeft {
    /// Seconds of the source's history between the oplog's start and where the log stands.
    pub left_seconds: f64,
    /// At the present rates the oplog's start comes there after so many seconds; `None`: never.
    pub runs_out_seconds: Option<f64>,
}

/// The writing end, held by capture.
pub type StatusSender = watch::Sender<SourceStatus>;
/// The reading end.
pub type StatusReceiver = watch::Receiver<SourceStatus>;

/// A new pair.
#[must_use]
pub fn channel() -> (StatusSender, StatusReceiver) {
    watch::channel(SourceStatus::default())
}

//! The one read that pull, long poll, push and replay share.

use tidewire_protocol::{Position, ResyncReason};
use tokio::sync::watch;

use super::{Body, Cursor, Head, LogError};

/// Where a reader starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// From nothing: each live document once.
    Nothing,
    /// At least every change since this second (since 1970).
    Time(u32),
    /// After what the cursor covers.
    Cursor(Cursor),
}

/// What a reader may see.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Documents of these collections that are in one of these channels.
    Channels {
        /// Collection names.
        collections: &'a [String],
        /// Channel names.
        channels: &'a [String],
    },
    /// Everything; for the operator.
    Everything,
}

/// What to read.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest<'a> {
    /// Where to start.
    pub since: &'a Since,
    /// What may be seen.
    pub scope: Scope<'a>,
    /// Most changes in the page, at least 1.
    pub limit: usize,
    /// The source's own time, 0 when unknown: a cursor ahead of it is refused.
    pub operation_time: u64,
}

/// One change as this reader sees it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where it stands.
    pub position: Position,
    /// When the source wrote it, milliseconds since 1970.
    pub wall_time_ms: i64,
    /// The collection's name.
    pub collection: &'a str,
    /// The document, or the key of one that is gone or no longer visible.
    pub body: Body<'a>,
}

/// What the taker of an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The entry is in the page.
    Took,
    /// The entry is not in the page, which ends before it. Not allowed for the first entry.
    Full,
}

/// How a page ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageEnd {
    /// The next `since`.
    pub cursor: Cursor,
    /// The head when the page was read.
    pub checkpoint: Position,
    /// More can be read at once.
    pub has_more: bool,
    /// A replica that has applied everything up to here is the source at one commit.
    pub complete: bool,
    /// Entries taken.
    pub count: usize,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The cursor can't be continued.
    #[error("the cursor can't be continued: {0:?}")]
    Resync(ResyncReason),
    /// The cursor is ahead of this log's head; the log will catch up.
    #[error("the cursor is ahead of this server's log")]
    Ahead,
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Reads the log; cheap to clone, usable from any thread, blocking.
#[derive(Clone, Debug)]
pub struct Reader {}

#[expect(missing_docs, clippy::unused_self, reason = "signatures; the store follows")]
impl Reader {
    pub fn head(&self) -> watch::Receiver<Head> {
        unimplemented!()
    }
    pub fn page(
        &self,
        _request: &PageRequest<'_>,
        _emit: &mut dyn FnMut(&Entry<'_>) -> Flow,
    ) -> Result<PageEnd, ReadError> {
        unimplemented!()
    }
}

//! The one read that pull, long poll, push and replay share.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tidewire_protocol::{Position, ResyncReason};
use tokio::sync::watch;

use super::recent::SharedRecent;
use super::state::LogState;
use super::touched::LastCommits;
use super::{Body, Cursor, Head, LogError};

/// Connections kept open for the next reader.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// A snapshot is taken again when recent index entries were moved to the store just after it; that
/// happens once in many thousand changes.
const SNAPSHOT_TRIES_MAX: usize = 16;

/// Where a reader starts.
#[expect(clippy::large_enum_variant, reason = "one for a request, and most are cursors")]
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
    /// The document, or the key of one that is gone, no longer visible, or in quarantine.
    pub body: Body<'a>,
    /// Why the document is in quarantine; `None` where it is not.
    pub set_aside: Option<&'a str>,
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
    /// Changes dealt with, and all of them, where the page is part of a first copy or of a long catch-up
    /// that goes on.
    pub filled: Option<(u64, u64)>,
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
    /// The cursor is another log's, of a moment that this one still copies: only then is it known whether it
    /// can be continued.
    #[error("this log copies what happened at the cursor")]
    Copying,
    /// A copy was under way at the moment asked for, or none had begun, or the log was away then and copied
    /// later: it has only a part.
    #[error("a copy of the source was under way then, and the log has only a part of it")]
    Unsettled,
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Log(error.into())
    }
}

/// Reads the log; cheap to clone, usable from any thread, blocking.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    log_id: u64,
    /// Idle connections, at most [`IDLE_CONNECTIONS_MAX`].
    idle: Mutex<Vec<Connection>>,
    head: watch::Receiver<Head>,
    recent: SharedRecent,
    last_commits: LastCommits,
    /// What was found damaged, first.
    damage: watch::Sender<Option<String>>,
    /// Keeps the watch of a reader without a writer open.
    _alone: Option<watch::Sender<Head>>,
}

impl Reader {
    pub(super) fn beside_writer(
        path: PathBuf,
        log_id: u64,
        head: watch::Receiver<Head>,
        recent: SharedRecent,
        last_commits: LastCommits,
    ) -> Self {
        let idle = Mutex::default();
        let damage = watch::Sender::new(None);
        let shared =
            Shared { path, log_id, idle, head, recent, last_commits, damage, _alone: None };
        Self { shared: Arc::new(shared) }
    }

    /// Opens the log in `dir` to read it from another process than the writer's, or with none
    /// running. The head is the one at this moment.
    ///
    /// # Errors
    /// [`LogError::Unreadable`] when there is no log or none that this version reads.
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        let path = super::schema::log_path(dir);
        let conn = super::schema::open_to_read(&path)?;
        conn.execute_batch("BEGIN").map_err(LogError::from)?;
        let state = LogState::read(&conn)?;
        let recent = SharedRecent::load(&conn, state.head, state.indexed_seq)?;
        conn.execute_batch("COMMIT").map_err(LogError::from)?;
        let (sender, head) = watch::channel(state.head);
        let idle = Mutex::new(vec![conn]);
        let last_commits = LastCommits::default();
        let damage = watch::Sender::new(None);
        let alone = Some(sender);
        let shared = Shared {
            path,
            log_id: state.log_id,
            idle,
            head,
            recent,
            last_commits,
            damage,
            _alone: alone,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The log's number: no other log has it, nor a copy of this one that was written to.
    #[must_use]
    pub fn log_id(&self) -> u64 {
        self.shared.log_id
    }

    /// The end of what is committed; notified after each commit that moved it.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<Head> {
        self.shared.head.clone()
    }

    /// Reads one page and gives each entry to `emit`, in position order. All of it is one snapshot
    /// of the log.
    ///
    /// # Errors
    /// [`ReadError`]; entries given before an error are void.
    pub fn page(
        &self,
        request: &PageRequest<'_>,
        emit: &mut dyn FnMut(&Entry<'_>) -> Flow,
    ) -> Result<PageEnd, ReadError> {
        let recent = &self.shared.recent;
        self.read(|conn| super::page::read(conn, recent, request, emit))
    }

    /// Gives every change that is still there through `through` (inclusive; `None`: to the head) to
    /// `emit`, in position order: applied in that order they are the source at `through`.
    /// Returns the position reached. `emit` ends it early with [`Flow::Full`].
    ///
    /// # Errors
    /// [`ReadError::Resync`] when changes at or before `through` have been compacted beyond it;
    /// [`ReadError::Ahead`] when the log does not reach `through`; [`ReadError::Unsettled`].
    pub fn replay(
        &self,
        through: Option<Position>,
        scope: &Scope<'_>,
        emit: &mut dyn FnMut(&Entry<'_>) -> Flow,
    ) -> Result<Position, ReadError> {
        let recent = &self.shared.recent;
        self.read(|conn| super::page::replay(conn, recent, through, scope, emit))
    }

    /// Waits until a read finds that the log is damaged; what it found.
    pub async fn damaged(&self) -> String {
        let mut damage = self.shared.damage.subscribe();
        let found = damage.wait_for(Option::is_some).await;
        // The sender lives as long as we do.
        found.ok().and_then(|found| found.clone()).unwrap_or_default()
    }

    fn note(&self, error: &ReadError) {
        let ReadError::Log(error) = error else { return };
        if error.is_damage() {
            self.shared.damage.send_if_modified(|found| {
                let first = found.is_none();
                found.get_or_insert_with(|| error.to_string());
                first
            });
        }
    }

    /// Runs `read` on one snapshot of the log; on another where it says `None`, as the snapshot misses
    /// index entries that have just been moved to the store. Notes damage that it finds.
    pub(super) fn read<T>(
        &self,
        mut read: impl FnMut(&Connection) -> Result<Option<T>, ReadError>,
    ) -> Result<T, ReadError> {
        for _ in 0..SNAPSHOT_TRIES_MAX {
            let done = self.with_snapshot(&mut read).inspect_err(|error| self.note(error))?;
            if let Some(done) = done {
                return Ok(done);
            }
        }
        Err(LogError::Busy.into())
    }

    /// Runs `read` on one snapshot of the log.
    pub(super) fn with_snapshot<T, E: From<LogError>>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let idle = self.idle().pop();
        let conn = match idle {
            Some(conn) => conn,
            None => super::schema::open_to_read(&self.shared.path)?,
        };
        conn.execute_batch("BEGIN").map_err(LogError::from)?;
        let result = read(&conn);
        // A connection whose transaction does not end is not used again.
        if conn.execute_batch("COMMIT").is_ok() {
            let mut idle = self.idle();
            if idle.len() < IDLE_CONNECTIONS_MAX {
                idle.push(conn);
            }
        }
        result
    }

    pub(super) fn recent(&self) -> &SharedRecent {
        &self.shared.recent
    }

    pub(super) fn last_commits(&self) -> &LastCommits {
        &self.shared.last_commits
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.shared.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

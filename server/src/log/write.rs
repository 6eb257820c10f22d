//! The one writer.
//!
//! Everything between two commits is one transaction of the store: changes, postings, the latest
//! change of each document, the tail's resume token and the progress of copies. The head is told to
//! readers after the commit and never before.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use tidewire_protocol::Position;
use tokio::sync::watch;

use super::checkpoint::Checkpointer;
use super::copies::StoredCollection;
use super::damage::{mark_damaged, refuse_damaged, with_remedy};
use super::known::Known;
use super::quarantine::Aside;
use super::recent::{Recent, SharedRecent};
use super::record::{
    KIND_DELETE, KIND_UPSERT, StoredRow, document_from_store, head_position, missing,
};
use super::state::{LogState, Trim};
use super::touched::LastCommits;
use super::{
    Body, Channels, CollectionId, CopyState, Head, LogError, NewChange, Reader, TailState, schema,
};

/// Largest document that a row takes, bytes: MongoDB's own bound and some room for its envelope.
pub(super) const DOCUMENT_LEN_MAX: usize = 17 * 1024 * 1024;

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The source's identity (`<replica set>/<database>`): a log never mixes two.
    pub source: String,
    /// How long superseded changes and tombstones are kept.
    pub retention: Duration,
}

/// A key of the log and where its latest change stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// [`super::sort_key`] of the `_id`.
    pub key: Vec<u8>,
    /// The latest change.
    pub position: Position,
    /// False when the latest change is a delete.
    pub live: bool,
}

/// The log's one writer. Dropped without a commit, what was appended since the last is gone.
#[derive(Debug)]
pub struct Writer {
    pub(super) conn: Connection,
    /// After the connection, with which it ends.
    _checkpointer: Checkpointer,
    /// Held as long as we live: a second writer on the folder is refused.
    _lock: File,
    pub(super) retention: Duration,
    /// The log's own row, committed.
    pub(super) state: LogState,
    /// How far compaction has come, not committed included.
    pub(super) trim: Trim,
    pub(super) head: Head,
    head_sender: watch::Sender<Head>,
    /// Committed.
    pub(super) tail: TailState,
    /// To be committed.
    next_tail: Option<TailState>,
    pub(super) collections: HashMap<String, CollectionId>,
    pub(super) copies: HashMap<CollectionId, CopyState>,
    /// The next commit ends a gap.
    pub(super) gap_ends: bool,
    /// The greatest key of each collection, tombstones included: a key above it is new.
    pub(super) greatest: HashMap<CollectionId, Vec<u8>>,
    pub(super) channels: HashMap<CollectionId, HashMap<String, u32>>,
    pub(super) channels_len: usize,
    pub(super) shared: SharedRecent,
    last_commits: LastCommits,
    /// The index entries of what is not committed.
    pub(super) fresh: Recent,
    /// Part of those is in the store already: the rest must follow with the next commit.
    pub(super) index_on_commit: bool,
    in_transaction: bool,
    /// The last change, committed or not.
    pub(super) last_seq: u64,
    pub(super) last_position: Position,
    /// Where documents' latest changes probably are, uncommitted ones included.
    pub(super) known: Known,
    /// What [`Writer::latest`] last found, so that the append that follows need not look again.
    pub(super) looked_up: Option<LookedUp>,
    /// The quarantine, uncommitted changes of it included.
    pub(super) aside: Aside,
}

#[derive(Debug)]
pub(super) struct LookedUp {
    pub(super) collection: CollectionId,
    pub(super) key: Vec<u8>,
    pub(super) previous: Option<Previous>,
}

/// A row to write.
pub(super) struct NewRow<'a> {
    pub(super) position: Position,
    pub(super) wall_time_ms: i64,
    pub(super) collection: CollectionId,
    pub(super) key: &'a [u8],
    pub(super) kind: i64,
    pub(super) document: &'a [u8],
    /// Their numbers, as they are stored.
    pub(super) channels: &'a [u8],
    pub(super) rules: u64,
}

/// The change that an append supersedes.
#[derive(Clone, Debug)]
pub(super) struct Previous {
    pub(super) seq: u64,
    pub(super) channels: Vec<u8>,
}

impl Writer {
    /// Opens the log in `dir`, making both where they are missing. The folder stays locked until the
    /// writer is dropped or the process dies.
    ///
    /// # Errors
    /// [`LogError::InUse`], [`LogError::OtherSource`], [`LogError::Unreadable`],
    /// [`LogError::NeedsRebuild`], [`LogError::Io`].
    pub fn open(dir: &Path, options: &LogOptions) -> Result<(Self, Reader), LogError> {
        let lock = lock(dir)?;
        refuse_damaged(dir)?;
        Self::open_locked(dir, options, lock).map_err(|error| {
            let error = with_remedy(dir, error);
            if let LogError::NeedsRebuild { reason, .. } = &error {
                // What tells of it may be gone once the file is closed (its write-ahead log).
                let _ = mark_damaged(dir, reason);
            }
            error
        })
    }

    fn open_locked(
        dir: &Path,
        options: &LogOptions,
        lock: File,
    ) -> Result<(Self, Reader), LogError> {
        let mut conn = schema::open_to_write(dir, &options.source)?;
        let mut state = LogState::read(&conn)?;
        if state.source != options.source {
            let (dir, wanted, found) = (dir.to_owned(), options.source.clone(), state.source);
            return Err(LogError::OtherSource { dir, found, wanted });
        }
        state.identify(&conn)?;
        let checkpointer = Checkpointer::start(&mut conn, &schema::log_path(dir))?;
        let (head_sender, head_receiver) = watch::channel(Head::default());
        let mut writer = Self {
            conn,
            _checkpointer: checkpointer,
            _lock: lock,
            retention: options.retention,
            trim: state.trim,
            state,
            head: Head::default(),
            head_sender,
            tail: TailState::default(),
            next_tail: None,
            collections: HashMap::new(),
            copies: HashMap::new(),
            gap_ends: false,
            greatest: HashMap::new(),
            channels: HashMap::new(),
            channels_len: 0,
            shared: SharedRecent::default(),
            last_commits: LastCommits::default(),
            fresh: Recent::default(),
            index_on_commit: false,
            in_transaction: false,
            last_seq: 0,
            last_position: Position::ZERO,
            known: Known::default(),
            looked_up: None,
            aside: Aside::default(),
        };
        writer.load()?;
        let path = schema::log_path(dir);
        let reader = Reader::beside_writer(
            path,
            writer.state.log_id,
            head_receiver,
            writer.shared.clone(),
            writer.last_commits.clone(),
        );
        Ok((writer, reader))
    }

    /// Takes over what is committed, forgetting what is not.
    fn load(&mut self) -> Result<(), LogError> {
        let state = LogState::read(&self.conn)?;
        let resume_token = state.resume_token.clone().map(document_from_store).transpose()?;
        self.tail = TailState { resume_token, high_water: state.high_water };
        self.next_tail = None;
        self.head = state.head;
        (self.last_seq, self.last_position) = (state.head.seq, state.last);
        self.fresh.clear();
        self.known.clear();
        self.index_on_commit = false;
        self.gap_ends = false;
        {
            let recent = Recent::rebuild(&self.conn, state.indexed_seq, state.head.seq)?;
            let mut shared = self.shared.write();
            (shared.head, shared.indexed_seq, shared.recent) =
                (state.head, state.indexed_seq, recent);
        }
        self.head_sender.send_replace(self.head);
        self.aside = Aside::load(&self.conn)?;
        self.trim = state.trim;
        self.state = state;
        self.load_collections()
    }

    /// The number of a collection, given on first sight.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn collection(&mut self, name: &str) -> Result<CollectionId, LogError> {
        if let Some(&id) = self.collections.get(name) {
            return Ok(id);
        }
        self.begin()?;
        let id = StoredCollection::add(&self.conn, name)?;
        self.collections.insert(name.to_owned(), id);
        Ok(id)
    }

    /// Every collection that the log has seen.
    #[must_use]
    pub fn collections(&self) -> Vec<(String, CollectionId)> {
        self.collections.iter().map(|(name, &id)| (name.clone(), id)).collect()
    }

    /// How far the tail has come, committed.
    #[must_use]
    pub fn tail(&self) -> &TailState {
        &self.tail
    }

    /// The end of what is committed.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// The position of the last change, committed or not.
    #[must_use]
    pub fn last_position(&self) -> Position {
        self.last_position
    }

    /// Appends a change. Visible to readers after the next [`Writer::commit`].
    ///
    /// # Errors
    /// [`LogError::Refused`] when the position is not above all before it or above what readers have
    /// been told is complete, or the document is over 17 MiB; [`LogError::Store`].
    pub fn append(&mut self, change: &NewChange<'_>) -> Result<(), LogError> {
        let (kind, document) = match change.body {
            Body::Upsert(document) => (KIND_UPSERT, document),
            Body::Delete(document) => (KIND_DELETE, document),
        };
        self.check(change.position, document.as_bytes().len())?;
        self.begin()?;
        let previous = self.previous(change.collection, change.key)?;
        let channels = match (change.channels, &previous) {
            (Channels::Named(names), _) => self.channel_numbers(change.collection, names)?,
            (Channels::AsBefore, Some(previous)) => previous.channels.clone(),
            (Channels::AsBefore, None) => {
                return Err(LogError::Refused("there is no change before this one".to_owned()));
            }
        };
        self.no_longer_aside(change.collection, change.key)?;
        let row = NewRow {
            position: change.position,
            wall_time_ms: change.wall_time_ms,
            collection: change.collection,
            key: change.key,
            kind,
            document: document.as_bytes(),
            channels: &channels,
            rules: change.rules,
        };
        self.put(&row, previous)
    }

    /// Writes a row and its index entries, in the transaction that is open.
    pub(super) fn put(
        &mut self,
        change: &NewRow<'_>,
        previous: Option<Previous>,
    ) -> Result<(), LogError> {
        let seq = self.last_seq + 1;
        let before = previous.as_ref().map_or(&[][..], |previous| &previous.channels);
        self.index(change, seq, before)?;
        let row = StoredRow {
            seq,
            position: change.position,
            wall_time_ms: change.wall_time_ms,
            collection: change.collection,
            kind: change.kind,
            previous: previous.map_or(0, |previous| previous.seq),
            rules: change.rules,
            channels: change.channels,
            document: change.document,
        };
        self.conn
            .prepare_cached(
                "INSERT INTO changes (seq, cluster_time, ordinal, wall_time, collection, kind,
                                      previous, rules, checksum, channels, document)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute((
                row.seq.cast_signed(),
                row.position.cluster_time.cast_signed(),
                row.position.ordinal,
                row.wall_time_ms,
                row.collection.0,
                row.kind,
                row.previous.cast_signed(),
                row.rules.cast_signed(),
                row.checksum(),
                row.channels,
                row.document,
            ))?;
        (self.last_seq, self.last_position) = (seq, change.position);
        Ok(())
    }

    pub(super) fn check(&self, position: Position, len: usize) -> Result<(), LogError> {
        let floor = self.last_position.max(self.head.position);
        if position <= floor {
            return Err(LogError::Refused(format!("position {position} is not above {floor}")));
        }
        if len > DOCUMENT_LEN_MAX {
            return Err(LogError::Refused(format!("a document of {len} bytes is too large")));
        }
        Ok(())
    }

    /// The change that the next one of this document supersedes.
    pub(super) fn previous(
        &mut self,
        collection: CollectionId,
        key: &[u8],
    ) -> Result<Option<Previous>, LogError> {
        if let Some(known) = self.looked_up.take()
            && known.collection == collection
            && known.key == key
        {
            return Ok(known.previous);
        }
        let Some(seq) = self.latest_seq(collection, key)? else {
            return Ok(None);
        };
        let found = self.row_of(collection, key, seq)?;
        found.map(|(previous, _)| Some(previous)).ok_or_else(|| missing(seq))
    }

    /// Keeps the index entries of a change for the next commit.
    fn index(&mut self, change: &NewRow<'_>, seq: u64, before: &[u8]) -> Result<(), LogError> {
        self.fresh.post(seq, before, change.channels)?;
        self.fresh.set_latest(change.collection, change.key, seq);
        self.known.set(change.collection, change.key, seq);
        let greatest = self.greatest.entry(change.collection).or_default();
        if change.key > greatest.as_slice() {
            greatest.clear();
            greatest.extend_from_slice(change.key);
        }
        if self.fresh.is_full() {
            // A transaction of any size stays within bounds: older entries first, so that they never
            // overwrite newer ones.
            self.write_index()?;
            self.fresh.clear();
        }
        Ok(())
    }

    /// Writes the index entries of everything so far, in the transaction that is open.
    pub(super) fn write_index(&mut self) -> Result<(), LogError> {
        if !self.index_on_commit {
            self.shared.read().recent.write(&self.conn)?;
            self.index_on_commit = true;
        }
        self.fresh.write(&self.conn)
    }

    /// Sets how far the tail has come; commits with the rest. The first one of a log is its origin:
    /// cursors from before it are too old.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn set_tail(&mut self, tail: TailState) -> Result<(), LogError> {
        self.begin()?;
        self.next_tail = Some(tail);
        Ok(())
    }

    /// Commits everything since the last commit and tells the readers. Nothing to commit is fine.
    ///
    /// # Errors
    /// [`LogError::Store`]: nothing is committed then, and the caller aborts.
    pub fn commit(&mut self) -> Result<Head, LogError> {
        if !self.in_transaction {
            return Ok(self.head);
        }
        if self.index_on_commit || self.shared.read().recent.is_full() {
            self.write_index()?;
        }
        let indexed_seq =
            if self.index_on_commit { self.last_seq } else { self.shared.read().indexed_seq };
        self.end_gaps(self.next_tail.as_ref().unwrap_or(&self.tail).high_water)?;
        let state = self.next_state(indexed_seq);
        state.write(&self.conn)?;
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        self.in_transaction = false;
        if let Some(tail) = self.next_tail.take() {
            self.tail = tail;
        }
        self.head = state.head;
        self.state = state;
        self.share(indexed_seq);
        self.head_sender.send_replace(self.head);
        Ok(self.head)
    }

    /// The log's own row as this commit leaves it.
    fn next_state(&self, indexed_seq: u64) -> LogState {
        let tail = self.next_tail.as_ref().unwrap_or(&self.tail);
        let last = self.last_position;
        let origin = if self.state.origin == 0 { tail.high_water } else { self.state.origin };
        LogState {
            log_id: self.state.log_id,
            source: self.state.source.clone(),
            head: Head { position: head_position(last, tail.high_water), seq: self.last_seq },
            last,
            high_water: tail.high_water,
            resume_token: tail.resume_token.as_ref().map(|token| token.as_bytes().to_vec()),
            origin,
            indexed_seq,
            trim: self.trim,
        }
    }

    /// Hands what was committed to the readers.
    fn share(&mut self, indexed_seq: u64) {
        let mut shared = self.shared.write();
        let after = std::mem::replace(&mut shared.head, self.head).seq;
        if self.head.seq > after {
            // Part of a large commit's entries may be in the store alone.
            let channels = (!self.index_on_commit).then(|| self.fresh.channels());
            self.last_commits.add(after, self.head.seq, channels);
        }
        if std::mem::take(&mut self.index_on_commit) {
            shared.indexed_seq = indexed_seq;
            shared.recent.clear();
            self.fresh.clear();
        } else {
            shared.recent.absorb(&mut self.fresh);
        }
    }

    /// Forgets everything since the last commit. Where that fails, what is in memory is not what the file
    /// says: nothing may be appended before another one has not failed.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn abort(&mut self) -> Result<(), LogError> {
        // A failed statement (a full disk) may have rolled back already.
        if !self.conn.is_autocommit() {
            self.conn.execute_batch("ROLLBACK")?;
        }
        self.in_transaction = false;
        self.load()
    }

    pub(super) fn begin(&mut self) -> Result<(), LogError> {
        if !self.in_transaction {
            self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            self.in_transaction = true;
        }
        Ok(())
    }
}

/// Makes the folder where it is missing and locks it for the one who writes.
pub(super) fn lock(dir: &Path) -> Result<File, LogError> {
    let io = |source| LogError::Io { dir: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(io)?;
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("lock"))
        .map_err(io)?;
    lock.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => LogError::InUse(dir.to_owned()),
        std::fs::TryLockError::Error(source) => io(source),
    })?;
    Ok(lock)
}

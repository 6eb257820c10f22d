//! SQLite in WAL mode, `synchronous=NORMAL`, with four shapes of its indexes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use crate::data::{Change, channels_blob, channels_of, read_postings, write_postings};
use crate::store::{Store, merge};

/// How the channel index and the key index are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A row for each channel and change.
    Rows,
    /// A row for each channel and commit, with the changes' numbers as differences.
    Postings,
    /// As `Postings`, but written once in [`TAIL`] changes; the rest is in memory, rebuilt at open.
    DeferredPostings,
    /// As `DeferredPostings`, and the key index too.
    DeferredAll,
}

/// Most changes whose index entries are in memory only.
pub const TAIL: u64 = 16_384;

/// Numbers fetched at a time from a channel kept as rows.
const RUN: usize = 256;

/// What can be set.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub shape: Shape,
    pub page_size: u32,
    pub cache_bytes: u32,
    /// The WAL is checkpointed when it is longer.
    pub checkpoint_bytes: u32,
}

/// The store.
pub struct Sqlite {
    connection: Connection,
    shape: Shape,
    last: u64,
    /// The index entries from here on (exclusive) are in `tail` and `fresh`.
    indexed: u64,
    tail: HashMap<u32, Vec<u64>>,
    fresh: BTreeMap<[u8; 13], u64>,
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS change (
        seq INTEGER PRIMARY KEY, time INTEGER NOT NULL, ordinal INTEGER NOT NULL,
        wall INTEGER NOT NULL, collection INTEGER NOT NULL, kind INTEGER NOT NULL,
        key BLOB NOT NULL, channels BLOB NOT NULL, doc BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS latest (
        collection INTEGER NOT NULL, key BLOB NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY (collection, key)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS scope (
        channel INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (channel, seq)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS posting (
        channel INTEGER NOT NULL, first INTEGER NOT NULL, seqs BLOB NOT NULL,
        PRIMARY KEY (channel, first)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT OR IGNORE INTO state VALUES ('indexed', 0), ('tail', 0);";

impl Sqlite {
    pub fn open(dir: &Path, options: &Options) -> Result<Self> {
        let connection = Connection::open(dir.join("log.db"))?;
        connection.set_prepared_statement_cache_capacity(64);
        connection.pragma_update(None, "page_size", options.page_size)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "cache_size", -i64::from(options.cache_bytes / 1024))?;
        let pages = options.checkpoint_bytes / options.page_size;
        connection.pragma_update(None, "wal_autocheckpoint", pages)?;
        connection.execute_batch(SCHEMA)?;
        let last =
            connection.query_row("SELECT coalesce(max(seq), 0) FROM change", [], |r| r.get(0))?;
        let indexed =
            connection
                .query_row("SELECT value FROM state WHERE name = 'indexed'", [], |r| r.get(0))?;
        let (tail, fresh) = (HashMap::new(), BTreeMap::new());
        let mut store = Self { connection, shape: options.shape, last, indexed, tail, fresh };
        store.rebuild_tail()?;
        Ok(store)
    }

    fn rebuild_tail(&mut self) -> Result<()> {
        if matches!(self.shape, Shape::Rows | Shape::Postings) {
            return Ok(());
        }
        let mut statement = self
            .connection
            .prepare("SELECT seq, key, channels FROM change WHERE seq > ? ORDER BY seq")?;
        let mut rows = statement.query([self.indexed])?;
        while let Some(row) = rows.next()? {
            let seq = row.get(0)?;
            for channel in channels_of(row.get_ref(2)?.as_blob()?) {
                self.tail.entry(channel).or_default().push(seq);
            }
            if self.shape == Shape::DeferredAll {
                self.fresh.insert(row.get(1)?, seq);
            }
        }
        Ok(())
    }

    fn append_open(&mut self, batch: &[Change]) -> Result<()> {
        let db = &self.connection;
        let mut row = db.prepare_cached("INSERT INTO change VALUES (?, ?, ?, ?, 1, 0, ?, ?, ?)")?;
        let mut set = db.prepare_cached(
            "INSERT INTO latest VALUES (1, ?, ?) ON CONFLICT DO UPDATE SET seq = excluded.seq",
        )?;
        let mut find =
            db.prepare_cached("SELECT seq FROM latest WHERE collection = 1 AND key = ?")?;
        let mut read = db.prepare_cached("SELECT doc FROM change WHERE seq = ?")?;
        let mut scope = db.prepare_cached("INSERT INTO scope VALUES (?, ?)")?;
        for change in batch {
            if change.update {
                let seq: u64 = match self.fresh.get(&change.key) {
                    Some(seq) => *seq,
                    None => find.query_row([change.key], |r| r.get(0)).context("no such key")?,
                };
                let length = read.query_row([seq], |r| Ok(r.get_ref(0)?.as_blob()?.len()))?;
                anyhow::ensure!(length > 0, "an empty document");
            }
            row.execute(params![
                change.seq,
                change.seq / 3,
                change.seq % 3,
                1_700_000_000_000 + change.seq,
                change.key,
                channels_blob(&change.channels),
                change.doc
            ])?;
            if self.shape == Shape::DeferredAll {
                self.fresh.insert(change.key, change.seq);
            } else {
                set.execute(params![change.key, change.seq])?;
            }
            for channel in change.channels {
                if self.shape == Shape::Rows {
                    scope.execute(params![channel, change.seq])?;
                } else {
                    self.tail.entry(channel).or_default().push(change.seq);
                }
            }
        }
        // A state row, as the resume token is.
        db.prepare_cached("UPDATE state SET value = ? WHERE name = 'tail'")?
            .execute([batch.last().map(|c| c.seq)])?;
        Ok(())
    }

    /// Writes what the indexes hold in memory, when it is time to.
    fn index(&mut self, through: u64) -> Result<()> {
        let due = match self.shape {
            Shape::Rows => false,
            Shape::Postings => true,
            Shape::DeferredPostings | Shape::DeferredAll => through - self.indexed >= TAIL,
        };
        if !due {
            return Ok(());
        }
        let db = &self.connection;
        let mut posting = db.prepare_cached("INSERT INTO posting VALUES (?, ?, ?)")?;
        let mut runs: Vec<_> = self.tail.drain().collect();
        runs.sort_unstable_by_key(|(channel, _)| *channel);
        let mut blob = Vec::new();
        for (channel, seqs) in runs {
            // Bounded rows: a page's read decodes one at a time.
            for seqs in seqs.chunks(1_024) {
                blob.clear();
                write_postings(seqs[0], seqs, &mut blob);
                posting.execute(params![channel, seqs[0], blob])?;
            }
        }
        let mut set = db.prepare_cached(
            "INSERT INTO latest VALUES (1, ?, ?) ON CONFLICT DO UPDATE SET seq = excluded.seq",
        )?;
        for (key, seq) in std::mem::take(&mut self.fresh) {
            set.execute(params![key, seq])?;
        }
        db.prepare_cached("UPDATE state SET value = ? WHERE name = 'indexed'")?
            .execute([through])?;
        self.indexed = through;
        Ok(())
    }

    fn remove_postings(&self, gone: &BTreeMap<u32, Vec<u64>>) -> Result<()> {
        let db = &self.connection;
        let mut rows = db.prepare_cached(
            "SELECT first, seqs FROM posting WHERE channel = ?1 AND first <= ?3 AND first >= coalesce(
                 (SELECT max(first) FROM posting WHERE channel = ?1 AND first <= ?2), 0)",
        )?;
        let mut drop = db.prepare_cached("DELETE FROM posting WHERE channel = ? AND first = ?")?;
        let mut keep =
            db.prepare_cached("UPDATE posting SET seqs = ?3 WHERE channel = ?1 AND first = ?2")?;
        for (channel, seqs) in gone {
            let bounds = params![channel, seqs[0], seqs[seqs.len() - 1]];
            let found: Vec<(u64, Vec<u8>)> = rows
                .query_map(bounds, |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            for (first, blob) in found {
                let mut held = Vec::new();
                read_postings(first, &blob, &mut held);
                let before = held.len();
                held.retain(|seq| seqs.binary_search(seq).is_err());
                if held.is_empty() {
                    drop.execute(params![channel, first])?;
                } else if held.len() < before {
                    let mut blob = Vec::new();
                    write_postings(first, &held, &mut blob);
                    keep.execute(params![channel, first, blob])?;
                }
            }
        }
        Ok(())
    }

    fn delete_chunk(&mut self, from: u64, through: u64) -> Result<u64> {
        let mut gone: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let mut deleted = 0;
        let db = &self.connection;
        let mut rows =
            db.prepare_cached("SELECT seq, key, channels FROM change WHERE seq > ? AND seq <= ?")?;
        let found: Vec<(u64, [u8; 13], [u32; 2])> = rows
            .query_map([from, through], |r| {
                Ok((r.get(0)?, r.get(1)?, channels_of(r.get_ref(2)?.as_blob()?)))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let mut delete = db.prepare_cached("DELETE FROM change WHERE seq = ?")?;
        let mut unscope = db.prepare_cached("DELETE FROM scope WHERE channel = ? AND seq = ?")?;
        for (seq, key, channels) in found {
            if self.latest(&key)? == Some(seq) {
                continue;
            }
            delete.execute([seq])?;
            deleted += 1;
            for channel in channels {
                if self.shape == Shape::Rows {
                    unscope.execute(params![channel, seq])?;
                } else {
                    gone.entry(channel).or_default().push(seq);
                }
            }
        }
        self.remove_postings(&gone)?;
        Ok(deleted)
    }
}

/// One channel's numbers in order, fetched piece by piece.
struct Run<'a> {
    channel: u32,
    after: u64,
    held: std::collections::VecDeque<u64>,
    started: bool,
    /// Nothing more in the store: the tail in memory is next, or the end.
    stored_done: bool,
    tail: &'a [u64],
}

impl Run<'_> {
    fn next(
        &mut self,
        shape: Shape,
        rows: &mut CachedStatement<'_>,
        first: &mut CachedStatement<'_>,
    ) -> Result<Option<u64>> {
        while self.held.is_empty() && !self.stored_done {
            if shape == Shape::Rows {
                let mut found = rows.query(params![self.channel, self.after, RUN as i64])?;
                while let Some(row) = found.next()? {
                    self.held.push_back(row.get(0)?);
                }
                self.stored_done = self.held.len() < RUN;
            } else {
                let blob = |r: &rusqlite::Row<'_>, held: &mut Vec<u64>| {
                    read_postings(r.get(0)?, r.get_ref(1)?.as_blob()?, held);
                    rusqlite::Result::Ok(())
                };
                let mut seqs = Vec::new();
                if !std::mem::replace(&mut self.started, true) {
                    // The row that `after` falls into.
                    let bounds = params![self.channel, self.after];
                    first.query_row(bounds, |r| blob(r, &mut seqs)).optional()?;
                    seqs.retain(|seq| *seq > self.after);
                }
                let mut found = rows.query(params![self.channel, self.after])?;
                self.stored_done = true;
                while let Some(row) = found.next()? {
                    blob(row, &mut seqs)?;
                    self.stored_done = seqs.len() < RUN;
                    if !self.stored_done {
                        break;
                    }
                }
                self.held.extend(seqs);
            }
            self.after = self.held.back().copied().unwrap_or(self.after);
        }
        if let Some(seq) = self.held.pop_front() {
            return Ok(Some(seq));
        }
        let Some((seq, rest)) = self.tail.split_first() else { return Ok(None) };
        self.tail = rest;
        Ok(Some(*seq))
    }
}

impl Store for Sqlite {
    fn append(&mut self, batch: &[Change]) -> Result<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        self.append_open(batch)?;
        let through = batch.last().map_or(self.last, |c| c.seq);
        self.index(through)?;
        self.connection.execute_batch("COMMIT")?;
        self.last = through;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        // NORMAL syncs at checkpoints; a log that wants a bound in time checkpoints on a timer.
        self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(())
    }

    fn page(&self, since: u64, channels: &[u32], limit: usize) -> Result<(usize, u64)> {
        let db = &self.connection;
        let (next, first) = if self.shape == Shape::Rows {
            ("SELECT seq FROM scope WHERE channel = ? AND seq > ? ORDER BY seq LIMIT ?", "SELECT 1")
        } else {
            (
                "SELECT first, seqs FROM posting WHERE channel = ? AND first > ? ORDER BY first",
                "SELECT first, seqs FROM posting WHERE channel = ? AND first <= ?
                     ORDER BY first DESC LIMIT 1",
            )
        };
        let (mut next, mut first) = (db.prepare_cached(next)?, db.prepare_cached(first)?);
        let mut read = db.prepare_cached("SELECT doc FROM change WHERE seq = ?")?;
        let mut runs: Vec<Run<'_>> = channels
            .iter()
            .map(|&channel| {
                let tail = self.tail.get(&channel).map_or(&[][..], Vec::as_slice);
                let tail = &tail[tail.partition_point(|seq| *seq <= since)..];
                let stored_done = since >= self.indexed && self.indexed > 0;
                Run { channel, after: since, held: [].into(), started: false, stored_done, tail }
            })
            .collect();
        let (mut count, mut bytes) = (0, 0);
        merge(
            runs.len(),
            limit,
            |i| runs[i].next(self.shape, &mut next, &mut first),
            |seq| {
                let length =
                    read.query_row([seq], |r| Ok(r.get_ref(0)?.as_blob()?.len())).optional()?;
                bytes += length.unwrap_or(0) as u64;
                count += usize::from(length.is_some());
                Ok(length.is_some())
            },
        )?;
        Ok((count, bytes))
    }

    fn delete_superseded(&mut self, through: u64) -> Result<u64> {
        let mut deleted = 0;
        for from in (0..through).step_by(5_000) {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            deleted += self.delete_chunk(from, through.min(from + 5_000))?;
            self.connection.execute_batch("COMMIT")?;
        }
        Ok(deleted)
    }

    fn last(&self) -> Result<u64> {
        Ok(self.last)
    }

    fn get(&self, seq: u64) -> Result<Option<Change>> {
        let mut read = self
            .connection
            .prepare_cached("SELECT key, channels, doc FROM change WHERE seq = ?")?;
        let row = read.query_row([seq], |r| {
            let channels = channels_of(r.get_ref(1)?.as_blob()?);
            Ok(Change { seq, key: r.get(0)?, channels, update: false, doc: r.get(2)? })
        });
        Ok(row.optional()?)
    }

    fn latest(&self, key: &[u8; 13]) -> Result<Option<u64>> {
        if let Some(seq) = self.fresh.get(key) {
            return Ok(Some(*seq));
        }
        let mut find = self
            .connection
            .prepare_cached("SELECT seq FROM latest WHERE collection = 1 AND key = ?")?;
        Ok(find.query_row([key], |r| r.get(0)).optional()?)
    }
}

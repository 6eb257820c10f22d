//! The index entries of recent changes, kept in memory and written in bulk.
//!
//! Writing every change's index entries at once costs more than the change itself. A change's row
//! says all that its index entries say, so the entries of the last changes live in memory and go to
//! the store sorted, some ten thousand at a time, in the transaction that moves `log.indexed_seq`.
//! After a crash they are rebuilt from the rows after `indexed_seq`.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rusqlite::Connection;

use super::postings::{Runs, sealed};
use super::record::{StoredRow, channel_ids, missing, select_rows};
use super::{CollectionId, Head, LogError};

/// Keys kept in memory before they are written.
const KEYS_MAX: usize = if cfg!(test) { 50 } else { 16_384 };
/// Postings kept in memory before they are written.
const POSTINGS_MAX: usize = 131_072;

/// Index entries that are not in the store.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// By channel: `seq << 1 | left`, ascending.
    postings: HashMap<u32, Vec<u64>>,
    postings_len: usize,
    /// By collection and key: the latest change.
    latest: HashMap<CollectionId, HashMap<Vec<u8>, u64>>,
    latest_len: usize,
}

impl Recent {
    /// The change `seq` touches `channel`; numbers ascend.
    pub(super) fn add_posting(&mut self, channel: u32, seq: u64, left: bool) {
        self.postings.entry(channel).or_default().push(seq << 1 | u64::from(left));
        self.postings_len += 1;
    }

    /// The channels that have postings, in no order.
    pub(super) fn channels(&self) -> Vec<u32> {
        self.postings.keys().copied().collect()
    }

    /// The latest change of a document is `seq`.
    pub(super) fn set_latest(&mut self, collection: CollectionId, key: &[u8], seq: u64) {
        let keys = self.latest.entry(collection).or_default();
        if keys.insert(key.to_vec(), seq).is_none() {
            self.latest_len += 1;
        }
    }

    pub(super) fn latest(&self, collection: CollectionId, key: &[u8]) -> Option<u64> {
        self.latest.get(&collection)?.get(key).copied()
    }

    pub(super) fn greatest_key(&self, collection: CollectionId) -> Option<&[u8]> {
        self.latest.get(&collection)?.keys().max().map(Vec::as_slice)
    }

    /// Keys of a collection that are `wanted`, ascending, with their latest change.
    pub(super) fn keys(
        &self,
        collection: CollectionId,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Vec<(&[u8], u64)> {
        let all = self.latest.get(&collection).into_iter().flatten();
        let mut keys: Vec<_> =
            all.map(|(key, &seq)| (key.as_slice(), seq)).filter(|(key, _)| wanted(key)).collect();
        keys.sort_unstable();
        keys
    }

    /// The postings of a channel in `(after, through]`.
    pub(super) fn postings(&self, channel: u32, after: u64, through: u64) -> Vec<u64> {
        let Some(all) = self.postings.get(&channel) else {
            return Vec::new();
        };
        let from = all.partition_point(|posting| posting >> 1 <= after);
        let to = all.partition_point(|posting| posting >> 1 <= through);
        all.get(from..to).unwrap_or_default().to_vec()
    }

    /// Whether it is time to write.
    pub(super) fn is_full(&self) -> bool {
        self.latest_len >= KEYS_MAX || self.postings_len >= POSTINGS_MAX
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes over what is newer.
    pub(super) fn absorb(&mut self, newer: &mut Self) {
        for (channel, postings) in newer.postings.drain() {
            self.postings.entry(channel).or_default().extend(postings);
        }
        self.postings_len += std::mem::take(&mut newer.postings_len);
        for (&collection, keys) in &mut newer.latest {
            let all = self.latest.entry(collection).or_default();
            for (key, seq) in keys.drain() {
                self.latest_len += usize::from(all.insert(key, seq).is_none());
            }
        }
        newer.latest_len = 0;
    }

    /// Writes everything to the store, sorted; it stays in memory.
    pub(super) fn write(&self, conn: &Connection) -> Result<(), LogError> {
        // With one key and no trigger SQLite overwrites in place, without looking first.
        let mut replace = conn.prepare_cached(
            "INSERT OR REPLACE INTO latest (collection, key, seq) VALUES (?1, ?2, ?3)",
        )?;
        for &collection in self.latest.keys() {
            for (key, seq) in self.keys(collection, |_| true) {
                replace.execute((collection.0, key, seq.cast_signed()))?;
            }
        }
        let mut channels: Vec<_> = self.postings.iter().collect();
        channels.sort_unstable_by_key(|(channel, _)| **channel);
        let mut insert = conn.prepare_cached(
            "INSERT INTO postings (channel, first_seq, entries) VALUES (?1, ?2, ?3)",
        )?;
        for (&channel, postings) in channels {
            for (first, entries) in Runs::of(postings) {
                insert.execute((channel, first.cast_signed(), sealed(channel, first, entries)))?;
            }
        }
        Ok(())
    }

    /// Rebuilds the entries of the changes after `indexed_seq`, which are all there through `head`: nothing
    /// is dropped that is not in the store's index.
    pub(super) fn rebuild(
        conn: &Connection,
        indexed_seq: u64,
        head: u64,
    ) -> Result<Self, LogError> {
        let mut recent = Self::default();
        let mut through = indexed_seq;
        let mut select = conn.prepare(select_rows!("WHERE seq > ?1 ORDER BY seq"))?;
        let mut before = conn.prepare(select_rows!("WHERE seq = ?1"))?;
        let mut rows = select.query([indexed_seq.cast_signed()])?;
        while let Some(row) = rows.next()? {
            let row = StoredRow::read(row)?;
            if row.seq != through + 1 {
                return Err(missing(through + 1));
            }
            through = row.seq;
            let mut found = before.query([row.previous.cast_signed()])?;
            let previous = found.next()?.map(StoredRow::read).transpose()?;
            let before = previous.map_or(&[][..], |previous| previous.channels);
            recent.post(row.seq, before, row.channels)?;
            recent.set_latest(row.collection, &row.key()?, row.seq);
        }
        if through < head {
            return Err(missing(through + 1));
        }
        Ok(recent)
    }

    /// The postings of a change: the channels that its document is in, and those it left; both as rows
    /// hold them.
    pub(super) fn post(&mut self, seq: u64, before: &[u8], now: &[u8]) -> Result<(), LogError> {
        let now_in = channel_ids(now)?;
        for &channel in &now_in {
            self.add_posting(channel, seq, false);
        }
        if before != now {
            for channel in channel_ids(before)? {
                if !now_in.contains(&channel) {
                    self.add_posting(channel, seq, true);
                }
            }
        }
        Ok(())
    }
}

/// What writer and readers share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The end of what is committed.
    pub(super) head: Head,
    /// The index entries of changes through this one are in the store.
    pub(super) indexed_seq: u64,
    /// Those of later ones, committed, are here.
    pub(super) recent: Recent,
}

/// A handle on what writer and readers share. The lock is held for look-ups, never across a read of
/// the store.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedRecent(Arc<RwLock<Shared>>);

impl SharedRecent {
    /// The entries of a log that no writer has open: `head` is as far as it goes.
    pub(super) fn load(conn: &Connection, head: Head, indexed_seq: u64) -> Result<Self, LogError> {
        let recent = Recent::rebuild(conn, indexed_seq, head.seq)?;
        Ok(Self(Arc::new(RwLock::new(Shared { head, indexed_seq, recent }))))
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Shared> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Shared> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

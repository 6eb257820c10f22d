//! Compaction: what is superseded, and tombstones, go when they are older than the retention.
//!
//! The walk visits each change once, in order, behind the retention's boundary: the change it
//! supersedes goes, and a tombstone goes itself. What is left, read from the start, is the state of
//! the source; what is after the trim point is every change since.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::OptionalExtension;
use tidewire_protocol::Position;

use super::postings::{put_varint, sealed, take_varint, unsealed};
use super::record::{KIND_DELETE, StoredRow, channel_ids, select_rows};
use super::state::Trim;
use super::{CollectionId, LogError, Writer};

/// What one step of compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Changes visited.
    pub visited: u64,
    /// Changes dropped.
    pub dropped: u64,
    /// There may be more to visit.
    pub more: bool,
}

/// Numbers to take out of the postings, by channel.
type Removals = BTreeMap<u32, Vec<u64>>;

struct Visited {
    seq: u64,
    position: Position,
    collection: CollectionId,
    key: Vec<u8>,
    previous: u64,
    channels: Vec<u32>,
    is_tombstone: bool,
}

impl Writer {
    /// Drops what changes before `before` (exclusive) supersede, and tombstones before it. Visits at
    /// most `visits_max` changes and commits. Refused inside a transaction.
    ///
    /// # Errors
    /// [`LogError::Refused`], [`LogError::Store`], [`LogError::Damaged`].
    pub fn compact(&mut self, before: Position, visits_max: u32) -> Result<Compacted, LogError> {
        if !self.conn.is_autocommit() {
            return Err(LogError::Refused("compaction between two commits only".to_owned()));
        }
        self.begin()?;
        match self.compact_step(before, visits_max) {
            Ok(compacted) => {
                self.commit()?;
                Ok(compacted)
            }
            Err(error) => {
                self.abort()?;
                Err(error)
            }
        }
    }

    /// How long what is superseded is kept.
    #[must_use]
    pub fn retention(&self) -> Duration {
        self.retention
    }

    /// Where compaction may go now: the retention before `now_seconds` (since 1970).
    #[must_use]
    pub fn retention_boundary(&self, now_seconds: u64) -> Position {
        let boundary = now_seconds.saturating_sub(self.retention.as_secs());
        Position::at_second(u32::try_from(boundary).unwrap_or(u32::MAX))
    }

    fn compact_step(&mut self, before: Position, visits_max: u32) -> Result<Compacted, LogError> {
        let visited = self.visit(before, visits_max)?;
        let mut compacted = Compacted { visited: visited.len() as u64, ..Compacted::default() };
        let Some(last) = visited.last() else {
            return Ok(compacted);
        };
        compacted.more = compacted.visited == u64::from(visits_max);
        let trim = Trim { seq: last.seq, position: last.position };
        // What is taken out of the index must be in it.
        self.write_index()?;
        let mut removals = Removals::new();
        for change in visited {
            compacted.dropped += self.drop_superseded(&change, &mut removals)?;
        }
        for (channel, seqs) in removals {
            self.unpost(channel, &seqs)?;
        }
        self.trim = trim;
        Ok(compacted)
    }

    fn visit(&self, before: Position, visits_max: u32) -> Result<Vec<Visited>, LogError> {
        let mut select =
            self.conn.prepare_cached(select_rows!("WHERE seq > ?1 ORDER BY seq LIMIT ?2"))?;
        let mut rows = select.query((self.trim.seq.cast_signed(), visits_max))?;
        let mut visited = Vec::new();
        while let Some(row) = rows.next()? {
            let row = StoredRow::read(row)?;
            if row.position >= before {
                break;
            }
            visited.push(Visited {
                seq: row.seq,
                position: row.position,
                collection: row.collection,
                key: row.key()?,
                previous: row.previous,
                channels: channel_ids(row.channels)?,
                is_tombstone: row.kind == KIND_DELETE,
            });
        }
        Ok(visited)
    }

    /// Drops what `change` supersedes and, where it is a tombstone, itself; how many went.
    fn drop_superseded(&self, change: &Visited, removals: &mut Removals) -> Result<u64, LogError> {
        let mut dropped = 0;
        let mut delete = self.conn.prepare_cached("DELETE FROM changes WHERE seq = ?1")?;
        if let Some(channels) = self.superseded_channels(change)? {
            for channel in channels {
                let seqs = removals.entry(channel).or_default();
                seqs.push(change.previous);
                // What the document left, it has left too long ago for anybody to be told.
                if !change.channels.contains(&channel) {
                    seqs.push(change.seq);
                }
            }
            dropped += delete.execute([change.previous.cast_signed()])? as u64;
        }
        if change.is_tombstone {
            self.conn
                .prepare_cached(
                    "DELETE FROM latest WHERE collection = ?1 AND key = ?2 AND seq = ?3",
                )?
                .execute((change.collection.0, &change.key, change.seq.cast_signed()))?;
            dropped += delete.execute([change.seq.cast_signed()])? as u64;
        }
        Ok(dropped)
    }

    /// The channels of the change that `change` supersedes, where that is still there. It must be one
    /// of the same document: what compaction drops is gone.
    fn superseded_channels(&self, change: &Visited) -> Result<Option<Vec<u32>>, LogError> {
        let mut select = self.conn.prepare_cached(select_rows!("WHERE seq = ?1"))?;
        let mut rows = select.query([change.previous.cast_signed()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let row = StoredRow::read(row)?;
        if row.collection != change.collection || row.key()? != change.key {
            return Err(LogError::Damaged(format!(
                "change {} does not supersede change {}: they are of two documents",
                change.seq, row.seq
            )));
        }
        channel_ids(row.channels).map(Some)
    }

    /// Takes changes out of a channel's postings.
    fn unpost(&self, channel: u32, seqs: &[u64]) -> Result<(), LogError> {
        let mut seqs = seqs.to_vec();
        seqs.sort_unstable();
        let mut rest = seqs.as_slice();
        while let Some(&seq) = rest.first() {
            let run: Option<(i64, Vec<u8>)> = self
                .conn
                .prepare_cached(
                    "SELECT first_seq, entries FROM postings
                     WHERE channel = ?1 AND first_seq <= ?2 ORDER BY first_seq DESC LIMIT 1",
                )?
                .query_row((channel, seq.cast_signed()), |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((first_seq, entries)) = run else {
                rest = &rest[1..];
                continue;
            };
            let first = first_seq.cast_unsigned();
            let (kept, last) = without(first, &unsealed(channel, first, entries)?, &seqs)?;
            self.conn
                .prepare_cached("DELETE FROM postings WHERE channel = ?1 AND first_seq = ?2")?
                .execute((channel, first_seq))?;
            if let Some((first, bytes)) = kept {
                self.conn
                    .prepare_cached(
                        "INSERT INTO postings (channel, first_seq, entries) VALUES (?1, ?2, ?3)",
                    )?
                    .execute((channel, first.cast_signed(), sealed(channel, first, bytes)))?;
            }
            rest = &rest[rest.partition_point(|&seq| seq <= last).max(1)..];
        }
        Ok(())
    }
}

/// A run's first number and its entries.
type Run = (u64, Vec<u8>);

/// A run without `seqs` (sorted): what is left of it, and the number it ended with.
fn without(first_seq: u64, entries: &[u8], seqs: &[u64]) -> Result<(Option<Run>, u64), LogError> {
    let (mut rest, mut seq) = (entries, first_seq);
    let mut kept: Option<(u64, u64, Vec<u8>)> = None;
    while !rest.is_empty() {
        let value = take_varint(&mut rest)
            .ok_or_else(|| LogError::Damaged("a run of postings is cut".to_owned()))?;
        seq += value >> 1;
        if seqs.binary_search(&seq).is_ok() {
            continue;
        }
        let (_, last, bytes) = kept.get_or_insert_with(|| (seq, seq, Vec::new()));
        put_varint((seq - *last) << 1 | (value & 1), bytes);
        *last = seq;
    }
    Ok((kept.map(|(first, _, bytes)| (first, bytes)), seq))
}

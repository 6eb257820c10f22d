//! Rows of the log as a reader meets them.

use std::collections::{HashMap, HashSet};

use bson::raw::{RawDocument, RawDocumentBuf};
use rusqlite::{CachedStatement, Connection, OptionalExtension};
use tidewire_protocol::Position;

use super::cursor::name_hash;
use super::page::Taker;
use super::read::{Entry, LogState};
use super::recent::SharedRecent;
use super::record::{KIND_DELETE, KIND_SET_ASIDE, channel_ids, checksum};
use super::write::{damaged, document_in_row};
use super::{Body, CollectionId, LogError, sort_key};

/// Walks back from a latest change that are remembered while a page is read.
const VERSIONS_MAX: usize = 10_000;

/// A collection of this log.
#[derive(Debug)]
pub(super) struct KnownCollection {
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) hash: u64,
}

/// All collections of this log.
pub(super) fn collections(conn: &Connection) -> Result<Vec<KnownCollection>, LogError> {
    let mut select = conn.prepare_cached("SELECT id, name FROM collections")?;
    let rows = select.query_map([], |row| {
        let name: String = row.get(1)?;
        Ok(KnownCollection { id: row.get(0)?, hash: name_hash(&name), name })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Looks rows up by their number.
pub(super) struct Rows<'c> {
    select: CachedStatement<'c>,
    latest: CachedStatement<'c>,
    previous: CachedStatement<'c>,
    /// What walks back from a latest change to a boundary have found.
    versions: HashMap<(u64, u64), u64>,
    recent: &'c SharedRecent,
    /// Of the snapshot.
    indexed_seq: u64,
    /// The snapshot holds every change through this one.
    head_seq: u64,
    collections: Vec<KnownCollection>,
}

/// One row, and how to find out more about its document.
pub(super) struct Row<'r, 'c> {
    pub(super) seq: u64,
    pub(super) position: Position,
    wall_time_ms: i64,
    collection: &'r KnownCollection,
    kind: i64,
    channels: &'r [u8],
    document: &'r RawDocument,
    latest: &'r mut CachedStatement<'c>,
    previous: &'r mut CachedStatement<'c>,
    versions: &'r mut HashMap<(u64, u64), u64>,
    recent: &'c SharedRecent,
    indexed_seq: u64,
    head_seq: u64,
}

/// What an entry says of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// What the row says.
    AsItIs,
    /// The reader may not see the document (any more): a delete.
    Gone,
}

impl<'c> Rows<'c> {
    pub(super) fn prepare(
        conn: &'c Connection,
        recent: &'c SharedRecent,
        state: &LogState,
    ) -> Result<Self, LogError> {
        Ok(Self {
            select: conn.prepare_cached(
                "SELECT cluster_time, ordinal, wall_time, collection, kind, checksum, channels,
                 document FROM changes WHERE seq = ?1",
            )?,
            latest: conn
                .prepare_cached("SELECT seq FROM latest WHERE collection = ?1 AND key = ?2")?,
            previous: conn.prepare_cached("SELECT previous FROM changes WHERE seq = ?1")?,
            versions: HashMap::new(),
            recent,
            indexed_seq: state.indexed_seq,
            head_seq: state.head.seq,
            collections: collections(conn)?,
        })
    }

    /// Shows a row to `look`; `None` when the row is gone, superseded and compacted.
    pub(super) fn with<T>(
        &mut self,
        seq: u64,
        look: impl FnOnce(&mut Row<'_, 'c>) -> Result<T, LogError>,
    ) -> Result<Option<T>, LogError> {
        let mut found = self.select.query([seq.cast_signed()])?;
        let Some(row) = found.next()? else {
            return Ok(None);
        };
        let position = Position::new(row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?);
        let blob = |at: usize| row.get_ref(at)?.as_blob().map_err(|_| damaged(seq));
        let document = blob(7)?;
        if row.get::<_, i64>(5)? != checksum(position, document) {
            return Err(damaged(seq));
        }
        let id: u32 = row.get(3)?;
        let collection = self
            .collections
            .iter()
            .find(|known| known.id == id)
            .ok_or_else(|| LogError::Damaged(format!("change {seq} is of no collection")))?;
        let mut row = Row {
            seq,
            position,
            wall_time_ms: row.get(2)?,
            collection,
            kind: row.get(4)?,
            channels: blob(6)?,
            document: document_in_row(document, seq)?,
            latest: &mut self.latest,
            previous: &mut self.previous,
            versions: &mut self.versions,
            recent: self.recent,
            indexed_seq: self.indexed_seq,
            head_seq: self.head_seq,
        };
        look(&mut row).map(Some)
    }
}

impl Row<'_, '_> {
    /// Whether an entry for it would be a delete.
    pub(super) fn is_delete(&self, inside: bool) -> bool {
        !inside || self.kind == KIND_DELETE
    }

    /// The number of the document's latest change, the row's own at least. `None` when index entries
    /// have been moved to the store after this snapshot, so that it can't be known here.
    pub(super) fn latest(&mut self) -> Result<Option<u64>, LogError> {
        let id = self
            .document
            .get("_id")
            .ok()
            .flatten()
            .ok_or_else(|| LogError::Damaged(format!("change {} has no _id", self.seq)))?;
        let key = sort_key(id);
        {
            let shared = self.recent.read();
            if let Some(seq) = shared.recent.latest(CollectionId(self.collection.id), &key) {
                return Ok(Some(seq.max(self.seq)));
            }
            if shared.indexed_seq > self.indexed_seq {
                return Ok(None);
            }
        }
        let stored: Option<i64> =
            self.latest.query_row((self.collection.id, key), |row| row.get(0)).optional()?;
        // A tombstone that is compacted has no entry: then this row is the last that is known.
        Ok(Some(stored.map_or(self.seq, |seq| seq.cast_unsigned().max(self.seq))))
    }

    /// The document's version as of the change `boundary`, from its `latest` one backwards; 0 when
    /// there was none. `None` when the latest was committed after this snapshot: then it can't be known
    /// here.
    pub(super) fn version_at(
        &mut self,
        latest: u64,
        boundary: u64,
    ) -> Result<Option<u64>, LogError> {
        if latest <= boundary {
            return Ok(Some(latest));
        }
        if let Some(&version) = self.versions.get(&(latest, boundary)) {
            return Ok(Some(version));
        }
        let mut version = latest;
        while version > boundary {
            let previous: Option<i64> =
                self.previous.query_row([version.cast_signed()], |row| row.get(0)).optional()?;
            version = match previous {
                Some(previous) => previous.cast_unsigned(),
                None if version > self.head_seq => return Ok(None),
                None => 0,
            };
        }
        if self.versions.len() >= VERSIONS_MAX {
            self.versions.clear();
        }
        self.versions.insert((latest, boundary), version);
        Ok(Some(version))
    }

    /// Whether the document, after this change, is in one of `channels`.
    pub(super) fn is_in(&self, channels: &HashSet<u32>) -> Result<bool, LogError> {
        Ok(channel_ids(self.channels)?.iter().any(|id| channels.contains(id)))
    }

    /// Gives the row away; false when the page is full.
    pub(super) fn give(&self, decision: Decision, taker: &mut Taker<'_>) -> Result<bool, LogError> {
        let mut key_only = RawDocumentBuf::new();
        let mut set_aside = None;
        let body = if self.kind == KIND_DELETE {
            Body::Delete(self.document)
        } else if self.kind != KIND_SET_ASIDE && decision == Decision::AsItIs {
            Body::Upsert(self.document)
        } else {
            if let Ok(Some(id)) = self.document.get("_id") {
                key_only.append(bson::cstr!("_id"), id);
            }
            if self.kind == KIND_SET_ASIDE && decision == Decision::AsItIs {
                set_aside = self.document.get_str("reason").ok();
            }
            Body::Delete(&key_only)
        };
        Ok(taker.take(&Entry {
            position: self.position,
            wall_time_ms: self.wall_time_ms,
            collection: &self.collection.name,
            body,
            set_aside,
        }))
    }
}

//! Rows of the log as a reader meets them.

use std::collections::{HashMap, HashSet};

use bson::raw::{RawDocument, RawDocumentBuf};
use rusqlite::{CachedStatement, Connection, OptionalExtension};
use tidewire_protocol::Position;

use super::copies::StoredCollection;
use super::cursor::name_hash;
use super::merge::Touched;
use super::page::Taker;
use super::read::Entry;
use super::recent::SharedRecent;
use super::record::{KIND_DELETE, KIND_SET_ASIDE, StoredRow, channel_ids, missing, select_rows};
use super::state::LogState;
use super::{Body, CollectionId, LogError};

/// Walks back from a latest change that are remembered while a page is read.
const VERSIONS_MAX: usize = 10_000;

/// A collection of this log.
#[derive(Debug)]
pub(super) struct KnownCollection {
    pub(super) id: CollectionId,
    pub(super) name: String,
    pub(super) hash: u64,
}

/// All collections of this log.
pub(super) fn collections(conn: &Connection) -> Result<Vec<KnownCollection>, LogError> {
    let known = |stored: StoredCollection| {
        let StoredCollection { id, name, .. } = stored;
        KnownCollection { id, hash: name_hash(&name), name }
    };
    Ok(StoredCollection::all(conn)?.into_iter().map(known).collect())
}

/// Looks rows up by their number.
pub(super) struct Rows<'c> {
    select: CachedStatement<'c>,
    latest: CachedStatement<'c>,
    /// For versions of a document that is looked at.
    version: CachedStatement<'c>,
    /// What walks back from a latest change to a boundary have found.
    versions: HashMap<(u64, u64), u64>,
    recent: &'c SharedRecent,
    /// Of the snapshot.
    state: &'c LogState,
    collections: Vec<KnownCollection>,
}

/// One row, and how to find out more about its document.
pub(super) struct Row<'r, 'c> {
    pub(super) seq: u64,
    pub(super) position: Position,
    stored: StoredRow<'r>,
    collection: &'r KnownCollection,
    document: &'r RawDocument,
    latest: &'r mut CachedStatement<'c>,
    version: &'r mut CachedStatement<'c>,
    versions: &'r mut HashMap<(u64, u64), u64>,
    recent: &'c SharedRecent,
    state: &'c LogState,
}

/// An earlier or later change of a document.
struct Version {
    previous: u64,
    /// `None`: it is of another collection.
    key: Option<Vec<u8>>,
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
        state: &'c LogState,
    ) -> Result<Self, LogError> {
        Ok(Self {
            select: conn.prepare_cached(select_rows!("WHERE seq = ?1"))?,
            latest: conn
                .prepare_cached("SELECT seq FROM latest WHERE collection = ?1 AND key = ?2")?,
            version: conn.prepare_cached(select_rows!("WHERE seq IN (?1)"))?,
            versions: HashMap::new(),
            recent,
            state,
            collections: collections(conn)?,
        })
    }

    /// Shows a row to `look`; `None` when the row is gone, superseded and compacted.
    ///
    /// # Errors
    /// [`LogError::Damaged`] also when the row should be there and is not.
    pub(super) fn with<T>(
        &mut self,
        touched: Touched,
        look: impl FnOnce(&mut Row<'_, 'c>) -> Result<T, LogError>,
    ) -> Result<Option<T>, LogError> {
        let seq = touched.seq;
        let mut found = self.select.query([seq.cast_signed()])?;
        let Some(row) = found.next()? else {
            // Index entries go with their rows. Those in memory may be a moment behind the store.
            let compacted = !touched.stored && seq <= self.state.trim.seq;
            return if compacted { Ok(None) } else { Err(missing(seq)) };
        };
        let stored = StoredRow::read(row)?;
        let collection = self
            .collections
            .iter()
            .find(|known| known.id == stored.collection)
            .ok_or_else(|| LogError::Damaged(format!("change {seq} is of no collection")))?;
        let mut row = Row {
            seq,
            position: stored.position,
            stored,
            collection,
            document: stored.document()?,
            latest: &mut self.latest,
            version: &mut self.version,
            versions: &mut self.versions,
            recent: self.recent,
            state: self.state,
        };
        look(&mut row).map(Some)
    }
}

impl Row<'_, '_> {
    /// Whether an entry for it would be a delete.
    pub(super) fn is_delete(&self, inside: bool) -> bool {
        !inside || self.stored.kind == KIND_DELETE
    }

    /// The number of the document's latest change, the row's own at least. `None` when index entries
    /// have been moved to the store after this snapshot, so that it can't be known here.
    pub(super) fn latest(&mut self) -> Result<Option<u64>, LogError> {
        let key = self.stored.key()?;
        {
            let shared = self.recent.read();
            if let Some(seq) = shared.recent.latest(self.collection.id, &key) {
                return Ok(Some(seq.max(self.seq)));
            }
            if shared.indexed_seq > self.state.indexed_seq {
                return Ok(None);
            }
        }
        let latest: Option<i64> =
            self.latest.query_row((self.collection.id.0, &key), |row| row.get(0)).optional()?;
        let latest = latest.map_or(0, i64::cast_unsigned);
        if latest < self.seq {
            // In one snapshot each row that is there has an entry, its own or a later one's.
            return if self.seq > self.state.indexed_seq {
                Ok(Some(self.seq))
            } else {
                Err(LogError::Damaged(format!("the index does not lead to change {}", self.seq)))
            };
        }
        if latest > self.seq && !self.versions.contains_key(&(latest, latest)) {
            let other = self.version(latest)?.ok_or_else(|| missing(latest))?;
            if other.key.as_deref() != Some(&key) {
                let what = format!("the index takes change {latest} for a later {}", self.seq);
                return Err(LogError::Damaged(what));
            }
            self.remember((latest, latest), latest);
        }
        Ok(Some(latest))
    }

    /// What there is to know of a version of this document.
    fn version(&mut self, seq: u64) -> Result<Option<Version>, LogError> {
        let mut found = self.version.query([seq.cast_signed()])?;
        let Some(row) = found.next()? else { return Ok(None) };
        let row = StoredRow::read(row)?;
        let same = row.collection == self.collection.id;
        Ok(Some(Version { previous: row.previous, key: same.then(|| row.key()).transpose()? }))
    }

    fn remember(&mut self, walk: (u64, u64), version: u64) {
        if self.versions.len() >= VERSIONS_MAX {
            self.versions.clear();
        }
        self.versions.insert(walk, version);
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
            version = match self.version(version)? {
                Some(found) => found.previous,
                None if version > self.state.head.seq => return Ok(None),
                None if version > self.state.trim.seq => return Err(missing(version)),
                None => 0,
            };
        }
        self.remember((latest, boundary), version);
        Ok(Some(version))
    }

    /// Whether the document, after this change, is in one of `channels`.
    pub(super) fn is_in(&self, channels: &HashSet<u32>) -> Result<bool, LogError> {
        Ok(channel_ids(self.stored.channels)?.iter().any(|id| channels.contains(id)))
    }

    /// Gives the row away; false when the page is full.
    pub(super) fn give(&self, decision: Decision, taker: &mut Taker<'_>) -> Result<bool, LogError> {
        let mut key_only = RawDocumentBuf::new();
        let mut set_aside = None;
        let body = if self.stored.kind == KIND_DELETE {
            Body::Delete(self.document)
        } else if self.stored.kind != KIND_SET_ASIDE && decision == Decision::AsItIs {
            Body::Upsert(self.document)
        } else {
            if let Ok(Some(id)) = self.document.get("_id") {
                key_only.append(bson::cstr!("_id"), id);
            }
            if self.stored.kind == KIND_SET_ASIDE && decision == Decision::AsItIs {
                set_aside = self.document.get_str("reason").ok();
            }
            Body::Delete(&key_only)
        };
        Ok(taker.take(Entry {
            position: self.position,
            wall_time_ms: self.stored.wall_time_ms,
            collection: &self.collection.name,
            body,
            set_aside,
        }))
    }
}

//! What is stored: changes and the state that commits with them. Not the wire's types.

use bson::RawDocumentBuf;
use bson::raw::RawDocument;
use rusqlite::Row;
use tidewire_protocol::Position;

use super::LogError;
use super::postings::take_varint;

/// A collection's number in this log; never reused, not the same in another log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectionId(pub u32);

/// A change to append. Positions must ascend strictly from append to append.
#[derive(Clone, Copy, Debug)]
pub struct NewChange<'a> {
    /// Where it stands.
    pub position: Position,
    /// When the source wrote it, milliseconds since 1970.
    pub wall_time_ms: i64,
    /// Whose document.
    pub collection: CollectionId,
    /// The document's key: [`super::sort_key`] of its `_id`.
    pub key: &'a [u8],
    /// The document, whole, or the key of the one that is gone.
    pub body: Body<'a>,
    /// The channels the document is in after the change.
    pub channels: Channels<'a>,
    /// The fingerprint of the rules (channels, excluded fields) under which this was appended.
    pub rules: u64,
}

/// The channels of a document after a change.
#[derive(Clone, Copy, Debug)]
pub enum Channels<'a> {
    /// By name, sorted and without doubles; none on a delete.
    Named(&'a [String]),
    /// Those that it was in before, which the log knows: there must be a change before this one.
    AsBefore,
}

/// The document after a change.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// The whole document.
    Upsert(&'a RawDocument),
    /// The document is gone; `{_id: …}` alone.
    Delete(&'a RawDocument),
}

/// The latest change of a document, the writer's uncommitted ones included.
#[derive(Clone, Debug)]
pub struct Latest {
    /// Where that change stands.
    pub position: Position,
    /// The document; `None` when the change was a delete, or set it aside.
    pub document: Option<RawDocumentBuf>,
    /// Where the change set the document aside: `{_id, reason, size}`.
    pub set_aside: Option<RawDocumentBuf>,
    /// The rules under which it was appended.
    pub rules: u64,
}

impl Latest {
    /// The document that the source has by this change, or what stands for it: its `_id` is in either.
    #[must_use]
    pub fn held(&self) -> Option<&RawDocument> {
        self.document.as_deref().or(self.set_aside.as_deref())
    }
}

/// How far the tail has come; commits with the changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TailState {
    /// MongoDB's resume token, whole (`{_data: …}`); `None` before the first.
    pub resume_token: Option<RawDocumentBuf>,
    /// Every event up to this cluster time is in the log.
    pub high_water: u64,
}

/// How far the copy (or another reconcile) of a collection has come; commits with the changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CopyState {
    /// The last key that is done, exclusive start of the rest; `None`: nothing is done.
    pub done_through: Option<Vec<u8>>,
    /// The last `_id` that is done, as `{_id: …}`.
    pub done_through_id: Option<RawDocumentBuf>,
    /// Documents read.
    pub documents: u64,
    /// The whole collection is done.
    pub finished: bool,
    /// The rules under which the copy runs or ran.
    pub rules: u64,
    /// It should be right, and is to be compared with the source all the same.
    pub owes_check: bool,
}

/// The end of what is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Head {
    /// Everything at or before it is in the log: the last change, or, where it is later, the end of
    /// the stream ordinals (`RECONCILE_ORDINAL_FIRST - 1`) of the tail's high water.
    pub position: Position,
    /// Number of the last change in this log.
    pub seq: u64,
}

/// `changes.kind`: the whole document.
pub(super) const KIND_UPSERT: i64 = 0;
/// `changes.kind`: a tombstone.
pub(super) const KIND_DELETE: i64 = 1;
/// `changes.kind`: the document is in quarantine; `{_id, reason, size}`, in the channels of the last
/// version that could be carried.
pub(super) const KIND_SET_ASIDE: i64 = 2;

/// The end of what is committed: the last change, or the end of the stream ordinals of the high water.
pub(super) fn head_position(last: Position, high_water: u64) -> Position {
    if high_water == 0 {
        return last;
    }
    last.max(Position::new(high_water, Position::RECONCILE_ORDINAL_FIRST - 1))
}

/// Selects what [`StoredRow::read`] reads.
macro_rules! select_rows {
    ($which:literal) => {
        concat!(
            "SELECT seq, cluster_time, ordinal, wall_time, collection, kind, previous, rules,
             checksum, channels, document FROM changes ",
            $which
        )
    };
}
pub(super) use select_rows;

/// A row of `changes` as it lies in the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredRow<'a> {
    pub(super) seq: u64,
    pub(super) position: Position,
    pub(super) wall_time_ms: i64,
    pub(super) collection: CollectionId,
    pub(super) kind: i64,
    /// The change that it supersedes, 0 where there was none.
    pub(super) previous: u64,
    pub(super) rules: u64,
    /// Numbers of channels, as [`channel_ids`] reads them.
    pub(super) channels: &'a [u8],
    pub(super) document: &'a [u8],
}

impl<'a> StoredRow<'a> {
    /// Reads what [`select_rows`] selects, and holds them against their checksum.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when any of them is not what was written, [`LogError::Store`].
    pub(super) fn read(row: &'a Row<'_>) -> Result<Self, LogError> {
        let seq = row.get::<_, i64>(0)?.cast_unsigned();
        let unsigned = |at: usize| row.get::<_, i64>(at).map(i64::cast_unsigned);
        let blob = |at: usize| row.get_ref(at)?.as_blob().map_err(rusqlite::Error::from);
        let read = || -> rusqlite::Result<Self> {
            Ok(Self {
                seq,
                position: Position::new(unsigned(1)?, row.get(2)?),
                wall_time_ms: row.get(3)?,
                collection: CollectionId(row.get(4)?),
                kind: row.get(5)?,
                previous: unsigned(6)?,
                rules: unsigned(7)?,
                channels: blob(9)?,
                document: blob(10)?,
            })
        };
        // What is not even of its column's type is no better than what has another checksum.
        match read() {
            Ok(stored) if row.get_ref(8)?.as_i64().ok() == Some(stored.checksum()) => Ok(stored),
            _ => Err(damaged(seq)),
        }
    }

    /// CRC-32 of all that the row holds.
    pub(super) fn checksum(&self) -> i64 {
        let mut hasher = crc32fast::Hasher::new();
        let mut numbers = [0; 52];
        numbers[0..8].copy_from_slice(&self.seq.to_be_bytes());
        numbers[8..16].copy_from_slice(&self.position.cluster_time.to_be_bytes());
        numbers[16..20].copy_from_slice(&self.position.ordinal.to_be_bytes());
        numbers[20..28].copy_from_slice(&self.wall_time_ms.to_be_bytes());
        numbers[28..32].copy_from_slice(&self.collection.0.to_be_bytes());
        numbers[32..36].copy_from_slice(&(self.kind as u32).to_be_bytes());
        numbers[36..44].copy_from_slice(&self.previous.to_be_bytes());
        numbers[44..52].copy_from_slice(&self.rules.to_be_bytes());
        hasher.update(&numbers);
        hasher.update(&(self.channels.len() as u64).to_be_bytes());
        hasher.update(self.channels);
        hasher.update(self.document);
        i64::from(hasher.finalize())
    }

    pub(super) fn document(&self) -> Result<&'a RawDocument, LogError> {
        document_in_row(self.document, self.seq)
    }

    /// The document's key.
    pub(super) fn key(&self) -> Result<Vec<u8>, LogError> {
        let id = self.document()?.get("_id").ok().flatten();
        let id = id.ok_or_else(|| LogError::Damaged(format!("change {} has no _id", self.seq)))?;
        Ok(super::sort_key(id))
    }
}

/// The channels of a row.
pub(super) fn channel_ids(mut stored: &[u8]) -> Result<Vec<u32>, LogError> {
    let mut ids = Vec::with_capacity(4);
    while !stored.is_empty() {
        let id = take_varint(&mut stored)
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| LogError::Damaged("a change's channels are cut".to_owned()))?;
        ids.push(id);
    }
    Ok(ids)
}

pub(super) fn document_from_store(bytes: Vec<u8>) -> Result<RawDocumentBuf, LogError> {
    RawDocumentBuf::from_bytes(bytes)
        .map_err(|error| LogError::Damaged(format!("a stored document is not BSON: {error}")))
}

/// A document in a row, not copied.
pub(super) fn document_in_row(bytes: &[u8], seq: u64) -> Result<&RawDocument, LogError> {
    RawDocument::from_bytes(bytes)
        .map_err(|error| LogError::Damaged(format!("change {seq} is not BSON: {error}")))
}

pub(super) fn missing(seq: u64) -> LogError {
    LogError::Damaged(format!("change {seq} is missing"))
}

pub(super) fn damaged(seq: u64) -> LogError {
    LogError::Damaged(format!("change {seq} does not match its checksum"))
}

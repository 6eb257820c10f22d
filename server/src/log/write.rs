//! The one writer.

use std::path::Path;
use std::time::Duration;

use tidewire_protocol::Position;

use super::{CollectionId, CopyState, Head, Latest, LogError, NewChange, Reader, TailState};

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

/// The log's one writer.
#[derive(Debug)]
pub struct Writer {}

#[expect(missing_docs, clippy::unused_self, reason = "signatures; the store follows")]
impl Writer {
    pub fn open(_dir: &Path, _options: &LogOptions) -> Result<(Self, Reader), LogError> {
        unimplemented!()
    }
    pub fn collection(&mut self, _name: &str) -> Result<CollectionId, LogError> {
        unimplemented!()
    }
    pub fn collections(&self) -> Vec<(String, CollectionId)> {
        unimplemented!()
    }
    pub fn tail(&self) -> &TailState {
        unimplemented!()
    }
    pub fn head(&self) -> Head {
        unimplemented!()
    }
    pub fn latest(&mut self, _c: CollectionId, _key: &[u8]) -> Result<Option<Latest>, LogError> {
        unimplemented!()
    }
    pub fn append(&mut self, _change: &NewChange<'_>) -> Result<(), LogError> {
        unimplemented!()
    }
    pub fn keys_between(
        &mut self,
        _collection: CollectionId,
        _after: Option<&[u8]>,
        _through: Option<&[u8]>,
        _limit: usize,
    ) -> Result<Vec<KeyEntry>, LogError> {
        unimplemented!()
    }
    pub fn copy_state(&self, _collection: CollectionId) -> CopyState {
        unimplemented!()
    }
    pub fn set_copy_state(&mut self, _c: CollectionId, _s: CopyState) -> Result<(), LogError> {
        unimplemented!()
    }
    pub fn set_tail(&mut self, _tail: TailState) -> Result<(), LogError> {
        unimplemented!()
    }
    pub fn commit(&mut self) -> Result<Head, LogError> {
        unimplemented!()
    }
    pub fn abort(&mut self) -> Result<(), LogError> {
        unimplemented!()
    }
}

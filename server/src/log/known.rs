//! Where the latest change of a document probably is: a bounded memory of what the writer appended and
//! looked up, so that an update finds the document before it without a search in the index.
//!
//! It is a hint. Every append enters its key and so displaces an older number of the same key; whose
//! document a row holds is for the row to say.

use std::hash::{BuildHasher, RandomState};

use super::CollectionId;

/// Documents that are remembered at most, a power of two; 16 bytes each.
const KNOWN_MAX: usize = if cfg!(test) { 16 } else { 1 << 18 };

/// A key's hash and its latest change; a change's number is never 0.
type Slot = (u64, u64);

/// The memory. Empty, it takes nothing.
#[derive(Debug, Default)]
pub(super) struct Known {
    slots: Vec<Slot>,
    hasher: RandomState,
}

impl Known {
    /// The change that probably is the document's latest.
    pub(super) fn get(&self, collection: CollectionId, key: &[u8]) -> Option<u64> {
        let hash = self.hasher.hash_one((collection, key));
        let &(known, seq) = self.slots.get(place(hash))?;
        (known == hash && seq > 0).then_some(seq)
    }

    /// The document's latest change is `seq`.
    pub(super) fn set(&mut self, collection: CollectionId, key: &[u8], seq: u64) {
        if self.slots.is_empty() {
            self.slots = vec![Slot::default(); KNOWN_MAX];
        }
        let hash = self.hasher.hash_one((collection, key));
        if let Some(slot) = self.slots.get_mut(place(hash)) {
            *slot = (hash, seq);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.slots = Vec::new();
    }
}

fn place(hash: u64) -> usize {
    usize::try_from(hash % KNOWN_MAX as u64).unwrap_or(0)
}

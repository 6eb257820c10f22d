//! What a change log asks of its store, so that each store gets the same questions.

use std::path::Path;

use anyhow::Result;

use crate::data::Change;

/// The change log, as far as the choice of its store depends on it.
pub trait Store {
    /// Appends a batch and commits it. Reads the previous version of each updated document first;
    /// replaces its entry in the key index; enters the change in its two channels.
    fn append(&mut self, batch: &[Change]) -> Result<()>;

    /// Forces everything to disk.
    fn sync(&mut self) -> Result<()>;

    /// Reads up to `limit` changes after `since` that are in one of `channels`, in order, each
    /// once; gives their number and the sum of the bytes of their documents.
    fn page(&self, since: u64, channels: &[u32], limit: usize) -> Result<(usize, u64)>;

    /// Deletes the changes up to `through` that have a later one of the same document, with their
    /// entries in the channels; gives their number.
    fn delete_superseded(&mut self, through: u64) -> Result<u64>;

    /// The last change, 0 on an empty store.
    fn last(&self) -> Result<u64>;

    /// The change with this number, if it is there.
    fn get(&self, seq: u64) -> Result<Option<Change>>;

    /// The latest change of a key.
    fn latest(&self, key: &[u8; 13]) -> Result<Option<u64>>;
}

/// Bytes of all files under `dir`.
pub fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // A store's own thread may remove a file while we look.
        let Ok(meta) = entry.metadata() else { continue };
        sum += if meta.is_dir() { disk_bytes(&entry.path())? } else { meta.len() };
    }
    Ok(sum)
}

/// Merges ascending runs, each number once, until `limit` were taken. `next(i)` gives the next of
/// run i.
pub fn merge(
    runs: usize,
    limit: usize,
    mut next: impl FnMut(usize) -> Result<Option<u64>>,
    mut take: impl FnMut(u64) -> Result<bool>,
) -> Result<()> {
    use std::cmp::Reverse;
    let mut heap = std::collections::BinaryHeap::with_capacity(runs);
    for run in 0..runs {
        if let Some(seq) = next(run)? {
            heap.push(Reverse((seq, run)));
        }
    }
    let (mut taken, mut last) = (0, 0);
    while taken < limit {
        let Some(mut top) = heap.peek_mut() else { break };
        let Reverse((seq, run)) = *top;
        match next(run)? {
            Some(following) => *top = Reverse((following, run)),
            None => {
                std::collections::binary_heap::PeekMut::pop(top);
            }
        }
        if seq != last {
            last = seq;
            taken += usize::from(take(seq)?);
        }
    }
    Ok(())
}

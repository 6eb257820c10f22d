//! The changes that touch any of a reader's channels, in order: a merge of postings, or, for the
//! operator, simply all changes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rusqlite::{Connection, OptionalExtension};

use super::LogError;
use super::postings::{Posting, PostingReader};

/// A change and what it is to the reader's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Touched {
    /// The change.
    pub(super) seq: u64,
    /// The document is in one of the channels after it; otherwise it has left the last of them.
    pub(super) inside: bool,
}

/// The changes of `(after, through]`.
#[derive(Debug)]
pub(super) enum Merge {
    Everything { after: u64, through: u64 },
    Channels { readers: Vec<PostingReader>, heap: BinaryHeap<Reverse<(Posting, usize)>> },
}

impl Merge {
    pub(super) fn everything(after: u64, through: u64) -> Self {
        Self::Everything { after, through }
    }

    pub(super) fn channels(
        conn: &Connection,
        channels: &[u32],
        after: u64,
        through: u64,
    ) -> Result<Self, LogError> {
        let mut readers = Vec::with_capacity(channels.len());
        let mut heap = BinaryHeap::with_capacity(channels.len());
        if after < through {
            for &channel in channels {
                let mut reader = PostingReader::new(channel, after, through);
                if let Some(posting) = reader.next(conn)? {
                    heap.push(Reverse((posting, readers.len())));
                    readers.push(reader);
                }
            }
        }
        Ok(Self::Channels { readers, heap })
    }

    /// The next change, each once however many channels it touches.
    pub(super) fn next(&mut self, conn: &Connection) -> Result<Option<Touched>, LogError> {
        match self {
            Self::Everything { after, through } => {
                let seq = conn
                    .prepare_cached(
                        "SELECT seq FROM changes WHERE seq > ?1 AND seq <= ?2
                         ORDER BY seq LIMIT 1",
                    )?
                    .query_row((after.cast_signed(), through.cast_signed()), |row| {
                        row.get::<_, i64>(0)
                    })
                    .optional()?;
                Ok(seq.map(|seq| {
                    *after = seq.cast_unsigned();
                    Touched { seq: *after, inside: true }
                }))
            }
            Self::Channels { readers, heap } => {
                let Some(Reverse((posting, _))) = heap.peek() else {
                    return Ok(None);
                };
                let mut touched = Touched { seq: posting.seq, inside: false };
                while let Some(Reverse((posting, at))) = heap.peek().copied() {
                    if posting.seq != touched.seq {
                        break;
                    }
                    touched.inside |= !posting.left;
                    heap.pop();
                    if let Some(next) = readers[at].next(conn)? {
                        heap.push(Reverse((next, at)));
                    }
                }
                Ok(Some(touched))
            }
        }
    }
}

//! The changes that touch any of a reader's channels, in order: a merge of postings, or, for the
//! operator, simply all changes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rusqlite::{Connection, OptionalExtension};

use super::LogError;
use super::postings::{Posting, PostingReader};
use super::recent::Recent;

/// A change and what it is to the reader's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Touched {
    /// The change.
    pub(super) seq: u64,
    /// The document is in one of the channels after it; otherwise it has left the last of them.
    pub(super) inside: bool,
    /// The store says so, not only memory: its row must be there.
    pub(super) stored: bool,
}

/// The changes of `(after, through]`.
#[derive(Debug)]
pub(super) enum Merge {
    Everything { after: u64, through: u64 },
    Channels { sources: Vec<Source>, heap: BinaryHeap<Reverse<(Posting, usize)>> },
}

/// One channel's postings: those in the store, or those that are only in memory. A change that has
/// just been written may be in both.
#[derive(Debug)]
pub(super) enum Source {
    Stored(PostingReader),
    Recent(std::vec::IntoIter<u64>),
}

impl Source {
    fn next(&mut self, conn: &Connection) -> Result<Option<Posting>, LogError> {
        match self {
            Self::Stored(reader) => reader.next(conn),
            Self::Recent(postings) => Ok(postings
                .next()
                .map(|posting| Posting { seq: posting >> 1, left: posting & 1 == 1 })),
        }
    }
}

impl Merge {
    pub(super) fn everything(after: u64, through: u64) -> Self {
        Self::Everything { after, through }
    }

    /// A merge of the postings of `channels`, in the store and in `recent`.
    pub(super) fn channels(recent: &Recent, channels: &[u32], after: u64, through: u64) -> Self {
        if after >= through {
            return Self::Channels { sources: Vec::new(), heap: BinaryHeap::new() };
        }
        let mut sources = Vec::with_capacity(channels.len() * 2);
        for &channel in channels {
            let postings = recent.postings(channel, after, through);
            sources.push(Source::Recent(postings.into_iter()));
            sources.push(Source::Stored(PostingReader::new(channel, after, through)));
        }
        Self::Channels { heap: BinaryHeap::with_capacity(sources.len()), sources }
    }

    /// Reads the first posting of each source; before the first [`Merge::next`].
    pub(super) fn start(mut self, conn: &Connection) -> Result<Self, LogError> {
        if let Self::Channels { sources, heap } = &mut self {
            for (at, source) in sources.iter_mut().enumerate() {
                if let Some(posting) = source.next(conn)? {
                    heap.push(Reverse((posting, at)));
                }
            }
        }
        Ok(self)
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
                    Touched { seq: *after, inside: true, stored: true }
                }))
            }
            Self::Channels { sources, heap } => {
                let Some(Reverse((posting, _))) = heap.peek() else {
                    return Ok(None);
                };
                let mut touched = Touched { seq: posting.seq, inside: false, stored: false };
                while let Some(Reverse((posting, at))) = heap.peek().copied() {
                    if posting.seq != touched.seq {
                        break;
                    }
                    touched.inside |= !posting.left;
                    touched.stored |= matches!(sources[at], Source::Stored(_));
                    heap.pop();
                    if let Some(next) = sources[at].next(conn)? {
                        heap.push(Reverse((next, at)));
                    }
                }
                Ok(Some(touched))
            }
        }
    }
}

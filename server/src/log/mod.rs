//! The change log: every change in position order, the latest change of every document, the channels'
//! postings, the resume token and the progress of copies, all in one store and one transaction.
//!
//! One [`Writer`] (capture's), any number of [`Reader`]s. What a writer has not committed no reader
//! sees. All calls block on the disk: async callers use `spawn_blocking`.

mod checkpoint;
mod compaction;
mod copies;
mod cursor;
mod digest;
mod error;
mod followed;
mod key;
mod known;
mod lookup;
mod merge;
mod news;
mod page;
mod postings;
mod quarantine;
#[cfg(test)]
mod quarantine_tests;
mod read;
mod recent;
mod record;
mod regrant;
mod rows;
mod schema;
mod stat;
#[cfg(test)]
mod tests;
mod touched;
mod write;

pub use compaction::Compacted;
pub use cursor::{Cursor, CursorError};
pub use digest::{DocumentsError, DocumentsRequest, Place};
pub use error::LogError;
pub use followed::Followed;
pub use key::sort_key;
pub use quarantine::{NewAside, QUARANTINE_MAX, Quarantined};
pub use read::{Entry, Flow, PageEnd, PageRequest, ReadError, Reader, Scope, Since};
pub use record::{Body, Channels, CollectionId, CopyState, Head, Latest, NewChange, TailState};
pub use stat::{CollectionStat, LogStat};
pub use touched::{ChannelKey, Touched};
pub use write::{KeyEntry, LogOptions, Writer};

//! The change log: every change in position order, the latest change of every document, the channels'
//! postings, the resume token and the progress of copies, all in one store and one transaction.
//!
//! One [`Writer`] (capture's), any number of [`Reader`]s. What a writer has not committed no reader
//! sees. All calls block on the disk: async callers use `spawn_blocking`.

mod backup;
mod channels;
mod check;
mod checkpoint;
mod compaction;
mod copies;
mod cursor;
mod damage;
mod digest;
mod error;
mod followed;
mod guard;
mod key;
mod known;
mod lookup;
mod lost;
mod merge;
mod news;
mod page;
mod plan;
mod postings;
mod quarantine;
#[cfg(test)]
mod quarantine_tests;
mod read;
mod rebuild;
mod recent;
mod record;
mod regrant;
mod rows;
mod salvage;
mod schema;
mod stat;
mod state;
mod stretches;
#[cfg(test)]
mod tests;
mod touched;
mod wal;
mod write;

pub use backup::restore;
pub use check::{CheckPart, Checked, check};
pub use compaction::Compacted;
pub use cursor::{Cursor, CursorError};
pub use damage::mark_damaged;
pub use digest::{DocumentsError, DocumentsRequest, Place};
pub use error::LogError;
pub use followed::Followed;
pub use key::sort_key;
pub use quarantine::{NewAside, QUARANTINE_MAX, Quarantined};
pub use read::{Entry, Flow, PageEnd, PageRequest, ReadError, Reader, Scope, Since};
pub use rebuild::{Rebuilt, rebuild, set_aside};
pub use record::{Body, Channels, CollectionId, CopyState, Head, Latest, NewChange, TailState};
pub use schema::log_path;
pub use stat::{CollectionStat, LogStat};
pub use touched::{ChannelKey, Touched};
pub use write::{KeyEntry, LogOptions, Writer};

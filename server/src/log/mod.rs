//! The change log: every change in position order, the latest change of every document, the channels'
//! indexes, the resume token and the progress of copies, all in one store and one transaction.
//!
//! One [`Writer`] (capture's), any number of [`Reader`]s. What a writer has not committed no reader
//! sees. All calls block on the disk: async callers use `spawn_blocking`.

mod cursor;
mod error;
mod key;
mod read;
mod record;
mod schema;
mod write;

pub use cursor::{Cursor, CursorError};
pub use error::LogError;
pub use key::sort_key;
pub use read::{Entry, Flow, PageEnd, PageRequest, ReadError, Reader, Scope, Since};
pub use record::{Body, CollectionId, CopyState, Head, Latest, NewChange, TailState};
pub use write::{KeyEntry, LogOptions, Writer};

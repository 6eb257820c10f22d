//! The replica: one SQLite file, written by one client, read by anybody.
//!
//! `open` takes the lock and finds out what the file is; `schema` knows its tables, `columns` the
//! generated ones; `apply` commits pages, `staging` keeps back what readers may not see yet;
//! `status` is the row behind the status view; `read` is the side that apps use.

mod apply;
mod catalog;
mod columns;
mod mend;
mod open;
mod quarantine;
mod read;
mod schema;
mod staging;
mod status;

use std::path::PathBuf;

pub(crate) use mend::{Fix, Sums};
pub(crate) use open::{Identity, Writer};
pub use read::{Replica, Rows};
pub(crate) use status::{Report, now_ms, rfc3339};

/// Where a client goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// The next `since`; empty for "from nothing".
    pub since: String,
    /// There is a complete copy to read.
    pub initialized: bool,
    /// A copy beside (or in place of) it is under way.
    pub filling: bool,
    /// What was fetched last is not shown yet: a copy, or a catch-up that is not complete.
    pub partial: bool,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The page was complete: its rows are there for readers, in one commit with its cursor.
    pub complete: bool,
    /// Changes of the page.
    pub count: u64,
}

/// What can go wrong with a replica.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Another client holds the lock.
    #[error(
        "another client keeps {path} ({holder}); stop it first, or give this one a file of its own"
    )]
    Locked {
        /// The replica.
        path: PathBuf,
        /// What the other one wrote into the lock file.
        holder: String,
    },
    /// There is a file, and no replica is in it. It is left as it is.
    #[error("{0} is not a replica; choose another path, or remove that file")]
    NotAReplica(PathBuf),
    /// There is no replica to read.
    #[error("there is no replica at {0}; `tidewire sync` makes one")]
    Missing(PathBuf),
    /// Written by a newer client.
    #[error("{path} was written by a newer client (schema {found}, this one knows {known})")]
    TooNew {
        /// The replica.
        path: PathBuf,
        /// The file's schema version.
        found: i64,
        /// The newest that this client knows.
        known: i64,
    },
    /// A program that reads the replica keeps it from being wiped, after a sign-out or a refusal.
    #[error("the data can't be wiped while a program still reads {0}; close it")]
    WipeBlocked(PathBuf),
    /// SQLite says no: the disk is full or broken, the file is damaged, or it is locked.
    #[error("the replica can't be used: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file system says no.
    #[error("can't use {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl ReplicaError {
    /// The file's content can't be trusted: it has to be made anew.
    pub(crate) fn is_damage(&self) -> bool {
        use rusqlite::Error::{
            FromSqlConversionFailure, InvalidColumnType, QueryReturnedNoRows, SqlInputError,
            SqliteFailure, Utf8Error,
        };
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
        let Self::Sqlite(error) = self else { return false };
        // Tables or columns that were there are gone: the file's schema is not what it was.
        let is_missing = |message: &str| {
            message.starts_with("no such table")
                || message.starts_with("no such column")
                || message.contains(" has no column named ")
        };
        match error {
            SqliteFailure(cause, Some(message)) if cause.code == Unknown => is_missing(message),
            SqlInputError { msg, .. } => is_missing(msg),
            // What the client wrote is of another kind.
            QueryReturnedNoRows
            | Utf8Error(..)
            | FromSqlConversionFailure(..)
            | InvalidColumnType(..) => true,
            other => matches!(other.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)),
        }
    }
}

#[cfg(test)]
mod convergence_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

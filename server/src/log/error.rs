//! What can go wrong with the log.

use std::path::PathBuf;

/// The log could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process writes to this folder.
    #[error("the data folder {} is in use by another tidewire-server; stop it or choose another --data-dir", .0.display())]
    InUse(PathBuf),
    /// The log follows another source than the one configured.
    #[error("the log in {} belongs to {found}, not to {wanted}; choose another --data-dir or remove the folder", dir.display())]
    OtherSource {
        /// The data folder.
        dir: PathBuf,
        /// What the log follows.
        found: String,
        /// What the configuration says.
        wanted: String,
    },
    /// The file is not a change log or of another version.
    #[error("{} is not a change log that this version can read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A stored record does not say what it must: the file is damaged.
    #[error("the change log is damaged: {0}")]
    Damaged(String),
    /// The same, of a log that is being opened or was found damaged before.
    #[error("the change log in {dir} is damaged and is not served: {reason}; run `tidewire-ops log rebuild --data-dir {dir}`, which keeps what is whole, and start again", dir = dir.display())]
    NeedsRebuild {
        /// The data folder.
        dir: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The index entries moved to the store over and over while one page was read.
    #[error("the log's index moves faster than it can be read")]
    Busy,
    /// A caller's mistake, caught before it was stored.
    #[error("refused to append: {0}")]
    Refused(String),
    /// The folder could not be made or opened.
    #[error("cannot use the data folder {}", dir.display())]
    Io {
        /// The data folder.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store says no: disk full, I/O error, …
    #[error("the change log's store failed")]
    Store(#[from] rusqlite::Error),
}

impl LogError {
    /// Whether it says that the file is damaged: what it holds must not be served.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        use rusqlite::Error as Store;
        use rusqlite::ErrorCode;
        match self {
            Self::Damaged(_) | Self::NeedsRebuild { .. } => true,
            Self::Store(Store::SqliteFailure(error, _)) => {
                matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            }
            // A column that holds what no writer puts there, or a row that is always there is not.
            Self::Store(
                Store::FromSqlConversionFailure(..)
                | Store::IntegralValueOutOfRange(..)
                | Store::Utf8Error(..)
                | Store::InvalidColumnType(..)
                | Store::QueryReturnedNoRows,
            ) => true,
            _ => false,
        }
    }

    /// Whether there is no room or no way to write: it may pass without our doing.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Store(error) if matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull)))
    }
}

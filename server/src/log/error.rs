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

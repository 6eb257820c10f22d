//! A log that was found damaged stays refused, whoever starts a server on it, until it is rebuilt.

use std::path::{Path, PathBuf};

use super::LogError;
use super::schema::log_path;

/// The file that says so, with what was found in it.
fn marker(dir: &Path) -> PathBuf {
    dir.join("damaged")
}

/// Notes in the data folder that its log is damaged.
///
/// # Errors
/// [`LogError::Io`].
pub fn mark_damaged(dir: &Path, reason: &str) -> Result<(), LogError> {
    std::fs::write(marker(dir), reason)
        .map_err(|source| LogError::Io { dir: dir.to_owned(), source })
}

/// Refuses a log that was found damaged.
pub(super) fn refuse_damaged(dir: &Path) -> Result<(), LogError> {
    match std::fs::read(marker(dir)) {
        // Of a log that is gone: set aside, and cut off before its marker was taken away.
        Ok(_) if !log_path(dir).exists() => {
            unmark(dir).map_err(|source| LogError::Io { dir: dir.to_owned(), source })
        }
        Ok(reason) => {
            let reason = String::from_utf8_lossy(&reason).into_owned();
            Err(LogError::NeedsRebuild { dir: dir.to_owned(), reason })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(LogError::Io { dir: dir.to_owned(), source }),
    }
}

/// The log is whole again.
pub(super) fn unmark(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(marker(dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Names the folder and the remedy where an error of opening it says that it is damaged.
pub(super) fn with_remedy(dir: &Path, error: LogError) -> LogError {
    match error {
        LogError::Damaged(reason) => LogError::NeedsRebuild { dir: dir.to_owned(), reason },
        LogError::Store(store) => {
            let error = LogError::Store(store);
            if !error.is_damage() {
                return error;
            }
            let cause = std::error::Error::source(&error);
            let reason = cause.map_or_else(|| error.to_string(), ToString::to_string);
            LogError::NeedsRebuild { dir: dir.to_owned(), reason }
        }
        other => other,
    }
}

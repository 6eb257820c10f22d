//! What is whole of a damaged log becomes a log again, in its place; see `salvage.rs`.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use tidewire_protocol::Position;

use super::damage::{mark_damaged, unmark};
use super::salvage::{Salvaged, salvage};
use super::write::lock;
use super::{LogError, schema};

/// What came of a rebuild.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// Changes that the new log holds.
    pub kept: u64,
    /// Changes that were not whole any more.
    pub lost: u64,
    /// The log ends here now: of what followed not all is known, and the source tells it again.
    pub cut: Option<Position>,
    /// Cursors up to the log's end can go on. False: who was told what is lost is not known, and clients start again beside
    /// the data they have.
    pub cursors_go_on: bool,
    /// Where the damaged file is now.
    pub aside: PathBuf,
}

/// Builds the log in `dir` anew from what is whole of it, and puts it in its place. The server must not
/// run. `progress` hears how many changes of how many.
///
/// # Errors
/// [`LogError::InUse`]; [`LogError::Damaged`] where it can't even be told what the log follows and how
/// far it reaches: then only [`set_aside`] is left.
pub fn rebuild(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Rebuilt, LogError> {
    let _lock = lock(dir)?;
    let io = |source| LogError::Io { dir: dir.to_owned(), source };
    let new_dir = dir.join("rebuilt");
    if new_dir.exists() {
        // Of a rebuild that was cut off.
        std::fs::remove_dir_all(&new_dir).map_err(io)?;
    }
    let salvaged = salvage(&schema::log_path(dir), &new_dir, progress)?;
    super::check::check_all(&schema::open_to_read(&schema::log_path(&new_dir))?)?;
    fold(&schema::log_path(&new_dir))?;
    let aside = move_aside(dir, Some(&schema::log_path(&new_dir))).map_err(io)?;
    std::fs::remove_dir_all(&new_dir).map_err(io)?;
    let Salvaged { kept, lost, cut, cursors_go_on } = salvaged;
    Ok(Rebuilt { kept, lost, cut, cursors_go_on, aside })
}

/// Moves the log in `dir` out of the way: the next start copies the source anew. The server must not
/// run. Gives where the file is now.
///
/// # Errors
/// [`LogError::InUse`], [`LogError::Io`].
pub fn set_aside(dir: &Path) -> Result<PathBuf, LogError> {
    let _lock = lock(dir)?;
    move_aside(dir, None).map_err(|source| LogError::Io { dir: dir.to_owned(), source })
}

/// All of the log at `path` is in its file, which alone is put into the other's place: whoever closed it
/// last may have left some of it in the write-ahead log.
fn fold(path: &Path) -> Result<(), LogError> {
    let conn = Connection::open(path)?;
    let is_busy: bool = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if is_busy {
        return Err(LogError::InUse(path.to_owned()));
    }
    Ok(())
}

/// Whatever moment this is cut off at, the folder is refused as damaged or holds the new log.
fn move_aside(dir: &Path, new: Option<&Path>) -> std::io::Result<PathBuf> {
    let _ = mark_damaged(dir, "it was being rebuilt");
    let log = schema::log_path(dir);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let aside = dir.join(format!("log.db.damaged-{now}"));
    std::fs::hard_link(&log, &aside)?;
    for (suffix, kept) in [("-wal", true), ("-shm", false)] {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        if kept && with(&log).exists() {
            std::fs::rename(with(&log), with(&aside))?;
        }
        let _ = std::fs::remove_file(with(&log));
    }
    match new {
        Some(new) => std::fs::rename(new, &log)?,
        None => std::fs::remove_file(&log)?,
    }
    std::fs::File::open(dir)?.sync_all()?;
    unmark(dir)?;
    Ok(aside)
}

//! A log as one file that can be copied: made beside a server that writes, put in place where none runs.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::check::check;
use super::damage::unmark;
use super::state::LogState;
use super::write::lock;
use super::{LogError, Reader, schema};

/// Pages copied at a time; 8 MiB.
const PAGES_PER_STEP: i32 = 1024;

impl Reader {
    /// Copies the log to the new file `to`: what it is at this moment, however much is written
    /// meanwhile. Until it is whole the file has another name. `progress` hears how many pages of how
    /// many.
    ///
    /// # Errors
    /// [`LogError::Store`], [`LogError::Io`].
    pub fn backup(&self, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), LogError> {
        let part = PathBuf::from(format!("{}.part", to.display()));
        let io = |source| LogError::Io { dir: to.to_owned(), source };
        let copied = self.with_snapshot(|conn| {
            // The first read fixes the moment: without it, each step would be of a moment of its own,
            // and a write between two of them would begin all of it again.
            LogState::read(conn)?;
            copy(conn, &part, progress)
        });
        if let Err(error) = copied {
            let _ = std::fs::remove_file(&part);
            return Err(error);
        }
        File::open(&part).and_then(|file| file.sync_all()).map_err(io)?;
        std::fs::rename(&part, to).map_err(io)
    }
}

fn copy(
    conn: &Connection,
    part: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), LogError> {
    let _ = std::fs::remove_file(part);
    let mut target = Connection::open(part)?;
    {
        let backup = Backup::new(conn, &mut target)?;
        while backup.step(PAGES_PER_STEP)? != StepResult::Done {
            let at = backup.progress();
            let total = u64::try_from(at.pagecount).unwrap_or(0);
            progress(total.saturating_sub(u64::try_from(at.remaining).unwrap_or(0)), total);
        }
    }
    // One file, with nothing beside it.
    target.pragma_update(None, "journal_mode", "delete")?;
    let mut state = LogState::read(&target)?;
    state.log_id = 0;
    state.write(&target)?;
    target.close().map_err(|(_, error)| error)?;
    Ok(())
}

/// Makes the backup `from` the log of the data folder `dir`, which must have none.
///
/// # Errors
/// [`LogError::Refused`] where there is a log already or `from` is no backup, [`LogError::Damaged`] where
/// the backup is not
/// whole, [`LogError::InUse`], [`LogError::Io`].
pub fn restore(from: &Path, dir: &Path) -> Result<(), LogError> {
    let _lock = lock(dir)?;
    let log = schema::log_path(dir);
    // The rest of a log that is gone would be taken for this one's.
    let beside = |name: &str| dir.join(name);
    for there in [log.clone(), beside("log.db-wal"), beside("log.db-shm")] {
        if there.exists() {
            let what = format!("{} is there already; choose an empty folder", there.display());
            return Err(LogError::Refused(what));
        }
    }
    is_a_backup(from)?;
    let checked = check(from, &mut |_, _, _| {})?;
    if let Some(finding) = checked.findings.first() {
        return Err(LogError::Damaged(format!("{}: {finding}", from.display())));
    }
    let io = |source| LogError::Io { dir: dir.to_owned(), source };
    let part = dir.join("log.db.part");
    std::fs::copy(from, &part).map_err(io)?;
    File::open(&part).and_then(|file| file.sync_all()).map_err(io)?;
    std::fs::rename(&part, &log).map_err(io)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
    unmark(dir).map_err(io)
}

/// Not the file of a log: what is in the write-ahead log beside that is not in it, and its number would be
/// two logs'.
fn is_a_backup(from: &Path) -> Result<(), LogError> {
    let beside = PathBuf::from(format!("{}-wal", from.display()));
    let has_more = std::fs::metadata(&beside).is_ok_and(|beside| beside.len() > 0);
    if has_more || LogState::read(&schema::open_to_read(from)?)?.log_id != 0 {
        let what = format!(
            "{} is a log and no backup of one; `tidewire-ops log backup` makes one, of a running server too",
            from.display()
        );
        return Err(LogError::Refused(what));
    }
    Ok(())
}

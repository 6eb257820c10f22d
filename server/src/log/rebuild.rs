//! What is whole of a damaged log becomes a log again.
//!
//! Every row that matches its checksum is appended to a new log, which goes on where the old one ended:
//! the same positions, the same resume token. What is missing can't be told from what never was, so no
//! moment of the new log counts as complete until every collection has been compared with the source.
//! That appends whatever is different, and so clients go on from the cursors that they have.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags};

use super::copies::StoredCollection;
use super::cursor::name_hash;
use super::damage::{mark_damaged, unmark};
use super::followed::{self, Followed};
use super::record::{KIND_DELETE, KIND_UPSERT, StoredRow, channel_ids, select_rows};
use super::state::{LogState, Trim};
use super::write::{document_from_store, lock};
use super::{
    Body, Channels, CollectionId, CopyState, LogError, LogOptions, NewChange, TailState, Writer,
    schema,
};

/// Rows in one transaction of the new log.
const ROWS_PER_COMMIT: u64 = 5_000;
/// Where a part of the file can't be read, the next one is looked for in steps that double up to this.
const STEP_MAX: u64 = 1 << 40;

/// What came of a rebuild.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// Changes that the new log holds.
    pub kept: u64,
    /// Changes that were there and not whole; what could not even be found is not among them.
    pub lost: u64,
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
    let (kept, lost) = salvage(&schema::log_path(dir), &new_dir, progress)?;
    super::check::check_all(&schema::open_to_read(&schema::log_path(&new_dir))?)?;
    let aside = move_aside(dir, Some(&schema::log_path(&new_dir))).map_err(io)?;
    std::fs::remove_dir_all(&new_dir).map_err(io)?;
    Ok(Rebuilt { kept, lost, aside })
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

fn salvage(
    old: &Path,
    new_dir: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(u64, u64), LogError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let old = Connection::open_with_flags(old, flags)?;
    let state = LogState::read(&old)?;
    let options = LogOptions { source: state.source.clone(), retention: Duration::MAX };
    let (writer, _reader) = Writer::open(new_dir, &options)?;
    let mut copy = Salvage {
        names: StoredCollection::readable(&old)?,
        // Without it, everything is copied to its end before readers see it again.
        followed: followed::all(&old).unwrap_or_default(),
        channels: old.prepare("SELECT collection, hash, name FROM channels WHERE id = ?1")?,
        state: &state,
        writer,
        kept: 0,
        lost: 0,
    };
    copy.begin()?;
    copy.rows(&old, progress)?;
    copy.finish()?;
    Ok((copy.kept, copy.lost))
}

struct Salvage<'a> {
    names: Vec<StoredCollection>,
    followed: Vec<Followed>,
    channels: rusqlite::Statement<'a>,
    state: &'a LogState,
    writer: Writer,
    kept: u64,
    lost: u64,
}

impl Salvage<'_> {
    /// Every collection is to be compared with the source; until then nothing is complete.
    fn begin(&mut self) -> Result<(), LogError> {
        for known in &self.names {
            let id = self.writer.collection(&known.name)?;
            if self.followed.iter().any(|f| f.collection == known.id && !f.active) {
                continue;
            }
            let copy = CopyState { rules: known.rules(), ..CopyState::default() };
            self.writer.set_copy_state(id, copy)?;
        }
        self.writer.commit()?;
        Ok(())
    }

    fn rows(
        &mut self,
        old: &Connection,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), LogError> {
        let (mut after, mut step) = (0, 1);
        let head = self.state.head.seq;
        while after < head {
            match self.stretch(old, &mut after, progress) {
                Ok(()) => break,
                Err(error) if error.is_damage() => {
                    after += step;
                    step = (step * 2).min(STEP_MAX);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The rows after `after`, as far as they can be read; `after` moves along.
    fn stretch(
        &mut self,
        old: &Connection,
        after: &mut u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), LogError> {
        let mut select = old.prepare_cached(select_rows!("WHERE seq > ?1 ORDER BY seq"))?;
        let mut rows = select.query([after.cast_signed()])?;
        while let Some(row) = rows.next()? {
            let seq = row.get::<_, i64>(0)?.cast_unsigned();
            if seq <= *after || seq > self.state.head.seq {
                return Err(LogError::Damaged("the rows do not ascend".to_owned()));
            }
            *after = seq;
            progress(seq, self.state.head.seq);
            match StoredRow::read(row).and_then(|row| self.keep(&row)) {
                Ok(true) => self.kept += 1,
                Ok(false) => self.lost += 1,
                Err(error) if error.is_damage() => self.lost += 1,
                Err(error) => return Err(error),
            }
            if (self.kept + self.lost).is_multiple_of(ROWS_PER_COMMIT) {
                self.writer.commit()?;
            }
        }
        Ok(())
    }

    /// Appends a row that is whole; false where it is of no use: of what is not known, or out of order.
    fn keep(&mut self, row: &StoredRow<'_>) -> Result<bool, LogError> {
        let Some(known) = self.names.iter().find(|known| known.id == row.collection) else {
            return Ok(false);
        };
        if row.position <= self.writer.last_position() || row.position > self.state.last {
            return Ok(false);
        }
        let collection = self.writer.collection(&known.name)?;
        let Some(channels) = self.channel_names(row)? else { return Ok(false) };
        let document = row.document()?;
        let body = match row.kind {
            KIND_UPSERT => Body::Upsert(document),
            KIND_DELETE => Body::Delete(document),
            _ => return Ok(false),
        };
        self.writer.append(&NewChange {
            position: row.position,
            wall_time_ms: row.wall_time_ms,
            collection,
            key: &row.key()?,
            body,
            channels: Channels::Named(&channels),
            rules: row.rules,
        })?;
        if row.position <= self.state.trim.position {
            let seq = self.writer.last_seq;
            self.writer.trim = Trim { seq, position: self.state.trim.position };
        }
        Ok(true)
    }

    fn channel_names(&mut self, row: &StoredRow<'_>) -> Result<Option<Vec<String>>, LogError> {
        let mut names = Vec::new();
        for id in channel_ids(row.channels)? {
            let found = self.channels.query_row([id], |row| {
                Ok((CollectionId(row.get(0)?), row.get::<_, i64>(1)?, row.get::<_, String>(2)?))
            });
            match found {
                Ok((collection, hash, name))
                    if collection == row.collection && name_hash(&name).cast_signed() == hash =>
                {
                    names.push(name);
                }
                _ => return Ok(None),
            }
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    fn finish(&mut self) -> Result<(), LogError> {
        let resume_token = self.state.resume_token.clone().map(document_from_store).transpose()?;
        let high_water = self.state.high_water;
        self.writer.trim.position = self.state.trim.position;
        self.writer.state.origin = self.state.origin;
        let (names, known) = (&self.names, self.writer.collections());
        let id = |old: CollectionId| {
            let name = names.iter().find(|stored| stored.id == old).map(|stored| &stored.name)?;
            known.iter().find(|(known, _)| known == name).map(|(_, id)| *id)
        };
        self.writer.follow_as_before(&self.followed, id)?;
        self.writer.set_tail(TailState { resume_token, high_water })?;
        self.writer.commit()?;
        Ok(())
    }
}

//! Opening a replica for writing: one client at a time, of one subject, and only a file that is sound.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, params};

use super::ReplicaError;
use super::apply::{Batch, Partial, Progress};
use super::catalog::{self, Catalog};
use super::mend::Touched;
use super::schema::{self, APPLICATION_ID, SCHEMA_VERSION};
use super::staging::damaged;
use super::status::{self, now_ms};
use crate::changes::{Changed, Gathering};
use crate::token::Subject;

/// Bytes of a page: documents of 500 bytes leave least room unused at this size.
const PAGE_BYTES: u32 = 8_192;
/// SQLite's cache, in KiB.
const CACHE_KIB: i64 = 16_000;
/// The write-ahead log shrinks back to this after a large transaction, in bytes.
const WAL_BYTES_KEPT: i64 = 32 << 20;
/// How long another program's lock is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a reader is waited for that holds what is wiped.
const WIPE_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements that stay prepared.
const STATEMENTS_MAX: usize = 256;
/// A file up to this size is checked at every start …
pub(super) const CHECK_BYTES_MAX: u64 = 32 << 20;
/// … and one up to this size after a session that did not end in order. What is larger is compared with
/// the server soon.
const CHECK_UNCLEAN_BYTES_MAX: u64 = 1 << 30;
/// What a lock file begins with: the file beside it is a replica, whatever it looks like.
const LOCK_MARK: &str = "tidewire replica";
/// Issuer and subject of a replica that is being wiped: no token's.
const NOBODY: [&str; 2] = ["tidewire:wiped", ""];
/// Tries for the lock, 50 ms apart: somebody may be looking whether it is held.
const LOCK_TRIES: u32 = 10;

/// Whose replica it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The servers that it may come from; they follow one source.
    pub(crate) servers: Vec<String>,
    pub(crate) subject: Subject,
}

impl Identity {
    /// Whether one of the servers is among those that the file names, a line each.
    fn knows_one_of(&self, stored: &str) -> bool {
        stored.lines().any(|known| self.servers.iter().any(|server| server == known))
    }
}

/// The one that writes. Holds the lock for as long as it lives.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(super) conn: Connection,
    pub(super) catalog: Catalog,
    pub(super) progress: Progress,
    pub(super) batch: Option<Batch>,
    /// What readers see changed since this was taken last.
    pub(super) changed: Gathering,
    pub(super) touched: Touched,
    /// The last session did not end in order.
    pub(crate) was_killed: bool,
    /// The file was too large to be looked at as a whole when it was opened.
    pub(crate) is_unchecked: bool,
    /// When it was compared with its server last, before this session, or made: milliseconds since 1970.
    pub(crate) verified_ms: i64,
    path: PathBuf,
    /// Held, not read: the system gives it up when the process ends, however it ends.
    lock: File,
}

/// What a file says of the session before, and how well it was looked at.
struct Past {
    was_killed: bool,
    is_unchecked: bool,
}

enum Found {
    Nothing,
    Replica,
    Damaged,
}

impl Writer {
    /// Opens or makes the replica at `path` for `identity`. A damaged one is put aside (`.damaged`),
    /// or removed where it may be another subject's, and begun anew; another subject's is wiped; what came from none of these servers is copied
    /// anew beside the old data.
    pub(crate) fn open(path: &Path, identity: &Identity) -> Result<Self, ReplicaError> {
        let path = real_path(path)?;
        let found = inspect(&path)?;
        let lock = take_lock(&path)?;
        let mut writer = match found {
            Found::Nothing => Self::create(&path, lock)?,
            Found::Damaged => Self::anew(&path, lock, &identity.subject)?,
            Found::Replica => match Self::existing(&path) {
                Ok((conn, catalog, progress, past)) => {
                    let (changed, touched) = (Gathering::default(), Touched::default());
                    Self {
                        conn,
                        catalog,
                        progress,
                        batch: None,
                        changed,
                        touched,
                        was_killed: past.was_killed,
                        is_unchecked: past.is_unchecked,
                        verified_ms: 0,
                        path,
                        lock,
                    }
                }
                Err(error) if error.is_damage() => {
                    tracing::warn!(%error, "the replica is damaged: it is made anew");
                    Self::anew(&path, lock, &identity.subject)?
                }
                Err(error) => return Err(error),
            },
        };
        if let Err(error) = writer.take_over(identity) {
            if !error.is_damage() {
                return Err(error);
            }
            tracing::warn!(%error, "the replica is damaged: it is made anew");
            writer = writer.recreate(identity)?;
        }
        Ok(writer)
    }

    /// Puts the damaged file aside, or away, and begins anew, without giving up the lock.
    pub(crate) fn recreate(self, identity: &Identity) -> Result<Self, ReplicaError> {
        let Self { conn, path, lock, .. } = self;
        drop(conn);
        let mut writer = Self::anew(&path, lock, &identity.subject)?;
        writer.take_over(identity)?;
        Ok(writer)
    }

    /// The first writes of a session.
    fn take_over(&mut self, identity: &Identity) -> Result<(), ReplicaError> {
        self.belong_to(identity)?;
        let sql = "UPDATE _tidewire_state SET clean = 0, verified_ms = ifnull(verified_ms, ?1) \
                   RETURNING verified_ms";
        self.verified_ms = self.conn.query_row(sql, [now_ms()], |row| row.get(0))?;
        // What readers will ask makes sense.
        self.status().map(drop)
    }

    /// Makes the replica `identity`'s: see [`Writer::open`].
    pub(crate) fn belong_to(&mut self, identity: &Identity) -> Result<(), ReplicaError> {
        self.guarded(Self::commit)?;
        let read = "SELECT server, issuer, subject FROM _tidewire_state";
        let (server, iss, sub): (Option<String>, _, _) =
            self.conn.query_row(read, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let stored = Subject { iss, sub };
        let subject = &identity.subject;
        // A token that does not say whose it is will be refused by the server; it wipes nothing.
        if stored.sub.is_some() && subject.sub.is_some() && stored != *subject {
            tracing::info!("another subject has signed in: the former one's data is wiped");
            self.wipe()?;
        } else if server.is_some_and(|stored| !identity.knows_one_of(&stored)) {
            tracing::info!("other servers: copying anew beside the old data");
            self.begin_fill()?;
        }
        self.conn.execute(
            "UPDATE _tidewire_state SET server = ?1, issuer = ifnull(?2, issuer), \
             subject = ifnull(?3, subject)",
            params![identity.servers.join("\n"), subject.iss, subject.sub],
        )?;
        Ok(())
    }

    /// Writes what the client says of itself, and commits it with what is open: a copy's open
    /// transaction would hide it from readers.
    pub(crate) fn report(&mut self, report: &status::Report) -> Result<(), ReplicaError> {
        self.guarded(|writer| {
            status::write(&writer.conn, report)?;
            writer.commit()
        })
    }

    /// What the status view says.
    pub(crate) fn status(&self) -> Result<crate::status::Status, ReplicaError> {
        Ok(status::read(&self.conn)?)
    }

    /// Commits what is open and leaves the file in order.
    pub(crate) fn close(mut self, error: Option<String>) -> Result<(), ReplicaError> {
        self.guarded(Self::commit)?;
        self.conn.execute(
            "UPDATE _tidewire_state SET clean = 1, valid_until_ms = 0, state = 'stopped', \
             transport = 'none', is_online = 0, error = ?1",
            [error],
        )?;
        self.conn.close().map_err(|(_, error)| ReplicaError::Sqlite(error))
    }

    /// What readers see changed since this was asked last. Only between two transactions.
    pub(crate) fn take_changed(&mut self) -> Option<Changed> {
        if self.batch.is_some() {
            return None;
        }
        self.changed.take(self.progress.position.map(|position| position.to_string()))
    }

    pub(super) fn reload(&mut self) -> Result<(), ReplicaError> {
        self.catalog = Catalog::load(&self.conn)?;
        self.progress = read_progress(&self.conn)?;
        Ok(())
    }

    fn anew(path: &Path, lock: File, subject: &Subject) -> Result<Self, ReplicaError> {
        let is_its_own = subject_of(path).is_ok_and(|stored| stored == *subject);
        if is_its_own {
            set_aside(path)?
        } else {
            remove(path)?
        }
        Self::create(path, lock)
    }

    /// Moves all of the write-ahead log into the file; true where a reader keeps it from that.
    fn checkpoint(&self) -> Result<bool, ReplicaError> {
        self.conn.busy_timeout(WIPE_TIMEOUT)?;
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        let blocked = self.conn.query_row(sql, [], |row| row.get(0))?;
        self.conn.busy_timeout(BUSY_TIMEOUT)?;
        Ok(blocked)
    }

    fn create(path: &Path, lock: File) -> Result<Self, ReplicaError> {
        let conn = Connection::open(path)?;
        conn.pragma_update(None, "page_size", PAGE_BYTES)?;
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        // Not yet in WAL mode: the header must be in the file itself, where `inspect` looks for it.
        conn.execute_batch("BEGIN")?;
        schema::create(&conn)?;
        conn.execute_batch("COMMIT")?;
        configure(&conn)?;
        let (catalog, progress) = (Catalog::default(), Progress::default());
        let mut changed = Gathering::default();
        changed.everything();
        let path = path.to_owned();
        Ok(Self {
            conn,
            catalog,
            progress,
            batch: None,
            changed,
            touched: Touched::default(),
            was_killed: false,
            is_unchecked: false,
            verified_ms: 0,
            path,
            lock,
        })
    }

    fn existing(path: &Path) -> Result<(Connection, Catalog, Progress, Past), ReplicaError> {
        let bytes = std::fs::metadata(path).map_err(io_at(path))?.len();
        let conn = Connection::open(path)?;
        configure(&conn)?;
        let read = "SELECT schema_version, clean FROM _tidewire_state";
        let (found, clean): (i64, bool) =
            conn.query_row(read, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if found > SCHEMA_VERSION {
            let path = path.to_owned();
            return Err(ReplicaError::TooNew { path, found, known: SCHEMA_VERSION });
        }
        let is_unchecked = bytes > if clean { CHECK_BYTES_MAX } else { CHECK_UNCLEAN_BYTES_MAX };
        if !is_unchecked {
            quick_check(&conn)?;
        }
        schema::upgrade(&conn, found)?;
        schema::renew_views(&conn)?;
        check_guards(&conn)?;
        let (catalog, progress) = (Catalog::load(&conn)?, read_progress(&conn)?);
        Ok((conn, catalog, progress, Past { was_killed: !clean, is_unchecked }))
    }

    /// Removes every trace of what was copied, and whose it was. Programs that have the file open see its
    /// tables vanish. Until all of it is gone the file says that it is nobody's: whoever opens it after
    /// a wipe that was cut short or blocked wipes again.
    pub(crate) fn wipe(&mut self) -> Result<(), ReplicaError> {
        self.guarded(Self::commit)?;
        // Freed pages are overwritten with zeros.
        self.conn.pragma_update(None, "secure_delete", true)?;
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        for entry in catalog::entries(&self.conn)? {
            for table in [&entry.table, &entry.shadow_table()] {
                let drop = format!("DROP TABLE IF EXISTS {}", schema::quote(table));
                self.conn.execute_batch(&drop)?;
            }
        }
        self.conn.execute_batch(
            "DELETE FROM _tidewire_tables; DELETE FROM _tidewire_fields;
             DELETE FROM _tidewire_staged; DELETE FROM _tidewire_set_aside;
             DELETE FROM _tidewire_state;",
        )?;
        schema::first_state(&self.conn)?;
        let whose = "UPDATE _tidewire_state SET issuer = ?1, subject = ?2";
        self.conn.execute(whose, NOBODY.map(Some))?;
        self.conn.execute_batch("COMMIT; VACUUM")?;
        let mut blocked = self.checkpoint()?;
        if !blocked {
            self.conn.execute(whose, [None::<&str>; 2])?;
            blocked = self.checkpoint()?;
        }
        self.conn.pragma_update(None, "secure_delete", false)?;
        remove_if_there(&beside(&self.path, ".damaged"))?;
        self.reload()?;
        self.changed.everything();
        self.touched.anything();
        if blocked { Err(ReplicaError::WipeBlocked(self.path.clone())) } else { Ok(()) }
    }
}

/// Whose replica the file says it is, damaged as it may be.
fn subject_of(path: &Path) -> rusqlite::Result<Subject> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let read = "SELECT issuer, subject FROM _tidewire_state";
    conn.query_row(read, [], |row| Ok(Subject { iss: row.get(0)?, sub: row.get(1)? }))
}

/// Whether a client keeps the replica at `path`.
pub(super) fn is_kept(path: &Path) -> bool {
    let Ok(path) = real_path(path) else { return false };
    let Ok(file) = File::open(beside(&path, ".lock")) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Whether the file says in its header that it is a replica.
pub(super) fn is_replica(path: &Path) -> std::io::Result<bool> {
    let mut header = Vec::with_capacity(100);
    File::open(path)?.take(100).read_to_end(&mut header)?;
    Ok(header.len() == 100
        && header.starts_with(b"SQLite format 3\0")
        && header[68..72] == APPLICATION_ID.to_be_bytes())
}

pub(super) fn io_at(path: &Path) -> impl FnOnce(std::io::Error) -> ReplicaError {
    let path = path.to_owned();
    move |source| ReplicaError::Io { path, source }
}

/// The path by which every client of this file finds the same lock.
fn real_path(path: &Path) -> Result<PathBuf, ReplicaError> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| ReplicaError::NotAReplica(path.to_owned()))?;
    Ok(folder.canonicalize().map_err(io_at(folder))?.join(name))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn inspect(path: &Path) -> Result<Found, ReplicaError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(io_at(path)(error)),
        Ok(meta) if meta.is_file() && meta.len() == 0 => return Ok(Found::Nothing),
        Ok(meta) if !meta.is_file() => return Err(ReplicaError::NotAReplica(path.to_owned())),
        Ok(_) => {}
    }
    if is_replica(path).map_err(io_at(path))? {
        return Ok(Found::Replica);
    }
    let lock = std::fs::read_to_string(beside(path, ".lock")).unwrap_or_default();
    if lock.starts_with(LOCK_MARK) {
        tracing::warn!("the replica's header is damaged: it is made anew");
        return Ok(Found::Damaged);
    }
    Err(ReplicaError::NotAReplica(path.to_owned()))
}

fn take_lock(path: &Path) -> Result<File, ReplicaError> {
    let lock_path = beside(path, ".lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut lock = options.open(&lock_path).map_err(io_at(&lock_path))?;
    let mut tries = 1;
    while let Err(error) = lock.try_lock() {
        match error {
            TryLockError::WouldBlock if tries < LOCK_TRIES => tries += 1,
            TryLockError::WouldBlock => {
                let mut holder = String::new();
                lock.read_to_string(&mut holder).ok();
                let holder = holder.lines().nth(1).unwrap_or("process unknown").to_owned();
                return Err(ReplicaError::Locked { path: path.to_owned(), holder });
            }
            TryLockError::Error(error) => return Err(io_at(&lock_path)(error)),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mark = format!("{LOCK_MARK}\nprocess {}\n", std::process::id());
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| lock.write_all(mark.as_bytes()))
        .map_err(io_at(&lock_path))?;
    Ok(lock)
}

/// Removes a damaged replica, and an older one that was put aside.
fn remove(path: &Path) -> Result<(), ReplicaError> {
    for suffix in ["-wal", "-shm", ".damaged", ""] {
        remove_if_there(&beside(path, suffix))?;
    }
    Ok(())
}

/// Moves a damaged replica out of the way; an older one that lies there goes.
fn set_aside(path: &Path) -> Result<(), ReplicaError> {
    for suffix in ["-wal", "-shm"] {
        remove_if_there(&beside(path, suffix))?;
    }
    std::fs::rename(path, beside(path, ".damaged")).map_err(io_at(path))
}

fn remove_if_there(path: &Path) -> Result<(), ReplicaError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_at(path)(error)),
        _ => Ok(()),
    }
}

fn configure(conn: &Connection) -> Result<(), ReplicaError> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    // Our own writes pass the triggers that refuse everybody else's.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    conn.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES_KEPT, |_| Ok(()))?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(())
}

fn quick_check(conn: &Connection) -> Result<(), ReplicaError> {
    let verdict: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" { Ok(()) } else { Err(damaged(&verdict)) }
}

/// As [`quick_check`], and whether each index has the rows of its table.
pub(super) fn integrity_check(conn: &Connection) -> Result<(), ReplicaError> {
    let verdict: String = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" { Ok(()) } else { Err(damaged(&verdict)) }
}

/// Every table that the catalogue names must be there with its guards.
fn check_guards(conn: &Connection) -> Result<(), ReplicaError> {
    let sql = "SELECT 3 * (5 + (SELECT ifnull(sum(live + shadow), 0) FROM _tidewire_tables)) = \
               (SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' \
                AND substr(name, 1, 13) = '_tidewire_no_' AND substr(sql, -length(?1)) = ?1)";
    if conn.query_row(sql, [schema::REFUSAL], |row| row.get(0))? {
        Ok(())
    } else {
        Err(damaged("the schema"))
    }
}

fn read_progress(conn: &Connection) -> Result<Progress, ReplicaError> {
    let sql = "SELECT cursor, position, fill_cursor, fill_rows, staged_cursor, staged_rows, \
               generation, caught_up_ms, lag_ms FROM _tidewire_state";
    let partial = |row: &rusqlite::Row<'_>, at| -> rusqlite::Result<Option<Partial>> {
        let Some(cursor) = row.get(at)? else { return Ok(None) };
        Ok(Some(Partial { cursor, rows: row.get(at + 1)? }))
    };
    let (position, progress) = conn.query_row(sql, [], |row| {
        let progress = Progress {
            cursor: row.get(0)?,
            fill: partial(row, 2)?,
            staged: partial(row, 4)?,
            generation: row.get(6)?,
            caught_up_ms: row.get(7)?,
            lag_ms: row.get(8)?,
            ..Progress::default()
        };
        Ok((row.get::<_, Option<String>>(1)?, progress))
    })?;
    let position = position.map(|text| text.parse()).transpose();
    Ok(Progress { position: position.map_err(|_| damaged("the position"))?, ..progress })
}

//! The tables of the store, and how its file is opened.
//!
//! | table | one row is | key |
//! |---|---|---|
//! | `log` | the log itself: identity, head, tail, trim point | there is one |
//! | `changes` | a change, its document as raw BSON | `seq`, ascending with the position |
//! | `latest` | the latest change of a document | collection, sort key |
//! | `channels` | a channel of a collection | id; found by the hash of its name |
//! | `postings` | a run of changes that touch a channel | channel, first `seq` |
//! | `collections` | a collection and how far its copy has come | id |
//! | `followed` | a collection that is followed, and its rules | collection |
//! | `unsettled` | a stretch of the log in which a copy of a collection was under way | collection, first `seq` |
//! | `gaps` | the cluster times of such a stretch | collection, first time |
//! | `quarantine` | a document that can't be carried, for the operator | collection, sort key or digest |
//!
//! Numbers without sign (cluster times, hashes) are stored as the `i64` of the same bits and are
//! never compared by SQL. Every row but the index's (`latest`, `channels`) carries a checksum of all it
//! holds; an index entry is believed only as far as the row that it leads to agrees.

use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::check::{check_all, check_index};
use super::state::LogState;
use super::{LogError, followed, stretches, wal};

/// Marks the file as ours (`PRAGMA application_id`): "TIDE".
const APPLICATION_ID: i32 = 0x5449_4445;
/// The version of the tables (`PRAGMA user_version`).
const FORMAT_VERSION: i32 = 6;
/// The writer's page cache, KiB.
const WRITER_CACHE_KIB: i32 = 24 * 1024;
/// Each reader's page cache, KiB.
const READER_CACHE_KIB: i32 = 2 * 1024;
/// Statements kept prepared on a connection.
const STATEMENTS_MAX: usize = 48;
/// Waits this long for another connection's lock, ms; only checkpoints and backups take one.
const BUSY_TIMEOUT_MS: u64 = 10_000;

const TABLES: &str = "
CREATE TABLE log (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    log_id INTEGER NOT NULL,
    source TEXT NOT NULL,
    seq INTEGER NOT NULL DEFAULT 0,
    cluster_time INTEGER NOT NULL DEFAULT 0,
    ordinal INTEGER NOT NULL DEFAULT 0,
    high_water INTEGER NOT NULL DEFAULT 0,
    resume_token BLOB,
    origin INTEGER NOT NULL DEFAULT 0,
    indexed_seq INTEGER NOT NULL DEFAULT 0,
    compacted_seq INTEGER NOT NULL DEFAULT 0,
    trim_time INTEGER NOT NULL DEFAULT 0,
    trim_ordinal INTEGER NOT NULL DEFAULT 0,
    checksum INTEGER NOT NULL
);
CREATE TABLE changes (
    seq INTEGER PRIMARY KEY,
    cluster_time INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    wall_time INTEGER NOT NULL,
    collection INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    previous INTEGER NOT NULL,
    rules INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    channels BLOB NOT NULL,
    document BLOB NOT NULL
);
CREATE TABLE latest (
    collection INTEGER NOT NULL,
    key BLOB NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (collection, key)
) WITHOUT ROWID;
CREATE TABLE channels (
    id INTEGER PRIMARY KEY,
    collection INTEGER NOT NULL,
    hash INTEGER NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (collection, hash)
);
CREATE TABLE postings (
    channel INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    entries BLOB NOT NULL,
    PRIMARY KEY (channel, first_seq)
) WITHOUT ROWID;
CREATE TABLE collections (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    copying INTEGER,
    done_through BLOB,
    done_through_id BLOB,
    documents INTEGER NOT NULL DEFAULT 0,
    rules INTEGER NOT NULL DEFAULT 0,
    owes_check INTEGER NOT NULL DEFAULT 0,
    checksum INTEGER NOT NULL
);
CREATE TABLE quarantine (
    collection INTEGER NOT NULL,
    key BLOB NOT NULL,
    shown_id TEXT NOT NULL,
    has_key INTEGER NOT NULL,
    reason TEXT NOT NULL,
    size INTEGER NOT NULL,
    cluster_time INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    wall_time INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (collection, key)
) WITHOUT ROWID;
";

/// The log's file in a data folder.
#[must_use]
pub fn log_path(dir: &Path) -> PathBuf {
    dir.join("log.db")
}

/// Opens the log's file to write, making it when it is not there.
pub(super) fn open_to_write(dir: &Path, source: &str) -> Result<Connection, LogError> {
    let path = log_path(dir);
    let fresh = !path.exists();
    let suspect = wal::is_suspect(&dir.join("log.db-wal"))
        .map_err(|source| LogError::Io { dir: dir.to_owned(), source })?;
    let conn = Connection::open_with_flags(
        &path,
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(|error| unreadable(&path, error))?;
    if fresh {
        conn.pragma_update(None, "page_size", 8192)?;
    }
    conn.pragma_update(None, "journal_mode", "wal").map_err(|error| unreadable(&path, error))?;
    conn.pragma_update(None, "synchronous", "normal")?;
    conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    // Reads that go wrong within a page are refused by SQLite, where they would be taken at their word.
    conn.pragma_update(None, "cell_size_check", true)?;
    prepare(&conn)?;
    let version: i32 = conn
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| unreadable(&path, error))?;
    if version == 0 {
        create(&conn, &path, source)?;
    }
    check(&conn, &path)?;
    if suspect {
        tracing::warn!("the log's write-ahead log is not whole: all of the log is looked through");
        check_all(&conn)?;
    } else {
        check_index(&conn)?;
    }
    Ok(conn)
}

fn create(conn: &Connection, path: &Path, source: &str) -> Result<(), LogError> {
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|error| unreadable(path, error))?;
    if tables != 0 {
        return Err(LogError::Unreadable {
            path: path.to_owned(),
            reason: "it holds other tables".to_owned(),
        });
    }
    conn.execute_batch("BEGIN IMMEDIATE")?;
    conn.execute_batch(TABLES)?;
    conn.execute_batch(followed::TABLE)?;
    conn.execute_batch(stretches::TABLES)?;
    LogState::new(source).write(conn)?;
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", FORMAT_VERSION)?;
    conn.execute_batch("COMMIT")?;
    Ok(())
}

/// Opens the log's file to read, beside a writer or alone.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, LogError> {
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(|error| unreadable(path, error))?;
    conn.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    prepare(&conn)?;
    check(&conn, path)?;
    Ok(conn)
}

fn prepare(conn: &Connection) -> Result<(), LogError> {
    conn.busy_timeout(std::time::Duration::from_millis(BUSY_TIMEOUT_MS))?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Else SQLite plans some statements anew for each value that is bound to them.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

fn check(conn: &Connection, path: &Path) -> Result<(), LogError> {
    let pragma = |name: &str| {
        conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0))
            .map_err(|error| unreadable(path, error))
    };
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    if application != APPLICATION_ID {
        return Err(LogError::Unreadable {
            path: path.to_owned(),
            reason: "it is some other SQLite file".to_owned(),
        });
    }
    if version != FORMAT_VERSION {
        return Err(LogError::Unreadable {
            path: path.to_owned(),
            reason: format!(
                "its format is {version}, this version reads {FORMAT_VERSION}; start with an empty \
                 --data-dir: the source is copied anew"
            ),
        });
    }
    Ok(())
}

fn unreadable(path: &Path, error: rusqlite::Error) -> LogError {
    let error = LogError::Store(error);
    if error.is_damage() {
        return LogError::Damaged(format!("{} can't be read as one", path.display()));
    }
    let LogError::Store(error) = error else { return error };
    LogError::Unreadable { path: path.to_owned(), reason: error.to_string() }
}

//! The replica's own tables, its status view, and the triggers that refuse writes.
//!
//! Every table carries three triggers that abort any insert, update or delete with `read-only replica`.
//! The client's own connection has triggers switched off, so its bulk writes pay nothing for them.

use rusqlite::Connection;

use super::quarantine;

/// `application_id` in the file's header: "TIDE".
pub(crate) const APPLICATION_ID: u32 = 0x5449_4445;
/// The version of the tables below.
pub(crate) const SCHEMA_VERSION: i64 = 3;
/// Names that begin so are ours.
pub(crate) const RESERVED_PREFIX: &str = "_tidewire";
/// The view of what the client says of itself.
const STATUS: &str = "_tidewire_status";
const VIEWS: [&str; 2] = [STATUS, quarantine::VIEW];
/// Columns of a collection's table that are not fields.
pub(crate) const OWN_COLUMNS: [&str; 4] = ["_id", "_doc", "_updated_at", "_position"];

/// What every trigger of ours does.
pub(super) const REFUSAL: &str = "BEGIN SELECT RAISE(ABORT, 'read-only replica'); END";

/// [`OWN_COLUMNS`] as a table has them.
pub(crate) const OWN_DEFINITIONS: &str =
    "(_id TEXT PRIMARY KEY NOT NULL, _doc TEXT, _updated_at TEXT, _position TEXT";

/// Milliseconds since 1970 in SQL that old SQLite versions know too.
const NOW_MS: &str = "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)";

/// The tables that hold the client's own state.
const OWN_TABLES: &str = "
CREATE TABLE _tidewire_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    schema_version INTEGER NOT NULL,
    server TEXT, issuer TEXT, subject TEXT,
    cursor TEXT, position TEXT,
    fill_cursor TEXT, fill_rows INTEGER NOT NULL DEFAULT 0,
    staged_cursor TEXT, staged_rows INTEGER NOT NULL DEFAULT 0,
    generation INTEGER NOT NULL DEFAULT 0,
    clean INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'starting', transport TEXT NOT NULL DEFAULT 'none',
    is_online INTEGER NOT NULL DEFAULT 0,
    sync_success INTEGER, sync_at_ms INTEGER, sync_applied INTEGER,
    lag_ms INTEGER, caught_up_ms INTEGER,
    valid_until_ms INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    verified_ms INTEGER
);
-- Which table holds which collection: a name that SQL dislikes gets another one.
CREATE TABLE _tidewire_tables (
    collection TEXT PRIMARY KEY,
    table_name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    live INTEGER NOT NULL DEFAULT 0,
    shadow INTEGER NOT NULL DEFAULT 0,
    listed INTEGER NOT NULL DEFAULT 0
);
-- Fields seen by the copy under way; they become columns when it is complete.
CREATE TABLE _tidewire_fields (
    ordinal INTEGER PRIMARY KEY, collection TEXT NOT NULL, name TEXT NOT NULL
);
-- Changes of a catch-up that is not complete; doc is NULL for a delete.
CREATE TABLE _tidewire_staged (
    seq INTEGER PRIMARY KEY, collection TEXT NOT NULL, id TEXT NOT NULL, doc TEXT,
    updated_at TEXT NOT NULL, position TEXT NOT NULL, quarantined TEXT
);
";

pub(crate) const OWN_TABLE_NAMES: [&str; 4] =
    ["_tidewire_state", "_tidewire_tables", "_tidewire_fields", "_tidewire_staged"];

/// Makes everything that a new replica has before its first copy.
pub(crate) fn create(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(OWN_TABLES)?;
    first_state(conn)?;
    for name in OWN_TABLE_NAMES {
        guard(conn, name, name)?;
    }
    quarantine::create(conn)?;
    conn.execute_batch(&views())?;
    conn.pragma_update(None, "application_id", APPLICATION_ID)
}

/// The state of a replica that holds nothing.
pub(crate) fn first_state(conn: &Connection) -> rusqlite::Result<()> {
    let insert = "INSERT INTO _tidewire_state (id, schema_version) VALUES (1, ?1)";
    conn.execute(insert, [SCHEMA_VERSION]).map(|_| ())
}

/// Brings the tables of an older version up to this one's, in one transaction.
pub(crate) fn upgrade(conn: &Connection, from: i64) -> rusqlite::Result<()> {
    if from >= SCHEMA_VERSION {
        return Ok(());
    }
    conn.execute_batch("BEGIN IMMEDIATE")?;
    if from < 2 {
        conn.execute_batch("ALTER TABLE _tidewire_staged ADD COLUMN quarantined TEXT")?;
        quarantine::create(conn)?;
    }
    conn.execute_batch("ALTER TABLE _tidewire_state ADD COLUMN verified_ms INTEGER")?;
    conn.execute("UPDATE _tidewire_state SET schema_version = ?1", [SCHEMA_VERSION])?;
    conn.execute_batch("COMMIT")
}

/// Makes the views anew where they are not what this version writes: an older one's, or spoiled.
pub(crate) fn renew_views(conn: &Connection) -> rusqlite::Result<()> {
    let read = |conn: &Connection| -> rusqlite::Result<Vec<(String, String)>> {
        let sql = "SELECT name, sql FROM sqlite_schema WHERE tbl_name IN (?1, ?2) ORDER BY name";
        let mut rows = conn.prepare(sql)?;
        rows.query_map(VIEWS, |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    let right = Connection::open_in_memory()?;
    right.execute_batch(&views())?;
    if read(conn)? == read(&right)? {
        return Ok(());
    }
    let [status, quarantine] = VIEWS;
    conn.execute_batch(&format!(
        "BEGIN IMMEDIATE; DROP VIEW IF EXISTS {status}; DROP VIEW IF EXISTS {quarantine}; {} COMMIT",
        views()
    ))
}

/// All that apps read beside the collections' tables.
fn views() -> String {
    status_view() + &quarantine::view()
}

/// The one row of `_tidewire_status`. A client that died says nothing any more: once its last word is
/// too old, the row says `stopped`.
fn status_view() -> String {
    let alive = format!("s.valid_until_ms >= {NOW_MS}");
    format!(
        "CREATE VIEW {STATUS} AS SELECT
            s.cursor IS NOT NULL AS initialized,
            CASE WHEN {alive} THEN s.is_online ELSE 0 END AS isOnline,
            CASE WHEN {alive} THEN s.state ELSE 'stopped' END AS state,
            CASE WHEN {alive} THEN s.transport ELSE 'none' END AS transport,
            CASE WHEN s.sync_at_ms IS NOT NULL THEN json_object(
                'success', json(CASE WHEN s.sync_success THEN 'true' ELSE 'false' END),
                'timestamp', strftime('%Y-%m-%dT%H:%M:%S', s.sync_at_ms / 1000, 'unixepoch')
                    || printf('.%03dZ', s.sync_at_ms % 1000),
                'applied', s.sync_applied) END AS lastSync,
            s.cursor AS cursor,
            s.position AS position,
            CASE WHEN s.cursor IS NULL THEN NULL
                WHEN {alive} AND s.state = 'live' THEN s.lag_ms
                ELSE max(0, {NOW_MS} - s.caught_up_ms) END AS lagMs,
            s.error AS error,
            CASE WHEN s.fill_cursor IS NOT NULL THEN s.fill_rows
                WHEN s.staged_cursor IS NOT NULL THEN s.staged_rows END AS applying
        FROM _tidewire_state s;
        {}",
        guard_view(STATUS),
    )
}

/// Refuses every write to a view.
pub(super) fn guard_view(view: &str) -> String {
    let refuse =
        |what| format!("CREATE TRIGGER {view}_{what} INSTEAD OF {what} ON {view} {REFUSAL};");
    ["INSERT", "UPDATE", "DELETE"].map(refuse).concat()
}

/// Makes a collection's table; `label` is unique in the file and names its triggers.
pub(crate) fn create_table(conn: &Connection, table: &str, label: &str) -> rusqlite::Result<()> {
    conn.execute_batch(&format!("CREATE TABLE {} {OWN_DEFINITIONS})", quote(table)))?;
    guard(conn, table, label)
}

/// Refuses every write to `table` by a connection that has triggers on, as all but ours have.
pub(super) fn guard(conn: &Connection, table: &str, label: &str) -> rusqlite::Result<()> {
    for what in ["INSERT", "UPDATE", "DELETE"] {
        conn.execute_batch(&format!(
            "CREATE TRIGGER {} BEFORE {what} ON {} {REFUSAL}",
            quote(&format!("_tidewire_no_{what}_{label}")),
            quote(table),
        ))?;
    }
    Ok(())
}

/// A name as an SQL identifier.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as an SQL string.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

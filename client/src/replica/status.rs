//! The row behind the status view: what the client last said of itself, and until when that holds.

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};
use time::OffsetDateTime;

use crate::status::{LastSync, State, Status, TransportName};

/// What the client says of itself between pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) state: State,
    pub(crate) transport: TransportName,
    pub(crate) is_online: bool,
    pub(crate) error: Option<String>,
    /// The exchange that this is about failed: it becomes `lastSync`.
    pub(crate) failed: bool,
    /// The row says `stopped` from then on, milliseconds since 1970, unless there is another word.
    pub(crate) valid_until_ms: i64,
}

/// This machine's clock, milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// RFC 3339, UTC, milliseconds.
pub(crate) fn rfc3339(ms: i64) -> String {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&format).ok())
        .unwrap_or_default()
}

/// Writes a report; the caller's transaction, if there is one, commits it.
pub(crate) fn write(conn: &Connection, report: &Report) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "UPDATE _tidewire_state SET state = ?1, transport = ?2, is_online = ?3, error = ?4, \
         valid_until_ms = ?5, \
         sync_success = CASE WHEN ?6 THEN 0 ELSE sync_success END, \
         sync_at_ms = CASE WHEN ?6 THEN ?7 ELSE sync_at_ms END, \
         sync_applied = CASE WHEN ?6 THEN 0 ELSE sync_applied END",
    )?
    .execute(params![
        report.state.name(),
        report.transport.name(),
        report.is_online,
        report.error,
        report.valid_until_ms,
        report.failed,
        now_ms(),
    ])?;
    Ok(())
}

/// Reads the status view.
pub(crate) fn read(conn: &Connection) -> rusqlite::Result<Status> {
    let sql = "SELECT initialized, isOnline, state, transport, lastSync, cursor, position, lagMs, \
               error, applying FROM _tidewire_status";
    conn.query_row(sql, [], |row| {
        let last_sync: Option<String> = row.get(4)?;
        Ok(Status {
            initialized: row.get(0)?,
            is_online: row.get(1)?,
            state: named(&row.get::<_, String>(2)?),
            transport: named(&row.get::<_, String>(3)?),
            last_sync: last_sync.and_then(|json| serde_json::from_str::<LastSync>(&json).ok()),
            cursor: row.get(5)?,
            position: row.get(6)?,
            lag_ms: row.get::<_, Option<i64>>(7)?.and_then(|ms| u64::try_from(ms).ok()),
            error: row.get(8)?,
            applying: row.get::<_, Option<i64>>(9)?.and_then(|n| u64::try_from(n).ok()),
            ..Status::first()
        })
    })
}

/// A name back to its value; a name that a newer client wrote becomes the default.
fn named<T: serde::de::DeserializeOwned + Default>(name: &str) -> T {
    serde_json::from_value(serde_json::Value::from(name)).unwrap_or_default()
}

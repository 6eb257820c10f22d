//! Documents that the source has and the server can't carry: which ones this replica misses, and why.
//! Apps read the view `_tidewire_quarantine`.

use rusqlite::{Connection, params};

use super::catalog::Side;
use super::schema::{guard, guard_view};
use crate::page::RowRef;

const TABLE: &str = "_tidewire_set_aside";
pub(super) const VIEW: &str = "_tidewire_quarantine";

/// Makes the table.
pub(super) fn create(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(&format!(
        "-- Side 0 is what readers see, side 1 belongs to the copy under way.
         CREATE TABLE {TABLE} (
            side INTEGER NOT NULL, collection TEXT NOT NULL, id TEXT NOT NULL,
            reason TEXT NOT NULL, updated_at TEXT NOT NULL, position TEXT NOT NULL,
            PRIMARY KEY (side, collection, id)
         ) WITHOUT ROWID;"
    ))?;
    guard(conn, TABLE, TABLE)
}

/// The view that apps read.
pub(super) fn view() -> String {
    format!(
        "CREATE VIEW {VIEW} AS
            SELECT collection, id AS _id, reason, updated_at AS _updated_at,
                   position AS _position FROM {TABLE} WHERE side = 0;
         {}",
        guard_view(VIEW),
    )
}

/// Some document is in quarantine, on one side or the other.
pub(super) fn is_used(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row(&format!("SELECT EXISTS (SELECT 1 FROM {TABLE})"), [], |row| row.get(0))
}

/// Takes a change in: it puts its document into quarantine, or it is well again or gone. One that is
/// older than what is there (a page applied again) leaves it alone.
pub(super) fn note(
    conn: &Connection,
    side: Side,
    collection: &str,
    row: &RowRef<'_>,
) -> rusqlite::Result<()> {
    let (side, position) = (number(side), row.position.to_string());
    let Some(reason) = row.quarantined else {
        conn.prepare_cached(
            "DELETE FROM _tidewire_set_aside
             WHERE side = ?1 AND collection = ?2 AND id = ?3 AND position <= ?4",
        )?
        .execute(params![side, collection, row.id, position])?;
        return Ok(());
    };
    conn.prepare_cached(
        "INSERT INTO _tidewire_set_aside (side, collection, id, reason, updated_at, position)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET reason = excluded.reason, updated_at = excluded.updated_at,
            position = excluded.position WHERE excluded.position >= position",
    )?
    .execute(params![side, collection, row.id, reason, row.updated_at, position])?;
    Ok(())
}

/// A new copy begins with nothing.
pub(super) fn start_fill(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute(&format!("DELETE FROM {TABLE} WHERE side = 1"), []).map(drop)
}

/// The copy takes the place of what readers see.
pub(super) fn swap(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(&format!(
        "DELETE FROM {TABLE} WHERE side = 0; UPDATE {TABLE} SET side = 0 WHERE side = 1"
    ))
}

fn number(side: Side) -> i64 {
    match side {
        Side::Live => 0,
        Side::Shadow => 1,
    }
}

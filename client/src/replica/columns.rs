//! Generated columns: one for each top-level scalar field, computed from `_doc` when it is read, so
//! that they cost no space.

use std::collections::HashSet;

use rusqlite::Connection;

use super::ReplicaError;
use super::schema::{OWN_COLUMNS, OWN_DEFINITIONS, literal, quote};
use super::staging::damaged;

/// Most generated columns of a table; fields beyond them are read with `json_extract`.
pub(crate) const COLUMNS_MAX: usize = 500;
/// Names of a row's own number in SQLite, which lets no column be added by one of them.
const ROW_NUMBER: [&str; 3] = ["rowid", "oid", "_rowid_"];
/// Longest field name that becomes a column, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// The columns that a table has, by their names as SQLite compares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Columns {
    known: HashSet<String>,
    /// Exact spellings that were seen and need no thought any more.
    settled: HashSet<String>,
}

impl Columns {
    /// The generated columns of an existing table; damage, where a column is not as it was written.
    pub(crate) fn of_table(conn: &Connection, table: &str) -> Result<Self, ReplicaError> {
        let mut columns = Self::default();
        let schema = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        let schema: String = conn.query_row(schema, [table], |row| row.get(0))?;
        if !schema.contains(OWN_DEFINITIONS) {
            return Err(damaged("a column"));
        }
        let mut rows = conn.prepare("SELECT name FROM pragma_table_xinfo(?1) WHERE hidden = 2")?;
        for name in rows.query_map([table], |row| row.get::<_, String>(0))? {
            let name = name?;
            if !schema.contains(&definition(&name)) {
                return Err(damaged("a column"));
            }
            columns.admit(&name);
        }
        Ok(columns)
    }

    /// Whether `name` is to become a column now. Says so once; the first spelling wins where names
    /// differ in (ASCII) case only.
    pub(crate) fn admit(&mut self, name: &str) -> bool {
        if self.settled.contains(name) {
            return false;
        }
        // Bounded: what is settled is bounded by the columns and as many refusals again.
        if self.settled.len() < 4 * COLUMNS_MAX {
            self.settled.insert(name.to_owned());
        }
        let folded = name.to_ascii_lowercase();
        if self.known.len() >= COLUMNS_MAX
            || OWN_COLUMNS.contains(&folded.as_str())
            || ROW_NUMBER.contains(&folded.as_str())
            || name.len() > NAME_BYTES_MAX
            || name.contains('\0')
        {
            return false;
        }
        self.known.insert(folded)
    }
}

/// Adds the generated column of a field that [`Columns::admit`] let in.
pub(crate) fn add(conn: &Connection, table: &str, field: &str) -> rusqlite::Result<()> {
    conn.execute_batch(&format!("ALTER TABLE {} ADD COLUMN {}", quote(table), definition(field)))
}

fn definition(field: &str) -> String {
    // The name as a JSON string: SQLite compares a quoted path step with the key as it is written.
    let path = literal(&format!("$.{}", serde_json::Value::from(field)));
    format!("{} GENERATED ALWAYS AS (json_extract(_doc, {path})) VIRTUAL", quote(field))
}

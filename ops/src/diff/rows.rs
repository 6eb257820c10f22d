//! The rows of one table of a replica, in order of `_id`.

use rusqlite::{Connection, Statement};

/// What is compared of a row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) doc: Option<String>,
    pub(super) updated_at: Option<String>,
    pub(super) position: Option<String>,
}

/// Selects the rows of the table `name`.
pub(super) fn prepare<'c>(conn: &'c Connection, name: &str) -> rusqlite::Result<Statement<'c>> {
    let quoted = name.replace('"', "\"\"");
    conn.prepare(&format!(
        "SELECT _id, _doc, _updated_at, _position FROM \"{quoted}\" ORDER BY _id"
    ))
}

/// The rows that are still to come; none of a table that is not there.
pub(super) struct Rows<'s>(Option<rusqlite::Rows<'s>>);

impl<'s> Rows<'s> {
    pub(super) fn begin(select: Option<&'s mut Statement<'_>>) -> rusqlite::Result<Self> {
        Ok(Self(select.map(|select| select.query([])).transpose()?))
    }

    pub(super) fn next(&mut self) -> rusqlite::Result<Option<Row>> {
        let Some(rows) = &mut self.0 else { return Ok(None) };
        let Some(row) = rows.next()? else { return Ok(None) };
        Ok(Some(Row {
            id: row.get(0)?,
            doc: row.get(1)?,
            updated_at: row.get(2)?,
            position: row.get(3)?,
        }))
    }
}

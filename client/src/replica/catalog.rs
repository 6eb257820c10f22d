//! Which table holds which collection, and what the writer knows of each.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::ReplicaError;
use super::columns::{self, Columns};
use super::quarantine;
use super::schema::{RESERVED_PREFIX, create_table, quote};

/// Which of a collection's two tables: the one that apps read, or the one that is being filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Live,
    Shadow,
}

/// The statements and columns of one table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) upsert: String,
    pub(crate) delete: String,
    columns: Columns,
}

/// All collections that the replica knows.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    live: HashMap<String, Table>,
    shadow: HashMap<String, Table>,
    /// Some document is in quarantine, on one side or the other.
    pub(crate) has_aside: bool,
}

/// A row of `_tidewire_tables`.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) collection: String,
    pub(crate) table: String,
    pub(crate) live: bool,
    pub(crate) shadow: bool,
    pub(crate) listed: bool,
}

impl Entry {
    /// The name of the table that is being filled.
    pub(crate) fn shadow_table(&self) -> String {
        shadow_name(&self.table)
    }
}

fn shadow_name(table: &str) -> String {
    format!("{RESERVED_PREFIX}_new_{table}")
}

impl Catalog {
    /// The catalogue as the file has it.
    pub(crate) fn load(conn: &Connection) -> Result<Self, ReplicaError> {
        let has_aside = quarantine::is_used(conn)?;
        let mut catalog = Self { has_aside, ..Self::default() };
        for entry in entries(conn)? {
            if entry.live {
                let columns = Columns::of_table(conn, &entry.table)?;
                catalog.live.insert(entry.collection.clone(), Table::new(&entry.table, columns));
            }
            if entry.shadow {
                let mut columns = Columns::default();
                for field in shadow_fields(conn, &entry.collection)? {
                    columns.admit(&field);
                }
                let table = Table::new(&entry.shadow_table(), columns);
                catalog.shadow.insert(entry.collection, table);
            }
        }
        Ok(catalog)
    }

    /// The table of `collection` on that side, made if it is not there.
    pub(crate) fn table(
        &mut self,
        conn: &Connection,
        collection: &str,
        side: Side,
        generation: i64,
    ) -> rusqlite::Result<&Table> {
        if !self.side(side).contains_key(collection) {
            let name = register(conn, collection)?;
            let (name, flag) = match side {
                Side::Live => (name, "live"),
                Side::Shadow => (shadow_name(&name), "shadow"),
            };
            create_table(conn, &name, &format!("{generation}_{name}"))?;
            let sql = format!("UPDATE _tidewire_tables SET {flag} = 1 WHERE collection = ?1");
            conn.execute(&sql, [collection])?;
            let table = Table::new(&name, Columns::default());
            self.side(side).insert(collection.to_owned(), table);
        }
        Ok(&self.side(side)[collection])
    }

    /// Sees to it that `fields` have their columns (live), or will have them (shadow). The table
    /// must be there.
    pub(crate) fn see_fields(
        &mut self,
        conn: &Connection,
        collection: &str,
        side: Side,
        fields: &[String],
    ) -> rusqlite::Result<()> {
        let Some(table) = self.side(side).get_mut(collection) else { return Ok(()) };
        let mut name = None;
        for field in fields.iter().filter(|field| table.columns.admit(field)) {
            match side {
                Side::Live => {
                    let table = match &mut name {
                        Some(name) => name,
                        empty => empty.insert(register(conn, collection)?),
                    };
                    columns::add(conn, table, field)?;
                }
                Side::Shadow => {
                    conn.execute(
                        "INSERT INTO _tidewire_fields (collection, name) VALUES (?1, ?2)",
                        params![collection, field],
                    )?;
                }
            }
        }
        Ok(())
    }

    fn side(&mut self, side: Side) -> &mut HashMap<String, Table> {
        match side {
            Side::Live => &mut self.live,
            Side::Shadow => &mut self.shadow,
        }
    }
}

impl Table {
    fn new(table: &str, columns: Columns) -> Self {
        let name = quote(table);
        // A change that is older than the row (a page applied again) leaves it alone.
        Self {
            name: table.to_owned(),
            upsert: format!(
                "INSERT INTO {name} (_id, _doc, _updated_at, _position) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (_id) DO UPDATE SET _doc = excluded._doc, \
                 _updated_at = excluded._updated_at, _position = excluded._position \
                 WHERE excluded._position >= _position"
            ),
            delete: format!("DELETE FROM {name} WHERE _id = ?1 AND _position <= ?2"),
            columns,
        }
    }
}

/// All rows of `_tidewire_tables`, by collection.
pub(crate) fn entries(conn: &Connection) -> rusqlite::Result<Vec<Entry>> {
    let sql =
        "SELECT collection, table_name, live, shadow, listed FROM _tidewire_tables ORDER BY 1";
    let mut statement = conn.prepare(sql)?;
    let rows = statement.query_map([], |row| {
        Ok(Entry {
            collection: row.get(0)?,
            table: row.get(1)?,
            live: row.get(2)?,
            shadow: row.get(3)?,
            listed: row.get(4)?,
        })
    })?;
    rows.collect()
}

/// The fields that the copy under way has seen in a collection, first seen first.
pub(crate) fn shadow_fields(conn: &Connection, collection: &str) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT name FROM _tidewire_fields WHERE collection = ?1 ORDER BY ordinal";
    let mut statement = conn.prepare(sql)?;
    let rows = statement.query_map([collection], |row| row.get(0))?;
    rows.collect()
}

/// The table name of a collection, chosen once: the collection's own, unless SQLite or this replica
/// keeps that name for itself or another collection has it but for case; then with `~` and a number.
pub(crate) fn register(conn: &Connection, collection: &str) -> rusqlite::Result<String> {
    let find = "SELECT table_name FROM _tidewire_tables WHERE collection = ?1";
    let known = conn.query_row(find, [collection], |row| row.get(0)).optional()?;
    if let Some(name) = known {
        return Ok(name);
    }
    let folded = collection.to_ascii_lowercase();
    let reserved = folded.starts_with("sqlite_") || folded.starts_with(RESERVED_PREFIX);
    let base = if reserved { format!("~{collection}") } else { collection.to_owned() };
    let mut name = base.clone();
    let mut number = 2_u32;
    let taken = "SELECT count(*) FROM _tidewire_tables WHERE table_name = ?1";
    while conn.query_row(taken, [&name], |row| row.get::<_, i64>(0))? > 0 {
        name = format!("{base}~{number}");
        number += 1;
    }
    if name != collection {
        tracing::warn!(collection, table = name, "the collection's table has another name");
    }
    let insert = "INSERT INTO _tidewire_tables (collection, table_name) VALUES (?1, ?2)";
    conn.execute(insert, params![collection, name])?;
    Ok(name)
}

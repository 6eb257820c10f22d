//! Two replicas side by side: which tables, rows and fields differ. Both are read in order of `_id`, so
//! their size does not matter.

mod fields;
mod rows;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use rows::{Row, Rows};

/// Waits this long for a client that is checkpointing.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Rows between two calls of the observer.
const TOLD_EVERY: u64 = 4_096;

/// What is compared, and how much of what differs is told.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rows told one by one, in each table.
    pub rows_max: usize,
    /// Compare `_position` and `_updated_at` too.
    pub positions: bool,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Only the first.
    A,
    /// Only the second.
    B,
    /// Both.
    Both,
}

/// A row that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowDifference {
    /// Its `_id`.
    #[serde(rename = "_id")]
    pub id: String,
    /// Where it is.
    #[serde(rename = "in")]
    pub side: Side,
    /// In which fields, where both have it: dotted paths of the document, or a column of the replica.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
}

/// What there is to say of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableDifference {
    /// The table's name.
    pub name: String,
    /// Where it is.
    #[serde(rename = "in")]
    pub side: Side,
    /// Rows in the first.
    pub rows_a: u64,
    /// Rows in the second.
    pub rows_b: u64,
    /// Rows in the first only.
    pub only_in_a: u64,
    /// Rows in the second only.
    pub only_in_b: u64,
    /// Rows in both that are not the same.
    pub different: u64,
    /// The first of them, in order of `_id`.
    pub rows: Vec<RowDifference>,
}

impl TableDifference {
    /// Whether both have the same table with the same rows.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.side == Side::Both && self.only_in_a + self.only_in_b + self.different == 0
    }
}

/// Compares two replicas. `told` hears the table and how many rows have been read.
///
/// # Errors
/// When one of them is no replica or can't be read.
pub fn diff(
    a: &Path,
    b: &Path,
    options: Options,
    mut told: impl FnMut(&str, u64),
) -> Result<Vec<TableDifference>> {
    let (a, b) = (open(a)?, open(b)?);
    let (tables_a, tables_b) = (tables(&a)?, tables(&b)?);
    let mut differences = Vec::new();
    for name in tables_a.union(&tables_b) {
        let side = match (tables_a.contains(name), tables_b.contains(name)) {
            (true, true) => Side::Both,
            (true, false) => Side::A,
            _ => Side::B,
        };
        let mut comparison = Comparison::of(name, side, options);
        let rows = |conn, is_there: bool| is_there.then(|| rows::prepare(conn, name)).transpose();
        let (mut a, mut b) = (rows(&a, side != Side::B)?, rows(&b, side != Side::A)?);
        comparison.merge(Rows::begin(a.as_mut())?, Rows::begin(b.as_mut())?, &mut told)?;
        differences.push(comparison.found);
    }
    Ok(differences)
}

/// One snapshot of a replica, also while its client writes.
fn open(path: &Path) -> Result<Connection> {
    let shown = path.display();
    if !path.is_file() {
        bail!(crate::command::Failure::Usage(format!("there is no replica at {shown}")));
    }
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .with_context(|| format!("open {shown}"))?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.execute_batch("BEGIN")?;
    let is_replica: bool = conn
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '_tidewire_status')",
            [],
            |row| row.get(0),
        )
        .with_context(|| format!("read {shown}"))?;
    if !is_replica {
        bail!(crate::command::Failure::Usage(format!("{shown} is not a replica")));
    }
    Ok(conn)
}

/// The tables that apps read.
fn tables(conn: &Connection) -> Result<BTreeSet<String>> {
    let mut select = conn.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table'
         AND substr(name, 1, 9) <> '_tidewire' AND substr(name, 1, 7) <> 'sqlite_'",
    )?;
    let names = select.query_map([], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

struct Comparison {
    found: TableDifference,
    options: Options,
}

impl Comparison {
    fn of(name: &str, side: Side, options: Options) -> Self {
        let found = TableDifference {
            name: name.to_owned(),
            side,
            rows_a: 0,
            rows_b: 0,
            only_in_a: 0,
            only_in_b: 0,
            different: 0,
            rows: Vec::new(),
        };
        Self { found, options }
    }

    fn merge(
        &mut self,
        mut a: Rows<'_>,
        mut b: Rows<'_>,
        told: &mut impl FnMut(&str, u64),
    ) -> Result<()> {
        let (mut of_a, mut of_b) = (a.next()?, b.next()?);
        loop {
            let order = match (&of_a, &of_b) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.id.as_bytes().cmp(b.id.as_bytes()),
            };
            if order == Ordering::Equal
                && let (Some(a), Some(b)) = (&of_a, &of_b)
            {
                self.compare(a, b);
            } else if let Some(row) = if order == Ordering::Less { &of_a } else { &of_b } {
                self.only(row, if order == Ordering::Less { Side::A } else { Side::B });
            }
            if order != Ordering::Greater {
                self.found.rows_a += 1;
                of_a = a.next()?;
            }
            if order != Ordering::Less {
                self.found.rows_b += 1;
                of_b = b.next()?;
            }
            let read = self.found.rows_a + self.found.rows_b;
            if read.is_multiple_of(TOLD_EVERY) {
                told(&self.found.name, read);
            }
        }
    }

    fn compare(&mut self, a: &Row, b: &Row) {
        let mut fields = Vec::new();
        if a.doc != b.doc {
            fields = fields::differing(a.doc.as_deref(), b.doc.as_deref());
        }
        if self.options.positions {
            let columns = [
                ("_updated_at", a.updated_at == b.updated_at),
                ("_position", a.position == b.position),
            ];
            let differ = columns.iter().filter(|(_, same)| !same);
            fields.extend(differ.map(|(column, _)| (*column).to_owned()));
        }
        if !fields.is_empty() {
            self.found.different += 1;
            self.tell(&a.id, Side::Both, fields);
        }
    }

    fn only(&mut self, row: &Row, side: Side) {
        match side {
            Side::A => self.found.only_in_a += 1,
            _ => self.found.only_in_b += 1,
        }
        self.tell(&row.id, side, Vec::new());
    }

    fn tell(&mut self, id: &str, side: Side, fields: Vec<String>) {
        if self.found.rows.len() < self.options.rows_max {
            self.found.rows.push(RowDifference { id: id.to_owned(), side, fields });
        }
    }
}

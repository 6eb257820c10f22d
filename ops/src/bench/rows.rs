//! What a replica's filling is compared with: a bare loop that inserts the same finished rows into an
//! identical table of an identical file.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags};

use super::load::COLLECTION;

/// Rows in one transaction, as many as the client takes together at most.
const TRANSACTION_ROWS: usize = 50_000;
/// KiB of page cache: more makes it no faster.
const CACHE_KIB: i64 = 16_384;

/// A finished row of a replica.
type Row = [String; 4];

/// A replica's rows and the definition of their table.
pub(super) struct Replica {
    page_size: i64,
    auto_vacuum: i64,
    /// The table and its indexes, without the guards against other writers.
    schema: Vec<String>,
    rows: Vec<Row>,
}

impl Replica {
    /// Reads a finished replica.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .with_context(|| format!("open {}", path.display()))?;
        let page_size = db.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let auto_vacuum = db.query_row("PRAGMA auto_vacuum", [], |row| row.get(0))?;
        let mut schema = db.prepare(
            "SELECT sql FROM sqlite_schema WHERE tbl_name = ? AND sql IS NOT NULL
                 AND type IN ('table', 'index') ORDER BY type = 'index'",
        )?;
        let schema: Vec<String> =
            schema.query_map([COLLECTION], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        ensure!(!schema.is_empty(), "the replica has no table {COLLECTION}");
        let mut rows = db.prepare(&format!(
            "SELECT _id, _doc, _updated_at, _position FROM {COLLECTION} ORDER BY rowid"
        ))?;
        let rows = rows
            .query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Self { page_size, auto_vacuum, schema, rows })
    }

    /// How many rows.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Bytes of the documents, as JSON.
    pub(super) fn json_bytes(&self) -> u64 {
        self.rows.iter().map(|row| row[1].len() as u64).sum()
    }

    /// Inserts all rows into a new file, and says how long it took from opening to closing it.
    pub(super) fn insert_bare(&self, path: &Path) -> Result<Duration> {
        let started = Instant::now();
        let mut db = Connection::open(path)?;
        db.pragma_update(None, "page_size", self.page_size)?;
        db.pragma_update(None, "auto_vacuum", self.auto_vacuum)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.pragma_update(None, "cache_size", -CACHE_KIB)?;
        for statement in &self.schema {
            db.execute_batch(statement)?;
        }
        let insert = format!(
            "INSERT INTO {COLLECTION} (_id, _doc, _updated_at, _position) VALUES (?, ?, ?, ?)"
        );
        for page in self.rows.chunks(TRANSACTION_ROWS) {
            let transaction = db.transaction()?;
            let mut statement = transaction.prepare_cached(&insert)?;
            for row in page {
                statement.execute(rusqlite::params_from_iter(row))?;
            }
            drop(statement);
            transaction.commit()?;
        }
        db.close().map_err(|(_, error)| error)?;
        Ok(started.elapsed())
    }
}

//! What readers may not see yet. A copy (the first one, a resync, a rebuild) fills shadow tables and
//! is swapped in by one transaction; a catch-up over live tables is kept aside whole and moved in one.

use rusqlite::{Connection, params};

use super::apply::{Partial, rows_of};
use super::catalog::{self, Side};
use super::schema::{create_table, quote};
use super::{ReplicaError, Resume, Writer};
use super::{columns, quarantine};
use crate::fields::FieldScout;
use crate::page::{Page, RowRef};

/// Staged changes that are in memory at once while they are moved.
const MOVE_ROWS: i64 = 1_000;
/// Pages that one step gives back to the file system.
const VACUUM_PAGES: u32 = 4_000;
/// Free pages that are left in the file for rows to come.
const FREE_PAGES_MAX: i64 = 1_000;

/// A change as it is staged.
struct Staged {
    collection: String,
    id: String,
    document: Option<String>,
    updated_at: String,
    position: String,
    quarantined: Option<String>,
}

impl Writer {
    /// Starts again from nothing, beside what readers see.
    pub(crate) fn begin_fill(&mut self) -> Result<Resume, ReplicaError> {
        self.guarded(|writer| {
            writer.begin()?;
            writer.start_fill()?;
            writer.commit()
        })?;
        Ok(self.resume())
    }

    /// Forgets what came after the last complete page.
    pub(crate) fn drop_partial(&mut self) -> Result<Resume, ReplicaError> {
        if self.progress.fill.is_some() {
            return self.begin_fill();
        }
        self.guarded(|writer| {
            writer.begin()?;
            writer.drop_staged()?;
            writer.commit()
        })?;
        Ok(self.resume())
    }

    pub(super) fn start_fill(&mut self) -> Result<(), ReplicaError> {
        self.drop_staged()?;
        for entry in catalog::entries(&self.conn)?.iter().filter(|entry| entry.shadow) {
            drop_table(&self.conn, &entry.shadow_table())?;
        }
        self.conn.execute_batch(
            "UPDATE _tidewire_tables SET shadow = 0; DELETE FROM _tidewire_fields",
        )?;
        quarantine::start_fill(&self.conn)?;
        self.progress.fill = Some(Partial::default());
        self.progress.generation += 1;
        self.catalog = catalog::Catalog::load(&self.conn)?;
        Ok(())
    }

    /// Puts the filled tables in the place of the live ones.
    pub(super) fn swap(&mut self) -> Result<(), ReplicaError> {
        let generation = self.progress.generation;
        for entry in catalog::entries(&self.conn)? {
            let table = &entry.table;
            if entry.live {
                drop_table(&self.conn, table)?;
            }
            if entry.shadow {
                let (from, to) = (quote(&entry.shadow_table()), quote(table));
                self.conn.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}"))?;
                for field in catalog::shadow_fields(&self.conn, &entry.collection)? {
                    columns::add(&self.conn, table, &field)?;
                }
            } else if entry.listed {
                create_table(&self.conn, table, &format!("{generation}_{table}"))?;
            }
            let (sql, kept) = (
                "UPDATE _tidewire_tables SET live = ?2, shadow = 0 WHERE collection = ?1",
                entry.shadow || entry.listed,
            );
            self.conn.execute(sql, params![entry.collection, kept])?;
        }
        self.conn.execute_batch(
            "DELETE FROM _tidewire_tables WHERE NOT live; DELETE FROM _tidewire_fields",
        )?;
        quarantine::swap(&self.conn)?;
        self.progress.fill = None;
        // The new copy may come from another history: nothing of the old one is compared with it.
        self.progress.position = None;
        self.progress.caught_up_ms = None;
        self.catalog = catalog::Catalog::load(&self.conn)?;
        self.changed.everything();
        self.touched.anything();
        Ok(())
    }

    /// Keeps a page of a catch-up aside.
    pub(super) fn stage(&mut self, page: &Page) -> Result<(), ReplicaError> {
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO _tidewire_staged (collection, id, doc, updated_at, position, quarantined) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        for row in page.rows() {
            let name = &page.collections()[row.collection].name;
            let position = row.position.to_string();
            let (id, document, reason) = (row.id, row.document, row.quarantined);
            insert.execute(params![name, id, document, row.updated_at, position, reason])?;
        }
        let staged = self.progress.staged.get_or_insert_default();
        staged.cursor.clone_from(&page.head().cursor);
        staged.rows += rows_of(page);
        Ok(())
    }

    /// Moves what was kept aside into the live tables, in order.
    pub(super) fn unstage(&mut self) -> Result<(), ReplicaError> {
        if self.progress.staged.is_none() {
            return Ok(());
        }
        let mut after = 0;
        loop {
            let (rows, last) = read_staged(&self.conn, after)?;
            if rows.is_empty() {
                break;
            }
            after = last;
            for run in rows.chunk_by(|a, b| a.collection == b.collection) {
                self.move_run(run)?;
            }
        }
        self.drop_staged()
    }

    fn move_run(&mut self, run: &[Staged]) -> Result<(), ReplicaError> {
        let (name, generation) = (&run[0].collection, self.progress.generation);
        let mut scout = FieldScout::default();
        let mut rows = Vec::with_capacity(run.len());
        for row in run {
            if let Some(document) = &row.document {
                scout.see(document);
            }
            rows.push(RowRef {
                collection: 0,
                id: &row.id,
                document: row.document.as_deref(),
                updated_at: &row.updated_at,
                position: row.position.parse().map_err(|_| damaged("a staged position"))?,
                quarantined: row.quarantined.as_deref(),
            });
        }
        let (catalog, conn) = (&mut self.catalog, &self.conn);
        catalog.table(conn, name, Side::Live, generation)?;
        catalog.see_fields(conn, name, Side::Live, &scout.into_names())?;
        self.write_run(name, Side::Live, &rows)
    }

    fn drop_staged(&mut self) -> Result<(), ReplicaError> {
        self.conn.execute_batch("DELETE FROM _tidewire_staged")?;
        self.progress.staged = None;
        Ok(())
    }

    /// Records which collections the token may see: each has a table, an empty one too, and one that
    /// is neither listed nor holds anything goes.
    pub(super) fn list(&mut self, names: &[String]) -> Result<(), ReplicaError> {
        self.conn.execute_batch("UPDATE _tidewire_tables SET listed = 0")?;
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            catalog::register(&self.conn, name)?;
            let sql = "UPDATE _tidewire_tables SET listed = 1 WHERE collection = ?1";
            self.conn.prepare_cached(sql)?.execute([name])?;
        }
        if self.progress.cursor.is_none() {
            return Ok(());
        }
        for entry in catalog::entries(&self.conn)? {
            if entry.listed && !entry.live {
                let generation = self.progress.generation;
                self.catalog.table(&self.conn, &entry.collection, Side::Live, generation)?;
                self.changed.any_row(&entry.collection, &entry.table);
            }
            if entry.live && !entry.listed && is_empty(&self.conn, &entry.table)? {
                drop_table(&self.conn, &entry.table)?;
                let sql = "UPDATE _tidewire_tables SET live = 0 WHERE collection = ?1";
                self.conn.execute(sql, [&entry.collection])?;
                self.changed.any_row(&entry.collection, &entry.table);
            }
        }
        self.conn
            .execute_batch("DELETE FROM _tidewire_tables WHERE NOT (live OR shadow OR listed)")?;
        self.catalog = catalog::Catalog::load(&self.conn)?;
        Ok(())
    }

    /// Gives the pages that a swap or a large delete left free back to the file system, step by step.
    pub(super) fn give_back_space(&mut self) -> Result<(), ReplicaError> {
        let pragma = |name| self.conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        loop {
            let (free, all) = (pragma("freelist_count")?, pragma("page_count")?);
            if free <= FREE_PAGES_MAX.max(all / 10) {
                return Ok(());
            }
            let step = format!("PRAGMA incremental_vacuum({VACUUM_PAGES})");
            let mut statement = self.conn.prepare(&step)?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
        }
    }
}

fn read_staged(conn: &Connection, after: i64) -> rusqlite::Result<(Vec<Staged>, i64)> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, collection, id, doc, updated_at, position, quarantined FROM _tidewire_staged \
         WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut last = after;
    let rows = statement.query_map([after, MOVE_ROWS], |row| {
        last = row.get(0)?;
        Ok(Staged {
            collection: row.get(1)?,
            id: row.get(2)?,
            document: row.get(3)?,
            updated_at: row.get(4)?,
            position: row.get(5)?,
            quarantined: row.get(6)?,
        })
    })?;
    let rows = rows.collect::<Result<_, _>>()?;
    Ok((rows, last))
}

fn drop_table(conn: &Connection, table: &str) -> rusqlite::Result<()> {
    conn.execute_batch(&format!("DROP TABLE IF EXISTS {}", quote(table)))
}

fn is_empty(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    let sql = format!("SELECT NOT EXISTS (SELECT 1 FROM {})", quote(table));
    conn.query_row(&sql, [], |row| row.get(0))
}

/// Something in the file is not as the client wrote it.
pub(super) fn damaged(what: &str) -> ReplicaError {
    let cause = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    let message = format!("{what} is not as it was written");
    ReplicaError::Sqlite(rusqlite::Error::SqliteFailure(cause, Some(message)))
}

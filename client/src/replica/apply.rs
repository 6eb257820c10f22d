//! Pages into tables: rows and cursor in one SQLite transaction, always.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use tidewire_protocol::Position;

use super::catalog::{Catalog, Side};
use super::quarantine;
use super::status::now_ms;
use super::{Applied, ReplicaError, Resume, Writer};
use crate::page::{Page, RowRef};

/// While tables are filled that nobody reads yet, a transaction holds at most so many rows …
const FILL_ROWS_MAX: u64 = 50_000;
/// … and so many bytes of pages …
const FILL_BYTES_MAX: usize = 32 << 20;
/// … and is open for so long, that a kill costs little.
const FILL_TIME_MAX: Duration = Duration::from_secs(1);
/// A status that is renewed by a page holds for so long: a long poll and some.
pub(crate) const PAGE_VALID_MS: i64 = 60_000;

/// What commits with the rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// The last complete cursor: what readers see.
    pub(crate) cursor: Option<String>,
    /// The source's position that readers see.
    pub(crate) position: Option<Position>,
    /// The copy under way.
    pub(crate) fill: Option<Partial>,
    /// The catch-up under way.
    pub(crate) staged: Option<Partial>,
    /// Counts the copies, so that names of triggers never clash.
    pub(crate) generation: i64,
    /// When the replica last equalled the server's head, by this machine's clock.
    pub(crate) caught_up_ms: Option<i64>,
    pub(crate) lag_ms: Option<i64>,
    /// Changes since the last complete page.
    pub(super) applied: i64,
    /// What the last page brought and when; written as `lastSync` with it.
    pub(super) last_sync: Option<(i64, i64)>,
}

/// A copy or catch-up that is not complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partial {
    /// Its next `since`; empty at the very start of a copy.
    pub(crate) cursor: String,
    pub(crate) rows: i64,
}

/// An open transaction.
#[derive(Debug)]
pub(super) struct Batch {
    since: Instant,
    rows: u64,
    bytes: usize,
}

impl Writer {
    /// Where to go on.
    pub(crate) fn resume(&self) -> Resume {
        let progress = &self.progress;
        let partial = progress.fill.as_ref().or(progress.staged.as_ref());
        let since = partial.map(|partial| &partial.cursor).or(progress.cursor.as_ref());
        Resume {
            since: since.cloned().unwrap_or_default(),
            initialized: progress.cursor.is_some(),
            filling: progress.fill.is_some(),
            partial: partial.is_some(),
        }
    }

    /// Applies the page that follows what was applied before. When this fails nothing of the page,
    /// and nothing that was not committed before it, is in the file.
    pub(crate) fn apply(&mut self, page: &Page) -> Result<Applied, ReplicaError> {
        self.guarded(|writer| writer.apply_in_transaction(page))
    }

    /// Makes the names that the token may see known: empty collections get their tables.
    pub(crate) fn set_collections(&mut self, names: &[String]) -> Result<(), ReplicaError> {
        self.guarded(|writer| {
            writer.begin()?;
            writer.list(names)?;
            writer.commit()
        })
    }

    /// Runs `work`; on an error takes back what is not committed and reads the state again.
    pub(super) fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, ReplicaError>,
    ) -> Result<T, ReplicaError> {
        let result = work(self);
        if result.is_err() {
            if self.batch.take().is_some() {
                // The error to tell is the first one; a failed rollback ends the connection's use too.
                let _ = self.conn.execute_batch("ROLLBACK");
            }
            // What was not committed changed nothing; a reader that looks once too often loses nothing.
            self.changed.everything();
            self.reload().ok();
        }
        result
    }

    fn apply_in_transaction(&mut self, page: &Page) -> Result<Applied, ReplicaError> {
        self.begin()?;
        let head = page.head();
        if self.progress.cursor.is_none() && self.progress.fill.is_none() {
            self.start_fill()?;
        }
        self.progress.applied += rows_of(page);
        let complete = head.complete && !self.would_go_back(page);
        if self.progress.fill.is_some() {
            self.apply_rows(page, Side::Shadow)?;
            self.advance_fill(page);
            if complete {
                self.swap()?;
            }
        } else if complete {
            self.unstage()?;
            self.apply_rows(page, Side::Live)?;
        } else {
            self.stage(page)?;
        }
        if complete {
            self.complete(page);
        }
        if let Some(batch) = &mut self.batch {
            batch.rows += head.count as u64;
            batch.bytes += page.bytes();
        }
        if complete || self.progress.fill.is_none() || self.batch_is_full() {
            self.commit()?;
        }
        if complete {
            self.give_back_space()?;
        }
        Ok(Applied { complete, count: head.count as u64 })
    }

    /// A copy that has not come to where readers are yet, while the server has more, does not take the place
    /// of what they see. Where it has no more, it is another history, or the server is behind: it is taken.
    fn would_go_back(&self, page: &Page) -> bool {
        let Progress { fill, position, .. } = &self.progress;
        fill.is_some() && page.head().has_more && page.last_position() < *position
    }

    /// Writes changes of one collection, in their order.
    pub(super) fn write_run(
        &mut self,
        collection: &str,
        side: Side,
        run: &[RowRef<'_>],
    ) -> Result<(), ReplicaError> {
        let generation = self.progress.generation;
        write_rows(&self.conn, &mut self.catalog, collection, side, generation, run)?;
        if side == Side::Live {
            let table = self.catalog.table(&self.conn, collection, side, generation)?;
            self.changed.rows(collection, &table.name, run.iter().map(|row| row.id));
            self.touched.note(collection, run.iter().map(|row| row.id));
        }
        Ok(())
    }

    fn apply_rows(&mut self, page: &Page, side: Side) -> Result<(), ReplicaError> {
        let generation = self.progress.generation;
        for collection in page.collections() {
            let (catalog, conn) = (&mut self.catalog, &self.conn);
            catalog.table(conn, &collection.name, side, generation)?;
            catalog.see_fields(conn, &collection.name, side, &collection.fields)?;
        }
        let rows: Vec<RowRef<'_>> = page.rows().collect();
        for run in rows.chunk_by(|a, b| a.collection == b.collection) {
            let name = &page.collections()[run[0].collection].name;
            self.write_run(name, side, run)?;
        }
        Ok(())
    }

    /// The page was complete: its cursor is what readers see from this commit on.
    fn complete(&mut self, page: &Page) {
        let head = page.head();
        let now = now_ms();
        let progress = &mut self.progress;
        progress.cursor = Some(head.cursor.clone());
        let reached = if head.has_more { page.last_position() } else { Some(head.checkpoint) };
        progress.position = progress.position.max(reached).max(page.last_position());
        if !head.has_more {
            // What came now can't have been missing for longer than since the last time that nothing
            // was: an old write that becomes visible today is not a day's lag.
            let behind = progress.caught_up_ms.map_or(0, |then| (now - then).max(0));
            let age = page.newest_write_ms().map_or(0, |write| head.server_time_ms - write);
            let here = i64::try_from(page.age().as_millis()).unwrap_or(i64::MAX);
            progress.lag_ms = Some((age.max(0).saturating_add(here)).min(behind));
            if head.count == 0 {
                progress.lag_ms = Some(0);
            }
            match head.source_lag_ms.map(i64::try_from) {
                // A server that follows nothing has nothing to tell, either.
                Some(lag) => progress.lag_ms = Some(lag.unwrap_or(i64::MAX)),
                None => progress.caught_up_ms = Some(now),
            }
        }
        progress.last_sync = Some((now, std::mem::take(&mut progress.applied)));
    }

    fn advance_fill(&mut self, page: &Page) {
        if let Some(fill) = &mut self.progress.fill {
            fill.cursor.clone_from(&page.head().cursor);
            fill.rows += rows_of(page);
        }
    }

    pub(super) fn begin(&mut self) -> Result<(), ReplicaError> {
        if self.batch.is_none() {
            self.conn.execute_batch("BEGIN IMMEDIATE")?;
            self.batch = Some(Batch { since: Instant::now(), rows: 0, bytes: 0 });
        }
        self.check_open()
    }

    /// SQLite takes a whole transaction back when a write in it fails (disk full, I/O error). Progress
    /// written after that would stand there without its rows.
    fn check_open(&self) -> Result<(), ReplicaError> {
        if !self.conn.is_autocommit() {
            return Ok(());
        }
        let cause = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK);
        Err(rusqlite::Error::SqliteFailure(cause, None).into())
    }

    fn batch_is_full(&self) -> bool {
        self.batch.as_ref().is_some_and(|batch| {
            batch.rows >= FILL_ROWS_MAX
                || batch.bytes >= FILL_BYTES_MAX
                || batch.since.elapsed() >= FILL_TIME_MAX
        })
    }

    /// Commits the open transaction, the progress with it.
    pub(crate) fn commit(&mut self) -> Result<(), ReplicaError> {
        if self.batch.is_none() {
            return Ok(());
        }
        self.check_open()?;
        write_progress(&self.conn, &self.progress)?;
        self.conn.execute_batch("COMMIT")?;
        self.batch = None;
        Ok(())
    }
}

/// Writes changes of one collection, in their order.
fn write_rows(
    conn: &Connection,
    catalog: &mut Catalog,
    collection: &str,
    side: Side,
    generation: i64,
    rows: &[RowRef<'_>],
) -> rusqlite::Result<()> {
    let (has_aside, mut noted) = (catalog.has_aside, false);
    let table = catalog.table(conn, collection, side, generation)?;
    let mut upsert = conn.prepare_cached(&table.upsert)?;
    let mut delete = conn.prepare_cached(&table.delete)?;
    let mut position = String::with_capacity(Position::TEXT_LEN);
    for row in rows {
        position.clear();
        // Writing to a string can't fail.
        let _ = write!(position, "{}", row.position);
        match row.document {
            Some(document) => {
                upsert.execute(params![row.id, document, row.updated_at, position])?;
            }
            None => {
                delete.execute(params![row.id, position])?;
            }
        }
        if row.quarantined.is_some() || has_aside || noted {
            quarantine::note(conn, side, collection, row)?;
            noted |= row.quarantined.is_some();
        }
    }
    catalog.has_aside |= noted;
    Ok(())
}

/// The number of a page's changes, as SQLite counts.
pub(super) fn rows_of(page: &Page) -> i64 {
    i64::try_from(page.head().count).unwrap_or(i64::MAX)
}

/// Writes the progress into the state row.
pub(super) fn write_progress(conn: &Connection, progress: &Progress) -> rusqlite::Result<()> {
    let rows = |partial: &Option<Partial>| partial.as_ref().map_or(0, |partial| partial.rows);
    let cursor = |partial: &Option<Partial>| partial.as_ref().map(|p| p.cursor.clone());
    conn.prepare_cached(
        "UPDATE _tidewire_state SET cursor = ?1, position = ?2, fill_cursor = ?3, fill_rows = ?4, \
         staged_cursor = ?5, staged_rows = ?6, generation = ?7, caught_up_ms = ?8, lag_ms = ?9, \
         sync_success = CASE WHEN ?10 IS NULL THEN sync_success ELSE 1 END, \
         sync_at_ms = ifnull(?10, sync_at_ms), sync_applied = ifnull(?11, sync_applied), \
         valid_until_ms = max(valid_until_ms, ?12)",
    )?
    .execute(params![
        progress.cursor,
        progress.position.map(|position| position.to_string()),
        cursor(&progress.fill),
        rows(&progress.fill),
        cursor(&progress.staged),
        rows(&progress.staged),
        progress.generation,
        progress.caught_up_ms,
        progress.lag_ms,
        progress.last_sync.map(|(at, _)| at),
        progress.last_sync.map(|(_, applied)| applied),
        now_ms() + PAGE_VALID_MS,
    ])?;
    Ok(())
}

//! Comparing a replica with what its server says that it must hold, and mending what differs.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, params};
use tidewire_protocol::digest::{CollectionDigest, DEPTH_MAX, range_of};

use super::catalog::{self, Side};
use super::open::integrity_check;
use super::read::Replica;
use super::schema::quote;
use super::status::now_ms;
use super::{ReplicaError, Writer};
use crate::fields::FieldScout;
use crate::page::Page;

/// Documents of a range, about, so that little is sent again for one that differs.
const RANGE_DOCUMENTS: u64 = 50;
/// Steps of SQLite's machine between two looks whether a reading is given up: well below a millisecond.
const STEPS_BETWEEN_LOOKS: i32 = 1_000;
/// Rows that change while a comparison runs, at most; with more it is given up.
const TOUCHED_MAX: usize = 200_000;

/// Rows that changed since a comparison began: these are right, whatever it finds.
#[derive(Debug, Default)]
pub(crate) enum Touched {
    /// No comparison runs.
    #[default]
    Unwatched,
    Rows(HashSet<(String, String)>),
    /// Too many, or all: what the comparison finds means nothing any more.
    Anything,
}

impl Touched {
    pub(super) fn note<'a>(&mut self, collection: &str, ids: impl Iterator<Item = &'a str>) {
        let Self::Rows(rows) = self else { return };
        rows.extend(ids.map(|id| (collection.to_owned(), id.to_owned())));
        if rows.len() > TOUCHED_MAX {
            *self = Self::Anything;
        }
    }

    pub(super) fn anything(&mut self) {
        if matches!(self, Self::Rows(_)) {
            *self = Self::Anything;
        }
    }
}

/// What a replica's collection adds up to.
#[derive(Debug)]
pub(crate) struct Sums {
    pub(crate) collection: String,
    pub(crate) depth: u8,
    pub(crate) digest: CollectionDigest,
}

/// What is wrong with one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fix {
    pub(crate) collection: String,
    pub(crate) id: String,
    /// The position of the row as it is; `None`: there is none.
    pub(crate) held: Option<String>,
    /// Payload, `updatedAt`, position; `None`: the row must go.
    pub(crate) row: Option<(String, String, String)>,
}

impl Replica {
    /// Whatever is read is broken off, with an error, once `given_up` is set.
    pub(crate) fn until(&mut self, given_up: Arc<AtomicBool>) -> Result<(), ReplicaError> {
        let is_given_up = move || given_up.load(Ordering::Relaxed);
        Ok(self.conn.progress_handler(STEPS_BETWEEN_LOOKS, Some(is_given_up))?)
    }

    /// The cursor that readers see, and what each collection adds up to there; `None` before the first
    /// copy, and while another one is under way.
    /// The file must be sound. `tell` is told how many rows of how many are added up.
    pub(crate) fn sums(
        &mut self,
        mut tell: impl FnMut(u64, u64),
    ) -> Result<Option<(String, Vec<Sums>)>, ReplicaError> {
        let conn = self.conn.transaction()?;
        // Rows may all be right and be found by an index that is not.
        integrity_check(&conn)?;
        let sql = "SELECT cursor FROM _tidewire_state WHERE fill_cursor IS NULL";
        let mut cursors = conn.prepare(sql)?;
        let cursor = cursors.query_map([], |row| row.get::<_, Option<String>>(0))?.next();
        let Some(cursor) = cursor.transpose()?.flatten() else { return Ok(None) };
        let mut counted = Vec::new();
        for entry in catalog::entries(&conn)?.into_iter().filter(|entry| entry.live) {
            let sql = format!("SELECT count(*) FROM {}", quote(&entry.table));
            let rows: i64 = conn.query_row(&sql, [], |row| row.get(0))?;
            counted.push((entry, u64::try_from(rows).unwrap_or(0)));
        }
        let total = counted.iter().map(|(_, rows)| rows).sum();
        let (mut all, mut done) = (Vec::new(), 0);
        for (entry, rows) in counted {
            let depth = depth_for(rows);
            let mut digest = CollectionDigest::new(depth);
            each_row(&conn, &entry.table, |id, document, _| {
                digest.add(id, document);
                done += 1;
                tell(done, total);
            })?;
            all.push(Sums { collection: entry.collection, depth, digest });
        }
        Ok(Some((cursor, all)))
    }

    /// What is wrong with the rows of these ranges, where `right` holds all that belongs into them.
    pub(crate) fn fixes(
        &self,
        collection: &str,
        depth: u8,
        ranges: &[u32],
        right: &[Page],
    ) -> Result<Vec<Fix>, ReplicaError> {
        let mut missing = std::collections::BTreeMap::new();
        for row in right.iter().flat_map(Page::rows) {
            if let Some(document) = row.document {
                let position = row.position.to_string();
                missing.insert(row.id, (document, row.updated_at, position));
            }
        }
        let mut fixes = Vec::new();
        let mut fix = |id: &str, held, row| {
            fixes.push(Fix { collection: collection.to_owned(), id: id.to_owned(), held, row });
        };
        let entries = catalog::entries(&self.conn)?;
        let table = entries.iter().find(|entry| entry.live && entry.collection == collection);
        if let Some(entry) = table {
            each_row(&self.conn, &entry.table, |id, document, position| {
                if ranges.binary_search(&range_of(id, depth)).is_err() {
                    return;
                }
                let id = String::from_utf8_lossy(id);
                let held = Some(String::from_utf8_lossy(position).into_owned());
                match missing.remove(id.as_ref()) {
                    Some((wanted, ..)) if wanted.as_bytes() == document => {}
                    Some((wanted, at, position)) => {
                        fix(&id, held, Some((wanted.to_owned(), at.to_owned(), position)));
                    }
                    None => fix(&id, held, None),
                }
            })?;
        }
        for (id, (wanted, at, position)) in missing {
            fix(id, None, Some((wanted.to_owned(), at.to_owned(), position)));
        }
        Ok(fixes)
    }
}

/// About [`RANGE_DOCUMENTS`] to a range.
fn depth_for(rows: u64) -> u8 {
    let ranges = (rows / RANGE_DOCUMENTS).max(1).next_power_of_two();
    u8::try_from(ranges.ilog2()).unwrap_or(DEPTH_MAX).min(DEPTH_MAX)
}

fn each_row(
    conn: &Connection,
    table: &str,
    mut each: impl FnMut(&[u8], &[u8], &[u8]),
) -> Result<(), ReplicaError> {
    let mut rows = conn.prepare(&format!("SELECT _id, _doc, _position FROM {}", quote(table)))?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let bytes = |at| row.get_ref(at).map(|value| value.as_bytes().unwrap_or_default());
        each(bytes(0)?, bytes(1)?, bytes(2)?);
    }
    Ok(())
}

impl Writer {
    /// From now on rows that change are noted.
    pub(crate) fn begin_comparison(&mut self) {
        self.touched = Touched::Rows(HashSet::new());
    }

    /// Nobody compares any more.
    pub(crate) fn forget_comparison(&mut self) {
        self.touched = Touched::Unwatched;
    }

    /// Looks through all of the file.
    ///
    /// # Errors
    /// It is damaged, or can't be read.
    pub(crate) fn check(&mut self) -> Result<(), ReplicaError> {
        self.guarded(|writer| {
            writer.commit()?;
            integrity_check(&writer.conn)
        })
    }

    /// Mends, in one transaction, all rows that have not changed since [`Writer::begin_comparison`],
    /// and notes the time; how many. `None` where the comparison means nothing any more.
    pub(crate) fn mend(&mut self, fixes: &[Fix]) -> Result<Option<u64>, ReplicaError> {
        let touched = match std::mem::take(&mut self.touched) {
            Touched::Rows(rows) => rows,
            Touched::Anything | Touched::Unwatched => return Ok(None),
        };
        if self.progress.fill.is_some() {
            return Ok(None);
        }
        let untouched = |fix: &&Fix| !touched.contains(&(fix.collection.clone(), fix.id.clone()));
        let fixes: Vec<&Fix> = fixes.iter().filter(untouched).collect();
        self.guarded(|writer| {
            writer.begin()?;
            for fix in &fixes {
                writer.mend_row(fix)?;
            }
            let verified = "UPDATE _tidewire_state SET verified_ms = ?1";
            writer.conn.prepare_cached(verified)?.execute([now_ms()])?;
            writer.commit()
        })?;
        Ok(Some(fixes.len() as u64))
    }

    fn mend_row(&mut self, fix: &Fix) -> Result<(), ReplicaError> {
        let (conn, generation) = (&self.conn, self.progress.generation);
        let name = self.catalog.table(conn, &fix.collection, Side::Live, generation)?.name.clone();
        let delete = format!("DELETE FROM {} WHERE _id = ?1", quote(&name));
        conn.prepare_cached(&delete)?.execute([&fix.id])?;
        if let Some((document, updated_at, position)) = &fix.row {
            let mut scout = FieldScout::default();
            scout.see(document);
            let fields = scout.into_names();
            self.catalog.see_fields(conn, &fix.collection, Side::Live, &fields)?;
            let insert = format!(
                "INSERT INTO {} (_id, _doc, _updated_at, _position) VALUES (?1, ?2, ?3, ?4)",
                quote(&name)
            );
            let row = params![fix.id, document, updated_at, position];
            conn.prepare_cached(&insert)?.execute(row)?;
        }
        self.changed.rows(&fix.collection, &name, std::iter::once(fix.id.as_str()));
        Ok(())
    }
}

//! What a log holds, for the operator.

use std::path::Path;

use tidewire_protocol::Position;

use super::record::KIND_UPSERT;
use super::state::LogState;
use super::{LogError, Reader, schema};

/// What a log holds.
#[derive(Clone, Debug)]
pub struct LogStat {
    /// The source that it follows (`<replica set>/<database>`).
    pub source: String,
    /// Everything at or before it is in the log.
    pub head: Position,
    /// The last change.
    pub last: Position,
    /// The tail's high water (cluster time).
    pub high_water: u64,
    /// Superseded changes and tombstones at or before it may be gone.
    pub trim: Position,
    /// Changes that are there.
    pub changes: u64,
    /// Bytes of their documents.
    pub document_bytes: u64,
    /// Bytes of the store's file, without its write-ahead log.
    pub file_bytes: u64,
    /// Per collection, by name.
    pub collections: Vec<CollectionStat>,
}

/// What a log holds of a collection.
#[derive(Clone, Debug)]
pub struct CollectionStat {
    /// Its name.
    pub name: String,
    /// Documents that are there now.
    pub live: u64,
    /// Changes, superseded ones and tombstones included.
    pub changes: u64,
    /// Channels that its documents have been in.
    pub channels: u64,
    /// Its copy is not finished.
    pub copying: bool,
}

impl Reader {
    /// Counts what the log in `dir` holds; walks all of it.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn stat(&self, dir: &Path) -> Result<LogStat, LogError> {
        self.with_snapshot(|conn| {
            let state = LogState::read(conn)?;
            let (changes, document_bytes) = conn.query_row(
                "SELECT count(*), ifnull(sum(length(document)), 0) FROM changes",
                [],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
            )?;
            let mut select = conn.prepare(
                "SELECT k.name, k.copying IS TRUE,
                   (SELECT count(*) FROM changes c WHERE c.collection = k.id AND c.kind = ?1)
                   - (SELECT count(*) FROM changes c JOIN changes p ON p.seq = c.previous
                      WHERE p.collection = k.id AND p.kind = ?1),
                   (SELECT count(*) FROM changes c WHERE c.collection = k.id),
                   (SELECT count(*) FROM channels h WHERE h.collection = k.id)
                 FROM collections k ORDER BY k.name",
            )?;
            let rows = select.query_map([KIND_UPSERT], |row| {
                let count = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
                Ok(CollectionStat {
                    name: row.get(0)?,
                    copying: row.get(1)?,
                    live: count(2)?,
                    changes: count(3)?,
                    channels: count(4)?,
                })
            })?;
            let collections = rows.collect::<Result<_, _>>()?;
            Ok(LogStat {
                source: state.source,
                head: state.head.position,
                last: state.last,
                high_water: state.high_water,
                trim: state.trim.position,
                changes: changes.cast_unsigned(),
                document_bytes: document_bytes.cast_unsigned(),
                file_bytes: std::fs::metadata(schema::log_path(dir)).map_or(0, |meta| meta.len()),
                collections,
            })
        })
    }
}

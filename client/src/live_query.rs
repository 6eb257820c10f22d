//! A query that runs again when a table that it reads has changed.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::changes::{Changed, Changes};
use crate::replica::{Replica, ReplicaError, Rows};

/// Live results of one query; see [`crate::SyncClient::watch`]. Nothing is queued: who is slow to ask for
/// the next result skips what lay between.
#[derive(Debug)]
pub struct LiveQuery {
    path: PathBuf,
    sql: Arc<str>,
    changes: Changes,
    /// Kept open between two runs.
    replica: Option<Replica>,
    /// Names of the tables that the query reads, in lower case; `None` before they are known.
    tables: Option<HashSet<String>>,
    /// It has to run.
    due: bool,
}

/// A run's own results.
type Run = Result<(Rows, HashSet<String>), ReplicaError>;

impl LiveQuery {
    /// `changes` must have been made before the first run.
    pub(crate) fn new(path: PathBuf, sql: &str, changes: Changes) -> Self {
        Self { path, sql: sql.into(), changes, replica: None, tables: None, due: true }
    }

    /// All rows as they are, at first at once, or when the first copy is complete; then whenever a
    /// table that the query reads has changed. `None` when the client has ended. Can be dropped while
    /// it waits.
    ///
    /// # Errors
    /// The SQL is wrong, or tries to write, or the file can't be read. The next call waits for a change
    /// and tries again.
    pub async fn next(&mut self) -> Option<Result<Rows, ReplicaError>> {
        loop {
            while !self.due {
                let changed = self.changes.next().await?;
                self.note(&changed);
            }
            while let Some(changed) = self.changes.try_next() {
                self.note(&changed);
            }
            let (path, sql, replica) =
                (self.path.clone(), Arc::clone(&self.sql), self.replica.take());
            let ran = tokio::task::spawn_blocking(move || run(&path, &sql, replica)).await;
            self.due = false;
            // A panic is the runtime's to report; the query ends.
            let (replica, ran) = ran.ok()?;
            self.replica = replica;
            match ran {
                Some(Ok((rows, tables))) => {
                    self.tables = Some(tables);
                    return Some(Ok(rows));
                }
                Some(Err(error)) => {
                    self.tables = None;
                    return Some(Err(error));
                }
                None => {}
            }
        }
    }

    fn note(&mut self, changed: &Changed) {
        if changed.everything {
            // The file itself may be another one.
            self.replica = None;
        }
        let Some(tables) = &self.tables else {
            self.due = true;
            return;
        };
        let reads = |table: &str| tables.contains(&table.to_ascii_lowercase());
        self.due |= changed.everything
            || changed.collections.iter().any(|rows| reads(&rows.table))
            // The status moves with every commit.
            || tables.iter().any(|table| table.starts_with("_tidewire"));
    }
}

/// One run; nothing while there is no complete copy.
fn run(
    path: &std::path::Path,
    sql: &str,
    replica: Option<Replica>,
) -> (Option<Replica>, Option<Run>) {
    let opened = match replica {
        Some(replica) => Ok(replica),
        None => Replica::open(path),
    };
    let mut replica = match opened {
        Ok(replica) => replica,
        Err(ReplicaError::Missing(_)) => return (None, None),
        Err(error) => return (None, Some(Err(error))),
    };
    match replica.status() {
        Ok(status) if !status.initialized => return (Some(replica), None),
        Err(error) => return (None, Some(Err(error))),
        Ok(_) => {}
    }
    let ran = replica.query_and_tables(sql);
    (Some(replica), Some(ran))
}

//! The side that apps use: reading a replica, whether a client keeps it or not.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};

use super::open::{io_at, is_kept, is_replica};
use super::schema::quote;
use super::{ReplicaError, status};
use crate::status::{State, Status, TransportName};

/// How long a reader waits for a lock; in WAL mode it hardly ever has to.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A replica, open for reading. Any SQLite library can do the same with the file; this one knows
/// about the status.
#[derive(Debug)]
pub struct Replica {
    pub(super) conn: Connection,
    path: PathBuf,
}

/// The result of a query, in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows' values, as many in each as there are columns.
    pub rows: Vec<Vec<Value>>,
}

impl Replica {
    /// Opens the replica at `path`.
    ///
    /// # Errors
    /// There is no file, or it is not a replica, or SQLite can't open it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ReplicaError> {
        let path = path.as_ref();
        match is_replica(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ReplicaError::Missing(path.to_owned()));
            }
            Err(error) => return Err(io_at(path)(error)),
            // A client is about to make it.
            Ok(false) if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) => {
                return Err(ReplicaError::Missing(path.to_owned()));
            }
            Ok(false) => return Err(ReplicaError::NotAReplica(path.to_owned())),
            Ok(true) => {}
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        Ok(Self { conn, path: path.to_owned() })
    }

    /// What the client that keeps the replica says of itself; `stopped` when there is none.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn status(&self) -> Result<Status, ReplicaError> {
        let mut status = status::read(&self.conn)?;
        if !is_kept(&self.path) {
            status.state = State::Stopped;
            status.transport = TransportName::None;
            status.is_online = false;
        }
        Ok(status)
    }

    /// Runs a query that reads; all of its rows, in memory.
    ///
    /// # Errors
    /// The SQL is wrong, or tries to write.
    pub fn query(&self, sql: &str) -> Result<Rows, ReplicaError> {
        let mut all = Rows::default();
        self.query_each(sql, |columns, row| {
            if all.columns.is_empty() {
                all.columns = columns.to_vec();
            }
            all.rows.push(row);
        })
        .map(|columns| all.columns = columns)?;
        Ok(all)
    }

    /// [`Replica::query`], and the names of all tables that it reads, in lower case: SQLite asks about
    /// each while it prepares the query.
    pub(crate) fn query_and_tables(
        &mut self,
        sql: &str,
    ) -> Result<(Rows, HashSet<String>), ReplicaError> {
        let tables: Arc<Mutex<HashSet<String>>> = Arc::default();
        let seen = Arc::clone(&tables);
        self.conn.authorizer(Some(move |asked: AuthContext<'_>| {
            if let AuthAction::Read { table_name, .. } = asked.action {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.insert(table_name.to_ascii_lowercase());
            }
            Authorization::Allow
        }))?;
        let rows = self.query(sql);
        self.conn.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        let tables = std::mem::take(&mut *tables.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((rows?, tables))
    }

    /// The rows of all collections.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn row_count(&self) -> Result<u64, ReplicaError> {
        let sql = "SELECT table_name FROM _tidewire_tables WHERE live";
        let mut tables = self.conn.prepare(sql)?;
        let tables = tables.query_map([], |row| row.get::<_, String>(0))?;
        let mut all = 0;
        for table in tables {
            let sql = format!("SELECT count(*) FROM {}", quote(&table?));
            all += self.conn.query_row(&sql, [], |row| row.get::<_, i64>(0))?;
        }
        Ok(u64::try_from(all).unwrap_or(0))
    }

    /// Runs a query that reads, and calls `each` with the columns' names and one row after the other.
    /// Returns the columns' names, of a query without rows too.
    ///
    /// # Errors
    /// The SQL is wrong, or tries to write.
    pub fn query_each(
        &self,
        sql: &str,
        mut each: impl FnMut(&[String], Vec<Value>),
    ) -> Result<Vec<String>, ReplicaError> {
        let mut statement = self.conn.prepare(sql)?;
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values = (0..columns.len()).map(|at| row.get(at)).collect::<Result<_, _>>()?;
            each(&columns, values);
        }
        Ok(columns)
    }
}

//! Reads a replica as an app would, over and over: every state that it shows must be one that the source
//! had, cut to what its user may see.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio_util::sync::CancellationToken;

use super::findings::{Findings, Kind};
use super::stage::{ACCOUNTS_EACH, ClientSite, HIDDEN, OWNERS, TOTAL};

const TICK: Duration = Duration::from_millis(150);
/// A client that is swapping, or held in the middle of it, is let alone for so long.
const UNREADABLE_MAX: Duration = Duration::from_secs(5);
const BUSY_MAX: Duration = Duration::from_secs(60);
/// Every so many looks, at every row.
const THOROUGH_EVERY: u64 = 6;

/// Looks until the checks are over.
pub(super) async fn watch(client: ClientSite, findings: Arc<Findings>, over: CancellationToken) {
    let task = move || {
        let mut watcher = Watcher {
            client,
            findings,
            versions: HashMap::new(),
            position: String::new(),
            unreadable: None,
        };
        let mut looks = 0_u64;
        while !over.is_cancelled() {
            looks += 1;
            let looked = watcher.look(looks.is_multiple_of(THOROUGH_EVERY));
            watcher.judge(looked);
            std::thread::sleep(TICK);
        }
    };
    let _ = tokio::task::spawn_blocking(task).await;
}

struct Watcher {
    client: ClientSite,
    findings: Arc<Findings>,
    /// By collection and `_id`: version and position.
    versions: HashMap<(&'static str, String), (i64, String)>,
    position: String,
    /// Since when, and whether it has been told.
    unreadable: Option<(Instant, bool)>,
}

impl Watcher {
    fn broken(&self, kind: Kind, text: &str) {
        let (name, position) = (self.client.name, &self.position);
        self.findings.broken(kind, format!("{name} at {position}: {text}"));
    }

    /// A replica that is not there yet is looked at again. One that was there stays, and can be read.
    fn judge(&mut self, looked: rusqlite::Result<()>) {
        let Err(error) = looked else {
            self.unreadable = None;
            return;
        };
        if self.position.is_empty() {
            return;
        }
        let patience = match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => BUSY_MAX,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Duration::ZERO,
            // The swap changes tables under our statements.
            _ => UNREADABLE_MAX,
        };
        let (since, told) = self.unreadable.unwrap_or((Instant::now(), false));
        let is_over = since.elapsed() >= patience;
        if is_over && !told {
            self.broken(Kind::Different, &format!("it can't be read: {error}"));
        }
        self.unreadable = Some((since, told || is_over));
        self.findings.count("looks at a replica that failed", 1);
    }

    fn look(&mut self, thorough: bool) -> rusqlite::Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let db = Connection::open_with_flags(self.client.replica(), flags)?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.execute_batch("BEGIN")?;
        let status = "SELECT position FROM _tidewire_status WHERE initialized";
        let position: String = db.query_row(status, [], |row| row.get(0))?;
        if position < self.position {
            let text = format!("it stood at {} before", self.position);
            self.broken(Kind::Reordered, &text);
        }
        self.position = position;
        self.accounts(&db)?;
        if thorough {
            self.rows(&db, "items")?;
            self.rows(&db, "accounts")?;
        }
        self.findings.count("looks at a replica", 1);
        Ok(())
    }

    fn accounts(&self, db: &Connection) -> rusqlite::Result<()> {
        let sums = "SELECT owner, count(*), sum(balance) FROM accounts GROUP BY owner";
        let mut sums = db.prepare(sums)?;
        let sums = sums.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i32>(1)?, row.get::<_, i64>(2)?))
        })?;
        let sums = sums.collect::<Result<Vec<_>, _>>()?;
        let expected: Vec<&str> = self.client.owner.map_or_else(|| OWNERS.to_vec(), |o| vec![o]);
        for (owner, count, sum) in &sums {
            if !expected.contains(&owner.as_str()) {
                self.broken(Kind::Leaked, &format!("accounts of {owner}"));
            } else if (*count, *sum) != (ACCOUNTS_EACH, TOTAL) {
                let text = format!("{owner} has {count} accounts with {sum}, not {TOTAL}");
                self.broken(Kind::Torn, &text);
            }
        }
        if sums.len() < expected.len() {
            self.broken(Kind::Torn, &format!("accounts of {} owners only", sums.len()));
        }
        Ok(())
    }

    /// Every row is its user's, hides what is hidden, and never goes back.
    fn rows(&mut self, db: &Connection, table: &'static str) -> rusqlite::Result<()> {
        let rows = format!(
            "SELECT _id, json_extract(_doc, '$.owner'), json_extract(_doc, '$.v'), _position, \
             instr(_doc, '{HIDDEN}') FROM {table}"
        );
        let mut rows = db.prepare(&rows)?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let id: String = row.get(0)?;
            let owner: Option<String> = row.get(1)?;
            let version: i64 = row.get::<_, Option<i64>>(2)?.unwrap_or(0);
            let position: String = row.get(3)?;
            if self.client.owner.is_some_and(|own| owner.as_deref() != Some(own)) {
                self.broken(Kind::Leaked, &format!("{table} {id} of {owner:?}"));
            }
            if row.get::<_, i64>(4)? > 0 {
                self.broken(Kind::Leaked, &format!("{table} {id} with what is hidden"));
            }
            if position > self.position {
                self.broken(Kind::Torn, &format!("{table} {id} from {position}, which is later"));
            }
            let now = (version, position);
            let last = self.versions.insert((table, id.clone()), now.clone());
            if let Some(last) = last
                && last.0 > now.0
            {
                self.broken(Kind::Reordered, &format!("{table} {id}: {now:?} after {last:?}"));
            }
        }
        Ok(())
    }
}

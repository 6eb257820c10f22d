//! The log's life: full and failing disks, damage, backups, compaction, ends of every kind. Clients go on
//! from the cursors they have wherever the log can know what they missed.

mod backup;
mod compaction;
mod damage;
mod disk;
mod drain;
mod moments;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::ClientSession;
use mongodb::error::TRANSIENT_TRANSACTION_ERROR;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{Client, Mongo, Server, eventually, program};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a slow, shared machine may need for what takes a second.
const PATIENCE: Duration = Duration::from_secs(60);
const COLLECTIONS: [&str; 2] = ["invoices", "plans"];
const DOCUMENTS: i32 = 200;

fn plan() -> Plan {
    Plan::everything(&COLLECTIONS)
}

/// Replaces, updates and deletes, some of them two in a transaction.
struct Load {
    stop: CancellationToken,
    commits: Arc<AtomicU64>,
    writer: JoinHandle<u64>,
}

impl Load {
    async fn start(mongo: &Mongo, seed: u64) -> Self {
        let (stop, commits) = (CancellationToken::new(), Arc::<AtomicU64>::default());
        let mut session = mongo.client.start_session().await.expect("a session");
        let database = mongo.db.clone();
        let (stopped, counter) = (stop.clone(), Arc::clone(&commits));
        let writer = tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed);
            while !stopped.is_cancelled() {
                match write(&database, &mut session, &mut rng).await {
                    Ok(()) => counter.fetch_add(1, Ordering::Relaxed),
                    // Another writer was there first.
                    Err(error) if error.contains_label(TRANSIENT_TRANSACTION_ERROR) => {
                        // The server has ended it already, where it was the commit that failed.
                        let _ = session.abort_transaction().await;
                        continue;
                    }
                    Err(error) => panic!("write: {error}"),
                };
            }
            time_of(&session)
        });
        Self { stop, commits, writer }
    }

    /// Waits until this many more commits are done.
    async fn more(&self, commits: u64) {
        let goal = self.commits.load(Ordering::Relaxed) + commits;
        eventually("writes go on", PATIENCE, || async {
            (self.commits.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }

    /// Ends it; the position of the last write.
    async fn end(self) -> String {
        self.stop.cancel();
        format!("{:016x}.00000000", self.writer.await.expect("the writer"))
    }
}

/// The cluster time of what a session has done.
fn time_of(session: &ClientSession) -> u64 {
    let time = session.operation_time().expect("it has written");
    u64::from(time.time) << 32 | u64::from(time.increment)
}

/// One commit.
async fn write(
    database: &mongodb::Database,
    session: &mut ClientSession,
    rng: &mut StdRng,
) -> mongodb::error::Result<()> {
    let in_transaction = rng.random_bool(0.3);
    if in_transaction {
        session.start_transaction().await?;
    }
    for name in &COLLECTIONS[..1 + usize::from(in_transaction)] {
        let collection = database.collection::<Document>(name);
        let id = doc! { "_id": rng.random_range(0..DOCUMENTS) };
        let number = rng.random_range(0..1_000_000);
        match rng.random_range(0..10) {
            0 => {
                collection.delete_one(id).session(&mut *session).await?;
            }
            1..5 => {
                let change = doc! { "$set": { "n": number }, "$inc": { "v": 1 } };
                collection.update_one(id, change).upsert(true).session(&mut *session).await?;
            }
            _ => {
                let new = doc! { "n": number, "text": "x".repeat(300) };
                collection.replace_one(id, new).upsert(true).session(&mut *session).await?;
            }
        }
    }
    if in_transaction {
        session.commit_transaction().await?;
    }
    Ok(())
}

/// A client that pulls and never starts again: a 410 fails the test.
struct Pages {
    cursor: String,
    /// What was read is a state of the source.
    complete: bool,
    rows: BTreeMap<(String, String), String>,
    limit: u32,
}

impl Pages {
    fn new(limit: u32) -> Self {
        Self { cursor: "0".into(), complete: false, rows: BTreeMap::new(), limit }
    }

    /// Reads one page; its checkpoint and whether there is more. `None`: not now.
    async fn step(&mut self, server: &Server, token: &str) -> Option<(String, bool)> {
        let query = format!("since={}&limit={}&wait=1", self.cursor, self.limit);
        let (status, page) = server.pull(token, &query).await;
        if status == 503 {
            return None;
        }
        assert_eq!(status, 200, "{page}");
        for change in page["changes"].as_array().expect("changes") {
            let text = |name: &str| change[name].as_str().expect("a text").to_owned();
            let at = (text("collection"), text("mongoId"));
            match text("type").as_str() {
                "upsert" => self.rows.insert(at, change["payload"].to_string()),
                _ => self.rows.remove(&at),
            };
        }
        self.cursor = page["cursor"].as_str().expect("a cursor").to_owned();
        self.complete = page["complete"] == true;
        let checkpoint = page["checkpoint"].as_str().expect("a checkpoint").to_owned();
        Some((checkpoint, page["hasMore"] == true))
    }

    /// The server's head; nothing is read.
    async fn head(&self, server: &Server, token: &str) -> String {
        let (status, page) = server.pull(token, "since=0&limit=1").await;
        assert_eq!(status, 200, "{page}");
        page["checkpoint"].as_str().expect("a checkpoint").to_owned()
    }

    /// Reads on until nothing is left before `position`, and what was read is complete.
    async fn reach(&mut self, server: &Server, token: &str, position: &str) {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.step(server, token).await {
                Some((checkpoint, false)) if checkpoint.as_str() >= position && self.complete => {
                    return;
                }
                Some(_) => {}
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            assert!(tokio::time::Instant::now() < until, "{position} is not reached");
        }
    }

    /// Holds the same as a replica.
    fn must_equal(&self, client: &Client) {
        let db = client.open().expect("the replica");
        let mut rows = BTreeMap::new();
        for name in COLLECTIONS {
            let mut select = db.prepare(&format!("SELECT _id, _doc FROM {name}")).expect("a table");
            let mut found = select.query([]).expect("rows");
            while let Some(row) = found.next().expect("a row") {
                let (id, doc): (String, String) =
                    (row.get(0).expect("an id"), row.get(1).expect("a document"));
                let doc: serde_json::Value = serde_json::from_str(&doc).expect("JSON");
                rows.insert((name.to_owned(), id), doc.to_string());
            }
        }
        assert!(self.rows == rows, "pages and the replica differ");
    }
}

/// Runs `tidewire-ops`; its exit code and all it printed.
fn ops(args: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } =
        Command::new(program("tidewire-ops")).args(args).output().expect("run tidewire-ops");
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code().unwrap_or(-1), text)
}

/// The same, which must end with 0; what it printed.
fn ops_done(args: &[&str]) -> String {
    let (code, text) = ops(args);
    assert_eq!(code, 0, "tidewire-ops {args:?}: {text}");
    text
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

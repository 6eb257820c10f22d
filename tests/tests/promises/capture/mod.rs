//! Capture against a real MongoDB: the log equals the source, whatever happens to either.

mod changes;
pub(crate) mod checks;
mod configuration;
mod copies;
mod ddl;
mod faults;
mod forgotten;
mod kills;
mod oddities;
mod privileges;
mod refusals;
mod restored;
mod scenarios;
mod serving;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bson::raw::RawDocument;
use bson::{Document, RawDocumentBuf, doc};
use futures::TryStreamExt;
use mongodb::Database;
use tempfile::TempDir;
use tidewire_protocol::Position;
use tidewire_server::access::channels::RuleSet;
use tidewire_server::capture::{self, CaptureError, CaptureParts, CheckSender};
use tidewire_server::config::{CollectionConfig, SourceConfig};
use tidewire_server::log::{
    Body, Cursor, Flow, LogOptions, PageRequest, Reader, Scope, Since, Writer, sort_key,
};
use tidewire_server::status::{self, SourcePhase, StatusReceiver};
use tidewire_tests::harness::{Mongo, eventually};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a slow, shared machine may need for what takes a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is superseded is kept so long.
const RETENTION: Duration = Duration::from_secs(3_600);

/// The followed collections of most tests.
const COLLECTIONS: [&str; 2] = ["invoices", "plans"];

/// Documents by collection and key.
type State = BTreeMap<(String, Vec<u8>), Vec<u8>>;

/// A running capture and the log it writes.
struct Capture {
    reader: Reader,
    status: StatusReceiver,
    checks: CheckSender,
    shutdown: CancellationToken,
    task: Option<JoinHandle<Result<(), CaptureError>>>,
}

fn collections(names: &[&str]) -> Vec<CollectionConfig> {
    let entry = |name: &&str| CollectionConfig {
        name: (*name).to_owned(),
        channels: vec!["everyone".to_owned()],
        exclude: Vec::new(),
    };
    names.iter().map(entry).collect()
}

fn source(mongo: &Mongo) -> SourceConfig {
    SourceConfig { uri: mongo.uri(), database: mongo.db.name().to_owned() }
}

fn log_options(database: &str) -> LogOptions {
    let source = capture::source_identity("rs0", database);
    LogOptions { source, retention: RETENTION }
}

impl Capture {
    fn start(mongo: &Mongo, dir: &Path) -> Self {
        Self::start_with(source(mongo), dir, &collections(&COLLECTIONS))
    }

    fn start_with(config: SourceConfig, dir: &Path, collections: &[CollectionConfig]) -> Self {
        Self::start_keeping(config, dir, collections, RETENTION)
    }

    fn start_keeping(
        config: SourceConfig,
        dir: &Path,
        collections: &[CollectionConfig],
        retention: Duration,
    ) -> Self {
        // Shown where a test fails; a second one in the process changes nothing.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let rules = Arc::new(RuleSet::compile(collections).expect("rules"));
        let options = LogOptions { retention, ..log_options(&config.database) };
        let (writer, reader) = Writer::open(dir, &options).expect("open the log");
        let (sender, status) = status::channel();
        let shutdown = CancellationToken::new();
        let (checks, orders) = capture::checks();
        let parts = CaptureParts {
            config,
            rules,
            writer,
            status: sender,
            checks: orders,
            shutdown: shutdown.clone(),
        };
        let task = Some(tokio::spawn(capture::run(parts)));
        Self { reader, status, checks, shutdown, task }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        let task = self.task.take().expect("it runs");
        task.await.expect("no panic").expect("a clean end");
    }

    /// Waits until everything that the source has committed by now is in the log.
    async fn caught_up(&self, db: &Database) {
        let hello = db.run_command(doc! { "hello": 1 }).await.expect("hello");
        let time = hello.get_timestamp("operationTime").expect("its time");
        let time = u64::from(time.time) << 32 | u64::from(time.increment);
        self.reaches(time).await;
    }

    async fn reaches(&self, time: u64) {
        let mut status = self.status.clone();
        let there = status
            .wait_for(|status| status.phase == SourcePhase::Following && status.high_water >= time);
        if tokio::time::timeout(PATIENCE, there).await.is_err() {
            panic!("the log has not reached {time:016x}: {:?}", self.status.borrow());
        }
    }

    /// The current state that the log tells, and the positions of its changes in order.
    fn state(&self) -> State {
        let mut state = State::new();
        self.read(&Since::Nothing, |_, collection, body| {
            let (Body::Upsert(document) | Body::Delete(document)) = body;
            let key = sort_key(document.get("_id").expect("BSON").expect("an _id"));
            let at = (collection.to_owned(), key);
            match body {
                Body::Upsert(_) => state.insert(at, document.as_bytes().to_vec()),
                Body::Delete(_) => state.remove(&at),
            };
        });
        state
    }

    /// Everything that is visible after `since`.
    fn read(&self, since: &Since, each: impl FnMut(Position, &str, Body<'_>)) -> Cursor {
        read(&self.reader, since, each)
    }

    /// What of it is in `scope`.
    fn read_of(
        &self,
        scope: Scope<'_>,
        since: &Since,
        each: impl FnMut(Position, &str, Body<'_>),
    ) -> Cursor {
        read_of(&self.reader, scope, since, each)
    }

    /// The log and the source hold the same documents, byte for byte.
    async fn must_equal(&self, db: &Database, names: &[&str]) {
        self.caught_up(db).await;
        let wanted = source_state(db, names).await;
        let found = self.state();
        for (at, document) in &wanted {
            let shown = |bytes: &[u8]| format!("{:?}", RawDocument::from_bytes(bytes));
            match found.get(at) {
                None => panic!("the log misses {}", shown(document)),
                Some(other) if other != document => {
                    panic!("the log has {} for {}", shown(other), shown(document))
                }
                Some(_) => {}
            }
        }
        let more = found.keys().find(|at| !wanted.contains_key(*at));
        assert!(more.is_none(), "the log has more than the source: {more:?}");
    }

    async fn copied(&self) {
        eventually("the copies are finished", PATIENCE, || async {
            (self.status.borrow().phase == SourcePhase::Following).then_some(())
        })
        .await;
    }
}

/// Everything in the log that is visible after `since`.
fn read(reader: &Reader, since: &Since, each: impl FnMut(Position, &str, Body<'_>)) -> Cursor {
    read_of(reader, Scope::Everything, since, each)
}

fn read_of(
    reader: &Reader,
    scope: Scope<'_>,
    since: &Since,
    mut each: impl FnMut(Position, &str, Body<'_>),
) -> Cursor {
    let mut since = since.clone();
    loop {
        let request = PageRequest { since: &since, scope, limit: 10_000, operation_time: 0 };
        let page = reader.page(&request, &mut |entry| {
            each(entry.position, entry.collection, entry.body);
            Flow::Took
        });
        let page = page.expect("a page");
        if !page.has_more {
            return page.cursor;
        }
        since = Since::Cursor(page.cursor);
    }
}

async fn source_state(db: &Database, names: &[&str]) -> State {
    let mut state = State::new();
    for name in names {
        let collection = db.collection::<RawDocumentBuf>(name);
        let cursor = collection.find(doc! {}).await.expect("find");
        let documents: Vec<RawDocumentBuf> = cursor.try_collect().await.expect("documents");
        for document in documents {
            let key = sort_key(document.get("_id").expect("BSON").expect("an _id"));
            state.insert(((*name).to_owned(), key), document.into_bytes());
        }
    }
    state
}

fn dir() -> TempDir {
    tempfile::Builder::new().prefix("tidewire-log-").tempdir().expect("a folder")
}

async fn insert(db: &Database, name: &str, documents: impl IntoIterator<Item = Document>) {
    db.collection::<Document>(name).insert_many(documents).await.expect("insert");
}

fn numbered(range: std::ops::Range<i32>) -> impl Iterator<Item = Document> {
    range.map(
        |n| doc! { "_id": n, "n": n, "nested": { "list": [n, n + 1] }, "text": "x".repeat(200) },
    )
}

/// What the source holds, copied while it was down.
async fn back_up(mongo: &mut Mongo) -> TempDir {
    let backup = dir();
    mongo.set.back_up(backup.path()).await.unwrap();
    backup
}

/// The source holds what it held then.
async fn put_back(mongo: &mut Mongo, backup: &TempDir) {
    mongo.set.put_back(backup.path()).await.unwrap();
}

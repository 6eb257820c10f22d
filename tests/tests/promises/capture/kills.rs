//! kill -9 of the process that writes the log, at any moment, under load.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bson::{Document, doc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidewire_protocol::Position;
use tidewire_server::config::SourceConfig;
use tidewire_server::log::{Body, Cursor, Flow, PageRequest, Reader, Scope, Since};
use tidewire_tests::harness::{Mongo, MongoOptions, kills, mongo, mongo_with, seed};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{COLLECTIONS, Capture, State, collections, dir, insert, numbered, source};

/// Documents that one transaction inserts.
const WHOLE: usize = 1_500;
const KILLS: u64 = 12;
/// Rounds of load for each kill, at most: what is told after a cursor stays a list of every change.
const ROUNDS: usize = 4;
/// A log that is killed hundreds of times does not grow for ever.
const RETENTION: Duration = Duration::from_secs(60);

/// Not a test: the process that is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the test below"]
async fn a_capture_that_waits_to_be_killed() {
    let variable = |name| std::env::var(name).expect("started by the test below");
    let config = SourceConfig { uri: variable("CAPTURE_URI"), database: "invoify".to_owned() };
    let dir = variable("CAPTURE_DIR");
    let _capture =
        Capture::start_keeping(config, Path::new(&dir), &collections(&COLLECTIONS), RETENTION);
    std::future::pending::<()>().await;
}

fn command(mongo: &Mongo, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args(["--exact", "capture::kills::a_capture_that_waits_to_be_killed", "--ignored"])
        .env("CAPTURE_URI", mongo.uri())
        .env("CAPTURE_DIR", dir)
        .stdout(Stdio::null());
    command
}

/// A process of its own that follows into the log in `dir`.
pub(super) fn start(mongo: &Mongo, dir: &Path) -> Child {
    command(mongo, dir).spawn().expect("start it")
}

/// The same; what it logs goes to a file.
pub(super) fn start_logged(mongo: &Mongo, dir: &Path, log: &Path) -> Child {
    let log = std::fs::File::create(log).expect("a file");
    let mut command = command(mongo, dir);
    command.arg("--nocapture").env("RUST_LOG", "tidewire_server=info");
    command.stdout(log).spawn().expect("start it")
}

/// Transactions and single changes until `stop`, a round for each permit.
async fn load(mongo: &Mongo, seed: u64, rounds: &Semaphore, stop: CancellationToken) {
    let mut random = StdRng::seed_from_u64(seed);
    let invoices = mongo.db.collection::<Document>("invoices");
    for round in 1.. {
        let permit = stop.run_until_cancelled(rounds.acquire()).await;
        let Some(permit) = permit else { return };
        permit.expect("open").forget();
        let mut session = mongo.client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        let tagged = (0..WHOLE).map(|n| doc! { "n": n as i32, "transaction": round });
        invoices.insert_many(tagged).session(&mut session).await.unwrap();
        let old = doc! { "transaction": round - 5 };
        invoices.delete_many(old).session(&mut session).await.unwrap();
        session.commit_transaction().await.unwrap();
        for _ in 0..100 {
            let id = doc! { "_id": random.random_range(0..300) };
            match random.random_range(0..4) {
                0 => drop(invoices.delete_one(id).await.unwrap()),
                1 => {
                    let new = doc! { "round": round };
                    invoices.replace_one(id, new).upsert(true).await.unwrap();
                }
                _ => {
                    let push = doc! { "$push": { "list": round }, "$inc": { "count": 1 } };
                    invoices.update_one(id, push).await.unwrap();
                }
            }
        }
    }
}

/// A change as a reader is told it: where, of which collection, and a checksum of what it says.
type Told = (Position, String, u32);

/// Everything after `since`, no position twice; and the cursor behind it.
fn told(reader: &Reader, since: &Since) -> (Vec<Told>, Cursor) {
    let mut all: Vec<Told> = Vec::new();
    let cursor = super::read(reader, since, |position, collection, body| {
        let (kind, document) = match body {
            Body::Upsert(document) => (1, document),
            Body::Delete(key) => (0, key),
        };
        let checksum = crc32fast::hash(&[&[kind], document.as_bytes()].concat());
        let is_later = all.last().is_none_or(|(last, ..)| *last < position);
        assert!(is_later, "{position} after {:?}", all.last());
        all.push((position, collection.to_owned(), checksum));
    });
    (all, cursor)
}

fn transactions_are_whole(state: &State) {
    let mut sizes = BTreeMap::<i32, usize>::new();
    for document in state.values() {
        let document = bson::raw::RawDocument::from_bytes(document).expect("BSON");
        if let Ok(transaction) = document.get_i32("transaction") {
            *sizes.entry(transaction).or_default() += 1;
        }
    }
    let torn: Vec<_> = sizes.iter().filter(|(_, size)| **size != WHOLE).collect();
    assert!(torn.is_empty(), "torn transactions: {torn:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_kill_the_log_holds_whole_commits_and_goes_on_without_loss() {
    let mongo = mongo().await;
    let dir = dir();
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    insert(&mongo.db, "invoices", numbered(0..300)).await;
    insert(&mongo.db, "plans", numbered(0..3_000)).await;
    let (stop, rounds) = (CancellationToken::new(), Semaphore::new(0));
    let (mut since, mut held) = (None, 0);
    let killed = async {
        for kill in 1..=kills(KILLS) {
            rounds.add_permits(ROUNDS.saturating_sub(rounds.available_permits()));
            let mut child = start(&mongo, dir.path());
            // The moment is the point: nothing is waited for.
            let moment = Duration::from_millis(random.random_range(50..1_500));
            tokio::time::sleep(moment).await;
            let known = since
                .as_ref()
                .map(|since| told(&Reader::open(dir.path()).expect("open the log"), since).0);
            tokio::time::sleep(Duration::from_millis(random.random_range(0..50))).await;
            child.kill().expect("kill -9");
            child.wait().expect("its end");
            let config = source(&mongo);
            let capture =
                Capture::start_keeping(config, dir.path(), &collections(&COLLECTIONS), RETENTION);
            if let (Some(since), Some(known)) = (&since, known) {
                let (now, _) = told(&capture.reader, since);
                for (before, after) in known.iter().zip(&now) {
                    assert_eq!(before, after, "kill {kill}");
                }
                assert!(known.len() <= now.len(), "kill {kill}: {} {}", known.len(), now.len());
                held += known.len();
            }
            transactions_are_whole(&capture.state());
            // A copy that goes on is told in another order than a stream.
            let (_, cursor) = told(&capture.reader, &since.clone().unwrap_or(Since::Nothing));
            if cursor.is_complete() {
                since = Some(Since::Cursor(cursor));
            }
            capture.stop().await;
        }
        stop.cancel();
    };
    futures::future::join(killed, load(&mongo, seed, &rounds, stop.clone())).await;
    println!("{held} changes were there before a kill, and after it");
    assert!(held > 0);
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    transactions_are_whole(&capture.state());
    told(&capture.reader, &Since::Nothing);
    capture.stop().await;
}

/// Changes of one transaction, about 30 MB.
const HUGE: i32 = 100_000;
/// The process that follows it may take so much memory, in KiB.
const MEMORY_KIB_MAX: u64 = 200 * 1024;

/// Documents that a reader of the log's folder sees.
fn held(dir: &Path) -> usize {
    let reader = Reader::open(dir).expect("open the log");
    let (mut since, mut count) = (Since::Nothing, 0);
    loop {
        let (scope, limit) = (Scope::Everything, 10_000);
        let request = PageRequest { since: &since, scope, limit, operation_time: 0 };
        let page = reader.page(&request, &mut |_| Flow::Took).expect("a page");
        count += page.count;
        if !page.has_more {
            return count;
        }
        since = Since::Cursor(page.cursor);
    }
}

/// The most memory that a process has had so far; 0 where it is gone.
pub(super) fn peak_kib(child: &Child) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_100000_changes_is_in_the_log_whole_or_not_at_all_and_takes_bounded_memory()
 {
    // The transaction has to fit into mongod's own cache.
    let mongo = mongo_with(MongoOptions { cache_gb: 1.0, ..MongoOptions::default() }).await;
    let dir = dir();
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    capture.caught_up(&mongo.db).await;
    capture.stop().await;
    let invoices = mongo.db.collection::<Document>("invoices");
    let mut session = mongo.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for some in 0..HUGE / 10_000 {
        let documents = (some * 10_000..(some + 1) * 10_000)
            .map(|n| doc! { "_id": n, "text": "x".repeat(250), "n": n });
        invoices.insert_many(documents).session(&mut session).await.unwrap();
    }
    session.commit_transaction().await.unwrap();
    let (mut kills, mut peak) = (0, 0);
    while held(dir.path()) == 0 {
        let mut child = start(&mongo, dir.path());
        // Twice as long each time, so that some kill comes in the middle and one after the end.
        tokio::time::sleep(Duration::from_millis(300 << kills)).await;
        kills += 1;
        peak = peak.max(peak_kib(&child));
        child.kill().expect("kill -9");
        child.wait().expect("its end");
        let held = held(dir.path());
        assert!(held == 0 || held == HUGE as usize, "{held} of {HUGE} after kill {kills}");
        assert!(kills < 10, "it does not get through");
    }
    println!("{kills} kills, at most {peak} KiB");
    assert!(peak < MEMORY_KIB_MAX, "{peak} KiB");
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

//! kill -9 of the process that writes the log, at any moment, under load.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use bson::{Document, doc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidewire_server::config::SourceConfig;
use tidewire_tests::harness::{Mongo, mongo, seed};
use tokio_util::sync::CancellationToken;

use super::{COLLECTIONS, Capture, State, collections, dir, insert, numbered};

/// Documents that one transaction inserts.
const WHOLE: usize = 1_500;
const KILLS: usize = 12;

/// Not a test: the process that is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the test below"]
async fn a_capture_that_waits_to_be_killed() {
    let variable = |name| std::env::var(name).expect("started by the test below");
    let config = SourceConfig { uri: variable("CAPTURE_URI"), database: "invoify".to_owned() };
    let dir = variable("CAPTURE_DIR");
    let _capture = Capture::start_with(config, Path::new(&dir), &collections(&COLLECTIONS));
    std::future::pending::<()>().await;
}

fn start(mongo: &Mongo, dir: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "capture::kills::a_capture_that_waits_to_be_killed", "--ignored"])
        .env("CAPTURE_URI", mongo.uri())
        .env("CAPTURE_DIR", dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("start it")
}

/// Transactions and single changes until `stop`.
async fn load(mongo: &Mongo, seed: u64, stop: CancellationToken) {
    let mut random = StdRng::seed_from_u64(seed);
    let invoices = mongo.db.collection::<Document>("invoices");
    let mut round = 0;
    while !stop.is_cancelled() {
        round += 1;
        let mut session = mongo.client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        let tagged = (0..WHOLE).map(|n| doc! { "n": n as i32, "transaction": round });
        invoices.insert_many(tagged).session(&mut session).await.unwrap();
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
    let stop = CancellationToken::new();
    let killed = async {
        for _ in 0..KILLS {
            let mut child = start(&mongo, dir.path());
            // The moment is the point: nothing is waited for.
            let moment = Duration::from_millis(random.random_range(50..1_500));
            tokio::time::sleep(moment).await;
            child.kill().expect("kill -9");
            child.wait().expect("its end");
            let capture = Capture::start(&mongo, dir.path());
            transactions_are_whole(&capture.state());
            capture.stop().await;
        }
        stop.cancel();
    };
    futures::future::join(killed, load(&mongo, seed, stop.clone())).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    transactions_are_whole(&capture.state());
    capture.stop().await;
}

//! What the source has forgotten while it was being read: an oplog that overtakes an open stream, a
//! snapshot that is too old for the next chunk, and a million deletes at once.

use std::process::Child;

use bson::{Document, doc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tidewire_protocol::Position;
use tidewire_server::capture::{CheckOrder, Checked};
use tidewire_server::log::{Reader, Since};
use tidewire_tests::harness::{Mongo, MongoOptions, eventually, mongo_with};
use tokio::sync::oneshot;

use super::kills::{peak_kib, start, start_logged};
use super::restored::small_oplog;
use super::{COLLECTIONS, Capture, PATIENCE, dir, insert, numbered, read};

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, signal).unwrap();
}

/// The log in `dir`, which another process writes, has come to where the source is now.
async fn caught_up(mongo: &Mongo, dir: &std::path::Path) -> u64 {
    insert(&mongo.db, "plans", [doc! {}]).await;
    let hello = mongo.db.run_command(doc! { "hello": 1 }).await.unwrap();
    let now = hello.get_timestamp("operationTime").unwrap();
    let now = u64::from(now.time) << 32 | u64::from(now.increment);
    eventually("the log comes to the present", PATIENCE * 5, || async {
        let reader = Reader::open(dir).ok()?;
        let head = reader.head().borrow().position.cluster_time;
        (head >= now).then_some(head)
    })
    .await
}

/// A change stream is open at the source, and no `getMore` of it is under way.
async fn waits_for_a_reader(mongo: &Mongo) -> Option<()> {
    let idle = doc! {
        "type": "idleCursor",
        "cursor.originatingCommand.pipeline.$changeStream": { "$exists": true },
    };
    let pipeline = [
        doc! { "$currentOp": { "allUsers": true, "idleCursors": true } },
        doc! { "$match": idle },
        doc! { "$limit": 1 },
    ];
    let mut found = mongo.client.database("admin").aggregate(pipeline).await.unwrap();
    found.advance().await.unwrap().then_some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oplog_that_overtakes_an_open_stream_costs_a_reconcile_and_no_cursor() {
    let mongo = mongo_with(small_oplog()).await;
    let (dir, spoken) = (dir(), tempfile::NamedTempFile::new().unwrap());
    insert(&mongo.db, "invoices", numbered(0..300)).await;
    let mut child = start_logged(&mongo, dir.path(), spoken.path());
    let stood = caught_up(&mongo, dir.path()).await;
    let cursor = eventually("all is copied", PATIENCE, || async {
        let cursor = read(&Reader::open(dir.path()).ok()?, &Since::Nothing, |_, _, _| {});
        cursor.is_complete().then_some(cursor)
    })
    .await;
    // The stream stays open at the source; nobody reads it.
    signal(&child, Signal::SIGSTOP);
    eventually("the last answer is on its way", PATIENCE, || waits_for_a_reader(&mongo)).await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.delete_many(doc! { "_id": { "$lt": 50 } }).await.unwrap();
    insert(&mongo.db, "invoices", numbered(1_000..1_010)).await;
    mongo.set.roll_over(stood + (1 << 32)).await.unwrap();
    signal(&child, Signal::SIGCONT);
    caught_up(&mongo, dir.path()).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let said = std::fs::read_to_string(spoken.path()).unwrap();
    assert!(said.contains("CappedPositionLost"), "136 was not what ended the stream: {said}");
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut changes = 0;
    capture.read(&Since::Cursor(cursor), |position, collection, _| {
        assert!(position.ordinal >= Position::RECONCILE_ORDINAL_FIRST || collection == "plans");
        changes += usize::from(collection == "invoices");
    });
    assert_eq!(changes, 60, "the differences and nothing else");
    capture.stop().await;
}

/// Commands of this kind that failed at the source so far.
async fn failed(mongo: &Mongo, command: &str) -> i64 {
    let admin = mongo.client.database("admin");
    let status = admin.run_command(doc! { "serverStatus": 1 }).await.unwrap();
    let commands = status.get_document("metrics").unwrap().get_document("commands").unwrap();
    commands.get_document(command).unwrap().get_i64("failed").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_whose_time_the_source_no_longer_holds_is_read_again_at_a_newer_one() {
    let window = ("minSnapshotHistoryWindowInSeconds".to_owned(), "1".to_owned());
    let mongo = mongo_with(MongoOptions { parameters: vec![window], ..Default::default() }).await;
    let dir = dir();
    let wide = |n: i32| doc! { "_id": n, "text": "x".repeat(100_000), "n": 0 };
    insert(&mongo.db, "invoices", (0..240).map(wide)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let before = failed(&mongo, "getMore").await;
    // Slowly: each chunk of 4 MB comes longer after the last one than the source remembers.
    let (done, mut report) = oneshot::channel();
    let (collection, after, bytes_per_second) = ("invoices".into(), None, Some(2_000_000));
    let order = CheckOrder { collection, after, bytes_per_second, hours: None, done };
    capture.checks.send(order).await.unwrap();
    let invoices = mongo.db.collection::<Document>("invoices");
    let (mut n, mut changes) = (0, 0);
    let checked = loop {
        tokio::select! {
            report = &mut report => break report.expect("the check comes to its end"),
            () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
        }
        n = (n + 7) % 240;
        let one = doc! { "_id": n };
        match n % 5 {
            0 => drop(invoices.delete_one(one).await.unwrap()),
            1 => drop(invoices.replace_one(one, wide(n)).upsert(true).await.unwrap()),
            _ => drop(invoices.update_one(one, doc! { "$inc": { "n": 1 } }).await.unwrap()),
        }
        changes += 1;
    };
    assert!(failed(&mongo, "getMore").await > before, "no time was ever too old");
    let Checked::Whole(report) = checked else { panic!("cut off: {checked:?}") };
    assert_eq!((report.upserted, report.deleted), (0, 0), "the stream had told all {changes}");
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

/// `TIDEWIRE_TEST_DELETES=1000000` is the whole of it.
const DELETES: i32 = 100_000;
/// What it may take beyond what the copy took, in KiB.
const MORE_KIB_MAX: u64 = 64 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn deletes_by_the_hundred_thousand_take_steady_memory() {
    let wanted = std::env::var("TIDEWIRE_TEST_DELETES").ok();
    let deletes = wanted.map_or(DELETES, |text| text.parse().expect("a number"));
    let mongo = mongo_with(MongoOptions { cache_gb: 0.5, ..MongoOptions::default() }).await;
    let dir = dir();
    for first in (0..deletes).step_by(50_000) {
        let some = first..deletes.min(first + 50_000);
        insert(&mongo.db, "invoices", some.map(|n| doc! { "_id": n, "n": n })).await;
    }
    let mut child = start(&mongo, dir.path());
    caught_up(&mongo, dir.path()).await;
    let before = peak_kib(&child);
    let invoices = mongo.db.collection::<Document>("invoices");
    let deleted = invoices.delete_many(doc! {}).await.unwrap().deleted_count;
    assert_eq!(deleted, u64::try_from(deletes).unwrap());
    caught_up(&mongo, dir.path()).await;
    let most = peak_kib(&child);
    child.kill().unwrap();
    child.wait().unwrap();
    println!("{deletes} deletes: {before} KiB after the copy, at most {most} KiB after them");
    assert!(most < before + MORE_KIB_MAX, "{before} KiB, then {most} KiB");
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

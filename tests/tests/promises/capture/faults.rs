//! The source fails; the log does not.

use std::time::Duration;

use bson::{Document, doc};
use tidewire_server::log::{Body, Since};
use tidewire_tests::harness::{Mongo, eventually, mongo, three_nodes};

use super::{COLLECTIONS, Capture, PATIENCE, dir, insert, numbered};

/// Getting the next batch fails `times` times with `code` (0: the connection is cut).
async fn must_go_on(mongo: &Mongo, code: i32, labels: &[&str], times: i32) {
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let capture = Capture::start(mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let mut data = doc! {
        "failCommands": ["getMore"],
        // The test's own reads go on.
        "appName": "tidewire",
    };
    match code {
        0 => data.insert("closeConnection", true),
        code => data.insert("errorCode", code),
    };
    if !labels.is_empty() {
        data.insert("errorLabels", labels.to_vec());
    }
    let fail = mongo.fail_point("failCommand", doc! { "times": times }, data).await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await.unwrap();
    insert(&mongo.db, "invoices", numbered(100..200)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    fail.off().await;
    let mut changes = 0;
    capture.read(&Since::Cursor(cursor), |_, _, _| changes += 1);
    assert_eq!(changes, 200, "each change once");
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_made_again_without_gap_or_double() {
    must_go_on(&mongo().await, 0, &[], 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cursor_is_resumed_without_gap_or_double() {
    must_go_on(&mongo().await, 43, &[], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumable_error_is_resumed_without_gap_or_double() {
    must_go_on(&mongo().await, 11_602, &["ResumableChangeStreamError"], 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_is_tried_again_then_left_for_the_time_then_for_a_reconcile() {
    for times in [1, 2, 4] {
        must_go_on(&mongo().await, 280, &[], times).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_always_refused_is_no_hot_loop_and_loses_nothing() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let data =
        doc! { "failCommands": ["aggregate", "getMore"], "appName": "tidewire", "errorCode": 280 };
    let fail = mongo.fail_point("failCommand", "alwaysOn", data).await;
    eventually("it is said", PATIENCE, || async { capture.status.borrow().trouble.clone() }).await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await.unwrap();
    let mut served = 0;
    let cursor = capture.read(&Since::Cursor(cursor), |_, _, _| served += 1);
    fail.off().await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.read(&Since::Cursor(cursor), |_, _, _| served += 1);
    assert_eq!(served, 100, "each change once");
    assert_eq!(capture.status.borrow().trouble, None);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_history_is_reconciled_in_place() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..300)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    capture.stop().await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.delete_many(doc! { "_id": { "$lt": 50 } }).await.unwrap();
    invoices
        .update_many(doc! { "_id": { "$gte": 250 } }, doc! { "$set": { "late": true } })
        .await
        .unwrap();
    insert(&mongo.db, "invoices", numbered(1_000..1_010)).await;
    let fail = mongo.fail_command(&["aggregate"], 286, &[], doc! { "times": 1 }).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    fail.off().await;
    let (mut upserts, mut deletes) = (0, 0);
    capture.read(&Since::Cursor(cursor), |position, _, body| {
        assert!(position.ordinal >= tidewire_protocol::Position::RECONCILE_ORDINAL_FIRST);
        match body {
            Body::Upsert(_) => upserts += 1,
            Body::Delete(_) => deletes += 1,
        }
    });
    assert_eq!((upserts, deletes), (60, 50), "the differences and nothing else");
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_stores_its_high_water_mark() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let before = capture.reader.head().borrow().position;
    // Busy neighbours only.
    insert(&mongo.client.database("neighbour"), "invoices", numbered(0..10)).await;
    insert(&mongo.db, "elsewhere", numbered(0..10)).await;
    eventually("the mark is in the log", Duration::from_secs(10), || async {
        (capture.reader.head().borrow().position > before).then_some(())
    })
    .await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_primary_is_noticed_and_used_again() {
    let mut mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    mongo.node(0).pause().unwrap();
    eventually("the silence is noticed", Duration::from_secs(20), || async {
        capture.status.borrow().trouble.clone()
    })
    .await;
    mongo.node(0).resume().unwrap();
    mongo.set.primary().await.unwrap();
    insert(&mongo.db, "invoices", numbered(10..20)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert_eq!(capture.status.borrow().trouble, None);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_loses_and_doubles_nothing() {
    let mut mongo = three_nodes().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let mut written = 0;
    for round in 1..=2 {
        let primary = mongo.set.primary().await.unwrap();
        mongo.node(primary).kill().await.unwrap();
        mongo.set.primary().await.unwrap();
        for n in 0..50 {
            let id = round * 1_000 + n;
            eventually("a write goes through", PATIENCE, || {
                let invoices = mongo.db.collection::<Document>("invoices");
                async move { invoices.insert_one(doc! { "_id": id }).await.ok() }
            })
            .await;
            written += 1;
        }
        capture.must_equal(&mongo.db, &COLLECTIONS).await;
        mongo.node(primary).restart().await.unwrap();
    }
    let mut changes = 0;
    capture.read(&Since::Cursor(cursor), |_, _, _| changes += 1);
    assert_eq!(changes, written);
    capture.stop().await;
}

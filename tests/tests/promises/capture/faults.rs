//! The source fails; the log does not.

use std::time::{Duration, Instant};

use bson::{Document, doc};
use futures::TryStreamExt;
use tidewire_protocol::Position;
use tidewire_server::log::{Body, Since};
use tidewire_tests::harness::{
    Claims, Mongo, Server, ServerOptions, eventually, mongo, three_nodes,
};

use super::{COLLECTIONS, Capture, PATIENCE, dir, insert, numbered};

/// Getting the stream's next batch fails as `how` says, only after a while: what is written as soon as the
/// failure has begun waits for a stream that does not hear of it. The test's own reads go on.
pub(super) fn failing_late(how: Document) -> Document {
    let mut data = doc! {
        "failCommands": ["getMore"], "appName": "tidewire",
        "blockConnection": true, "blockTimeMS": 200,
    };
    data.extend(how);
    data
}

/// Getting the next batch fails `times` times with `code` (0: the connection is cut), while changes wait.
async fn must_go_on(mongo: &Mongo, code: i32, labels: &[&str], times: i64) {
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let capture = Capture::start(mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let mut data = failing_late(match code {
        0 => doc! { "closeConnection": true },
        code => doc! { "errorCode": code },
    });
    if !labels.is_empty() {
        data.insert("errorLabels", labels.to_vec());
    }
    let fail = mongo.fail_point("failCommand", doc! { "times": times }, data).await;
    fail.fired(1).await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await.unwrap();
    insert(&mongo.db, "invoices", numbered(100..200)).await;
    fail.fired(times).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert_eq!(fail.off().await, times);
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

/// Opening the stream and getting its next batch fails `times` times with 280: where the stream that goes
/// on was opened, and the positions of the changes that were made meanwhile.
async fn refused(mongo: &Mongo, times: i32) -> (Document, Vec<Position>) {
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let capture = Capture::start(mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let data =
        doc! { "failCommands": ["aggregate", "getMore"], "appName": "tidewire", "errorCode": 280 };
    let fail = mongo.fail_point("failCommand", doc! { "times": times }, data).await;
    // What is being waited for is still answered; nothing after it is.
    insert(&mongo.db, "plans", numbered(0..1)).await;
    capture.caught_up(&mongo.db).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let stage = change_stream(mongo).await;
    assert_eq!(fail.off().await, i64::from(times));
    let mut told = Vec::new();
    capture.read(&Since::Cursor(cursor), |position, _, _| told.push(position));
    assert_eq!(told.len(), 100, "each change once");
    capture.stop().await;
    (stage, told)
}

/// The `$changeStream` that is being waited at.
pub(super) async fn change_stream(mongo: &Mongo) -> Document {
    let stage = |operation: &Document| {
        let cursor = operation.get_document("cursor").ok()?;
        let command = cursor.get_document("originatingCommand").ok()?;
        let first = command.get_array("pipeline").ok()?.first()?.as_document()?;
        first.get_document("$changeStream").ok().cloned()
    };
    eventually("a stream is open", PATIENCE, || async {
        let admin = mongo.client.database("admin");
        let operations = admin.aggregate([doc! { "$currentOp": {} }]).await.unwrap();
        let operations: Vec<Document> = operations.try_collect().await.unwrap();
        operations.iter().find_map(stage)
    })
    .await
}

fn is_of_a_reconcile(position: &Position) -> bool {
    position.ordinal >= Position::RECONCILE_ORDINAL_FIRST
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_is_tried_again_and_nothing_is_compared() {
    let (stage, told) = refused(&mongo().await, 1).await;
    assert!(stage.contains_key("startAfter"), "{stage}");
    assert!(!told.iter().any(is_of_a_reconcile), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_twice_is_left_for_the_operation_time_and_nothing_is_told_again() {
    let (stage, told) = refused(&mongo().await, 2).await;
    let time = stage.get_timestamp("startAtOperationTime").expect("a time");
    let time = u64::from(time.time) << 32 | u64::from(time.increment);
    assert!(time <= told[0].cluster_time, "{stage} {told:?}");
    assert!(!told.iter().any(is_of_a_reconcile), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_four_times_is_left_for_a_reconcile() {
    let (stage, _) = refused(&mongo().await, 4).await;
    assert!(stage.contains_key("startAtOperationTime"), "{stage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_always_refused_is_no_hot_loop_and_a_reconcile_tells_what_it_missed() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let data =
        doc! { "failCommands": ["aggregate", "getMore"], "appName": "tidewire", "errorCode": 280 };
    let fail = mongo.fail_point("failCommand", "alwaysOn", data).await;
    let began = Instant::now();
    eventually("it is said", PATIENCE, || async { capture.status.borrow().trouble.clone() }).await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await.unwrap();
    let hello = mongo.db.run_command(doc! { "hello": 1 }).await.unwrap();
    let time = hello.get_timestamp("operationTime").unwrap();
    let time = u64::from(time.time) << 32 | u64::from(time.increment);
    eventually("a reconcile begins behind them", PATIENCE, || async {
        (capture.reader.head().borrow().position.cluster_time >= time).then_some(())
    })
    .await;
    let mut told = Vec::new();
    let cursor = capture.read(&Since::Cursor(cursor), |position, _, _| told.push(position));
    let (refused, seconds) = (fail.off().await, began.elapsed().as_secs());
    assert!(refused <= 10 + 3 * i64::try_from(seconds).unwrap(), "{refused} in {seconds} s");
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.read(&Since::Cursor(cursor), |position, _, _| told.push(position));
    assert_eq!(told.len(), 100, "each change once");
    assert!(told.iter().all(is_of_a_reconcile), "{told:?}");
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
        assert!(is_of_a_reconcile(&position));
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

/// A server that has ten documents; how many a pull finds.
async fn follower(mongo: &Mongo) -> (Server, impl AsyncFn() -> u64 + use<>) {
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    let server = Server::start(ServerOptions::following(mongo, &COLLECTIONS)).await;
    let url = format!("{}/api/sync/pull?since=0", server.url());
    let token = server.token(&Claims::of("ann"));
    let http = reqwest::Client::new();
    let count = async move || {
        let answer = http.get(&url).bearer_auth(&token).send().await.expect("an answer");
        let page: serde_json::Value =
            serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON");
        page["count"].as_u64().expect("a page")
    };
    assert_eq!(count().await, 10);
    (server, count)
}

/// How long it takes until the server says so.
async fn until_said(server: &Server, text: &str) -> Duration {
    let began = Instant::now();
    eventually(text, Duration::from_secs(30), || async {
        server.log_text().contains(text).then(|| began.elapsed())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_silent_for_six_seconds_is_opened_again() {
    let mongo = mongo().await;
    let (server, count) = follower(&mongo).await;
    // Everything else is answered: nobody but the watchdog can tell.
    let silent = doc! {
        "failCommands": ["getMore"], "appName": "tidewire",
        "blockConnection": true, "blockTimeMS": 15_000,
    };
    mongo.fail_point("failCommand", doc! { "times": 1 }, silent).await;
    let said = until_said(&server, "has not answered for 6 s").await;
    // What is waited for may have been asked half a second later.
    assert!((6..9).contains(&said.as_secs()), "{said:?}");
    insert(&mongo.db, "invoices", numbered(10..20)).await;
    eventually("the stream goes on", Duration::from_secs(10), || async {
        (count().await == 20).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_takes_eight_seconds_for_every_answer_is_given_them_and_followed() {
    let mongo = mongo().await;
    let (server, count) = follower(&mongo).await;
    // As a large answer on a slow line.
    let slow = doc! {
        "failCommands": ["aggregate", "getMore"], "appName": "tidewire",
        "blockConnection": true, "blockTimeMS": 8_000,
    };
    mongo.fail_point("failCommand", "alwaysOn", slow).await;
    until_said(&server, "has not answered for 6 s").await;
    insert(&mongo.db, "invoices", numbered(10..20)).await;
    eventually("the stream goes on", PATIENCE, || async { (count().await == 20).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_stopped_is_let_go_of_within_nine_seconds_and_followed_on() {
    let mut mongo = mongo().await;
    let (server, count) = follower(&mongo).await;
    mongo.node(0).pause().unwrap();
    let said = until_said(&server, "the stream ended; going on").await;
    assert!((1..9).contains(&said.as_secs()), "{said:?}");
    mongo.node(0).resume().unwrap();
    mongo.set.primary().await.unwrap();
    insert(&mongo.db, "invoices", numbered(10..20)).await;
    eventually("the stream goes on", PATIENCE, || async { (count().await == 20).then_some(()) })
        .await;
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

//! What the source forgot: an oplog that rolled over, a backup that was put back.

use std::time::Duration;

use bson::{Document, doc};
use tidewire_ops::verify::Plan;
use tidewire_protocol::Position;
use tidewire_server::config::SourceConfig;
use tidewire_server::log::{Since, TailState, Writer};
use tidewire_tests::harness::{
    Claims, Client, Mongo, MongoOptions, Server, ServerOptions, eventually, mongo, mongo_with,
    must_equal,
};
use tokio_util::sync::CancellationToken;

use super::{
    COLLECTIONS, Capture, PATIENCE, back_up, collections, dir, insert, log_options, numbered,
    put_back,
};

pub(super) fn small_oplog() -> MongoOptions {
    // What a checkpoint does not have yet, the oplog keeps.
    let args = ["--syncdelay", "1"].map(str::to_owned).to_vec();
    MongoOptions { test_commands: true, oplog_mb: Some(64), args, ..MongoOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oplog_that_rolled_over_costs_a_reconcile_and_no_cursor() {
    let mongo = mongo_with(small_oplog()).await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..300)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let stood = capture.status.borrow().high_water;
    capture.stop().await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.delete_many(doc! { "_id": { "$lt": 50 } }).await.unwrap();
    insert(&mongo.db, "invoices", numbered(1_000..1_010)).await;
    mongo.set.roll_over(stood + (1 << 32)).await.unwrap();
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut changes = 0;
    capture.read(&Since::Cursor(cursor), |position, _, _| {
        assert!(position.ordinal >= Position::RECONCILE_ORDINAL_FIRST);
        changes += 1;
    });
    assert_eq!(changes, 60, "the differences and nothing else");
    eventually("what is left of the oplog is told", PATIENCE, || async {
        capture.status.borrow().oplog.filter(|oplog| oplog.left_seconds >= 0.0)
    })
    .await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_went_while_nobody_looked_is_empty_and_its_copy_ends() {
    let mongo = mongo_with(small_oplog()).await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..300)).await;
    insert(&mongo.db, "plans", numbered(0..3)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let stood = capture.status.borrow().high_water;
    capture.stop().await;
    mongo.db.collection::<Document>("invoices").drop().await.unwrap();
    mongo.set.roll_over(stood + (1 << 32)).await.unwrap();
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert_eq!(capture.state().len(), 3);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_log_is_not_overtaken_by_its_busy_neighbours() {
    let mongo = mongo_with(small_oplog()).await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let (cursor, stood) =
        (capture.read(&Since::Nothing, |_, _, _| {}), capture.status.borrow().high_water);
    mongo.set.roll_over(stood).await.unwrap();
    capture.caught_up(&mongo.db).await;
    capture.stop().await;
    let capture = Capture::start(&mongo, dir.path());
    insert(&mongo.db, "invoices", numbered(10..20)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut changes = 0;
    capture.read(&Since::Cursor(cursor), |position, _, _| {
        assert!(position.ordinal < Position::RECONCILE_ORDINAL_FIRST, "nothing had to be copied");
        changes += 1;
    });
    assert_eq!(changes, 10);
    capture.stop().await;
}

/// A gauge of the server's metrics.
async fn gauge(server: &Server, name: &str) -> f64 {
    let metrics = server.metrics().await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}: {metrics}")).parse().expect("a number")
}

fn copies(client: &Client) -> i64 {
    let db = client.open().expect("a replica");
    db.query_row("SELECT generation FROM _tidewire_state", [], |row| row.get(0)).expect("a row")
}

/// Changes all invoices, twice a second: the small oplog holds half a minute of it.
async fn write_fast(mongo: &Mongo, stop: CancellationToken) {
    let invoices = mongo.db.collection::<Document>("invoices");
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    for round in 0.. {
        beat.tick().await;
        if stop.is_cancelled() {
            return;
        }
        let text = format!("{round:010}").repeat(100);
        let set = doc! { "$set": { "text": text } };
        invoices.update_many(doc! {}, set).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_can_not_keep_up_is_given_up_while_there_is_oplog_left_and_no_cursor_is_lost() {
    let mongo = mongo_with(small_oplog()).await;
    insert(&mongo.db, "invoices", numbered(0..1_000)).await;
    insert(&mongo.db, "plans", numbered(0..3)).await;
    let server = Server::start(ServerOptions::following(&mongo, &COLLECTIONS)).await;
    let token = server.token(&Claims::of("ann"));
    let mut client = Client::new(&server.url(), &token);
    client.start();
    eventually("the client has everything", PATIENCE, || async { client.position() }).await;
    let before = copies(&client);
    let (_, page) = server.pull(&token, "since=0&limit=10000").await;
    assert_eq!(page["complete"], true, "{page}");
    let cursor = page["cursor"].as_str().expect("a cursor").to_owned();
    let first = server.log_text().len();
    let said = || server.log_text().split_off(first);
    // A slow way: at most 2,000 changes in three seconds, and there are 6,000.
    let slow = doc! {
        "failCommands": ["getMore"], "appName": "tidewire",
        "blockConnection": true, "blockTimeMS": 3_000,
    };
    let slow = mongo.fail_point("failCommand", "alwaysOn", slow).await;
    let stop = CancellationToken::new();
    let given_up = async {
        eventually("it is said that the oplog may run out", PATIENCE * 3, || async {
            said().contains("the oplog may run out before").then_some(())
        })
        .await;
        let runs_out = gauge(&server, "tidewire_oplog_runs_out_seconds").await;
        assert!(runs_out.is_finite() && runs_out > 0.0, "{runs_out}");
        let left = gauge(&server, "tidewire_oplog_left_seconds").await;
        assert!(left > 0.0, "{left}");
        eventually("the tail is given up", PATIENCE, || async {
            said().contains("copies begin").then_some(())
        })
        .await;
        stop.cancel();
    };
    tokio::join!(given_up, write_fast(&mongo, stop.clone()));
    slow.off().await;
    let said = said();
    let at = |text: &str| said.find(text).unwrap_or_else(|| panic!("no {text}:\n{said}"));
    let why = at("the tail can't catch up before the oplog runs out");
    assert!(at("the oplog may run out before") < why && why < at("copies begin"), "{said}");
    assert!(!said.contains("runs out (-"), "there was none left:\n{said}");
    assert!(!said.contains("HistoryLost"), "it came too late:\n{said}");
    insert(&mongo.db, "plans", numbered(3..4)).await;
    client.reaches(&present(&mongo).await, PATIENCE).await;
    must_equal(&mongo.db, &Plan::everything(&COLLECTIONS), &client.db()).await;
    assert_eq!(copies(&client), before, "no copy was made anew");
    let (status, page) = server.pull(&token, &format!("since={cursor}&limit=10000")).await;
    assert_eq!(status, 200, "{page}");
    client.stop().await;
}

/// The position of the source's last write.
async fn present(mongo: &Mongo) -> String {
    let hello = mongo.db.run_command(doc! { "hello": 1 }).await.unwrap();
    let time = hello.get_timestamp("operationTime").unwrap();
    format!("{:08x}{:08x}.00000000", time.time, time.increment)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_restored_from_a_backup_is_noticed_and_the_log_follows_it_back() {
    let mut mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let backup = back_up(&mut mongo).await;
    // What the backup does not have, and the log has.
    insert(&mongo.db, "invoices", numbered(100..130)).await;
    mongo.db.collection::<Document>("invoices").delete_one(doc! { "_id": 1 }).await.unwrap();
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    capture.stop().await;
    put_back(&mut mongo, &backup).await;

    let capture = Capture::start(&mongo, dir.path());
    insert(&mongo.db, "invoices", numbered(500..501)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut changes = 0;
    capture.read(&Since::Cursor(cursor), |_, _, _| changes += 1);
    assert_eq!(changes, 30 + 1 + 1, "its readers are told what it lost, and what came");
    capture.stop().await;
}

/// The capture goes on all the while, and its first questions to the source fail each time that this starts: a
/// stream that is opened without an answer would tell nothing of what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_restored_while_it_was_followed_is_noticed_by_whichever_attempt_comes_through()
 {
    let cut = "{mode: {times: 5}, data: {failCommands: ['find'], appName: 'followed', closeConnection: true}}";
    let args = ["--setParameter".to_owned(), format!("failpoint.failCommand={cut}")].to_vec();
    let mut mongo =
        mongo_with(MongoOptions { test_commands: true, args, ..MongoOptions::default() }).await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let backup = back_up(&mut mongo).await;
    insert(&mongo.db, "invoices", numbered(100..130)).await;
    let uri = format!("{}&appName=followed", mongo.uri());
    let config = SourceConfig { uri, database: mongo.db.name().to_owned() };
    let capture = Capture::start_with(config, dir.path(), &collections(&COLLECTIONS));
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    put_back(&mut mongo, &backup).await;

    insert(&mongo.db, "invoices", numbered(500..501)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut changes = 0;
    capture.read(&Since::Cursor(cursor), |_, _, _| changes += 1);
    assert_eq!(changes, 30 + 1, "what it lost, and what came");
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_says_that_its_source_was_restored_and_its_clients_go_on() {
    let mut mongo = mongo().await;
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let backup = back_up(&mut mongo).await;
    insert(&mongo.db, "invoices", numbered(100..130)).await;
    mongo.db.collection::<Document>("invoices").delete_one(doc! { "_id": 1 }).await.unwrap();
    const SAID: &str = "it was restored from an older backup";
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    options.expected_errors.push(SAID.to_owned());
    let mut server = Server::start(options).await;
    let mut client = Client::new(&server.url(), &server.token(&Claims::of("ada")));
    client.start();
    client.reaches(&present(&mongo).await, PATIENCE).await;
    must_equal(&mongo.db, &Plan::everything(&COLLECTIONS), &client.db()).await;

    assert!(server.stop().await.success());
    put_back(&mut mongo, &backup).await;
    server.launch();
    server.ready().await;
    insert(&mongo.db, "invoices", numbered(500..501)).await;
    let sql = "SELECT group_concat(_id) FROM (SELECT _id FROM invoices WHERE _id IN ('~1', '~129', '~500') ORDER BY _id)";
    eventually("the replica is the restored source", PATIENCE, || async {
        let db = client.open().ok()?;
        let held: Option<String> = db.query_row(sql, [], |row| row.get(0)).ok()?;
        (held.as_deref() == Some("~1,~500")).then_some(())
    })
    .await;
    must_equal(&mongo.db, &Plan::everything(&COLLECTIONS), &client.db()).await;
    assert_eq!(copies(&client), 1, "no copy was made anew");
    let said = server.log_text();
    assert!(said.contains(SAID), "{said}");
    client.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_ahead_of_its_source_waits_for_the_sources_time_and_then_compares_everything() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    capture.stop().await;
    {
        let (mut writer, _reader) = Writer::open(dir.path(), &log_options("invoify")).unwrap();
        let tail = writer.tail().clone();
        let high_water = tail.high_water + (6 << 32);
        writer.set_tail(TailState { high_water, ..tail }).unwrap();
        writer.commit().unwrap();
    }
    insert(&mongo.db, "invoices", numbered(100..110)).await;
    let capture = Capture::start(&mongo, dir.path());
    eventually("it is said", PATIENCE, || async { capture.status.borrow().trouble.clone() }).await;
    assert!(capture.status.borrow().whole, "what the log has is served meanwhile");
    let mut n = 1_000;
    eventually("the source's time has passed", Duration::from_secs(30), || {
        n += 1;
        let (db, capture) = (&mongo.db, &capture);
        async move {
            insert(db, "invoices", numbered(n..n + 1)).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            let told = capture.status.borrow();
            (told.trouble.is_none() && told.copies.is_empty() && told.high_water > 0).then_some(())
        }
    })
    .await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut changes = 0;
    capture.read(&Since::Cursor(cursor), |_, _, _| changes += 1);
    assert!(changes >= 10, "the cursor goes on");
    capture.stop().await;
}

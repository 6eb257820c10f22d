//! Repair instead of resync: rows that were lost, spoiled or invented on the client's side are found by
//! digests and mended, and nothing else is sent again.

use std::process::{Command, Output};
use std::time::Duration;

use bson::{Document, doc};
use nix::sys::signal::Signal;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tidewire::{ChangedRows, State, SyncClient, Value};
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Daemon, Mongo, Server, ServerOptions, eventually, mongo, must_equal, program,
};

const NAMES: [&str; 2] = ["users", "plans"];
/// What [`spoil`] leaves wrong.
const SPOILT: [&str; 4] = ["~11", "~7", "~8", "~9999"];
const PATIENCE: Duration = Duration::from_secs(60);

async fn stack() -> (Mongo, Server, Client) {
    let mongo = mongo().await;
    let users = mongo.db.collection::<Document>("users");
    let rows = (0..2_000).map(|n| doc! { "_id": n, "name": format!("user {n}"), "n": n });
    users.insert_many(rows).await.expect("insert");
    let server = Server::start(ServerOptions::following(&mongo, &NAMES)).await;
    let client = Client::new(&server.url(), &server.token(&Claims::of("asha")));
    client.sync_once().await;
    (mongo, server, client)
}

/// What no program can do by accident: the file's own guards are switched off.
fn spoil(client: &Client) {
    let db = Connection::open(client.db()).expect("open the replica");
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).expect("triggers off");
    db.execute_batch(
        r#"DELETE FROM users WHERE _id IN ('~7', '~8');
        UPDATE users SET _doc = '{"_id":11,"name":"nobody"}' WHERE _id = '~11';
        INSERT INTO users VALUES ('~9999', '{"_id":9999}', '2026-01-01T00:00:00.000Z', '0000000000000001.00000000');"#,
    )
    .expect("spoil");
}

async fn verify(server: &Server, client: &Client) -> Output {
    let mut run = Command::new(program("tidewire"));
    run.args(["verify", "--json", "--server", &server.url(), "--token-file"]);
    run.arg(client.token_file()).arg("--db").arg(client.db());
    tokio::task::spawn_blocking(move || run.output()).await.expect("run").expect("run")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_found_mended_and_said() {
    let (mongo, server, client) = stack().await;
    let right = verify(&server, &client).await;
    assert_eq!(right.status.code(), Some(0), "{right:?}");
    spoil(&client);
    let found = verify(&server, &client).await;
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let told: serde_json::Value = serde_json::from_slice(&found.stdout).expect("JSON");
    assert_eq!((&told["differences"], &told["mended"]), (&4.into(), &4.into()), "{told}");
    must_equal(&mongo.db, &Plan::everything(&NAMES), &client.db()).await;
    assert_eq!(verify(&server, &client).await.status.code(), Some(0));
}

/// As if the last comparison had been a day ago.
fn a_day_later(client: &Client) {
    let db = Connection::open(client.db()).expect("open the replica");
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).expect("triggers off");
    let yesterday = "UPDATE _tidewire_state SET verified_ms = verified_ms - 24 * 60 * 60 * 1000";
    db.execute(yesterday, []).expect("set it back");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_compared_for_a_day_is_compared_whenever_the_client_runs() {
    let (mongo, _server, mut client) = stack().await;
    spoil(&client);
    let db = client.open().expect("a replica");
    let verified = "SELECT verified_ms FROM _tidewire_state";
    let made: i64 = db.query_row(verified, [], |row| row.get(0)).expect("the time");
    a_day_later(&client);
    client.start();
    eventually("the client has compared its replica", Duration::from_secs(60), || async {
        db.query_row(verified, [], |row| row.get::<_, i64>(0)).ok().filter(|at| *at >= made)
    })
    .await;
    drop(db);
    assert!(client.stop().await.success());
    must_equal(&mongo.db, &Plan::everything(&NAMES), &client.db()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_mends_by_itself_it_tells_its_apps() {
    let (mongo, mut server, client) = stack().await;
    spoil(&client);
    a_day_later(&client);
    // Nothing is compared before somebody listens.
    server.signal(Signal::SIGSTOP);
    let mut daemon = Daemon::start(&client).await;
    daemon.call("getStatus", serde_json::json!({})).await;
    server.signal(Signal::SIGCONT);
    let changes = daemon.changes().await;
    let rows = serde_json::json!([{ "collection": "users", "table": "users", "ids": SPOILT }]);
    assert_eq!(
        (&changes["everything"], &changes["collections"]),
        (&false.into(), &rows),
        "{changes}"
    );
    let told = daemon.tells(|status| status.get("verified").is_some()).await;
    let verified = &told["verified"];
    assert_eq!((&verified["differences"], &verified["mended"]), (&4.into(), &4.into()), "{told}");
    let asked = daemon.call("getStatus", serde_json::json!({})).await;
    assert_eq!(asked["verified"], *verified, "who asks later is told too");
    must_equal(&mongo.db, &Plan::everything(&NAMES), &client.db()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_hears_of_mended_rows_as_of_any_commit_and_its_live_queries_run_again() {
    let (mongo, server, client) = stack().await;
    spoil(&client);
    let app = SyncClient::builder(server.url()).token_file(client.token_file());
    let app = app.replica(client.db()).start().expect("a client");
    app.status().wait_for(|status| status.state == State::Live).await.expect("it runs");
    let mut users = app.watch("SELECT count(*), sum(name LIKE 'user %') FROM users");
    let mut counts = async || {
        let rows = tokio::time::timeout(PATIENCE, users.next()).await.expect("a result in time");
        rows.expect("it runs").expect("rows").rows.concat()
    };
    assert_eq!(counts().await, [Value::Integer(1_999), Value::Integer(1_997)]);
    let mut changes = app.changes();
    let verified = app.verify().await.expect("a comparison");
    assert_eq!((verified.differences, verified.mended), (4, 4));
    let changed = tokio::time::timeout(PATIENCE, changes.next()).await.expect("in time");
    let changed = changed.expect("it runs");
    let ids = Some(SPOILT.map(str::to_owned).to_vec());
    let users = ChangedRows { collection: "users".into(), table: "users".into(), ids };
    assert_eq!((changed.everything, &changed.collections), (false, &vec![users]));
    assert_eq!(counts().await, [Value::Integer(2_000), Value::Integer(2_000)]);
    app.stop().await.expect("an end in order");
    must_equal(&mongo.db, &Plan::everything(&NAMES), &client.db()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_a_client_mends_itself_while_changes_go_on() {
    let (mongo, _server, mut client) = stack().await;
    client.start();
    eventually("the client is live", Duration::from_secs(60), || async {
        (client.status().await["state"] == "live").then_some(())
    })
    .await;
    client.kill().await;
    spoil(&client);
    client.args = vec!["--json".into()];
    client.start();
    let users = mongo.db.collection::<Document>("users");
    let mut round = 0;
    eventually("the client has mended what differed", Duration::from_secs(60), || {
        round += 1;
        let change = doc! { "$set": { "round": round } };
        let update = users.update_many(doc! { "_id": { "$lt": 40 } }, change);
        let client = &client;
        async move {
            update.await.expect("update");
            let db = client.open().ok()?;
            let sql = "SELECT count(*) FROM users WHERE _id IN ('~7', '~8', '~11', '~9999') AND name LIKE 'user %'";
            let all: i64 = db.query_row("SELECT count(*) FROM users", [], |row| row.get(0)).ok()?;
            let four = db.query_row(sql, [], |row| row.get::<_, i64>(0)).ok()?;
            (four == 3 && all == 2_000).then_some(())
        }
    })
    .await;
    // Rows that were written meanwhile came right by that; the one that was invented did not.
    let verified = eventually("it says what it mended", Duration::from_secs(60), || async {
        client.statuses().iter().find_map(|status| status.get("verified").cloned())
    })
    .await;
    let number = |name: &str| verified[name].as_u64().expect("a number");
    assert!((1..=4).contains(&number("mended")), "{verified}");
    assert!(number("mended") <= number("differences"), "{verified}");
    assert!(client.stop().await.success());
    client.sync_once().await;
    must_equal(&mongo.db, &Plan::everything(&NAMES), &client.db()).await;
}

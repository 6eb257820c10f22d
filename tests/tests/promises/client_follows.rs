//! A replica follows its source through the real server, whatever happens between them.

use std::time::Duration;

use bson::{Document, doc};
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Proxy, Server, ServerOptions, black_hole, eventually, mongo, must_equal,
};

const SOON: Duration = Duration::from_secs(30);
const NAMES: [&str; 3] = ["users", "invoices", "empty"];

struct Stack {
    mongo: Mongo,
    server: Server,
}

async fn stack() -> Stack {
    let mongo = mongo().await;
    let users = mongo.db.collection::<Document>("users");
    let rows = (0..3_000)
        .map(|n| doc! { "_id": n, "name": format!("user {n}"), "n": n, "even": n % 2 == 0 });
    users.insert_many(rows).await.expect("insert");
    let server = Server::start(ServerOptions::following(&mongo, &NAMES)).await;
    Stack { mongo, server }
}

impl Stack {
    fn client(&self, url: &str) -> Client {
        Client::new(url, &self.server.token(&Claims::of("asha")))
    }

    /// Writes a document and waits until the replica has it.
    async fn arrives(&self, client: &Client, mark: i64) {
        let marks = self.mongo.db.collection::<Document>("invoices");
        marks.insert_one(doc! { "_id": mark, "mark": mark }).await.expect("insert");
        eventually(&format!("mark {mark} is in the replica"), SOON, || async {
            let db = client.open().ok()?;
            let sql = "SELECT count(*) FROM invoices WHERE mark = ?1";
            db.query_row(sql, [mark], |row| row.get::<_, i64>(0)).ok().filter(|n| *n == 1)
        })
        .await;
    }

    async fn equals(&self, client: &Client) {
        must_equal(&self.mongo.db, &Plan::everything(&NAMES), &client.db()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_follows_its_source_and_equals_it() {
    let stack = stack().await;
    let mut client = stack.client(&stack.server.url());
    client.sync_once().await;
    stack.equals(&client).await;
    let db = client.open().expect("a replica");
    let one = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number");
    assert_eq!(one("SELECT count(*) FROM users WHERE even AND n < 100"), 50);
    assert_eq!(one("SELECT count(*) FROM empty"), 0, "an empty collection has its table");

    client.start();
    stack.arrives(&client, 1).await;
    let users = stack.mongo.db.collection::<Document>("users");
    users
        .update_many(doc! { "even": true }, doc! { "$inc": { "n": 1_000 } })
        .await
        .expect("update");
    users.delete_many(doc! { "n": { "$lt": 50 } }).await.expect("delete");
    stack.arrives(&client, 2).await;
    stack.equals(&client).await;
    let status = client.status().await;
    assert_eq!(status["state"], "live", "{status}");
    assert_eq!(status["isOnline"], true);
    assert_eq!(status["transport"], "push");
    assert!(client.stop().await.success());
    assert_eq!(client.status().await["state"], "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_outlives_its_server_and_its_network() {
    let mut stack = stack().await;
    let target = stack.server.url().replace("http://", "");
    let proxy = Proxy::to(target).await;
    let mut client = stack.client(&proxy.url());
    client.start();
    stack.arrives(&client, 1).await;

    stack.server.kill().await;
    eventually("the client says that it is offline", SOON, || async {
        (client.status().await["state"] == "offline").then_some(())
    })
    .await;
    let db = client.open().expect("the replica is there");
    let users: i64 =
        db.query_row("SELECT count(*) FROM users", [], |row| row.get(0)).expect("read");
    assert_eq!(users, 3_000, "and readable");
    stack.server.launch();
    stack.server.ready().await;
    stack.arrives(&client, 2).await;

    for mark in 3..6 {
        proxy.cut();
        stack.arrives(&client, mark).await;
    }
    stack.equals(&client).await;
}

/// What the client itself promises, and what a busy machine may take to notice that it says so.
const FOUND_WITHIN: Duration = Duration::from_secs(30 + 3);

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_in_a_black_hole_is_found_out_and_come_back_to() {
    let stack = stack().await;
    let mut client = stack.client(&stack.server.url());
    client.start();
    stack.arrives(&client, 1).await;
    let port = stack.server.url().rsplit(':').next().and_then(|port| port.parse().ok());
    let Some(hole) = black_hole(port.expect("a port")) else { return };
    eventually("the client says that it is offline", FOUND_WITHIN, || async {
        (client.status().await["state"] == "offline").then_some(())
    })
    .await;
    drop(hole);
    stack.arrives(&client, 2).await;
    stack.equals(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_open_and_dead_is_found_within_half_a_minute() {
    let stack = stack().await;
    for transport in ["push", "long_poll"] {
        let proxy = Proxy::to(stack.server.url().replace("http://", "")).await;
        proxy.block_upgrades(transport == "long_poll");
        let mut client = stack.client(&proxy.url());
        client.start();
        let mark = if transport == "push" { 10 } else { 20 };
        stack.arrives(&client, mark).await;
        comes_by(&client, transport).await;
        proxy.black_hole(true);
        eventually(&format!("{transport}: the client is offline"), FOUND_WITHIN, || async {
            (client.status().await["state"] == "offline").then_some(())
        })
        .await;
        proxy.black_hole(false);
        stack.arrives(&client, mark + 1).await;
        stack.equals(&client).await;
    }
}

/// Waits until the client says that changes come in this way.
async fn comes_by(client: &Client, transport: &str) {
    eventually(&format!("the client goes by {transport}"), SOON, || async {
        (client.status().await["transport"] == transport).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_socket_is_blocked_long_polls_go_on_and_the_socket_comes_back() {
    let stack = stack().await;
    let proxy = Proxy::to(stack.server.url().replace("http://", "")).await;
    let mut client = stack.client(&proxy.url());
    client.start();
    stack.arrives(&client, 1).await;
    comes_by(&client, "push").await;
    proxy.block_upgrades(true);
    for mark in 2..5 {
        stack.arrives(&client, mark).await;
    }
    comes_by(&client, "long_poll").await;
    assert_eq!(client.status().await["state"], "live");
    proxy.block_upgrades(false);
    comes_by(&client, "push").await;
    stack.arrives(&client, 5).await;
    stack.equals(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_as_live_by_push_as_the_source_tells() {
    let stack = stack().await;
    let mut client = stack.client(&stack.server.url());
    client.start();
    stack.arrives(&client, 1).await;
    comes_by(&client, "push").await;
    // Transfers between two documents, each in a transaction, and a reader of the replica.
    let users = stack.mongo.db.collection::<Document>("users");
    for n in 0..100 {
        let mut session = stack.mongo.client.start_session().await.expect("a session");
        session.start_transaction().await.expect("begin");
        for (id, by) in [(0, -1), (1, 1)] {
            let change = doc! { "$inc": { "n": by } };
            users
                .update_one(doc! { "_id": id }, change)
                .session(&mut session)
                .await
                .expect("update");
        }
        session.commit_transaction().await.expect("commit");
        let sum: i64 = client
            .open()
            .expect("a replica")
            .query_row("SELECT sum(n) FROM users WHERE _id IN ('~0', '~1')", [], |row| row.get(0))
            .expect("a sum");
        assert_eq!(sum, 1, "torn after {n} transfers");
    }
    stack.arrives(&client, 2).await;
    stack.equals(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_stops_the_client_until_its_file_holds_another() {
    let stack = stack().await;
    let mut client = stack.client(&stack.server.url());
    client.sync_once().await;
    let mut claims = Claims::of("asha");
    claims.ttl = Duration::ZERO;
    claims.more.insert("exp".into(), 1_000_000.into());
    client.set_token(&stack.server.token(&claims));
    let refused = client.try_sync_once().await;
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    client.start();
    eventually("the client asks for a token", SOON, || async {
        (client.status().await["state"] == "needs_auth").then_some(())
    })
    .await;
    client.set_token(&stack.server.token(&Claims::of("asha")));
    stack.arrives(&client, 1).await;
    stack.equals(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_equals_what_was_there() {
    let stack = stack().await;
    let client = stack.client(&stack.server.url());
    client.sync_once().await;
    let before = client.position();
    let mut rebuild = std::process::Command::new(tidewire_tests::harness::program("tidewire"));
    rebuild.args(["rebuild", "--server", &stack.server.url(), "--token-file"]);
    rebuild.arg(client.token_file()).arg("--db").arg(client.db());
    let output =
        tokio::task::spawn_blocking(move || rebuild.output()).await.expect("run").expect("run");
    assert!(output.status.success(), "{output:?}");
    assert!(client.position() >= before);
    stack.equals(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_drops_what_is_older_than_its_retention_while_clients_follow() {
    let mongo = mongo().await;
    let users = mongo.db.collection::<Document>("users");
    users.insert_many((0..200).map(|n| doc! { "_id": n, "n": 0 })).await.expect("insert");
    let options = ServerOptions::following(&mongo, &NAMES);
    let server = Server::start(ServerOptions { retention: "2s".into(), ..options }).await;
    let stack = Stack { mongo, server };
    let late = stack.client(&stack.server.url());
    late.sync_once().await;
    let mut client = stack.client(&stack.server.url());
    client.start();
    for round in 1..=10 {
        users.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await.expect("update");
        stack.arrives(&client, round).await;
    }
    users.delete_many(doc! { "_id": { "$gte": 100 } }).await.expect("delete");
    // 100 users and 10 marks are left of 2,300 changes; tombstones go too.
    let dir = stack.server.data_dir();
    eventually("the log holds what is alive and no more", SOON, || async {
        let reader = tidewire_server::log::Reader::open(&dir).ok()?;
        (reader.stat(&dir).ok()?.changes == 110).then_some(())
    })
    .await;
    stack.arrives(&client, 11).await;
    stack.equals(&client).await;
    // One whose cursor is older than that starts again beside its data.
    late.sync_once().await;
    stack.equals(&late).await;
}

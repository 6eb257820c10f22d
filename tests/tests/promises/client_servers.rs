//! Several servers beside each other: any of them goes on where another one stopped.

use std::time::Duration;

use bson::{Document, doc};
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, eventually, mongo, must_equal,
};

const SOON: Duration = Duration::from_secs(60);
const NAMES: [&str; 1] = ["users"];

async fn filled() -> Mongo {
    let mongo = mongo().await;
    let users = mongo.db.collection::<Document>("users");
    users.insert_many((0..500).map(|n| doc! { "_id": n, "n": 0 })).await.expect("insert");
    mongo
}

async fn arrives(mongo: &Mongo, client: &Client, mark: i32) {
    let users = mongo.db.collection::<Document>("users");
    let change = doc! { "$set": { "mark": mark } };
    users.update_one(doc! { "_id": mark }, change).await.expect("update");
    eventually(&format!("mark {mark} is in the replica"), SOON, || async {
        let sql = "SELECT count(*) FROM users WHERE mark = ?1";
        let db = client.open().ok()?;
        db.query_row(sql, [mark], |row| row.get::<_, i64>(0)).ok().filter(|n| *n == 1)
    })
    .await;
}

/// How often everything was copied anew.
fn copies(client: &Client) -> i64 {
    let db = client.open().expect("a replica");
    let sql = "SELECT generation FROM _tidewire_state";
    db.query_row(sql, [], |row| row.get(0)).expect("the number of copies")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_server_costs_a_reconnect_and_no_copy() {
    let mongo = filled().await;
    let mut first = Server::start(ServerOptions::following(&mongo, &NAMES)).await;
    let mut second = Server::start(ServerOptions::following(&mongo, &NAMES)).await;
    let both = format!("{},{}", first.url(), second.url());
    let mut client = Client::new(&both, &first.token(&Claims::of("asha")));
    client.start();
    arrives(&mongo, &client, 1).await;
    for round in 0..2 {
        let lost = if round % 2 == 0 { &mut first } else { &mut second };
        lost.kill().await;
        arrives(&mongo, &client, 10 + round).await;
        lost.launch();
        lost.ready().await;
        arrives(&mongo, &client, 20 + round).await;
    }
    assert_eq!(copies(&client), 1, "it went on with its cursor");
    must_equal(&mongo.db, &Plan::everything(&NAMES), &client.db()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_does_not_reach_back_costs_no_copy_while_another_one_does() {
    let mongo = filled().await;
    let options = ServerOptions::following(&mongo, &NAMES);
    let short = ServerOptions { retention: "1s".into(), ..options.clone() };
    let (short, long) = (Server::start(short).await, Server::start(options).await);
    let both = format!("{},{}", short.url(), long.url());
    let client = Client::new(&both, &short.token(&Claims::of("asha")));
    client.sync_once().await;
    let users = mongo.db.collection::<Document>("users");
    users.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await.expect("update");
    users.delete_many(doc! { "_id": { "$gte": 300 } }).await.expect("delete");
    let dir = short.data_dir();
    eventually("the first log has forgotten what the client needs", SOON, || async {
        let reader = tidewire_server::log::Reader::open(&dir).ok()?;
        (reader.stat(&dir).ok()?.changes == 300).then_some(())
    })
    .await;
    client.sync_once().await;
    assert_eq!(copies(&client), 1);
    must_equal(&mongo.db, &Plan::everything(&NAMES), &client.db()).await;
    // Alone it can only give a new copy.
    let alone = Client::new(&short.url(), &short.token(&Claims::of("asha")));
    std::fs::copy(client.db(), alone.db()).expect("copy the replica");
    users.delete_many(doc! { "_id": { "$gte": 200 } }).await.expect("delete");
    eventually("the first log has forgotten that too", SOON, || async {
        let reader = tidewire_server::log::Reader::open(&dir).ok()?;
        (reader.stat(&dir).ok()?.changes == 200).then_some(())
    })
    .await;
    alone.sync_once().await;
    assert_eq!(copies(&alone), 2);
    must_equal(&mongo.db, &Plan::everything(&NAMES), &alone.db()).await;
}

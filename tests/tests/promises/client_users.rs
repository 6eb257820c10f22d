//! Whose replica it is: another user's sign-in, a copied file.

use std::path::Path;
use std::time::Duration;

use bson::{Document, doc};
use serde_json::json;
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Daemon, Mongo, Server, ServerOptions, collection, eventually, mongo, must_equal,
};

/// Each user sees the own notes.
async fn server_of_notes(mongo: &Mongo) -> Server {
    let options = ServerOptions {
        collections: collection("notes", &["user:{userId}"], &[]),
        ..ServerOptions::following(mongo, &[])
    };
    Server::start(options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_who_signs_in_finds_no_byte_of_the_first() {
    let mongo = mongo().await;
    let notes = mongo.db.collection::<Document>("notes");
    let rows = (0..3_000).map(|n| {
        let owner = if n % 3 == 0 { "ravi" } else { "asha" };
        doc! { "_id": format!("{owner}-{n}"), "userId": owner, "text": format!("canary of {owner} {n}") }
    });
    notes.insert_many(rows).await.expect("insert");
    let server = server_of_notes(&mongo).await;
    let mut client = Client::new(&server.url(), &server.token(&Claims::of("asha")));
    client.sync_once().await;
    // A live session with changes and deletes, killed: the write-ahead log stays behind.
    client.start();
    notes.update_many(doc! {}, doc! { "$set": { "more": 1 } }).await.expect("update");
    let first_third = doc! { "_id": { "$regex": "^asha-1" } };
    notes.delete_many(first_third).await.expect("delete");
    eventually("the changes are in the replica", Duration::from_secs(60), || async {
        let sql = "SELECT count(*) FROM notes WHERE more = 1 AND _id NOT LIKE 'asha-1%'";
        let count = client.open().ok()?.query_row(sql, [], |row| row.get::<_, i64>(0)).ok()?;
        (count > 0).then_some(())
    })
    .await;
    client.kill().await;
    assert!(!client.files_with("canary of asha").is_empty());
    // While it runs, by a new token in its file.
    client.set_token(&server.token(&Claims::of("ravi")));
    client.start();
    eventually("the second user's notes are there", Duration::from_secs(60), || async {
        let sql = "SELECT count(*) FROM notes WHERE userId = 'ravi' AND more = 1";
        let count = client.open().ok()?.query_row(sql, [], |row| row.get::<_, i64>(0)).ok()?;
        (count == 1_000).then_some(())
    })
    .await;
    for canary in ["canary of asha", "asha-"] {
        assert_eq!(client.files_with(canary), Vec::<String>::new(), "{canary}");
    }
    assert!(client.stop().await.success());
    assert_eq!(client.files_with("canary of asha"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_an_app_has_given_another_users_token_the_first_ones_rows_are_gone() {
    let mongo = mongo().await;
    let notes = mongo.db.collection::<Document>("notes");
    let rows = (0..20_000).map(|n| {
        let owner = if n % 100 == 0 { "ravi" } else { "asha" };
        doc! { "_id": n, "userId": owner, "text": "x".repeat(200) }
    });
    notes.insert_many(rows).await.expect("insert");
    let server = server_of_notes(&mongo).await;
    let client = Client::new(&server.url(), &server.token(&Claims::of("asha")));
    client.sync_once().await;
    let position = client.status().await["position"].clone();
    let mut daemon = Daemon::start(&client).await;
    eventually("the daemon follows", Duration::from_secs(60), || async {
        (client.status().await["state"] == "live").then_some(())
    })
    .await;
    let token = server.token(&Claims::of("ravi"));
    let taken = daemon.call("setAuthToken", json!({ "token": token })).await;
    assert_eq!(taken, json!({}));
    let hers = "SELECT count(*) FROM notes WHERE userId = 'asha'";
    let count = |db: rusqlite::Connection| db.query_row(hers, [], |row| row.get::<_, i64>(0));
    // Her table is gone, or already his.
    assert_eq!(client.open().ok().and_then(|db| count(db).ok()).unwrap_or(0), 0);
    // What she had is not taken for his.
    let told = daemon.call("waitFor", json!({ "position": position })).await;
    assert_eq!(told["reached"], true);
    let his = client.open().expect("a replica").query_row(
        "SELECT count(*), sum(userId = 'ravi') FROM notes",
        [],
        |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
    );
    assert_eq!(his.expect("a row"), (200, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_client_is_refused_and_a_copied_file_goes_on_alone() {
    let mongo = mongo().await;
    let users = mongo.db.collection::<Document>("users");
    users.insert_many((0..100).map(|n| doc! { "_id": n })).await.expect("insert");
    let server = Server::start(ServerOptions::following(&mongo, &["users"])).await;
    let token = server.token(&Claims::of("asha"));
    let mut client = Client::new(&server.url(), &token);
    client.sync_once().await;
    client.start();
    eventually("the client keeps the replica", Duration::from_secs(60), || async {
        (client.status().await["state"] == "live").then_some(())
    })
    .await;
    let second = client.try_sync_once().await;
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    // A copy as a user makes one, of the file and what lies beside it.
    let copy = Client::new(&server.url(), &token);
    let beside = |db: &Path, suffix: &str| format!("{}{suffix}", db.display());
    for suffix in ["-wal", ""] {
        std::fs::copy(beside(&client.db(), suffix), beside(&copy.db(), suffix)).expect("copy");
    }
    users.delete_many(doc! { "_id": { "$lt": 50 } }).await.expect("delete");
    copy.sync_once().await;
    must_equal(&mongo.db, &Plan::everything(&["users"]), &copy.db()).await;
    client.stop().await;
    client.sync_once().await;
    must_equal(&mongo.db, &Plan::everything(&["users"]), &client.db()).await;
}

//! FAULTS 27, the whole way: a damaged log is found, said, not served, and rebuilt on request; clients
//! go on from the cursors that they have.

use std::path::Path;
use std::time::Duration;

use bson::{Document, doc};
use rusqlite::Connection;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, mongo, must_equal, seed,
};

use super::{COLLECTIONS, Load, PATIENCE, Pages, ops, ops_done, plan, text};

const NEEDLE: &[u8] = b"a needle that nobody changes";

/// Flips a bit of the needle's document in the log's file, wherever it stands: SQLite leaves what it has
/// moved where it was.
fn damage(data: &Path) {
    let path = data.join("log.db");
    {
        let log = Connection::open(&path).expect("the log");
        log.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("one file");
    }
    let mut bytes = std::fs::read(&path).expect("the log");
    let mut from = 0;
    while let Some(at) = bytes[from..].windows(NEEDLE.len()).position(|part| part == NEEDLE) {
        bytes[from + at + 3] ^= 0x10;
        from += at + NEEDLE.len();
    }
    assert!(from > 0, "the needle is in the log");
    std::fs::write(path, bytes).expect("write the log");
}

/// What the server said of the damage when it ended.
async fn refused(server: &mut Server) -> String {
    assert_eq!(server.ended(Duration::from_secs(15)).await.code(), Some(1));
    let said = server.log_text();
    assert!(said.contains("does not match its checksum"), "{said}");
    assert!(said.contains("tidewire-ops log rebuild --data-dir"), "what to do: {said}");
    said
}

/// The log is listed as damaged, rebuilt, and whole; what the rebuild said.
fn rebuild(data: &Path) -> String {
    let folder = ["--data-dir", text(data)];
    let (code, said) = ops(&["log", "check", folder[0], folder[1]]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("does not match its checksum"), "{said}");
    let said = ops_done(&["log", "rebuild", folder[0], folder[1]]);
    println!("{said}{}", ops_done(&["log", "stat", folder[0], folder[1]]));
    assert!(ops_done(&["log", "check", folder[0], folder[1]]).contains("whole"));
    said
}

/// Both clients go on from where they were, to all that there is.
async fn go_on(
    (server, token): (&mut Server, &str),
    (mongo, load): (&Mongo, Load),
    (mut pages, mut client): (Pages, Client),
) {
    server.launch();
    server.ready().await;
    load.more(50).await;
    let last = load.end().await;
    pages.reach(server, token, &last).await;
    client.reaches(&last, PATIENCE).await;
    must_equal(&mongo.db, &plan(), &client.db()).await;
    pages.must_equal(&client);
    assert!(!client.log_text().contains("resync"), "{}", client.log_text());
    client.stop().await;
    assert_eq!(server.stop().await.code(), Some(0));
    let data = server.data_dir();
    assert!(ops_done(&["log", "check", "--data-dir", text(&data)]).contains("whole"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_said_never_served_and_rebuilt_while_cursors_stay_good() {
    let mongo = mongo().await;
    let invoices = mongo.db.collection::<Document>("invoices");
    let needle = std::str::from_utf8(NEEDLE).expect("text");
    invoices.insert_one(doc! { "_id": -1, "text": needle }).await.expect("insert");
    // So many that the index of the needle is in the store: what is only in memory is read at the start.
    let many = (0..17_000).map(|n| doc! { "_id": 1_000_000 + n });
    invoices.insert_many(many).await.expect("insert");
    let load = Load::start(&mongo, seed()).await;
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    options.expected_errors = vec!["damaged".into()];
    let mut server = Server::start(options).await;
    let token = server.token(&Claims::of("ann"));
    let mut client = Client::new(&server.url(), &token);
    client.start();
    load.more(100).await;
    let mut pages = Pages::new(5_000);
    while pages.step(&server, &token).await.is_some_and(|(_, more)| more) {}
    assert_eq!(server.stop().await.code(), Some(0));

    let data = server.data_dir();
    damage(&data);
    load.more(100).await;
    server.launch();
    server.ready().await;
    // A first copy meets the damage: no page comes of it, and the server ends.
    let url = format!("{}/api/sync/pull?since=0", server.url());
    let answer = reqwest::Client::new().get(url).bearer_auth(&token).send().await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status().is_server_error()));
    refused(&mut server).await;
    // What clients have to be told when the log is whole again; the needle was there when it was lost.
    invoices.delete_one(doc! { "_id": -1 }).await.expect("delete");
    server.launch();
    refused(&mut server).await;
    let said = rebuild(&data);
    assert!(said.contains(" 1 were damaged") && !said.contains("start again"), "{said}");
    go_on((&mut server, &token), (&mongo, load), (pages, client)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_ends_before_damage_that_nobody_knows_and_the_source_tells_the_rest_again() {
    let mongo = mongo().await;
    let load = Load::start(&mongo, seed()).await;
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    options.expected_errors = vec!["damaged".into()];
    let mut server = Server::start(options).await;
    let token = server.token(&Claims::of("ann"));
    let mut client = Client::new(&server.url(), &token);
    client.start();
    load.more(50).await;
    // So little that the index of it is in memory only: nothing leads to the needle's change.
    let invoices = mongo.db.collection::<Document>("invoices");
    let needle = std::str::from_utf8(NEEDLE).expect("text");
    invoices.insert_one(doc! { "_id": -1, "text": needle }).await.expect("insert");
    load.more(50).await;
    let mut pages = Pages::new(5_000);
    while pages.step(&server, &token).await.is_some_and(|(_, more)| more) {}
    assert_eq!(server.stop().await.code(), Some(0));
    let data = server.data_dir();
    damage(&data);
    invoices.delete_one(doc! { "_id": -1 }).await.expect("delete");
    load.more(50).await;
    server.launch();
    refused(&mut server).await;
    let said = rebuild(&data);
    assert!(said.contains("it ends at") && !said.contains("start again"), "{said}");
    go_on((&mut server, &token), (&mongo, load), (pages, client)).await;
}

//! FAULTS 27, the whole way: a damaged log is found, said, not served, and rebuilt on request; clients
//! go on.

use std::time::Duration;

use bson::{Document, doc};
use tidewire_tests::harness::{Claims, Client, Server, ServerOptions, mongo, must_equal, seed};

use super::{COLLECTIONS, Load, PATIENCE, Pages, ops, ops_done, plan, text};

const NEEDLE: &[u8] = b"a needle that nobody changes";

/// Flips a bit of the needle's document in the log's file, wherever it stands: SQLite leaves what it has
/// moved where it was.
fn damage(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).expect("the log");
    let mut from = 0;
    while let Some(at) = bytes[from..].windows(NEEDLE.len()).position(|part| part == NEEDLE) {
        bytes[from + at + 3] ^= 0x10;
        from += at + NEEDLE.len();
    }
    assert!(from > 0, "the needle is in the log");
    std::fs::write(path, bytes).expect("write the log");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not finished: after the rebuild a cursor from before was once told 410, and why is not known"]
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
    damage(&data.join("log.db"));
    // What clients have to be told when the log is whole again.
    load.more(100).await;
    server.launch();
    server.ready().await;
    // A first copy meets the damage: no page comes of it, and the server ends.
    let url = format!("{}/api/sync/pull?since=0", server.url());
    let answer = reqwest::Client::new().get(url).bearer_auth(&token).send().await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status().is_server_error()));
    assert_eq!(server.ended(Duration::from_secs(15)).await.code(), Some(1));
    server.launch();
    assert_eq!(server.ended(Duration::from_secs(15)).await.code(), Some(1), "it stays refused");
    let said = server.log_text();
    assert!(said.contains("does not match its checksum"), "{said}");
    assert!(said.contains("tidewire-ops log rebuild --data-dir"), "what to do: {said}");

    let folder = ["--data-dir", text(&data)];
    let (code, said) = ops(&["log", "check", folder[0], folder[1]]);
    assert_eq!(code, 1, "{said}");
    let said = ops_done(&["log", "rebuild", folder[0], folder[1]]);
    assert!(said.contains(" 1 were damaged"), "{said}");
    println!("{said}{}", ops_done(&["log", "stat", folder[0], folder[1]]));
    server.launch();
    server.ready().await;
    load.more(50).await;
    let last = load.end().await;
    pages.reach(&server, &token, &last).await;
    client.reaches(&last, PATIENCE).await;
    must_equal(&mongo.db, &plan(), &client.db()).await;
    pages.must_equal(&client);
    assert!(!client.log_text().contains("resync"), "{}", client.log_text());
    client.stop().await;
    assert_eq!(server.stop().await.code(), Some(0));
    assert!(ops_done(&["log", "check", folder[0], folder[1]]).contains("whole"));
}

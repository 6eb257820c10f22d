//! A backup of a running server's log, and a restore that clients go on from.

use std::sync::atomic::Ordering;

use bson::{Document, doc};

use super::{COLLECTIONS, Load, PATIENCE, Pages, ops_done, plan, text};
use tidewire_tests::harness::{Claims, Client, Server, ServerOptions, mongo, must_equal, seed};

#[tokio::test(flavor = "multi_thread")]
async fn clients_go_on_from_a_restored_backup_and_miss_nothing() {
    let mongo = mongo().await;
    // So much that a backup takes a while, and writers that never rest meanwhile.
    let many = (0..30_000).map(|n| doc! { "_id": 1_000_000 + n, "text": "x".repeat(1_000) });
    mongo.db.collection::<Document>("invoices").insert_many(many).await.expect("insert");
    let load = Load::start(&mongo, seed()).await;
    let beside = [Load::start(&mongo, seed() + 1).await, Load::start(&mongo, seed() + 2).await];
    let mut server = Server::start(ServerOptions::following(&mongo, &COLLECTIONS)).await;
    let token = server.token(&Claims::of("ann"));
    let mut client = Client::new(&server.url(), &token);
    client.start();
    let mut pages = Pages::new(50);
    load.more(100).await;

    let file = server.data_dir().with_file_name("backup.db");
    let (before, began) = (load.commits.load(Ordering::Relaxed), pages.head(&server, &token).await);
    ops_done(&["log", "backup", "--data-dir", text(&server.data_dir()), "--to", text(&file)]);
    let (written, ended) =
        (load.commits.load(Ordering::Relaxed) - before, pages.head(&server, &token).await);
    let said = ops_done(&["log", "check", "--file", text(&file)]);
    assert!(said.contains("whole"), "{said}");
    println!("{written} commits of one of three writers during the backup");
    // It is of one moment, which was while it was made.
    let head = said.split_whitespace().last().expect("its head");
    assert!(began.as_str() <= head && head <= ended.as_str(), "{began} ≤ {head} ≤ {ended}");
    assert!(written > 0, "writes went on");
    for load in beside {
        load.end().await;
    }
    assert!(!file.with_file_name("backup.db-wal").exists(), "one file is all of it");

    // Both clients come to be ahead of what the backup holds, one of them within a commit's page.
    load.more(200).await;
    while pages.step(&server, &token).await.is_some_and(|(_, more)| more) {}
    load.more(100).await;
    assert_eq!(server.stop().await.code(), Some(0));

    let restored = server.data_dir().with_file_name("restored");
    let to = ["--data-dir", text(&restored)];
    ops_done(&["log", "restore", "--from", text(&file), to[0], to[1]]);
    let (code, said) = super::ops(&["log", "restore", "--from", text(&file), to[0], to[1]]);
    assert_eq!((code, said.contains("is there already")), (2, true), "{said}");
    // A log's own file is not all of it, and two logs would have one number.
    let log = server.data_dir().join("log.db");
    let empty = server.data_dir().with_file_name("empty");
    let restore = ["log", "restore", "--from", text(&log), "--data-dir", text(&empty)];
    let (code, said) = super::ops(&restore);
    assert_eq!((code, said.contains("no backup of one")), (2, true), "{said}");
    server.options.data_dir = Some(restored);
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
}

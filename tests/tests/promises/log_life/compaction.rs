//! FAULTS 29: retention passes a cursor, also in the middle of a first copy: 410 at once, and a client
//! starts again beside the data it has.

use tidewire_tests::harness::{
    Claims, Client, Server, ServerOptions, eventually, mongo, must_equal, seed,
};

use super::{COLLECTIONS, Load, PATIENCE, Pages, ops_done, plan, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_retention_passes_is_told_and_its_client_starts_again() {
    let mongo = mongo().await;
    let load = Load::start(&mongo, seed()).await;
    load.more(300).await;
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    options.retention = "1s".into();
    let mut server = Server::start(options).await;
    let token = server.token(&Claims::of("ann"));
    let mut client = Client::new(&server.url(), &token);
    client.sync_once().await;
    let before = client.position().expect("a copy");
    // One in the middle of its first copy, one that was complete.
    let mut copying = Pages::new(5);
    copying.step(&server, &token).await.expect("a page");
    let mut complete = Pages::new(10_000);
    while complete.step(&server, &token).await.is_none_or(|(_, more)| more) {}
    for cursor in [&copying.cursor, &complete.cursor] {
        let query = format!("since={cursor}&limit=5");
        let gone = eventually("retention passes the cursor", PATIENCE, || async {
            let (status, answer) = server.pull(&token, &query).await;
            assert!(status == 200 || status == 410, "{status} {answer}");
            (status == 410).then_some(answer)
        })
        .await;
        assert_eq!(gone["error"]["reason"], "cursor_too_old", "{gone}");
    }
    // The client's cursor is as old: what it has can be read until the new copy takes its place.
    let watched = client.open().expect("the replica");
    let rows: i64 = watched
        .query_row("SELECT count(*) FROM invoices", [], |row| row.get(0))
        .expect("the old copy");
    assert!(rows > 0);
    drop(watched);
    client.start();
    let last = load.end().await;
    client.reaches(&last, PATIENCE).await;
    assert!(client.position().expect("a copy") > before);
    must_equal(&mongo.db, &plan(), &client.db()).await;
    client.stop().await;
    assert_eq!(server.stop().await.code(), Some(0));
    // Compaction beside all this has left the log whole.
    let data = server.data_dir();
    assert!(ops_done(&["log", "check", "--data-dir", text(&data)]).contains("whole"));
}

//! Several servers in one list, each a real one: who is asked next.

use std::time::Duration;

use tidewire::{ClientBuilder, SyncClient, Token};

use super::server::{Server, json, refusal};
use super::{one, page, token};

fn client(folder: &tempfile::TempDir, servers: &[&Server]) -> ClientBuilder {
    SyncClient::builder_of(servers.iter().map(|server| server.address.clone()))
        .replica(folder.path().join("replica.db"))
        .token(Token::new(&token("ada")))
}

fn row(n: u64, cursor: &str) -> String {
    let document = format!(r#"{{"n":{n}}}"#);
    page(&[("users", "a", n, Some(&document))], cursor, false, true)
}

#[tokio::test]
async fn the_next_server_goes_on_at_once_where_one_fails() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    let mut busy = refusal(503, "draining", "");
    busy.headers_mut().insert("retry-after", "600".parse().unwrap());
    let first = Server::start([json(200, &row(1, "c1")), busy]).await;
    let second = Server::start([json(200, &row(2, "c2"))]).await;
    client(&folder, &[&first, &second]).sync_once().await.unwrap();
    assert_eq!(one::<i64>(&db, "SELECT n FROM users"), 1);
    let begun = std::time::Instant::now();
    client(&folder, &[&first, &second]).sync_once().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60), "it did not wait for the busy one");
    assert_eq!(one::<i64>(&db, "SELECT n FROM users"), 2);
    assert!(second.asked()[0].uri.contains("since=c1"), "with the same cursor");
    // Nobody listens at the first address of this list.
    second.push(json(200, &row(3, "c3")));
    let nobody = SyncClient::builder_of(["http://127.0.0.1:1", second.address.as_str()]);
    let nobody = nobody.replica(&db).token(Token::new(&token("ada")));
    nobody.sync_once().await.unwrap();
    assert_eq!(one::<i64>(&db, "SELECT n FROM users"), 3);
}

#[tokio::test]
async fn a_log_that_does_not_reach_back_costs_no_copy_while_another_does() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    let gone = || refusal(410, "resync_required", r#","reason":"cursor_too_old""#);
    let first = Server::start([json(200, &row(1, "c1")), gone()]).await;
    let second = Server::start([json(200, &row(2, "c2"))]).await;
    client(&folder, &[&first, &second]).sync_once().await.unwrap();
    client(&folder, &[&first, &second]).sync_once().await.unwrap();
    assert_eq!(one::<String>(&db, "SELECT cursor FROM _tidewire_status"), "c2");
    // Where none reaches back, the last one asked gives a new copy.
    first.push(gone());
    second.push(gone());
    second.push(json(200, &row(7, "d1")));
    client(&folder, &[&first, &second]).sync_once().await.unwrap();
    assert_eq!(one::<i64>(&db, "SELECT n FROM users"), 7);
    let asked = second.asked();
    assert!(!asked.last().unwrap().uri.contains("since="), "from nothing: {asked:?}");
}

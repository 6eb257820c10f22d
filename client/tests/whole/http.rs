//! What comes over HTTP, taken for what it is.

use std::time::Duration;

use tidewire::{ClientBuilder, ClientError, OnNeedsAuth, State, Status, SyncClient, Token};
use tokio::sync::watch;

use super::server::{Server, html, json, refusal};
use super::{one, page, token};

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn db(&self) -> std::path::PathBuf {
        self.folder.path().join("replica.db")
    }

    fn client(&self, server: &Server) -> ClientBuilder {
        SyncClient::builder(&server.address).replica(self.db()).token(Token::new(&token("ada")))
    }
}

/// Waits for a status.
async fn until(status: &mut watch::Receiver<Status>, wanted: impl Fn(&Status) -> bool) -> Status {
    let found = tokio::time::timeout(Duration::from_secs(30), async {
        status.wait_for(|status| wanted(status)).await.expect("the client runs").clone()
    });
    if let Ok(found) = found.await {
        return found;
    }
    panic!("not in time; the status is {:?}", status.borrow())
}

fn first() -> String {
    page(&[("users", "a", 1, Some(r#"{"n":1}"#))], "c1", false, true)
}

#[tokio::test]
async fn a_single_run_copies_and_the_next_one_goes_on() {
    let place = Place::new();
    let more = page(&[("users", "a", 1, Some(r#"{"n":1}"#))], "c/1 +?", true, false);
    let rest = page(&[("users", "b", 2, Some(r#"{"n":2}"#))], "c2", false, true);
    let server = Server::start([json(200, &more), json(200, &rest)]).await;
    let summary = place.client(&server).sync_once().await.unwrap();
    assert_eq!((summary.status.state, summary.status.initialized), (State::Stopped, true));
    assert_eq!(summary.status.cursor.as_deref(), Some("c2"));
    assert_eq!(one::<i64>(&place.db(), "SELECT sum(n) FROM users"), 3);
    assert_eq!(one::<i64>(&place.db(), "SELECT count(*) FROM empty"), 0);

    server.push(json(200, &page(&[("users", "a", 3, None)], "c3", false, true)));
    place.client(&server).sync_once().await.unwrap();
    assert_eq!(one::<i64>(&place.db(), "SELECT sum(n) FROM users"), 2);
    let uris: Vec<String> = server.asked().into_iter().map(|asked| asked.uri).collect();
    let expected = [
        "/api/sync/pull?limit=10000",
        "/api/sync/pull?since=c%2F1+%2B%3F&limit=10000",
        "/api/sync/pull?since=c2&limit=10000",
    ];
    assert_eq!(uris, expected);
    assert_eq!(server.asked()[0].token, format!("Bearer {}", token("ada")));
}

#[tokio::test]
async fn a_portal_is_not_mistaken_for_data_nor_for_a_refusal() {
    let place = Place::new();
    let server = Server::start([json(200, &first())]).await;
    place.client(&server).sync_once().await.unwrap();
    let moved = axum::http::Response::builder().status(302).header("location", "http://portal/");
    let moved = moved.body(axum::body::Body::empty()).unwrap();
    for answer in [html(200), html(401), html(403), html(410), html(404), moved, json(200, "{}")] {
        server.push(answer);
        server.push(json(200, &page(&[], "c1", false, true)));
        let client = place.client(&server).start().unwrap();
        let mut status = client.status();
        let seen = until(&mut status, |status| status.error.is_some()).await;
        assert_eq!((seen.state, seen.is_online), (State::Offline, false), "{seen:?}");
        until(&mut status, |status| status.state == State::Live).await;
        client.stop().await.unwrap();
        assert_eq!(one::<i64>(&place.db(), "SELECT n FROM users"), 1);
        assert_eq!(one::<String>(&place.db(), "SELECT cursor FROM _tidewire_status"), "c1");
    }
}

#[tokio::test]
async fn a_refused_token_stops_the_asking_until_the_file_holds_another() {
    let place = Place::new();
    let server = Server::start([refusal(401, "token_expired", "")]).await;
    let file = place.folder.path().join("token");
    std::fs::write(&file, token("ada")).unwrap();
    let client = SyncClient::builder(&server.address).replica(place.db()).token_file(&file);
    let client = client.start().unwrap();
    let mut status = client.status();
    let seen = until(&mut status, |status| status.state == State::NeedsAuth).await;
    assert_eq!(seen.error.as_deref(), Some("the server refuses the token: said so; do this"));
    client.pull_now();
    let asked = server.asked().len();
    let renewed = format!("{}renewed", token("ada"));
    server.push(json(200, &first()));
    std::fs::write(&file, format!("{renewed}\n")).unwrap();
    until(&mut status, |status| status.state == State::Live).await;
    assert_eq!(asked, 1, "nothing was asked in between");
    assert_eq!(server.asked()[1].token, format!("Bearer {renewed}"));
    client.stop().await.unwrap();
}

#[tokio::test]
async fn the_servers_own_refusal_costs_the_data_where_the_app_wants_that_and_nothing_else_does() {
    let place = Place::new();
    let server = Server::start([json(200, &first())]).await;
    place.client(&server).sync_once().await.unwrap();
    let rows =
        || one::<i64>(&place.db(), "SELECT count(*) FROM sqlite_schema WHERE name = 'users'");
    let gateway = axum::http::Response::builder().status(401).header("www-authenticate", "Basic");
    server.push(gateway.body(axum::body::Body::empty()).unwrap());
    let wipes = |client: ClientBuilder| client.on_needs_auth(OnNeedsAuth::Wipe);
    for client in [place.client(&server), place.client(&server).token_later()] {
        let client = wipes(client).start().unwrap();
        let mut status = client.status();
        let seen = until(&mut status, |status| status.state == State::NeedsAuth).await;
        assert!(seen.error.unwrap().starts_with("a token is wanted: "));
        client.stop().await.unwrap();
        assert_eq!(rows(), 1);
    }
    server.push(refusal(403, "forbidden", ""));
    let error = wipes(place.client(&server)).sync_once().await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
    assert_eq!(rows(), 0);
}

#[tokio::test]
async fn a_refused_token_ends_a_single_run_with_its_own_code() {
    for (answer, code) in
        [(refusal(401, "unauthenticated", ""), 3), (refusal(403, "forbidden", ""), 3)]
    {
        let server = Server::start([answer]).await;
        let error = Place::new().client(&server).sync_once().await.unwrap_err();
        assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
        assert_eq!(error.exit_code(), code);
        assert_eq!(server.asked().len(), 1, "it is asked once");
    }
}

#[tokio::test]
async fn a_cursor_that_is_gone_leads_to_a_new_copy_beside_the_old_data() {
    let place = Place::new();
    let server = Server::start([json(200, &first())]).await;
    place.client(&server).sync_once().await.unwrap();
    server.push(refusal(410, "resync_required", r#","reason":"cursor_too_old""#));
    server.push(json(200, &page(&[("users", "b", 5, Some(r#"{"n":5}"#))], "d1", true, false)));
    let client = place.client(&server).start().unwrap();
    let mut status = client.status();
    until(&mut status, |status| status.state == State::Resyncing).await;
    // c1 was refused, then from nothing, then d1, which is held.
    server.pulled(4).await;
    assert_eq!(one::<i64>(&place.db(), "SELECT n FROM users"), 1);
    client.stop().await.unwrap();
    server.push(json(200, &page(&[("users", "c", 6, Some(r#"{"n":6}"#))], "d2", false, true)));
    place.client(&server).sync_once().await.unwrap();
    assert_eq!(one::<i64>(&place.db(), "SELECT sum(n) FROM users"), 11);
    assert!(server.asked().last().unwrap().uri.contains("since=d1"), "it went on where it was");
}

#[tokio::test]
async fn a_busy_server_is_asked_again_when_it_said() {
    let place = Place::new();
    let mut busy = refusal(503, "not_ready", "");
    busy.headers_mut().insert("retry-after", "1".parse().unwrap());
    let limited = refusal(429, "rate_limited", r#","retryAfter":1"#);
    let server = Server::start([busy, limited, json(200, &first())]).await;
    place.client(&server).sync_once().await.unwrap();
    let asked = server.asked();
    for pair in asked.windows(2) {
        let gap = pair[1].at - pair[0].at;
        assert!(gap >= Duration::from_secs(1) && gap < Duration::from_secs(3), "{gap:?}");
    }
    assert_eq!(asked.len(), 3);
}

#[tokio::test]
async fn a_page_that_is_cut_or_mangled_changes_nothing() {
    let place = Place::new();
    let server = Server::start([json(200, &first())]).await;
    place.client(&server).sync_once().await.unwrap();
    let next = page(&[("users", "b", 2, Some(r#"{"n":2}"#))], "c2", false, true);
    server.push(json(200, &next[..next.len() - 20]));
    server.push(json(200, &next.replace("\"count\":1", "\"count\":2")));
    server.push(json(200, &next.replace("upsert", "replace")));
    server.push(json(200, &next));
    place.client(&server).sync_once().await.unwrap();
    assert_eq!(one::<i64>(&place.db(), "SELECT sum(n) FROM users"), 3);
    assert_eq!(server.asked().len(), 5);
    assert!(server.asked()[1..].iter().all(|asked| asked.uri.contains("since=c1")));
}

#[tokio::test]
async fn a_server_that_is_not_there_ends_a_single_run_with_its_own_code() {
    let place = Place::new();
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let client = SyncClient::builder(address).replica(place.db()).token(Token::new("t"));
    let error = client.sync_once().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(_)), "{error:?}");
    assert_eq!(error.exit_code(), 4);
}

#[tokio::test]
async fn what_is_no_address_is_refused_at_once() {
    let place = Place::new();
    for address in ["", "sync.example.com", "ftp://a", "http://", "http://u:p@a", "file:///etc"] {
        let client = SyncClient::builder(address).replica(place.db()).token(Token::new("t"));
        let error = client.start().unwrap_err();
        assert_eq!(error.exit_code(), 2, "{address}: {error}");
    }
}

#[tokio::test]
async fn a_token_that_is_set_at_the_start_does_not_hide_that_the_last_client_was_killed() {
    let place = Place::new();
    let server = Server::start([json(200, &first())]).await;
    place.client(&server).sync_once().await.unwrap();
    // As a client leaves it that was killed.
    let file = rusqlite::Connection::open(place.db()).unwrap();
    file.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
    file.execute_batch("UPDATE _tidewire_state SET clean = 0").unwrap();
    drop(file);
    for _ in 0..3 {
        server.push(json(200, &page(&[], "c1", false, true)));
    }
    let client = place.client(&server).start().unwrap();
    client.set_token(Token::new(&format!("{}y", token("ada")))).await.unwrap();
    for pulls in 1.. {
        server.pulled(pulls).await;
        if server.asked().iter().any(|asked| asked.uri.starts_with("/api/sync/digest?")) {
            break;
        }
    }
    client.stop().await.unwrap();
}

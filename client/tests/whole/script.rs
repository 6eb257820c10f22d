//! A running client over pages from memory.

use std::time::Duration;

use tidewire::transport::Failure;
use tidewire::transport::memory::{Answer, Script};
use tidewire::{OnNeedsAuth, State, SyncClient, Token, TransportName};

use super::{one, page, token};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn changes_arrive_as_they_happen_and_stop_leaves_the_file_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    let first = page(&[("users", "a", 1, Some(r#"{"n":1}"#))], "c1", false, true);
    let script = Script::new(&["users"], [Answer::Page(first)]);
    let client = SyncClient::builder("memory").replica(&db).token(Token::new(&token("ada")));
    let client = client.start_over(script.clone()).unwrap();
    let mut status = client.status();
    let live = status.wait_for(|status| status.state == State::Live);
    let live = tokio::time::timeout(PATIENCE, live).await.unwrap().unwrap().clone();
    assert_eq!((live.transport, live.is_online), (TransportName::LongPoll, true));
    for n in 2..20 {
        let document = format!(r#"{{"n":{n}}}"#);
        let cursor = format!("c{n}");
        let text = page(&[("users", "a", n, Some(&document))], &cursor, false, true);
        script.push(Answer::Page(text));
        let seen = status.wait_for(|status| status.cursor.as_ref() == Some(&cursor));
        tokio::time::timeout(PATIENCE, seen).await.unwrap().unwrap();
        assert_eq!(one::<u32>(&db, "SELECT n FROM users"), u32::try_from(n).unwrap());
    }
    client.stop().await.unwrap();
    assert_eq!(one::<String>(&db, "SELECT state FROM _tidewire_status"), "stopped");
    assert_eq!(one::<i64>(&db, "SELECT clean FROM _tidewire_state"), 1);
    assert!(!folder.path().join("replica.db-wal").exists());
}

#[tokio::test]
async fn another_users_token_shows_nothing_of_the_first_user() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    let first = page(&[("users", "a", 1, Some(r#"{"of":"ada"}"#))], "c1", false, true);
    let script = Script::new(&["users"], [Answer::Page(first)]);
    let client = SyncClient::builder("memory").replica(&db).token(Token::new(&token("ada")));
    let client = client.start_over(script.clone()).unwrap();
    let mut status = client.status();
    let live = status.wait_for(|status| status.state == State::Live);
    tokio::time::timeout(PATIENCE, live).await.unwrap().unwrap();
    client.set_token(Token::new(&token("bob"))).await.unwrap();
    // The long poll of the first user was dropped: the next answer is to the second user's pull.
    let held = async {
        while script.asked().last().unwrap().1 != token("bob") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.unwrap();
    assert_eq!(script.asked().last().unwrap().0.since, "", "the second user starts from nothing");
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'users'";
    assert_eq!(one::<i64>(&db, tables), 0);
    let second = page(&[("users", "b", 1, Some(r#"{"of":"bob"}"#))], "d1", false, true);
    script.push(Answer::Page(second));
    let copied = status.wait_for(|status| status.cursor.as_deref() == Some("d1"));
    tokio::time::timeout(PATIENCE, copied).await.unwrap().unwrap();
    assert_eq!(one::<String>(&db, "SELECT group_concat(of) FROM users"), "bob");
    client.stop().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_damaged_while_the_client_runs_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    let first = || page(&[("users", "a", 1, Some(r#"{"n":1}"#))], "c1", false, true);
    let script = Script::new(&["users"], [Answer::Page(first())]);
    let client = SyncClient::builder("memory").replica(&db).token(Token::new(&token("ada")));
    let client = client.start_over(script.clone()).unwrap();
    let mut status = client.status();
    let live = status.wait_for(|status| status.state == State::Live);
    tokio::time::timeout(PATIENCE, live).await.unwrap().unwrap();
    // Somebody drops a table under the client's hands; the next page can't be written.
    rusqlite::Connection::open(&db).unwrap().execute_batch("DROP TABLE users").unwrap();
    script.push(Answer::Page(page(&[("users", "b", 2, Some("{}"))], "c2", false, true)));
    script.push(Answer::Page(first()));
    let again = async {
        while script.asked().iter().filter(|(request, _)| request.since.is_empty()).count() < 2 {
            tokio::task::yield_now().await;
        }
        status.wait_for(|status| status.cursor.as_deref() == Some("c1")).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    client.stop().await.unwrap();
    assert_eq!(one::<i64>(&db, "SELECT sum(n) FROM users"), 1);
}

#[tokio::test]
async fn who_asks_for_a_pull_is_told_what_that_pull_brought() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    let first = page(&[("users", "a", 1, Some("{}"))], "c1", false, true);
    let script = Script::new(&["users"], [Answer::Page(first)]);
    let client = SyncClient::builder("memory").replica(&db).token(Token::new(&token("ada")));
    let client = client.start_over(script.clone()).unwrap();
    let mut status = client.status();
    let live = status.wait_for(|status| status.state == State::Live);
    tokio::time::timeout(PATIENCE, live).await.unwrap().unwrap();
    // Two pages: the first alone is not what was asked for.
    let rows = [("users", "b", 2, Some("{}")), ("users", "c", 3, Some("{}"))];
    script.push(Answer::Page(page(&rows, "c2", true, true)));
    script.push(Answer::Page(page(&[("users", "d", 4, Some("{}"))], "c3", false, true)));
    let brought = tokio::time::timeout(PATIENCE, client.pull()).await.unwrap().unwrap();
    assert_eq!((brought.success, brought.applied), (true, 1));
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM users"), 4);
    script.push(Answer::Fail(Failure::Unreachable("no route".into())));
    let brought = tokio::time::timeout(PATIENCE, client.pull()).await.unwrap().unwrap();
    assert!(!brought.success);
    script.push(Answer::Fail(Failure::Unauthorized("expired".into())));
    assert!(!client.pull().await.unwrap().success);
    let refused = status.wait_for(|status| status.state == State::NeedsAuth);
    tokio::time::timeout(PATIENCE, refused).await.unwrap().unwrap();
    assert!(!client.pull().await.unwrap().success, "nothing may be asked");
    client.stop().await.unwrap();
}

#[tokio::test]
async fn a_copy_says_how_far_it_is_and_a_catch_up_counts_from_its_own_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    let part = |n, cursor: &str, progress: &str| {
        let text = page(&[("users", "a", n, Some("{}"))], cursor, true, false);
        Answer::Page(text.strip_suffix('}').unwrap().to_owned() + progress + "}")
    };
    let end =
        |n, cursor: &str| Answer::Page(page(&[("users", "a", n, Some("{}"))], cursor, false, true));
    let script = Script::new(&["users"], [part(1, "f1", r#","progress":0.4"#)]);
    let client = SyncClient::builder("memory").replica(&db).token(Token::new(&token("ada")));
    let client = client.start_over(script.clone()).unwrap();
    let mut status = client.status();
    let mut at = async |percent: Option<u8>, state: State| {
        let is =
            |status: &tidewire::Status| status.applying_percent == percent && status.state == state;
        tokio::time::timeout(PATIENCE, status.wait_for(is)).await.unwrap().unwrap();
    };
    at(Some(40), State::Syncing).await;
    script.push(end(2, "c1"));
    at(None, State::Live).await;
    script.push(part(3, "s1", r#","progress":0.8"#));
    at(Some(0), State::Syncing).await;
    script.push(part(4, "s2", r#","progress":0.95"#));
    at(Some(75), State::Syncing).await;
    script.push(end(5, "c2"));
    at(None, State::Live).await;
    client.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_lost_its_server_comes_back_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    let gone = || Answer::Fail(Failure::Unreachable("no route".into()));
    let first = page(&[("users", "a", 1, Some(r#"{"n":1}"#))], "c1", false, true);
    let script = Script::new(&["users"], [gone(), gone(), Answer::Page(first)]);
    let client = SyncClient::builder("memory").replica(&db).token(Token::new(&token("ada")));
    let client = client.start_over(script.clone()).unwrap();
    let mut status = client.status();
    let offline = status.wait_for(|status| status.state == State::Offline);
    let offline = tokio::time::timeout(PATIENCE, offline).await.unwrap().unwrap().clone();
    assert!(!offline.is_online && offline.last_sync.is_some_and(|last| !last.success));
    let live = status.wait_for(|status| status.state == State::Live);
    let live = tokio::time::timeout(PATIENCE, live).await.unwrap().unwrap().clone();
    assert!(live.error.is_none() && live.last_sync.is_some_and(|last| last.success));
    client.stop().await.unwrap();
}

#[tokio::test]
async fn a_refused_token_that_has_a_successor_in_its_file_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (db, file) = (folder.path().join("replica.db"), folder.path().join("token"));
    // Another of the same subject's; what it is signed with is the server's business.
    let (old, new) = (token("ada"), token("ada") + "new");
    std::fs::write(&file, &old).unwrap();
    let first = page(&[("users", "a", 1, Some(r#"{"n":1}"#))], "c1", false, true);
    let script = Script::new(&["users"], [Answer::Page(first)]);
    let client = SyncClient::builder("memory").replica(&db).token_file(&file);
    let client = client.on_needs_auth(OnNeedsAuth::Wipe).start_over(script.clone()).unwrap();
    let mut status = client.status();
    let live = status.wait_for(|status| status.state == State::Live);
    tokio::time::timeout(PATIENCE, live).await.unwrap().unwrap();
    std::fs::write(&file, &new).unwrap();
    script.push(Answer::Fail(Failure::Unauthorized("expired".into())));
    let renewed = async {
        while script.asked().last().unwrap().1 != new {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.unwrap();
    assert_eq!(script.asked().last().unwrap().0.since, "c1", "it goes on from there");
    assert_eq!(one::<i64>(&db, "SELECT n FROM users"), 1);
    // Without one the data goes, and the next token copies it anew.
    script.push(Answer::Fail(Failure::Unauthorized("revoked".into())));
    let wiped = status.wait_for(|status| !status.initialized);
    let wiped = tokio::time::timeout(PATIENCE, wiped).await.unwrap().unwrap().clone();
    assert_eq!((wiped.state, wiped.cursor), (State::NeedsAuth, None));
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'users'";
    assert_eq!(one::<i64>(&db, tables), 0);
    std::fs::write(&file, &old).unwrap();
    script.push(Answer::Page(page(&[("users", "b", 2, Some("{}"))], "c2", false, true)));
    let copied = status.wait_for(|status| status.cursor.as_deref() == Some("c2"));
    tokio::time::timeout(PATIENCE, copied).await.unwrap().unwrap();
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM users"), 1);
    client.stop().await.unwrap();
}

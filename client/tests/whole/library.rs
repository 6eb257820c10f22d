//! What the library gives an app: which rows changed, live queries, one's own writes.

use std::time::Duration;

use tidewire::transport::memory::{Answer, Script};
use tidewire::{Changed, ClientError, Position, State, SyncClient, Token, Value};

use super::{page, token};

const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("not in time")
}

struct App {
    client: SyncClient,
    script: Script,
    _folder: tempfile::TempDir,
}

impl App {
    /// A client that is live, with one row in `users`.
    async fn live() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let first = page(&[("users", "a", 1, Some(r#"{"n":1}"#))], "c1", false, true);
        let script = Script::new(&["users", "plans"], [Answer::Page(first)]);
        let client = SyncClient::builder("memory").replica(folder.path().join("replica.db"));
        let client = client.token(Token::new(&token("ada"))).start_over(script.clone()).unwrap();
        let mut status = client.status();
        soon(status.wait_for(|status| status.state == State::Live)).await.unwrap();
        Self { client, script, _folder: folder }
    }

    fn tell(&self, changes: &[(&str, &str, u64, Option<&str>)], cursor: &str, complete: bool) {
        self.script.push(Answer::Page(page(changes, cursor, !complete, complete)));
    }
}

fn rows(changed: &Changed) -> Vec<(&str, Vec<&str>)> {
    let ids = |ids: &Option<Vec<String>>| ids.clone().expect("named");
    assert!(!changed.everything, "{changed:?}");
    changed
        .collections
        .iter()
        .map(|rows| {
            (rows.collection.as_str(), ids(&rows.ids).leak().iter().map(String::as_str).collect())
        })
        .collect()
}

#[tokio::test]
async fn each_commit_tells_which_rows_it_changed() {
    let app = App::live().await;
    let mut changes = app.client.changes();
    app.tell(&[("users", "b", 2, Some("{}")), ("users", "a", 3, None)], "c2", true);
    let told = soon(changes.next()).await.unwrap();
    assert_eq!(rows(&told), [("users", vec!["a", "b"])]);
    assert_eq!(told.position.as_deref(), Some("0000000000000003.00000000"));
    // A catch-up is told as one commit, when it is there to be read.
    app.tell(&[("users", "b", 4, Some("{}")), ("plans", "p", 4, Some("{}"))], "c3", false);
    app.tell(&[("users", "c", 5, Some("{}")), ("users", "b", 6, Some("{}"))], "c4", true);
    let told = soon(changes.next()).await.unwrap();
    assert_eq!(rows(&told), [("plans", vec!["p"]), ("users", vec!["b", "c"])]);
    // A copy that takes the place of all there was may have changed anything.
    app.client.rebuild().await.unwrap();
    app.tell(&[("users", "z", 7, Some("{}"))], "d1", true);
    assert!(soon(changes.next()).await.unwrap().everything);
    app.client.stop().await.unwrap();
    while changes.next().await.is_some() {}
}

#[tokio::test]
async fn a_live_query_runs_again_only_when_a_table_that_it_reads_has_changed() {
    let app = App::live().await;
    let joined = "SELECT count(*), (SELECT sum(n) FROM users) FROM plans";
    let (mut users, mut both) = (app.client.watch("SELECT n FROM users"), app.client.watch(joined));
    let one = |rows: tidewire::Rows| rows.rows.iter().flatten().cloned().collect::<Vec<_>>();
    let integer = Value::Integer;
    assert_eq!(one(soon(users.next()).await.unwrap().unwrap()), [integer(1)]);
    assert_eq!(one(soon(both.next()).await.unwrap().unwrap()), [integer(0), integer(1)]);
    app.tell(&[("plans", "p", 2, Some("{}"))], "c2", true);
    assert_eq!(one(soon(both.next()).await.unwrap().unwrap()), [integer(1), integer(1)]);
    // `plans` is none of the first one's tables: what it yields next is the change after that.
    app.tell(&[("users", "a", 3, Some(r#"{"n":5}"#))], "c3", true);
    assert_eq!(one(soon(users.next()).await.unwrap().unwrap()), [integer(5)]);
    assert_eq!(one(soon(both.next()).await.unwrap().unwrap()), [integer(1), integer(5)]);

    let mut wrong = app.client.watch("SELECT nothing FROM users");
    assert!(soon(wrong.next()).await.unwrap().is_err());
    let mut write = app.client.watch("DELETE FROM users");
    assert!(soon(write.next()).await.unwrap().is_err());
    app.client.stop().await.unwrap();
    assert!(users.next().await.is_none());
}

#[tokio::test]
async fn ones_own_write_is_waited_for() {
    let app = App::live().await;
    let position = Position::new(9, 0);
    let waited = tokio::time::timeout(Duration::from_millis(50), app.client.wait_for(position));
    assert!(waited.await.is_err(), "it is not there yet");
    let (told, ()) = soon(async {
        tokio::join!(app.client.wait_for(position), async {
            app.tell(&[("users", "a", 9, Some(r#"{"n":9}"#))], "c9", true);
        })
    })
    .await;
    told.unwrap();
    soon(app.client.wait_for(Position::new(3, 0))).await.unwrap();
    // Where nothing comes by itself the server is asked.
    let asked = app.script.asked().len();
    let later = Position::new(10, 0);
    tokio::time::timeout(Duration::from_secs(1), app.client.wait_for(later)).await.unwrap_err();
    let after = app.script.asked();
    assert!(after.len() > asked && after.last().unwrap().0.wait.is_zero(), "{after:?}");
    let client = app.client;
    let ended = client.status();
    client.stop().await.unwrap();
    assert_eq!(ended.borrow().state, State::Stopped);
}

#[tokio::test]
async fn a_replica_is_readable_before_the_server_has_been_reached() {
    let app = App::live().await;
    let db = app._folder.path().join("replica.db");
    app.client.stop().await.unwrap();
    let client = SyncClient::builder("memory").replica(&db).token_later();
    let script = Script::new(&["users"], []);
    let client = client.start_over(script).unwrap();
    let mut status = client.status();
    let seen = soon(status.wait_for(|status| status.initialized)).await.unwrap().clone();
    assert_eq!(seen.cursor.as_deref(), Some("c1"), "{seen:?}");
    let mut users = client.watch("SELECT n FROM users");
    assert_eq!(soon(users.next()).await.unwrap().unwrap().rows.len(), 1);
    client.stop().await.unwrap();
}

#[tokio::test]
async fn a_list_of_servers_has_bounds() {
    let folder = tempfile::tempdir().unwrap();
    for servers in [vec![], (0..17).map(|n| format!("http://127.0.0.1:{}", n + 1)).collect()] {
        let client = SyncClient::builder_of(servers).replica(folder.path().join("r.db"));
        let error = client.token_later().start().unwrap_err();
        assert!(matches!(error, ClientError::Usage(_)), "{error}");
    }
}

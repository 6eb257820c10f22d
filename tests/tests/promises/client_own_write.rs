//! Reading one's own write: the backend hands over its session's operation time, the app waits for it, and
//! what it reads then has the write. And the examples, as somebody who tries them out sees them.

use std::process::Command;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::ClientSession;
use serde_json::json;
use tidewire_ops::process::Launch;
use tidewire_tests::harness::{
    Claims, Client, Daemon, Mongo, Server, ServerOptions, collection, eventually, example, mongo,
};

const SOON: Duration = Duration::from_secs(60);

struct Stack {
    mongo: Mongo,
    server: Server,
    /// Its files alone: what keeps the replica is each test's own.
    client: Client,
}

impl Stack {
    async fn new() -> Self {
        let mongo = mongo().await;
        let options = ServerOptions {
            collections: collection("notes", &["user:{userId}"], &[])
                + &collection("invoices", &["everyone"], &[]),
            ..ServerOptions::following(&mongo, &[])
        };
        let server = Server::start(options).await;
        let client = Client::new(&server.url(), &server.token(&Claims::of("asha")));
        Self { mongo, server, client }
    }

    async fn session(&self) -> ClientSession {
        self.mongo.client.start_session().await.expect("a session")
    }

    /// A write of the backend's, in its session.
    async fn note(&self, session: &mut ClientSession, id: &str, user: &str) {
        let notes = self.mongo.db.collection::<Document>("notes");
        let note = doc! { "_id": id, "userId": user };
        notes.insert_one(note).session(session).await.expect("insert");
    }

    fn has(&self, id: &str) -> bool {
        let db = self.client.open().expect("a replica");
        let sql = "SELECT count(*) FROM notes WHERE _id = ?1";
        db.query_row(sql, [id], |row| row.get::<_, i64>(0)).expect("notes") == 1
    }
}

/// Seconds and increment of what a session has done last.
fn operation_time(session: &ClientSession) -> (u32, u32) {
    let time = session.operation_time().expect("the session has written");
    (time.time, time.increment)
}

/// Waits as an app does for what its backend has just written; how long that took.
async fn wait_for(daemon: &mut Daemon, session: &ClientSession) -> Duration {
    let (seconds, increment) = operation_time(session);
    let position = format!("{seconds:08x}{increment:08x}.00000000");
    let asked = Instant::now();
    let told = daemon.call("waitFor", json!({ "position": position })).await;
    assert_eq!(told["reached"], true, "{told}");
    assert!(told["position"].as_str().is_some_and(|at| at >= position.as_str()), "{told}");
    asked.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn ones_own_write_is_there_as_soon_as_the_wait_for_it_is_over() {
    let stack = Stack::new().await;
    let mut daemon = Daemon::start(&stack.client).await;
    let mut session = stack.session().await;
    for round in 0..20 {
        let id = format!("plain {round}");
        stack.note(&mut session, &id, "asha").await;
        wait_for(&mut daemon, &session).await;
        assert!(stack.has(&id), "{id}");
        session.start_transaction().await.expect("begin");
        let ids = [0, 1].map(|n| format!("in transaction {round}, {n}"));
        for id in &ids {
            stack.note(&mut session, id, "asha").await;
        }
        session.commit_transaction().await.expect("commit");
        wait_for(&mut daemon, &session).await;
        assert!(ids.iter().all(|id| stack.has(id)), "{ids:?}");
    }
    // Of what her token may not see nothing comes, and the wait ends all the same.
    for round in 0..3 {
        let id = format!("of ravi {round}");
        stack.note(&mut session, &id, "ravi").await;
        let took = wait_for(&mut daemon, &session).await;
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(!stack.has(&id), "{id}");
    }
    let later = json!({ "position": "ffffffff00000000.00000000", "timeoutMs": 300 });
    assert_eq!(daemon.call("waitFor", later).await["reached"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_do_what_they_say() {
    let stack = Stack::new().await;
    let invoices = stack.mongo.db.collection::<Document>("invoices");
    let open = (0..2).map(|n| doc! { "_id": n, "status": "open" });
    invoices.insert_many(open).await.expect("insert");
    let mut session = stack.session().await;
    stack.note(&mut session, "mine", "asha").await;
    let (seconds, increment) = operation_time(&session);

    let mut own_write = Command::new(example("own_write"));
    own_write.arg(stack.server.url()).arg(stack.client.token_file()).arg(stack.client.db());
    own_write.arg(format!("{seconds}.{increment}"));
    let run = tokio::task::spawn_blocking(move || own_write.output()).await.expect("run");
    let run = run.expect("run the example");
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{run:?}");
    assert_eq!(told, "3 rows, the write among them\n");

    let log = stack.client.dir().join("live_query.log");
    let launch = Launch::new(example("live_query"), &log).arg(stack.server.url());
    let launch = launch.arg(stack.client.token_file()).arg(stack.client.db());
    let _live_query = launch.start().expect("start the example");
    let prints = async |line: &str| {
        eventually(&format!("it prints {line}"), SOON, || async {
            let text = std::fs::read_to_string(&log).ok()?;
            text.lines().any(|printed| printed == line).then_some(())
        })
        .await;
    };
    prints(r#"[[Text("open"), Integer(2)]]"#).await;
    invoices.insert_one(doc! { "_id": 2, "status": "paid" }).await.expect("insert");
    prints("a commit changed invoices").await;
    prints(r#"[[Text("open"), Integer(2)], [Text("paid"), Integer(1)]]"#).await;
    stack.note(&mut session, "another", "asha").await;
    prints("a commit changed notes").await;
    let text = std::fs::read_to_string(&log).expect("its output");
    let answers = text.lines().filter(|line| line.starts_with("[[")).count();
    assert_eq!(answers, 2, "a query runs again only when its own table changes:\n{text}");
}

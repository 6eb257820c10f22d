//! A document that can't be carried, seen from all sides: the user who had it, another user, the operator.

use std::process::Command;
use std::time::Duration;

use bson::{Document, RawDocumentBuf, doc, rawdoc};
use serde_json::Value;
use tidewire_tests::harness::{
    Claims, Client, Server, ServerOptions, collection, eventually, mongo, program,
};

const SOON: Duration = Duration::from_secs(60);
const REASON: &str = "a string or a field name that is not UTF-8";

fn dirty(id: i32, owner: &str) -> RawDocumentBuf {
    let mut bytes = rawdoc! { "_id": id, "owner": owner, "text": "dirty" }.into_bytes();
    let at = bytes.windows(5).position(|w| w == b"dirty").unwrap();
    bytes[at] = 0xff;
    RawDocumentBuf::from_bytes(bytes).unwrap()
}

/// What the replica says of its quarantine and of the collection: `None` before its first copy.
fn seen(client: &Client) -> Option<(Vec<(String, String)>, i64)> {
    let db = client.open().ok()?;
    let mut select = db.prepare("SELECT _id, reason FROM _tidewire_quarantine ORDER BY 1").ok()?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).ok()?;
    let count = db.query_row("SELECT count(*) FROM invoices", [], |row| row.get(0)).ok()?;
    Some((rows.collect::<Result<_, _>>().ok()?, count))
}

fn listed(server: &Server, more: &[&str]) -> String {
    let mut command = Command::new(program("tidewire-ops"));
    command.args(["log", "quarantine", "--data-dir"]).arg(server.data_dir()).args(more);
    let output = command.output().expect("run it");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_could_see_a_document_sees_that_it_is_in_quarantine_and_nobody_else_does() {
    let mongo = mongo().await;
    let all = mongo.db.collection::<Document>("invoices");
    let owner = |id| if id % 2 == 0 { "ada" } else { "bob" };
    let documents = (1..=6).map(|id| doc! { "_id": id, "owner": owner(id) });
    all.insert_many(documents).await.unwrap();
    let mut options = ServerOptions::following(&mongo, &[]);
    options.collections = collection("invoices", &["user:{owner}"], &[]);
    let server = Server::start(options).await;
    let mut ada = Client::new(&server.url(), &server.token(&Claims::of("ada")));
    let bobs_token = server.token(&Claims::of("bob"));
    ada.start();
    eventually("ada has hers", SOON, || async { seen(&ada).filter(|(_, count)| *count == 3) })
        .await;
    let (_, before) = server.pull(&bobs_token, "since=0").await;
    // Hers, and one that says that it is hers where nobody had it before.
    let raw = mongo.db.collection::<RawDocumentBuf>("invoices");
    raw.replace_one(doc! { "_id": 2 }, dirty(2, "bob")).await.unwrap();
    raw.insert_one(dirty(8, "ada")).await.unwrap();
    let aside = vec![("~2".to_owned(), REASON.to_owned())];
    eventually("ada knows", SOON, || async {
        seen(&ada).filter(|seen| *seen == (aside.clone(), 2))
    })
    .await;
    let (_, after) = server.pull(&bobs_token, "since=0").await;
    assert_eq!(before["changes"], after["changes"], "bob's answers are what they were");
    let table = listed(&server, &[]);
    assert!(table.contains("~2") && table.contains("~8") && table.contains(REASON), "{table}");
    let lines: Vec<Value> = listed(&server, &["--json"])
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!((&lines[0]["id"], &lines[0]["idKnown"]), (&"~2".into(), &true.into()));
    assert_eq!(lines[0]["bytes"], dirty(2, "bob").as_bytes().len());
    let metrics = server.metrics().await;
    assert!(metrics.contains("\ntidewire_quarantine_documents 2\n"), "{metrics}");
    // A new replica knows what it misses, too.
    let fresh = Client::new(&server.url(), &server.token(&Claims::of("ada")));
    fresh.sync_once().await;
    assert_eq!(seen(&fresh), Some((aside, 2)));
    let mend = doc! { "$set": { "text": "clean", "owner": "ada" } };
    all.update_many(doc! { "_id": { "$in": [2, 8] } }, mend).await.unwrap();
    eventually("all is well", SOON, || async { seen(&ada).filter(|seen| *seen == (vec![], 4)) })
        .await;
    assert_eq!(listed(&server, &["--json"]), "");
    ada.stop().await;
}

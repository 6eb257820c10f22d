//! The change log alone is enough: a replica is made from it, as the source was at any position that
//! the log still holds.

use std::path::Path;

use bson::raw::RawDocumentBuf;
use bson::{Document, doc};
use rusqlite::Connection;
use tidewire_ops::replay::{Replay, Sight};
use tidewire_protocol::Position;
use tidewire_server::log::{
    Body, Channels, CopyState, LogOptions, NewChange, TailState, Writer, sort_key,
};

const SECOND: u32 = 1_700_000_000;

fn at(second: u32) -> Position {
    Position::new(u64::from(SECOND + second) << 32 | 1, 0)
}

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).expect("raw")
}

/// Three documents, one of which changes hands and one of which goes.
fn write_log(dir: &Path) {
    let retention = std::time::Duration::from_secs(7 * 86_400);
    let options = LogOptions { source: "rs0/invoify".into(), retention };
    let (mut writer, _reader) = Writer::open(dir, &options).expect("a log");
    let invoices = writer.collection("invoices").expect("a collection");
    let changes = [
        (1, doc! { "_id": 1, "owner": "asha", "amount": 5_i64 }, Some("user:asha")),
        (2, doc! { "_id": 2, "owner": "ravi", "amount": 7.0 }, Some("user:ravi")),
        (3, doc! { "_id": 1, "owner": "ravi", "amount": 6_i64 }, Some("user:ravi")),
        (4, doc! { "_id": 2 }, None),
        (5, doc! { "_id": 3, "owner": "asha", "amount": 1 }, Some("user:asha")),
    ];
    for (second, document, channel) in &changes {
        let document = raw(document);
        let key = sort_key(document.get("_id").expect("readable").expect("an _id"));
        let channels: Vec<String> = channel.iter().map(ToString::to_string).collect();
        let body =
            if channel.is_some() { Body::Upsert(&document) } else { Body::Delete(&document) };
        let change = NewChange {
            position: at(*second),
            wall_time_ms: i64::from(SECOND + second) * 1_000,
            collection: invoices,
            key: &key,
            body,
            channels: Channels::Named(&channels),
            rules: 1,
        };
        writer.append(&change).expect("append");
        let tail = TailState { resume_token: None, high_water: at(*second).cluster_time };
        writer.set_tail(tail).expect("the tail");
        writer.commit().expect("commit");
    }
}

async fn check(dir: &Path, through: Option<Position>, sight: Sight, expected: &[(&str, &str)]) {
    let to = dir.join(format!("{}.db", rand::random::<u32>()));
    let replay = Replay { data_dir: dir.join("log"), to: to.clone(), through, sight };
    replay.run(|_| {}).await.expect("replay");
    let db = Connection::open(to).expect("the replica");
    let mut read = db.prepare("SELECT _id, _doc FROM invoices ORDER BY _id").expect("a table");
    let rows = read.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
    let rows: Vec<(String, String)> = rows.collect::<Result<_, _>>().expect("rows");
    let rows: Vec<(&str, &str)> =
        rows.iter().map(|(id, doc)| (id.as_str(), doc.as_str())).collect();
    assert_eq!(rows, expected, "through {through:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_any_moment_comes_from_the_log_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    write_log(&dir.path().join("log"));
    let dir = dir.path();
    let first = ("~1", r#"{"_id":1,"owner":"asha","amount":5}"#);
    let second = ("~2", r#"{"_id":2,"owner":"ravi","amount":7.0}"#);
    let moved = ("~1", r#"{"_id":1,"owner":"ravi","amount":6}"#);
    let third = ("~3", r#"{"_id":3,"owner":"asha","amount":1}"#);
    let all = Sight::everything;
    check(dir, None, all(), &[moved, third]).await;
    check(dir, Some(at(2)), all(), &[first, second]).await;
    check(dir, Some(at(3)), all(), &[moved, second]).await;
    check(dir, Some(at(4)), all(), &[moved]).await;
    let asha = || Sight::everything().channels(vec!["user:asha".into()]);
    check(dir, Some(at(2)), asha(), &[first]).await;
    check(dir, None, asha(), &[third]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_that_the_log_does_not_reach_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    write_log(&dir.path().join("log"));
    let (data_dir, to) = (dir.path().join("log"), dir.path().join("new.db"));
    let through = Some(at(100));
    let replay = Replay { data_dir, to, through, sight: Sight::everything() };
    let error = replay.run(|_| {}).await.expect_err("it is in the future");
    assert!(error.to_string().contains("does not reach"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_of_which_the_log_has_only_a_part_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("log");
    let attempt = async |through| {
        let to = dir.path().join(format!("{}.db", rand::random::<u32>()));
        let sight = Sight::everything();
        let replay = Replay { data_dir: log.clone(), to: to.clone(), through, sight };
        let refused = replay.run(|_| {}).await.err().map(|error| error.to_string());
        assert!(refused.is_some() || to.exists());
        refused
    };
    let options =
        LogOptions { source: "rs0/invoify".into(), retention: std::time::Duration::from_secs(60) };
    let (mut writer, _reader) = Writer::open(&log, &options).expect("a log");
    assert!(
        attempt(None).await.expect("a refusal").contains("only a part"),
        "nothing is there yet"
    );
    let invoices = writer.collection("invoices").expect("a collection");
    let mut copy = CopyState { rules: 1, ..CopyState::default() };
    for second in 1..=3 {
        writer.set_copy_state(invoices, copy.clone()).expect("the copy");
        let document = raw(&doc! { "_id": i64::from(second) });
        let key = sort_key(document.get("_id").expect("readable").expect("an _id"));
        let change = NewChange {
            position: at(second),
            wall_time_ms: 0,
            collection: invoices,
            key: &key,
            body: Body::Upsert(&document),
            channels: Channels::Named(&["everyone".to_owned()]),
            rules: 1,
        };
        writer.append(&change).expect("append");
        // With the last of its changes, the copy is finished.
        copy.finished = second == 3;
        writer.set_copy_state(invoices, copy.clone()).expect("the copy");
        let tail = TailState { resume_token: None, high_water: at(second).cluster_time };
        writer.set_tail(tail).expect("the tail");
        writer.commit().expect("commit");
        let now = attempt(None).await;
        assert_eq!(now.is_some(), second < 3, "{now:?}");
    }
    for (through, held) in [(at(0), false), (at(1), false), (at(2), false), (at(3), true)] {
        let refused = attempt(Some(through)).await;
        assert_eq!(refused.is_none(), held, "{through}: {refused:?}");
    }
}

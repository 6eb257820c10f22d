//! What others test change streams by: which operations tell what, and which errors a stream survives.
//! The cases are our own.

use bson::{Bson, Document, doc};
use mongodb::Collection;
use tidewire_server::log::{Body, Since};
use tidewire_tests::harness::{Mongo, mongo};

use super::faults::failing_late;
use super::{COLLECTIONS, Capture, dir, insert, numbered};

/// Every error code by which MongoDB may end a stream that can be resumed, with whether it says so
/// itself (the label), as versions differ in that.
const SURVIVED: [(i32, bool); 24] = [
    (6, true),   // HostUnreachable
    (7, true),   // HostNotFound
    (43, false), // CursorNotFound
    (43, true),
    (63, true), // StaleShardVersion
    (89, true), // NetworkTimeout
    (91, true), // ShutdownInProgress
    (91, false),
    (133, true), // FailedToSatisfyReadPreference
    (150, true), // StaleEpoch
    (189, true), // PrimarySteppedDown
    (189, false),
    (234, true),    // RetryChangeStream
    (237, false),   // CursorKilled
    (262, true),    // ExceededTimeLimit
    (9_001, true),  // SocketException
    (10_107, true), // NotWritablePrimary
    (10_107, false),
    (11_600, true),  // InterruptedAtShutdown
    (11_602, true),  // InterruptedDueToReplStateChange
    (13_388, true),  // StaleConfig
    (13_435, true),  // NotPrimaryNoSecondaryOk
    (13_436, true),  // NotPrimaryOrSecondary
    (11_601, false), // Interrupted, which no driver resumes by itself
];

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_exactly_after_every_error_that_it_can_survive() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..1)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut cursor = capture.read(&Since::Nothing, |_, _, _| {});
    for (n, (code, labelled)) in SURVIVED.into_iter().enumerate() {
        let mut data = failing_late(doc! { "errorCode": code });
        if labelled {
            data.insert("errorLabels", vec!["ResumableChangeStreamError"]);
        }
        // The second one ends the stream that the first one's end opened.
        let fail = mongo.fail_point("failCommand", doc! { "times": 2 }, data).await;
        fail.fired(1).await;
        let id = 100 + n as i32;
        insert(&mongo.db, "invoices", [doc! { "_id": id }]).await;
        fail.fired(2).await;
        capture.caught_up(&mongo.db).await;
        assert_eq!(fail.off().await, 2, "{code}, labelled: {labelled}");
        let mut told = Vec::new();
        cursor = capture.read(&Since::Cursor(cursor), |_, _, body| told.push(shown(body)));
        assert_eq!(told, [format!("{id}")], "after {code}, labelled: {labelled}");
    }
    capture.stop().await;
}

/// `_id` of a document, `-` before that of a deleted one.
fn shown(body: Body<'_>) -> String {
    let (sign, Body::Upsert(document) | Body::Delete(document)) =
        (matches!(body, Body::Delete(_)), body);
    let id: Bson = document.get("_id").unwrap().unwrap().try_into().unwrap();
    format!("{}{id}", if sign { "-" } else { "" })
}

/// Does something to the source; what the stream must tell of it.
async fn act(mongo: &Mongo, what: &str) -> Vec<&'static str> {
    let all: Collection<Document> = mongo.db.collection("invoices");
    let run = async |command: Document| drop(mongo.db.run_command(command).await.unwrap());
    match what {
        "an insert" => drop(all.insert_one(doc! { "_id": 1, "list": [1, 2, 3, 4] }).await.unwrap()),
        "a field more" => {
            all.update_one(doc! { "_id": 1 }, doc! { "$set": { "a.b": 1 } }).await.unwrap();
        }
        "an update that changes nothing" => {
            all.update_one(doc! { "_id": 1 }, doc! { "$set": { "a.b": 1 } }).await.unwrap();
            return vec![];
        }
        "a shorter array" => {
            let shorter = vec![doc! { "$set": { "list": { "$slice": ["$list", 2] } } }];
            all.update_one(doc! { "_id": 1 }, shorter).await.unwrap();
        }
        "an array's field by number" => {
            all.update_one(doc! { "_id": 1 }, doc! { "$set": { "list.1": { "deep": [] } } })
                .await
                .unwrap();
        }
        "a field renamed" => {
            all.update_one(doc! { "_id": 1 }, doc! { "$rename": { "a": "ä" } }).await.unwrap();
        }
        "a replacement" => drop(all.replace_one(doc! { "_id": 1 }, doc! { "x": 1 }).await.unwrap()),
        "an upsert" => {
            let set = doc! { "$setOnInsert": { "new": true } };
            all.update_one(doc! { "_id": 2 }, set).upsert(true).await.unwrap();
            return vec!["2"];
        }
        "an index, a comment, a validator" => {
            let index = doc! { "key": { "x": 1 }, "name": "x_1" };
            run(doc! { "createIndexes": "invoices", "indexes": [index], "comment": { "no": 1 } })
                .await;
            run(doc! { "collMod": "invoices", "validator": { "x": { "$ne": "bad" } } }).await;
            run(doc! { "dropIndexes": "invoices", "index": "x_1" }).await;
            return vec![];
        }
        "pre- and post-images switched on" => {
            let images = doc! { "enabled": true };
            run(doc! { "collMod": "invoices", "changeStreamPreAndPostImages": images }).await;
            all.update_one(doc! { "_id": 1 }, doc! { "$inc": { "x": 1 } }).await.unwrap();
        }
        "another collection" => {
            mongo.db.collection::<Document>("elsewhere").insert_one(doc! {}).await.unwrap();
            return vec![];
        }
        "a transaction" => {
            let mut session = mongo.client.start_session().await.unwrap();
            session.start_transaction().await.unwrap();
            all.delete_one(doc! { "_id": 2 }).session(&mut session).await.unwrap();
            all.insert_one(doc! { "_id": 3 }).session(&mut session).await.unwrap();
            session.commit_transaction().await.unwrap();
            return vec!["-2", "3"];
        }
        "a transaction that is given up" => {
            let mut session = mongo.client.start_session().await.unwrap();
            session.start_transaction().await.unwrap();
            all.delete_one(doc! { "_id": 3 }).session(&mut session).await.unwrap();
            session.abort_transaction().await.unwrap();
            return vec![];
        }
        "a delete" => {
            all.delete_one(doc! { "_id": 1 }).await.unwrap();
            return vec!["-1"];
        }
        "a drop" => {
            all.drop().await.unwrap();
            return vec!["-3"];
        }
        "a clustered collection" => {
            let clustered = doc! { "key": { "_id": 1 }, "unique": true };
            run(doc! { "create": "invoices", "clusteredIndex": clustered }).await;
            all.insert_one(doc! { "_id": 4, "żółć": "𝄞" }).await.unwrap();
            return vec!["4"];
        }
        "the whole database dropped" => {
            mongo.db.drop().await.unwrap();
            return vec!["-4"];
        }
        _ => {
            insert(&mongo.db, "invoices", [doc! { "_id": 5 }]).await;
            return vec!["5"];
        }
    }
    vec!["1"]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_operation_tells_what_it_changed_and_nothing_else() {
    let mongo = mongo().await;
    let dir = dir();
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    capture.caught_up(&mongo.db).await;
    let mut cursor = capture.read(&Since::Nothing, |_, _, _| {});
    for what in [
        "an insert",
        "a field more",
        "an update that changes nothing",
        "a shorter array",
        "an array's field by number",
        "a field renamed",
        "a replacement",
        "an upsert",
        "an index, a comment, a validator",
        "pre- and post-images switched on",
        "another collection",
        "a transaction",
        "a transaction that is given up",
        "a delete",
        "a drop",
        "a clustered collection",
        "the whole database dropped",
        "a new beginning",
    ] {
        let expected = act(&mongo, what).await;
        capture.must_equal(&mongo.db, &COLLECTIONS).await;
        let mut told = Vec::new();
        cursor = capture.read(&Since::Cursor(cursor), |_, _, body| told.push(shown(body)));
        assert_eq!(told, expected, "{what}");
    }
    capture.stop().await;
}

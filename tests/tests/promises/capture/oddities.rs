//! Giants, odd bytes, odd keys: what can't be carried is set aside and said, and nothing is stopped.

use bson::raw::RawDocument;
use bson::{Document, RawDocumentBuf, doc, rawdoc};
use tidewire_protocol::Position;
use tidewire_server::log::{Body, Quarantined, Since};
use tidewire_tests::harness::{Mongo, MongoOptions, eventually, mongo, mongo_with};

use super::{COLLECTIONS, Capture, PATIENCE, dir, insert, numbered, source_state};

const NOT_UTF8: &str = "a string or a field name that is not UTF-8";

/// The document with the bytes `dirty` in it made no text.
pub(super) fn dirtied(document: &Document) -> RawDocumentBuf {
    let mut bytes = document.to_vec().unwrap();
    let at = bytes.windows(5).position(|w| w == b"dirty").unwrap();
    bytes[at] = 0xff;
    RawDocument::from_bytes(&bytes).unwrap().to_owned()
}

pub(super) fn dirty(id: i32) -> RawDocumentBuf {
    dirtied(&doc! { "_id": id, "text": "dirty" })
}

/// Inserts one whose `_id` the driver itself would not read.
pub(super) async fn insert_unread(mongo: &Mongo, collection: &str, document: RawDocumentBuf) {
    let mut all = bson::RawArrayBuf::new();
    all.push(document);
    let insert = rawdoc! { "insert": collection, "documents": all };
    let answer = mongo.db.run_raw_command(insert).await.unwrap();
    assert_eq!(answer.get_i32("n").unwrap(), 1, "{answer}");
}

/// What the log lists: `_id` and reason.
fn listed(capture: &Capture) -> Vec<(String, String)> {
    let one = |found: Quarantined| (found.shown_id, found.reason);
    capture.reader.quarantine().unwrap().into_iter().map(one).collect()
}

fn not_utf8(ids: &[i32]) -> Vec<(String, String)> {
    ids.iter().map(|id| (format!("~{id}"), NOT_UTF8.to_owned())).collect()
}

/// Starts a capture that finds its history lost: it compares everything.
async fn start_and_compare(mongo: &Mongo, dir: &std::path::Path) -> Capture {
    let fail = mongo.fail_command(&["aggregate"], 286, &[], doc! { "times": 1 }).await;
    let capture = Capture::start(mongo, dir);
    capture.caught_up(&mongo.db).await;
    fail.fired(1).await;
    fail.off().await;
    capture
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_no_text_is_set_aside_and_the_next_goes_on() {
    let mongo = mongo().await;
    let dir = dir();
    let raw = mongo.db.collection::<RawDocumentBuf>("invoices");
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    raw.insert_one(dirty(100)).await.unwrap();
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    assert_eq!(listed(&capture), not_utf8(&[100]));
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    raw.insert_one(dirty(101)).await.unwrap();
    raw.replace_one(doc! { "_id": 5 }, dirty(5)).await.unwrap();
    insert(&mongo.db, "invoices", numbered(10..20)).await;
    capture.caught_up(&mongo.db).await;
    assert_eq!(listed(&capture), not_utf8(&[5, 100, 101]));
    assert_eq!(capture.status.borrow().in_quarantine, 3);
    assert_eq!(capture.state().len(), 19, "5, 100 and 101 are not served");
    capture.stop().await;
    // A comparison finds them as they are, and adds nothing.
    let capture = start_and_compare(&mongo, dir.path()).await;
    assert_eq!(listed(&capture), not_utf8(&[5, 100, 101]));
    let mut changes = 0;
    capture.read(&Since::Cursor(cursor), |_, _, _| changes += 1);
    assert_eq!(changes, 10 + 2, "the new ones, and that 5 and 101 are not to be had");
    // Mended, changed and gone.
    let invoices = mongo.db.collection::<Document>("invoices");
    let mend = doc! { "$set": { "text": "clean" } };
    invoices.update_many(doc! { "_id": { "$in": [5, 100] } }, mend).await.unwrap();
    invoices.delete_one(doc! { "_id": 101 }).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert_eq!(listed(&capture), []);
    capture.stop().await;
}

/// Updates one with what the driver itself would not send.
async fn update_unread(mongo: &Mongo, id: i32, update: Document) {
    let updates = vec![doc! { "q": { "_id": id }, "u": update }];
    let command = dirtied(&doc! { "update": "invoices", "updates": updates });
    let answer = mongo.db.run_raw_command(command).await.unwrap();
    assert_eq!(answer.get_i32("nModified").unwrap(), 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_is_no_text_sets_its_document_aside_and_one_that_mends_it_brings_it_back() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..20)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let updates = [
        doc! { "$set": { "text": "dirty" } },
        doc! { "$set": { "nested.list.1": "dirty" } },
        doc! { "$push": { "nested.list": "dirty" } },
        doc! { "$set": { "nested.new": { "deep": ["dirty"] } } },
        // Its text is in the name.
        doc! { "$set": { "nested.dirty": 1 } },
    ];
    for (id, update) in (0..).zip(updates) {
        update_unread(&mongo, id, update).await;
    }
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await.unwrap();
    capture.caught_up(&mongo.db).await;
    assert_eq!(listed(&capture), not_utf8(&[0, 1, 2, 3, 4]));
    assert_eq!(capture.state().len(), 15);
    invoices.update_one(doc! { "_id": 0 }, doc! { "$set": { "text": "clean" } }).await.unwrap();
    let pop = doc! { "$pop": { "nested.list": 1 } };
    invoices.update_many(doc! { "_id": { "$in": [1, 2] } }, pop).await.unwrap();
    let unset = doc! { "$unset": { "nested.new": 1 } };
    invoices.update_one(doc! { "_id": 3 }, unset).await.unwrap();
    let whole = doc! { "$set": { "nested": {} } };
    invoices.update_one(doc! { "_id": 4 }, whole).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert_eq!(listed(&capture), []);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_mended_or_deleted_unseen_leaves_the_quarantine_by_a_comparison() {
    let mongo = mongo().await;
    let dir = dir();
    let raw = mongo.db.collection::<RawDocumentBuf>("invoices");
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    raw.insert_many([dirty(100), dirty(101), dirty(102)]).await.unwrap();
    insert_unread(&mongo, "invoices", dirtied(&doc! { "_id": "dirty one", "tag": 1 })).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    assert_eq!(listed(&capture).len(), 4);
    capture.stop().await;
    let invoices = mongo.db.collection::<Document>("invoices");
    let mend = doc! { "$set": { "text": "clean" } };
    invoices.update_one(doc! { "_id": 100 }, mend).await.unwrap();
    invoices.delete_many(doc! { "$or": [{ "_id": 101 }, { "tag": 1 }] }).await.unwrap();
    let capture = start_and_compare(&mongo, dir.path()).await;
    assert_eq!(listed(&capture), not_utf8(&[102]));
    assert_eq!(capture.state().len(), 11);
    // A collection that goes takes its quarantine along.
    invoices.drop().await.unwrap();
    capture.caught_up(&mongo.db).await;
    assert_eq!((listed(&capture), capture.state().len()), (vec![], 0));
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_no_text_is_listed_by_what_can_be_read_of_it() {
    let mongo = mongo().await;
    let dir = dir();
    insert_unread(&mongo, "invoices", dirtied(&doc! { "_id": "dirty one", "tag": 1 })).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    insert_unread(&mongo, "invoices", dirtied(&doc! { "_id": { "in": ["dirty two"] }, "tag": 2 }))
        .await;
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.update_many(doc! {}, doc! { "$set": { "more": 1 } }).await.unwrap();
    capture.caught_up(&mongo.db).await;
    let found = listed(&capture);
    let has = |text: &str| found.iter().any(|(id, why)| id.contains(text) && why == NOT_UTF8);
    assert!(found.len() == 2 && has("irty one") && has("irty two"), "{found:?}");
    assert_eq!(capture.state().len(), 10);
    invoices.delete_many(doc! { "tag": { "$gt": 0 } }).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert_eq!(listed(&capture), []);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_the_stream_can_not_carry_does_not_stop_it() {
    // A small cache makes mongod itself take minutes over keys of megabytes.
    let mongo =
        mongo_with(MongoOptions { test_commands: true, cache_gb: 1.0, ..MongoOptions::default() })
            .await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    for mb in [3, 5, 8] {
        let id = "x".repeat(mb * 1_000_000);
        insert(&mongo.db, "invoices", [doc! { "_id": id, "mb": mb as i32 }]).await;
        insert(&mongo.db, "plans", [doc! { "_id": mb as i32 }]).await;
    }
    capture.caught_up(&mongo.db).await;
    assert_eq!(capture.state().len(), 10 + 3 + 1, "all but the two largest");
    capture.stop().await;
    // The stream does not tell of them; a comparison does.
    let capture = start_and_compare(&mongo, dir.path()).await;
    let found = listed(&capture);
    assert_eq!(found.len(), 2, "{found:?}");
    for ((id, reason), mb) in found.iter().zip([5, 8]) {
        let bytes = mb * 1_000_000;
        let is_it = id.starts_with("xxx") || id.contains("xxx");
        assert!(is_it && reason == "an _id of more than 3.3 MB", "{mb}: {id} {reason} {bytes}");
    }
    assert_eq!(capture.state().len(), 10 + 3 + 1);
    capture.stop().await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.delete_many(doc! { "mb": { "$gt": 3 } }).await.unwrap();
    let capture = start_and_compare(&mongo, dir.path()).await;
    assert_eq!(listed(&capture), []);
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_id_comes_where_nothing_follows_it_and_its_replys_own_token_is_as_large() {
    let mongo = mongo_with(MongoOptions { cache_gb: 1.0, ..MongoOptions::default() }).await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    let mut capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    for (n, kb) in [(11, 2_600), (12, 2_750), (13, 3_000), (14, 3_290)] {
        // At the stream's rest, and at its start.
        let large = doc! { "_id": "x".repeat(kb * 1_000), "n": n };
        if n % 2 == 0 {
            capture.stop().await;
            insert(&mongo.db, "invoices", [large]).await;
            capture = Capture::start(&mongo, dir.path());
        } else {
            insert(&mongo.db, "invoices", [large]).await;
        }
        eventually(&format!("{kb} kB are there"), PATIENCE, || async {
            let right = source_state(&mongo.db, &["invoices"]).await;
            (capture.state() == right).then_some(())
        })
        .await;
    }
    assert_eq!(listed(&capture), []);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_up_to_mongodbs_bound_come_whole_and_their_changes_too() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", [doc! { "_id": 1, "text": "a".repeat(9_000_000), "n": 0 }]).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let empty = doc! { "_id": 2, "text": "" }.to_vec().unwrap().len();
    let largest = "b".repeat(16 * 1024 * 1024 - 64 - empty);
    insert(&mongo.db, "invoices", [doc! { "_id": 2, "text": largest }]).await;
    let invoices = mongo.db.collection::<Document>("invoices");
    // 9 MB to 9 MB: with both images the event would be more than MongoDB can send.
    let set = doc! { "$set": { "text": "c".repeat(9_000_000), "n": 1 } };
    invoices.update_one(doc! { "_id": 1 }, set).await.unwrap();
    invoices.update_one(doc! { "_id": 2 }, doc! { "$set": { "n": 1 } }).await.unwrap();
    let replaced = doc! { "text": "d".repeat(9_000_000), "n": 2 };
    invoices.replace_one(doc! { "_id": 1 }, replaced).await.unwrap();
    insert(&mongo.db, "plans", numbered(0..10)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert_eq!(listed(&capture), []);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_more_than_16_mb_is_stepped_past_and_its_document_is_exact() {
    let mongo =
        mongo_with(MongoOptions { test_commands: true, cache_gb: 1.0, ..MongoOptions::default() })
            .await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let (invoices, plans) =
        (mongo.db.collection::<Document>("invoices"), mongo.db.collection::<Document>("plans"));
    // The event holds the `_id` four times: 12 MB, beside the 9 MB of the text.
    let id = "k".repeat(3_000_000);
    let by_id = doc! { "_id": &id };
    let text = |letter: &str| letter.repeat(9_000_000);
    insert(&mongo.db, "invoices", [doc! { "_id": &id, "text": text("a") }]).await;
    insert(&mongo.db, "plans", [doc! { "_id": 1 }]).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    invoices.update_one(by_id.clone(), doc! { "$set": { "text": text("b") } }).await.unwrap();
    invoices.replace_one(by_id.clone(), doc! { "text": text("c"), "n": 1 }).await.unwrap();
    plans.update_one(doc! { "_id": 1 }, doc! { "$set": { "n": 1 } }).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    // Among the small changes of a transaction, twice.
    let mut session = mongo.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let within = &mut session;
    plans.insert_one(doc! { "_id": 2 }).session(&mut *within).await.unwrap();
    let set = doc! { "$set": { "text": text("d") } };
    invoices.update_one(by_id.clone(), set).session(&mut *within).await.unwrap();
    let more = doc! { "$set": { "n": 2 } };
    invoices.update_one(by_id.clone(), more).session(&mut *within).await.unwrap();
    plans.insert_one(doc! { "_id": 3 }).session(&mut *within).await.unwrap();
    session.commit_transaction().await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    invoices.delete_one(by_id).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert_eq!(listed(&capture), []);
    let mut told = Vec::new();
    capture.read(&Since::Cursor(cursor), |position, collection, body| {
        assert!(position.ordinal < Position::RECONCILE_ORDINAL_FIRST, "nothing was compared");
        told.push((collection.to_owned(), matches!(body, Body::Delete(_))));
    });
    let of = |name: &str| told.iter().filter(|(collection, _)| collection == name).count();
    assert_eq!((of("invoices"), of("plans")), (5, 4), "{told:?}");
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_emptied_by_drop_tells_the_quarantined_ones_as_gone_too() {
    let mongo = mongo().await;
    let dir = dir();
    let raw = mongo.db.collection::<RawDocumentBuf>("invoices");
    insert(&mongo.db, "invoices", numbered(0..3)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    raw.replace_one(doc! { "_id": 1 }, dirty(1)).await.unwrap();
    capture.caught_up(&mongo.db).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    raw.drop().await.unwrap();
    capture.caught_up(&mongo.db).await;
    let mut gone = 0;
    capture.read(&Since::Cursor(cursor), |_, _, body| {
        assert!(matches!(body, Body::Delete(_)));
        gone += 1;
    });
    assert_eq!((gone, listed(&capture)), (3, vec![]));
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_takes_the_quarantined_ones_along_in_its_commit() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..5)).await;
    insert(&mongo.db, "plans", numbered(0..2)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let raw = mongo.db.collection::<RawDocumentBuf>("invoices");
    raw.replace_one(doc! { "_id": 1 }, dirty(1)).await.unwrap();
    capture.caught_up(&mongo.db).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let rename =
        doc! { "renameCollection": "invoify.invoices", "to": "invoify.plans", "dropTarget": true };
    mongo.client.database("admin").run_command(rename).await.unwrap();
    capture.caught_up(&mongo.db).await;
    let found = capture.reader.quarantine().unwrap();
    let found: Vec<_> =
        found.iter().map(|q| (q.collection.as_str(), q.shown_id.as_str())).collect();
    assert_eq!(found, [("plans", "~1")]);
    let mut told = 0;
    capture.read(&Since::Cursor(cursor), |position, _, _| {
        assert!(position.ordinal < Position::RECONCILE_ORDINAL_FIRST, "nothing was looked for");
        told += 1;
    });
    // Four arrive, the fifth is no longer to be had, and five are gone from where they were.
    assert_eq!(told, 4 + 1 + 5 - 1);
    assert_eq!(capture.state().len(), 4);
    capture.stop().await;
}

//! A part of a collection is compared with the source again, while it is served.

use bson::{Document, RawDocumentBuf, doc, rawdoc};
use mongodb::Database;
use tidewire_protocol::Position;
use tidewire_server::capture::{CheckOrder, CheckReport, Part};
use tidewire_server::log::{Body, Channels, NewChange, Since, Writer, sort_key};
use tidewire_server::status::SourcePhase;
use tidewire_tests::harness::mongo;
use tokio::sync::oneshot;

use super::{COLLECTIONS, Capture, PATIENCE, dir, insert, log_options, numbered};

/// Spoils the log behind the server's back: 3 is not as it is, 4 is gone, 1,000 is too much.
fn spoil(dir: &std::path::Path) {
    let (mut writer, _reader) = Writer::open(dir, &log_options("invoify")).unwrap();
    let collection = writer.collection("invoices").unwrap();
    let rules = writer.copy_state(collection).rules;
    let at = writer.tail().high_water;
    let bodies = [
        (Body::Upsert(&rawdoc! { "_id": 3, "wrong": true } as &bson::RawDocument), 3),
        (Body::Delete(&rawdoc! { "_id": 4 }), 4),
        (Body::Upsert(&rawdoc! { "_id": 100_000 }), 100_000),
    ];
    for (n, (body, id)) in bodies.into_iter().enumerate() {
        let ordinal = u32::MAX - 10 + u32::try_from(n).unwrap();
        let everyone = ["everyone".to_owned()];
        let channels: &[String] = if matches!(body, Body::Delete(_)) { &[] } else { &everyone };
        let change = NewChange {
            position: Position::new(at, ordinal),
            wall_time_ms: 0,
            collection,
            key: &sort_key(bson::raw::RawBsonRef::Int32(id)),
            body,
            channels: Channels::Named(channels),
            rules,
        };
        writer.append(&change).unwrap();
    }
    writer.commit().unwrap();
}

async fn check(capture: &Capture, part: Part) -> CheckReport {
    let (done, report) = oneshot::channel();
    let bytes_per_second = Some(50_000_000);
    let order = CheckOrder { collection: "invoices".into(), part, bytes_per_second, done };
    capture.checks.send(order).await.unwrap();
    tokio::time::timeout(PATIENCE, report).await.expect("in time").expect("to its end")
}

fn range(after: Option<i32>, through: Option<i32>) -> Part {
    let id = |id| rawdoc! { "_id": id };
    Part::Range { after: after.map(id), through: through.map(id) }
}

/// The source goes on while it is checked.
async fn change(db: &Database) {
    let all = doc! { "$inc": { "n": 1 } };
    db.collection::<Document>("invoices")
        .update_many(doc! { "_id": { "$gte": 50 } }, all)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_mends_what_differs_and_nothing_else_while_the_collection_is_served() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..5_000)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
    spoil(dir.path());

    let capture = Capture::start(&mongo, dir.path());

    mongo.db.collection::<Document>("invoices").delete_one(doc! { "_id": 60 }).await.unwrap();
    capture.caught_up(&mongo.db).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let (part, ()) = tokio::join!(check(&capture, range(Some(3), Some(999))), change(&mongo.db));
    assert_eq!((part.upserted, part.deleted), (1, 0), "4 alone is in that range");
    assert_eq!(part.documents, 995);
    assert_eq!(capture.status.borrow().phase, SourcePhase::Following, "served all the while");
    let whole = check(&capture, Part::ALL).await;
    assert_eq!((whole.upserted, whole.deleted), (1, 1));
    let again = check(&capture, Part::ALL).await;
    assert_eq!((again.documents, again.upserted, again.deleted), (4_999, 0, 0));
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut mended = 0;
    capture.read(&Since::Cursor(cursor), |position, _, _| {
        mended += u32::from(position.ordinal >= Position::RECONCILE_ORDINAL_FIRST);
    });
    assert_eq!(mended, 3, "the differences alone are appended");
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn single_documents_are_checked_by_their_ids() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
    spoil(dir.path());
    let capture = Capture::start(&mongo, dir.path());
    capture.caught_up(&mongo.db).await;
    let ids: Vec<RawDocumentBuf> = [3, 4, 5, 100_000, 2_000].map(|id| rawdoc! { "_id": id }).into();
    let report = check(&capture, Part::Ids(ids)).await;
    assert_eq!((report.documents, report.upserted, report.deleted), (3, 2, 1));
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

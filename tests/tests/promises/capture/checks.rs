//! A part of a collection is compared with the source again, while it is served.

use std::time::SystemTime;

use bson::{Document, doc, rawdoc};
use mongodb::Database;
use tempfile::TempDir;
use tidewire_protocol::Position;
use tidewire_server::capture::{CheckOrder, CheckReport, Checked};
use tidewire_server::config::Hours;
use tidewire_server::log::{
    Body, Channels, CopyState, NewAside, NewChange, Since, Writer, sort_key,
};
use tidewire_server::status::SourcePhase;
use tidewire_tests::harness::{Mongo, eventually, mongo};
use tokio::sync::oneshot;

use super::{COLLECTIONS, Capture, PATIENCE, dir, insert, log_options, numbered, source_state};

/// Spoils the log behind the server's back: 3 is not as it is, 4 is gone, 1,000 is too much.
pub(crate) fn spoil(dir: &std::path::Path) {
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
        let ordinal = Position::RECONCILE_ORDINAL_FIRST + 0x1000_0000 + u32::try_from(n).unwrap();
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

/// A source with these invoices, and a log that followed it and was spoiled.
async fn spoiled(invoices: impl IntoIterator<Item = Document>) -> (Mongo, TempDir) {
    let (mongo, dir) = (mongo().await, dir());
    insert(&mongo.db, "invoices", invoices).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
    spoil(dir.path());
    (mongo, dir)
}

/// Compares what is after `after`, all of it where there is none.
async fn check(capture: &Capture, after: Option<i32>) -> CheckReport {
    let (done, checked) = oneshot::channel();
    let (bytes_per_second, after) = (Some(50_000_000), after.map(|id| rawdoc! { "_id": id }));
    let order =
        CheckOrder { collection: "invoices".into(), after, bytes_per_second, hours: None, done };
    capture.checks.send(order).await.unwrap();
    let checked = tokio::time::timeout(PATIENCE, checked).await.expect("in time");
    let Ok(Checked::Whole(report)) = checked else { panic!("not to its end: {checked:?}") };
    report
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
    let (mongo, dir) = spoiled(numbered(0..5_000)).await;

    let capture = Capture::start(&mongo, dir.path());

    mongo.db.collection::<Document>("invoices").delete_one(doc! { "_id": 60 }).await.unwrap();
    capture.caught_up(&mongo.db).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let (part, ()) = tokio::join!(check(&capture, Some(3)), change(&mongo.db));
    assert_eq!((part.upserted, part.deleted), (1, 1), "3 is not in that part");
    assert_eq!(part.documents, 4_995);
    assert_eq!(capture.status.borrow().phase, SourcePhase::Following, "served all the while");
    let whole = check(&capture, None).await;
    assert_eq!((whole.upserted, whole.deleted), (1, 0));
    let again = check(&capture, None).await;
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
async fn a_check_brings_back_what_is_in_quarantine_without_a_reason() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
    {
        let (mut writer, _reader) = Writer::open(dir.path(), &log_options("invoify")).unwrap();
        let collection = writer.collection("invoices").unwrap();
        let ordinal = Position::RECONCILE_ORDINAL_FIRST + 0x1000_0000;
        let aside = NewAside {
            position: Position::new(writer.tail().high_water, ordinal),
            wall_time_ms: 0,
            collection,
            reason: "a mistake",
            size: 1,
            rules: writer.copy_state(collection).rules,
        };
        let key = sort_key(bson::raw::RawBsonRef::Int32(7));
        writer.set_aside(&aside, &key, &rawdoc! { "_id": 7 }, "~7").unwrap();
        writer.commit().unwrap();
    }
    let capture = Capture::start(&mongo, dir.path());
    capture.caught_up(&mongo.db).await;
    assert_eq!(capture.reader.quarantine().unwrap().len(), 1);
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    assert_eq!(capture.state().len(), 99);
    let report = check(&capture, None).await;
    assert_eq!((report.documents, report.upserted, report.deleted), (100, 1, 0));
    assert_eq!(capture.reader.quarantine().unwrap(), []);
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut told = 0;
    capture.read(&Since::Cursor(cursor), |_, _, body| {
        assert!(matches!(body, Body::Upsert(_)));
        told += 1;
    });
    assert_eq!(told, 1);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_the_stream_cuts_off_goes_on_from_where_it_was() {
    let mongo = mongo().await;
    let dir = dir();
    let wide = |n: i32| doc! { "_id": n, "text": "x".repeat(100_000) };
    insert(&mongo.db, "invoices", (0..200).map(wide)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let (done, mut checked) = oneshot::channel();
    // About four seconds for 20 MB.
    let (collection, after, bytes_per_second) = ("invoices".into(), None, Some(5_000_000));
    let order = CheckOrder { collection, after, bytes_per_second, hours: None, done };
    capture.checks.send(order).await.unwrap();
    eventually("some of it is done", PATIENCE, || async {
        let checking = capture.status.borrow().checking.clone();
        checking.filter(|(_, progress)| progress.documents > 0)
    })
    .await;
    assert!(checked.try_recv().is_err(), "it is not through");
    let cut = doc! { "failCommands": ["getMore"], "appName": "tidewire", "closeConnection": true };
    let cut = mongo.fail_point("failCommand", doc! { "times": 1 }, cut).await;
    let checked = tokio::time::timeout(PATIENCE, checked).await.expect("in time");
    cut.off().await;
    let Ok(Checked::CutOff(some, through)) = checked else { panic!("not cut off: {checked:?}") };
    assert!(some.documents > 0 && some.documents < 200, "{some:?}");
    let rest = check(&capture, through.get_i32("_id").ok()).await;
    assert_eq!(some.documents + rest.documents, 200);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_is_cut_off_when_its_hours_are_over_and_goes_on_from_there() {
    let mongo = mongo().await;
    let dir = dir();
    let wide = |n: i32| doc! { "_id": n, "text": "x".repeat(100_000) };
    insert(&mongo.db, "invoices", (0..200).map(wide)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    // They ended an hour ago, whatever the time is.
    let hour = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 3_600;
    let hours = format!("{:02}:00-{:02}:00", (hour + 22) % 24, (hour + 23) % 24);
    let hours = Some(Hours::parse(&hours).unwrap());
    let (done, checked) = oneshot::channel();
    let (collection, after, bytes_per_second) = ("invoices".into(), None, None);
    let order = CheckOrder { collection, after, bytes_per_second, hours, done };
    capture.checks.send(order).await.unwrap();
    let checked = tokio::time::timeout(PATIENCE, checked).await.expect("in time");
    let Ok(Checked::CutOff(some, through)) = checked else { panic!("not cut off: {checked:?}") };
    assert!(some.documents > 0 && some.documents < 200, "{some:?}");
    let rest = check(&capture, through.get_i32("_id").ok()).await;
    assert_eq!(some.documents + rest.documents, 200);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_start_from_the_time_alone_all_is_checked_even_where_the_stream_is_cut_off_again() {
    let wide = |n: i32| doc! { "_id": n, "text": "x".repeat(50_000) };
    let (mongo, dir) = spoiled((0..300).map(wide)).await;
    let refused = mongo.fail_command(&["aggregate"], 280, &[], doc! { "times": 2 }).await;
    let capture = Capture::start(&mongo, dir.path());
    eventually("the check is under way", PATIENCE, || async {
        capture.status.borrow().checking.clone()
    })
    .await;
    refused.off().await;
    let cut = doc! { "failCommands": ["getMore"], "appName": "tidewire", "closeConnection": true };
    let cut = mongo.fail_point("failCommand", doc! { "times": 2 }, cut).await;
    cut.fired(1).await;
    eventually("what was wrong is mended", PATIENCE, || async {
        let wanted = source_state(&mongo.db, &COLLECTIONS).await;
        (capture.state() == wanted).then_some(())
    })
    .await;
    cut.off().await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_is_owed_is_made_after_a_restart_and_once() {
    let (mongo, dir) = spoiled(numbered(0..100)).await;
    owes_check(dir.path(), Some(true));

    let capture = Capture::start(&mongo, dir.path());
    eventually("it is mended", PATIENCE, || async {
        let right = source_state(&mongo.db, &COLLECTIONS).await;
        (capture.state() == right).then_some(())
    })
    .await;
    // The next commit says that nothing is owed any more.
    insert(&mongo.db, "invoices", numbered(100..101)).await;
    capture.caught_up(&mongo.db).await;
    capture.stop().await;
    assert!(!owes_check(dir.path(), None));
}

/// Whether the log says that `invoices` is to be checked, after it was made to say so or not.
fn owes_check(dir: &std::path::Path, is_owed: Option<bool>) -> bool {
    let (mut writer, _reader) = Writer::open(dir, &log_options("invoify")).unwrap();
    let collection = writer.collection("invoices").unwrap();
    let copy = writer.copy_state(collection);
    if let Some(owes_check) = is_owed {
        let copy = CopyState { owes_check, ..copy };
        writer.set_copy_state(collection, copy).unwrap();
        writer.commit().unwrap();
        return owes_check;
    }
    copy.owes_check
}

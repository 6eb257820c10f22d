//! A part of a collection is compared with the source again, while it is served.

use std::time::SystemTime;

use bson::{Document, RawDocumentBuf, doc, rawdoc};
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

use super::oddities::{dirtied, insert_unread};
use super::{
    COLLECTIONS, Capture, PATIENCE, collections, dir, insert, log_options, numbered, source,
    source_state,
};

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
    let after = after.map(|id| rawdoc! { "_id": id });
    let checked = ordered(capture, after, Some(50_000_000), None).await;
    let checked = tokio::time::timeout(PATIENCE, checked).await.expect("in time");
    let Ok(Checked::Whole(report)) = checked else { panic!("not to its end: {checked:?}") };
    report
}

/// Asks for a check of the invoices.
async fn ordered(
    capture: &Capture,
    after: Option<RawDocumentBuf>,
    bytes_per_second: Option<u32>,
    hours: Option<Hours>,
) -> oneshot::Receiver<Checked> {
    let (done, checked) = oneshot::channel();
    let order = CheckOrder { collection: "invoices".into(), after, bytes_per_second, hours, done };
    capture.checks.send(order).await.unwrap();
    checked
}

async fn is_checking(capture: &Capture) {
    let checking = || async { capture.status.borrow().checking.clone() };
    eventually("a check is under way", PATIENCE, checking).await;
}

/// An hour of the day that ends at the beginning of a minute since 1970.
fn hour_until(minute: u64) -> Hours {
    let clock = |minute: u64| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
    Hours::parse(&format!("{}-{}", clock(minute - 60), clock(minute))).unwrap()
}

fn seconds_since_1970() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
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
    // About four seconds for 20 MB.
    let mut checked = ordered(&capture, None, Some(5_000_000), None).await;
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
    // The whole of it would take 100 seconds; they are over in 5 to 65.
    let hours = hour_until((seconds_since_1970() + 5) / 60 + 1);
    let checked = ordered(&capture, None, Some(200_000), Some(hours)).await;
    let checked = tokio::time::timeout(PATIENCE * 2, checked).await.expect("in time");
    let Ok(Checked::CutOff(some, through)) = checked else { panic!("not cut off: {checked:?}") };
    assert!(some.documents > 0 && some.documents < 200, "{some:?}");
    let rest = check(&capture, through.get_i32("_id").ok()).await;
    assert_eq!(some.documents + rest.documents, 200);
    capture.stop().await;
}

/// Where the source can't go by an index it sorts the whole of a collection, and what follows waits for as long
/// as that is worth at the rate: here for many hours.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_has_long_to_wait_makes_room_for_whatever_comes() {
    let mongo = mongo().await;
    let dir = dir();
    let collated = doc! { "create": "invoices", "collation": { "locale": "en" } };
    mongo.db.run_command(collated).await.unwrap();
    let wide = |n: i32| doc! { "_id": n.to_string(), "text": "x".repeat(10_000) };
    insert(&mongo.db, "invoices", (0..100).map(wide)).await;
    let followed = ["invoices", "plans", "users"];
    let capture = Capture::start_with(source(&mongo), dir.path(), &collections(&followed));
    capture.must_equal(&mongo.db, &followed).await;
    let in_time = |checked| tokio::time::timeout(PATIENCE, checked);
    // Sorted for longer than the source keeps a time: a second sort is due before the first is paid for.
    let too_old =
        doc! { "errorCode": 239, "failCommands": ["find"], "namespace": "invoify.invoices" };
    let too_old = mongo.fail_point("failCommand", doc! { "times": 1 }, too_old).await;
    let first = in_time(ordered(&capture, None, Some(1), None).await).await.expect("at once");
    assert!(matches!(first, Ok(Checked::Whole(report)) if report.documents == 100), "{first:?}");
    too_old.fired(1).await;
    too_old.off().await;

    // Its asker goes away, and somebody comes who is in a hurry.
    let waits = ordered(&capture, None, Some(1), None).await;
    is_checking(&capture).await;
    drop(waits);
    let hurried = in_time(ordered(&capture, None, None, None).await).await.expect("at once");
    assert!(matches!(hurried, Ok(Checked::Whole(_))), "{hurried:?}");

    let over = hour_until(seconds_since_1970() / 60);
    let over = in_time(ordered(&capture, None, Some(1), Some(over)).await).await;
    assert!(over.expect("its hours are over").is_err(), "nothing was read");

    // A check that the tail owes itself, of documents that were renamed and whose keys it can't read.
    insert_unread(&mongo, "plans", dirtied(&doc! { "_id": "dirty one" })).await;
    insert(&mongo.db, "plans", numbered(0..10)).await;
    capture.caught_up(&mongo.db).await;
    let waits = ordered(&capture, None, Some(1), None).await;
    is_checking(&capture).await;
    let rename = doc! { "renameCollection": "invoify.plans", "to": "invoify.users" };
    mongo.client.database("admin").run_command(rename).await.unwrap();
    assert!(in_time(waits).await.expect("it gives way").is_err(), "nothing was read");
    eventually("what was owed is found", PATIENCE, || async {
        (capture.reader.quarantine().unwrap().len() == 1).then_some(())
    })
    .await;
    let users = mongo.db.collection::<Document>("users");
    users.delete_one(doc! { "_id": { "$type": "string" } }).await.unwrap();
    capture.must_equal(&mongo.db, &followed).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_start_from_the_time_alone_all_is_checked_even_where_the_stream_is_cut_off_again() {
    let wide = |n: i32| doc! { "_id": n, "text": "x".repeat(50_000) };
    let (mongo, dir) = spoiled((0..300).map(wide)).await;
    let refused = mongo.fail_command(&["aggregate"], 280, &[], doc! { "times": 2 }).await;
    let capture = Capture::start(&mongo, dir.path());
    is_checking(&capture).await;
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

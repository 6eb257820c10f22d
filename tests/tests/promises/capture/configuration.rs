//! The configuration changes: what it gives and takes arrives as changes, and the rest goes on.

use std::collections::BTreeMap;

use bson::{Document, RawDocumentBuf, doc};
use tidewire_server::config::CollectionConfig;
use tidewire_server::log::{Body, Cursor, Flow, PageRequest, Scope, Since};
use tidewire_tests::harness::{eventually, mongo};

use super::checks::spoil;
use super::oddities::dirty;
use super::{COLLECTIONS, Capture, PATIENCE, collections, dir, insert, numbered, source};

/// What a reader has: upserts and deletes by collection and `n` or `_id`, and whether that is complete.
struct Told {
    upserts: BTreeMap<String, Vec<i32>>,
    deletes: BTreeMap<String, Vec<i32>>,
    complete: bool,
    cursor: Cursor,
}

/// Reads as a token that holds `channels` and sees `names`.
fn read_as(capture: &Capture, since: &Since, names: &[&str], channels: &[&str]) -> Told {
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let (names, channels) = (texts(names), texts(channels));
    let (mut upserts, mut deletes) = (BTreeMap::new(), BTreeMap::new());
    let mut since = since.clone();
    loop {
        let scope = Scope::Channels { collections: &names, channels: &channels };
        let request = PageRequest { since: &since, scope, limit: 1_000, operation_time: 0 };
        let page = capture.reader.page(&request, &mut |entry| {
            let (to, document): (&mut BTreeMap<String, Vec<i32>>, _) = match entry.body {
                Body::Upsert(document) => (&mut upserts, document),
                Body::Delete(document) => (&mut deletes, document),
            };
            let id = document.get_i32("_id").unwrap();
            to.entry(entry.collection.to_owned()).or_default().push(id);
            Flow::Took
        });
        let page = page.expect("a page");
        if !page.has_more {
            let (complete, cursor) = (page.complete, page.cursor);
            return Told { upserts, deletes, complete, cursor };
        }
        since = Since::Cursor(page.cursor);
    }
}

fn owned(range: std::ops::Range<i32>) -> impl Iterator<Item = Document> {
    range.map(|n| {
        let mut document = doc! { "_id": n, "owner": n % 10, "v": 0 };
        if n % 2 == 0 {
            document.insert("secret", "hidden");
        }
        document
    })
}

fn rules(channels: &str, exclude: &[&str]) -> Vec<CollectionConfig> {
    let mut rules = collections(&COLLECTIONS);
    rules[0].channels = vec![channels.to_owned()];
    rules[0].exclude = exclude.iter().map(|&path| path.to_owned()).collect();
    rules
}

#[tokio::test(flavor = "multi_thread")]
async fn other_rules_are_one_commit_and_no_older_version_reaches_those_whom_they_shut_out() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", owned(0..100)).await;
    insert(&mongo.db, "plans", numbered(0..5)).await;
    let start = |rules: &[CollectionConfig]| Capture::start_with(source(&mongo), dir.path(), rules);
    let capture = start(&rules("everyone", &[]));
    capture.copied().await;
    let ann = |since: &Since| read_as(&capture, since, &COLLECTIONS, &["everyone", "user:3"]);
    let first = ann(&Since::Nothing);
    assert!(first.complete);
    let everyone = read_as(&capture, &Since::Nothing, &COLLECTIONS, &["everyone"]);
    // Versions that everybody may see as long as these rules hold, and that nobody reads in time.
    let all = doc! { "$inc": { "v": 1 } };
    mongo.db.collection::<Document>("invoices").update_many(doc! {}, all).await.unwrap();
    insert(&mongo.db, "plans", numbered(5..6)).await;
    capture.caught_up(&mongo.db).await;
    capture.stop().await;

    let capture = start(&rules("user:{owner}", &[]));
    capture.caught_up(&mongo.db).await;
    let told = read_as(&capture, &Since::Cursor(everyone.cursor), &COLLECTIONS, &["everyone"]);
    assert_eq!(told.upserts, BTreeMap::from([("plans".to_owned(), vec![5])]));
    assert_eq!(told.deletes["invoices"].len(), 100);
    assert!(told.complete);
    let ann =
        read_as(&capture, &Since::Cursor(first.cursor), &COLLECTIONS, &["everyone", "user:3"]);
    assert_eq!(ann.upserts["invoices"].len(), 10, "her own, once each");
    assert!(ann.upserts["invoices"].iter().all(|id| id % 10 == 3));
    assert_eq!(ann.deletes["invoices"].len(), 90);
    assert!(ann.complete);
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let before = capture.read(&Since::Nothing, |_, _, _| {});
    capture.stop().await;

    // A hidden field: those that have it are told again, and no others.
    let capture = start(&rules("user:{owner}", &["secret"]));
    capture.caught_up(&mongo.db).await;
    let since = Since::Cursor(ann.cursor);
    let told = read_as(&capture, &since, &COLLECTIONS, &["everyone", "user:3"]);
    assert!(told.upserts.is_empty() && told.deletes.is_empty(), "none of 3, 13, … has it");
    let mut changes = 0;
    capture.read(&Since::Cursor(before), |_, name, _| changes += u32::from(name == "invoices"));
    assert_eq!(changes, 50, "the differences alone are appended");
    assert!(told.complete);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_added_appears_when_it_is_copied_and_the_others_go_on_meanwhile() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    insert(&mongo.db, "plans", numbered(0..30)).await;
    let only = collections(&["invoices"]);
    let capture = Capture::start_with(source(&mongo), dir.path(), &only);
    capture.copied().await;
    let first = read_as(&capture, &Since::Nothing, &["invoices"], &["everyone"]);
    capture.stop().await;

    // The source does not let it be copied for now.
    let data = doc! { "failCommands": ["find"], "appName": "tidewire", "errorCode": 246 };
    let refused = mongo.fail_point("failCommand", "alwaysOn", data).await;
    let capture = Capture::start(&mongo, dir.path());
    insert(&mongo.db, "invoices", numbered(100..101)).await;
    let since = Since::Cursor(first.cursor);
    let told = eventually("the others go on", PATIENCE, || async {
        let told = read_as(&capture, &since, &COLLECTIONS, &["everyone"]);
        (!told.upserts.is_empty()).then_some(told)
    })
    .await;
    assert_eq!(told.upserts, BTreeMap::from([("invoices".to_owned(), vec![100])]));
    assert!(told.complete, "what it shows is the source's state");
    assert!(capture.status.borrow().whole && capture.status.borrow().copies["plans"].first);
    refused.off().await;
    capture.copied().await;
    let told = read_as(&capture, &Since::Cursor(told.cursor), &COLLECTIONS, &["everyone"]);
    assert_eq!(told.upserts, BTreeMap::from([("plans".to_owned(), (0..30).collect())]));
    assert!(told.complete);
    capture.stop().await;

    // Removed, changed meanwhile, and added again: the differences alone are told.
    let capture = Capture::start_with(source(&mongo), dir.path(), &only);
    capture.copied().await;
    mongo.db.collection::<Document>("plans").delete_one(doc! { "_id": 7 }).await.unwrap();
    insert(&mongo.db, "plans", numbered(30..31)).await;
    capture.caught_up(&mongo.db).await;
    let less = read_as(&capture, &Since::Cursor(told.cursor.clone()), &["invoices"], &["everyone"]);
    assert_eq!(less.deletes["plans"].len(), 30, "it is gone for who follows the configuration");
    capture.stop().await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let back = read_as(&capture, &Since::Cursor(told.cursor), &COLLECTIONS, &["everyone"]);
    assert_eq!(back.upserts, BTreeMap::from([("plans".to_owned(), vec![30])]));
    assert_eq!(back.deletes, BTreeMap::from([("plans".to_owned(), vec![7])]));
    assert!(back.complete);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_added_leaves_the_others_alone_although_it_was_written_last() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    let only = collections(&["invoices"]);
    let capture = Capture::start_with(source(&mongo), dir.path(), &only);
    capture.must_equal(&mongo.db, &["invoices"]).await;
    // The stream's mark is at this write now, which it was not told.
    insert(&mongo.db, "plans", numbered(0..30)).await;
    capture.caught_up(&mongo.db).await;
    capture.stop().await;
    spoil(dir.path());
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let read = read_as(&capture, &Since::Nothing, &COLLECTIONS, &["everyone"]);
    assert_eq!(read.upserts["plans"].len(), 30);
    // 4 was deleted behind the log's back: nobody looked.
    assert!(!read.upserts["invoices"].contains(&4), "all was compared for it");
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_in_quarantine_is_told_to_nobody_under_rules_that_nobody_knows_it_under() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", owned(0..10)).await;
    let start = |rules: &[CollectionConfig]| Capture::start_with(source(&mongo), dir.path(), rules);
    let capture = start(&rules("everyone", &[]));
    capture.copied().await;
    let raw = mongo.db.collection::<RawDocumentBuf>("invoices");
    raw.replace_one(doc! { "_id": 5 }, dirty(5)).await.unwrap();
    capture.caught_up(&mongo.db).await;
    let told = |capture: &Capture, since: &Since| {
        read_as(capture, since, &COLLECTIONS, &["everyone"]).deletes.get("invoices").cloned()
    };
    let before =
        Since::Cursor(read_as(&capture, &Since::Nothing, &COLLECTIONS, &["everyone"]).cursor);
    assert_eq!(told(&capture, &Since::Nothing), Some(vec![5]));
    capture.stop().await;
    let capture = start(&rules("user:{owner}", &[]));
    capture.copied().await;
    assert_eq!(told(&capture, &Since::Nothing), None, "a new reader has never heard of it");
    let gone = told(&capture, &before).unwrap_or_default();
    assert_eq!(gone.len(), 9 + usize::from(gone.contains(&5)), "{gone:?}");
    capture.stop().await;
}

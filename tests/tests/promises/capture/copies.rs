//! Copies while the source changes, stops and starts.

use bson::oid::ObjectId;
use bson::{Bson, Document, doc};
use futures::future::join;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidewire_server::log::Since;
use tidewire_tests::harness::{MongoOptions, mongo, mongo_with, seed};
use tokio_util::sync::CancellationToken;

use super::{COLLECTIONS, Capture, collections, dir, insert, numbered, source};

/// Random changes to the documents `0..20_000`.
async fn load(db: &mongodb::Database, seed: u64, rounds: u32) {
    let mut random = StdRng::seed_from_u64(seed);
    let invoices = db.collection::<Document>("invoices");
    for round in 0..rounds {
        let id = doc! { "_id": random.random_range(0..20_000) };
        let round = i64::from(round);
        match random.random_range(0..6) {
            0 => {
                invoices.delete_one(id).await.unwrap();
            }
            1 => {
                let new = doc! { "n": -1, "round": round };
                invoices.replace_one(id, new).upsert(true).await.unwrap();
            }
            2 => {
                let push = doc! { "$push": { "nested.list": round } };
                invoices.update_one(id, push).await.unwrap();
            }
            _ => {
                let set = doc! { "$set": { "round": round }, "$inc": { "n": 1 } };
                invoices.update_one(id, set).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_under_load_equals_the_source() {
    let mongo = mongo().await;
    let dir = dir();
    let seed = seed();
    for start in (0..20_000).step_by(5_000) {
        insert(&mongo.db, "invoices", numbered(start..start + 5_000)).await;
    }
    let capture = async {
        let capture = Capture::start(&mongo, dir.path());
        capture.copied().await;
        capture
    };
    let (capture, ()) = join(capture, load(&mongo.db, seed, 3_000)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_on_where_it_was_stopped() {
    let mongo = mongo().await;
    let dir = dir();
    let seed = seed();
    for start in (0..20_000).step_by(5_000) {
        let wide = numbered(start..start + 5_000).map(|mut document| {
            document.insert("wide", "y".repeat(2_000));
            document
        });
        insert(&mongo.db, "invoices", wide).await;
    }
    let loaded = load(&mongo.db, seed, 1_500);
    let stopped = async {
        let mut most = 0;
        loop {
            let capture = Capture::start(&mongo, dir.path());
            let mut status = capture.status.clone();
            // Until some more of it is done.
            let seen = status.wait_for(|status| {
                let copy = status.copies.get("invoices");
                copy.is_none_or(|copy| copy.documents > most)
                    && status.phase != tidewire_server::status::SourcePhase::Connecting
            });
            let seen = seen.await.unwrap().copies.get("invoices").copied();
            let Some(copy) = seen else { break capture };
            most = copy.documents;
            capture.stop().await;
        }
    };
    let (capture, ()) = join(stopped, loaded).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_the_server_was_down_is_told_once() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    capture.stop().await;
    insert(&mongo.db, "invoices", numbered(100..150)).await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.delete_many(doc! { "_id": { "$lt": 10 } }).await.unwrap();
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut changes = 0;
    capture.read(&Since::Cursor(cursor), |_, _, _| changes += 1);
    assert_eq!(changes, 60);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_added_or_gets_other_rules_is_copied_and_no_other_is() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    insert(&mongo.db, "plans", numbered(0..30)).await;
    let only = collections(&["invoices"]);
    let capture = Capture::start_with(source(&mongo), dir.path(), &only);
    capture.must_equal(&mongo.db, &["invoices"]).await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    capture.stop().await;

    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut told = Vec::new();
    let cursor = capture.read(&Since::Cursor(cursor), |_, name, _| told.push(name.to_owned()));
    assert_eq!(told, vec!["plans"; 30]);
    capture.stop().await;

    let mut other = collections(&COLLECTIONS);
    other[0].channels = vec!["number:{n}".to_owned()];
    let capture = Capture::start_with(source(&mongo), dir.path(), &other);
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut told = Vec::new();
    capture.read(&Since::Cursor(cursor), |_, name, _| told.push(name.to_owned()));
    assert_eq!(told, vec!["invoices"; 100]);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_orders_ids_by_a_rule_of_its_own_is_copied_whole() {
    let mongo = mongo().await;
    let dir = dir();
    let clustered =
        doc! { "create": "plans", "clusteredIndex": { "key": { "_id": 1 }, "unique": true } };
    mongo.db.run_command(clustered).await.unwrap();
    let collated =
        doc! { "create": "invoices", "collation": { "locale": "en", "numericOrdering": true } };
    mongo.db.run_command(collated).await.unwrap();
    let named =
        (0..3_000).map(|n| doc! { "_id": format!("no {}", n * 7), "wide": "z".repeat(4_000) });
    insert(&mongo.db, "invoices", named).await;
    insert(&mongo.db, "plans", numbered(0..3_000)).await;
    // In chunks of every kind of `_id`.
    let wide = |id: Bson| doc! { "_id": id, "wide": "z".repeat(200_000) };
    let kinds: [fn(i32) -> Bson; 6] = [
        |n| f64::from(-n).into(),
        |n| format!("no {n}").into(),
        |n| doc! { "no": n }.into(),
        |n| ObjectId::from_bytes([n as u8; 12]).into(),
        |n| Bson::DateTime(bson::DateTime::from_millis(n.into())),
        |n| Bson::Timestamp(bson::Timestamp { time: 1, increment: n as u32 }),
    ];
    let ids = kinds.iter().flat_map(|id| (1..=20).map(id));
    insert(&mongo.db, "plans", ids.map(wide)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

/// All of such a collection is sorted before its first document comes: where that takes longer than the source
/// keeps a time, no second try would end either.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_read_at_one_time_is_read_without_and_ends_exact() {
    let mongo = mongo_with(MongoOptions { test_commands: true, ..MongoOptions::default() }).await;
    let dir = dir();
    let collated = doc! { "create": "invoices", "collation": { "locale": "en" } };
    mongo.db.run_command(collated).await.unwrap();
    insert(&mongo.db, "invoices", (0..500).map(|n| doc! { "_id": format!("no {n}"), "x": 0 }))
        .await;
    let too_old =
        doc! { "errorCode": 239, "failCommands": ["find"], "namespace": "invoify.invoices" };
    let too_old = mongo.fail_point("failCommand", "alwaysOn", too_old).await;
    let capture = Capture::start(&mongo, dir.path());
    let invoices = mongo.db.collection::<Document>("invoices");
    for x in 1..20 {
        invoices.update_many(doc! {}, doc! { "$set": { "x": x } }).await.unwrap();
    }
    too_old.fired(3).await;
    too_old.off().await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_built_on_what_the_log_had_of_a_collection_before_it_was_away() {
    let mongo = mongo().await;
    let dir = dir();
    let wide = |n: i32| doc! { "_id": n, "x": 0, "text": "w".repeat(40_000) };
    insert(&mongo.db, "invoices", (0..400).map(wide)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
    let without = collections(&["plans"]);
    let capture = Capture::start_with(source(&mongo), dir.path(), &without);
    capture.caught_up(&mongo.db).await;
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.update_many(doc! {}, doc! { "$set": { "x": 1 } }).await.unwrap();
    insert(&mongo.db, "plans", numbered(0..1)).await;
    capture.caught_up(&mongo.db).await;
    capture.stop().await;
    // It comes back under other rules, and changes while it is copied.
    let mut other = collections(&COLLECTIONS);
    other[0].channels = vec!["number:{x}".to_owned()];
    let capture = Capture::start_with(source(&mongo), dir.path(), &other);
    for y in 0..5 {
        invoices.update_many(doc! {}, doc! { "$set": { "y": y } }).await.unwrap();
    }
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capped_collection_is_copied_although_one_of_its_documents_never_rests() {
    let mongo = mongo().await;
    let dir = dir();
    let capped = doc! { "create": "plans", "capped": true, "size": 16_000_000 };
    mongo.db.run_command(capped).await.unwrap();
    let wide = |n: i32| doc! { "_id": n, "n": 0_i64, "text": "w".repeat(10_000) };
    insert(&mongo.db, "plans", (0..1_000).map(wide)).await;
    let plans = mongo.db.collection::<Document>("plans");
    let stop = CancellationToken::new();
    let restless = async {
        let mut n = 0_i64;
        while !stop.is_cancelled() {
            n += 1;
            for id in [1, 500, 999] {
                let next = doc! { "$set": { "n": n } };
                plans.update_one(doc! { "_id": id }, next).await.unwrap();
            }
        }
    };
    let copied = async {
        let capture = Capture::start(&mongo, dir.path());
        capture.copied().await;
        stop.cancel();
        capture
    };
    let ((), capture) = futures::future::join(restless, copied).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

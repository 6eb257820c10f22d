//! What happens to whole collections.

use std::collections::{BTreeMap, BTreeSet};

use bson::{Document, doc};
use tidewire_server::log::{Body, Since};
use tidewire_tests::harness::{Mongo, mongo};

use super::{COLLECTIONS, Capture, dir, insert, numbered};

async fn rename(mongo: &Mongo, from: &str, to: &str, drop_target: bool) {
    let command = doc! { "renameCollection": from, "to": to, "dropTarget": drop_target };
    mongo.client.database("admin").run_command(command).await.unwrap();
}

async fn drop_collection(mongo: &Mongo, name: &str) {
    mongo.db.collection::<Document>(name).drop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_between_names_that_are_followed_is_one_commit() {
    let mongo = mongo().await;
    let dir = dir();
    let capture = Capture::start(&mongo, dir.path());
    for drop_target in [false, true] {
        drop_collection(&mongo, "plans").await;
        insert(&mongo.db, "invoices", numbered(0..1_000)).await;
        if drop_target {
            // 100 are as in the other, 100 are not, 100 are in this one alone.
            insert(&mongo.db, "plans", numbered(100..200)).await;
            insert(&mongo.db, "plans", (200..300).map(|n| doc! { "_id": n, "n": -n })).await;
            insert(&mongo.db, "plans", numbered(5_000..5_100)).await;
        }
        capture.must_equal(&mongo.db, &COLLECTIONS).await;
        let cursor = capture.read(&Since::Nothing, |_, _, _| {});
        rename(&mongo, "invoify.invoices", "invoify.plans", drop_target).await;
        insert(&mongo.db, "invoices", numbered(999..1_001)).await;
        capture.must_equal(&mongo.db, &COLLECTIONS).await;
        let mut commits = BTreeMap::<u64, usize>::new();
        capture.read(&Since::Cursor(cursor), |position, _, _| {
            *commits.entry(position.cluster_time).or_default() += 1;
        });
        // 1,000 deletes under the old name; under the new one 1,000 upserts, or 900 and 100 deletes.
        let commits: Vec<_> = commits.into_values().collect();
        assert_eq!(commits, [2_000, 1, 1], "the rename with only the differences, two inserts");
        drop_collection(&mongo, "invoices").await;
    }
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renames_across_names_that_are_not_followed_and_what_ends_in_one_are_as_in_the_source() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    insert(&mongo.db, "plans", numbered(50..60)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let elsewhere = mongo.db.collection::<Document>("elsewhere");
    for drop_target in [false, true] {
        if !drop_target {
            drop_collection(&mongo, "plans").await;
        }
        elsewhere.drop().await.unwrap();
        insert(&mongo.db, "elsewhere", numbered(10..1_500)).await;
        rename(&mongo, "invoify.elsewhere", "invoify.plans", drop_target).await;
        insert(&mongo.db, "plans", numbered(3_000..3_010)).await;
        capture.must_equal(&mongo.db, &COLLECTIONS).await;
        insert(&mongo.db, "elsewhere", numbered(0..5)).await;
        if !drop_target {
            elsewhere.drop().await.unwrap();
        }
        rename(&mongo, "invoify.invoices", "invoify.elsewhere", drop_target).await;
        insert(&mongo.db, "invoices", numbered(0..7)).await;
        capture.must_equal(&mongo.db, &COLLECTIONS).await;
    }
    // Across databases, both ways.
    insert(&mongo.client.database("other"), "plans", numbered(7..70)).await;
    rename(&mongo, "other.plans", "invoify.plans", true).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    rename(&mongo, "invoify.plans", "other.gone", false).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    elsewhere.drop().await.unwrap();
    // `$out` and `$merge`.
    insert(&mongo.db, "elsewhere", numbered(200..900)).await;
    let out = vec![doc! { "$match": { "n": { "$lt": 500 } } }, doc! { "$out": "plans" }];
    elsewhere.aggregate(out).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let merge = vec![doc! { "$set": { "merged": true } }, doc! { "$merge": "invoices" }];
    elsewhere.aggregate(merge).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    // Capped at fewer documents than there are; then others push the oldest out.
    let capped = doc! { "convertToCapped": "plans", "size": 8_192 };
    mongo.db.run_command(capped).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    insert(&mongo.db, "plans", numbered(10_000..10_100)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert!(capture.state().keys().all(|(name, _)| COLLECTIONS.contains(&name.as_str())));
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_of_40000_documents_is_one_commit_and_the_same_ids_can_come_again() {
    let mongo = mongo().await;
    let dir = dir();
    let small = |range: std::ops::Range<i32>| range.map(|n| doc! { "_id": n, "n": n });
    for start in (0..40_000).step_by(20_000) {
        insert(&mongo.db, "invoices", small(start..start + 20_000)).await;
    }
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let mut head = capture.reader.head();
    let before = head.borrow_and_update().seq;
    drop_collection(&mongo, "invoices").await;
    let seen = head.wait_for(|head| head.seq > before).await.unwrap().seq;
    assert_eq!(seen, before + 40_000, "a reader saw a part of the drop");
    insert(
        &mongo.db,
        "invoices",
        small(0..100).map(|mut d| {
            d.insert("new", true);
            d
        }),
    )
    .await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut deletes = BTreeSet::new();
    capture.read(&Since::Cursor(cursor), |position, _, body| {
        if matches!(body, Body::Delete(_)) {
            deletes.insert(position.cluster_time);
        }
    });
    assert_eq!(deletes.len(), 1);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_takes_a_followed_name_is_not_read_and_other_changes_of_a_collection_pass() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..50)).await;
    insert(&mongo.db, "plans", numbered(0..5)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let modify = doc! { "collMod": "invoices", "validator": { "n": { "$gte": 0 } } };
    mongo.db.run_command(modify).await.unwrap();
    let index =
        doc! { "createIndexes": "invoices", "indexes": [{ "key": { "n": 1 }, "name": "n" }] };
    mongo.db.run_command(index).await.unwrap();
    let images =
        doc! { "collMod": "invoices", "changeStreamPreAndPostImages": { "enabled": true } };
    mongo.db.run_command(images).await.unwrap();
    drop_collection(&mongo, "plans").await;
    let view = doc! { "create": "plans", "viewOn": "invoices", "pipeline": [] };
    mongo.db.run_command(view).await.unwrap();
    insert(&mongo.db, "invoices", numbered(50..60)).await;
    capture.must_equal(&mongo.db, &["invoices"]).await;
    capture.stop().await;
    // Nor when everything has to be copied again.
    let lost = mongo.fail_command(&["aggregate"], 286, &[], doc! { "times": 1 }).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &["invoices"]).await;
    lost.fired(1).await;
    lost.off().await;
    mongo.db.run_command(doc! { "drop": "plans" }).await.unwrap();
    insert(&mongo.db, "plans", numbered(0..5)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_starts_at_the_very_drop_of_its_database_gets_going() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    mongo.db.drop().await.unwrap();
    let capture = Capture::start(&mongo, dir.path());
    insert(&mongo.db, "invoices", numbered(0..3)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

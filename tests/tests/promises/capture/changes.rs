//! Every change, exactly once, in commits.

use std::collections::{BTreeMap, BTreeSet};

use bson::{Bson, Decimal128, RawDocumentBuf, doc, oid::ObjectId};
use mongodb::bson::Document;
use tidewire_protocol::Position;
use tidewire_server::access::channels::Rules;
use tidewire_server::log::{Body, Scope, Since};
use tidewire_tests::harness::{Mongo, MongoOptions, eventually, mongo, mongo_with};

use super::faults::change_stream;
use super::{
    COLLECTIONS, Capture, PATIENCE, collections, dir, insert, numbered, source, source_state,
};

#[tokio::test(flavor = "multi_thread")]
async fn inserts_updates_replacements_and_deletes_are_in_the_log_as_in_the_source() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..50)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let invoices = mongo.db.collection::<Document>("invoices");
    insert(&mongo.db, "invoices", numbered(50..100)).await;
    insert(&mongo.db, "elsewhere", numbered(0..10)).await;
    let change = doc! { "$set": { "nested.list.1": "two", "new": 1.5 }, "$unset": { "text": "" } };
    invoices.update_many(doc! { "n": { "$lt": 30 } }, change).await.unwrap();
    invoices.update_many(doc! { "n": 7 }, doc! { "$push": { "nested.list": 9 } }).await.unwrap();
    let pipeline = vec![doc! { "$set": { "nested.list": { "$slice": ["$nested.list", 1] } } }];
    invoices.update_many(doc! { "n": { "$gt": 90 } }, pipeline).await.unwrap();
    invoices.replace_one(doc! { "_id": 3 }, doc! { "other": true, "_id": 3 }).await.unwrap();
    invoices.delete_many(doc! { "n": { "$gte": 60, "$lt": 70 } }).await.unwrap();
    insert(&mongo.db, "invoices", [doc! { "_id": 61, "again": true }]).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

/// Names that dotted paths can't tell from places inside of other fields.
async fn change_odd_names(mongo: &Mongo) {
    let invoices = mongo.db.collection::<Document>("invoices");
    for (field, id) in [("a.b", 0), ("a.c", 1), ("$set", 2), ("list.0", 3)] {
        let field = doc! { "$literal": field };
        let set = doc! { "$setField": { "field": field, "input": "$$ROOT", "value": "named so" } };
        let pipeline = vec![doc! { "$replaceWith": set }];
        invoices.update_one(doc! { "_id": id }, pipeline).await.unwrap();
    }
    let inside = doc! { "$set": { "a.b": "inside", "list.0": "inside" }, "$unset": { "gone": "" } };
    invoices.update_many(doc! { "_id": { "$gte": 4 } }, inside).await.unwrap();
}

async fn odd_names(mongo: &Mongo) {
    let document = |id| doc! { "_id": id, "a": { "b": 1 }, "list": [1, 2], "gone": true };
    insert(&mongo.db, "invoices", (0..8).map(document)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_with_a_dot_in_its_name_is_not_taken_for_one_inside_of_another() {
    let mongo = mongo().await;
    let dir = dir();
    odd_names(&mongo).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    change_odd_names(&mongo).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_exact_deltas_is_followed_by_dotted_paths() {
    let mongo = mongo().await;
    let dir = dir();
    odd_names(&mongo).await;
    // What the source's parser says of a field that it does not know, to the stream's first opening.
    let data = doc! { "failCommands": ["aggregate"], "appName": "tidewire", "errorCode": 40_415 };
    let refused = mongo.fail_point("failCommand", doc! { "times": 1 }, data).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let inside = doc! { "$set": { "a.b": 2, "list.1": "two" }, "$unset": { "gone": "" } };
    mongo.db.collection::<Document>("invoices").update_many(doc! {}, inside).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert_eq!(refused.off().await, 1);
    let stage = change_stream(&mongo).await;
    assert!(
        !stage.contains_key("showRawUpdateDescription"),
        "another command was refused: {stage}"
    );
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_change_of_a_full_batch_does_not_wait_for_the_next_change() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "plans", [doc! { "_id": 0 }]).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let mut seq = capture.reader.head().borrow().seq;
    capture.stop().await;
    let mut waits = Vec::new();
    for round in 0..5 {
        // As many as one batch takes, all there when the stream opens.
        insert(&mongo.db, "invoices", numbered(round * 2_000..(round + 1) * 2_000)).await;
        let capture = Capture::start(&mongo, dir.path());
        let mut head = capture.reader.head();
        head.wait_for(|head| head.seq >= seq + 1_999).await.unwrap();
        let nearly = std::time::Instant::now();
        head.wait_for(|head| head.seq >= seq + 2_000).await.unwrap();
        waits.push(nearly.elapsed());
        seq += 2_000;
        capture.must_equal(&mongo.db, &COLLECTIONS).await;
        capture.stop().await;
    }
    waits.sort();
    // The source itself holds an answer for 500 ms when nothing follows.
    assert!(waits[2].as_millis() < 100, "half of them waited longer than {:?}", waits[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_of_id_is_copied_and_followed() {
    let mongo = mongo().await;
    let dir = dir();
    let ids = |round: i32| {
        vec![
            Bson::MinKey,
            Bson::Null,
            Bson::Int32(7),
            Bson::Int64(8),
            Bson::Double(9.5),
            Bson::Decimal128("10.50".parse::<Decimal128>().unwrap()),
            Bson::Double(f64::NAN),
            Bson::Double(f64::INFINITY),
            Bson::Int64(i64::MIN),
            Bson::String(String::new()),
            Bson::String("a\0b".into()),
            Bson::String("č".into()),
            Bson::Symbol("sym".into()),
            Bson::Document(doc! { "a": 1, "b": { "c": "d" } }),
            Bson::Document(doc! {}),
            Bson::Binary(bson::Binary {
                subtype: bson::spec::BinarySubtype::Uuid,
                bytes: vec![3; 16],
            }),
            Bson::ObjectId(ObjectId::from_bytes([5; 12])),
            Bson::Boolean(true),
            Bson::Boolean(false),
            Bson::DateTime(bson::DateTime::MIN),
            Bson::DateTime(bson::DateTime::MAX),
            Bson::Timestamp(bson::Timestamp { time: 1, increment: 2 }),
            Bson::JavaScriptCode("f()".into()),
            Bson::MaxKey,
        ]
        .into_iter()
        .map(move |id| doc! { "_id": id, "round": round })
    };
    insert(&mongo.db, "invoices", ids(1)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    insert(&mongo.db, "plans", ids(2)).await;
    let plans = mongo.db.collection::<Document>("plans");
    plans.update_many(doc! {}, doc! { "$set": { "seen": true } }).await.unwrap();
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.delete_many(doc! { "_id": { "$type": "number" } }).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_20000_changes_is_one_commit() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "plans", [doc! { "_id": 0 }]).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let mut head = capture.reader.head();
    let seq_before = head.borrow_and_update().seq;

    let mut session = mongo.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let invoices = mongo.db.collection::<Document>("invoices");
    for start in (0..20_000).step_by(5_000) {
        invoices.insert_many(numbered(start..start + 5_000)).session(&mut session).await.unwrap();
    }
    session.commit_transaction().await.unwrap();
    let seen = head.wait_for(|head| head.seq > seq_before).await.unwrap().seq;
    assert_eq!(seen, seq_before + 20_000, "a reader saw a part of the transaction");

    let mut positions = Vec::new();
    capture.read(&Since::Cursor(cursor), |position, collection, body| {
        assert!(matches!(body, Body::Upsert(_)) && collection == "invoices");
        positions.push(position);
    });
    let times: BTreeSet<u64> = positions.iter().map(|position| position.cluster_time).collect();
    assert_eq!(times.len(), 1);
    let ordinals: Vec<u32> = positions.iter().map(|position| position.ordinal).collect();
    assert_eq!(ordinals, (0..20_000).collect::<Vec<_>>());
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_transaction_does_not_wait_for_the_next_change() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "plans", [doc! { "_id": 0 }]).await;
    insert(&mongo.db, "invoices", [doc! { "_id": 0 }]).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let mut head = capture.reader.head();
    let mut waits = Vec::new();
    for n in 1..=20 {
        let before = head.borrow_and_update().seq;
        let mut session = mongo.client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        for name in COLLECTIONS {
            let collection = mongo.db.collection::<Document>(name);
            collection.insert_one(doc! { "_id": n }).session(&mut session).await.unwrap();
        }
        session.commit_transaction().await.unwrap();
        let committed = std::time::Instant::now();
        let seq = head.wait_for(|head| head.seq > before).await.unwrap().seq;
        assert_eq!(seq, before + 2);
        waits.push(committed.elapsed());
    }
    waits.sort();
    // The source itself holds an answer for 500 ms when nothing follows.
    assert!(waits[10].as_millis() < 100, "half of them waited longer than {:?}", waits[10]);
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_collection_is_emptied_and_can_come_again() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..500)).await;
    insert(&mongo.db, "plans", numbered(0..5)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    let invoices = mongo.db.collection::<Document>("invoices");
    invoices.drop().await.unwrap();
    insert(&mongo.db, "invoices", numbered(100..110)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut deletes = BTreeSet::new();
    capture.read(&Since::Cursor(cursor), |position, _, body| {
        if let Body::Delete(_) = body {
            deletes.insert(position.cluster_time);
        }
    });
    assert_eq!(deletes.len(), 1, "the drop is one commit");

    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    mongo.db.drop().await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    assert!(capture.state().is_empty());
    let mut deletes: BTreeMap<String, (usize, BTreeSet<u64>)> = BTreeMap::new();
    capture.read(&Since::Cursor(cursor), |position, collection, _| {
        let of = deletes.entry(collection.to_owned()).or_default();
        of.0 += 1;
        of.1.insert(position.cluster_time);
    });
    // MongoDB drops a database collection by collection.
    let each = |name: &str| deletes.get(name).map(|(count, times)| (*count, times.len()));
    assert_eq!((each("invoices"), each("plans")), (Some((10, 1)), Some((5, 1))));
    insert(&mongo.db, "plans", numbered(3..30)).await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_collection_leaves_its_old_name_and_fills_the_new_one() {
    let mongo = mongo().await;
    let dir = dir();
    insert(&mongo.db, "invoices", numbered(0..100)).await;
    insert(&mongo.db, "plans", numbered(50..60)).await;
    insert(&mongo.db, "elsewhere", numbered(1_000..1_050)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let admin = mongo.client.database("admin");
    for (from, to) in [("invoices", "plans"), ("elsewhere", "invoices"), ("plans", "elsewhere")] {
        let (from, to) = (format!("invoify.{from}"), format!("invoify.{to}"));
        let rename = doc! { "renameCollection": from, "to": to, "dropTarget": true };
        admin.run_command(rename).await.unwrap();
        capture.must_equal(&mongo.db, &COLLECTIONS).await;
    }
    // `$out` ends in a rename too.
    let out = vec![doc! { "$match": { "n": { "$lt": 10 } } }, doc! { "$out": "plans" }];
    mongo.db.collection::<Document>("elsewhere").aggregate(out).await.unwrap();
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_leaves_a_document_in_the_channels_that_its_fields_name() {
    let mongo = mongo().await;
    let dir = dir();
    let owned = |id: i32| doc! { "_id": id, "owner": { "ids": [id, id + 1] }, "status": "open", "note": "x" };
    insert(&mongo.db, "invoices", (0..8).map(owned)).await;
    let mut config = collections(&["invoices"]);
    config[0].channels = vec!["owner:{owner.ids}".to_owned(), "status:{status}".to_owned()];
    let capture = Capture::start_with(source(&mongo), dir.path(), &config);
    capture.copied().await;
    let invoices = mongo.db.collection::<Document>("invoices");
    for (id, change) in [
        (0, doc! { "$set": { "note": "elsewhere", "ownership": 1 } }),
        (1, doc! { "$set": { "owner.ids.0": 70 } }),
        (2, doc! { "$set": { "status": "paid" } }),
        (3, doc! { "$unset": { "owner": "" } }),
        (4, doc! { "$push": { "owner.ids": 71 } }),
        (5, doc! { "$rename": { "note": "status" } }),
        (6, doc! { "$set": { "owner": "none" } }),
    ] {
        // What touches no channel goes before and after what does, on the same document.
        for change in [doc! { "$inc": { "n": 1 } }, change, doc! { "$inc": { "n": 1 } }] {
            invoices.update_one(doc! { "_id": id }, change).await.unwrap();
        }
    }
    capture.must_equal(&mongo.db, &["invoices"]).await;
    let rules = Rules::compile(&config[0]).unwrap();
    let mut wanted = BTreeSet::new();
    for document in source_state(&mongo.db, &["invoices"]).await.into_values() {
        let document = RawDocumentBuf::from_bytes(document).unwrap();
        let id = document.get_i32("_id").unwrap();
        wanted.extend(rules.channels_of(&document).into_iter().map(|channel| (channel, id)));
    }
    let mut found = BTreeSet::new();
    let channels: BTreeSet<&String> = wanted.iter().map(|(channel, _)| channel).collect();
    let gone = ["owner:1", "owner:3", "status:x", "owner:none"].map(str::to_owned);
    for channel in channels.into_iter().chain(&gone) {
        let scope = [channel.clone()];
        let scope = Scope::Channels { collections: &["invoices".to_owned()], channels: &scope };
        capture.read_of(scope, &Since::Nothing, |_, _, body| {
            if let Body::Upsert(document) = body {
                found.insert((channel.clone(), document.get_i32("_id").unwrap()));
            }
        });
    }
    assert_eq!(found, wanted);
    assert!(
        wanted.contains(&("owner:71".to_owned(), 4))
            && wanted.contains(&("status:x".to_owned(), 5))
    );
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_in_the_source_goes_from_the_log() {
    let parameters = vec![("ttlMonitorSleepSecs".to_owned(), "1".to_owned())];
    let mongo = mongo_with(MongoOptions { parameters, ..MongoOptions::default() }).await;
    let dir = dir();
    let invoices = mongo.db.collection::<Document>("invoices");
    let after = doc! { "key": { "ends": 1 }, "name": "ends", "expireAfterSeconds": 0 };
    mongo.db.run_command(doc! { "createIndexes": "invoices", "indexes": [after] }).await.unwrap();
    let (now, hour) = (bson::DateTime::now().timestamp_millis(), 3_600_000);
    let document = |id: i32| {
        let ends = now + if id % 5 == 0 { hour } else { i64::from(id) };
        doc! { "_id": id, "ends": bson::DateTime::from_millis(ends) }
    };
    insert(&mongo.db, "invoices", (0..1_000).map(document)).await;
    let capture = Capture::start(&mongo, dir.path());
    capture.copied().await;
    let cursor = capture.read(&Since::Nothing, |_, _, _| {});
    insert(&mongo.db, "invoices", (1_000..6_000).map(document)).await;
    eventually("they have expired", PATIENCE, || async {
        (invoices.count_documents(doc! {}).await.unwrap() == 1_200).then_some(())
    })
    .await;
    capture.must_equal(&mongo.db, &COLLECTIONS).await;
    let mut deletes = 0;
    capture.read(&Since::Cursor(cursor), |position, _, body| {
        assert!(position.ordinal < Position::RECONCILE_ORDINAL_FIRST);
        deletes += u32::from(matches!(body, Body::Delete(_)));
    });
    assert!(deletes >= 4_000, "{deletes}");
    capture.stop().await;
}

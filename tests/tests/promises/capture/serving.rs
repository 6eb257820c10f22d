//! What is served while something is copied again.

use bson::{Document, doc};
use serde_json::Value;
use tidewire_tests::harness::{Claims, Mongo, Server, ServerOptions, eventually, mongo};

use super::{COLLECTIONS, PATIENCE, insert, numbered};

async fn pull(server: &Server, query: &str) -> Value {
    let token = server.token(&Claims::of("ann"));
    let (status, page) = server.pull(&token, query).await;
    assert_eq!(status, 200, "{page}");
    page
}

fn cursor(page: &Value) -> String {
    format!("since={}", page["cursor"].as_str().unwrap())
}

async fn replaced(mongo: &Mongo) {
    let out = vec![doc! { "$match": { "n": { "$lt": 10 } } }, doc! { "$out": "plans" }];
    mongo.db.collection::<Document>("elsewhere").aggregate(out).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_collection_is_copied_again_cursors_go_on_and_only_its_readers_are_incomplete() {
    let mongo = mongo().await;
    insert(&mongo.db, "invoices", numbered(0..10)).await;
    insert(&mongo.db, "plans", numbered(5..20)).await;
    insert(&mongo.db, "elsewhere", numbered(0..50)).await;
    let mut server = Server::start(ServerOptions::following(&mongo, &COLLECTIONS)).await;
    let both = pull(&server, "").await;
    let invoices = pull(&server, "collections=invoices").await;
    assert!(both["complete"] == true && invoices["complete"] == true);

    // The source does not let it be read for now.
    let data = doc! { "failCommands": ["find"], "appName": "tidewire", "errorCode": 246 };
    let refused = mongo.fail_point("failCommand", "alwaysOn", data).await;
    replaced(&mongo).await;
    insert(&mongo.db, "invoices", numbered(10..11)).await;
    let query = cursor(&both);
    let incomplete = eventually("the change is told", PATIENCE, || async {
        let page = pull(&server, &query).await;
        (page["count"] == 1).then_some(page)
    })
    .await;
    assert_eq!(incomplete["changes"][0]["collection"], "invoices");
    assert_eq!(incomplete["complete"], false, "the other is half there");
    let invoices = pull(&server, &format!("{}&collections=invoices", cursor(&invoices))).await;
    assert!(invoices["count"] == 1 && invoices["complete"] == true, "{invoices}");
    let fresh = pull(&server, "").await;
    assert_eq!(fresh["complete"], false, "who begins now is told too");

    refused.off().await;
    let query = cursor(&incomplete);
    let told = eventually("it is complete again", PATIENCE, || async {
        let page = pull(&server, &query).await;
        (page["complete"] == true).then_some(page)
    })
    .await;
    let kinds: Vec<_> = told["changes"].as_array().unwrap().iter().map(|c| &c["type"]).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "delete").count(), 10, "10 to 19 are gone");
    assert_eq!(kinds.iter().filter(|kind| **kind == "upsert").count(), 5, "0 to 4 are new");
    // The cursor from before all of it is complete at the end too, and sees the same.
    let again = pull(&server, &cursor(&both)).await;
    assert!(again["count"] == 16 && again["complete"] == true, "{again}");
    server.stop().await;
}

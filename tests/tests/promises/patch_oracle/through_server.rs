//! The same operations through a real server: what its log holds is what MongoDB has.

use std::collections::BTreeMap;
use std::time::Duration;

use bson::doc;
use bson::raw::RawDocumentBuf;
use futures::TryStreamExt;
use tidewire_server::log::{Body, Flow, Reader, Scope, sort_key};
use tidewire_tests::harness::{Claims, Server, ServerOptions, eventually, mongo, seed};

use super::runner::Runner;
use super::{as_document, sorted};

const OPERATIONS: usize = 3_000;
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);
/// `told_apart` is left out: dotted paths can't tell what is done to it.
const WRITTEN: [&str; 2] = ["plain", "odd"];
/// One document here ends the run.
const END: &str = "end";

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_real_server_holds_what_mongodb_has() {
    let seed = seed();
    let mongo = mongo().await;
    let mut server =
        Server::start(ServerOptions::following(&mongo, &[&WRITTEN[..], &[END]].concat())).await;
    Runner::new(&mongo, &WRITTEN, seed).run(OPERATIONS).await;
    let end = doc! { "_id": END };
    mongo.db.collection::<bson::Document>(END).insert_one(end).await.expect("the last document");
    let token = server.token(&Claims::of("reader"));
    eventually("the server has read the last document", CAUGHT_UP_WITHIN, || async {
        let (status, page) = server.pull(&token, "since=0&collections=end").await;
        (status == 200 && page["count"] == 1).then_some(())
    })
    .await;
    assert!(server.stop().await.success());

    let mut held = BTreeMap::new();
    let reader = Reader::open(&server.data_dir()).expect("the log");
    let mut take = |body: Body<'_>, collection: &str| {
        let (Body::Upsert(document) | Body::Delete(document)) = body;
        let key = sort_key(document.get("_id").expect("BSON").expect("an _id"));
        match body {
            Body::Upsert(document) => {
                held.insert((collection.to_owned(), key), document.to_owned())
            }
            Body::Delete(_) => held.remove(&(collection.to_owned(), key)),
        };
    };
    let read = reader.replay(None, &Scope::Everything, &mut |entry| {
        take(entry.body, entry.collection);
        Flow::Took
    });
    read.expect("the whole log");

    let (mut same, mut order_only) = (0, 0);
    for name in WRITTEN {
        let rows = mongo.db.collection::<RawDocumentBuf>(name).find(doc! {}).await.expect("find");
        for row in rows.try_collect::<Vec<_>>().await.expect("every document") {
            let key = sort_key(row.get("_id").expect("BSON").expect("an _id"));
            let kept = held.remove(&(name.to_owned(), key)).expect("the log has it too");
            let story = || format!("log {}\nMongoDB {}", as_document(&kept), as_document(&row));
            assert!(sorted(&kept) == sorted(&row), "the log has another document\n{}", story());
            if kept == row { same += 1 } else { order_only += 1 }
        }
    }
    println!("{same} documents the same, {order_only} but for the place of moved fields");
    held.retain(|(collection, _), _| collection != END);
    assert!(held.is_empty(), "documents that MongoDB does not have: {}", held.len());
}

//! Every document that is built from a delta is the one that MongoDB has.
//!
//! Random operations run against a real mongod with post-images; then the change stream is read
//! from the start in both forms of delta. Every document patched from the oplog's form is compared,
//! byte for byte, with MongoDB's post-image, with what `findAndModify` answered, and in the end with
//! what the collections hold; one from dotted paths must be the same but for fields that were moved. `SEED` repeats a run, `OPERATIONS` says how long it is.

mod operations;
mod runner;
mod through_server;
mod values;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use bson::raw::{RawDocument, RawDocumentBuf};
use bson::{Bson, Document, doc};
use futures::TryStreamExt;
use mongodb::options::CursorType;
use mongodb::{Cursor, Database};
use runner::{Ran, Runner};
use tidewire_server::capture::patch::{Untrusted, patch};
use tidewire_tests::harness::{mongo, seed};

const OPERATIONS: usize = 6_000;
/// Documents in each collection at most.
const DOCUMENTS: i32 = 36;
/// Ordinary names; odd names; odd names that dotted paths can't tell apart.
const COLLECTIONS: [&str; 3] = ["plain", "odd", "told_apart"];
/// In a hundred of the updates with ordinary names.
const UNTRUSTED_MAX_PERCENT: f64 = 2.0;
/// Of all updates: those whose dotted paths leave a moved field where it was.
const MOVED_MAX_PERCENT: f64 = 4.0;

#[tokio::test(flavor = "multi_thread")]
async fn a_patched_document_is_the_one_that_mongodb_has() {
    let seed = seed();
    let operations =
        std::env::var("OPERATIONS").map_or(OPERATIONS, |text| text.parse().expect("a number"));
    let mongo = mongo().await;
    for name in COLLECTIONS {
        let images = doc! { "create": name, "changeStreamPreAndPostImages": { "enabled": true } };
        mongo.db.run_command(images).await.expect("a collection with post-images");
    }
    let started = Instant::now();
    let ran = Runner::new(&mongo, &COLLECTIONS, seed).run(operations).await;
    println!(
        "{operations} operations in {:.1?}; by kind: {}",
        started.elapsed(),
        table(&ran.kinds)
    );

    let seen = follow(&mongo.db, &ran).await;
    seen.compare_with_collections(&mongo.db).await;
    println!(
        "{} updates, {} answered with their document; post-images that keep a moved field's place: {}",
        seen.updates,
        seen.answered,
        table(&seen.image_order)
    );
    for (form, patched) in [("oplog form", &seen.exact), ("dotted paths", &seen.flat)] {
        let each = patched.spent.as_nanos() / u128::from(patched.tried.max(1));
        let untrusted = table(&patched.untrusted);
        println!("{form}: {} patched, {each} ns each; untrusted: {untrusted}", patched.tried);
    }
    println!("dotted paths: moved fields not told: {}", table(&seen.flat_order));
    let moved: u64 = seen.flat_order.values().sum();
    assert!(100.0 * moved as f64 / (seen.updates as f64) < MOVED_MAX_PERCENT, "too many moved");
    assert!(seen.exact.untrusted.is_empty(), "the oplog's form is never refused");
    let plain = seen.updates_of.get("plain").copied().unwrap_or_default();
    let refused: u64 = seen
        .flat
        .untrusted
        .iter()
        .filter(|(why, _)| why.starts_with("plain"))
        .map(|(_, n)| n)
        .sum();
    let percent = 100.0 * refused as f64 / plain as f64;
    println!("dotted paths, ordinary names: {percent:.2} % untrusted of {plain}");
    assert!(percent < UNTRUSTED_MAX_PERCENT, "too many ordinary updates were untrusted");
}

/// Counts by name, in one line.
fn table(counts: &BTreeMap<String, u64>) -> String {
    let mut line = String::new();
    for (name, count) in counts {
        write!(line, "{name} {count}, ").expect("text");
    }
    line
}

/// What came of the events.
#[derive(Default)]
struct Seen {
    updates: u64,
    updates_of: BTreeMap<String, u64>,
    answered: u64,
    exact: Patched,
    flat: Patched,
    /// By collection: fields that the dotted paths left where they were and an update moved.
    flat_order: BTreeMap<String, u64>,
    /// The same in MongoDB's own post-image.
    image_order: BTreeMap<String, u64>,
    documents: BTreeMap<(String, Vec<u8>), RawDocumentBuf>,
}

/// What came of patching from one form of delta.
#[derive(Default)]
struct Patched {
    tried: u64,
    spent: Duration,
    untrusted: BTreeMap<String, u64>,
}

impl Patched {
    fn patch(
        &mut self,
        by: &str,
        before: &RawDocument,
        delta: &RawDocument,
    ) -> Option<RawDocumentBuf> {
        let started = Instant::now();
        let patched = patch(before, delta);
        self.spent += started.elapsed();
        self.tried += 1;
        let count = |why: Untrusted| {
            *self.untrusted.entry(format!("{by}: {why:?}")).or_default() += 1;
        };
        patched.map_err(count).ok()
    }
}

/// Reads the stream in both forms from the start to a last document and judges every change.
async fn follow(db: &Database, ran: &Ran) -> Seen {
    let mut seen = Seen::default();
    let mut exact = open(db, doc! { "startAtOperationTime": ran.start, "showRawUpdateDescription": true, "fullDocument": "whenAvailable" }).await;
    let mut flat =
        open(db, doc! { "startAtOperationTime": ran.start, "showExpandedEvents": true }).await;
    let end = doc! { "_id": "the end" };
    db.collection::<Document>("end").insert_one(end).await.expect("the last document");
    loop {
        let event = exact.try_next().await.expect("a change stream").expect("an event");
        let twin = flat.try_next().await.expect("a change stream").expect("an event");
        assert_eq!(event.get("documentKey").expect("read"), twin.get("documentKey").expect("read"));
        let key = event.get_document("documentKey").expect("a key");
        let collection = event.get_document("ns").and_then(|ns| ns.get_str("coll")).expect("ns");
        if collection == "end" {
            return seen;
        }
        seen.take(&event, &twin, ran, (collection.to_owned(), key.as_bytes().to_vec()));
    }
}

async fn open(db: &Database, stage: Document) -> Cursor<RawDocumentBuf> {
    let rows = doc! { "operationType": { "$in": ["insert", "update", "replace", "delete"] } };
    let pipeline = vec![doc! { "$changeStream": stage }, doc! { "$match": rows }];
    let command = doc! { "aggregate": 1, "pipeline": pipeline, "cursor": {} };
    let open = db.run_cursor_command(command).cursor_type(CursorType::TailableAwait);
    open.await.expect("a change stream").with_type()
}

impl Seen {
    fn take(&mut self, event: &RawDocument, twin: &RawDocument, ran: &Ran, at: (String, Vec<u8>)) {
        let kind = event.get_str("operationType").expect("a kind");
        let image = event.get_document("fullDocument");
        let after = match kind {
            "delete" => {
                self.documents.remove(&at).expect("it was there");
                return;
            }
            "update" => self.update(event, twin, ran, &at, image.expect("a post-image")),
            _ => id_first(image.expect("a document")),
        };
        self.documents.insert(at, after);
    }

    /// The document after an update, from both forms of its delta, compared with all that MongoDB
    /// says of it.
    fn update(
        &mut self,
        event: &RawDocument,
        twin: &RawDocument,
        ran: &Ran,
        at: &(String, Vec<u8>),
        image: &RawDocument,
    ) -> RawDocumentBuf {
        let delta = event.get_document("rawUpdateDescription").expect("a delta");
        let paths = twin.get_document("updateDescription").expect("a delta");
        let before = &self.documents[at];
        let collection = at.0.as_str();
        let time = event.get_timestamp("clusterTime").expect("a time");
        let (noted, done) = ran.done.range(time..).next().expect("every change was noted");
        let by =
            format!("{collection} by {}", if done.has_pipeline { "pipeline" } else { "operators" });
        self.updates += 1;
        *self.updates_of.entry(collection.to_owned()).or_default() += 1;

        let exact = self.exact.patch(&by, before, delta).unwrap_or_else(|| image.to_owned());
        let story = |other: &RawDocument| {
            let [before, delta, exact, other] = [before, delta, &exact, other].map(as_document);
            format!("before {before}\ndelta {delta}\npatched {exact}\nthe other {other}")
        };
        if let (true, Some(answer)) = (*noted == time, &done.after) {
            assert!(exact == *answer, "not what findAndModify answered\n{}", story(answer));
            self.answered += 1;
        }
        // MongoDB's post-image keeps the place of a field that a pipeline moved to the end.
        if &*exact != image {
            assert!(done.has_pipeline, "not the post-image\n{}", story(image));
            assert!(
                sorted(&exact) == sorted(image),
                "not the post-image's content\n{}",
                story(image)
            );
            *self.image_order.entry(collection.to_owned()).or_default() += 1;
        }
        if collection == "told_apart" {
            return exact;
        }
        if let Some(flat) = self.flat.patch(&by, before, paths)
            && flat != exact
        {
            assert!(done.has_pipeline, "paths gave another document\n{}", story(&flat));
            assert!(sorted(&flat) == sorted(&exact), "paths gave other content\n{}", story(&flat));
            *self.flat_order.entry(collection.to_owned()).or_default() += 1;
        }
        exact
    }

    /// The last states are what the collections hold.
    async fn compare_with_collections(&self, db: &Database) {
        let mut found = 0;
        for name in COLLECTIONS {
            let rows = db.collection::<RawDocumentBuf>(name).find(doc! {}).await.expect("find");
            for row in rows.try_collect::<Vec<_>>().await.expect("every document") {
                let mut key = RawDocumentBuf::new();
                key.append(bson::cstr!("_id"), row.get("_id").expect("read").expect("an _id"));
                let kept = &self.documents[&(name.to_owned(), key.into_bytes())];
                assert_eq!(kept, &row, "the last state is what {name} holds");
                found += 1;
            }
        }
        assert_eq!(found, self.documents.len(), "no document more");
    }
}

fn as_document(raw: &RawDocument) -> Document {
    Document::try_from(raw).expect("a document")
}

/// A replacement's event may not have `_id` first; the stored document has.
fn id_first(raw: &RawDocument) -> RawDocumentBuf {
    let document = as_document(raw);
    let mut first = doc! { "_id": document["_id"].clone() };
    first.extend(document.into_iter().filter(|(name, _)| name != "_id"));
    RawDocumentBuf::try_from(&first).expect("a document")
}

/// The same content with every document's fields in the order of their names.
fn sorted(raw: &RawDocument) -> RawDocumentBuf {
    fn sort(value: Bson) -> Bson {
        match value {
            Bson::Document(document) => {
                let mut fields: Vec<_> = document.into_iter().collect();
                fields.sort_by(|(a, _), (b, _)| a.cmp(b));
                fields
                    .into_iter()
                    .map(|(name, value)| (name, sort(value)))
                    .collect::<Document>()
                    .into()
            }
            Bson::Array(values) => values.into_iter().map(sort).collect::<Vec<_>>().into(),
            other => other,
        }
    }
    let Bson::Document(document) = sort(Bson::Document(as_document(raw))) else { unreachable!() };
    RawDocumentBuf::try_from(&document).expect("a document")
}

//! Keys and payloads against the MongoDB that stores the documents: which `_id`s are one, in which
//! order they stand, and what becomes of every BSON type on the way through the store.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use bson::raw::RawBsonRef;
use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use futures::TryStreamExt;
use mongodb::Collection;
use mongodb::error::ErrorKind;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use serde_json::value::RawValue;
use tidewire_ops::verify::Plan;
use tidewire_protocol::key::mongo_id;
use tidewire_protocol::payload::{Exclude, write_ejson, write_json};
use tidewire_server::log::sort_key;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, mongo, must_equal, seed,
};

/// MongoDB's code for an `_id` that is taken.
const DUPLICATE_KEY: i32 = 11_000;

fn golden_lines(file: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/goldens");
    let text = std::fs::read_to_string(folder.join(file)).expect("the goldens");
    text.lines().map(str::to_owned).collect()
}

fn from_hex(hex: &str) -> RawDocumentBuf {
    let digit = |b| char::from(b).to_digit(16).expect("a hex digit") as u8;
    let digits: Vec<u8> = hex.bytes().map(digit).collect();
    let bytes = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    RawDocumentBuf::from_bytes(bytes).expect("a document")
}

fn id_of(document: &RawDocument) -> RawBsonRef<'_> {
    document.get("_id").expect("readable").expect("an _id")
}

/// Inserts all; the indexes that MongoDB refused because their `_id` was taken.
async fn refused(all: &Collection<RawDocumentBuf>, documents: &[RawDocumentBuf]) -> Vec<usize> {
    let Err(error) = all.insert_many(documents).ordered(false).await else { return Vec::new() };
    let ErrorKind::InsertMany(error) = *error.kind else { panic!("{error}") };
    let errors = error.write_errors.unwrap_or_default();
    for error in &errors {
        assert_eq!(error.code, DUPLICATE_KEY, "{}: {:?}", error.message, documents[error.index]);
    }
    let mut refused: Vec<usize> = errors.iter().map(|error| error.index).collect();
    refused.sort_unstable();
    refused
}

/// Inserts the documents and compares what MongoDB takes for one `_id`, and its order, with the keys.
async fn mongodb_agrees(all: &Collection<RawDocumentBuf>, documents: &[RawDocumentBuf]) {
    let mut first_with_key: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut first_with_text: HashMap<String, usize> = HashMap::new();
    let mut expected = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let id = id_of(document);
        let by_key = *first_with_key.entry(sort_key(id)).or_insert(index);
        let by_text = *first_with_text.entry(mongo_id(id)).or_insert(index);
        assert_eq!(by_key, by_text, "{document:?}");
        if by_key != index {
            expected.push(index);
        }
    }
    let refused = refused(all, documents).await;
    if let Some(index) = refused.iter().find(|index| !expected.contains(index)) {
        panic!("MongoDB sees an _id twice that has a key of its own: {:?}", documents[*index]);
    }
    if let Some(index) = expected.iter().find(|index| !refused.contains(index)) {
        let first = first_with_key[&sort_key(id_of(&documents[*index]))];
        panic!("one key for two _ids: {:?} and {:?}", documents[first], documents[*index]);
    }
    let by_index = all.find(doc! {}).hint(mongodb::options::Hint::Name("_id_".to_owned()));
    let stored: Vec<RawDocumentBuf> =
        by_index.sort(doc! { "_id": 1 }).await.expect("find").try_collect().await.expect("read");
    assert_eq!(stored.len(), first_with_key.len());
    for pair in stored.windows(2) {
        let (one, next) = (id_of(&pair[0]), id_of(&pair[1]));
        assert!(sort_key(one) < sort_key(next), "MongoDB has {one:?} before {next:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_agrees_with_the_golden_ids() {
    #[derive(Deserialize)]
    struct Golden {
        bson: String,
    }
    let mongo = mongo().await;
    let documents: Vec<RawDocumentBuf> = golden_lines("ids.jsonl")
        .iter()
        .map(|line| from_hex(&serde_json::from_str::<Golden>(line).expect("a golden").bson))
        .collect();
    mongodb_agrees(&mongo.db.collection("ids"), &documents).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_agrees_which_of_thousands_of_ids_are_one_and_how_they_order() {
    let mut rng = StdRng::seed_from_u64(seed());
    let mongo = mongo().await;
    let mut random_id = || loop {
        match random_value(&mut rng, 3) {
            // MongoDB takes none of these for an _id.
            Bson::Array(_) | Bson::Undefined | Bson::RegularExpression(_) => {}
            id => return RawDocumentBuf::try_from(&doc! { "_id": id }).expect("encodes"),
        }
    };
    let documents: Vec<RawDocumentBuf> = (0..6_000).map(|_| random_id()).collect();
    mongodb_agrees(&mongo.db.collection("ids"), &documents).await;
}

fn random_value(rng: &mut StdRng, depth: u32) -> Bson {
    let small = rng.random_range(-40..40_i32);
    match rng.random_range(0..if depth == 0 { 20 } else { 24 }) {
        0 => Bson::Int32(small),
        1 => Bson::Int64(small.into()),
        2 => Bson::Double(f64::from(small) / 4.0),
        3 => decimal(&format!("{small}E{}", rng.random_range(-3..3))),
        4 => Bson::Int64(rng.random()),
        5 => Bson::Double(f64::from_bits(rng.random())),
        6 => Bson::Decimal128(bson::Decimal128::from_bytes(rng.random())),
        7 => neighbour_of_a_double(rng),
        8 => Bson::Int64(i64::MAX - i64::from(rng.random_range(0..3_i32))),
        9 => [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 9_223_372_036_854_775_808.0]
            [rng.random_range(0..5)]
        .into(),
        10 => Bson::String(random_text(rng)),
        11 => Bson::Symbol(random_text(rng)),
        12 => Bson::Boolean(small > 0),
        13 => {
            Bson::DateTime(bson::DateTime::from_millis(rng.random::<i64>() >> small.unsigned_abs()))
        }
        14 => Bson::ObjectId(bson::oid::ObjectId::from_bytes(rng.random())),
        15 => {
            Bson::Timestamp(bson::Timestamp { time: rng.random(), increment: small.unsigned_abs() })
        }
        16 => Bson::Binary(bson::Binary {
            subtype: [0_u8, 2, 4, 0x80][rng.random_range(0..4)].into(),
            bytes: (0..rng.random_range(0..6)).map(|_| rng.random_range(0..3)).collect(),
        }),
        17 => Bson::JavaScriptCode(random_text(rng)),
        18 => [Bson::Null, Bson::MinKey, Bson::MaxKey, Bson::Undefined][rng.random_range(0..4)]
            .clone(),
        19 => Bson::RegularExpression(bson::Regex {
            pattern: "a".repeat(rng.random_range(0..3)).try_into().expect("no NUL"),
            options: "i".repeat(rng.random_range(0..2)).try_into().expect("no NUL"),
        }),
        20 => Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope {
            code: random_text(rng),
            scope: random_document(rng, depth),
        }),
        21 => {
            Bson::Array((0..rng.random_range(0..3)).map(|_| random_value(rng, depth - 1)).collect())
        }
        _ => Bson::Document(random_document(rng, depth)),
    }
}

fn random_document(rng: &mut StdRng, depth: u32) -> Document {
    let names = ["", "a", "aa", "b", "a.b", "ä"];
    let field =
        |_| (names[rng.random_range(0..names.len())].to_owned(), random_value(rng, depth - 1));
    (0..3).map(field).take(3).collect()
}

fn random_text(rng: &mut StdRng) -> String {
    (0..rng.random_range(0..4))
        .map(|_| ['\0', '\u{1}', 'a', '~', 'ÿ'][rng.random_range(0..5)])
        .collect()
}

fn decimal(text: &str) -> Bson {
    Bson::Decimal128(text.parse().expect("a decimal"))
}

/// A decimal that is a double's first 34 digits, or one more or less in the last of them: the place
/// where comparing by rounding instead of exactly would show.
fn neighbour_of_a_double(rng: &mut StdRng) -> Bson {
    let double = [0.1, 0.3, 1e300, 5e-324, 1e22, 0.5][rng.random_range(0..6)];
    if rng.random() {
        return Bson::Double(double);
    }
    let text = format!("{double:.33e}");
    let (mantissa, power) = text.split_once('e').expect("scientific notation");
    let digits: u128 = mantissa.replace('.', "").parse().expect("34 digits");
    let power: i32 = power.parse().expect("an exponent");
    decimal(&format!("{}E{}", digits + rng.random_range(0..3) - 1, power - 33))
}

/// The fields as bytes after an `_id`: no driver's value in between could mend them.
fn with_id(id: &str, bare: &RawDocument) -> RawDocumentBuf {
    let mut bytes = bson::rawdoc! { "_id": id }.into_bytes();
    bytes.pop();
    bytes.extend_from_slice(&bare.as_bytes()[4..]);
    let length = u32::try_from(bytes.len()).expect("a small document");
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    RawDocumentBuf::from_bytes(bytes).expect("a document")
}

/// Every golden document that MongoDB stores, through MongoDB and back.
#[tokio::test(flavor = "multi_thread")]
async fn every_type_comes_back_from_mongodb_as_the_goldens_say() {
    #[derive(Deserialize)]
    struct Golden {
        name: String,
        bson: String,
        json: Box<RawValue>,
        ejson: Box<RawValue>,
    }
    let mongo = mongo().await;
    let all = mongo.db.collection::<RawDocumentBuf>("types");
    for (index, line) in golden_lines("payloads.jsonl").iter().enumerate() {
        let golden: Golden = serde_json::from_str(line).expect("a golden");
        let bare = from_hex(&golden.bson);
        if bare.get("_id").expect("readable").is_some() {
            continue;
        }
        let id = format!("golden {index}");
        let document = with_id(&id, &bare);
        all.insert_one(&document).await.unwrap_or_else(|error| panic!("{}: {error}", golden.name));
        let stored = all.find_one(doc! { "_id": id.as_str() }).await.expect("find").expect("it");
        for (write, golden_text) in
            [(write_json as Write, &golden.json), (write_ejson, &golden.ejson)]
        {
            let mut out = Vec::new();
            write(&stored, &Exclude::none(), &mut out).expect("writes");
            let rest = golden_text.get().strip_prefix('{').expect("an object");
            let comma = if rest == "}" { "" } else { "," };
            let expected = format!("{{\"_id\":\"{id}\"{comma}{rest}");
            assert_eq!(String::from_utf8(out).expect("UTF-8"), expected, "{}", golden.name);
        }
    }
}

type Write =
    fn(&RawDocument, &Exclude, &mut Vec<u8>) -> Result<(), tidewire_protocol::payload::EncodeError>;

#[derive(Deserialize)]
struct GoldenId {
    bson: String,
    #[serde(rename = "mongoId")]
    mongo_id: String,
}

fn golden_ids() -> Vec<GoldenId> {
    golden_lines("ids.jsonl").iter().map(|line| serde_json::from_str(line).expect("it")).collect()
}

/// Inserts the golden documents into two collections of a kind.
async fn insert_goldens(mongo: &Mongo, kind: &str) {
    #[derive(Deserialize)]
    struct Golden {
        bson: String,
    }
    let ids = mongo.db.collection::<RawDocumentBuf>(&format!("ids_{kind}"));
    let documents: Vec<_> = golden_ids().iter().map(|golden| from_hex(&golden.bson)).collect();
    // Some are one to MongoDB.
    refused(&ids, &documents).await;
    let types = mongo.db.collection::<RawDocumentBuf>(&format!("types_{kind}"));
    for (index, line) in golden_lines("payloads.jsonl").iter().enumerate() {
        let golden: Golden = serde_json::from_str(line).expect("a golden");
        let document = from_hex(&golden.bson);
        let has_id = document.get("_id").expect("readable").is_some();
        let id = format!("golden {index}");
        let document = if has_id { document } else { with_id(&id, &document) };
        types.insert_one(&document).await.expect("insert");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_odd_document_comes_through_a_copy_and_through_the_stream_to_a_replica() {
    const COLLECTIONS: [&str; 4] = ["ids_before", "types_before", "ids_during", "types_during"];
    let mongo = mongo().await;
    insert_goldens(&mongo, "before").await;
    let server = Server::start(ServerOptions::following(&mongo, &COLLECTIONS)).await;
    let mut client = Client::new(&server.url(), &server.token(&Claims::of("ann")));
    client.start();
    insert_goldens(&mongo, "during").await;
    // Beside what is odd: changes of the documents that have it.
    for name in COLLECTIONS {
        let all = mongo.db.collection::<Document>(name);
        all.update_many(doc! {}, doc! { "$set": { "more": 1 } }).await.expect("update");
    }
    let hello = mongo.db.run_command(doc! { "hello": 1 }).await.expect("hello");
    let time = hello.get_timestamp("operationTime").expect("its time");
    let last = format!("{:08x}{:08x}.00000000", time.time, time.increment);
    client.reaches(&last, Duration::from_secs(60)).await;
    let types = Plan::everything(&["types_before", "types_during"]);
    must_equal(&mongo.db, &types, &client.db()).await;
    let expected: BTreeSet<String> = golden_ids().into_iter().map(|id| id.mongo_id).collect();
    let replica = client.open().expect("the replica");
    for name in ["ids_before", "ids_during"] {
        let select = format!("SELECT _id FROM {name} WHERE more = 1");
        let mut select = replica.prepare(&select).expect("a table");
        let rows = select.query_map([], |row| row.get(0)).expect("rows");
        let rows: Vec<String> = rows.collect::<Result<_, _>>().expect("texts");
        assert_eq!(rows.len(), expected.len());
        assert_eq!(rows.into_iter().collect::<BTreeSet<_>>(), expected);
    }
    assert!(server.metrics().await.contains("\ntidewire_quarantine_documents 0\n"));
    client.stop().await;
}

//! Documents under keys of every kind, changed in every way, that move between owners.

use std::time::SystemTime;

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, Timestamp, doc};
use mongodb::error::Result;
use mongodb::{Collection, Database};
use rand::RngExt;
use rand::rngs::StdRng;

use super::{Versions, next};
use crate::torture::stage::{HIDDEN, OWNERS};

/// Keys of each writer.
const KEYS: i32 = 240;
const BURST_MAX: i32 = 400;
const LARGE_BYTES: usize = 300_000;
/// Keys from here on belong to bursts.
const BURST_FROM: i32 = 1_000_000;

/// One write of a writer's own documents, so that versions of one document come in order.
pub(super) async fn write(
    database: &Database,
    rng: &mut StdRng,
    writer: u64,
    versions: &Versions,
) -> Result<()> {
    let items = database.collection::<Document>("items");
    let writer = i32::try_from(writer).unwrap_or(0);
    let key = doc! { "_id": id(writer, rng.random_range(0..KEYS)) };
    let version = next(versions);
    match rng.random_range(0..100) {
        0..22 => {
            let new = document(rng, writer, version);
            items.replace_one(key, new).upsert(true).await.map(drop)
        }
        22..34 => items.delete_one(key).await.map(drop),
        34..44 => {
            let owner = OWNERS[rng.random_range(0..OWNERS.len())];
            let change = doc! { "$set": { "owner": owner, "v": version } };
            items.update_one(key, change).await.map(drop)
        }
        44..86 => items.update_one(key, change(rng, version)).await.map(drop),
        86..90 => {
            let stages = vec![doc! { "$set": {
                "v": version,
                "sum": { "$add": [{ "$ifNull": ["$count", 0] }, 1] },
                "nested.copy": "$text",
            } }];
            items.update_one(key, stages).await.map(drop)
        }
        90..93 => {
            let some = doc! { "writer": writer, "bucket": rng.random_range(0..8) };
            items.update_many(some, change(rng, version)).await.map(drop)
        }
        93..96 => transaction(database, &items, rng, writer, versions).await,
        96..97 => {
            let mut large = document(rng, writer, version);
            large.insert("large", "l".repeat(LARGE_BYTES));
            items.replace_one(key, large).upsert(true).await.map(drop)
        }
        97..98 => {
            let dirty = doc! { "writer": writer, "bucket": rng.random_range(0..8) };
            items.delete_many(dirty).await.map(drop)
        }
        _ => burst(&items, rng, writer, versions).await,
    }
}

/// Many at once, or all of them gone at once.
async fn burst(
    items: &Collection<Document>,
    rng: &mut StdRng,
    writer: i32,
    versions: &Versions,
) -> Result<()> {
    let burst = doc! { "writer": writer, "burst": true };
    if rng.random_ratio(1, 2) {
        return items.delete_many(burst).await.map(drop);
    }
    let count = rng.random_range(50..BURST_MAX);
    let first = BURST_FROM * (writer + 1) + rng.random_range(0..1_000);
    let mut documents = Vec::new();
    for number in first..first + count {
        let mut new = document(rng, writer, next(versions));
        new.insert("_id", number);
        new.insert("burst", true);
        documents.push(new);
    }
    // Those that are there already stay as they are.
    match items.insert_many(documents).ordered(false).await {
        Err(error) if !matches!(*error.kind, mongodb::error::ErrorKind::InsertMany(_)) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Several of them in one commit.
async fn transaction(
    database: &Database,
    items: &Collection<Document>,
    rng: &mut StdRng,
    writer: i32,
    versions: &Versions,
) -> Result<()> {
    let mut session = database.client().start_session().await?;
    session.start_transaction().await?;
    for _ in 0..rng.random_range(2..12) {
        let key = doc! { "_id": id(writer, rng.random_range(0..KEYS)) };
        let version = next(versions);
        let done = match rng.random_range(0..3) {
            0 => items.delete_one(key).session(&mut session).await.map(drop),
            1 => {
                let new = document(rng, writer, version);
                items.replace_one(key, new).upsert(true).session(&mut session).await.map(drop)
            }
            _ => {
                let change = change(rng, version);
                items.update_one(key, change).session(&mut session).await.map(drop)
            }
        };
        if let Err(error) = done {
            session.abort_transaction().await.ok();
            return Err(error);
        }
    }
    session.commit_transaction().await
}

fn change(rng: &mut StdRng, version: i64) -> Document {
    let number = rng.random_range(0..1_000);
    let place = format!("list.{}", rng.random_range(0..6));
    let more = match rng.random_range(0..8) {
        0 => doc! { "$inc": { "count": 1 } },
        1 => doc! { "$push": { "list": number } },
        2 => {
            doc! { "$push": { "list": { "$each": [number, number + 1], "$position": 0, "$slice": -8 } } }
        }
        3 => doc! { "$unset": { "nested.copy": "" } },
        4 => doc! { "$pull": { "list": { "$lt": number } } },
        5 => doc! { "$mul": { "count": 2_i64 } },
        6 => doc! { "$addToSet": { "tags": format!("t{}", number % 10) } },
        _ => doc! { "$set": { place: number, "nested.deep.er": number } },
    };
    let mut change = more;
    match change.get_document_mut("$set") {
        Ok(set) => drop(set.insert("v", version)),
        Err(_) => drop(change.insert("$set", doc! { "v": version })),
    }
    change
}

pub(super) fn document(rng: &mut StdRng, writer: i32, version: i64) -> Document {
    let text = "x".repeat(rng.random_range(0..400));
    doc! {
        "owner": OWNERS[rng.random_range(0..OWNERS.len())],
        "writer": writer,
        "bucket": rng.random_range(0..8),
        "v": version,
        "count": rng.random_range(0..100),
        "text": text,
        "list": (0..rng.random_range(0..7)).collect::<Vec<i32>>(),
        "nested": { "deep": { "er": version }, "when": DateTime::from(SystemTime::now()) },
        "hidden": HIDDEN,
        "Text": "beside text",
    }
}

/// The key of a number: of every kind that MongoDB takes.
fn id(writer: i32, number: i32) -> Bson {
    let whole = i64::from(writer) * 10_000 + i64::from(number);
    let text = format!("{writer}-{number}");
    match number % 16 {
        0 => Bson::Int32(writer * 10_000 + number),
        1 => Bson::Int64(whole + (1 << 40)),
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        2 => Bson::Double(whole as f64 + 0.5),
        3 => format!("{whole}.10").parse().map_or(Bson::Null, Bson::Decimal128),
        4 => Bson::String(text),
        5 => Bson::String(format!("~{text}")),
        6 => Bson::String(format!("{whole:024x}")),
        7 => {
            let mut bytes = [7; 12];
            bytes[4..].copy_from_slice(&whole.to_be_bytes());
            Bson::ObjectId(ObjectId::from_bytes(bytes))
        }
        8 => Bson::Document(doc! { "a": writer, "b": { "c": number } }),
        9 => Bson::Document(doc! { "b": { "c": number }, "a": writer }),
        10 => Bson::DateTime(DateTime::from_millis(whole * 86_400_000)),
        11 => Bson::Timestamp(Timestamp {
            time: writer.unsigned_abs(),
            increment: number.unsigned_abs(),
        }),
        12 => Bson::Binary(Binary {
            subtype: BinarySubtype::Generic,
            bytes: whole.to_be_bytes().into(),
        }),
        13 => {
            let bytes = (whole as u128).to_be_bytes().into();
            Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes })
        }
        14 => Bson::String(format!("päron \u{0} \"{text}\"\n")),
        _ => Bson::String(format!("../{text}; DROP TABLE items")),
    }
}

//! Collections that are dropped, renamed, written over and made again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bson::{Bson, Document, RawDocumentBuf, doc, rawdoc};
use mongodb::Database;
use mongodb::error::Result;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use super::{DDL_PAUSE, PAUSE_AFTER_FAILURE, Versions, WRITE_MAX, next};
use crate::torture::findings::Findings;
use crate::torture::stage::Site;

const DOCUMENTS: i32 = 600;
/// Not followed.
const STAGING: &str = "staging";
/// A database that nobody follows.
const BESIDE: &str = "torture-beside";
/// So many bytes that nothing falls out of a collection that is capped.
const CAP: i64 = 64 << 20;

/// Changes whole collections now and then.
pub(super) async fn run(
    site: Site,
    mut rng: StdRng,
    versions: Versions,
    findings: Arc<Findings>,
    over: CancellationToken,
) {
    while !over.is_cancelled() {
        let kind = KINDS[rng.random_range(0..KINDS.len())];
        let work = change(&site.database, kind, &mut rng, &versions);
        match tokio::time::timeout(WRITE_MAX, work).await {
            Ok(Ok(())) => {
                findings.rare_write(kind);
                findings.count("changes of whole collections", 1);
            }
            Ok(Err(error)) => findings.note(&format!("ddl: {kind} failed: {error}")),
            Err(_) => findings.note(&format!("ddl: {kind} was not done in time")),
        }
        let pause = Duration::from_secs_f64(rng.random_range(DDL_PAUSE));
        let _ = over.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
    // What can't be read can't be compared at the end either, nor what goes away meanwhile.
    for name in ["churn", "churn2"] {
        let odd = site.database.collection::<Document>(name);
        let short_lived = doc! { "until": { "$exists": true } };
        let unreadable = doc! { "$or": [{ "odd": true }, { "long": true }, short_lived] };
        while let Err(error) = odd.delete_many(unreadable.clone()).await {
            findings.note(&format!("ddl: the odd ones are still in {name}: {error}"));
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

const KINDS: [&str; 21] = [
    "insert many",
    "update many",
    "delete many",
    "drop",
    "drop and make again",
    "rename over it",
    "rename to an unfollowed name",
    "rename between followed names",
    "$out",
    "$merge",
    "insert many, then rename it away and back",
    "bytes that are no text",
    "bytes that are no text, mended",
    "rename from another database over it",
    "rename to another database",
    "$out from another database",
    "drop another database",
    "convert it to a capped one",
    "collMod",
    "deleted when their time is over",
    "a busy neighbour",
];

async fn change(
    database: &Database,
    kind: &str,
    rng: &mut StdRng,
    versions: &Versions,
) -> Result<()> {
    let churn = database.collection::<Document>("churn");
    match kind {
        "insert many" => fill(database, "churn", rng, versions).await,
        "update many" => {
            let change = doc! { "$set": { "v": next(versions) }, "$inc": { "count": 1 } };
            let some = doc! { "_id": { "$lt": rng.random_range(0..DOCUMENTS) } };
            churn.update_many(some, change).await.map(drop)
        }
        "delete many" => {
            let some = doc! { "_id": { "$gte": rng.random_range(0..DOCUMENTS) } };
            churn.delete_many(some).await.map(drop)
        }
        "drop" => churn.drop().await,
        "drop and make again" => {
            churn.drop().await?;
            fill(database, "churn", rng, versions).await
        }
        "rename over it" => {
            stage(database, rng, versions).await?;
            rename(database, STAGING, "churn").await
        }
        "rename to an unfollowed name" => rename(database, "churn", "elsewhere").await,
        "rename between followed names" => rename(database, "churn", "churn2").await,
        "$out" => {
            stage(database, rng, versions).await?;
            let out = doc! { "$out": "churn" };
            database.collection::<Document>(STAGING).aggregate([out]).await.map(drop)
        }
        "$merge" => {
            stage(database, rng, versions).await?;
            let merge = doc! { "$merge": { "into": "churn", "whenMatched": "replace" } };
            database.collection::<Document>(STAGING).aggregate([merge]).await.map(drop)
        }
        "bytes that are no text" => dirty(database, rng, versions).await,
        "bytes that are no text, mended" => {
            let mend =
                doc! { "$set": { "text": "clean", "v": next(versions) }, "$unset": { "odd": 1 } };
            churn.update_many(doc! { "odd": true }, mend).await.map(drop)
        }
        "rename from another database over it" => {
            let beside = beside(database);
            stage(&beside, rng, versions).await?;
            rename_to(&beside, STAGING, database, "churn").await
        }
        "rename to another database" => {
            rename_to(database, "churn", &beside(database), "elsewhere").await
        }
        "$out from another database" => {
            let beside = beside(database);
            stage(&beside, rng, versions).await?;
            let out = doc! { "$out": { "db": database.name(), "coll": "churn" } };
            beside.collection::<Document>(STAGING).aggregate([out]).await.map(drop)
        }
        "drop another database" => {
            fill(&beside(database), "churn", rng, versions).await?;
            beside(database).drop().await
        }
        "convert it to a capped one" => {
            fill(database, "churn", rng, versions).await?;
            let convert = doc! { "convertToCapped": "churn", "size": CAP };
            database.run_command(convert).await.map(drop)
        }
        "collMod" => {
            fill(database, "churn", rng, versions).await?;
            let strict = if rng.random_bool(0.5) { "strict" } else { "moderate" };
            let change = doc! { "collMod": "churn", "validator": { "v": { "$gt": 0 } }, "validationLevel": strict };
            database.run_command(change).await.map(drop)
        }
        "deleted when their time is over" => expiring(database, rng, versions).await,
        "a busy neighbour" => {
            let busy = beside(database).collection::<Document>("busy");
            let many = (0..2_000).map(|n| doc! { "n": n, "text": "b".repeat(500) });
            busy.insert_many(many).await?;
            busy.delete_many(doc! {}).await.map(drop)
        }
        _ => {
            fill(database, "churn", rng, versions).await?;
            rename(database, "churn", "elsewhere").await?;
            rename(database, "elsewhere", "churn").await
        }
    }
}

/// New documents for `$out` and renames, newer than any.
async fn stage(database: &Database, rng: &mut StdRng, versions: &Versions) -> Result<()> {
    database.collection::<Document>(STAGING).drop().await?;
    fill(database, STAGING, rng, versions).await
}

/// Writes some documents, those that are there written over.
async fn fill(
    database: &Database,
    name: &str,
    rng: &mut StdRng,
    versions: &Versions,
) -> Result<()> {
    let from = rng.random_range(0..DOCUMENTS / 2);
    let through = rng.random_range(from..DOCUMENTS);
    let text = "c".repeat(rng.random_range(0..200));
    let updates = (from..=through).map(|id| {
        let new = doc! { "v": next(versions), "text": text.as_str(), "count": 0 };
        Bson::Document(doc! { "q": { "_id": id }, "u": new, "upsert": true })
    });
    let updates: Vec<Bson> = updates.collect();
    let write = doc! { "update": name, "updates": updates, "writeConcern": { "w": "majority" } };
    database.run_command(write).await.map(drop)
}

/// Documents that MongoDB itself deletes after a second or two.
async fn expiring(database: &Database, rng: &mut StdRng, versions: &Versions) -> Result<()> {
    let index = doc! { "key": { "until": 1 }, "name": "until", "expireAfterSeconds": 1 };
    database.run_command(doc! { "createIndexes": "churn", "indexes": [index] }).await?;
    let until = bson::DateTime::from(SystemTime::now());
    let some = (0..rng.random_range(5..80)).map(|n| {
        let new = doc! { "v": next(versions), "text": "short-lived", "until": until };
        Bson::Document(doc! { "q": { "_id": 10 * DOCUMENTS + n }, "u": new, "upsert": true })
    });
    let updates: Vec<Bson> = some.collect();
    let write = doc! { "update": "churn", "updates": updates, "writeConcern": { "w": "majority" } };
    database.run_command(write).await.map(drop)
}

/// A few documents that MongoDB takes and nobody can read.
async fn dirty(database: &Database, rng: &mut StdRng, versions: &Versions) -> Result<()> {
    let churn = database.collection::<RawDocumentBuf>("churn");
    for _ in 0..rng.random_range(1..4) {
        let id = rng.random_range(0..DOCUMENTS);
        let odd = rawdoc! { "v": next(versions), "odd": true, "text": "no text" };
        let mut bytes = odd.into_bytes();
        let at = bytes.len() - 3;
        bytes[at] = 0xff;
        let odd = RawDocumentBuf::from_bytes(bytes).map_err(mongodb::error::Error::custom)?;
        churn.replace_one(doc! { "_id": id }, odd).upsert(true).await?;
    }
    Ok(())
}

fn beside(database: &Database) -> Database {
    database.client().database(BESIDE)
}

async fn rename(database: &Database, from: &str, to: &str) -> Result<()> {
    rename_to(database, from, database, to).await
}

async fn rename_to(from: &Database, name: &str, to: &Database, new: &str) -> Result<()> {
    let database = from;
    let (from, to) = (format!("{}.{name}", from.name()), format!("{}.{new}", to.name()));
    let rename = doc! { "renameCollection": from, "to": to, "dropTarget": true };
    let admin = database.client().database("admin");
    match admin.run_command(rename).await.map(drop) {
        // There is nothing to rename.
        Err(error) if is_not_found(&error) => Ok(()),
        renamed => renamed,
    }
}

fn is_not_found(error: &mongodb::error::Error) -> bool {
    matches!(&*error.kind, mongodb::error::ErrorKind::Command(command) if command.code == 26)
}

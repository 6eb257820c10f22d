//! What is large: transactions of thousands of changes, documents near the limit, an `_id` of megabytes.

use std::sync::Arc;
use std::time::Duration;

use bson::{Bson, Document, doc};
use mongodb::ClientSession;
use mongodb::error::Result;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use tokio_util::sync::CancellationToken;

use super::items::document;
use super::{Versions, next};
use crate::torture::findings::Findings;
use crate::torture::stage::{OWNERS, Site};

/// Seconds between two of them.
const PAUSE: std::ops::Range<f64> = 10.0..70.0;
const PATIENCE: Duration = Duration::from_secs(60);
/// Farther behind than 20,000 changes, a log's reader is told the last ones only.
const CHANGES: std::ops::Range<i64> = 5_000..18_000;
/// No other writer writes these documents.
const WRITER: i32 = 99;
/// Keys from here on are the large transactions'.
const KEYS_FROM: i64 = 9_000_000_000;
/// Two of these are over what one event holds.
const LARGE_BYTES: usize = 9_000_000;
/// In quarantine; from 3.3 MB on, only a comparison would find it.
const LONG_ID_BYTES: usize = 3_000_000;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Transaction,
    Large,
    LongId,
}

/// A bag of them, over and over in another order.
const KINDS: [Kind; 4] = [Kind::Transaction, Kind::LongId, Kind::Transaction, Kind::Large];

pub(super) async fn run(
    site: Site,
    mut rng: StdRng,
    versions: Versions,
    findings: Arc<Findings>,
    over: CancellationToken,
) {
    let mut bag = Vec::new();
    loop {
        let pause = Duration::from_secs_f64(rng.random_range(PAUSE));
        if over.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        if bag.is_empty() {
            bag.extend(KINDS);
            bag.shuffle(&mut rng);
        }
        let Some(kind) = bag.pop() else { continue };
        let (name, written) = match kind {
            Kind::Transaction => {
                let work = tokio::time::timeout(PATIENCE, transaction(&site, &mut rng, &versions));
                ("transaction of thousands of changes", work.await)
            }
            Kind::Large => {
                let work = tokio::time::timeout(PATIENCE, large(&site, &mut rng, &versions));
                ("9 MB that become other 9 MB", work.await)
            }
            Kind::LongId => {
                let work = tokio::time::timeout(PATIENCE, long_id(&site, &mut rng, &versions));
                ("_id of 3 MB", work.await)
            }
        };
        match written {
            Ok(Ok(())) => findings.rare_write(name),
            Ok(Err(error)) => {
                let error: String = error.to_string().chars().take(300).collect();
                findings.note(&format!("{name}: failed: {error}"));
            }
            Err(_) => findings.note(&format!("{name}: was not done in time")),
        }
    }
}

/// Thousands are made, changed or gone in one commit, and money moves around them.
async fn transaction(site: &Site, rng: &mut StdRng, versions: &Versions) -> Result<()> {
    let items = site.database.collection::<Document>("items");
    let earlier = doc! { "_id": { "$gte": KEYS_FROM, "$type": "long" } };
    let is_there = items.find_one(earlier.clone()).await?.is_some();
    let mut session = site.driver.start_session().await?;
    session.start_transaction().await?;
    let work = async {
        let owner = OWNERS[rng.random_range(0..OWNERS.len())];
        let amount = rng.random_range(1_i64..50);
        // Both are ours before the work begins.
        change_account(site, owner, 0, -amount, &mut session).await?;
        change_account(site, owner, 1, 0, &mut session).await?;
        if !is_there {
            let new = (KEYS_FROM..KEYS_FROM + rng.random_range(CHANGES)).map(|number| {
                let mut new = document(rng, WRITER, next(versions));
                new.insert("_id", number);
                new
            });
            let new: Vec<Document> = new.collect();
            items.insert_many(new).session(&mut session).await?;
        } else if rng.random_ratio(1, 2) {
            let change = doc! { "$set": { "v": next(versions) }, "$inc": { "count": 1 } };
            items.update_many(earlier, change).session(&mut session).await?;
        } else {
            items.delete_many(earlier).session(&mut session).await?;
        }
        change_account(site, owner, 1, amount, &mut session).await
    };
    if let Err(error) = work.await {
        session.abort_transaction().await.ok();
        return Err(error);
    }
    session.commit_transaction().await
}

async fn change_account(
    site: &Site,
    owner: &str,
    number: i32,
    amount: i64,
    session: &mut ClientSession,
) -> Result<()> {
    let account = doc! { "_id": format!("{owner}-{number}") };
    let change = doc! { "$inc": { "balance": amount, "v": 1_i64 } };
    let accounts = site.database.collection::<Document>("accounts");
    accounts.update_one(account, change).session(session).await.map(drop)
}

/// The witness has images of what is in the plain collections, twice in its event: this is no place for it.
async fn large(site: &Site, rng: &mut StdRng, versions: &Versions) -> Result<()> {
    let churn = site.database.collection::<Document>("churn");
    let one = doc! { "_id": "large" };
    for letter in ["a", "b"] {
        let text = letter.repeat(LARGE_BYTES - rng.random_range(0..1_000));
        let change = doc! { "$set": { "v": next(versions), "large": text } };
        churn.update_one(one.clone(), change).upsert(true).await?;
    }
    let change = doc! { "$set": { "v": next(versions), "count": 1 } };
    churn.update_one(one.clone(), change).await?;
    if rng.random_ratio(3, 4) {
        churn.delete_one(one).await?;
    }
    Ok(())
}

async fn long_id(site: &Site, rng: &mut StdRng, versions: &Versions) -> Result<()> {
    let churn = site.database.collection::<Document>("churn");
    let mut id = "i".repeat(LONG_ID_BYTES);
    id.push_str(&rng.next_u32().to_string());
    let id = Bson::String(id);
    churn.insert_one(doc! { "_id": id.clone(), "v": next(versions), "long": true }).await?;
    if rng.random_ratio(1, 2) {
        churn.delete_one(doc! { "_id": id }).await?;
    }
    Ok(())
}

//! Random writes of all kinds, as fast as they are allowed to be: transfers between accounts, documents
//! under odd keys, bursts, collections that are dropped, renamed and written over, and now and then
//! something large.

mod bank;
mod ddl;
mod items;
mod rare;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::error::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::findings::Findings;
use super::stage::Site;

const WRITERS: u64 = 3;
/// A write that is not done by then was cut off, and may or may not have been done.
const WRITE_MAX: Duration = Duration::from_secs(20);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(200);
const NOTICES: i32 = 300;
/// Between two changes of a whole collection, seconds.
const DDL_PAUSE: std::ops::Range<f64> = 3.0..12.0;

/// Versions of documents, ascending over all of them.
pub(super) type Versions = Arc<AtomicI64>;

fn next(versions: &Versions) -> i64 {
    versions.fetch_add(1, Ordering::Relaxed)
}

/// Writes until told to stop.
pub(super) async fn run(
    site: Site,
    options: Options,
    findings: Arc<Findings>,
    over: CancellationToken,
) {
    let versions = Versions::new(AtomicI64::new(1));
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let writer = Writer {
            site: site.clone(),
            rng: StdRng::seed_from_u64(options.seed ^ (0x1000 + number)),
            number,
            versions: Arc::clone(&versions),
            findings: Arc::clone(&findings),
        };
        #[expect(clippy::cast_precision_loss, reason = "a handful of writers")]
        let pause = Duration::from_secs_f64(WRITERS as f64 / options.rate);
        writers.spawn(writer.run(pause, over.clone()));
    }
    let rng = StdRng::seed_from_u64(options.seed ^ 0xdd1);
    writers.spawn(ddl::run(
        site.clone(),
        rng,
        Arc::clone(&versions),
        Arc::clone(&findings),
        over.clone(),
    ));
    let rng = StdRng::seed_from_u64(options.seed ^ 0x4a4e);
    writers.spawn(rare::run(site, rng, versions, findings, over));
    while writers.join_next().await.is_some() {}
}

/// One of those who write.
struct Writer {
    site: Site,
    rng: StdRng,
    number: u64,
    versions: Versions,
    findings: Arc<Findings>,
}

impl Writer {
    async fn run(mut self, pause: Duration, over: CancellationToken) {
        while !over.is_cancelled() {
            // Never dropped half-way by the end: what a write has done must be known to be over.
            let written = tokio::time::timeout(WRITE_MAX, self.write()).await;
            match written {
                Ok(Ok(())) => self.findings.count("writes", 1),
                Ok(Err(_)) | Err(_) => {
                    self.findings.count("writes that failed", 1);
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
            let pause = pause.mul_f64(self.rng.random_range(0.0..2.0));
            let _ = over.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    async fn write(&mut self) -> Result<()> {
        match self.rng.random_range(0..100) {
            0..30 => bank::transfer(&self.site, &mut self.rng).await,
            30..38 => self.notice().await,
            _ => {
                let Self { site, rng, number, versions, .. } = self;
                items::write(&site.database, rng, *number, versions).await
            }
        }
    }

    /// Everybody sees notices.
    async fn notice(&mut self) -> Result<()> {
        let notices = self.site.database.collection::<Document>("notices");
        // Each writer has ids of its own, so that versions of one document come in order.
        let id = self.rng.random_range(0..NOTICES) * 10 + self.number as i32;
        let version = next(&self.versions);
        match self.rng.random_range(0..10) {
            0..3 => notices.delete_one(doc! { "_id": id }).await.map(drop),
            3..6 => {
                let text = "n".repeat(self.rng.random_range(0..2_000));
                let new = doc! { "v": version, "text": text, "hidden": super::stage::HIDDEN };
                notices.replace_one(doc! { "_id": id }, new).upsert(true).await.map(drop)
            }
            _ => {
                let change = doc! { "$set": { "v": version }, "$inc": { "count": 1 } };
                notices.update_one(doc! { "_id": id }, change).upsert(true).await.map(drop)
            }
        }
    }
}

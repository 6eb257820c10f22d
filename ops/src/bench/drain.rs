//! What ours is compared with at the source: the driver alone, reading the same things into nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::{RawDocumentBuf, Timestamp, doc};
use futures::StreamExt;
use mongodb::Database;

use super::load::COLLECTION;

/// What a drained stream tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drained {
    /// From opening the stream to the last event.
    pub(super) took: Duration,
    /// The last event's cluster time.
    pub(super) last: Timestamp,
}

/// Reads the `count` change events that follow `after` (exclusive), as the server selects them, and
/// drops them.
pub(super) async fn events(database: &Database, after: Timestamp, count: u64) -> Result<Drained> {
    let from = Timestamp { time: after.time, increment: after.increment + 1 };
    let started = Instant::now();
    let mut stream = database
        .watch()
        .pipeline([doc! { "$match": { "ns.coll": { "$in": [COLLECTION] } } }])
        .start_at_operation_time(from)
        .show_expanded_events(true)
        .await
        .context("open a change stream")?
        .with_type::<RawDocumentBuf>();
    let mut last = None;
    let mut seen = 0;
    while seen < count {
        let event = stream.next().await.context("the stream ended")??;
        seen += 1;
        if seen == count {
            last = event.get("clusterTime")?.and_then(|time| time.as_timestamp());
        }
    }
    let took = started.elapsed();
    Ok(Drained { took, last: last.context("an event without a cluster time")? })
}

/// Reads the collection in `_id` order in raw batches and drops them.
pub(super) async fn documents(database: &Database, count: u64) -> Result<Duration> {
    let started = Instant::now();
    let mut batches = database
        .collection::<RawDocumentBuf>(COLLECTION)
        .find(doc! {})
        .sort(doc! { "_id": 1 })
        .batch()
        .await
        .context("read the collection")?;
    let mut bytes = 0;
    while let Some(batch) = batches.next().await {
        bytes += batch?.as_raw_document().as_bytes().len() as u64;
    }
    let took = started.elapsed();
    ensure!(bytes > count * 400, "the collection is smaller than it was made");
    Ok(took)
}

//! Reads a collection in chunks, in `_id` order over every BSON type, each chunk at a known cluster time,
//! and hands them to the tail, which compares them with the log.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bson::{Document, RawDocumentBuf, doc, rawdoc};
use futures::StreamExt;
use mongodb::Database;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::decode::{cluster_time, timestamp};
use super::failure::{self, is_snapshot_unavailable};
use super::pace::Pace;
use super::reads::id_document;
use super::reply::Reply;
use super::source::{Ended, SILENCE_MAX};

/// What a chunk should hold, in bytes.
const CHUNK_BYTES: u64 = 4 * 1024 * 1024;
/// Most documents in a chunk.
const CHUNK_DOCUMENTS_MAX: u64 = 20_000;
/// Chunks that wait for the tail.
pub(super) const CHUNKS_MAX: usize = 1;
/// Bytes of chunks that wait for the tail or are with it; one more may be arriving.
const CHUNK_ROOM: usize = 16 * 1024 * 1024;
/// A cursor reads at one time for this long, then a new one is opened at a newer time: the source keeps
/// old times for five minutes only.
const SNAPSHOT_MAX: Duration = Duration::from_secs(60);
/// How long a chunk may take to come.
const CHUNK_SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long the first one may take where the source has to sort all that is left of the collection.
const SORT_MAX: Duration = Duration::from_secs(1_800);
/// A longer wait of a slow read for what was sorted is told.
const PACE_TOLD_FROM: Duration = Duration::from_secs(3_600);
/// The wait before a read at a newer time, when the source does not hold the one asked for.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(100);

/// What the tail wants read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order {
    /// Tells this order's chunks from those of an order that it replaced.
    pub(super) generation: u64,
    /// The collection's name.
    pub(super) collection: String,
    /// `{_id: …}` of the last document that is done; `None`: from the start.
    pub(super) after: Option<RawDocumentBuf>,
    /// No chunk may be read at an earlier cluster time.
    pub(super) not_before: u64,
    /// Read at most so much a second; `None`: as fast as the tail takes it.
    pub(super) bytes_per_second: Option<u32>,
}

/// Some documents of a collection, all that it held in a range of `_id` at one cluster time. It starts
/// after the last chunk's end, which it may hold once more.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The order's.
    pub(super) generation: u64,
    /// When it was read …
    pub(super) time: u64,
    /// … or, where the source reads at no single time (a capped collection), by when: what changed in
    /// between may be there as it was or as it is.
    pub(super) until: u64,
    /// It is of such a collection.
    pub(super) capped: bool,
    /// The documents, in `_id` order.
    pub(super) reply: Reply,
    /// It reaches to the end of the collection.
    pub(super) last: bool,
    /// There was no such collection at that time.
    pub(super) gone: bool,
    /// About how many documents the collection holds.
    pub(super) documents_total: u64,
    /// Given back when the chunk is dropped.
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

impl Chunk {
    /// What is left of a chunk that was taken in: to be taken once more when the tail is at `until`.
    pub(super) fn taken(self, until: u64) -> Self {
        Self { until, reply: Reply::Owned(no_documents()), _room: None, ..self }
    }

    /// All of a collection that holds nothing.
    fn nothing(order: &Order, time: u64) -> Self {
        Self {
            generation: order.generation,
            time,
            until: time,
            capped: false,
            reply: Reply::Owned(no_documents()),
            last: true,
            gone: false,
            documents_total: 0,
            _room: None,
        }
    }
}

fn no_documents() -> RawDocumentBuf {
    rawdoc! { "cursor": { "id": 0_i64, "firstBatch": [] } }
}

/// Reads what is ordered.
#[derive(Debug)]
pub(super) struct Copier {
    pub(super) database: Database,
    /// The latest order; `None`: nothing is wanted.
    pub(super) orders: watch::Receiver<Option<Order>>,
    /// Every event up to here is in the log: the time at which a read needs no waiting for the tail.
    pub(super) high_water: watch::Receiver<u64>,
    pub(super) chunks: mpsc::Sender<Chunk>,
    /// How many times as long as usual a chunk may take.
    pub(super) patience: u32,
    /// Of the reads that are to go slowly.
    pub(super) pace: Arc<Pace>,
}

impl Copier {
    /// Reads until nobody orders or takes chunks any more.
    ///
    /// # Errors
    /// What the source says, except that a time can't be had: that is read again at a newer one.
    pub(super) async fn run(mut self) -> Result<(), Ended> {
        let mut orders = self.orders.clone();
        let room = Arc::new(Semaphore::new(CHUNK_ROOM));
        loop {
            let order = orders.borrow_and_update().clone();
            let Some(order) = order else {
                if orders.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            };
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return Ok(()) },
                read = self.read(order, &room) => {
                    if !read? || orders.changed().await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Reads a whole collection, or the rest of one. False: nobody takes the chunks.
    async fn read(&mut self, order: Order, room: &Arc<Semaphore>) -> Result<bool, Ended> {
        let mut after = order.after.clone();
        let (mut outlasts_snapshots, mut sorts_once_more) = (false, false);
        loop {
            if !mem::take(&mut sorts_once_more) {
                self.pace.wait(order.bytes_per_second).await;
            }
            let mut plan = Plan::of(&self.database, &order.collection).await?;
            plan.at_no_time |= outlasts_snapshots;
            let not_before = order.not_before.max(plan.missing_at);
            let Some(time) = self.time_from(not_before).await else { return Ok(false) };
            if plan.no_collection {
                return Ok(self.chunks.send(Chunk::nothing(&order, time)).await.is_ok());
            }
            match self.read_at(&order, &plan, time, &mut after, room).await? {
                Read::End => return Ok(true),
                Read::Nobody => return Ok(false),
                Read::GoOn => {}
                Read::TooOld => {
                    // All of it is sorted before the first of it comes, which would take as long again. It
                    // is done at once, and paid for with the first time: this read alone knows of it.
                    sorts_once_more = !plan.by_index && !outlasts_snapshots;
                    outlasts_snapshots |= !plan.by_index;
                    sleep(SNAPSHOT_PAUSE).await;
                }
            }
        }
    }

    /// The tail's present time, as soon as it is `not_before` or later.
    async fn time_from(&mut self, not_before: u64) -> Option<u64> {
        let reached = self.high_water.wait_for(|time| *time >= not_before.max(1)).await;
        reached.ok().map(|time| *time)
    }

    /// Reads on at one time, for at most [`SNAPSHOT_MAX`].
    async fn read_at(
        &self,
        order: &Order,
        plan: &Plan,
        time: u64,
        after: &mut Option<RawDocumentBuf>,
        room: &Arc<Semaphore>,
    ) -> Result<Read, Ended> {
        let command = plan.command(&order.collection, after.as_ref(), time);
        let opening = self.database.run_cursor_command(command).batch_size(plan.batch_size).batch();
        let silence_max = CHUNK_SILENCE_MAX * self.patience;
        let opening_max = if plan.by_index { silence_max } else { SORT_MAX };
        if !plan.by_index {
            // Whatever comes of it. What is sorted is not read again while its chunks come.
            let wait = self.pace.sorted(plan.bytes_total, order.bytes_per_second);
            if wait > PACE_TOLD_FROM {
                let (collection, bytes, wait_s) =
                    (&order.collection, plan.bytes_total, wait.as_secs());
                tracing::warn!(
                    collection,
                    bytes,
                    wait_s,
                    "has a collation, so MongoDB sorts all of it to be compared; the background scrub waits \
                     for as long as that is worth at [scrub] megabytes_per_second"
                );
            }
        }
        let mut cursor = match timeout(opening_max, opening).await {
            Err(_) => return Err(silent(opening_max)),
            Ok(Err(error)) if is_snapshot_unavailable(&error) => return Ok(Read::TooOld),
            Ok(opened) => opened?,
        };
        let opened = Instant::now();
        loop {
            let reply = match timeout(silence_max, cursor.next()).await {
                Err(_) => return Err(silent(silence_max)),
                Ok(None) => return Ok(Read::GoOn),
                Ok(Some(Err(error))) if is_snapshot_unavailable(&error) => return Ok(Read::TooOld),
                Ok(Some(reply)) => Reply::Driver(reply?),
            };
            let last = reply.is_last();
            let is_empty = reply.documents().next().is_none();
            // Where it was missing before this time already, nothing else is to be expected.
            let is_news = is_empty && plan.missing_at == 0;
            if is_news && Plan::of(&self.database, &order.collection).await?.missing_at > time {
                return Ok(Read::TooOld);
            }
            if let Some(end) = reply.documents().last() {
                // Without a readable `_id` the next cursor starts where this one did, which costs time
                // and loses nothing.
                if let Ok(Some(id)) = end.get("_id") {
                    *after = Some(id_document(id));
                }
            }
            let bytes = u32::try_from(reply.bytes().clamp(1, CHUNK_ROOM)).unwrap_or(u32::MAX);
            let is_unpaid = plan.by_index || plan.bytes_total == 0;
            if is_unpaid {
                self.pace.chunk(bytes.into(), order.bytes_per_second);
            }
            let Ok(permit) = Arc::clone(room).acquire_many_owned(bytes).await else {
                return Ok(Read::Nobody);
            };
            let at = reply.snapshot_time().unwrap_or(time);
            let chunk = Chunk {
                generation: order.generation,
                time: at,
                until: if plan.at_no_time { reply.operation_time().max(at) } else { at },
                capped: plan.at_no_time,
                reply,
                last,
                gone: is_empty && plan.missing_at > 0,
                documents_total: plan.documents_total,
                _room: Some(permit),
            };
            if self.chunks.send(chunk).await.is_err() {
                return Ok(Read::Nobody);
            }
            if last {
                return Ok(Read::End);
            }
            if is_unpaid {
                self.pace.wait(order.bytes_per_second).await;
            }
            if opened.elapsed() > SNAPSHOT_MAX {
                return Ok(Read::GoOn);
            }
        }
    }
}

/// How a read at one time ended.
#[derive(Debug)]
enum Read {
    /// At the collection's end.
    End,
    /// In the middle; the rest is read at a newer time.
    GoOn,
    /// The source does not hold that time.
    TooOld,
    /// Nobody takes the chunks.
    Nobody,
}

fn silent(waited: Duration) -> Ended {
    let message = format!("no chunk came for {} s", waited.as_secs());
    Ended::new(crate::retry::Failure::Silent, message)
}

/// How a collection is read.
#[derive(Debug)]
struct Plan {
    batch_size: u32,
    documents_total: u64,
    /// 0 where that can't be asked for.
    bytes_total: u64,
    /// There was no such collection at this time; 0: there is one. What has been dropped or renamed is read
    /// as empty at earlier times too, at which it was not (MongoDB 6.0).
    missing_at: u64,
    /// By bounds on the `_id` index, or on the collection itself where it is clustered. Not where that
    /// orders by another rule than ours (a collation): then the source sorts all of it for each cursor.
    by_index: bool,
    /// Read at no time of our choice: MongoDB 6 does not read a capped collection so, nor one that is sorted
    /// for longer than it keeps a time.
    at_no_time: bool,
    /// A view or a time series has taken the name: nothing tells what happens to it, so nothing of it is
    /// read.
    no_collection: bool,
}

impl Plan {
    async fn of(database: &Database, collection: &str) -> Result<Self, Ended> {
        let (stats, options) = tokio::join!(
            answer(database, doc! { "collStats": collection }),
            answer(database, doc! { "listCollections": 1, "filter": { "name": collection } },),
        );
        let (stats, options) = (stats?, options?);
        let number = |name: &str| match stats.get(name) {
            Some(bson::Bson::Int32(n)) => u64::try_from(*n).unwrap_or(0),
            Some(bson::Bson::Int64(n)) => u64::try_from(*n).unwrap_or(0),
            Some(bson::Bson::Double(n)) => *n as u64,
            _ => 0,
        };
        let wanted = CHUNK_BYTES / number("avgObjSize").max(1);
        let found = options.get_document("cursor").and_then(|c| c.get_array("firstBatch")).ok();
        let is_missing = found.is_some_and(Vec::is_empty);
        let now = options.get_timestamp("operationTime").map_or(0, cluster_time);
        let found = found.and_then(|batch| batch.first()?.as_document());
        let kind = found.and_then(|found| found.get_str("type").ok()).unwrap_or("collection");
        let no_collection = kind != "collection";
        if no_collection {
            tracing::warn!(collection, kind, "has no change events; nothing of it is served");
        }
        let described = found.and_then(|found| found.get_document("options").ok());
        let by_index = described.is_none_or(|options| !options.contains_key("collation"));
        Ok(Self {
            batch_size: wanted.clamp(1, CHUNK_DOCUMENTS_MAX) as u32,
            documents_total: number("count"),
            bytes_total: number("size"),
            missing_at: if is_missing { now } else { 0 },
            by_index,
            at_no_time: described
                .is_some_and(|options| options.get_bool("capped").unwrap_or(false)),
            no_collection,
        })
    }

    fn command(&self, collection: &str, after: Option<&RawDocumentBuf>, time: u64) -> Document {
        let time = timestamp(time);
        let mut command = doc! {
            "find": collection,
            "sort": { "_id": 1 },
            "batchSize": self.batch_size,
            "readConcern": match self.at_no_time {
                false => doc! { "level": "snapshot", "atClusterTime": time },
                true => doc! { "level": "majority", "afterClusterTime": time },
            },
        };
        let after = after.and_then(|id| Document::try_from(id.as_ref()).ok());
        if self.by_index {
            command.insert("hint", doc! { "_id": 1 });
            if let Some(after) = after {
                // Inclusive, and unlike `$gt` it goes on into the next BSON type.
                command.insert("min", after);
            }
        } else {
            command.insert("collation", doc! { "locale": "simple" });
            command.insert("allowDiskUse", true);
            if let Some(id) = after.and_then(|mut after| after.remove("_id")) {
                let beyond = doc! { "$gt": ["$_id", { "$literal": id }] };
                command.insert("filter", doc! { "$expr": beyond });
            }
        }
        command
    }
}

/// A command's answer; empty where the source has none to give (no such collection yet, a view, a right
/// that only this command needs): what it tells is then guessed.
async fn answer(database: &Database, command: Document) -> Result<Document, Ended> {
    match timeout(SILENCE_MAX, database.run_command(command).into_future()).await {
        Err(_) => Err(silent(SILENCE_MAX)),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if failure::has_no_answer(&error) => Ok(Document::new()),
        Ok(Err(error)) => Err(error.into()),
    }
}

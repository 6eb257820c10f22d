//! The change stream: one for the whole database, its replies passed on raw and in order, the next one
//! fetched while the tail still writes the last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::{RawDocumentBuf, doc};
use futures::StreamExt;
use mongodb::raw_batch_cursor::SessionRawBatchCursor;
use mongodb::{Client, ClientSession, Database};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::decode::{Event, timestamp, token_time};
use super::failure;
use super::giants::{Fragments, Giants, IN_PARTS_MAX};
use super::quarantine::ID_BYTES_MAX;
use super::reply::{Batch, Reply};
use crate::retry::Failure;

/// How long the source holds an answer when nothing happens.
const AWAIT_MAX: Duration = Duration::from_millis(500);
/// No answer for this long: the stream is dropped. The driver alone would wait 16 s for a primary that
/// was stopped or cut off. A stream that was dropped for it gets longer, see
/// [`Attempts::patience`](crate::retry::Attempts::patience).
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(6);
/// A stream that has answered for so long gets no longer than that again.
const PATIENT_FOR: Duration = Duration::from_secs(60);
/// Most events in a batch.
const BATCH_EVENTS_MAX: u32 = 2_000;
/// A batch of at least this many bytes may have been cut for its size (the source's own bound is 16 MB).
const BATCH_BYTES_CUT: usize = 8 * 1024 * 1024;
/// Replies that wait for the tail.
pub(super) const BATCHES_MAX: usize = 8;
/// Bytes of replies that wait for the tail or are with it; one more may be arriving.
pub(super) const BATCH_BYTES_MAX: usize = 12 * 1024 * 1024;
/// After a probe that found more than the boundary, the next probe waits this long: under load the next
/// event tells the boundary soon enough.
const PROBE_PAUSE: Duration = Duration::from_millis(250);

/// Where a stream starts.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum StartAt {
    /// After the event or the high-water mark of this token.
    Token(RawDocumentBuf),
    /// At this cluster time, inclusive.
    Time(u64),
}

/// Why a stream ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// What failed.
    pub(super) failure: Failure,
    /// For people.
    pub(super) message: String,
}

impl Ended {
    pub(super) fn new(failure: Failure, message: impl Into<String>) -> Self {
        Self { failure, message: message.into() }
    }
}

impl From<mongodb::error::Error> for Ended {
    fn from(error: mongodb::error::Error) -> Self {
        Self::new(failure::classify(&error), failure::shown(&error))
    }
}

/// The stream of one database, cut to the collections that are followed.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) client: Client,
    pub(super) database: Database,
    /// Names of the followed collections.
    pub(super) collections: Arc<[String]>,
    /// An event that is too large to be sent is to be told in parts, or by its key, instead of ending
    /// the stream.
    pub(super) in_parts: bool,
    /// No answer for this long ends the stream.
    pub(super) silence_max: Duration,
}

impl Source {
    /// Follows the stream from `start` and hands its replies to `batches`, until it ends, nobody takes
    /// them any more or `shutdown` says so.
    pub(super) async fn follow(
        &self,
        start: StartAt,
        batches: mpsc::Sender<Batch>,
        shutdown: CancellationToken,
    ) -> Result<(), Ended> {
        tokio::select! {
            // First, so that a stream that never pauses can be stopped.
            biased;
            () = shutdown.cancelled() => Ok(()),
            ended = self.pump(start, batches) => ended,
        }
    }

    async fn pump(&self, start: StartAt, batches: mpsc::Sender<Batch>) -> Result<(), Ended> {
        let room = Arc::new(Semaphore::new(BATCH_BYTES_MAX));
        let session = self.client.start_session().causal_consistency(false);
        let mut session = self.in_time(session.into_future()).await?;
        let mut cursor = self.opened(&start, &mut session).await?;
        let mut no_probe_before = Instant::now();
        let mut fragments = Fragments::default();
        let opened = Instant::now();
        loop {
            let is_fast = opened.elapsed() > PATIENT_FOR;
            let silence_max = if is_fast { SILENCE_MAX } else { self.silence_max };
            let next = timeout(silence_max, cursor.stream(&mut session).next()).await;
            let Ok(next) = next else { return Err(silent(silence_max)) };
            let Some(reply) = next else { return Err(closed()) };
            let reply = Reply::Driver(reply.map_err(|error| self.ended(error))?);
            let (id, last) = (reply.cursor_id(), reply.is_last());
            let Some(reply) = fragments.take(reply)? else {
                if last {
                    return Err(closed());
                }
                continue;
            };
            let tail_end = TailEnd::of(&reply);
            if !pass_on(reply, tail_end.full, &room, &batches).await {
                return Ok(());
            }
            if last {
                return Err(closed());
            }
            if self.in_parts && !tail_end.full && !tail_end.open && opened.elapsed() > IN_PARTS_MAX
            {
                return Err(Ended::new(Failure::Closed, "events come as ever again"));
            }
            if tail_end.open && Instant::now() >= no_probe_before {
                match self.in_time(self.probe(id, &mut session)).await? {
                    Some(empty) => {
                        if !pass_on(empty, false, &room, &batches).await {
                            return Ok(());
                        }
                    }
                    None => {
                        // The driver gives this reply typed, which loses doubled field names and
                        // fails on odd strings: the same events are read again, raw.
                        no_probe_before = Instant::now() + PROBE_PAUSE;
                        let Some(token) = tail_end.token else { continue };
                        drop(cursor);
                        cursor = self.opened(&StartAt::Token(token), &mut session).await?;
                    }
                }
            }
        }
    }

    /// Opens the stream; what is too large is told in the way that was asked for and that the source
    /// knows.
    async fn opened(
        &self,
        start: &StartAt,
        session: &mut ClientSession,
    ) -> Result<SessionRawBatchCursor, Ended> {
        let opening = async {
            if !self.in_parts {
                return self.open(start, Giants::Refused, session).await;
            }
            match self.open(start, Giants::Split, session).await {
                Err(error) if failure::is_unknown_stage(&error) => {
                    self.open(start, Giants::ByKey, session).await
                }
                opened => opened,
            }
        };
        timeout(self.silence_max, opening)
            .await
            .map_err(|_| silent(self.silence_max))?
            .map_err(|error| self.ended(error))
    }

    /// Opens it, with deltas as the oplog holds them where the source knows of that.
    async fn open(
        &self,
        start: &StartAt,
        giants: Giants,
        session: &mut ClientSession,
    ) -> mongodb::error::Result<SessionRawBatchCursor> {
        match self.open_with(start, Deltas::AsInOplog, giants, session).await {
            Err(error) if failure::is_unknown_option(&error) => {
                self.open_with(start, Deltas::AsPaths, giants, session).await
            }
            opened => opened,
        }
    }

    async fn open_with(
        &self,
        start: &StartAt,
        deltas: Deltas,
        giants: Giants,
        session: &mut ClientSession,
    ) -> mongodb::error::Result<SessionRawBatchCursor> {
        self.database
            .run_cursor_command(stream_command(start, deltas, giants, &self.collections))
            .batch_size(BATCH_EVENTS_MAX)
            .max_time(AWAIT_MAX)
            .session(session)
            .batch()
            .await
    }

    /// `future`, for as long as the source may be silent.
    async fn in_time<T>(
        &self,
        future: impl Future<Output = mongodb::error::Result<T>>,
    ) -> Result<T, Ended> {
        timeout(self.silence_max, future)
            .await
            .map_err(|_| silent(self.silence_max))?
            .map_err(Ended::from)
    }

    /// What is too large for a stream that tells in parts is too large for good.
    fn ended(&self, error: mongodb::error::Error) -> Ended {
        let mut ended = Ended::from(error);
        if self.in_parts && ended.failure == Failure::EventTooLarge {
            ended.failure = Failure::Impassable;
        }
        ended
    }

    /// Asks the open cursor once, without waiting, whether more has come. `Some`: nothing has, so what
    /// came before is whole.
    async fn probe(
        &self,
        cursor: i64,
        session: &mut ClientSession,
    ) -> mongodb::error::Result<Option<Reply>> {
        let command = doc! {
            "getMore": cursor,
            "collection": "$cmd.aggregate",
            "batchSize": BATCH_EVENTS_MAX as i32,
            "maxTimeMS": 1,
        };
        let reply = self.database.run_command(command).session(session).await?;
        let reply = RawDocumentBuf::try_from(&reply).map(Reply::Owned)?;
        Ok((reply.documents().next().is_none() && !reply.is_last()).then_some(reply))
    }
}

fn silent(waited: Duration) -> Ended {
    let seconds = waited.as_secs();
    Ended::new(Failure::Silent, format!("the source has not answered for {seconds} s"))
}

fn closed() -> Ended {
    Ended::new(Failure::Closed, "the source closed the stream")
}

/// Sends a reply when there is room for it. False: nobody takes it.
async fn pass_on(
    reply: Reply,
    full: bool,
    room: &Arc<Semaphore>,
    batches: &mpsc::Sender<Batch>,
) -> bool {
    // A single reply larger than all the room still passes, alone.
    let bytes = u32::try_from(reply.bytes().clamp(1, BATCH_BYTES_MAX)).unwrap_or(u32::MAX);
    let Ok(permit) = Arc::clone(room).acquire_many_owned(bytes).await else { return false };
    batches.send(Batch { reply, full, _room: Some(permit) }).await.is_ok()
}

/// How a batch ends.
#[derive(Debug)]
struct TailEnd {
    /// It was cut because it was full.
    full: bool,
    /// More of its last event's time may follow, and the source says no more than that: it ends in a
    /// transaction, or it is full and there is nothing later.
    open: bool,
    /// The last event's token, where `open`.
    token: Option<RawDocumentBuf>,
}

impl TailEnd {
    fn of(reply: &Reply) -> Self {
        let mut last = None;
        let mut events = 0;
        for event in reply.documents() {
            last = Some(event);
            events += 1;
        }
        let full = events >= BATCH_EVENTS_MAX || reply.bytes() >= BATCH_BYTES_CUT;
        let event = last.and_then(|last| Event::decode(last).ok());
        let open = event.filter(|event| {
            // With more behind it, the next reply comes at once and tells.
            let waits = match full {
                true => reply.operation_time() <= event.cluster_time,
                false => event.in_transaction,
            };
            waits && reply.post_batch_token().and_then(token_time) <= Some(event.cluster_time)
        });
        Self { full, open: open.is_some(), token: open.map(|event| event.token.to_owned()) }
    }
}

/// The form in which updates are told; [`super::patch`] reads both.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deltas {
    /// Exact. MongoDB 6.0 and later know the option, which their manual does not name
    /// (`showRawUpdateDescription` in `document_source_change_stream.idl`).
    AsInOplog,
    /// Dotted paths, which in rare cases can mean two things.
    AsPaths,
}

/// The command that opens the stream: what is not followed is left out by the source, before it costs
/// anything here.
fn stream_command(
    start: &StartAt,
    deltas: Deltas,
    giants: Giants,
    collections: &[String],
) -> bson::Document {
    let mut stage = doc! { "fullDocument": "default", "showExpandedEvents": true };
    if deltas == Deltas::AsInOplog {
        stage.insert("showRawUpdateDescription", true);
    }
    match start {
        // Unlike `resumeAfter` it takes the token of an `invalidate` too.
        StartAt::Token(token) => {
            // Resume tokens are small documents of strings: nothing is lost on the way.
            let token = bson::Document::try_from(token.as_ref()).unwrap_or_default();
            stage.insert("startAfter", token)
        }
        StartAt::Time(time) => stage.insert("startAtOperationTime", timestamp(*time)),
    };
    let names = doc! { "$in": collections };
    let mut pipeline = vec![
        doc! { "$changeStream": stage },
        // What else happens to a followed collection (`create`, `modify`, an index) is rare and passes.
        doc! { "$match": { "$or": [
            { "ns.coll": names.clone() },
            { "to.coll": names },
            { "operationType": { "$in": ["dropDatabase", "invalidate"] } },
        ] } },
        // An event about an `_id` that the stream can't carry would end it.
        doc! { "$match": { "$expr": { "$lte": [
            { "$bsonSize": { "$ifNull": ["$documentKey", {}] } }, ID_BYTES_MAX as i32,
        ] } } },
    ];
    pipeline.extend(giants.stages());
    let cursor = doc! { "batchSize": BATCH_EVENTS_MAX as i32 };
    doc! { "aggregate": 1, "pipeline": pipeline, "cursor": cursor }
}

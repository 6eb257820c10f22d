//! `GET /api/sync/digest` and `GET /api/sync/range`: what a replica is compared with, and what of it is
//! told again where it differs. Both are of one collection as it stood at the replica's own cursor, cut
//! to what the token may see; both come in parts of bounded work.

mod query;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use rand::RngExt as _;
use tidewire_protocol::ErrorCode;
use tidewire_protocol::digest::{CollectionDigest, DigestPage, range_of};
use tidewire_protocol::key::write_mongo_id;
use tidewire_protocol::payload::{write_json, write_json_string, write_time_ms};
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{Semaphore, oneshot};

use super::Parts;
use super::compress::{Encoding, compress};
use super::errors::{ApiError, shown};
use super::page::{Format, PAGE_BYTES_MAX, PageWriter};
use super::read::{accounted, respond};
use crate::access::Identity;
use crate::log::{Body, DocumentsError, DocumentsRequest, Entry, Flow, Place, ReadError};
use crate::metrics::{now_ms, time_text};

use query::{Asked, RangeQuery};

/// Parts that wait for their turn, or are read, at once.
const PARTS_MAX: usize = 64;
/// Told to one too many: seconds, spread evenly.
const RETRY_SECONDS: std::ops::RangeInclusive<u32> = 10..=30;
/// After a part its turn rests for as long as it took, this long at most: however many ask, half a
/// core is left for others.
const REST_MAX: Duration = Duration::from_secs(2);

/// Whose turn it is.
#[derive(Debug)]
pub(crate) struct Turns {
    waiting: Arc<Semaphore>,
    one: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        let turns = |count| Arc::new(Semaphore::new(count));
        Self { waiting: turns(PARTS_MAX), one: turns(1) }
    }
}

/// What to read, checked and owned: it goes to another thread.
#[derive(Debug)]
struct Job {
    asked: Asked,
    channels: Vec<String>,
    encoding: Encoding,
}

pub(super) async fn digest(
    State(parts): State<Arc<Parts>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let identity = parts.identify(&headers)?;
    let job = parts.digest_job(query::parse_digest(&uri)?, identity, &headers)?;
    parts.turn_of_digests(job, |parts, job| parts.write_digest(job)).await
}

pub(super) async fn range(
    State(parts): State<Arc<Parts>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let identity = parts.identify(&headers)?;
    let RangeQuery { asked, ranges, limit } = query::parse_range(&uri)?;
    let job = parts.digest_job(asked, identity, &headers)?;
    parts.turn_of_digests(job, move |parts, job| parts.write_range(job, &ranges, limit)).await
}

impl Parts {
    fn digest_job(
        &self,
        asked: Asked,
        identity: Identity,
        headers: &HeaderMap,
    ) -> Result<Job, ApiError> {
        self.visible(&identity, Some(std::slice::from_ref(&asked.collection)))?;
        self.check_serving()?;
        if !asked.at.covers(&asked.collection, &identity.channels) {
            let message = format!(
                "the cursor was read with other channels than this token holds, or without {}",
                shown(&asked.collection)
            );
            let remedy = "pull or listen with this token until complete, then ask at that cursor";
            return Err(ApiError::new(ErrorCode::InvalidSince, message, remedy));
        }
        let encoding = Encoding::negotiate(headers);
        Ok(Job { asked, channels: identity.channels, encoding })
    }

    /// Makes one part of an answer when it is its turn.
    async fn turn_of_digests(
        self: &Arc<Self>,
        job: Job,
        make: impl FnOnce(&Self, &Job) -> Result<Vec<u8>, ApiError> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let Ok(_waiting) = Arc::clone(&self.digests.waiting).try_acquire_owned() else {
            let message = "many replicas are being compared just now";
            let remedy = "try again after Retry-After";
            let seconds = rand::rng().random_range(RETRY_SECONDS);
            return Err(ApiError::new(ErrorCode::RateLimited, message, remedy).retry_after(seconds));
        };
        let one = Arc::clone(&self.digests.one).acquire_owned().await;
        let (memory, turn) = self.page_turn().await?;
        let parts = Arc::clone(self);
        let made = in_turn(one, move || {
            let made = make(&parts, &job).map(|body| compress(body, job.encoding));
            drop(turn);
            made.map(|(body, encoding)| (accounted(body, memory), encoding))
        });
        let made = made.await.map_err(|_| ApiError::internal())?;
        made.map(|(body, encoding)| respond(body, encoding))
    }

    fn write_digest(&self, job: &Job) -> Result<Vec<u8>, ApiError> {
        let Asked { at, collection, depth, .. } = &job.asked;
        let exclude = self.rules.get(collection).ok_or_else(ApiError::internal)?.exclude();
        let mut digest = CollectionDigest::new(*depth);
        let (mut key, mut payload) = (Vec::new(), Vec::new());
        let next = self.documents(job, &mut |entry| {
            payload.clear();
            // What can't be written is served as a delete.
            if let Body::Upsert(document) = entry.body
                && write_json(document, exclude, &mut payload).is_ok()
            {
                write_key(entry, &mut key);
                digest.add(&key, &payload);
            }
            Flow::Took
        })?;
        let next = next.map(|place| place.to_string());
        let page = DigestPage {
            success: true,
            server_time: time_text(now_ms()).into(),
            collection: collection.into(),
            position: at.position(),
            depth: *depth,
            ranges: digest.filled().collect(),
            next: next.map(Into::into),
        };
        serde_json::to_vec(&page).map_err(|_| ApiError::internal())
    }

    fn write_range(&self, job: &Job, ranges: &[u32], limit: usize) -> Result<Vec<u8>, ApiError> {
        let depth = job.asked.depth;
        let begin = begin_range(job);
        let mut writer = PageWriter::begin_with(&self.rules, Format::Json, begin, PAGE_BYTES_MAX);
        let (mut key, mut count) = (Vec::new(), 0);
        let next = self.documents(job, &mut |entry| {
            write_key(entry, &mut key);
            if ranges.binary_search(&range_of(&key, depth)).is_err() {
                return Flow::Took;
            }
            if count == limit || writer.entry(entry) == Flow::Full {
                return Flow::Full;
            }
            count += 1;
            Flow::Took
        })?;
        let mut out = writer.into_bytes();
        out.extend_from_slice(br#"],"next":"#);
        match next {
            Some(place) => out.extend_from_slice(format!("\"{place}\"}}").as_bytes()),
            None => out.extend_from_slice(b"null}"),
        }
        Ok(out)
    }

    fn documents(
        &self,
        job: &Job,
        emit: &mut dyn FnMut(&Entry<'_>) -> Flow,
    ) -> Result<Option<Place>, ApiError> {
        let request = DocumentsRequest {
            at: &job.asked.at,
            collection: &job.asked.collection,
            channels: &job.channels,
            from: job.asked.from,
            operation_time: self.source_time(),
        };
        self.reader.documents(&request, emit).map_err(|error| match error {
            DocumentsError::Elsewhere => {
                let message = "from is of another server's log";
                let remedy = "begin again without it, and forget the parts that came before";
                ApiError::new(ErrorCode::BadRequest, message, remedy)
            }
            DocumentsError::Read(ReadError::Ahead) => {
                ApiError::not_ready("this server's log has not come to the cursor yet", 1)
            }
            DocumentsError::Read(ReadError::Unsettled) => {
                ApiError::not_ready("at the cursor this server's log was not whole", 60)
            }
            DocumentsError::Read(error) => error.into(),
        })
    }
}

/// Does `work` on another thread, and has `turn` rest after it. Both go on where nobody waits any more: who
/// hangs up does not make room for more of the same.
async fn in_turn<P: Send + 'static, T: Send + 'static>(
    turn: P,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RecvError> {
    let (done, made) = oneshot::channel();
    tokio::spawn(async move {
        let worked = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            // Nobody may wait any more.
            done.send(work()).ok();
            began.elapsed()
        });
        match worked.await {
            Ok(took) => tokio::time::sleep(took.min(REST_MAX)).await,
            Err(error) => tracing::error!(%error, "making a digest panicked"),
        }
        drop(turn);
    });
    made.await
}

fn write_key(entry: &Entry<'_>, key: &mut Vec<u8>) {
    key.clear();
    let (Body::Upsert(document) | Body::Delete(document)) = entry.body;
    if let Ok(Some(id)) = document.get("_id") {
        write_mongo_id(id, key);
    }
}

fn begin_range(job: &Job) -> Vec<u8> {
    let Asked { at, collection, depth, .. } = &job.asked;
    let mut out = br#"{"success":true,"serverTime":""#.to_vec();
    write_time_ms(now_ms(), &mut out);
    out.extend_from_slice(br#"","collection":"#);
    write_json_string(collection, &mut out);
    let position = at.position();
    let rest = format!(r#","position":"{position}","depth":{depth},"changes":["#);
    out.extend_from_slice(rest.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_hangs_up_keeps_the_turn_until_the_work_is_done() {
        let turns = Turns::default();
        let one = Arc::clone(&turns.one).try_acquire_owned().expect("its turn");
        let (begun, begins) = oneshot::channel();
        let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
        let worked = tokio::spawn(in_turn(one, move || {
            begun.send(()).ok();
            goes_on.recv().ok();
        }));
        begins.await.expect("it began");
        worked.abort();
        assert!(worked.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(turns.one.available_permits(), 0, "the work goes on");
        go_on.send(()).expect("it waits");
        assert!(turns.one.acquire().await.is_ok());
    }
}

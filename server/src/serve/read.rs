//! One bounded read of the log, off the async threads: what pull and long poll share.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use tokio::sync::OwnedSemaphorePermit;

use super::Parts;
use super::compress::{Encoding, compress};
use super::errors::ApiError;
use super::page::{Format, PAGE_BYTES_MAX, PageWriter};
use crate::log::{PageEnd, PageRequest, ReadError, Scope, Since};

/// What a page takes while it is made: its text, and the text compressed.
const PAGE_RESERVE_KIB: u32 = (PAGE_BYTES_MAX / 1024 * 3 / 2) as u32;
/// How long a read waits for its turn before the caller is told to come again.
const TURN_WAIT: Duration = Duration::from_secs(10);

/// What to read, owned: it goes to another thread.
#[derive(Clone, Debug)]
pub(super) struct PageJob {
    pub(super) since: Since,
    /// What the page says that it answers: the caller's own text, wherever the reading has come to.
    pub(super) asked: Arc<str>,
    pub(super) collections: Arc<[String]>,
    pub(super) channels: Arc<[String]>,
    pub(super) limit: usize,
    pub(super) format: Format,
    pub(super) encoding: Encoding,
}

/// A page, ready to be sent.
#[derive(Debug)]
pub(super) struct ReadyPage {
    pub(super) body: Bytes,
    pub(super) encoding: Encoding,
    pub(super) end: PageEnd,
}

/// What came of a read.
#[derive(Debug)]
pub(super) enum ReadOutcome {
    Page(ReadyPage),
    /// The cursor is ahead of the log: an empty page that gives it back.
    Ahead(ReadyPage),
}

/// A page's bytes, how they are encoded, what they say, and whether the cursor is ahead of the log.
type Made = (Vec<u8>, Encoding, PageEnd, bool);

/// Bytes that give their memory back when the last of them is sent or dropped.
struct Accounted {
    bytes: Vec<u8>,
    _memory: OwnedSemaphorePermit,
}

/// `bytes` with their share of `memory`, in KiB; the rest of it is given back now.
pub(super) fn accounted(bytes: Vec<u8>, mut memory: OwnedSemaphorePermit) -> Bytes {
    let needed = bytes.len().div_ceil(1024).max(1).min(memory.num_permits());
    let surplus = memory.num_permits() - needed;
    drop(memory.split(surplus));
    Bytes::from_owner(Accounted { bytes, _memory: memory })
}

/// An answer of JSON.
pub(super) fn respond(body: Bytes, encoding: Encoding) -> Response {
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding, authorization"));
    if let Some(encoding) = encoding.header() {
        headers.insert(header::CONTENT_ENCODING, encoding);
    }
    response
}

impl AsRef<[u8]> for Accounted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Parts {
    /// Memory for a page, in KiB, and a turn to make it.
    pub(super) async fn page_turn(
        &self,
    ) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), ApiError> {
        let turn = async {
            let memory =
                Arc::clone(&self.bounds.page_memory_kib).acquire_many_owned(PAGE_RESERVE_KIB);
            let memory = memory.await.ok()?;
            Some((memory, Arc::clone(&self.bounds.reads).acquire_owned().await.ok()?))
        };
        let turn = tokio::time::timeout(TURN_WAIT, turn).await.ok().flatten();
        turn.ok_or_else(|| ApiError::not_ready("this server is busy with other pages", 2))
    }

    /// Reads, encodes and compresses one page.
    pub(super) async fn read_page(self: &Arc<Self>, job: PageJob) -> Result<ReadOutcome, ApiError> {
        let (memory, turn) = self.page_turn().await?;
        let parts = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let (bytes, encoding, end, is_ahead) = parts.read_blocking(&job)?;
            parts.metrics.page(end.count, bytes.len());
            let body = accounted(bytes, memory);
            let page = ReadyPage { body, encoding, end };
            Ok(if is_ahead { ReadOutcome::Ahead(page) } else { ReadOutcome::Page(page) })
        });
        read.await.map_err(|error| {
            tracing::error!(%error, "reading a page panicked");
            ApiError::internal()
        })?
    }

    fn read_blocking(&self, job: &PageJob) -> Result<Made, ApiError> {
        let begin =
            || PageWriter::begin(&self.rules, job.format, crate::metrics::now_ms(), &job.asked);
        let (writer, end, is_ahead) = self.write_changes(job, begin)?;
        let encoding = if is_ahead { Encoding::Identity } else { job.encoding };
        let (mut body, encoding) = compress(writer.finish(&end, self.source_lag_ms()), encoding);
        body.shrink_to_fit();
        Ok((body, encoding, end, is_ahead))
    }

    /// Reads what follows `job.since` into a writer that `begin` makes. True: the cursor is one that
    /// this log has not reached, so there is nothing new, and what it said of its replica still holds.
    pub(super) fn write_changes<'a>(
        &'a self,
        job: &PageJob,
        begin: impl Fn() -> PageWriter<'a>,
    ) -> Result<(PageWriter<'a>, PageEnd, bool), ApiError> {
        let operation_time = self.source_time();
        let head = self.reader.head().borrow().position;
        // A time that the log has not come to yet reads from the log's last second: no fewer changes,
        // and a cursor to go on with.
        let since = match &job.since {
            Since::Time(second) => Since::Time((*second).min(head.unix_seconds())),
            other => other.clone(),
        };
        let request = PageRequest {
            since: &since,
            scope: Scope::Channels { collections: &job.collections, channels: &job.channels },
            limit: job.limit,
            operation_time,
        };
        let mut writer = begin();
        match (self.reader.page(&request, &mut |entry| writer.entry(entry)), &since) {
            (Ok(end), _) => Ok((writer, end, false)),
            (Err(ReadError::Ahead), Since::Cursor(cursor)) => {
                let end = PageEnd {
                    cursor: cursor.clone(),
                    // The log may have come farther meanwhile: this reader has not.
                    checkpoint: head.min(cursor.position()),
                    has_more: false,
                    complete: cursor.is_complete(),
                    count: 0,
                    filled: None,
                };
                Ok((begin(), end, true))
            }
            (Err(error), _) => Err(error.into()),
        }
    }
}

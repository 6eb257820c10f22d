//! What commits tell, made once for all sockets that they concern alike: the changes as text. What is a
//! socket's own, its cursor, is put around it when it is sent.

use std::sync::Arc;

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::Parts;
use super::super::errors::ApiError;
use super::super::page::{Format, PageWriter};
use super::super::read::accounted;
use super::hub::News;
use super::made::{KEPT_MAX, Made};
use super::memory::{NEWS_KIB, Purpose, needed};
use super::pages::{FRAME_BYTES_MAX, LIMIT};
use crate::log::{Body, Entry, Flow, ReadError};

/// Stretches that are read at the same time.
const READS_MAX: usize = 2;
/// A stretch of so few changes, and so few bytes of documents, is read where it is wanted: it takes less
/// time than the way to another thread and back.
const HERE_CHANGES_MAX: u64 = 16;
const HERE_BYTES_MAX: usize = 32 * 1024;

/// The largest telling that is kept when nobody is being sent it any more: as many as are remembered
/// hold half of the memory for news, and commits go on being told.
const KEPT_BYTES_MAX: usize = 4 * 1024;
const _: () = assert!(KEPT_BYTES_MAX * KEPT_MAX <= NEWS_KIB as usize * 1024 / 2);

/// Turns to read a stretch: who is told what was committed just now does not wait for who catches up.
#[derive(Debug)]
pub(super) struct NewsTurns(pub(super) Arc<Semaphore>);

impl Default for NewsTurns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(READS_MAX)))
    }
}

/// What stretches of the log told.
pub(super) type Tellings = Made<(News, bool), Option<Told>>;

/// The changes of a stretch, for sockets that watch the same of what it touched.
#[derive(Debug)]
pub(super) struct Told {
    /// Comma-separated.
    pub(super) changes: Bytes,
    pub(super) count: usize,
}

impl Parts {
    /// The changes of a stretch; nothing where it does not fit a frame or is not complete at its end, so
    /// that each socket has to read for itself.
    pub(super) async fn told(
        self: &Arc<Self>,
        news: News,
        format: Format,
    ) -> Result<Arc<Option<Told>>, ApiError> {
        let is_kept = |told: &Option<Told>| {
            told.as_ref().is_none_or(|told| told.changes.len() <= KEPT_BYTES_MAX)
        };
        let key = (news.clone(), format == Format::Json);
        let make = || self.make_told(news.clone(), format);
        self.live.tellings.get(news.through.seq, key, is_kept, make).await
    }

    async fn make_told(
        self: &Arc<Self>,
        news: News,
        format: Format,
    ) -> Result<Arc<Option<Told>>, ApiError> {
        if news.through.seq - news.after.seq <= HERE_CHANGES_MAX {
            let memory = self.live.memory.take(Purpose::News).await;
            let memory = memory.ok_or_else(ApiError::internal)?;
            if let Some(told) = self.read_news(&news, format, HERE_BYTES_MAX, memory)? {
                return Ok(Arc::new(Some(told)));
            }
        }
        let read = move |parts: &Self, memory| parts.read_news(&news, format, usize::MAX, memory);
        self.read_for_frame(Purpose::News, read).await.map(Arc::new)
    }

    /// Nothing where the stretch does not fit a frame or is not complete at its end, or its documents are
    /// more than `bytes_max`.
    fn read_news(
        &self,
        news: &News,
        format: Format,
        bytes_max: usize,
        memory: OwnedSemaphorePermit,
    ) -> Result<Option<Told>, ApiError> {
        let News { after, through, channels } = news;
        let Some(channels) = channels else { return Ok(None) };
        let mut writer = PageWriter::begin_with(&self.rules, format, Vec::new(), FRAME_BYTES_MAX);
        let (mut count, mut bytes) = (0, 0_usize);
        let mut emit = |entry: &Entry<'_>| {
            let (Body::Upsert(document) | Body::Delete(document)) = entry.body;
            bytes = bytes.saturating_add(document.as_bytes().len());
            if bytes > bytes_max {
                return Flow::Full;
            }
            let flow = writer.entry(entry);
            count += usize::from(flow == Flow::Took);
            flow
        };
        match self.reader.news(*after, *through, channels, LIMIT, &mut emit) {
            Ok(true) => {}
            // Whether a cursor is too old is for its own page to say.
            Ok(false) | Err(ReadError::Resync(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut changes = writer.into_bytes();
        if needed(changes.len(), &memory).is_some() {
            return Ok(None);
        }
        changes.shrink_to_fit();
        Ok(Some(Told { changes: accounted(changes, memory), count }))
    }
}

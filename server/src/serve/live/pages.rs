//! What a socket is sent, read from the log: frames of changes, each made once for all sockets that
//! stand at the same place and see the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ws::Utf8Bytes;
use tidewire_protocol::Position;
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore};

use super::super::Parts;
use super::super::errors::ApiError;
use super::super::page::{Format, PageWriter};
use super::super::read::{PageJob, accounted};
use super::frames::Covers;
use crate::log::{Head, PageEnd, Since};

/// A frame ends before the change that would take its changes past this many bytes.
const FRAME_BYTES_MAX: usize = 128 * 1024;
/// Memory for frames of all sockets, KiB.
const MEMORY_KIB: usize = 24 * 1024;
/// What is set aside for a frame while it is made.
const RESERVE_KIB: u32 = (FRAME_BYTES_MAX / 1024 * 2) as u32;
/// How long a socket waits for memory before those that take nothing are asked to go.
const MEMORY_WAIT: Duration = Duration::from_millis(250);
/// Frames that are kept for others, and the largest that is.
const SHARED_MAX: usize = 1_024;
const SHARED_BYTES_MAX: usize = 16 * 1024;

/// Frames and the memory that they may take.
#[derive(Debug)]
pub(crate) struct Frames {
    memory_kib: Arc<Semaphore>,
    /// Told when a socket waits for memory in vain.
    pub(super) memory_wanted: Notify,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The head at which these frames were asked for: beyond it they may be short.
    head: Head,
    frames: HashMap<Place, Arc<OnceCell<Arc<Frame>>>>,
}

/// Where a socket stands and what it sees.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    collections: Arc<[String]>,
    channels: Arc<[String]>,
    is_json: bool,
    since: String,
}

/// What follows a cursor.
#[derive(Debug)]
pub(super) struct Frame {
    /// A `changes` frame.
    pub(super) text: Utf8Bytes,
    pub(super) end: PageEnd,
    /// The cursor is ahead of the log: there is nothing to tell yet, and this is not sent.
    pub(super) is_ahead: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            memory_kib: Arc::new(Semaphore::new(MEMORY_KIB)),
            memory_wanted: Notify::new(),
            shared: Mutex::default(),
        }
    }
}

impl Frames {
    /// The cell of the frame that follows `place` at `head`; `None` where there are too many.
    fn cell(&self, place: Place, head: Head) -> Option<Arc<OnceCell<Arc<Frame>>>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.head != head {
            shared.head = head;
            shared.frames.clear();
        }
        if shared.frames.len() >= SHARED_MAX && !shared.frames.contains_key(&place) {
            return None;
        }
        Some(Arc::clone(shared.frames.entry(place).or_default()))
    }

    /// A frame that is not worth its memory is not kept.
    fn forget(&self, place: &Place) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.frames.remove(place);
    }

    async fn memory(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            let wanted = Arc::clone(&self.memory_kib).acquire_many_owned(RESERVE_KIB);
            match tokio::time::timeout(MEMORY_WAIT, wanted).await {
                Ok(memory) => return memory.ok(),
                Err(_) => self.memory_wanted.notify_waiters(),
            }
        }
    }
}

impl Parts {
    /// What follows `job.since`, made now or by another socket a moment ago.
    pub(super) async fn frame(self: &Arc<Self>, job: &PageJob) -> Result<Arc<Frame>, ApiError> {
        let Since::Cursor(cursor) = &job.since else { return self.make_frame(job.clone()).await };
        let place = Place {
            collections: Arc::clone(&job.collections),
            channels: Arc::clone(&job.channels),
            is_json: job.format == Format::Json,
            since: cursor.to_string(),
        };
        let head = *self.reader.head().borrow();
        let Some(cell) = self.live.frames.cell(place.clone(), head) else {
            return self.make_frame(job.clone()).await;
        };
        let frame = cell.get_or_try_init(|| self.make_frame(job.clone())).await.cloned();
        if !frame.as_ref().is_ok_and(|frame| frame.text.len() <= SHARED_BYTES_MAX) {
            self.live.frames.forget(&place);
        }
        frame
    }

    async fn make_frame(self: &Arc<Self>, job: PageJob) -> Result<Arc<Frame>, ApiError> {
        let memory = self.live.frames.memory().await.ok_or_else(ApiError::internal)?;
        let turn = Arc::clone(&self.bounds.reads).acquire_owned().await;
        let parts = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            parts.make_frame_blocking(&job, memory)
        });
        made.await.map_err(|error| {
            tracing::error!(%error, "reading a frame panicked");
            ApiError::internal()
        })?
    }

    fn make_frame_blocking(
        &self,
        job: &PageJob,
        memory: OwnedSemaphorePermit,
    ) -> Result<Arc<Frame>, ApiError> {
        let covers = Covers { after: position_of(&job.since) };
        let begin =
            || PageWriter::begin_with(&self.rules, job.format, covers.begin(), FRAME_BYTES_MAX);
        let (writer, end, is_ahead) = self.write_changes(job, begin)?;
        let mut bytes = writer.into_bytes();
        covers.end(&end, &mut bytes);
        bytes.shrink_to_fit();
        let text =
            Utf8Bytes::try_from(accounted(bytes, memory)).map_err(|_| ApiError::internal())?;
        Ok(Arc::new(Frame { text, end, is_ahead }))
    }
}

/// The position that a reader from `since` stands at.
pub(super) fn position_of(since: &Since) -> Position {
    match since {
        Since::Nothing => Position::ZERO,
        Since::Time(second) => Position::at_second(*second),
        Since::Cursor(cursor) => cursor.position(),
    }
}

//! Frames that are read for a socket's own cursor, as a pull's pages are: a first copy, a catch-up, what a
//! new token gained and lost. Sockets that stand at one place and see the same share them.

use std::num::NonZero;
use std::sync::Arc;

use axum::body::Bytes;
use tidewire_protocol::Position;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::Parts;
use super::super::errors::ApiError;
use super::super::page::{Format, PageWriter};
use super::super::read::{PageJob, accounted};
use super::frames::{begin_changes, end_changes};
use super::made::Made;
use super::memory::{Purpose, needed};
use crate::log::{PageEnd, Since};

/// A frame ends before the change that would take its changes past this many bytes …
pub(super) const FRAME_BYTES_MAX: usize = 128 * 1024;
/// … and a socket's first one before this many, the next before twice as many, and so on: one that takes
/// nothing is found out by little.
pub(super) const FIRST_FRAME_BYTES_MAX: usize = 8 * 1024;
/// Changes in a frame.
pub(super) const LIMIT: usize = 1_000;
/// Frames that are read at the same time, at most.
const TURNS_MAX: usize = 4;
/// The largest frame that is kept when nobody is being sent it any more.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// Frames by where their sockets stand.
pub(super) type Frames = Made<Place, Frame>;

/// Where a socket stands and what it sees.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    collections: Arc<[String]>,
    channels: Arc<[String]>,
    is_json: bool,
    since: String,
    after: Position,
    bytes_max: usize,
}

/// Turns to read a frame: half of the machine is for those who are live.
#[derive(Debug)]
pub(super) struct FrameTurns(Arc<Semaphore>);

impl Default for FrameTurns {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self(Arc::new(Semaphore::new(cores.div_ceil(2).min(TURNS_MAX))))
    }
}

/// What follows a cursor.
#[derive(Debug)]
pub(super) struct Frame {
    /// A `changes` frame.
    pub(super) text: Bytes,
    pub(super) end: PageEnd,
    /// The cursor is ahead of the log: there is nothing to tell yet, and this is not sent.
    pub(super) is_ahead: bool,
}

impl Parts {
    /// What follows `job.since` on a socket that was told everything through `after`, in changes of
    /// `bytes_max` bytes or a single one.
    pub(super) async fn frame(
        self: &Arc<Self>,
        job: &PageJob,
        after: Position,
        bytes_max: usize,
    ) -> Result<Arc<Frame>, ApiError> {
        let make = || self.make_frame(job, after, bytes_max);
        let Since::Cursor(cursor) = &job.since else { return make().await };
        let place = Place {
            collections: Arc::clone(&job.collections),
            channels: Arc::clone(&job.channels),
            is_json: job.format == Format::Json,
            since: cursor.to_string(),
            after,
            bytes_max,
        };
        let head = self.reader.head().borrow().seq;
        // What is not complete may be so in a moment, and a collection may be there, without another
        // change: at the end of a copy.
        let lasts =
            |frame: &Frame| frame.end.has_more || (frame.end.complete && frame.end.count > 0);
        let is_kept = |frame: &Frame| lasts(frame) && frame.text.len() <= KEPT_BYTES_MAX;
        self.live.frames.get(head, place, is_kept, make).await
    }

    async fn make_frame(
        self: &Arc<Self>,
        job: &PageJob,
        after: Position,
        bytes_max: usize,
    ) -> Result<Arc<Frame>, ApiError> {
        let mut purpose = Purpose::Frame;
        loop {
            let job = job.clone();
            let make = move |parts: &Self, memory| {
                parts.make_frame_blocking(&job, after, bytes_max, memory)
            };
            match self.read_for_frame(purpose, make).await? {
                Ok(frame) => return Ok(Arc::new(frame)),
                Err(kib) => purpose = Purpose::Large(kib),
            }
        }
    }

    /// Runs `read` on another thread, with memory for what it makes.
    pub(super) async fn read_for_frame<T: Send + 'static>(
        self: &Arc<Self>,
        purpose: Purpose,
        read: impl FnOnce(&Self, OwnedSemaphorePermit) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let memory = async { self.live.memory.take(purpose).await.ok_or_else(ApiError::internal) };
        let turns = match purpose {
            Purpose::News => &self.live.news_turns.0,
            Purpose::Frame | Purpose::Large(_) => &self.live.frame_turns.0,
        };
        let turn = Arc::clone(turns).acquire_owned();
        let (turn, memory) = match purpose {
            // Nobody has memory set aside who only waits for a turn: it would seem to be short.
            Purpose::Frame => (turn.await, memory.await?),
            Purpose::News | Purpose::Large(_) => {
                let memory = memory.await?;
                (turn.await, memory)
            }
        };
        let parts = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            read(&parts, memory)
        });
        made.await.map_err(|error| {
            tracing::error!(%error, "reading a frame panicked");
            ApiError::internal()
        })?
    }

    /// The frame, or how many KiB it needs where it is too large for `memory`.
    fn make_frame_blocking(
        &self,
        job: &PageJob,
        after: Position,
        bytes_max: usize,
        memory: OwnedSemaphorePermit,
    ) -> Result<Result<Frame, u32>, ApiError> {
        let begin = || {
            let begin = begin_changes(self.reader.log_id(), after);
            PageWriter::begin_with(&self.rules, job.format, begin, bytes_max)
        };
        let (writer, end, is_ahead) = self.write_changes(job, begin)?;
        let mut bytes = writer.into_bytes();
        let through = end.cursor.position().max(after);
        end_changes(through, &end.cursor, end.complete, &mut bytes);
        if let Some(kib) = needed(bytes.len(), &memory) {
            return Ok(Err(kib));
        }
        bytes.shrink_to_fit();
        Ok(Ok(Frame { text: accounted(bytes, memory), end, is_ahead }))
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

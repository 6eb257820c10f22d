//! `GET /api/sync/live`: the push socket. One read for pull, long poll and push: a session is a
//! cursor and a watch of its channels; it has no queue.

mod frames;
mod hub;
mod made;
mod memory;
mod news;
mod pages;
mod pulse;
mod session;
mod socket;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use tidewire_protocol::ErrorCode;
use tokio_util::task::TaskTracker;

use super::Parts;
use super::errors::{ApiError, shown};
use crate::access::{Identity, TokenError};

use hub::Hub;
pub(crate) use hub::follow;
use memory::Memory;
use news::{NewsTurns, Tellings};
use pages::{FrameTurns, Frames};
use socket::Upgrade;

/// What a socket speaks.
const PROTOCOL: &str = "tidewire.v1";
/// In `Sec-WebSocket-Protocol`, before a token.
const BEARER: &str = "bearer.";
/// Push sockets of this server, and of one subject: a user's machines and windows, many times over.
const SESSIONS_MAX: usize = 12_000;
const SESSIONS_OF_SUBJECT_MAX: usize = 1_000;
/// When the server drains, sockets must be told within this time.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// What all push sockets share.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) hub: Arc<Hub>,
    memory: Memory,
    frames: Frames,
    frame_turns: FrameTurns,
    tellings: Tellings,
    news_turns: NewsTurns,
    sessions: TaskTracker,
    subjects: Arc<Mutex<HashMap<String, usize>>>,
}

/// A session's place among those of its subject.
struct Seat {
    subject: String,
    subjects: Arc<Mutex<HashMap<String, usize>>>,
}

impl Live {
    /// Waits until every socket is closed, [`DRAIN_MAX`] at most.
    pub(crate) async fn finished(&self) {
        self.sessions.close();
        if tokio::time::timeout(DRAIN_MAX, self.sessions.wait()).await.is_err() {
            tracing::warn!("some push sockets did not take their end in time; they are cut off");
        }
    }

    /// Open sockets.
    fn sessions(&self) -> usize {
        self.sessions.len()
    }

    fn seat(&self, subject: &str) -> Option<Seat> {
        let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        if self.sessions() > SESSIONS_MAX {
            return None;
        }
        let count = subjects.entry(subject.to_owned()).or_default();
        if *count >= SESSIONS_OF_SUBJECT_MAX {
            return None;
        }
        *count += 1;
        Some(Seat { subject: subject.to_owned(), subjects: Arc::clone(&self.subjects) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = subjects.get_mut(&self.subject) {
            *count -= 1;
            if *count == 0 {
                subjects.remove(&self.subject);
            }
        }
    }
}

pub(super) async fn live(
    State(parts): State<Arc<Parts>>,
    request: Request,
) -> Result<Response, ApiError> {
    let identity = parts.identify_socket(request.headers())?;
    parts.check_origin(request.headers())?;
    let upgrade = Upgrade::of(request)?;
    parts.visible(&identity, None)?;
    parts.check_serving()?;
    let response = upgrade.response();
    let tracker = parts.live.sessions.clone();
    tracker.spawn(async move {
        if let Some(socket) = upgrade.socket().await {
            session::run(parts, identity, socket).await;
        }
    });
    Ok(response)
}

impl Parts {
    /// Who opens a socket: by its `Authorization` header, or, where a browser can send none, by its
    /// protocols.
    fn identify_socket(&self, headers: &HeaderMap) -> Result<Identity, ApiError> {
        let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        let offered = offered.filter_map(|value| value.to_str().ok());
        let mut tokens = offered
            .flat_map(|value| value.split(','))
            .filter_map(|protocol| protocol.trim().strip_prefix(BEARER));
        match (tokens.next(), tokens.next(), headers.contains_key(header::AUTHORIZATION)) {
            (None, _, _) => self.identify(headers),
            (Some(token), None, false) => self.admit(self.verifier.verify(token)?),
            _ => Err(TokenError::NotBearer.into()),
        }
    }

    /// Pages of origins that are not on the list must not use a user's browser to read.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else { return Ok(()) };
        let is_listed = |allowed: &String| allowed.as_bytes() == origin.as_bytes();
        if origins.next().is_none() && self.allowed_origins.iter().any(is_listed) {
            return Ok(());
        }
        let origin = shown(&String::from_utf8_lossy(origin.as_bytes()));
        let message = format!("pages of {origin} may not open a socket here");
        let remedy = "the server's operator adds it to http.allowed_origins";
        Err(ApiError::new(ErrorCode::Forbidden, message, remedy))
    }
}

//! `GET /api/sync/status`: where the server stands, as far as the asking token may know.

use std::future::{Ready, ready};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;
use tidewire_protocol::Position;

use super::Parts;
use super::errors::ApiError;
use super::health::not_serving;
use crate::metrics::{lag_seconds, now_ms, time_text};
use crate::status::SourcePhase;

/// The answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusAnswer {
    success: bool,
    server_time: String,
    /// The last position of the log.
    head: Position,
    /// Seconds that the log is behind the source; null before the source was heard of.
    lag: Option<f64>,
    /// What capture is doing.
    source: &'static str,
    /// Pulls are answered.
    ready: bool,
    /// Why not, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    subject: String,
    /// Those that the token may see.
    collections: Vec<String>,
    /// Those whose copy is not finished, also where it is the first and nothing of it is served yet.
    copying: Vec<String>,
    /// Those that the token holds.
    channels: Vec<String>,
    /// Seconds.
    token_expires_in: u64,
}

pub(super) fn status(
    State(parts): State<Arc<Parts>>,
    headers: HeaderMap,
) -> Ready<Result<Json<StatusAnswer>, ApiError>> {
    ready(tell(&parts, &headers).map(Json))
}

fn tell(parts: &Parts, headers: &HeaderMap) -> Result<StatusAnswer, ApiError> {
    let identity = parts.identify(headers)?;
    let now = now_ms();
    let head = *parts.reader.head().borrow();
    let source = parts.status.borrow();
    let seen = parts.rules.iter().filter(|rules| rules.may_be_seen_by(&identity.channels));
    let (mut collections, mut copying) = (Vec::new(), Vec::new());
    for name in seen.map(|rules| rules.name().to_owned()) {
        let copy = source.copies.get(&name);
        copying.extend(copy.map(|_| name.clone()));
        // Beside others that are served, one that is not copied yet is not there yet.
        if copy.is_none_or(|copy| !copy.first) || !source.whole {
            collections.push(name);
        }
    }
    let reason = not_serving(&source, head).map(|(message, _)| message);
    Ok(StatusAnswer {
        success: true,
        server_time: time_text(now),
        head: head.position,
        lag: lag_seconds(&source, now),
        source: phase_text(source.phase),
        ready: reason.is_none() && !parts.draining.is_cancelled(),
        reason,
        token_expires_in: identity.expires_in(now),
        subject: identity.subject,
        collections,
        copying,
        channels: identity.channels,
    })
}

/// The phase as one word.
pub(super) fn phase_text(phase: SourcePhase) -> &'static str {
    match phase {
        SourcePhase::Connecting => "connecting",
        SourcePhase::Copying => "copying",
        SourcePhase::Following => "following",
        SourcePhase::Unreachable => "unreachable",
        SourcePhase::Refused => "refused",
        SourcePhase::Unwritable => "unwritable",
        SourcePhase::Failed => "failed",
    }
}

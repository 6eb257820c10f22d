//! Alive, ready, and whether the log may be served.

use std::future::{Ready, ready};
use std::sync::Arc;

use axum::extract::State;
use tidewire_protocol::Position;

use super::Parts;
use super::errors::ApiError;
use crate::log::Head;
use crate::status::{SourcePhase, SourceStatus};

/// While the first copy runs, a client that asks this often notices its end soon enough.
const COPY_RETRY_SECONDS: u32 = 5;
const CONNECT_RETRY_SECONDS: u32 = 2;

pub(super) fn healthz() -> Ready<&'static str> {
    ready("ok\n")
}

/// Ready to be given new clients: serving, and in touch with the source.
pub(super) fn readyz(State(parts): State<Arc<Parts>>) -> Ready<Result<&'static str, ApiError>> {
    ready(check_ready(&parts))
}

fn check_ready(parts: &Parts) -> Result<&'static str, ApiError> {
    parts.check_serving()?;
    let status = parts.status.borrow();
    let reason = match status.phase {
        SourcePhase::Copying | SourcePhase::Following => {
            let Some(seconds) = status.standstill_seconds(SourceStatus::now_ms()) else {
                return Ok("ready\n");
            };
            let reason =
                format!("the source has committed nothing for {seconds} s: it has no majority");
            return Err(not_ready(&reason));
        }
        SourcePhase::Connecting => "the source has not answered yet",
        SourcePhase::Unreachable => "the source can't be reached",
        SourcePhase::Refused => {
            "the source refuses our user: its password or its rights are others now"
        }
        SourcePhase::Failed => "the source can't be followed any more",
        // The store's words name no hosts, users or paths.
        SourcePhase::Unwritable => {
            let why = status.trouble.as_deref().unwrap_or("the disk refuses");
            return Err(not_ready(&format!("the log can't be written: {why}")));
        }
    };
    Err(not_ready(reason))
}

fn not_ready(reason: &str) -> ApiError {
    ApiError::not_ready(format!("{reason}; what the log has is served"), CONNECT_RETRY_SECONDS)
}

impl Parts {
    /// Whether pages may be served now.
    pub(super) fn check_serving(&self) -> Result<(), ApiError> {
        if self.draining.is_cancelled() {
            return Err(ApiError::draining());
        }
        let head = *self.reader.head().borrow();
        match not_serving(&self.status.borrow(), head) {
            None => Ok(()),
            Some((message, seconds)) => Err(ApiError::not_ready(message, seconds)),
        }
    }
}

impl Parts {
    /// Whether there is anything to see of these collections: not before the first of them has been
    /// copied to its end.
    pub(super) fn check_copied(&self, collections: &[String]) -> Result<(), ApiError> {
        let status = self.status.borrow();
        let is_ready = |name: &String| status.copies.get(name).is_none_or(|copy| !copy.first);
        if collections.iter().any(is_ready) {
            return Ok(());
        }
        let message = format!("the first copy runs: {}", progress(&status));
        Err(ApiError::not_ready(message, COPY_RETRY_SECONDS))
    }
}

/// A log that is behind its source for no longer than this, seconds, is not worth a word.
const USUAL_LAG_MAX: f64 = 30.0;

impl Parts {
    /// How long the log has been behind the source, milliseconds, where that is longer than usual: who is told
    /// nothing new must not take that for an idle source.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time, above 0")]
    pub(super) fn source_lag_ms(&self) -> Option<u64> {
        let lag = crate::metrics::lag_seconds(&self.status.borrow(), crate::metrics::now_ms())?;
        (lag > USUAL_LAG_MAX).then_some((lag * 1e3) as u64)
    }

    /// The source's own time as far as it is known, a cluster time; 0 before it told any. What it told last may
    /// be as old as its standstill (no majority, for minutes), after which it goes on at the present.
    pub(super) fn source_time(&self) -> u64 {
        let told = self.status.borrow().operation_time;
        let now = u64::try_from(crate::metrics::now_ms() / 1_000).unwrap_or(0) << 32;
        if told == 0 { 0 } else { told.max(now) }
    }
}

/// Why the log can't be served, and after how many seconds to ask again. A log that held all of the
/// source once is served whatever has become of the source, and whatever is copied.
///
/// Strangers read it too: the source's own words (hosts, users) are for the operators' page alone.
pub(super) fn not_serving(status: &SourceStatus, head: Head) -> Option<(String, u32)> {
    let (message, seconds) = match status.phase {
        SourcePhase::Following => return None,
        _ if status.whole => return None,
        SourcePhase::Copying => {
            (format!("the first copy runs: {}", progress(status)), COPY_RETRY_SECONDS)
        }
        _ if status.copies.is_empty() && head.position > Position::ZERO => return None,
        SourcePhase::Connecting => {
            ("not connected to the source yet".to_owned(), CONNECT_RETRY_SECONDS)
        }
        SourcePhase::Unreachable
        | SourcePhase::Refused
        | SourcePhase::Unwritable
        | SourcePhase::Failed => (
            "the first copy is not finished and the source can't be followed".to_owned(),
            COPY_RETRY_SECONDS,
        ),
    };
    Some((message, seconds))
}

/// How far the copies are, for people.
pub(super) fn progress(status: &SourceStatus) -> String {
    let documents: u64 = status.copies.values().map(|copy| copy.documents).sum();
    let total: u64 = status.copies.values().map(|copy| copy.documents_total).sum();
    // The total is an estimate and may be overtaken.
    let percent = (documents * 100).checked_div(total).unwrap_or(0).min(99);
    format!(
        "{documents} of about {} documents in {} unfinished collections ({percent} %)",
        total.max(documents),
        status.copies.len()
    )
}

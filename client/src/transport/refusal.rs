//! What a server's refusal means, whether it came as an answer or in a frame. Only a body that a
//! Tidewire server writes is taken for its word where that would stop the client or start it anew.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use serde::Deserialize;
use tidewire_protocol::ResyncReason;

use super::Failure;

/// Longest text of a server that is passed on, in characters.
const MESSAGE_CHARS_MAX: usize = 300;

/// The parts of an error body that the client acts on; all may be missing.
#[derive(Default, Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    error: RefusalDetail,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RefusalDetail {
    code: String,
    message: String,
    remedy: String,
    reason: Option<String>,
    retry_after: Option<u64>,
}

impl Refusal {
    /// Reads an error body, or a frame that holds one; nothing where it is none.
    pub(super) fn read(text: &[u8]) -> Self {
        serde_json::from_slice(text).unwrap_or_default()
    }

    /// What an answer of `status`, other than 200, with these headers means.
    pub(super) fn verdict(&self, status: StatusCode, headers: &HeaderMap) -> Failure {
        let challenged = headers.contains_key(WWW_AUTHENTICATE);
        let ours = !self.error.code.is_empty();
        let message = message(&self.error, status);
        let code = self.error.code.as_str();
        match status {
            StatusCode::UNAUTHORIZED if matches!(code, "unauthenticated" | "token_expired") => {
                Failure::Unauthorized(message)
            }
            // Somebody on the way says no, in words of their own.
            StatusCode::UNAUTHORIZED if ours || challenged => Failure::Challenged(message),
            StatusCode::FORBIDDEN if code == "forbidden" => Failure::Forbidden(message),
            StatusCode::GONE if self.error.code == "resync_required" => {
                Failure::Resync(reason(self.error.reason.as_deref()))
            }
            // The cursor is text that this server can't read: it can't be continued either.
            StatusCode::BAD_REQUEST if self.error.code == "invalid_since" => {
                Failure::Resync(ResyncReason::ForeignLog)
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let header = headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok());
                let seconds = header.and_then(|after| after.trim().parse().ok());
                let seconds = seconds.or(self.error.retry_after);
                Failure::Busy { message, retry_after: seconds.map(Duration::from_secs) }
            }
            _ if ours || status.is_server_error() || status == StatusCode::NOT_FOUND => {
                Failure::Server { status: status.as_u16(), message }
            }
            _ => Failure::Garbage(format!("it answered {status}")),
        }
    }

    /// What an error frame means.
    pub(super) fn in_band(&self) -> Failure {
        let status = match self.error.code.as_str() {
            "unauthenticated" | "token_expired" => StatusCode::UNAUTHORIZED,
            "forbidden" => StatusCode::FORBIDDEN,
            "resync_required" => StatusCode::GONE,
            "invalid_since" => StatusCode::BAD_REQUEST,
            "not_ready" | "draining" => StatusCode::SERVICE_UNAVAILABLE,
            // Too many sockets: pulls may well be answered.
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        self.verdict(status, &HeaderMap::new())
    }
}

fn reason(name: Option<&str>) -> ResyncReason {
    let known = name.and_then(|name| {
        serde_json::from_value::<ResyncReason>(serde_json::Value::from(name)).ok()
    });
    known.unwrap_or(ResyncReason::CursorTooOld)
}

fn message(detail: &RefusalDetail, status: StatusCode) -> String {
    match (detail.message.as_str(), detail.remedy.as_str()) {
        ("", _) => status.to_string(),
        (message, "") => plain(message),
        (message, remedy) => format!("{}; {}", plain(message), plain(remedy)),
    }
}

/// A foreign text made fit for a terminal: no control characters, not too long.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect()
}

//! The frames of the push socket.

use serde::{Deserialize, Serialize};
use tidewire_protocol::Position;
use tidewire_protocol::error::ErrorDetail;

use crate::log::Cursor;

/// What a client says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum FromClient {
    Hello(Hello),
    Auth { token: String },
}

/// A client's first frame.
#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    #[serde(default)]
    pub(super) since: SinceText,
    pub(super) collections: Option<Vec<String>>,
    pub(super) format: Option<String>,
}

/// A cursor, a time, or nothing, which may be the number 0 too.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum SinceText {
    Text(String),
    Number(u8),
}

impl Default for SinceText {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl SinceText {
    /// As a pull would send it.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub(super) enum FromServer {
    Welcome {
        server_time: String,
        checkpoint: Position,
        /// Whose frames follow.
        log: String,
        /// Where the first frame follows from.
        after: Position,
        keepalive_seconds: u64,
        token_expires_in: u64,
    },
    Keepalive {
        log: String,
        after: Position,
        through: Position,
        cursor: String,
        server_time: String,
        token_expires_in: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        source_lag_ms: Option<u64>,
    },
    Error {
        success: bool,
        error: ErrorDetail,
    },
}

impl FromServer {
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A log, as frames name it.
pub(super) fn log_name(log_id: u64) -> String {
    format!("{log_id:016x}")
}

/// What a `changes` frame says before its changes; `after` is exclusive.
pub(super) fn begin_changes(log_id: u64, after: Position) -> Vec<u8> {
    let log = log_name(log_id);
    format!(r#"{{"type":"changes","log":"{log}","after":"{after}","changes":["#).into_bytes()
}

/// What it says after them; `through` is inclusive.
pub(super) fn end_changes(through: Position, cursor: &Cursor, complete: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(
        format!(r#"],"through":"{through}","cursor":"{cursor}","complete":{complete}}}"#)
            .as_bytes(),
    );
}

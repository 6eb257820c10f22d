//! The errors of the wire: one body, a closed list of codes.

use serde::{Deserialize, Serialize};

/// The body of every 4xx and 5xx answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Always false.
    pub success: bool,
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorDetail {
    /// One of [`ErrorCode`]'s names; a client must bear names that it does not know.
    pub code: String,
    /// For people: what is wrong, with the value that is.
    pub message: String,
    /// For people: what to do.
    pub remedy: String,
    /// Only with `resync_required`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ResyncReason>,
    /// Seconds after which another try makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// Found again in the server's log.
    pub request_id: String,
}

/// Why a cursor can't be continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResyncReason {
    /// The log no longer holds all that happened since.
    CursorTooOld,
    /// The cursor is of another source, or of another log's first copy or catch-up.
    ForeignLog,
    /// The configured rules changed in a way that can't be reconciled.
    RulesChanged,
}

/// The codes that `server/src/serve/openapi.json` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the contract's, their meaning stands there")]
pub enum ErrorCode {
    InvalidSince,
    InvalidLimit,
    InvalidWait,
    InvalidFormat,
    UnknownCollection,
    BadRequest,
    Unauthenticated,
    TokenExpired,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    PayloadTooLarge,
    UriTooLong,
    HeadersTooLarge,
    ResyncRequired,
    RateLimited,
    NotReady,
    Draining,
    Internal,
}

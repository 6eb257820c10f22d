//! Answers that are not what was asked for: one body, each code with what to do about it.

use std::future::{Ready, ready};

use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tidewire_protocol::error::ErrorDetail;
use tidewire_protocol::{ErrorBody, ErrorCode, ResyncReason};

use crate::access::TokenError;
use crate::log::{LogError, ReadError};

/// An answer of 4xx or 5xx. Becomes a body once the guard has given it the request's id.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    code: ErrorCode,
    message: String,
    remedy: String,
    reason: Option<ResyncReason>,
    retry_after_seconds: Option<u32>,
}

/// After which somebody whose cursor is being copied asks again.
const COPYING_RETRY_SECONDS: u32 = 5;
/// Values of callers are shown up to here.
const SHOWN_CHARACTERS_MAX: usize = 80;

/// A caller's value as it may stand in a message or a log: control characters escaped, not too long.
pub(super) fn shown(value: &str) -> String {
    let mut text: String =
        value.chars().take(SHOWN_CHARACTERS_MAX).flat_map(char::escape_debug).collect();
    if value.chars().nth(SHOWN_CHARACTERS_MAX).is_some() {
        text.push('…');
    }
    text
}

impl ApiError {
    pub(super) fn new(
        code: ErrorCode,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (message, remedy) = (message.into(), remedy.into());
        Self { code, message, remedy, reason: None, retry_after_seconds: None }
    }

    pub(super) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    pub(super) fn not_ready(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let remedy = "try again with the same cursor after Retry-After";
        Self::new(ErrorCode::NotReady, message, remedy).retry_after(retry_after_seconds)
    }

    pub(super) fn draining() -> Self {
        let remedy =
            "try again with the same cursor; another server, or this one restarted, answers";
        Self::new(ErrorCode::Draining, "this server is shutting down", remedy).retry_after(2)
    }

    pub(super) fn resync(reason: ResyncReason) -> Self {
        let message = match reason {
            ResyncReason::CursorTooOld => {
                "the log no longer holds all that happened since this cursor or time"
            }
            ResyncReason::ForeignLog => "this cursor is of another source or another log",
            ResyncReason::RulesChanged => {
                "the configuration changed in a way that can't be continued"
            }
        };
        let remedy = "start again from since=0 beside the data you have";
        let error = Self::new(ErrorCode::ResyncRequired, message, remedy);
        Self { reason: Some(reason), ..error }
    }

    pub(super) fn internal() -> Self {
        let remedy = "try again with the same cursor; the operator finds the cause in the server's log under this requestId";
        Self::new(ErrorCode::Internal, "the server failed", remedy).retry_after(5)
    }

    pub(super) fn status(&self) -> StatusCode {
        match self.code {
            ErrorCode::InvalidSince
            | ErrorCode::InvalidLimit
            | ErrorCode::InvalidWait
            | ErrorCode::InvalidFormat
            | ErrorCode::UnknownCollection
            | ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
            ErrorCode::Unauthenticated | ErrorCode::TokenExpired => StatusCode::UNAUTHORIZED,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::UriTooLong => StatusCode::URI_TOO_LONG,
            ErrorCode::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            ErrorCode::ResyncRequired => StatusCode::GONE,
            ErrorCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::NotReady | ErrorCode::Draining => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(super) fn code(&self) -> ErrorCode {
        self.code
    }

    /// What is told of it.
    pub(super) fn detail(&self, request_id: &str) -> ErrorDetail {
        let code = serde_json::to_value(self.code).ok();
        ErrorDetail {
            code: code.and_then(|c| c.as_str().map(str::to_owned)).unwrap_or_default(),
            message: self.message.clone(),
            remedy: self.remedy.clone(),
            reason: self.reason,
            retry_after: self.retry_after_seconds,
            request_id: request_id.to_owned(),
        }
    }

    /// The whole answer.
    pub(super) fn render(&self, request_id: &str) -> Response {
        let body = ErrorBody { success: false, error: self.detail(request_id) };
        let mut response = (self.status(), axum::Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        let challenge = match self.code {
            ErrorCode::Unauthenticated => "Bearer realm=\"tidewire\"",
            ErrorCode::TokenExpired => {
                "Bearer realm=\"tidewire\", error=\"invalid_token\", error_description=\"the token has expired\""
            }
            _ => return response,
        };
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        response
    }
}

/// Leaves the error in the answer's extensions, where the guard finds it.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let code = match error {
            TokenError::Expired => ErrorCode::TokenExpired,
            _ => ErrorCode::Unauthenticated,
        };
        let remedy = match error {
            TokenError::Missing | TokenError::NotBearer => {
                "send one header \"Authorization: Bearer <token>\"; a token in the URL is never read"
            }
            TokenError::Expired => "ask the app for a new token",
            TokenError::NotYet => "compare the clocks of the token's issuer and of this server",
            _ => {
                "ask for a token that this server's operator configured: its key, issuer, audience, and sub and exp claims"
            }
        };
        Self::new(code, error.to_string(), remedy)
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Resync(reason) => Self::resync(reason),
            ReadError::Log(error) => error.into(),
            ReadError::Copying => Self::not_ready(error.to_string(), COPYING_RETRY_SECONDS),
            // Only a cursor can be ahead, and only a replay asks for a moment.
            ReadError::Ahead | ReadError::Unsettled => {
                tracing::error!(%error, "the log refuses what nobody asked for");
                Self::internal()
            }
        }
    }
}

impl From<LogError> for ApiError {
    fn from(error: LogError) -> Self {
        if matches!(error, LogError::Busy) {
            return Self::not_ready("this server's log is busy", 1);
        }
        tracing::error!(error = &error as &dyn std::error::Error, "the log can't be read");
        Self::internal()
    }
}

pub(super) fn not_found(uri: Uri) -> Ready<ApiError> {
    let message = format!("there is no {}", shown(uri.path()));
    let remedy = "the routes are in /api/sync/openapi.json";
    ready(ApiError::new(ErrorCode::NotFound, message, remedy))
}

pub(super) fn method_not_allowed(uri: Uri) -> Ready<ApiError> {
    let message = format!("{} can only be read", shown(uri.path()));
    ready(ApiError::new(ErrorCode::MethodNotAllowed, message, "use GET"))
}

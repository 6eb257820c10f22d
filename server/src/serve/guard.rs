//! What every request passes: its size is bounded before anything reads it, it gets an id, its errors
//! get their body, and it is counted and logged (without its query, where people put tokens).

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use tidewire_protocol::ErrorCode;

use super::Parts;
use super::errors::{ApiError, shown};

/// Longest path and query, in bytes: a cursor read with a thousand channels, and names.
const URI_BYTES_MAX: usize = 32 * 1024;
/// All header names and values together, in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Most header lines.
const HEADERS_MAX: usize = 64;
/// No route takes a body; what comes is left unread. One that announces more than this is refused.
const BODY_BYTES_MAX: u64 = 64 * 1024;

pub(super) async fn guard(
    State(parts): State<Arc<Parts>>,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let request_id = format!("{:016x}", rand::random::<u64>());
    let method = request.method().clone();
    let path = shown(request.uri().path());
    let mut response = match check_size(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => closing(error.render(&request_id)),
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = error.render(&request_id);
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    let headers = response.headers_mut();
    headers
        .insert("x-request-id", HeaderValue::from_str(&request_id).expect("hex is a header value"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if parts.draining.is_cancelled() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status();
    parts.metrics.request(status.as_u16());
    let ms = began.elapsed().as_millis();
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::warn!(%method, path, status = status.as_u16(), ms, request_id, "answered");
    } else {
        tracing::debug!(%method, path, status = status.as_u16(), ms, request_id, "answered");
    }
    response
}

/// The rest of a request that is too large is not worth reading.
fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn check_size(request: &Request) -> Result<(), ApiError> {
    let uri = request.uri();
    let uri_bytes = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    if uri_bytes > URI_BYTES_MAX {
        let message = format!("the URL has {uri_bytes} bytes; at most {URI_BYTES_MAX} are taken");
        let remedy = "send back the cursor as it came and name fewer collections";
        return Err(ApiError::new(ErrorCode::UriTooLong, message, remedy));
    }
    let headers = request.headers();
    let header_bytes: usize =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if header_bytes > HEADER_BYTES_MAX || headers.len() > HEADERS_MAX {
        let message = format!(
            "the request has {} headers of {header_bytes} bytes; at most {HEADERS_MAX} of {HEADER_BYTES_MAX} are taken",
            headers.len()
        );
        let remedy = "send a smaller token and no cookies";
        return Err(ApiError::new(ErrorCode::HeadersTooLarge, message, remedy));
    }
    let body_bytes = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if body_bytes.and_then(|n| n.parse().ok()).is_some_and(|n: u64| n > BODY_BYTES_MAX) {
        let message =
            format!("no route takes a body, and this one has more than {BODY_BYTES_MAX} bytes");
        return Err(ApiError::new(ErrorCode::PayloadTooLarge, message, "send none"));
    }
    Ok(())
}

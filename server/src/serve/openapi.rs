//! The OpenAPI document of the routes for clients; a test holds it against the real answers.

use std::future::{Ready, ready};

use axum::http::header;
use axum::response::IntoResponse;

const DOCUMENT: &str = include_str!("openapi.json");

pub(super) fn openapi() -> Ready<impl IntoResponse> {
    ready(([(header::CONTENT_TYPE, "application/json")], DOCUMENT))
}

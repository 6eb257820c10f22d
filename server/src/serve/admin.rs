//! The operators' page and metrics.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};

use super::Parts;
use super::health::{not_serving, progress};
use super::status::phase_text;
use crate::metrics::{lag_seconds, now_ms, time_text};
use crate::status::SourceStatus;

pub(super) async fn metrics(State(parts): State<Arc<Parts>>) -> impl IntoResponse {
    let status = parts.status.borrow().clone();
    let head = *parts.reader.head().borrow();
    let metrics = Arc::clone(&parts.metrics);
    let draining = parts.draining.is_cancelled();
    let ready = !draining && not_serving(&status, head).is_none();
    // Off the async threads: it asks the file system for the log's size.
    let text = tokio::task::spawn_blocking(move || metrics.render(&status, head, ready)).await;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text.unwrap_or_default())
}

/// What the server knows of itself, plainly; refreshes itself, needs no script.
pub(super) async fn page(State(parts): State<Arc<Parts>>) -> Response {
    let metrics = Arc::clone(&parts.metrics);
    let log_bytes = tokio::task::spawn_blocking(move || metrics.log_bytes()).await.unwrap_or(0);
    let status = parts.status.borrow().clone();
    let head = *parts.reader.head().borrow();
    let now = now_ms();
    let lag = lag_seconds(&status, now).map_or("unknown".to_owned(), |s| format!("{s:.1} s"));
    let serving = match not_serving(&status, head) {
        _ if parts.draining.is_cancelled() => "no: shutting down".to_owned(),
        Some((reason, _)) => format!("no: {reason}"),
        None => "yes".to_owned(),
    };
    let heard = match status.heard_at_ms {
        0 => "never".to_owned(),
        ms => time_text(ms),
    };
    let mut rows = vec![
        ("Serving", serving),
        ("Source", phase_text(status.phase).to_owned()),
        ("Source last heard of", heard),
        ("Trouble", status.trouble.clone().unwrap_or_else(|| "none".to_owned())),
        ("Lag", lag),
        ("Head of the log", head.position.to_string()),
        ("Log on disk", format!("{:.1} MB", log_bytes as f64 / 1e6)),
        ("Documents in quarantine", status.in_quarantine.to_string()),
        ("Last scrub", last_scrub(&status)),
        ("Changes served", parts.metrics.changes_served().to_string()),
    ];
    if let Some(oplog) = status.oplog {
        let runs_out = oplog.runs_out_seconds.map(|s| format!(", runs out in {s:.0} s"));
        let text = format!("{:.0} s behind us{}", oplog.left_seconds, runs_out.unwrap_or_default());
        rows.push(("Source's oplog", text));
    }
    if !status.copies.is_empty() {
        rows.push(("Copies", progress(&status)));
    }
    let mut html = String::from(HEAD);
    for (name, value) in rows {
        let _ = write!(html, "<tr><th>{name}<td>{}", escape(&value));
    }
    html.push_str("</table><h2>Collections</h2><table><tr><th>Name<th>Copy");
    for rules in parts.rules.iter() {
        let copy = status.copies.get(rules.name()).map_or("finished".to_owned(), |copy| {
            format!("{} of about {}", copy.documents, copy.documents_total.max(copy.documents))
        });
        let _ = write!(html, "<tr><td>{}<td>{copy}", escape(rules.name()));
    }
    let _ = write!(
        html,
        "</table><p>As of {}. Numbers for graphs: <a href=\"/metrics\">/metrics</a>.",
        time_text(now)
    );
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response()
}

fn last_scrub(status: &SourceStatus) -> String {
    let mended = status.scrub.mended_total;
    match status.scrub.finished_at_ms {
        0 => "none yet".to_owned(),
        ms => format!("{}; documents mended since the start: {mended}", time_text(ms)),
    }
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
<meta http-equiv=\"refresh\" content=\"5\"><title>Tidewire</title>\
<style>body{font:15px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse}th{text-align:left;padding-right:2em;vertical-align:top}</style>\
<h1>Tidewire</h1><table>";

/// Text as HTML: no markup, and control characters as what they are.
fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            c if c.is_control() => html.extend(c.escape_default()),
            c => html.push(c),
        }
    }
    html
}

//! The client as a whole: the library over a script, over real HTTP, and the program.

mod bank;
#[cfg(unix)]
mod daemon;
mod faults;
mod http;
mod library;
mod program;
mod script;
mod server;
mod servers;

use std::path::Path;

use rusqlite::Connection;

/// The text of a page.
fn page(
    changes: &[(&str, &str, u64, Option<&str>)],
    cursor: &str,
    more: bool,
    complete: bool,
) -> String {
    let list: Vec<String> = changes
        .iter()
        .map(|(collection, id, at, document)| {
            let kind = if document.is_some() { "upsert" } else { "delete" };
            let payload = document.map_or(String::new(), |d| format!(r#","payload":{d}"#));
            format!(
                r#"{{"type":"{kind}","collection":"{collection}","mongoId":"{id}","updatedAt":"2026-01-01T00:00:00.000Z","position":"{at:016x}.00000000"{payload}}}"#
            )
        })
        .collect();
    let checkpoint = changes.last().map_or(0, |change| change.2);
    format!(
        r#"{{"success":true,"serverTime":"2026-01-01T00:00:00.000Z","changes":[{}],"count":{},"hasMore":{more},"cursor":"{cursor}","checkpoint":"{checkpoint:016x}.00000000","complete":{complete}}}"#,
        list.join(","),
        list.len(),
    )
}

/// One value from a replica.
fn one<T: rusqlite::types::FromSql>(path: &Path, sql: &str) -> T {
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

/// A JWT of that subject; the signature is nobody's.
fn token(sub: &str) -> String {
    use base64::Engine;
    let part = |json: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json);
    format!("{}.{}.x", part(r#"{"alg":"HS256"}"#.into()), part(format!(r#"{{"sub":"{sub}"}}"#)))
}

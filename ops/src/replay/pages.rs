//! Pages out of the log.

use anyhow::{Result, anyhow};
use tidewire_protocol::key::write_mongo_id;
use tidewire_protocol::payload::{write_json, write_json_string, write_time_ms};
use tidewire_protocol::{Position, ResyncReason};
use tidewire_server::log::{Body, Entry, Flow, LogStat, ReadError, Reader};
use tokio::sync::mpsc;

use super::Sight;

const CHANGES_MAX: usize = 2_000;
const BYTES_MAX: usize = 4 << 20;

/// Makes every page and sends it. `collections` are those that are seen. Stops early when nobody
/// wants pages any more.
pub(super) fn make(
    reader: &Reader,
    through: Option<Position>,
    sight: &Sight,
    collections: &[String],
    held: &LogStat,
    pages: &mpsc::Sender<String>,
    mut told: impl FnMut(u64),
) -> Result<()> {
    let mut page = Page::default();
    let mut total = 0;
    let mut emit = |entry: &Entry<'_>| {
        if !collections.iter().any(|name| name == entry.collection) {
            return Flow::Took;
        }
        if page.count >= CHANGES_MAX || page.changes.len() >= BYTES_MAX {
            total += page.count as u64;
            told(total);
            let (text, at) = (page.text(page.last, false), page.last);
            page = Page { last: at, ..Page::default() };
            if pages.blocking_send(text).is_err() {
                return Flow::Full;
            }
        }
        page.add(entry, sight);
        Flow::Took
    };
    let reached = reader
        .replay(through, &sight.scope(collections), &mut emit)
        .map_err(|error| explain(error, through, held))?;
    told(total + page.count as u64);
    // A client that has ended says why itself.
    let _ = pages.blocking_send(page.text(reached.max(page.last), true));
    Ok(())
}

fn explain(error: ReadError, through: Option<Position>, held: &LogStat) -> anyhow::Error {
    let at = through.unwrap_or(Position::MAX);
    match error {
        ReadError::Resync(ResyncReason::CursorTooOld) => anyhow!(
            "the log no longer holds what was there at {at}: it was compacted since; take a moment from {} to {}",
            held.trim,
            held.head
        ),
        ReadError::Resync(ResyncReason::RulesChanged) => anyhow!(
            "at {at} other rules said who sees what: take a later moment, or leave out --token-file and take everything"
        ),
        ReadError::Ahead => {
            anyhow!("the log does not reach {at}: take a moment up to {}, or none", held.head)
        }
        ReadError::Unsettled => anyhow!(
            "a copy of the source was not finished at {at}, so the log has only a part of that moment: take a later one"
        ),
        other => other.into(),
    }
}

/// A page in the making.
#[derive(Default)]
struct Page {
    changes: Vec<u8>,
    count: usize,
    last: Position,
}

impl Page {
    fn add(&mut self, entry: &Entry<'_>, sight: &Sight) {
        let start = self.changes.len();
        if self.try_add(entry, sight).is_none() {
            // As the server: what can't be written is nobody's.
            tracing::warn!(position = %entry.position, collection = entry.collection, "left out");
            self.changes.truncate(start);
            return;
        }
        self.count += 1;
        self.last = entry.position;
    }

    fn try_add(&mut self, entry: &Entry<'_>, sight: &Sight) -> Option<()> {
        let out = &mut self.changes;
        if self.count > 0 {
            out.push(b',');
        }
        let (kind, document) = match entry.body {
            Body::Upsert(document) => ("upsert", document),
            Body::Delete(key) => ("delete", key),
        };
        out.extend_from_slice(format!(r#"{{"type":"{kind}","collection":"#).as_bytes());
        write_json_string(entry.collection, out);
        out.extend_from_slice(br#","mongoId":"#);
        let mut id = Vec::new();
        write_mongo_id(document.get("_id").ok().flatten()?, &mut id);
        write_json_string(std::str::from_utf8(&id).ok()?, out);
        if let Body::Upsert(document) = entry.body {
            out.extend_from_slice(br#","payload":"#);
            write_json(document, sight.exclude(entry.collection), out).ok()?;
        }
        if let Some(reason) = entry.set_aside {
            out.extend_from_slice(br#","quarantined":"#);
            write_json_string(reason, out);
        }
        out.extend_from_slice(br#","updatedAt":""#);
        write_time_ms(entry.wall_time_ms, out);
        out.extend_from_slice(format!(r#"","position":"{}"}}"#, entry.position).as_bytes());
        Some(())
    }

    fn text(&self, checkpoint: Position, complete: bool) -> String {
        let mut head = br#"{"success":true,"serverTime":""#.to_vec();
        write_time_ms(i64::from(checkpoint.unix_seconds()) * 1_000, &mut head);
        head.extend_from_slice(br#"","changes":["#);
        head.extend_from_slice(&self.changes);
        let tail = format!(
            r#"],"count":{},"hasMore":{},"cursor":"replay:{checkpoint}","checkpoint":"{checkpoint}","complete":{complete}}}"#,
            self.count, !complete,
        );
        head.extend_from_slice(tail.as_bytes());
        String::from_utf8(head).expect("made of texts")
    }
}

//! A page's text, written straight from the log's records into one buffer: no value in between.

use bson::raw::RawDocument;
use tidewire_protocol::payload::{
    Exclude, write_ejson, write_json, write_json_string, write_time_ms,
};
use tidewire_protocol::{Position, key::write_mongo_id};

use crate::access::RuleSet;
use crate::log::{Body, Entry, Flow, PageEnd};

/// A page ends before the change that would take its changes past this many bytes.
pub(super) const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Room that most pages of a few changes need.
const FIRST_CAPACITY: usize = 4 * 1024;

/// How documents are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The contract's section 4.
    Json,
    /// Canonical Extended JSON v2.
    Ejson,
}

/// Writes one page: [`PageWriter::begin`], then each entry, then [`PageWriter::finish`].
#[derive(Debug)]
pub struct PageWriter<'a> {
    out: Vec<u8>,
    rules: &'a RuleSet,
    format: Format,
    bytes_max: usize,
    /// Where the changes begin in `out`.
    first: usize,
    count: usize,
    key: Vec<u8>,
    /// The collection of the last entry: its name as JSON text and what is left out of it.
    collection: String,
    collection_json: Vec<u8>,
    exclude: Option<&'a Exclude>,
}

impl<'a> PageWriter<'a> {
    /// Begins a page whose `serverTime` is `now_ms` (milliseconds since 1970); `asked` is the `since` that
    /// it answers.
    #[must_use]
    pub fn begin(rules: &'a RuleSet, format: Format, now_ms: i64, asked: &str) -> Self {
        let mut out = Vec::with_capacity(FIRST_CAPACITY);
        out.extend_from_slice(br#"{"success":true,"serverTime":""#);
        write_time_ms(now_ms, &mut out);
        out.extend_from_slice(br#"","since":"#);
        write_json_string(asked, &mut out);
        out.extend_from_slice(br#","changes":["#);
        Self::begin_with(rules, format, out, PAGE_BYTES_MAX)
    }

    /// Begins what ends before its changes take more than `bytes_max`, after a beginning of another
    /// kind.
    pub(super) fn begin_with(
        rules: &'a RuleSet,
        format: Format,
        out: Vec<u8>,
        bytes_max: usize,
    ) -> Self {
        let first = out.len();
        Self {
            out,
            rules,
            format,
            bytes_max,
            first,
            count: 0,
            key: Vec::new(),
            collection: String::new(),
            collection_json: Vec::new(),
            exclude: None,
        }
    }

    /// Writes one change, or says that the page is full and stays as it was.
    pub fn entry(&mut self, entry: &Entry<'_>) -> Flow {
        let before = self.out.len();
        if self.count > 0 {
            self.out.push(b',');
        }
        if self.collection_json.is_empty() || self.collection != entry.collection {
            self.turn_to(entry.collection);
        }
        self.write(entry);
        if self.count > 0 && self.out.len() - self.first > self.bytes_max {
            self.out.truncate(before);
            return Flow::Full;
        }
        self.count += 1;
        Flow::Took
    }

    fn turn_to(&mut self, collection: &str) {
        collection.clone_into(&mut self.collection);
        self.collection_json.clear();
        write_json_string(collection, &mut self.collection_json);
        self.exclude = self.rules.get(collection).map(crate::access::Rules::exclude);
    }

    fn write(&mut self, entry: &Entry<'_>) {
        let start = self.out.len();
        let (document, payload) = match (entry.body, self.exclude) {
            (Body::Upsert(document), Some(exclude)) => (document, Some(exclude)),
            // No rules, no payload: a collection that is not configured is never served.
            (Body::Upsert(document), None) | (Body::Delete(document), _) => (document, None),
        };
        self.head(if payload.is_some() { "upsert" } else { "delete" }, document);
        if let Some(exclude) = payload {
            self.out.extend_from_slice(br#","payload":"#);
            let written = match self.format {
                Format::Json => write_json(document, exclude, &mut self.out),
                Format::Ejson => write_ejson(document, exclude, &mut self.out),
            };
            if let Err(error) = written {
                // A document that can't be written is not shown rather than shown in part; leaving
                // the change out would let an older version stand.
                tracing::error!(collection = ?entry.collection, position = %entry.position, %error,
                    "a document can't be encoded; it is served as a delete");
                self.out.truncate(start);
                self.head("delete", document);
                self.quarantined(error.reason());
            }
        }
        if let Some(reason) = entry.set_aside {
            self.quarantined(reason);
        }
        self.out.extend_from_slice(br#","updatedAt":""#);
        write_time_ms(entry.wall_time_ms, &mut self.out);
        self.out.extend_from_slice(br#"","position":""#);
        write_position(entry.position, &mut self.out);
        self.out.extend_from_slice(br#""}"#);
    }

    fn head(&mut self, kind: &str, document: &RawDocument) {
        self.out.extend_from_slice(br#"{"type":""#);
        self.out.extend_from_slice(kind.as_bytes());
        self.out.extend_from_slice(br#"","collection":"#);
        self.out.extend_from_slice(&self.collection_json);
        self.out.extend_from_slice(br#","mongoId":"#);
        self.key.clear();
        if let Ok(Some(id)) = document.get("_id") {
            write_mongo_id(id, &mut self.key);
        }
        write_json_string(&String::from_utf8_lossy(&self.key), &mut self.out);
    }

    /// The document is not gone: it can't be carried.
    fn quarantined(&mut self, reason: &str) {
        self.out.extend_from_slice(br#","quarantined":"#);
        write_json_string(reason, &mut self.out);
    }

    /// What was written, for an end of another kind.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// The finished page. `source_lag_ms`: how long the log has been behind its source, where that is to be
    /// told.
    #[must_use]
    pub fn finish(mut self, end: &PageEnd, source_lag_ms: Option<u64>) -> Vec<u8> {
        debug_assert_eq!(self.count, end.count, "the log counts what the page took");
        let progress = end.filled.map(progress).unwrap_or_default();
        let lag = source_lag_ms.map(|ms| format!(r#","sourceLagMs":{ms}"#)).unwrap_or_default();
        let tail = format!(
            r#"],"count":{},"hasMore":{},"cursor":"{}","checkpoint":"{}","complete":{}{progress}{lag}}}"#,
            self.count, end.has_more, end.cursor, end.checkpoint, end.complete
        );
        self.out.extend_from_slice(tail.as_bytes());
        self.out
    }
}

/// How far a copy is: so many changes of so many.
#[expect(clippy::cast_precision_loss, reason = "a share of a thousand is exact enough")]
fn progress((done, all): (u64, u64)) -> String {
    format!(r#","progress":{:.3}"#, done.min(all) as f64 / all.max(1) as f64)
}

fn write_position(position: Position, out: &mut Vec<u8>) {
    let mut text = [b'.'; Position::TEXT_LEN];
    write_hex(position.cluster_time, &mut text[..16]);
    write_hex(u64::from(position.ordinal), &mut text[17..]);
    out.extend_from_slice(&text);
}

/// The low digits of `number`, as many as there is room for.
fn write_hex(mut number: u64, room: &mut [u8]) {
    for digit in room.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_written_as_it_displays() {
        for position in [
            Position::ZERO,
            Position::MAX,
            Position::new(0x0123_4567_89ab_cdef, Position::RECONCILE_ORDINAL_FIRST + 7),
        ] {
            let mut out = Vec::new();
            write_position(position, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), position.to_string());
        }
    }
}

//! A page as the client holds it: the text as it came, and where in it each part stands. Checked once,
//! so that the replica's writer only copies.

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tidewire_protocol::digest::{RangePage, range_of};
use tidewire_protocol::{Change, ChangeKind, Position, PullPage};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::fields::FieldScout;

/// Longest cursor that is taken, in bytes.
pub const CURSOR_BYTES_MAX: usize = 64 * 1024;

/// Why a text is not a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a page: {0}")]
pub struct PageError(String);

/// One checked page: positions ascend, the count is right, every upsert has a document.
#[derive(Debug)]
pub struct Page {
    /// The page's text, and after it the strings that had escapes in it.
    text: String,
    rows: Vec<Row>,
    collections: Vec<CollectionOfPage>,
    head: PageHead,
    decoded: Instant,
}

/// What the client's machine needs to know of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageHead {
    /// The next `since`.
    pub cursor: String,
    /// The log's head when the page was read.
    pub checkpoint: Position,
    /// More can be read at once.
    pub has_more: bool,
    /// Everything up to here is one point of the source's history.
    pub complete: bool,
    /// The number of changes.
    pub count: usize,
    /// How far the copy or catch-up is, in thousandths, where the server says so.
    pub progress: Option<u16>,
    /// The server's clock when it answered, milliseconds since 1970.
    pub server_time_ms: i64,
    /// How long the server itself has been behind the source, milliseconds, where it says so.
    pub source_lag_ms: Option<u64>,
}

/// One change, borrowed from its page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowRef<'a> {
    /// An index into [`Page::collections`].
    pub(crate) collection: usize,
    pub(crate) id: &'a str,
    /// The document; `None` for a delete.
    pub(crate) document: Option<&'a str>,
    pub(crate) updated_at: &'a str,
    pub(crate) position: Position,
    /// On a delete: why the document, which is not gone, can't be had.
    pub(crate) quarantined: Option<&'a str>,
}

/// Ranges of a collection that are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) collection: &'a str,
    pub(crate) depth: u8,
    /// Ascending.
    pub(crate) ranges: &'a [u32],
    /// Where the digest stood that they differ from.
    pub(crate) position: Position,
}

impl Asked<'_> {
    fn is_told_by(&self, told: &RangePage<'_>) -> bool {
        let holds = |change: &Change<'_>| {
            let range = range_of(change.mongo_id.as_bytes(), self.depth);
            change.collection == self.collection && self.ranges.binary_search(&range).is_ok()
        };
        told.collection == self.collection
            && (told.depth, told.position) == (self.depth, self.position)
            && told.changes.iter().all(holds)
    }
}

/// A collection that has changes in the page.
#[derive(Debug)]
pub(crate) struct CollectionOfPage {
    pub(crate) name: String,
    /// Scalar top-level fields of its documents in this page.
    pub(crate) fields: Vec<String>,
}

#[derive(Debug)]
struct Row {
    collection: usize,
    id: Range<usize>,
    document: Option<Range<usize>>,
    updated_at: Range<usize>,
    position: Position,
    quarantined: Option<Range<usize>>,
}

impl Page {
    /// Reads and checks the text of a pull's answer.
    ///
    /// # Errors
    /// The text is no page, or its parts contradict each other. Nothing of it may be applied.
    pub fn decode(text: String) -> Result<Self, PageError> {
        Self::decode_answer(text, None)
    }

    /// As [`Page::decode`], of an answer to `since`.
    ///
    /// # Errors
    /// As there; also where the page says that it answers something else.
    pub fn decode_answer(mut text: String, since: Option<&str>) -> Result<Self, PageError> {
        let page: PullPage<'_> =
            serde_json::from_str(&text).map_err(|error| PageError(error.to_string()))?;
        if since.zip(page.since.as_deref()).is_some_and(|(asked, told)| asked != told) {
            return Err(PageError("an answer to another question".to_owned()));
        }
        if !page.success {
            return Err(PageError("success is false".to_owned()));
        }
        if page.count as usize != page.changes.len() {
            return Err(PageError("count is not the number of changes".to_owned()));
        }
        let gathered = Gathered::of(&text, &page.changes)?;
        let head = PageHead {
            cursor: checked_cursor(&page.cursor)?,
            checkpoint: page.checkpoint,
            has_more: page.has_more,
            complete: page.complete,
            count: page.changes.len(),
            progress: page.progress.map(thousandths),
            server_time_ms: time_ms(&page.server_time)
                .ok_or_else(|| PageError("serverTime is not an RFC 3339 time".into()))?,
            source_lag_ms: page.source_lag_ms,
        };
        Ok(gathered.into_page(&mut text, head))
    }

    /// Reads and checks a `changes` frame of the push socket. `server_time_ms` is the server's clock
    /// now, as far as it is known.
    ///
    /// # Errors
    /// As [`Page::decode`]; also where the frame does not follow from `last`, the last one's `through`.
    pub fn decode_frame(
        mut text: String,
        last: Option<Position>,
        server_time_ms: i64,
    ) -> Result<Self, PageError> {
        let frame: ChangesFrame<'_> =
            serde_json::from_str(&text).map_err(|error| PageError(error.to_string()))?;
        if last.is_some_and(|last| last != frame.after) || frame.through < frame.after {
            return Err(PageError("a frame that does not follow from the last one".to_owned()));
        }
        let gathered = Gathered::of(&text, &frame.changes)?;
        let head = PageHead {
            cursor: checked_cursor(&frame.cursor)?,
            checkpoint: frame.through,
            // What there is more of comes by itself.
            has_more: false,
            complete: frame.complete,
            count: frame.changes.len(),
            progress: None,
            server_time_ms,
            source_lag_ms: None,
        };
        Ok(gathered.into_page(&mut text, head))
    }

    /// Reads and checks an answer of `GET /api/sync/range`: the documents of it, and the next `from`.
    ///
    /// # Errors
    /// As [`Page::decode`]; also where it tells something else than was asked.
    pub(crate) fn decode_range(
        mut text: String,
        asked: &Asked<'_>,
    ) -> Result<(Self, Option<String>), PageError> {
        let told: RangePage<'_> =
            serde_json::from_str(&text).map_err(|error| PageError(error.to_string()))?;
        if !told.success {
            return Err(PageError("success is false".to_owned()));
        }
        if !asked.is_told_by(&told) {
            return Err(PageError("it is not of the ranges that were asked for".to_owned()));
        }
        let mut changes = told.changes;
        changes.sort_by_key(|change| change.position);
        let gathered = Gathered::of(&text, &changes)?;
        let next = told.next.map(Cow::into_owned);
        let head = PageHead {
            cursor: String::new(),
            checkpoint: told.position,
            has_more: next.is_some(),
            complete: next.is_none(),
            count: changes.len(),
            progress: None,
            server_time_ms: 0,
            source_lag_ms: None,
        };
        Ok((gathered.into_page(&mut text, head), next))
    }

    /// A page that says no more than that nothing happened up to `cursor`.
    ///
    /// # Errors
    /// The cursor is none.
    pub fn without_news(
        cursor: &str,
        through: Position,
        server_time_ms: i64,
        source_lag_ms: Option<u64>,
    ) -> Result<Self, PageError> {
        let head = PageHead {
            cursor: checked_cursor(cursor)?,
            checkpoint: through,
            has_more: false,
            complete: true,
            count: 0,
            progress: None,
            server_time_ms,
            source_lag_ms,
        };
        Ok(Gathered::default().into_page(&mut String::new(), head))
    }

    /// What the page says of itself.
    #[must_use]
    pub fn head(&self) -> &PageHead {
        &self.head
    }

    /// Bytes that the page holds in memory, nearly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// How long the page has been here.
    pub(crate) fn age(&self) -> Duration {
        self.decoded.elapsed()
    }

    pub(crate) fn collections(&self) -> &[CollectionOfPage] {
        &self.collections
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = RowRef<'_>> {
        self.rows.iter().map(|row| RowRef {
            collection: row.collection,
            id: &self.text[row.id.clone()],
            document: row.document.clone().map(|span| &self.text[span]),
            updated_at: &self.text[row.updated_at.clone()],
            position: row.position,
            quarantined: row.quarantined.clone().map(|span| &self.text[span]),
        })
    }

    /// The position of the last change, if there is one.
    pub(crate) fn last_position(&self) -> Option<Position> {
        self.rows.last().map(|row| row.position)
    }

    /// When the source wrote the newest change of the page, milliseconds since 1970.
    pub(crate) fn newest_write_ms(&self) -> Option<i64> {
        time_ms(&self.text[self.rows.last()?.updated_at.clone()])
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1,000")]
fn thousandths(share: f64) -> u16 {
    (share.clamp(0.0, 1.0) * 1e3) as u16
}

/// Milliseconds since 1970 of an RFC 3339 time.
pub(crate) fn time_ms(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// A `changes` frame, borrowed from its text.
#[derive(Deserialize)]
struct ChangesFrame<'a> {
    after: Position,
    through: Position,
    #[serde(borrow)]
    cursor: Cow<'a, str>,
    complete: bool,
    #[serde(borrow)]
    changes: Vec<Change<'a>>,
}

fn checked_cursor(cursor: &str) -> Result<String, PageError> {
    if cursor.is_empty() || cursor.len() > CURSOR_BYTES_MAX {
        return Err(PageError("the cursor is empty or too long".to_owned()));
    }
    Ok(cursor.to_owned())
}

/// Checked changes, as parts of their text.
#[derive(Default)]
struct Gathered {
    rows: Vec<Row>,
    collections: Vec<CollectionOfPage>,
    /// The strings that had escapes in them.
    extra: String,
}

impl Gathered {
    fn of(text: &str, changes: &[Change<'_>]) -> Result<Self, PageError> {
        let mut spans = Spans { text, extra: String::new() };
        let mut gathered: Vec<(&str, FieldScout<'_>)> = Vec::new();
        let mut rows = Vec::with_capacity(changes.len());
        let mut last = Position::ZERO;
        for change in changes {
            check_change(change)?;
            if change.position < last {
                return Err(PageError("positions do not ascend".to_owned()));
            }
            last = change.position;
            let collection = index_of(&mut gathered, &change.collection);
            let document = change.payload.map(serde_json::value::RawValue::get);
            if let Some(document) = document {
                gathered[collection].1.see(document);
            }
            rows.push(Row {
                collection,
                id: spans.of(&change.mongo_id),
                document: document.map(|document| spans.of(document)),
                updated_at: spans.of(&change.updated_at),
                position: change.position,
                quarantined: change.quarantined.as_deref().map(|reason| spans.of(reason)),
            });
        }
        let collections = gathered.into_iter().map(|(name, scout)| CollectionOfPage {
            name: name.to_owned(),
            fields: scout.into_names(),
        });
        Ok(Self { rows, collections: collections.collect(), extra: spans.extra })
    }

    /// The page; `text` is taken.
    fn into_page(self, text: &mut String, head: PageHead) -> Page {
        let mut text = std::mem::take(text);
        text.push_str(&self.extra);
        let (rows, collections) = (self.rows, self.collections);
        Page { text, rows, collections, head, decoded: Instant::now() }
    }
}

fn check_change(change: &Change<'_>) -> Result<(), PageError> {
    let what = match (change.kind, change.payload) {
        (ChangeKind::Upsert, None) => "an upsert without a payload",
        (ChangeKind::Upsert, Some(raw)) if !raw.get().starts_with('{') => "a payload is no object",
        (ChangeKind::Delete, Some(_)) => "a delete with a payload",
        (ChangeKind::Upsert, _) if change.quarantined.is_some() => "an upsert in quarantine",
        _ if change.collection.is_empty() => "a change of a collection without a name",
        _ => return Ok(()),
    };
    Err(PageError(what.to_owned()))
}

/// The index of `name`; pages have few collections, and the last one is tried first.
fn index_of<'a>(gathered: &mut Vec<(&'a str, FieldScout<'a>)>, name: &'a str) -> usize {
    match gathered.iter().rposition(|(known, _)| *known == name) {
        Some(index) => index,
        None => {
            gathered.push((name, FieldScout::default()));
            gathered.len() - 1
        }
    }
}

/// Turns parts of a text into ranges of it; what was unescaped on the way goes behind its end.
struct Spans<'a> {
    text: &'a str,
    extra: String,
}

impl Spans<'_> {
    fn of(&mut self, part: &str) -> Range<usize> {
        let base = self.text.as_ptr() as usize;
        let start = (part.as_ptr() as usize).wrapping_sub(base);
        // An owned string never lies inside the text's own allocation; an empty one may point
        // anywhere, and any empty range is as good.
        if start <= self.text.len() && part.len() <= self.text.len() - start {
            return start..start + part.len();
        }
        let start = self.text.len() + self.extra.len();
        self.extra.push_str(part);
        start..start + part.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(changes: &str, count: usize) -> String {
        format!(
            r#"{{"success":true,"serverTime":"2026-01-01T12:00:00.000Z","changes":[{changes}],"count":{count},"hasMore":false,"cursor":"c1","checkpoint":"0000000000000009.00000000","complete":true}}"#
        )
    }

    fn change(kind: &str, id: &str, position: u64, payload: &str) -> String {
        format!(
            r#"{{"type":"{kind}","collection":"us\u0065rs","mongoId":{id},"updatedAt":"2026-01-01T11:59:00.000Z","position":"{position:016x}.00000000"{payload}}}"#
        )
    }

    #[test]
    fn parts_are_found_again_whether_escaped_or_not() {
        let changes = [
            change("upsert", r#""a""#, 1, r#","payload":{"_id":"a","n":"\u0041","o":{}}"#),
            change("delete", r#""\"q\u00e9\"""#, 2, ""),
        ];
        let page = Page::decode(page(&changes.join(","), 2)).unwrap();
        let rows: Vec<_> = page.rows().collect();
        assert_eq!(rows[0].id, "a");
        assert_eq!(rows[0].document, Some(r#"{"_id":"a","n":"\u0041","o":{}}"#));
        assert_eq!(rows[0].updated_at, "2026-01-01T11:59:00.000Z");
        assert_eq!((rows[1].id, rows[1].document), ("\"qé\"", None));
        assert_eq!(page.collections().len(), 1);
        assert_eq!(page.collections()[0].name, "users");
        assert_eq!(page.collections()[0].fields, ["_id", "n"]);
        assert_eq!(page.last_position(), Some(Position::new(2, 0)));
        assert_eq!(page.head().server_time_ms - page.newest_write_ms().unwrap(), 60_000);
    }

    #[test]
    fn a_page_that_contradicts_itself_is_refused() {
        let upsert = |at| change("upsert", r#""a""#, at, r#","payload":{}"#);
        let refused = [
            (String::new(), 1),
            (upsert(1), 2),
            ([upsert(2), upsert(1)].join(","), 2),
            (change("upsert", r#""a""#, 1, ""), 1),
            (change("upsert", r#""a""#, 1, r#","payload":[]"#), 1),
            (change("delete", r#""a""#, 1, r#","payload":{}"#), 1),
            (change("truncate", r#""a""#, 1, ""), 1),
        ];
        for (changes, count) in refused {
            assert!(Page::decode(page(&changes, count)).is_err(), "{changes}");
        }
        let good = page(&upsert(1), 1);
        let answer = good.replacen("\"changes\"", "\"since\":\"c0\",\"changes\"", 1);
        let decode = |text: &str, since| Page::decode_answer(text.to_owned(), Some(since)).is_ok();
        assert!(decode(&answer, "c0") && !decode(&answer, "c9") && !decode(&answer, ""));
        assert!(decode(&good, "c9"), "an older server does not say");
        assert!(Page::decode(good.clone()).is_ok());
        assert!(Page::decode(good.replace("\"c1\"", "\"\"")).is_err());
        assert!(Page::decode(good.replace("true", "false")).is_err());
        for end in 0..good.len() {
            assert!(Page::decode(good[..end].to_owned()).is_err());
        }
    }

    #[test]
    fn ranges_that_were_not_asked_for_are_refused() {
        let rows = [change("upsert", r#""a""#, 1, r#","payload":{}"#)].join(",");
        let text = |collection: &str, depth: u8, position: u64| {
            format!(
                r#"{{"success":true,"serverTime":"","collection":"{collection}","position":"{position:016x}.00000000","depth":{depth},"changes":[{rows}],"next":null}}"#
            )
        };
        let (depth, position) = (4, Position::new(9, 0));
        let range = range_of(b"a", depth);
        let asked = Asked { collection: "users", depth, ranges: &[range], position };
        let decode = |text: String, asked: &Asked<'_>| Page::decode_range(text, asked).is_ok();
        assert!(decode(text("users", 4, 9), &asked));
        assert!(!decode(text("plans", 4, 9), &asked), "another collection");
        assert!(!decode(text("users", 5, 9), &asked), "cut in another way");
        assert!(!decode(text("users", 4, 8), &asked), "at another moment");
        let other = Asked { ranges: &[(range + 1) % 16], ..asked };
        assert!(!decode(text("users", 4, 9), &other), "another range");
        let plans = Asked { collection: "plans", ..asked };
        assert!(!decode(text("plans", 4, 9), &plans), "a row of another collection");
    }

    #[test]
    fn a_frame_that_does_not_follow_or_contradicts_itself_is_refused() {
        let at = |position: u64| format!("{position:016x}.00000000");
        let frame = |after, through, changes: &str| {
            let (after, through) = (at(after), at(through));
            format!(
                r#"{{"type":"changes","after":"{after}","changes":[{changes}],"through":"{through}","cursor":"c1","complete":true}}"#
            )
        };
        let upsert = |at| change("upsert", r#""a""#, at, r#","payload":{"n":1}"#);
        let decode = |text: String, last: Option<u64>| {
            Page::decode_frame(text, last.map(|last| Position::new(last, 0)), 7)
        };
        let good = frame(4, 9, &[upsert(5), upsert(9)].join(","));
        for last in [None, Some(4)] {
            let page = decode(good.clone(), last).unwrap();
            assert_eq!((page.head().checkpoint, page.head().count), (Position::new(9, 0), 2));
            assert_eq!((page.head().has_more, page.head().complete), (false, true));
            assert_eq!(page.head().server_time_ms, 7);
        }
        assert!(decode(frame(4, 4, ""), Some(4)).is_ok(), "nothing happened there");
        let refused = [
            ("it came before", good.clone(), Some(9)),
            ("one is missing before it", good.clone(), Some(3)),
            ("it is of another log", good.clone(), Some(1 << 40)),
            ("it goes back", frame(4, 3, ""), Some(4)),
            ("it goes back, the first one", frame(4, 3, ""), None),
            ("descending", frame(4, 9, &[upsert(9), upsert(5)].join(",")), Some(4)),
            ("no document", frame(4, 9, &change("upsert", r#""a""#, 5, "")), Some(4)),
            ("no cursor", good.replace("\"c1\"", "\"\""), Some(4)),
            ("no position", good.replace(&at(9), "9"), Some(4)),
            ("no place in the log", good.replace("\"after\"", "\"before\""), Some(4)),
        ];
        for (what, text, last) in refused {
            assert!(decode(text, last).is_err(), "{what}");
        }
        for text in ["", "[]", "7", "null", "{}", "<html>Welcome to the hotel</html>"] {
            assert!(decode(text.to_owned(), None).is_err(), "{text}");
        }
        for end in 0..good.len() {
            assert!(decode(good[..end].to_owned(), Some(4)).is_err(), "cut at {end}");
        }
    }
}

//! Events of more than 16 MB, which MongoDB does not send: a document with a large `_id`, which its
//! event holds three times more (in the token twice, as hex, and as the key). A stream that met one goes
//! on in parts for a while, where the source can (`$changeStreamSplitLargeEvent`, 6.0.9 and 7.0), else
//! without what is too large: then the document is read at the event's time.

use std::time::Duration;

use bson::raw::{RawArrayBuf, RawBsonRef, RawDocument};
use bson::{Document, RawDocumentBuf, doc};

use super::decode::UNSENT;
use super::reply::Reply;
use super::source::Ended;
use crate::retry::Failure;

/// How long a stream goes on so after it was opened. Then it is opened as ever: what makes one giant may
/// make more, but the source should not weigh every event for ever.
pub(super) const IN_PARTS_MAX: Duration = Duration::from_secs(60);
/// An event whose document (or delta) and key weigh more is told without the document. MongoDB's bound
/// is 16 MiB; the frame around them is small.
const SENT_BYTES_MAX: i64 = 14_000_000;
/// How often an event holds its `_id`, besides in its document, and the token of a reply that ends with it.
const KEY_COPIES: i32 = 3 + 2;
/// Most bytes of an event that came in fragments: a document, a delta, a key and a token fit.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Whole events of more bytes are passed on although the next reply's token is not known yet.
const HELD_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How the source is to tell what is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Giants {
    /// Not at all: the stream ends there, and costs the source nothing more.
    Refused,
    /// In fragments.
    Split,
    /// By their keys.
    ByKey,
}

impl Giants {
    /// What the stream's pipeline ends in.
    pub(super) fn stages(self) -> Vec<Document> {
        match self {
            Self::Refused => Vec::new(),
            Self::Split => vec![doc! { "$changeStreamSplitLargeEvent": {} }],
            Self::ByKey => by_key(),
        }
    }
}

fn by_key() -> Vec<Document> {
    const BODIES: [&str; 3] = ["fullDocument", "updateDescription", "rawUpdateDescription"];
    let size = |field: &str| doc! { "$bsonSize": { "$ifNull": [format!("${field}"), {}] } };
    let mut sizes: Vec<Document> = BODIES.into_iter().map(size).collect();
    sizes.push(doc! { "$multiply": [KEY_COPIES, size("documentKey")] });
    let weight = format!("${UNSENT}");
    let is_giant = doc! { "$gt": [weight.as_str(), SENT_BYTES_MAX] };
    let mut kept = Document::new();
    for body in BODIES {
        let value = doc! { "$cond": [is_giant.clone(), "$$REMOVE", format!("${body}")] };
        kept.insert(body, value);
    }
    kept.insert(UNSENT, doc! { "$cond": [is_giant, weight, "$$REMOVE"] });
    vec![doc! { "$set": { UNSENT: { "$add": sizes } } }, doc! { "$set": kept }]
}

/// Puts the fragments of events together again.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    /// Whole events that are not passed on yet, in order.
    held: Vec<RawDocumentBuf>,
    /// What came of the next one.
    partial: Option<RawDocumentBuf>,
}

impl Fragments {
    /// The reply with whole events only, those that were held before its own. `None`: they are held until
    /// the next reply comes, because the last one is not whole, or because this reply's token is a
    /// fragment's, from which no stream goes on that does not split: the next one's hardly ever is. A
    /// reply without fragments comes back as it is.
    ///
    /// # Errors
    /// [`Failure::Impassable`] where fragments are too large together or don't follow each other.
    pub(super) fn take(&mut self, reply: Reply) -> Result<Option<Reply>, Ended> {
        let is_open = self.partial.is_some() || !self.held.is_empty();
        if !is_open && !reply.documents().any(|event| fragment(event).is_some()) {
            return Ok(Some(reply));
        }
        let mut ends_in_fragment = false;
        for event in reply.documents() {
            let part = fragment(event);
            ends_in_fragment = part.is_some();
            match part {
                None if self.partial.is_none() => self.held.push(event.to_owned()),
                None => return Err(broken("end in the middle")),
                Some((at, of)) => {
                    self.add(event, at >= of).ok_or_else(|| broken("can't be read"))?;
                }
            }
        }
        let bytes: usize = self.held.iter().map(|event| event.as_bytes().len()).sum();
        if self.partial.is_some() || (ends_in_fragment && bytes <= HELD_BYTES_MAX) {
            return Ok(None);
        }
        let mut all = RawArrayBuf::new();
        self.held.drain(..).for_each(|event| all.push(event));
        Ok(Some(reply.with_documents(&all)))
    }

    /// Adds one fragment; with the last one the event is whole. `None`: it is no document, or too much.
    fn add(&mut self, event: &RawDocument, is_last: bool) -> Option<()> {
        let mut partial = self.partial.take().unwrap_or_default();
        for element in event.iter_elements() {
            let element = element.ok()?;
            match element.key().as_str() {
                "splitEvent" => {}
                // The last one's token goes on after all of them.
                "_id" if !is_last => {}
                _ => partial.append(element.key(), element.value().ok()?),
            }
        }
        if partial.as_bytes().len() > EVENT_BYTES_MAX {
            return None;
        }
        match is_last {
            true => self.held.push(partial),
            false => self.partial = Some(partial),
        }
        Some(())
    }
}

/// Which fragment this is, from 1, and of how many.
fn fragment(event: &RawDocument) -> Option<(i32, i32)> {
    match event.get("splitEvent") {
        Ok(Some(RawBsonRef::Document(split))) => {
            Some((split.get_i32("fragment").ok()?, split.get_i32("of").ok()?))
        }
        _ => None,
    }
}

fn broken(why: &str) -> Ended {
    Ended::new(Failure::Impassable, format!("the fragments of a large event {why}"))
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn token(n: i32) -> RawDocumentBuf {
        rawdoc! { "_data": format!("82000000{n:02}00000001") }
    }

    fn plain(n: i32) -> RawDocumentBuf {
        rawdoc! { "_id": token(n), "operationType": "delete", "n": n }
    }

    fn part(n: i32, fragment: i32, of: i32, field: &str) -> RawDocumentBuf {
        let mut event =
            rawdoc! { "_id": token(n), "splitEvent": { "fragment": fragment, "of": of } };
        event.append(bson::raw::CString::try_from(field).unwrap(), n);
        event
    }

    fn reply(events: &[RawDocumentBuf], through: i32) -> Reply {
        let mut all = RawArrayBuf::new();
        events.iter().for_each(|event| all.push(event.clone()));
        let cursor =
            rawdoc! { "id": 7_i64, "nextBatch": all, "postBatchResumeToken": token(through) };
        Reply::Owned(rawdoc! { "cursor": cursor, "ok": 1 })
    }

    /// What comes out for each reply: its events, and the number in its token.
    #[track_caller]
    fn check(replies: &[(&[RawDocumentBuf], i32)], expected: &[Option<(&[RawDocumentBuf], i32)>]) {
        let mut fragments = Fragments::default();
        for ((events, through), expected) in replies.iter().zip(expected) {
            let taken = fragments.take(reply(events, *through)).unwrap();
            let taken = taken.map(|reply| {
                let events: Vec<_> = reply.documents().map(ToOwned::to_owned).collect();
                assert_eq!(reply.cursor_id(), 7);
                (events, reply.post_batch_token().unwrap().to_owned())
            });
            let expected = expected.map(|(events, through)| (events.to_vec(), token(through)));
            assert_eq!(taken, expected);
        }
    }

    #[test]
    fn fragments_over_several_replies_are_one_event_which_goes_on_after_the_last() {
        let whole = rawdoc! { "a": 2, "b": 2, "_id": token(2), "c": 2 };
        check(
            &[
                (&[plain(1), part(2, 1, 3, "a")], 2),
                (&[part(2, 2, 3, "b")], 2),
                (&[part(2, 3, 3, "c"), plain(3)], 3),
                (&[plain(4)], 4),
            ],
            &[None, None, Some((&[plain(1), whole, plain(3)], 3)), Some((&[plain(4)], 4))],
        );
    }

    #[test]
    fn an_event_in_fragments_waits_for_a_token_that_is_none_of_a_fragment() {
        let whole = rawdoc! { "a": 2, "_id": token(2), "b": 2 };
        check(
            &[(&[part(2, 1, 2, "a")], 2), (&[part(2, 2, 2, "b")], 2), (&[], 5)],
            &[None, None, Some((&[whole], 5))],
        );
    }

    #[test]
    fn fragments_that_end_in_the_middle_are_no_event() {
        let mut fragments = Fragments::default();
        let broken = fragments.take(reply(&[part(2, 1, 2, "a"), plain(3)], 3)).unwrap_err();
        assert_eq!(broken.failure, Failure::Impassable);
    }
}

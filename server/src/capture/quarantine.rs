//! What can't be carried: found before it is stored, set aside with its key and reason, counted, and
//! never in the way of what follows.

use std::str::from_utf8;

use bson::RawDocumentBuf;
use bson::raw::{RawBsonRef, RawDocument};
use sha2::{Digest, Sha256};
use tidewire_protocol::key::mongo_id;
use tidewire_protocol::raw::Elements;

use super::reads::id_document;
use crate::log::sort_key;

/// An `_id` of more bytes is not carried: beside the document the stream's event holds it three times (in its
/// token twice, as hex), the reply's own token twice more, and beyond 16 MiB MongoDB ends the stream.
pub(super) const ID_BYTES_MAX: usize = 3_300_000;
/// A document of more bytes is not carried: MongoDB's own bound.
pub(super) const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of the digest of an `_id` that is not known, and of its beginning that is shown.
const DIGEST_BYTES: usize = 16;
const SHOWN_BYTES_MAX: usize = 100;
/// MongoDB lets documents nest 179 levels deep where they are written, 200 in its own.
const DEPTH_MAX: usize = 200;

/// Why a document can't be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Defect {
    /// A length or a type that BSON does not have.
    #[error("not well-formed BSON")]
    Malformed,
    /// MongoDB takes any bytes for a string.
    #[error("a string or a field name that is not UTF-8")]
    NotUtf8,
    /// Deeper than MongoDB writes.
    #[error("nested too deep")]
    TooDeep,
    /// Larger than MongoDB writes.
    #[error("larger than 16 MB")]
    TooLarge,
    /// An `_id` that change events can't carry.
    #[error("an _id of more than 3.3 MB")]
    IdTooLarge,
    /// MongoDB gives every document one.
    #[error("no _id")]
    NoId,
    /// The event has not what its kind must have.
    #[error("a change event without {0}")]
    Event(&'static str),
}

/// What is known of the `_id` of a document that can't be carried.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Known {
    /// The document has a key of the log; `id` is `{_id: …}`.
    Key { key: Vec<u8>, id: RawDocumentBuf, shown: String },
    /// It has none: its `_id` is no BSON, no text or too large. `digest` tells it from others.
    Digest { digest: Vec<u8>, shown: String },
}

impl Known {
    /// What can be known of the `_id` of `document`, which may be an event's `documentKey`.
    pub(super) fn of(document: &RawDocument) -> Self {
        match readable_id(document) {
            Some(id) => Self::Key { key: sort_key(id), id: id_document(id), shown: mongo_id(id) },
            None => Self::digest_of(document.as_bytes()),
        }
    }

    /// Of the bytes of the `_id`, or of all of them where none can be found.
    pub(super) fn digest_of(document: &[u8]) -> Self {
        let id = raw_id(document);
        let digest = Sha256::digest(id.unwrap_or(document))[..DIGEST_BYTES].to_vec();
        let shown = id.map_or_else(
            || "unknown".to_owned(),
            |id| {
                let start = &id[..id.len().min(SHOWN_BYTES_MAX)];
                format!("{} ({} bytes)", String::from_utf8_lossy(start).escape_debug(), id.len())
            },
        );
        Self::Digest { digest, shown }
    }

    /// For people.
    pub(super) fn shown(&self) -> &str {
        match self {
            Self::Key { shown, .. } | Self::Digest { shown, .. } => shown,
        }
    }
}

/// The value of a document's `_id` as it lies there.
fn raw_id(document: &[u8]) -> Option<&[u8]> {
    let mut elements = Elements::of(document).ok()?;
    while let Ok(Some(element)) = elements.step() {
        if element.name == b"_id" {
            return Some(element.value);
        }
    }
    None
}

/// The `_id` of a document that is well-formed throughout.
pub(super) fn checked_id(document: &RawDocument) -> Result<RawBsonRef<'_>, Defect> {
    check(document.as_bytes())?;
    let id = document.get("_id").map_err(|_| Defect::Malformed)?.ok_or(Defect::NoId)?;
    // The whole bounds the part.
    if document.as_bytes().len() > ID_BYTES_MAX && id_document(id).as_bytes().len() > ID_BYTES_MAX {
        return Err(Defect::IdTooLarge);
    }
    Ok(id)
}

/// The `_id` of a document that is not well-formed, where at least that can be read and carried.
fn readable_id(document: &RawDocument) -> Option<RawBsonRef<'_>> {
    let id = document.get("_id").ok()??;
    let alone = id_document(id);
    (alone.as_bytes().len() <= ID_BYTES_MAX && check(alone.as_bytes()).is_ok()).then_some(id)
}

/// Walks `bytes` as one BSON document and says what would stop a later reader. About 0.2 µs for 500
/// bytes: no values are made.
pub(super) fn check(bytes: &[u8]) -> Result<(), Defect> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(Defect::TooLarge);
    }
    check_document(bytes, 0)
}

fn check_document(bytes: &[u8], depth: usize) -> Result<(), Defect> {
    if depth > DEPTH_MAX {
        return Err(Defect::TooDeep);
    }
    if length_at(bytes, 0)? != bytes.len() || bytes.len() < 5 || bytes[bytes.len() - 1] != 0 {
        return Err(Defect::Malformed);
    }
    let mut rest = &bytes[4..bytes.len() - 1];
    while let Some((&kind, after)) = rest.split_first() {
        rest = skip_value(kind, skip_cstring(after)?, depth)?;
    }
    Ok(())
}

/// What follows the value of type `kind` at the start of `rest`.
fn skip_value(kind: u8, rest: &[u8], depth: usize) -> Result<&[u8], Defect> {
    let fixed = |len: usize| rest.get(len..).ok_or(Defect::Malformed);
    match kind {
        0x06 | 0x0a | 0x7f | 0xff => Ok(rest),
        0x08 => match rest.first() {
            Some(0 | 1) => fixed(1),
            _ => Err(Defect::Malformed),
        },
        0x10 => fixed(4),
        0x01 | 0x09 | 0x11 | 0x12 => fixed(8),
        0x07 => fixed(12),
        0x13 => fixed(16),
        0x02 | 0x0d | 0x0e => skip_string(rest),
        0x0c => skip_string(rest)?.get(12..).ok_or(Defect::Malformed),
        0x0b => skip_cstring(skip_cstring(rest)?),
        0x03 | 0x04 => {
            let (document, after) = split(rest, length_at(rest, 0)?)?;
            check_document(document, depth + 1)?;
            Ok(after)
        }
        0x05 => {
            let len = length_at(rest, 0)?;
            let (binary, after) = split(rest, len.checked_add(5).ok_or(Defect::Malformed)?)?;
            // The old subtype 2 holds its length once more.
            if binary[4] == 2 && (len < 4 || length_at(binary, 5)? != len - 4) {
                return Err(Defect::Malformed);
            }
            Ok(after)
        }
        0x0f => {
            let (code, after) = split(rest, length_at(rest, 0)?)?;
            let scope = skip_string(code.get(4..).ok_or(Defect::Malformed)?)?;
            check_document(scope, depth + 1)?;
            Ok(after)
        }
        _ => Err(Defect::Malformed),
    }
}

fn length_at(bytes: &[u8], at: usize) -> Result<usize, Defect> {
    let four = bytes.get(at..at + 4).ok_or(Defect::Malformed)?;
    let length = i32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    usize::try_from(length).map_err(|_| Defect::Malformed)
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), Defect> {
    bytes.split_at_checked(at).ok_or(Defect::Malformed)
}

fn skip_string(rest: &[u8]) -> Result<&[u8], Defect> {
    let len = length_at(rest, 0)?;
    let (text, after) = split(&rest[4..], len)?;
    let Some((0, text)) = text.split_last() else { return Err(Defect::Malformed) };
    from_utf8(text).map_err(|_| Defect::NotUtf8)?;
    Ok(after)
}

fn skip_cstring(rest: &[u8]) -> Result<&[u8], Defect> {
    let end = rest.iter().position(|&byte| byte == 0).ok_or(Defect::Malformed)?;
    from_utf8(&rest[..end]).map_err(|_| Defect::NotUtf8)?;
    Ok(&rest[end + 1..])
}

#[cfg(test)]
mod tests {
    use bson::spec::BinarySubtype;
    use bson::{Binary, Bson, Decimal128, Timestamp, doc, oid::ObjectId, rawdoc};

    use super::*;

    #[test]
    fn every_type_passes() {
        let document = doc! {
            "_id": ObjectId::new(), "double": 1.5, "string": "žluť \0 within", "empty": "",
            "document": { "a": { "b": [1, "two", { "three": 3 }] } }, "array": [],
            "binary": Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2, 3] },
            "old": Binary { subtype: BinarySubtype::BinaryOld, bytes: vec![1, 2, 3] },
            "undefined": Bson::Undefined, "bool": true, "date": bson::DateTime::MAX,
            "null": Bson::Null, "i32": 1, "i64": i64::MIN, "min": Bson::MinKey, "max": Bson::MaxKey,
            "regex": bson::Regex { pattern: "a.*".try_into().unwrap(), options: "i".try_into().unwrap() },
            "code": Bson::JavaScriptCode("f()".into()), "symbol": Bson::Symbol("s".into()),
            "scope": bson::JavaScriptCodeWithScope { code: "f()".into(), scope: doc! { "x": 1 } },
            "timestamp": Timestamp { time: 1, increment: 2 },
            "decimal": "12.50".parse::<Decimal128>().unwrap(),
            "": "an empty name", "$odd.name": 1,
        };
        assert_eq!(check(&document.to_vec().unwrap()), Ok(()));
    }

    #[test]
    fn an_id_that_the_stream_can_not_carry_is_found_and_a_large_document_is_not_taken_for_one() {
        let large = "x".repeat(ID_BYTES_MAX);
        let defect = checked_id(&rawdoc! { "_id": large.as_str() }).unwrap_err();
        assert_eq!(defect, Defect::IdTooLarge);
        assert!(checked_id(&rawdoc! { "_id": 1, "large": large.as_str() }).is_ok());
        assert_eq!(checked_id(&rawdoc! { "a": 1 }).unwrap_err(), Defect::NoId);
    }

    #[test]
    fn documents_without_a_readable_id_are_told_apart_by_it_and_by_nothing_else() {
        let dirty = |id: &str, more: i32| {
            let mut bytes = rawdoc! { "_id": id, "more": more }.into_bytes();
            let at = bytes.windows(5).position(|w| w == b"dirty").unwrap();
            bytes[at] = 0xff;
            RawDocumentBuf::from_bytes(bytes).unwrap()
        };
        let known = Known::of(&dirty("dirty one", 1));
        assert!(matches!(&known, Known::Digest { shown, .. } if shown.contains("irty one")));
        assert_eq!(known, Known::of(&dirty("dirty one", 2)));
        assert_ne!(known, Known::of(&dirty("dirty two", 1)));
        let large = Known::of(&rawdoc! { "_id": "x".repeat(ID_BYTES_MAX) });
        assert!(matches!(&large, Known::Digest { shown, .. } if shown.len() < 200), "{large:?}");
        let Known::Key { id, .. } = Known::of(&rawdoc! { "_id": 7 }) else { panic!() };
        assert_eq!(id, rawdoc! { "_id": 7 });
    }

    #[test]
    fn bytes_that_are_no_text_are_found_at_any_depth() {
        let mut bytes = doc! { "_id": 1, "a": { "b": ["clean", "dirty"] } }.to_vec().unwrap();
        let at = bytes.windows(5).position(|w| w == b"dirty").unwrap();
        bytes[at] = 0xff;
        assert_eq!(check(&bytes), Err(Defect::NotUtf8));
    }

    #[test]
    fn nothing_cut_or_flipped_makes_it_panic() {
        let bytes = doc! { "_id": 1, "s": "text", "d": { "x": [1.0, true] }, "b": Binary {
        subtype: BinarySubtype::BinaryOld, bytes: vec![9] } }
        .to_vec()
        .unwrap();
        for at in 0..bytes.len() {
            assert!(check(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let _ = check(&flipped);
            }
        }
    }

    #[test]
    fn a_document_nested_179_levels_passes_and_one_nested_300_levels_does_not() {
        let nested =
            |levels: usize| (0..levels).fold(rawdoc! { "x": 1 }, |inner, _| rawdoc! { "d": inner });
        assert_eq!(check(nested(179).as_bytes()), Ok(()));
        assert_eq!(check(nested(300).as_bytes()), Err(Defect::TooDeep));
    }
}

//! What can't be carried: found before it is stored, set aside with its key and reason, counted, and
//! never in the way of what follows.

use std::str::from_utf8;

use tidewire_protocol::Position;

use crate::status::StatusSender;

/// An `_id` of more bytes is not carried: the stream's event holds it three times (in its token twice,
/// as hex) beside the document, and beyond 16 MB MongoDB ends the stream.
pub(super) const ID_BYTES_MAX: usize = 3_500_000;
/// A document of more bytes is not carried: MongoDB's own bound.
pub(super) const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;
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
    #[error("an _id of more than 3.5 MB")]
    IdTooLarge,
    /// MongoDB gives every document one.
    #[error("no _id")]
    NoId,
    /// The event has not what its kind must have.
    #[error("a change event without {0}")]
    Event(&'static str),
}

/// Says that a document was set aside. Keys may be logged, documents never.
pub(super) fn set_aside(
    status: &StatusSender,
    collection: &str,
    key: &str,
    position: Position,
    defect: Defect,
) {
    tracing::warn!(collection, key, %position, reason = %defect, "quarantined: not carried");
    status.send_modify(|status| status.quarantined += 1);
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

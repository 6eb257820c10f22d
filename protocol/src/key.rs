//! `mongoId`: one text for each `_id` that MongoDB takes for one.
//!
//! MongoDB compares numbers by their exact value and Symbols as Strings, at any depth of an `_id`, and
//! takes array elements by their order, not by their names (seen on MongoDB 6.0.5). So do the texts.

use bson::raw::{RawBsonRef, RawDocumentBuf};
use bson::spec::ElementType;

use crate::number::Number;
use crate::payload::ejson::{Canonical, write_regex};
use crate::payload::text::{write_base64, write_hex, write_string};
use crate::payload::walk::{self, Style};
use crate::raw::{self, Elements, Reason};

/// The text of an `_id`, one for each `_id` that MongoDB takes for one.
///
/// An ObjectId is its hex; a String (and a Symbol) itself, with `~s:` in front where it has 24 hex
/// characters or begins with `~`; a number `~` and the text of its exact value; everything else `~`
/// and canonical Extended JSON in which numbers are `{"$number":"…"}` and Symbols are Strings.
///
/// Two cases go beyond that: a document in which the first name begins with `$` (MongoDB has such
/// ones only in the scope of a code) is `{"$document":…}`, so that none is mistaken for a value; and an
/// `_id` with bytes in it that can't be decoded is `~x:` and the base64 of them all.
#[must_use]
pub fn mongo_id(id: RawBsonRef<'_>) -> String {
    let mut text = Vec::with_capacity(24);
    write_mongo_id(id, &mut text);
    String::from_utf8(text).expect("made of texts that were checked")
}

/// Appends [`mongo_id`]'s text as UTF-8, without quotes or escapes.
pub fn write_mongo_id(id: RawBsonRef<'_>, out: &mut Vec<u8>) {
    match id {
        RawBsonRef::ObjectId(id) => return write_hex(&id.bytes(), out),
        RawBsonRef::String(text) | RawBsonRef::Symbol(text) => {
            if needs_mark(text) {
                out.extend_from_slice(b"~s:");
            }
            return out.extend_from_slice(text.as_bytes());
        }
        _ => out.push(b'~'),
    }
    let mut element = RawDocumentBuf::new();
    element.append(bson::cstr!(""), id);
    write_element(element.as_bytes(), out);
}

/// Whether a String could be mistaken for another encoding.
fn needs_mark(text: &str) -> bool {
    text.starts_with('~') || (text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Appends the only value of `document`.
fn write_element(document: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let element = Elements::of(document).ok().and_then(|mut all| all.step().ok().flatten());
    let written = element.is_some_and(|element| match Number::read(element.kind, element.value) {
        // Not inside a document, a number needs no braces to be told from a String.
        Ok(Some(number)) => {
            number.write_text(out);
            true
        }
        _ => walk::write_value::<Key>(element.kind, element.value, None, 1, out).is_ok(),
    });
    if !written {
        out.truncate(start);
        out.extend_from_slice(b"x:");
        write_base64(document, out);
    }
}

/// Extended JSON in which equal `_id`s have equal texts, and different ones different texts.
struct Key;

impl Style for Key {
    const IS_ONE_TO_ONE: bool = true;

    fn write_scalar(kind: ElementType, value: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
        if let Some(number) = Number::read(kind, value)? {
            out.extend_from_slice(b"{\"$number\":\"");
            number.write_text(out);
            out.extend_from_slice(b"\"}");
            return Ok(());
        }
        match kind {
            ElementType::Symbol => write_string(raw::text(value)?, out),
            ElementType::RegularExpression => {
                let (pattern, options) = raw::regex(value)?;
                write_regex(pattern, options, out)
            }
            _ => Canonical::write_scalar(kind, value, out),
        }
    }
}

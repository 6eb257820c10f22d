//! BSON as bytes: walks the elements of a document without making values of them.
//!
//! The driver's own raw types are made for reading a few fields; they check every string on the way,
//! keep a DBPointer's parts to themselves, and can't step over a string that is not UTF-8, which
//! MongoDB stores all the same. Encodings of whole documents and keys read the bytes themselves.

use bson::spec::ElementType;

/// What a document's bytes can get wrong, in words for an operator.
pub type Reason = &'static str;

/// The least bytes of a document: its length and the closing NUL.
const DOCUMENT_BYTES_MIN: usize = 5;

/// One element of a document, borrowed from its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    /// The BSON type.
    pub kind: ElementType,
    /// The field's name without its NUL; any bytes, not only UTF-8.
    pub name: &'a [u8],
    /// The value's bytes as BSON lays them out, length prefixes included.
    pub value: &'a [u8],
}

/// An element that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage<'a> {
    /// The field's name; empty where that is what is damaged.
    pub name: &'a [u8],
    /// What is wrong.
    pub reason: Reason,
}

/// Walks a document's elements in order.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    /// What is still to be read, without the closing NUL.
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    /// The elements of `document`, whose length prefix must say exactly how many bytes there are.
    ///
    /// # Errors
    /// Where the frame of the document is damaged.
    pub fn of(document: &'a [u8]) -> Result<Self, Reason> {
        let length = document.first_chunk().map(|b| u32::from_le_bytes(*b) as usize);
        if length != Some(document.len()) || document.len() < DOCUMENT_BYTES_MIN {
            return Err("the document's length is not the one it states");
        }
        match document.split_last() {
            Some((0, body)) => Ok(Self { rest: &body[4..] }),
            _ => Err("the document is not closed by a zero byte"),
        }
    }

    /// The next element, none at the end.
    ///
    /// # Errors
    /// Where the bytes are no element; what comes after can't be read then.
    #[inline]
    pub fn step(&mut self) -> Result<Option<Element<'a>>, Damage<'a>> {
        let Some((&kind, rest)) = self.rest.split_first() else { return Ok(None) };
        let Some(end) = rest.iter().position(|&b| b == 0) else {
            return Err(Damage { name: &[], reason: "a field name without an end" });
        };
        let (name, rest) = (&rest[..end], &rest[end + 1..]);
        let Some(kind) = ElementType::from(kind) else {
            return Err(Damage { name, reason: "a type that BSON does not have" });
        };
        let size = value_size(kind, rest).map_err(|reason| Damage { name, reason })?;
        let Some((value, rest)) = rest.split_at_checked(size) else {
            return Err(Damage { name, reason: "a value that is longer than its document" });
        };
        self.rest = rest;
        Ok(Some(Element { kind, name, value }))
    }
}

/// How many bytes the value at the start of `bytes` takes, by its own statement.
#[inline]
fn value_size(kind: ElementType, bytes: &[u8]) -> Result<usize, Reason> {
    Ok(match kind {
        ElementType::Null | ElementType::Undefined => 0,
        ElementType::MinKey | ElementType::MaxKey => 0,
        ElementType::Boolean => 1,
        ElementType::Int32 => 4,
        ElementType::Int64 | ElementType::Double => 8,
        ElementType::DateTime | ElementType::Timestamp => 8,
        ElementType::ObjectId => 12,
        ElementType::Decimal128 => 16,
        ElementType::String | ElementType::Symbol | ElementType::JavaScriptCode => {
            4 + stated_length(bytes)?
        }
        ElementType::Binary => 5 + stated_length(bytes)?,
        ElementType::DbPointer => 16 + stated_length(bytes)?,
        ElementType::EmbeddedDocument
        | ElementType::Array
        | ElementType::JavaScriptCodeWithScope => stated_length(bytes)?,
        ElementType::RegularExpression => {
            let (pattern, rest) = cstring(bytes)?;
            let (options, _) = cstring(rest)?;
            pattern.len() + options.len() + 2
        }
    })
}

fn stated_length(bytes: &[u8]) -> Result<usize, Reason> {
    let length = bytes.first_chunk().ok_or("a length that is cut off")?;
    usize::try_from(i32::from_le_bytes(*length)).map_err(|_| "a negative length")
}

/// Splits off a text that ends with a NUL; both parts are without it.
fn cstring(bytes: &[u8]) -> Result<(&[u8], &[u8]), Reason> {
    let end = bytes.iter().position(|&b| b == 0).ok_or("a text without an end")?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

/// The first `N` bytes of a value.
///
/// # Errors
/// Where there are fewer.
#[inline]
pub fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], Reason> {
    value.first_chunk().copied().ok_or("a value that is cut off")
}

/// The bytes of a String, Symbol or Code, without prefix and closing NUL.
///
/// # Errors
/// Where the length is wrong or the NUL is missing.
#[inline]
pub fn text(value: &[u8]) -> Result<&[u8], Reason> {
    let (text, rest) = text_prefix(value)?;
    if rest.is_empty() { Ok(text) } else { Err("a string that ends before its value") }
}

/// A length-prefixed string at the start of `value`, and what follows it.
fn text_prefix(value: &[u8]) -> Result<(&[u8], &[u8]), Reason> {
    let length = stated_length(value)?;
    let (text, rest) =
        value[4..].split_at_checked(length).ok_or("a string that is longer than its value")?;
    match text.split_last() {
        Some((0, text)) => Ok((text, rest)),
        _ => Err("a string that is not closed by a zero byte"),
    }
}

/// A Binary's subtype and bytes. Those of subtype 2 still have the second length in front.
///
/// # Errors
/// Where the value is cut off.
pub fn binary(value: &[u8]) -> Result<(u8, &[u8]), Reason> {
    match value.get(4..) {
        Some([subtype, bytes @ ..]) => Ok((*subtype, bytes)),
        _ => Err("a binary that is cut off"),
    }
}

/// A Binary's subtype and payload: subtype 2 without its second length.
///
/// # Errors
/// Where the value is cut off or the second length contradicts the first.
pub fn binary_payload(value: &[u8]) -> Result<(u8, &[u8]), Reason> {
    let (subtype, bytes) = binary(value)?;
    if subtype != 2 {
        return Ok((subtype, bytes));
    }
    if stated_length(bytes)? + 4 != bytes.len() {
        return Err("an old binary whose second length is wrong");
    }
    Ok((subtype, &bytes[4..]))
}

/// A regular expression's pattern and options, as stored.
///
/// # Errors
/// Where an end is missing.
pub fn regex(value: &[u8]) -> Result<(&[u8], &[u8]), Reason> {
    let (pattern, rest) = cstring(value)?;
    Ok((pattern, cstring(rest)?.0))
}

/// A DBPointer's namespace and ObjectId.
///
/// # Errors
/// Where the string is damaged or the id is cut off.
pub fn db_pointer(value: &[u8]) -> Result<(&[u8], [u8; 12]), Reason> {
    let (namespace, id) = text_prefix(value)?;
    Ok((namespace, fixed(id)?))
}

/// A Code's text and the bytes of its scope document.
///
/// # Errors
/// Where a length is wrong.
pub fn code_with_scope(value: &[u8]) -> Result<(&[u8], &[u8]), Reason> {
    text_prefix(value.get(4..).ok_or("code with scope that is cut off")?)
}

/// A Bool.
///
/// # Errors
/// Where the byte is neither 0 nor 1.
#[inline]
pub fn boolean(value: &[u8]) -> Result<bool, Reason> {
    match value {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err("a bool that is neither 0 nor 1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cut_of_a_document_reads_past_its_end() {
        let document = bson::rawdoc! {
            "s": "text", "d": { "x": [1, 2.0, { "y": bson::Regex {
                pattern: bson::cstr!("p").into(), options: bson::cstr!("i").into() } }] },
            "b": bson::Binary { subtype: bson::spec::BinarySubtype::BinaryOld, bytes: vec![1, 2] },
            "c": bson::RawJavaScriptCodeWithScope { code: "f".into(), scope: bson::rawdoc! {} },
        };
        let bytes = document.as_bytes();
        for end in 0..bytes.len() {
            let mut cut = bytes[..end].to_vec();
            assert!(Elements::of(&cut).is_err(), "{end}");
            if end < DOCUMENT_BYTES_MIN {
                continue;
            }
            // The frame made right again, so that the damage is found by the element walk.
            cut[..4].copy_from_slice(&u32::try_from(end).unwrap().to_le_bytes());
            cut[end - 1] = 0;
            let mut elements = Elements::of(&cut).unwrap();
            while let Ok(Some(element)) = elements.step() {
                let value = element.value;
                let _ = (text(value), binary_payload(value), regex(value));
                let _ = (db_pointer(value), code_with_scope(value));
            }
        }
    }
}

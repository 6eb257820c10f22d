//! BSON elements as the bytes they are, to be copied without being decoded.

use bson::raw::RawDocument;

use super::Untrusted;

/// One field of a document, or one member of an array, undecoded.
#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) name: &'a str,
    /// All of it: type, name, NUL, value.
    pub(super) bytes: &'a [u8],
    pub(super) value: Value<'a>,
}

/// A value, undecoded: its type's code and its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Value<'a> {
    pub(super) kind: u8,
    pub(super) bytes: &'a [u8],
}

/// Codes of the types that are looked into; see the BSON specification.
const DOCUMENT: u8 = 0x03;
const ARRAY: u8 = 0x04;
const STRING: u8 = 0x02;
const INT32: u8 = 0x10;
/// What an array is padded with.
pub(super) const NULL: Value<'static> = Value { kind: 0x0a, bytes: &[] };

/// The elements of a document or array in order. Ends after the first error.
pub(super) fn elements(
    document: &RawDocument,
) -> impl Iterator<Item = Result<Element<'_>, Untrusted>> {
    let all = document.as_bytes();
    let mut start = size_of::<i32>();
    document.iter_elements().map(move |element| {
        let element = element.map_err(|_| Untrusted::Malformed)?;
        let name = element.key().as_str();
        let value_at = start + 1 + name.len() + 1;
        let end = value_at + element.size();
        let bytes = all.get(start..end).ok_or(Untrusted::Malformed)?;
        let value = Value { kind: bytes[0], bytes: &all[value_at..end] };
        start = end;
        Ok(Element { name, bytes, value })
    })
}

impl<'a> Value<'a> {
    pub(super) fn is_document(self) -> bool {
        self.kind == DOCUMENT
    }

    pub(super) fn is_array(self) -> bool {
        self.kind == ARRAY
    }

    /// The inside of a document or an array (whose names are its indexes).
    pub(super) fn inside(self) -> Result<&'a RawDocument, Untrusted> {
        if !self.is_document() && !self.is_array() {
            return Err(Untrusted::WrongKind);
        }
        RawDocument::from_bytes(self.bytes).map_err(|_| Untrusted::Malformed)
    }

    /// The inside of a document of the delta; anything else there is not understood.
    pub(super) fn document(self) -> Result<&'a RawDocument, Untrusted> {
        if self.is_document() { self.inside() } else { Err(Untrusted::Unknown) }
    }

    /// The inside of an array of the delta; anything else there is not understood.
    pub(super) fn array(self) -> Result<&'a RawDocument, Untrusted> {
        if self.is_array() { self.inside() } else { Err(Untrusted::Unknown) }
    }

    /// A string of the delta.
    pub(super) fn text(self) -> Result<&'a str, Untrusted> {
        if self.kind != STRING {
            return Err(Untrusted::Unknown);
        }
        let text = self.bytes.get(4..self.bytes.len().saturating_sub(1));
        std::str::from_utf8(text.ok_or(Untrusted::Malformed)?).map_err(|_| Untrusted::Malformed)
    }

    /// An `i32` of the delta that is a size or an index: not negative.
    pub(super) fn size(self) -> Result<usize, Untrusted> {
        let bytes = <[u8; 4]>::try_from(self.bytes).map_err(|_| Untrusted::Unknown)?;
        if self.kind != INT32 {
            return Err(Untrusted::Unknown);
        }
        usize::try_from(i32::from_le_bytes(bytes)).map_err(|_| Untrusted::Index)
    }
}

//! BSON elements as the bytes they are, to be copied without being decoded.

use bson::raw::RawDocument;
use tidewire_protocol::raw::{self, Elements};

use super::Untrusted;

/// One field of a document, or one member of an array, undecoded.
#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) name: &'a [u8],
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

/// The elements of a document or array in order. Ends after the first error. Names and texts are taken
/// as bytes: whether they are UTF-8 is asked once, where a document is checked as a whole.
pub(super) fn elements(
    document: &RawDocument,
) -> impl Iterator<Item = Result<Element<'_>, Untrusted>> {
    let all = document.as_bytes();
    let mut walk = Elements::of(all).map_err(|_| Untrusted::Malformed);
    let mut start = size_of::<i32>();
    std::iter::from_fn(move || {
        let stepped = match &mut walk {
            Ok(walk) => walk.step().map_err(|_| Untrusted::Malformed),
            Err(untrusted) => Err(*untrusted),
        };
        let step = match stepped {
            Ok(step) => step?,
            Err(untrusted) => {
                // An empty document: nothing follows the error.
                walk = Elements::of(&[5, 0, 0, 0, 0]).map_err(|_| Untrusted::Malformed);
                return Some(Err(untrusted));
            }
        };
        let end = start + 1 + step.name.len() + 1 + step.value.len();
        let bytes = &all[start..end];
        start = end;
        Some(Ok(Element {
            name: step.name,
            bytes,
            value: Value { kind: bytes[0], bytes: step.value },
        }))
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
    pub(super) fn text(self) -> Result<&'a [u8], Untrusted> {
        if self.kind != STRING {
            return Err(Untrusted::Unknown);
        }
        raw::text(self.bytes).map_err(|_| Untrusted::Malformed)
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

//! Whole documents from deltas: the document before an update and the change event's delta give the
//! document after it.
//!
//! [`delta`] is what an update changed, as a tree; [`raw`] and [`paths`] read it from the two forms
//! in which MongoDB tells it; [`apply`] walks the previous document beside that tree once and copies
//! what is not touched as bytes. A wrong document is the worst outcome and a read of the document
//! costs little, so everything that could mean two things is [`Untrusted`].
//!
//! The two forms:
//! - `rawUpdateDescription` (`showRawUpdateDescription: true` in `$changeStream`, instead of the
//!   other): the delta as the oplog holds it. It tells documents from arrays, `a.b` from `a` → `b`,
//!   and new fields from changed ones, so it is exact, moved fields included.
//! - `updateDescription`: flat, dotted paths. Paths are read against the previous document. What it
//!   can't tell: where an update moved a field whose value it changed too (the field is left where
//!   it was), and, before MongoDB 6.1, which has no `disambiguatedPaths`, a new field whose name
//!   holds a dot (`$setField` only) beside a document of the name before the dot.

mod apply;
mod delta;
mod element;
mod paths;
mod raw;
#[cfg(test)]
mod tests;

use bson::raw::{RawDocument, RawDocumentBuf};

/// What an update changed, read from an event's `updateDescription` or its `rawUpdateDescription`;
/// they are told apart by their fields.
pub(super) struct Changed<'a> {
    delta: delta::Delta<'a>,
    /// Bytes that the delta takes at most.
    bytes: usize,
}

impl<'a> Changed<'a> {
    /// Reads the delta.
    ///
    /// # Errors
    /// [`Untrusted`], whenever it could mean more than one thing.
    pub(super) fn read(update_description: &'a RawDocument) -> Result<Self, Untrusted> {
        let delta = match update_description.iter_elements().next() {
            Some(Ok(first)) if first.key().as_str() == "$v" => raw::read(update_description)?,
            Some(Ok(_)) => paths::read(update_description)?,
            Some(Err(_)) => return Err(Untrusted::Malformed),
            None => return Err(Untrusted::Unknown),
        };
        if delta.part(b"_id").is_some() {
            return Err(Untrusted::Identity);
        }
        Ok(Self { delta, bytes: update_description.as_bytes().len() })
    }

    /// The document after the update. Where the one before and the delta are well-formed and UTF-8
    /// throughout, so is the answer.
    ///
    /// # Errors
    /// [`Untrusted`], whenever more than one document could be meant, or the delta does not fit the
    /// previous document.
    pub(super) fn apply(&self, previous: &RawDocument) -> Result<RawDocumentBuf, Untrusted> {
        apply::apply(previous, &self.delta, previous.as_bytes().len() + self.bytes)
    }

    /// Whether the top-level field `name`, or something inside of it, may be another one after.
    pub(super) fn touches(&self, name: &str) -> bool {
        self.delta.part(name.as_bytes()).is_some()
    }
}

/// The document after an update, or the reason why the delta can't be trusted to tell it: then the
/// document is read from the source at the event's cluster time.
///
/// # Errors
/// [`Untrusted`].
pub fn patch(
    previous: &RawDocument,
    update_description: &RawDocument,
) -> Result<RawDocumentBuf, Untrusted> {
    Changed::read(update_description)?.apply(previous)
}

/// Why a delta can't be trusted to tell the document after an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Untrusted {
    /// The previous document or the delta is not valid BSON where it had to be read.
    #[error("the document or its delta is not valid BSON")]
    Malformed,
    /// The delta has a part that this version does not know.
    #[error("the delta has a part that is not understood")]
    Unknown,
    /// The delta touches `_id`, which no update can change.
    #[error("the delta touches _id")]
    Identity,
    /// A document that the delta changes has one field name twice.
    #[error("a changed document has a field name twice")]
    DuplicateName,
    /// A path of the delta could mean two places.
    #[error("a path of the delta could mean two places")]
    Ambiguous,
    /// A dotted path says that a field was written with the value that it had. Either a pipeline
    /// moved it to the end, or `$rename` or `$currentDate` wrote the same value in its place.
    #[error("a field was written with the value that it had, and may have moved")]
    Moved,
    /// The delta changes a field that the previous document does not have: it is not the one before.
    #[error("the delta changes a field that the previous document does not have")]
    Missing,
    /// A path leads into a value that is not of the kind which the delta says.
    #[error("a path of the delta leads into a value of another kind")]
    WrongKind,
    /// An array index or size that does not fit the previous array, or an array whose keys do not count from 0.
    #[error("an array index or size of the delta does not fit the previous array")]
    Index,
    /// Nested deeper than MongoDB stores.
    #[error("the delta is nested too deep")]
    TooDeep,
}

//! Whole documents from deltas: the document before an update and the change event's
//! `updateDescription` give the document after it (DESIGN, decision 3).

use bson::raw::{RawDocument, RawDocumentBuf};

/// The document after an update, built from the one before it, or the reason why the delta can't be
/// trusted to tell it: then the document is read from the source at the event's cluster time.
///
/// # Errors
/// [`Untrusted`], whenever more than one document could be meant.
pub fn patch(
    _previous: &RawDocument,
    _update_description: &RawDocument,
) -> Result<RawDocumentBuf, Untrusted> {
    Err(Untrusted::Unknown)
}

/// Why a delta can't be trusted to tell the document after an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Untrusted {
    /// Not built yet.
    #[error("the delta is not understood")]
    Unknown,
}

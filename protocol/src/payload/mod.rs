//! Documents as JSON and as canonical Extended JSON, straight from raw BSON.
//!
//! Field order is kept. Where a name comes twice in one document only the last field is written, in
//! its place: JSON readers keep one of them, and not all the same one.

pub(crate) mod decimal;
pub(crate) mod ejson;
mod exclude;
mod json;
pub(crate) mod text;
pub(crate) mod walk;

use bson::RawDocument;

pub use exclude::{Exclude, ExcludeError};
pub use text::{write_json_string, write_time_ms};

use crate::raw::Reason;

/// A document that can't be written: its bytes are damaged, or a text in it is not UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}, at {path:?}")]
pub struct EncodeError {
    path: String,
    reason: Reason,
}

impl EncodeError {
    /// Longer paths are cut: an error is read by people.
    const PATH_CHARS_MAX: usize = 200;

    fn new<'a>(reason: Reason, names: impl Iterator<Item = &'a Box<[u8]>>) -> Self {
        let names: Vec<_> = names.map(|name| String::from_utf8_lossy(name)).collect();
        let mut path = names.join(".");
        if let Some((cut, _)) = path.char_indices().nth(Self::PATH_CHARS_MAX) {
            path.truncate(cut);
            path.push('…');
        }
        Self { path, reason }
    }

    /// Where: dotted field names and array indexes; empty for the document itself. Of bytes that are
    /// not UTF-8 it has U+FFFD, and of more than 200 characters the first 200.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong there.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

/// Appends `document` as compact JSON (the contract's section 4), without the excluded fields.
///
/// # Errors
/// Where the document can't be decoded; nothing is appended then.
pub fn write_json(
    document: &RawDocument,
    exclude: &Exclude,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    walk::write::<json::Plain>(document.as_bytes(), exclude.root(), out)
}

/// Appends `document` as compact canonical Extended JSON v2, without the excluded fields.
///
/// # Errors
/// Where the document can't be decoded; nothing is appended then.
pub fn write_ejson(
    document: &RawDocument,
    exclude: &Exclude,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    walk::write::<ejson::Canonical>(document.as_bytes(), exclude.root(), out)
}

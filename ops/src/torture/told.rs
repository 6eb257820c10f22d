//! A change as somebody tells it: the source to our witness, or a server's log.

use std::hash::{DefaultHasher, Hash, Hasher};

use bson::raw::{RawBsonRef, RawDocument};
use bson::{Bson, Document};

use crate::verify::mongo_id;

/// A change of one document.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// The collection's place in [`super::stage::COLLECTIONS`].
    pub(super) collection: usize,
    /// The `_id`, as the independent comparison writes it.
    pub(super) key: Box<str>,
    pub(super) is_delete: bool,
    /// Of the document's content; 0 where it is not known, and of a delete.
    pub(super) content: u64,
}

impl Told {
    /// It is about the same document and of the same kind.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.collection == other.collection
            && self.key == other.key
            && self.is_delete == other.is_delete
    }

    pub(super) fn has_content_of(&self, other: &Self) -> bool {
        self.content == 0 || other.content == 0 || self.content == other.content
    }
}

/// The text of a document's `_id`.
pub(super) fn key(document: &RawDocument) -> Option<Box<str>> {
    let id = document.get("_id").ok()??;
    let id = Bson::try_from(id).ok()?;
    Some(mongo_id(&id).into())
}

/// A number for a document's content that does not depend on the order of its fields, never 0.
pub(super) fn content(document: &RawDocument) -> u64 {
    let Ok(document) = Document::try_from(document) else { return 0 };
    hash(&Bson::Document(document)).max(1)
}

fn hash(value: &Bson) -> u64 {
    let mut hasher = DefaultHasher::new();
    match value {
        Bson::Document(document) => {
            let fields = document.iter().map(|(name, value)| {
                let mut field = DefaultHasher::new();
                (name, hash(value)).hash(&mut field);
                field.finish()
            });
            let mut fields: Vec<u64> = fields.collect();
            fields.sort_unstable();
            ("document", fields).hash(&mut hasher);
        }
        Bson::Array(values) => {
            let values: Vec<u64> = values.iter().map(hash).collect();
            ("array", values).hash(&mut hasher);
        }
        other => other.to_string().hash(&mut hasher),
    }
    hasher.finish()
}

/// A whole number in a document, whatever its width.
pub(super) fn number(document: &RawDocument, field: &str) -> Option<i64> {
    match document.get(field).ok()?? {
        RawBsonRef::Int32(number) => Some(number.into()),
        RawBsonRef::Int64(number) => Some(number),
        _ => None,
    }
}

//! Keys whose byte order is MongoDB's order of `_id` values.

use bson::raw::RawBsonRef;

/// The key of an `_id`: bytes that order as MongoDB orders `_id` values over all types (simple
/// collation) and are equal exactly where MongoDB takes two `_id`s for one.
#[must_use]
pub fn sort_key(_id: RawBsonRef<'_>) -> Vec<u8> {
    unimplemented!()
}

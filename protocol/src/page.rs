//! What a pull answers: a page of changes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::Position;

/// What happened to a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The document now stands as in `payload`.
    Upsert,
    /// The document is gone, for this reader.
    Delete,
}

/// One change of one document, borrowed from the text of its page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change<'a> {
    /// Upsert or delete.
    #[serde(rename = "type")]
    pub kind: ChangeKind,
    /// The collection's name.
    #[serde(borrow)]
    pub collection: Cow<'a, str>,
    /// The document's `_id` in the encoding of [`crate::key`].
    #[serde(rename = "mongoId", borrow)]
    pub mongo_id: Cow<'a, str>,
    /// The whole document as it stood at `position`; there on an upsert only.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<&'a RawValue>,
    /// When the source wrote it: RFC 3339, UTC, milliseconds.
    #[serde(rename = "updatedAt", borrow)]
    pub updated_at: Cow<'a, str>,
    /// Where the change stands in the log.
    pub position: Position,
    /// On a delete: the document is not gone, it can't be carried, for this reason.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<Cow<'a, str>>,
}

/// One answer of `GET /api/sync/pull`, borrowed from its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullPage<'a> {
    /// Always true; an error has a body of its own.
    pub success: bool,
    /// The server's clock: RFC 3339, UTC, milliseconds.
    #[serde(borrow)]
    pub server_time: Cow<'a, str>,
    /// The `since` that this answers, as it was asked, empty where it was not. Older servers do not say.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Cow<'a, str>>,
    /// Changes in position order, 0 to 10,000.
    #[serde(borrow)]
    pub changes: Vec<Change<'a>>,
    /// The number of changes.
    pub count: u32,
    /// More can be read at once.
    pub has_more: bool,
    /// Opaque; the next `since`.
    #[serde(borrow)]
    pub cursor: Cow<'a, str>,
    /// The head of the log when the page was read.
    pub checkpoint: Position,
    /// A replica that has applied everything up to here equals the source at one point of its
    /// history, as far as the token may see.
    pub complete: bool,
    /// On a page of a first copy or a long catch-up that goes on: how much of what the server has to
    /// look through is behind it, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// How long the server's log has been behind its source, milliseconds, where that is longer than usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_lag_ms: Option<u64>,
}

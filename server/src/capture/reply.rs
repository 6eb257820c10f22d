//! Replies of cursor commands, raw and whole: their documents, and what the cursor says beside them.

use bson::RawDocumentBuf;
use bson::raw::{RawArray, RawBsonRef, RawDocument, cstr};
use mongodb::raw_batch_cursor::RawBatch;
use tokio::sync::OwnedSemaphorePermit;

use super::decode::cluster_time;

/// A reply's bytes, as the driver holds them or made by us (a script in a test, a reply that the driver
/// gave typed).
#[derive(Debug)]
pub(super) enum Reply {
    /// From the driver, not copied.
    Driver(RawBatch),
    /// Our own bytes.
    Owned(RawDocumentBuf),
}

impl Reply {
    fn root(&self) -> &RawDocument {
        match self {
            Self::Driver(batch) => batch.as_raw_document(),
            Self::Owned(document) => document,
        }
    }

    fn cursor(&self) -> Option<&RawDocument> {
        self.root().get_document("cursor").ok()
    }

    /// Length of the whole reply in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.root().as_bytes().len()
    }

    /// The documents of the batch. What is no document is left out: MongoDB sends none.
    pub(super) fn documents(&self) -> impl Iterator<Item = &RawDocument> {
        self.array().into_iter().flat_map(|array| {
            array.iter_elements().filter_map(|element| match element.ok()?.value().ok()? {
                RawBsonRef::Document(document) => Some(document),
                _ => None,
            })
        })
    }

    fn array(&self) -> Option<&RawArray> {
        let cursor = self.cursor()?;
        cursor.get_array("nextBatch").or_else(|_| cursor.get_array("firstBatch")).ok()
    }

    /// The same reply with these documents in place of its own.
    pub(super) fn with_documents(&self, documents: &RawArray) -> Self {
        let mut cursor = RawDocumentBuf::new();
        cursor.append(cstr!("id"), self.cursor_id());
        cursor.append(cstr!("nextBatch"), documents.to_owned());
        if let Some(token) = self.post_batch_token() {
            cursor.append(cstr!("postBatchResumeToken"), token);
        }
        let mut root = RawDocumentBuf::new();
        root.append(cstr!("cursor"), cursor);
        if let Ok(time) = self.root().get_timestamp("operationTime") {
            root.append(cstr!("operationTime"), time);
        }
        Self::Owned(root)
    }

    /// The cursor has no more.
    pub(super) fn is_last(&self) -> bool {
        self.cursor_id() == 0
    }

    /// The cursor's number at the source; 0 when it is closed.
    pub(super) fn cursor_id(&self) -> i64 {
        self.cursor().and_then(|cursor| cursor.get_i64("id").ok()).unwrap_or(0)
    }

    /// The token from which a stream would go on after this batch.
    pub(super) fn post_batch_token(&self) -> Option<&RawDocument> {
        self.cursor()?.get_document("postBatchResumeToken").ok()
    }

    /// The time at which a snapshot cursor reads.
    pub(super) fn snapshot_time(&self) -> Option<u64> {
        self.cursor()?.get_timestamp("atClusterTime").ok().map(cluster_time)
    }

    /// The source's own time when it answered; 0 where it does not say.
    pub(super) fn operation_time(&self) -> u64 {
        self.root().get_timestamp("operationTime").map(cluster_time).unwrap_or(0)
    }
}

/// A reply on its way to the tail, with its share of the memory that replies may take.
#[derive(Debug)]
pub(super) struct Batch {
    /// The reply.
    pub(super) reply: Reply,
    /// The source stopped because the batch was full, so the next one follows at once and may go on
    /// with the same commit.
    pub(super) full: bool,
    /// Given back when the batch is dropped.
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

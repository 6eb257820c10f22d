//! Exact reads: single documents as they stood at one cluster time.

use std::time::Duration;

use bson::raw::{RawBsonRef, RawDocument};
use bson::{Document, RawDocumentBuf, doc};
use futures::StreamExt;
use mongodb::Database;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::decode::timestamp;
use super::failure::is_snapshot_unavailable;
use super::reply::Reply;
use super::source::Ended;
use crate::retry::Failure;

/// Most documents asked for in one command.
pub(super) const IDS_MAX: usize = 1_000;

/// Reads documents at a time, blocking the calling thread (never one of the runtime's).
#[derive(Clone, Debug)]
pub(super) struct Reads {
    pub(super) database: Database,
    pub(super) runtime: Handle,
    /// How long an answer may take.
    pub(super) silence_max: Duration,
}

/// When to read.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    /// At this time exactly.
    At(u64),
    /// At some time after it: a capped collection is not read at one.
    After(u64),
}

/// What a read at a time found.
#[derive(Debug)]
pub(super) enum At<T> {
    /// This, at exactly that time.
    Found(T),
    /// The source no longer holds that time (five minutes by default), or, where something was not found,
    /// the collection: of one that has been dropped or renamed MongoDB 6 reads nothing at earlier times
    /// too, at which it was there.
    TooOld,
}

/// Documents as they stood at the time asked for, or, where none can be had at one time (a capped
/// collection), at some time up to `by`.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub(super) documents: Vec<RawDocumentBuf>,
    pub(super) by: u64,
}

/// How much of the documents is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fields {
    All,
    /// `_id` alone.
    Id,
}

impl Reads {
    /// The document `id` as it stood at `time`; `Found(None)`: there was none.
    pub(super) fn document(
        &self,
        collection: &str,
        id: &RawDocument,
        time: u64,
    ) -> Result<At<Option<RawDocumentBuf>>, Ended> {
        let ids = std::slice::from_ref(&id);
        Ok(match self.documents(collection, ids, When::At(time), Fields::All)? {
            At::Found(mut found) => At::Found(found.documents.pop()),
            At::TooOld => At::TooOld,
        })
    }

    /// The documents with these `_id`s, at most [`IDS_MAX`], each given as `{_id: …}`, as they stood
    /// then, in no order.
    pub(super) fn documents(
        &self,
        collection: &str,
        ids: &[&RawDocument],
        when: When,
        fields: Fields,
    ) -> Result<At<Documents>, Ended> {
        debug_assert!(ids.len() <= IDS_MAX);
        let wanted: Vec<bson::Bson> =
            ids.iter().filter_map(|id| id.get("_id").ok()??.try_into().ok()).collect();
        if wanted.is_empty() {
            return Ok(At::Found(Documents { documents: Vec::new(), by: 0 }));
        }
        let wanted_count = wanted.len();
        let command = doc! {
            "find": collection,
            "filter": { "_id": { "$in": wanted } },
            "projection": if fields == Fields::Id { doc! { "_id": 1 } } else { doc! {} },
            // What MongoDB takes for one `_id` is what we take for one, whatever the collection's own
            // collation says.
            "collation": { "locale": "simple" },
            "readConcern": match when {
                When::At(time) => doc! { "level": "snapshot", "atClusterTime": timestamp(time) },
                When::After(time) => doc! { "level": "majority", "afterClusterTime": timestamp(time) },
            },
        };
        let reading = async {
            let found = self.collect(command).await?;
            match found {
                At::Found(found)
                    if found.documents.len() < wanted_count && !self.exists(collection).await? =>
                {
                    Ok(At::TooOld)
                }
                found => Ok(found),
            }
        };
        self.runtime.block_on(async {
            timeout(self.silence_max, reading).await.unwrap_or_else(|_| {
                Err(Ended::new(Failure::Silent, "the source did not answer an exact read"))
            })
        })
    }

    /// There is a collection of that name now.
    async fn exists(&self, collection: &str) -> Result<bool, Ended> {
        let filter = doc! { "name": collection };
        Ok(!self.database.list_collection_names().filter(filter).await?.is_empty())
    }

    async fn collect(&self, command: Document) -> Result<At<Documents>, Ended> {
        let mut cursor = match self.database.run_cursor_command(command).batch().await {
            Ok(cursor) => cursor,
            Err(error) if is_snapshot_unavailable(&error) => return Ok(At::TooOld),
            Err(error) => return Err(error.into()),
        };
        let (mut documents, mut by) = (Vec::new(), 0);
        while let Some(reply) = cursor.next().await {
            match reply {
                Ok(reply) => {
                    let reply = Reply::Driver(reply);
                    by = reply.operation_time().max(by);
                    documents.extend(reply.documents().map(RawDocument::to_owned));
                }
                Err(error) if is_snapshot_unavailable(&error) => return Ok(At::TooOld),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(At::Found(Documents { documents, by }))
    }
}

/// `{_id: id}`: a tombstone's body, and how an `_id` is kept.
pub(super) fn id_document(id: RawBsonRef<'_>) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    document.append(bson::raw::cstr!("_id"), id);
    document
}

//! Change events into changes: whole documents, tombstones, and what happens to whole collections.

use std::sync::Arc;

use bson::RawDocumentBuf;
use bson::raw::RawDocument;
use tidewire_protocol::Position;

use super::decode::{Event, Operation};
use super::patch::Changed;
use super::quarantine::{DOCUMENT_BYTES_MAX, Defect, check, checked_id};
use super::reads::{At, id_document};
use super::source::Ended;
use super::tail::{Awaited, Tail};
use crate::log::{Body, Channels, Latest, LogError, NewChange, sort_key};

/// Most documents whose reading waits for their copy; beyond it they are read at once, which is slower.
pub(super) const AWAITED_MAX: usize = 100_000;

/// Where a change stands and whose it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Place of the collection in `Tail::tracked`.
    pub(super) collection: usize,
    pub(super) position: Position,
    pub(super) wall_time_ms: i64,
}

impl Tail {
    /// Takes one event in, inside the open commit.
    pub(super) fn apply(&mut self, event: &Event<'_>) -> Result<(), Ended> {
        if let Operation::DropDatabase = event.operation {
            for collection in 0..self.tracked.len() {
                self.empty(collection, event)?;
            }
            return Ok(());
        }
        let collection = self.by_name.get(event.collection).copied();
        if let Operation::Rename { database, to } = event.operation {
            let to = self.by_name.get(to).copied().filter(|_| database == self.database_name);
            return self.rename(collection, to, event);
        }
        let Some(collection) = collection else { return Ok(()) };
        if let Operation::Drop = event.operation {
            return self.empty(collection, event);
        }
        if !event.operation.is_row() {
            return Ok(());
        }
        let position = self.next_position();
        self.apply_row(Place { collection, position, wall_time_ms: event.wall_time_ms }, event)
    }

    fn apply_row(&mut self, at: Place, event: &Event<'_>) -> Result<(), Ended> {
        match event.operation {
            Operation::Insert { document } => self.take_document(at, document)?,
            Operation::Replace { document } => {
                // The stored document has `_id` first wherever it stood in the command.
                match id_first(document) {
                    Some(document) => self.take_document(at, &document)?,
                    None => self.take_document(at, document)?,
                }
            }
            Operation::Update { key, description } => match checked_id(key) {
                Ok(id) => self.update(at, (sort_key(id), id_document(id)), description)?,
                Err(defect) => self.set_aside(at, key, 0, defect)?,
            },
            Operation::Unsent { key } => match checked_id(key) {
                Ok(id) => self.take_unsent(at, sort_key(id), id_document(id))?,
                Err(defect) => self.set_aside(at, key, 0, defect)?,
            },
            Operation::Delete { key } => match checked_id(key) {
                Ok(id) => self.take_delete(at, sort_key(id), &id_document(id))?,
                Err(_) => self.forget_unknown(at.collection, key)?,
            },
            _ => {}
        }
        Ok(())
    }

    /// The document is this after the change.
    fn take_document(&mut self, at: Place, document: &RawDocument) -> Result<(), LogError> {
        let id = match checked_id(document) {
            Ok(id) => id,
            Err(defect) => {
                return self.set_aside(at, document, document.as_bytes().len(), defect);
            }
        };
        let key = sort_key(id);
        if self.is_exact_now(at.collection, &key) {
            return Ok(());
        }
        self.upsert(at, key, document)
    }

    /// Appends a checked document.
    fn upsert(&mut self, at: Place, key: Vec<u8>, document: &RawDocument) -> Result<(), LogError> {
        self.append_document(at, &key, document)?;
        self.no_longer_awaited(at.collection, key);
        Ok(())
    }

    fn no_longer_awaited(&mut self, collection: usize, key: Vec<u8>) {
        if !self.awaited.is_empty() {
            self.awaited.remove(&(collection, key));
        }
    }

    /// Appends a checked document, in its channels.
    pub(super) fn append_document(
        &mut self,
        at: Place,
        key: &[u8],
        document: &RawDocument,
    ) -> Result<(), LogError> {
        let Some(rules) = self.rules.get(&self.tracked[at.collection].name) else { return Ok(()) };
        let channels = rules.channels_of(document);
        self.append_upsert(at, key, document, Channels::Named(&channels))
    }

    fn append_upsert(
        &mut self,
        at: Place,
        key: &[u8],
        document: &RawDocument,
        channels: Channels<'_>,
    ) -> Result<(), LogError> {
        let tracked = &self.tracked[at.collection];
        let Some(rules) = self.rules.get(&tracked.name) else { return Ok(()) };
        self.dirty = true;
        self.writer.append(&NewChange {
            position: at.position,
            wall_time_ms: at.wall_time_ms,
            collection: tracked.id,
            key,
            body: Body::Upsert(document),
            channels,
            rules: rules.fingerprint(),
        })
    }

    /// Appends a tombstone.
    pub(super) fn append_delete(
        &mut self,
        at: Place,
        key: &[u8],
        id: &RawDocument,
    ) -> Result<(), LogError> {
        let tracked = &self.tracked[at.collection];
        self.dirty = true;
        self.writer.append(&NewChange {
            position: at.position,
            wall_time_ms: at.wall_time_ms,
            collection: tracked.id,
            key,
            body: Body::Delete(id),
            channels: Channels::Named(&[]),
            rules: tracked.copy.rules,
        })
    }

    fn take_delete(&mut self, at: Place, key: Vec<u8>, id: &RawDocument) -> Result<(), LogError> {
        if self.is_exact_now(at.collection, &key) {
            return Ok(());
        }
        // Also where the log has no such document: its copy may have been read before and be on its
        // way, and must find that it is too late.
        self.append_delete(at, &key, id)?;
        self.no_longer_awaited(at.collection, key);
        Ok(())
    }

    /// The document changed by `description`.
    fn update(
        &mut self,
        at: Place,
        (key, id): (Vec<u8>, RawDocumentBuf),
        description: &RawDocument,
    ) -> Result<(), Ended> {
        if self.is_exact_now(at.collection, &key) {
            return Ok(());
        }
        let ahead = self.tracked[at.collection].is_ahead(&key);
        if ahead && self.awaits_already(at, &key) {
            return Ok(());
        }
        let tracked = &self.tracked[at.collection];
        let latest = self.writer.latest(tracked.id, &key)?;
        let doubted = ahead || tracked.copy.owes_check;
        let trusted = latest
            .filter(|latest| !doubted || latest.position.cluster_time > tracked.untrusted_through);
        if let Some(Latest { document: Some(previous), rules, .. }) = trusted {
            let changed = Changed::read(description);
            match changed.and_then(|changed| Ok((changed.apply(&previous)?, changed))) {
                Ok((document, changed)) => {
                    let checked = check_patched(&document, description);
                    let stays = self.rules.get(&tracked.name).is_some_and(|now| {
                        now.fingerprint() == rules && !now.reads_any(|field| changed.touches(field))
                    });
                    if stays && checked.is_ok() {
                        self.append_upsert(at, &key, &document, Channels::AsBefore)?;
                        self.no_longer_awaited(at.collection, key);
                        return Ok(());
                    }
                    return Ok(self.take_checked(at, key, &document, checked)?);
                }
                Err(reason) => tracing::debug!(collection = %tracked.name, %reason, "exact read"),
            }
        }
        self.await_or_read(at, key, id, ahead)
    }

    /// The document is something else after the change, which the event does not tell.
    fn take_unsent(&mut self, at: Place, key: Vec<u8>, id: RawDocumentBuf) -> Result<(), Ended> {
        let ahead = self.tracked[at.collection].is_ahead(&key);
        if self.is_exact_now(at.collection, &key) || ahead && self.awaits_already(at, &key) {
            return Ok(());
        }
        self.await_or_read(at, key, id, ahead)
    }

    /// The copy will bring the document, which is to be read when it does.
    fn awaits_already(&mut self, at: Place, key: &[u8]) -> bool {
        if self.awaited.is_empty() {
            return false;
        }
        let Some(awaited) = self.awaited.get_mut(&(at.collection, key.to_vec())) else {
            return false;
        };
        awaited.cluster_time = at.position.cluster_time;
        true
    }

    /// A change that can't be built: its document is read with its copy, where that is `ahead`, else now.
    fn await_or_read(
        &mut self,
        at: Place,
        key: Vec<u8>,
        id: RawDocumentBuf,
        ahead: bool,
    ) -> Result<(), Ended> {
        if ahead && self.awaited.len() < AWAITED_MAX {
            let awaited = Awaited { id, cluster_time: at.position.cluster_time };
            self.awaited.insert((at.collection, key), awaited);
            return Ok(());
        }
        self.read_exactly(at, key, &id)
    }

    /// A document that we built or read, and what was found when it was checked.
    fn take_checked(
        &mut self,
        at: Place,
        key: Vec<u8>,
        document: &RawDocument,
        checked: Result<(), Defect>,
    ) -> Result<(), LogError> {
        match checked {
            Ok(()) => self.upsert(at, key, document),
            Err(defect) => self.set_aside(at, document, document.as_bytes().len(), defect),
        }
    }

    /// Reads the document as it stood at the change's time, after all changes of that time.
    fn read_exactly(&mut self, at: Place, key: Vec<u8>, id: &RawDocument) -> Result<(), Ended> {
        let name = Arc::clone(&self.tracked[at.collection].name);
        match self.reads.document(&name, id, at.position.cluster_time)? {
            At::Found(found) => {
                let exact = (at.collection, key.clone());
                match found {
                    Some(document) => {
                        let checked = check(document.as_bytes());
                        self.take_checked(at, key, &document, checked)?;
                    }
                    // Deleted later in the same commit.
                    None => self.append_delete(at, &key, id)?,
                }
                self.exact_now.insert(exact);
            }
            // The tail is more than five minutes behind, or the collection is gone by now.
            At::TooOld => self.leave_to_copy(at.collection, &key, at.position.cluster_time)?,
        }
        Ok(())
    }

    /// What could not be read at `cluster_time` comes with the copy of its collection.
    fn leave_to_copy(
        &mut self,
        collection: usize,
        key: &[u8],
        cluster_time: u64,
    ) -> Result<(), LogError> {
        if !self.tracked[collection].is_ahead(key) {
            return self.copy_again(collection, cluster_time);
        }
        // The copy has yet to come there: it goes on from where it is, read later than this.
        let tracked = &mut self.tracked[collection];
        (tracked.chunks_not_before, tracked.untrusted_through) = (cluster_time, cluster_time);
        if self.walked() == Some(collection) {
            self.order();
        }
        Ok(())
    }

    fn is_exact_now(&self, collection: usize, key: &[u8]) -> bool {
        !self.exact_now.is_empty() && self.exact_now.contains(&(collection, key.to_vec()))
    }
}

/// Checks a document that was built from one that had been checked: only the delta can spoil it.
fn check_patched(document: &RawDocument, description: &RawDocument) -> Result<(), Defect> {
    if document.as_bytes().len() > DOCUMENT_BYTES_MAX {
        return Err(Defect::TooLarge);
    }
    check(description.as_bytes())
}

/// The document with `_id` first; `None` where it is first already, or can't be found.
fn id_first(document: &RawDocument) -> Option<RawDocumentBuf> {
    let first = document.iter_elements().next()?.ok()?;
    if first.key().as_str() == "_id" {
        return None;
    }
    let mut moved = id_document(document.get("_id").ok()??);
    for element in document.iter_elements() {
        let element = element.ok()?;
        if element.key().as_str() != "_id" {
            moved.append(element.key(), element.value().ok()?);
        }
    }
    Some(moved)
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    #[test]
    fn a_replacement_is_stored_with_its_id_first() {
        let moved = id_first(&rawdoc! { "a": 1, "_id": 7, "b": { "_id": 8 } }).unwrap();
        assert_eq!(moved, rawdoc! { "_id": 7, "a": 1, "b": { "_id": 8 } });
        assert_eq!(id_first(&rawdoc! { "_id": 7, "a": 1 }), None);
        assert_eq!(id_first(&rawdoc! { "a": 1 }), None);
        assert_eq!(id_first(&rawdoc! {}), None);
    }
}

//! Sets documents aside: what the log had of them is taken back (rather nothing than something wrong),
//! and what is known of them is kept until they are well again.

use bson::raw::RawDocument;
use tidewire_protocol::Position;
use tidewire_protocol::key::mongo_id;

use super::apply::Place;
use super::quarantine::{Defect, Known};
use super::reads::id_document;
use super::tail::Tail;
use crate::log::{CollectionId, Latest, LogError, NewAside, QUARANTINE_MAX, Writer};

impl Tail {
    /// Sets a document aside, of `size` bytes (0: not known). `document` is the document or its key.
    pub(super) fn set_aside(
        &mut self,
        at: Place,
        document: &RawDocument,
        size: usize,
        defect: Defect,
    ) -> Result<(), LogError> {
        let known = Known::of(document);
        if let Known::Key { key, .. } = &known {
            self.awaited.remove(&(at.collection, key.clone()));
        }
        self.put_aside(at, &known, size, defect)
    }

    /// The source holds a document that can't be carried, and the stream knows nothing better. False:
    /// it is set aside already.
    pub(super) fn found_aside(
        &mut self,
        at: Place,
        known: &Known,
        size: usize,
        defect: Defect,
    ) -> Result<bool, LogError> {
        match known {
            Known::Key { key, .. } => {
                let tracked = &self.tracked[at.collection];
                let (id, rules) = (tracked.id, tracked.copy.rules);
                let latest = self.writer.latest(id, key)?;
                let is_listed = self.writer.quarantine_len() >= QUARANTINE_MAX
                    || self.writer.is_listed(id, key);
                if is_listed
                    && latest.is_some_and(|latest| is_the_same(&latest, rules, size, defect))
                {
                    return Ok(false);
                }
            }
            Known::Digest { digest, .. } => {
                let collection = self.tracked[at.collection].id;
                if self.writer.has_unknown(collection, digest) {
                    self.see_unknown(digest);
                    return Ok(false);
                }
            }
        }
        self.put_aside(at, known, size, defect)?;
        Ok(true)
    }

    fn put_aside(
        &mut self,
        at: Place,
        known: &Known,
        size: usize,
        defect: Defect,
    ) -> Result<(), LogError> {
        let tracked = &self.tracked[at.collection];
        let name = &tracked.name;
        let shown: String = known.shown().chars().take(KEY_SHOWN_MAX).collect();
        tracing::warn!(collection = %name, key = shown, position = %at.position, reason = %defect,
            "quarantined: not carried");
        self.status.send_modify(|status| status.quarantined += 1);
        let reason = defect.to_string();
        let aside = self.new_aside(at, tracked.id, &reason, size);
        self.dirty = true;
        match known {
            Known::Key { key, id, shown } => self.writer.set_aside(&aside, key, id, shown),
            Known::Digest { digest, shown } => {
                self.writer.set_aside_unknown(&aside, digest, shown)?;
                if self.walked() == Some(at.collection) {
                    self.see_unknown(digest);
                }
                Ok(())
            }
        }
    }

    /// It is there, says the walk under way or, meanwhile, the stream.
    fn see_unknown(&mut self, digest: &[u8]) {
        if let Some(seen) = self.unknown_seen.as_mut().filter(|seen| seen.len() < QUARANTINE_MAX) {
            seen.insert(digest.to_vec());
        }
    }

    /// A document that was set aside elsewhere, with what is known of it.
    pub(super) fn set_aside_again(
        &mut self,
        at: Place,
        key: &[u8],
        aside: &RawDocument,
    ) -> Result<(), LogError> {
        let collection = self.tracked[at.collection].id;
        let reason = aside.get_str("reason").unwrap_or_default();
        let size = usize::try_from(aside.get_i64("size").unwrap_or(0)).unwrap_or(0);
        let again = self.new_aside(at, collection, reason, size);
        self.dirty = true;
        set_aside_again(&mut self.writer, &again, key, aside)
    }

    fn new_aside<'a>(
        &self,
        at: Place,
        collection: CollectionId,
        reason: &'a str,
        size: usize,
    ) -> NewAside<'a> {
        NewAside {
            position: at.position,
            wall_time_ms: at.wall_time_ms,
            collection,
            reason,
            size: size as u64,
            rules: self.tracked[at.collection].copy.rules,
        }
    }

    /// An event that does not say what it must, about nobody knows which document of `collection`.
    pub(super) fn set_aside_event(
        &mut self,
        position: Position,
        collection: &str,
        event: &[u8],
        defect: Defect,
    ) -> Result<(), LogError> {
        let Some(&collection) = self.by_name.get(collection) else { return Ok(()) };
        let wall_time_ms = i64::from(position.unix_seconds()) * 1_000;
        let at = Place { collection, position, wall_time_ms };
        self.put_aside(at, &Known::digest_of(event), 0, defect)
    }

    /// A document whose key was never known is gone.
    pub(super) fn forget_unknown(
        &mut self,
        collection: usize,
        key: &RawDocument,
    ) -> Result<(), LogError> {
        if let Known::Digest { digest, .. } = Known::of(key) {
            self.writer.forget_unknown(self.tracked[collection].id, &digest)?;
            self.dirty = true;
        }
        Ok(())
    }
}

/// Puts a document that is set aside already into another place, where `aside` is what the log has of it.
pub(super) fn set_aside_again(
    writer: &mut Writer,
    again: &NewAside<'_>,
    key: &[u8],
    aside: &RawDocument,
) -> Result<(), LogError> {
    let Ok(Some(id)) = aside.get("_id") else { return Ok(()) };
    writer.set_aside(again, key, &id_document(id), &mongo_id(id))
}

/// Characters of a key that are logged.
const KEY_SHOWN_MAX: usize = 200;

fn is_the_same(latest: &Latest, rules: u64, size: usize, defect: Defect) -> bool {
    latest.rules == rules
        && latest.set_aside.as_ref().is_some_and(|aside| {
            aside.get_str("reason").is_ok_and(|reason| reason == defect.to_string())
                && aside.get_i64("size").is_ok_and(|known| usize::try_from(known) == Ok(size))
        })
}

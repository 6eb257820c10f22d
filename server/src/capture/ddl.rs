//! What happens to whole collections: dropped, renamed, put in another's place. Whatever the log can know
//! by itself is one commit, at the event's own time; what it can't is copied.

use std::collections::HashSet;

use super::apply::Place;
use super::decode::Event;
use super::reads::id_document;
use super::source::Ended;
use super::tail::Tail;
use crate::log::{CopyState, KeyEntry, Latest, LogError};

/// Keys looked up at a time when a whole collection goes.
const KEYS_MAX: usize = 4_096;

impl Tail {
    /// The collection is gone at the event's time: every document of it is deleted, in its commit. What
    /// is in it later comes as changes, so its copy is done.
    pub(super) fn empty(&mut self, collection: usize, event: &Event<'_>) -> Result<(), Ended> {
        self.each_live(collection, |tail, entry, latest| {
            tail.delete_in_commit(collection, event, entry, latest)
        })?;
        let unknown = self.writer.keep_unknown(self.tracked[collection].id, &HashSet::new())?;
        self.dirty |= unknown > 0;
        self.is_known_whole(collection, event.cluster_time)?;
        Ok(())
    }

    /// `from` is called `to` now; what was called so is gone. `None`: not one of ours.
    pub(super) fn rename(
        &mut self,
        from: Option<usize>,
        to: Option<usize>,
        event: &Event<'_>,
    ) -> Result<(), Ended> {
        match (from, to) {
            (Some(from), Some(to)) if self.tracked[from].copy.finished => {
                return self.move_documents(from, to, event);
            }
            (Some(from), _) => self.empty(from, event)?,
            (None, _) => {}
        }
        if let Some(to) = to {
            self.copy_again(to, event.cluster_time)?;
        }
        Ok(())
    }

    /// The log knows what is in `to` now: what was in `from`.
    fn move_documents(&mut self, from: usize, to: usize, event: &Event<'_>) -> Result<(), Ended> {
        let source = self.tracked[from].id;
        self.each_live(to, |tail, entry, latest| {
            let moved = tail.writer.latest(source, &entry.key)?;
            if moved.is_some_and(|moved| moved.held().is_some()) {
                return Ok(());
            }
            tail.delete_in_commit(to, event, entry, latest)
        })?;
        let target = self.tracked[to].id;
        self.each_live(from, |tail, entry, latest| {
            let there = tail.writer.latest(target, &entry.key)?.and_then(|there| there.document);
            if let Some(document) = latest.document.as_ref().filter(|d| there.as_ref() != Some(*d))
            {
                let at = tail.place_in_commit(to, event);
                tail.append_document(at, &entry.key, document)?;
            }
            if let Some(aside) = &latest.set_aside {
                let at = tail.place_in_commit(to, event);
                tail.set_aside_again(at, &entry.key, aside)?;
            }
            tail.delete_in_commit(from, event, entry, latest)
        })?;
        self.writer.keep_unknown(self.tracked[to].id, &HashSet::new())?;
        let unknown = self.writer.keep_unknown(self.tracked[from].id, &HashSet::new())?;
        self.dirty = true;
        // What was to be checked there is here now.
        let owed = self.walked() == Some(from) || self.owes_check(from);
        self.is_known_whole(from, event.cluster_time)?;
        self.is_known_whole(to, event.cluster_time)?;
        if unknown > 0 || owed {
            // Documents whose keys are not known are found where they are now.
            self.owe_check(to)?;
            self.walk_on();
        }
        Ok(())
    }

    /// Shows every document that the log has of a collection, quarantined ones too, with memory for a few thousand keys.
    fn each_live(
        &mut self,
        collection: usize,
        mut each: impl FnMut(&mut Self, &KeyEntry, &Latest) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let id = self.tracked[collection].id;
        let mut after: Option<Vec<u8>> = None;
        loop {
            let keys = self.writer.keys_between(id, after.as_deref(), None, KEYS_MAX)?;
            for entry in keys.iter().filter(|entry| entry.live) {
                if let Some(latest) = self.writer.latest(id, &entry.key)? {
                    each(self, entry, &latest)?;
                }
            }
            match keys.into_iter().last() {
                Some(last) => after = Some(last.key),
                None => return Ok(()),
            }
        }
    }

    fn delete_in_commit(
        &mut self,
        collection: usize,
        event: &Event<'_>,
        entry: &KeyEntry,
        latest: &Latest,
    ) -> Result<(), LogError> {
        let Some(Ok(Some(id))) = latest.held().map(|held| held.get("_id")) else { return Ok(()) };
        let at = self.place_in_commit(collection, event);
        self.append_delete(at, &entry.key, &id_document(id))
    }

    fn place_in_commit(&mut self, collection: usize, event: &Event<'_>) -> Place {
        let position = self.next_position();
        Place { collection, position, wall_time_ms: event.wall_time_ms }
    }

    /// The log has all of the collection as it is at `cluster_time`, the open commit's: a copy of it has
    /// nothing more to find, and nothing that was read before is to be looked at.
    fn is_known_whole(&mut self, collection: usize, cluster_time: u64) -> Result<(), LogError> {
        self.awaited.retain(|(of, _), _| *of != collection);
        let walked = self.walked() == Some(collection);
        let tracked = &mut self.tracked[collection];
        tracked.chunks_not_before = cluster_time;
        let unfinished = !tracked.copy.finished;
        if unfinished {
            tracked.copy.finished = true;
            let (id, copy) = (tracked.id, tracked.copy.clone());
            self.writer.set_copy_state(id, copy)?;
            self.dirty = true;
        }
        if walked {
            self.walk = None;
        }
        if walked || unfinished {
            self.walk_on();
        }
        Ok(())
    }

    /// The collection changed at `cluster_time` in a way that no change told: it is copied again, and
    /// nothing is built on what is older.
    pub(super) fn copy_again(
        &mut self,
        collection: usize,
        cluster_time: u64,
    ) -> Result<(), LogError> {
        let tracked = &mut self.tracked[collection];
        tracing::info!(collection = %tracked.name, cluster_time, "the collection is copied again");
        tracked.copy = CopyState { rules: tracked.copy.rules, ..CopyState::default() };
        tracked.untrusted_through = cluster_time;
        tracked.chunks_not_before = cluster_time;
        let (id, copy) = (tracked.id, tracked.copy.clone());
        self.writer.copy_again(id, copy, cluster_time)?;
        self.dirty = true;
        if self.walked() == Some(collection) {
            self.walk = None;
        }
        self.walk_on();
        Ok(())
    }
}

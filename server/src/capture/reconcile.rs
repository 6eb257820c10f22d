//! Reconcile, the tail's half: a chunk of the source, read at T, against the log's state in that range of
//! keys. What differs is appended; what the stream has told since T is left alone, for the stream knows
//! better. On an empty log that is the first copy.

use std::collections::HashSet;
use std::sync::Arc;

use bson::RawDocumentBuf;
use bson::raw::RawDocument;
use tidewire_protocol::Position;

use super::apply::Place;
use super::copier::Chunk;
use super::entries::{Entries, entry_of};
use super::quarantine::{Defect, Known, checked_id};
use super::reads::{At, Documents, Fields, IDS_MAX, When, id_document};
use super::source::Ended;
use super::tail::Tail;
use super::walk::Walk;
use crate::log::{KeyEntry, Latest, LogError, sort_key};

/// The source no longer holds a time that a comparison needs: the chunk is read again, later.
struct TooOld;

/// What a comparison found.
#[derive(Clone, Copy, Debug, Default)]
struct Compared {
    /// Documents of the source.
    documents: u64,
    /// Those that the log did not have so.
    upserted: u64,
    /// Documents that the log alone had.
    deleted: u64,
}

impl Tail {
    /// Takes a chunk in, as one commit of the log. The tail stands between commits, at or after the
    /// chunk's time.
    pub(super) fn take_chunk(&mut self, chunk: Chunk) -> Result<(), Ended> {
        let Some(collection) = self.walked().filter(|_| chunk.generation == self.generation) else {
            // Of an order that was replaced.
            return Ok(());
        };
        match self.compare(collection, &chunk)? {
            Ok(found) => {
                if let Some(Walk::Check(check)) = &mut self.walk {
                    check.report.upserted += found.upserted;
                    check.report.deleted += found.deleted;
                }
                // A check that finds nothing has nothing to store, its progress either.
                if self.dirty || matches!(self.walk, Some(Walk::Copy(_))) {
                    self.commit()?;
                }
                self.walked_through(&chunk)?;
                if chunk.last && matches!(self.walk, Some(Walk::Copy(at)) if at == collection) {
                    self.held = Some(chunk.taken(self.tracked[collection].mixed_until));
                }
            }
            Err(TooOld) => {
                self.writer.abort()?;
                self.dirty = false;
                self.order();
            }
        }
        Ok(())
    }

    fn compare(
        &mut self,
        collection: usize,
        chunk: &Chunk,
    ) -> Result<Result<Compared, TooOld>, Ended> {
        let done = self.done_through();
        let mut found = Compared::default();
        let read = self.met(collection, chunk, &mut found)?;
        let ascending = read.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && read.first().is_none_or(|(key, _)| Some(key) >= done.as_ref());
        if !ascending {
            let name = &self.tracked[collection].name;
            tracing::error!(collection = %name, "the source's order of _id is not the log's");
        }
        // A chunk starts with the last one's end.
        let is_fresh = |key: &Vec<u8>| !ascending || Some(key) > done.as_ref();
        let fresh: Vec<_> = read.iter().filter(|(key, _)| is_fresh(key)).collect();
        let end = read.last().and_then(|(key, met)| Some((key.clone(), met.id()?)));
        let through = end.as_ref().filter(|_| !chunk.last).map(|(key, _)| key.clone());

        let id = self.tracked[collection].id;
        found.documents = fresh.len() as u64;
        // Without an order there is no telling what vanished, nor without knowing where the chunk ends.
        let has_end = chunk.last || through.is_some();
        let by_order = ascending && has_end;
        let mut entries = match by_order {
            true => Entries::new(id, done.clone(), through.clone()),
            false => Entries::none(id),
        };
        let mut vanished = Vec::new();
        for (key, met) in &fresh {
            while let Some(entry) = entries.next_before(&mut self.writer, key)? {
                self.note_vanished(collection, chunk.time, entry, &mut vanished)?;
                match self.delete_vanished(collection, chunk, &mut vanished, IDS_MAX)? {
                    Ok(deleted) => found.deleted += deleted,
                    Err(too_old) => return Ok(Err(too_old)),
                }
            }
            let known = match by_order {
                true => entries.next_if(&mut self.writer, key)?,
                false => entry_of(&mut self.writer, id, key)?,
            };
            let differs = self.compare_one(collection, chunk.time, known, key, met)?;
            found.upserted += u64::from(differs);
        }
        loop {
            let entry = entries.next(&mut self.writer)?;
            let at_least = if entry.is_some() { IDS_MAX } else { 0 };
            let ended = entry.is_none();
            if let Some(entry) = entry {
                self.note_vanished(collection, chunk.time, entry, &mut vanished)?;
            }
            match self.delete_vanished(collection, chunk, &mut vanished, at_least)? {
                Ok(deleted) => found.deleted += deleted,
                Err(too_old) => return Ok(Err(too_old)),
            }
            if ended {
                break;
            }
        }
        if has_end && self.take_awaited(collection, done, through, chunk)?.is_err() {
            return Ok(Err(TooOld));
        }
        self.advance(chunk, end, found.documents)?;
        Ok(Ok(found))
    }

    /// What is done of the walk: the exclusive start of the rest.
    fn done_through(&self) -> Option<Vec<u8>> {
        match self.walk.as_ref()? {
            Walk::Copy(at) => self.tracked[*at].copy.done_through.clone(),
            Walk::Check(check) => check.done_through.clone(),
        }
    }

    /// The chunk's documents with their keys; those whose key can't be known are set aside.
    fn met<'a>(
        &mut self,
        collection: usize,
        chunk: &'a Chunk,
        found: &mut Compared,
    ) -> Result<Vec<(Vec<u8>, Met<'a>)>, LogError> {
        let mut all = Vec::new();
        for document in chunk.reply.documents() {
            match Met::of(document) {
                (Some(key), met) => all.push((key, met)),
                (None, Met::Odd { known, size, defect }) => {
                    let place = self.place(collection);
                    let is_new = self.found_aside(place, &known, size, defect)?;
                    found.upserted += u64::from(is_new);
                }
                (None, Met::Whole(_)) => {}
            }
        }
        Ok(all)
    }

    /// Appends the document where the log has not got it so. True: it had not.
    fn compare_one(
        &mut self,
        collection: usize,
        time: u64,
        known: Option<KeyEntry>,
        key: &[u8],
        met: &Met<'_>,
    ) -> Result<bool, LogError> {
        if known.as_ref().is_some_and(|entry| entry.position.cluster_time > time) {
            return Ok(false);
        }
        if !self.awaited.is_empty()
            && let Some(awaited) = self.awaited.get(&(collection, key.to_vec()))
            && awaited.cluster_time > time
        {
            return Ok(false);
        }
        match met {
            Met::Whole(document) => {
                if known.is_some() && self.is_known(collection, key, document)? {
                    return Ok(false);
                }
                let place = self.place(collection);
                self.append_document(place, key, document)?;
                Ok(true)
            }
            Met::Odd { known, size, defect } => {
                let place = self.place(collection);
                self.found_aside(place, known, *size, *defect)
            }
        }
    }

    /// The log has this very document; what it has is under today's rules.
    fn is_known(
        &mut self,
        collection: usize,
        key: &[u8],
        document: &RawDocument,
    ) -> Result<bool, LogError> {
        let tracked = &self.tracked[collection];
        let latest = self.writer.latest(tracked.id, key)?;
        let known = latest.and_then(|latest| latest.document);
        Ok(known.is_some_and(|known| known.as_bytes() == document.as_bytes()))
    }

    /// The log has a live document where the chunk has none.
    fn note_vanished(
        &mut self,
        collection: usize,
        time: u64,
        entry: KeyEntry,
        vanished: &mut Vec<(Vec<u8>, RawDocumentBuf)>,
    ) -> Result<(), LogError> {
        if !entry.live || entry.position.cluster_time > time {
            return Ok(());
        }
        let latest = self.writer.latest(self.tracked[collection].id, &entry.key)?;
        let held = latest.as_ref().and_then(Latest::held);
        if let Some(Ok(Some(id))) = held.map(|document| document.get("_id")) {
            vanished.push((entry.key, id_document(id)));
        }
        Ok(())
    }

    /// Deletes what is not in the source at `time`, after asking it once more by name: a chunk's bounds
    /// are only as good as our order of keys. Waits for `at_least` of them. Says how many went.
    fn delete_vanished(
        &mut self,
        collection: usize,
        chunk: &Chunk,
        vanished: &mut Vec<(Vec<u8>, RawDocumentBuf)>,
        at_least: usize,
    ) -> Result<Result<u64, TooOld>, Ended> {
        let mut deleted = 0;
        if vanished.len() < at_least {
            return Ok(Ok(deleted));
        }
        let name = Arc::clone(&self.tracked[collection].name);
        let when = match chunk.capped {
            true => When::After(chunk.time),
            false => When::At(chunk.time),
        };
        for some in vanished.chunks(IDS_MAX) {
            let ids: Vec<&RawDocument> = some.iter().map(|(_, id)| id.as_ref()).collect();
            let found = match chunk.gone {
                true => At::Found(Documents::default()),
                false => self.reads.documents(&name, &ids, when, Fields::Id)?,
            };
            let At::Found(found) = found else { return Ok(Err(TooOld)) };
            let there: HashSet<Vec<u8>> = found
                .documents
                .iter()
                .filter_map(|document| Some(sort_key(document.get("_id").ok()??)))
                .collect();
            for (key, id) in some {
                if there.contains(key) {
                    tracing::error!(collection = %name, "a chunk left out a document in its range");
                } else {
                    let place = self.place(collection);
                    self.append_delete(place, key, id)?;
                    deleted += 1;
                }
            }
        }
        vanished.clear();
        Ok(Ok(deleted))
    }

    /// Documents in the range that changed after the chunk was read, by changes that could not be
    /// applied: they are read as they stand now.
    fn take_awaited(
        &mut self,
        collection: usize,
        after: Option<Vec<u8>>,
        through: Option<Vec<u8>>,
        chunk: &Chunk,
    ) -> Result<Result<(), TooOld>, Ended> {
        let from = (collection, after.unwrap_or_default());
        let inside = |key: &[u8]| through.as_deref().is_none_or(|through| key <= through);
        let range = self.awaited.range(from..);
        let keys: Vec<_> = range
            .take_while(|((of, key), _)| *of == collection && inside(key))
            .map(|(at, _)| at.clone())
            .collect();
        let mut later = Vec::new();
        for at in keys {
            match self.awaited.remove(&at) {
                Some(awaited) if awaited.cluster_time > chunk.time => later.push((at.1, awaited)),
                _ => {}
            }
        }
        let now = self.stands.high_water;
        let when = if chunk.capped { When::After(now) } else { When::At(now) };
        let name = Arc::clone(&self.tracked[collection].name);
        for some in later.chunks(IDS_MAX) {
            let ids: Vec<&RawDocument> = some.iter().map(|(_, a)| a.id.as_ref()).collect();
            let At::Found(found) = self.reads.documents(&name, &ids, when, Fields::All)? else {
                for (key, awaited) in later {
                    self.awaited.insert((collection, key), awaited);
                }
                return Ok(Err(TooOld));
            };
            if chunk.capped {
                let tracked = &mut self.tracked[collection];
                tracked.mixed_until = tracked.mixed_until.max(found.by);
            }
            for document in &found.documents {
                let place = self.place(collection);
                match checked_id(document) {
                    Ok(id) => self.append_document(place, &sort_key(id), document)?,
                    Err(defect) => {
                        self.set_aside(place, document, document.as_bytes().len(), defect)?;
                    }
                }
            }
        }
        Ok(Ok(()))
    }

    /// The next place that reconcile may append at: after everything that the stream told up to now.
    fn place(&mut self, collection: usize) -> Place {
        let position = place_after(self.reconciled, self.stands.high_water);
        self.reconciled = position;
        // The source does not tell when it was written; this is when it was seen.
        Place { collection, position, wall_time_ms: i64::from(position.unix_seconds()) * 1_000 }
    }
}

/// The first position at `time` that is above all of the stream's and above `last`.
pub(super) fn place_after(last: Position, time: u64) -> Position {
    let first = Position::new(time, Position::RECONCILE_ORDINAL_FIRST);
    if last < first { first } else { Position::new(time, last.ordinal + 1) }
}

/// A document of the source, as it was read.
enum Met<'a> {
    Whole(&'a RawDocument),
    /// It can't be carried.
    Odd {
        known: Known,
        size: usize,
        defect: Defect,
    },
}

impl<'a> Met<'a> {
    /// The document with its key, where that can be known: always where it is whole.
    fn of(document: &'a RawDocument) -> (Option<Vec<u8>>, Self) {
        let defect = match checked_id(document) {
            Ok(id) => return (Some(sort_key(id)), Self::Whole(document)),
            Err(defect) => defect,
        };
        let known = Known::of(document);
        let key = match &known {
            Known::Key { key, .. } => Some(key.clone()),
            Known::Digest { .. } => None,
        };
        (key, Self::Odd { known, size: document.as_bytes().len(), defect })
    }

    /// `{_id: …}`.
    fn id(&self) -> Option<RawDocumentBuf> {
        match self {
            Self::Whole(document) => document.get("_id").ok().flatten().map(id_document),
            Self::Odd { known: Known::Key { id, .. }, .. } => Some(id.clone()),
            Self::Odd { .. } => None,
        }
    }
}

//! Reconcile, the tail's half: a chunk of the source, read at T, against the log's state in that range of
//! keys. What differs is appended; what the stream has told since T is left alone, for the stream knows
//! better. On an empty log that is the first copy.

use std::collections::HashSet;
use std::sync::Arc;

use bson::RawDocumentBuf;
use bson::raw::RawDocument;
use tidewire_protocol::Position;

use super::apply::{Place, checked_id, readable_id};
use super::copier::{Chunk, Order};
use super::quarantine::check;
use super::reads::{At, IDS_MAX, id_document};
use super::source::Ended;
use super::tail::Tail;
use crate::log::{CollectionId, KeyEntry, LogError, Writer, sort_key};
use crate::status::{CopyProgress, SourcePhase};

/// Keys of the log looked at together.
const KEYS_MAX: usize = 4_096;

/// The source no longer holds a time that a comparison needs: the chunk is read again, later.
struct TooOld;

impl Tail {
    /// Orders the next collection that is not copied, unless one is under way; with none left, the log
    /// follows the source.
    pub(super) fn order_next_copy(&mut self) {
        if self.copying.is_some_and(|at| !self.tracked[at].copy.finished) {
            return;
        }
        self.copying = self.tracked.iter().position(|tracked| !tracked.copy.finished);
        self.order_copy();
    }

    /// Orders the copy that is under way, from where it stands.
    fn order_copy(&mut self) {
        self.generation += 1;
        let order = self.copying.map(|at| {
            let tracked = &self.tracked[at];
            Order {
                generation: self.generation,
                collection: tracked.name.to_string(),
                after: tracked.copy.done_through_id.clone(),
                not_before: tracked.chunks_not_before,
            }
        });
        self.send_order(order);
        self.tell_copies();
    }

    fn tell_copies(&self) {
        let unfinished = self.tracked.iter().filter(|tracked| !tracked.copy.finished);
        let copies: std::collections::BTreeMap<_, _> = unfinished
            .map(|tracked| {
                let documents = tracked.copy.documents;
                let documents_total = tracked.documents_total.max(documents);
                (tracked.name.to_string(), CopyProgress { documents, documents_total })
            })
            .collect();
        self.status.send_modify(|status| {
            let following = copies.is_empty();
            status.phase = if following { SourcePhase::Following } else { SourcePhase::Copying };
            status.copies = copies;
        });
    }

    /// Takes a chunk in, as one commit of the log. The tail stands between commits, at or after the
    /// chunk's time.
    pub(super) fn take_chunk(&mut self, chunk: &Chunk) -> Result<(), Ended> {
        let Some(collection) = self.copying.filter(|_| chunk.generation == self.generation) else {
            // Of an order that was replaced.
            return Ok(());
        };
        match self.compare(collection, chunk)? {
            Ok(()) => {
                self.commit()?;
                if self.tracked[collection].copy.finished {
                    let name = &self.tracked[collection].name;
                    tracing::info!(collection = %name, "the copy is finished");
                    self.copying = None;
                    self.order_next_copy();
                } else {
                    self.tell_copies();
                }
            }
            Err(TooOld) => {
                self.writer.abort()?;
                self.dirty = false;
                self.order_copy();
            }
        }
        Ok(())
    }

    fn compare(&mut self, collection: usize, chunk: &Chunk) -> Result<Result<(), TooOld>, Ended> {
        let id = self.tracked[collection].id;
        let done = self.tracked[collection].copy.done_through.clone();
        let found = self.readable(collection, chunk)?;
        let ascending = found.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !ascending {
            let name = &self.tracked[collection].name;
            tracing::error!(collection = %name, "the source's order of _id is not the log's");
        }
        // A chunk starts with the last one's end.
        let fresh = found.iter().filter(|(key, _)| !ascending || Some(key) > done.as_ref());
        let fresh: Vec<_> = fresh.collect();
        let end = found.last().map(|(key, document)| (key.clone(), *document));
        let through = if chunk.last { None } else { end.as_ref().map(|(key, _)| key.clone()) };

        let mut entries = Entries::new(id, done.clone(), through.clone());
        let mut vanished = Vec::new();
        for (key, document) in &fresh {
            if ascending {
                while let Some(entry) = entries.next_before(&mut self.writer, key)? {
                    self.note_vanished(collection, chunk.time, entry, &mut vanished)?;
                }
            }
            let known = if ascending {
                entries.next_if(&mut self.writer, key)?
            } else {
                entry_of(&mut self.writer, id, key)?
            };
            self.compare_one(collection, chunk.time, known, key, document)?;
            if vanished.len() >= IDS_MAX
                && self.delete_vanished(collection, chunk.time, &mut vanished)?.is_err()
            {
                return Ok(Err(TooOld));
            }
        }
        while ascending && let Some(entry) = entries.next(&mut self.writer)? {
            self.note_vanished(collection, chunk.time, entry, &mut vanished)?;
            if vanished.len() >= IDS_MAX
                && self.delete_vanished(collection, chunk.time, &mut vanished)?.is_err()
            {
                return Ok(Err(TooOld));
            }
        }
        if self.delete_vanished(collection, chunk.time, &mut vanished)?.is_err()
            || self.take_awaited(collection, done, through, chunk.time)?.is_err()
        {
            return Ok(Err(TooOld));
        }
        let documents = fresh.len() as u64;
        Ok(Ok(self.advance(collection, chunk, end, documents)?))
    }

    /// The chunk's documents with their keys; what can't be carried is set aside.
    fn readable<'a>(
        &mut self,
        collection: usize,
        chunk: &'a Chunk,
    ) -> Result<Vec<(Vec<u8>, &'a RawDocument)>, LogError> {
        let mut found = Vec::new();
        for document in chunk.reply.documents() {
            match checked_id(document) {
                Ok(id) => found.push((sort_key(id), document)),
                Err(defect) => {
                    let place = self.place(collection);
                    self.set_aside(place, readable_id(document), defect)?;
                }
            }
        }
        Ok(found)
    }

    fn compare_one(
        &mut self,
        collection: usize,
        time: u64,
        known: Option<KeyEntry>,
        key: &[u8],
        document: &RawDocument,
    ) -> Result<(), LogError> {
        if known.as_ref().is_some_and(|entry| entry.position.cluster_time > time) {
            return Ok(());
        }
        if !self.awaited.is_empty()
            && let Some(awaited) = self.awaited.get(&(collection, key.to_vec()))
            && awaited.cluster_time > time
        {
            return Ok(());
        }
        if known.is_some() && self.is_known(collection, key, document)? {
            return Ok(());
        }
        let place = self.place(collection);
        self.append_document(place, key, document)
    }

    /// The log has this very document, under today's rules.
    fn is_known(
        &mut self,
        collection: usize,
        key: &[u8],
        document: &RawDocument,
    ) -> Result<bool, LogError> {
        let tracked = &self.tracked[collection];
        let latest = self.writer.latest(tracked.id, key)?;
        Ok(latest.is_some_and(|latest| {
            latest.rules == tracked.copy.rules
                && latest.document.is_some_and(|known| known.as_bytes() == document.as_bytes())
        }))
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
        let document = latest.and_then(|latest| latest.document);
        if let Some(Ok(Some(id))) = document.as_ref().map(|document| document.get("_id")) {
            vanished.push((entry.key, id_document(id)));
        }
        Ok(())
    }

    /// Deletes what is not in the source at `time`, after asking it once more by name: a chunk's bounds
    /// are only as good as our order of keys.
    fn delete_vanished(
        &mut self,
        collection: usize,
        time: u64,
        vanished: &mut Vec<(Vec<u8>, RawDocumentBuf)>,
    ) -> Result<Result<(), TooOld>, Ended> {
        let name = Arc::clone(&self.tracked[collection].name);
        for some in vanished.chunks(IDS_MAX) {
            let ids: Vec<&RawDocument> = some.iter().map(|(_, id)| id.as_ref()).collect();
            let At::Found(found) = self.reads.documents(&name, &ids, time)? else {
                return Ok(Err(TooOld));
            };
            let there: HashSet<Vec<u8>> = found
                .iter()
                .filter_map(|document| Some(sort_key(document.get("_id").ok()??)))
                .collect();
            for (key, id) in some {
                if there.contains(key) {
                    tracing::error!(collection = %name, "a chunk left out a document in its range");
                } else {
                    let place = self.place(collection);
                    self.append_delete(place, key, id)?;
                }
            }
        }
        vanished.clear();
        Ok(Ok(()))
    }

    /// Documents in the range that changed after the chunk was read, by changes that could not be
    /// applied: they are read as they stand now.
    fn take_awaited(
        &mut self,
        collection: usize,
        after: Option<Vec<u8>>,
        through: Option<Vec<u8>>,
        time: u64,
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
                Some(awaited) if awaited.cluster_time > time => later.push((at.1, awaited)),
                _ => {}
            }
        }
        let now = self.stands.high_water;
        let name = Arc::clone(&self.tracked[collection].name);
        for some in later.chunks(IDS_MAX) {
            let ids: Vec<&RawDocument> = some.iter().map(|(_, a)| a.id.as_ref()).collect();
            let At::Found(found) = self.reads.documents(&name, &ids, now)? else {
                for (key, awaited) in later {
                    self.awaited.insert((collection, key), awaited);
                }
                return Ok(Err(TooOld));
            };
            for document in &found {
                let place = self.place(collection);
                match check(document.as_bytes()).map(|()| document.get("_id")) {
                    Ok(Ok(Some(id))) => {
                        let key = sort_key(id);
                        self.append_document(place, &key, document)?;
                    }
                    Ok(_) => {}
                    Err(defect) => self.set_aside(place, readable_id(document), defect)?,
                }
            }
        }
        Ok(Ok(()))
    }

    fn advance(
        &mut self,
        collection: usize,
        chunk: &Chunk,
        end: Option<(Vec<u8>, &RawDocument)>,
        documents: u64,
    ) -> Result<(), LogError> {
        let tracked = &mut self.tracked[collection];
        tracked.documents_total = chunk.documents_total;
        tracked.copy.documents += documents;
        tracked.copy.finished = chunk.last;
        if let Some((key, document)) = end
            && let Ok(Some(id)) = document.get("_id")
        {
            tracked.copy.done_through = Some(key);
            tracked.copy.done_through_id = Some(id_document(id));
        }
        let (id, copy) = (tracked.id, tracked.copy.clone());
        self.writer.set_copy_state(id, copy)
    }

    /// The next place that reconcile may append at: after everything that the stream told up to now.
    fn place(&mut self, collection: usize) -> Place {
        let now = self.stands.high_water;
        let first = Position::new(now, Position::RECONCILE_ORDINAL_FIRST);
        let last = self.reconciled;
        let position = if last < first { first } else { Position::new(now, last.ordinal + 1) };
        self.reconciled = position;
        // The source does not tell when it was written; this is when it was seen.
        Place { collection, position, wall_time_ms: i64::from(position.unix_seconds()) * 1_000 }
    }
}

/// The log's keys in a range, ascending, a page at a time.
struct Entries {
    collection: CollectionId,
    after: Option<Vec<u8>>,
    through: Option<Vec<u8>>,
    page: std::iter::Peekable<std::vec::IntoIter<KeyEntry>>,
    ended: bool,
}

impl Entries {
    fn new(collection: CollectionId, after: Option<Vec<u8>>, through: Option<Vec<u8>>) -> Self {
        let page = Vec::new().into_iter().peekable();
        Self { collection, after, through, page, ended: false }
    }

    fn peek(&mut self, writer: &mut Writer) -> Result<Option<&KeyEntry>, LogError> {
        if self.page.peek().is_none() && !self.ended {
            let (after, through) = (self.after.as_deref(), self.through.as_deref());
            let page = writer.keys_between(self.collection, after, through, KEYS_MAX)?;
            self.ended = page.len() < KEYS_MAX;
            if let Some(last) = page.last() {
                self.after = Some(last.key.clone());
            }
            self.page = page.into_iter().peekable();
        }
        Ok(self.page.peek())
    }

    fn next(&mut self, writer: &mut Writer) -> Result<Option<KeyEntry>, LogError> {
        self.peek(writer)?;
        Ok(self.page.next())
    }

    /// The next entry, where it is before `key`.
    fn next_before(
        &mut self,
        writer: &mut Writer,
        key: &[u8],
    ) -> Result<Option<KeyEntry>, LogError> {
        let before = self.peek(writer)?.is_some_and(|entry| entry.key.as_slice() < key);
        Ok(if before { self.page.next() } else { None })
    }

    /// The next entry, where it is `key`'s.
    fn next_if(&mut self, writer: &mut Writer, key: &[u8]) -> Result<Option<KeyEntry>, LogError> {
        let same = self.peek(writer)?.is_some_and(|entry| entry.key == key);
        Ok(if same { self.page.next() } else { None })
    }
}

/// A key's entry by itself, where the order can't be relied on.
fn entry_of(
    writer: &mut Writer,
    collection: CollectionId,
    key: &[u8],
) -> Result<Option<KeyEntry>, LogError> {
    Ok(writer.latest(collection, key)?.map(|latest| KeyEntry {
        key: key.to_vec(),
        position: latest.position,
        live: latest.document.is_some(),
    }))
}

//! What a damaged log has lost: which changes are not whole, and of which documents they were.
//!
//! A change that is not whole is known by what is beside it: the index leads from a document to its
//! last change, a later change names the one before it, and the postings tell the channels. Of a change
//! that nothing leads to, nobody knows who was told it.

use std::collections::{BTreeMap, BTreeSet};

use bson::RawDocumentBuf;
use bson::raw::{RawBsonRef, RawDocument};
use rusqlite::Connection;

use super::check::each_run;
use super::postings::take_varint;
use super::record::{StoredRow, select_rows};
use super::state::LogState;
use super::{CollectionId, LogError, key, sort_key};

/// Lost changes whose documents are kept in mind.
const KNOWN_MAX: usize = 200_000;
/// Where a part of the file can't be read, the next one is looked for in steps that double up to this.
const STEP_MAX: u64 = 1 << 40;

/// What is lost.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Changes that were there and are not whole, or should have been there.
    pub(super) count: u64,
    /// Lost changes of which it is known whose they were, by number.
    pub(super) known: BTreeMap<u64, LostChange>,
    /// The first of those of which it is not. 0: it may be any.
    pub(super) unknown: Option<u64>,
    whole: Bits,
    /// There are more than are known.
    overflowed: bool,
}

/// A change that is not whole.
#[derive(Debug)]
pub(super) struct LostChange {
    pub(super) collection: CollectionId,
    pub(super) key: Vec<u8>,
    /// `{_id: …}`, where it could be had.
    id: Option<RawDocumentBuf>,
    /// It was the document's last.
    was_last: bool,
    /// Those that the document was in by it.
    pub(super) channels: BTreeSet<u32>,
}

impl LostChange {
    /// Whoever was told it can be told that it is gone, or nobody was.
    fn can_be_told(&self) -> bool {
        self.id.is_some() || (!self.was_last && self.channels.is_empty())
    }

    /// `{_id: …}`.
    pub(super) fn id(&self) -> Option<&RawDocument> {
        self.id.as_deref()
    }
}

impl Lost {
    /// Looks through a damaged log. `progress` hears how many changes of how many.
    ///
    /// # Errors
    /// What is not damage.
    pub(super) fn of(
        old: &Connection,
        state: &LogState,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LogError> {
        let mut lost = Self { whole: Bits::new(state.head.seq), ..Self::default() };
        let mut is_there = old.prepare("SELECT 1 FROM changes WHERE seq = ?1")?;
        each_whole(old, state.head.seq, &mut |row| {
            progress(row.seq, state.head.seq);
            lost.whole.set(row.seq);
            // Rows ascend, so what it names would have been met.
            let mut is_dropped = |seq: u64| {
                seq <= state.trim.seq && !is_there.exists([seq.cast_signed()]).unwrap_or(true)
            };
            if row.previous > 0 && !lost.whole.has(row.previous) && !is_dropped(row.previous) {
                let id = row.document()?.get("_id").ok().flatten().map(id_document);
                lost.know(row.previous, row.collection, row.key()?, id, false);
            }
            Ok(())
        })?;
        let indexed = lost.ask_index(old, state)?;
        let posted = lost.ask_postings(old)?;
        lost.forget_dropped(old, state)?;
        lost.find_unknown(old, state, indexed, posted)?;
        Ok(lost)
    }

    /// The last change before `seq` that is whole.
    pub(super) fn whole_before(&self, seq: u64) -> Option<u64> {
        (1..seq).rev().find(|&seq| self.whole.has(seq))
    }

    fn know(
        &mut self,
        seq: u64,
        collection: CollectionId,
        key: Vec<u8>,
        id: Option<RawDocumentBuf>,
        was_last: bool,
    ) {
        if self.known.len() >= KNOWN_MAX && !self.known.contains_key(&seq) {
            self.overflowed = true;
        } else {
            let id = id.or_else(|| key::id_of(&key));
            let channels = BTreeSet::new();
            let change = LostChange { collection, key, id, was_last, channels };
            self.known.entry(seq).or_insert(change);
        }
    }

    /// What the index leads to. False where it is damaged itself.
    fn ask_index(&mut self, old: &Connection, state: &LogState) -> Result<bool, LogError> {
        let mut row_of = old.prepare(select_rows!("WHERE seq = ?1"))?;
        let mut select = old.prepare("SELECT collection, key, seq FROM latest")?;
        let mut walk = || -> Result<bool, LogError> {
            let mut entries = select.query([])?;
            while let Some(entry) = entries.next()? {
                let (collection, key) = (CollectionId(entry.get(0)?), entry.get::<_, Vec<u8>>(1)?);
                let seq = entry.get::<_, i64>(2)?.cast_unsigned();
                if seq == 0 || seq > state.indexed_seq {
                    return Ok(false);
                }
                let mut rows = row_of.query([seq.cast_signed()])?;
                if !self.whole.has(seq) {
                    let id = rows.next().ok().flatten().and_then(|row| id_in(row, &key));
                    self.know(seq, collection, key, id, true);
                } else if let Some(row) = rows.next()? {
                    let row = StoredRow::read(row)?;
                    if row.collection != collection || row.key()? != key {
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        };
        unless_damaged(walk())
    }

    /// The channels of lost changes. False where postings are damaged too.
    fn ask_postings(&mut self, old: &Connection) -> Result<bool, LogError> {
        unless_damaged(
            each_run(old, &mut |channel, mut seq, mut entries| {
                while let Some(value) = take_varint(&mut entries) {
                    seq += value >> 1;
                    // Those that it left were told, too.
                    if let Some(change) = self.known.get_mut(&seq) {
                        change.channels.insert(channel);
                    }
                }
                Ok(())
            })
            .map(|()| true),
        )
    }

    /// What compaction dropped is named by later changes, and is not lost: it is in no channel, and the
    /// index does not lead to it.
    fn forget_dropped(&mut self, old: &Connection, state: &LogState) -> Result<(), LogError> {
        let mut is_there = old.prepare("SELECT 1 FROM changes WHERE seq = ?1")?;
        let mut dropped = Vec::new();
        for (&seq, change) in self.known.range(..=state.trim.seq) {
            let unseen = !change.was_last && change.channels.is_empty();
            if unseen && !is_there.exists([seq.cast_signed()]).unwrap_or(true) {
                dropped.push(seq);
            }
        }
        for seq in dropped {
            self.known.remove(&seq);
        }
        Ok(())
    }

    fn find_unknown(
        &mut self,
        old: &Connection,
        state: &LogState,
        indexed: bool,
        posted: bool,
    ) -> Result<(), LogError> {
        let (trim, head) = (state.trim.seq, state.head.seq);
        let beside = damaged_through(old, trim, &self.whole)?;
        let old_known = self.known.range(..=trim).filter(|(seq, _)| !beside.contains(seq)).count();
        self.count = beside.len() as u64 + old_known as u64;
        self.count += (trim + 1..=head).filter(|&seq| !self.whole.has(seq)).count() as u64;
        // What was lost before the trim point without a trace is missed by the index alone, or by the
        // structure of the file.
        let is_known = |seq: u64| {
            let posted = posted && seq <= state.indexed_seq;
            self.known.get(&seq).is_some_and(|change| posted && change.can_be_told())
        };
        let traced = indexed || is_sound(old)?;
        let old_ones = beside.iter().copied().chain(self.known.range(..=trim).map(|(seq, _)| *seq));
        self.unknown =
            if !traced || self.overflowed || old_ones.into_iter().any(|seq| !is_known(seq)) {
                Some(0)
            } else {
                (trim + 1..=head).find(|&seq| !self.whole.has(seq) && !is_known(seq))
            };
        Ok(())
    }
}

/// Gives every change that is whole to `each`, in order, as far as the file can be read.
pub(super) fn each_whole(
    old: &Connection,
    head: u64,
    each: &mut dyn FnMut(&StoredRow<'_>) -> Result<(), LogError>,
) -> Result<(), LogError> {
    let (mut after, mut step) = (0, 1);
    while after < head {
        let before = after;
        match stretch(old, head, &mut after, each) {
            Ok(()) => break,
            Err(error) if error.is_damage() => {
                if after > before {
                    step = 1;
                }
                after += step;
                step = (step * 2).min(STEP_MAX);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The rows after `after`, as far as they can be read; `after` moves along.
fn stretch(
    old: &Connection,
    head: u64,
    after: &mut u64,
    each: &mut dyn FnMut(&StoredRow<'_>) -> Result<(), LogError>,
) -> Result<(), LogError> {
    let mut select = old.prepare_cached(select_rows!("WHERE seq > ?1 ORDER BY seq"))?;
    let mut rows = select.query([after.cast_signed()])?;
    while let Some(row) = rows.next()? {
        let seq = row.get::<_, i64>(0)?.cast_unsigned();
        if seq <= *after || seq > head {
            return Err(LogError::Damaged("the rows do not ascend".to_owned()));
        }
        *after = seq;
        match StoredRow::read(row) {
            Ok(row) if row.key().is_ok() => each(&row)?,
            Err(error) if !error.is_damage() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Changes through `trim` that are there and not whole, as far as the file can be read.
fn damaged_through(old: &Connection, trim: u64, whole: &Bits) -> Result<BTreeSet<u64>, LogError> {
    let mut select = old.prepare("SELECT seq FROM changes WHERE seq <= ?1")?;
    let mut found = BTreeSet::new();
    let walked = (|| -> Result<bool, LogError> {
        let mut rows = select.query([trim.cast_signed()])?;
        while let Some(row) = rows.next()? {
            let seq = row.get::<_, i64>(0)?.cast_unsigned();
            if !whole.has(seq) {
                found.insert(seq);
            }
        }
        Ok(true)
    })();
    unless_damaged(walked)?;
    Ok(found)
}

/// The table of changes has its structure: no row is missing from it.
fn is_sound(old: &Connection) -> Result<bool, LogError> {
    let said =
        old.query_row("PRAGMA integrity_check('changes')", [], |row| row.get::<_, String>(0));
    unless_damaged(said.map(|said| said == "ok").map_err(LogError::from))
}

fn unless_damaged(done: Result<bool, LogError>) -> Result<bool, LogError> {
    match done {
        Err(error) if error.is_damage() => Ok(false),
        done => done,
    }
}

/// `{_id: …}` of a row that is not whole, where it has this key all the same.
fn id_in(row: &rusqlite::Row<'_>, key: &[u8]) -> Option<RawDocumentBuf> {
    let document = RawDocument::from_bytes(row.get_ref(10).ok()?.as_blob().ok()?).ok()?;
    let id = document.get("_id").ok()??;
    (sort_key(id) == key).then(|| id_document(id))
}

fn id_document(id: RawBsonRef<'_>) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    document.append(bson::cstr!("_id"), id);
    document
}

/// A bit for each number of a change.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(last: u64) -> Self {
        // A head is believed with its checksum alone, and has so many rows.
        Self(vec![0; usize::try_from(last / 64 + 1).unwrap_or(0)])
    }

    fn set(&mut self, number: u64) {
        if let Some(word) = self.0.get_mut(usize::try_from(number / 64).unwrap_or(usize::MAX)) {
            *word |= 1 << (number % 64);
        }
    }

    fn has(&self, number: u64) -> bool {
        let word = self.0.get(usize::try_from(number / 64).unwrap_or(usize::MAX));
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}

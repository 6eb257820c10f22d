//! Every change of a damaged log that is whole goes to a new log, which goes on where the old one ended:
//! the same positions, the same resume token.
//!
//! - A lost change of a known document: the document is deleted at the end, for those who were told it,
//!   and the comparison with the source brings it back where it is still there.
//! - A lost change of which nobody knows whose it was: the log ends before its commit, as after a power
//!   cut, and the source tells the rest again, at the same positions. Where it lies too far back for
//!   that, cursors from behind it are refused: nobody can tell what their senders hold and must lose.
//!
//! No moment of the new log counts as complete before every collection has been compared with the source.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tidewire_protocol::Position;

use super::copies::StoredCollection;
use super::cursor::name_hash;
use super::followed::{Followed, StoredFollowed};
use super::lost::{Lost, LostChange, each_whole};
use super::quarantine::StoredAside;
use super::record::{
    KIND_DELETE, KIND_UPSERT, StoredRow, channel_ids, document_from_store, select_rows,
};
use super::state::{LogState, Trim};
use super::stretches::{Measure, Stretch};
use super::write::NewRow;
use super::{CollectionId, CopyState, LogError, LogOptions, TailState, Writer};

/// Rows in one transaction of the new log.
const ROWS_PER_COMMIT: u64 = 5_000;

/// What came of it.
#[derive(Debug)]
pub(super) struct Salvaged {
    pub(super) kept: u64,
    pub(super) lost: u64,
    pub(super) cut: Option<Position>,
    pub(super) cursors_go_on: bool,
}

/// Makes a log in `new_dir` of what is whole of the one at `old`. `progress` hears how many changes of
/// how many, twice.
///
/// # Errors
/// [`LogError::Damaged`] where it can't even be told what the log follows and how far it reaches.
pub(super) fn salvage(
    old: &Path,
    new_dir: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Salvaged, LogError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let old = Connection::open_with_flags(old, flags)?;
    let state = LogState::read(&old)?;
    let mut lost = Lost::of(&old, &state, progress)?;
    let names = Names::of(&old)?;
    if !names.are_whole {
        lost.unknown = Some(0);
    }
    let followed = StoredFollowed::all(&old).ok();
    let cut = cut_before(&old, &state, &lost, followed.as_deref())?;
    let options = LogOptions { source: state.source.clone(), retention: Duration::MAX };
    let (writer, _reader) = Writer::open(new_dir, &options)?;
    let left = followed.iter().flatten().flat_map(|known| &known.left);
    let places = left.map(|left| (left.through, 0)).collect();
    let mut new = New { names, writer, ids: BTreeMap::new(), kept: 0, places };
    new.begin(followed.as_deref())?;
    new.take_rows(&old, &state, cut, progress)?;
    let through = cut.map_or(state.head.seq, |cut| cut.seq);
    let high_water = cut.map_or(state.high_water, |cut| cut.position.cluster_time);
    new.delete_lost(lost.known.range(..=through).map(|(_, change)| change), high_water)?;
    let rules_are_known = followed.is_some();
    new.follow(followed)?;
    new.list_aside(&old)?;
    // What lies behind the cut is told again, except by copies; what is unknown and not cut off, never.
    let from = if cut.is_none() && lost.unknown.is_some() { 0 } else { state.high_water };
    let cursors_go_on = new.open_gaps(&old, from, high_water)? && from > 0 && rules_are_known;
    new.finish(&state, cut, high_water)?;
    let cut = cut.map(|cut| cut.position);
    Ok(Salvaged { kept: new.kept, lost: lost.count, cut, cursors_go_on })
}

/// Where the new log ends before the old one.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// The last change that is kept.
    seq: u64,
    position: Position,
}

/// The last commit before the first change that is lost, where one of them is known to nobody and the log
/// can end there: nothing was compacted since, and no collection put under other rules.
fn cut_before(
    old: &Connection,
    state: &LogState,
    lost: &Lost,
    followed: Option<&[StoredFollowed]>,
) -> Result<Option<Cut>, LogError> {
    let (Some(unknown), Some(followed)) = (lost.unknown, followed) else { return Ok(None) };
    // Those that are known are told by the source again, too; older ones can't be.
    if lost.known.range(..=state.trim.seq).any(|(_, change)| !change.channels.is_empty()) {
        return Ok(None);
    }
    let known = lost.known.range(state.trim.seq + 1..).next().map(|(&seq, _)| seq);
    let first = known.map_or(unknown, |known| known.min(unknown));
    let mut row_of = old.prepare(select_rows!("WHERE seq = ?1"))?;
    let mut position_of = |seq: u64| -> Result<Option<Position>, LogError> {
        let mut rows = row_of.query([seq.cast_signed()])?;
        let row = rows.next()?.map(StoredRow::read).transpose()?;
        Ok(row.map(|row| row.position))
    };
    // The lost change may be of the same commit as the one before it, which goes too then.
    let (mut seq, mut after) = (first, None);
    while let Some(before) = lost.whole_before(seq) {
        let Some(position) = position_of(before)? else { break };
        if after.is_some_and(|time| position.cluster_time < time) {
            let ruled = followed.iter().any(|known| known.ruled_seq > before);
            let known = position > state.trim.position
                && position.cluster_time > state.origin
                && before > state.trim.seq;
            return Ok((known && !ruled).then_some(Cut { seq: before, position }));
        }
        after = Some(position.cluster_time);
        seq = before;
    }
    Ok(None)
}

/// Names of the old log, by their numbers there.
struct Names {
    collections: Vec<StoredCollection>,
    channels: BTreeMap<u32, (CollectionId, String)>,
    are_whole: bool,
}

impl Names {
    fn of(old: &Connection) -> Result<Self, LogError> {
        let mut names =
            Self { collections: Vec::new(), channels: BTreeMap::new(), are_whole: true };
        let read = names.read(old);
        match read {
            Err(error) if error.is_damage() => names.are_whole = false,
            read => read?,
        }
        Ok(names)
    }

    fn read(&mut self, old: &Connection) -> Result<(), LogError> {
        for stored in StoredCollection::each(old)? {
            match stored {
                Err(error) if error.is_damage() => self.are_whole = false,
                stored => self.collections.push(stored?),
            }
        }
        let mut select = old.prepare("SELECT id, collection, hash, name FROM channels")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (collection, name) = (CollectionId(row.get(1)?), row.get::<_, String>(3)?);
            if name_hash(&name).cast_signed() == row.get::<_, i64>(2)? {
                self.channels.insert(row.get(0)?, (collection, name));
            } else {
                self.are_whole = false;
            }
        }
        Ok(())
    }
}

/// The log that is made.
struct New {
    names: Names,
    writer: Writer,
    /// Numbers here of numbers there.
    ids: BTreeMap<CollectionId, CollectionId>,
    kept: u64,
    /// Where rules ended: the number of the last change there, and of the last one here that is not after it.
    places: BTreeMap<u64, u64>,
}

impl New {
    /// Every collection is to be compared with the source; until then nothing is complete.
    fn begin(&mut self, followed: Option<&[StoredFollowed]>) -> Result<(), LogError> {
        for known in &self.names.collections {
            let id = self.writer.collection(&known.name)?;
            self.ids.insert(known.id, id);
            let is_active =
                |f: &StoredFollowed| f.followed.collection != known.id || f.followed.active;
            if followed.is_none_or(|followed| followed.iter().all(is_active)) {
                let copy = CopyState { rules: known.rules(), ..CopyState::default() };
                self.writer.set_copy_state(id, copy)?;
            }
        }
        self.writer.commit()?;
        Ok(())
    }

    fn take_rows(
        &mut self,
        old: &Connection,
        state: &LogState,
        cut: Option<Cut>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), LogError> {
        let through = cut.map_or(state.head.seq, |cut| cut.seq);
        each_whole(old, through, &mut |row| {
            progress(row.seq, through);
            self.take_row(row, state)
        })
    }

    fn take_row(&mut self, row: &StoredRow<'_>, state: &LogState) -> Result<(), LogError> {
        if row.position <= self.writer.last_position() || row.position > state.last {
            return Ok(());
        }
        // Names that are lost are known to be.
        let Some(&collection) = self.ids.get(&row.collection) else { return Ok(()) };
        let Some(channels) = self.numbers(row.collection, channel_ids(row.channels)?)? else {
            return Ok(());
        };
        self.put(&NewRow {
            position: row.position,
            wall_time_ms: row.wall_time_ms,
            collection,
            key: &row.key()?,
            kind: row.kind,
            document: row.document,
            channels: &channels,
            rules: row.rules,
        })?;
        self.kept += 1;
        for (_, place) in self.places.range_mut(row.seq..) {
            *place = self.writer.last_seq;
        }
        if row.position <= state.trim.position {
            let seq = self.writer.last_seq;
            self.writer.trim = Trim { seq, position: state.trim.position };
        }
        if self.kept.is_multiple_of(ROWS_PER_COMMIT) {
            self.writer.commit()?;
        }
        Ok(())
    }

    fn put(&mut self, row: &NewRow<'_>) -> Result<(), LogError> {
        self.writer.check(row.position, row.document.len())?;
        self.writer.begin()?;
        let previous = self.writer.previous(row.collection, row.key)?;
        self.writer.put(row, previous)
    }

    /// The numbers here of channels there, as rows hold them; `None` where a name is lost.
    fn numbers(
        &mut self,
        collection: CollectionId,
        old: impl IntoIterator<Item = u32>,
    ) -> Result<Option<Vec<u8>>, LogError> {
        let mut names = Vec::new();
        for id in old {
            match self.names.channels.get(&id) {
                Some((of, name)) if *of == collection => names.push(name.clone()),
                _ => return Ok(None),
            }
        }
        names.sort_unstable();
        let Some(&collection) = self.ids.get(&collection) else { return Ok(None) };
        self.writer.begin()?;
        self.writer.channel_numbers(collection, &names).map(Some)
    }

    /// Deletes the documents of lost changes, for those who were told these. One that the log had before
    /// or after is compared with the source as all are.
    fn delete_lost<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a LostChange>,
        high_water: u64,
    ) -> Result<(), LogError> {
        let mut documents: BTreeMap<_, (_, BTreeSet<u32>)> = BTreeMap::new();
        for change in changes.filter(|change| !change.channels.is_empty()) {
            let Some(id) = change.id() else { continue };
            let document = (change.collection, change.key.as_slice());
            documents.entry(document).or_insert((id, BTreeSet::new())).1.extend(&change.channels);
        }
        for ((old, key), (id, channels)) in documents {
            let Some(&collection) = self.ids.get(&old) else { continue };
            let Some(channels) = self.numbers(old, channels)? else { continue };
            for (kind, channels) in [(KIND_UPSERT, &channels[..]), (KIND_DELETE, &[])] {
                let position = self.next_position(high_water);
                self.put(&NewRow {
                    position,
                    wall_time_ms: i64::from(position.unix_seconds()) * 1_000,
                    collection,
                    key,
                    kind,
                    document: id.as_bytes(),
                    channels,
                    rules: 0,
                })?;
            }
        }
        Ok(())
    }

    /// Reconcile's next position at `high_water`.
    fn next_position(&self, high_water: u64) -> Position {
        let first = Position::new(high_water, Position::RECONCILE_ORDINAL_FIRST);
        let last = self.writer.last_position();
        if last < first { first } else { Position::new(last.cluster_time, last.ordinal + 1) }
    }

    /// Follows what the old log followed: readers go on seeing it, unsettled as it is.
    fn follow(&mut self, old: Option<Vec<StoredFollowed>>) -> Result<(), LogError> {
        self.writer.begin()?;
        // Which versions are of older rules is not known any more: the latest ones are told.
        let ruled_seq = self.writer.last_seq;
        let known = match old {
            Some(old) => old,
            // Nor which rules the latest are of: they are put under the configuration's at the start,
            // and nothing is shown before its copy's end.
            None => self.ids.keys().map(|&collection| unknown(collection)).collect::<Vec<_>>(),
        };
        for mut known in known {
            let Some(&collection) = self.ids.get(&known.followed.collection) else { continue };
            known.followed.collection = collection;
            for left in &mut known.left {
                left.through = self.places.get(&left.through).copied().unwrap_or(0);
            }
            StoredFollowed { ruled_seq, ..known }.write(&self.writer.conn)?;
        }
        Ok(())
    }

    /// The quarantine's list, where it is whole; else the comparison makes it anew.
    fn list_aside(&mut self, old: &Connection) -> Result<(), LogError> {
        for mut stored in StoredAside::all(old).unwrap_or_default() {
            let Some(&collection) = self.ids.get(&stored.collection) else { continue };
            stored.collection = collection;
            self.writer.list_as_before(&stored)?;
        }
        Ok(())
    }

    /// The gaps that the old log had; the last one goes on from `from` or before, from the log's end,
    /// `through`, where a copy ended behind it. False: cursors behind that can't go on.
    fn open_gaps(&mut self, old: &Connection, from: u64, through: u64) -> Result<bool, LogError> {
        let gaps = Stretch::all(old, Measure::Gaps).ok();
        let mut all_go_on = gaps.is_some();
        self.writer.begin()?;
        for (&old, &collection) in &self.ids {
            let of_it = gaps.iter().flatten().filter(|gap| gap.collection == old);
            let (open, closed): (Vec<_>, Vec<_>) =
                of_it.copied().partition(|gap| gap.through.is_none());
            let from = open.iter().map(|gap| gap.from).fold(from, u64::min);
            let is_copied_again = closed.iter().any(|gap| gap.through > Some(through));
            all_go_on &= !is_copied_again;
            let from = if is_copied_again { from.min(through) } else { from };
            let from = if gaps.is_some() { from } else { 0 };
            let open = Stretch { measure: Measure::Gaps, collection, from, through: None };
            let closed = closed.into_iter().map(|gap| Stretch { collection, ..gap });
            self.writer.replace_gaps(collection, closed.chain([open]))?;
        }
        Ok(all_go_on)
    }

    fn finish(
        &mut self,
        state: &LogState,
        cut: Option<Cut>,
        high_water: u64,
    ) -> Result<(), LogError> {
        let resume_token = state.resume_token.clone().filter(|_| cut.is_none());
        let resume_token = resume_token.map(document_from_store).transpose()?;
        self.writer.trim.position = state.trim.position;
        self.writer.state.origin = state.origin;
        self.writer.set_tail(TailState { resume_token, high_water })?;
        self.writer.commit()?;
        Ok(())
    }
}

/// A collection of which only the name is known.
fn unknown(collection: CollectionId) -> StoredFollowed {
    let followed = Followed { collection, active: true, whole: false, rules: String::new() };
    StoredFollowed { followed, ruled_seq: 0, left: Vec::new() }
}

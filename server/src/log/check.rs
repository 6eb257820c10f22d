//! A log held against itself: SQLite's own check, every row's checksum, positions that ascend, and index
//! entries that lead to the rows and to all of them.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{CachedStatement, Connection};
use tidewire_protocol::Position;

use super::copies::StoredCollection;
use super::cursor::name_hash;
use super::followed::StoredFollowed;
use super::postings::{take_varint, unsealed};
use super::quarantine::StoredAside;
use super::record::{StoredRow, channel_ids, select_rows};
use super::state::LogState;
use super::stretches::{Measure, Stretch};
use super::{CollectionId, LogError, schema};

/// Findings that are told one by one.
const FINDINGS_MAX: usize = 50;

/// Tables whose structure is looked at whenever the log is opened: whoever searches them can't tell
/// what is missing.
const INDEX_TABLES: [&str; 9] = [
    "log",
    "collections",
    "followed",
    "channels",
    "postings",
    "latest",
    "unsettled",
    "gaps",
    "quarantine",
];

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// What is wrong, for people; the first 50.
    pub findings: Vec<String>,
    /// How many there were.
    pub findings_total: u64,
    /// Changes that were read.
    pub changes: u64,
    /// Documents that the log has a last change of, tombstones included.
    pub documents: u64,
    /// The log's head.
    pub head: Position,
}

/// A part of a check, for whoever shows how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckPart {
    /// SQLite's own check of the whole file; how far it is can't be told.
    Store,
    /// Every change.
    Changes,
    /// Every document's index entry.
    Documents,
    /// Every channel's index entries.
    Postings,
}

impl Checked {
    fn find(&mut self, what: impl Into<String>) {
        self.findings_total += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what.into());
        }
    }

    /// What was read; `None` where it is damaged, which is a finding.
    fn taken<T>(&mut self, read: Result<T, LogError>) -> Result<Option<T>, LogError> {
        match read {
            Err(error) if error.is_damage() => {
                self.find(error.to_string());
                Ok(None)
            }
            read => read.map(Some),
        }
    }
}

/// Checks the log's file at `path`, also while a server writes it: one snapshot, read only. `progress`
/// hears how many of how many.
///
/// # Errors
/// [`LogError`] where the file can't be read for a reason of its own; what is wrong with what it holds
/// is among the findings.
pub fn check(
    path: &Path,
    progress: &mut dyn FnMut(CheckPart, u64, u64),
) -> Result<Checked, LogError> {
    let mut checked = Checked::default();
    let conn = match schema::open_to_read(path) {
        Err(error) if error.is_damage() => {
            checked.find(error.to_string());
            return Ok(checked);
        }
        conn => conn?,
    };
    conn.execute_batch("BEGIN")?;
    match check_snapshot(&conn, &mut checked, progress) {
        Err(error) if error.is_damage() => checked.find(error.to_string()),
        done => done?,
    }
    Ok(checked)
}

/// Looks at what is searched and not read in full, before anything is served from it.
///
/// # Errors
/// [`LogError::Damaged`].
pub(super) fn check_index(conn: &Connection) -> Result<(), LogError> {
    for table in INDEX_TABLES {
        let sql = format!("PRAGMA integrity_check('{table}')");
        let said: String = conn.query_row(&sql, [], |row| row.get(0))?;
        if said != "ok" {
            return Err(LogError::Damaged(said));
        }
    }
    StoredFollowed::all(conn)?;
    Stretch::all(conn, Measure::Unsettled)?;
    Stretch::all(conn, Measure::Gaps)?;
    each_run(conn, &mut |_, _, _| Ok(()))
}

/// The same as [`check`] with the first finding as an error, on a connection that is there.
pub(super) fn check_all(conn: &Connection) -> Result<(), LogError> {
    let mut checked = Checked::default();
    check_snapshot(conn, &mut checked, &mut |_, _, _| {})?;
    match checked.findings.pop() {
        Some(finding) => Err(LogError::Damaged(finding)),
        None => Ok(()),
    }
}

fn check_snapshot(
    conn: &Connection,
    checked: &mut Checked,
    progress: &mut dyn FnMut(CheckPart, u64, u64),
) -> Result<(), LogError> {
    progress(CheckPart::Store, 0, 0);
    let mut select = conn.prepare(&format!("PRAGMA integrity_check({FINDINGS_MAX})"))?;
    let mut said = select.query([])?;
    while let Some(row) = said.next()? {
        let text: String = row.get(0)?;
        if text != "ok" {
            checked.find(text.trim_start_matches("*** in database main ***\n"));
        }
    }
    let state = LogState::read(conn)?;
    checked.head = state.head.position;
    let collections = small_tables(conn, checked)?;
    let mut index = Index { channels: channels(conn, checked)?, ..Index::default() };
    let mut rows = Rows::prepare(conn, &state, collections)?;
    rows.walk(conn, checked, &mut index, progress)?;
    walk_latest(conn, checked, &mut index, &state, &mut rows, progress)?;
    walk_postings(conn, checked, &mut index, progress)?;
    for (id, channel) in &index.channels {
        if channel.wanted != channel.found {
            checked.find(format!(
                "the index of channel {id} has {} entries and should have {}, or others",
                channel.found.count, channel.wanted.count
            ));
        }
    }
    Ok(())
}

/// Looks at what has a few rows; the collections that there are.
fn small_tables(conn: &Connection, checked: &mut Checked) -> Result<Vec<CollectionId>, LogError> {
    let mut collections = Vec::new();
    for stored in StoredCollection::each(conn)? {
        if let Some(stored) = checked.taken(stored)? {
            collections.push(stored.id);
        }
    }
    let known = |collection: CollectionId| collections.contains(&collection);
    let mut of_none = Vec::new();
    for followed in checked.taken(StoredFollowed::all(conn))?.unwrap_or_default() {
        of_none.push(("followed", known(followed.followed.collection)));
    }
    for measure in [Measure::Unsettled, Measure::Gaps] {
        for stretch in checked.taken(Stretch::all(conn, measure))?.unwrap_or_default() {
            of_none.push((measure.table(), known(stretch.collection)));
        }
    }
    for aside in checked.taken(StoredAside::all(conn))?.unwrap_or_default() {
        of_none.push(("quarantine", known(aside.collection)));
    }
    for (table, _) in of_none.iter().filter(|(_, known)| !known) {
        checked.find(format!("a row of {table} is of no collection"));
    }
    Ok(collections)
}

/// A set of entries, as far as two of them can be told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    count: u64,
    sum: u64,
}

impl Tally {
    fn add(&mut self, entry: u64) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(mixed(entry));
    }

    fn remove(&mut self, entry: u64) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(mixed(entry));
    }
}

/// Spreads a number over 64 bits, so that sums of different sets differ.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

struct Channel {
    collection: CollectionId,
    wanted: Tally,
    found: Tally,
}

/// What the rows say that the index must hold, and what it holds.
#[derive(Default)]
struct Index {
    channels: HashMap<u32, Channel>,
    /// The last change of each document.
    latest: Tally,
    postings: u64,
}

fn channels(conn: &Connection, checked: &mut Checked) -> Result<HashMap<u32, Channel>, LogError> {
    let mut select = conn.prepare("SELECT id, collection, hash, name FROM channels")?;
    let mut rows = select.query([])?;
    let mut channels = HashMap::new();
    while let Some(row) = rows.next()? {
        let (id, name): (u32, String) = (row.get(0)?, row.get(3)?);
        if name_hash(&name).cast_signed() != row.get::<_, i64>(2)? {
            checked.find(format!("channel {id} is found by the hash of another name"));
        }
        let collection = CollectionId(row.get(1)?);
        let (wanted, found) = (Tally::default(), Tally::default());
        channels.insert(id, Channel { collection, wanted, found });
    }
    Ok(channels)
}

struct Rows<'c> {
    other: CachedStatement<'c>,
    collections: Vec<CollectionId>,
    state: &'c LogState,
}

/// What is needed of a row that another one names.
struct Other {
    collection: CollectionId,
    key: Vec<u8>,
    channels: Vec<u32>,
}

impl<'c> Rows<'c> {
    fn prepare(
        conn: &'c Connection,
        state: &'c LogState,
        collections: Vec<CollectionId>,
    ) -> Result<Self, LogError> {
        let other = conn.prepare_cached(select_rows!("WHERE seq = ?1"))?;
        Ok(Self { other, collections, state })
    }

    /// Every row, in order.
    fn walk(
        &mut self,
        conn: &Connection,
        checked: &mut Checked,
        index: &mut Index,
        progress: &mut dyn FnMut(CheckPart, u64, u64),
    ) -> Result<(), LogError> {
        let mut select = conn.prepare(select_rows!("ORDER BY seq"))?;
        let mut rows = select.query([])?;
        let (mut last, mut last_position) = (0, Position::ZERO);
        while let Some(row) = rows.next()? {
            checked.changes += 1;
            let seq = row.get::<_, i64>(0)?.cast_unsigned();
            progress(CheckPart::Changes, seq, self.state.head.seq);
            // Every change after the trim point is there.
            if seq != last + 1 && seq > self.state.trim.seq + 1 {
                let from = last.max(self.state.trim.seq) + 1;
                checked.find(format!("changes {from} to {} are missing", seq - 1));
            }
            last = seq;
            match StoredRow::read(row) {
                Err(error) if error.is_damage() => checked.find(error.to_string()),
                Err(error) => return Err(error),
                Ok(row) => {
                    if row.position <= last_position {
                        checked.find(format!("change {seq} stands before the one before it"));
                    }
                    last_position = row.position;
                    self.look(&row, checked, index)?;
                }
            }
        }
        let head = self.state.head.seq;
        if last < head && head > self.state.trim.seq {
            checked.find(format!("changes {} to {head} are missing", last + 1));
        }
        if last > head || (last == head && last > 0 && last_position != self.state.last) {
            checked.find(format!("change {last} is beyond the log's head, {head}"));
        }
        Ok(())
    }

    fn look(
        &mut self,
        row: &StoredRow<'_>,
        checked: &mut Checked,
        index: &mut Index,
    ) -> Result<(), LogError> {
        let seq = row.seq;
        if !self.collections.contains(&row.collection) {
            checked.find(format!("change {seq} is of no collection"));
        }
        let key = row.key()?;
        let previous = if row.previous == 0 { None } else { self.other(row.previous)? };
        match &previous {
            Some(other) if other.collection != row.collection || other.key != key => {
                let what = "is of another document than the one it is said to follow";
                checked.find(format!("change {seq} {what}"));
            }
            None if row.previous > self.state.trim.seq => {
                checked.find(format!("change {}, before change {seq}, is missing", row.previous));
            }
            _ => {}
        }
        let now = channel_ids(row.channels)?;
        let before = previous.as_ref().map(|other| &other.channels[..]).unwrap_or_default();
        let left = before.iter().filter(|channel| !now.contains(channel));
        let postings = now.iter().map(|id| (id, false)).chain(left.map(|id| (id, true)));
        // The index entries of later changes are in memory only, and made from the rows.
        let is_indexed = seq <= self.state.indexed_seq;
        for (id, left) in postings {
            match index.channels.get_mut(id) {
                Some(channel) if channel.collection != row.collection => {
                    checked.find(format!("change {seq} is in another collection's channel {id}"));
                }
                Some(channel) if is_indexed => channel.wanted.add(seq << 1 | u64::from(left)),
                Some(_) => {}
                None => checked.find(format!("change {seq} is in channel {id}, which is unknown")),
            }
        }
        if is_indexed {
            index.latest.add(seq);
            if previous.is_some() {
                index.latest.remove(row.previous);
            }
        } else if row.previous == 0 {
            checked.documents += 1;
        }
        Ok(())
    }

    /// `None`: there is no such row. What is wrong with one is found when it is met itself.
    fn other(&mut self, seq: u64) -> Result<Option<Other>, LogError> {
        let mut rows = self.other.query([seq.cast_signed()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let row = StoredRow::read(row)?;
        let (collection, key) = (row.collection, row.key()?);
        Ok(Some(Other { collection, key, channels: channel_ids(row.channels)? }))
    }
}

fn walk_latest(
    conn: &Connection,
    checked: &mut Checked,
    index: &mut Index,
    state: &LogState,
    rows: &mut Rows<'_>,
    progress: &mut dyn FnMut(CheckPart, u64, u64),
) -> Result<(), LogError> {
    let mut select = conn.prepare("SELECT collection, key, seq FROM latest")?;
    let mut entries = select.query([])?;
    let mut found = Tally::default();
    while let Some(entry) = entries.next()? {
        checked.documents += 1;
        progress(CheckPart::Documents, found.count + 1, index.latest.count);
        let (collection, key): (u32, Vec<u8>) = (entry.get(0)?, entry.get(1)?);
        let seq = entry.get::<_, i64>(2)?.cast_unsigned();
        found.add(seq);
        let other = match rows.other(seq) {
            // Told when the row itself was met.
            Err(error) if error.is_damage() => continue,
            other => other?,
        };
        let leads = other.is_some_and(|row| row.collection.0 == collection && row.key == key);
        if !leads || seq > state.indexed_seq {
            let what = format!("the index leads a document of collection {collection} to change");
            checked.find(format!("{what} {seq}, which is not its last"));
        }
    }
    if found != index.latest {
        checked.find(format!(
            "the index knows {} documents, the changes are of {}, or their last ones differ",
            found.count, index.latest.count
        ));
    }
    Ok(())
}

fn walk_postings(
    conn: &Connection,
    checked: &mut Checked,
    index: &mut Index,
    progress: &mut dyn FnMut(CheckPart, u64, u64),
) -> Result<(), LogError> {
    let total = index.channels.values().map(|channel| channel.wanted.count).sum();
    each_run(conn, &mut |channel, mut seq, entries| {
        let Some(found) = index.channels.get_mut(&channel).map(|channel| &mut channel.found) else {
            checked.find(format!("there are index entries of channel {channel}, which is unknown"));
            return Ok(());
        };
        let mut rest = entries;
        while !rest.is_empty() {
            let value = take_varint(&mut rest)
                .ok_or_else(|| LogError::Damaged("a run of postings is cut".to_owned()))?;
            seq += value >> 1;
            found.add(seq << 1 | (value & 1));
            index.postings += 1;
        }
        progress(CheckPart::Postings, index.postings, total);
        Ok(())
    })
}

/// Takes a run of postings: its channel, its first number, its entries.
pub(super) type TakeRun<'a> = dyn FnMut(u32, u64, &[u8]) -> Result<(), LogError> + 'a;

/// Gives each run of postings to `each`.
pub(super) fn each_run(conn: &Connection, each: &mut TakeRun<'_>) -> Result<(), LogError> {
    let mut select = conn.prepare("SELECT channel, first_seq, entries FROM postings")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let (channel, first) = (row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned());
        each(channel, first, &unsealed(channel, first, row.get(2)?)?)?;
    }
    Ok(())
}

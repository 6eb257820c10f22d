//! Which collections the log follows, under which rules, and which stretches of it are unsettled.
//!
//! - *followed*: in the configuration of the server that last wrote. Nobody tells what happens to another
//!   collection, so what the log has of it is of no use until it is followed and copied again.
//! - *whole*: copied to its end at least once since it is followed. Before, readers do not get to see
//!   it; at a log's first copy all of them become whole in one commit.
//! - *unsettled*: from the commit in which its copy began to the one in which it ended, what the log has
//!   of a collection is no state of the source. Pages whose view holds it are incomplete there.
//! - *gap*: the cluster times of an unsettled stretch, of which the log knows only where they led to.
//! - *ruled*: what the log had of the collection was put under other rules by this change. Older versions
//!   are in channels of rules that hold no more: nobody is shown them.
//! - *left*: rules that held before, and through which change. A cursor says by which rules its sender has
//!   read, for another server's log may have come under others earlier, later or never. This log's changes
//!   lead a reader on where it stands under the same ones: what was deleted under others, or came to be
//!   nobody's, is in the channels of those alone.

use std::collections::HashMap;

use rusqlite::Connection;
use sha2::{Digest, Sha256};

use super::copies::StoredCollection;
use super::cursor::{View, name_hash};
use super::guard::{matching, row_checksum};
use super::stretches::{Measure, Stretch};
use super::{CollectionId, LogError, Writer};

/// The table of this room.
pub(super) const TABLE: &str = "
CREATE TABLE followed (
    collection INTEGER PRIMARY KEY,
    active INTEGER NOT NULL,
    whole INTEGER NOT NULL,
    rules TEXT NOT NULL,
    ruled_seq INTEGER NOT NULL,
    left_rules BLOB NOT NULL,
    checksum INTEGER NOT NULL
);
";
/// Rules that a collection was under before which are remembered.
const LEFT_MAX: usize = 64;
/// Bytes of one of them: the change, the rules.
const LEFT_LEN: usize = 12;

/// A gap, for a reader whose position is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// The copy is under way.
    Open,
    /// It has ended.
    Closed,
}

/// A collection that is followed, or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Whose.
    pub collection: CollectionId,
    /// It is followed.
    pub active: bool,
    /// It has been copied to its end since it is followed; readers may see it.
    pub whole: bool,
    /// The rules under which the log has its documents, as their maker wrote them.
    pub rules: String,
}

/// A row of `followed`.
#[derive(Clone, Debug)]
pub(super) struct StoredFollowed {
    pub(super) followed: Followed,
    /// The last change of those that put it under its rules.
    pub(super) ruled_seq: u64,
    /// The rules that it was under before, the last first.
    pub(super) left: Vec<Left>,
}

/// Rules that hold no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// The last change under them.
    pub(super) through: u64,
    /// [`rules_hash`].
    rules: u32,
}

impl Left {
    fn from_bytes(bytes: &[u8; LEFT_LEN]) -> Self {
        let (through, rules) = bytes.split_at(8);
        Self {
            through: u64::from_be_bytes(through.try_into().expect("8 bytes")),
            rules: u32::from_be_bytes(rules.try_into().expect("4 bytes")),
        }
    }

    fn to_bytes(self) -> [u8; LEFT_LEN] {
        let mut bytes = [0; LEFT_LEN];
        bytes[..8].copy_from_slice(&self.through.to_be_bytes());
        bytes[8..].copy_from_slice(&self.rules.to_be_bytes());
        bytes
    }
}

/// 32 bits of the SHA-256 of rules as text; the same on every server.
fn rules_hash(rules: &str) -> u32 {
    let digest = Sha256::digest(rules.as_bytes());
    u32::from_be_bytes(digest[..4].try_into().expect("a SHA-256 has 32 bytes"))
}

impl StoredFollowed {
    /// Every collection that the log follows or has followed.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when one does not match its checksum.
    pub(super) fn all(conn: &Connection) -> Result<Vec<Self>, LogError> {
        let mut select = conn.prepare_cached(
            "SELECT collection, active, whole, rules, ruled_seq, left_rules, checksum FROM followed",
        )?;
        let mut rows = select.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let (collection, rules) = (CollectionId(row.get(0)?), row.get(3)?);
            let (active, whole) = (row.get(1)?, row.get(2)?);
            let followed = Followed { collection, active, whole, rules };
            let left: Vec<u8> = row.get(5)?;
            let (left, []) = left.as_chunks::<LEFT_LEN>() else {
                return Err(LogError::Damaged("rules that were left can't be read".to_owned()));
            };
            let left = left.iter().map(Left::from_bytes).collect();
            let ruled_seq = row.get::<_, i64>(4)?.cast_unsigned();
            let stored = Self { followed, ruled_seq, left };
            let should = stored.checksum();
            all.push(matching("followed", stored, row.get(6)?, should)?);
        }
        Ok(all)
    }

    /// Writes it, in the place of what was there.
    pub(super) fn write(&self, conn: &Connection) -> Result<(), LogError> {
        let Followed { collection, active, whole, rules } = &self.followed;
        conn.prepare_cached(
            "INSERT OR REPLACE INTO followed
             (collection, active, whole, rules, ruled_seq, left_rules, checksum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute((
            collection.0,
            active,
            whole,
            rules,
            self.ruled_seq.cast_signed(),
            self.left_bytes(),
            self.checksum(),
        ))?;
        Ok(())
    }

    fn checksum(&self) -> i64 {
        let Followed { collection, active, whole, rules } = &self.followed;
        let numbers = [collection.0.into(), u64::from(*active), u64::from(*whole), self.ruled_seq];
        row_checksum("followed", &numbers, &[rules.as_bytes(), &self.left_bytes()])
    }

    fn left_bytes(&self) -> Vec<u8> {
        self.left.iter().flat_map(|left| left.to_bytes()).collect()
    }

    /// Whether it was under these rules at the change `after`, where others may have ended.
    fn was_under(&self, rules: u32, after: u64) -> bool {
        let mut later = rules_hash(&self.followed.rules);
        for left in &self.left {
            if later == rules && after >= left.through {
                return true;
            }
            if after > left.through {
                return false;
            }
            later = left.rules;
        }
        // When the oldest that is remembered began is not, where there may have been older ones.
        later == rules && self.left.len() < LEFT_MAX
    }
}

impl Writer {
    /// The collections that the log follows or has followed, what is not committed included.
    ///
    /// # Errors
    /// [`LogError::Store`], [`LogError::Damaged`].
    pub fn followed(&self) -> Result<Vec<Followed>, LogError> {
        let stored = StoredFollowed::all(&self.conn)?;
        Ok(stored.into_iter().map(|stored| stored.followed).collect())
    }

    /// Follows a collection from now on. Where the log knew it under other `rules`, its documents have
    /// been appended anew where they differ, in this commit.
    ///
    /// # Errors
    /// [`LogError::Store`], [`LogError::Damaged`].
    pub fn follow(&mut self, collection: CollectionId, rules: &str) -> Result<(), LogError> {
        self.begin()?;
        let known = StoredFollowed::all(&self.conn)?;
        let known = known.into_iter().find(|known| known.followed.collection == collection);
        let (whole, ruled_seq, left) = match known {
            Some(StoredFollowed { followed, ruled_seq, left }) if followed.rules == rules => {
                (followed.whole, ruled_seq, left)
            }
            Some(StoredFollowed { followed, mut left, .. }) => {
                let through = self.head().seq;
                left.insert(0, Left { through, rules: rules_hash(&followed.rules) });
                left.truncate(LEFT_MAX);
                (followed.whole, self.last_seq, left)
            }
            None => {
                // What went before this log followed it, this log can't tell.
                self.open_gap(collection, 0)?;
                (false, 0, Vec::new())
            }
        };
        let followed = Followed { collection, active: true, whole, rules: rules.to_owned() };
        StoredFollowed { followed, ruled_seq, left }.write(&self.conn)
    }

    /// No longer follows a collection. What the log has of it stays, for the day it is followed again.
    ///
    /// # Errors
    /// [`LogError::Store`], [`LogError::Damaged`].
    pub fn unfollow(&mut self, collection: CollectionId) -> Result<(), LogError> {
        self.begin()?;
        for mut known in StoredFollowed::all(&self.conn)? {
            if known.followed.collection == collection {
                (known.followed.active, known.followed.whole) = (false, false);
                known.write(&self.conn)?;
            }
        }
        self.end_unsettled(collection)?;
        // What happens from now on is not told here, but perhaps by another server's log. Where it was being
        // copied, or was before, it still may not have what another one told.
        self.open_gap(collection, self.tail().high_water)?;
        self.unlist(collection)?;
        self.copies.remove(&collection);
        self.make_whole()
    }

    /// Notes that the copy of a collection has begun or ended.
    pub(super) fn settle(
        &mut self,
        collection: CollectionId,
        finished: bool,
    ) -> Result<(), LogError> {
        if !finished {
            return self.open_stretches(collection, self.tail().high_water);
        }
        self.close_stretches(collection)?;
        self.make_whole()
    }

    /// Shows readers what is copied to its end; at a first copy not before all of it is.
    fn make_whole(&mut self) -> Result<(), LogError> {
        let mut known = StoredFollowed::all(&self.conn)?;
        known.retain(|known| known.followed.active);
        let finished = |known: &StoredFollowed| {
            self.copies.get(&known.followed.collection).is_some_and(|copy| copy.finished)
        };
        if !known.iter().any(|known| known.followed.whole) && !known.iter().all(finished) {
            return Ok(());
        }
        for new in known.iter_mut().filter(|new| !new.followed.whole && finished(new)) {
            new.followed.whole = true;
            new.write(&self.conn)?;
        }
        Ok(())
    }
}

/// The collections' names, as readers know them.
fn names(conn: &Connection) -> Result<HashMap<CollectionId, u64>, LogError> {
    let stored = StoredCollection::all(conn)?;
    Ok(stored.into_iter().map(|stored| (stored.id, name_hash(&stored.name))).collect())
}

/// What the log follows or has followed, as readers know it: each with the hash of its name.
#[derive(Debug)]
pub(super) struct Follows(Vec<(u64, StoredFollowed)>);

impl Follows {
    /// Reads it.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when a row does not match its checksum.
    pub(super) fn read(conn: &Connection) -> Result<Self, LogError> {
        let names = names(conn)?;
        let named = |known: StoredFollowed| {
            let name = names.get(&known.followed.collection)?;
            Some((*name, known))
        };
        Ok(Self(StoredFollowed::all(conn)?.into_iter().filter_map(named).collect()))
    }

    fn get(&self, name: u64) -> Option<&StoredFollowed> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, followed)| followed)
    }

    /// Whether it is followed now; what the log knows nothing of counts as such.
    fn is_active(&self, collection: CollectionId) -> bool {
        let is_it = |known: &StoredFollowed| known.followed.collection == collection;
        self.0.iter().find(|(_, known)| is_it(known)).is_none_or(|(_, known)| known.followed.active)
    }

    /// Takes out of a view the collections that are not whole yet.
    pub(super) fn leave_out_unready(&self, view: &mut View) {
        view.collections.retain(|&name| self.get(name).is_none_or(|known| known.followed.whole));
    }

    /// The last change that put something in the view under other rules; 0 where there is none. A reader
    /// from before it is told latest versions only.
    pub(super) fn ruled_seq(&self, view: &View) -> u64 {
        let ruled = view.collections.iter().filter_map(|&name| self.get(name));
        ruled.map(|known| known.ruled_seq).max().unwrap_or(0)
    }

    /// [`rules_hash`] of each of the view's collections, in its order; 0 for one that was never followed.
    pub(super) fn rules(&self, view: &View) -> Vec<u32> {
        let hash = |known: &StoredFollowed| rules_hash(&known.followed.rules);
        view.collections.iter().map(|&name| self.get(name).map_or(0, hash)).collect()
    }

    /// Whether what follows the change `after` leads a reader on that has read the view by these rules,
    /// which another log may have told it.
    pub(super) fn leads_on_from(&self, view: &View, rules: &[u32], after: u64) -> bool {
        view.collections.iter().zip(rules).all(|(&name, &rules)| {
            // Of what was never followed nothing is told, neither what changes nor that it is lost.
            self.get(name).is_none_or(|known| known.was_under(rules, after))
        })
    }
}

/// Whether no copy of what the view holds was under way at the change `seq`: the log up to it is a state
/// of the source.
pub(super) fn is_settled(conn: &Connection, seq: u64, view: &View) -> Result<bool, LogError> {
    let mut unsettled = Stretch::all(conn, Measure::Unsettled)?;
    unsettled.retain(|stretch| match stretch.through {
        None => stretch.from <= seq.saturating_add(1),
        Some(through) => stretch.from <= seq && seq < through,
    });
    Ok(!holds_any(conn, &unsettled, view)?)
}

/// The gap that a cluster time is in, of a collection that the view holds. One that has ended, or will not
/// end as the collection is not followed any more, goes before one that is open: the reader is refused,
/// whatever else is under way.
pub(super) fn gap_at(
    conn: &Connection,
    follows: &Follows,
    time: u64,
    view: &View,
) -> Result<Option<Gap>, LogError> {
    let gaps = gaps_at(conn, time)?;
    let may_end = |gap: &Stretch| gap.through.is_none() && follows.is_active(gap.collection);
    let (open, closed): (Vec<_>, Vec<_>) = gaps.iter().partition(|gap| may_end(gap));
    if holds_any(conn, &closed, view)? {
        return Ok(Some(Gap::Closed));
    }
    Ok(holds_any(conn, &open, view)?.then_some(Gap::Open))
}

/// Whether the log has only a part of what the view held at a cluster time, in a collection that is followed.
pub(super) fn was_copying(
    conn: &Connection,
    follows: &Follows,
    time: u64,
    view: &View,
) -> Result<bool, LogError> {
    let mut gaps = gaps_at(conn, time)?;
    gaps.retain(|gap| follows.is_active(gap.collection));
    holds_any(conn, &gaps, view)
}

fn gaps_at(conn: &Connection, time: u64) -> Result<Vec<Stretch>, LogError> {
    let mut gaps = Stretch::all(conn, Measure::Gaps)?;
    gaps.retain(|gap| gap.from < time && gap.through.is_none_or(|through| time < through));
    Ok(gaps)
}

/// Whether the view holds a collection of one of these stretches.
fn holds_any(conn: &Connection, stretches: &[Stretch], view: &View) -> Result<bool, LogError> {
    if stretches.is_empty() || view.everything {
        return Ok(!stretches.is_empty());
    }
    let names = names(conn)?;
    let is_held = |stretch: &Stretch| {
        names.get(&stretch.collection).is_none_or(|name| view.collections.contains(name))
    };
    Ok(stretches.iter().any(is_held))
}

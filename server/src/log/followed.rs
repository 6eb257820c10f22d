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

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension};

use super::cursor::{View, name_hash};
use super::{CollectionId, LogError, Writer};

/// The tables of this room.
pub(super) const TABLES: &str = "
CREATE TABLE followed (
    collection INTEGER PRIMARY KEY,
    active INTEGER NOT NULL,
    whole INTEGER NOT NULL,
    rules TEXT NOT NULL,
    ruled_seq INTEGER NOT NULL
);
CREATE TABLE unsettled (
    collection INTEGER NOT NULL,
    from_seq INTEGER NOT NULL,
    through_seq INTEGER,
    PRIMARY KEY (collection, from_seq)
) WITHOUT ROWID;
CREATE TABLE gaps (
    collection INTEGER NOT NULL,
    from_time INTEGER NOT NULL,
    through_time INTEGER
);
";

/// No cluster time: the gap ends with the commit that is being made.
const WITH_THIS_COMMIT: i64 = -1;

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

impl Writer {
    /// The collections that the log follows or has followed, what is not committed included.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn followed(&self) -> Result<Vec<Followed>, LogError> {
        all(&self.conn)
    }

    /// Follows a collection from now on. Where the log knew it under other `rules`, its documents have
    /// been appended anew where they differ, in this commit.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn follow(&mut self, collection: CollectionId, rules: &str) -> Result<(), LogError> {
        self.begin()?;
        self.conn
            .prepare_cached(
                "INSERT INTO followed (collection, active, whole, rules, ruled_seq)
                 VALUES (?1, TRUE, FALSE, ?2, 0)
                 ON CONFLICT (collection) DO UPDATE SET active = TRUE, rules = ?2,
                 ruled_seq = CASE rules WHEN ?2 THEN ruled_seq ELSE ?3 END",
            )?
            .execute((collection.0, rules, self.last_seq.cast_signed()))?;
        Ok(())
    }

    /// No longer follows a collection. What the log has of it stays, for the day it is followed again.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn unfollow(&mut self, collection: CollectionId) -> Result<(), LogError> {
        self.begin()?;
        self.conn.execute(
            "UPDATE followed SET active = FALSE, whole = FALSE WHERE collection = ?1",
            [collection.0],
        )?;
        self.conn.execute("DELETE FROM unsettled WHERE collection = ?1", [collection.0])?;
        self.conn.execute("DELETE FROM gaps WHERE collection = ?1", [collection.0])?;
        self.unlist(collection)?;
        self.copies.remove(&collection);
        self.make_whole()
    }

    /// Follows in a log that is rebuilt what the old one followed: readers go on seeing it, unsettled as
    /// it is. `ids` gives the number here of a number there.
    pub(super) fn follow_as_before(
        &mut self,
        old: &[Followed],
        ids: impl Fn(CollectionId) -> Option<CollectionId>,
    ) -> Result<(), LogError> {
        for followed in old {
            let Some(id) = ids(followed.collection) else { continue };
            self.follow(id, &followed.rules)?;
            // Which versions are of older rules is not known any more: the latest ones are told.
            self.conn.execute(
                "UPDATE followed SET active = ?2, whole = ?3, ruled_seq = ?4 WHERE collection = ?1",
                (id.0, followed.active, followed.whole, self.last_seq.cast_signed()),
            )?;
        }
        Ok(())
    }

    /// Notes that the copy of a collection has begun or ended.
    pub(super) fn settle(
        &mut self,
        collection: CollectionId,
        finished: bool,
    ) -> Result<(), LogError> {
        // A stretch begins with the first change that is not committed: of the commit that made the
        // copy necessary, readers see nothing whole.
        let from_seq = (self.head.seq + 1).cast_signed();
        if finished {
            self.conn
                .prepare_cached(
                    "UPDATE unsettled SET through_seq = ?2
                     WHERE collection = ?1 AND through_seq IS NULL",
                )?
                .execute((collection.0, self.last_seq.cast_signed()))?;
            // Those in which nothing was appended, and those that nobody can ask for any more.
            self.conn
                .prepare_cached(
                    "DELETE FROM unsettled WHERE through_seq < from_seq OR through_seq <= ?1",
                )?
                .execute([self.trim.seq.cast_signed()])?;
            let ends =
                "UPDATE gaps SET through_time = ?2 WHERE collection = ?1 AND through_time IS NULL";
            self.conn.prepare_cached(ends)?.execute((collection.0, WITH_THIS_COMMIT))?;
            self.gap_ends = true;
            return self.make_whole();
        }
        self.conn
            .prepare_cached(
                "INSERT INTO unsettled (collection, from_seq) SELECT ?1, ?2 WHERE NOT EXISTS
                 (SELECT 1 FROM unsettled WHERE collection = ?1 AND through_seq IS NULL)
                 ON CONFLICT (collection, from_seq) DO UPDATE SET through_seq = NULL",
            )?
            .execute((collection.0, from_seq))?;
        self.conn
            .prepare_cached(
                "INSERT INTO gaps (collection, from_time) SELECT ?1, ?2 WHERE NOT EXISTS
                 (SELECT 1 FROM gaps WHERE collection = ?1 AND through_time IS NULL)",
            )?
            .execute((collection.0, self.tail.high_water.cast_signed()))?;
        Ok(())
    }

    /// Gaps that end with this commit end at `high_water`: whoever equals the source from there on can go
    /// on here. What lies before the trim point is refused anyway.
    pub(super) fn end_gaps(&mut self, high_water: u64) -> Result<(), LogError> {
        if std::mem::take(&mut self.gap_ends) {
            self.conn.execute(
                "UPDATE gaps SET through_time = ?1 WHERE through_time = ?2",
                (high_water.cast_signed(), WITH_THIS_COMMIT),
            )?;
            let trim = self.trim.position.cluster_time.cast_signed();
            self.conn.execute("DELETE FROM gaps WHERE through_time < ?1", [trim])?;
        }
        Ok(())
    }

    /// Shows readers what is copied to its end; at a first copy not before all of it is.
    fn make_whole(&mut self) -> Result<(), LogError> {
        let mut followed = self.followed()?;
        followed.retain(|f| f.active);
        let finished = |f: &&Followed| self.copies.get(&f.collection).is_some_and(|c| c.finished);
        if !followed.iter().any(|f| f.whole) && !followed.iter().all(|f| finished(&f)) {
            return Ok(());
        }
        for new in followed.iter().filter(|f| !f.whole).filter(finished) {
            self.conn.execute(
                "UPDATE followed SET whole = TRUE WHERE collection = ?1",
                [new.collection.0],
            )?;
        }
        Ok(())
    }
}

/// The collections that a log follows or has followed.
pub(super) fn all(conn: &Connection) -> Result<Vec<Followed>, LogError> {
    let mut select =
        conn.prepare_cached("SELECT collection, active, whole, rules FROM followed")?;
    let rows = select.query_map([], |row| {
        let collection = CollectionId(row.get(0)?);
        let (active, whole) = (row.get(1)?, row.get(2)?);
        Ok(Followed { collection, active, whole, rules: row.get(3)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Takes out of a view the collections that are not whole yet.
pub(super) fn leave_out_unready(conn: &Connection, view: &mut View) -> Result<(), LogError> {
    let mut select = conn.prepare_cached(
        "SELECT c.name FROM followed f JOIN collections c ON c.id = f.collection WHERE NOT f.whole",
    )?;
    let unready = select.query_map([], |row| Ok(name_hash(&row.get::<_, String>(0)?)))?;
    let unready = unready.collect::<Result<HashSet<u64>, _>>()?;
    view.collections.retain(|collection| !unready.contains(collection));
    Ok(())
}

/// The last change that put something in the view under other rules; 0 where there is none. A reader
/// from before it is told latest versions only.
pub(super) fn ruled_seq(conn: &Connection, view: &View) -> Result<u64, LogError> {
    let mut select = conn.prepare_cached(
        "SELECT c.name, f.ruled_seq FROM followed f JOIN collections c ON c.id = f.collection
         WHERE f.ruled_seq > 0",
    )?;
    let mut rows = select.query([])?;
    let mut last = 0;
    while let Some(row) = rows.next()? {
        if view.collections.contains(&name_hash(&row.get::<_, String>(0)?)) {
            last = last.max(row.get::<_, i64>(1)?.cast_unsigned());
        }
    }
    Ok(last)
}

/// Whether no copy of what the view holds was under way at the change `seq`: the log up to it is a state
/// of the source.
pub(super) fn is_settled(conn: &Connection, seq: u64, view: &View) -> Result<bool, LogError> {
    let mut select = conn.prepare_cached(
        "SELECT collection FROM unsettled
         WHERE CASE WHEN through_seq IS NULL THEN from_seq - 1 <= ?1
               ELSE from_seq <= ?1 AND ?1 < through_seq END",
    )?;
    let mut rows = select.query([seq.cast_signed()])?;
    while let Some(row) = rows.next()? {
        let name: Option<String> = conn
            .prepare_cached("SELECT name FROM collections WHERE id = ?1")?
            .query_row([row.get::<_, u32>(0)?], |row| row.get(0))
            .optional()?;
        let seen = |name: String| view.collections.contains(&name_hash(&name));
        if view.everything || name.is_none_or(seen) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The gap that a cluster time is in, of a collection that the view holds.
pub(super) fn gap_at(conn: &Connection, time: u64, view: &View) -> Result<Option<Gap>, LogError> {
    let mut select = conn.prepare_cached(
        "SELECT c.name, g.through_time IS NULL FROM gaps g JOIN collections c ON c.id = g.collection
         WHERE g.from_time < ?1 AND (g.through_time IS NULL OR ?1 < g.through_time)",
    )?;
    let mut rows = select.query([time.cast_signed()])?;
    let mut found = None;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        if view.everything || view.collections.contains(&name_hash(&name)) {
            let gap = if row.get(1)? { Gap::Open } else { Gap::Closed };
            // One that has ended is refused, whatever else is under way.
            found = if found == Some(Gap::Closed) { found } else { Some(gap) };
        }
    }
    Ok(found)
}

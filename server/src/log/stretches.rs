//! Where a copy of a collection was under way, in two measures: the changes of the log, and the cluster
//! times of which it knows only where they led to.
//!
//! Both tables have a few rows. They are read whole, each row against its checksum.

use rusqlite::Connection;

use super::guard::{matching, row_checksum};
use super::{CollectionId, LogError, Writer};

/// The tables of this room.
pub(super) const TABLES: &str = "
CREATE TABLE unsettled (
    collection INTEGER NOT NULL,
    from_seq INTEGER NOT NULL,
    through_seq INTEGER,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (collection, from_seq)
) WITHOUT ROWID;
CREATE TABLE gaps (
    collection INTEGER NOT NULL,
    from_time INTEGER NOT NULL,
    through_time INTEGER,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (collection, from_time)
) WITHOUT ROWID;
";

/// No cluster time: the gap ends with the commit that is being made.
const WITH_THIS_COMMIT: u64 = u64::MAX;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// Numbers of changes; both ends are part of it.
    Unsettled,
    /// Cluster times; neither end is part of it.
    Gaps,
}

impl Measure {
    pub(super) fn table(self) -> &'static str {
        self.names().0
    }

    /// The table, and what its bounds are called.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Unsettled => ("unsettled", "from_seq", "through_seq"),
            Self::Gaps => ("gaps", "from_time", "through_time"),
        }
    }
}

/// A row of either table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) measure: Measure,
    pub(super) collection: CollectionId,
    pub(super) from: u64,
    /// `None`: the copy is under way.
    pub(super) through: Option<u64>,
}

impl Stretch {
    /// All of one table.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when one does not match its checksum.
    pub(super) fn all(conn: &Connection, measure: Measure) -> Result<Vec<Self>, LogError> {
        let (table, from, through) = measure.names();
        let mut select = conn.prepare_cached(&format!(
            "SELECT collection, {from}, {through}, checksum FROM {table}"
        ))?;
        let mut rows = select.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let stretch = Self {
                measure,
                collection: CollectionId(row.get(0)?),
                from: row.get::<_, i64>(1)?.cast_unsigned(),
                through: row.get::<_, Option<i64>>(2)?.map(i64::cast_unsigned),
            };
            all.push(matching(table, stretch, row.get(3)?, stretch.checksum())?);
        }
        Ok(all)
    }

    /// Writes it, in the place of one that begins there.
    pub(super) fn write(&self, conn: &Connection) -> Result<(), LogError> {
        let (table, from, through) = self.measure.names();
        conn.prepare_cached(&format!(
            "INSERT OR REPLACE INTO {table} (collection, {from}, {through}, checksum)
             VALUES (?1, ?2, ?3, ?4)"
        ))?
        .execute((
            self.collection.0,
            self.from.cast_signed(),
            self.through.map(u64::cast_signed),
            self.checksum(),
        ))?;
        Ok(())
    }

    fn remove(&self, conn: &Connection) -> Result<(), LogError> {
        let (table, from, _) = self.measure.names();
        let sql = format!("DELETE FROM {table} WHERE collection = ?1 AND {from} = ?2");
        conn.prepare_cached(&sql)?.execute((self.collection.0, self.from.cast_signed()))?;
        Ok(())
    }

    fn checksum(&self) -> i64 {
        let through = self.through.map_or([0, 0], |through| [1, through]);
        let numbers = [u64::from(self.collection.0), self.from, through[0], through[1]];
        row_checksum(self.measure.names().0, &numbers, &[])
    }
}

impl Writer {
    fn stretches(
        &self,
        measure: Measure,
        collection: CollectionId,
    ) -> Result<Vec<Stretch>, LogError> {
        let mut all = Stretch::all(&self.conn, measure)?;
        all.retain(|stretch| stretch.collection == collection);
        Ok(all)
    }

    /// A copy of the collection is under way, for what happened after `time`. A stretch begins with the
    /// first change that is not committed: of the commit that made the copy necessary, readers see
    /// nothing whole.
    pub(super) fn open_stretches(
        &self,
        collection: CollectionId,
        time: u64,
    ) -> Result<(), LogError> {
        let unsettled = self.stretches(Measure::Unsettled, collection)?;
        if unsettled.iter().all(|stretch| stretch.through.is_some()) {
            let (measure, from) = (Measure::Unsettled, self.head.seq + 1);
            Stretch { measure, collection, from, through: None }.write(&self.conn)?;
        }
        self.open_gap(collection, time)
    }

    /// The collection has a gap from `time` on, or one that reaches back farther.
    pub(super) fn open_gap(&self, collection: CollectionId, time: u64) -> Result<(), LogError> {
        let gaps = self.stretches(Measure::Gaps, collection)?;
        let open = gaps.iter().find(|gap| gap.through.is_none());
        if open.is_some_and(|open| open.from <= time) {
            return Ok(());
        }
        if let Some(later) = open {
            later.remove(&self.conn)?;
        }
        let (measure, from) = (Measure::Gaps, time);
        Stretch { measure, collection, from, through: None }.write(&self.conn)
    }

    /// The copy has ended with this commit.
    pub(super) fn close_stretches(&mut self, collection: CollectionId) -> Result<(), LogError> {
        self.end_unsettled(collection)?;
        for mut gap in self.stretches(Measure::Gaps, collection)? {
            if gap.through.is_none() {
                gap.through = Some(WITH_THIS_COMMIT);
                gap.write(&self.conn)?;
                self.gap_ends = true;
            }
        }
        Ok(())
    }

    /// Nobody waits for the collection's copy any more; in what was written meanwhile it is not whole.
    pub(super) fn end_unsettled(&self, collection: CollectionId) -> Result<(), LogError> {
        for mut stretch in Stretch::all(&self.conn, Measure::Unsettled)? {
            let ends = stretch.collection == collection && stretch.through.is_none();
            if ends {
                stretch.through = Some(self.last_seq);
            }
            // Nothing was appended in it, or nobody can ask for it any more.
            let is_over = |through| through < stretch.from || through <= self.trim.seq;
            if stretch.through.is_some_and(is_over) {
                stretch.remove(&self.conn)?;
            } else if ends {
                stretch.write(&self.conn)?;
            }
        }
        Ok(())
    }

    /// Gaps that end with this commit end at `high_water`: whoever equals the source from there on can go
    /// on here. What lies before the trim point is refused anyway.
    pub(super) fn end_gaps(&mut self, high_water: u64) -> Result<(), LogError> {
        if !std::mem::take(&mut self.gap_ends) {
            return Ok(());
        }
        for mut gap in Stretch::all(&self.conn, Measure::Gaps)? {
            let ends = gap.through == Some(WITH_THIS_COMMIT);
            if ends {
                gap.through = Some(high_water);
            }
            if gap.through.is_some_and(|through| through < self.trim.position.cluster_time) {
                gap.remove(&self.conn)?;
            } else if ends {
                gap.write(&self.conn)?;
            }
        }
        Ok(())
    }

    /// Puts the gaps of a collection in the place of those that it has.
    pub(super) fn replace_gaps(
        &self,
        collection: CollectionId,
        gaps: impl IntoIterator<Item = Stretch>,
    ) -> Result<(), LogError> {
        for gap in self.stretches(Measure::Gaps, collection)? {
            gap.remove(&self.conn)?;
        }
        gaps.into_iter().try_for_each(|gap| gap.write(&self.conn))
    }
}

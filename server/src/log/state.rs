//! The log's own row: who it is, how far it reaches, and from where. It commits with every change, and
//! is never believed without its checksum.

use rusqlite::{Connection, Row};
use tidewire_protocol::Position;

use super::record::head_position;
use super::{Head, LogError};

/// The log's own row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogState {
    /// 0 in a backup: the first writer of the copy gives it a number of its own, for what it will hold
    /// at a number is not what the original holds there.
    pub(super) log_id: u64,
    pub(super) source: String,
    pub(super) head: Head,
    pub(super) last: Position,
    pub(super) high_water: u64,
    /// MongoDB's, as bytes.
    pub(super) resume_token: Option<Vec<u8>>,
    /// The tail's first high water: what was before it is unknown.
    pub(super) origin: u64,
    /// The index entries of later changes are not in the store.
    pub(super) indexed_seq: u64,
    pub(super) trim: Trim,
}

/// Superseded changes and tombstones through this change may be gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trim {
    pub(super) seq: u64,
    pub(super) position: Position,
}

impl LogState {
    /// A new log's.
    pub(super) fn new(source: &str) -> Self {
        Self {
            log_id: rand::random_range(1..=u64::MAX),
            source: source.to_owned(),
            head: Head::default(),
            last: Position::ZERO,
            high_water: 0,
            resume_token: None,
            origin: 0,
            indexed_seq: 0,
            trim: Trim::default(),
        }
    }

    /// Gives a log that has none a number, in a transaction of its own.
    pub(super) fn identify(&mut self, conn: &Connection) -> Result<(), LogError> {
        if self.log_id == 0 {
            self.log_id = rand::random_range(1..=u64::MAX);
            self.write(conn)?;
        }
        Ok(())
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when it does not match its checksum.
    pub(super) fn read(conn: &Connection) -> Result<Self, LogError> {
        let (state, checksum) = Self::read_unchecked(conn)?;
        if checksum != state.checksum() {
            let what = "the row that says how far the log reaches does not match its checksum";
            return Err(LogError::Damaged(what.to_owned()));
        }
        Ok(state)
    }

    fn read_unchecked(conn: &Connection) -> Result<(Self, i64), LogError> {
        let read = |row: &Row<'_>| {
            let unsigned = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            let last = Position::new(unsigned(3)?, row.get(4)?);
            let high_water = unsigned(5)?;
            let state = Self {
                log_id: unsigned(0)?,
                source: row.get(1)?,
                head: Head { position: head_position(last, high_water), seq: unsigned(2)? },
                last,
                high_water,
                resume_token: row.get(6)?,
                origin: unsigned(7)?,
                indexed_seq: unsigned(8)?,
                trim: Trim {
                    seq: unsigned(9)?,
                    position: Position::new(unsigned(10)?, row.get(11)?),
                },
            };
            Ok((state, row.get(12)?))
        };
        Ok(conn
            .prepare_cached(
                "SELECT log_id, source, seq, cluster_time, ordinal, high_water, resume_token, origin,
                 indexed_seq, compacted_seq, trim_time, trim_ordinal, checksum FROM log",
            )?
            .query_row([], read)?)
    }

    /// Writes it, in the transaction that is open.
    pub(super) fn write(&self, conn: &Connection) -> Result<(), LogError> {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO log (id, log_id, source, seq, cluster_time, ordinal, high_water,
             resume_token, origin, indexed_seq, compacted_seq, trim_time, trim_ordinal, checksum)
             VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute((
            self.log_id.cast_signed(),
            &self.source,
            self.head.seq.cast_signed(),
            self.last.cluster_time.cast_signed(),
            self.last.ordinal,
            self.high_water.cast_signed(),
            &self.resume_token,
            self.origin.cast_signed(),
            self.indexed_seq.cast_signed(),
            self.trim.seq.cast_signed(),
            self.trim.position.cluster_time.cast_signed(),
            self.trim.position.ordinal,
            self.checksum(),
        ))?;
        Ok(())
    }

    /// CRC-32 of all of it.
    fn checksum(&self) -> i64 {
        let mut hasher = crc32fast::Hasher::new();
        let numbers = [
            self.log_id,
            self.head.seq,
            self.last.cluster_time,
            u64::from(self.last.ordinal),
            self.high_water,
            self.origin,
            self.indexed_seq,
            self.trim.seq,
            self.trim.position.cluster_time,
            u64::from(self.trim.position.ordinal),
            self.source.len() as u64,
        ];
        for number in numbers {
            hasher.update(&number.to_be_bytes());
        }
        hasher.update(self.source.as_bytes());
        hasher.update(self.resume_token.as_deref().unwrap_or_default());
        i64::from(hasher.finalize())
    }
}

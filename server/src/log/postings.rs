//! Postings: which changes touch a channel, in runs of numbers.
//!
//! A run is the varints of `(difference to the number before) << 1 | left`; the first difference is
//! taken from the run's own `first_seq` and is 0. `left` says that the document was in the channel
//! before the change and is not after it.

use std::collections::HashMap;
use std::collections::VecDeque;

use rusqlite::Connection;

use super::LogError;

/// Most entries in one run.
const RUN_ENTRIES_MAX: u32 = 4096;
/// Entries gathered over all channels before they are written, commit or not.
const GATHERED_ENTRIES_MAX: usize = 262_144;
/// Runs loaded at once for a channel.
const RUNS_PER_LOAD: u32 = 8;

/// Appends `value` as a varint: 7 bits a byte, lowest first.
pub(super) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a varint off the front of `bytes`; `None` where there is none.
pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[derive(Debug, Default)]
struct Run {
    first_seq: u64,
    last_seq: u64,
    entries: u32,
    bytes: Vec<u8>,
}

/// The postings of changes that are appended and not yet written.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    runs: HashMap<u32, Run>,
    entries: usize,
}

impl Gathered {
    /// The change `seq` touches `channel`; numbers ascend. True when it is time to write.
    pub(super) fn add(&mut self, channel: u32, seq: u64, left: bool) {
        let run = self.runs.entry(channel).or_default();
        if run.entries == 0 {
            (run.first_seq, run.last_seq) = (seq, seq);
        }
        put_varint((seq - run.last_seq) << 1 | u64::from(left), &mut run.bytes);
        run.last_seq = seq;
        run.entries += 1;
        self.entries += 1;
    }

    /// Whether to write before more is gathered.
    pub(super) fn is_full(&self) -> bool {
        self.entries >= GATHERED_ENTRIES_MAX
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.entries = 0;
    }

    /// Writes everything and forgets it.
    pub(super) fn write(&mut self, conn: &Connection) -> Result<(), LogError> {
        if self.entries == 0 {
            return Ok(());
        }
        let mut insert = conn.prepare_cached(
            "INSERT INTO postings (channel, first_seq, entries) VALUES (?1, ?2, ?3)",
        )?;
        for (channel, run) in self.runs.drain() {
            if run.entries <= RUN_ENTRIES_MAX {
                insert.execute((channel, run.first_seq.cast_signed(), &run.bytes))?;
            } else {
                for (first, bytes) in split(&run) {
                    insert.execute((channel, first.cast_signed(), &bytes))?;
                }
            }
        }
        self.entries = 0;
        Ok(())
    }
}

/// Cuts a run that is too long.
fn split(run: &Run) -> Vec<(u64, Vec<u8>)> {
    let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
    let (mut rest, mut seq, mut entries) = (run.bytes.as_slice(), run.first_seq, 0);
    while let Some(value) = take_varint(&mut rest) {
        seq += value >> 1;
        if entries % RUN_ENTRIES_MAX == 0 {
            parts.push((seq, Vec::new()));
            put_varint(value & 1, &mut parts.last_mut().expect("just pushed").1);
        } else {
            put_varint(value, &mut parts.last_mut().expect("the first entry pushes").1);
        }
        entries += 1;
    }
    parts
}

/// One entry of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Posting {
    /// The change.
    pub(super) seq: u64,
    /// The document left the channel with it.
    pub(super) left: bool,
}

/// Reads one channel's postings in order.
#[derive(Debug)]
pub(super) struct PostingReader {
    channel: u32,
    after: u64,
    through: u64,
    /// Runs loaded and not yet read, with the number that the next difference adds to.
    runs: VecDeque<(u64, Vec<u8>)>,
    offset: usize,
    /// The next load starts with the first run that starts after this; `None`: nothing loaded yet.
    loaded_through: Option<u64>,
    exhausted: bool,
}

impl PostingReader {
    /// The postings of `channel` in `(after, through]`.
    pub(super) fn new(channel: u32, after: u64, through: u64) -> Self {
        Self {
            channel,
            after,
            through,
            runs: VecDeque::new(),
            offset: 0,
            loaded_through: None,
            exhausted: false,
        }
    }

    /// The next entry.
    pub(super) fn next(&mut self, conn: &Connection) -> Result<Option<Posting>, LogError> {
        loop {
            while let Some((seq, bytes)) = self.runs.front_mut() {
                let mut rest = &bytes[self.offset..];
                if rest.is_empty() {
                    self.runs.pop_front();
                    self.offset = 0;
                    continue;
                }
                let value = take_varint(&mut rest)
                    .ok_or_else(|| LogError::Damaged("a run of postings is cut".to_owned()))?;
                self.offset = bytes.len() - rest.len();
                *seq += value >> 1;
                if *seq > self.through {
                    self.exhausted = true;
                    self.runs.clear();
                    return Ok(None);
                }
                if *seq > self.after {
                    return Ok(Some(Posting { seq: *seq, left: value & 1 == 1 }));
                }
            }
            if self.exhausted {
                return Ok(None);
            }
            self.load(conn)?;
        }
    }

    fn load(&mut self, conn: &Connection) -> Result<(), LogError> {
        let from = match self.loaded_through {
            Some(loaded) => loaded.cast_signed().saturating_add(1),
            // The run that holds `after` starts at or before it.
            None => conn
                .prepare_cached(
                    "SELECT first_seq FROM postings WHERE channel = ?1 AND first_seq <= ?2
                     ORDER BY first_seq DESC LIMIT 1",
                )?
                .query_map((self.channel, self.after.cast_signed()), |row| row.get::<_, i64>(0))?
                .next()
                .transpose()?
                .unwrap_or(0),
        };
        let mut select = conn.prepare_cached(
            "SELECT first_seq, entries FROM postings
             WHERE channel = ?1 AND first_seq >= ?2 AND first_seq <= ?3
             ORDER BY first_seq LIMIT ?4",
        )?;
        let mut rows =
            select.query((self.channel, from, self.through.cast_signed(), RUNS_PER_LOAD))?;
        let mut loaded = 0;
        while let Some(row) = rows.next()? {
            let first = row.get::<_, i64>(0)?.cast_unsigned();
            self.runs.push_back((first, row.get(1)?));
            self.loaded_through = Some(first);
            loaded += 1;
        }
        self.exhausted = loaded < RUNS_PER_LOAD;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(
            "CREATE TABLE postings (channel INTEGER, first_seq INTEGER, entries BLOB,
             PRIMARY KEY (channel, first_seq)) WITHOUT ROWID",
        )
        .unwrap();
        conn
    }

    fn read(conn: &Connection, after: u64, through: u64) -> Vec<Posting> {
        let mut reader = PostingReader::new(7, after, through);
        std::iter::from_fn(|| reader.next(conn).unwrap()).collect()
    }

    #[test]
    fn what_is_gathered_is_read_back_from_any_place() {
        let conn = store();
        let mut gathered = Gathered::default();
        let mut all = Vec::new();
        let mut seq = 0;
        for commit in 0..40_u64 {
            for n in 0..(commit % 5) * 700 {
                seq += 1 + (n * 31 + commit) % 300;
                let left = n % 3 == 0;
                gathered.add(7, seq, left);
                gathered.add(8, seq, false);
                all.push(Posting { seq, left });
            }
            gathered.write(&conn).unwrap();
        }
        for (after, through) in
            [(0, seq), (0, 0), (1, 1), (seq / 2, seq), (seq / 3, seq / 2), (seq, seq)]
        {
            let wanted: Vec<_> = all
                .iter()
                .copied()
                .filter(|posting| posting.seq > after && posting.seq <= through)
                .collect();
            assert_eq!(read(&conn, after, through), wanted, "({after}, {through}]");
        }
    }

    #[test]
    fn a_varint_that_is_cut_is_not_a_number() {
        assert_eq!(take_varint(&mut [0x80_u8].as_slice()), None);
        assert_eq!(take_varint(&mut [].as_slice()), None);
        let mut bytes = Vec::new();
        put_varint(u64::MAX, &mut bytes);
        assert_eq!(take_varint(&mut bytes.as_slice()), Some(u64::MAX));
    }
}

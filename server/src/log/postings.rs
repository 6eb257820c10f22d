//! Postings: which changes touch a channel, in runs of numbers.
//!
//! A run is the varints of `(difference to the number before) << 1 | left`; the first difference is
//! taken from the run's own `first_seq` and is 0. `left` says that the document was in the channel
//! before the change and is not after it. In the store a run ends with its checksum.

use std::collections::VecDeque;

use rusqlite::Connection;

use super::LogError;

/// Most entries in one run.
const RUN_ENTRIES_MAX: usize = 4096;
/// Bytes of a run's checksum.
const CHECKSUM_LEN: usize = 4;
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

fn run_checksum(channel: u32, first_seq: u64, entries: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&channel.to_be_bytes());
    hasher.update(&first_seq.to_be_bytes());
    hasher.update(entries);
    hasher.finalize().to_be_bytes()
}

/// A run's entries as they go to the store: with the CRC-32 of all that the row says.
pub(super) fn sealed(channel: u32, first_seq: u64, mut entries: Vec<u8>) -> Vec<u8> {
    entries.extend_from_slice(&run_checksum(channel, first_seq, &entries));
    entries
}

/// A run's entries out of the store.
///
/// # Errors
/// [`LogError::Damaged`] when they do not match their checksum.
pub(super) fn unsealed(
    channel: u32,
    first_seq: u64,
    mut stored: Vec<u8>,
) -> Result<Vec<u8>, LogError> {
    let len = stored.len().saturating_sub(CHECKSUM_LEN);
    if stored[len..] != run_checksum(channel, first_seq, &stored[..len]) {
        return Err(LogError::Damaged(format!(
            "a run of channel {channel}'s postings from change {first_seq} does not match its checksum"
        )));
    }
    stored.truncate(len);
    Ok(stored)
}

/// Cuts a channel's postings (`seq << 1 | left`, ascending) into runs for the store.
#[derive(Debug)]
pub(super) struct Runs<'a> {
    rest: &'a [u64],
}

impl<'a> Runs<'a> {
    pub(super) fn of(postings: &'a [u64]) -> Self {
        Self { rest: postings }
    }
}

impl Iterator for Runs<'_> {
    type Item = (u64, Vec<u8>);

    /// The first number of the next run, and its entries.
    fn next(&mut self) -> Option<Self::Item> {
        let (run, rest) = self.rest.split_at(self.rest.len().min(RUN_ENTRIES_MAX));
        self.rest = rest;
        let first = run.first()? >> 1;
        let mut bytes = Vec::with_capacity(run.len() * 2);
        let mut last = first;
        for &posting in run {
            let seq = posting >> 1;
            put_varint((seq - last) << 1 | (posting & 1), &mut bytes);
            last = seq;
        }
        Some((first, bytes))
    }
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
            self.runs.push_back((first, unsealed(self.channel, first, row.get(1)?)?));
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
    fn what_is_written_in_runs_is_read_back_from_any_place() {
        let conn = store();
        let mut all = Vec::new();
        let mut seq = 0;
        for commit in 0..40_u64 {
            let mut postings = Vec::new();
            for n in 0..(commit % 7) * 1_100 {
                seq += 1 + (n * 31 + commit) % 300;
                let left = n % 3 == 0;
                postings.push(seq << 1 | u64::from(left));
                all.push(Posting { seq, left });
            }
            for (first, entries) in Runs::of(&postings) {
                for channel in [7, 8] {
                    conn.execute(
                        "INSERT INTO postings VALUES (?1, ?2, ?3)",
                        (channel, first.cast_signed(), sealed(channel, first, entries.clone())),
                    )
                    .unwrap();
                }
            }
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

//! redb: copy-on-write B-trees in one file.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::data::{Change, decode, encode, read_postings, write_postings};
use crate::store::{Store, merge};

const CHANGE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("change");
const LATEST: TableDefinition<'_, &[u8; 13], u64> = TableDefinition::new("latest");
const SCOPE: TableDefinition<'_, (u32, u64), ()> = TableDefinition::new("scope");
const POSTING: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("posting");
const STATE: TableDefinition<'_, &str, u64> = TableDefinition::new("state");

/// The store.
pub struct Redb {
    database: Database,
    postings: bool,
    /// Between two commits that are forced to disk; `None`: all are.
    sync_every: Option<Duration>,
    synced: Instant,
}

impl Redb {
    pub fn open(
        dir: &Path,
        cache_bytes: usize,
        postings: bool,
        sync_every: Option<Duration>,
    ) -> Result<Self> {
        let database =
            Database::builder().set_cache_size(cache_bytes).create(dir.join("log.redb"))?;
        let transaction = database.begin_write()?;
        transaction.open_table(CHANGE)?;
        transaction.open_table(LATEST)?;
        transaction.open_table(SCOPE)?;
        transaction.open_table(POSTING)?;
        transaction.commit()?;
        Ok(Self { database, postings, sync_every, synced: Instant::now() })
    }
}

impl Store for Redb {
    fn append(&mut self, batch: &[Change]) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        if self.sync_every.is_some_and(|every| self.synced.elapsed() < every) {
            transaction.set_durability(Durability::None)?;
        } else {
            self.synced = Instant::now();
        }
        {
            let mut rows = transaction.open_table(CHANGE)?;
            let mut latest = transaction.open_table(LATEST)?;
            let mut scope = transaction.open_table(SCOPE)?;
            let mut runs: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
            for change in batch {
                if change.update {
                    let seq = latest.get(&change.key)?.context("no such key")?.value();
                    let length = rows.get(seq)?.context("no such row")?.value().len();
                    anyhow::ensure!(length > 0, "an empty document");
                }
                rows.insert(change.seq, encode(change).as_slice())?;
                latest.insert(&change.key, change.seq)?;
                for channel in change.channels {
                    if self.postings {
                        runs.entry(channel).or_default().push(change.seq);
                    } else {
                        scope.insert((channel, change.seq), ())?;
                    }
                }
            }
            let mut posting = transaction.open_table(POSTING)?;
            for (channel, seqs) in runs {
                let mut blob = Vec::new();
                write_postings(seqs[0], &seqs, &mut blob);
                posting.insert((channel, seqs[0]), blob.as_slice())?;
            }
            let mut state = transaction.open_table(STATE)?;
            state.insert("tail", batch.last().map_or(0, |c| c.seq))?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        // The next durable commit makes the earlier ones durable.
        let transaction = self.database.begin_write()?;
        transaction.open_table(STATE)?.insert("synced", 1)?;
        transaction.commit()?;
        self.synced = Instant::now();
        Ok(())
    }

    fn page(&self, since: u64, channels: &[u32], limit: usize) -> Result<(usize, u64)> {
        let transaction = self.database.begin_read()?;
        let rows = transaction.open_table(CHANGE)?;
        let (mut count, mut bytes) = (0, 0);
        let take = |seq| {
            let row = rows.get(seq)?;
            bytes += row.as_ref().map_or(0, |row| decode(row.value()).2.len()) as u64;
            count += usize::from(row.is_some());
            Ok(row.is_some())
        };
        if self.postings {
            let table = transaction.open_table(POSTING)?;
            let mut runs = Vec::new();
            for &channel in channels {
                let first = table.range((channel, 0)..=(channel, since))?.next_back();
                let first = first.transpose()?.map_or(0, |(key, _)| key.value().1);
                let range = table.range((channel, first)..=(channel, u64::MAX))?;
                runs.push((range, Vec::new().into_iter()));
            }
            let next = |i: usize| -> Result<Option<u64>> {
                let (range, held) = &mut runs[i];
                loop {
                    if let Some(seq) = held.find(|seq| *seq > since) {
                        return Ok(Some(seq));
                    }
                    let Some(entry) = range.next() else { return Ok(None) };
                    let (key, blob) = entry?;
                    let mut seqs = Vec::new();
                    read_postings(key.value().1, blob.value(), &mut seqs);
                    *held = seqs.into_iter();
                }
            };
            merge(channels.len(), limit, next, take)?;
        } else {
            let table = transaction.open_table(SCOPE)?;
            let mut runs = Vec::new();
            for &channel in channels {
                runs.push(table.range((channel, since + 1)..=(channel, u64::MAX))?);
            }
            let next = |i: usize| Ok(runs[i].next().transpose()?.map(|(key, _)| key.value().1));
            merge(channels.len(), limit, next, take)?;
        }
        Ok((count, bytes))
    }

    fn delete_superseded(&mut self, through: u64) -> Result<u64> {
        let mut deleted = 0;
        for from in (0..through).step_by(5_000) {
            let transaction = self.database.begin_write()?;
            {
                let mut rows = transaction.open_table(CHANGE)?;
                let latest = transaction.open_table(LATEST)?;
                let mut scope = transaction.open_table(SCOPE)?;
                let mut posting = transaction.open_table(POSTING)?;
                let mut gone: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
                for seq in from + 1..=through.min(from + 5_000) {
                    let Some((key, channels)) = rows.get(seq)?.map(|row| {
                        let (key, channels, _) = decode(row.value());
                        (key, channels)
                    }) else {
                        continue;
                    };
                    if latest.get(&key)?.map(|found| found.value()) == Some(seq) {
                        continue;
                    }
                    rows.remove(seq)?;
                    deleted += 1;
                    for channel in channels {
                        if self.postings {
                            gone.entry(channel).or_default().push(seq);
                        } else {
                            scope.remove((channel, seq))?;
                        }
                    }
                }
                for (channel, seqs) in gone {
                    let lowest = posting.range((channel, 0)..=(channel, seqs[0]))?.next_back();
                    let lowest = lowest.transpose()?.map_or(0, |(key, _)| key.value().1);
                    let mut found = Vec::new();
                    for entry in
                        posting.range((channel, lowest)..=(channel, seqs[seqs.len() - 1]))?
                    {
                        let (key, blob) = entry?;
                        let mut held = Vec::new();
                        read_postings(key.value().1, blob.value(), &mut held);
                        held.retain(|seq| seqs.binary_search(seq).is_err());
                        found.push((key.value(), held));
                    }
                    for (key, held) in found {
                        if held.is_empty() {
                            posting.remove(key)?;
                        } else {
                            let mut blob = Vec::new();
                            write_postings(key.1, &held, &mut blob);
                            posting.insert(key, blob.as_slice())?;
                        }
                    }
                }
            }
            transaction.commit()?;
        }
        Ok(deleted)
    }

    fn last(&self) -> Result<u64> {
        let rows = self.database.begin_read()?.open_table(CHANGE)?;
        Ok(rows.last()?.map_or(0, |(seq, _)| seq.value()))
    }

    fn get(&self, seq: u64) -> Result<Option<Change>> {
        let rows = self.database.begin_read()?.open_table(CHANGE)?;
        Ok(rows.get(seq)?.map(|row| {
            let (key, channels, doc) = decode(row.value());
            Change { seq, key, channels, update: false, doc: doc.to_vec() }
        }))
    }

    fn latest(&self, key: &[u8; 13]) -> Result<Option<u64>> {
        let table = self.database.begin_read()?.open_table(LATEST)?;
        Ok(table.get(key)?.map(|seq| seq.value()))
    }
}

//! fjall: log-structured merge trees in a folder, LZ4 blocks, compaction on its own threads.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::data::{Change, decode, encode, read_postings, write_postings};
use crate::store::{Store, merge};

/// The store.
pub struct Fjall {
    database: Database,
    rows: Keyspace,
    latest: Keyspace,
    scope: Keyspace,
    state: Keyspace,
    postings: bool,
    sync_every: Duration,
    synced: Instant,
}

impl Fjall {
    pub fn open(
        dir: &Path,
        cache_bytes: u64,
        postings: bool,
        sync_every: Duration,
    ) -> Result<Self> {
        let database = Database::builder(dir.join("log.fjall"))
            .cache_size(cache_bytes)
            .worker_threads(1)
            .open()?;
        let keyspace = |name| {
            let options = || KeyspaceCreateOptions::default().max_memtable_size(8 << 20);
            database.keyspace(name, options)
        };
        let (rows, latest) = (keyspace("change")?, keyspace("latest")?);
        let (scope, state) = (keyspace("scope")?, keyspace("state")?);
        let synced = Instant::now();
        Ok(Self { database, rows, latest, scope, state, postings, sync_every, synced })
    }

    /// Waits until the background work is done, so that the size is what stays.
    pub fn settle(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until
            && (self.database.outstanding_flushes() > 0 || self.database.active_compactions() > 0)
        {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn scope_key(channel: u32, seq: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&channel.to_be_bytes());
    key[4..].copy_from_slice(&seq.to_be_bytes());
    key
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[bytes.len() - 8..].try_into().expect("eight bytes"))
}

impl Store for Fjall {
    fn append(&mut self, batch: &[Change]) -> Result<()> {
        let mut write = self.database.batch();
        // A batch can't be read before its commit: what it holds is looked up here.
        let mut own: HashMap<[u8; 13], u64> = HashMap::new();
        let mut runs: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for change in batch {
            if change.update && !own.contains_key(&change.key) {
                let seq = self.latest.get(change.key)?.context("no such key")?;
                let row = self.rows.get(&seq)?.context("no such row")?;
                anyhow::ensure!(!row.is_empty(), "an empty document");
            }
            own.insert(change.key, change.seq);
            let seq = change.seq.to_be_bytes();
            write.insert(&self.rows, seq, encode(change));
            write.insert(&self.latest, change.key, seq);
            for channel in change.channels {
                if self.postings {
                    runs.entry(channel).or_default().push(change.seq);
                } else {
                    write.insert(&self.scope, scope_key(channel, change.seq), []);
                }
            }
        }
        for (channel, seqs) in runs {
            let mut blob = Vec::new();
            write_postings(seqs[0], &seqs, &mut blob);
            write.insert(&self.scope, scope_key(channel, seqs[0]), blob);
        }
        write.insert(&self.state, "tail", batch.last().map_or(0, |c| c.seq).to_be_bytes());
        write.durability(Some(PersistMode::Buffer)).commit()?;
        if self.synced.elapsed() >= self.sync_every {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.database.persist(PersistMode::SyncData)?;
        self.synced = Instant::now();
        Ok(())
    }

    fn page(&self, since: u64, channels: &[u32], limit: usize) -> Result<(usize, u64)> {
        let (mut count, mut bytes) = (0, 0);
        let take = |seq: u64| {
            let row = self.rows.get(seq.to_be_bytes())?;
            bytes += row.as_ref().map_or(0, |row| decode(row).2.len()) as u64;
            count += usize::from(row.is_some());
            Ok(row.is_some())
        };
        let mut runs = Vec::new();
        for &channel in channels {
            let mut from = since + 1;
            if self.postings {
                let mut before =
                    self.scope.range(scope_key(channel, 0)..=scope_key(channel, since));
                from = before
                    .next_back()
                    .map(fjall::Guard::key)
                    .transpose()?
                    .map_or(0, |k| number(&k));
            }
            let range = self.scope.range(scope_key(channel, from)..=scope_key(channel, u64::MAX));
            runs.push((range, Vec::new().into_iter()));
        }
        let next = |i: usize| -> Result<Option<u64>> {
            let (range, held) = &mut runs[i];
            loop {
                if let Some(seq) = held.find(|seq| *seq > since) {
                    return Ok(Some(seq));
                }
                let Some(entry) = range.next() else { return Ok(None) };
                let (key, blob) = entry.into_inner()?;
                let mut seqs = Vec::new();
                if self.postings {
                    read_postings(number(&key), &blob, &mut seqs);
                } else {
                    seqs.push(number(&key));
                }
                *held = seqs.into_iter();
            }
        };
        merge(channels.len(), limit, next, take)?;
        Ok((count, bytes))
    }

    fn delete_superseded(&mut self, through: u64) -> Result<u64> {
        let mut deleted = 0;
        for from in (0..through).step_by(5_000) {
            let mut write = self.database.batch();
            let mut gone: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
            let chunk = (from + 1).to_be_bytes()..=through.min(from + 5_000).to_be_bytes();
            for entry in self.rows.range(chunk) {
                let (seq, row) = entry.into_inner()?;
                let (key, channels, _) = decode(&row);
                if self.latest.get(key)?.is_some_and(|found| found == seq) {
                    continue;
                }
                deleted += 1;
                write.remove(&self.rows, seq.clone());
                for channel in channels {
                    if self.postings {
                        gone.entry(channel).or_default().push(number(&seq));
                    } else {
                        write.remove(&self.scope, scope_key(channel, number(&seq)));
                    }
                }
            }
            for (channel, seqs) in gone {
                let mut before =
                    self.scope.range(scope_key(channel, 0)..=scope_key(channel, seqs[0]));
                let from = before.next_back().map(fjall::Guard::key).transpose()?;
                let from = from.map_or(0, |key| number(&key));
                let through = scope_key(channel, seqs[seqs.len() - 1]);
                for entry in self.scope.range(scope_key(channel, from)..=through) {
                    let (key, blob) = entry.into_inner()?;
                    let mut held = Vec::new();
                    read_postings(number(&key), &blob, &mut held);
                    held.retain(|seq| seqs.binary_search(seq).is_err());
                    if held.is_empty() {
                        write.remove(&self.scope, key);
                    } else {
                        let mut blob = Vec::new();
                        write_postings(number(&key), &held, &mut blob);
                        write.insert(&self.scope, key, blob);
                    }
                }
            }
            write.durability(Some(PersistMode::Buffer)).commit()?;
        }
        Ok(deleted)
    }

    fn last(&self) -> Result<u64> {
        let last = self.rows.last_key_value().map(fjall::Guard::key).transpose()?;
        Ok(last.map_or(0, |key| number(&key)))
    }

    fn get(&self, seq: u64) -> Result<Option<Change>> {
        Ok(self.rows.get(seq.to_be_bytes())?.map(|row| {
            let (key, channels, doc) = decode(&row);
            Change { seq, key, channels, update: false, doc: doc.to_vec() }
        }))
    }

    fn latest(&self, key: &[u8; 13]) -> Result<Option<u64>> {
        Ok(self.latest.get(key)?.map(|seq| number(&seq)))
    }
}

//! What the writer looks up of what it has written, what is not committed included.

use std::collections::BTreeMap;

use rusqlite::OptionalExtension;
use tidewire_protocol::Position;

use super::record::{KIND_UPSERT, channel_ids, checksum};
use super::write::{LookedUp, Previous, damaged, document_from_store, missing};
use super::{CollectionId, KeyEntry, Latest, LogError, Writer};

impl Writer {
    /// The latest change of a document, appends that are not committed included.
    ///
    /// # Errors
    /// [`LogError::Store`]; [`LogError::Damaged`] when the stored row is not whole.
    pub fn latest(
        &mut self,
        collection: CollectionId,
        key: &[u8],
    ) -> Result<Option<Latest>, LogError> {
        let mut previous = None;
        let mut latest = None;
        if let Some(seq) = self.latest_seq(collection, key)? {
            let mut select = self.conn.prepare_cached(
                "SELECT cluster_time, ordinal, kind, rules, checksum, channels, document
                 FROM changes WHERE seq = ?1",
            )?;
            let mut rows = select.query([seq.cast_signed()])?;
            let row = rows.next()?.ok_or_else(|| missing(seq))?;
            let position = Position::new(row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?);
            let kind: i64 = row.get(2)?;
            let channels: Vec<u8> = row.get(5)?;
            let document = row.get_ref(6)?.as_blob().map_err(rusqlite::Error::from)?;
            if row.get::<_, i64>(4)? != checksum(position, document) {
                return Err(damaged(seq));
            }
            let document = match kind {
                KIND_UPSERT => Some(document_from_store(document.to_vec())?),
                _ => None,
            };
            let rules = row.get::<_, i64>(3)?.cast_unsigned();
            latest = Some((position, document, channels.clone(), rules));
            previous = Some(Previous { seq, channels });
        }
        self.looked_up = Some(LookedUp { collection, key: key.to_vec(), previous });
        latest
            .map(|(position, document, channels, rules)| {
                let channels = self.channel_names(&channels)?;
                Ok(Latest { position, document, channels, rules })
            })
            .transpose()
    }

    pub(super) fn latest_seq(
        &self,
        collection: CollectionId,
        key: &[u8],
    ) -> Result<Option<u64>, LogError> {
        if self.greatest.get(&collection).is_none_or(|greatest| key > greatest.as_slice()) {
            return Ok(None);
        }
        let mut recent = self.fresh.latest(collection, key);
        // Once part of a transaction's index is in the store, so is all that is older.
        if recent.is_none() && !self.index_on_commit {
            recent = self.shared.read().recent.latest(collection, key);
        }
        if recent.is_some() {
            return Ok(recent);
        }
        let seq = self
            .conn
            .prepare_cached("SELECT seq FROM latest WHERE collection = ?1 AND key = ?2")?
            .query_row((collection.0, key), |row| row.get::<_, i64>(0))
            .optional()?;
        Ok(seq.map(i64::cast_unsigned))
    }

    /// Names of channels in the order of their names.
    fn channel_names(&self, stored: &[u8]) -> Result<Vec<String>, LogError> {
        let mut select = self.conn.prepare_cached("SELECT name FROM channels WHERE id = ?1")?;
        let mut names = channel_ids(stored)?
            .into_iter()
            .map(|id| select.query_row([id], |row| row.get(0)))
            .collect::<Result<Vec<String>, _>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// At most `limit` keys of a collection in ascending order: after `after` (exclusive) through
    /// `through` (inclusive); `None` is an open end. Keys whose latest change is a delete are there
    /// as long as their tombstone is.
    ///
    /// # Errors
    /// [`LogError::Store`]; [`LogError::Damaged`].
    pub fn keys_between(
        &mut self,
        collection: CollectionId,
        after: Option<&[u8]>,
        through: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<KeyEntry>, LogError> {
        // No key is empty, so every key is after the empty one.
        let after = after.unwrap_or(&[]);
        let within = |key: &[u8]| through.is_none_or(|through| key <= through);
        let mut keys: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        {
            let mut select = self.conn.prepare_cached(
                "SELECT key, seq FROM latest WHERE collection = ?1 AND key > ?2 ORDER BY key",
            )?;
            let mut rows = select.query((collection.0, after))?;
            while keys.len() < limit
                && let Some(row) = rows.next()?
            {
                let key: Vec<u8> = row.get(0)?;
                if !within(&key) {
                    break;
                }
                keys.insert(key, row.get::<_, i64>(1)?.cast_unsigned());
            }
        }
        let shared = self.shared.read();
        let older = (!self.index_on_commit).then_some(&shared.recent);
        for recent in older.into_iter().chain([&self.fresh]) {
            let newer = recent.keys_after(collection, after);
            for (key, seq) in newer.take_while(|(key, _)| within(key)).take(limit) {
                keys.insert(key.to_vec(), seq);
            }
        }
        drop(shared);
        let mut select = self
            .conn
            .prepare_cached("SELECT cluster_time, ordinal, kind FROM changes WHERE seq = ?1")?;
        keys.into_iter()
            .take(limit)
            .map(|(key, seq)| {
                let entry = select
                    .query_row([seq.cast_signed()], |row| {
                        let cluster_time = row.get::<_, i64>(0)?.cast_unsigned();
                        let position = Position::new(cluster_time, row.get(1)?);
                        Ok((position, row.get::<_, i64>(2)? == KIND_UPSERT))
                    })
                    .optional()?;
                let (position, live) = entry.ok_or_else(|| missing(seq))?;
                Ok(KeyEntry { key, position, live })
            })
            .collect()
    }
}

//! What the writer looks up of what it has written, what is not committed included.

use std::collections::BTreeMap;

use rusqlite::OptionalExtension;

use super::record::{KIND_DELETE, KIND_SET_ASIDE, KIND_UPSERT, StoredRow, missing, select_rows};
use super::write::{LookedUp, Previous};
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
        let mut found = None;
        if self.may_have(collection, key) {
            if let Some(seq) = self.known.get(collection, key) {
                found = self.row_of(collection, key, seq)?;
            }
            if found.is_none() {
                found = match self.recent_seq(collection, key) {
                    Some(seq) => {
                        Some(self.row_of(collection, key, seq)?.ok_or_else(|| missing(seq))?)
                    }
                    None => self.indexed_row(collection, key)?,
                };
                if let Some((previous, _)) = &found {
                    self.known.set(collection, key, previous.seq);
                }
            }
        }
        let (previous, latest) = found.unzip();
        self.looked_up = Some(LookedUp { collection, key: key.to_vec(), previous });
        Ok(latest)
    }

    /// The change `seq`; `None` where it is gone or another document's.
    pub(super) fn row_of(
        &self,
        collection: CollectionId,
        key: &[u8],
        seq: u64,
    ) -> Result<Option<(Previous, Latest)>, LogError> {
        let mut select = self.conn.prepare_cached(select_rows!("WHERE seq = ?1"))?;
        let mut rows = select.query([seq.cast_signed()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let row = StoredRow::read(row)?;
        if row.collection != collection || row.key()? != key {
            return Ok(None);
        }
        latest_of(&row).map(Some)
    }

    /// The document's latest change, by the index in the store.
    fn indexed_row(
        &self,
        collection: CollectionId,
        key: &[u8],
    ) -> Result<Option<(Previous, Latest)>, LogError> {
        let seq: Option<i64> = self
            .conn
            .prepare_cached("SELECT seq FROM latest WHERE collection = ?1 AND key = ?2")?
            .query_row((collection.0, key), |row| row.get(0))
            .optional()?;
        let Some(seq) = seq.map(i64::cast_unsigned) else { return Ok(None) };
        // An index entry that names another document's change, or none, is damaged.
        self.row_of(collection, key, seq)?.ok_or_else(|| missing(seq)).map(Some)
    }

    /// False where a look at the greatest key tells that the log has no such document.
    fn may_have(&self, collection: CollectionId, key: &[u8]) -> bool {
        self.greatest.get(&collection).is_some_and(|greatest| key <= greatest.as_slice())
    }

    pub(super) fn latest_seq(
        &self,
        collection: CollectionId,
        key: &[u8],
    ) -> Result<Option<u64>, LogError> {
        if !self.may_have(collection, key) {
            return Ok(None);
        }
        if let Some(seq) = self.recent_seq(collection, key) {
            return Ok(Some(seq));
        }
        let seq = self
            .conn
            .prepare_cached("SELECT seq FROM latest WHERE collection = ?1 AND key = ?2")?
            .query_row((collection.0, key), |row| row.get::<_, i64>(0))
            .optional()?;
        Ok(seq.map(i64::cast_unsigned))
    }

    /// The document's latest change where its index entry is in memory.
    fn recent_seq(&self, collection: CollectionId, key: &[u8]) -> Option<u64> {
        let fresh = self.fresh.latest(collection, key);
        // Once part of a transaction's index is in the store, so is all that is older.
        if fresh.is_some() || self.index_on_commit {
            return fresh;
        }
        self.shared.read().recent.latest(collection, key)
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
            let newer = recent.keys(collection, |key| key > after && within(key));
            for (key, seq) in newer.into_iter().take(limit) {
                keys.insert(key.to_vec(), seq);
            }
        }
        drop(shared);
        let mut select = self.conn.prepare_cached(select_rows!("WHERE seq = ?1"))?;
        keys.into_iter()
            .take(limit)
            .map(|(key, seq)| {
                let mut rows = select.query([seq.cast_signed()])?;
                let row = StoredRow::read(rows.next()?.ok_or_else(|| missing(seq))?)?;
                if row.collection != collection || row.key()? != key {
                    return Err(missing(seq));
                }
                let (position, live) = (row.position, row.kind != KIND_DELETE);
                Ok(KeyEntry { key, position, live })
            })
            .collect()
    }
}

fn latest_of(row: &StoredRow<'_>) -> Result<(Previous, Latest), LogError> {
    let document = row.document()?;
    let latest = Latest {
        position: row.position,
        document: (row.kind == KIND_UPSERT).then(|| document.to_owned()),
        set_aside: (row.kind == KIND_SET_ASIDE).then(|| document.to_owned()),
        rules: row.rules,
    };
    Ok((Previous { seq: row.seq, channels: row.channels.to_vec() }, latest))
}

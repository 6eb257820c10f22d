//! How far copies have come.

use rusqlite::{Connection, OptionalExtension, Row};

use super::record::document_from_store;
use super::{CollectionId, CopyState, LogError, Writer};

/// A row of `collections`.
#[derive(Clone, Debug)]
pub(super) struct StoredCollection {
    pub(super) id: CollectionId,
    pub(super) name: String,
    /// `None` before the first copy.
    pub(super) copying: Option<bool>,
    done_through: Option<Vec<u8>>,
    done_through_id: Option<Vec<u8>>,
    documents: i64,
    rules: i64,
    owes_check: bool,
}

impl StoredCollection {
    /// Every collection.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when one does not match its checksum.
    pub(super) fn all(conn: &Connection) -> Result<Vec<Self>, LogError> {
        Self::each(conn)?.into_iter().collect()
    }

    /// Every collection, each with what is wrong with it.
    pub(super) fn each(conn: &Connection) -> Result<Vec<Result<Self, LogError>>, LogError> {
        let mut select = conn.prepare_cached(
            "SELECT id, name, copying, done_through, done_through_id, documents, rules, owes_check,
             checksum FROM collections ORDER BY name",
        )?;
        let read = |row: &Row<'_>| {
            let stored = Self {
                id: CollectionId(row.get(0)?),
                name: row.get(1)?,
                copying: row.get(2)?,
                done_through: row.get(3)?,
                done_through_id: row.get(4)?,
                documents: row.get(5)?,
                rules: row.get(6)?,
                owes_check: row.get(7)?,
            };
            Ok((stored, row.get::<_, i64>(8)?))
        };
        let rows = select.query_map([], read)?;
        let checked = |row: rusqlite::Result<(Self, i64)>| {
            let (stored, checksum) = row?;
            if checksum == stored.checksum() {
                Ok(stored)
            } else {
                let id = stored.id.0;
                Err(LogError::Damaged(format!("collection {id} does not match its checksum")))
            }
        };
        Ok(rows.map(checked).collect())
    }

    /// The rules of its last copy.
    pub(super) fn rules(&self) -> u64 {
        self.rules.cast_unsigned()
    }

    /// Adds a collection that the log has not seen.
    pub(super) fn add(conn: &Connection, name: &str) -> Result<CollectionId, LogError> {
        let free = "SELECT ifnull(max(id), 0) + 1 FROM collections";
        let id = CollectionId(conn.query_row(free, [], |row| row.get(0))?);
        let new = Self {
            id,
            name: name.to_owned(),
            copying: None,
            done_through: None,
            done_through_id: None,
            documents: 0,
            rules: 0,
            owes_check: false,
        };
        new.write(conn)?;
        Ok(id)
    }

    fn write(&self, conn: &Connection) -> Result<(), LogError> {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO collections (id, name, copying, done_through, done_through_id,
             documents, rules, owes_check, checksum) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute((
            self.id.0,
            &self.name,
            self.copying,
            &self.done_through,
            &self.done_through_id,
            self.documents,
            self.rules,
            self.owes_check,
            self.checksum(),
        ))?;
        Ok(())
    }

    fn checksum(&self) -> i64 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.id.0.to_be_bytes());
        hasher.update(&[self.copying.map_or(2, u8::from)]);
        let parts = [
            Some(self.name.as_bytes()),
            self.done_through.as_deref(),
            self.done_through_id.as_deref(),
        ];
        for part in parts {
            hasher.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
            hasher.update(part.unwrap_or_default());
        }
        hasher.update(&self.documents.to_be_bytes());
        hasher.update(&self.rules.to_be_bytes());
        hasher.update(&[u8::from(self.owes_check)]);
        i64::from(hasher.finalize())
    }
}

impl Writer {
    /// Reads the collections and their copies anew.
    pub(super) fn load_collections(&mut self) -> Result<(), LogError> {
        self.collections.clear();
        self.copies.clear();
        self.greatest.clear();
        self.channels.clear();
        self.channels_len = 0;
        self.looked_up = None;
        for stored in StoredCollection::all(&self.conn)? {
            let id = stored.id;
            self.collections.insert(stored.name, id);
            if let Some(copying) = stored.copying {
                let state = CopyState {
                    done_through: stored.done_through,
                    done_through_id: stored.done_through_id.map(document_from_store).transpose()?,
                    documents: stored.documents.cast_unsigned(),
                    finished: !copying,
                    rules: stored.rules.cast_unsigned(),
                    owes_check: stored.owes_check,
                };
                self.copies.insert(id, state);
            }
        }
        let mut greatest = self
            .conn
            .prepare("SELECT key FROM latest WHERE collection = ?1 ORDER BY key DESC LIMIT 1")?;
        let shared = self.shared.read();
        for &id in self.collections.values() {
            let stored: Option<Vec<u8>> =
                greatest.query_row([id.0], |row| row.get(0)).optional()?;
            let recent = shared.recent.greatest_key(id).map(<[u8]>::to_vec);
            if let Some(key) = stored.max(recent) {
                self.greatest.insert(id, key);
            }
        }
        Ok(())
    }

    /// How far the copy of a collection has come, as last set, committed or not.
    #[must_use]
    pub fn copy_state(&self, collection: CollectionId) -> CopyState {
        self.copies.get(&collection).cloned().unwrap_or_default()
    }

    /// Sets how far the copy of a collection has come; commits with the rest. From the first state
    /// that is not finished to the next that is, what readers of the collection get is marked
    /// incomplete.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn set_copy_state(
        &mut self,
        collection: CollectionId,
        state: CopyState,
    ) -> Result<(), LogError> {
        let finished = state.finished;
        self.store_copy_state(collection, state)?;
        self.settle(collection, finished)
    }

    /// As [`Writer::set_copy_state`], of a copy that begins because the collection changed untold in the
    /// commit at `cluster_time`: up to there the log is exact.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn copy_again(
        &mut self,
        collection: CollectionId,
        state: CopyState,
        cluster_time: u64,
    ) -> Result<(), LogError> {
        self.store_copy_state(collection, state)?;
        self.open_stretches(collection, cluster_time.saturating_sub(1))
    }

    fn store_copy_state(
        &mut self,
        collection: CollectionId,
        state: CopyState,
    ) -> Result<(), LogError> {
        self.begin()?;
        let known = self.collections.iter().find(|(_, id)| **id == collection);
        let (name, _) =
            known.ok_or_else(|| LogError::Refused("there is no such collection".to_owned()))?;
        let stored = StoredCollection {
            id: collection,
            name: name.clone(),
            copying: Some(!state.finished),
            done_through: state.done_through.clone(),
            done_through_id: state.done_through_id.as_ref().map(|id| id.as_bytes().to_vec()),
            documents: state.documents.cast_signed(),
            rules: state.rules.cast_signed(),
            owes_check: state.owes_check,
        };
        stored.write(&self.conn)?;
        self.copies.insert(collection, state);
        Ok(())
    }
}

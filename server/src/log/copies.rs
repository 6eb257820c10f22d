//! How far copies have come.

use rusqlite::OptionalExtension;

use super::write::document_from_store;
use super::{CollectionId, CopyState, LogError, Writer};

impl Writer {
    /// Reads the collections and their copies anew.
    pub(super) fn load_collections(&mut self) -> Result<(), LogError> {
        self.collections.clear();
        self.copies.clear();
        self.greatest.clear();
        self.channels.clear();
        self.channels_len = 0;
        self.looked_up = None;
        let mut select = self.conn.prepare(
            "SELECT id, name, copying, done_through, done_through_id, documents, rules
             FROM collections",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let id = CollectionId(row.get(0)?);
            self.collections.insert(row.get(1)?, id);
            if let Some(copying) = row.get::<_, Option<bool>>(2)? {
                let done_id = row.get::<_, Option<Vec<u8>>>(4)?;
                let state = CopyState {
                    done_through: row.get(3)?,
                    done_through_id: done_id.map(document_from_store).transpose()?,
                    documents: row.get::<_, i64>(5)?.cast_unsigned(),
                    finished: !copying,
                    rules: row.get::<_, i64>(6)?.cast_unsigned(),
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
        self.begin()?;
        self.conn
            .prepare_cached(
                "UPDATE collections SET copying = ?2, done_through = ?3, done_through_id = ?4,
                 documents = ?5, rules = ?6 WHERE id = ?1",
            )?
            .execute((
                collection.0,
                !state.finished,
                &state.done_through,
                state.done_through_id.as_ref().map(|id| id.as_bytes()),
                state.documents.cast_signed(),
                state.rules.cast_signed(),
            ))?;
        let finished = state.finished;
        self.copies.insert(collection, state);
        self.settle(collection, finished)
    }
}

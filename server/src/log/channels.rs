//! Channels and their numbers.

use rusqlite::OptionalExtension;

use super::cursor::name_hash;
use super::postings::put_varint;
use super::{CollectionId, LogError, Writer};

/// Channels whose numbers are kept in memory.
const CHANNELS_CACHED_MAX: usize = 50_000;

impl Writer {
    /// The numbers of channels, as a row holds them.
    pub(super) fn channel_numbers(
        &mut self,
        collection: CollectionId,
        names: &[String],
    ) -> Result<Vec<u8>, LogError> {
        let mut numbers = Vec::with_capacity(names.len() * 3);
        for name in names {
            put_varint(u64::from(self.channel(collection, name)?), &mut numbers);
        }
        Ok(numbers)
    }

    /// The number of a channel, given on first sight.
    fn channel(&mut self, collection: CollectionId, name: &str) -> Result<u32, LogError> {
        if let Some(&id) = self.channels.get(&collection).and_then(|known| known.get(name)) {
            return Ok(id);
        }
        let hash = name_hash(name).cast_signed();
        let found: Option<(u32, String)> = self
            .conn
            .prepare_cached("SELECT id, name FROM channels WHERE collection = ?1 AND hash = ?2")?
            .query_row((collection.0, hash), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let id = match found {
            Some((id, found)) if found == name => id,
            Some((_, found)) if name_hash(&found) != name_hash(name) => {
                return Err(damaged_channel(&found));
            }
            Some((_, found)) => {
                return Err(LogError::Refused(format!(
                    "channels {found:?} and {name:?} have the same hash; rename one"
                )));
            }
            None => {
                self.conn
                    .prepare_cached(
                        "INSERT INTO channels (collection, hash, name) VALUES (?1, ?2, ?3)",
                    )?
                    .execute((collection.0, hash, name))?;
                u32::try_from(self.conn.last_insert_rowid())
                    .map_err(|_| LogError::Refused("there are 2^32 channels".to_owned()))?
            }
        };
        if self.channels_len >= CHANNELS_CACHED_MAX {
            self.channels.clear();
            self.channels_len = 0;
        }
        self.channels.entry(collection).or_default().insert(name.to_owned(), id);
        self.channels_len += 1;
        Ok(id)
    }
}

pub(super) fn damaged_channel(name: &str) -> LogError {
    LogError::Damaged(format!("the channel {name:?} is found by the hash of another name"))
}

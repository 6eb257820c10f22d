//! What can't be carried, by document: kept in the log's file, in the transaction of the change that
//! found it, until a later change says that the document is well again or gone.
//!
//! A document whose key is known has a row among the changes, so that those who could see its last
//! version are told; and, as one whose key is not known, a row in the table for the operator.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use bson::cstr;
use bson::raw::RawDocument;
use rusqlite::Connection;
use tidewire_protocol::Position;

use super::copies::StoredCollection;
use super::guard::{matching, row_checksum};
use super::record::KIND_SET_ASIDE;
use super::write::NewRow;
use super::{CollectionId, LogError, Reader, Writer};

/// Documents that the operator's table lists. What is beyond it is set aside all the same, and listed
/// once there is room and a scrub comes by.
pub const QUARANTINE_MAX: usize = 10_000;
/// Characters of an `_id` that are kept to be shown.
const SHOWN_CHARACTERS_MAX: usize = 200;
/// No sort key begins so: what follows is a digest of an `_id` that is not known.
const DIGEST_MARK: u8 = 0xFF;

/// A document to be set aside.
#[derive(Clone, Copy, Debug)]
pub struct NewAside<'a> {
    /// Where it was found.
    pub position: Position,
    /// When, milliseconds since 1970.
    pub wall_time_ms: i64,
    /// Whose document.
    pub collection: CollectionId,
    /// Why, for people.
    pub reason: &'a str,
    /// Its bytes; 0 where they are not known.
    pub size: u64,
    /// The fingerprint of the rules. Those who could see the last version are told only where that was
    /// under these rules too.
    pub rules: u64,
}

/// A document in quarantine, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The collection's name.
    pub collection: String,
    /// What is known of its `_id`: as a client would see it, at most 200 characters and `…`.
    pub shown_id: String,
    /// Its key is known; else what is shown is no more than a help to find it.
    pub has_key: bool,
    /// Why, for people.
    pub reason: String,
    /// Its bytes; 0 where they are not known.
    pub size: u64,
    /// Where it was last found so.
    pub position: Position,
    /// When, milliseconds since 1970.
    pub wall_time_ms: i64,
}

/// A row of `quarantine`.
#[derive(Clone, Debug)]
pub(super) struct StoredAside {
    pub(super) collection: CollectionId,
    pub(super) key: Vec<u8>,
    shown_id: String,
    has_key: bool,
    reason: String,
    size: u64,
    position: Position,
    wall_time_ms: i64,
}

impl StoredAside {
    /// All of them, by collection and key.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when one does not match its checksum.
    pub(super) fn all(conn: &Connection) -> Result<Vec<Self>, LogError> {
        let mut select = conn.prepare(
            "SELECT collection, key, shown_id, has_key, reason, size, cluster_time, ordinal,
             wall_time, checksum FROM quarantine ORDER BY collection, key",
        )?;
        let mut rows = select.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let stored = Self {
                collection: CollectionId(row.get(0)?),
                key: row.get(1)?,
                shown_id: row.get(2)?,
                has_key: row.get(3)?,
                reason: row.get(4)?,
                size: row.get::<_, i64>(5)?.cast_unsigned(),
                position: Position::new(row.get::<_, i64>(6)?.cast_unsigned(), row.get(7)?),
                wall_time_ms: row.get(8)?,
            };
            let should = stored.checksum();
            all.push(matching("quarantine", stored, row.get(9)?, should)?);
        }
        Ok(all)
    }

    pub(super) fn write(&self, conn: &Connection) -> Result<(), LogError> {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO quarantine (collection, key, shown_id, has_key, reason, size,
             cluster_time, ordinal, wall_time, checksum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute((
            self.collection.0,
            &self.key,
            &self.shown_id,
            self.has_key,
            &self.reason,
            self.size.cast_signed(),
            self.position.cluster_time.cast_signed(),
            self.position.ordinal,
            self.wall_time_ms,
            self.checksum(),
        ))?;
        Ok(())
    }

    fn checksum(&self) -> i64 {
        let numbers = [
            u64::from(self.collection.0),
            u64::from(self.has_key),
            self.size,
            self.position.cluster_time,
            u64::from(self.position.ordinal),
            self.wall_time_ms.cast_unsigned(),
        ];
        let texts = [&self.key[..], self.shown_id.as_bytes(), self.reason.as_bytes()];
        row_checksum("quarantine", &numbers, &texts)
    }
}

/// Which documents are in the table, by a hash of collection and key.
#[derive(Debug, Default)]
pub(super) struct Aside(HashSet<u64>);

impl Aside {
    pub(super) fn load(conn: &Connection) -> Result<Self, LogError> {
        let stored = StoredAside::all(conn)?;
        Ok(Self(stored.iter().map(|stored| hash(stored.collection, &stored.key)).collect()))
    }
}

fn hash(collection: CollectionId, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (collection, key).hash(&mut hasher);
    hasher.finish()
}

/// The table's key of a document whose own is not known.
fn digest_key(digest: &[u8]) -> Vec<u8> {
    [&[DIGEST_MARK], digest].concat()
}

impl Writer {
    /// Sets a document aside in the place of a change: `id` is `{_id: …}`, `key` its sort key.
    ///
    /// # Errors
    /// As [`Writer::append`].
    pub fn set_aside(
        &mut self,
        aside: &NewAside<'_>,
        key: &[u8],
        id: &RawDocument,
        shown_id: &str,
    ) -> Result<(), LogError> {
        let known = self.latest(aside.collection, key)?;
        let mut document = id.to_owned();
        document.append(cstr!("reason"), aside.reason);
        document.append(cstr!("size"), i64::try_from(aside.size).unwrap_or(i64::MAX));
        self.check(aside.position, document.as_bytes().len())?;
        self.begin()?;
        let previous = self.previous(aside.collection, key)?;
        let told = known.is_some_and(|known| known.rules == aside.rules);
        let channels = match &previous {
            Some(previous) if told => previous.channels.clone(),
            _ => Vec::new(),
        };
        self.list_aside(aside, key, shown_id, true)?;
        let row = NewRow {
            position: aside.position,
            wall_time_ms: aside.wall_time_ms,
            collection: aside.collection,
            key,
            kind: KIND_SET_ASIDE,
            document: document.as_bytes(),
            channels: &channels,
            rules: aside.rules,
        };
        self.put(&row, previous)
    }

    /// Lists a document whose key is not known, by a digest of what is. False: the table is full.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn set_aside_unknown(
        &mut self,
        aside: &NewAside<'_>,
        digest: &[u8],
        shown_id: &str,
    ) -> Result<bool, LogError> {
        self.begin()?;
        self.list_aside(aside, &digest_key(digest), shown_id, false)
    }

    /// A document whose key is not known is gone.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn forget_unknown(
        &mut self,
        collection: CollectionId,
        digest: &[u8],
    ) -> Result<(), LogError> {
        self.no_longer_aside(collection, &digest_key(digest))
    }

    /// A document whose key is known is listed.
    #[must_use]
    pub fn is_listed(&self, collection: CollectionId, key: &[u8]) -> bool {
        self.aside.0.contains(&hash(collection, key))
    }

    /// Nothing of the collection is listed any more.
    pub(super) fn unlist(&mut self, collection: CollectionId) -> Result<(), LogError> {
        let mut listed = StoredAside::all(&self.conn)?;
        listed.retain(|stored| stored.collection == collection);
        listed.iter().try_for_each(|stored| self.no_longer_aside(collection, &stored.key))
    }

    /// A document whose key is not known is listed.
    #[must_use]
    pub fn has_unknown(&self, collection: CollectionId, digest: &[u8]) -> bool {
        self.aside.0.contains(&hash(collection, &digest_key(digest)))
    }

    /// Of the documents of a collection whose key is not known, those that `keep` does not name are
    /// gone; how many.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn keep_unknown(
        &mut self,
        collection: CollectionId,
        keep: &HashSet<Vec<u8>>,
    ) -> Result<usize, LogError> {
        if self.aside.0.is_empty() {
            return Ok(0);
        }
        let mut listed = StoredAside::all(&self.conn)?;
        listed.retain(|stored| stored.collection == collection && !stored.has_key);
        let gone = listed.iter().filter(|stored| !keep.contains(&stored.key[1..]));
        let mut count = 0;
        for stored in gone {
            self.no_longer_aside(collection, &stored.key)?;
            count += 1;
        }
        Ok(count)
    }

    /// Documents that are listed, uncommitted ones included.
    #[must_use]
    pub fn quarantine_len(&self) -> usize {
        self.aside.0.len()
    }

    fn list_aside(
        &mut self,
        aside: &NewAside<'_>,
        key: &[u8],
        shown_id: &str,
        has_key: bool,
    ) -> Result<bool, LogError> {
        let hash = hash(aside.collection, key);
        if self.aside.0.len() >= QUARANTINE_MAX && !self.aside.0.contains(&hash) {
            tracing::warn!(listed = QUARANTINE_MAX, "the list of the quarantine is full");
            return Ok(false);
        }
        let stored = StoredAside {
            collection: aside.collection,
            key: key.to_vec(),
            shown_id: shown(shown_id),
            has_key,
            reason: aside.reason.to_owned(),
            size: aside.size,
            position: aside.position,
            wall_time_ms: aside.wall_time_ms,
        };
        stored.write(&self.conn)?;
        self.aside.0.insert(hash);
        Ok(true)
    }

    /// Lists what the log that is rebuilt had in its list.
    pub(super) fn list_as_before(&mut self, stored: &StoredAside) -> Result<(), LogError> {
        self.begin()?;
        stored.write(&self.conn)?;
        self.aside.0.insert(hash(stored.collection, &stored.key));
        Ok(())
    }

    /// A change of the document came that could be carried.
    pub(super) fn no_longer_aside(
        &mut self,
        collection: CollectionId,
        key: &[u8],
    ) -> Result<(), LogError> {
        if self.aside.0.is_empty() || !self.aside.0.remove(&hash(collection, key)) {
            return Ok(());
        }
        self.begin()?;
        self.conn
            .prepare_cached("DELETE FROM quarantine WHERE collection = ?1 AND key = ?2")?
            .execute((collection.0, key))?;
        Ok(())
    }
}

fn shown(id: &str) -> String {
    match id.char_indices().nth(SHOWN_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &id[..end]),
        None => id.to_owned(),
    }
}

impl Reader {
    /// Every document that is listed, by collection and key.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn quarantine(&self) -> Result<Vec<Quarantined>, LogError> {
        self.with_snapshot(|conn| {
            let names = StoredCollection::all(conn)?;
            let name_of = |id| {
                let known = names.iter().find(|known| known.id == id).map(|k| k.name.clone());
                known.ok_or_else(|| {
                    LogError::Damaged("a row of quarantine has no collection".into())
                })
            };
            let listed = StoredAside::all(conn)?.into_iter().map(|stored| {
                Ok(Quarantined {
                    collection: name_of(stored.collection)?,
                    shown_id: stored.shown_id,
                    has_key: stored.has_key,
                    reason: stored.reason,
                    size: stored.size,
                    position: stored.position,
                    wall_time_ms: stored.wall_time_ms,
                })
            });
            let mut listed = listed.collect::<Result<Vec<_>, LogError>>()?;
            // By key within a collection they are already.
            listed.sort_by(|a, b| a.collection.cmp(&b.collection));
            Ok(listed)
        })
    }
}

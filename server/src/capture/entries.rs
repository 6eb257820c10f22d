//! The log's keys in a range, beside what the source has there.

use crate::log::{CollectionId, KeyEntry, LogError, Writer};

/// Keys of the log looked at together.
const KEYS_MAX: usize = 4_096;

/// The log's keys in a range, ascending, a page at a time.
pub(super) struct Entries {
    collection: CollectionId,
    after: Option<Vec<u8>>,
    through: Option<Vec<u8>>,
    page: std::iter::Peekable<std::vec::IntoIter<KeyEntry>>,
    ended: bool,
}

impl Entries {
    pub(super) fn new(
        collection: CollectionId,
        after: Option<Vec<u8>>,
        through: Option<Vec<u8>>,
    ) -> Self {
        let page = Vec::new().into_iter().peekable();
        Self { collection, after, through, page, ended: false }
    }

    /// No keys at all.
    pub(super) fn none(collection: CollectionId) -> Self {
        Self { ended: true, ..Self::new(collection, None, None) }
    }

    fn peek(&mut self, writer: &mut Writer) -> Result<Option<&KeyEntry>, LogError> {
        if self.page.peek().is_none() && !self.ended {
            let (after, through) = (self.after.as_deref(), self.through.as_deref());
            let page = writer.keys_between(self.collection, after, through, KEYS_MAX)?;
            self.ended = page.len() < KEYS_MAX;
            if let Some(last) = page.last() {
                self.after = Some(last.key.clone());
            }
            self.page = page.into_iter().peekable();
        }
        Ok(self.page.peek())
    }

    pub(super) fn next(&mut self, writer: &mut Writer) -> Result<Option<KeyEntry>, LogError> {
        self.peek(writer)?;
        Ok(self.page.next())
    }

    /// The next entry, where it is before `key`.
    pub(super) fn next_before(
        &mut self,
        writer: &mut Writer,
        key: &[u8],
    ) -> Result<Option<KeyEntry>, LogError> {
        let before = self.peek(writer)?.is_some_and(|entry| entry.key.as_slice() < key);
        Ok(if before { self.page.next() } else { None })
    }

    /// The next entry, where it is `key`'s.
    pub(super) fn next_if(
        &mut self,
        writer: &mut Writer,
        key: &[u8],
    ) -> Result<Option<KeyEntry>, LogError> {
        let same = self.peek(writer)?.is_some_and(|entry| entry.key == key);
        Ok(if same { self.page.next() } else { None })
    }
}

/// A key's entry by itself, where the order can't be relied on.
pub(super) fn entry_of(
    writer: &mut Writer,
    collection: CollectionId,
    key: &[u8],
) -> Result<Option<KeyEntry>, LogError> {
    Ok(writer.latest(collection, key)?.map(|latest| KeyEntry {
        key: key.to_vec(),
        position: latest.position,
        live: latest.held().is_some(),
    }))
}

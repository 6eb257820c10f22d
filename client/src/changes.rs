//! Which rows changed, commit by commit, for apps that show them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::Stream;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// Commits that wait for a reader; one that is farther behind is told that anything may have changed.
pub(crate) const COMMITS_WAITING_MAX: usize = 64;
/// Keys that are named of one collection in one commit; beyond them any of its rows may have changed.
const IDS_MAX: usize = 10_000;

/// What one commit of the replica changed. It is there to be read when this is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// The replica equals the source at this position since; `None` where that is not known.
    pub position: Option<String>,
    /// Anything may have changed: a copy was swapped in, another user signed in, or the reader of
    /// these was too slow to be told each commit.
    pub everything: bool,
    /// The collections that have changed rows.
    pub collections: Vec<ChangedRows>,
}

/// The changed rows of a collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangedRows {
    /// The collection's name.
    pub collection: String,
    /// Its table's name: the same, unless SQL dislikes it.
    pub table: String,
    /// The `_id`s of rows that were written or deleted, sorted, 10,000 at most; `None`: any row.
    pub ids: Option<Vec<String>>,
}

impl Changed {
    /// Anything may have changed.
    #[must_use]
    pub fn all() -> Self {
        Self { everything: true, ..Self::default() }
    }
}

/// Commits as they happen, from the moment on at which this was made.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<Arc<Changed>>);

impl Changes {
    pub(crate) fn new(commits: broadcast::Receiver<Arc<Changed>>) -> Self {
        Self(commits)
    }

    /// The next commit; `None` when the client has ended. Can be dropped while it waits.
    pub async fn next(&mut self) -> Option<Arc<Changed>> {
        match self.0.recv().await {
            Ok(changed) => Some(changed),
            Err(RecvError::Lagged(_)) => Some(Arc::new(Changed::all())),
            Err(RecvError::Closed) => None,
        }
    }

    /// A commit that has been told already; `None` where there is none.
    pub(crate) fn try_next(&mut self) -> Option<Arc<Changed>> {
        match self.0.try_recv() {
            Ok(changed) => Some(changed),
            Err(TryRecvError::Lagged(_)) => Some(Arc::new(Changed::all())),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Arc<Changed>> + Send {
        futures::stream::unfold(self, |mut changes| async {
            changes.next().await.map(|changed| (changed, changes))
        })
    }
}

/// Gathers what a commit changes while it is written.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    everything: bool,
    /// By collection: its table, and the keys while they can be named.
    rows: BTreeMap<String, (String, Option<Vec<String>>)>,
}

impl Gathering {
    pub(crate) fn everything(&mut self) {
        self.everything = true;
        self.rows.clear();
    }

    /// `table` of `collection` was made or dropped.
    pub(crate) fn any_row(&mut self, collection: &str, table: &str) {
        if !self.everything {
            self.rows.insert(collection.to_owned(), (table.to_owned(), None));
        }
    }

    pub(crate) fn rows<'a>(
        &mut self,
        collection: &str,
        table: &str,
        ids: impl Iterator<Item = &'a str>,
    ) {
        if self.everything {
            return;
        }
        if !self.rows.contains_key(collection) {
            self.rows.insert(collection.to_owned(), (table.to_owned(), Some(Vec::new())));
        }
        let Some((_, known)) = self.rows.get_mut(collection) else { return };
        let Some(known_ids) = known else { return };
        known_ids.extend(ids.map(str::to_owned));
        if known_ids.len() > IDS_MAX {
            tidy(known_ids);
            if known_ids.len() > IDS_MAX {
                *known = None;
            }
        }
    }

    /// What was gathered, if anything was; the gathering is empty then.
    pub(crate) fn take(&mut self, position: Option<String>) -> Option<Changed> {
        let Self { everything, rows } = std::mem::take(self);
        if !everything && rows.is_empty() {
            return None;
        }
        let collections = rows.into_iter().map(|(collection, (table, mut ids))| {
            if let Some(ids) = &mut ids {
                tidy(ids);
            }
            ChangedRows { collection, table, ids }
        });
        Some(Changed { position, everything, collections: collections.collect() })
    }
}

fn tidy(ids: &mut Vec<String>) {
    ids.sort_unstable();
    ids.dedup();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_names_each_changed_row_once_and_not_without_end() {
        let mut gathering = Gathering::default();
        assert_eq!(gathering.take(None), None);
        gathering.rows("u", "u", ["b", "a", "b"].into_iter());
        let ids: Vec<String> = (0..IDS_MAX + 1).map(|n| n.to_string()).collect();
        gathering.rows("big", "big", ids.iter().map(String::as_str));
        let changed = gathering.take(Some("p".into())).unwrap();
        let named: Vec<_> = changed.collections.into_iter().map(|c| (c.table, c.ids)).collect();
        let users = Some(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(named, [("big".to_owned(), None), ("u".to_owned(), users)]);
        gathering.rows("u", "u", ["a"].into_iter());
        gathering.everything();
        gathering.rows("u", "u", ["a"].into_iter());
        assert_eq!(gathering.take(None), Some(Changed::all()));
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_that_anything_may_have_changed() {
        let (commits, inbox) = broadcast::channel(COMMITS_WAITING_MAX);
        let mut changes = Changes::new(inbox);
        for n in 0..=COMMITS_WAITING_MAX {
            let position = Some(n.to_string());
            commits.send(Arc::new(Changed { position, ..Changed::default() })).unwrap();
        }
        assert!(changes.next().await.unwrap().everything);
        assert_eq!(changes.next().await.unwrap().position.as_deref(), Some("1"), "and then on");
        drop(commits);
        while changes.next().await.is_some() {}
    }
}

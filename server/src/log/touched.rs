//! Which channels the last commits touched: enough to know whom a commit concerns without reading it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::OptionalExtension;

use super::cursor::{View, name_hash};
use super::{LogError, Reader, Scope};

/// Commits that are remembered.
const COMMITS_MAX: usize = 64;
/// A commit that touches more channels than this concerns everybody.
const CHANNELS_MAX: usize = 4_096;

/// A channel of a collection, by hashes of their names; the same for every log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelKey(u64, u64);

/// What was touched since some change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// These channels' numbers, in no order, some perhaps more than once.
    Channels(Vec<u32>),
    /// Too much, or too long ago to be known: any channel may have been.
    Anything,
}

/// The last commits: each one's last change and the channels it touched, `None` for any.
#[derive(Clone, Debug, Default)]
pub(super) struct LastCommits(Arc<Mutex<VecDeque<Commit>>>);

#[derive(Debug)]
struct Commit {
    after: u64,
    through: u64,
    channels: Option<Vec<u32>>,
}

impl LastCommits {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Commit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit of the changes in `(after, through]`.
    pub(super) fn add(&self, after: u64, through: u64, channels: Option<Vec<u32>>) {
        let channels = channels.filter(|channels| channels.len() <= CHANNELS_MAX);
        let mut commits = self.lock();
        if commits.len() == COMMITS_MAX {
            commits.pop_front();
        }
        commits.push_back(Commit { after, through, channels });
    }

    fn since(&self, after: u64) -> Touched {
        let commits = self.lock();
        let newer = commits.iter().filter(|commit| commit.through > after);
        let mut covered = after;
        let mut all = Vec::new();
        for commit in newer {
            let Some(channels) = commit.channels.as_ref().filter(|_| commit.after <= covered)
            else {
                return Touched::Anything;
            };
            all.extend_from_slice(channels);
            covered = commit.through;
        }
        Touched::Channels(all)
    }
}

impl Reader {
    /// The channels that the changes after `after` (exclusive, a [`super::Head`]'s `seq`) touched: those
    /// that a document is in, and those that it left. Reads no store.
    #[must_use]
    pub fn touched_since(&self, after: u64) -> Touched {
        self.last_commits().since(after)
    }

    /// Whose number this is; `None` where no such channel is committed.
    ///
    /// # Errors
    /// [`LogError::Store`].
    pub fn channel_key(&self, number: u32) -> Result<Option<ChannelKey>, LogError> {
        self.with_snapshot(|conn| {
            let key = conn
                .prepare_cached(
                    "SELECT c.name, ch.hash FROM channels ch JOIN collections c ON c.id = ch.collection
                     WHERE ch.id = ?1",
                )?
                .query_row([number], |row| {
                    let collection: String = row.get(0)?;
                    Ok(ChannelKey(name_hash(&collection), row.get::<_, i64>(1)?.cast_unsigned()))
                })
                .optional()?;
            Ok(key)
        })
    }
}

impl ChannelKey {
    /// The hashes of the collection's and the channel's names.
    pub(super) fn pair(self) -> (u64, u64) {
        (self.0, self.1)
    }

    /// The keys of all pairs of these collections and channels.
    #[must_use]
    pub fn of(collections: &[String], channels: &[String]) -> Box<[Self]> {
        let view = View::of(&Scope::Channels { collections, channels });
        view.pairs().map(|(collection, channel)| Self(collection, channel)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_may_be_anything() {
        let commits = LastCommits::default();
        assert_eq!(commits.since(0), Touched::Channels(vec![]));
        commits.add(0, 3, Some(vec![1, 2]));
        commits.add(3, 4, Some(vec![2, 5]));
        assert_eq!(commits.since(0), Touched::Channels(vec![1, 2, 2, 5]));
        assert_eq!(commits.since(3), Touched::Channels(vec![2, 5]));
        assert_eq!(commits.since(4), Touched::Channels(vec![]));
        commits.add(4, 9, None);
        assert_eq!(commits.since(3), Touched::Anything);
        assert_eq!(commits.since(9), Touched::Channels(vec![]));
        for n in 9..9 + COMMITS_MAX as u64 {
            commits.add(n, n + 1, Some(vec![7]));
        }
        assert_eq!(commits.since(8), Touched::Anything, "forgotten");
        assert_eq!(commits.since(9), Touched::Channels(vec![7; COMMITS_MAX]));
    }
}

//! Whom a commit concerns: sockets wait by the channels they watch, and a commit wakes those whose
//! channels it touched and nobody else. It tells each which of them: what a commit holds for a reader
//! depends on nothing else, so readers that it concerns alike share what is read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::log::{ChannelKey, Head, LogError, Reader, Touched};
use crate::status::StatusReceiver;

/// Channels whose keys are kept by number.
const KEYS_MAX: usize = 100_000;
/// Pairs of a collection and a channel that a socket watches; with more every commit wakes it.
const PAIRS_MAX: usize = 4_096;
/// Channels that a socket is told of; with more touched it reads all that it watches.
const TOLD_MAX: usize = 32;

type Watcher = u64;

/// Everybody who waits.
#[derive(Debug, Default)]
pub(crate) struct Hub(Mutex<Registry>);

#[derive(Debug, Default)]
struct Registry {
    next: Watcher,
    all: HashMap<Watcher, Arc<Bell>>,
    /// Those who watch more than [`PAIRS_MAX`].
    many: HashMap<Watcher, Arc<Bell>>,
    by_channel: HashMap<ChannelKey, HashMap<Watcher, Arc<Bell>>>,
    /// Everything through this head has been told.
    told: Head,
}

/// What one who waits has not heard.
#[derive(Debug, Default)]
struct Bell {
    rung: Notify,
    news: Mutex<Option<News>>,
}

/// The commits that touched what somebody watches, since it last asked: one stretch of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct News {
    /// The head before the first of them.
    pub(super) after: Head,
    /// The head after the last.
    pub(super) through: Head,
    /// What they touched of what is watched, ascending; `None`: it may be anything.
    pub(super) channels: Option<Vec<ChannelKey>>,
}

/// One who waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    hub: Arc<Hub>,
    watcher: Watcher,
    channels: Box<[ChannelKey]>,
    bell: Arc<Bell>,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches all pairs of these collections and channels. What is committed from now on wakes it.
    pub(super) fn watch(self: &Arc<Self>, collections: &[String], channels: &[String]) -> Watch {
        let is_many = collections.len().saturating_mul(channels.len()) > PAIRS_MAX;
        let channels = if is_many { Box::default() } else { ChannelKey::of(collections, channels) };
        let bell = Arc::new(Bell::default());
        let mut registry = self.lock();
        let watcher = registry.next;
        registry.next += 1;
        registry.all.insert(watcher, Arc::clone(&bell));
        if is_many {
            registry.many.insert(watcher, Arc::clone(&bell));
        }
        for key in &channels {
            registry.by_channel.entry(*key).or_default().insert(watcher, Arc::clone(&bell));
        }
        drop(registry);
        Watch { hub: Arc::clone(self), watcher, channels, bell }
    }

    /// Tells everybody who watches one of these channels (`None`: everybody) of the commits between two
    /// heads.
    fn tell(&self, after: Head, through: Head, keys: Option<&[ChannelKey]>) {
        let mut registry = self.lock();
        registry.told = through;
        let Some(keys) = keys else {
            for bell in registry.all.values() {
                bell.ring(after, through, None);
            }
            return;
        };
        if !keys.is_empty() {
            for bell in registry.many.values() {
                bell.ring(after, through, None);
            }
        }
        for key in keys {
            for bell in registry.by_channel.get(key).into_iter().flat_map(HashMap::values) {
                bell.ring(after, through, Some(*key));
            }
        }
    }
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, Option<News>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, after: Head, through: Head, key: Option<ChannelKey>) {
        let mut news = self.lock();
        let news = news.get_or_insert(News { after, through, channels: Some(Vec::new()) });
        news.through = through;
        match (&mut news.channels, key) {
            (Some(channels), Some(key)) if channels.len() < TOLD_MAX => {
                if let Err(at) = channels.binary_search(&key) {
                    channels.insert(at, key);
                }
            }
            (channels, _) => *channels = None,
        }
        self.rung.notify_one();
    }
}

impl Watch {
    /// Until something that is watched was touched since the last time.
    pub(super) async fn woken(&self) {
        self.bell.rung.notified().await;
    }

    /// Takes what there is to hear: of each commit all that is watched, or nothing yet.
    pub(super) fn news(&self) -> Option<News> {
        // A commit rings for one channel after the other, with the hub locked.
        let _told = self.hub.lock();
        self.bell.lock().take()
    }

    /// Nothing to hear: up to this head nothing that is watched was touched since the last time.
    pub(super) fn quiet_through(&self) -> Option<Head> {
        let told = self.hub.lock().told;
        self.bell.lock().is_none().then_some(told)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut registry = self.hub.lock();
        registry.all.remove(&self.watcher);
        registry.many.remove(&self.watcher);
        for key in &self.channels {
            if let Some(watchers) = registry.by_channel.get_mut(key) {
                watchers.remove(&self.watcher);
                if watchers.is_empty() {
                    registry.by_channel.remove(key);
                }
            }
        }
    }
}

/// Follows the head from now on and wakes whom each commit concerns, until the server drains. The end of
/// a copy concerns everybody: what was incomplete is complete, and a collection may have become visible.
pub(crate) fn follow(
    hub: Arc<Hub>,
    reader: Reader,
    mut status: StatusReceiver,
    draining: CancellationToken,
) -> impl Future<Output = ()> {
    let mut head = reader.head();
    let seen = *head.borrow_and_update();
    hub.tell(seen, seen, Some(&[]));
    let copying = status.borrow_and_update().copies.keys().cloned().collect();
    go_on(hub, reader, (head, seen), (status, copying), draining)
}

async fn go_on(
    hub: Arc<Hub>,
    reader: Reader,
    (mut head, mut seen): (watch::Receiver<Head>, Head),
    (mut status, mut copying): (StatusReceiver, Vec<String>),
    draining: CancellationToken,
) {
    let mut keys = Keys { reader: reader.clone(), known: HashMap::new() };
    loop {
        let moved = tokio::select! {
            () = draining.cancelled() => return,
            moved = head.changed() => moved,
            Ok(()) = status.changed() => {
                let status = status.borrow_and_update();
                if !copying.iter().eq(status.copies.keys()) {
                    let ended = copying.iter().any(|name| !status.copies.contains_key(name));
                    copying = status.copies.keys().cloned().collect();
                    if ended {
                        hub.tell(seen, seen, None);
                    }
                }
                continue;
            }
        };
        if moved.is_err() {
            return;
        }
        let now = *head.borrow_and_update();
        // An idle source moves the head too, and nobody's channel.
        let touched = match reader.touched_since(seen.seq) {
            Touched::Anything => None,
            Touched::Channels(mut numbers) => {
                numbers.sort_unstable();
                numbers.dedup();
                keys.of(numbers).await.map_or_else(
                    |error| {
                        tracing::warn!(%error, "the log can't tell whom a commit concerns; all are woken");
                        None
                    },
                    Some,
                )
            }
        };
        hub.tell(seen, now, touched.as_deref());
        seen = now;
    }
}

/// Channels' keys by their numbers, read once.
struct Keys {
    reader: Reader,
    known: HashMap<u32, ChannelKey>,
}

impl Keys {
    async fn of(&mut self, numbers: Vec<u32>) -> Result<Vec<ChannelKey>, LogError> {
        let unknown: Vec<u32> =
            numbers.iter().copied().filter(|number| !self.known.contains_key(number)).collect();
        if !unknown.is_empty() {
            if self.known.len() + unknown.len() > KEYS_MAX {
                self.known.clear();
                return self.read(numbers).await;
            }
            self.read(unknown).await?;
        }
        Ok(numbers.iter().filter_map(|number| self.known.get(number).copied()).collect())
    }

    /// Reads the keys of these numbers and keeps them.
    async fn read(&mut self, numbers: Vec<u32>) -> Result<Vec<ChannelKey>, LogError> {
        let reader = self.reader.clone();
        let read = tokio::task::spawn_blocking(move || {
            let key = |number| Ok(reader.channel_key(number)?.map(|key| (number, key)));
            numbers.into_iter().filter_map(|number| key(number).transpose()).collect()
        });
        let read: Result<Vec<(u32, ChannelKey)>, LogError> =
            read.await.map_err(|error| LogError::Damaged(error.to_string()))?;
        let read = read?;
        self.known.extend(read.iter().copied());
        Ok(read.into_iter().map(|(_, key)| key).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_watches_very_much_is_woken_by_every_commit_and_registered_once() {
        let names = |count: usize| (0..count).map(|n| format!("name{n}")).collect::<Vec<_>>();
        let hub = Arc::new(Hub::default());
        let much = hub.watch(&names(PAIRS_MAX / 64 + 1), &names(64));
        assert!(hub.lock().by_channel.is_empty());
        let little = hub.watch(&names(PAIRS_MAX / 64), &names(64));
        assert_eq!(hub.lock().by_channel.len(), PAIRS_MAX);
        let head = |seq| Head { seq, ..Head::default() };
        hub.tell(head(0), head(0), Some(&[]));
        assert_eq!(much.news(), None, "an idle source wakes nobody");
        let other = ChannelKey::of(&["other".to_owned()], &["channel".to_owned()]);
        hub.tell(head(0), head(1), Some(&other));
        let all = News { after: head(0), through: head(1), channels: None };
        assert_eq!((much.news(), little.news()), (Some(all), None));
        drop((much, little));
        let registry = hub.lock();
        assert!(registry.many.is_empty() && registry.by_channel.is_empty());
    }

    #[test]
    fn what_a_commit_touched_of_what_is_watched_is_heard_at_once_or_not_yet() {
        let hub = Arc::new(Hub::default());
        let channels: Vec<String> = (0..8).map(|n| format!("channel{n}")).collect();
        let watch = hub.watch(&["items".to_owned()], &channels);
        let keys = ChannelKey::of(&["items".to_owned()], &channels);
        let head = |seq| Head { seq, ..Head::default() };
        const COMMITS: u64 = 20_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for seq in 0..COMMITS {
                    hub.tell(head(seq), head(seq + 1), Some(&keys));
                }
            });
            let mut heard = 0;
            while heard < COMMITS {
                let Some(news) = watch.news() else { continue };
                assert_eq!(news.after.seq, heard, "nothing is told twice or left out");
                assert_eq!(news.channels.map(|told| told.len()), Some(keys.len()));
                heard = news.through.seq;
            }
        });
    }
}

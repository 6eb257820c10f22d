//! Whom a commit concerns: sockets wait by the channels they watch, and a commit wakes those whose
//! channels it touched and nobody else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::log::{ChannelKey, LogError, Reader, Touched};
use crate::status::StatusReceiver;

/// Channels whose keys are kept by number.
const KEYS_MAX: usize = 100_000;

type Watcher = u64;

/// Everybody who waits.
#[derive(Debug, Default)]
pub(crate) struct Hub(Mutex<Registry>);

#[derive(Debug, Default)]
struct Registry {
    next: Watcher,
    all: HashMap<Watcher, Arc<Notify>>,
    by_channel: HashMap<ChannelKey, HashMap<Watcher, Arc<Notify>>>,
}

/// One who waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    hub: Arc<Hub>,
    watcher: Watcher,
    channels: Box<[ChannelKey]>,
    woken: Arc<Notify>,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches all pairs of these collections and channels. What is committed from now on wakes it.
    pub(super) fn watch(self: &Arc<Self>, collections: &[String], channels: &[String]) -> Watch {
        let channels = ChannelKey::of(collections, channels);
        let woken = Arc::new(Notify::new());
        let mut registry = self.lock();
        let watcher = registry.next;
        registry.next += 1;
        registry.all.insert(watcher, Arc::clone(&woken));
        for key in &channels {
            registry.by_channel.entry(*key).or_default().insert(watcher, Arc::clone(&woken));
        }
        drop(registry);
        Watch { hub: Arc::clone(self), watcher, channels, woken }
    }

    fn wake_all(&self) {
        for woken in self.lock().all.values() {
            woken.notify_one();
        }
    }

    fn wake(&self, keys: &[ChannelKey]) {
        let registry = self.lock();
        for watchers in keys.iter().filter_map(|key| registry.by_channel.get(key)) {
            for woken in watchers.values() {
                woken.notify_one();
            }
        }
    }
}

impl Watch {
    /// Until something that is watched was touched since the last time.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut registry = self.hub.lock();
        registry.all.remove(&self.watcher);
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

/// Follows the head and wakes whom each commit concerns, until the server drains. The end of a copy
/// concerns everybody: what was incomplete is complete, and a collection may have become visible.
pub(crate) async fn follow(
    hub: Arc<Hub>,
    reader: Reader,
    mut status: StatusReceiver,
    draining: CancellationToken,
) {
    let mut copying: Vec<String> = status.borrow_and_update().copies.keys().cloned().collect();
    let mut head = reader.head();
    let mut seen = head.borrow_and_update().seq;
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
                        hub.wake_all();
                    }
                }
                continue;
            }
        };
        if moved.is_err() {
            return;
        }
        let now = head.borrow_and_update().seq;
        if now == seen {
            continue;
        }
        match reader.touched_since(seen) {
            Touched::Anything => hub.wake_all(),
            Touched::Channels(mut numbers) => {
                numbers.sort_unstable();
                numbers.dedup();
                match keys.of(numbers).await {
                    Ok(touched) => hub.wake(&touched),
                    Err(error) => {
                        tracing::warn!(%error, "the log can't tell whom a commit concerns; all are woken");
                        hub.wake_all();
                    }
                }
            }
        }
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

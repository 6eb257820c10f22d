//! What happened to a server's log, as far as it excuses that a cursor is not continued.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tidewire_protocol::ResyncReason;
use tidewire_server::log::Cursor;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::stage::{COLLECTIONS, ServerSite};

/// A copy is necessary from a little before the time that the server's line names.
const BEFORE: Duration = Duration::from_secs(10);
/// A server that was stopped may have been so far behind.
const LAG_MAX: Duration = Duration::from_secs(60);

/// Shared by those who break a log and those who look at it.
#[derive(Debug, Default)]
pub(super) struct History {
    logs: AtomicU64,
    is_away: Mutex<bool>,
    is_suspect: AtomicBool,
    was_damaged: AtomicBool,
    was_unwritable: AtomicBool,
    configurations: AtomicU64,
}

impl History {
    /// Which log it is: a lost, restored or rebuilt one is another one.
    pub(super) fn generation(&self) -> u64 {
        self.logs.load(Ordering::SeqCst)
    }

    /// Another log is in the place of the one before. To be said while no server runs on it.
    pub(super) fn replaced(&self) {
        self.logs.fetch_add(1, Ordering::SeqCst);
    }

    /// Keeps the log from being taken away; `None` while it is.
    pub(super) fn reading(&self) -> Option<MutexGuard<'_, bool>> {
        let is_away = self.is_away.lock().unwrap_or_else(PoisonError::into_inner);
        (!*is_away).then_some(is_away)
    }

    /// Waits for whoever reads.
    pub(super) fn take_away(&self) {
        *self.is_away.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    pub(super) fn give_back(&self) {
        *self.is_away.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Bytes of it are flipped, or it is whole again.
    pub(super) fn set_suspect(&self, is_suspect: bool) {
        self.is_suspect.store(is_suspect, Ordering::SeqCst);
        self.was_damaged.fetch_or(is_suspect, Ordering::SeqCst);
    }

    /// A server on it may refuse everything.
    pub(super) fn is_suspect(&self) -> bool {
        self.is_suspect.load(Ordering::SeqCst)
    }

    pub(super) fn was_damaged(&self) -> bool {
        self.was_damaged.load(Ordering::SeqCst)
    }

    /// From now on it may be that it can't be written.
    pub(super) fn set_unwritable(&self) {
        self.was_unwritable.store(true, Ordering::SeqCst);
    }

    pub(super) fn was_unwritable(&self) -> bool {
        self.was_unwritable.load(Ordering::SeqCst)
    }

    /// Which configuration it is read with. One that comes back counts as another one.
    pub(super) fn configuration(&self) -> u64 {
        self.configurations.load(Ordering::SeqCst)
    }

    /// Another one holds from now on. To be said while no server runs on it.
    pub(super) fn configured(&self) {
        self.configurations.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whether a server may refuse to continue a cursor. `is_own`: the log that it has now gave the cursor out.
pub(super) fn may_refuse(
    server: &ServerSite,
    cursor: &Cursor,
    is_own: bool,
    reason: ResyncReason,
) -> bool {
    match reason {
        ResyncReason::CursorTooOld => {
            let time = cursor.position().cluster_time;
            is_older(time, server.retention)
                || stretches(&server.log()).iter().any(|s| s.0 <= time && time <= s.1)
        }
        // What is complete, any log of the source goes on with.
        ResyncReason::ForeignLog => !cursor.is_complete() && !is_own,
        // By which rules it told what, a log knows of itself.
        ResyncReason::RulesChanged => !is_own,
    }
}

fn is_older(time: u64, retention: Duration) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    (time >> 32) + retention.as_secs() <= now + 1
}

/// From where to where a log may not know what the holder of another log's cursor has: it copied then. By
/// the server's own lines.
fn stretches(log: &Path) -> Vec<(u64, u64)> {
    let text = std::fs::read(log).unwrap_or_default();
    let mut all: Vec<(usize, u64, u64)> = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        if is_rebuilt(line) {
            all.extend((0..COLLECTIONS.len()).map(|collection| (collection, 0, u64::MAX)));
        }
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let fields = &line["fields"];
        let time = |name: &str| fields[name].as_u64().unwrap_or(0);
        let named = (0..COLLECTIONS.len())
            .filter(|collection| Some(COLLECTIONS[*collection]) == fields["collection"].as_str());
        match fields["message"].as_str().unwrap_or_default() {
            "copies begin" => {
                let from = before(time("from"), BEFORE);
                all.extend((0..COLLECTIONS.len()).map(|collection| (collection, from, u64::MAX)));
            }
            "the collection is copied again" => {
                let from = time("cluster_time");
                all.extend(named.map(|collection| (collection, from, u64::MAX)));
            }
            message if message.starts_with("no longer followed") => {
                let from = before(written(&line), LAG_MAX);
                all.extend(named.map(|collection| (collection, from, u64::MAX)));
            }
            "the copy is finished" => {
                for collection in named {
                    let open = |s: &&mut (usize, u64, u64)| s.0 == collection && s.2 == u64::MAX;
                    all.iter_mut().filter(open).for_each(|s| s.2 = time("cluster_time"));
                }
            }
            _ => {}
        }
    }
    all.into_iter().map(|(_, from, through)| (from, through)).collect()
}

/// Copies that a server has ever begun; `None` while one is under way. What is made of its log then is
/// unfinished, and nobody says when it begins there.
pub(super) fn copies(server: &ServerSite) -> Option<usize> {
    let all = stretches(&server.log());
    all.iter().all(|(_, through)| *through < u64::MAX).then_some(all.len())
}

/// What `log rebuild` says: everything is compared with the source.
pub(super) fn is_rebuilt(line: &str) -> bool {
    line.starts_with("kept ") && line.contains(" were damaged")
}

fn before(time: u64, by: Duration) -> u64 {
    time.saturating_sub(by.as_secs() << 32)
}

/// When a line was written, as a cluster time.
fn written(line: &Value) -> u64 {
    let text = line["timestamp"].as_str().unwrap_or_default();
    let at = OffsetDateTime::parse(text, &Rfc3339).map_or(0, OffsetDateTime::unix_timestamp);
    at.unsigned_abs() << 32
}

//! The memory that frames may take, of all sockets together, from their making until they are sent.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Memory for frames, KiB.
const FRAMES_KIB: u32 = 24 * 1024;
/// Memory for what commits tell, KiB: those who are told it need not wait for those who catch up.
pub(super) const NEWS_KIB: u32 = 8 * 1024;
/// What is set aside for a frame while it is made; one that turns out larger is made again.
const RESERVE_KIB: u32 = 256;
/// Memory for frames larger than that (a change comes whole, however large its document), KiB. A single
/// one may be beyond it, and is alone then.
const LARGE_KIB: u32 = 24 * 1024;
/// How long a socket waits for memory before those that take nothing are asked to go.
const WAIT: Duration = Duration::from_millis(250);

/// What memory is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// What commits tell.
    News,
    /// A frame of somebody who catches up.
    Frame,
    /// A frame of this many KiB.
    Large(u32),
}

/// The pools.
#[derive(Debug)]
pub(super) struct Memory {
    news: Arc<Semaphore>,
    frames: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Told when a socket waits for memory in vain.
    pub(super) wanted: Notify,
}

impl Default for Memory {
    fn default() -> Self {
        let pool = |kib: u32| Arc::new(Semaphore::new(kib as usize));
        let (news, frames, large) = (pool(NEWS_KIB), pool(FRAMES_KIB), pool(LARGE_KIB));
        Self { news, frames, large, wanted: Notify::new() }
    }
}

impl Memory {
    /// Waits until there is memory for one; `None` never, as no pool is ever closed.
    pub(super) async fn take(&self, purpose: Purpose) -> Option<OwnedSemaphorePermit> {
        let (pool, kib) = match purpose {
            Purpose::News => (&self.news, RESERVE_KIB),
            Purpose::Frame => (&self.frames, RESERVE_KIB),
            Purpose::Large(kib) => (&self.large, kib.min(LARGE_KIB)),
        };
        let mut taken = std::pin::pin!(Arc::clone(pool).acquire_many_owned(kib));
        loop {
            match tokio::time::timeout(WAIT, taken.as_mut()).await {
                Ok(taken) => return taken.ok(),
                Err(_) => self.wanted.notify_waiters(),
            }
        }
    }
}

/// The KiB that a frame of so many bytes needs beyond what `memory` is; `None` where it fits.
pub(super) fn needed(bytes: usize, memory: &OwnedSemaphorePermit) -> Option<u32> {
    let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    (kib.min(LARGE_KIB) as usize > memory.num_permits()).then_some(kib)
}

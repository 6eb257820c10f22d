//! How fast the source is read by what has time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The longest wait for one chunk …
const CHUNK_WAIT_MAX: Duration = Duration::from_secs(30);
/// … and for all that was sorted by now: what was begun in one day's hours is gone on with in the next day's.
const SORT_WAIT_MAX: Duration = Duration::from_secs(72_000);

/// What slow reads, one after another and over all runs of the stream, have had the source read: a read is
/// made at once and waited for afterwards. Rates are bytes per second; without one nothing is counted.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// By then it is no more than the rate allows.
    paid_at: Mutex<Option<Instant>>,
}

impl Pace {
    /// The source has read a chunk of so many bytes.
    pub(super) fn chunk(&self, bytes: u64, rate: Option<u32>) {
        self.charge(bytes, rate, CHUNK_WAIT_MAX);
    }

    /// The source reads a collection of so many bytes, to sort it. Returns how long that is to be waited for.
    pub(super) fn sorted(&self, bytes: u64, rate: Option<u32>) -> Duration {
        self.charge(bytes, rate, SORT_WAIT_MAX)
    }

    fn charge(&self, bytes: u64, rate: Option<u32>, wait_max: Duration) -> Duration {
        let Some(rate) = rate else { return Duration::ZERO };
        let wait = Duration::from_secs_f64(bytes as f64 / f64::from(rate.max(1))).min(wait_max);
        let now = Instant::now();
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = paid_at.map_or(now, |paid_at| paid_at.max(now));
        let at = (owed + wait).min(now + SORT_WAIT_MAX);
        *paid_at = Some(at);
        at - now
    }

    /// Returns when a slow read may begin, or go on.
    pub(super) async fn wait(&self, rate: Option<u32>) {
        let paid_at = *self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(_), Some(paid_at)) = (rate, paid_at) {
            sleep_until(paid_at).await;
        }
    }
}

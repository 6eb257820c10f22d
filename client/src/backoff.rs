//! How long to wait before the next try: doubling, capped, spread by chance so that ten thousand
//! clients that lost one server do not come back in one moment.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Exponential back-off with jitter: the n-th delay lies between half of `first · 2ⁿ` and all of it,
/// never above `cap`.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    cap: Duration,
    attempts: u32,
    chance: SmallRng,
}

impl Backoff {
    /// Starts at `first` (its half at least), ends at `cap`.
    #[must_use]
    pub(crate) fn new(first: Duration, cap: Duration, seed: u64) -> Self {
        Self { first, cap, attempts: 0, chance: SmallRng::seed_from_u64(seed) }
    }

    /// The next delay, longer than the one before as far as chance and the cap allow.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let whole = self.first.saturating_mul(1 << self.attempts.min(30)).min(self.cap);
        self.attempts = self.attempts.saturating_add(1);
        whole.mul_f64(self.chance.random_range(0.5..=1.0))
    }

    /// `delay`, and up to a fifth more: for delays that somebody else named to everybody.
    pub(crate) fn spread(&mut self, delay: Duration) -> Duration {
        delay.mul_f64(self.chance.random_range(1.0..=1.2))
    }

    /// Delays given since the last reset.
    #[must_use]
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// It worked: the next delay is a short one again.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_within_their_jitter() {
        let (first, cap) = (Duration::from_millis(500), Duration::from_secs(60));
        for seed in 0..200 {
            let mut backoff = Backoff::new(first, cap, seed);
            for attempt in 0..100_u32 {
                let whole = first.saturating_mul(1 << attempt.min(20)).min(cap);
                let delay = backoff.next_delay();
                assert!(delay >= whole / 2 && delay <= whole, "seed {seed}, attempt {attempt}");
            }
            backoff.reset();
            assert!(backoff.next_delay() <= first);
        }
    }

    #[test]
    fn a_named_delay_is_never_cut_short() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(2), 7);
        for _ in 0..200 {
            let delay = backoff.spread(Duration::from_secs(10));
            assert!(delay >= Duration::from_secs(10) && delay <= Duration::from_secs(12));
        }
    }
}

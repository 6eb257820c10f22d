//! How often one subject may ask: a bucket each, so that one that floods is told to wait and nobody else
//! notices. The other side's address says nothing: many users share one behind a proxy, and who has no
//! good token costs little.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidewire_protocol::ErrorCode;

use super::errors::ApiError;

/// Subjects that are remembered; with more, those who have not asked for a while are forgotten, and in
/// a flood of subjects all.
const SUBJECTS_MAX: usize = 50_000;

/// How often one subject may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests a second, in the long run; at least 1.
    pub per_second: u32,
    /// Requests at once after a rest; at least 1.
    pub burst: u32,
}

/// What each subject has left.
#[derive(Debug)]
pub(super) struct Buckets {
    rate: Rate,
    buckets: Mutex<HashMap<Box<str>, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn fill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * f64::from(rate.per_second)).min(f64::from(rate.burst));
        self.at = now;
    }
}

impl Buckets {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// One more request of `subject`; where it is one too many, how long until the next may come.
    fn take(&self, subject: &str, now: Instant) -> Result<(), Duration> {
        let rate = self.rate;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(subject) {
            if buckets.len() >= SUBJECTS_MAX {
                buckets.retain(|_, bucket| {
                    bucket.fill(rate, now);
                    bucket.left < f64::from(rate.burst)
                });
            }
            if buckets.len() >= SUBJECTS_MAX {
                buckets.clear();
            }
            buckets.insert(subject.into(), Bucket { left: f64::from(rate.burst), at: now });
        }
        let Some(bucket) = buckets.get_mut(subject) else { return Ok(()) };
        bucket.fill(rate, now);
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / f64::from(rate.per_second)));
        }
        bucket.left -= 1.0;
        Ok(())
    }

    pub(super) fn check(&self, subject: &str) -> Result<(), ApiError> {
        self.take(subject, Instant::now()).map_err(|wait| {
            let message = format!(
                "this token's subject asks more than {} times a second",
                self.rate.per_second
            );
            let remedy =
                "wait for Retry-After; a long poll or the push socket tells changes at once";
            let seconds = u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX);
            ApiError::new(ErrorCode::RateLimited, message, remedy).retry_after(seconds)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_floods_waits_and_nobody_else_does() {
        let buckets = Buckets::new(Rate { per_second: 10, burst: 20 });
        let began = Instant::now();
        for _ in 0..20 {
            assert_eq!(buckets.take("ada", began), Ok(()));
        }
        assert!(buckets.take("ada", began).is_err_and(|wait| wait <= Duration::from_millis(100)));
        assert_eq!(buckets.take("bob", began), Ok(()));
        let mut taken = 0;
        for ms in 0..10_000 {
            taken += usize::from(buckets.take("ada", began + Duration::from_millis(ms)).is_ok());
        }
        assert!((98..=101).contains(&taken), "{taken} in 10 s");
        // After a rest it may ask as often as ever, and no more.
        let rested = began + Duration::from_secs(1_000);
        assert_eq!((0..30).filter(|_| buckets.take("ada", rested).is_ok()).count(), 20);
    }

    #[test]
    fn a_flood_of_subjects_is_not_remembered_without_bound() {
        let buckets = Buckets::new(Rate { per_second: 1, burst: 1 });
        let began = Instant::now();
        for n in 0..SUBJECTS_MAX + 10 {
            buckets.take(&n.to_string(), began).ok();
        }
        assert!(buckets.buckets.lock().unwrap().len() <= SUBJECTS_MAX);
    }
}

//! What has happened so far, in numbers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mongodb::Database;
use time::OffsetDateTime;

use super::watch::News;
use crate::sample::{COLLECTIONS, Operation, Write, count};

/// Lags that the percentiles are taken over.
const LAGS_MAX: usize = 2_000;
/// Changes that are shown.
pub(super) const RECENT_MAX: usize = 10;
/// The rate is taken over so long.
const RATE_OVER: Duration = Duration::from_secs(5);
const COUNT_EVERY: Duration = Duration::from_secs(1);
const SOURCE_PATIENCE: Duration = Duration::from_millis(500);

/// A write that has arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) at: OffsetDateTime,
    pub(super) write: Write,
    pub(super) lag: Duration,
    pub(super) is_right: bool,
}

#[derive(Debug)]
pub(super) struct Tally {
    pub(super) started: Instant,
    pub(super) rate: f64,
    pub(super) writes: u64,
    pub(super) wrong: u64,
    pub(super) recent: VecDeque<Arrival>,
    pub(super) state: String,
    pub(super) source: Option<[u64; 5]>,
    pub(super) replica: [u64; 5],
    changes: VecDeque<(Instant, u32)>,
    lags: VecDeque<Duration>,
    counted: Option<Instant>,
}

impl Tally {
    pub(super) fn new(rate: f64) -> Self {
        Self {
            started: Instant::now(),
            rate,
            writes: 0,
            wrong: 0,
            recent: VecDeque::new(),
            state: String::new(),
            source: None,
            replica: [0; 5],
            changes: VecDeque::new(),
            lags: VecDeque::new(),
            counted: None,
        }
    }

    /// Counts; gives back what has arrived, to be shown.
    pub(super) fn take(&mut self, news: News) -> Option<Arrival> {
        let News::Arrived { write, lag, is_right } = news else {
            if let News::Counted { rows, state } = news {
                (self.replica, self.state) = (rows, state);
            }
            return None;
        };
        self.writes += 1;
        self.wrong += u64::from(!is_right);
        self.changes.push_back((Instant::now(), write.changes));
        self.lags.push_back(lag);
        if self.lags.len() > LAGS_MAX {
            self.lags.pop_front();
        }
        let arrival = Arrival { at: OffsetDateTime::now_utc(), write, lag, is_right };
        self.recent.push_front(arrival.clone());
        self.recent.truncate(RECENT_MAX);
        Some(arrival)
    }

    /// Counts the source's documents, now and then, and never waits long for it.
    pub(super) async fn count_source(&mut self, source: &Database) {
        if self.counted.is_some_and(|counted| counted.elapsed() < COUNT_EVERY) {
            return;
        }
        self.counted = Some(Instant::now());
        let counts = COLLECTIONS.map(|name| count(source, name));
        let counts = futures::future::try_join_all(counts);
        let counts = tokio::time::timeout(SOURCE_PATIENCE, counts).await;
        self.source = counts.ok().and_then(Result::ok).and_then(|counts| counts.try_into().ok());
    }

    /// Changes a second that arrived lately.
    pub(super) fn changes_per_second(&mut self) -> f64 {
        while self.changes.front().is_some_and(|(at, _)| at.elapsed() > RATE_OVER) {
            self.changes.pop_front();
        }
        let changes: u32 = self.changes.iter().map(|(_, changes)| changes).sum();
        let over = self.started.elapsed().min(RATE_OVER).as_secs_f64().max(0.25);
        f64::from(changes) / over
    }

    /// The lag below which so many percent of the last ones were.
    pub(super) fn lag(&self, percent: usize) -> Duration {
        let mut lags: Vec<Duration> = self.lags.iter().copied().collect();
        lags.sort_unstable();
        let last = lags.len().saturating_sub(1);
        lags.get(last * percent / 100).copied().unwrap_or_default()
    }

    /// # Errors
    /// When a row was not what was written, or nothing arrived although something was written.
    pub(super) fn verdict(&self) -> Result<()> {
        if self.wrong > 0 {
            bail!("{} of {} rows were not as they had been written", self.wrong, self.writes);
        }
        if self.writes == 0 && self.rate > 0.0 {
            bail!("no write has arrived in the replica");
        }
        Ok(())
    }
}

/// One word for what was done.
pub(super) fn word(operation: Operation) -> &'static str {
    match operation {
        Operation::Insert => "insert",
        Operation::Update => "update",
        Operation::Delete => "delete",
    }
}

//! The oplog guard: whether the source's oplog still reaches back to where the tail stands, and for how
//! long it will. A tail that can't catch up before the oplog's start does is given up while there is time:
//! the stream begins anew at the present, and a reconcile tells what it missed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::Client;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::decode::{cluster_time, timestamp};
use super::failure::classify;
use super::source::{Ended, SILENCE_MAX};
use crate::retry::Failure;
use crate::status::{OplogLeft, StatusSender};

/// How often it is measured; while the tail is behind, oftener.
const EVERY: Duration = Duration::from_secs(10);
const EVERY_BEHIND: Duration = Duration::from_secs(1);
/// Rates are taken over so many measurements.
const SAMPLES_MAX: usize = 12;
/// A tail that is less behind than this, in seconds, is not behind.
const BEHIND_MIN: f64 = 5.0;
/// With less of the oplog left than this, it is said …
const WARN_BELOW: f64 = 0.5;
/// … and with less than this the tail is given up.
const ACT_BELOW: f64 = 0.1;

/// One measurement; all in seconds, the last three by the source's clock.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: f64,
    /// The oplog's first entry.
    first: f64,
    /// Where the tail stands.
    stands: f64,
    /// The source's present time.
    now: f64,
}

/// What two measurements tell.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Judgement {
    left: f64,
    /// At the present rates, the oplog's start comes to where the tail stands after so many seconds.
    runs_out: Option<f64>,
    /// The share of the oplog that is behind the tail; `None`: it is not behind, or catches up in time.
    danger: Option<f64>,
}

fn judge(earlier: Sample, later: Sample) -> Judgement {
    let passed = (later.at - earlier.at).max(0.001);
    let rate = |of: fn(&Sample) -> f64| (of(&later) - of(&earlier)) / passed;
    let (start, tail, source) = (rate(|s| s.first), rate(|s| s.stands), rate(|s| s.now));
    let (left, behind) = (later.stands - later.first, later.now - later.stands);
    let runs_out = (start > tail).then(|| (left / (start - tail)).max(0.0));
    let caught_up = (tail > source).then(|| behind / (tail - source));
    let in_time = match (runs_out, caught_up) {
        (None, _) => left > 0.0,
        (Some(_), None) => false,
        (Some(runs_out), Some(caught_up)) => caught_up < runs_out,
    };
    let danger = (behind > BEHIND_MIN && !in_time).then(|| left / (left.max(0.0) + behind));
    Judgement { left, runs_out, danger }
}

/// Measures while a stream runs.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) client: Client,
    pub(super) high_water: watch::Receiver<u64>,
    pub(super) status: StatusSender,
    /// It has been said that the oplog can't be read.
    pub(super) refused: Arc<AtomicBool>,
}

impl Guard {
    /// Ends when the tail can't catch up any more.
    pub(super) async fn watch(self) -> Ended {
        let began = Instant::now();
        let mut samples: VecDeque<Sample> = VecDeque::new();
        let mut warned = false;
        loop {
            let behind = samples.back().is_some_and(|s| s.now - s.stands > BEHIND_MIN);
            sleep(if behind || samples.len() < 2 { EVERY_BEHIND } else { EVERY }).await;
            let first = match timeout(SILENCE_MAX, first_entry(&self.client)).await {
                Ok(Ok(Some(first))) => first,
                Ok(Err(error)) if classify(&error) == Failure::AccessRefused => {
                    if !self.refused.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            "the oplog can't be read, so there is no telling how long it reaches; \
                             the role `read` on the database \"local\" lets it"
                        );
                    }
                    return std::future::pending().await;
                }
                // What ails the source, the stream tells.
                _ => continue,
            };
            let stands = *self.high_water.borrow();
            let seconds = |time: u64| (time >> 32) as f64;
            let now = seconds(self.status.borrow().operation_time).max(seconds(stands));
            let at = began.elapsed().as_secs_f64();
            let sample = Sample { at, first: seconds(first), stands: seconds(stands), now };
            if samples.len() == SAMPLES_MAX {
                samples.pop_front();
            }
            samples.push_back(sample);
            let judged = judge(samples[0], sample);
            let (left_seconds, runs_out_seconds) = (judged.left, judged.runs_out);
            self.status.send_modify(|status| {
                status.oplog = Some(OplogLeft { left_seconds, runs_out_seconds });
            });
            let Some(share) = judged.danger.filter(|_| samples.len() > 2) else { continue };
            if share < ACT_BELOW {
                let message = format!(
                    "the tail can't catch up before the oplog runs out ({left_seconds:.0} s left)"
                );
                return Ended::new(Failure::OplogRunsOut, message);
            }
            if share < WARN_BELOW && !warned {
                warned = true;
                tracing::warn!(
                    left_seconds,
                    ?runs_out_seconds,
                    "the oplog may run out before the log has caught up"
                );
            }
        }
    }
}

/// The time of the oplog's first entry; `None` where it tells none.
async fn first_entry(client: &Client) -> mongodb::error::Result<Option<u64>> {
    entry(client, doc! {}).await
}

/// What the oplog says of a time at which the log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stands {
    /// It has an entry at that time: the source goes on from there.
    Known,
    /// It has none, and reaches back farther: the source is another one now.
    Strange,
    /// It does not reach back so far: what came after can't be had as changes. (A set that was initiated anew
    /// would let a stream begin there all the same.)
    Forgotten,
    /// It can't be asked.
    Untold,
    /// The user may not read it.
    Refused,
}

/// Whether the oplog has the entry at `time`, at which the log stands.
///
/// # Errors
/// When the source is away: what it would have said is to be known before anything is read from it.
pub(super) async fn entry_at(
    client: &Client,
    time: u64,
    silence_max: Duration,
) -> Result<Stands, Ended> {
    let asked = async {
        let first = first_entry(client).await?;
        let at = entry(client, doc! { "ts": { "$gte": timestamp(time) } }).await?;
        mongodb::error::Result::Ok((first, at))
    };
    match timeout(silence_max, asked).await {
        Ok(Ok((Some(first), at))) if first <= time => {
            Ok(if at == Some(time) { Stands::Known } else { Stands::Strange })
        }
        Ok(Ok((Some(_), _))) => Ok(Stands::Forgotten),
        Ok(Ok((None, _))) => Ok(Stands::Untold),
        Ok(Err(error)) => match classify(&error) {
            Failure::AccessRefused => Ok(Stands::Refused),
            Failure::Interrupted | Failure::Silent => Err(error.into()),
            _ => Ok(Stands::Untold),
        },
        Err(_) => Err(Ended::new(Failure::Silent, "the source does not say what its oplog has")),
    }
}

async fn entry(client: &Client, filter: Document) -> mongodb::error::Result<Option<u64>> {
    let command = doc! {
        "find": "oplog.rs",
        "filter": filter,
        "sort": { "$natural": 1 },
        "projection": { "ts": 1 },
        "limit": 1,
        "singleBatch": true,
    };
    let answer = client.database("local").run_command(command).await?;
    let batch = answer.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let entry = batch.ok().and_then(|batch| batch.first()?.as_document()?.get_timestamp("ts").ok());
    Ok(entry.map(cluster_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: f64, first: f64, stands: f64, now: f64) -> Sample {
        Sample { at, first, stands, now }
    }

    #[test]
    fn a_tail_that_keeps_up_is_in_no_danger_however_fast_the_oplog_turns() {
        let judged = judge(sample(0.0, 0.0, 99.0, 100.0), sample(10.0, 90.0, 109.0, 110.0));
        assert_eq!((judged.left, judged.danger), (19.0, None));
    }

    #[test]
    fn a_tail_that_is_overtaken_knows_when_and_how_near_it_is() {
        let judged = judge(sample(0.0, 0.0, 50.0, 100.0), sample(10.0, 40.0, 60.0, 140.0));
        assert_eq!(judged.runs_out, Some(20.0 / 3.0));
        assert_eq!(judged.danger, Some(0.2));
    }

    #[test]
    fn a_tail_that_catches_up_in_time_goes_on() {
        let judged = judge(sample(0.0, 0.0, 10.0, 1_000.0), sample(10.0, 10.0, 510.0, 1_010.0));
        assert_eq!((judged.runs_out, judged.danger), (None, None));
        // The start moves faster than the tail, but the tail is there first.
        let judged = judge(sample(0.0, 0.0, 900.0, 1_000.0), sample(10.0, 100.0, 990.0, 1_010.0));
        assert_eq!(judged.danger, None);
    }
}

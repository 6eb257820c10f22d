//! The scrub: compares the log with the source, one collection after the other, and mends what differs.
//! In the background it is slow and keeps to its hours; when an operator asks it goes as fast as it can.
//! The comparing itself is capture's (`capture/walk.rs`).

mod memory;

use std::time::Duration;

use bson::RawDocumentBuf;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::capture::{CheckOrder, CheckReport, CheckSender, Checked};
use crate::config::ScrubConfig;
use crate::metrics::now_ms;
use crate::retry::jittered;
use crate::status::{
    ScrubState, ScrubStatus, Scrubbed, SourcePhase, SourceStatus, StatusReceiver, StatusSender,
};

pub use memory::Memory;

/// Scrubs that are asked for and wait.
const REQUESTS_MAX: usize = 4;
/// How often it is looked whether a collection is due, at least.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY_MIN: Duration = Duration::from_millis(100);
/// A comparison that was cut off (the stream was opened again, a copy goes first) is begun again after
/// this …
const AGAIN_PAUSE: Duration = Duration::from_millis(500);
/// … unless the source is out of reach for so long.
const CUT_OFF_MAX: Duration = Duration::from_secs(60);

/// An operator asks for a scrub now.
#[derive(Debug)]
pub struct ScrubRequest {
    /// Only these collections; `None`: all.
    pub collections: Option<Vec<String>>,
    /// Told the scrub's number (see [`ScrubStatus`]) when it begins.
    pub begun: oneshot::Sender<u64>,
}

/// Where scrubs are asked for.
pub type ScrubSender = mpsc::Sender<ScrubRequest>;

/// A new pair.
#[must_use]
pub fn requests() -> (ScrubSender, mpsc::Receiver<ScrubRequest>) {
    mpsc::channel(REQUESTS_MAX)
}

/// What the scrub is made of.
#[derive(Debug)]
pub struct Scrub {
    /// When it works by itself, and how fast.
    pub config: ScrubConfig,
    /// The followed collections.
    pub collections: Vec<String>,
    /// Where comparisons are asked for.
    pub checks: CheckSender,
    /// Where it says how it is.
    pub status: StatusSender,
    /// What was compared, and when.
    pub memory: Memory,
}

/// How fast, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Somebody waits.
    Full,
    /// As it is configured.
    Slow,
}

impl Scrub {
    /// Works until `shutdown`.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<ScrubRequest>,
        shutdown: CancellationToken,
    ) {
        self.status.send_modify(|status| status.scrub.finished_at_ms = self.memory.last_ms());
        let mut next = None;
        loop {
            let request = match next.take() {
                Some(request) => request,
                None => tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    Some(request) = requests.recv() => request,
                    () = tokio::time::sleep(self.look_every()) => {
                        tokio::select! {
                            biased;
                            () = shutdown.cancelled() => return,
                            // The comparison under way is given up: an operator waits.
                            Some(request) = requests.recv() => next = Some(request),
                            () = self.scrub_what_is_due() => {}
                        }
                        continue;
                    }
                },
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.scrub_now(request) => {}
            }
        }
    }

    fn look_every(&self) -> Duration {
        let every = self.config.every.unwrap_or(LOOK_EVERY_MAX);
        every.clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX)
    }

    /// One collection, within the hours: the one that was compared longest ago. What they end is gone on
    /// with where it was when they begin again.
    async fn scrub_what_is_due(&mut self) {
        let Some(name) = self.due(now_ms()) else { return };
        self.begin(std::slice::from_ref(&name), false);
        let report = self.compare(&name, Pace::Slow).await;
        self.tell(&name, report);
        self.end(report.is_some());
    }

    fn due(&self, now_ms: i64) -> Option<String> {
        let every = i64::try_from(self.config.every?.as_millis()).unwrap_or(i64::MAX);
        if !self.config.hours.hold_at(now_ms) {
            return None;
        }
        let done_at = |name: &&String| self.memory.done_at_ms(name);
        // A clock that was put back makes due what was done later.
        let is_due = |name: &&String| !(0..every).contains(&(now_ms - done_at(name)));
        self.collections.iter().filter(is_due).min_by_key(done_at).cloned()
    }

    async fn scrub_now(&mut self, request: ScrubRequest) {
        let wanted = |name: &&String| {
            request.collections.as_ref().is_none_or(|wanted| wanted.contains(name))
        };
        let names: Vec<String> = self.collections.iter().filter(wanted).cloned().collect();
        let number = self.begin(&names, true);
        // Whoever asked may have gone.
        let _ = request.begun.send(number);
        let mut finished = true;
        for name in &names {
            let report = self.compare(name, Pace::Full).await;
            self.tell(name, report);
            finished &= report.is_some();
            if !finished {
                break;
            }
        }
        self.end(finished);
    }

    /// Compares one collection; where that is cut off, on from there. `None`: the source is out of reach for
    /// too long, or the hours are over.
    async fn compare(&mut self, name: &str, pace: Pace) -> Option<CheckReport> {
        let begun = (pace == Pace::Slow).then(|| self.memory.part(name)).flatten();
        let (mut total, mut after) = match begun {
            Some((report, after)) => (report, Some(after)),
            None => (CheckReport::default(), None),
        };
        let out_of_reach = out_of_reach(self.status.subscribe());
        tokio::pin!(out_of_reach);
        loop {
            let checked = tokio::select! {
                checked = self.check(name, after.clone(), pace) => checked,
                () = &mut out_of_reach => return None,
            };
            match checked {
                Some(Checked::Whole(rest)) => return Some(total.and(rest)),
                Some(Checked::CutOff(some, through)) => {
                    total = total.and(some);
                    if pace == Pace::Slow {
                        self.memory.cut_off(name, total, &through);
                    }
                    after = Some(through);
                }
                None => {}
            }
            if pace == Pace::Slow && !self.config.hours.hold_at(now_ms()) {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(AGAIN_PAUSE)) => {}
                () = &mut out_of_reach => return None,
            }
        }
    }

    /// One check; `None` where nothing came of it. Never ends where nobody takes it.
    async fn check(
        &self,
        name: &str,
        after: Option<RawDocumentBuf>,
        pace: Pace,
    ) -> Option<Checked> {
        let (done, checked) = oneshot::channel();
        let (bytes_per_second, hours) = match pace {
            Pace::Full => (None, None),
            Pace::Slow => (Some(self.config.bytes_per_second), Some(self.config.hours)),
        };
        let collection = name.to_owned();
        self.checks
            .send(CheckOrder { collection, after, bytes_per_second, hours, done })
            .await
            .ok()?;
        checked.await.ok()
    }

    fn begin(&self, names: &[String], asked_for: bool) -> u64 {
        let mut number = 0;
        self.status.send_modify(|status| {
            let scrub = &mut status.scrub;
            number = scrub.number + 1;
            *scrub = ScrubStatus {
                number,
                state: ScrubState::Running,
                asked_for,
                collections: names.iter().map(|name| Scrubbed::waiting(name)).collect(),
                finished_at_ms: scrub.finished_at_ms,
                mended_total: scrub.mended_total,
            };
        });
        number
    }

    fn tell(&mut self, name: &str, report: Option<CheckReport>) {
        let Some(report) = report else { return };
        self.memory.done(name, now_ms());
        self.status.send_modify(|status| {
            let scrub = &mut status.scrub;
            scrub.mended_total += report.upserted + report.deleted;
            let one = scrub.collections.iter_mut().find(|one| one.name == name);
            if let Some(one) = one {
                one.done = true;
                one.documents = report.documents;
                one.upserted = report.upserted;
                one.deleted = report.deleted;
            }
        });
    }

    fn end(&self, finished: bool) {
        self.status.send_modify(|status| {
            let scrub = &mut status.scrub;
            scrub.state = if finished { ScrubState::Finished } else { ScrubState::CutOff };
            if finished {
                scrub.finished_at_ms = now_ms();
            }
        });
    }
}

/// Returns when the source has been out of reach for [`CUT_OFF_MAX`].
async fn out_of_reach(mut status: StatusReceiver) {
    let is_reached = |status: &SourceStatus| {
        matches!(status.phase, SourcePhase::Following | SourcePhase::Copying)
    };
    loop {
        let lost = status.wait_for(|status| !is_reached(status)).await.is_ok();
        let back = status.wait_for(is_reached);
        // Where nobody tells any more, it is the end too.
        if !lost || tokio::time::timeout(CUT_OFF_MAX, back).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Hours;
    use crate::{capture, status};

    #[test]
    fn the_collection_that_was_compared_longest_ago_is_next_within_the_hours() {
        const HOUR: i64 = 3_600_000;
        let dir = tempfile::tempdir().unwrap();
        let collections = ["plans", "users"].map(str::to_owned).to_vec();
        let config = ScrubConfig {
            every: Some(Duration::from_secs(3_600)),
            hours: Hours::parse("01:00-05:00").unwrap(),
            bytes_per_second: 1,
        };
        let memory = Memory::load(dir.path(), &collections);
        let (checks, status) = (capture::checks().0, status::channel().0);
        let mut scrub = Scrub { config, collections, checks, status, memory };
        let now = 30 * 24 * HOUR + 2 * HOUR;
        assert_eq!(scrub.due(now).as_deref(), Some("plans"));
        scrub.memory.done("plans", now);
        assert_eq!(scrub.due(now).as_deref(), Some("users"));
        scrub.memory.done("users", now + 1);
        assert_eq!(scrub.due(now + HOUR - 1), None);
        assert_eq!(scrub.due(now + HOUR + 1).as_deref(), Some("plans"));
        assert_eq!(scrub.due(now + 4 * HOUR), None, "the hours are over");
        assert_eq!(scrub.due(now - HOUR).as_deref(), Some("plans"), "the clock was put back");
    }
}

//! The scrub: compares the log with the source, one collection after the other, and mends what differs.
//! In the background it is slow and keeps to its hours; when an operator asks it goes as fast as it can.
//! The comparing itself is capture's (`capture/walk.rs`).

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::capture::{CheckOrder, CheckReport, CheckSender, Checked};
use crate::config::ScrubConfig;
use crate::retry::jittered;
use crate::status::{ScrubState, ScrubStatus, Scrubbed, SourcePhase, SourceStatus, StatusSender};

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
    /// When each collection was last compared.
    pub done_at: HashMap<String, Instant>,
}

impl Scrub {
    /// Works until `shutdown`.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<ScrubRequest>,
        shutdown: CancellationToken,
    ) {
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

    /// One collection, within the hours: the one that was compared longest ago.
    async fn scrub_what_is_due(&mut self) {
        let Some(every) = self.config.every else { return };
        if !self.config.hours.hold_at(crate::metrics::now_ms()) {
            return;
        }
        let is_due = |name: &&String| {
            self.done_at.get(*name).is_none_or(|done_at| done_at.elapsed() >= every)
        };
        let due = self.collections.iter().filter(is_due).min_by_key(|name| self.done_at.get(*name));
        let Some(name) = due.cloned() else { return };
        self.begin(std::slice::from_ref(&name), false);
        let report = self.compare(&name, Some(self.config.bytes_per_second)).await;
        self.tell(&name, report);
        self.end(report.is_some());
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
            let report = self.compare(name, None).await;
            self.tell(name, report);
            finished &= report.is_some();
            if !finished {
                break;
            }
        }
        self.end(finished);
    }

    /// Compares one collection; where that is cut off, on from there. `None`: the source is out of reach for too
    /// long.
    async fn compare(&self, name: &str, bytes_per_second: Option<u32>) -> Option<CheckReport> {
        let compared = async {
            let (mut total, mut after) = (CheckReport::default(), None);
            loop {
                let (done, checked) = oneshot::channel();
                let (collection, after_this) = (name.to_owned(), after.clone());
                let order = CheckOrder { collection, after: after_this, bytes_per_second, done };
                self.checks.send(order).await.ok()?;
                match checked.await {
                    Ok(Checked::Whole(rest)) => return Some(total.and(rest)),
                    Ok(Checked::CutOff(some, through)) => {
                        total = total.and(some);
                        after = Some(through);
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(jittered(AGAIN_PAUSE)).await;
            }
        };
        tokio::select! {
            report = compared => report,
            () = self.out_of_reach() => None,
        }
    }

    /// Returns when the source has been out of reach for [`CUT_OFF_MAX`].
    async fn out_of_reach(&self) {
        let is_reached = |status: &SourceStatus| {
            matches!(status.phase, SourcePhase::Following | SourcePhase::Copying)
        };
        let mut status = self.status.subscribe();
        loop {
            // The sender is ours: it lives.
            let _ = status.wait_for(|status| !is_reached(status)).await;
            let back = status.wait_for(is_reached);
            if tokio::time::timeout(CUT_OFF_MAX, back).await.is_err() {
                return;
            }
        }
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
        self.done_at.insert(name.to_owned(), Instant::now());
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
                scrub.finished_at_ms = crate::metrics::now_ms();
            }
        });
    }
}

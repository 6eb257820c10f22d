//! What is counted, and the few sums of time that several rooms show.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::log::Head;
use crate::status::{SourcePhase, SourceStatus};

/// Counters since the start of the process, and where the log lies.
#[derive(Debug)]
pub struct Metrics {
    log_dir: PathBuf,
    requests_by_status: Mutex<BTreeMap<u16, u64>>,
    pages: AtomicU64,
    changes: AtomicU64,
    page_bytes: AtomicU64,
    sockets: AtomicU64,
    sockets_stuck: AtomicU64,
}

impl Metrics {
    /// All zero.
    #[must_use]
    pub fn new(log_dir: PathBuf) -> Self {
        Self {
            log_dir,
            requests_by_status: Mutex::default(),
            pages: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            page_bytes: AtomicU64::new(0),
            sockets: AtomicU64::new(0),
            sockets_stuck: AtomicU64::new(0),
        }
    }

    /// A request was answered with `status`.
    pub fn request(&self, status: u16) {
        let mut counts = self.requests_by_status.lock().unwrap_or_else(|e| e.into_inner());
        *counts.entry(status).or_default() += 1;
    }

    /// A page of `changes` went out as `bytes` (compressed, where it was).
    pub fn page(&self, changes: usize, bytes: usize) {
        self.pages.fetch_add(1, Ordering::Relaxed);
        self.changes.fetch_add(changes as u64, Ordering::Relaxed);
        self.page_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A push socket was opened.
    pub fn socket_opened(&self) {
        self.sockets.fetch_add(1, Ordering::Relaxed);
    }

    /// A push socket was closed.
    pub fn socket_closed(&self) {
        self.sockets.fetch_sub(1, Ordering::Relaxed);
    }

    /// A push socket was dropped because it took nothing.
    pub fn socket_stuck(&self) {
        self.sockets_stuck.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes in all pages so far.
    #[must_use]
    pub fn changes_served(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Bytes of the files in the log's folder; blocking.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        let files = std::fs::read_dir(&self.log_dir).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
    }

    /// Prometheus' text format, version 0.0.4; blocking (file sizes).
    #[must_use]
    pub fn render(&self, status: &SourceStatus, head: Head, ready: bool) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, value: f64| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        let lag = lag_seconds(status, now_ms()).unwrap_or(f64::NAN);
        metric("tidewire_lag_seconds", "gauge", "How far the log is behind the source.", lag);
        let following = f64::from(u8::from(status.phase == SourcePhase::Following));
        metric("tidewire_source_following", "gauge", "1 while the source is followed.", following);
        metric(
            "tidewire_ready",
            "gauge",
            "1 while pulls are answered.",
            f64::from(u8::from(ready)),
        );
        let seconds = f64::from(head.position.unix_seconds());
        metric(
            "tidewire_log_head_seconds",
            "gauge",
            "Cluster time of the log's head, seconds since 1970.",
            seconds,
        );
        metric(
            "tidewire_log_last_change",
            "gauge",
            "Number of the log's last change.",
            head.seq as f64,
        );
        metric("tidewire_log_bytes", "gauge", "Size of the log's files.", self.log_bytes() as f64);
        metric(
            "tidewire_copies_unfinished",
            "gauge",
            "Collections whose copy is not finished.",
            status.copies.len() as f64,
        );
        metric(
            "tidewire_quarantined_total",
            "counter",
            "Documents and events that could not be carried.",
            status.quarantined as f64,
        );
        metric(
            "tidewire_quarantine_documents",
            "gauge",
            "Documents that are in quarantine now.",
            status.in_quarantine as f64,
        );
        metric(
            "tidewire_scrub_mended_total",
            "counter",
            "Documents in which scrubs found the log to differ from the source, and mended it.",
            status.scrub.mended_total as f64,
        );
        metric(
            "tidewire_scrub_finished_seconds",
            "gauge",
            "When the last scrub came to its end, seconds since 1970; 0 before.",
            status.scrub.finished_at_ms as f64 / 1e3,
        );
        let left = status.oplog.map_or(f64::NAN, |oplog| oplog.left_seconds);
        let help = "Seconds of the source's oplog behind where the log stands; NaN where it can't be read.";
        metric("tidewire_oplog_left_seconds", "gauge", help, left);
        let runs_out = status.oplog.map(|o| o.runs_out_seconds.unwrap_or(f64::INFINITY));
        let help = "Seconds until the oplog's start comes there, at the present rates.";
        metric("tidewire_oplog_runs_out_seconds", "gauge", help, runs_out.unwrap_or(f64::NAN));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        metric(
            "tidewire_pages_total",
            "counter",
            "Pages and frames sent to clients.",
            count(&self.pages),
        );
        metric(
            "tidewire_changes_served_total",
            "counter",
            "Changes in those pages.",
            count(&self.changes),
        );
        metric(
            "tidewire_page_bytes_total",
            "counter",
            "Bytes of those pages as sent.",
            count(&self.page_bytes),
        );
        metric("tidewire_sockets", "gauge", "Open push sockets.", count(&self.sockets));
        metric(
            "tidewire_sockets_stuck_total",
            "counter",
            "Push sockets dropped because they took nothing.",
            count(&self.sockets_stuck),
        );
        let name = "tidewire_requests_total";
        let _ = writeln!(text, "# HELP {name} Requests by status.\n# TYPE {name} counter");
        let counts = self.requests_by_status.lock().unwrap_or_else(|e| e.into_inner());
        for (status, count) in &*counts {
            let _ = writeln!(text, "{name}{{status=\"{status}\"}} {count}");
        }
        text
    }
}

/// The wall clock, milliseconds since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// RFC 3339, UTC, milliseconds.
#[must_use]
pub fn time_text(ms: i64) -> String {
    let mut text = Vec::new();
    tidewire_protocol::payload::write_time_ms(ms, &mut text);
    String::from_utf8(text).unwrap_or_default()
}

/// How far the log is behind the source, in seconds: by the source's own clock while it answers, and
/// since it was last heard of while it does not, or while it answers and has no majority to commit by. `None` before it was heard of.
#[must_use]
pub fn lag_seconds(status: &SourceStatus, now_ms: i64) -> Option<f64> {
    if status.high_water == 0 {
        return None;
    }
    let seconds = |cluster_time: u64| (cluster_time >> 32) as f64;
    let behind = (seconds(status.operation_time) - seconds(status.high_water)).max(0.0);
    let silent = match status.phase {
        SourcePhase::Following | SourcePhase::Copying => {
            status.standstill_seconds(now_ms).unwrap_or(0) as f64
        }
        _ if status.heard_at_ms == 0 => now_ms as f64 / 1e3 - seconds(status.high_water),
        _ => (now_ms - status.heard_at_ms) as f64 / 1e3,
    };
    Some(behind.max(silent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_told_by_the_source_while_it_answers_and_by_its_silence_while_not() {
        let mut status = SourceStatus { phase: SourcePhase::Following, ..SourceStatus::default() };
        assert_eq!(lag_seconds(&status, 0), None);
        status.high_water = 100 << 32;
        status.operation_time = 103 << 32;
        status.heard_at_ms = 103_000;
        assert_eq!(lag_seconds(&status, 900_000), Some(3.0));
        status.phase = SourcePhase::Unreachable;
        assert_eq!(lag_seconds(&status, 163_000), Some(60.0));
    }
}

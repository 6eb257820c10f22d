//! What a running client says meanwhile: a live line on a terminal, plain lines elsewhere, or JSON.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use console::style;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tidewire::{Replica, State, Status};
use tokio::sync::watch;

use super::show::plain;

/// Work that takes longer than this shows how far it is, where there is no terminal.
const PROGRESS_AFTER: Duration = Duration::from_secs(2);
/// The time between two lines of progress there.
const PROGRESS_LINE_EVERY: Duration = Duration::from_secs(5);
/// The time between two lines of JSON, at least.
const JSON_EVERY: Duration = Duration::from_millis(100);
/// A live line is drawn again after this, whatever happens.
const REDRAW_EVERY: Duration = Duration::from_secs(1);
/// The rows are counted again after so many times what the last count took: 2 % of a core at most.
const COUNT_EVERY: u32 = 50;

const SPINNER: &str = "{spinner} {msg}";
const BAR: &str = "{spinner} {bar:24} {percent:>3} % {msg}";

/// Prints the status to standard output, a line of JSON whenever it has changed.
pub(super) async fn json_lines(mut status: watch::Receiver<Status>) {
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        // The last one is printed at the very end.
        if now.state != State::Stopped {
            let Ok(text) = serde_json::to_string(&now) else { return };
            if writeln!(std::io::stdout(), "{text}").is_err() {
                return;
            }
        }
        tokio::time::sleep(JSON_EVERY).await;
    }
}

/// Says on standard error what state the client is in and how far it has come.
pub(super) async fn for_people(mut status: watch::Receiver<Status>, replica: PathBuf) {
    let mut said = (State::Starting, None::<String>);
    let mut progress = match console::user_attended_stderr() {
        true => Progress::Live(Box::new(Live::new(replica))),
        false => Progress::Lines { since: None, last: Instant::now() },
    };
    loop {
        let now = status.borrow_and_update().clone();
        let next = (now.state, now.error.clone());
        if next != said {
            let error = now.error.as_deref().map(|error| format!(": {}", plain(error)));
            progress.line(&format!("{}{}", now.state.name(), error.unwrap_or_default()));
            said = next;
        }
        progress.show(&now).await;
        if let Ok(Err(_)) = tokio::time::timeout(REDRAW_EVERY, status.changed()).await {
            break;
        }
    }
    progress.end();
}

enum Progress {
    Live(Box<Live>),
    Lines {
        /// Since when a copy, a catch-up or a comparison has been under way.
        since: Option<Instant>,
        last: Instant,
    },
}

impl Progress {
    async fn show(&mut self, status: &Status) {
        match self {
            Self::Live(live) => live.show(status).await,
            Self::Lines { since, last } => {
                let Some(done) = work(status) else {
                    *since = None;
                    return;
                };
                let begun = *since.get_or_insert_with(Instant::now);
                if begun.elapsed() >= PROGRESS_AFTER && last.elapsed() >= PROGRESS_LINE_EVERY {
                    let percent = percent(status).map(|percent| format!(" ({percent} %)"));
                    eprintln!("{done}{}", percent.unwrap_or_default());
                    *last = Instant::now();
                }
            }
        }
    }

    fn line(&self, text: &str) {
        match self {
            Self::Live(live) => live.bar.println(text),
            Self::Lines { .. } => eprintln!("{text}"),
        }
    }

    fn end(self) {
        if let Self::Live(live) = self {
            live.bar.finish_and_clear();
        }
    }
}

/// The line that is drawn over and over.
struct Live {
    bar: ProgressBar,
    replica: PathBuf,
    /// What is under way is known to end, and where: a bar is drawn.
    has_end: bool,
    rows: Option<u64>,
    /// Not before then are the rows counted again.
    count_at: Instant,
}

impl Live {
    fn new(replica: PathBuf) -> Self {
        let bar = ProgressBar::new(100);
        bar.set_style(shape(SPINNER));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, replica, has_end: false, rows: None, count_at: Instant::now() }
    }

    async fn show(&mut self, status: &Status) {
        if status.initialized && Instant::now() >= self.count_at {
            let (replica, begun) = (self.replica.clone(), Instant::now());
            let counted = tokio::task::spawn_blocking(move || {
                Replica::open(replica).and_then(|replica| replica.row_count()).ok()
            });
            self.rows = counted.await.ok().flatten();
            self.count_at = Instant::now() + (begun.elapsed() * COUNT_EVERY).max(REDRAW_EVERY);
        }
        let percent = percent(status);
        if self.has_end != percent.is_some() {
            self.has_end = percent.is_some();
            self.bar.set_style(shape(if self.has_end { BAR } else { SPINNER }));
        }
        self.bar.set_position(u64::from(percent.unwrap_or(0)));
        self.bar.set_message(live_line(status, self.rows));
    }
}

fn shape(template: &str) -> ProgressStyle {
    // A template that does not parse would only lose its shape.
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_spinner()).progress_chars("━╸─")
}

/// What is under way that takes long.
fn work(status: &Status) -> Option<String> {
    if status.comparing.is_some() {
        return Some("compared with the server".to_owned());
    }
    status.applying.map(|applying| format!("{} changes copied", HumanCount(applying)))
}

/// How much of that is done.
fn percent(status: &Status) -> Option<u8> {
    status.comparing.or(status.applying_percent.filter(|_| status.applying.is_some()))
}

/// `live · push · lag 12 ms · 4,314 rows`.
fn live_line(status: &Status, rows: Option<u64>) -> String {
    let mut parts = vec![style(status.state.name()).bold().to_string()];
    parts.push(status.transport.name().replace('_', " "));
    match work(status) {
        Some(done) => parts.push(done),
        None => parts.extend(status.lag_ms.map(|ms| format!("lag {}", lag(ms)))),
    }
    parts.extend(rows.map(|rows| format!("{} rows", HumanCount(rows))));
    parts.join(" · ")
}

fn lag(ms: u64) -> String {
    if ms < 10_000 { format!("{ms} ms") } else { format!("{} s", ms / 1_000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_live_line_says_state_transport_lag_and_rows() {
        let status = r#"{"initialized":true,"isOnline":true,"state":"live","transport":"long_poll","lastSync":null,"cursor":"c","position":"p","lagMs":12,"error":null}"#;
        let mut status: Status = serde_json::from_str(status).unwrap();
        console::set_colors_enabled(false);
        assert_eq!(live_line(&status, Some(4_314)), "live · long poll · lag 12 ms · 4,314 rows");
        (status.applying, status.state) = (Some(12_000), State::Syncing);
        assert_eq!(live_line(&status, None), "syncing · long poll · 12,000 changes copied");
        assert_eq!(percent(&status), None);
        (status.applying_percent, status.comparing) = (Some(40), None);
        assert_eq!(percent(&status), Some(40));
        (status.applying, status.comparing) = (None, Some(70));
        let line = "syncing · long poll · compared with the server";
        assert_eq!((live_line(&status, None).as_str(), percent(&status)), (line, Some(70)));
    }
}

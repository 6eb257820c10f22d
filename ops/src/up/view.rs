//! The terminal: a picture that is drawn over and over, or plain lines in a pipe.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use console::{Term, style, truncate_str};

use super::tally::{Arrival, Tally, word};
use crate::sample::COLLECTIONS;

const SUMMARY_EVERY: Duration = Duration::from_secs(10);
const WIDTH_MAX: usize = 110;

#[derive(Debug)]
pub(super) struct View {
    term: Term,
    /// Lines of the picture that is on the terminal; `None`: not a terminal.
    drawn: Option<usize>,
    summarised: Instant,
}

impl View {
    pub(super) fn new() -> Self {
        let term = Term::stdout();
        let drawn = term.is_term().then_some(0);
        Self { term, drawn, summarised: Instant::now() }
    }

    /// Shows an arrival where lines are shown.
    pub(super) fn line(&mut self, arrival: &Arrival) -> io::Result<()> {
        if self.drawn.is_some() {
            return Ok(());
        }
        self.term.write_line(&arrival_line(arrival))
    }

    /// Draws the picture, or, in a pipe, now and then a summary.
    pub(super) fn draw(&mut self, tally: &mut Tally) -> io::Result<()> {
        let Some(drawn) = self.drawn else {
            if self.summarised.elapsed() >= SUMMARY_EVERY {
                self.summarised = Instant::now();
                return self.summary(tally);
            }
            return Ok(());
        };
        let (height, width) = self.term.size();
        let width = usize::from(width).clamp(20, WIDTH_MAX);
        let mut lines = picture(tally);
        lines.truncate(usize::from(height).saturating_sub(1).max(1));
        // One write, so that nothing flickers: up to the first line, each line cleared and written.
        let mut text = String::new();
        if drawn > 0 {
            let _ = write!(text, "\x1b[{drawn}A\r");
        }
        for line in &lines {
            let _ = writeln!(text, "\x1b[2K{}", truncate_str(line, width, "…"));
        }
        text.push_str("\x1b[J");
        self.drawn = Some(lines.len());
        self.term.write_str(&text)?;
        self.term.flush()
    }

    /// Everything in one line.
    pub(super) fn summary(&mut self, tally: &mut Tally) -> io::Result<()> {
        let rows: u64 = tally.replica.iter().sum();
        let line = format!(
            "{rows} rows · {:.1} changes/s · {} writes arrived, {} wrong · lag {} median, {} 99 % · {}",
            tally.changes_per_second(),
            tally.writes,
            tally.wrong,
            ms(tally.lag(50)),
            ms(tally.lag(99)),
            tally.state,
        );
        self.term.write_line(&line)
    }
}

/// A last line. A terminal that is gone is no reason to fail.
pub(super) fn farewell(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}");
}

fn picture(tally: &mut Tally) -> Vec<String> {
    let up = tally.started.elapsed().as_secs();
    let mut lines = vec![format!(
        "{}   {:02}:{:02}:{:02}   Ctrl-C stops everything",
        style("MongoDB → Tidewire → SQLite").bold(),
        up / 3_600,
        up / 60 % 60,
        up % 60
    )];
    lines.push(String::new());
    lines.push(style(format!("{:<14}{:>10}{:>10}", "", "MongoDB", "replica")).dim().to_string());
    for (index, name) in COLLECTIONS.iter().enumerate() {
        let source = tally.source.map_or_else(|| "?".into(), |source| source[index].to_string());
        let replica = tally.replica[index];
        lines.push(format!("{name:<14}{source:>10}{replica:>10}"));
    }
    lines.push(String::new());
    let wrong = match tally.wrong {
        0 => style("every row as it was written".to_owned()).green(),
        wrong => style(format!("{wrong} WRONG")).red().bold(),
    };
    lines.push(format!(
        "{:<9}{:.1} changes/s, {} writes arrived, {wrong}",
        "changes",
        tally.changes_per_second(),
        tally.writes
    ));
    lines.push(format!(
        "{:<9}{} last, {} median, {} 99 %   from MongoDB's acknowledgement to the row in SQLite",
        "lag",
        ms(tally.recent.front().map(|arrival| arrival.lag).unwrap_or_default()),
        ms(tally.lag(50)),
        ms(tally.lag(99)),
    ));
    lines.push(format!("{:<9}{}", "client", tally.state));
    lines.push(String::new());
    lines.extend(tally.recent.iter().map(arrival_line));
    lines
}

fn arrival_line(arrival: &Arrival) -> String {
    let Arrival { at, write, lag, is_right } = arrival;
    let (hour, minute, second, milli) = at.to_hms_milli().to_owned();
    let time = format!("{hour:02}:{minute:02}:{second:02}.{milli:03}");
    let operation = style(word(write.operation));
    let operation = match write.operation {
        crate::sample::Operation::Insert => operation.green(),
        crate::sample::Operation::Update => operation.yellow(),
        crate::sample::Operation::Delete => operation.red(),
    };
    let note = if *is_right { "" } else { "   WRONG: the row is not as it was written" };
    format!("{time} {:>7}  {:<11} {operation}  {}{note}", ms(*lag), write.collection, write.text)
}

fn ms(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

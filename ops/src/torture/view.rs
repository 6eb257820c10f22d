//! The terminal: one line that is written anew, or, in a pipe, a line now and then.

use std::io;
use std::time::Duration;

use console::{Term, truncate_str};
use tokio::time::Instant;

use super::findings::Findings;

const LINE_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct View {
    term: Term,
    run_for: Duration,
    written: Instant,
}

impl View {
    pub(super) fn new(run_for: Duration) -> Self {
        Self { term: Term::stdout(), run_for, written: Instant::now() }
    }

    pub(super) fn draw(&mut self, findings: &Findings, ends: Instant) -> io::Result<()> {
        let left = ends.saturating_duration_since(Instant::now());
        let line = format!(
            "{} of {} s · {} writes · {} faults · {} changes checked · {} looks at replicas · {} pages · {} broken",
            (self.run_for - left.min(self.run_for)).as_secs(),
            self.run_for.as_secs(),
            findings.counted("writes"),
            findings.fault_count(),
            findings.counted("changes checked"),
            findings.counted("looks at a replica"),
            findings.counted("pages"),
            findings.broken_count(),
        );
        if self.term.is_term() {
            let width = usize::from(self.term.size().1).max(20);
            self.term.clear_line()?;
            return self.term.write_str(&truncate_str(&line, width - 1, "…"));
        }
        if self.written.elapsed() >= LINE_EVERY {
            self.written = Instant::now();
            self.term.write_line(&line)?;
        }
        Ok(())
    }

    /// The line is left behind.
    pub(super) fn end(&self) {
        if self.term.is_term() {
            println!();
        }
    }
}

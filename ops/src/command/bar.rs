//! Progress on standard error, for what takes longer than a glance; on a terminal only.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Nothing is shown of what is done sooner.
const SHOWN_AFTER: Duration = Duration::from_secs(2);
const TEMPLATE: &str = "{spinner} {msg} {human_pos}";

/// The bar. Gone when dropped.
#[derive(Debug)]
pub(super) struct Bar {
    began: Instant,
    shown: Option<ProgressBar>,
}

impl Bar {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), shown: None }
    }

    /// Shows how many are `done`.
    pub(super) fn tell(&mut self, what: &str, done: u64) {
        if self.shown.is_none() && self.began.elapsed() < SHOWN_AFTER {
            return;
        }
        let bar = self.shown.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(TEMPLATE).expect("a template that is right");
            ProgressBar::new_spinner().with_style(style)
        });
        if bar.message() != what {
            bar.set_message(what.to_owned());
        }
        bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.shown.take() {
            bar.finish_and_clear();
        }
    }
}

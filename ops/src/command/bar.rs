//! A progress bar on standard error, for what takes longer than a glance; on a terminal only.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Nothing is shown of what is done sooner.
const SHOWN_AFTER: Duration = Duration::from_secs(2);
const WITH_TOTAL: &str = "{msg:12} {wide_bar} {human_pos}/{human_len} {eta:>6}";
/// For [`Bar::new`], where the end can't be told.
pub(super) const WITHOUT_TOTAL: &str = "{spinner} {msg} {human_pos}";

/// The bar. Gone when dropped.
#[derive(Debug)]
pub(super) struct Bar {
    template: &'static str,
    began: Instant,
    shown: Option<ProgressBar>,
}

impl Bar {
    pub(super) fn new(template: &'static str) -> Self {
        Self { template, began: Instant::now(), shown: None }
    }

    /// A bar that knows its end.
    pub(super) fn to_an_end() -> Self {
        Self::new(WITH_TOTAL)
    }

    /// Shows `done` of `total`.
    pub(super) fn tell(&mut self, what: &str, done: u64, total: u64) {
        if self.shown.is_none() && self.began.elapsed() < SHOWN_AFTER {
            return;
        }
        let template = self.template;
        let bar = self.shown.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(template).expect("a template that is right");
            ProgressBar::new(total).with_style(style)
        });
        if bar.message() != what {
            bar.set_message(what.to_owned());
        }
        bar.set_length(total);
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

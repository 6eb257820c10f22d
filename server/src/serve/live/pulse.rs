//! Whether the other side of a socket is still there: it answers pings.

use std::time::Duration;

use tokio::time::Instant;

/// Who has not answered a ping for so long, nor said anything else, is gone.
const UNANSWERED_MAX: Duration = Duration::from_secs(60);

/// The oldest ping since the other side was last heard.
#[derive(Debug, Default)]
pub(super) struct Pulse(Option<Instant>);

impl Pulse {
    pub(super) fn pinged(&mut self, now: Instant) {
        self.0.get_or_insert(now);
    }

    pub(super) fn heard(&mut self) {
        self.0 = None;
    }

    pub(super) fn is_gone(&self, now: Instant) -> bool {
        self.0.is_some_and(|pinged| now.duration_since(pinged) > UNANSWERED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_asked_nothing_owes_no_answer_and_who_answers_none_is_gone_after_a_minute() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut pulse = Pulse::default();
        // Frames came and went all the time: it was never pinged.
        assert!(!pulse.is_gone(after(600)));
        pulse.pinged(after(600));
        pulse.heard();
        assert!(!pulse.is_gone(after(1_200)), "it answered");
        for seconds in [1_200, 1_220, 1_240, 1_260] {
            assert!(!pulse.is_gone(after(seconds)));
            pulse.pinged(after(seconds));
        }
        assert!(pulse.is_gone(after(1_261)));
        pulse.heard();
        assert!(!pulse.is_gone(after(1_300)), "late, but there");
    }
}

//! What the wall clock tells: that the machine slept, and that the replica is to be compared with its
//! server. The time comes from outside, in milliseconds since 1970.

use std::time::Duration;

/// The driver looks at the clock this often.
pub(crate) const TICK: Duration = Duration::from_secs(2);
/// A clock that moved this much more than the ticks did, or back: the machine slept, or the clock jumped.
const JUMP_MIN: Duration = Duration::from_secs(5);
/// The replica is compared with its server's digests this often …
const VERIFY_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// … and after a sleep of this length.
const LONG_SLEEP_MIN: Duration = Duration::from_secs(60 * 60);
/// After a comparison that came to no end the next one waits for so long.
const VERIFY_AGAIN_AFTER: Duration = Duration::from_secs(10 * 60);

/// Compares the wall clock with the ticks.
#[derive(Debug)]
pub(crate) struct Clock {
    last_ms: i64,
}

impl Clock {
    pub(crate) fn new(now_ms: i64) -> Self {
        Self { last_ms: now_ms }
    }

    /// A tick: what passed since the last one, where that was not what it should have been. A clock
    /// that was set back says nothing of how long that took.
    pub(crate) fn jumped(&mut self, now_ms: i64) -> Option<Duration> {
        let passed = now_ms - std::mem::replace(&mut self.last_ms, now_ms);
        let forward = u64::try_from(passed).map(Duration::from_millis);
        match forward {
            Ok(passed) => (passed > TICK + JUMP_MIN).then_some(passed),
            Err(_) => Some(Duration::ZERO),
        }
    }
}

/// When the replica is compared with its server by itself: after a crash, after a long sleep, once a day.
#[derive(Debug)]
pub(crate) struct Due {
    /// Something happened after which it must be.
    wanted: bool,
    /// When it was compared last, or began to be; kept in the file.
    verified_ms: i64,
    /// When a comparison was begun that has come to no end since.
    tried_ms: Option<i64>,
}

impl Due {
    /// `was_killed`: the last session did not end in order. `verified_ms`: as it stands in the file.
    pub(crate) fn new(was_killed: bool, verified_ms: i64) -> Self {
        Self { wanted: was_killed, verified_ms, tried_ms: None }
    }

    /// The machine slept.
    pub(crate) fn slept(&mut self, time: Duration) {
        self.wanted |= time >= LONG_SLEEP_MIN;
    }

    /// The file was opened without a look at all of it: a comparison that is not of this hour is not
    /// relied on.
    pub(crate) fn unchecked(&mut self, now_ms: i64) {
        self.wanted |= u128::from(now_ms.abs_diff(self.verified_ms)) >= LONG_SLEEP_MIN.as_millis();
    }

    /// Whether one is to begin as soon as the replica is caught up. A clock that was set back by more
    /// than a day makes one due too, and not the next one years late.
    pub(crate) fn is_due(&self, now_ms: i64) -> bool {
        let is_past =
            |then: i64, wait: Duration| u128::from(now_ms.abs_diff(then)) >= wait.as_millis();
        let waits = self.tried_ms.is_some_and(|then| !is_past(then, VERIFY_AGAIN_AFTER));
        !waits && (self.wanted || is_past(self.verified_ms, VERIFY_EVERY))
    }

    /// A comparison begins.
    pub(crate) fn begun(&mut self, now_ms: i64) {
        self.tried_ms = Some(now_ms);
    }

    /// It came to its end.
    pub(crate) fn done(&mut self, now_ms: i64) {
        *self = Self::new(false, now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000;
    const HOUR: i64 = 60 * 60 * SECOND;
    const DAY: i64 = 24 * HOUR;
    const NOW: i64 = 1_800_000_000_000;

    #[test]
    fn a_clock_that_goes_with_the_ticks_tells_nothing_and_one_that_jumps_does() {
        let mut clock = Clock::new(NOW);
        assert_eq!(clock.jumped(NOW + 2 * SECOND), None);
        assert_eq!(clock.jumped(NOW + 9 * SECOND), None, "a busy machine");
        assert_eq!(clock.jumped(NOW + 9 * SECOND + 8 * HOUR), Some(Duration::from_secs(8 * 3_600)));
        assert_eq!(clock.jumped(NOW + 8 * HOUR), Some(Duration::ZERO), "set back");
        assert_eq!(clock.jumped(NOW + 8 * HOUR + 2 * SECOND), None);
    }

    #[test]
    fn once_a_day_across_restarts() {
        let due = Due::new(false, NOW);
        assert!(!due.is_due(NOW + DAY - 1));
        assert!(due.is_due(NOW + DAY));
        // A client that is started anew every hour takes the time from the file.
        let hours = (1..24).map(|hour| Due::new(false, NOW).is_due(NOW + hour * HOUR));
        assert!(hours.into_iter().all(|due| !due));
        let mut due = Due::new(false, NOW);
        due.begun(NOW + DAY);
        due.done(NOW + DAY + SECOND);
        assert!(!due.is_due(NOW + 2 * DAY));
        assert!(due.is_due(NOW + 2 * DAY + SECOND));
    }

    #[test]
    fn after_a_crash_and_after_a_long_sleep_but_not_after_a_nap() {
        assert!(Due::new(true, NOW).is_due(NOW));
        let mut due = Due::new(false, NOW);
        due.slept(Duration::from_secs(59 * 60));
        assert!(!due.is_due(NOW + HOUR));
        due.slept(Duration::from_secs(60 * 60));
        assert!(due.is_due(NOW + 2 * HOUR));
        due.done(NOW + 2 * HOUR);
        assert!(!due.is_due(NOW + 2 * HOUR));
    }

    #[test]
    fn soon_where_a_large_file_was_not_looked_at_but_not_at_every_start() {
        for (since, is_due) in [(0, false), (HOUR - 1, false), (HOUR, true), (-HOUR, true)] {
            let mut due = Due::new(false, NOW - since);
            due.unchecked(NOW);
            assert_eq!(due.is_due(NOW), is_due, "{since}");
        }
    }

    #[test]
    fn one_that_came_to_no_end_is_tried_again_later_and_not_at_every_tick() {
        let mut due = Due::new(true, NOW);
        due.begun(NOW);
        assert!(!due.is_due(NOW + 9 * 60 * SECOND));
        assert!(due.is_due(NOW + 10 * 60 * SECOND));
    }

    #[test]
    fn a_clock_that_was_wrong_by_years_delays_it_by_a_day_at_most() {
        let due = Due::new(false, NOW + 365 * DAY);
        assert!(due.is_due(NOW));
        let due = Due::new(false, NOW + DAY / 2);
        assert!(!due.is_due(NOW));
        assert!(due.is_due(NOW + 3 * DAY / 2));
    }
}

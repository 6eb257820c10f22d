//! What to do about a failure of the source: the one place that decides whether to go on, from where,
//! and after how long. *What failed* is said elsewhere ([`Failure`] is made where the error is seen).

use std::time::Duration;

/// The first wait; each further one in a row doubles it.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// The longest wait while the source is out of reach: short, because the driver itself waits for a
/// primary and a new one should be used within 2 s.
pub const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The wait where a person has to do something first.
pub const BACKOFF_SLOW: Duration = Duration::from_secs(10);
/// Silences in a row that double the time that the source has for an answer; the next ones do not.
const SILENCES_MAX: u32 = 4;
/// Failures that nobody foresaw, in a row, before they are retried slowly.
const UNEXPECTED_MAX: u32 = 5;

/// So many interruptions in a row may be an answer that MongoDB can't send.
const CUT_BY_GIANT_EVERY: u32 = 3;

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The stream ended by itself (an `invalidate`): nothing is wrong.
    Closed,
    /// Network, election, a lost cursor, anything that MongoDB calls resumable.
    Interrupted,
    /// No answer within the watchdog's time.
    Silent,
    /// The source says that the resume token is of no use although it may be.
    TokenRefused,
    /// The oplog no longer reaches back to where the stream would go on.
    HistoryLost,
    /// The oplog's start comes nearer than the tail can get away.
    OplogRunsOut,
    /// The source's own time is behind the log's: it was restored from an older backup. Nothing can be
    /// told from it before its time has passed the log's.
    SourceBehind,
    /// An event is too large to be sent as it is.
    EventTooLarge,
    /// The stream can't get past an event, in parts neither.
    Impassable,
    /// The source refuses the user or the password, or the user may not do it.
    AccessRefused,
    /// The log's store failed: disk full, I/O error.
    Store,
    /// The log's file is damaged: only a person can help.
    LogDamaged,
    /// Anything else.
    Unexpected,
}

/// Where the next attempt starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// From the resume token in the log.
    Resume,
    /// From the resume token in the log, events that are too large in parts or without their document.
    ResumeInParts,
    /// From the cluster time up to which the log is whole, dropping what it has.
    ResumeFromTime,
    /// From the source's present time, then reconcile every collection: what lies between can't be
    /// had as events.
    Reconcile,
}

/// The failures since the last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    in_a_row: u32,
    silent: u32,
    token_refused: u32,
    unexpected: u32,
}

impl Attempts {
    /// Forget the failures: something got through.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// How many times as long as usual the source may take for an answer: one of many megabytes takes
    /// its time on a slow line, and is no better when it is asked for again.
    #[must_use]
    pub fn patience(&self) -> u32 {
        1 << self.silent.min(SILENCES_MAX)
    }

    /// Failures since the last success.
    #[must_use]
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

/// What to do about `failure`, and after how long (without jitter: see [`jittered`]). Never "give up":
/// what the log has is served meanwhile, and a source may come back at any time.
#[must_use]
pub fn next_step(failure: Failure, attempts: &mut Attempts) -> (Step, Duration) {
    attempts.in_a_row = attempts.in_a_row.saturating_add(1);
    let wait = BACKOFF_FIRST.saturating_mul(1 << (attempts.in_a_row - 1).min(16)).min(BACKOFF_MAX);
    match failure {
        // Where all of a reply would be too large MongoDB says nothing, and cuts the connection.
        Failure::Interrupted if attempts.in_a_row.is_multiple_of(CUT_BY_GIANT_EVERY) => {
            (Step::ResumeInParts, wait)
        }
        Failure::Closed | Failure::Interrupted => (Step::Resume, wait),
        Failure::Silent => {
            attempts.silent = attempts.silent.saturating_add(1);
            (Step::Resume, wait)
        }
        Failure::TokenRefused => {
            attempts.token_refused = attempts.token_refused.saturating_add(1);
            match attempts.token_refused {
                // The token of an event's fragment is refused by a stream that does not split.
                1 => (Step::ResumeInParts, wait),
                2 => (Step::ResumeFromTime, wait),
                _ => (Step::Reconcile, wait),
            }
        }
        Failure::EventTooLarge => (Step::ResumeInParts, wait),
        Failure::SourceBehind => (Step::Resume, BACKOFF_MAX),
        // A third one in a row means that reconciling did not help: then slowly.
        Failure::HistoryLost | Failure::OplogRunsOut | Failure::Impassable
            if attempts.in_a_row > 2 =>
        {
            (Step::Reconcile, BACKOFF_SLOW)
        }
        Failure::HistoryLost | Failure::OplogRunsOut | Failure::Impassable => {
            (Step::Reconcile, wait)
        }
        Failure::AccessRefused | Failure::Store | Failure::LogDamaged => {
            (Step::Resume, BACKOFF_SLOW.min(wait * 10))
        }
        Failure::Unexpected => {
            attempts.unexpected = attempts.unexpected.saturating_add(1);
            let slow = attempts.unexpected > UNEXPECTED_MAX;
            (Step::Resume, if slow { BACKOFF_SLOW } else { wait })
        }
    }
}

/// Between half of `wait` and all of it, so that many servers do not come back at one moment.
#[must_use]
pub fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(failure: Failure, count: usize) -> Vec<Step> {
        let mut attempts = Attempts::default();
        (0..count).map(|_| next_step(failure, &mut attempts).0).collect()
    }

    #[test]
    fn a_refused_token_is_tried_once_more_then_from_the_time_then_everything_is_reconciled() {
        assert_eq!(
            steps(Failure::TokenRefused, 4),
            [Step::ResumeInParts, Step::ResumeFromTime, Step::Reconcile, Step::Reconcile]
        );
    }

    #[test]
    fn a_lost_history_is_never_resumed_from_its_token() {
        assert_eq!(steps(Failure::HistoryLost, 3), [Step::Reconcile; 3]);
    }

    #[test]
    fn an_event_that_is_too_large_is_stepped_past_and_nothing_is_compared_for_it() {
        assert_eq!(steps(Failure::EventTooLarge, 3), [Step::ResumeInParts; 3]);
    }

    #[test]
    fn an_interruption_is_resumed_at_once_and_for_ever_with_bounded_waits() {
        let mut attempts = Attempts::default();
        for n in 1..1_000 {
            let (step, wait) = next_step(Failure::Interrupted, &mut attempts);
            let in_parts = n % 3 == 0;
            assert_eq!(step, if in_parts { Step::ResumeInParts } else { Step::Resume });
            assert!(wait <= BACKOFF_MAX, "{wait:?}");
        }
        attempts.succeeded();
        assert_eq!(next_step(Failure::Interrupted, &mut attempts).1, BACKOFF_FIRST);
    }

    #[test]
    fn each_silence_gives_the_source_more_time_up_to_a_bound_and_a_success_the_usual_one() {
        let mut attempts = Attempts::default();
        let patience = [(); 7].map(|()| {
            let patience = attempts.patience();
            for failure in [Failure::Silent, Failure::Closed] {
                assert_eq!(next_step(failure, &mut attempts).0, Step::Resume);
            }
            patience
        });
        assert_eq!(patience, [1, 2, 4, 8, 16, 16, 16]);
        attempts.succeeded();
        assert_eq!(attempts.patience(), 1);
    }

    #[test]
    fn no_failure_is_a_hot_loop() {
        let all = [
            Failure::Closed,
            Failure::Interrupted,
            Failure::Silent,
            Failure::TokenRefused,
            Failure::HistoryLost,
            Failure::OplogRunsOut,
            Failure::SourceBehind,
            Failure::EventTooLarge,
            Failure::Impassable,
            Failure::AccessRefused,
            Failure::Store,
            Failure::LogDamaged,
            Failure::Unexpected,
        ];
        for failure in all {
            let mut attempts = Attempts::default();
            for _ in 0..20 {
                assert!(next_step(failure, &mut attempts).1 >= BACKOFF_FIRST, "{failure:?}");
            }
        }
    }
}

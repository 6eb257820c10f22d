//! Waiting for a condition instead of sleeping, seeds that can be repeated, loops that can be longer.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Asks until the answer is there.
///
/// # Panics
/// When it is not there in time; `what` says what was waited for.
pub async fn eventually<T, F>(what: &str, within: Duration, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// The seed of this run: the variable `SEED`, or a new one. Printed, so that a failure can be
/// repeated.
///
/// # Panics
/// When `SEED` is no number.
#[must_use]
pub fn seed() -> u64 {
    let seed = match std::env::var("SEED") {
        Ok(text) => text.parse().expect("SEED is a number"),
        Err(_) => rand::random(),
    };
    eprintln!("SEED={seed}");
    seed
}

/// How often a test kills or ends something: `usual`, or the variable `TIDEWIRE_TEST_KILLS` for a soak of
/// hundreds.
///
/// # Panics
/// When the variable is no number.
#[must_use]
pub fn kills(usual: u64) -> u64 {
    std::env::var("TIDEWIRE_TEST_KILLS").map_or(usual, |text| text.parse().expect("a number"))
}

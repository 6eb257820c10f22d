//! What is live: how long a write takes to be a row in a replica, and what a crowd of push sockets costs
//! and is told.

mod beside;
mod crowd;
mod delay;
mod notices;
mod socket;

pub(super) use crowd::Crowd;
pub(super) use delay::delays;
pub(super) use notices::CONFIGURED;

use std::time::Duration;

/// A share of sorted times, from the least: 0.5 is the median.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

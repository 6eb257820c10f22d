//! The trickle, as a task.

use std::time::{Duration, Instant};

use anyhow::Result;
use mongodb::Client;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::watch::Expected;
use crate::sample::Trickle;

/// Waits after a write that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts to write `rate` times a second, telling `expect` of every write that MongoDB acknowledged.
/// Ends when the answer is dropped.
pub(super) fn start(
    client: &Client,
    database: &str,
    rate: f64,
    expect: mpsc::Sender<Expected>,
) -> Result<Option<DropGuard>> {
    if rate <= 0.0 {
        return Ok(None);
    }
    let period = Duration::try_from_secs_f64(1.0 / rate)?;
    let (client, database) = (client.clone(), database.to_owned());
    let ending = CancellationToken::new();
    let running = ending.clone();
    tokio::spawn(async move {
        let write = write_on(client, database, period, expect);
        running.run_until_cancelled(write).await;
    });
    Ok(Some(ending.drop_guard()))
}

async fn write_on(
    client: Client,
    database: String,
    period: Duration,
    expect: mpsc::Sender<Expected>,
) {
    loop {
        match Trickle::start(&client, &database, rand::random()).await {
            Ok(trickle) => {
                if write_until_failure(trickle, period, &expect).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "nothing to write to; trying again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// # Errors
/// When nobody wants to hear of writes any more.
async fn write_until_failure(
    mut trickle: Trickle,
    period: Duration,
    expect: &mpsc::Sender<Expected>,
) -> Result<(), mpsc::error::SendError<Expected>> {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match trickle.write().await {
            Ok(write) => expect.send(Expected { write, acknowledged: Instant::now() }).await?,
            Err(error) => {
                tracing::warn!(%error, "a write failed; going on");
                return Ok(());
            }
        }
    }
}

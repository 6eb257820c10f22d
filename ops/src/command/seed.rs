//! `seed`: sample data, and on wish a trickle of writes after it.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use indicatif::ProgressBar;
use mongodb::Client;
use tokio::time::MissedTickBehavior;

use super::{Failure, Outcome};
use crate::sample::{Existing, Office, SeedError, Trickle, seed};
use crate::signals::Stop;

const RATE_MAX: f64 = 10_000.0;

#[derive(Debug, Args)]
pub(super) struct Seed {
    /// The MongoDB replica set
    #[arg(long, env = "TIDEWIRE_MONGODB_URI", hide_env_values = true)]
    uri: String,
    /// The database to write to
    #[arg(long, env = "TIDEWIRE_DATABASE", default_value = "invoify")]
    database: String,
    /// How much: 1 is 250 users and about 4,500 documents
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// The same number gives the same documents
    #[arg(long, default_value_t = 1)]
    random_seed: u64,
    /// Delete the documents of users, plans, enrollments, invoices and payments first
    #[arg(long)]
    replace: bool,
    /// Then keep writing as an office does, so many writes a second, until stopped
    #[arg(long, value_name = "RATE")]
    trickle: Option<f64>,
}

impl Seed {
    pub(super) async fn run(self) -> Result<Outcome> {
        if !(self.scale > 0.0 && self.scale <= 1_000.0) {
            return Err(Failure::Usage("--scale must be above 0 and at most 1000".into()).into());
        }
        let client = Client::with_uri_str(&self.uri).await.context("the --uri")?;
        let existing = if self.replace { Existing::Replace } else { Existing::Keep };
        let office = Office::generate(self.random_seed, self.scale);
        let bar = ProgressBar::new_spinner();
        let told = |name: &str, written| bar.set_message(format!("{name}: {written} documents"));
        let seeded = seed(&client.database(&self.database), office, existing, told).await;
        bar.finish_and_clear();
        let database = &self.database;
        match seeded {
            Ok(0) => println!("{database} holds this sample data already: nothing was written"),
            Ok(documents) => println!("wrote {documents} documents into {database}"),
            Err(error @ SeedError::NotEmpty { .. }) => {
                return Err(Failure::Usage(error.to_string()).into());
            }
            Err(SeedError::Mongo(error)) => return Err(error).context("seed"),
        }
        if let Some(rate) = self.trickle {
            keep_writing(&client, database, rate).await?;
        }
        Ok(Outcome::Done)
    }
}

/// Writes until stopped. A write that fails is said, and the next one is tried.
async fn keep_writing(client: &Client, database: &str, rate: f64) -> Result<()> {
    if !(rate > 0.0 && rate <= RATE_MAX) {
        return Err(Failure::Usage(format!("--trickle must be above 0, at most {RATE_MAX}")).into());
    }
    let mut stop = Stop::listen()?;
    let mut trickle = Trickle::start(client, database, rand::random()).await?;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    println!("writing {rate} times a second until stopped");
    loop {
        tokio::select! {
            biased;
            () = stop.asked() => return Ok(()),
            _ = ticks.tick() => {}
        }
        match trickle.write().await {
            Ok(write) => tracing::info!(collection = write.collection, "{}", write.text),
            Err(error) => tracing::warn!(%error, "a write failed; trying another one"),
        }
    }
}

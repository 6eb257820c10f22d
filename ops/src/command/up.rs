//! `up`: the whole stack on this machine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::{Failure, Outcome};
use crate::up::{Options, run};
use tidewire_server::config::parse_duration;

const RATE_MAX: f64 = 1_000.0;
const SCALE_MAX: f64 = 100.0;

#[derive(Debug, Args)]
pub(super) struct Up {
    /// A replica set that runs already, instead of one started here
    #[arg(long, value_name = "URI", env = "TIDEWIRE_MONGODB_URI", hide_env_values = true)]
    mongodb_uri: Option<String>,
    /// The database; seeded with sample data where it is empty, refused where it holds yours
    #[arg(long, default_value = "invoify")]
    database: String,
    /// Where everything is kept
    #[arg(long, default_value = "tidewire-data/up")]
    dir: PathBuf,
    /// The server's port [default: 8787, or a free one]
    #[arg(long)]
    port: Option<u16>,
    /// Writes a second through the MongoDB driver, 0 for none
    #[arg(long, default_value_t = 5.0)]
    rate: f64,
    /// How much sample data: 1 is about 4,500 documents
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Stop after so long (90s, 5m); then the exit code says whether every row arrived as written
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    run_for: Option<Duration>,
}

impl Up {
    pub(super) async fn run(self) -> Result<Outcome> {
        if !(0.0..=RATE_MAX).contains(&self.rate) {
            return Err(Failure::Usage(format!("--rate must be 0 to {RATE_MAX}")).into());
        }
        if !(self.scale > 0.0 && self.scale <= SCALE_MAX) {
            return Err(Failure::Usage(format!("--scale must be above 0, to {SCALE_MAX}")).into());
        }
        run(Options {
            mongodb_uri: self.mongodb_uri,
            database: self.database,
            dir: self.dir,
            port: self.port,
            rate: self.rate,
            scale: self.scale,
            run_for: self.run_for,
        })
        .await?;
        Ok(Outcome::Done)
    }
}

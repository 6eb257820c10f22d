//! `torture`: random load and random faults, and whether every promise held.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::{Failure, Outcome};
use crate::torture::{Options, Verdict, run};

const MINUTES_MAX: f64 = 7.0 * 24.0 * 60.0;
const RATE_MAX: f64 = 2_000.0;

#[derive(Debug, Args)]
pub(super) struct Torture {
    /// Repeats the faults and writes of an earlier run, though not their timing [default: a new one]
    #[arg(long)]
    seed: Option<u64>,
    /// How long load and faults go on; the checks at the end come on top
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// MongoDB nodes: 3, or 1 to leave the faults of replica sets out
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Writes a second
    #[arg(long, default_value_t = 40.0)]
    rate: f64,
    /// Where everything is kept while it runs and, where a promise was broken, after it
    /// [default: tidewire-data/torture-SEED]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keep the folder although all went well
    #[arg(long)]
    keep: bool,
}

impl Torture {
    pub(super) async fn run(self) -> Result<Outcome> {
        if !(self.minutes > 0.0 && self.minutes <= MINUTES_MAX) {
            return Err(Failure::Usage("--minutes must be above 0, to a week".into()).into());
        }
        if !(self.rate >= 1.0 && self.rate <= RATE_MAX) {
            return Err(Failure::Usage(format!("--rate must be 1 to {RATE_MAX}")).into());
        }
        if !matches!(self.nodes, 1 | 3) {
            return Err(Failure::Usage("--nodes must be 1 or 3".into()).into());
        }
        let seed = self.seed.unwrap_or_else(|| rand::random::<u32>().into());
        let dir = self.dir.unwrap_or_else(|| format!("tidewire-data/torture-{seed}").into());
        let run_for = Duration::from_secs_f64(self.minutes * 60.0);
        let Self { nodes, rate, keep, .. } = self;
        match run(Options { seed, run_for, nodes, rate, dir, keep }).await? {
            Verdict::Held => Ok(Outcome::Done),
            Verdict::Broken => Ok(Outcome::Different),
        }
    }
}

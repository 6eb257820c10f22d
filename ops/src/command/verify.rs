//! `verify`: the comparison of a replica with its source.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use mongodb::Client;

use super::{Failure, Outcome};
use crate::verify::{Moment, Observer, Plan, compare};

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The MongoDB replica set
    #[arg(long, env = "TIDEWIRE_MONGODB_URI", hide_env_values = true)]
    uri: String,
    /// The database
    #[arg(long, env = "TIDEWIRE_DATABASE")]
    database: String,
    /// The server's configuration: which collections, which rules
    #[arg(long, env = "TIDEWIRE_CONFIG", default_value = "tidewire.toml")]
    config: PathBuf,
    /// The replica
    #[arg(long, env = "TIDEWIRE_DB")]
    db: PathBuf,
    /// Compare with what this token may see; without it, with everything that is served
    #[arg(long, value_name = "FILE", env = "TIDEWIRE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Compare with the source as it is now, not as it was at the replica's position
    #[arg(long)]
    now: bool,
}

impl Verify {
    pub(super) async fn run(self) -> Result<Outcome> {
        let token = match &self.token_file {
            Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                Failure::Usage(format!("the token file {}: {error}", path.display()))
            })?),
            None => None,
        };
        let plan = Plan::from_config(&self.config, token.as_deref())
            .map_err(|error| Failure::Usage(format!("{error:#}")))?;
        if !self.db.is_file() {
            let path = self.db.display();
            return Err(Failure::Usage(format!("there is no replica at {path}")).into());
        }
        let client = Client::with_uri_str(&self.uri).await.context("the --uri")?;
        let source = client.database(&self.database);
        let moment = self.now.then_some(Moment::Now);
        let mut progress = Progress(ProgressBar::new_spinner().with_style(style()));
        let report = compare(&source, &plan, &self.db, moment, &mut progress).await;
        progress.0.finish_and_clear();
        let report = report?;
        print!("{report}");
        let documents = report.documents();
        if report.is_equal() {
            println!("equal at {}: {documents} documents", report.position);
            Ok(Outcome::Done)
        } else {
            let count: u64 = report.collections.iter().map(|c| c.differences).sum();
            println!("{count} differences at {} in {documents} documents", report.position);
            Ok(Outcome::Different)
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg}").expect("a template that is right")
}

struct Progress(ProgressBar);

impl Observer for Progress {
    fn progress(&mut self, collection: &str, compared: u64) {
        self.0.set_message(format!("{collection}: {compared} documents compared"));
        self.0.tick();
    }

    fn notice(&mut self, text: &str) {
        self.0.suspend(|| eprintln!("{text}"));
    }
}

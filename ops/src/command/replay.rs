//! `replay`: a replica from the change log alone.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use indicatif::ProgressBar;
use tidewire_protocol::Position;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Failure, Outcome};
use crate::replay::{Replay as Job, Sight};

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// The server's data folder
    #[arg(long, env = "TIDEWIRE_DATA_DIR")]
    data_dir: PathBuf,
    /// The replica to write, a new file
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// As it was then: a position (inclusive), or a time (that whole second included)
    #[arg(long, value_name = "POSITION | TIME", value_parser = moment)]
    at: Option<Position>,
    /// The server's configuration: its collections and what it hides; without it, all there is
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With --config: what this token may see
    #[arg(long, value_name = "FILE", requires = "config", conflicts_with = "channels")]
    token_file: Option<PathBuf>,
    /// Only documents in these channels, comma-separated
    #[arg(long, value_delimiter = ',')]
    channels: Option<Vec<String>>,
}

fn moment(text: &str) -> Result<Position, String> {
    if let Ok(position) = Position::from_str(text) {
        return Ok(position);
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        "write a position (16 hex digits, a dot, 8 hex digits) or a time like 2026-01-31T12:00:00Z"
            .to_owned()
    })?;
    let second = u32::try_from(time.unix_timestamp()).map_err(|_| "the year is too far away")?;
    let end_of_second = u64::from(second) << 32 | u64::from(u32::MAX);
    Ok(Position::new(end_of_second, u32::MAX))
}

impl Replay {
    pub(super) async fn run(self) -> Result<Outcome> {
        let token = match &self.token_file {
            Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                Failure::Usage(format!("the token file {}: {error}", path.display()))
            })?),
            None => None,
        };
        let mut sight = match &self.config {
            Some(config) => Sight::of(config, token.as_deref())?,
            None => Sight::everything(),
        };
        if let Some(channels) = self.channels {
            sight = sight.channels(channels);
        }
        if self.to.exists() {
            let what = format!("{} is there already: replay writes a new file", self.to.display());
            return Err(Failure::Usage(what).into());
        }
        let bar = ProgressBar::new_spinner();
        let told = {
            let bar = bar.clone();
            move |changes| bar.set_message(format!("{changes} changes"))
        };
        let (data_dir, through, to) = (self.data_dir, self.at, self.to.clone());
        let replayed = Job { data_dir, to, through, sight }.run(told).await;
        bar.finish_and_clear();
        replayed?;
        println!("{}", self.to.display());
        Ok(Outcome::Done)
    }
}

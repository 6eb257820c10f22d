//! `check`: everything that must pass before a change lands.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::{Failure, Outcome};
use crate::check::run;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The workspace [default: the one of the current folder]
    #[arg(long, value_name = "DIR")]
    top: Option<PathBuf>,
    /// Without the five minutes of `tidewire-ops torture`
    #[arg(long)]
    no_torture: bool,
}

impl Check {
    pub(super) async fn run(self) -> Result<Outcome> {
        let here = std::env::current_dir()?;
        let top = match self.top {
            Some(top) => top,
            None => workspace_above(&here).ok_or_else(|| {
                Failure::Usage("check runs in the folder of Tidewire's sources: use --top".into())
            })?,
        };
        tokio::task::spawn_blocking(move || run(&top, !self.no_torture)).await??;
        Ok(Outcome::Done)
    }
}

fn workspace_above(here: &Path) -> Option<PathBuf> {
    let is_top =
        |dir: &&Path| dir.join("protocol/Cargo.toml").is_file() && dir.join("ops").is_dir();
    here.ancestors().find(is_top).map(Path::to_owned)
}

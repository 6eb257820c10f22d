//! The parts of `up` as processes of their own: this very program under another name, so that
//! building one program is enough.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use tidewire::{SyncClient, TransportChoice};
use tidewire_server::config::Config;
use tidewire_server::run::{RunError, run};

use super::Outcome;
use crate::signals::Stop;

#[derive(Debug, Args)]
pub(super) struct InternalServer {
    #[arg(long)]
    config: PathBuf,
}

impl InternalServer {
    /// As `tidewire-server`.
    pub(super) async fn run(self) -> Result<Outcome> {
        let config = Config::from_file(&self.config).map_err(RunError::from)?;
        run(config).await?;
        Ok(Outcome::Done)
    }
}

#[derive(Debug, Args)]
pub(super) struct InternalClient {
    #[arg(long)]
    server: String,
    #[arg(long)]
    token_file: PathBuf,
    #[arg(long)]
    db: PathBuf,
    /// Until it is caught up
    #[arg(long)]
    once: bool,
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// Seconds between two polls
    #[arg(long, default_value_t = 300)]
    poll_interval: u64,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Transport {
    #[default]
    Auto,
    Push,
    Poll,
}

impl From<Transport> for TransportChoice {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Auto => Self::Auto,
            Transport::Push => Self::Push,
            Transport::Poll => Self::Poll,
        }
    }
}

impl InternalClient {
    /// As `tidewire sync`.
    pub(super) async fn run(self) -> Result<Outcome> {
        let mut stop = Stop::listen()?;
        let client = SyncClient::builder(self.server).replica(self.db).token_file(self.token_file);
        let client = client
            .transport(self.transport.into())
            .poll_interval(Duration::from_secs(self.poll_interval));
        if self.once {
            client.sync_once().await?;
            return Ok(Outcome::Done);
        }
        let client = client.start()?;
        let mut status = client.status();
        tokio::select! {
            () = stop.asked() => client.stop().await?,
            // The status ends with the client.
            () = async { while status.changed().await.is_ok() {} } => client.ended().await?,
        }
        Ok(Outcome::Done)
    }
}

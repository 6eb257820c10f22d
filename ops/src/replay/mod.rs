//! A replica from the change log alone: no MongoDB, no server.
//!
//! The log's changes become pages as a server would send them, and the client's own code applies them:
//! what comes out is what a client would hold that had followed the server to that position.

mod pages;
mod sight;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tidewire::page::Page;
use tidewire::transport::{Failure as Cut, PullRequest, Transport};
use tidewire::{SyncClient, Token};
use tidewire_protocol::Position;
use tidewire_server::log::Reader;
use tokio::sync::{Mutex, mpsc};

pub use sight::Sight;

/// Pages that are made ahead of the client.
const AHEAD: usize = 2;

/// What to build.
#[derive(Debug)]
#[must_use]
pub struct Replay {
    /// The server's data folder.
    pub data_dir: PathBuf,
    /// The new replica; must not exist.
    pub to: PathBuf,
    /// Where to stop, inclusive; `None`: at the log's head.
    pub through: Option<Position>,
    /// Whose eyes to see with.
    pub sight: Sight,
}

impl Replay {
    /// Builds the replica. `told` hears the number of changes so far.
    ///
    /// # Errors
    /// When the log can't be read or does not hold that moment any more, or the replica can't be
    /// written.
    pub async fn run(self, told: impl FnMut(u64) + Send + 'static) -> Result<()> {
        if self.to.exists() {
            bail!("{} is there already: replay writes a new file", self.to.display());
        }
        let reader = Reader::open(&self.data_dir)?;
        let dir = self.data_dir.clone();
        let (reader, stat) = tokio::task::spawn_blocking(move || {
            let stat = reader.stat(&dir);
            stat.map(|stat| (reader, stat))
        })
        .await??;
        let held = stat.clone();
        let names = stat.collections.into_iter().map(|collection| collection.name);
        let collections: Vec<String> = names.filter(|name| self.sight.may_see(name)).collect();
        let (send, pages) = mpsc::channel(AHEAD);
        // The end of the head's own second, where the log is still in it, is the head.
        let same_second = |at: &Position| at.unix_seconds() == stat.head.unix_seconds();
        let through = self.through.filter(|at| *at <= stat.head || !same_second(at));
        let sight = self.sight;
        let names = collections.clone();
        let made = tokio::task::spawn_blocking(move || {
            pages::make(&reader, through, &sight, &names, &held, &send, told)
        });
        let pages = std::sync::Arc::new(Mutex::new(pages));
        let log = LogTransport { pages, collections };
        let client = SyncClient::builder(format!("log:{}", stat.source)).replica(&self.to);
        let applied = client.token(Token::new("replay")).sync_once_over(log).await;
        // The first cause is the log's, where both failed.
        let made = made.await?;
        if made.is_err() || applied.is_err() {
            remove(&self.to);
        }
        made?;
        applied.context("write the replica")?;
        Ok(())
    }
}

/// What came of a replay that failed is no replica.
fn remove(replica: &Path) {
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", replica.display()));
    }
}

/// Gives the client pages as they are made.
struct LogTransport {
    pages: std::sync::Arc<Mutex<mpsc::Receiver<String>>>,
    collections: Vec<String>,
}

impl Transport for LogTransport {
    fn pull(
        &self,
        _request: PullRequest,
        _token: Token,
    ) -> impl Future<Output = Result<Page, Cut>> + Send + 'static {
        let pages = std::sync::Arc::clone(&self.pages);
        async move {
            let page = pages.lock().await.recv().await;
            let text = page.ok_or_else(|| Cut::Forbidden("the log could not be read".into()))?;
            Page::decode(text).map_err(|error| Cut::Garbage(error.to_string()))
        }
    }

    fn collections(
        &self,
        _token: Token,
    ) -> impl Future<Output = Result<Vec<String>, Cut>> + Send + 'static {
        std::future::ready(Ok(self.collections.clone()))
    }
}

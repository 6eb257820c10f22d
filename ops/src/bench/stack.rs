//! The real server and the real client, as processes of their own, for as long as one measurement.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tidewire_protocol::Position;

use super::load::COLLECTION;
use crate::ports;
use crate::process::{Guarded, Launch};
use crate::token::{self, Claims};

/// Signs this measurement's tokens only.
const SECRET: &str = "a secret for measurements, forgotten with them";
/// Between two looks at the server.
const POLL: Duration = Duration::from_millis(5);
/// The longest that one measurement may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// For a clean end.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// Where a measurement's files are, and what it follows.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// The source.
    pub(super) uri: String,
    /// Its database.
    pub(super) database: String,
    /// For configurations, logs of processes and replicas.
    pub(super) dir: PathBuf,
    /// Collections beside that of the invoices, as the configuration has them.
    pub(super) more: &'static str,
}

/// A client that runs until it is stopped.
pub(super) struct Client(Guarded);

impl Client {
    /// Ends it.
    pub(super) async fn stop(mut self) -> Result<()> {
        let status = self.0.stop(STOPPED_WITHIN).await?;
        if !status.success() {
            bail!("the client ended badly ({status}): {}", self.0.last_words(20));
        }
        Ok(())
    }
}

/// A running server.
pub(super) struct Server {
    process: Guarded,
    http: reqwest::Client,
    url: String,
    token: String,
    /// When it answered for the first time.
    listening: Instant,
}

impl Server {
    /// Starts a server over the log in `data_dir` and waits until it listens.
    pub(super) async fn start(setup: &Setup, data_dir: &Path) -> Result<Self> {
        let ports = ports::free(2)?;
        let config = setup.dir.join("tidewire.toml");
        std::fs::write(&config, configuration(setup, data_dir, &ports))?;
        let program = std::env::current_exe().context("find this program")?;
        let mut process = Launch::new(program, setup.dir.join("server.log"))
            .args(["internal-server", "--config"])
            .arg(&config)
            .env("RUST_LOG", "warn")
            .start()?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://127.0.0.1:{}", ports[0]);
        let token = token::sign(SECRET, &Claims::of("bench").role("admin"))?;
        let health = format!("{url}/healthz");
        let deadline = Instant::now() + STOPPED_WITHIN;
        while http.get(&health).send().await.is_err() {
            if process.ended()?.is_some() || Instant::now() > deadline {
                bail!("the server does not start: {}", process.last_words(20));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(Self { process, http, url, token, listening: Instant::now() })
    }

    /// Waits until the first copy is finished; from the time it began to listen.
    pub(super) async fn ready(&mut self) -> Result<Duration> {
        let url = format!("{}/readyz", self.url);
        loop {
            if self.http.get(&url).send().await?.status().is_success() {
                return Ok(self.listening.elapsed());
            }
            self.look_after().await?;
        }
    }

    /// Waits until everything up to `cluster_time` is in the log; from the time it began to listen.
    pub(super) async fn caught_up(&mut self, cluster_time: u64) -> Result<Duration> {
        let url = format!("{}/api/sync/status", self.url);
        loop {
            let answer = self.http.get(&url).bearer_auth(&self.token).send().await?;
            let status: Value = serde_json::from_slice(&answer.bytes().await?)?;
            let head = status["head"].as_str().and_then(|text| text.parse::<Position>().ok());
            if head.is_some_and(|head| head.cluster_time >= cluster_time) {
                return Ok(self.listening.elapsed());
            }
            self.look_after().await?;
        }
    }

    async fn look_after(&mut self) -> Result<()> {
        if self.process.ended()?.is_some() {
            bail!("the server ended: {}", self.process.last_words(20));
        }
        if self.listening.elapsed() > PATIENCE {
            bail!("the server is not done after {PATIENCE:?}: {}", self.process.last_words(20));
        }
        tokio::time::sleep(POLL).await;
        Ok(())
    }

    /// Its address, `http://…`.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// A token of `sub`, without roles.
    pub(super) fn token_of(&self, sub: &str) -> Result<String> {
        token::sign(SECRET, &Claims::of(sub))
    }

    /// Resident memory now, bytes.
    pub(super) fn memory(&self) -> Result<u64> {
        memory(self.process.id(), "VmRSS:")
    }

    fn client(&self, setup: &Setup, replica: &Path, how: &[&str]) -> Result<Guarded> {
        let token = setup.dir.join("token");
        std::fs::write(&token, &self.token)?;
        Launch::new(std::env::current_exe()?, setup.dir.join("client.log"))
            .args(["internal-client", "--server", &self.url, "--token-file"])
            .arg(&token)
            .arg("--db")
            .arg(replica)
            .args(how)
            .env("RUST_LOG", "warn")
            .start()
    }

    /// Starts a client that follows this server, into a new replica.
    pub(super) fn follow(&self, setup: &Setup, replica: &Path) -> Result<Client> {
        self.client(setup, replica, &[]).map(Client)
    }

    /// Runs the client until it is caught up, into a new replica; from its start to its end.
    pub(super) async fn sync_once(&self, setup: &Setup, replica: &Path) -> Result<Duration> {
        let started = Instant::now();
        let mut client = self.client(setup, replica, &["--once"])?;
        let status = client.wait(PATIENCE).await?;
        let took = started.elapsed();
        if !status.success() {
            bail!("the client failed ({status}): {}", client.last_words(20));
        }
        Ok(took)
    }

    /// Ends it; gives the most memory that it ever held, bytes.
    pub(super) async fn stop(mut self) -> Result<u64> {
        let memory = memory(self.process.id(), "VmHWM:")?;
        let status = self.process.stop(STOPPED_WITHIN).await?;
        if !status.success() {
            bail!("the server ended badly ({status}): {}", self.process.last_words(20));
        }
        Ok(memory)
    }
}

/// Resident memory of a process, bytes: `VmRSS:` now, `VmHWM:` at its highest.
fn memory(process: u32, which: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(which));
    let kib = line.with_context(|| format!("no {which}"))?.trim().trim_end_matches("kB").trim();
    Ok(kib.parse::<u64>()? * 1024)
}

fn configuration(setup: &Setup, data_dir: &Path, ports: &[u16]) -> String {
    let Setup { uri, database, more, .. } = setup;
    let (listen, admin) = (ports[0], ports[1]);
    let dir = data_dir.display();
    format!(
        r#"[source]
uri = "{uri}"
database = "{database}"
[log]
dir = "{dir}"
[http]
listen = "127.0.0.1:{listen}"
admin_listen = "127.0.0.1:{admin}"
requests_per_second = 1000000
requests_burst = 1000000
[auth]
hs256_secret = "{SECRET}"
[access]
grants = ["everyone", "user:{{sub}}", "role:{{roles}}"]
[[collections]]
name = "{COLLECTION}"
channels = ["user:{{userId}}", "role:admin"]
{more}"#
    )
}

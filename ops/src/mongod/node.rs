//! One mongod process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::{ClientOptions, ServerAddress};
use nix::sys::signal::Signal;

use crate::process::{Guarded, Launch};

const LISTENING: &str = "Waiting for connections";
const LISTENING_WITHIN: Duration = Duration::from_secs(180);
const STOPPED_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// One node of a replica set.
#[derive(Debug)]
pub struct Node {
    port: u16,
    launch: Launch,
    process: Option<Guarded>,
    data: PathBuf,
    log: PathBuf,
    /// One for the node's life: a dropped one leaves its connections open for a while.
    client: Client,
}

/// Why a node did not come up.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// Somebody else took the port; another one may do.
    #[error("port {0} is taken")]
    PortTaken(u16),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl Node {
    /// A node that will run `mongod` with its data in `dir`; not started.
    pub(super) fn new(mongod: &Path, dir: &Path, port: u16, args: &[String]) -> Result<Self> {
        let data = dir.join("db");
        std::fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        let log = dir.join("mongod.log");
        let launch = Launch::new(mongod, dir.join("mongod.out"))
            .args(["--bind_ip", "127.0.0.1", "--nounixsocket", "--logappend", "--port"])
            .arg(port.to_string())
            .arg("--dbpath")
            .arg(&data)
            .arg("--logpath")
            .arg(&log)
            .args(args);
        Ok(Self { port, launch, process: None, data, log, client: client(port)? })
    }

    /// Where its data is.
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// The port it listens on, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Guarded::id)
    }

    pub(super) async fn start(&mut self) -> Result<(), StartError> {
        // The log tells, not a connection: on a port that somebody else took just before, that would
        // be somebody else's answer.
        let seen = std::fs::metadata(&self.log).map_or(0, |log| log.len());
        let mut process = self.launch.start()?;
        let deadline = Instant::now() + LISTENING_WITHIN;
        while !self.log_since(seen).contains(LISTENING) {
            if process.ended().context("look after mongod")?.is_some() {
                return Err(self.start_failure(seen));
            }
            if Instant::now() > deadline {
                let log = self.log.display();
                let error =
                    anyhow::anyhow!("mongod does not listen after {LISTENING_WITHIN:?}: {log}");
                return Err(error.into());
            }
            tokio::time::sleep(POLL).await;
        }
        self.process = Some(process);
        Ok(())
    }

    fn log_since(&self, offset: u64) -> String {
        let mut text = Vec::new();
        if let Ok(mut log) = File::open(&self.log) {
            let _ = log.seek(SeekFrom::Start(offset)).and_then(|_| log.read_to_end(&mut text));
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn start_failure(&self, seen: u64) -> StartError {
        let log = self.log_since(seen);
        if log.contains("Address already in use") {
            return StartError::PortTaken(self.port);
        }
        let severe = |line: &&str| line.contains(r#""s":"F""#) || line.contains(r#""s":"E""#);
        let words = log.lines().find(severe).or_else(|| log.lines().next_back());
        let words = words.unwrap_or("it printed nothing");
        anyhow::anyhow!("mongod ended at once ({}): {words}", self.log.display()).into()
    }

    /// Kills it with no chance to clean up.
    ///
    /// # Errors
    /// When it does not die.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Freezes it: SIGSTOP. Its connections stay open and silent.
    ///
    /// # Errors
    /// When the signal can't be sent.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen one go on: SIGCONT.
    ///
    /// # Errors
    /// When the signal can't be sent.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends a signal to a running node.
    ///
    /// # Errors
    /// When it does not run or the signal can't be sent.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        match &mut self.process {
            Some(process) => process.signal(signal),
            None => bail!("the node on port {} does not run", self.port),
        }
    }

    pub(super) fn must_run(&mut self) -> Result<()> {
        match self.process.as_mut().map(Guarded::ended).transpose()?.flatten() {
            None => Ok(()),
            Some(status) => {
                let error = self.start_failure(0);
                bail!("mongod on port {} ended by itself ({status}): {error}", self.port)
            }
        }
    }

    /// Ends it cleanly.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.stop(STOPPED_WITHIN).await?;
        }
        Ok(())
    }

    /// Ends it if it runs and starts it again on the same data and port. Waits until it listens, not
    /// until it is a primary or secondary.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        Ok(self.start().await?)
    }

    /// A driver's client for this node alone. Fails fast: 5 s.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs an administrative command on this node.
    ///
    /// # Errors
    /// The command's.
    pub async fn admin(&self, command: Document) -> Result<Document, mongodb::error::Error> {
        self.client.database("admin").run_command(command).await
    }

    pub(super) async fn is_primary(&self) -> bool {
        let hello = self.admin(doc! { "hello": 1 }).await;
        hello.is_ok_and(|answer| answer.get_bool("isWritablePrimary").unwrap_or(false))
    }
}

fn client(port: u16) -> Result<Client> {
    let address = ServerAddress::Tcp { host: "127.0.0.1".into(), port: Some(port) };
    let options = ClientOptions::builder()
        .hosts(vec![address])
        .direct_connection(true)
        .server_selection_timeout(Duration::from_secs(5))
        .build();
    Client::with_options(options).context("a client for one node")
}

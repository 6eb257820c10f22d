//! Child processes that never outlive us, not even when we are killed with no chance to clean up.
//!
//! Each child starts as a shell that first forks a guard and then becomes the program, under the same
//! process id. The guard reads from a pipe that we hold: when we are gone, however we went, the pipe
//! ends and the guard kills the program. (The kernel's own way, a parent-death signal, needs unsafe
//! code and fires when the spawning *thread* ends.)

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const POLL: Duration = Duration::from_millis(10);
const REAP: Duration = Duration::from_secs(10);

const GUARD: &str = r#"exec 3<&0 </dev/null
( read -r _ <&3 || kill -KILL $$ ) >/dev/null 2>&1 &
exec 3<&-
exec "$@""#;

/// What to run.
#[derive(Clone, Debug)]
pub struct Launch {
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    log: PathBuf,
}

impl Launch {
    /// `program`, its standard output and error appended to the file `log`.
    pub fn new(program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), envs: Vec::new(), log: log.into() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the child's environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts it, in a process group of its own: a terminal's Ctrl-C reaches only us, and we decide.
    ///
    /// # Errors
    /// When the log can't be opened or no shell can be started. A program that can't be executed
    /// shows as exit status 126 or 127 and a line in its log.
    pub fn start(&self) -> Result<Guarded> {
        let log = open_log(&self.log)?;
        let mut child = Command::new("sh")
            .args(["-c", GUARD, "sh"])
            .arg(&self.program)
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let leash = child.stdin.take();
        let name = self.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Guarded { child, leash, ended: None, name, log: self.log.clone() })
    }
}

/// A running child. Killed when dropped.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    leash: Option<ChildStdin>,
    ended: Option<ExitStatus>,
    name: String,
    log: PathBuf,
}

impl Guarded {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds what it printed.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The exit status if it has ended.
    ///
    /// # Errors
    /// When the system refuses to tell.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() && self.child_has_ended()? {
            // The guard is let go before the process id is: it must never kill a stranger.
            if let Some(mut leash) = self.leash.take() {
                let _ = leash.write_all(b"\n");
            }
            self.ended = Some(self.child.wait()?);
        }
        Ok(self.ended)
    }

    /// Whether it has ended, leaving its id reserved.
    fn child_has_ended(&self) -> io::Result<bool> {
        use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        Ok(waitid(Id::Pid(self.pid()), flags)? != WaitStatus::StillAlive)
    }

    /// Sends a signal. One to a process that has ended is no error.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            kill(self.pid(), signal).with_context(|| format!("send {signal} to {}", self.name))?;
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended after `patience`.
    pub async fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(anyhow!("{} still runs after {patience:?}", self.name));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks it to end (SIGTERM), waits, and kills it when it has not ended after `patience`.
    /// The status tells which it was.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        match self.wait(patience).await {
            Ok(status) => Ok(status),
            Err(_) => self.kill().await,
        }
    }

    /// Kills it with no chance to clean up, and waits until it is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait(REAP).await
    }

    /// The last lines of what it printed, for error messages.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    #[expect(clippy::cast_possible_wrap, reason = "process ids are far below 2^31")]
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = kill(self.pid(), Signal::SIGKILL);
            if let Some(mut leash) = self.leash.take() {
                let _ = leash.write_all(b"\n");
            }
            let _ = self.child.wait();
        }
    }
}

/// A path that starts this very program, also where it has been built anew since it was started.
///
/// # Errors
/// When the system does not tell.
pub fn this_program() -> io::Result<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() { Ok(link.to_owned()) } else { std::env::current_exe() }
}

/// Runs a program to its end under the guard, for callers that block: its standard output and error
/// are those of `stdout` and `stderr`, a pipe's come back.
///
/// # Errors
/// When no shell can be started.
pub fn run_guarded(
    program: &str,
    args: &[&OsStr],
    stdout: Stdio,
    stderr: Stdio,
) -> io::Result<Output> {
    let mut child = Command::new("sh")
        .args(["-c", GUARD, "sh", program])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()?;
    let leash = child.stdin.take();
    let output = child.wait_with_output();
    if let Some(mut leash) = leash {
        let _ = leash.write_all(b"\n");
    }
    output
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open the log {}", path.display()))
}

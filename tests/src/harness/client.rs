//! The real `tidewire` client, started as a user would start it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use tidewire_ops::process::{Guarded, Launch};
use tidewire_ops::temporary::Temporary;

use super::{eventually, program};

const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// A replica file, the client that keeps it, and the token that it uses.
#[derive(Debug)]
pub struct Client {
    process: Option<Guarded>,
    server: String,
    dir: Temporary,
    /// More arguments for `sync`.
    pub args: Vec<String>,
    /// What it logs, in the place of our own `RUST_LOG`.
    pub logs: Option<&'static str>,
}

impl Client {
    /// A client of the server at `url` with a new folder; not started.
    ///
    /// # Panics
    /// When there is no folder to be had.
    #[must_use]
    pub fn new(url: &str, token: &str) -> Self {
        let dir = Temporary::new("client").expect("a folder");
        let client =
            Self { process: None, server: url.to_owned(), dir, args: Vec::new(), logs: None };
        client.set_token(token);
        client
    }

    /// Writes the token file.
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn set_token(&self, token: &str) {
        let new = self.dir.path().join("token.new");
        std::fs::write(&new, token).expect("write the token");
        std::fs::rename(new, self.token_file()).expect("put the token in place");
    }

    /// Goes to another server from the next start on.
    pub fn set_server(&mut self, url: &str) {
        url.clone_into(&mut self.server);
    }

    /// Where it goes.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// The replica.
    #[must_use]
    pub fn db(&self) -> PathBuf {
        self.dir.path().join("replica.db")
    }

    /// The file with the token.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    /// The folder that holds both.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The names of the files in its folder that hold this text anywhere.
    ///
    /// # Panics
    /// When the folder can't be read.
    #[must_use]
    pub fn files_with(&self, text: &str) -> Vec<String> {
        let files = std::fs::read_dir(self.dir()).expect("the folder");
        let holds = |path: &PathBuf| {
            let bytes = std::fs::read(path).unwrap_or_default();
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        };
        let paths = files.map(|entry| entry.expect("a file").path());
        paths.filter(holds).map(|path| path.display().to_string()).collect()
    }

    /// What a client that runs with `--json` has said of itself, in order.
    #[must_use]
    pub fn statuses(&self) -> Vec<Value> {
        let text = self.log_text();
        let lines = text.lines().filter(|line| line.starts_with("{\"initialized\""));
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Everything that a running client has logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        let text = std::fs::read(self.dir.path().join("client.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// `tidewire sync`, left running.
    ///
    /// # Panics
    /// When it runs already or can't be started.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "the client still runs");
        let launch = Launch::new(program("tidewire"), self.dir.path().join("client.log"))
            .args(self.sync_args())
            .args(&self.args);
        let launch = match self.logs {
            Some(logs) => launch.env("RUST_LOG", logs),
            None => launch,
        };
        self.process = Some(launch.start().expect("start the client"));
    }

    /// `tidewire sync --once`, to its end.
    ///
    /// # Panics
    /// When it does not exit with 0.
    pub async fn sync_once(&self) {
        let output = self.try_sync_once().await;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "sync --once: {}\n{text}", output.status);
    }

    /// `tidewire sync --once`, to whatever end.
    ///
    /// # Panics
    /// When it can't be started.
    pub async fn try_sync_once(&self) -> Output {
        let mut args = self.sync_args();
        args.push("--once".into());
        args.extend(self.args.iter().cloned());
        run(args).await
    }

    fn sync_args(&self) -> Vec<String> {
        let text = |path: PathBuf| path.to_str().expect("a plain path").to_owned();
        let mut args = vec!["sync".to_owned(), "--server".into(), self.server.clone()];
        args.extend(["--token-file".into(), text(self.token_file())]);
        args.extend(["--db".into(), text(self.db())]);
        args
    }

    /// `tidewire status --json`.
    ///
    /// # Panics
    /// When it fails.
    pub async fn status(&self) -> Value {
        let db = self.db().to_str().expect("a plain path").to_owned();
        let output = run(vec!["status".into(), "--db".into(), db, "--json".into()]).await;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// The process id of a running client.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Guarded::id)
    }

    /// Kills it with no chance to clean up.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill(&mut self) {
        self.process.take().expect("the client runs").kill().await.expect("kill the client");
    }

    /// Ends it as a user does.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn stop(&mut self) -> std::process::ExitStatus {
        let mut process = self.process.take().expect("the client runs");
        process.stop(STOPPED_WITHIN).await.expect("stop the client")
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it does not run, or goes on.
    pub async fn ended(&mut self, within: Duration) -> std::process::ExitStatus {
        let mut process = self.process.take().expect("the client runs");
        process.wait(within).await.expect("the client ends")
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&mut self, signal: nix::sys::signal::Signal) {
        self.process.as_mut().expect("the client runs").signal(signal).expect("send a signal");
    }

    /// The replica as any program reads it: read-only.
    ///
    /// # Errors
    /// When there is none yet.
    pub fn open(&self) -> rusqlite::Result<Connection> {
        let db = Connection::open_with_flags(self.db(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.busy_timeout(Duration::from_secs(5))?;
        Ok(db)
    }

    /// Where the replica stands, as its own status view says; `None` before the first copy.
    #[must_use]
    pub fn position(&self) -> Option<String> {
        let db = self.open().ok()?;
        db.query_row("SELECT position FROM _tidewire_status", [], |row| row.get(0)).ok().flatten()
    }

    /// Waits until the replica stands at or after `position`.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn reaches(&self, position: &str, within: Duration) {
        eventually(&format!("the replica reaches {position}"), within, || async {
            self.position().filter(|reached| reached.as_str() >= position)
        })
        .await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = self.log_text();
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(20)..];
            eprintln!("--- the client's last lines ---\n{}", last.join("\n"));
        }
    }
}

async fn run(args: Vec<String>) -> Output {
    let task = move || Command::new(program("tidewire")).args(args).output();
    tokio::task::spawn_blocking(task).await.expect("run the client").expect("start the client")
}

//! The real `tidewire-server`, started as an operator would start it.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tidewire_ops::ports;
use tidewire_ops::process::{Guarded, Launch};
use tidewire_ops::temporary::Temporary;

use super::{Claims, Mongo, SECRET, eventually, program, sign};

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// How a server is started.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The source's connection string.
    pub uri: String,
    /// The source's database.
    pub database: String,
    /// `[[collections]]`, as TOML; see [`collection`].
    pub collections: String,
    /// `grants` of `[access]`.
    pub grants: Vec<String>,
    /// `retention` of `[log]`.
    pub retention: String,
    /// More TOML, put at the end.
    pub more: String,
    /// Variables of the environment.
    pub envs: Vec<(String, String)>,
    /// Where the change log is, when not in the server's own folder.
    pub data_dir: Option<PathBuf>,
    /// A command of the shell that becomes the server: what it sets up, the server inherits.
    pub before: Option<String>,
    /// ERROR lines that hold one of these are expected.
    pub expected_errors: Vec<String>,
}

impl ServerOptions {
    /// Follows `mongo`'s database; every collection in `everyone`.
    #[must_use]
    pub fn following(mongo: &Mongo, collections: &[&str]) -> Self {
        let tables = collections.iter().map(|name| collection(name, &["everyone"], &[]));
        Self {
            uri: mongo.uri(),
            database: mongo.db.name().to_owned(),
            collections: tables.collect(),
            grants: ["everyone", "user:{sub}", "role:{roles}"].map(str::to_owned).to_vec(),
            retention: "7d".into(),
            more: String::new(),
            envs: Vec::new(),
            data_dir: None,
            before: None,
            expected_errors: Vec::new(),
        }
    }

    fn toml(&self, data: &Path) -> String {
        format!(
            "[source]\nuri = {uri:?}\ndatabase = {database:?}\n[log]\ndir = {data:?}\n\
             retention = {retention:?}\n[auth]\nhs256_secret = {SECRET:?}\n[access]\n\
             grants = {grants:?}\n{collections}{more}",
            uri = self.uri,
            database = self.database,
            retention = self.retention,
            grants = self.grants,
            collections = self.collections,
            more = self.more,
        )
    }
}

/// One `[[collections]]` table.
#[must_use]
pub fn collection(name: &str, channels: &[&str], exclude: &[&str]) -> String {
    format!("[[collections]]\nname = {name:?}\nchannels = {channels:?}\nexclude = {exclude:?}\n")
}

/// A running server with its folder.
#[derive(Debug)]
pub struct Server {
    process: Option<Guarded>,
    /// What it was and will be started with; a change counts from the next start.
    pub options: ServerOptions,
    port: u16,
    admin_port: u16,
    dir: Temporary,
}

impl Server {
    /// Starts one and waits until it is ready: the first copy is done.
    ///
    /// # Panics
    /// When it ends, or is not ready in a minute.
    pub async fn start(options: ServerOptions) -> Self {
        let mut server = Self::start_unready(options);
        server.ready().await;
        server
    }

    /// Starts one and does not wait.
    ///
    /// # Panics
    /// When it can't be started at all.
    #[must_use]
    pub fn start_unready(options: ServerOptions) -> Self {
        let ports = ports::free(2).expect("free ports");
        let dir = Temporary::new("server").expect("a folder");
        let (port, admin_port) = (ports[0], ports[1]);
        let mut server = Self { process: None, options, port, admin_port, dir };
        server.launch();
        server
    }

    /// Starts it again, on the same folder and ports, after [`Server::kill`] or [`Server::stop`].
    ///
    /// # Panics
    /// When it can't be started at all.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "the server still runs");
        let config = self.dir.path().join("tidewire.toml");
        std::fs::write(&config, self.options.toml(&self.data_dir())).expect("write the config");
        let launch = match &self.options.before {
            None => Launch::new(program("tidewire-server"), self.log()),
            Some(before) => Launch::new("sh", self.log())
                .args(["-c", &format!("{before}; exec \"$0\" \"$@\"")])
                .arg(program("tidewire-server")),
        };
        let mut launch = launch
            .args(["--log-format", "json", "--config"])
            .arg(&config)
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(["--admin-listen", &format!("127.0.0.1:{}", self.admin_port)])
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()));
        for (name, value) in &self.options.envs {
            launch = launch.env(name, value);
        }
        self.process = Some(launch.start().expect("start the server"));
    }

    /// Waits until it answers `/readyz` with 200.
    ///
    /// # Panics
    /// When it ends, or is not ready in a minute.
    pub async fn ready(&mut self) {
        let url = format!("{}/readyz", self.url());
        let http = http();
        eventually("the server is ready", READY_WITHIN, || {
            let ended = self.process.as_mut().expect("it runs").ended().expect("look after it");
            assert!(ended.is_none(), "the server ended ({ended:?}):\n{}", self.log_text());
            let ask = http.get(&url).send();
            async move { ask.await.ok().filter(|answer| answer.status().is_success()) }
        })
        .await;
    }

    /// `http://127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its process id, for signals and memory readings.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Guarded::id)
    }

    /// The folder of its change log.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.options.data_dir.clone().unwrap_or_else(|| self.dir.path().join("data"))
    }

    /// The file with its log lines, JSON.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// Everything it has logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        let text = std::fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// A token that it accepts.
    ///
    /// # Panics
    /// Never with this harness's secret.
    #[must_use]
    pub fn token(&self, claims: &Claims) -> String {
        sign(SECRET, claims).expect("a token")
    }

    /// Waits until it listens, ready or not.
    ///
    /// # Panics
    /// When it does not in a minute.
    pub async fn listens(&self) {
        let url = format!("{}/healthz", self.url());
        let answers = || async { http().get(&url).send().await.ok() };
        eventually("the server listens", READY_WITHIN, answers).await;
    }

    /// One pull, as JSON. `query` is what follows the `?`.
    ///
    /// # Panics
    /// When there is no answer or it is not JSON.
    pub async fn pull(&self, token: &str, query: &str) -> (u16, serde_json::Value) {
        let url = format!("{}/api/sync/pull?{query}", self.url());
        let answer = http().get(url).bearer_auth(token).send().await.expect("an answer");
        let status = answer.status().as_u16();
        let text = answer.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    }

    /// The operators' metrics, as text.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn metrics(&self) -> String {
        let url = format!("{}/metrics", self.admin_url());
        let answer = http().get(url).send().await.expect("an answer");
        answer.text().await.expect("a body")
    }

    /// The operators' listener.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&mut self, signal: nix::sys::signal::Signal) {
        self.process.as_mut().expect("the server runs").signal(signal).expect("send a signal");
    }

    /// Kills it with no chance to clean up.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill(&mut self) {
        self.process.take().expect("the server runs").kill().await.expect("kill the server");
        self.no_unexpected_errors();
    }

    /// Ends it as an operator does and says how it went.
    ///
    /// # Panics
    /// When it does not run, or logged an unexpected ERROR.
    pub async fn stop(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the server runs");
        let status = process.stop(STOPPED_WITHIN).await.expect("stop the server");
        self.no_unexpected_errors();
        status
    }

    /// Waits for an end that it comes to by itself.
    ///
    /// # Panics
    /// When it still runs after `within`.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let mut process = self.process.take().expect("the server runs");
        process.wait(within).await.expect("the server ends")
    }

    /// An ERROR line means that a person must look: so does the test.
    ///
    /// # Panics
    /// When there is one that [`ServerOptions::expected_errors`] does not name.
    pub fn no_unexpected_errors(&self) {
        let text = self.log_text();
        let expected = |line: &str| self.options.expected_errors.iter().any(|e| line.contains(e));
        let is_error =
            |line: &str| line.contains(r#""level":"ERROR""#) || line.contains("panicked at");
        let errors: Vec<&str> = text.lines().filter(|l| is_error(l) && !expected(l)).collect();
        assert!(errors.is_empty(), "the server logged errors:\n{}", errors.join("\n"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.take());
        if std::thread::panicking() {
            let text = self.log_text();
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- the server's last lines ---\n{}", last.join("\n"));
        } else {
            self.no_unexpected_errors();
        }
    }
}

/// A plain HTTP client. Tests talk to loopback only, but rustls wants its provider all the same.
fn http() -> reqwest::Client {
    // An error means that it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(90)).build().expect("an HTTP client")
}

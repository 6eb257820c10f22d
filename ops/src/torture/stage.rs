//! The parts: three mongods, two servers, four clients behind a network that fails. Each is a process of
//! its own, and the real one.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bson::{Document, doc};
use mongodb::options::{ClientOptions, WriteConcern};
use mongodb::{Client, Database};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::history::History;
use crate::mongod::{Options as MongodOptions, ReplicaSet};
use crate::ports;
use crate::process::{Guarded, Launch, this_program};
use crate::proxy::Proxy;
use crate::token::{Claims, sign};

/// The followed collections. The first [`PLAIN`] change by plain writes and transactions alone, so that
/// each of their changes is an event; the others are dropped, renamed and written over.
pub(super) const COLLECTIONS: [&str; 5] = ["accounts", "items", "notices", "churn", "churn2"];
/// What is taken out of a configuration.
pub(super) const NOT_FOLLOWED: &str = COLLECTIONS[4];
pub(super) const PLAIN: usize = 3;
pub(super) const ACCOUNTS: usize = 0;
/// Whose accounts and items they are.
pub(super) const OWNERS: [&str; 3] = ["ann", "bob", "cem"];
pub(super) const ACCOUNTS_EACH: i32 = 8;
pub(super) const OPENING_BALANCE: i64 = 1_000;
/// What the accounts of one owner hold, always.
pub(super) const TOTAL: i64 = ACCOUNTS_EACH as i64 * OPENING_BALANCE;
/// A view: it is never followed.
pub(super) const VIEW: &str = "seen";
/// In a field that the rules hide: no replica and no page may hold it.
pub(super) const HIDDEN: &str = "never-to-be-seen";

const SECRET: &str = "a secret for torture, forgotten with it";
pub(super) const DATABASE: &str = "torture";
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Small, so that it can be rolled over in a run; more than what is written while a node is away.
const OPLOG_MB: u32 = 128;
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The contract: SIGTERM drains within 10 s; a little for a busy machine.
pub(super) const STOPPED_WITHIN: Duration = Duration::from_secs(15);
/// For a check, backup or rebuild of a log.
const CARED_FOR_WITHIN: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);
/// What tokens last that nobody lets expire.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);

/// Everything that runs, and where it is.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) clients: Vec<ClientPart>,
    pub(super) servers: Vec<ServerPart>,
    pub(super) mongo: ReplicaSet,
    pub(super) site: Site,
    pub(super) checks: JoinSet<()>,
}

/// Where everything is, for those who only look.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// The load's and the checks' own; no fault is aimed at it.
    pub(super) driver: Client,
    pub(super) database: Database,
    pub(super) servers: Vec<ServerSite>,
    pub(super) clients: Vec<ClientSite>,
    /// Ends the checks.
    pub(super) checks: CancellationToken,
}

#[derive(Clone, Debug)]
pub(super) struct ServerSite {
    /// Its place among the servers.
    pub(super) index: usize,
    pub(super) name: &'static str,
    pub(super) url: String,
    pub(super) address: String,
    /// The operators' listener.
    pub(super) admin: String,
    pub(super) dir: PathBuf,
    pub(super) retention: Duration,
    /// Of its log.
    pub(super) history: Arc<History>,
}

impl ServerSite {
    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(super) fn has_log(&self) -> bool {
        self.data_dir().join("log.db").exists()
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("tidewire.toml")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// What the server has said after so many bytes of its lines.
    pub(super) fn said_after(&self, bytes: u64) -> io::Result<Vec<u8>> {
        let mut log = File::open(self.log())?;
        log.seek(SeekFrom::Start(bytes))?;
        let mut said = Vec::new();
        log.read_to_end(&mut said)?;
        Ok(said)
    }
}

#[derive(Clone, Debug)]
pub(super) struct ClientSite {
    pub(super) name: &'static str,
    /// `None`: an administrator, who sees everything.
    pub(super) owner: Option<&'static str>,
    pub(super) dir: PathBuf,
}

impl ClientSite {
    pub(super) fn replica(&self) -> PathBuf {
        self.dir.join("replica.db")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("client.log")
    }

    pub(super) fn token_file(&self) -> PathBuf {
        self.dir.join("token")
    }

    /// A token of this client, good for `ttl`.
    pub(super) fn token(&self, ttl: Duration) -> Result<String> {
        token(self.owner, ttl)
    }
}

/// A token of an owner, or of an administrator.
pub(super) fn token(owner: Option<&str>, ttl: Duration) -> Result<String> {
    let mut claims = match owner {
        Some(owner) => Claims::of(owner),
        None => Claims::of("root").role("admin"),
    };
    claims.ttl = ttl;
    sign(SECRET, &claims)
}

/// A server and its process.
#[derive(Debug)]
pub(super) struct ServerPart {
    pub(super) site: ServerSite,
    program: PathBuf,
    /// The source's.
    uri: String,
    launch: Launch,
    process: Option<Guarded>,
}

/// A client, its process and its way to the servers.
#[derive(Debug)]
pub(super) struct ClientPart {
    pub(super) site: ClientSite,
    pub(super) proxy: Proxy,
    launch: Launch,
    process: Option<Guarded>,
}

impl Stage {
    /// Starts everything and waits until both servers are ready.
    pub(super) async fn start(options: &Options) -> Result<Self> {
        let dir = std::path::absolute(&options.dir)?;
        // Under a name of the run's own: this program may be built anew while it runs.
        let program = dir.join("tidewire-ops");
        std::fs::copy(this_program()?, &program).context("copy this program")?;
        let mongo = ReplicaSet::start(MongodOptions {
            nodes: options.nodes,
            dir: Some(dir.join("mongod")),
            election_timeout: ELECTION_TIMEOUT,
            test_commands: true,
            oplog_mb: Some(OPLOG_MB),
            // What a checkpoint does not have yet, the oplog keeps.
            args: ["--syncdelay", "1"].map(str::to_owned).to_vec(),
            // What is deleted when its time is over is, within the second.
            parameters: vec![("ttlMonitorSleepSecs".into(), "1".into())],
            ..MongodOptions::default()
        })
        .await?;
        let driver = driver(&mongo.uri()).await?;
        let database = driver.database(DATABASE);
        furnish(&database).await?;
        let retentions = [Duration::from_secs(3_600), Duration::from_secs(30)];
        let mut servers = Vec::new();
        for (index, name) in ["server-a", "server-b"].into_iter().enumerate() {
            let mut server =
                ServerPart::new(&program, &dir, index, name, &mongo.uri(), retentions[index])?;
            server.start()?;
            servers.push(server);
        }
        for server in &mut servers {
            server.ready().await?;
        }
        let clients = [
            ("client-admin-auto", None, "auto", 0),
            ("client-admin-poll", None, "poll", 1),
            ("client-ann-auto", Some("ann"), "auto", 1),
            ("client-bob-push", Some("bob"), "push", 0),
        ];
        let mut parts = Vec::new();
        for (name, owner, transport, server) in clients {
            let site = ClientSite { name, owner, dir: dir.join(name) };
            let proxy = Proxy::start(servers[server].site.address.clone()).await?;
            let mut client = ClientPart::new(&program, site, proxy, transport)?;
            client.start()?;
            parts.push(client);
        }
        let site = Site {
            driver,
            database,
            servers: servers.iter().map(|server| server.site.clone()).collect(),
            clients: parts.iter().map(|client| client.site.clone()).collect(),
            checks: CancellationToken::new(),
        };
        Ok(Self { clients: parts, servers, mongo, site, checks: JoinSet::new() })
    }
}

impl Site {
    /// With another driver: one that knows later terms does not take the primary of a source that was put
    /// back for one.
    pub(super) async fn anew(self, uri: &str) -> Result<Self> {
        let driver = driver(uri).await?;
        let database = driver.database(DATABASE);
        Ok(Self { driver, database, ..self })
    }
}

/// A driver that writes with majority and does not wait for long.
async fn driver(uri: &str) -> Result<Client> {
    let mut options = ClientOptions::parse(uri).await?;
    options.app_name = Some("torture".to_owned());
    options.server_selection_timeout = Some(Duration::from_secs(10));
    options.connect_timeout = Some(Duration::from_secs(2));
    options.heartbeat_freq = Some(Duration::from_millis(500));
    options.write_concern = Some(WriteConcern::majority());
    Ok(Client::with_options(options)?)
}

/// The collections, and the accounts with their money.
async fn furnish(database: &Database) -> Result<()> {
    for name in &COLLECTIONS[..PLAIN] {
        // The witness compares each document with the source's own.
        let create = doc! { "create": *name, "changeStreamPreAndPostImages": { "enabled": true } };
        database.run_command(create).await?;
    }
    let view = doc! { "create": VIEW, "viewOn": COLLECTIONS[ACCOUNTS], "pipeline": [] };
    database.run_command(view).await?;
    let mut accounts = Vec::new();
    for owner in OWNERS {
        accounts.extend((0..ACCOUNTS_EACH).map(|number| {
            doc! { "_id": format!("{owner}-{number}"), "owner": owner, "balance": OPENING_BALANCE, "v": 0_i64 }
        }));
    }
    database.collection::<Document>(COLLECTIONS[ACCOUNTS]).insert_many(accounts).await?;
    Ok(())
}

impl ServerPart {
    fn new(
        program: &Path,
        dir: &Path,
        index: usize,
        name: &'static str,
        uri: &str,
        retention: Duration,
    ) -> Result<Self> {
        let ports = ports::free(2)?;
        let address = format!("127.0.0.1:{}", ports[0]);
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let url = format!("http://{address}");
        let admin = format!("127.0.0.1:{}", ports[1]);
        let history = Arc::default();
        let site = ServerSite { index, name, url, address, admin, dir, retention, history };
        std::fs::write(site.config(), configuration(&site, uri, Setting::Usual))?;
        let launch = Launch::new(program, site.log())
            .args(["--log-format", "json", "internal-server", "--config"])
            .arg(site.config())
            .env("RUST_LOG", "info");
        let (program, uri) = (program.to_owned(), uri.to_owned());
        Ok(Self { site, program, uri, launch, process: None })
    }

    pub(super) fn start(&mut self) -> Result<()> {
        self.process = Some(self.launch.start()?);
        Ok(())
    }

    /// Counts from the next start on.
    pub(super) fn configure(&self, setting: Setting) -> Result<()> {
        let config = configuration(&self.site, &self.uri, setting);
        Ok(std::fs::write(self.site.config(), config)?)
    }

    /// Another server with the same configuration but its addresses; how it ended, and what it said.
    pub(super) async fn second(&self, patience: Duration) -> Result<(Option<i32>, String)> {
        let ports = ports::free(2)?;
        let mut site = self.site.clone();
        site.address = format!("127.0.0.1:{}", ports[0]);
        site.admin = format!("127.0.0.1:{}", ports[1]);
        let config = self.site.dir.join("second.toml");
        std::fs::write(&config, configuration(&site, &self.uri, Setting::Usual))?;
        let args = [OsStr::new("internal-server"), OsStr::new("--config"), config.as_os_str()];
        self.run_beside(&args, patience).await
    }

    /// `tidewire-ops log …`; how it ended, and what it said.
    pub(super) async fn care(&self, args: &[&OsStr]) -> Result<(Option<i32>, String)> {
        let args = [&[OsStr::new("log")], args].concat();
        self.run_beside(&args, CARED_FOR_WITHIN).await
    }

    async fn run_beside(
        &self,
        args: &[&OsStr],
        patience: Duration,
    ) -> Result<(Option<i32>, String)> {
        let said = self.site.dir.join("beside.log");
        let _ = std::fs::remove_file(&said);
        let mut process = Launch::new(&self.program, &said).args(args).start()?;
        let code = process.wait(patience).await.ok().and_then(|status| status.code());
        process.kill().await?;
        Ok((code, String::from_utf8_lossy(&std::fs::read(&said)?).into_owned()))
    }

    /// How it ended by itself, where it does so in this time.
    pub(super) async fn ends_within(&mut self, patience: Duration) -> Option<(ExitStatus, String)> {
        let process = self.process.as_mut()?;
        let status = process.wait(patience).await.ok()?;
        let words = process.last_words(5);
        self.process = None;
        Some((status, words))
    }

    /// Waits a while until `/readyz` says so; false where it does not come to that.
    pub(super) async fn is_ready_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.says_ready().await {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    async fn says_ready(&self) -> bool {
        let url = format!("{}/readyz", self.site.url);
        let asked = reqwest::Client::new().get(&url).timeout(Duration::from_secs(2)).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }

    /// Waits until `/readyz` says so.
    pub(super) async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if self.says_ready().await {
                return Ok(());
            }
            self.must_run()?;
            if Instant::now() > deadline {
                bail!("{} is not ready after {READY_WITHIN:?}", self.site.name);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) async fn kill(&mut self) -> Result<()> {
        kill(&mut self.process).await
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(signal))
    }

    /// SIGTERM; how it ended.
    pub(super) async fn stop(&mut self) -> Result<Option<ExitStatus>> {
        stop(&mut self.process).await
    }

    /// # Errors
    /// When it has ended by itself.
    pub(super) fn must_run(&mut self) -> Result<()> {
        must_run(&mut self.process, self.site.name)
    }
}

impl ClientPart {
    fn new(program: &Path, site: ClientSite, proxy: Proxy, transport: &str) -> Result<Self> {
        std::fs::create_dir_all(&site.dir)?;
        let launch = Launch::new(program, site.log())
            .args(["internal-client", "--server", &proxy.url(), "--token-file"])
            .arg(site.token_file())
            .arg("--db")
            .arg(site.replica())
            .args(["--transport", transport, "--poll-interval", "1"])
            .env("RUST_LOG", "info,tidewire=debug");
        let client = Self { site, proxy, launch, process: None };
        client.renew(TOKEN_TTL)?;
        Ok(client)
    }

    pub(super) fn start(&mut self) -> Result<()> {
        self.process = Some(self.launch.start()?);
        Ok(())
    }

    /// Puts a token in place that is good for `ttl`.
    pub(super) fn renew(&self, ttl: Duration) -> Result<()> {
        let new = self.site.dir.join("token.new");
        std::fs::write(&new, self.site.token(ttl)?)?;
        Ok(std::fs::rename(new, self.site.token_file())?)
    }

    /// A token that does not expire in this run.
    pub(super) fn renew_for_good(&self) -> Result<()> {
        self.renew(TOKEN_TTL)
    }

    pub(super) async fn kill(&mut self) -> Result<()> {
        kill(&mut self.process).await
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(signal))
    }

    pub(super) async fn stop(&mut self) -> Result<Option<ExitStatus>> {
        stop(&mut self.process).await
    }

    /// # Errors
    /// When it has ended by itself.
    pub(super) fn must_run(&mut self) -> Result<()> {
        must_run(&mut self.process, self.site.name)
    }
}

async fn kill(process: &mut Option<Guarded>) -> Result<()> {
    if let Some(mut process) = process.take() {
        process.kill().await?;
    }
    Ok(())
}

async fn stop(process: &mut Option<Guarded>) -> Result<Option<ExitStatus>> {
    match process.take() {
        Some(mut process) => Ok(Some(process.stop(STOPPED_WITHIN).await?)),
        None => Ok(None),
    }
}

fn must_run(process: &mut Option<Guarded>, name: &str) -> Result<()> {
    let Some(running) = process else { return Ok(()) };
    match running.ended()? {
        None => Ok(()),
        Some(status) => {
            let words = running.last_words(5);
            *process = None;
            bail!("{name} ended by itself ({status}): {words}")
        }
    }
}

/// What a server is configured to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    Usual,
    Without(&'static str),
    /// A view is to be followed, which can't be.
    WithView,
    /// Another field of the items is hidden.
    TextHidden,
    /// The administrator does not see the items.
    ItemsForOwners,
}

fn configuration(site: &ServerSite, uri: &str, setting: Setting) -> String {
    let (name, retention) = (site.name, format!("{}s", site.retention.as_secs()));
    let mut text = format!(
        "[source]\nuri = \"{uri}&appName={name}\"\ndatabase = {DATABASE:?}\n\
         [log]\ndir = {dir:?}\nretention = {retention:?}\n\
         [http]\nlisten = {listen:?}\nadmin_listen = {admin:?}\n\
         [auth]\nhs256_secret = {SECRET:?}\n\
         [access]\ngrants = [\"everyone\", \"user:{{sub}}\", \"role:{{roles}}\"]\n",
        dir = site.data_dir(),
        listen = site.address,
        admin = site.admin,
    );
    if setting == Setting::WithView {
        text.push_str(&format!("[[collections]]\nname = {VIEW:?}\nchannels = [\"everyone\"]\n"));
    }
    for collection in COLLECTIONS {
        let channels = match (collection, setting) {
            (name, Setting::Without(without)) if name == without => continue,
            ("items", Setting::ItemsForOwners) => r#"["user:{owner}"]"#,
            ("accounts" | "items", _) => r#"["user:{owner}", "role:admin"]"#,
            _ => r#"["everyone"]"#,
        };
        let exclude = match (collection, setting) {
            ("items", Setting::TextHidden) => r#"["hidden", "text"]"#,
            _ => r#"["hidden"]"#,
        };
        text.push_str(&format!(
            "[[collections]]\nname = {collection:?}\nchannels = {channels}\nexclude = {exclude}\n"
        ));
    }
    text
}

//! The parts: mongod, sample data, the server, a client. Started in this order, ended in the reverse.

use std::io::{IsTerminal, Write, stdout};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bson::doc;
use mongodb::{Client, Database};
use rusqlite::{Connection, OpenFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Options;
use super::files::Files;
use crate::command::Failure;
use crate::mongod::{Options as MongodOptions, ReplicaSet};
use crate::ports;
use crate::process::{Guarded, Launch};
use crate::sample::{COLLECTIONS, Existing, Office, SeedError, seed};

const SERVER_PORT: u16 = 8_787;
const ADMIN_PORT: u16 = 8_788;
const PORT_TRIES_MAX: u32 = 5;
/// How a server ends whose port somebody else has.
const PORT_TAKEN: &str = "Address already in use";
const READY_WITHIN: Duration = Duration::from_secs(600);
const STOPPED_WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
const RANDOM_SEED: u64 = 1;
/// How long MongoDB may be away before we say so.
const SOURCE_PATIENCE: Duration = Duration::from_secs(10);

/// Everything that runs. Dropped, it is killed; the fields go in this order.
#[derive(Debug)]
pub(super) struct Stack {
    client: Guarded,
    server: Guarded,
    driver: Client,
    mongo: Option<ReplicaSet>,
    pub(super) uri: String,
    pub(super) server_url: String,
}

impl Stack {
    pub(super) async fn start(options: &Options, files: &Files) -> Result<Self> {
        let mongo = start_mongo(options, files).await?;
        let uri = match (&mongo, &options.mongodb_uri) {
            (Some(mongo), _) => mongo.uri(),
            (None, Some(uri)) => uri.clone(),
            (None, None) => bail!("neither a replica set of ours nor another"),
        };
        let driver = connect(&uri).await?;
        fill(&driver, options).await?;

        let step = Step::begin("server");
        let this = std::env::current_exe().context("the path of this program")?;
        let (server, port) = start_server(&this, options, files, &uri).await?;
        let server_url = format!("http://127.0.0.1:{port}");
        step.end(&format!("{server_url}, its change log in {}", files.log_dir().display()));

        let step = Step::begin("client");
        let mut client = Launch::new(&this, files.output("client"))
            .args(["internal-client", "--server", &server_url, "--token-file"])
            .arg(files.token())
            .arg("--db")
            .arg(files.replica())
            .start()?;
        let rows = filled(&mut client, files).await?;
        step.end(&format!("{rows} rows in {}", files.replica().display()));
        Ok(Self { client, server, driver, mongo, uri, server_url })
    }

    pub(super) fn client(&self) -> &Client {
        &self.driver
    }

    pub(super) fn database(&self, name: &str) -> Database {
        self.driver.database(name)
    }

    /// # Errors
    /// When a part has ended by itself.
    pub(super) fn must_run(&mut self) -> Result<()> {
        must_run(&mut self.server, "the server")?;
        must_run(&mut self.client, "the client")?;
        match &mut self.mongo {
            Some(mongo) => mongo.must_run(),
            None => Ok(()),
        }
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        self.client.stop(STOPPED_WITHIN).await?;
        self.server.stop(STOPPED_WITHIN).await?;
        self.driver.shutdown().immediate(true).await;
        match self.mongo {
            Some(mongo) => mongo.stop().await,
            None => Ok(()),
        }
    }
}

/// One line on the terminal for each part: what it is, and what became of it.
struct Step {
    name: &'static str,
    start: Instant,
    ended: bool,
}

impl Step {
    fn begin(name: &'static str) -> Self {
        if stdout().is_terminal() {
            print!("{name:<9} … ");
            let _ = stdout().flush();
        }
        Self { name, start: Instant::now(), ended: false }
    }

    fn end(mut self, what: &str) {
        let start = if stdout().is_terminal() { "\r" } else { "" };
        let seconds = self.start.elapsed().as_secs_f64();
        println!("{start}{:<9} ✔ {what} ({seconds:.1} s)", self.name);
        self.ended = true;
    }
}

impl Drop for Step {
    /// What went wrong gets a line of its own.
    fn drop(&mut self) {
        if !self.ended && stdout().is_terminal() {
            let _ = writeln!(stdout());
        }
    }
}

async fn start_mongo(options: &Options, files: &Files) -> Result<Option<ReplicaSet>> {
    if options.mongodb_uri.is_some() {
        return Ok(None);
    }
    let fetch = || crate::mongod::fetch(crate::mongod::Progress::Shown);
    let mongod = tokio::task::spawn_blocking(fetch).await??;
    let step = Step::begin("MongoDB");
    let dir = Some(files.mongod());
    let options = MongodOptions { mongod: Some(mongod), dir, ..MongodOptions::default() };
    let mongo = ReplicaSet::start(options).await?;
    step.end(&format!("a replica set of one node: {}", mongo.uri()));
    Ok(Some(mongo))
}

async fn connect(uri: &str) -> Result<Client> {
    let mut options = mongodb::options::ClientOptions::parse(uri).await.context("--mongodb-uri")?;
    options.server_selection_timeout.get_or_insert(SOURCE_PATIENCE);
    let driver = Client::with_options(options).context("--mongodb-uri")?;
    let hello = driver.database("admin").run_command(doc! { "hello": 1 }).await?;
    if !hello.contains_key("setName") {
        let what = "that MongoDB is not a replica set, and only those have change streams: start its mongod \
                    with --replSet rs0 and run rs.initiate() once; a set of one node will do";
        return Err(Failure::Usage(what.into()).into());
    }
    Ok(driver)
}

async fn fill(driver: &Client, options: &Options) -> Result<()> {
    let step = Step::begin("data");
    let database = driver.database(&options.database);
    let office = Office::generate(RANDOM_SEED, options.scale);
    match seed(&database, office, Existing::Keep, |_, _| {}).await {
        Ok(0) => step.end(&format!("the sample data in {} is kept as it is", options.database)),
        Ok(count) => step.end(&format!("{count} documents written into {}", options.database)),
        Err(SeedError::NotEmpty { database, collection, documents }) => {
            return Err(Failure::Usage(format!(
                "the database {database} has {documents} documents of its own in {collection}, and `up` \
                 writes: nothing was changed; give it another --database, or follow yours with \
                 tidewire-server and a configuration (see README.md)"
            ))
            .into());
        }
        Err(SeedError::Mongo(error)) => return Err(error).context("write the sample data"),
    }
    Ok(())
}

/// A server that is ready, and its port. Where nobody asked for a port and somebody else took the free one
/// first (another `up` that starts now), it is another one.
async fn start_server(
    this: &Path,
    options: &Options,
    files: &Files,
    uri: &str,
) -> Result<(Guarded, u16)> {
    let launch = Launch::new(this, files.output("server"))
        .args(["internal-server", "--config"])
        .arg(files.config());
    let mut tries = 0;
    loop {
        let listen = listen(options.port)?;
        files.write(uri, &options.database, listen)?;
        let mut server = launch.start()?;
        let Err(error) = ready(&mut server, files, listen[0]).await else {
            return Ok((server, listen[0]));
        };
        tries += 1;
        let is_port_lost = options.port.is_none() && server.last_words(1).contains(PORT_TAKEN);
        if !is_port_lost || tries == PORT_TRIES_MAX {
            return Err(error);
        }
    }
}

/// The ports of the server: those of the contract where they are free.
fn listen(wanted: Option<u16>) -> Result<[u16; 2]> {
    let free = ports::free(2)?;
    let or_free = |port: u16, free: u16| if ports::is_free(port) { port } else { free };
    match wanted {
        Some(port) if !ports::is_free(port) => {
            Err(Failure::Usage(format!("port {port} is taken: choose another --port")).into())
        }
        Some(port) => Ok([port, or_free(ADMIN_PORT, free[1])]),
        None => Ok([or_free(SERVER_PORT, free[0]), or_free(ADMIN_PORT, free[1])]),
    }
}

/// Waits until the server's first copy is done.
async fn ready(server: &mut Guarded, files: &Files, port: u16) -> Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    let token = std::fs::read_to_string(files.token()).context("the client's token")?;
    while !serves(port, &token).await {
        must_run(server, "the server")?;
        if Instant::now() > deadline {
            bail!("the server is not ready after {READY_WITHIN:?}: see {}", server.log().display());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// A pull by our own token is answered, which no other stack's server would do. One request of HTTP needs no
/// library.
async fn serves(port: u16, token: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!(
            "GET /api/sync/pull?limit=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}\r\n\
             Connection: close\r\n\r\n",
            token.trim()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer.ends_with(b" 200"))
    };
    matches!(tokio::time::timeout(Duration::from_secs(5), ask).await, Ok(Ok(true)))
}

/// Waits until the replica can be read, and counts its rows.
async fn filled(client: &mut Guarded, files: &Files) -> Result<u64> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if let Ok(Some(rows)) = rows(files) {
            return Ok(rows);
        }
        must_run(client, "the client")?;
        if Instant::now() > deadline {
            bail!("no replica after {READY_WITHIN:?}: see {}", client.log().display());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn rows(files: &Files) -> rusqlite::Result<Option<u64>> {
    let db = Connection::open_with_flags(files.replica(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    db.busy_timeout(Duration::from_secs(1))?;
    let status = "SELECT initialized FROM _tidewire_status";
    if !db.query_row(status, [], |row| row.get::<_, bool>(0))? {
        return Ok(None);
    }
    let mut total = 0;
    for name in COLLECTIONS {
        let count = format!("SELECT count(*) FROM \"{name}\"");
        total += db.query_row(&count, [], |row| row.get::<_, u32>(0))?;
    }
    Ok(Some(total.into()))
}

fn must_run(part: &mut Guarded, name: &str) -> Result<()> {
    match part.ended()? {
        None => Ok(()),
        Some(status) => {
            bail!("{name} ended by itself ({status}):\n{}", part.last_words(10))
        }
    }
}

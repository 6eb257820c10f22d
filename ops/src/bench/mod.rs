//! `bench`: figures that anyone can repeat, each a ratio of two times taken in one round, so that
//! they say something on any machine.
//!
//! The server and the client are processes of their own and the real ones. What they are compared
//! with runs in this process: the driver alone, and a bare SQLite loop.

mod drain;
mod live;
mod load;
mod report;
mod rows;
mod stack;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bson::Timestamp;
use clap::{Args, ValueEnum};
use mongodb::{Client, Database};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use self::report::{Aim, Figure};
use self::stack::{Server, Setup};
use crate::folder;
use crate::mongod::{Options, ReplicaSet, cluster_time};

/// What `bench` takes.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Measure this alone.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Documents, and events of the backlog (half inserts, half updates).
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    documents: u64,
    /// Push sockets of each crowd.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000])]
    sockets: Vec<usize>,
    /// Rounds, each of ours and what it is compared with; the medians are shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Where MongoDB's data, the logs and the replicas go; a temporary folder when not given.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// The parts of the main job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The tail over a backlog.
    Catchup,
    /// The first copy of a collection.
    Copy,
    /// A client's first copy.
    Sync,
    /// From a write to its row in a replica.
    Live,
    /// Crowds of push sockets.
    Crowd,
}

/// Memory that the server may hold, bytes.
const MEMORY_AIM: f64 = 100e6;

/// What all the measurements share.
struct Bench<'a> {
    args: &'a BenchArgs,
    uri: String,
    client: Client,
    dir: &'a Path,
    figures: Vec<Figure>,
    /// The most memory that a server held, bytes.
    memory_max: u64,
}

/// Measures and prints.
///
/// # Errors
/// When MongoDB, the server or the client fails.
pub async fn run(args: &BenchArgs) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("not a release build: these figures mean little (cargo run --release …)");
    }
    let temporary = tempfile::Builder::new().prefix("tidewire-bench-").tempdir()?;
    let dir = args.dir.as_deref().unwrap_or(temporary.path());
    let data = dir.join("mongod");
    let options = Options { dir: Some(data), cache_gb: 1.0, ..Options::default() };
    let source = ReplicaSet::start(options).await?;
    let client = Client::with_uri_str(source.uri()).await?;
    let (figures, memory_max) = (Vec::new(), 0);
    let mut bench = Bench { args, uri: source.uri(), client, dir, figures, memory_max };
    let wanted = |part| args.only.is_none_or(|only| only == part);
    if wanted(Part::Catchup) {
        bench.catchup().await.context("measure the catch-up")?;
    }
    if wanted(Part::Copy) || wanted(Part::Sync) {
        bench.copies().await.context("measure the first copies")?;
    }
    if wanted(Part::Live) || wanted(Part::Crowd) {
        bench.live().await.context("measure what is live")?;
    }
    if bench.memory_max > 0 {
        bench.memory();
    }
    bench.print()
}

impl Bench<'_> {
    fn database(&self, name: &str) -> Result<(Database, Setup)> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let setup = Setup { uri: self.uri.clone(), database: name.to_owned(), dir, more: "" };
        Ok((self.client.database(name), setup))
    }

    /// The tail over a backlog that was written while the server was down: inserts, then updates.
    async fn catchup(&mut self) -> Result<()> {
        let (database, setup) = self.database("bench_catchup")?;
        let half = self.args.documents / 2;
        let empty = setup.dir.join("log-0");
        self.say("a log that has seen the source");
        // The server's log learns where the source stands before there is a backlog.
        database.create_collection(load::COLLECTION).await?;
        let mut server = Server::start(&setup, &empty).await?;
        server.ready().await?;
        server.stop().await?;
        let before = load::operation_time(&database).await?;
        self.say("a backlog of inserts");
        load::insert(&database, half).await?;
        let (inserts, log, last) = self.catch_up(&database, &setup, &empty, before, half).await?;
        self.say("a backlog of updates");
        load::update(&database, half, half).await?;
        let (updates, _, _) = self.catch_up(&database, &setup, &log, last, half).await?;
        let base = "the driver's stream into nothing";
        let both = inserts.iter().zip(&updates).map(|(i, u)| (i.0 + u.0, i.1 + u.1));
        let both: Vec<_> = both.collect();
        self.figures.extend([
            report::rate("catch-up", 0.8, 2 * half, "events", base, &both),
            report::rate("  of inserts", 0.8, half, "events", base, &inserts),
            report::rate("  of updates", 0.8, half, "events", base, &updates),
        ]);
        Ok(())
    }

    /// Rounds of one backlog; gives the times (ours, the driver's), a log that has caught up, and the
    /// last event's cluster time.
    async fn catch_up(
        &mut self,
        database: &Database,
        setup: &Setup,
        log: &Path,
        after: Timestamp,
        count: u64,
    ) -> Result<(Vec<(Duration, Duration)>, PathBuf, Timestamp)> {
        // Not timed: it brings the oplog into MongoDB's cache and tells where the backlog ends.
        let last = drain::events(database, after, count).await?.last;
        let name = format!("log-{}-{}", last.time, last.increment);
        let (mut rounds, mut caught_up) = (Vec::new(), PathBuf::new());
        for round in 0..self.args.rounds {
            let drained = drain::events(database, after, count).await?.took;
            caught_up = setup.dir.join(format!("{name}-{round}"));
            folder::copy(log, &caught_up)?;
            let mut server = Server::start(setup, &caught_up).await?;
            let took = server.caught_up(cluster_time(last)).await?;
            self.memory_max = self.memory_max.max(server.stop().await?);
            rounds.push((took, drained));
        }
        Ok((rounds, caught_up, last))
    }

    /// The server's first copy of a collection, and a client's of the server.
    async fn copies(&mut self) -> Result<()> {
        let (database, setup) = self.database("bench_copy")?;
        let count = self.args.documents;
        self.say("a collection to copy");
        load::insert(&database, count).await?;
        drain::documents(&database, count).await?;
        let (mut copies, mut syncs, mut growths) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.args.rounds {
            let drained = drain::documents(&database, count).await?;
            let mut server = Server::start(&setup, &setup.dir.join(format!("log-{round}"))).await?;
            copies.push((server.ready().await?, drained));
            if self.args.only != Some(Part::Copy) {
                let path = setup.dir.join(format!("replica-{round}.db"));
                let took = server.sync_once(&setup, &path).await?;
                let (bare, growth) = compare_rows(&path, count)?;
                syncs.push((took, bare));
                growths.push(growth);
            }
            self.memory_max = self.memory_max.max(server.stop().await?);
        }
        if self.args.only != Some(Part::Sync) {
            let base = "the driver's find by _id into nothing";
            self.figures.push(report::rate("first copy", 0.25, count, "documents", base, &copies));
        }
        if self.args.only != Some(Part::Copy) {
            let base = "a bare loop of inserts";
            self.figures.push(report::rate("sync --once", 0.7, count, "rows", base, &syncs));
            let size = report::median(&growths);
            let (ours, base) = (format!("{size:.2} B"), "a byte of the JSON it holds".to_owned());
            let aim = Aim::AtMost(1.5);
            self.figures.push(report::figure("replica's size", size, aim, ours, base, growths));
        }
        Ok(())
    }

    /// How soon a write is a row, and crowds of push sockets.
    async fn live(&mut self) -> Result<()> {
        raise_open_files()?;
        let (database, setup) = self.database("bench_live")?;
        let setup = Setup { more: live::CONFIGURED, ..setup };
        if self.args.only != Some(Part::Crowd) {
            self.say("writes one by one");
            let delays = live::delays(&database, &setup, self.args.rounds).await?;
            self.figures.extend(delays);
        }
        if self.args.only != Some(Part::Live) {
            let (database, setup) = self.database("bench_crowd")?;
            let setup = Setup { more: live::CONFIGURED, ..setup };
            self.say("sockets that never read");
            let never_read = live::Crowd::never_read(&database, &setup, self.args.rounds).await?;
            self.figures.extend(never_read);
            for &count in &self.args.sockets {
                self.say(&format!("a crowd of {count} sockets"));
                self.figures.extend(live::Crowd::measure(&database, &setup, count).await?);
            }
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of memory are far below 2^52")]
    fn memory(&mut self) {
        let held = self.memory_max as f64;
        let (ours, base) = (format!("{:.1} MB", held / 1e6), "100 MB".to_owned());
        let (value, aim) = (held / MEMORY_AIM, Aim::AtMost(1.0));
        self.figures.push(report::figure("server's memory", value, aim, ours, base, Vec::new()));
    }

    fn say(&self, what: &str) {
        if !self.args.json {
            eprintln!("making {what} …");
        }
    }

    fn print(&self) -> Result<()> {
        let Bench { args, figures, .. } = self;
        if args.json {
            let report = json!({
                "documents": args.documents,
                "rounds": args.rounds,
                "release": !cfg!(debug_assertions),
                "cores": std::thread::available_parallelism()?.get(),
                "serverMemoryBytes": self.memory_max,
                "figures": figures,
            });
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            println!("{}", report::table(figures));
            println!("each rate is a share of what it is compared with, taken in the same round");
        }
        Ok(())
    }
}

/// Inserts the replica's rows once more, by a bare loop: its time, and the bytes of the replica for
/// each byte of JSON.
fn compare_rows(replica: &Path, count: u64) -> Result<(Duration, f64)> {
    let rows = rows::Replica::read(replica)?;
    ensure!(rows.len() as u64 == count, "the replica has {} rows, not {count}", rows.len());
    let bare = replica.with_extension("bare.db");
    let took = rows.insert_bare(&bare)?;
    std::fs::remove_file(bare)?;
    #[expect(clippy::cast_precision_loss, reason = "bytes of a file are far below 2^52")]
    let growth = std::fs::metadata(replica)?.len() as f64 / rows.json_bytes() as f64;
    Ok((took, growth))
}

/// A crowd has a file open for each socket.
fn raise_open_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("open many files")
}

//! The trial behind `docs/decisions/0001-the-log-store.md`: three stores under the change log's own
//! access pattern. Every measurement is a process of its own; rounds are interleaved.

mod cell;
mod crash;
mod data;
mod fjall_store;
mod redb_store;
mod sqlite;
mod store;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

use cell::{Cost, Found};
use data::Stream;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Measure: a table of medians.
    Measure(Measure),
    /// Kill writers at random moments and look at what is left.
    Crash {
        #[arg(long, value_delimiter = ',')]
        stores: Vec<String>,
        #[arg(long, default_value_t = 20)]
        kills: u32,
    },
    /// One measurement, as JSON (used by `measure`).
    #[command(hide = true)]
    Cell { store: String, dir: PathBuf, batch: usize, keys: String, documents: u64 },
    /// Writes until it is killed (used by `crash`).
    #[command(hide = true)]
    Write { store: String, dir: PathBuf },
}

#[derive(clap::Args)]
struct Measure {
    #[arg(long, value_delimiter = ',')]
    stores: Vec<String>,
    #[arg(long, value_delimiter = ',', default_values_t = [1_usize, 100, 1_000, 5_000])]
    batches: Vec<usize>,
    /// `ascending`, `random`
    #[arg(long, value_delimiter = ',', default_value = "ascending")]
    keys: Vec<String>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Documents inserted, and then as many updates at random.
    #[arg(long, default_value_t = 200_000)]
    documents: u64,
    /// Where the stores are put.
    #[arg(long, default_value = "/tmp")]
    dir: PathBuf,
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Measure(options) => measure(&options),
        What::Crash { stores, kills } => crash::run(&stores, kills),
        What::Write { store, dir } => crash::write(&store, &dir),
        What::Cell { store, dir, batch, keys, documents } => {
            let stream = Stream { documents, keys: cell::keys(&keys) };
            let found = cell::run(&store, &dir, batch, &stream, documents)?;
            println!("{}", serde_json::to_string(&found)?);
            Ok(())
        }
    }
}

fn measure(options: &Measure) -> Result<()> {
    println!(
        "µs of CPU (wall) per change appended, per row read, per row deleted; {} documents, {} rounds",
        options.documents, options.rounds
    );
    println!(
        "| store | keys | batch | insert | update | page, 1 channel | 10 | 100 | delete | \
         disk B/change | after delete | written B/change | memory MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for keys in &options.keys {
        for &batch in &options.batches {
            let mut all = vec![Vec::new(); options.stores.len()];
            for _ in 0..options.rounds {
                for (found, store) in all.iter_mut().zip(&options.stores) {
                    found.push(measure_one(options, store, batch, keys)?);
                }
            }
            for (found, store) in all.iter().zip(&options.stores) {
                print_row(store, keys, batch, found);
            }
        }
    }
    Ok(())
}

fn measure_one(options: &Measure, store: &str, batch: usize, keys: &str) -> Result<Found> {
    let dir = tempfile::tempdir_in(&options.dir)?;
    // Single commits are slow where each is synced: a tenth of the changes says as much.
    let documents = if batch == 1 { options.documents / 10 } else { options.documents };
    let output = Command::new(std::env::current_exe()?)
        .args(["cell", store])
        .arg(dir.path())
        .args([&batch.to_string(), keys, &documents.to_string()])
        .current_dir(dir.path())
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{store} failed");
    serde_json::from_slice(&output.stdout).context("a cell's answer")
}

fn print_row(store: &str, keys: &str, batch: usize, found: &[Found]) {
    let median = |pick: &dyn Fn(&Found) -> f64| {
        let mut values: Vec<f64> = found.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let cost = |pick: fn(&Found) -> Cost| {
        format!("{:.1} ({:.1})", median(&|f| pick(f).cpu), median(&|f| pick(f).wall))
    };
    println!(
        "| {store} | {keys} | {batch} | {} | {} | {} | {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} |",
        cost(|f| f.insert),
        cost(|f| f.update),
        cost(|f| f.page_1),
        cost(|f| f.page_10),
        cost(|f| f.page_100),
        cost(|f| f.delete),
        median(&|f| f.disk),
        median(&|f| f.disk_after),
        median(&|f| f.written),
        median(&|f| f.memory_mb),
    );
}

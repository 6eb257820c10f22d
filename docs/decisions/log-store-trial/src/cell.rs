//! One measurement: one store, one batch size, one kind of keys, in a process of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

use crate::data::{Change, Keys, Stream, USERS, mix};
use crate::fjall_store::Fjall;
use crate::redb_store::Redb;
use crate::sqlite::{Options, Shape, Sqlite};
use crate::store::{Store, disk_bytes};

/// Memory that a store may use to cache, bytes.
const CACHE: usize = 16 << 20;
/// Between two syncs where the store itself has no rule.
const SYNC_EVERY: Duration = Duration::from_millis(100);
/// Changes in a page.
const PAGE: usize = 1_000;
/// Changes made at a time, outside of what is timed.
const MADE: u64 = 5_000;

/// Opens a store by name: `sqlite-<shape>-<page size>[-<checkpoint MB>]`, `redb[-postings][-sync]`,
/// `fjall[-postings]`.
pub fn open(name: &str, dir: &Path) -> Result<Box<dyn Store>> {
    let parts: Vec<&str> = name.split('-').collect();
    let postings = parts.contains(&"postings");
    Ok(match parts[0] {
        "sqlite" => Box::new(Sqlite::open(dir, &sqlite_options(&parts)?)?),
        "redb" => {
            let every = if parts.contains(&"sync") { None } else { Some(SYNC_EVERY) };
            Box::new(Redb::open(dir, CACHE, postings, every)?)
        }
        "fjall" => Box::new(Fjall::open(dir, CACHE as u64, postings, SYNC_EVERY)?),
        _ => bail!("no store {name}"),
    })
}

fn sqlite_options(parts: &[&str]) -> Result<Options> {
    let shape = match parts.get(1).copied() {
        Some("rows") => Shape::Rows,
        Some("postings") => Shape::Postings,
        Some("deferred") => Shape::DeferredPostings,
        Some("both") => Shape::DeferredAll,
        other => bail!("no shape {other:?}"),
    };
    let page_size = parts.get(2).map_or(Ok(4096), |text| text.parse())?;
    let checkpoint: u32 = parts.get(3).map_or(Ok(16), |text| text.parse())?;
    Ok(Options { shape, page_size, cache_bytes: CACHE as u32, checkpoint_bytes: checkpoint << 20 })
}

/// What one phase took per change (or per row read), microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    pub cpu: f64,
    pub wall: f64,
}

/// What a cell found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Found {
    pub insert: Cost,
    pub update: Cost,
    pub page_1: Cost,
    pub page_10: Cost,
    pub page_100: Cost,
    pub delete: Cost,
    /// Bytes on disk for each change, after the appends.
    pub disk: f64,
    /// After half of the changes, the superseded ones, were deleted: bytes for each that is left.
    pub disk_after: f64,
    /// Bytes handed to the disk for each change appended.
    pub written: f64,
    pub memory_mb: f64,
}

struct Clock {
    cpu: Duration,
    wall: Instant,
    /// Spent on making the changes, to be taken off.
    made_cpu: Duration,
    made_wall: Duration,
}

impl Clock {
    fn start() -> Result<Self> {
        let zero = Duration::ZERO;
        let (cpu, wall) = (cpu(UsageWho::RUSAGE_SELF)?, Instant::now());
        Ok(Self { cpu, wall, made_cpu: zero, made_wall: zero })
    }

    fn making<T>(&mut self, make: impl FnOnce() -> T) -> Result<T> {
        let (cpu_before, wall) = (cpu(UsageWho::RUSAGE_THREAD)?, Instant::now());
        let made = make();
        self.made_cpu += cpu(UsageWho::RUSAGE_THREAD)? - cpu_before;
        self.made_wall += wall.elapsed();
        Ok(made)
    }

    fn per(&self, count: u64) -> Result<Cost> {
        let used = (cpu(UsageWho::RUSAGE_SELF)? - self.cpu).saturating_sub(self.made_cpu);
        let wall = self.wall.elapsed() - self.made_wall;
        let each = |time: Duration| time.as_secs_f64() * 1e6 / count.max(1) as f64;
        Ok(Cost { cpu: each(used), wall: each(wall) })
    }
}

fn cpu(who: UsageWho) -> Result<Duration> {
    let usage = getrusage(who)?;
    let time = |t: nix::sys::time::TimeVal| {
        Duration::from_secs(t.tv_sec() as u64) + Duration::from_micros(t.tv_usec() as u64)
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
}

/// Appends changes `first..=last` in batches.
fn append(
    store: &mut dyn Store,
    stream: &Stream,
    batch: usize,
    first: u64,
    last: u64,
) -> Result<Cost> {
    let mut clock = Clock::start()?;
    for from in (first..=last).step_by(MADE as usize) {
        let through = last.min(from + MADE - 1);
        let made: Vec<Change> =
            clock.making(|| (from..=through).map(|seq| stream.change(seq)).collect())?;
        for batch in made.chunks(batch) {
            store.append(batch)?;
        }
    }
    store.sync()?;
    clock.per(last - first + 1)
}

/// Reads pages from random positions, merged over `width` channels.
fn pages(store: &dyn Store, last: u64, width: u32) -> Result<Cost> {
    let mut rows = 0;
    let clock = Clock::start()?;
    for number in 0..60_u64 {
        let since = mix(number) % (last - last / 10);
        let first = (mix(number + 1_000) % u64::from(USERS - width)) as u32;
        let channels: Vec<u32> =
            if width == 1 { vec![0] } else { (1 + first..=first + width).collect() };
        rows += store.page(since, &channels, PAGE)?.0 as u64;
    }
    clock.per(rows)
}

/// Runs the cell in `dir`.
pub fn run(name: &str, dir: &Path, batch: usize, stream: &Stream, updates: u64) -> Result<Found> {
    let mut store = open(name, dir)?;
    let last = stream.documents + updates;
    let mut found = Found {
        insert: append(&mut *store, stream, batch, 1, stream.documents)?,
        update: append(&mut *store, stream, batch, stream.documents + 1, last)?,
        ..Found::default()
    };
    settle(name, dir, &mut store)?;
    found.disk = disk_bytes(dir)? as f64 / last as f64;
    found.written = bytes_written()? / last as f64;
    found.page_1 = pages(&*store, last, 1)?;
    found.page_10 = pages(&*store, last, 10)?;
    found.page_100 = pages(&*store, last, 100)?;
    let clock = Clock::start()?;
    let deleted = store.delete_superseded(stream.documents)?;
    store.sync()?;
    found.delete = clock.per(deleted)?;
    settle(name, dir, &mut store)?;
    found.disk_after = disk_bytes(dir)? as f64 / (last - deleted) as f64;
    found.memory_mb = getrusage(UsageWho::RUSAGE_SELF)?.max_rss() as f64 / 1024.0;
    Ok(found)
}

/// Lets background work end; an LSM's size means nothing before.
fn settle(name: &str, dir: &Path, store: &mut Box<dyn Store>) -> Result<()> {
    if name.starts_with("fjall") {
        *store = Box::new(Nothing);
        let fjall = Fjall::open(dir, CACHE as u64, name.contains("postings"), SYNC_EVERY)?;
        fjall.settle();
        *store = Box::new(fjall);
    }
    Ok(())
}

fn bytes_written() -> Result<f64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.unwrap_or("0").parse()?)
}

/// Stands in while a store is closed and opened again.
struct Nothing;

impl Store for Nothing {
    fn append(&mut self, _: &[Change]) -> Result<()> {
        bail!("closed")
    }
    fn sync(&mut self) -> Result<()> {
        bail!("closed")
    }
    fn page(&self, _: u64, _: &[u32], _: usize) -> Result<(usize, u64)> {
        bail!("closed")
    }
    fn delete_superseded(&mut self, _: u64) -> Result<u64> {
        bail!("closed")
    }
    fn last(&self) -> Result<u64> {
        bail!("closed")
    }
    fn get(&self, _: u64) -> Result<Option<Change>> {
        bail!("closed")
    }
    fn latest(&self, _: &[u8; 13]) -> Result<Option<u64>> {
        bail!("closed")
    }
}

/// Keys by name.
pub fn keys(name: &str) -> Keys {
    if name == "random" { Keys::Random } else { Keys::Ascending }
}

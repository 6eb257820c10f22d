//! From the moment a write is sent until its row is in a replica, beside a bare change stream that only
//! sees the event, timed from the same moment in the same run.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::{RawDocumentBuf, doc};
use futures::StreamExt as _;
use mongodb::Database;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use tokio::sync::mpsc;

use super::notices::{COLLECTION, write};
use super::quantile;
use crate::bench::report::{self, Aim, Figure};
use crate::bench::stack::{Server, Setup};

/// Writes that are timed, after as many tenths that are not.
const WRITES: u64 = 500;
/// After something was written to the replica's write-ahead log, it is looked at without a pause for so
/// long: the row is there a moment after the last write.
const LOOKING: Duration = Duration::from_micros(500);
/// Between a row and the next write.
const PAUSE: Duration = Duration::from_millis(4);
/// A row must be there within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures `rounds` times; gives the figures.
pub(in super::super) async fn delays(
    database: &Database,
    setup: &Setup,
    rounds: u32,
) -> Result<Vec<Figure>> {
    let mut server = Server::start(setup, &setup.dir.join("log")).await?;
    server.ready().await?;
    let replica = setup.dir.join("live.db");
    let client = server.follow(setup, &replica)?;
    let mut events = watch(database).await?;
    let (mut medians, mut lates) = (Vec::new(), Vec::new());
    let mut all = [Vec::new(), Vec::new()];
    for round in 0..u64::from(rounds) {
        let from = round * WRITES * 2;
        let mut times = [Vec::new(), Vec::new()];
        for number in from..from + WRITES + WRITES / 10 {
            let timed = one(database, &replica, &mut events, number).await?;
            if number >= from + WRITES / 10 {
                times[0].push(timed.0);
                times[1].push(timed.1);
            }
            tokio::time::sleep(PAUSE).await;
        }
        times.iter_mut().for_each(|times| times.sort_unstable());
        let ratio = |share| {
            quantile(&times[0], share).as_secs_f64() / quantile(&times[1], share).as_secs_f64()
        };
        medians.push(ratio(0.5));
        lates.push(ratio(0.99));
        for (all, times) in all.iter_mut().zip(times) {
            all.extend(times);
        }
    }
    client.stop().await?;
    server.stop().await?;
    all.iter_mut().for_each(|times| times.sort_unstable());
    let line = |name, share, aim, ratios: Vec<f64>| {
        let ms = |times: &[Duration]| quantile(times, share).as_secs_f64() * 1e3;
        let ours = format!("{:.2} ms", ms(&all[0]));
        let base = format!("a bare change stream: {:.2} ms", ms(&all[1]));
        report::figure(name, report::median(&ratios), Aim::AtMost(aim), ours, base, ratios)
    };
    Ok(vec![
        line("write → row, median", 0.5, 1.5, medians),
        line("write → row, p99", 0.99, 2.0, lates),
    ])
}

/// Sends one write: how long until its row was seen in the replica, and its event by the bare stream.
async fn one(
    database: &Database,
    replica: &Path,
    events: &mut mpsc::Receiver<(i64, Instant)>,
    number: u64,
) -> Result<(Duration, Duration)> {
    let (path, id) = (replica.to_owned(), format!("notice-{number}"));
    let (ready, looking) = tokio::sync::oneshot::channel();
    let row = tokio::task::spawn_blocking(move || look_for(&path, &id, ready));
    // Nothing is opened any more once the clock runs.
    looking.await.context("the replica can't be read")?;
    let sent = Instant::now();
    write(database, number).await?;
    let row = row.await??;
    let (seen, event) = events.recv().await.context("the bare stream ended")?;
    ensure!(seen == i64::try_from(number)?, "the bare stream saw {seen} instead of {number}");
    Ok((row - sent, event - sent))
}

fn look_for(path: &PathBuf, id: &str, ready: tokio::sync::oneshot::Sender<()>) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let sql = format!("SELECT 1 FROM {COLLECTION} WHERE _id = ?1");
    // The client may still be making the file.
    let db = loop {
        let db = Connection::open_with_flags(path, flags);
        match db {
            Ok(db) if db.prepare(&sql).is_ok() => break db,
            _ => ensure!(Instant::now() < deadline, "the client makes no replica"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut select = db.prepare(&sql)?;
    let mut is_there = || select.query_row([id], |_| Ok(())).optional().map(|row| row.is_some());
    // Waited for, not looked for: looking often would take the time of those who are measured.
    let writes = Inotify::init(InitFlags::IN_NONBLOCK)?;
    writes.add_watch(&beside(path, "-wal"), AddWatchFlags::IN_MODIFY)?;
    ensure!(!is_there()?, "{id} was there before");
    let _ = ready.send(());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(writes.as_fd(), PollFlags::POLLIN)], left)?;
        let _ = writes.read_events();
        let written = Instant::now();
        while written.elapsed() < LOOKING {
            if is_there()? {
                return Ok(Instant::now());
            }
            std::thread::yield_now();
        }
        ensure!(written < deadline, "{id} does not come");
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The numbers of the notices as a bare change stream sees them, and when.
async fn watch(database: &Database) -> Result<mpsc::Receiver<(i64, Instant)>> {
    let mut stream = database
        .watch()
        .pipeline([doc! { "$match": { "ns.coll": COLLECTION } }])
        .await
        .context("open a change stream")?
        .with_type::<RawDocumentBuf>();
    let (sender, receiver) = mpsc::channel(1_024);
    tokio::spawn(async move {
        while let Some(Ok(event)) = stream.next().await {
            let at = Instant::now();
            let document = event.get_document("fullDocument").ok();
            let number = document.and_then(|document| document.get_i64("n").ok());
            if sender.send((number.unwrap_or(-1), at)).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

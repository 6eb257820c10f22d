//! Reads the replica as any program may, and tells when each write has arrived there.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio::sync::mpsc;

use crate::sample::{COLLECTIONS, Operation, Write};

/// How often the file is looked at; no lag below it can be told.
const LOOK_EVERY: Duration = Duration::from_millis(3);
const COUNT_EVERY: Duration = Duration::from_millis(500);
/// Writes that wait to be told, and news that wait to be shown.
const WAITING_MAX: usize = 10_000;
const BUSY: Duration = Duration::from_secs(2);

/// A write that MongoDB has acknowledged: it must arrive.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) write: Write,
    pub(super) acknowledged: Instant,
}

/// What was seen in the replica.
#[derive(Clone, Debug)]
pub(super) enum News {
    /// A write is there.
    Arrived {
        write: Write,
        /// From MongoDB's acknowledgement to the sight of it.
        lag: Duration,
        /// The row says what was written.
        is_right: bool,
    },
    /// Rows of each of [`COLLECTIONS`], and the client's state in words.
    Counted { rows: [u64; 5], state: String },
}

/// The watcher's ends. Its thread ends when they are dropped.
#[derive(Debug)]
pub(super) struct Watch {
    expect: mpsc::Sender<Expected>,
    news: mpsc::Receiver<News>,
}

impl Watch {
    /// Where to tell of writes.
    pub(super) fn expect(&self) -> mpsc::Sender<Expected> {
        self.expect.clone()
    }

    /// The next news; `None` when the replica can't be read any more.
    pub(super) async fn news(&mut self) -> Option<News> {
        self.news.recv().await
    }
}

pub(super) fn start(replica: PathBuf) -> Result<Watch> {
    let (expect, expected) = mpsc::channel(WAITING_MAX);
    let (tell, news) = mpsc::channel(WAITING_MAX);
    let run = move || {
        if let Err(error) = look_on(&replica, expected, &tell) {
            tracing::error!(%error, "the replica can't be read");
        }
    };
    std::thread::Builder::new().name("watch".into()).spawn(run).context("start the watcher")?;
    Ok(Watch { expect, news })
}

fn look_on(
    replica: &Path,
    mut expected: mpsc::Receiver<Expected>,
    tell: &mpsc::Sender<News>,
) -> Result<()> {
    let db = Connection::open_with_flags(replica, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    db.busy_timeout(BUSY)?;
    let mut waiting = VecDeque::new();
    let mut version = 0;
    let mut counted = Instant::now() - COUNT_EVERY;
    while !tell.is_closed() {
        let mut is_new = false;
        while let Ok(write) = expected.try_recv() {
            waiting.push_back(write);
            is_new = true;
        }
        let now: i64 = db.query_row("PRAGMA data_version", [], |row| row.get(0))?;
        if !waiting.is_empty() && (is_new || now != version) {
            arrived(&db, &mut waiting, tell)?;
        }
        version = now;
        if counted.elapsed() >= COUNT_EVERY {
            counted = Instant::now();
            send(tell, count(&db)?);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Tells of the writes up to where the replica stands now.
fn arrived(
    db: &Connection,
    waiting: &mut VecDeque<Expected>,
    tell: &mpsc::Sender<News>,
) -> Result<()> {
    // One transaction: the position and the rows are of one moment.
    let db = db.unchecked_transaction()?;
    let read = "SELECT position FROM _tidewire_status";
    let position: Option<String> = db.query_row(read, [], |row| row.get(0))?;
    let reached = position.as_deref().map_or(Ok(0), crate::verify::position_time)?;
    let seen = Instant::now();
    while waiting.front().is_some_and(|next| next.write.cluster_time <= reached) {
        let Some(Expected { write, acknowledged }) = waiting.pop_front() else { break };
        let is_right = is_right(&db, &write)?;
        let lag = seen.saturating_duration_since(acknowledged);
        send(tell, News::Arrived { write, lag, is_right });
    }
    Ok(())
}

/// The row is there, written at that time or later; or it is gone, as it should be.
fn is_right(db: &Connection, write: &Write) -> Result<bool> {
    let read = format!("SELECT _position FROM \"{}\" WHERE _id = ?1", write.collection);
    let mut read = db.prepare_cached(&read)?;
    let row: Option<String> = read.query_row([write.id.to_hex()], |row| row.get(0)).optional()?;
    Ok(match (row, write.operation) {
        (None, Operation::Delete) => true,
        (Some(position), Operation::Insert | Operation::Update) => {
            crate::verify::position_time(&position)? >= write.cluster_time
        }
        _ => false,
    })
}

fn count(db: &Connection) -> Result<News> {
    let mut rows = [0; 5];
    for (name, count) in COLLECTIONS.iter().zip(&mut rows) {
        let mut read = db.prepare_cached(&format!("SELECT count(*) FROM \"{name}\""))?;
        *count = u64::from(read.query_row([], |row| row.get::<_, u32>(0))?);
    }
    let state = "SELECT state, transport FROM _tidewire_status";
    let state = db.query_row(state, [], |row| {
        let [state, transport]: [String; 2] = [row.get(0)?, row.get(1)?];
        Ok(format!("{state}, by {}", transport.replace('_', " ")))
    })?;
    Ok(News::Counted { rows, state })
}

/// A view that does not keep up misses news; the watcher never waits for it.
fn send(tell: &mpsc::Sender<News>, news: News) {
    let _ = tell.try_send(news);
}

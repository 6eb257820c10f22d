//! Many push sockets, each of a user of its own, that are all told the same: how soon and how many
//! changes a second, what they cost in memory, and how they come again all at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mongodb::Database;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::notices::{COLLECTION, QUIET, write_at_intervals, write_fast};
use super::quantile;
use super::socket::{Socket, numbers};
use crate::bench::report::{self, Aim, Figure};
use crate::bench::stack::{Server, Setup};

/// Notices that are there before, 500 bytes each: what a catch-up tells.
const BACKLOG: u64 = 400;
/// Notices whose delay is measured.
const TIMED: u64 = 100;
/// Notices that are written as fast as the source takes them.
const FAST: u64 = 2_000;
/// What the sockets are told a second while delays are measured, all together: a third of what two
/// cores can bear that also run MongoDB and the sockets' other ends.
const TOLD_PER_SECOND: u64 = 20_000;
/// Sockets opened at once, where not all are.
pub(super) const OPENED_AT_ONCE: usize = 200;
/// Tries to open a socket before it is a failure: a server that has all the connections it can bear
/// says so.
const TRIES_MAX: u32 = 60;
/// Every socket must have heard everything within this time.
const PATIENCE: Duration = Duration::from_secs(180);
/// What a socket may cost, and the delay of the slowest of a hundred, for 1,000 sockets.
const SOCKET_AIM_KB: f64 = 16.0;
const DELAY_AIM_MS: f64 = 50.0;

/// A server and its crowd.
pub(in super::super) struct Crowd<'a> {
    database: &'a Database,
    pub(super) server: Server,
    pub(super) tokens: Arc<Vec<String>>,
    pub(super) figures: Vec<Figure>,
    /// Notices so far.
    written: u64,
}

/// What the sockets have heard.
struct Heard {
    began: Instant,
    /// When each notice was sent, microseconds after `began`.
    sent: Vec<AtomicU64>,
    /// Notices heard by all sockets together.
    count: AtomicUsize,
    ended: AtomicBool,
}

impl<'a> Crowd<'a> {
    /// Measures `count` sockets.
    pub(in super::super) async fn measure(
        database: &'a Database,
        setup: &Setup,
        count: usize,
    ) -> Result<Vec<Figure>> {
        let mut crowd = Self::start(database, setup, &format!("log-{count}"), count).await?;
        let sinces = crowd.fresh().await?;
        let sockets = crowd.after_catch_up().await?;
        let sockets = crowd.delays(sockets).await?;
        let sockets = crowd.rate(sockets).await?;
        crowd.reconnect(sockets).await?;
        crowd.gone().await;
        crowd.come_again(sinces).await?;
        crowd.server.stop().await?;
        Ok(crowd.figures)
    }

    /// A server over a new log in the folder `log`, a backlog that is the same for each, and tokens for
    /// `count` sockets.
    pub(super) async fn start(
        database: &'a Database,
        setup: &Setup,
        log: &str,
        count: usize,
    ) -> Result<Self> {
        database.collection::<bson::Document>(COLLECTION).delete_many(bson::doc! {}).await?;
        let mut server = Server::start(setup, &setup.dir.join(log)).await?;
        server.ready().await?;
        let tokens = (0..count).map(|user| server.token_of(&format!("user{user}")));
        let tokens = Arc::new(tokens.collect::<Result<_>>()?);
        let mut crowd = Self { database, server, tokens, figures: Vec::new(), written: 0 };
        crowd.write(BACKLOG).await?;
        Ok(crowd)
    }

    async fn write(&mut self, count: u64) -> Result<()> {
        let numbers = self.written..self.written + count;
        self.written += count;
        write_fast(self.database, numbers, |_| {}).await
    }

    /// Opens every socket and reads it to the end of what there is, and on until the last one is there: a
    /// server drops who answers no ping. `sinces`: one for each, or from nothing.
    pub(super) async fn open(
        &self,
        sinces: Option<Vec<String>>,
        collection: &'static str,
        at_once: usize,
    ) -> Result<Vec<Socket>> {
        let turns = Arc::new(Semaphore::new(at_once));
        let (open, all_open) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let mut opening = JoinSet::new();
        for user in 0..self.tokens.len() {
            let (turns, tokens) = (Arc::clone(&turns), Arc::clone(&self.tokens));
            let (open, all_open) = (Arc::clone(&open), all_open.clone());
            let url = self.server.url().to_owned();
            let since = sinces.as_ref().map_or_else(|| "0".to_owned(), |all| all[user].clone());
            opening.spawn(async move {
                let turn = turns.acquire_owned().await?;
                let mut socket = open_patiently(&url, &tokens[user], &since, collection).await?;
                socket.user = user;
                drop(turn);
                if open.fetch_add(1, Ordering::Relaxed) + 1 == tokens.len() {
                    all_open.cancel();
                }
                // Not half a frame is lost when all are open.
                if let Some(lost) = all_open.run_until_cancelled(socket.read_on()).await {
                    return Err(lost.context("wait until all are open"));
                }
                Ok(socket)
            });
        }
        let mut sockets = Vec::with_capacity(self.tokens.len());
        while let Some(opened) = opening.join_next().await {
            sockets.push(opened??);
        }
        Ok(sockets)
    }

    /// Sockets that were never told anything; gives their cursors.
    async fn fresh(&mut self) -> Result<Vec<String>> {
        let before = self.server.memory()?;
        let sockets = self.open(None, QUIET, OPENED_AT_ONCE).await?;
        self.memory("memory of a fresh idle socket", before)?;
        let sinces = sockets.into_iter().map(|socket| socket.cursor).collect();
        self.gone().await;
        Ok(sinces)
    }

    /// Sockets that were told all of the backlog.
    async fn after_catch_up(&mut self) -> Result<Vec<Socket>> {
        // What making pages takes once is not a socket's.
        drop(self.open_one().await?);
        let before = self.server.memory()?;
        let sockets = self.open(None, COLLECTION, OPENED_AT_ONCE).await?;
        self.memory("memory of an idle socket after a catch-up", before)?;
        Ok(sockets)
    }

    async fn open_one(&self) -> Result<Socket> {
        open_patiently(self.server.url(), &self.tokens[0], "0", COLLECTION).await
    }

    /// Waits until the server has let go of its sockets.
    pub(super) async fn gone(&self) {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of memory are far below 2^52")]
    fn memory(&mut self, name: &str, before: u64) -> Result<()> {
        let (count, now) = (self.tokens.len(), self.server.memory()?);
        let each = now.saturating_sub(before) as f64 / count as f64 / 1e3;
        let ours = format!("{each:.1} KB");
        let base = format!("16 KB; all of the server: {:.0} MB", now as f64 / 1e6);
        let name = format!("{name}, {count}");
        let (value, aim) = (each / SOCKET_AIM_KB, Aim::AtMost(1.0));
        self.figures.push(report::figure(&name, value, aim, ours, base, Vec::new()));
        Ok(())
    }

    /// How soon each socket hears each change.
    async fn delays(&mut self, sockets: Vec<Socket>) -> Result<Vec<Socket>> {
        let count = self.tokens.len();
        let interval = Duration::from_secs(1) * u32::try_from(count)? / TOLD_PER_SECOND as u32;
        let (sockets, mut delays, _) = self
            .hear(sockets, TIMED, |database, numbers, sent| async move {
                write_at_intervals(&database, numbers, interval, sent).await
            })
            .await?;
        delays.sort_unstable();
        let ms = |share| quantile(&delays, share).as_secs_f64() * 1e3;
        let (median, late) = (ms(0.5), ms(0.99));
        let ours = format!("{late:.1} ms, median {median:.1}");
        let base = format!("50 ms, at {:.0} changes/s", 1.0 / interval.as_secs_f64());
        let name = format!("write → heard by each of {count}, p99");
        let (value, aim) = (late / DELAY_AIM_MS, Aim::AtMost(1.0));
        self.figures.push(report::figure(&name, value, aim, ours, base, Vec::new()));
        Ok(sockets)
    }

    /// How many changes a second all of them are told.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    async fn rate(&mut self, sockets: Vec<Socket>) -> Result<Vec<Socket>> {
        let (sockets, _, took) = self
            .hear(sockets, FAST, |database, numbers, sent| async move {
                write_fast(&database, numbers, sent).await
            })
            .await?;
        let rate = FAST as f64 / took.as_secs_f64();
        let told = rate * self.tokens.len() as f64;
        let ours = format!("{rate:.0} changes/s");
        let base = format!("{:.0} thousand tellings/s; no aim", told / 1e3);
        let name = format!("changes told to each of {}", self.tokens.len());
        self.figures.push(report::figure(&name, rate, Aim::AtLeast(0.0), ours, base, Vec::new()));
        Ok(sockets)
    }

    /// All sockets are cut, something happens, and they come again at once with their cursors.
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory are far below 2^52")]
    async fn reconnect(&mut self, sockets: Vec<Socket>) -> Result<()> {
        let count = sockets.len();
        let mut sinces = vec![String::new(); count];
        for socket in &sockets {
            sinces[socket.user].clone_from(&socket.cursor);
        }
        drop(sockets);
        self.gone().await;
        self.write(100).await?;
        let before = self.server.memory()?;
        let began = Instant::now();
        let sockets = self.open(Some(sinces), COLLECTION, count).await?;
        let took = began.elapsed().as_secs_f64();
        let now = self.server.memory()?;
        let ours = format!("{took:.2} s");
        let (then, now) = (before as f64 / 1e6, now as f64 / 1e6);
        let base = format!("memory {then:.0} → {now:.0} MB; no aim");
        let name = format!("{count} come again at once");
        self.figures.push(report::figure(&name, took, Aim::AtLeast(0.0), ours, base, Vec::new()));
        drop(sockets);
        Ok(())
    }

    /// Writes `count` notices by `write` while the sockets listen: the sockets again, the delay of every
    /// telling, and the time until the last.
    pub(super) async fn hear<W: Future<Output = Result<()>>>(
        &mut self,
        sockets: Vec<Socket>,
        count: u64,
        write: impl FnOnce(Database, std::ops::Range<u64>, Box<dyn Fn(u64)>) -> W,
    ) -> Result<(Vec<Socket>, Vec<Duration>, Duration)> {
        let first = self.written;
        self.written += count;
        let heard = Arc::new(Heard {
            began: Instant::now(),
            sent: (0..count).map(|_| AtomicU64::default()).collect(),
            count: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let wanted = sockets.len() * usize::try_from(count)?;
        let mut listening = JoinSet::new();
        for socket in sockets {
            listening.spawn(listen(socket, usize::try_from(first)?, Arc::clone(&heard)));
        }
        let noted = Arc::clone(&heard);
        let sent = Box::new(move |number: u64| {
            let at = u64::try_from(noted.began.elapsed().as_micros()).unwrap_or(u64::MAX);
            noted.sent[usize::try_from(number - first).unwrap_or(0)].store(at, Ordering::Relaxed);
        });
        let began = Instant::now();
        write(self.database.clone(), first..first + count, sent).await?;
        let (mut sockets, mut delays) = (Vec::new(), Vec::with_capacity(wanted));
        while heard.count.load(Ordering::Relaxed) < wanted {
            let told = heard.count.load(Ordering::Relaxed);
            ensure!(began.elapsed() < PATIENCE, "{told} of {wanted} tellings were heard");
            while let Some(listener) = listening.try_join_next() {
                let lost = || format!("a socket was lost after {told} of {wanted} tellings");
                let (socket, its) = listener?.with_context(lost)?;
                sockets.push(socket);
                delays.extend(its);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let took = began.elapsed();
        heard.ended.store(true, Ordering::Relaxed);
        while let Some(listener) = listening.join_next().await {
            let (socket, its) = listener??;
            sockets.push(socket);
            delays.extend(its);
        }
        Ok((sockets, delays, took))
    }
}

/// Opens a socket and reads it to the end of what there is.
pub(super) async fn open_patiently(
    url: &str,
    token: &str,
    since: &str,
    collection: &'static str,
) -> Result<Socket> {
    try_to_open(url, token, since, collection).await?.caught_up().await
}

/// Opens a socket, again where a server has all the connections that it can bear.
pub(super) async fn try_to_open(
    url: &str,
    token: &str,
    since: &str,
    collection: &'static str,
) -> Result<Socket> {
    let mut tries = 0;
    loop {
        let opened = Socket::open(url, token, since, &[collection]).await;
        match opened {
            Ok(socket) => return Ok(socket),
            Err(error) if tries >= TRIES_MAX => return Err(error).context("open a socket"),
            Err(_) => tokio::time::sleep(Duration::from_millis(rand::random_range(50..500))).await,
        }
        tries += 1;
    }
}

/// Hears notices from `first` on until all are heard; gives the socket back.
async fn listen(
    mut socket: Socket,
    first: usize,
    heard: Arc<Heard>,
) -> Result<(Socket, Vec<Duration>)> {
    let mut delays = Vec::with_capacity(heard.sent.len());
    while delays.len() < heard.sent.len() && !heard.ended.load(Ordering::Relaxed) {
        let text = socket.changes().await?;
        let now = heard.began.elapsed();
        let before = delays.len();
        for number in numbers(&text).filter(|number| *number >= first) {
            let sent = heard.sent.get(number - first).map_or(0, |at| at.load(Ordering::Relaxed));
            delays.push(now.saturating_sub(Duration::from_micros(sent)));
        }
        heard.count.fetch_add(delays.len() - before, Ordering::Relaxed);
    }
    Ok((socket, delays))
}

//! What healthy sockets notice of others: of a thousand that never read, of all who come again after a
//! server went. The same sockets, alone and beside them, in one run.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use mongodb::Database;
use tokio::task::JoinSet;

use super::crowd::{Crowd, OPENED_AT_ONCE, open_patiently, try_to_open};
use super::notices::{BALLAST, COLLECTION, QUIET, write_at_intervals, write_ballast};
use super::quantile;
use super::socket::Socket;
use crate::bench::report::{self, Aim, Figure};
use crate::bench::stack::Setup;

/// Healthy sockets.
const HEALTHY: usize = 100;
/// Sockets that never read.
const NEVER_READ: usize = 1_000;
/// What those take into their own buffer, bytes; the server has 30 MB for each.
const TAKEN_BYTES: u32 = 8 * 1024;
/// Notices of one measurement, and the time between two.
const NOTICES: u64 = 500;
const INTERVAL: Duration = Duration::from_millis(10);
/// Sockets come again as a server that drains has them: so many a second, over five seconds at least.
const RETRIES_PER_SECOND: usize = 500;
const RETRY_SECONDS_MIN: usize = 5;
/// How much slower the slowest of a hundred may be.
const SLOWER_AIM: f64 = 2.0;

impl<'a> Crowd<'a> {
    /// Healthy sockets beside those that never read; a ratio for each round.
    pub(in super::super) async fn never_read(
        database: &'a Database,
        setup: &Setup,
        rounds: u32,
    ) -> Result<Vec<Figure>> {
        write_ballast(database).await?;
        let mut crowd = Self::start(database, setup, "log-never-read", HEALTHY).await?;
        let mut healthy = crowd.open(None, COLLECTION, OPENED_AT_ONCE).await?;
        let (mut alone, mut beside, mut before, mut most) = (Vec::new(), Vec::new(), u64::MAX, 0);
        for _ in 0..rounds {
            let p99;
            (healthy, p99) = crowd.late(healthy, NOTICES).await?;
            alone.push(p99);
            before = before.min(crowd.server.memory()?);
            let never_read = crowd.open_never_read().await?;
            let p99;
            (healthy, p99) = crowd.late(healthy, NOTICES).await?;
            beside.push(p99);
            most = most.max(crowd.server.memory()?);
            drop(never_read);
            crowd.gone().await;
        }
        drop(healthy);
        crowd.server.stop().await?;
        let name = format!("p99 of {HEALTHY} beside {NEVER_READ} that never read");
        let memory = format!("; memory {} → {} MB", before / 1_000_000, most / 1_000_000);
        Ok(vec![slower(&name, &alone, &beside, &memory)])
    }

    async fn open_never_read(&self) -> Result<Vec<Socket>> {
        let mut opened = Vec::with_capacity(NEVER_READ);
        for user in 0..NEVER_READ {
            let token = self.server.token_of(&format!("sleeper{user}"))?;
            let url = self.server.url();
            let names = &[COLLECTION, BALLAST];
            opened.push(Socket::open_narrow(url, &token, "0", names, TAKEN_BYTES).await?);
        }
        Ok(opened)
    }

    /// A hundred healthy sockets while others come again with their cursors, spread as a server that
    /// drains spreads them. They watch what nobody writes to: what they cost is their coming.
    pub(super) async fn come_again(&mut self, sinces: Vec<String>) -> Result<()> {
        let mut healthy = Vec::with_capacity(HEALTHY);
        for token in self.tokens.iter().take(HEALTHY) {
            healthy.push(open_patiently(self.server.url(), token, "0", COLLECTION).await?);
        }
        let (healthy, alone) = self.late(healthy, NOTICES).await?;
        let count = sinces.len();
        let seconds = (count / RETRIES_PER_SECOND).max(RETRY_SECONDS_MIN);
        let mut coming = JoinSet::new();
        for (user, since) in sinces.into_iter().enumerate() {
            let (url, tokens) = (self.server.url().to_owned(), Arc::clone(&self.tokens));
            let after = Duration::from_millis(rand::random_range(0..seconds as u64 * 1_000));
            coming.spawn(async move {
                tokio::time::sleep(after).await;
                try_to_open(&url, &tokens[user], &since, QUIET).await
            });
        }
        let notices = Duration::from_secs(seconds as u64).as_millis() / INTERVAL.as_millis();
        let (healthy, beside) = self.late(healthy, u64::try_from(notices)?).await?;
        let mut others = Vec::with_capacity(count);
        while let Some(socket) = coming.join_next().await {
            others.push(socket??);
        }
        drop((healthy, others));
        let name = format!("p99 of {HEALTHY} while {count} come again");
        let base = format!(", over {seconds} s");
        self.figures.push(slower(&name, &[alone], &[beside], &base));
        Ok(())
    }

    /// The delay of the slowest of a hundred tellings.
    async fn late(&mut self, sockets: Vec<Socket>, count: u64) -> Result<(Vec<Socket>, Duration)> {
        let (sockets, mut delays, _) = self
            .hear(sockets, count, |database, numbers, sent| async move {
                write_at_intervals(&database, numbers, INTERVAL, sent).await
            })
            .await?;
        delays.sort_unstable();
        Ok((sockets, quantile(&delays, 0.99)))
    }
}

fn slower(name: &str, alone: &[Duration], beside: &[Duration], more: &str) -> Figure {
    let ratio =
        |(beside, alone): (&Duration, &Duration)| beside.as_secs_f64() / alone.as_secs_f64();
    let ratios: Vec<f64> = beside.iter().zip(alone).map(ratio).collect();
    let ms = |times: &[Duration]| {
        let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        format!("{:.1} ms", report::median(&times))
    };
    let base = format!("alone: {}{more}", ms(alone));
    let aim = Aim::AtMost(SLOWER_AIM);
    report::figure(name, report::median(&ratios), aim, ms(beside), base, ratios)
}

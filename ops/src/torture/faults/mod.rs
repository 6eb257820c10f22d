//! Random faults, several kinds at once: one lane for the source, one for the servers, one for each client
//! and its network. Each fault is healed by its lane before the lane's next one.

mod clients;
mod servers;
pub(super) mod source;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::findings::Findings;
use super::stage::{ClientPart, ServerPart};
use crate::mongod::ReplicaSet;

/// The lanes that run.
pub(super) struct Lanes {
    source: JoinHandle<Result<ReplicaSet>>,
    servers: JoinHandle<Result<Vec<ServerPart>>>,
    clients: JoinSet<(usize, Result<ClientPart>)>,
}

/// Starts all lanes; they end, healed, when it is `over`.
pub(super) fn start(
    seed: u64,
    mongo: ReplicaSet,
    servers: Vec<ServerPart>,
    clients: Vec<ClientPart>,
    findings: &Arc<Findings>,
    over: &CancellationToken,
) -> Lanes {
    let lane = |number: u64| Lane {
        rng: StdRng::seed_from_u64(seed ^ (0xfa_0000 + number)),
        findings: Arc::clone(findings),
        over: over.clone(),
    };
    let addresses: Vec<String> = servers.iter().map(|server| server.site.address.clone()).collect();
    let source = tokio::spawn(source::run(lane(0), mongo));
    let servers = tokio::spawn(servers::run(lane(1), servers));
    let mut lanes = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        let (lane, addresses) = (lane(2 + number as u64), addresses.clone());
        lanes.spawn(async move { (number, clients::run(lane, client, addresses).await) });
    }
    Lanes { source, servers, clients: lanes }
}

impl Lanes {
    /// A lane has ended, which before its time only a failure makes it do.
    pub(super) fn has_ended(&self) -> bool {
        self.source.is_finished() || self.servers.is_finished()
    }

    /// Waits until each lane has healed what it broke.
    pub(super) async fn healed(mut self) -> Result<(ReplicaSet, Vec<ServerPart>, Vec<ClientPart>)> {
        let mongo = self.source.await?.context("the source's faults")?;
        let servers = self.servers.await?.context("the servers' faults")?;
        let mut clients = Vec::new();
        while let Some(ended) = self.clients.join_next().await {
            let (number, client) = ended?;
            clients.push((number, client.context("a client's faults")?));
        }
        clients.sort_by_key(|(number, _)| *number);
        Ok((mongo, servers, clients.into_iter().map(|(_, client)| client).collect()))
    }
}

/// What every lane has.
struct Lane {
    rng: StdRng,
    findings: Arc<Findings>,
    over: CancellationToken,
}

impl Lane {
    /// Waits for a random time of so many seconds; false when it is over.
    async fn pause(&mut self, seconds: std::ops::Range<f64>) -> bool {
        let pause = Duration::from_secs_f64(self.rng.random_range(seconds));
        self.over.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
    }

    /// As [`Lane::pause`], and the rest of it too where it is over: a fault is felt for so long.
    async fn hold(&mut self, seconds: std::ops::Range<f64>) {
        tokio::time::sleep(Duration::from_secs_f64(self.rng.random_range(seconds))).await;
    }

    /// One of several, by weights.
    fn pick<T: Copy>(&mut self, from: &[(u32, T)]) -> T {
        let total = from.iter().map(|(weight, _)| weight).sum();
        let mut dice = self.rng.random_range(0..total);
        for (weight, choice) in from {
            match dice.checked_sub(*weight) {
                None => return *choice,
                Some(rest) => dice = rest,
            }
        }
        from[0].1
    }
}

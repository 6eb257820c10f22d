//! `torture`: random load and random faults against three mongods, two servers and four clients at
//! once, with the promises checked all along and everything compared at the end.
//!
//! What judges is not what is judged: a [`witness`] of our own reads the source's change stream through
//! the bare driver, [`follow`] reads each server's log from its file, [`replica`] reads each replica as
//! an app would, [`pages`] pulls over HTTP; [`judge`] lays the witness beside both logs.

mod faults;
mod finale;
mod findings;
mod follow;
mod history;
mod judge;
mod load;
mod pages;
mod replica;
mod stage;
mod told;
mod view;
mod witness;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::signals::Stop;
use findings::Findings;
use judge::Judge;
use stage::Stage;
use view::View;

/// How often the terminal is drawn.
const TICK: Duration = Duration::from_millis(500);

/// What a run is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of everything that is random.
    pub seed: u64,
    /// How long load and faults go on.
    pub run_for: Duration,
    /// 1 or 3.
    pub nodes: usize,
    /// Writes a second.
    pub rate: f64,
    /// Where everything is kept.
    pub dir: PathBuf,
    /// Keep the folder although all went well.
    pub keep: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every promise that was looked at.
    Held,
    /// At least one was not kept; what and where has been printed.
    Broken,
}

/// Runs it, prints what was done and found. Ctrl-C ends load and faults early and goes on to the checks;
/// a second one ends everything.
///
/// # Errors
/// When the parts can't be started, or the run itself fails: that is not a broken promise.
pub async fn run(options: Options) -> Result<Verdict> {
    let mut stop = Stop::listen()?;
    let findings = Arc::new(Findings::new(&options.dir)?);
    println!("torture --seed {} · everything is in {}", options.seed, options.dir.display());
    let stage = tokio::select! {
        biased;
        () = stop.asked() => anyhow::bail!("stopped before everything was up"),
        stage = Stage::start(&options) => stage.context("start the parts")?,
    };
    let judge = Arc::new(Judge::new(Arc::clone(&findings)));
    let mut stage = stage;
    stage.checks.spawn(witness::follow(stage.site.clone(), Arc::clone(&judge)));
    let stage = chaos(&options, stage, &findings, &judge, &mut stop).await?;
    let ended = tokio::select! {
        biased;
        () = stop.asked() => anyhow::bail!("stopped before the comparison at the end"),
        ended = finale::compare_all(stage, &findings, &judge) => ended,
    };
    if let Err(error) = ended {
        findings.broken(findings::Kind::Stuck, format!("at the end: {error:#}"));
    }
    print!("{}", findings.report(options.seed));
    if findings.is_clean() {
        if !options.keep {
            std::fs::remove_dir_all(&options.dir).context("remove the run's folder")?;
        }
        return Ok(Verdict::Held);
    }
    let dir = options.dir.display();
    println!("see {dir}/torture.log (faults and findings by time), {dir}/server-*, {dir}/client-*");
    println!("again: tidewire-ops torture --seed {}", options.seed);
    Ok(Verdict::Broken)
}

/// Load, faults and checks until the time is over or somebody says stop. Everything runs and is healed
/// when it comes back.
async fn chaos(
    options: &Options,
    stage: Stage,
    findings: &Arc<Findings>,
    judge: &Arc<Judge>,
    stop: &mut Stop,
) -> Result<Stage> {
    let over = CancellationToken::new();
    let Stage { mongo, servers, clients, site, mut checks } = stage;
    for server in &site.servers {
        checks.spawn(follow::run(server.clone(), Arc::clone(judge), site.checks.clone()));
    }
    for client in &site.clients {
        checks.spawn(replica::watch(client.clone(), Arc::clone(findings), site.checks.clone()));
    }
    for reader in pages::readers(&site, options.seed)? {
        checks.spawn(reader.run(Arc::clone(findings), site.checks.clone()));
    }
    judge.has_witness().await;
    let load =
        tokio::spawn(load::run(site.clone(), options.clone(), Arc::clone(findings), over.clone()));
    let lanes = faults::start(options.seed, mongo, servers, clients, findings, &over);
    let ends = Instant::now() + options.run_for;
    let mut view = View::new(options.run_for);
    let mut ticks = tokio::time::interval(TICK);
    while Instant::now() < ends && !lanes.has_ended() {
        tokio::select! {
            () = stop.asked() => break,
            _ = ticks.tick() => view.draw(findings, ends)?,
        }
    }
    view.end();
    println!("load and faults are over; healing and comparing …");
    over.cancel();
    load.await.context("the load")?;
    let (mongo, servers, clients) = lanes.healed().await?;
    Ok(Stage { mongo, servers, clients, site, checks })
}

//! What happens to the source.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use bson::{Document, doc};
use mongodb::options::WriteConcern;
use rand::RngExt;

use super::Lane;
use crate::black_hole::BlackHole;
use crate::mongod::{ReplicaSet, cluster_time};
use crate::torture::stage::DATABASE;

/// Seconds between two faults.
const PAUSE: std::ops::Range<f64> = 4.0..14.0;
/// Writes that a rollback takes back.
const ROLLED_BACK: i32 = 20;
/// By now a write with `w: 1` is in the journal.
const JOURNALED: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillPrimary,
    FreezePrimary,
    StepDown,
    KillSecondary,
    NoMajority,
    Rollback,
    BlackHole,
    RollOver,
    Refuse,
    Command(&'static str, &'static str, i32, bool),
}

/// With one node there is nobody to take over.
const FAULTS_OF_SETS: [(u32, Fault); 7] = [
    (4, Fault::KillPrimary),
    (3, Fault::FreezePrimary),
    (4, Fault::StepDown),
    (2, Fault::KillSecondary),
    (2, Fault::NoMajority),
    (3, Fault::Rollback),
    (2, Fault::BlackHole),
];

const FAULTS: [(u32, Fault); 11] = [
    (1, Fault::KillPrimary),
    (1, Fault::FreezePrimary),
    (2, Fault::Command("getMore fails: the connection is cut", "getMore", 0, false)),
    (2, Fault::Command("getMore fails: CursorNotFound", "getMore", 43, false)),
    (2, Fault::Command("getMore fails: a resumable error", "getMore", 11_602, true)),
    (2, Fault::Command("getMore fails: 280, the token is refused", "getMore", 280, false)),
    (2, Fault::Command("getMore fails: 136, the oplog rolled over", "getMore", 136, false)),
    (1, Fault::Command("getMore fails: 286, history lost", "getMore", 286, false)),
    (1, Fault::Command("find fails: snapshot too old", "find", 239, false)),
    (2, Fault::Refuse),
    (2, Fault::RollOver),
];

pub(super) async fn run(mut lane: Lane, mut mongo: ReplicaSet) -> Result<ReplicaSet> {
    if lane.pause(PAUSE).await {
        lane.findings.fault("source stopped as a whole, and backed up", "all nodes");
        mongo.back_up(&backup(&mongo)).await?;
    }
    let mut faults = FAULTS.to_vec();
    if mongo.nodes().len() > 1 {
        faults.extend(FAULTS_OF_SETS);
    }
    while lane.pause(PAUSE).await {
        let fault = lane.pick(&faults);
        inject(&mut lane, &mut mongo, fault).await.with_context(|| format!("{fault:?}"))?;
        // The next one meets a set that is whole.
        mongo.is_whole().await?;
        mongo.primary().await?;
    }
    Ok(mongo)
}

/// Where the copy is that is put back at the end.
pub(in crate::torture) fn backup(mongo: &ReplicaSet) -> PathBuf {
    mongo.dir().with_extension("backup")
}

async fn inject(lane: &mut Lane, mongo: &mut ReplicaSet, fault: Fault) -> Result<()> {
    let primary = mongo.primary().await?;
    let host = mongo.nodes()[primary].host();
    match fault {
        Fault::KillPrimary => {
            lane.findings.fault("primary killed with kill -9", &host);
            mongo.node(primary).kill().await?;
            lane.hold(0.2..6.0).await;
            mongo.node(primary).restart().await
        }
        Fault::FreezePrimary => {
            lane.findings.fault("primary frozen with SIGSTOP", &host);
            mongo.node(primary).pause()?;
            lane.hold(0.5..12.0).await;
            mongo.node(primary).resume()
        }
        Fault::StepDown => {
            lane.findings.fault("primary steps down", &host);
            let command =
                doc! { "replSetStepDown": 4, "secondaryCatchUpPeriodSecs": 2, "force": true };
            // It may fail, or cut the connection that asked for it.
            let _ = mongo.nodes()[primary].admin(command).await;
            Ok(())
        }
        Fault::KillSecondary => {
            let secondary = (primary + 1) % mongo.nodes().len();
            lane.findings.fault("secondary killed with kill -9", &mongo.nodes()[secondary].host());
            mongo.node(secondary).kill().await?;
            lane.hold(0.2..5.0).await;
            mongo.node(secondary).restart().await
        }
        Fault::NoMajority => {
            lane.findings.fault("majority lost", &host);
            let gone = others(mongo, primary);
            for node in &gone {
                mongo.node(*node).kill().await?;
            }
            lane.hold(1.0..9.0).await;
            for node in &gone {
                mongo.node(*node).restart().await?;
            }
            Ok(())
        }
        Fault::Rollback => rollback(lane, mongo, primary).await,
        Fault::BlackHole => {
            let Some(_hole) = BlackHole::of(mongo.nodes()[primary].port()) else {
                lane.findings.count("faults left out: a black hole needs root and iptables", 1);
                return Ok(());
            };
            lane.findings.fault("primary in a black hole", &host);
            lane.hold(0.5..12.0).await;
            Ok(())
        }
        Fault::RollOver => {
            let whom = one_of_the_servers(lane);
            let cut = doc! { "failCommands": ["aggregate", "getMore"], "appName": whom, "closeConnection": true };
            fail(mongo, doc! { "mode": "alwaysOn", "data": cut }).await?;
            let hello = mongo.nodes()[primary].admin(doc! { "hello": 1 }).await?;
            let now = hello.get_timestamp("operationTime").context("the source's time")?;
            match mongo.roll_over(cluster_time(now)).await {
                Ok(()) => {
                    lane.findings.fault("oplog rolled over while a server reads nothing", whom);
                }
                Err(error) => {
                    lane.findings.note(&format!("the oplog was not rolled over: {error:#}"));
                    lane.findings.count("oplogs that were not rolled over in time", 1);
                }
            }
            fail(mongo, doc! { "mode": "off" }).await
        }
        Fault::Refuse => {
            let whom = one_of_the_servers(lane);
            lane.findings.fault("source refuses a server's user", whom);
            let commands = ["aggregate", "getMore", "find", "listCollections"];
            let refuse =
                doc! { "failCommands": commands.to_vec(), "appName": whom, "errorCode": 13 };
            fail(mongo, doc! { "mode": "alwaysOn", "data": refuse }).await?;
            lane.hold(1.0..9.0).await;
            fail(mongo, doc! { "mode": "off" }).await
        }
        Fault::Command(name, command, code, resumable) => {
            fail_command(lane, mongo, name, command, code, resumable).await
        }
    }
}

fn others(mongo: &ReplicaSet, primary: usize) -> Vec<usize> {
    (0..mongo.nodes().len()).filter(|node| *node != primary).collect()
}

/// Writes that only the primary has, which is then killed: they are taken back. That no log tells them is
/// the judge's to see.
async fn rollback(lane: &mut Lane, mongo: &mut ReplicaSet, primary: usize) -> Result<()> {
    let host = mongo.nodes()[primary].host();
    lane.findings.fault("writes rolled back", &host);
    let secondaries = others(mongo, primary);
    for node in &secondaries {
        let stop = doc! { "configureFailPoint": "stopReplProducer", "mode": "alwaysOn" };
        mongo.nodes()[*node].admin(stop).await?;
    }
    let notices = mongo.nodes()[primary].client().database(DATABASE);
    let notices = notices.collection::<Document>("notices");
    let run: u32 = lane.rng.random();
    for number in 0..ROLLED_BACK {
        let marker = doc! { "_id": format!("w1-{run}-{number}"), "v": 0 };
        let one = WriteConcern::nodes(1);
        // It may have lost its place meanwhile; then there is less to take back.
        if notices.insert_one(marker).write_concern(one).await.is_ok() {
            lane.findings.count("writes with w:1 before a rollback", 1);
        }
    }
    tokio::time::sleep(JOURNALED).await;
    mongo.node(primary).kill().await?;
    for node in &secondaries {
        let go_on = doc! { "configureFailPoint": "stopReplProducer", "mode": "off" };
        mongo.nodes()[*node].admin(go_on).await?;
    }
    mongo.primary().await?;
    lane.hold(0.0..2.0).await;
    mongo.node(primary).restart().await
}

/// A command of one server's connections fails a few times.
async fn fail_command(
    lane: &mut Lane,
    mongo: &mut ReplicaSet,
    name: &'static str,
    command: &str,
    code: i32,
    resumable: bool,
) -> Result<()> {
    let whom = one_of_the_servers(lane);
    lane.findings.fault(name, whom);
    let mut data = doc! { "failCommands": [command], "appName": whom };
    match code {
        0 => data.insert("closeConnection", true),
        code => data.insert("errorCode", code),
    };
    if resumable {
        data.insert("errorLabels", ["ResumableChangeStreamError"].to_vec());
    }
    let times = lane.rng.random_range(1..5);
    fail(mongo, doc! { "mode": { "times": times }, "data": data }).await?;
    lane.hold(1.0..4.0).await;
    fail(mongo, doc! { "mode": "off" }).await
}

fn one_of_the_servers(lane: &mut Lane) -> &'static str {
    ["server-a", "server-b"][lane.rng.random_range(0..2)]
}

/// Commands fail on every node, or no longer.
async fn fail(mongo: &ReplicaSet, how: Document) -> Result<()> {
    let mut command = doc! { "configureFailPoint": "failCommand" };
    command.extend(how);
    for node in mongo.nodes() {
        node.admin(command.clone()).await?;
    }
    Ok(())
}

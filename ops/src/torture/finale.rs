//! The end: everything is healed, nobody writes, and all that there is must be equal.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bson::{Document, doc};
use mongodb::Database;
use rusqlite::{Connection, OpenFlags};

use super::faults::source;
use super::findings::{Findings, Kind};
use super::judge::Judge;
use super::stage::{ClientSite, ServerPart, Site, Stage};
use crate::mongod::{ReplicaSet, cluster_time};
use crate::replay::{Replay, Sight};
use crate::verify::{Moment, Plan, compare};

const SETTLED_WITHIN: Duration = Duration::from_secs(150);
const POLL: Duration = Duration::from_millis(200);
/// What a server says of a source that was put back.
const RESTORED: &str = "it was restored from an older backup";
/// What a client logs when it has compared itself with a server, and was wrong.
const MENDED: &str = "the replica differed, and was mended";

/// Compares every replica and both logs with the source, and ends everything.
pub(super) async fn compare_all(
    stage: Stage,
    findings: &Arc<Findings>,
    judge: &Arc<Judge>,
) -> Result<()> {
    let Stage { mut clients, mut servers, mut mongo, site, mut checks } = stage;
    // What the last of the load has begun, copies too, is done when the logs have this one …
    let last = last_write(&site.database).await.context("a last write")?;
    let _ = settled(|| judge.judged_through() >= last).await;
    for server in &mut servers {
        server.ready().await?;
    }
    // … and with the replicas when they have this one.
    let last = clients_follow(&site, findings).await?;
    if settled(|| judge.judged_through() >= last).await.is_err() {
        let stands = judge.judged_through();
        findings
            .broken(Kind::Stuck, format!("the logs are judged to {stands:016x}, not {last:016x}"));
    }
    clients_equal(&site, findings).await?;
    site.checks.cancel();
    while checks.join_next().await.is_some() {}
    let restored = restored(&mut mongo, site, findings).await;
    let site = restored.context("the source restored from its backup")?;
    for client in &mut clients {
        let status = client.stop().await?;
        if status.is_none_or(|status| !status.success()) {
            findings.broken(Kind::Stuck, format!("{} ended with {status:?}", client.site.name));
        }
        read_lines(&client.site, findings)?;
    }
    for server in &mut servers {
        end(server, findings).await?;
        replayed(&site, server, findings).await?;
    }
    mongo.stop().await
}

/// The source holds what it held when it was backed up, and everything follows it there. The last fault:
/// what it was told after that, the source does not know any more, and neither does any judge.
async fn restored(mongo: &mut ReplicaSet, site: Site, findings: &Findings) -> Result<Site> {
    let backup = source::backup(mongo);
    if !backup.exists() {
        return Ok(site);
    }
    findings.fault("source restored from its backup", "all nodes");
    mongo.put_back(&backup).await?;
    let site = site.anew(&mongo.uri()).await?;
    clients_follow(&site, findings).await?;
    clients_equal(&site, findings).await?;
    for server in &site.servers {
        let said = std::fs::read(server.log()).context("a server's lines")?;
        if !String::from_utf8_lossy(&said).contains(RESTORED) {
            let text = format!("{} did not say that its source was restored", server.name);
            findings.broken(Kind::Different, text);
        }
    }
    Ok(site)
}

/// Waits until every client has a last write: its time.
async fn clients_follow(site: &Site, findings: &Findings) -> Result<u64> {
    let last = last_write(&site.database).await.context("a last write")?;
    findings.note(&format!("the last write is at {last:016x}"));
    for client in &site.clients {
        let name = client.name;
        if settled(|| client_reached(&client.replica()) >= last).await.is_err() {
            let stands = client_reached(&client.replica());
            findings
                .broken(Kind::Stuck, format!("{name} stands at {stands:016x}, not {last:016x}"));
        }
    }
    Ok(last)
}

async fn clients_equal(site: &Site, findings: &Findings) -> Result<()> {
    for client in &site.clients {
        let token = client.token(Duration::from_secs(60))?;
        let plan = Plan::from_config(&site.servers[0].config(), Some(&token))?;
        equal(site, &plan, &client.replica(), client.name, findings).await?;
    }
    Ok(())
}

/// A write that everything must have, with another behind it, so that the first one's commit is seen to
/// be whole.
async fn last_write(database: &Database) -> Result<u64> {
    let notices = database.collection::<Document>("notices");
    let deadline = Instant::now() + SETTLED_WITHIN;
    while let Err(error) = notices.insert_one(doc! { "last": true }).await {
        if Instant::now() > deadline {
            return Err(error.into());
        }
        tokio::time::sleep(POLL).await;
    }
    let hello = database.run_command(doc! { "hello": 1 }).await?;
    let time = hello.get_timestamp("operationTime").context("the source's time")?;
    let time = cluster_time(time);
    notices.insert_many([doc! { "behind": 1 }, doc! { "behind": 2 }]).await?;
    Ok(time)
}

async fn settled(mut is: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    while !is() {
        if Instant::now() > deadline {
            bail!("not settled");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The cluster time at which a replica stands.
fn client_reached(replica: &Path) -> u64 {
    let position = || {
        let db = Connection::open_with_flags(replica, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.query_row("SELECT position FROM _tidewire_status", [], |row| row.get::<_, String>(0))
    };
    let position = position().unwrap_or_default();
    crate::verify::position_time(&position).unwrap_or(0)
}

async fn equal(
    site: &Site,
    plan: &Plan,
    replica: &Path,
    name: &str,
    findings: &Findings,
) -> Result<()> {
    let report = compare(&site.database, plan, replica, Some(Moment::Now), &mut ())
        .await
        .with_context(|| format!("compare {name}"))?;
    findings.count("documents compared at the end", report.documents());
    for collection in &report.collections {
        for example in &collection.examples {
            let text = format!("{name} at the end: {}: {example}", collection.name);
            findings.broken(Kind::Different, text);
        }
    }
    Ok(())
}

/// What a client said of itself. That it had to mend its own replica is no merit here: it must never have
/// been wrong.
fn read_lines(client: &ClientSite, findings: &Findings) -> Result<()> {
    let lines = std::fs::read(client.log()).with_context(|| format!("{}'s lines", client.name))?;
    for line in String::from_utf8_lossy(&lines).lines() {
        let kind = match line {
            _ if line.contains("panicked at") => Kind::Stuck,
            _ if line.contains(MENDED) => Kind::Different,
            _ => continue,
        };
        findings.broken(kind, format!("{}: {line}", client.name));
    }
    Ok(())
}

/// SIGTERM, and the exit code that the contract promises.
async fn end(server: &mut ServerPart, findings: &Findings) -> Result<()> {
    let status = server.stop().await?;
    if status.is_none_or(|status| !status.success()) {
        findings.broken(Kind::Stuck, format!("{} ended with {status:?}", server.site.name));
    }
    Ok(())
}

/// A replica from the log alone is equal too.
async fn replayed(site: &Site, server: &ServerPart, findings: &Findings) -> Result<()> {
    let (name, config) = (server.site.name, server.site.config());
    let to = server.site.dir.join("replayed.db");
    let sight = Sight::of(&config, None)?;
    let replay = Replay { data_dir: server.site.data_dir(), to: to.clone(), through: None, sight };
    replay.run(|_| {}).await.with_context(|| format!("replay {name}'s log"))?;
    equal(site, &Plan::from_config(&config, None)?, &to, &format!("{name}'s log"), findings).await
}

//! What happens to the servers.

mod logs;

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use rand::RngExt;

use super::Lane;
use crate::torture::findings::Kind;
use crate::torture::stage::{NOT_FOLLOWED, ServerPart, Setting};

/// Seconds between two faults.
const PAUSE: std::ops::Range<f64> = 3.0..10.0;

const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// A fault that needs a server that is up is left out where it is not by then.
const UP_WITHIN: Duration = Duration::from_secs(20);
const SECOND_ENDS_WITHIN: Duration = Duration::from_secs(120);
const REFUSED_WITHIN: Duration = Duration::from_secs(120);
const REFUSED_LOOK_EVERY: Duration = Duration::from_millis(100);
/// How a program ends that failed, whose configuration is wrong, that the source refused, to which it did
/// not answer.
const FAILED: i32 = 1;
const BAD_CONFIGURATION: i32 = 2;
const ACCESS_REFUSED: i32 = 3;
const UNREACHABLE: i32 = 4;
/// A source refuses a server for less time than so many starts take.
const STARTS_MAX: usize = 5;

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Stop,
    Freeze,
    LoseLog,
    Restore,
    Damage,
    Second,
    Unfollow,
    Rules,
    View,
    ReadOnly,
    /// None, but work beside all the others, which must find nothing.
    Scrub,
}

const FAULTS: [(u32, Fault); 12] = [
    (6, Fault::Kill),
    (3, Fault::Stop),
    (4, Fault::Freeze),
    (1, Fault::LoseLog),
    (2, Fault::Restore),
    (2, Fault::Damage),
    (2, Fault::Second),
    (2, Fault::Unfollow),
    (2, Fault::Rules),
    (1, Fault::View),
    (3, Fault::ReadOnly),
    (4, Fault::Scrub),
];

pub(super) async fn run(mut lane: Lane, mut servers: Vec<ServerPart>) -> Result<Vec<ServerPart>> {
    while lane.pause(PAUSE).await {
        must_run(&lane, &mut servers).await?;
        let fault = lane.pick(&FAULTS);
        let index = match fault {
            // The log of the other one grows for an hour: too long to be looked through.
            Fault::Damage => servers.len() - 1,
            _ => lane.rng.random_range(0..servers.len()),
        };
        inject(&mut lane, &mut servers[index], fault).await?;
    }
    // Those that were started last may still meet a source that refuses them.
    for server in &servers {
        server.is_ready_within(UP_WITHIN).await;
    }
    must_run(&lane, &mut servers).await?;
    Ok(servers)
}

/// One that has lost its log can't start without the source, nor where that refuses it: it ended, and is
/// started again.
async fn must_run(lane: &Lane, servers: &mut [ServerPart]) -> Result<()> {
    for server in servers {
        for _ in 0..STARTS_MAX {
            let Err(error) = server.must_run() else { break };
            if server.site.has_log() {
                lane.findings.broken(Kind::Stuck, format!("{error:#}"));
            } else {
                lane.findings.note(&format!("{error:#}"));
            }
            server.start()?;
            server.is_ready_within(UP_WITHIN).await;
        }
    }
    Ok(())
}

/// Whether a program ended because the source did not answer it, or refused it just then.
fn is_sources_fault(code: Option<i32>) -> bool {
    matches!(code, Some(UNREACHABLE | ACCESS_REFUSED))
}

async fn inject(lane: &mut Lane, server: &mut ServerPart, fault: Fault) -> Result<()> {
    let name = server.site.name;
    match fault {
        Fault::Kill => {
            lane.findings.fault("server killed with kill -9", name);
            server.kill().await?;
            lane.hold(0.0..4.0).await;
            server.start()
        }
        Fault::Stop => {
            lane.findings.fault("server ended with SIGTERM", name);
            end(lane, server).await?;
            lane.hold(0.0..4.0).await;
            server.start()
        }
        Fault::Freeze => {
            lane.findings.fault("server frozen with SIGSTOP", name);
            server.signal(Signal::SIGSTOP)?;
            lane.hold(0.5..9.0).await;
            server.signal(Signal::SIGCONT)
        }
        Fault::Scrub => {
            let url = format!("http://{}/scrub", server.site.admin);
            let asked = reqwest::Client::new().post(url).timeout(ASKED_WITHIN).send().await;
            if asked.is_ok_and(|answer| answer.status().is_success()) {
                lane.findings.count("scrubs begun", 1);
            }
            Ok(())
        }
        Fault::LoseLog => {
            lane.findings.fault("server loses its log", name);
            server.kill().await?;
            logs::take_away(server).await?;
            logs::lose(lane, server)?;
            server.site.history.replaced();
            server.site.history.give_back();
            lane.hold(0.0..3.0).await;
            server.start()
        }
        Fault::Restore => logs::restore(lane, server).await,
        Fault::Damage => logs::damage(lane, server).await,
        Fault::Second => second(lane, server).await,
        Fault::Unfollow => {
            let fault = "collection taken out of the configuration, and put back";
            reconfigured(lane, server, fault, Setting::Without(NOT_FOLLOWED)).await
        }
        Fault::Rules => {
            let (fault, setting) = match lane.rng.random_bool(0.5) {
                true => ("another field hidden, and shown again", Setting::TextHidden),
                false => ("channels taken away, and given back", Setting::ItemsForOwners),
            };
            reconfigured(lane, server, fault, setting).await
        }
        Fault::View => view(lane, server).await,
        Fault::ReadOnly => logs::read_only(lane, server).await,
    }
}

/// SIGTERM, and the exit code that the contract promises.
async fn end(lane: &Lane, server: &mut ServerPart) -> Result<()> {
    let has_log = server.site.has_log();
    let status = server.stop().await?;
    let excused = |code| !has_log && is_sources_fault(code);
    if status.is_some_and(|status| !status.success() && !excused(status.code())) {
        let text = format!("{} ended with {status:?}", server.site.name);
        lane.findings.broken(Kind::Stuck, text);
    }
    Ok(())
}

/// Two servers on one data folder: the second refuses to start, the first does not notice.
async fn second(lane: &mut Lane, server: &mut ServerPart) -> Result<()> {
    if !server.is_ready_within(UP_WITHIN).await {
        return Ok(());
    }
    let name = server.site.name;
    lane.findings.fault("second server on the same data folder", name);
    let (code, said) = server.second(SECOND_ENDS_WITHIN).await?;
    match code {
        Some(FAILED) if said.contains("is in use by another tidewire-server") => {}
        code if is_sources_fault(code) => {
            lane.findings.note("the second server did not reach the source");
        }
        _ => {
            let text = format!("a second server on {name}'s folder ended with {code:?}: {said}");
            lane.findings.broken(Kind::Different, text);
        }
    }
    Ok(())
}

/// One server's configuration is another one for a while; the other server's is not.
async fn reconfigured(
    lane: &mut Lane,
    server: &mut ServerPart,
    fault: &'static str,
    setting: Setting,
) -> Result<()> {
    lane.findings.fault(fault, server.site.name);
    for setting in [setting, Setting::Usual] {
        end(lane, server).await?;
        server.configure(setting)?;
        server.site.history.configured();
        server.start()?;
        if setting != Setting::Usual {
            server.is_ready_within(UP_WITHIN).await;
            lane.hold(0.0..10.0).await;
        }
    }
    Ok(())
}

/// Whether a server said, after so many bytes of its lines, that it began without the source.
fn served_meanwhile(server: &ServerPart, before: u64) -> Result<bool> {
    let said = server.site.said_after(before)?;
    Ok(String::from_utf8_lossy(&said).contains("what the log has is served meanwhile"))
}

/// How it ended, where it did; `None` too as soon as it serves what it has, for it would find the source later.
async fn refused(server: &mut ServerPart, before: u64) -> Result<Option<(ExitStatus, String)>> {
    let deadline = Instant::now() + REFUSED_WITHIN;
    loop {
        let ended = server.ends_within(REFUSED_LOOK_EVERY).await;
        if ended.is_some() || Instant::now() > deadline || served_meanwhile(server, before)? {
            return Ok(ended);
        }
    }
}

/// A configuration with a view in it is refused with the reason, and changes nothing.
async fn view(lane: &mut Lane, server: &mut ServerPart) -> Result<()> {
    let name = server.site.name;
    lane.findings.fault("a view to be followed, which is refused", name);
    end(lane, server).await?;
    server.configure(Setting::WithView)?;
    let before = std::fs::metadata(server.site.log())?.len();
    server.start()?;
    match refused(server, before).await? {
        Some((status, said))
            if status.code() == Some(BAD_CONFIGURATION) && said.contains("view") => {}
        Some((status, _)) if is_sources_fault(status.code()) => {
            lane.findings
                .note("the server with a view in its configuration did not reach the source");
        }
        // It could not ask what the name is, and follows nothing under it.
        None if served_meanwhile(server, before)? => end(lane, server).await?,
        ended => {
            let text = format!("{name} with a view in its configuration: {ended:?}");
            lane.findings.broken(Kind::Different, text);
            server.kill().await?;
        }
    }
    server.configure(Setting::Usual)?;
    server.start()
}

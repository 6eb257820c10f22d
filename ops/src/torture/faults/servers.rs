//! What happens to the servers.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use rand::RngExt;

use super::Lane;
use crate::torture::findings::Kind;
use crate::torture::stage::ServerPart;

/// Seconds between two faults.
const PAUSE: std::ops::Range<f64> = 3.0..10.0;

const ASKED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Stop,
    Freeze,
    LoseLog,
    /// None, but work beside all the others, which must find nothing.
    Scrub,
}

const FAULTS: [(u32, Fault); 5] = [
    (6, Fault::Kill),
    (3, Fault::Stop),
    (4, Fault::Freeze),
    (1, Fault::LoseLog),
    (4, Fault::Scrub),
];

pub(super) async fn run(mut lane: Lane, mut servers: Vec<ServerPart>) -> Result<Vec<ServerPart>> {
    while lane.pause(PAUSE).await {
        for server in &mut servers {
            if let Err(error) = server.must_run() {
                lane.findings.broken(Kind::Stuck, format!("{error:#}"));
                server.start()?;
            }
        }
        let index = lane.rng.random_range(0..servers.len());
        let fault = lane.pick(&FAULTS);
        inject(&mut lane, &mut servers[index], fault).await?;
    }
    for server in &mut servers {
        server.must_run()?;
    }
    Ok(servers)
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
            let status = server.stop().await?;
            if status.is_some_and(|status| !status.success()) {
                lane.findings.broken(Kind::Stuck, format!("{name} ended with {status:?}"));
            }
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
            // In one step: the one who reads along may still hold it, and put a file into it.
            let lost = server.site.dir.join(format!("lost-{}", lane.rng.random::<u32>()));
            std::fs::rename(server.site.data_dir(), &lost)?;
            let _ = std::fs::remove_dir_all(lost);
            lane.hold(0.0..3.0).await;
            server.start()
        }
    }
}

//! What happens to a client, and to its way to the servers.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use rand::RngExt;

use super::Lane;
use crate::torture::findings::Kind;
use crate::torture::stage::ClientPart;

/// Seconds between two faults.
const PAUSE: std::ops::Range<f64> = 2.0..9.0;
/// A token that expires while it is used.
const SHORT_TTL: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Stop,
    Freeze,
    Away,
    Cut,
    BlackHole,
    Refuse,
    NoUpgrades,
    Slow,
    OtherServer,
    Expire,
}

const FAULTS: [(u32, Fault); 11] = [
    (4, Fault::Kill),
    (1, Fault::Stop),
    (3, Fault::Freeze),
    (1, Fault::Away),
    (4, Fault::Cut),
    (2, Fault::BlackHole),
    (2, Fault::Refuse),
    (2, Fault::NoUpgrades),
    (2, Fault::Slow),
    (6, Fault::OtherServer),
    (2, Fault::Expire),
];

pub(super) async fn run(
    mut lane: Lane,
    mut client: ClientPart,
    servers: Vec<String>,
) -> Result<ClientPart> {
    while lane.pause(PAUSE).await {
        if let Err(error) = client.must_run() {
            lane.findings.broken(Kind::Stuck, format!("{error:#}"));
            client.start()?;
        }
        let fault = lane.pick(&FAULTS);
        inject(&mut lane, &mut client, &servers, fault).await?;
    }
    client.must_run()?;
    Ok(client)
}

async fn inject(
    lane: &mut Lane,
    client: &mut ClientPart,
    servers: &[String],
    fault: Fault,
) -> Result<()> {
    let name = client.site.name;
    let begin = |what: &'static str| lane.findings.fault(what, name);
    match fault {
        Fault::Kill => {
            begin("client killed with kill -9");
            client.kill().await?;
            lane.hold(0.0..2.0).await;
            client.start()
        }
        Fault::Stop => {
            begin("client ended with SIGTERM");
            let status = client.stop().await?;
            if status.is_some_and(|status| !status.success()) {
                lane.findings.broken(Kind::Stuck, format!("{name} ended with {status:?}"));
            }
            lane.hold(0.0..2.0).await;
            client.start()
        }
        Fault::Freeze => {
            begin("client frozen with SIGSTOP");
            client.signal(Signal::SIGSTOP)?;
            lane.hold(0.5..10.0).await;
            client.signal(Signal::SIGCONT)
        }
        Fault::Away => {
            // Beyond one server's retention.
            begin("client away for long");
            client.kill().await?;
            lane.pause(35.0..60.0).await;
            client.start()
        }
        Fault::Cut => {
            begin("network cut");
            client.proxy.cut();
            Ok(())
        }
        Fault::BlackHole => {
            begin("network swallows everything");
            client.proxy.black_hole(true);
            lane.hold(1.0..12.0).await;
            client.proxy.black_hole(false);
            Ok(())
        }
        Fault::Refuse => {
            begin("network refuses connections");
            client.proxy.refuse(true);
            lane.hold(0.5..8.0).await;
            client.proxy.refuse(false);
            Ok(())
        }
        Fault::NoUpgrades => {
            begin("push blocked by a proxy");
            client.proxy.block_upgrades(true);
            lane.hold(2.0..12.0).await;
            client.proxy.block_upgrades(false);
            Ok(())
        }
        Fault::Slow => {
            begin("network slow");
            client.proxy.delay(Duration::from_millis(lane.rng.random_range(20..400)));
            lane.hold(2.0..8.0).await;
            client.proxy.delay(Duration::ZERO);
            Ok(())
        }
        Fault::OtherServer => {
            begin("client goes to another server");
            client.proxy.turn_to(servers[lane.rng.random_range(0..servers.len())].clone());
            Ok(())
        }
        Fault::Expire => {
            begin("token expires");
            client.renew(SHORT_TTL)?;
            lane.hold(5.0..16.0).await;
            client.renew_for_good()
        }
    }
}

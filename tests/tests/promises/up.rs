//! `tidewire-ops up`: the whole stack from nothing, every row as it was written, and nothing left
//! running however it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tidewire_ops::process::{Guarded, Launch};
use tidewire_ops::temporary::Temporary;
use tidewire_tests::harness::{eventually, program};

const UP_WITHIN: Duration = Duration::from_secs(120);
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// A started `up` with a folder of its own.
struct Up {
    process: Guarded,
    dir: Temporary,
}

impl Up {
    fn start(args: &[&str]) -> Self {
        let dir = Temporary::new("up").expect("a folder");
        let process = Launch::new(program("tidewire-ops"), dir.path().join("output"))
            .args(["up", "--rate", "20", "--scale", "0.1", "--dir"])
            .arg(dir.path().join("up"))
            .args(args)
            .start()
            .expect("start it");
        Self { process, dir }
    }

    fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
    }

    async fn shows_changes(&self) {
        eventually(&format!("changes are shown:\n{}", self.output()), UP_WITHIN, || async {
            self.output().contains(" ms  ").then_some(())
        })
        .await;
    }

    /// Waits until no process has our folder in its command line.
    async fn leaves_nothing(&self) {
        let dir = self.dir.path();
        eventually("nothing is left running", GONE_WITHIN, || async {
            processes_that_name(dir).is_empty().then_some(())
        })
        .await;
    }
}

fn processes_that_name(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.to_str().expect("a plain path");
    let processes = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    let names = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(dir)
    };
    processes.filter(names).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn up_shows_every_write_in_the_replica_and_ends_by_itself() {
    let mut up = Up::start(&["--for", "4s"]);
    let status = up.process.wait(UP_WITHIN).await.expect("it ends");
    let output = up.output();
    assert!(status.success(), "{status}\n{output}");
    assert!(output.contains(", 0 wrong"), "{output}");
    assert!(output.contains("nothing is left running"), "{output}");
    up.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn up_stops_everything_when_asked_and_goes_on_from_there() {
    let mut up = Up::start(&[]);
    up.shows_changes().await;
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        up.process.signal(signal).expect("ask it to stop");
        let status = up.process.wait(GONE_WITHIN).await.expect("it stops");
        assert!(status.success(), "{status}\n{}", up.output());
        up.leaves_nothing().await;
        if signal == Signal::SIGINT {
            up.process = again(&up);
            eventually("it is up again", UP_WITHIN, || async {
                (up.output().matches("Try in another").count() == 2).then_some(())
            })
            .await;
        }
    }
    assert!(up.output().contains("is kept as it is"), "the data was there: {}", up.output());
}

fn again(up: &Up) -> Guarded {
    Launch::new(program("tidewire-ops"), up.dir.path().join("output"))
        .args(["up", "--scale", "0.1", "--dir"])
        .arg(up.dir.path().join("up"))
        .start()
        .expect("start it again")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_up_leaves_nothing_running() {
    let mut up = Up::start(&[]);
    up.shows_changes().await;
    up.process.kill().await.expect("kill it");
    up.leaves_nothing().await;
}

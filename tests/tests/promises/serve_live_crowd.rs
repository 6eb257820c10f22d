//! Many sockets at once: idle ones, ones that never read, ones that are sent large documents. What they
//! cost is bounded and the others do not notice (FAULTS rows 31, 48).

use std::time::{Duration, Instant};

use bson::rawdoc;
use tidewire_tests::harness::{Claims, SECRET, Socket, sign};

use crate::served::{Served, at};

fn token(sub: &str) -> String {
    sign(SECRET, &Claims::of(sub)).expect("a token")
}

/// Opens a socket and reads until it is complete.
async fn caught_up(served: &Served, sub: &str) -> Socket {
    let mut socket = Socket::open(&served.url, &token(sub), "0").await;
    while !socket.changes().await.1 {}
    socket
}

/// Resident memory of this process, server and clients, MB.
fn memory_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("of Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a VmRSS");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") / 1_024
}

/// Changes of bob's, one after the other: how long each took to be heard, sorted.
async fn delays(served: &mut Served, healthy: &mut Socket, from: u64) -> Vec<Duration> {
    let mut delays = Vec::new();
    for n in from..from + 100 {
        let number = i64::try_from(n).unwrap();
        served.put(at(n), "invoices", &rawdoc! { "_id": 100_000, "userId": "bob", "n": number });
        let began = Instant::now();
        served.commit(at(n));
        let (changes, _) = healthy.changes().await;
        delays.push(began.elapsed());
        assert_eq!(changes[0]["payload"]["n"], number);
    }
    delays.sort_unstable();
    delays
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_sockets_and_hundreds_that_never_read_cost_little_and_nobody_notices() {
    let mut served = Served::start().await;
    let text = "x".repeat(10_000);
    for id in 0..3_000 {
        let document = rawdoc! { "_id": id, "userId": "ada", "text": text.as_str() };
        served.put(at(1 + u64::try_from(id).unwrap()), "invoices", &document);
    }
    served.commit(at(4_000));
    let mut healthy = caught_up(&served, "bob").await;
    let alone = delays(&mut served, &mut healthy, 5_000).await;
    let before = memory_mb();
    let mut idle = Vec::new();
    for n in 0..1_000 {
        idle.push(caught_up(&served, &format!("user{n}")).await);
    }
    let mut stuck = Vec::new();
    for _ in 0..300 {
        // 30 MB wait for each; they take what fits into their buffers.
        stuck.push(Socket::open(&served.url, &token("ada"), "0").await);
    }
    // While they fill their buffers, everything runs at once; then they are stuck.
    delays(&mut served, &mut healthy, 6_000).await;
    let crowded = delays(&mut served, &mut healthy, 7_000).await;
    let grown = memory_mb().saturating_sub(before);
    // Both ends of the sockets are in it.
    assert!(grown < 200, "{grown} MB for 1,300 sockets");
    // The slowest say more of the machine that tests share; `bench` measures them.
    let (median, late) = (crowded[crowded.len() / 2], crowded[crowded.len() * 9 / 10]);
    let most = alone[alone.len() / 2] * 2 + Duration::from_millis(10);
    assert!(median <= most, "{:?} alone, {median:?} in the crowd", alone[alone.len() / 2]);
    assert!(late < Duration::from_secs(1), "{late:?} in the crowd");
    drop((idle, stuck));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_do_not_take_a_large_document_hold_one_of_it() {
    let mut served = Served::start().await;
    served.commit(at(1));
    let mut stuck = Vec::new();
    for _ in 0..40 {
        stuck.push(caught_up(&served, "ada").await);
    }
    let mut healthy = caught_up(&served, "bob").await;
    let text = "x".repeat(12_000_000);
    for n in 0..3 {
        let document = rawdoc! { "_id": n, "userId": "ada", "text": text.as_str() };
        served.put(at(10 + u64::try_from(n).unwrap()), "invoices", &document);
        served.commit(at(10 + u64::try_from(n).unwrap()));
    }
    drop(text);
    delays(&mut served, &mut healthy, 5_000).await;
    let held = memory_mb();
    // 40 copies would be 480 MB; the kernel's buffers are not in it.
    assert!(held < 350, "{held} MB");
    drop(stuck);
    let mut ada = caught_up(&served, "ada").await;
    served.put(at(6_000), "invoices", &rawdoc! { "_id": 9, "userId": "ada" });
    served.commit(at(6_000));
    assert_eq!(ada.changes().await.0.len(), 1);
}

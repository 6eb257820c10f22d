//! Many sockets at once: idle ones, ones that never read, ones that are sent large documents. What they
//! cost is bounded and the others do not notice (FAULTS rows 31, 48).

use std::time::Duration;

use bson::rawdoc;
use tidewire_tests::harness::{Claims, SECRET, Socket, eventually, sign, socket_request_as};

use crate::served::{Served, at};

const PATIENCE: Duration = Duration::from_secs(60);
/// Sockets of which nobody takes a frame, at most: the server has 24 MiB for frames of 128 KiB.
const STUCK_MAX: usize = 200;

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

/// A hundred changes of bob's, one after the other: each of his sockets hears each of them, and once.
async fn all_hear(served: &mut Served, healthy: &mut [Socket], from: u64) {
    for n in from..from + 100 {
        let number = i64::try_from(n).unwrap();
        served.put(at(n), "invoices", &rawdoc! { "_id": 100_000, "userId": "bob", "n": number });
        served.commit(at(n));
        for socket in &mut *healthy {
            let (changes, complete) = socket.changes().await;
            assert_eq!((changes.len(), complete), (1, true));
            assert_eq!(changes[0]["payload"]["n"], number);
        }
    }
}

/// Sockets that the server has open.
async fn open_sockets(served: &Served) -> usize {
    let metrics = served.http.get(format!("{}/metrics", served.admin_url)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let sockets = metrics.lines().find_map(|line| line.strip_prefix("tidewire_sockets "));
    sockets.expect("a gauge of sockets").parse().expect("a number")
}

// How much slower others make it is for `bench --only crowd` to measure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_sockets_and_as_many_that_never_read_cost_little_and_nobody_misses_a_change()
 {
    let mut served = Served::start().await;
    let text = "x".repeat(10_000);
    for id in 0..3_000 {
        let document = rawdoc! { "_id": id, "userId": "ada", "text": text.as_str() };
        served.put(at(1 + u64::try_from(id).unwrap()), "invoices", &document);
    }
    served.commit(at(4_000));
    let mut healthy = Vec::new();
    for _ in 0..5 {
        healthy.push(caught_up(&served, "bob").await);
    }
    all_hear(&mut served, &mut healthy, 5_000).await;
    let before = memory_mb();
    let mut idle = Vec::new();
    for n in 0..1_000 {
        idle.push(caught_up(&served, &format!("user{n}")).await);
    }
    let mut stuck = Vec::new();
    for _ in 0..1_000 {
        // 30 MB wait for each; they take what fits into their buffers.
        stuck.push(Socket::open(&served.url, &token("ada"), "0").await);
    }
    all_hear(&mut served, &mut healthy, 6_000).await;
    // Those who take nothing go as soon as others want the memory that their frames hold.
    let room = STUCK_MAX + idle.len() + healthy.len();
    // One after the other: a frame each, and a second in which it is not taken.
    eventually("only so many are stuck as there is memory for", PATIENCE * 3, || async {
        (open_sockets(&served).await <= room).then_some(())
    })
    .await;
    all_hear(&mut served, &mut healthy, 7_000).await;
    let grown = memory_mb().saturating_sub(before);
    // Both ends of the sockets are in it.
    assert!(grown < 200, "{grown} MB for 2,000 sockets");
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
    let mut healthy = [caught_up(&served, "bob").await];
    let text = "x".repeat(12_000_000);
    for n in 0..3 {
        let document = rawdoc! { "_id": n, "userId": "ada", "text": text.as_str() };
        served.put(at(10 + u64::try_from(n).unwrap()), "invoices", &document);
        served.commit(at(10 + u64::try_from(n).unwrap()));
    }
    drop(text);
    all_hear(&mut served, &mut healthy, 5_000).await;
    let held = memory_mb();
    // 40 copies would be 480 MB; the kernel's buffers are not in it.
    assert!(held < 350, "{held} MB");
    drop(stuck);
    let mut ada = caught_up(&served, "ada").await;
    served.put(at(6_000), "invoices", &rawdoc! { "_id": 9, "userId": "ada" });
    served.commit(at(6_000));
    assert_eq!(ada.changes().await.0.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_subject_has_a_thousand_sockets_and_no_more_and_others_have_theirs() {
    let mut served = Served::start().await;
    served.commit(at(1));
    let mut sockets = Vec::new();
    for _ in 0..1_000 {
        sockets.push(Socket::open(&served.url, &token("ada"), "0").await);
    }
    let one_more = async || {
        let request = socket_request_as(&served.url, &token("ada"));
        Socket::connect(request).await.expect("a socket")
    };
    let too_many = ("rate_limited".to_owned(), 4429);
    assert_eq!(one_more().await.refusal().await, too_many);
    caught_up(&served, "bob").await;
    assert_eq!(one_more().await.refusal().await, too_many);
    drop(sockets.pop());
    eventually("the place of one that went is free", PATIENCE, || async {
        let mut socket = one_more().await;
        socket.send(serde_json::json!({ "type": "hello", "since": "0" })).await;
        socket.next().await.ok().filter(|frame| frame["type"] == "welcome")
    })
    .await;
}

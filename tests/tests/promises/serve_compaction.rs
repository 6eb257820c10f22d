//! Retention passes readers in the middle of what they read (FAULTS 29): they are told so or read on to
//! the whole, and never miss a change.

use std::collections::BTreeMap;

use bson::rawdoc;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tidewire_tests::harness::{Claims, SECRET, Socket, seed, sign};

use crate::served::{Served, at, json};

/// Documents of a reader, by key: what it has, or should have.
type Seen = BTreeMap<String, i64>;

/// A log of ada's invoices, and what she should see of it.
struct World {
    served: Served,
    now: u64,
    wanted: Seen,
    /// Bytes of text in each.
    text: String,
}

impl World {
    async fn start(documents: i32, bytes: usize) -> Self {
        let served = Served::start().await;
        let mut world = Self { served, now: 0, wanted: Seen::new(), text: "x".repeat(bytes) };
        // What a log tells begins behind its first commit.
        world.commit();
        for id in 0..documents {
            world.put(id, "ada");
        }
        world.commit();
        world
    }

    fn put(&mut self, id: i32, user: &str) {
        self.now += 1;
        let n = i64::try_from(self.now).unwrap();
        let document = rawdoc! { "_id": id, "userId": user, "n": n, "text": self.text.as_str() };
        self.served.put(at(self.now), "invoices", &document);
        match user {
            "ada" => self.wanted.insert(format!("~{id}"), n),
            _ => self.wanted.remove(&format!("~{id}")),
        };
    }

    fn delete(&mut self, id: i32) {
        self.now += 1;
        self.served.delete(at(self.now), "invoices", &rawdoc! { "_id": id });
        self.wanted.remove(&format!("~{id}"));
    }

    fn commit(&mut self) {
        self.served.commit(at(self.now));
    }

    /// Drops what retention no longer keeps of everything before `now`.
    fn compact(&mut self, before: u64) {
        while self.served.writer.compact(at(before), 1_000).expect("compacted").more {}
    }
}

fn apply(seen: &mut Seen, changes: &[Value]) {
    for change in changes {
        let key = change["mongoId"].as_str().expect("a key").to_owned();
        match change["type"].as_str() {
            Some("upsert") => seen.insert(key, change["payload"]["n"].as_i64().expect("a number")),
            _ => seen.remove(&key),
        };
    }
}

fn ada() -> String {
    sign(SECRET, &Claims::of("ada")).expect("a token")
}

/// The socket's cursor is too old, and that is how it ends.
fn too_old() -> (String, u16) {
    ("resync_required".to_owned(), 4410)
}

#[tokio::test]
async fn a_slow_first_copy_beside_compaction_is_refused_or_becomes_the_whole() {
    let mut rng = StdRng::seed_from_u64(seed());
    let (mut refused, mut whole) = (0, 0);
    for _ in 0..40 {
        let mut world = World::start(60, 10).await;
        // Some go a long way before anything is compacted.
        let calm = rng.random_bool(0.5);
        let (mut since, mut seen) = ("0".to_owned(), Seen::new());
        for _ in 0..40 {
            let query = format!("/api/sync/pull?since={since}&limit=7");
            let answer = world.served.get_as("ada", &query).await;
            let status = answer.status();
            let page = json(answer).await;
            if status == 410 {
                assert_eq!(page["error"]["reason"], "cursor_too_old", "{page}");
                refused += 1;
                (since, seen) = ("0".to_owned(), Seen::new());
                continue;
            }
            assert_eq!(status, 200, "{page}");
            apply(&mut seen, page["changes"].as_array().expect("changes"));
            since = page["cursor"].as_str().expect("a cursor").to_owned();
            if page["complete"] == true && page["hasMore"] == false {
                assert_eq!(seen, world.wanted);
                whole += 1;
            }
            for _ in 0..rng.random_range(0..6) {
                let id = rng.random_range(0..70);
                match rng.random_range(0..4) {
                    0 => world.delete(id),
                    1 => world.put(id, "bob"),
                    _ => world.put(id, "ada"),
                }
            }
            world.commit();
            if rng.random_bool(if calm { 0.05 } else { 0.4 }) {
                let before = world.now + 1 - rng.random_range(0..20);
                world.compact(before);
            }
        }
    }
    println!("{refused} refused, {whole} whole");
    assert!(refused > 20 && whole > 20, "{refused} refused, {whole} whole");
}

#[tokio::test]
async fn a_socket_whose_cursor_is_too_old_is_told_at_its_hello() {
    let mut world = World::start(10, 10).await;
    let page = world.served.pull("ada", "since=0&limit=4").await;
    let copying = page["cursor"].as_str().expect("a cursor").to_owned();
    let complete = world.served.pull("ada", "since=0").await["cursor"].as_str().unwrap().to_owned();
    world.put(3, "ada");
    world.commit();
    let last = world.served.pull("ada", "since=0").await["cursor"].as_str().unwrap().to_owned();
    let now = world.now;
    world.compact(now + 1);
    for cursor in [&copying, &complete] {
        let mut socket = Socket::open(&world.served.url, &ada(), cursor).await;
        assert_eq!(socket.refusal().await, too_old());
    }
    // That of the trim point itself is not.
    let mut socket = Socket::open(&world.served.url, &ada(), &last).await;
    world.put(4, "ada");
    world.commit();
    assert_eq!(socket.changes().await.0.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_does_not_read_while_the_log_is_compacted_is_told_or_gets_the_whole() {
    let mut ends = BTreeMap::new();
    for (frames, passed) in [(0, false), (0, true), (3, false), (3, true), (12, true)] {
        // 30 MB: more than buffers hold.
        let mut world = World::start(3_000, 10_000).await;
        let filled = world.now;
        let mut socket = Socket::open(&world.served.url, &ada(), "0").await;
        let mut seen = Seen::new();
        for _ in 0..frames {
            apply(&mut seen, &socket.changes().await.0);
        }
        for id in (0..3_000).step_by(50) {
            match id % 3 {
                0 => world.put(id, "ada"),
                1 => world.put(id, "bob"),
                _ => world.delete(id),
            }
        }
        world.commit();
        let now = world.now;
        world.compact(if passed { now + 1 } else { filled / 2 });
        let end = loop {
            match socket.next().await {
                Ok(frame) if frame["type"] == "changes" => {
                    apply(&mut seen, frame["changes"].as_array().expect("changes"));
                    // What came after the copy's end may be told in a frame of its own.
                    if frame["complete"] == true && seen == world.wanted {
                        break "whole".to_owned();
                    }
                }
                Ok(frame) if frame["type"] == "keepalive" => {
                    assert_eq!(seen, world.wanted, "nothing more is coming");
                }
                Ok(frame) => {
                    assert_eq!(frame["error"]["reason"], "cursor_too_old", "{frame}");
                    let code = frame["error"]["code"].as_str().expect("an error").to_owned();
                    assert_eq!((code.clone(), socket.next().await), (too_old().0, Err(4410)));
                    break code;
                }
                Err(close) => panic!("closed with {close} and no word"),
            }
        };
        if !passed {
            assert_eq!(end, "whole", "after {frames} frames, with {} documents", seen.len());
        }
        *ends.entry(end).or_insert(0) += 1;
    }
    println!("{ends:?}");
    assert!(ends.contains_key("whole") && ends.contains_key("resync_required"), "{ends:?}");
}

//! What a socket is told is its token's alone, whatever moves and however tokens change, and it is told
//! in one chain across any cut (FAULTS rows 30, 38, 46).

use std::collections::BTreeMap;
use std::time::Duration;

use bson::rawdoc;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tidewire_tests::harness::{Claims, SECRET, Socket, seed, sign};

use crate::served::{Served, at, kinds};

/// By key: the owner and the number of the version that a replica holds.
type Replica = BTreeMap<String, (String, i64)>;

fn token(sub: &str, is_admin: bool) -> String {
    let claims = Claims::of(sub);
    sign(SECRET, &if is_admin { claims.role("admin") } else { claims }).expect("a token")
}

/// Applies changes as a replica would; every payload must be one that `sub` may see.
fn apply(changes: &[Value], sub: &str, is_admin: bool, replica: &mut Replica) {
    for change in changes {
        let text = change.to_string();
        assert!(!text.contains("HIDDEN"), "{sub} was sent an excluded field: {text}");
        if change["collection"] == "plans" {
            continue;
        }
        let key = change["mongoId"].as_str().unwrap().to_owned();
        let Some(payload) = change.get("payload") else {
            replica.remove(&key);
            // A delete tells the key, and nothing else of what it was.
            assert!(!text.contains("owner"), "{text}");
            continue;
        };
        let owner = payload["userId"].as_str().unwrap().to_owned();
        assert!(is_admin || owner == sub, "{sub} was sent a document of {owner}: {text}");
        let n = payload["n"].as_i64().unwrap();
        replica.insert(key, (owner, n));
    }
}

/// A random change: written, moved to another, or deleted; what the source then holds.
fn write(served: &mut Served, rng: &mut StdRng, n: u64, source: &mut Replica) {
    let position = at(2 * n);
    let id: i32 = rng.random_range(0..60);
    let key = format!("~{id}");
    if rng.random_bool(0.2) {
        served.delete(position, "invoices", &rawdoc! { "_id": id });
        source.remove(&key);
    } else {
        let owner = ["ada", "bob", "cem"][rng.random_range(0..3)];
        let n = i64::try_from(n).unwrap();
        let document = rawdoc! {
            "_id": id, "userId": owner, "n": n, "owner": owner, "secret": "HIDDEN",
            "inner": { "secret": "HIDDEN", "open": n }, "list": [{ "inner": { "secret": n } }],
        };
        served.put(position, "invoices", &document);
        source.insert(key, (owner.to_owned(), n));
    }
    served.commit(position);
}

fn of(source: &Replica, sub: &str, is_admin: bool) -> Replica {
    let seen = |(_, (owner, _)): &(&String, &(String, i64))| is_admin || owner == sub;
    source.iter().filter(seen).map(|(key, held)| (key.clone(), held.clone())).collect()
}

/// Reads on until a complete frame through `position`.
async fn follow(
    socket: &mut Socket,
    through: &str,
    sub: &str,
    is_admin: bool,
    replica: &mut Replica,
) {
    while socket.through.as_deref().is_none_or(|told| told < through) {
        let frame = socket.frame().await;
        if frame["type"] == "changes" {
            apply(frame["changes"].as_array().unwrap(), sub, is_admin, replica);
        }
    }
}

#[tokio::test]
async fn nobody_is_sent_a_byte_of_what_is_not_theirs_by_push_or_pull() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut served = Served::start().await;
    let mut source = Replica::new();
    let readers = [("ada", false), ("bob", false), ("cem", false), ("eve", false), ("ada", true)];
    for n in 1..100 {
        write(&mut served, &mut rng, n, &mut source);
    }
    let mut sockets = Vec::new();
    for (sub, is_admin) in readers {
        let socket = Socket::open(&served.url, &token(sub, is_admin), "0").await;
        sockets.push((socket, Replica::new(), "0".to_owned(), Replica::new()));
    }
    for n in 100..400 {
        write(&mut served, &mut rng, n, &mut source);
        if n % 60 != 0 {
            continue;
        }
        // Something for everybody, so that every socket has a last frame to wait for.
        served.put(at(2 * n + 1), "plans", &rawdoc! { "_id": 1, "n": i64::try_from(n).unwrap() });
        served.commit(at(2 * n + 1));
        let through = at(2 * n + 1).to_string();
        for ((sub, is_admin), reader) in readers.into_iter().zip(&mut sockets) {
            let (socket, pushed, since, pulled) = reader;
            follow(socket, &through, sub, is_admin, pushed).await;
            assert_eq!(*pushed, of(&source, sub, is_admin), "{sub} by push, seed {seed}");
            loop {
                let path = format!("/api/sync/pull?since={since}&limit=40");
                let answer = served.get_with(&token(sub, is_admin), &path).await;
                let page = crate::served::json(answer).await;
                apply(page["changes"].as_array().unwrap(), sub, is_admin, pulled);
                *since = page["cursor"].as_str().unwrap().to_owned();
                if page["hasMore"] == false {
                    break;
                }
            }
            assert_eq!(*pulled, of(&source, sub, is_admin), "{sub} by pull, seed {seed}");
        }
    }
}

#[tokio::test]
async fn what_a_new_token_gains_and_loses_is_told_in_the_same_chain_however_much_it_is() {
    let mut served = Served::start().await;
    let text = "x".repeat(1_000);
    for id in 0..2_000 {
        let document = rawdoc! { "_id": id, "userId": "bob", "n": 1_i64, "text": text.as_str() };
        served.put(at(1 + u64::try_from(id).unwrap()), "invoices", &document);
    }
    served.put(at(2_500), "invoices", &rawdoc! { "_id": -1, "userId": "ada", "n": 1_i64 });
    served.commit(at(2_500));
    let mut socket = Socket::open(&served.url, &token("ada", false), "0").await;
    let mut replica = Replica::new();
    let mut complete = false;
    for (is_admin, count) in [(false, 1), (true, 2_001), (false, 1), (true, 2_001)] {
        if replica.len() != count || !complete {
            if complete {
                let token = token("ada", is_admin);
                socket.send(json!({ "type": "auth", "token": token })).await;
            }
            // The chain is checked by the socket, frame by frame.
            loop {
                let (changes, done) = socket.changes().await;
                apply(&changes, "ada", is_admin, &mut replica);
                complete = done;
                if done {
                    break;
                }
            }
        }
        assert_eq!(replica.len(), count);
    }
    // And what comes then is told as ever.
    served.put(at(2_600), "invoices", &rawdoc! { "_id": 5_000, "userId": "bob", "n": 2_i64 });
    served.commit(at(2_600));
    let (changes, _) = socket.changes().await;
    assert_eq!(changes.len(), 1);
}

#[tokio::test]
async fn a_channel_without_documents_that_is_lost_and_gained_again_hides_nothing_that_came_meanwhile()
 {
    let mut served = Served::start().await;
    served.put(at(1), "plans", &rawdoc! { "_id": 1 });
    served.commit(at(1));
    let mut socket = Socket::open(&served.url, &token("ada", true), "0").await;
    assert_eq!(kinds(&socket.changes().await.0), [("upsert", "~1")]);
    socket.send(json!({ "type": "auth", "token": token("ada", false) })).await;
    socket.heard().await;
    // Not for her now; and then something that is.
    served.put(at(2), "invoices", &rawdoc! { "_id": 2, "userId": "bob" });
    served.commit(at(2));
    served.put(at(3), "plans", &rawdoc! { "_id": 3 });
    served.commit(at(3));
    assert_eq!(kinds(&socket.changes().await.0), [("upsert", "~3")]);
    socket.send(json!({ "type": "auth", "token": token("ada", true) })).await;
    assert_eq!(kinds(&socket.changes().await.0), [("upsert", "~2")]);
}

#[tokio::test]
async fn a_cursor_says_a_channel_that_was_gained_without_documents() {
    let mut served = Served::start().await;
    served.put(at(1), "invoices", &rawdoc! { "_id": 1, "userId": "ada" });
    served.commit(at(1));
    let mut socket = Socket::open(&served.url, &token("ada", false), "0").await;
    socket.changes().await;
    let claims = Claims::of("ada").role("auditor");
    let auditor = sign(SECRET, &claims).expect("a token");
    socket.send(json!({ "type": "auth", "token": auditor })).await;
    socket.heard().await;
    served.put(at(2), "invoices", &rawdoc! { "_id": 2, "userId": "ada" });
    served.commit(at(2));
    socket.changes().await;
    let cursor = socket.cursor.as_deref().unwrap();
    let path = format!("/api/sync/digest?collection=invoices&at={cursor}");
    let answer = served.get_with(&auditor, &path).await;
    assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
}

#[tokio::test]
async fn a_token_that_loses_access_in_the_middle_of_a_catch_up_is_told_no_more_of_it() {
    let mut served = Served::start().await;
    let text = "x".repeat(10_000);
    for id in 0..3_000 {
        let document = rawdoc! { "_id": id, "userId": "bob", "n": 1_i64, "text": text.as_str() };
        served.put(at(1 + u64::try_from(id).unwrap()), "invoices", &document);
    }
    served.commit(at(4_000));
    let mut socket = Socket::open(&served.url, &token("ada", true), "0").await;
    let mut replica = Replica::new();
    let (changes, _) = socket.changes().await;
    apply(&changes, "ada", true, &mut replica);
    socket.send(json!({ "type": "auth", "token": token("ada", false) })).await;
    let mut upserts = 0;
    loop {
        let (changes, complete) = socket.changes().await;
        upserts += changes.iter().filter(|change| change["type"] == "upsert").count();
        apply(&changes, "ada", true, &mut replica);
        if complete {
            break;
        }
    }
    assert_eq!(replica, Replica::new(), "what it was told is taken back");
    assert!(upserts < 2_500, "{upserts} of 3,000 were told after it had lost them");
}

#[tokio::test]
async fn a_token_renewed_in_the_middle_of_a_catch_up_does_not_end_with_the_old_one() {
    let mut served = Served::start().await;
    let text = "x".repeat(10_000);
    for id in 0..3_000 {
        let document = rawdoc! { "_id": id, "userId": "ada", "n": 1_i64, "text": text.as_str() };
        served.put(at(1 + u64::try_from(id).unwrap()), "invoices", &document);
    }
    served.commit(at(4_000));
    let claims = Claims { ttl: Duration::from_secs(1), ..Claims::of("ada") };
    let short = sign(SECRET, &claims).expect("a token");
    let mut socket = Socket::open(&served.url, &short, "0").await;
    let (mut count, began) = (socket.changes().await.0.len(), std::time::Instant::now());
    socket.send(json!({ "type": "auth", "token": token("ada", false) })).await;
    // Slowly, until the first token, its leeway included, is long over.
    while began.elapsed() < Duration::from_secs(13) {
        count += socket.changes().await.0.len();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    loop {
        let (changes, complete) = socket.changes().await;
        count += changes.len();
        if complete {
            break;
        }
    }
    assert_eq!(count, 3_000);
}

#[tokio::test]
async fn the_seam_between_catch_up_and_live_has_no_gap_and_no_doubles_wherever_it_is_cut() {
    let seed = seed();
    let mut served = Served::start().await;
    let url = served.url.clone();
    served.put(at(1), "plans", &rawdoc! { "_id": 0 });
    served.commit(at(1));
    let reader = |number: u64| {
        let url = url.clone();
        async move {
            let mut rng = StdRng::seed_from_u64(seed ^ number);
            let (mut told, mut since, mut cuts) = (Vec::new(), "0".to_owned(), 0);
            let mut last = String::new();
            loop {
                let mut socket = Socket::open(&url, &token("ada", false), &since).await;
                if !last.is_empty() {
                    // The chain goes on across sockets.
                    socket.through = Some(last.clone());
                }
                cuts += 1;
                for _ in 0..rng.random_range(1..20) {
                    let frame = socket.frame().await;
                    for change in frame["changes"].as_array().into_iter().flatten() {
                        told.push(change["payload"]["n"].as_i64().unwrap_or(-1));
                    }
                    if let Some(cursor) = frame["cursor"].as_str() {
                        since = cursor.to_owned();
                        last = frame["through"].as_str().unwrap().to_owned();
                    }
                    if told.last() == Some(&3_000) {
                        return (told, cuts);
                    }
                }
            }
        }
    };
    let readers: Vec<_> = (0..6).map(|number| tokio::spawn(reader(number))).collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut n = 2_u64;
    while n <= 3_000 {
        for _ in 0..rng.random_range(1..8) {
            // Each its own document, so that a fill leaves none out.
            let number = i64::try_from(n).unwrap();
            let user = if rng.random_bool(0.3) { "bob" } else { "ada" };
            let user = if n >= 2_990 { "ada" } else { user };
            let document = rawdoc! { "_id": number, "userId": user, "n": number };
            served.put(at(n), "invoices", &document);
            n += 1;
            if n > 3_000 {
                break;
            }
        }
        served.commit(at(n - 1));
        if rng.random_bool(0.3) {
            tokio::time::sleep(Duration::from_micros(rng.random_range(1..3_000))).await;
        }
    }
    let wanted: Vec<i64> = {
        let (changes, _) = served.pull_all("ada", "0", "limit=1000&collections=invoices").await;
        changes.iter().map(|change| change["payload"]["n"].as_i64().unwrap()).collect()
    };
    let mut cuts = 0;
    for reader in readers {
        let (told, its) = reader.await.expect("a reader");
        // The plan is no invoice: its n is missing.
        let told: Vec<i64> = told.into_iter().filter(|n| *n >= 0).collect();
        assert_eq!(told, wanted, "seed {seed}");
        cuts += its;
    }
    assert!(cuts > 60, "{cuts} cuts");
}

#[tokio::test]
async fn draining_spreads_those_who_come_again() {
    let mut served = Served::start().await;
    served.commit(at(1));
    let mut sockets = Vec::new();
    for n in 0..60 {
        sockets.push(Socket::open(&served.url, &token(&format!("user{n}"), false), "0").await);
    }
    served.draining.cancel();
    let mut seconds = BTreeMap::<u64, usize>::new();
    for socket in &mut sockets {
        let frame = error_of(socket).await;
        *seconds.entry(frame["error"]["retryAfter"].as_u64().unwrap()).or_default() += 1;
    }
    assert!(seconds.len() >= 4 && seconds.values().all(|count| *count < 40), "{seconds:?}");
}

async fn error_of(socket: &mut Socket) -> Value {
    loop {
        let frame = socket.frame().await;
        if frame["type"] == "error" {
            return frame;
        }
    }
}

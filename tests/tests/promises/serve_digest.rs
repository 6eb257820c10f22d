//! Digests and ranges: what they say of a collection is what a pull gave, at the reader's own cursor and
//! cut to its token; where they differ is found and told again, and nothing else.

use std::collections::BTreeMap;

use bson::rawdoc;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tidewire_protocol::digest::{CollectionDigest, DigestPage};
use tidewire_tests::harness::{Claims, SECRET, seed, sign};

use crate::served::{Served, at, json};

/// By key: the payload's text, as a replica would keep it.
type Replica = BTreeMap<String, String>;

/// A replica of ada's invoices, and its cursor.
async fn replica(served: &Served) -> (Replica, String) {
    let mut replica = Replica::new();
    let mut since = "0".to_owned();
    loop {
        let path = format!("/api/sync/pull?collections=invoices&since={since}");
        let text = served.get_as("ada", &path).await.text().await.unwrap();
        let page: tidewire_protocol::PullPage<'_> = serde_json::from_str(&text).unwrap();
        for change in page.changes {
            let key = change.mongo_id.into_owned();
            match change.payload {
                Some(payload) => replica.insert(key, payload.get().to_owned()),
                None => replica.remove(&key),
            };
        }
        since = page.cursor.into_owned();
        if page.complete && !page.has_more {
            return (replica, since);
        }
    }
}

fn digest_of(replica: &Replica, depth: u8) -> CollectionDigest {
    let mut digest = CollectionDigest::new(depth);
    for (key, payload) in replica {
        digest.add(key.as_bytes(), payload.as_bytes());
    }
    digest
}

/// The server's digest of ada's invoices, and of how many parts.
async fn digest_by_server(served: &Served, cursor: &str, depth: u8) -> (CollectionDigest, usize) {
    let mut digest = CollectionDigest::new(depth);
    let mut from = String::new();
    for parts in 1.. {
        let path = format!("collection=invoices&at={cursor}&depth={depth}{from}");
        let text = served.get_as("ada", &format!("/api/sync/digest?{path}")).await.text().await;
        let text = text.unwrap();
        let page: DigestPage<'_> =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(digest.add_part(page.depth, &page.ranges));
        let Some(next) = page.next else { return (digest, parts) };
        from = format!("&from={next}");
    }
    unreachable!()
}

/// Everything that the server tells of these ranges, and in how many parts.
async fn ranges_by_server(
    served: &Served,
    query: &str,
    ranges: &[u32],
) -> (BTreeMap<String, Value>, usize) {
    let mut told = BTreeMap::new();
    let mut from = String::new();
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    let ranges = ranges.join(",");
    for parts in 1.. {
        let path = format!("/api/sync/range?collection=invoices&ranges={ranges}&{query}{from}");
        let page = json(served.get_as("ada", &path).await).await;
        for change in page["changes"].as_array().unwrap_or_else(|| panic!("{page}")) {
            let key = change["mongoId"].as_str().unwrap().to_owned();
            assert_eq!(told.insert(key, change["payload"].clone()), None, "told twice");
        }
        let Some(next) = page["next"].as_str() else { return (told, parts) };
        from = format!("&from={next}");
    }
    unreachable!()
}

/// Random changes of invoices of ada's, bob's and nobody's, some moving between them.
fn write(served: &mut Served, rng: &mut StdRng, from: u64, count: u64) {
    for n in from..from + count {
        let id: i32 = rng.random_range(0..400);
        if rng.random_bool(0.2) {
            served.delete(at(n), "invoices", &rawdoc! { "_id": id });
            continue;
        }
        let user = ["ada", "bob", ""][rng.random_range(0..3)];
        let text = "é\u{1}\"".repeat(rng.random_range(0..5));
        let n = i64::try_from(n).unwrap();
        let document = rawdoc! { "_id": id, "userId": user, "n": n, "secret": n, "text": text };
        served.put(at(u64::try_from(n).unwrap()), "invoices", &document);
    }
    served.commit(at(from + count));
}

#[tokio::test]
async fn a_digest_is_of_the_replica_at_its_cursor_whatever_came_after() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut served = Served::start().await;
    write(&mut served, &mut rng, 1, 1_000);
    let (first, cursor) = replica(&served).await;
    write(&mut served, &mut rng, 1_002, 1_000);
    let (second, later) = replica(&served).await;
    assert_ne!(first, second);
    for depth in [0, 3, 12] {
        for (replica, cursor) in [(&first, &cursor), (&second, &later)] {
            let (digest, _) = digest_by_server(&served, cursor, depth).await;
            assert_eq!(digest, digest_of(replica, depth), "seed {seed}, depth {depth}");
        }
    }
    // The hidden field is in no digest: a change of it alone changes nothing.
    let (total, _) = digest_by_server(&served, &later, 0).await;
    assert_eq!(total.total().count, second.len() as u64);
}

#[tokio::test]
async fn what_differs_is_found_and_told_again_and_nothing_else() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut served = Served::start().await;
    write(&mut served, &mut rng, 1, 2_000);
    let (whole, cursor) = replica(&served).await;
    let mut damaged = whole.clone();
    let keys: Vec<String> = damaged.keys().cloned().collect();
    let pick = |n: usize| keys[n * keys.len() / 4].clone();
    damaged.remove(&pick(0));
    damaged.insert(pick(1), "{}".to_owned());
    damaged.insert("~surplus".to_owned(), "{}".to_owned());
    let (digest, _) = digest_by_server(&served, &cursor, 6).await;
    let differing = digest_of(&damaged, 6).differing(&digest);
    assert!((1..=3).contains(&differing.len()), "{differing:?}");
    let in_them =
        |key: &str| differing.contains(&tidewire_protocol::digest::range_of(key.as_bytes(), 6));
    let wanted: BTreeMap<String, Value> = whole
        .iter()
        .filter(|(key, _)| in_them(key))
        .map(|(key, payload)| (key.clone(), serde_json::from_str(payload).unwrap()))
        .collect();
    let query = format!("at={cursor}&depth=6");
    let (told, parts) = ranges_by_server(&served, &query, &differing).await;
    assert_eq!((told, parts), (wanted.clone(), 1), "seed {seed}");
    let (told, parts) = ranges_by_server(&served, &format!("{query}&limit=2"), &differing).await;
    assert_eq!(told, wanted, "seed {seed}");
    assert!(parts >= wanted.len() / 2, "{parts} parts");
}

#[tokio::test]
async fn a_digest_is_for_the_token_that_read_and_for_nobody_else() {
    let mut served = Served::start().await;
    served.put(at(1), "invoices", &rawdoc! { "_id": 1, "userId": "bob" });
    served.put(at(2), "plans", &rawdoc! { "_id": 1 });
    served.commit(at(2));
    let (nothing, cursor) = replica(&served).await;
    assert_eq!(nothing, Replica::new());
    let (digest, _) = digest_by_server(&served, &cursor, 4).await;
    assert_eq!(digest, CollectionDigest::new(4), "bob's document shows in ada's digest");
    let all: Vec<u32> = (0..16).collect();
    let (told, _) = ranges_by_server(&served, &format!("at={cursor}&depth=4"), &all).await;
    assert_eq!(told, BTreeMap::new());
    let whole = served.pull("ada", "since=0").await["cursor"].as_str().unwrap().to_owned();
    let admin = sign(SECRET, &Claims::of("ada").role("admin")).expect("a token");
    let ada = sign(SECRET, &Claims::of("ada")).expect("a token");
    for (token, query, status, code) in [
        (&admin, format!("collection=invoices&at={whole}"), 400, "invalid_since"),
        (&ada, format!("collection=plans&at={cursor}"), 400, "invalid_since"),
        (&ada, format!("collection=vault&at={whole}"), 403, "forbidden"),
        (&ada, format!("collection=nobody&at={whole}"), 400, "unknown_collection"),
        (&ada, format!("at={whole}"), 400, "unknown_collection"),
        (&ada, "collection=plans".to_owned(), 400, "invalid_since"),
        (&ada, "collection=plans&at=0".to_owned(), 400, "invalid_since"),
        (&ada, format!("collection=plans&at={whole}&depth=13"), 400, "bad_request"),
        (&ada, format!("collection=plans&at={whole}&depth[$gt]=1"), 400, "bad_request"),
        (&ada, format!("collection=plans&at={whole}&from=x"), 400, "bad_request"),
        (&ada, format!("collection=plans&at={whole}&from=0000000000000007.1"), 400, "bad_request"),
    ] {
        for path in ["digest?", "range?ranges=0&"] {
            let answer = served.get_with(token, &format!("/api/sync/{path}{query}")).await;
            assert_eq!(answer.status(), status, "{path}{query}");
            assert_eq!(json(answer).await["error"]["code"], code, "{path}{query}");
        }
    }
    for ranges in ["", "&ranges=256", "&ranges=1,x", "&ranges[]=1", "&ranges=1&limit=0"] {
        let path = format!("/api/sync/range?collection=plans&at={whole}{ranges}");
        assert_eq!(served.get_with(&ada, &path).await.status(), 400, "{ranges}");
    }
    // Inside a first copy there is no state to compare with.
    served.put(at(3), "plans", &rawdoc! { "_id": 2 });
    served.commit(at(3));
    let inside = served.pull("ada", "since=0&limit=1").await["cursor"].as_str().unwrap().to_owned();
    let path = format!("/api/sync/digest?collection=plans&at={inside}");
    assert_eq!(served.get_with(&ada, &path).await.status(), 400);
}

#[tokio::test]
async fn a_collection_too_large_for_one_part_comes_in_parts_that_add_up() {
    let mut served = Served::start().await;
    // More changes than one part looks at.
    for n in 0..101_000_u32 {
        let at = at(1 + u64::from(n / 10_000));
        let document = rawdoc! { "_id": i32::try_from(n).unwrap(), "userId": "ada" };
        let position = tidewire_protocol::Position::new(at.cluster_time, n % 10_000);
        served.put(position, "invoices", &document);
    }
    served.commit(at(20));
    let (replica, cursor) = replica(&served).await;
    assert_eq!(replica.len(), 101_000);
    let (digest, parts) = digest_by_server(&served, &cursor, 12).await;
    assert_eq!(parts, 2);
    assert_eq!(digest, digest_of(&replica, 12));
}

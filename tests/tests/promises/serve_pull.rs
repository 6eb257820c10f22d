//! What a pull tells: everything that a token may see, once, in order, and nothing else.

use std::time::{Duration, Instant};

use bson::rawdoc;
use serde_json::json;
use tidewire_server::log::CopyState;
use tidewire_tests::harness::{Claims, SECRET, sign};

use crate::served::{Served, at, kinds};

#[tokio::test]
async fn a_first_page_holds_each_live_document_once_and_the_next_what_came_since() {
    let mut served = Served::start().await;
    served.put(at(1), "plans", &rawdoc! {"_id": "a", "n": 1});
    served.put(at(2), "plans", &rawdoc! {"_id": "b", "n": 1});
    served.put(at(3), "plans", &rawdoc! {"_id": "a", "n": 2});
    served.delete(at(4), "plans", &rawdoc! {"_id": "b"});
    served.commit(at(4));
    let page = served.pull("ann", "").await;
    assert_eq!(kinds(page["changes"].as_array().unwrap()), [("upsert", "a")]);
    let expected = json!({
        "type": "upsert", "collection": "plans", "mongoId": "a", "payload": {"_id": "a", "n": 2},
        "updatedAt": page["changes"][0]["updatedAt"], "position": at(3).to_string(),
    });
    assert_eq!(page["changes"][0], expected);
    assert_eq!(
        (&page["count"], &page["hasMore"], &page["complete"]),
        (&json!(1), &json!(false), &json!(true))
    );
    assert!(page["checkpoint"].as_str() >= Some(at(4).to_string().as_str()));
    served.put(at(5), "plans", &rawdoc! {"_id": "c"});
    served.delete(at(6), "plans", &rawdoc! {"_id": "a"});
    served.commit(at(6));
    let next = served.pull("ann", &format!("since={}", page["cursor"].as_str().unwrap())).await;
    assert_eq!(kinds(next["changes"].as_array().unwrap()), [("upsert", "c"), ("delete", "a")]);
    assert!(next["changes"][1].get("payload").is_none(), "{next}");
    let again = served.pull("ann", &format!("since={}", page["cursor"].as_str().unwrap())).await;
    assert_eq!(again["changes"], next["changes"], "the same cursor tells the same again");
}

#[tokio::test]
async fn a_page_ends_at_its_limit_and_the_cursor_goes_on() {
    let mut served = Served::start().await;
    for n in 0..25_u64 {
        served.put(at(n), "plans", &rawdoc! {"_id": format!("p{n:02}"), "n": n as i64});
    }
    served.commit(at(25));
    for limit in [1, 7, 24, 25, 26, 10_000] {
        let (changes, last) = served.pull_all("ann", "0", &format!("limit={limit}")).await;
        let ids: Vec<_> =
            changes.iter().map(|c| c["mongoId"].as_str().unwrap().to_owned()).collect();
        let expected: Vec<_> = (0..25).map(|n| format!("p{n:02}")).collect();
        assert_eq!(ids, expected, "limit {limit}");
        assert_eq!(last["complete"], true);
    }
}

#[tokio::test]
async fn a_page_ends_before_four_mebibytes_but_holds_at_least_one_change() {
    const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
    let mut served = Served::start().await;
    for (n, size) in [1_500_000, 1_500_000, 1_500_000, 6_000_000, 10].into_iter().enumerate() {
        let text = "x".repeat(size);
        served.put(at(n as u64), "plans", &rawdoc! {"_id": n as i32, "text": text});
    }
    served.commit(at(9));
    let mut since = "0".to_owned();
    let (mut counts, mut progress) = (Vec::new(), Vec::new());
    loop {
        let answer = served.get_as("ann", &format!("/api/sync/pull?since={since}")).await;
        let text = answer.text().await.unwrap();
        let page: serde_json::Value = serde_json::from_str(&text).unwrap();
        let count = page["count"].as_u64().unwrap();
        assert!(text.len() < PAGE_BYTES_MAX + 2_000 || count == 1, "{count}: {}", text.len());
        counts.push(count);
        progress.extend(page["progress"].as_f64());
        since = page["cursor"].as_str().unwrap().to_owned();
        if page["hasMore"] == false {
            break;
        }
    }
    assert_eq!(counts, [2, 1, 1, 1]);
    assert_eq!(progress, [0.4, 0.6, 0.8], "all but the last say how far the copy is");
}

#[tokio::test]
async fn a_document_that_leaves_a_channel_is_a_delete_to_those_who_lose_it() {
    let mut served = Served::start().await;
    served.put(at(1), "invoices", &rawdoc! {"_id": 1, "userId": "ann", "amount": 5});
    served.commit(at(1));
    let ann = served.pull("ann", "").await;
    let bob = served.pull("bob", "").await;
    assert_eq!(kinds(ann["changes"].as_array().unwrap()), [("upsert", "~1")]);
    assert_eq!(bob["count"], 0);
    served.put(at(2), "invoices", &rawdoc! {"_id": 1, "userId": "bob", "amount": 6});
    served.commit(at(2));
    let since = |page: &serde_json::Value| format!("since={}", page["cursor"].as_str().unwrap());
    let ann = served.pull("ann", &since(&ann)).await;
    let bob = served.pull("bob", &since(&bob)).await;
    assert_eq!(kinds(ann["changes"].as_array().unwrap()), [("delete", "~1")]);
    assert!(!ann.to_string().contains("bob"), "{ann}");
    assert_eq!(bob["changes"][0]["payload"]["amount"], 6);
}

#[tokio::test]
async fn what_the_rules_hide_never_leaves_in_any_format() {
    let mut served = Served::start().await;
    let document = rawdoc! {
        "_id": 1, "userId": "ann", "secret": "canary", "inner": {"secret": "canary", "kept": 1_i64},
    };
    served.put(at(1), "invoices", &document);
    served.put(at(2), "vault", &rawdoc! {"_id": 1, "userId": "ann", "text": "canary"});
    served.commit(at(2));
    let json = served.pull("ann", "format=json").await;
    assert_eq!(
        json["changes"][0]["payload"],
        json!({"_id": 1, "userId": "ann", "inner": {"kept": 1}})
    );
    let ejson = served.pull("ann", "format=ejson").await;
    let expected = json!({
        "_id": {"$numberInt": "1"}, "userId": "ann", "inner": {"kept": {"$numberLong": "1"}},
    });
    assert_eq!(ejson["changes"][0]["payload"], expected);
    assert!(!format!("{json}{ejson}").contains("canary"));
}

#[tokio::test]
async fn collections_narrow_what_is_told() {
    let mut served = Served::start().await;
    served.put(at(1), "invoices", &rawdoc! {"_id": 1, "userId": "ann"});
    served.put(at(2), "plans", &rawdoc! {"_id": 2});
    served.commit(at(2));
    for (query, expected) in [
        ("", 2),
        ("collections=plans", 1),
        ("collections=plans,invoices,plans", 2),
        ("collections=invoices,vault", 1),
    ] {
        assert_eq!(served.pull("ann", query).await["count"], expected, "{query}");
    }
}

#[tokio::test]
async fn a_time_tells_at_least_every_change_since_then() {
    let mut served = Served::start().await;
    served.commit(at(0));
    for n in 1..11_u64 {
        served.put(at(n * 60), "plans", &rawdoc! {"_id": n as i64});
    }
    served.commit(at(660));
    let all = served.pull("ann", "").await;
    let since = all["changes"][5]["updatedAt"].as_str().unwrap();
    let page = served.pull("ann", &format!("since={since}")).await;
    assert_eq!(page["count"], 5, "{page}");
    assert_eq!(page["changes"][0]["mongoId"], "~6");
    // A time that the log has not come to, by clocks that differ, is no mistake.
    let soon = std::time::SystemTime::now() + Duration::from_secs(60);
    let ms = soon.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let soon = tidewire_server::metrics::time_text(i64::try_from(ms).unwrap());
    let page = served.pull("ann", &format!("since={soon}")).await;
    assert_eq!((&page["count"], &page["complete"]), (&json!(0), &json!(true)));
    served.put(at(3_000), "plans", &rawdoc! {"_id": 99});
    served.commit(at(3_000));
    let next = served.pull("ann", &format!("since={}", page["cursor"].as_str().unwrap())).await;
    assert_eq!(next["changes"][0]["mongoId"], "~99");
}

#[tokio::test]
async fn a_long_poll_answers_as_soon_as_something_visible_comes() {
    let mut served = Served::start().await;
    served.put(at(1), "plans", &rawdoc! {"_id": 1});
    served.commit(at(1));
    let cursor = served.pull("ann", "").await["cursor"].as_str().unwrap().to_owned();
    let began = Instant::now();
    let url = format!("{}/api/sync/pull?wait=30&since={cursor}", served.url);
    let token = tidewire_tests::harness::sign(
        tidewire_tests::harness::SECRET,
        &tidewire_tests::harness::Claims::of("ann"),
    );
    let held = tokio::spawn(served.http.get(url).bearer_auth(token.unwrap()).send());
    // What ann may not see does not end her wait.
    for n in 2..20 {
        served.put(at(n), "invoices", &rawdoc! {"_id": 1, "userId": "bob", "n": n as i64});
        served.commit(at(n));
        tokio::task::yield_now().await;
    }
    served.put(at(20), "plans", &rawdoc! {"_id": 2});
    served.commit(at(20));
    let page = crate::served::json(held.await.unwrap().unwrap()).await;
    assert_eq!(kinds(page["changes"].as_array().unwrap()), [("upsert", "~2")]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_long_poll_with_nothing_to_tell_ends_in_time_and_its_cursor_has_moved() {
    let mut served = Served::start().await;
    served.put(at(1), "invoices", &rawdoc! {"_id": 1, "userId": "bob"});
    served.commit(at(1));
    let first = served.pull("ann", "").await;
    served.put(at(2), "invoices", &rawdoc! {"_id": 1, "userId": "bob", "n": 2});
    served.commit(at(2));
    let began = Instant::now();
    let query = format!("wait=1&since={}", first["cursor"].as_str().unwrap());
    let page = served.pull("ann", &query).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(page["count"], 0);
    assert_ne!(page["cursor"], first["cursor"], "an idle reader must not fall off the log");
}

async fn with_one_plan() -> Served {
    let mut served = Served::start().await;
    served.put(at(1), "plans", &rawdoc! {"_id": 1});
    served.commit(at(1));
    served
}

#[tokio::test]
async fn a_cursor_ahead_of_the_log_waits_for_it() {
    let (mut ahead, mut behind) = (with_one_plan().await, with_one_plan().await);
    ahead.put(at(2), "plans", &rawdoc! {"_id": 2});
    ahead.commit(at(2));
    let cursor = ahead.pull("ann", "").await["cursor"].as_str().unwrap().to_owned();
    behind.status.send_modify(|status| status.operation_time = at(3).cluster_time);
    let page = behind.pull("ann", &format!("since={cursor}")).await;
    assert_eq!((&page["count"], &page["cursor"]), (&json!(0), &json!(cursor)));
    behind.put(at(2), "plans", &rawdoc! {"_id": 2});
    behind.put(at(3), "plans", &rawdoc! {"_id": 3});
    behind.commit(at(3));
    let page = behind.pull("ann", &format!("since={cursor}")).await;
    assert_eq!(kinds(page["changes"].as_array().unwrap()), [("upsert", "~3")]);
}

/// What the source told last may be as old as its standstill, after which another server goes on at the present
/// before this one does. What nobody can have given out yet is of another source.
#[tokio::test]
async fn a_cursor_of_now_is_waited_for_after_a_standstill_and_one_of_tomorrow_is_refused() {
    let (mut ahead, behind) = (with_one_plan().await, with_one_plan().await);
    ahead.commit(at(2));
    let now = ahead.pull("ann", "").await["cursor"].as_str().unwrap().to_owned();
    let before = at(1).cluster_time - (100 << 32);
    behind.status.send_modify(|status| status.operation_time = before);
    let page = behind.pull("ann", &format!("since={now}")).await;
    assert_eq!((&page["count"], &page["cursor"]), (&json!(0), &json!(now)));
    ahead.commit(at(100_000));
    let tomorrow = ahead.pull("ann", "").await["cursor"].as_str().unwrap().to_owned();
    let answer = behind.get_as("ann", &format!("/api/sync/pull?since={tomorrow}")).await;
    assert_eq!(answer.status(), 410);
    assert_eq!(crate::served::json(answer).await["error"]["reason"], "foreign_log");
}

#[tokio::test]
async fn what_is_compressed_says_the_same() {
    let mut served = Served::start().await;
    for n in 0..200_u64 {
        served.put(at(n), "plans", &rawdoc! {"_id": n as i64, "text": "the same words again"});
    }
    served.commit(at(200));
    let plain = served.pull("ann", "").await;
    let raw = reqwest::Client::builder().no_gzip().no_zstd().build().unwrap();
    let token = tidewire_tests::harness::sign(
        tidewire_tests::harness::SECRET,
        &tidewire_tests::harness::Claims::of("ann"),
    )
    .unwrap();
    let mut plain_len = 0;
    for (accept, name, magic) in [
        ("identity", None, &b"{\"su"[..]),
        ("gzip", Some("gzip"), &[0x1f, 0x8b][..]),
        ("gzip, zstd;q=0.9", Some("gzip"), &[0x1f, 0x8b][..]),
        ("gzip, zstd", Some("zstd"), &[0x28, 0xb5, 0x2f, 0xfd][..]),
    ] {
        let url = format!("{}/api/sync/pull", served.url);
        let ask = raw.get(url).bearer_auth(&token).header("accept-encoding", accept);
        let answer = ask.send().await.unwrap();
        let got = answer.headers().get("content-encoding").map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(got.as_deref(), name, "{accept}");
        let bytes = answer.bytes().await.unwrap();
        assert!(bytes.starts_with(magic), "{accept}");
        plain_len = plain_len.max(bytes.len());
        assert!(name.is_none() || bytes.len() * 3 < plain_len, "{accept}: {}", bytes.len());
    }
    // reqwest asks for zstd and gzip by itself and undoes them.
    for accept in ["zstd", "gzip"] {
        let url = format!("{}/api/sync/pull", served.url);
        let client = match accept {
            "zstd" => reqwest::Client::builder().no_gzip(),
            _ => reqwest::Client::builder().no_zstd(),
        };
        let ask = client.build().unwrap().get(url).bearer_auth(&token);
        let page = crate::served::json(ask.send().await.unwrap()).await;
        assert_eq!(page["changes"], plain["changes"], "{accept}");
    }
}

#[tokio::test]
async fn draining_answers_what_is_held_and_ends_both_listeners() {
    let mut served = Served::start().await;
    served.put(at(1), "plans", &rawdoc! {"_id": 1});
    served.commit(at(1));
    let cursor = served.pull("ann", "").await["cursor"].as_str().unwrap().to_owned();
    let path = format!("/api/sync/pull?wait=60&since={cursor}");
    let held = served.get_as("ann", &path);
    let drain = async {
        // Held means that its connection is there; the drain must find it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        served.draining.cancel();
    };
    let began = Instant::now();
    let (answer, ()) = tokio::join!(held, drain);
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["connection"], "close");
    let page = crate::served::json(answer).await;
    assert_eq!(page["count"], 0);
    for task in served.tasks {
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("in time").unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_long_poll_tells_the_end_of_a_copy_that_found_no_difference_at_once() {
    let mut served = Served::start().await;
    let id = served.writer.collection("plans").unwrap();
    served.put(at(1), "plans", &rawdoc! {"_id": 1});
    let copying = |served: &mut Served, is_copying: bool, n| {
        let state = CopyState { finished: !is_copying, ..CopyState::default() };
        served.writer.set_copy_state(id, state).unwrap();
        served.commit(at(n));
    };
    copying(&mut served, true, 1);
    let page = served.pull("ann", "since=0").await;
    assert_eq!((&page["count"], &page["complete"]), (&json!(1), &json!(false)));
    let since = page["cursor"].as_str().unwrap().to_owned();
    let token = sign(SECRET, &Claims::of("ann")).expect("a token");
    let url = format!("{}/api/sync/pull?since={since}&wait=40", served.url);
    let began = Instant::now();
    let answer = tokio::spawn(served.http.get(url).bearer_auth(token).send());
    copying(&mut served, false, 2);
    let page = crate::served::json(answer.await.unwrap().unwrap()).await;
    assert_eq!((&page["count"], &page["complete"]), (&json!(0), &json!(true)));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

//! The push socket: what pull tells, pushed; nobody else's; in one chain without gap; ended with a
//! reason.

use std::time::{Duration, Instant};

use bson::rawdoc;
use serde_json::{Value, json};
use tidewire_server::log::CopyState;
use tidewire_server::status::CopyProgress;
use tidewire_tests::harness::{Claims, SECRET, Socket, sign, socket_request, socket_request_as};
use tokio_tungstenite::tungstenite::Message;

use crate::served::{Served, at, kinds};

fn token(sub: &str) -> String {
    sign(SECRET, &Claims::of(sub)).expect("a token")
}

async fn open(served: &Served, sub: &str, since: &str) -> Socket {
    Socket::open(&served.url, &token(sub), since).await
}

/// Reads on until a complete frame; every change.
async fn until_complete(socket: &mut Socket) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let (changes, complete) = socket.changes().await;
        all.extend(changes);
        if complete {
            return all;
        }
    }
}

fn invoice(served: &mut Served, n: u64, id: i32, user: &str) {
    let document =
        rawdoc! { "_id": id, "userId": user, "n": i64::try_from(n).unwrap(), "secret": "s" };
    served.put(at(n), "invoices", &document);
    served.commit(at(n));
}

/// 3,000 invoices of ada's, each a text of so many bytes.
fn backlog(served: &mut Served, bytes: usize) {
    let text = "x".repeat(bytes);
    for id in 0..3_000 {
        let document = rawdoc! { "_id": id, "userId": "ada", "text": text.as_str() };
        served.put(at(1 + u64::try_from(id).unwrap()), "invoices", &document);
    }
    served.commit(at(4_000));
}

#[tokio::test]
async fn a_socket_is_told_what_is_there_and_then_each_change_of_its_own() {
    let mut served = Served::start().await;
    invoice(&mut served, 1, 1, "ada");
    invoice(&mut served, 2, 2, "bob");
    let mut ada = open(&served, "ada", "0").await;
    assert_eq!(kinds(&until_complete(&mut ada).await), [("upsert", "~1")]);
    // Bob's, and then hers: his never shows.
    invoice(&mut served, 3, 3, "bob");
    invoice(&mut served, 4, 4, "ada");
    let (changes, complete) = ada.changes().await;
    assert_eq!((kinds(&changes), complete), (vec![("upsert", "~4")], true));
    assert_eq!(changes[0]["payload"]["n"], 4);
    assert_eq!(changes[0]["payload"].get("secret"), None, "an excluded field");
    // A document that leaves her goes by its key alone.
    invoice(&mut served, 5, 4, "bob");
    let (changes, _) = ada.changes().await;
    assert_eq!(kinds(&changes), [("delete", "~4")]);
    assert_eq!(changes[0].get("payload"), None);
}

#[tokio::test]
async fn an_empty_log_is_told_to_be_complete() {
    let mut served = Served::start().await;
    served.commit(at(1));
    let mut ada = open(&served, "ada", "0").await;
    let (changes, complete) = ada.changes().await;
    assert_eq!((changes.len(), complete), (0, true));
}

#[tokio::test]
async fn a_cursor_goes_from_pull_to_socket_and_back() {
    let mut served = Served::start().await;
    for n in 1..=50 {
        invoice(&mut served, n, i32::try_from(n).unwrap(), "ada");
    }
    let page = served.pull("ada", "since=0").await;
    invoice(&mut served, 51, 51, "ada");
    let mut socket = open(&served, "ada", page["cursor"].as_str().unwrap()).await;
    assert_eq!(kinds(&socket.changes().await.0), [("upsert", "~51")]);
    invoice(&mut served, 52, 52, "ada");
    let since = socket.cursor.clone().unwrap();
    assert_eq!(kinds(&socket.changes().await.0), [("upsert", "~52")]);
    let page = served.pull("ada", &format!("since={since}")).await;
    assert_eq!(kinds(page["changes"].as_array().unwrap()), [("upsert", "~52")]);
}

#[tokio::test]
async fn a_large_backlog_comes_in_bounded_frames_and_nothing_twice() {
    let mut served = Served::start().await;
    backlog(&mut served, 1_000);
    let mut socket = open(&served, "ada", "0").await;
    let (first, complete) = socket.changes().await;
    assert!(first.len() < 200 && !complete, "{} changes", first.len());
    let mut ids: Vec<String> = kinds(&first).iter().map(|(_, id)| (*id).to_owned()).collect();
    let rest = until_complete(&mut socket).await;
    ids.extend(kinds(&rest).iter().map(|(_, id)| (*id).to_owned()));
    assert_eq!(ids, (0..3_000).map(|id| format!("~{id}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn two_hundred_sockets_hear_one_change_and_others_hear_nothing() {
    let mut served = Served::start().await;
    invoice(&mut served, 1, 1, "ada");
    let mut crowd = Vec::new();
    for n in 0..200 {
        let mut socket = open(&served, &format!("user{n}"), "0").await;
        until_complete(&mut socket).await;
        crowd.push(socket);
    }
    served.put(at(2), "plans", &rawdoc! { "_id": 7, "name": "gold" });
    served.commit(at(2));
    for socket in &mut crowd {
        assert_eq!(kinds(&socket.changes().await.0), [("upsert", "~7")]);
    }
    invoice(&mut served, 3, 3, "user7");
    served.put(at(4), "plans", &rawdoc! { "_id": 8 });
    served.commit(at(4));
    for (n, socket) in crowd.iter_mut().enumerate() {
        let changes = until(socket, "~8").await;
        let expected = if n == 7 { vec!["~3", "~8"] } else { vec!["~8"] };
        assert_eq!(changes, expected, "user{n}");
    }
}

/// Keys of changes up to the one of `last`.
async fn until(socket: &mut Socket, last: &str) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    while keys.last().is_none_or(|key| key != last) {
        let (changes, _) = socket.changes().await;
        keys.extend(kinds(&changes).iter().map(|(_, key)| (*key).to_owned()));
    }
    keys
}

#[tokio::test]
async fn a_new_token_takes_effect_on_the_open_socket() {
    let mut served = Served::start().await;
    invoice(&mut served, 1, 1, "ada");
    invoice(&mut served, 2, 2, "bob");
    let mut socket = open(&served, "ada", "0").await;
    until_complete(&mut socket).await;
    let admin = sign(SECRET, &Claims::of("ada").role("admin")).expect("a token");
    socket.send(json!({ "type": "auth", "token": admin })).await;
    let told = until_complete(&mut socket).await;
    assert!(kinds(&told).contains(&("upsert", "~2")), "gained: {told:?}");
    socket.send(json!({ "type": "auth", "token": token("ada") })).await;
    let told = until_complete(&mut socket).await;
    assert!(kinds(&told).contains(&("delete", "~2")), "lost: {told:?}");
    assert!(!kinds(&told).contains(&("upsert", "~2")), "lost: {told:?}");
    socket.send(json!({ "type": "auth", "token": token("bob") })).await;
    assert_eq!(socket.refusal().await, ("unauthenticated".to_owned(), 4401));
}

#[tokio::test]
async fn a_token_that_ends_ends_its_socket() {
    let mut served = Served::start().await;
    served.commit(at(1));
    // Ten seconds are the leeway.
    let claims = Claims { ttl: Duration::from_secs(1), ..Claims::of("ada") };
    let short = sign(SECRET, &claims).expect("a token");
    let mut idle = Socket::open(&served.url, &short, "0").await;
    until_complete(&mut idle).await;
    let mut busy = Socket::open(&served.url, &short, "0").await;
    until_complete(&mut busy).await;
    let began = Instant::now();
    // News at every moment do not make it last.
    let ended = async {
        loop {
            match busy.next().await {
                Ok(frame) if frame["type"] == "error" => return frame["error"]["code"].clone(),
                Ok(_) => {}
                Err(close) => panic!("closed with {close} and no word"),
            }
        }
    };
    tokio::pin!(ended);
    let mut n = 2;
    let code = loop {
        invoice(&mut served, n, 1, "ada");
        n += 1;
        if let Ok(code) = tokio::time::timeout(Duration::from_millis(50), &mut ended).await {
            break code;
        }
        assert!(began.elapsed() < Duration::from_secs(15), "an expired token goes on");
    };
    assert_eq!(code, "token_expired");
    loop {
        match idle.next().await {
            Ok(frame) if frame["type"] == "error" => break,
            Ok(frame) => assert_eq!(frame["type"], "changes"),
            Err(close) => panic!("closed with {close} and no word"),
        }
    }
    assert_eq!(idle.next().await, Err(4401));
}

#[tokio::test]
async fn who_may_not_open_a_socket_is_told_before_it_is_one() {
    let mut served = Served::start().await;
    served.commit(at(1));
    let connect = |request| async { Socket::connect(request).await.map(|_| ()) };
    assert_eq!(connect(socket_request(&served.url)).await, Err(401), "no token");
    assert_eq!(connect(socket_request_as(&served.url, "nonsense")).await, Err(401));
    // A token in the URL is never read.
    let mut in_url = socket_request(&served.url);
    *in_url.uri_mut() = format!("{}?token={}", in_url.uri(), token("ada")).parse().unwrap();
    assert_eq!(connect(in_url).await, Err(401));
    for origin in ["https://elsewhere.example", "null", "https://app.example.evil"] {
        let mut request = socket_request_as(&served.url, &token("ada"));
        request.headers_mut().insert("origin", origin.parse().unwrap());
        assert_eq!(connect(request).await, Err(403), "{origin}");
    }
    let mut listed = socket_request_as(&served.url, &token("ada"));
    listed.headers_mut().insert("origin", "https://app.example".parse().unwrap());
    assert_eq!(connect(listed).await, Ok(()));
    // As a browser sends it.
    let mut browser = socket_request(&served.url);
    let protocols = format!("tidewire.v1, bearer.{}", token("ada"));
    browser.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    assert_eq!(connect(browser).await, Ok(()));
    // Not a socket at all.
    assert_eq!(served.get_as("ada", "/api/sync/live").await.status(), 400);
}

#[tokio::test]
async fn frames_that_make_no_sense_end_the_socket_with_4400() {
    let mut served = Served::start().await;
    served.commit(at(1));
    let url = served.url.clone();
    let refused = async |message: Message| {
        let request = socket_request_as(&url, &token("ada"));
        let mut socket = Socket::connect(request).await.expect("a socket");
        socket.send_raw(message).await;
        socket.refusal().await
    };
    let bad = ("bad_request".to_owned(), 4400);
    assert_eq!(refused(Message::Text("{".into())).await, bad);
    assert_eq!(refused(Message::Text(r#"{"type":"shout"}"#.into())).await, bad);
    assert_eq!(refused(Message::Binary(vec![1, 2].into())).await, bad);
    let auth_first = json!({ "type": "auth", "token": token("ada") }).to_string();
    assert_eq!(refused(Message::Text(auth_first.into())).await, bad);
    for (hello, code, close) in [
        (json!({ "type": "hello", "since": "nonsense" }), "invalid_since", 4400),
        (json!({ "type": "hello", "since": { "$gt": "" } }), "bad_request", 4400),
        (json!({ "type": "hello", "collections": ["nobody"] }), "unknown_collection", 4400),
        (json!({ "type": "hello", "collections": ["vault"] }), "forbidden", 4403),
        (json!({ "type": "hello", "format": "xml" }), "invalid_format", 4400),
    ] {
        let told = refused(Message::Text(hello.to_string().into())).await;
        assert_eq!(told, (code.to_owned(), close), "{hello}");
    }
    let large = Message::Text("x".repeat(100_000).into());
    let (_, close) = refused(large).await;
    assert!(matches!(close, 4400 | 0), "{close}");
}

#[tokio::test]
async fn a_hello_that_names_collections_is_told_of_no_other_with_a_new_token_neither() {
    let mut served = Served::start().await;
    let plan = |served: &mut Served, n: u64, id: i32| {
        served.put(at(n), "plans", &rawdoc! { "_id": id });
        served.commit(at(n));
    };
    invoice(&mut served, 1, 1, "ada");
    plan(&mut served, 2, 2);
    // One that may not be seen is no more than left out, where another may be.
    let hello = json!({ "type": "hello", "since": "0", "collections": ["plans", "vault"] });
    let mut socket = Socket::open_with(&served.url, &token("ada"), hello).await;
    assert_eq!(kinds(&until_complete(&mut socket).await), [("upsert", "~2")]);
    invoice(&mut served, 3, 3, "ada");
    plan(&mut served, 4, 4);
    assert_eq!(until(&mut socket, "~4").await, ["~4"]);
    let admin = sign(SECRET, &Claims::of("ada").role("admin")).expect("a token");
    socket.send(json!({ "type": "auth", "token": admin })).await;
    invoice(&mut served, 5, 5, "bob");
    plan(&mut served, 6, 6);
    let told = until(&mut socket, "~6").await;
    assert!(!told.contains(&"~1".to_owned()) && !told.contains(&"~5".to_owned()), "{told:?}");
}

#[tokio::test]
async fn two_sockets_hear_of_one_commit_each_in_the_format_of_its_hello() {
    let mut served = Served::start().await;
    invoice(&mut served, 1, 1, "ada");
    let mut sockets = Vec::new();
    for format in ["json", "ejson"] {
        let hello = json!({ "type": "hello", "since": "0", "format": format });
        sockets.push(Socket::open_with(&served.url, &token("ada"), hello).await);
    }
    let payloads = |n: i32| {
        let number = |kind: &str| json!({ (kind): n.to_string() });
        let extended =
            json!({ "_id": number("$numberInt"), "userId": "ada", "n": number("$numberLong") });
        [json!({ "_id": n, "userId": "ada", "n": n }), extended]
    };
    // What was there, and what is news to both at once.
    for n in [1, 2, 3] {
        if n > 1 {
            invoice(&mut served, u64::try_from(n).unwrap(), n, "ada");
        }
        for (socket, payload) in sockets.iter_mut().zip(payloads(n)) {
            let (changes, complete) = socket.changes().await;
            let told: Vec<&Value> = changes.iter().map(|change| &change["payload"]).collect();
            assert_eq!((told, complete), (vec![&payload], true));
        }
    }
}

#[tokio::test]
async fn a_socket_without_a_hello_is_closed_after_ten_seconds() {
    let mut served = Served::start().await;
    served.commit(at(1));
    let request = socket_request_as(&served.url, &token("ada"));
    let mut socket = Socket::connect(request).await.expect("a socket");
    let began = Instant::now();
    assert_eq!(socket.refusal().await.1, 4408);
    let waited = began.elapsed().as_secs();
    assert!((9..13).contains(&waited), "{waited} s");
}

#[tokio::test]
async fn silence_is_broken_by_keepalives_whose_cursor_moves_on() {
    let mut served = Served::start().await;
    invoice(&mut served, 1, 1, "ada");
    let mut socket = open(&served, "ada", "0").await;
    until_complete(&mut socket).await;
    let (before, told) = (socket.cursor.clone(), socket.through.clone());
    // Something that concerns her not.
    invoice(&mut served, 9, 2, "bob");
    let keepalive = socket.frame().await;
    assert_eq!(keepalive["type"], "keepalive", "{keepalive}");
    assert!(keepalive["tokenExpiresIn"].as_u64().unwrap() > 60);
    assert_eq!(keepalive["after"].as_str(), told.as_deref());
    assert_ne!(socket.cursor, before);
    assert_eq!(&socket.through.as_ref().unwrap()[..16], &at(9).to_string()[..16]);
    invoice(&mut served, 10, 3, "ada");
    assert_eq!(kinds(&socket.changes().await.0), [("upsert", "~3")]);
}

#[tokio::test]
async fn draining_tells_every_socket_when_to_come_again() {
    let mut served = Served::start().await;
    served.commit(at(1));
    let mut socket = open(&served, "ada", "0").await;
    until_complete(&mut socket).await;
    served.draining.cancel();
    let began = Instant::now();
    let frame = socket.frame().await;
    assert_eq!((&frame["type"], &frame["error"]["code"]), (&json!("error"), &json!("draining")));
    assert!((1..=5).contains(&frame["error"]["retryAfter"].as_u64().unwrap()));
    assert_eq!(socket.next().await, Err(1001));
    for task in served.tasks {
        task.await.expect("an end");
    }
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn the_end_of_a_copy_that_found_no_difference_is_told() {
    let mut served = Served::start().await;
    let id = served.writer.collection("plans").unwrap();
    served.put(at(1), "plans", &rawdoc! { "_id": 1 });
    served.commit(at(1));
    let copying = |served: &mut Served, is_copying: bool, n| {
        let state = CopyState { finished: !is_copying, ..CopyState::default() };
        served.writer.set_copy_state(id, state).unwrap();
        served.commit(at(n));
        served.status.send_modify(|status| match is_copying {
            true => drop(status.copies.insert("plans".to_owned(), CopyProgress::default())),
            false => drop(status.copies.remove("plans")),
        });
    };
    copying(&mut served, false, 1);
    copying(&mut served, true, 2);
    let mut first = open(&served, "ada", "0").await;
    assert!(!first.changes().await.1);
    let since = first.cursor.clone().unwrap();
    // These find nothing more, and not complete.
    let mut others = Vec::new();
    for _ in 0..3 {
        let mut socket = open(&served, "ada", &since).await;
        socket.heard().await;
        others.push(socket);
    }
    copying(&mut served, false, 3);
    for socket in others.iter_mut().chain([&mut first]) {
        let told = socket.frame().await;
        assert_eq!((&told["type"], &told["complete"]), (&json!("changes"), &json!(true)), "{told}");
    }
}

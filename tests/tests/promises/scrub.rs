//! The log is spoiled behind the server's back; the scrub finds it and mends it, and clients go on.

use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bson::{Document, doc};
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, differences, eventually, mongo, must_equal,
    program,
};

use crate::capture::checks::spoil;

const SOON: Duration = Duration::from_secs(60);
const COLLECTIONS: [&str; 2] = ["invoices", "plans"];

fn scrub(server: &Server, more: &[&str]) -> Output {
    let admin = server.admin_url().replace("http://", "");
    let mut command = Command::new(program("tidewire-ops"));
    command.args(["scrub", "--admin", &admin]).args(more).output().expect("run it")
}

fn said(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

/// A server with a client that has everything, its log damaged while it was down.
async fn damaged(scrub: &str) -> (Mongo, Server, Client) {
    let mongo = mongo().await;
    for name in COLLECTIONS {
        let documents = (0..300).map(|n| doc! { "_id": n, "n": n, "text": "x".repeat(100) });
        mongo.db.collection::<Document>(name).insert_many(documents).await.unwrap();
    }
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    options.more = format!("[scrub]\n{scrub}");
    let mut server = Server::start(options).await;
    let mut client = Client::new(&server.url(), &server.token(&Claims::of("ada")));
    client.start();
    eventually("the client has everything", SOON, || async { client.position() }).await;
    server.stop().await;
    // As a mistake of ours would have it: whole rows, and wrong ones.
    spoil(&server.data_dir());
    server.launch();
    server.ready().await;
    (mongo, server, client)
}

fn copies(client: &Client) -> i64 {
    let db = client.open().expect("a replica");
    db.query_row("SELECT generation FROM _tidewire_state", [], |row| row.get(0)).expect("a row")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_finds_and_mends_what_is_wrong_and_clients_go_on_with_their_cursors() {
    let (mongo, server, client) = damaged("every = \"never\"").await;
    let plan = Plan::everything(&COLLECTIONS);
    let fresh = Client::new(&server.url(), &server.token(&Claims::of("bob")));
    fresh.sync_once().await;
    let report = differences(&mongo.db, &plan, &fresh.db()).await;
    assert!(!report.is_equal(), "the damage is there to be seen");
    let before = copies(&client);
    let (code, text) = said(&scrub(&server, &["--collections", "plans"]));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("plans: 300 documents") && !text.contains("invoices"), "{text}");
    let (code, text) = said(&scrub(&server, &[]));
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("invoices: 300 documents; mended 2 that were missing or wrong, 1"),
        "{text}"
    );
    let (code, text) = said(&scrub(&server, &["--json"]));
    assert_eq!(code, Some(0), "{text}");
    let told: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&told["state"], &told["number"]), (&"finished".into(), &3.into()));
    mongo.db.collection::<Document>("plans").delete_one(doc! { "_id": 1 }).await.unwrap();
    eventually("the client goes on", SOON, || async {
        let db = client.open().ok()?;
        let count = "SELECT count(*) FROM plans";
        db.query_row(count, [], |row| row.get(0)).ok().filter(|count: &i64| *count == 299)
    })
    .await;
    fresh.sync_once().await;
    must_equal(&mongo.db, &plan, &client.db()).await;
    must_equal(&mongo.db, &plan, &fresh.db()).await;
    assert_eq!(copies(&client), before, "no copy was made anew");
    assert!(server.metrics().await.contains("\ntidewire_scrub_mended_total 3\n"));
    let (code, text) = said(&scrub(&server, &["--collections", "nobody"]));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("nobody"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_scrub_mends_by_itself_within_its_hours_and_no_page_of_a_browser_can_ask() {
    let (mongo, server, _client) = damaged("every = \"1s\"\nhours = \"00:00-24:00\"").await;
    eventually("the damage is mended", SOON, || async {
        let metrics = server.metrics().await;
        metrics.contains("\ntidewire_scrub_mended_total 3\n").then_some(())
    })
    .await;
    let fresh = Client::new(&server.url(), &server.token(&Claims::of("bob")));
    fresh.sync_once().await;
    must_equal(&mongo.db, &Plan::everything(&COLLECTIONS), &fresh.db()).await;
    let url = format!("{}/scrub", server.admin_url());
    let ask = reqwest::Client::new().post(url).header("origin", "https://elsewhere.example");
    assert_eq!(ask.send().await.expect("an answer").status(), 403);
}

/// How scrubs stand, as the operators' listener tells.
async fn standing(server: &Server) -> serde_json::Value {
    let answer = reqwest::get(format!("{}/scrub", server.admin_url())).await.expect("an answer");
    serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_of_its_hours_the_background_scrub_compares_nothing_and_an_operator_may_ask() {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let hour = since_1970.as_secs() / 3_600;
    let (from, until) = ((hour + 2) % 24, (hour + 3) % 24);
    let hours = format!("every = \"1s\"\nhours = \"{from:02}:00-{until:02}:00\"");
    let (_mongo, server, _client) = damaged(&hours).await;
    let began = Instant::now();
    // The others would be due four times.
    while began.elapsed() < Duration::from_secs(4) {
        let told = standing(&server).await;
        assert_eq!((&told["number"], &told["state"]), (&0.into(), &"none".into()), "{told}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (code, text) = said(&scrub(&server, &["--collections", "plans"]));
    assert_eq!(code, Some(0), "{text}");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let told = standing(&server).await;
        assert_eq!((&told["number"], &told["askedFor"]), (&1.into(), &true.into()), "{told}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(server.metrics().await.contains("\ntidewire_scrub_mended_total 0\n"));
    let (code, text) = said(&scrub(&server, &[]));
    assert_eq!(code, Some(1), "{text}");
    assert!(server.metrics().await.contains("\ntidewire_scrub_mended_total 3\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_scrub_reads_no_more_of_the_source_in_a_second_than_it_may() {
    let mongo = mongo().await;
    twenty_megabytes_take_their_time(&mongo).await;
}

/// The source reads all of such a collection at once, to sort it.
#[tokio::test(flavor = "multi_thread")]
async fn the_background_scrub_has_no_more_sorted_in_a_second_than_it_may() {
    let mongo = mongo().await;
    let collated = doc! { "create": "plans", "collation": { "locale": "en" } };
    mongo.db.run_command(collated).await.unwrap();
    twenty_megabytes_take_their_time(&mongo).await;
}

async fn twenty_megabytes_take_their_time(mongo: &Mongo) {
    let wide = (0..200).map(|n| doc! { "_id": n, "text": "x".repeat(100_000) });
    mongo.db.collection::<Document>("plans").insert_many(wide).await.unwrap();
    let mut options = ServerOptions::following(mongo, &["plans"]);
    options.more =
        "[scrub]\nevery = \"1s\"\nhours = \"00:00-24:00\"\nmegabytes_per_second = 5".into();
    let server = Server::start(options).await;
    // The second one: of it is known when it had not begun yet.
    let (began, mut before) = (Instant::now(), Instant::now());
    let took = loop {
        let asked = Instant::now();
        let told = standing(&server).await;
        match (told["number"].as_u64(), told["state"].as_str()) {
            (Some(0 | 1), _) => before = asked,
            (Some(2), Some("running")) => {}
            (number, state) => {
                assert_eq!((number, state), (Some(2), Some("finished")), "{told}");
                assert_eq!(told["collections"][0]["documents"], 200, "{told}");
                break before.elapsed();
            }
        }
        assert!(began.elapsed() < SOON, "{told}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(took >= Duration::from_secs(3), "20 MB in {took:?}");
}

//! What lies between a client and its server: sleep and another network, proxies that block, hold back
//! or end; and a token that runs out meanwhile.

use std::time::{Duration, Instant};

use bson::{Document, doc};
use nix::sys::signal::Signal;
use tidewire_ops::verify::{Collection, Plan};
use tidewire_tests::harness::{
    Claims, Client, Mongo, Proxy, Server, ServerOptions, collection, eventually, mongo, must_equal,
};

const SOON: Duration = Duration::from_secs(60);

struct Far {
    mongo: Mongo,
    server: Server,
    proxy: Proxy,
}

impl Far {
    async fn new() -> Self {
        let mongo = mongo().await;
        // Everyone sees the marks; invoices are seen by their user and by admins.
        let options = ServerOptions {
            collections: collection("marks", &["everyone"], &[])
                + &collection("invoices", &["user:{userId}", "role:admin"], &[]),
            ..ServerOptions::following(&mongo, &[])
        };
        let server = Server::start(options).await;
        let proxy = Proxy::to(server.url().replace("http://", "")).await;
        Self { mongo, server, proxy }
    }

    fn client(&self) -> Client {
        Client::new(&self.proxy.url(), &self.server.token(&Claims::of("asha")))
    }

    /// What a replica of hers is compared with.
    fn seen_by_asha(&self) -> Plan {
        let channels = |channels: &[&str]| channels.iter().map(|&text| text.to_owned()).collect();
        let collection = |name: &str, of: &[&str]| Collection {
            name: name.to_owned(),
            channels: channels(of),
            exclude: Vec::new(),
        };
        let collections = vec![
            collection("marks", &["everyone"]),
            collection("invoices", &["user:{userId}", "role:admin"]),
        ];
        let held = ["everyone", "user:asha"].map(str::to_owned).into();
        Plan { collections, held: Some(held) }
    }

    async fn write(&self, mark: i64) {
        let marks = self.mongo.db.collection::<Document>("marks");
        marks.insert_one(doc! { "_id": mark }).await.expect("insert");
    }

    async fn arrives(&self, client: &Client, mark: i64) {
        self.write(mark).await;
        comes(client, &format!("SELECT count(*) FROM marks WHERE _id = '~{mark}'"), 1).await;
    }

    async fn goes_by(&self, client: &Client, transport: &str, state: &str) {
        eventually(&format!("the client goes by {transport}"), SOON, || async {
            let status = client.status().await;
            (status["transport"] == transport && status["state"] == state).then_some(())
        })
        .await;
    }
}

fn now_ms() -> i64 {
    bson::DateTime::now().timestamp_millis()
}

/// Waits until a query's one number is that one.
async fn comes(client: &Client, sql: &str, wanted: i64) {
    eventually(&format!("{sql} is {wanted}"), SOON, || async {
        let db = client.open().ok()?;
        db.query_row(sql, [], |row| row.get::<_, i64>(0)).ok().filter(|found| *found == wanted)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_sleep_and_in_another_network_the_news_come_at_once() {
    let far = Far::new().await;
    let mut client = far.client();
    client.start();
    far.arrives(&client, 1).await;
    far.goes_by(&client, "push", "live").await;
    client.signal(Signal::SIGSTOP);
    far.proxy.freeze();
    far.write(2).await;
    // The sleep itself: longer than any pause that a busy machine makes.
    tokio::time::sleep(Duration::from_secs(8)).await;
    client.signal(Signal::SIGCONT);
    let woke = Instant::now();
    comes(&client, "SELECT count(*) FROM marks", 2).await;
    // A dead socket is known by its silence 20 s after its last word.
    let took = woke.elapsed();
    assert!(took < Duration::from_secs(9), "the silence told it, not the clock: {took:?}");
    far.goes_by(&client, "push", "live").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_proxy_holds_frames_back_long_polls_go_on() {
    let far = Far::new().await;
    far.proxy.buffer_sockets(true);
    let mut client = far.client();
    client.start();
    for mark in 1..4 {
        far.arrives(&client, mark).await;
    }
    far.goes_by(&client, "long_poll", "live").await;
    far.proxy.buffer_sockets(false);
    far.goes_by(&client, "push", "live").await;
    far.arrives(&client, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_proxy_ends_all_that_is_held_polls_go_on_and_the_best_comes_back() {
    let far = Far::new().await;
    far.proxy.block_upgrades(true);
    far.proxy.cut_silent(Some(Duration::from_millis(4_500)));
    let mut client = far.client();
    client.args = vec!["--poll-interval".into(), "1s".into()];
    client.start();
    far.arrives(&client, 1).await;
    far.goes_by(&client, "poll", "polling").await;
    far.arrives(&client, 2).await;
    far.proxy.cut_silent(None);
    far.proxy.block_upgrades(false);
    far.goes_by(&client, "push", "live").await;
    far.arrives(&client, 3).await;
    must_equal(&far.mongo.db, &Plan::everything(&["marks"]), &client.db()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_on_the_open_socket_and_its_access_counts_at_once() {
    let far = Far::new().await;
    let invoices = far.mongo.db.collection::<Document>("invoices");
    let rows = (0..20).map(|n| doc! { "_id": n, "userId": if n < 5 { "asha" } else { "ravi" } });
    invoices.insert_many(rows).await.expect("insert");
    let mut client = far.client();
    client.start();
    far.arrives(&client, 1).await;
    far.goes_by(&client, "push", "live").await;
    comes(&client, "SELECT count(*) FROM invoices", 5).await;
    let connections = far.proxy.connections();
    client.set_token(&far.server.token(&Claims::of("asha").role("admin")));
    comes(&client, "SELECT count(*) FROM invoices", 20).await;
    far.arrives(&client, 2).await;
    client.set_token(&far.server.token(&Claims::of("asha")));
    comes(&client, "SELECT count(*) FROM invoices", 5).await;
    far.arrives(&client, 3).await;
    assert_eq!(far.proxy.connections(), connections, "on the same connection all the while");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_runs_out_while_connected_leads_to_waiting_and_not_to_asking() {
    let far = Far::new().await;
    let mut client = far.client();
    client.logs = Some("tidewire=debug");
    let claims = Claims { ttl: Duration::from_secs(4), ..Claims::of("asha") };
    client.set_token(&far.server.token(&claims));
    client.start();
    far.arrives(&client, 1).await;
    far.goes_by(&client, "none", "needs_auth").await;
    let connections = far.proxy.connections();
    let waits = || client.log_text().matches("waiting for another token").count();
    let before = waits();
    eventually("the client has looked twice for another token", SOON, || async {
        (waits() >= before + 2).then_some(())
    })
    .await;
    assert_eq!(far.proxy.connections(), connections, "nothing is asked without a token");
    comes(&client, "SELECT count(*) FROM marks", 1).await;
    client.set_token(&far.server.token(&Claims::of("asha")));
    far.arrives(&client, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_app_wants_it_the_data_goes_with_the_token_but_never_with_the_network() {
    let far = Far::new().await;
    let invoices = far.mongo.db.collection::<Document>("invoices");
    let rows = (0..500).map(|n| doc! { "_id": n, "userId": "asha", "text": "canary of asha" });
    invoices.insert_many(rows).await.expect("insert");
    let mut client = far.client();
    client.args = ["--on-needs-auth", "wipe", "--json"].map(str::to_owned).to_vec();
    let runs_out = now_ms() + 8_000;
    let claims = Claims { ttl: Duration::from_secs(8), ..Claims::of("asha") };
    client.set_token(&far.server.token(&claims));
    client.start();
    far.arrives(&client, 1).await;
    comes(&client, "SELECT count(*) FROM invoices", 500).await;
    far.goes_by(&client, "push", "live").await;
    let told = eventually("the client tells when its token runs out", SOON, || async {
        let statuses = client.statuses();
        let live = statuses.iter().filter(|status| status["transport"] == "push");
        live.filter_map(|status| status["tokenExpiresAt"].as_str().map(str::to_owned)).next_back()
    })
    .await;
    let told = bson::DateTime::parse_rfc3339_str(&told).expect("a time").timestamp_millis();
    // Servers take a token for ten seconds more, whose clock may be ahead.
    let late = told - runs_out;
    assert!((-2_500..=12_500).contains(&late), "told {told}, runs out {runs_out}");

    far.proxy.refuse(true);
    far.goes_by(&client, "none", "offline").await;
    eventually("the token has run out, leeway and all", SOON, || async {
        (now_ms() > runs_out + 12_000).then_some(())
    })
    .await;
    comes(&client, "SELECT count(*) FROM invoices", 500).await;
    far.proxy.refuse(false);
    far.goes_by(&client, "none", "needs_auth").await;
    eventually("no byte of the data is left", SOON, || async {
        client.files_with("canary of asha").is_empty().then_some(())
    })
    .await;
    let status = client.status().await;
    assert_eq!(
        (&status["initialized"], &status["cursor"]),
        (&false.into(), &().into()),
        "{status}"
    );
    assert_eq!(status["state"], "needs_auth");

    client.set_token(&far.server.token(&Claims::of("asha")));
    far.arrives(&client, 2).await;
    must_equal(&far.mongo.db, &far.seen_by_asha(), &client.db()).await;
    assert!(client.stop().await.success());
    // A run that is over says so only when the data is gone.
    let mut claims = Claims::of("asha");
    claims.more.insert("exp".into(), 1_000_000.into());
    client.set_token(&far.server.token(&claims));
    let wipes = std::mem::take(&mut client.args);
    assert_eq!(client.try_sync_once().await.status.code(), Some(3));
    assert!(!client.files_with("canary of asha").is_empty(), "it stays where nothing is said");
    client.args = wipes;
    let refused = client.try_sync_once().await;
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert_eq!(client.files_with("canary of asha"), Vec::<String>::new());
}

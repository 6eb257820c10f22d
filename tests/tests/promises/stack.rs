//! The whole stack under load and under kills: MongoDB, the server, clients, readers of the replica and
//! of pages. Nothing is lost, doubled, reordered or torn.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::{ClientSession, Collection};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, eventually, kills, mongo, must_equal, seed,
};
use tokio::task::JoinHandle;

const ACCOUNTS: i32 = 24;
const OPENING_BALANCE: i64 = 1_000;
const TOTAL: i64 = ACCOUNTS as i64 * OPENING_BALANCE;
const KILLS: u64 = 15;

/// Money moves between accounts, two in a transaction; every commit's total is [`TOTAL`].
struct Bank {
    stop: Arc<AtomicBool>,
    transfers: Arc<AtomicU64>,
    tellers: Vec<JoinHandle<u64>>,
}

impl Bank {
    async fn open(mongo: &Mongo, seed: u64) -> Self {
        let accounts: Collection<Document> = mongo.db.collection("accounts");
        let all = (0..ACCOUNTS).map(|id| doc! { "_id": id, "balance": OPENING_BALANCE, "v": 0 });
        accounts.insert_many(all).await.expect("open the accounts");
        let stop = Arc::new(AtomicBool::new(false));
        let transfers = Arc::new(AtomicU64::new(0));
        let mut tellers = Vec::new();
        for teller in 0..2 {
            let accounts = accounts.clone();
            let (stop, transfers) = (Arc::clone(&stop), Arc::clone(&transfers));
            let mut rng = StdRng::seed_from_u64(seed ^ teller);
            let mut session = mongo.client.start_session().await.expect("a session");
            tellers.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let from = rng.random_range(0..ACCOUNTS);
                    let to = (from + rng.random_range(1..ACCOUNTS)) % ACCOUNTS;
                    if transfer(&accounts, &mut session, from, to).await.is_ok() {
                        transfers.fetch_add(1, Ordering::Relaxed);
                    }
                }
                session
                    .operation_time()
                    .map_or(0, |time| u64::from(time.time) << 32 | u64::from(time.increment))
            }));
        }
        Self { stop, transfers, tellers }
    }

    /// Waits until this many more transfers are done.
    async fn work(&self, more: u64) {
        let goal = self.transfers.load(Ordering::Relaxed) + more;
        eventually("transfers go on", Duration::from_secs(60), || async {
            (self.transfers.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }

    /// Ends the work; the position of the last transfer.
    async fn close(self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        let mut last = 0;
        for teller in self.tellers {
            last = last.max(teller.await.expect("a teller"));
        }
        format!("{last:016x}.00000000")
    }
}

async fn transfer(
    accounts: &Collection<Document>,
    session: &mut ClientSession,
    from: i32,
    to: i32,
) -> mongodb::error::Result<()> {
    session.start_transaction().await?;
    for (id, amount) in [(from, -7_i64), (to, 7)] {
        let change = doc! { "$inc": { "balance": amount, "v": 1 } };
        let done = accounts.update_one(doc! { "_id": id }, change).session(&mut *session).await;
        if let Err(error) = done {
            // The other teller has it: give way.
            session.abort_transaction().await.ok();
            return Err(error);
        }
    }
    session.commit_transaction().await
}

/// Reads the replica's total over and over, as an app would; how often it was there to be read.
fn watch_total(client: &Client, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let path = client.db();
    std::thread::spawn(move || {
        let mut reads = 0;
        while !stop.load(Ordering::Relaxed) {
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
            let Ok(db) = rusqlite::Connection::open_with_flags(&path, flags) else { continue };
            db.busy_timeout(Duration::from_secs(5)).expect("a timeout");
            let sum = "SELECT count(*), sum(balance) FROM accounts";
            let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?));
            // No table yet: nothing is shown before the first copy is whole.
            let Ok((count, total)) = db.query_row(sum, [], row) else { continue };
            assert_eq!((count, total), (i64::from(ACCOUNTS), Some(TOTAL)), "a torn state");
            reads += 1;
        }
        reads
    })
}

/// Follows the log by small pages; every complete page must hold the bank's total, and every account's
/// versions come one by one.
struct PageReader {
    cursor: String,
    balances: HashMap<String, i64>,
    versions: HashMap<String, i64>,
    complete_pages: u64,
    /// Versions count from the first complete page on: before it, superseded ones are left out.
    counts_versions: bool,
    rng: StdRng,
}

impl PageReader {
    fn new(seed: u64) -> Self {
        Self {
            cursor: "0".into(),
            balances: HashMap::new(),
            versions: HashMap::new(),
            complete_pages: 0,
            counts_versions: false,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Reads one page; its checkpoint and whether there is more. `None`: the server was not there.
    async fn step(&mut self, server: &Server, token: &str) -> Option<(String, bool)> {
        let limit = self.rng.random_range(1..40);
        let url = format!(
            "{}/api/sync/pull?since={}&limit={limit}&wait=1&collections=accounts",
            server.url(),
            self.cursor
        );
        let answer = reqwest::Client::new().get(url).bearer_auth(token).send().await.ok()?;
        if answer.status() == 503 {
            return None;
        }
        assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
        let page: Value = serde_json::from_str(&answer.text().await.ok()?).expect("a page");
        for change in page["changes"].as_array().expect("changes") {
            let id = change["mongoId"].as_str().expect("an id").to_owned();
            let version = change["payload"]["v"].as_i64().expect("a version");
            let before = self.versions.insert(id.clone(), version);
            if self.counts_versions {
                assert_eq!(before, Some(version - 1), "{id}: lost, doubled or reordered");
            }
            self.balances.insert(id, change["payload"]["balance"].as_i64().expect("a balance"));
        }
        if page["complete"] == true {
            assert_eq!(self.balances.len(), ACCOUNTS as usize);
            assert_eq!(self.balances.values().sum::<i64>(), TOTAL, "a torn page");
            self.complete_pages += 1;
            self.counts_versions = true;
        }
        self.cursor = page["cursor"].as_str().expect("a cursor").to_owned();
        let checkpoint = page["checkpoint"].as_str().expect("a checkpoint").to_owned();
        Some((checkpoint, page["hasMore"] == true))
    }

    /// Reads on until nothing is left before `position`.
    async fn reach(&mut self, server: &Server, token: &str, position: &str) {
        loop {
            if let Some((checkpoint, more)) = self.step(server, token).await
                && !more
                && checkpoint.as_str() >= position
            {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_reader_of_replica_or_pages_ever_sees_a_broken_total() {
    let seed = seed();
    let mongo = mongo().await;
    let bank = Bank::open(&mongo, seed).await;
    let server = Server::start(ServerOptions::following(&mongo, &["accounts"])).await;
    let token = server.token(&Claims::of("teller"));
    let mut client = Client::new(&server.url(), &token);
    client.start();
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch_total(&client, Arc::clone(&stop));
    let mut pages = PageReader::new(seed);
    let goal = bank.transfers.load(Ordering::Relaxed) + 1_500;
    while bank.transfers.load(Ordering::Relaxed) < goal {
        pages.step(&server, &token).await;
    }
    let last = bank.close().await;
    pages.reach(&server, &token, &last).await;
    client.reaches(&last, Duration::from_secs(30)).await;
    stop.store(true, Ordering::Relaxed);
    let reads = watcher.join().expect("no torn state");
    println!("{reads} reads of the replica, {} complete pages", pages.complete_pages);
    assert!(reads > 50 && pages.complete_pages > 50);
    must_equal(&mongo.db, &Plan::everything(&["accounts"]), &client.db()).await;
    client.stop().await;
    server.no_unexpected_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_at_any_moment_loses_doubles_and_tears_nothing() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let mongo = mongo().await;
    let bank = Bank::open(&mongo, seed).await;
    let mut server = Server::start(ServerOptions::following(&mongo, &["accounts"])).await;
    let token = server.token(&Claims::of("teller"));
    let mut client = Client::new(&server.url(), &token);
    client.start();
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch_total(&client, Arc::clone(&stop));
    let mut pages = PageReader::new(seed);
    pages.reach(&server, &token, "0").await;
    for _ in 0..kills(KILLS) {
        bank.work(rng.random_range(5..120)).await;
        for _ in 0..rng.random_range(0..6) {
            pages.step(&server, &token).await;
        }
        server.kill().await;
        bank.work(rng.random_range(1..40)).await;
        server.launch();
    }
    server.ready().await;
    let last = bank.close().await;
    pages.reach(&server, &token, &last).await;
    client.reaches(&last, Duration::from_secs(60)).await;
    stop.store(true, Ordering::Relaxed);
    let reads = watcher.join().expect("no torn state");
    println!("{} kills, {reads} reads, {} complete pages", kills(KILLS), pages.complete_pages);
    must_equal(&mongo.db, &Plan::everything(&["accounts"]), &client.db()).await;
    client.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_killed_at_any_moment_shows_whole_states_and_ends_equal() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let mongo = mongo().await;
    let padding = "x".repeat(400);
    let many = (0..20_000).map(|id| doc! { "_id": id, "padding": padding.as_str() });
    mongo.db.collection::<Document>("many").insert_many(many).await.expect("many documents");
    let bank = Bank::open(&mongo, seed).await;
    let server = Server::start(ServerOptions::following(&mongo, &["accounts", "many"])).await;
    let token = server.token(&Claims::of("teller"));
    let mut client = Client::new(&server.url(), &token);
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch_total(&client, Arc::clone(&stop));
    // The first kills come within the first copy, later ones within catch-ups and while it is live.
    for kill in 0..kills(KILLS) {
        client.start();
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..40 * (kill + 1)))).await;
        client.kill().await;
        bank.work(rng.random_range(1..60)).await;
    }
    client.start();
    let last = bank.close().await;
    client.reaches(&last, Duration::from_secs(60)).await;
    stop.store(true, Ordering::Relaxed);
    let reads = watcher.join().expect("no torn state");
    println!("{} kills, {reads} reads of the replica", kills(KILLS));
    must_equal(&mongo.db, &Plan::everything(&["accounts", "many"]), &client.db()).await;
    client.stop().await;
    server.no_unexpected_errors();
}

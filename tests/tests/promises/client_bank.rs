//! A bank: transfers in transactions, a client and a server that are killed, and readers of the replica
//! that never see a total that the bank never had.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::{ClientSession, Collection};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Server, ServerOptions, eventually, kills, mongo, must_equal, seed,
};

const ACCOUNTS: i64 = 200;
const EACH: i64 = 1_000;
/// Rounds of waiting a while and killing something.
const KILLS: u64 = 12;

/// One transfer in a transaction, tried again where transactions collide.
async fn transfer(
    session: &mut ClientSession,
    accounts: &Collection<Document>,
    (from, to, amount): (i64, i64, i64),
) -> mongodb::error::Result<()> {
    session.start_transaction().await?;
    for (account, by) in [(from, -amount), (to, amount)] {
        let update = doc! { "$inc": { "balance": by } };
        accounts.update_one(doc! { "_id": account }, update).session(&mut *session).await?;
    }
    session.commit_transaction().await
}

/// The total as an app reads it; `None` before the first copy is complete.
fn total(client: &Client) -> Option<(i64, i64)> {
    let db = client.open().ok()?;
    let sql = "SELECT count(*), sum(balance) FROM accounts";
    match db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))) {
        Err(error) if error.to_string().starts_with("no such table") => None,
        read => Some(read.expect("read the replica")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_reader_ever_sees_a_broken_total_whatever_is_killed() {
    let mut chance = StdRng::seed_from_u64(seed());
    let mongo = mongo().await;
    let accounts = mongo.db.collection::<Document>("accounts");
    let rows = (0..ACCOUNTS).map(|id| doc! { "_id": id, "balance": EACH });
    accounts.insert_many(rows).await.expect("open the accounts");
    let mut server = Server::start(ServerOptions::following(&mongo, &["accounts"])).await;
    let mut client = Client::new(&server.url(), &server.token(&Claims::of("asha")));
    client.start();

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let mut session = mongo.client.start_session().await.expect("a session");
    let mut transfers = StdRng::seed_from_u64(chance.random());
    let bank = tokio::spawn({
        let (stop, done, accounts) = (Arc::clone(&stop), Arc::clone(&done), accounts.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let from = transfers.random_range(0..ACCOUNTS);
                let to = (from + transfers.random_range(1..ACCOUNTS)) % ACCOUNTS;
                let order = (from, to, transfers.random_range(1..100));
                transfer(&mut session, &accounts, order).await.expect("a transfer");
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    });

    let mut reads = 0;
    for round in 0..kills(KILLS) {
        let until = Instant::now() + Duration::from_millis(chance.random_range(50..1_500));
        while Instant::now() < until {
            if let Some(seen) = total(&client) {
                assert_eq!(seen, (ACCOUNTS, ACCOUNTS * EACH), "round {round}");
                reads += 1;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if chance.random_bool(0.6) {
            client.kill().await;
            client.start();
        } else {
            server.kill().await;
            server.launch();
            server.ready().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    bank.await.expect("the bank");
    accounts.insert_one(doc! { "_id": -1, "balance": 0 }).await.expect("the last word");
    eventually("the last word is in the replica", Duration::from_secs(60), || async {
        let (count, sum) = total(&client)?;
        assert_eq!(sum, ACCOUNTS * EACH);
        (count == ACCOUNTS + 1).then_some(())
    })
    .await;
    println!("{reads} reads, {} transfers", done.load(Ordering::Relaxed));
    must_equal(&mongo.db, &Plan::everything(&["accounts"]), &client.db()).await;
}

/// What an app reads in one transaction: entries of the journal, the total, and how many accounts carry the
/// mark that was set after the last entry.
fn journal(client: &Client) -> (i64, i64, i64) {
    let mut db = client.open().expect("the replica");
    let db = db.transaction().expect("one moment");
    let one = |sql: &str| db.query_row(sql, [], |row| row.get(0)).expect("read the replica");
    let marked = "SELECT count(*) FROM accounts WHERE json_extract(_doc, '$.mark')";
    (one("SELECT count(*) FROM journal"), one("SELECT sum(balance) FROM accounts"), one(marked))
}

/// How much of a catch-up is kept aside, and how often everything was copied.
fn staged(client: &Client) -> (i64, i64) {
    let db = client.open().expect("the replica");
    let sql = "SELECT staged_rows, generation FROM _tidewire_state";
    db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("its state")
}

/// Farther behind than what is told change by change.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_catch_up_is_one_step_for_readers_and_goes_on_where_it_was_killed() {
    const ENTRIES: i64 = 42_000;
    let mongo = mongo().await;
    let accounts = mongo.db.collection::<Document>("accounts");
    let rows = (0..ACCOUNTS).map(|id| doc! { "_id": id, "balance": EACH });
    accounts.insert_many(rows).await.expect("open the accounts");
    let entry = |id: i64| doc! { "_id": id, "text": "x".repeat(600) };
    let entries = mongo.db.collection::<Document>("journal");
    entries.insert_one(entry(0)).await.expect("insert");
    let names = ["accounts", "journal"];
    let server = Server::start(ServerOptions::following(&mongo, &names)).await;
    let mut client = Client::new(&server.url(), &server.token(&Claims::of("asha")));
    client.sync_once().await;
    let (before, after) = ((1, ACCOUNTS * EACH, 0), (ENTRIES, ACCOUNTS * EACH, ACCOUNTS));
    assert_eq!(journal(&client), before);

    let mut session = mongo.client.start_session().await.expect("a session");
    for from in (1..ENTRIES).step_by(3_000) {
        let some = (from..ENTRIES.min(from + 3_000)).map(entry);
        entries.insert_many(some).await.expect("insert");
        let parties = (from % ACCOUNTS, (from + 7) % ACCOUNTS, 5);
        transfer(&mut session, &accounts, parties).await.expect("a transfer");
    }
    let mark = doc! { "$set": { "mark": true } };
    accounts.update_many(doc! {}, mark).await.expect("the mark");

    // The log has all of it when the client comes back.
    eventually("another client has all of it", Duration::from_secs(120), || async {
        let other = Client::new(&server.url(), &server.token(&Claims::of("asha")));
        other.sync_once().await;
        (journal(&other) == after).then_some(())
    })
    .await;

    let (mut kept, mut killed_inside) = (0, 0);
    for _ in 0..4 {
        client.start();
        eventually(
            "more of it is kept aside, or all is there",
            Duration::from_secs(120),
            || async {
                let now = journal(&client);
                assert!(now == before || now == after, "half of a catch-up: {now:?}");
                (now == after || staged(&client).0 > kept).then_some(())
            },
        )
        .await;
        client.kill().await;
        let (now, (aside, copies)) = (journal(&client), staged(&client));
        assert!(now == before || now == after, "half of a catch-up: {now:?}");
        assert_eq!(copies, 1, "nothing is copied anew");
        if now == after {
            break;
        }
        assert!(aside > kept, "{aside} of {kept} are still aside: it goes on from there");
        (kept, killed_inside) = (aside, killed_inside + 1);
    }
    assert!(killed_inside > 0, "it was never killed inside");
    client.start();
    eventually("all is there", Duration::from_secs(120), || async {
        let now = journal(&client);
        assert!(now == before || now == after, "half of a catch-up: {now:?}");
        (now == after).then_some(())
    })
    .await;
    assert_eq!(staged(&client), (0, 1));
    must_equal(&mongo.db, &Plan::everything(&names), &client.db()).await;
}

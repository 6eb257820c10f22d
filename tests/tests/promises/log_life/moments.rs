//! Time travel: any moment within the retention comes back exactly, and two of them can be compared.

use std::time::{SystemTime, UNIX_EPOCH};

use bson::{Document, doc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidewire_server::metrics::time_text;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, eventually, mongo, must_equal, seed,
};

use super::{COLLECTIONS, PATIENCE, ops, ops_done, plan, text, time_of, write};

const MOMENTS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn every_moment_within_the_retention_comes_back_as_the_source_had_it() {
    let mongo = mongo().await;
    // MongoDB tells of a time before a collection was what is in it now.
    for name in COLLECTIONS {
        mongo.db.create_collection(name).await.expect("create");
    }
    let mut server = Server::start(ServerOptions::following(&mongo, &COLLECTIONS)).await;
    let token = server.token(&Claims::of("ann"));
    let mut client = Client::new(&server.url(), &token);
    client.start();
    let mut rng = StdRng::seed_from_u64(seed());
    let mut session = mongo.client.start_session().await.expect("a session");
    let mut moments = Vec::new();
    for _ in 0..MOMENTS {
        for _ in 0..rng.random_range(1..80) {
            write(&mongo.db, &mut session, &mut rng).await.expect("write");
        }
        moments.push(format!("{:016x}.7fffffff", time_of(&session)));
    }
    // Something after the last moment, so that it lies within the log.
    write(&mongo.db, &mut session, &mut rng).await.expect("write");
    let last = format!("{:016x}.00000000", time_of(&session));
    client.reaches(&last, PATIENCE).await;

    let data = server.data_dir();
    let replica = |at: &str| data.with_file_name(format!("replay-{at}.db"));
    let replay =
        |at: &str, to: &str| ops(&["replay", "--data-dir", text(&data), "--to", to, "--at", at]);
    for at in &moments {
        let to = replica(at);
        let (code, said) = replay(at, text(&to));
        assert_eq!(code, 0, "{said}");
        // The comparison reads the source by snapshot, at the replica's own position.
        let report = must_equal(&mongo.db, &plan(), &to).await;
        assert_eq!(&report.position.to_string(), at);
    }
    let (first, second) = (replica(&moments[0]), replica(&moments[MOMENTS - 1]));
    let (code, said) = ops(&["diff", text(&first), text(&second), "--json"]);
    assert_eq!(code, 1, "{said}");
    let told: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(told["equal"], false);
    let now = data.with_file_name("now.db");
    ops_done(&["replay", "--data-dir", text(&data), "--to", text(&now)]);
    let said = ops_done(&["diff", text(&now), text(&client.db())]);
    assert!(said.starts_with("equal"), "{said}");

    client.stop().await;
    server.stop().await;
    // What was written over in the present second is not old yet.
    is_over(present_second()).await;
    ops_done(&["log", "compact", "--data-dir", text(&data), "--retention", "0s"]);
    let again = data.with_file_name("again.db");
    // Of before the first moment there may be nothing that was written over.
    let (code, said) = replay(&moments[MOMENTS / 2], text(&again));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no longer holds") && said.contains("from "), "what there is: {said}");
    ops_done(&["replay", "--data-dir", text(&data), "--to", text(&again)]);
    let said = ops_done(&["diff", text(&again), text(&now)]);
    assert!(said.starts_with("equal"), "{said}");
}

fn present_second() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Waits until `second` (since 1970) is over.
async fn is_over(second: u64) {
    eventually("the second is over", PATIENCE, || async {
        (present_second() > second).then_some(())
    })
    .await;
}

/// The source's last second in which something was written, once it is over, and a replica of it then.
async fn remember(mongo: &Mongo, server: &Server) -> (u64, Client) {
    let hello = mongo.db.run_command(doc! { "hello": 1 }).await.expect("hello");
    let time = hello.get_timestamp("operationTime").expect("its time");
    let last = format!("{:08x}{:08x}.00000000", time.time, time.increment);
    is_over(time.time.into()).await;
    let client = Client::new(&server.url(), &server.token(&Claims::of("ann")));
    eventually("the replica has the last write", PATIENCE, || async {
        client.sync_once().await;
        client.position().filter(|position| *position >= last)
    })
    .await;
    must_equal(&mongo.db, &plan(), &client.db()).await;
    (time.time.into(), client)
}

/// `second` as people write it, at the hour of a place east of Greenwich.
fn east(second: u64, hours: u64) -> String {
    let there = time_text(i64::try_from((second + hours * 3_600) * 1_000).expect("a time"));
    there.replace('Z', &format!("+{hours:02}:00"))
}

fn utc(second: u64) -> String {
    time_text(i64::try_from(second * 1_000).expect("a time"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_names_the_end_of_its_second_before_and_after_a_drop_a_transaction_and_compaction() {
    let mongo = mongo().await;
    let mut server = Server::start(ServerOptions::following(&mongo, &COLLECTIONS)).await;
    let mut rng = StdRng::seed_from_u64(seed());
    let mut session = mongo.client.start_session().await.expect("a session");
    let invoices = mongo.db.collection::<Document>("invoices");
    for _ in 0..60 {
        write(&mongo.db, &mut session, &mut rng).await.expect("write");
    }
    let mut moments = vec![remember(&mongo, &server).await];
    invoices.drop().await.expect("drop");
    moments.push(remember(&mongo, &server).await);
    // What moment 1 has is superseded before the trim point, what follows is after it.
    for _ in 0..60 {
        write(&mongo.db, &mut session, &mut rng).await.expect("write");
    }
    let trimmed = time_of(&session) >> 32;
    is_over(trimmed + 5).await;
    invoices.insert_one(doc! { "_id": "last before" }).await.expect("insert");
    moments.push(remember(&mongo, &server).await);
    session.start_transaction().await.expect("a transaction");
    for name in COLLECTIONS {
        let all = mongo.db.collection::<Document>(name);
        all.delete_many(doc! {}).session(&mut session).await.expect("delete");
        let new = (1_000..1_400).map(|id| doc! { "_id": id });
        all.insert_many(new).session(&mut session).await.expect("insert");
    }
    session.commit_transaction().await.expect("commit");
    moments.push(remember(&mongo, &server).await);
    invoices.insert_one(doc! { "_id": "after all" }).await.expect("insert");
    remember(&mongo, &server).await;
    let seconds: Vec<u64> = moments.iter().map(|(second, _)| *second).collect();
    assert!(seconds.is_sorted_by(|one, next| one < next), "{seconds:?}");

    let data = server.data_dir();
    let replay = |name: &str, at: &str| {
        let to = data.with_file_name(format!("{name}.db"));
        let (code, said) =
            ops(&["replay", "--data-dir", text(&data), "--to", text(&to), "--at", at]);
        assert_eq!(to.exists(), code == 0, "{said}");
        (code, said, to)
    };
    let is_exact = |name: &str, at: &str, then: &Client| {
        let (code, said, to) = replay(name, at);
        assert_eq!(code, 0, "{at}: {said}");
        let said = ops_done(&["diff", text(&to), text(&then.db())]);
        assert!(said.starts_with("equal"), "{at}: {said}");
    };
    for (n, (second, then)) in moments.iter().enumerate() {
        is_exact(&format!("utc{n}"), &utc(*second), then);
        is_exact(&format!("east{n}"), &east(*second, 2), then);
        let within = utc(*second).replace(".000Z", ".250Z");
        assert_ne!(within, utc(*second));
        is_exact(&format!("within{n}"), &within, then);
    }
    let (code, said, _) = replay("never", &utc(present_second() + 3_600));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("does not reach"), "{said}");
    for nonsense in ["yesterday", "2026-01-31", "2026-01-31T12:00:00", "9999-01-01T00:00:00Z"] {
        let (code, said, _) = replay("nonsense", nonsense);
        assert_eq!(code, 2, "{nonsense}: {said}");
    }

    server.stop().await;
    // A few seconds may pass before it is there.
    let retention = format!("{}s", present_second() - trimmed - 1);
    ops_done(&["log", "compact", "--data-dir", text(&data), "--retention", &retention]);
    for (n, (second, _)) in moments.iter().enumerate().take(2) {
        let (code, said, _) = replay(&format!("gone{n}"), &utc(*second));
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("no longer holds") && said.contains("take a moment from"), "{said}");
    }
    for (n, (second, then)) in moments.iter().enumerate().skip(2) {
        is_exact(&format!("kept{n}"), &utc(*second), then);
    }
}

//! Time travel: any moment within the retention comes back exactly, and two of them can be compared.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidewire_tests::harness::{Claims, Client, Server, ServerOptions, mongo, must_equal, seed};

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
    ops_done(&["log", "compact", "--data-dir", text(&data), "--retention", "0s"]);
    let again = data.with_file_name("again.db");
    let (code, said) = replay(&moments[0], text(&again));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no longer holds") && said.contains("from "), "what there is: {said}");
    ops_done(&["replay", "--data-dir", text(&data), "--to", text(&again)]);
    let said = ops_done(&["diff", text(&again), text(&now)]);
    assert!(said.starts_with("equal"), "{said}");
}

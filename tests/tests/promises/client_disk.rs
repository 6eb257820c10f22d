//! The disk under a replica: full, or not what was written (FAULTS row 34). A client stops with the reason
//! or makes the file anew; what is shown is a state that the source had.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bson::{Document, doc};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, eventually, mongo, must_equal, program, seed,
};

const NAMES: [&str; 1] = ["users"];
const SOON: Duration = Duration::from_secs(60);

async fn filled() -> (Mongo, Server) {
    let mongo = mongo().await;
    let users = mongo.db.collection::<Document>("users");
    let rows = (0..2_000).map(|n| doc! { "_id": n, "name": format!("user {n}"), "n": n });
    users.insert_many(rows).await.expect("insert");
    let server = Server::start(ServerOptions::following(&mongo, &NAMES)).await;
    (mongo, server)
}

/// A file system of its own in a folder, until it is dropped.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    /// `None` where the system lets only others mount.
    fn mount(folder: &'a Path, size: &str) -> Option<Self> {
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder)
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(folder))
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        let grown = Command::new("mount").args(["-o", &options]).arg(self.0).status();
        assert!(grown.expect("run mount").success(), "the disk can't be made larger");
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // Lazily: the client may not have let go of it.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_stops_a_live_client_with_the_reason_and_with_room_it_goes_on() {
    let (mongo, server) = filled().await;
    let token = server.token(&Claims::of("asha"));
    let mut client = Client::new(&server.url(), &token);
    let folder = client.dir().to_owned();
    let Some(disk) = Small::mount(&folder, "6m") else {
        eprintln!("SKIPPED: a small disk takes the right to mount one");
        return;
    };
    client.set_token(&token);
    client.start();
    eventually("the client is live", SOON, || async {
        let sql = "SELECT 1 FROM _tidewire_status WHERE state = 'live'";
        client.open().ok()?.query_row(sql, [], |_| Ok(())).ok()
    })
    .await;
    let users = mongo.db.collection::<Document>("users");
    let text = "x".repeat(10_000);
    let large = (10_000..11_500).map(|n| doc! { "_id": n, "text": &text });
    users.insert_many(large).await.expect("insert");
    let ended = client.ended(SOON).await;
    assert_eq!(ended.code(), Some(1), "{ended}");
    let told = client.log_text();
    assert!(told.contains("the replica can't be used: database or disk is full"), "{told}");
    // What was committed before can be read, and is whole.
    must_equal(&mongo.db, &Plan::everything(&NAMES), &client.db()).await;
    disk.grow("100m");
    client.sync_once().await;
    must_equal(&mongo.db, &Plan::everything(&NAMES), &client.db()).await;
    drop((client, disk));
}

/// Turns some bits of a file over; says where.
fn spoil(file: &Path, chance: &mut StdRng) -> Vec<usize> {
    let mut bytes = std::fs::read(file).expect("the replica");
    let count = chance.random_range(1..20);
    let places: Vec<usize> = (0..count).map(|_| chance.random_range(0..bytes.len())).collect();
    for &place in &places {
        bytes[place] ^= 1 << chance.random_range(0..8);
    }
    std::fs::write(file, &bytes).expect("write the replica");
    places
}

/// What `tidewire verify` says.
async fn verify(server: &Server, client: &Client) -> String {
    let mut run = Command::new(program("tidewire"));
    run.args(["verify", "--server", &server.url(), "--token-file"]);
    run.arg(client.token_file()).arg("--db").arg(client.db());
    let run = tokio::task::spawn_blocking(move || run.output()).await.expect("run").expect("run");
    format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_flipped_bits_is_mended_or_made_anew_and_ends_equal() {
    let (mongo, server) = filled().await;
    let mut chance = StdRng::seed_from_u64(seed());
    let client = Client::new(&server.url(), &server.token(&Claims::of("asha")));
    client.sync_once().await;
    let (mut anew, mut mended) = (0, 0);
    for round in 0..12 {
        let places = spoil(&client.db(), &mut chance);
        let what = format!("round {round}, bits at {places:?}");
        // A client compares its replica by itself; here it is told to, so that it is now. One that is made
        // anew is compared the next time.
        let mut told = String::new();
        for _ in 0..5 {
            told = verify(&server, &client).await;
            if told.contains(": 0 rows differed") {
                break;
            }
            mended += usize::from(told.contains("rows differed"));
        }
        assert!(told.contains(": 0 rows differed"), "{what}: {told}");
        must_equal(&mongo.db, &Plan::everything(&NAMES), &client.db()).await;
        let aside = client.dir().join("replica.db.damaged");
        anew += usize::from(std::fs::remove_file(aside).is_ok());
    }
    println!("{anew} made anew, {mended} mended");
    assert!(anew + mended > 0, "nothing was found");
}

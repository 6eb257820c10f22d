//! The tests' own ground: real processes start, fail on demand, and never outlive their test.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use bson::doc;
use tidewire_ops::process::Launch;
use tidewire_tests::harness::{Proxy, eventually, mongo, three_nodes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn a_started_mongod_takes_majority_writes_and_fails_on_demand() {
    let mongo = mongo().await;
    let users = mongo.db.collection::<bson::Document>("users");
    users.insert_one(doc! { "name": "Asha" }).await.expect("a majority write");
    let fails = mongo.fail_command(&["find"], 2, &[], "alwaysOn").await;
    users.find_one(doc! {}).await.expect_err("find fails while the failpoint is on");
    fails.off().await;
    assert!(users.find_one(doc! {}).await.expect("find works again").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_comes_back_with_its_data() {
    let mut mongo = mongo().await;
    let users = mongo.db.collection::<bson::Document>("users");
    users.insert_one(doc! { "name": "Asha" }).await.expect("a majority write");
    mongo.node(0).kill().await.expect("kill it");
    mongo.node(0).restart().await.expect("start it again");
    mongo.set.primary().await.expect("a primary");
    assert!(users.find_one(doc! {}).await.expect("find").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_elect_another_primary_when_one_is_killed() {
    let mut mongo = three_nodes().await;
    let first = mongo.set.primary().await.expect("a primary");
    mongo.node(first).kill().await.expect("kill it");
    let second = mongo.set.primary().await.expect("another primary");
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_child_dies_with_a_parent_that_is_killed() {
    let mut parent = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "harness::a_parent_that_waits_to_be_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the parent");
    let mut lines = BufReader::new(parent.stdout.take().expect("its output")).lines();
    let child = lines.find_map(|line| line.ok()?.strip_prefix("child ")?.parse().ok());
    let child: u32 = child.expect("the child's id");
    assert!(runs(child));
    parent.kill().expect("kill -9 the parent");
    parent.wait().expect("its end");
    eventually("the child is gone", Duration::from_secs(5), || async {
        (!runs(child)).then_some(())
    })
    .await;
}

#[test]
#[ignore = "started by a_child_dies_with_a_parent_that_is_killed"]
fn a_parent_that_waits_to_be_killed() {
    let dir = tempfile::tempdir().expect("a folder");
    let child = Launch::new("sleep", dir.path().join("log")).arg("600").start().expect("start");
    println!("\nchild {}", child.id());
    std::thread::sleep(Duration::from_secs(600));
}

/// A zombie that nobody has reaped does not run.
fn runs(id: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

#[tokio::test]
async fn the_proxy_swallows_delays_and_cuts() {
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let target = echo.local_addr().expect("its address").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    let proxy = Proxy::to(target).await;
    let mut stream = tokio::net::TcpStream::connect(proxy.address()).await.expect("connect");
    let mut byte = [0];
    stream.write_all(b"a").await.expect("write");
    stream.read_exact(&mut byte).await.expect("the echo");
    proxy.black_hole(true);
    stream.write_all(b"b").await.expect("write into the hole");
    let silence = Duration::from_millis(100);
    tokio::time::timeout(silence, stream.read_exact(&mut byte)).await.expect_err("no echo");
    proxy.black_hole(false);
    stream.read_exact(&mut byte).await.expect("the late echo");
    proxy.cut();
    assert_eq!(stream.read(&mut byte).await.unwrap_or(0), 0, "the connection ends");
    assert_eq!(proxy.connections(), 1);
}

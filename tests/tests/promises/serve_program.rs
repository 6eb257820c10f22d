//! The program as an operator meets it: exit codes, what `--check` says, no secret in its log (FAULTS
//! rows 43 and 51), and a drain that ends in time.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use mongodb::bson::doc;
use nix::sys::signal::Signal;
use tidewire_tests::harness::{Claims, SECRET, Server, ServerOptions, mongo, program, sign};

const GOOD: &str = r#"
[source]
uri = "mongodb://someone:canary-password@127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=300"
database = "invoify"
[http]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
[auth]
hs256_secret = "canary-secret-canary-secret-canary"
[access]
grants = ["everyone"]
[[collections]]
name = "plans"
channels = ["everyone"]
"#;

fn run(dir: &Path, config: &str, arguments: &[&str]) -> (i32, String) {
    let path = dir.join("tidewire.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(program("tidewire-server"));
    command.current_dir(dir).arg("--config").arg(path).args(arguments).env("RUST_LOG", "trace");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    assert!(!text.contains("canary"), "a secret is shown: {text}");
    (status.code().unwrap(), text)
}

#[test]
fn exit_codes_and_messages_say_what_to_do_and_never_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let check = |config: &str, arguments: &[&str], code: i32, says: &str| {
        let (got, text) = run(dir.path(), config, arguments);
        assert_eq!(got, code, "{text}");
        assert!(text.contains(says), "{text}");
    };
    check(GOOD, &["--check"], 0, "the configuration is good");
    check(GOOD, &[], 4, "can't be reached");
    check(&GOOD.replace("canary-secret-canary-secret-", ""), &["--check"], 2, "at least 32");
    check(&GOOD.replace("canary-secret-canary-secret-", ""), &[], 2, "at least 32");
    check(&GOOD.replace("[auth]", "[auth]\njwks_url = \"x\""), &[], 2, "not supported yet");
    check(&GOOD.replace("name = \"plans\"", "name = \"system.users\""), &["--check"], 2, "system");
    check(&GOOD.replace("hs256_secret =", "hs256_sekret ="), &["--check"], 2, "hs256_sekret");
    check(&GOOD.replace("\"canary-secret", "canary-secret"), &["--check"], 2, "line");
    check(GOOD, &["--no-such-flag"], 2, "--no-such-flag");
    check(GOOD, &["--listen", "nonsense"], 2, "http.listen");
}

#[tokio::test]
async fn no_token_and_no_secret_reaches_the_log() {
    let mongo = mongo().await;
    mongo
        .db
        .collection("plans")
        .insert_one(doc! { "_id": 1, "text": "canary-document" })
        .await
        .unwrap();
    let mut options = ServerOptions::following(&mongo, &["plans"]);
    options.envs.push(("RUST_LOG".into(), "trace".into()));
    let server = Server::start(options).await;
    let token = sign(SECRET, &Claims::of("ann")).unwrap();
    let forged = sign("a secret that the server does not know", &Claims::of("canary-sub")).unwrap();
    let (status, page) = server.pull(&token, "since=0").await;
    assert_eq!((status, &page["count"]), (200, &serde_json::json!(1)));
    assert_eq!(server.pull(&forged, &format!("since=0&token={token}&x=canary-query")).await.0, 401);
    let log = server.log_text();
    assert!(log.contains("answered"), "requests are logged at this level");
    for secret in [&token[..], &forged, SECRET, "canary", token.rsplit('.').next().unwrap()] {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} is in the log: {line:?}");
    }
}

#[tokio::test]
async fn a_signal_ends_the_server_in_time_while_readers_wait() {
    let mongo = mongo().await;
    let mut server = Server::start(ServerOptions::following(&mongo, &["plans"])).await;
    let token = sign(SECRET, &Claims::of("ann")).unwrap();
    let (_, page) = server.pull(&token, "").await;
    let query = format!("wait=60&since={}", page["cursor"].as_str().unwrap());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let url = format!("{}/api/sync/pull?{query}", server.url());
        let held = tokio::spawn(reqwest::Client::new().get(url).bearer_auth(&token).send());
        // A request that is answered after the held one was sent: by then the held one is there.
        server.pull(&token, "").await;
        let began = Instant::now();
        server.signal(signal);
        let ended = server.ended(Duration::from_secs(10)).await;
        assert_eq!(ended.code(), Some(0), "{}", server.log_text());
        assert!(began.elapsed() < Duration::from_secs(10));
        drop(held.await);
        server.launch();
        server.ready().await;
    }
    server.no_unexpected_errors();
}

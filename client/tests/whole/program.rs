//! The `tidewire` program: flags, outputs, exit codes.

use std::path::Path;
use std::process::{Command, Output};

use super::server::{Server, json, refusal};
use super::{page, token};

fn tidewire(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidewire")).args(args).output().unwrap()
}

async fn sync(server: &str, folder: &Path, more: &[&str]) -> Output {
    let file = folder.join("token");
    std::fs::write(&file, token("ada")).unwrap();
    let (file, db) = (file.display().to_string(), folder.join("replica.db").display().to_string());
    let mut args: Vec<String> =
        ["sync", "--server", server, "--token-file", &file, "--db", &db].map(str::to_owned).into();
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    let run = move || tidewire(&args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn a_replica_is_made_shown_and_asked() {
    let folder = tempfile::tempdir().unwrap();
    let rows =
        [("users", "a", 1, Some(r#"{"n":1,"t":"x"}"#)), ("users", "b", 2, Some(r#"{"n":2}"#))];
    let server = Server::start([json(200, &page(&rows, "c1", false, true))]).await;
    let output = sync(&server.address, folder.path(), &["--once", "--json"]).await;
    assert!(output.status.success(), "{output:?}");
    // A line of JSON whenever the status changed; the last one is the end's.
    let lines = text(&output.stdout);
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let status = lines.last().unwrap();
    assert_eq!((&status["initialized"], &status["state"]), (&true.into(), &"stopped".into()));
    assert_eq!(status["lastSync"]["applied"], 2);

    let db = folder.path().join("replica.db").display().to_string();
    let shown = tidewire(&["status", "--db", &db, "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["state"], &shown["isOnline"]), (&"stopped".into(), &false.into()));
    assert_eq!(shown["cursor"], "c1");

    let sql = "SELECT _id, n, t FROM users ORDER BY n";
    assert_eq!(
        text(&tidewire(&["query", "--db", &db, sql]).stdout),
        "_id\tn\tt\na\t1\tx\nb\t2\tNULL\n"
    );
    let rows: serde_json::Value =
        serde_json::from_slice(&tidewire(&["query", "--db", &db, sql, "--json"]).stdout).unwrap();
    assert_eq!(rows, serde_json::json!([{"_id":"a","n":1,"t":"x"},{"_id":"b","n":2,"t":null}]));
    let write = tidewire(&["query", "--db", &db, "DELETE FROM users"]);
    assert_eq!(write.status.code(), Some(1));
    assert!(text(&write.stderr).contains("read"), "{write:?}");
}

#[tokio::test]
async fn every_end_has_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start([refusal(401, "unauthenticated", "")]).await;
    let refused = sync(&server.address, folder.path(), &["--once"]).await;
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(text(&refused.stderr).contains("the server refuses the token: said so; do this"));
    assert!(!text(&refused.stderr).contains(&token("ada")), "the token is never shown");

    let unreachable = sync("http://127.0.0.1:1", folder.path(), &["--once"]).await;
    assert_eq!(unreachable.status.code(), Some(4), "{unreachable:?}");

    for more in [&["--transport", "pigeon"][..], &["--poll-interval", "0s"], &["--nonsense"]] {
        let usage = sync(&server.address, folder.path(), more).await;
        assert_eq!(usage.status.code(), Some(2), "{usage:?}");
    }
    let address = sync("sync.example.com", folder.path(), &[]).await;
    assert_eq!(address.status.code(), Some(2), "{address:?}");
    let db = folder.path().join("nothing.db").display().to_string();
    let missing = tidewire(&["status", "--db", &db]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("`tidewire sync` makes one"));
    let diary = folder.path().join("diary.txt");
    std::fs::write(&diary, "dear diary").unwrap();
    let foreign = tidewire(&["query", "--db", &diary.display().to_string(), "SELECT 1"]);
    assert_eq!(foreign.status.code(), Some(2), "{foreign:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_signal_ends_a_running_client_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start([json(200, &page(&[], "c1", false, true))]).await;
    let file = folder.path().join("token");
    std::fs::write(&file, token("ada")).unwrap();
    let db = folder.path().join("replica.db");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidewire"))
        .args(["sync", "--server", &server.address, "--token-file"])
        .arg(&file)
        .arg("--db")
        .arg(&db)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    server.pulled(2).await;
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(super::one::<i64>(&db, "SELECT clean FROM _tidewire_state"), 1);
}

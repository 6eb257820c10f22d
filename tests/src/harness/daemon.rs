//! `tidewire daemon` and an app that speaks to it.

use std::time::Duration;

use serde_json::{Value, json};
use tidewire_ops::process::{Guarded, Launch};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Client, eventually, program};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon, in the place of a client's `sync`, and the app's line to it.
#[derive(Debug)]
pub struct Daemon {
    lines: Lines<BufReader<OwnedReadHalf>>,
    output: OwnedWriteHalf,
    asked: u64,
    _process: Guarded,
}

impl Daemon {
    /// Keeps `client`'s replica, with its token file.
    ///
    /// # Panics
    /// When it does not come to listen.
    pub async fn start(client: &Client) -> Self {
        let launch = Launch::new(program("tidewire"), client.dir().join("daemon.log"));
        let launch = launch.args(["daemon", "--server", client.server(), "--token-file"]);
        let launch = launch.arg(client.token_file()).arg("--db").arg(client.db());
        let process = launch.start().expect("start the daemon");
        let socket = client.dir().join("replica.db.sock");
        let stream = eventually("the daemon listens", PATIENCE, || async {
            UnixStream::connect(&socket).await.ok()
        })
        .await;
        let (input, output) = stream.into_split();
        Self { lines: BufReader::new(input).lines(), output, asked: 0, _process: process }
    }

    /// Asks; the result.
    ///
    /// # Panics
    /// When an error comes, or nothing in time.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        let ask = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        self.output.write_all(format!("{ask}\n").as_bytes()).await.expect("ask");
        loop {
            let message = self.next().await;
            if message["id"] == id {
                assert!(message.get("error").is_none(), "{message}");
                return message["result"].clone();
            }
        }
    }

    /// Waits for a status that is as wanted, among those that it tells by itself.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn tells(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.next().await;
            if message["method"] == "status" && wanted(&message["params"]) {
                return message["params"].clone();
            }
        }
    }

    /// The next commit that it tells.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn changes(&mut self) -> Value {
        loop {
            let message = self.next().await;
            if message["method"] == "changes" {
                return message["params"].clone();
            }
        }
    }

    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.expect("a line in time").expect("a line").expect("the daemon runs");
        serde_json::from_str(&line).expect("JSON")
    }
}

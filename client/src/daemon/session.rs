//! One app's session: lines in, lines out. Nothing is told to who has not asked anything yet.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::io::BufReader;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::rpc::{self, Method, Request, RpcError};
use crate::client::SyncClient;

/// Longest line that is read, in bytes: a token of 64 KiB and what is around it.
const LINE_BYTES_MAX: usize = 128 << 10;
/// Requests under way; further lines wait unread.
const REQUESTS_MAX: usize = 16;
/// An app that takes nothing for so long is left.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// How long a pull that an app asked for is waited for.
const PULL_MAX: Duration = Duration::from_secs(30);

/// Talks until the input ends and what was asked is answered, or the output breaks, or the client ends.
pub(super) async fn talk(
    client: &SyncClient,
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) {
    let (lines, mut inbox) = mpsc::channel(1);
    let reading = read_lines(input, lines);
    tokio::pin!(reading);
    let (mut status, mut changes) = (client.status(), client.changes());
    let mut jobs = FuturesUnordered::new();
    let (mut spoken, mut reads, mut ended) = (false, true, false);
    while !(ended && jobs.is_empty()) {
        let tells = spoken && !ended;
        let line = tokio::select! {
            () = &mut reading, if reads => {
                reads = false;
                continue;
            }
            line = inbox.recv(), if !ended && jobs.len() < REQUESTS_MAX => match line {
                None => {
                    ended = true;
                    continue;
                }
                Some(Err(error)) => {
                    ended = true;
                    rpc::answer(&Value::Null, Err(error))
                }
                Some(Ok(line)) => match rpc::read(&line) {
                    Err(refusal) => refusal,
                    Ok(request) => {
                        spoken = true;
                        jobs.push(answer(client, request));
                        continue;
                    }
                },
            },
            Some(reply) = jobs.next(), if !jobs.is_empty() => match reply {
                Some(line) => line,
                None => continue,
            },
            changed = changes.next(), if tells => match changed {
                Some(changed) => rpc::changes(&changed),
                None => return,
            },
            changed = status.changed(), if tells => {
                if changed.is_err() {
                    return;
                }
                let now = status.borrow_and_update().clone();
                rpc::notification("status", &now)
            }
        };
        let written = async {
            output.write_all(line.as_bytes()).await?;
            output.flush().await
        };
        if !matches!(timeout(WRITE_MAX, written).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Hands lines over, one at a time; an error is the last one.
async fn read_lines(input: impl AsyncRead + Unpin, lines: mpsc::Sender<Result<Vec<u8>, RpcError>>) {
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut input).take(LINE_BYTES_MAX as u64 + 1);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = line.ends_with(b"\n");
        if !whole && line.len() > LINE_BYTES_MAX {
            lines.send(Err(RpcError::too_long(LINE_BYTES_MAX))).await.ok();
            return;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if lines.send(Ok(line)).await.is_err() || !whole {
            return;
        }
    }
}

/// Does what is asked; the answer's line, where one is wanted.
async fn answer(client: &SyncClient, request: Request) -> Option<String> {
    let result = match request.method {
        Ok(method) => obey(client, method).await,
        Err(error) => Err(error),
    };
    request.id.map(|id| rpc::answer(&id, result))
}

async fn obey(client: &SyncClient, method: Method) -> Result<Value, RpcError> {
    let status = client.status();
    let now = status.borrow().clone();
    match method {
        Method::GetStatus => Ok(json!(now)),
        Method::GetOnlineStatus => Ok(json!({
            "isOnline": now.is_online, "state": now.state, "transport": now.transport
        })),
        Method::PullFromServer => pull(client).await,
        Method::SetAuthToken(token) => {
            client.set_token(token).await.map(|()| json!({})).map_err(|_| RpcError::ended())
        }
        Method::Rebuild => {
            client.rebuild().await.map(|()| json!({})).map_err(|_| RpcError::ended())
        }
        Method::WaitFor { position, timeout_ms } => {
            let waited = timeout(Duration::from_millis(timeout_ms), client.wait_for(position));
            let reached = match waited.await {
                Ok(Ok(())) => true,
                Ok(Err(_)) => return Err(RpcError::ended()),
                Err(_) => false,
            };
            let position = status.borrow().position.clone();
            Ok(json!({ "reached": reached, "position": position }))
        }
    }
}

/// A pull, asked for now, and what it brought.
async fn pull(client: &SyncClient) -> Result<Value, RpcError> {
    match timeout(PULL_MAX, client.pull()).await {
        Ok(Ok(brought)) => Ok(json!(brought)),
        Ok(Err(_)) => Err(RpcError::ended()),
        Err(_) => Err(RpcError::no_answer()),
    }
}

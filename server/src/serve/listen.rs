//! Sockets: accepted up to a bound, given a time for their headers and for taking what they asked for,
//! and finished in order when the server drains.
//!
//! `axum::serve` sets no timer for headers, so a few thousand sockets that send a byte now and then
//! would hold it; hyper is driven here directly.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::stall::StallGuard;

/// The whole head of a request must be there within this time; an idle connection is closed after it.
const HEADER_READ_MAX: Duration = Duration::from_secs(10);
/// A client that takes no byte of its answer for so long is dropped …
const WRITE_STALL_MAX: Duration = Duration::from_secs(20);
/// … and so is one that, for longer than that, takes fewer bytes a second: the largest pages are few.
const WRITE_RATE_MIN: u32 = 16 * 1024;
/// Connections of one listener.
const CONNECTIONS_MAX: usize = 4_096;
/// What waits in the system to be sent to one client, in bytes: beyond it the client is waited for, and one
/// that takes nothing is found out by little. What is on its way comes on top, so that a long line is full.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 16 * 1024;
/// hyper's read buffer, which bounds a request's head; the guard's bounds are narrower, and what goes
/// beyond this is refused by hyper itself, with a bare 431.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header lines that hyper takes; the guard takes fewer, and says so in a body.
const HEADERS_MAX: usize = 256;
/// Rest after a failed accept (no file descriptors left), which would otherwise spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Answers that were begun when draining began must be taken within this time.
const DRAIN_MAX: Duration = Duration::from_secs(6);

const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\n\
content-type: application/json\r\ncontent-length: 191\r\n\r\n\
{\"success\":false,\"error\":{\"code\":\"not_ready\",\"message\":\"this server has all the connections it can bear\",\
\"remedy\":\"try again after Retry-After\",\"retryAfter\":5,\"requestId\":\"0000000000000000\"}}";

/// Answers on `listener` by `app` until `draining` is cancelled, then finishes what was begun, for
/// [`DRAIN_MAX`] at most.
pub(super) async fn serve(listener: TcpListener, app: Router, draining: CancellationToken) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let service = TowerToHyperService::new(app);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(true);
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !is_of_one_connection(&error) {
                    tracing::error!(%error, "connections can't be accepted; raise the limit of open files");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            refuse(&stream);
            continue;
        };
        // A page goes out at once, not when the other side has acknowledged the packet before.
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
        let io = TokioIo::new(StallGuard::new(stream, WRITE_STALL_MAX, WRITE_RATE_MIN));
        let connection = http.serve_connection(io, service.clone()).with_upgrades();
        let draining = draining.clone();
        connections.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = draining.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "a connection ended early"
                );
            }
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        tracing::warn!("some clients did not take their answers in time; they are cut off");
    }
}

/// One canned answer, if the socket takes it at once.
fn refuse(stream: &TcpStream) {
    tracing::debug!("a connection is refused: there are too many");
    let _ = stream.try_write(TOO_MANY);
}

/// Errors of a connection that was gone before it was accepted say nothing about the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_canned_answer_is_well_formed() {
        let text = std::str::from_utf8(super::TOO_MANY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let body: tidewire_protocol::ErrorBody = serde_json::from_str(body).unwrap();
        assert_eq!(body.error.code, "not_ready");
    }
}

//! Sockets that misbehave (FAULTS row 48 without the push socket's part): closed or refused in time,
//! and nobody else notices.

use std::time::{Duration, Instant};

use bson::rawdoc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::served::{Served, at};

const CLOSED_WITHIN: Duration = Duration::from_secs(12);

async fn connect(served: &Served) -> TcpStream {
    TcpStream::connect(served.url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// Everything until the server closes; a reset is a close too.
async fn read_to_close(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(CLOSED_WITHIN, stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("the server closes in time");
    bytes
}

async fn filled() -> Served {
    let mut served = Served::start().await;
    served.put(at(1), "plans", &rawdoc! {"_id": 1});
    served.commit(at(1));
    served
}

#[tokio::test]
async fn slow_headers_and_idle_sockets_are_closed_and_nobody_else_notices() {
    let served = filled().await;
    let mut idle = Vec::new();
    for n in 0..300 {
        let mut stream = connect(&served).await;
        if n % 2 == 0 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
        }
        idle.push(stream);
    }
    let began = Instant::now();
    let mut slow = connect(&served).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    let drip = async {
        // A byte now and then does not buy time.
        while began.elapsed() < CLOSED_WITHIN {
            if slow.write_all(b"x").await.is_err() {
                break;
            }
            let mut byte = [0; 64];
            let read = tokio::time::timeout(Duration::from_millis(500), slow.read(&mut byte)).await;
            if matches!(read, Ok(Ok(0) | Err(_))) {
                break;
            }
        }
        began.elapsed()
    };
    let healthy = async {
        for _ in 0..20 {
            let asked = Instant::now();
            assert_eq!(served.pull("ann", "").await["count"], 1);
            assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        }
    };
    let (dripped, ()) = tokio::join!(drip, healthy);
    assert!(dripped < CLOSED_WITHIN, "{dripped:?}");
    for mut stream in idle {
        read_to_close(&mut stream).await;
    }
}

#[tokio::test]
async fn floods_and_garbage_are_refused_and_closed() {
    let served = filled().await;
    let header_flood =
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{}", "x-a: b\r\n".repeat(50_000));
    let header_line = format!("GET /healthz HTTP/1.1\r\nx: {}", "x".repeat(1_000_000));
    let long_url = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(200_000));
    for (what, bytes) in [
        ("header flood", header_flood.as_bytes()),
        ("endless header", header_line.as_bytes()),
        ("endless URL", long_url.as_bytes()),
        ("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (
            "two lengths",
            b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        ),
        ("NUL in a header", b"GET /healthz HTTP/1.1\r\nhost: x\0y\r\n\r\n"),
    ] {
        let mut stream = connect(&served).await;
        // It may close before it has read all of it.
        let _ = stream.write_all(bytes).await;
        let answer = read_to_close(&mut stream).await;
        let line = String::from_utf8_lossy(&answer[..answer.len().min(40)]).into_owned();
        assert!(answer.is_empty() || line.starts_with("HTTP/1.1 4"), "{what}: {line}");
    }
    assert_eq!(served.pull("ann", "").await["count"], 1);
}

#[tokio::test]
async fn a_connection_takes_many_requests() {
    let served = filled().await;
    let mut stream = connect(&served).await;
    for _ in 0..3 {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut bytes = [0; 1024];
        let read = stream.read(&mut bytes).await.unwrap();
        let text = String::from_utf8_lossy(&bytes[..read]);
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("ok\n"), "{text}");
    }
}

#[tokio::test]
async fn readers_that_never_read_do_not_keep_pages_from_others() {
    let mut served = Served::start().await;
    // Random text, so that no buffer of the system swallows a page.
    for n in 0..12_u64 {
        let text: String = (0..1_000_000).map(|_| rand::random_range('a'..='z')).collect();
        served.put(at(n), "plans", &rawdoc! {"_id": n as i64, "text": text});
    }
    served.commit(at(12));
    let claims = tidewire_tests::harness::Claims::of("ann");
    let token = tidewire_tests::harness::sign(tidewire_tests::harness::SECRET, &claims).unwrap();
    let mut stuck = Vec::new();
    for _ in 0..30 {
        let mut stream = connect(&served).await;
        let ask = format!(
            "GET /api/sync/pull HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        stuck.push(stream);
    }
    // While they hold all the memory for pages, others are told to come again; then they are let go.
    let began = Instant::now();
    loop {
        let answer = served.get_as("ann", "/api/sync/pull?limit=1").await;
        match answer.status().as_u16() {
            200 => break,
            503 => assert!(answer.headers().contains_key("retry-after")),
            other => panic!("{other}"),
        }
        assert!(began.elapsed() < Duration::from_secs(50), "the stuck readers are never let go");
    }
}

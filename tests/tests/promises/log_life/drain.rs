//! FAULTS 32: SIGTERM under load, again and again.

use std::time::{Duration, Instant};

use bson::{Document, doc};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tidewire_tests::harness::{
    Claims, Client, Server, ServerOptions, Socket, collection, kills, mongo, must_equal, seed,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::{COLLECTIONS, Load, PATIENCE, Pages, plan};

const ENDS: u64 = 6;
const SOCKETS: usize = 8;
/// Pages that are being taken when the signal comes, each of one document of so many characters: more
/// than the buffers of a connection hold.
const SLOW: usize = 3;
const WIDE: usize = 6_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_under_load_tells_sockets_finishes_pages_and_ends_in_time() {
    let mongo = mongo().await;
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let text: String = (0..WIDE).map(|_| char::from(rng.random_range(b'0'..=b'z'))).collect();
    let wide = mongo.db.collection::<Document>("wide");
    wide.insert_one(doc! { "_id": 1, "text": &text }).await.expect("insert");
    let load = Load::start(&mongo, seed).await;
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    options.collections += &collection("wide", &["user:slow"], &[]);
    let mut server = Server::start(options).await;
    let token = server.token(&Claims::of("ann"));
    let slow_token = server.token(&Claims::of("slow"));
    let mut client = Client::new(&server.url(), &token);
    client.start();
    let mut pages = Pages::new(20);
    for _ in 0..kills(ENDS) {
        let mut sockets = Vec::new();
        for _ in 0..SOCKETS {
            sockets.push(Socket::open(&server.url(), &token, "0").await);
        }
        load.more(20).await;
        pages.step(&server, &token).await;
        let mut begun = Vec::new();
        for _ in 0..SLOW {
            begun.push(SlowPage::begin(&server, &slow_token).await);
        }
        // And one of which nobody knows whether it is accepted yet.
        let url = format!("{}/api/sync/pull?since=0&limit=10000", server.url());
        let pull = reqwest::Client::new().get(url).bearer_auth(&token).send();
        let pulled = tokio::spawn(async move {
            let answer = pull.await.ok()?;
            Some((answer.status().as_u16(), answer.text().await))
        });
        let began = Instant::now();
        server.signal(Signal::SIGTERM);
        let taken: Vec<_> = begun.into_iter().map(|page| tokio::spawn(page.take())).collect();
        for mut socket in sockets {
            assert_eq!(told_to_go(&mut socket).await, ("draining".to_owned(), 1001));
        }
        let told = began.elapsed();
        let ended = server.ended(Duration::from_secs(10)).await;
        assert_eq!(ended.code(), Some(0), "{}", server.log_text());
        let took = began.elapsed();
        println!("told after {told:?}, ended after {took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        for page in taken {
            let page = page.await.expect("a whole page");
            assert_eq!(page["changes"][0]["payload"]["text"], text.as_str());
            assert_eq!(page["count"], 1);
        }
        // Not accepted any more is an answer too; half of one is none.
        if let Some((status, body)) = pulled.await.expect("a task") {
            let body = body.expect("a whole answer");
            assert!(status == 200 || status == 503, "{status}");
            assert!(serde_json::from_str::<Value>(&body).is_ok(), "a cut page");
        }
        server.launch();
        server.ready().await;
    }
    let last = load.end().await;
    pages.reach(&server, &token, &last).await;
    client.reaches(&last, PATIENCE).await;
    must_equal(&mongo.db, &plan(), &client.db()).await;
    pages.must_equal(&client);
    client.stop().await;
    assert_eq!(server.stop().await.code(), Some(0));
}

/// An answer of which the first bytes are there.
struct SlowPage {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl SlowPage {
    /// Asks for the wide document and takes the answer's head.
    async fn begin(server: &Server, token: &str) -> Self {
        let host = server.url().replace("http://", "");
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(32 * 1024).expect("a small buffer");
        let mut stream = socket.connect(host.parse().expect("an address")).await.expect("connect");
        let ask = format!(
            "GET /api/sync/pull?since=0&collections=wide HTTP/1.1\r\nhost: {host}\r\n\
             authorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).await.expect("ask");
        let mut page = Self { stream, bytes: Vec::new() };
        while page.head().is_none() {
            page.more().await;
        }
        let (head, _) = page.head().expect("it is there");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        page
    }

    /// The answer's head and where its body begins.
    fn head(&self) -> Option<(&str, usize)> {
        let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        Some((std::str::from_utf8(&self.bytes[..end]).expect("a text"), end))
    }

    async fn more(&mut self) {
        let mut some = [0; 32 * 1024];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut some)).await;
        let read = read.expect("more in time").expect("more of the answer");
        assert_ne!(read, 0, "cut after {} bytes", self.bytes.len());
        self.bytes.extend_from_slice(&some[..read]);
    }

    /// Takes the rest, over a second and more.
    async fn take(mut self) -> Value {
        let (head, begins) = self.head().expect("it is there");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let ends = begins + length.expect("a length").parse::<usize>().expect("a number");
        while self.bytes.len() < ends {
            self.more().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        serde_json::from_slice(&self.bytes[begins..]).expect("JSON")
    }
}

/// What ends a socket, past what it is still told: the error's code and the close code.
async fn told_to_go(socket: &mut Socket) -> (String, u16) {
    let mut code = String::new();
    loop {
        match socket.next().await {
            Ok(frame) if frame["type"] == "error" => {
                code = frame["error"]["code"].as_str().expect("a code").to_owned();
            }
            Ok(_) => {}
            Err(close) => return (code, close),
        }
    }
}

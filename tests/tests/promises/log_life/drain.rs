//! FAULTS 32: SIGTERM under load, again and again.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tidewire_tests::harness::{
    Claims, Client, Server, ServerOptions, Socket, mongo, must_equal, seed,
};

use super::{COLLECTIONS, Load, PATIENCE, Pages, plan};

/// Ends; `TIDEWIRE_TEST_KILLS` for more.
const ENDS: u64 = 6;
const SOCKETS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_under_load_tells_sockets_finishes_pages_and_ends_in_time() {
    let mongo = mongo().await;
    let load = Load::start(&mongo, seed()).await;
    let mut server = Server::start(ServerOptions::following(&mongo, &COLLECTIONS)).await;
    let token = server.token(&Claims::of("ann"));
    let mut client = Client::new(&server.url(), &token);
    client.start();
    let mut pages = Pages::new(20);
    let ends = std::env::var("TIDEWIRE_TEST_KILLS").map_or(ENDS, |n| n.parse().expect("a number"));
    for _ in 0..ends {
        let mut sockets = Vec::new();
        for _ in 0..SOCKETS {
            sockets.push(Socket::open(&server.url(), &token, "0").await);
        }
        load.more(20).await;
        pages.step(&server, &token).await;
        // A pull that is being answered when the signal comes: a page, or "draining" with its cursor.
        let (url, token_too) = (server.url(), token.clone());
        let pulled = tokio::spawn(async move {
            let url = format!("{url}/api/sync/pull?since=0&limit=10000");
            let answer = reqwest::Client::new().get(url).bearer_auth(token_too).send().await?;
            let status = answer.status().as_u16();
            Ok::<_, reqwest::Error>((status, answer.text().await?))
        });
        let began = Instant::now();
        server.signal(Signal::SIGTERM);
        for mut socket in sockets {
            assert_eq!(told_to_go(&mut socket).await, ("draining".to_owned(), 1001));
        }
        let ended = server.ended(Duration::from_secs(10)).await;
        assert_eq!(ended.code(), Some(0), "{}", server.log_text());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        // Not accepted any more is an answer too; half of one is none.
        if let Ok((status, body)) = pulled.await.expect("a task") {
            assert!(status == 200 || status == 503, "{status}");
            assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok(), "a cut page");
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

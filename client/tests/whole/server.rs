//! A small real HTTP server that gives the answers it was told to give, in their order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use tokio::sync::watch;

/// What the server was asked, and when.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) uri: String,
    pub(crate) token: String,
    pub(crate) at: std::time::Instant,
}

#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: String,
    answers: Arc<Mutex<VecDeque<Response<Body>>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    pulls: watch::Sender<usize>,
}

impl Server {
    /// Starts with these answers to pulls; when they are used up, pulls are held.
    pub(crate) async fn start(answers: impl IntoIterator<Item = Response<Body>>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            answers: Arc::new(Mutex::new(answers.into_iter().collect())),
            asked: Arc::default(),
            pulls: watch::Sender::new(0),
        };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub(crate) fn push(&self, answer: Response<Body>) {
        self.answers.lock().unwrap().push_back(answer);
    }

    /// The pulls so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until there were so many pulls.
    pub(crate) async fn pulled(&self, count: usize) {
        let mut pulls = self.pulls.subscribe();
        let reached = pulls.wait_for(|pulls| *pulls >= count);
        tokio::time::timeout(Duration::from_secs(20), reached).await.expect("a pull").unwrap();
    }
}

async fn answer(State(server): State<Server>, request: Request) -> Response<Body> {
    let uri = request.uri().to_string();
    if request.uri().path() == "/api/sync/status" {
        return json(200, r#"{"collections":["users","empty"]}"#);
    }
    let token = request.headers()["authorization"].to_str().unwrap().to_owned();
    server.asked.lock().unwrap().push(Asked { uri, token, at: std::time::Instant::now() });
    let next = server.answers.lock().unwrap().pop_front();
    server.pulls.send_modify(|pulls| *pulls += 1);
    match next {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

pub(crate) fn json(status: u16, body: &str) -> Response<Body> {
    let answer = Response::builder().status(status).header("content-type", "application/json");
    answer.body(Body::from(body.to_owned())).unwrap()
}

pub(crate) fn html(status: u16) -> Response<Body> {
    let answer = Response::builder().status(status).header("content-type", "text/html");
    answer.body(Body::from("<html>Welcome to Hotel WiFi, please sign in</html>")).unwrap()
}

pub(crate) fn refusal(status: u16, code: &str, more: &str) -> Response<Body> {
    json(
        status,
        &format!(
            r#"{{"success":false,"error":{{"code":"{code}","message":"said so","remedy":"do this","requestId":"r"{more}}}}}"#
        ),
    )
}

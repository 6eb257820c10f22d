//! The real router on a real socket over a real log that the test writes itself: what the source would
//! have to be made to do is simply said.

use std::sync::Arc;
use std::time::Duration;

use bson::raw::RawDocument;
use reqwest::{Client, Response};
use serde_json::Value;
use tempfile::TempDir;
use tidewire_protocol::Position;
use tidewire_server::access::{Grants, RuleSet, TokenVerifier};
use tidewire_server::config::{Config, Flags};
use tidewire_server::log::{Body, Channels, LogOptions, NewChange, TailState, Writer, sort_key};
use tidewire_server::metrics::Metrics;
use tidewire_server::serve::{self, Parts};
use tidewire_server::status::{self, SourcePhase, StatusSender};
use tidewire_tests::harness::{Claims, SECRET, sign};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Three collections: each member's own invoices (with a hidden field), plans for everyone, and one
/// that nobody may see.
const CONFIG: &str = r#"
[source]
uri = "mongodb://127.0.0.1:1/?replicaSet=rs0"
database = "invoify"
[auth]
hs256_secret = "SECRET"
[http]
allowed_origins = ["https://app.example"]
[access]
grants = ["everyone", "user:{sub}", "role:{roles}"]
[[collections]]
name = "invoices"
channels = ["user:{userId}", "role:admin"]
exclude = ["secret", "inner.secret"]
[[collections]]
name = "plans"
channels = ["everyone"]
[[collections]]
name = "vault"
channels = []
"#;

/// The cluster time of second `n` of these tests, which begin an hour ago.
pub(crate) fn at(n: u64) -> Position {
    Position::new((base_seconds() + n) << 32, 0)
}

fn base_seconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Rounded, so that both ends of a test agree on it.
    (now.expect("after 1970").as_secs() - 3_600) / 3_600 * 3_600
}

/// A server that serves a log.
pub(crate) struct Served {
    pub(crate) url: String,
    pub(crate) admin_url: String,
    pub(crate) writer: Writer,
    pub(crate) status: StatusSender,
    pub(crate) draining: CancellationToken,
    pub(crate) http: Client,
    pub(crate) tasks: [JoinHandle<()>; 2],
    rules: Arc<RuleSet>,
    _dir: TempDir,
}

impl Served {
    /// An empty log that follows its source.
    pub(crate) async fn start() -> Self {
        Self::start_with(|parts| parts).await
    }

    /// The same, of parts that are set up otherwise.
    pub(crate) async fn start_with(set_up: impl FnOnce(Parts) -> Parts) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Config::parse(&CONFIG.replace("SECRET", SECRET), &Flags::default());
        let config = config.expect("a good configuration");
        let dir = tempfile::tempdir().expect("a folder");
        let options =
            LogOptions { source: "rs0/invoify".into(), retention: Duration::from_secs(600) };
        let (writer, reader) = Writer::open(dir.path(), &options).expect("a log");
        let rules = Arc::new(RuleSet::compile(&config.collections).expect("rules"));
        let grants = Grants::compile(&config.access.grants).expect("grants");
        let (sender, receiver) = status::channel();
        sender.send_modify(|status| status.phase = SourcePhase::Following);
        let draining = CancellationToken::new();
        let parts = Parts::new(
            reader,
            Arc::clone(&rules),
            TokenVerifier::new(&config.auth, grants),
            receiver,
            Arc::new(Metrics::new(dir.path().to_owned())),
            draining.clone(),
            config.http.allowed_origins.clone(),
        );
        let parts = Arc::new(set_up(parts));
        let (listener, url) = listen().await;
        let (admin, admin_url) = listen().await;
        let clients = serve::serve_clients(listener, Arc::clone(&parts));
        let operators = serve::serve_operators(admin, parts);
        let tasks = [tokio::spawn(clients), tokio::spawn(operators)];
        let http = Client::builder().timeout(Duration::from_secs(60)).build().expect("a client");
        Self { url, admin_url, writer, status: sender, draining, http, tasks, rules, _dir: dir }
    }

    /// Appends a document at `position`.
    pub(crate) fn put(&mut self, position: Position, collection: &str, document: &RawDocument) {
        self.append(position, collection, Body::Upsert(document));
    }

    /// Appends a delete; `key` is `{_id: …}`.
    pub(crate) fn delete(&mut self, position: Position, collection: &str, key: &RawDocument) {
        self.append(position, collection, Body::Delete(key));
    }

    fn append(&mut self, position: Position, collection: &str, body: Body<'_>) {
        let rules = self.rules.get(collection).expect("a configured collection");
        let (document, channels) = match body {
            Body::Upsert(document) => (document, rules.channels_of(document)),
            Body::Delete(key) => (key, Vec::new()),
        };
        let key = sort_key(document.get("_id").expect("readable").expect("an _id"));
        let id = self.writer.collection(collection).expect("a collection");
        let change = NewChange {
            position,
            wall_time_ms: i64::from(position.unix_seconds()) * 1_000,
            collection: id,
            key: &key,
            body,
            channels: Channels::Named(&channels),
            rules: rules.fingerprint(),
        };
        self.writer.append(&change).expect("appended");
    }

    /// Commits, with the tail at the last position's time.
    pub(crate) fn commit(&mut self, through: Position) {
        let tail = TailState { resume_token: None, high_water: through.cluster_time };
        self.writer.set_tail(tail).expect("the tail");
        self.writer.commit().expect("committed");
        self.status.send_modify(|status| {
            status.high_water = through.cluster_time;
            status.operation_time = through.cluster_time;
        });
    }

    /// `GET` with a token of `sub`.
    pub(crate) async fn get_as(&self, sub: &str, path_and_query: &str) -> Response {
        let token = sign(SECRET, &Claims::of(sub)).expect("a token");
        self.get_with(&token, path_and_query).await
    }

    /// `GET` with a token.
    pub(crate) async fn get_with(&self, token: &str, path_and_query: &str) -> Response {
        let url = format!("{}{path_and_query}", self.url);
        self.http.get(url).bearer_auth(token).send().await.expect("an answer")
    }

    /// A pull as `sub` that must succeed.
    pub(crate) async fn pull(&self, sub: &str, query: &str) -> Value {
        let answer = self.get_as(sub, &format!("/api/sync/pull?{query}")).await;
        let status = answer.status();
        let body = json(answer).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// All pages from `since` on, `query` beside: every change, and the last page.
    pub(crate) async fn pull_all(
        &self,
        sub: &str,
        since: &str,
        query: &str,
    ) -> (Vec<Value>, Value) {
        let mut changes = Vec::new();
        let mut since = since.to_owned();
        loop {
            let page = self.pull(sub, &format!("since={since}&{query}")).await;
            changes.extend(page["changes"].as_array().expect("changes").clone());
            since = page["cursor"].as_str().expect("a cursor").to_owned();
            if page["hasMore"] == false {
                return (changes, page);
            }
        }
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, url)
}

/// `type` and `mongoId` of each change.
pub(crate) fn kinds(changes: &[Value]) -> Vec<(&str, &str)> {
    changes
        .iter()
        .map(|c| (c["type"].as_str().expect("a type"), c["mongoId"].as_str().expect("a key")))
        .collect()
}

/// The answer's body.
pub(crate) async fn json(answer: Response) -> Value {
    let text = answer.text().await.expect("a body");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

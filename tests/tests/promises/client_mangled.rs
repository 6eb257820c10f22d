//! Something on the way that mangles answers and frames: cut, repeated, out of order, left out, another
//! log's, no answers at all. What a client takes is right or is nothing, and no reader ever sees a state that the source never had.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::{Document, doc};
use futures::{SinkExt as _, StreamExt as _};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, Socket, eventually, mongo, must_equal, seed,
    socket_request,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::{accept_hdr_async, connect_async};

/// Answers that are mangled; later ones come as they are.
const MANGLED_MAX: usize = 20;
/// Of a request, to see what it asks for.
const HEAD_BYTES_MAX: usize = 4 * 1024;

/// What is mangled; the other passes, or, where it is a socket, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Pages,
    Frames,
}

/// Stands between a client and its server.
#[derive(Clone)]
struct Mangler {
    http: reqwest::Client,
    target: String,
    what: What,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    chance: StdRng,
    mangled: usize,
    /// Pages that were answered before, or frames that were told.
    earlier: Vec<String>,
    foreign: Foreign,
}

/// The last that another server told of its log.
type Foreign = Arc<Mutex<Option<String>>>;

impl Mangler {
    /// Listens on a port of its own, for as long as the test runs.
    async fn before(
        server: &Server,
        what: What,
        foreign: Foreign,
        chance: StdRng,
    ) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let inner = Inner { chance, mangled: 0, earlier: Vec::new(), foreign };
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build();
        let mangler = Self {
            http: http.expect("a client"),
            target: server.url(),
            what,
            inner: Arc::new(Mutex::new(inner)),
        };
        let serving = mangler.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mangler = serving.clone();
                tokio::spawn(async move {
                    let mut head = vec![0; HEAD_BYTES_MAX];
                    let length = near.peek(&mut head).await.unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..length]).to_ascii_lowercase();
                    match head.contains("upgrade: websocket") && mangler.what == What::Frames {
                        true => mangler.carry(near).await.unwrap_or(()),
                        false => mangler.talk(near).await.unwrap_or(()),
                    }
                });
            }
        });
        (mangler, url)
    }

    fn mangled(&self) -> usize {
        self.inner.lock().expect("a lock").mangled
    }

    /// One request, one answer, and the connection is closed.
    async fn talk(&self, near: TcpStream) -> std::io::Result<()> {
        let mut near = BufReader::new(near);
        let (mut path, mut token, mut upgrades) = (String::new(), String::new(), false);
        loop {
            let mut line = String::new();
            near.read_line(&mut line).await?;
            let line = line.trim_end();
            if let Some(rest) = line.strip_prefix("GET ") {
                path = rest.split(' ').next().unwrap_or_default().to_owned();
            }
            let (name, value) = line.split_once(": ").unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "authorization" => value.clone_into(&mut token),
                "upgrade" => upgrades = true,
                _ => {}
            }
            if line.is_empty() {
                break;
            }
        }
        if upgrades {
            return near.write_all(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n").await;
        }
        let asked = self.http.get(format!("{}{path}", self.target)).header("authorization", token);
        let Ok(answer) = asked.send().await else { return Ok(()) };
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap_or_default();
        let is_page = status == 200 && path.contains("/pull") && self.what == What::Pages;
        let (kind, text, cut) = if is_page {
            self.inner.lock().expect("a lock").mangle(text)
        } else {
            ("application/json", text, 0)
        };
        let head = format!(
            "HTTP/1.1 {status} So\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            text.len() + cut
        );
        near.write_all(head.as_bytes()).await?;
        near.write_all(text.as_bytes()).await?;
        near.shutdown().await
    }

    /// A push socket, until either side ends it.
    async fn carry(&self, near: TcpStream) -> Result<(), tokio_tungstenite::tungstenite::Error> {
        let mut token = None;
        #[expect(clippy::result_large_err, reason = "so the library wants it")]
        let copy = |asked: &Request, answer: Response| {
            token = asked.headers().get("authorization").cloned();
            Ok(answer)
        };
        let mut near = accept_hdr_async(near, copy).await?;
        let mut request = socket_request(&self.target);
        if let Some(token) = token {
            request.headers_mut().insert("authorization", token);
        }
        let (mut far, _) = connect_async(request).await?;
        let mut held = None;
        loop {
            tokio::select! {
                said = near.next() => match said {
                    Some(said) => far.send(said?).await?,
                    None => return Ok(()),
                },
                told = far.next() => match told {
                    Some(Ok(Message::Text(text))) if text.contains(r#""type":"changes""#) => {
                        let frame = text.to_string();
                        let frames = self.inner.lock().expect("a lock").mangle_frame(frame, &mut held);
                        for frame in frames {
                            near.send(Message::Text(frame.into())).await?;
                        }
                    }
                    Some(told) => near.send(told?).await?,
                    None => return Ok(()),
                },
            }
        }
    }
}

impl Inner {
    /// What is sent in the place of a page: its kind, its text, and how many bytes are kept back.
    fn mangle(&mut self, page: String) -> (&'static str, String, usize) {
        const JSON: &str = "application/json";
        self.earlier.push(page.clone());
        if self.mangled == MANGLED_MAX || self.chance.random_bool(0.5) {
            return (JSON, page, 0);
        }
        self.mangled += 1;
        if let Some(foreign) = self.foreign() {
            return (JSON, foreign, 0);
        }
        let mut read: Value = serde_json::from_str(&page).expect("a page");
        let changes = read["changes"].as_array_mut().expect("changes");
        match self.chance.random_range(0..8) {
            0 => {
                let at = self.chance.random_range(0..page.len());
                let kept = page.chars().take(at).collect::<String>();
                let cut = page.len() - kept.len();
                (JSON, kept, cut)
            }
            1 => (JSON, page[..page.len() / 2].to_owned(), 0),
            // An answer to an earlier question.
            2 | 3 => {
                let at = self.chance.random_range(0..self.earlier.len());
                (JSON, self.earlier[at].clone(), 0)
            }
            4 if changes.len() > 1 => {
                let last = changes.len() - 1;
                changes.swap(0, last);
                (JSON, read.to_string(), 0)
            }
            5 if !changes.is_empty() => {
                changes.pop();
                (JSON, read.to_string(), 0)
            }
            6 => (JSON, "{\"success\":true}".into(), 0),
            _ => ("text/html", "<html>Welcome to the hotel</html>".into(), 0),
        }
    }

    /// What is told in the place of a frame. One that is `held` comes after the next.
    fn mangle_frame(&mut self, frame: String, held: &mut Option<String>) -> Vec<String> {
        self.earlier.push(frame.clone());
        if let Some(held) = held.take() {
            return vec![frame, held];
        }
        if self.mangled == MANGLED_MAX || self.chance.random_bool(0.5) {
            return vec![frame];
        }
        self.mangled += 1;
        if let Some(foreign) = self.foreign() {
            return vec![foreign, frame];
        }
        match self.chance.random_range(0..6) {
            0 => vec![frame.clone(), frame],
            1 => Vec::new(),
            2 => {
                *held = Some(frame);
                Vec::new()
            }
            3 => {
                let at = self.chance.random_range(0..frame.len());
                vec![frame.chars().take(at).collect()]
            }
            4 => {
                let at = self.chance.random_range(0..self.earlier.len());
                vec![self.earlier[at].clone()]
            }
            _ => vec!["<html>Welcome to the hotel</html>".to_owned()],
        }
    }

    /// Every second time, where there is another log.
    fn foreign(&mut self) -> Option<String> {
        let foreign = self.foreign.lock().expect("a lock").clone();
        foreign.filter(|_| self.chance.random_bool(0.5))
    }
}

async fn open_accounts(mongo: &Mongo, balance: i64) {
    let accounts = mongo.db.collection::<Document>("accounts");
    let rows = (0..50).map(|id| doc! { "_id": id, "balance": balance });
    accounts.insert_many(rows).await.expect("insert");
}

/// Moves money about while answers are mangled; no reader sees a total that never was, and in the end
/// nothing is missing.
async fn never_misleads(what: What, foreign: Foreign, mongo: &Mongo, server: &Server) {
    let mut chance = StdRng::seed_from_u64(seed());
    let accounts = mongo.db.collection::<Document>("accounts");
    let mangling = StdRng::seed_from_u64(chance.random());
    let (mangler, url) = Mangler::before(server, what, foreign, mangling).await;
    let mut client = Client::new(&url, &server.token(&Claims::of("asha")));
    client.start();
    let mut session = mongo.client.start_session().await.expect("a session");
    let deadline = std::time::Instant::now() + Duration::from_secs(40);
    let (mut reads, mut round) = (0, 1_000);
    while mangler.mangled() < MANGLED_MAX && std::time::Instant::now() < deadline {
        round += 1;
        let from = chance.random_range(0..50);
        let to = (from + chance.random_range(1..50)) % 50;
        session.start_transaction().await.expect("begin");
        for (id, by) in [(from, -1), (to, 1)] {
            let change = doc! { "$inc": { "balance": by } };
            let update = accounts.update_one(doc! { "_id": id }, change);
            update.session(&mut session).await.expect("update");
        }
        session.commit_transaction().await.expect("commit");
        // Deleted and made again: an old page would bring an older one back. And one that no later write
        // would mend, were it left out.
        let id = chance.random_range(100..110);
        accounts.delete_one(doc! { "_id": id }).await.expect("delete");
        for id in [id, round] {
            accounts.insert_one(doc! { "_id": id, "balance": 0 }).await.expect("insert");
        }
        if let Ok(db) = client.open() {
            let sql = "SELECT sum(balance) FROM accounts";
            if let Ok(sum) = db.query_row(sql, [], |row| row.get::<_, i64>(0)) {
                assert_eq!(sum, 5_000, "after {} mangled answers", mangler.mangled());
                reads += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    println!("{} mangled answers, {reads} reads", mangler.mangled());
    assert!(mangler.mangled() > 5 && reads > 5, "{} {reads}", mangler.mangled());
    mangler.inner.lock().expect("a lock").mangled = MANGLED_MAX;
    let last = round + 1;
    accounts.insert_one(doc! { "_id": last, "balance": 0 }).await.expect("the last word");
    eventually("the last word is in the replica", Duration::from_secs(90), || async {
        let sql = format!("SELECT count(*) FROM accounts WHERE _id = '~{last}'");
        client.open().ok()?.query_row(&sql, [], |row| row.get::<_, i64>(0)).ok().filter(|n| *n == 1)
    })
    .await;
    must_equal(&mongo.db, &Plan::everything(&["accounts"]), &client.db()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mangles_answers_delays_a_client_and_never_misleads_it() {
    let mongo = mongo().await;
    open_accounts(&mongo, 100).await;
    let server = Server::start(ServerOptions::following(&mongo, &["accounts"])).await;
    never_misleads(What::Pages, Foreign::default(), &mongo, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mangles_frames_delays_a_client_and_never_misleads_it() {
    let mongo = mongo().await;
    open_accounts(&mongo, 100).await;
    let server = Server::start(ServerOptions::following(&mongo, &["accounts"])).await;
    never_misleads(What::Frames, Foreign::default(), &mongo, &server).await;
}

/// Goes on writing into another database, where the same accounts hold other sums, and keeps the last that
/// its server tells of it: newer than all that the replica has.
async fn other_log(what: What, foreign: Foreign, mongo: Mongo, server: Server) {
    let token = server.token(&Claims::of("asha"));
    let (_, first) = server.pull(&token, "").await;
    let mut since = first["cursor"].as_str().expect("a cursor").to_owned();
    let mut socket = Socket::open(&server.url(), &token, &since).await;
    let accounts = mongo.db.collection::<Document>("accounts");
    for id in (0..50).cycle() {
        let change = doc! { "$inc": { "balance": 1_000 } };
        accounts.update_one(doc! { "_id": id }, change).await.expect("update");
        let frame = socket.frame().await;
        let (_, page) = server.pull(&token, &format!("wait=10&since={since}")).await;
        page["cursor"].as_str().expect("a cursor").clone_into(&mut since);
        let told = if what == What::Pages { page } else { frame };
        *foreign.lock().expect("a lock") = Some(told.to_string());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn another_log_is_refused(what: What) {
    let (mongo, other) = tokio::join!(mongo(), mongo());
    open_accounts(&mongo, 100).await;
    open_accounts(&other, 7_000).await;
    let server = Server::start(ServerOptions::following(&mongo, &["accounts"])).await;
    let elsewhere = Server::start(ServerOptions::following(&other, &["accounts"])).await;
    let foreign = Foreign::default();
    let writing = tokio::spawn(other_log(what, Foreign::clone(&foreign), other, elsewhere));
    never_misleads(what, foreign, &mongo, &server).await;
    writing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_another_log_are_refused() {
    another_log_is_refused(What::Frames).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_another_log_are_refused() {
    another_log_is_refused(What::Pages).await;
}

//! Something on the way that mangles answers: cut, repeated, out of order, incomplete, no answers at all.
//! What a client takes is right or is nothing, and no reader ever sees a state that the source never had.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::{Document, doc};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Server, ServerOptions, eventually, mongo, must_equal, seed,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Answers that are mangled; later ones come as they are.
const MANGLED_MAX: usize = 20;

/// Stands between a client and its server.
#[derive(Clone)]
struct Mangler {
    http: reqwest::Client,
    target: String,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    chance: StdRng,
    mangled: usize,
    /// Pages that were answered before.
    earlier: Vec<String>,
}

impl Mangler {
    /// Listens on a port of its own, for as long as the test runs.
    async fn before(server: &Server, chance: StdRng) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let inner = Inner { chance, mangled: 0, earlier: Vec::new() };
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build();
        let mangler = Self {
            http: http.expect("a client"),
            target: server.url(),
            inner: Arc::new(Mutex::new(inner)),
        };
        let serving = mangler.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mangler = serving.clone();
                tokio::spawn(async move { mangler.talk(near).await.ok() });
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
        let is_page = status == 200 && path.contains("/pull");
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
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mangles_answers_delays_a_client_and_never_misleads_it() {
    let mut chance = StdRng::seed_from_u64(seed());
    let mongo = mongo().await;
    let accounts = mongo.db.collection::<Document>("accounts");
    accounts
        .insert_many((0..50).map(|id| doc! { "_id": id, "balance": 100 }))
        .await
        .expect("insert");
    let server = Server::start(ServerOptions::following(&mongo, &["accounts"])).await;
    let (mangler, url) = Mangler::before(&server, StdRng::seed_from_u64(chance.random())).await;
    let mut client = Client::new(&url, &server.token(&Claims::of("asha")));
    client.start();
    let mut session = mongo.client.start_session().await.expect("a session");
    let deadline = std::time::Instant::now() + Duration::from_secs(40);
    let mut reads = 0;
    while mangler.mangled() < MANGLED_MAX && std::time::Instant::now() < deadline {
        let from = chance.random_range(0..50);
        let to = (from + chance.random_range(1..50)) % 50;
        session.start_transaction().await.expect("begin");
        for (id, by) in [(from, -1), (to, 1)] {
            let change = doc! { "$inc": { "balance": by } };
            let update = accounts.update_one(doc! { "_id": id }, change);
            update.session(&mut session).await.expect("update");
        }
        session.commit_transaction().await.expect("commit");
        // Deleted and made again: an old page would bring an older one back.
        let id = chance.random_range(100..110);
        accounts.delete_one(doc! { "_id": id }).await.expect("delete");
        accounts.insert_one(doc! { "_id": id, "balance": 0 }).await.expect("insert");
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
    accounts.insert_one(doc! { "_id": 999, "balance": 0 }).await.expect("the last word");
    eventually("the last word is in the replica", Duration::from_secs(90), || async {
        let sql = "SELECT count(*) FROM accounts WHERE _id = '~999'";
        client.open().ok()?.query_row(sql, [], |row| row.get::<_, i64>(0)).ok().filter(|n| *n == 1)
    })
    .await;
    must_equal(&mongo.db, &Plan::everything(&["accounts"]), &client.db()).await;
}

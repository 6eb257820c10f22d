//! A machine that sleeps, by a clock that the test sets.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::client::SyncClient;
use crate::page::Page;
use crate::token::Token;
use crate::transport::digest::Digests;
use crate::transport::memory::{Answer, Script};
use crate::transport::pull::HttpPull;
use crate::transport::{Failure, PullRequest, Transport};

const PATIENCE: Duration = Duration::from_secs(60);
const MINUTE: i64 = 60 * 1_000;
const PAGE: &str = r#"{"success":true,"serverTime":"2026-01-01T12:00:00.000Z","changes":[],"count":0,"hasMore":false,"cursor":"c1","checkpoint":"0000000000000009.00000000","complete":true}"#;

static NOW: AtomicI64 = AtomicI64::new(1_800_000_000_000);
static LOOKS: AtomicUsize = AtomicUsize::new(0);

fn now() -> i64 {
    LOOKS.fetch_add(1, Relaxed);
    NOW.load(Relaxed)
}

/// A script, and how often its server was asked for digests; none are to be had.
struct Watched {
    script: Script,
    compared: Arc<AtomicUsize>,
}

impl Transport for Watched {
    fn pull(
        &self,
        request: PullRequest,
        token: Token,
    ) -> impl Future<Output = Result<Page, Failure>> + Send + 'static {
        self.script.pull(request, token)
    }

    fn digests(&self) -> Option<Digests> {
        self.compared.fetch_add(1, Relaxed);
        HttpPull::new("http://127.0.0.1:1").unwrap().digests()
    }

    fn collections(
        &self,
        token: Token,
    ) -> impl Future<Output = Result<Vec<String>, Failure>> + Send + 'static {
        self.script.collections(token)
    }
}

async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("not in time");
}

/// The driver has looked at its clock a few times more.
async fn some_ticks() {
    let looks = LOOKS.load(Relaxed);
    until(|| LOOKS.load(Relaxed) >= looks + 3).await;
}

#[tokio::test]
async fn after_a_long_sleep_there_is_a_pull_at_once_and_a_comparison_and_after_a_nap_the_pull_alone()
 {
    let folder = tempfile::tempdir().unwrap();
    let answers = (0..3).map(|_| Answer::Page(PAGE.to_owned()));
    let script = Script::new(&["users"], []);
    let compared = Arc::<AtomicUsize>::default();
    let transport = Watched { script: script.clone(), compared: Arc::clone(&compared) };
    let mut client = SyncClient::builder("memory").replica(folder.path().join("replica.db"));
    client.now = now;
    // The file's own time of its making is the machine's: the clock begins there.
    NOW.store(crate::replica::now_ms(), Relaxed);
    let client = client.token(Token::new("a.b.c")).start_over(transport).unwrap();
    for (answer, sleep) in answers.zip([0, 59 * MINUTE, 61 * MINUTE]) {
        let asked = script.asked().len();
        NOW.fetch_add(sleep, Relaxed);
        if sleep > 0 {
            until(|| script.asked().len() > asked).await;
            assert!(script.asked().last().unwrap().0.wait.is_zero(), "at once");
        }
        script.push(answer);
        some_ticks().await;
        assert_eq!(compared.load(Relaxed), usize::from(sleep > 60 * MINUTE), "{sleep}");
    }
    client.stop().await.unwrap();
}

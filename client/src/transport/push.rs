//! The push socket: one connection on which changes come by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use reqwest::Url;
use serde::Deserialize;
use tidewire_protocol::Position;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::pull::{ANSWER_BYTES_MAX, ANSWER_GRACE, CONNECT_TIMEOUT};
use super::refusal::{Refusal, plain};
use super::{Failure, Heard, ListenRequest};
use crate::machine::LONG_POLL_WAIT;
use crate::page::{Page, time_ms};
use crate::replica::now_ms;
use crate::token::Token;

/// A line on which nothing came for so long is tried with a ping …
const QUIET_MAX: Duration = Duration::from_secs(12);
/// … and one on which no answer comes for so long is dead. A pull comes then.
const PONG_MAX: Duration = Duration::from_secs(8);
/// A server that said nothing for its own keepalive's time and this much more is gone, whoever answers
/// its pings.
const SILENCE_GRACE: Duration = Duration::from_secs(4);
/// The longest keepalive that is believed; a server's own is 20 s.
const KEEPALIVE_MAX: Duration = Duration::from_secs(25);
/// A server that can't be reached any more shows as `offline` within this time, by whichever way the
/// client waits for news.
const FOUND_MAX: Duration = Duration::from_secs(30);
const _: () = {
    let pulled = ANSWER_GRACE.as_secs();
    assert!(QUIET_MAX.as_secs() + PONG_MAX.as_secs() + pulled <= FOUND_MAX.as_secs());
    assert!(LONG_POLL_WAIT.as_secs() + pulled <= FOUND_MAX.as_secs());
};
/// The answer to a hello must begin within this time.
const WELCOME_MAX: Duration = Duration::from_secs(8);

#[cfg(test)]
#[path = "follow_tests.rs"]
mod follow_tests;
#[cfg(test)]
#[path = "renewal_tests.rs"]
mod renewal_tests;

/// The line to a server: its address, and the socket where one is open. Who listens holds the lock.
#[derive(Clone, Debug)]
pub(super) struct Line {
    url: Arc<str>,
    open: Arc<Mutex<Option<Socket>>>,
    patience: Patience,
    /// Milliseconds since 1970; [`UNKNOWN`] while the server has not said.
    token_expires_ms: Arc<AtomicI64>,
}

/// [`QUIET_MAX`], [`PONG_MAX`] and [`SILENCE_GRACE`], or a test's.
#[derive(Clone, Copy, Debug)]
struct Patience {
    quiet: Duration,
    pong: Duration,
    grace: Duration,
}

/// An error about a token is about the one before where it comes so soon after a renewal.
const RENEWAL_GRACE: Duration = Duration::from_secs(10);

/// In the place of a time.
const UNKNOWN: i64 = i64::MAX;

/// An open socket.
#[derive(Debug)]
struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    token: Token,
    /// When it took the place of another one here.
    renewed: Option<Instant>,
    /// What was told so far reaches to here.
    cursor: String,
    through: Option<Position>,
    /// Whose frames they are, as the welcome said.
    log: Option<String>,
    /// The replica is complete there.
    complete: bool,
    /// Its clock less ours, milliseconds.
    skew_ms: i64,
    patience: Patience,
    silence_max: Duration,
}

/// What the client needs of a frame that is not one of changes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
    server_time: Option<String>,
    keepalive_seconds: Option<u64>,
    /// Where it follows from; older servers say so of changes alone.
    after: Option<Position>,
    /// The log that tells.
    log: Option<String>,
    through: Option<Position>,
    cursor: Option<String>,
    source_lag_ms: Option<u64>,
    /// Seconds.
    token_expires_in: Option<i64>,
}

impl Frame {
    fn note_expiry(&self, expires_ms: &AtomicI64) {
        if let Some(seconds) = self.token_expires_in {
            expires_ms.store(now_ms() + seconds.clamp(0, 1 << 32) * 1_000, Ordering::Relaxed);
        }
    }
}

impl Line {
    pub(super) fn new(base: &Url) -> Self {
        let mut url = base.clone();
        url.set_path(&format!("{}api/sync/live", base.path()));
        // Of the two schemes that an address can have.
        let url = url.as_str().replacen("http", "ws", 1);
        let token_expires_ms = Arc::new(AtomicI64::new(UNKNOWN));
        let patience = Patience { quiet: QUIET_MAX, pong: PONG_MAX, grace: SILENCE_GRACE };
        Self { url: url.into(), open: Arc::default(), patience, token_expires_ms }
    }

    /// The next that the socket tells after `request.since`.
    pub(super) async fn listen(
        self,
        request: ListenRequest,
        token: Token,
    ) -> Result<Heard, Failure> {
        let mut open = self.open.lock().await;
        let goes_on = |socket: &Socket| {
            socket.cursor == request.since && socket.token.is_of_the_same_subject_as(&token)
        };
        if !open.as_ref().is_some_and(goes_on) {
            *open = None;
            *open = Some(self.connect(request, token).await?);
            return Ok(Heard::Listening);
        }
        let Some(socket) = open.as_mut() else { return Err(gone("it is not open")) };
        let heard = async {
            if socket.token != token {
                socket.renew(token).await?;
                self.token_expires_ms.store(UNKNOWN, Ordering::Relaxed);
            }
            socket.next(&self.token_expires_ms).await
        };
        match heard.await {
            Ok(page) => Ok(Heard::Page(Box::new(page))),
            Err(failure) => {
                let renewed = socket.renewed.is_some_and(|at| at.elapsed() < RENEWAL_GRACE);
                *open = None;
                Err(match failure {
                    // What a pull says of the new one counts.
                    Failure::Unauthorized(why) if renewed => gone(&why),
                    failure => failure,
                })
            }
        }
    }

    /// Closes the socket. Only while nobody listens.
    pub(super) fn hang_up(&self) {
        if let Ok(mut open) = self.open.try_lock() {
            *open = None;
        }
    }

    pub(super) fn token_expires_ms(&self) -> Option<i64> {
        let known = self.token_expires_ms.load(Ordering::Relaxed);
        (known != UNKNOWN).then_some(known)
    }

    async fn connect(&self, request: ListenRequest, token: Token) -> Result<Socket, Failure> {
        let unreachable = |error: &dyn std::fmt::Display| {
            Failure::Unreachable(format!("no push socket: {}", plain(&error.to_string())))
        };
        let mut upgrade = (*self.url).into_client_request().map_err(|error| unreachable(&error))?;
        let bearer = HeaderValue::from_str(&format!("Bearer {}", token.reveal()))
            .map_err(|_| Failure::Challenged("this one is no header's value".to_owned()))?;
        upgrade.headers_mut().insert(AUTHORIZATION, bearer);
        let config = WebSocketConfig::default()
            .max_message_size(Some(ANSWER_BYTES_MAX))
            .max_frame_size(Some(ANSWER_BYTES_MAX));
        let connected =
            timeout(CONNECT_TIMEOUT, connect_async_with_config(upgrade, Some(config), true));
        let stream = match connected.await {
            Err(_) => return Err(Failure::Unreachable("no push socket: no answer".to_owned())),
            Ok(Err(Error::Http(answer))) => {
                let told = Refusal::read(answer.body().as_deref().unwrap_or_default());
                return Err(told.verdict(answer.status(), answer.headers()));
            }
            Ok(Err(error)) => return Err(unreachable(&error)),
            Ok(Ok((stream, _))) => stream,
        };
        let mut socket = Socket {
            stream,
            token,
            renewed: None,
            cursor: request.since,
            through: None,
            log: None,
            complete: request.complete,
            skew_ms: 0,
            patience: self.patience,
            silence_max: WELCOME_MAX,
        };
        socket.greet(&self.token_expires_ms).await?;
        Ok(socket)
    }
}

impl Socket {
    async fn greet(&mut self, expires_ms: &AtomicI64) -> Result<(), Failure> {
        let hello = serde_json::json!({ "type": "hello", "since": self.cursor });
        self.say(hello.to_string()).await?;
        let (_, welcome) = self.frame().await?;
        if welcome.kind != "welcome" {
            return Err(Failure::Garbage("the first frame is no welcome".to_owned()));
        }
        let server_ms = welcome.server_time.as_deref().and_then(time_ms).unwrap_or_else(now_ms);
        self.skew_ms = server_ms - now_ms();
        self.through = welcome.after;
        self.log.clone_from(&welcome.log);
        let keepalive = welcome.keepalive_seconds.map_or(KEEPALIVE_MAX, Duration::from_secs);
        self.silence_max = keepalive.min(KEEPALIVE_MAX) + self.patience.grace;
        welcome.note_expiry(expires_ms);
        Ok(())
    }

    /// Goes on with another token. A server that does not take it says so in its next frame.
    async fn renew(&mut self, token: Token) -> Result<(), Failure> {
        let auth = serde_json::json!({ "type": "auth", "token": token.reveal() });
        (self.token, self.renewed) = (token, Some(Instant::now()));
        self.say(auth.to_string()).await
    }

    async fn say(&mut self, text: String) -> Result<(), Failure> {
        let sent = timeout(CONNECT_TIMEOUT, self.stream.send(Message::Text(text.into())));
        sent.await.map_err(|_| gone("it takes nothing"))?.map_err(|error| gone(&error))
    }

    /// The next page that the socket tells.
    async fn next(&mut self, expires_ms: &AtomicI64) -> Result<Page, Failure> {
        loop {
            let (text, told) = self.frame().await?;
            told.note_expiry(expires_ms);
            let server_ms = now_ms() + self.skew_ms;
            match told.kind.as_str() {
                "changes" => {
                    let page = Page::decode_frame(text, self.through, server_ms)
                        .map_err(|error| Failure::Garbage(error.to_string()))?;
                    let head = page.head();
                    self.cursor.clone_from(&head.cursor);
                    (self.through, self.complete) = (Some(head.checkpoint), head.complete);
                    return Ok(page);
                }
                "keepalive" => {
                    let (Some(cursor), Some(through)) = (&told.cursor, told.through) else {
                        return Err(Failure::Garbage("a keepalive without a cursor".to_owned()));
                    };
                    let follows = |last| through >= last && told.after.is_none_or(|at| at == last);
                    if self.through.is_some_and(|last| !follows(last)) {
                        let what = "a keepalive that does not follow from the last frame";
                        return Err(Failure::Garbage(what.to_owned()));
                    }
                    // Between two parts of what is told in parts, it says nothing.
                    if self.complete {
                        self.through = Some(through);
                        self.cursor.clone_from(cursor);
                        return Page::without_news(cursor, through, server_ms, told.source_lag_ms)
                            .map_err(|error| Failure::Garbage(error.to_string()));
                    }
                }
                // A later server may say more.
                _ => {}
            }
        }
    }

    /// The next text frame that is no error: all of it, and what it says of itself.
    async fn frame(&mut self) -> Result<(String, Frame), Failure> {
        let silent_at = Instant::now() + self.silence_max;
        loop {
            match self.message(silent_at).await? {
                Some(Ok(Message::Text(text))) => {
                    let text = text.to_string();
                    let told: Frame = serde_json::from_str(&text)
                        .map_err(|error| Failure::Garbage(format!("a frame: {error}")))?;
                    if told.kind == "error" {
                        return Err(Refusal::read(text.as_bytes()).in_band());
                    }
                    if self
                        .log
                        .as_ref()
                        .zip(told.log.as_ref())
                        .is_some_and(|(ours, its)| ours != its)
                    {
                        return Err(Failure::Garbage("a frame of another log".to_owned()));
                    }
                    return Ok((text, told));
                }
                Some(Ok(Message::Close(close))) => {
                    return Err(closed(close.map(|c| c.code.into())));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(gone(&error)),
                None => return Err(closed(None)),
            }
        }
    }

    /// The next message, before `silent_at`. A line that carries nothing is tried with a ping.
    async fn message(
        &mut self,
        silent_at: Instant,
    ) -> Result<Option<Result<Message, Error>>, Failure> {
        let until = |patience| silent_at.min(Instant::now() + patience);
        if let Ok(message) = timeout_at(until(self.patience.quiet), self.stream.next()).await {
            return Ok(message);
        }
        let answered_by = until(self.patience.pong);
        let asked = timeout_at(answered_by, self.stream.send(Message::Ping(Bytes::new()))).await;
        if let Ok(Err(error)) = asked {
            return Err(gone(&error));
        }
        let answered = timeout_at(answered_by, self.stream.next()).await;
        answered.map_err(|_| gone("it has fallen silent"))
    }
}

fn gone(why: &(impl std::fmt::Display + ?Sized)) -> Failure {
    Failure::Unreachable(format!("the push socket: {}", plain(&why.to_string())))
}

/// A close that no error frame came before.
fn closed(code: Option<u16>) -> Failure {
    match code {
        Some(4401) => Failure::Unauthorized("the server closed the socket".to_owned()),
        Some(code) => Failure::Unreachable(format!("the push socket was closed with {code}")),
        None => Failure::Unreachable("the push socket was cut off".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::net::TcpListener;
    use tokio_tungstenite::accept_async;

    use super::*;

    const QUIET: Duration = Duration::from_millis(100);
    const PONG: Duration = Duration::from_millis(200);
    const GRACE: Duration = Duration::from_millis(800);

    type Server = WebSocketStream<TcpStream>;

    /// A line to a server that has welcomed it and then does `then` with the socket.
    async fn line<F: Future<Output = ()> + Send>(
        then: impl FnOnce(Server) -> F + Send + 'static,
    ) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut server = accept_async(stream).await.unwrap();
            server.next().await.unwrap().unwrap();
            let welcome = r#"{"type":"welcome","keepaliveSeconds":0}"#;
            server.send(Message::text(welcome)).await.unwrap();
            then(server).await;
        });
        let mut line = Line::new(&Url::parse(&url).unwrap());
        line.patience = Patience { quiet: QUIET, pong: PONG, grace: GRACE };
        assert!(matches!(listen(&line).await, Ok(Heard::Listening)));
        line
    }

    async fn listen(line: &Line) -> Result<Heard, Failure> {
        let request = ListenRequest { since: "c".to_owned(), complete: true };
        line.clone().listen(request, Token::new("t")).await
    }

    #[tokio::test]
    async fn a_line_that_carries_nothing_any_more_is_dead_after_an_unanswered_ping() {
        // The server holds the socket and neither reads nor writes: so does one behind a cut cable.
        let line = line(|server| async move {
            std::future::pending::<()>().await;
            drop(server);
        })
        .await;
        let began = Instant::now();
        assert_eq!(listen(&line).await.unwrap_err(), gone("it has fallen silent"));
        let took = began.elapsed();
        assert!(took >= QUIET + PONG && took < GRACE, "{took:?}");
    }

    #[tokio::test]
    async fn pings_that_somebody_answers_are_not_the_servers_word() {
        // The library answers pings while it is read.
        let line = line(|mut server| async move { while server.next().await.is_some() {} }).await;
        let began = Instant::now();
        assert_eq!(listen(&line).await.unwrap_err(), gone("it has fallen silent"));
        assert!(began.elapsed() >= GRACE, "{:?}", began.elapsed());
    }
}

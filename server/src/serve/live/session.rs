//! One push socket, from its hello to its close.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use rand::RngExt as _;
use tidewire_protocol::{ErrorCode, Position};
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::super::Parts;
use super::super::compress::Encoding;
use super::super::errors::ApiError;
use super::super::page::Format;
use super::super::query::{parse_format, parse_since};
use super::super::read::PageJob;
use super::frames::{FromClient, FromServer, Hello, begin_changes, end_changes, log_name};
use super::hub::{News, Watch};
use super::pages::{FIRST_FRAME_BYTES_MAX, FRAME_BYTES_MAX, LIMIT, position_of};
use super::pulse::Pulse;
use super::socket::Socket;
use crate::access::{Identity, TokenError};
use crate::log::{Cursor, Head, Since};
use crate::metrics::{now_ms, time_text};

/// The first frame must come within this time.
const HELLO_MAX: Duration = Duration::from_secs(10);
/// A socket hears something at least this often.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// A socket that has had a frame for this long and not taken all of it goes when memory is short. Who reads
/// slowly gets small ones.
const STUCK: Duration = Duration::from_secs(1);
/// Those who go because memory is short go within this time.
const GOING: Duration = Duration::from_millis(400);
/// After that, a frame must be taken within this time; a socket that takes not a byte is dropped sooner.
const TAKEN_MAX: Duration = Duration::from_secs(60);
/// Told to those whom a stopping server sends away: seconds, spread evenly up to this many, or more
/// where there are many: so many come again in a second.
const RETRY_SECONDS: u32 = 5;
const RETRIES_PER_SECOND_MAX: usize = 500;

/// Why a session ends.
enum End {
    /// The other side went.
    Gone,
    /// It takes nothing, so it can't be told either.
    Stuck(&'static str),
    /// To be told.
    Told { close: u16, error: ApiError },
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        let close = match error.code() {
            ErrorCode::Unauthenticated | ErrorCode::TokenExpired => 4401,
            ErrorCode::Forbidden => 4403,
            ErrorCode::ResyncRequired => 4410,
            ErrorCode::RateLimited => 4429,
            ErrorCode::Draining => 1001,
            // "Try again later", in the registry of close codes.
            ErrorCode::NotReady => 1013,
            ErrorCode::Internal => 1011,
            _ => 4400,
        };
        Self::Told { close, error }
    }
}

impl From<TokenError> for End {
    fn from(error: TokenError) -> Self {
        ApiError::from(error).into()
    }
}

fn bad_frame(message: impl Into<String>) -> End {
    let remedy =
        "send a hello first, and then nothing but auth, each one JSON object in a text frame";
    ApiError::new(ErrorCode::BadRequest, message, remedy).into()
}

fn too_slow(message: &str) -> End {
    let error = ApiError::new(ErrorCode::BadRequest, message, "connect again with the same cursor");
    End::Told { close: 4408, error }
}

pub(super) async fn run(parts: Arc<Parts>, identity: Identity, mut socket: Socket) {
    parts.metrics.socket_opened();
    let end = match parts.live.seat(&identity.subject) {
        // On the heap: most of its life a session waits, and then it should take little.
        Some(_seat) => Box::pin(talk(&parts, identity, &mut socket)).await,
        None => {
            let message = "there are too many push sockets";
            let remedy = "close some, or poll";
            Err(ApiError::new(ErrorCode::RateLimited, message, remedy).retry_after(30).into())
        }
    };
    parts.metrics.socket_closed();
    if let Err(End::Stuck(why)) = end {
        parts.metrics.socket_stuck();
        tracing::debug!(why, "a push socket is dropped");
    }
    if let Err(End::Told { close, error }) = end {
        let request_id = format!("{:016x}", rand::random::<u64>());
        tracing::debug!(close, request_id, "a push socket is closed");
        let detail = error.detail(&request_id);
        let code = detail.code.clone();
        let told = FromServer::Error { success: false, error: detail }.text();
        let last = async {
            let _ = socket.send_text(&[told.into()]).await;
            let reason = Utf8Bytes::from(code);
            let frame = CloseFrame { code: close.into(), reason };
            let _ = socket.send(Message::Close(Some(frame))).await;
            // Until the other side has closed too: else what is on its way may be lost.
            while let Some(Ok(_)) = socket.recv().await {}
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), last).await;
    }
}

/// An open session.
struct Session<'a> {
    parts: &'a Arc<Parts>,
    identity: Identity,
    job: PageJob,
    /// What the hello asked for.
    asked: Option<Vec<String>>,
    watch: Watch,
    /// Everything through here has been told, as far as it goes: the last frame's `through`.
    through: Position,
    /// The last frame said so, or the cursor it began with.
    complete: bool,
    /// Everything that this token may see was told when the log was last read: what comes then is news.
    is_live: bool,
    /// Bytes of changes in the next frame, at most: as a socket takes frames, they grow.
    frame_bytes: usize,
    /// When the next keepalive is due.
    keepalive: Pin<Box<Sleep>>,
    /// Each keepalive comes with a ping.
    pulse: Pulse,
}

async fn talk(parts: &Arc<Parts>, identity: Identity, socket: &mut Socket) -> Result<(), End> {
    let hello = tokio::select! {
        () = parts.draining.cancelled() => return Err(draining(parts)),
        hello = tokio::time::timeout(HELLO_MAX, hello(socket)) => match hello {
            Ok(hello) => hello?,
            Err(_) => return Err(too_slow("no hello came within 10 s")),
        },
    };
    let mut session = Session::begin(parts, identity, hello)?;
    session.welcome(socket).await?;
    loop {
        session.tell(socket).await?;
        session.wait(socket).await?;
    }
}

async fn hello(socket: &mut Socket) -> Result<Hello, End> {
    loop {
        if let Some(frame) = understood(socket.recv().await)? {
            return match frame {
                FromClient::Hello(hello) => Ok(hello),
                FromClient::Auth { .. } => Err(bad_frame("the first frame must be a hello")),
            };
        }
    }
}

/// A client's frame; `None` for what is not for us.
fn understood(received: Option<Result<Message, Error>>) -> Result<Option<FromClient>, End> {
    match received {
        Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
            Ok(frame) => Ok(Some(frame)),
            Err(error) => Err(bad_frame(format!("a frame can't be understood: {error}"))),
        },
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
        Some(Ok(Message::Binary(_))) => Err(bad_frame("a binary frame")),
        Some(Ok(Message::Close(_))) | None => Err(End::Gone),
        Some(Err(_)) => Err(bad_frame("a frame that is too large or none at all")),
    }
}

fn draining(parts: &Parts) -> End {
    let many = u32::try_from(parts.live.sessions() / RETRIES_PER_SECOND_MAX).unwrap_or(u32::MAX);
    let seconds = rand::rng().random_range(1..=many.max(RETRY_SECONDS));
    ApiError::draining().retry_after(seconds).into()
}

impl<'a> Session<'a> {
    fn begin(parts: &'a Arc<Parts>, identity: Identity, hello: Hello) -> Result<Self, End> {
        let since = parse_since(&hello.since.text(), now_ms() / 1_000)?;
        let format = hello.format.as_deref().map_or(Ok(Format::Json), parse_format)?;
        let collections = parts.visible(&identity, hello.collections.as_deref())?;
        // Before the first read: what is committed while it runs wakes the wait after it.
        let watch = parts.live.hub.watch(&collections, &identity.channels);
        let complete = matches!(&since, Since::Cursor(cursor) if cursor.is_complete());
        let through = position_of(&since);
        let job = PageJob {
            since,
            asked: "".into(),
            collections: collections.into(),
            channels: identity.channels.clone().into(),
            limit: LIMIT,
            format,
            encoding: Encoding::Identity,
        };
        let keepalive = Box::pin(tokio::time::sleep(KEEPALIVE));
        let is_live = false;
        Ok(Self {
            parts,
            identity,
            job,
            asked: hello.collections,
            watch,
            through,
            complete,
            is_live,
            frame_bytes: FIRST_FRAME_BYTES_MAX,
            keepalive,
            pulse: Pulse::default(),
        })
    }

    async fn welcome(&mut self, socket: &mut Socket) -> Result<(), End> {
        let welcome = FromServer::Welcome {
            server_time: time_text(now_ms()),
            checkpoint: self.parts.reader.head().borrow().position,
            log: log_name(self.parts.reader.log_id()),
            after: self.through,
            keepalive_seconds: KEEPALIVE.as_secs(),
            token_expires_in: self.identity.expires_in(now_ms()),
        };
        self.send(socket, &[welcome.text().into()]).await
    }

    /// Tells everything that follows the cursor.
    async fn tell(&mut self, socket: &mut Socket) -> Result<(), End> {
        // Taken before the log is read: what is committed meanwhile is news again.
        let news = self.watch.news();
        if self.is_live && news.is_none() {
            // A bell that rang for what was heard together with what came before it.
            return Ok(());
        }
        if let Some(news) = news.filter(|news| self.is_news(news)) {
            self.check()?;
            let told = self.parts.told(news.clone(), self.job.format).await?;
            if let (Some(told), Since::Cursor(cursor)) = (&*told, &self.job.since) {
                let cursor = cursor.moved_to(news.through);
                if told.count > 0 {
                    self.parts.metrics.page(told.count, told.changes.len());
                    let log_id = self.parts.reader.log_id();
                    let begin = begin_changes(log_id, self.through).into();
                    let mut end = Vec::new();
                    end_changes(news.through.position, &cursor, true, &mut end);
                    self.send(socket, &[begin, told.changes.clone(), end.into()]).await?;
                    // It is known to read, and shares frames with all who do.
                    self.frame_bytes = FRAME_BYTES_MAX;
                }
                self.move_to(cursor, news.through);
                return Ok(());
            }
        }
        self.catch_up(socket).await
    }

    /// Whether a stretch is what comes next: the session has been told all that concerns it before, with
    /// all the channels that it is about.
    fn is_news(&self, news: &News) -> bool {
        let Since::Cursor(cursor) = &self.job.since else { return false };
        let reads = news.channels.as_ref().is_some_and(|channels| cursor.reads(channels));
        self.is_live && reads && self.through <= news.after.position
    }

    fn move_to(&mut self, cursor: Cursor, head: Head) {
        self.through = head.position;
        self.job.since = Since::Cursor(cursor);
    }

    /// Whether anything may be told at all.
    fn check(&self) -> Result<(), End> {
        if self.parts.draining.is_cancelled() {
            return Err(draining(self.parts));
        }
        if self.identity.valid_for(now_ms()).is_zero() {
            return Err(TokenError::Expired.into());
        }
        self.parts.check_serving()?;
        Ok(self.parts.check_copied(&self.job.collections)?)
    }

    /// Tells everything that follows the cursor, frame by frame as the log is read.
    async fn catch_up(&mut self, socket: &mut Socket) -> Result<(), End> {
        loop {
            self.check()?;
            let (parts, job) = (self.parts, self.job.clone());
            let mut made = std::pin::pin!(parts.frame(&job, self.through, self.frame_bytes));
            let frame = loop {
                tokio::select! {
                    biased;
                    // A new token is not to be told what only the last one might see.
                    received = socket.recv() => if self.hear(received)? { break None },
                    frame = made.as_mut() => break Some(frame?),
                }
            };
            let Some(frame) = frame else { continue };
            let end = &frame.end;
            if frame.is_ahead {
                return Ok(());
            }
            let completes = end.complete && !self.complete;
            if end.count > 0 || end.has_more || completes {
                self.parts.metrics.page(end.count, frame.text.len());
                self.send(socket, std::slice::from_ref(&frame.text)).await?;
                self.frame_bytes = (2 * self.frame_bytes).min(FRAME_BYTES_MAX);
                self.through = end.cursor.position().max(self.through);
                self.job.since = Since::Cursor(end.cursor.clone());
                self.complete = end.complete;
            } else if end.complete || matches!(self.job.since, Since::Nothing | Since::Time(_)) {
                // Nothing to tell, but the cursor may say another view now: what a new token gained or
                // lost had no documents. An old one would be moved over what it does not watch.
                self.job.since = Since::Cursor(end.cursor.clone());
            }
            if !end.has_more {
                self.is_live = end.complete;
                return Ok(());
            }
        }
    }

    /// Until there may be something to tell.
    async fn wait(&mut self, socket: &mut Socket) -> Result<(), End> {
        loop {
            let left = self.identity.valid_for(now_ms());
            tokio::select! {
                () = self.parts.draining.cancelled() => return Err(draining(self.parts)),
                () = self.watch.woken() => return Ok(()),
                received = socket.recv() => if self.hear(received)? { return Ok(()) },
                () = self.keepalive.as_mut() => return self.keep_alive(socket).await,
                () = tokio::time::sleep(left) => return Err(TokenError::Expired.into()),
            }
        }
    }

    /// Takes what the client says; true: its access may be another now.
    fn hear(&mut self, received: Option<Result<Message, Error>>) -> Result<bool, End> {
        self.pulse.heard();
        match understood(received)? {
            Some(frame) => self.renew(frame).map(|()| true),
            None => Ok(false),
        }
    }

    /// Nothing was told for a while: says so, and how far that reaches.
    async fn keep_alive(&mut self, socket: &mut Socket) -> Result<(), End> {
        if self.pulse.is_gone(Instant::now()) {
            return Err(too_slow("no ping was answered for a minute"));
        }
        self.check()?;
        if !self.is_live {
            self.catch_up(socket).await?;
        }
        // What was told so far reaches to here.
        let after = self.through;
        if self.is_live {
            self.move_on().await?;
        }
        if let Since::Cursor(cursor) = &self.job.since {
            // A read that found nothing to tell moves the cursor alone.
            self.through = self.through.max(cursor.position());
            let keepalive = FromServer::Keepalive {
                log: log_name(self.parts.reader.log_id()),
                after,
                through: self.through,
                cursor: cursor.to_string(),
                server_time: time_text(now_ms()),
                token_expires_in: self.identity.expires_in(now_ms()),
                source_lag_ms: self.parts.source_lag_ms(),
            };
            self.send(socket, &[keepalive.text().into()]).await?;
        }
        self.send_message(socket, Message::Ping(Bytes::new())).await?;
        self.pulse.pinged(Instant::now());
        Ok(())
    }

    /// Moves the cursor over what does not concern the session.
    async fn move_on(&mut self) -> Result<(), End> {
        let quiet = self.watch.quiet_through();
        let Some(head) = quiet.filter(|head| head.position > self.through) else { return Ok(()) };
        // Whether the log is complete there, once for all.
        let news = News { after: head, through: head, channels: Some(Vec::new()) };
        let is_complete = self.parts.told(news, self.job.format).await?.is_some();
        if let (true, Since::Cursor(cursor)) = (is_complete, &self.job.since) {
            self.move_to(cursor.moved_to(head), head);
        }
        Ok(())
    }

    /// A new token: the same subject, and its access from now on.
    fn renew(&mut self, frame: FromClient) -> Result<(), End> {
        let FromClient::Auth { token } = frame else {
            return Err(bad_frame("a second hello"));
        };
        let identity = self.parts.verifier.verify(&token)?;
        if identity.subject != self.identity.subject {
            let message = "the new token is another subject's";
            let remedy = "open a socket of its own";
            return Err(ApiError::new(ErrorCode::Unauthenticated, message, remedy).into());
        }
        let collections = self.parts.visible(&identity, self.asked.as_deref())?;
        self.watch = self.parts.live.hub.watch(&collections, &identity.channels);
        self.is_live = false;
        self.job.collections = collections.into();
        self.job.channels = identity.channels.clone().into();
        self.identity = identity;
        Ok(())
    }

    async fn send(&mut self, socket: &mut Socket, text: &[Bytes]) -> Result<(), End> {
        self.until_taken(socket.send_text(text)).await
    }

    async fn send_message(&mut self, socket: &mut Socket, message: Message) -> Result<(), End> {
        self.until_taken(socket.send(message)).await
    }

    async fn until_taken(
        &mut self,
        sent: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), End> {
        let stuck = async {
            tokio::time::sleep(STUCK).await;
            let wanted = self.parts.live.memory.wanted.notified();
            if tokio::time::timeout(TAKEN_MAX, wanted).await.is_err() {
                return "a frame was not taken within a minute";
            }
            // Not all at once, or nobody else's turn would come meanwhile.
            let after = rand::rng().random_range(Duration::ZERO..GOING);
            tokio::time::sleep(after).await;
            "a frame was not taken within a second, and others need its memory"
        };
        let sent = tokio::select! {
            biased;
            sent = sent => sent.map_err(|_| End::Gone),
            why = stuck => Err(End::Stuck(why)),
        };
        self.keepalive.as_mut().reset(Instant::now() + KEEPALIVE);
        sent
    }
}

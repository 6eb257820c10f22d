//! A push socket, spoken by hand.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Longest wait for a frame.
const PATIENCE: Duration = Duration::from_secs(40);

/// An open socket.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// The last frame's `through`.
    pub through: Option<String>,
    /// The last frame's cursor.
    pub cursor: Option<String>,
}

/// A request for a socket of the server at `url` (`http://…`), to add headers to.
///
/// # Panics
/// When `url` is no address.
#[must_use]
pub fn socket_request(url: &str) -> Request<()> {
    let url = format!("{}/api/sync/live", url.replacen("http", "ws", 1));
    url.into_client_request().expect("an address")
}

/// A request with a token.
///
/// # Panics
/// When `url` is no address.
#[must_use]
pub fn socket_request_as(url: &str, token: &str) -> Request<()> {
    let mut request = socket_request(url);
    let bearer = format!("Bearer {token}").parse().expect("a header's value");
    request.headers_mut().insert("authorization", bearer);
    request
}

/// A connection with small buffers: a thousand are to fit into a test, and one that never reads is to be
/// stuck soon.
async fn dial(request: &Request<()>) -> Option<TcpStream> {
    let address = request.uri().authority()?.as_str().parse().ok()?;
    let socket = TcpSocket::new_v4().ok()?;
    socket.set_recv_buffer_size(32 * 1024).ok()?;
    socket.connect(address).await.ok()
}

impl Socket {
    /// Opens a socket and says hello.
    ///
    /// # Panics
    /// When the server does not welcome it.
    pub async fn open(url: &str, token: &str, since: &str) -> Self {
        Self::open_with(url, token, json!({ "type": "hello", "since": since })).await
    }

    /// The same with a hello that says more.
    ///
    /// # Panics
    /// When the server does not welcome it.
    pub async fn open_with(url: &str, token: &str, hello: Value) -> Self {
        let mut socket = Self::connect(socket_request_as(url, token)).await.expect("a socket");
        socket.send(hello).await;
        let welcome = socket.frame().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        assert!(welcome["after"].is_string(), "{welcome}");
        socket
    }

    /// Opens a socket and says nothing.
    ///
    /// # Errors
    /// The server's refusal: its HTTP status, 0 where there is none.
    pub async fn connect(request: Request<()>) -> Result<Self, u16> {
        let stream = dial(&request).await.ok_or(0_u16)?;
        let config = WebSocketConfig::default().read_buffer_size(4 * 1024);
        match client_async_with_config(request, stream, Some(config)).await {
            Ok((stream, _)) => Ok(Self { stream, through: None, cursor: None }),
            Err(Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(_) => Err(0),
        }
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// When the socket is closed.
    pub async fn send(&mut self, frame: Value) {
        self.send_raw(Message::Text(frame.to_string().into())).await;
    }

    /// Sends anything.
    ///
    /// # Panics
    /// When the socket is closed.
    pub async fn send_raw(&mut self, message: Message) {
        self.stream.send(message).await.expect("sent");
    }

    /// Until the server has taken all that was sent before: a ping's answer. Nothing may be told meanwhile.
    ///
    /// # Panics
    /// When something else comes.
    pub async fn heard(&mut self) {
        self.send_raw(Message::Ping("heard?".into())).await;
        let answer = tokio::time::timeout(PATIENCE, self.stream.next()).await;
        let answer = answer.expect("an answer in time").expect("an open socket").expect("a frame");
        assert!(matches!(answer, Message::Pong(_)), "{answer}");
    }

    /// The next text frame; checks that what it covers follows from the last one's.
    ///
    /// # Panics
    /// When none comes, or the chain is broken.
    pub async fn frame(&mut self) -> Value {
        self.next().await.unwrap_or_else(|close| panic!("closed with {close}"))
    }

    /// The next text frame, or the close code (0: none).
    ///
    /// # Errors
    /// The socket was closed.
    ///
    /// # Panics
    /// When nothing comes, or the chain is broken.
    pub async fn next(&mut self) -> Result<Value, u16> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.stream.next()).await;
            match message.expect("a frame in time") {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).expect("JSON");
                    self.check(&frame);
                    return Ok(frame);
                }
                Some(Ok(Message::Close(close))) => {
                    return Err(close.map_or(0, |close| close.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(0),
            }
        }
    }

    fn check(&mut self, frame: &Value) {
        let text = |name: &str| frame[name].as_str().map(str::to_owned);
        if let (Some(last), Some(after)) = (&self.through, text("after")) {
            assert_eq!(*last, after, "a gap or an overlap");
        }
        if frame["type"] == "welcome" {
            self.through = text("after");
        }
        if let Some(through) = text("through") {
            assert!(self.through.as_ref().is_none_or(|last| *last <= through), "backwards");
            self.through = Some(through);
            self.cursor = text("cursor");
        }
    }

    /// The next frame with changes: them, and whether it is complete.
    ///
    /// # Panics
    /// When another kind of frame than a keepalive comes.
    pub async fn changes(&mut self) -> (Vec<Value>, bool) {
        loop {
            let frame = self.frame().await;
            match frame["type"].as_str() {
                Some("changes") => {
                    let changes = frame["changes"].as_array().expect("changes").clone();
                    return (changes, frame["complete"] == true);
                }
                Some("keepalive") => {}
                _ => panic!("{frame}"),
            }
        }
    }

    /// The error that ends the socket: its code and the close code.
    ///
    /// # Panics
    /// When something else comes.
    pub async fn refusal(&mut self) -> (String, u16) {
        let mut code = String::new();
        loop {
            match self.next().await {
                Ok(frame) if frame["type"] == "error" => {
                    assert_eq!(frame["success"], false);
                    code = frame["error"]["code"].as_str().expect("a code").to_owned();
                }
                Ok(frame) if frame["type"] == "keepalive" || frame["type"] == "welcome" => {}
                Ok(frame) => panic!("{frame}"),
                Err(close) => return (code, close),
            }
        }
    }
}

//! A WebSocket to a client: from the upgrade of its request on, messages in and texts out.
//!
//! The library that speaks the protocol copies what it sends into a buffer that stays as large as it ever
//! was. So a long text goes in fragments, which clients put together: whatever a socket was sent, it
//! keeps a buffer of one fragment, and the text itself is shared with others that are sent it.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use axum::response::Response;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tidewire_protocol::ErrorCode;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::super::errors::ApiError;
use super::PROTOCOL;

/// Largest frame of a client: a hello with a long cursor, or a token.
const RECEIVED_BYTES_MAX: usize = 64 * 1024;
/// A socket's buffer for what it receives; one that received a larger frame keeps one of that size.
const BUFFER_BYTES: usize = 1_024;
/// Longest part of a text that is sent in one piece.
const FRAGMENT_BYTES_MAX: usize = 4 * 1024;

/// An open socket.
pub(super) struct Socket(WebSocketStream<TokioIo<Upgraded>>);

/// A request that asks for a socket, and may have one.
pub(super) struct Upgrade {
    on_upgrade: OnUpgrade,
    accept: HeaderValue,
    /// It offers our protocol; the answer then names it.
    is_offered: bool,
}

impl Upgrade {
    /// Takes the upgrade out of a request.
    pub(super) fn of(mut request: Request) -> Result<Self, ApiError> {
        let headers = request.headers();
        let is_socket = request.version() == Version::HTTP_11
            && has_word(headers, &header::CONNECTION, "upgrade")
            && has_word(headers, &header::UPGRADE, "websocket")
            && has_word(headers, &header::SEC_WEBSOCKET_VERSION, "13");
        let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_socket);
        let accept = key.map(|key| derive_accept_key(key.as_bytes()));
        let accept = accept.and_then(|accept| HeaderValue::try_from(accept).ok());
        let is_offered = has_word(headers, &header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL);
        let on_upgrade = request.extensions_mut().remove::<OnUpgrade>();
        match (accept, on_upgrade) {
            (Some(accept), Some(on_upgrade)) => Ok(Self { on_upgrade, accept, is_offered }),
            _ => {
                let message = "this request does not ask for a WebSocket";
                let remedy = "open it as a WebSocket (version 13, over HTTP/1.1)";
                Err(ApiError::new(ErrorCode::BadRequest, message, remedy))
            }
        }
    }

    /// The answer after which the connection is a socket.
    pub(super) fn response(&self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept.clone());
        if self.is_offered {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        }
        response
    }

    /// The socket, once the answer is out; `None` where the client went before.
    pub(super) async fn socket(self) -> Option<Socket> {
        let upgraded = TokioIo::new(self.on_upgrade.await.ok()?);
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(RECEIVED_BYTES_MAX))
            .max_frame_size(Some(RECEIVED_BYTES_MAX));
        Some(Socket(WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await))
    }
}

/// Whether a header lists a word, in any letters.
fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
}

impl Socket {
    /// The next message; `None` when the other side has closed. Nothing is lost when the wait is dropped.
    pub(super) async fn recv(&mut self) -> Option<Result<Message, Error>> {
        self.0.next().await
    }

    /// Sends one message.
    pub(super) async fn send(&mut self, message: Message) -> Result<(), Error> {
        self.0.send(message).await
    }

    /// Sends one text, which is these parts in a row and as a whole UTF-8.
    pub(super) async fn send_text(&mut self, parts: &[Bytes]) -> Result<(), Error> {
        let mut kind = OpCode::Data(Data::Text);
        let mut left: usize = parts.iter().map(Bytes::len).sum();
        if left <= FRAGMENT_BYTES_MAX {
            let text = Bytes::from(parts.concat());
            return self.0.send(Message::Frame(Frame::message(text, kind, true))).await;
        }
        for part in parts {
            let mut rest = part.clone();
            while !rest.is_empty() {
                let fragment = rest.split_to(rest.len().min(FRAGMENT_BYTES_MAX));
                left -= fragment.len();
                let frame = Frame::message(fragment, kind, left == 0);
                self.0.send(Message::Frame(frame)).await?;
                kind = OpCode::Data(Data::Continue);
            }
        }
        Ok(())
    }
}

//! A push socket as light as can be, so that what is measured is the server.

use anyhow::{Context, Error, Result, bail};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// An open socket that has been welcomed.
pub(super) struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// Whose it is, for who keeps several.
    pub(super) user: usize,
    /// The last frame's cursor.
    pub(super) cursor: String,
    /// The last frame of changes said so.
    pub(super) complete: bool,
}

impl Socket {
    /// Opens a socket of the server at `url` (`http://host:port`) and says hello.
    pub(super) async fn open(
        url: &str,
        token: &str,
        since: &str,
        collections: &[&str],
    ) -> Result<Self> {
        let stream = TcpStream::connect(address_of(url)?).await?;
        Self::over(stream, url, token, since, collections).await
    }

    /// As [`Socket::open`], with so many bytes for what is not read.
    pub(super) async fn open_narrow(
        url: &str,
        token: &str,
        since: &str,
        collections: &[&str],
        bytes: u32,
    ) -> Result<Self> {
        let stream = TcpSocket::new_v4()?;
        stream.set_recv_buffer_size(bytes)?;
        let stream = stream.connect(address_of(url)?.parse()?).await?;
        Self::over(stream, url, token, since, collections).await
    }

    async fn over(
        stream: TcpStream,
        url: &str,
        token: &str,
        since: &str,
        collections: &[&str],
    ) -> Result<Self> {
        let address = address_of(url)?;
        let mut request = format!("ws://{address}/api/sync/live").into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
        stream.set_nodelay(true)?;
        let config = WebSocketConfig::default().read_buffer_size(4 * 1024).write_buffer_size(0);
        let (stream, _) = client_async_with_config(request, stream, Some(config)).await?;
        let mut socket = Self { stream, user: 0, cursor: since.to_owned(), complete: false };
        let hello = json!({ "type": "hello", "since": since, "collections": collections });
        socket.stream.send(Message::Text(hello.to_string().into())).await?;
        let welcome = socket.text().await?;
        if !welcome.contains(r#""type":"welcome""#) {
            bail!("no welcome: {welcome}");
        }
        Ok(socket)
    }

    /// Reads on until a frame of changes that is complete.
    pub(super) async fn caught_up(mut self) -> Result<Self> {
        while !self.complete {
            self.changes().await?;
        }
        Ok(self)
    }

    /// The next frame of changes.
    pub(super) async fn changes(&mut self) -> Result<Utf8Bytes> {
        loop {
            let text = self.text().await?;
            let is_changes = text.starts_with(r#"{"type":"changes""#);
            if !is_changes && !text.starts_with(r#"{"type":"keepalive""#) {
                bail!("the server ends the socket: {text}");
            }
            if let Some((_, rest)) = text.rsplit_once(r#""cursor":""#) {
                rest.split('"').next().unwrap_or_default().clone_into(&mut self.cursor);
            }
            if is_changes {
                self.complete = text.ends_with(r#""complete":true}"#);
                return Ok(text);
            }
        }
    }

    /// Reads whatever comes until the socket is lost: why.
    pub(super) async fn read_on(&mut self) -> Error {
        loop {
            if let Err(lost) = self.changes().await {
                return lost;
            }
        }
    }

    async fn text(&mut self) -> Result<Utf8Bytes> {
        loop {
            match self.stream.next().await.context("the socket was closed")?? {
                Message::Text(text) => return Ok(text),
                Message::Close(close) => bail!("the socket was closed: {close:?}"),
                _ => {}
            }
        }
    }
}

fn address_of(url: &str) -> Result<&str> {
    url.strip_prefix("http://").context("an address of http")
}

/// The numbers of the notices in a frame.
pub(super) fn numbers(text: &str) -> impl Iterator<Item = usize> + '_ {
    text.split(r#""n":"#).skip(1).filter_map(|rest| {
        let end = rest.bytes().position(|byte| !byte.is_ascii_digit())?;
        rest[..end].parse().ok()
    })
}

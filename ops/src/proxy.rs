//! A TCP proxy on loopback that can cut, delay and swallow what goes through it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

const CHUNK_BYTES: usize = 16 << 10;

/// What the network does to the bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    delay: Duration,
    black_hole: bool,
    refuse: bool,
    no_upgrades: bool,
    /// What a WebSocket's server says after its answer to the upgrade is held back.
    buffers_sockets: bool,
    /// Connections up to this one are open and dead.
    frozen: usize,
    /// A connection on which its server says nothing for so long is cut.
    patience: Option<Duration>,
    /// Connections of earlier ages are cut.
    age: u64,
}

/// A running proxy. Ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    target: watch::Sender<String>,
    weather: watch::Sender<Weather>,
    accepted: Arc<AtomicUsize>,
    _running: DropGuard,
}

impl Proxy {
    /// Forwards everything to `target` (`host:port`) until told otherwise.
    ///
    /// # Panics
    /// When there is no port to be had.
    pub async fn to(target: impl Into<String>) -> Self {
        Self::start(target).await.expect("a port")
    }

    /// As [`Proxy::to`].
    ///
    /// # Errors
    /// When there is no port to be had.
    pub async fn start(target: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::default());
        let ending = CancellationToken::new();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        let running = ending.clone();
        let (target, targets) = watch::channel(target.into());
        tokio::spawn(async move {
            let accept = accept_all(listener, targets, seen, counter, running.clone());
            running.run_until_cancelled(accept).await;
        });
        Ok(Self { address, target, weather, accepted, _running: ending.drop_guard() })
    }

    /// Where it listens: `127.0.0.1:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections came so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Forwards to another target from now on, and cuts what there is.
    pub fn turn_to(&self, target: impl Into<String>) {
        self.target.send_replace(target.into());
        self.cut();
    }

    /// Cuts every connection that there is; new ones work.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.age += 1);
    }

    /// Refuses new connections (they are closed at once) and cuts the old, or stops doing so.
    pub fn refuse(&self, refuse: bool) {
        self.weather.send_modify(|weather| {
            weather.refuse = refuse;
            weather.age += u64::from(refuse);
        });
    }

    /// Answers requests for a WebSocket with 403, and cuts those that there are; or lets them through
    /// again.
    pub fn block_upgrades(&self, block: bool) {
        self.weather.send_modify(|weather| {
            weather.no_upgrades = block;
            weather.age += u64::from(block);
        });
    }

    /// Holds every chunk back for so long, each way.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Holds back all that is told on WebSockets, after the upgrade; or cuts those and lets new ones
    /// through.
    pub fn buffer_sockets(&self, buffer: bool) {
        self.weather.send_modify(|weather| {
            weather.buffers_sockets = buffer;
            weather.age += 1;
        });
    }

    /// Ends every connection on which its server says nothing for so long.
    pub fn cut_silent(&self, patience: Option<Duration>) {
        self.weather.send_modify(|weather| {
            weather.patience = patience;
            weather.age += 1;
        });
    }

    /// The connections that there are stay open and carry nothing any more; new ones work. So it is when
    /// a machine has moved to another network.
    pub fn freeze(&self) {
        let accepted = self.connections();
        self.weather.send_modify(|weather| weather.frozen = accepted);
    }

    /// Keeps connections open and lets nothing through, or lets it through again.
    pub fn black_hole(&self, swallow: bool) {
        self.weather.send_modify(|weather| weather.black_hole = swallow);
    }
}

async fn accept_all(
    listener: TcpListener,
    targets: watch::Receiver<String>,
    weather: watch::Receiver<Weather>,
    accepted: Arc<AtomicUsize>,
    ending: CancellationToken,
) {
    while let Ok((near, _)) = listener.accept().await {
        let number = accepted.fetch_add(1, Ordering::Relaxed) + 1;
        if weather.borrow().refuse {
            continue;
        }
        let target = targets.borrow().clone();
        let (weather, ending) = (weather.clone(), ending.clone());
        tokio::spawn(async move {
            let connection = connect(near, number, target, weather);
            ending.run_until_cancelled(connection).await;
        });
    }
}

async fn connect(
    mut near: TcpStream,
    number: usize,
    target: String,
    mut weather: watch::Receiver<Weather>,
) {
    let Weather { no_upgrades, buffers_sockets, .. } = *weather.borrow();
    let upgrades = (no_upgrades || buffers_sockets) && asks_for_upgrade(&near).await;
    if no_upgrades && upgrades {
        let _ = near.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
    let Ok(far) = TcpStream::connect(&target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let age = weather.borrow().age;
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let chunks_max = if upgrades { 1 } else { usize::MAX };
    let way = |answers| Way { number, answers, chunks_max };
    tokio::select! {
        () = forward(near_in, far_out, way(false), weather.clone()) => {}
        () = forward(far_in, near_out, way(true), weather.clone()) => {}
        _ = weather.wait_for(|weather| weather.age != age) => {}
    }
}

/// Whether a connection begins with a request for a WebSocket.
async fn asks_for_upgrade(near: &TcpStream) -> bool {
    let mut head = vec![0; CHUNK_BYTES];
    let read = near.peek(&mut head).await.unwrap_or(0);
    String::from_utf8_lossy(&head[..read]).to_ascii_lowercase().contains("websocket")
}

/// One direction of a connection.
#[derive(Clone, Copy)]
struct Way {
    number: usize,
    /// From the server.
    answers: bool,
    /// Chunks of answers that are let through.
    chunks_max: usize,
}

async fn forward(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    way: Way,
    mut weather: watch::Receiver<Weather>,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut chunks = 0;
    loop {
        let patience = weather.borrow().patience.filter(|_| way.answers);
        let read = match patience {
            None => from.read(&mut chunk).await,
            Some(patience) => match tokio::time::timeout(patience, from.read(&mut chunk)).await {
                Ok(read) => read,
                Err(_) => return,
            },
        };
        let Ok(read @ 1..) = read else { return };
        chunks += 1;
        if way.answers && chunks > way.chunks_max {
            continue;
        }
        let delay = weather.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let carries = |weather: &Weather| !weather.black_hole && weather.frozen < way.number;
        if weather.wait_for(carries).await.is_err() {
            return;
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}

//! The library's front: a builder, a running client, a single run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tidewire_protocol::Position;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::changes::{COMMITS_WAITING_MAX, Changed, Changes};
use crate::driver::{Driver, End, Hands, Order};
use crate::error::ClientError;
use crate::live_query::LiveQuery;
use crate::machine::{Machine, Options};
use crate::repair::{Verified, VerifyError};
use crate::replica::{Identity, now_ms};
use crate::status::{LastSync, Status};
use crate::store::Store;
use crate::token::{Token, TokenSource};
use crate::transport::Transport;
use crate::transport::pull::HttpPull;

/// The time between two polls, unless the app says otherwise.
const POLL_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Bounds of the time between two polls.
const POLL_INTERVAL_BOUNDS: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(24 * 60 * 60));
/// Orders of the app that may wait.
const ORDERS: usize = 16;
/// Servers in a list.
const SERVERS_MAX: usize = 16;
/// One's own write that has not come by itself in this time is asked for …
const OWN_WRITE_PATIENCE: Duration = Duration::from_millis(300);
/// … and again whenever so much more has passed.
const OWN_WRITE_PATIENCE_LATER: Duration = Duration::from_secs(5);

/// Which rung of the ladder to begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// The best that works: the push socket, long polls where it does not get through, and plain
    /// polls where those do not either.
    #[default]
    Auto,
    /// The push socket; where it does not get through that is an error, and is tried again.
    Push,
    /// Plain polls only.
    Poll,
}

/// What becomes of the data when the server refuses the token: it ran out, was revoked, or may see
/// nothing any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnNeedsAuth {
    /// It stays, and can be read.
    #[default]
    Keep,
    /// Every trace of it is removed from the file, as where another user signs in; another token copies
    /// everything anew. Only by the server's own word, and not where the token file holds another
    /// token already: while no server answers the data stays, whatever the token says of its end.
    Wipe,
}

/// Sets up a client; see [`SyncClient::builder`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    servers: Vec<String>,
    replica: Option<PathBuf>,
    source: Option<TokenSource>,
    poll_interval: Duration,
    transport: TransportChoice,
    on_needs_auth: OnNeedsAuth,
    rebuild: bool,
    /// The wall clock: see [`Driver`].
    pub(crate) now: fn() -> i64,
}

/// A client that keeps a replica. Dropping it stops the client, without waiting for that.
#[derive(Debug)]
pub struct SyncClient {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<Status>,
    /// Never read; what is made of it is.
    commits: broadcast::Receiver<Arc<Changed>>,
    replica: PathBuf,
    task: JoinHandle<Result<End, ClientError>>,
}

/// What a single run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The status at the end; `state` is `stopped`.
    pub status: Status,
}

impl SyncClient {
    /// Begins to set up a client of the server at that address (`https://…`).
    ///
    /// ```no_run
    /// # async fn f() -> Result<(), tidewire::ClientError> {
    /// let client = tidewire::SyncClient::builder("https://sync.example.com")
    ///     .replica("replica.db")
    ///     .token_file("token.jwt")
    ///     .start()?;
    /// let mut status = client.status();
    /// status.wait_for(|status| status.initialized).await.ok();
    /// # client.stop().await }
    /// ```
    #[must_use]
    pub fn builder(server: impl Into<String>) -> ClientBuilder {
        Self::builder_of([server])
    }

    /// As [`SyncClient::builder`], with the whole list of servers, 16 at most, all of the same source: the
    /// first is asked first, and the next one whenever one fails or can't go on.
    #[must_use]
    pub fn builder_of<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> ClientBuilder {
        ClientBuilder {
            servers: servers.into_iter().map(Into::into).collect(),
            replica: None,
            source: None,
            poll_interval: POLL_INTERVAL,
            transport: TransportChoice::Auto,
            on_needs_auth: OnNeedsAuth::Keep,
            rebuild: false,
            now: now_ms,
        }
    }

    /// The status, as it is and as it changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Asks for news at once, whatever the client is waiting for (but not for a busy server's own
    /// `Retry-After`).
    pub fn pull_now(&self) {
        // A full queue holds an order that does as well.
        self.orders.try_send(Order::PullNow(None)).ok();
    }

    /// [`SyncClient::pull_now`], and what that pull brought once it is in the replica. `success` is false
    /// where it failed, and where nothing may be asked: a token is missing, or a busy server has said when
    /// it wants to be asked again.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn pull(&self) -> Result<LastSync, ClientError> {
        let (asker, told) = oneshot::channel();
        let order = Order::PullNow(Some(asker));
        self.orders.send(order).await.map_err(|_| ClientError::Died)?;
        told.await.map_err(|_| ClientError::Died)
    }

    /// Gives the client another token: a renewed one, which goes out over the open socket, or another
    /// user's. Another user's replica is wiped before anything else happens: when this comes back, nothing
    /// of it is left.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn set_token(&self, token: Token) -> Result<(), ClientError> {
        let (taken, told) = oneshot::channel();
        let order = Order::SetToken(token, taken);
        self.orders.send(order).await.map_err(|_| ClientError::Died)?;
        told.await.map_err(|_| ClientError::Died)
    }

    /// Copies everything anew, beside the old data, which stays readable until then.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn rebuild(&self) -> Result<(), ClientError> {
        self.orders.send(Order::Rebuild).await.map_err(|_| ClientError::Died)
    }

    /// Waits until the replica holds everything up to `position`: one's own write, where that is the
    /// `operationTime` of the session that wrote it (as [`Position::new`] takes it, with ordinal 0).
    /// Waits without end while the server can't be reached; put a time limit around it. Can be dropped.
    ///
    /// # Errors
    /// The client has ended.
    pub async fn wait_for(&self, position: Position) -> Result<(), ClientError> {
        let wanted = position.to_string();
        let mut status = self.status();
        let mut patience = OWN_WRITE_PATIENCE;
        loop {
            let reached =
                status.wait_for(|status| status.position.as_ref().is_some_and(|at| *at >= wanted));
            match tokio::time::timeout(patience, reached).await {
                Ok(reached) => return reached.map(|_| ()).map_err(|_| ClientError::Died),
                // Where nothing happens that the user may see, only an answer says how far that goes.
                Err(_) => self.pull_now(),
            }
            patience = OWN_WRITE_PATIENCE_LATER;
        }
    }

    /// Compares the replica with what the server says that it must hold, as far as the token may see, and
    /// mends what differs: only the ranges that differ are sent again. The replica is followed and can
    /// be read meanwhile. The client does this by itself after a crash, after a sleep of an hour,
    /// once a day, and soon after it opened a file that is too large to be looked at as a whole.
    ///
    /// # Errors
    /// See [`VerifyError`]. Nothing was mended then.
    pub async fn verify(&self) -> Result<Verified, VerifyError> {
        let (wants, found) = oneshot::channel();
        self.orders.send(Order::Verify(wants)).await.map_err(|_| VerifyError::Unavailable)?;
        found.await.map_err(|_| VerifyError::Unavailable)?
    }

    /// Which rows of which collections change, commit by commit, from now on. 64 commits wait for a
    /// reader; a slower one is told that anything may have changed.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes::new(self.commits.resubscribe())
    }

    /// A query that yields all its rows now and again whenever a table that it reads has changed.
    ///
    /// ```no_run
    /// # async fn f(client: tidewire::SyncClient) -> Result<(), tidewire::ReplicaError> {
    /// let mut open = client.watch("SELECT number, amount FROM invoices WHERE status = 'open'");
    /// while let Some(result) = open.next().await {
    ///     println!("{} open invoices", result?.rows.len());
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn watch(&self, sql: &str) -> LiveQuery {
        LiveQuery::new(self.replica.clone(), sql, self.changes())
    }

    /// Stops the client; the replica is closed in order when this returns.
    ///
    /// # Errors
    /// Why it had ended before, or why the replica can't be closed.
    pub async fn stop(self) -> Result<(), ClientError> {
        self.orders.send(Order::Stop).await.ok();
        self.ended().await
    }

    /// Waits until the client ends by itself, which only an error makes it do.
    ///
    /// # Errors
    /// That error.
    pub async fn ended(self) -> Result<(), ClientError> {
        // The sender is kept until the task has ended: without it the task would stop.
        let Self { orders, task, .. } = self;
        let ended = task.await.map_err(|_| ClientError::Died)?;
        drop(orders);
        ended.map(|_| ())
    }
}

impl ClientBuilder {
    /// Where the replica is, or is to be.
    #[must_use]
    pub fn replica(mut self, path: impl AsRef<Path>) -> Self {
        self.replica = Some(path.as_ref().to_owned());
        self
    }

    /// The token; a new one comes with [`SyncClient::set_token`].
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.source = Some(TokenSource::Given(token));
        self
    }

    /// The token comes later, with [`SyncClient::set_token`]; the state is `needs_auth` until then.
    #[must_use]
    pub fn token_later(self) -> Self {
        self.token(Token::new(""))
    }

    /// A file that holds the token and nothing else; read again whenever it changes.
    #[must_use]
    pub fn token_file(mut self, path: impl AsRef<Path>) -> Self {
        self.source = Some(TokenSource::File(path.as_ref().to_owned()));
        self
    }

    /// The time between two polls, 1 s to 24 h; without it five minutes.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.clamp(POLL_INTERVAL_BOUNDS.0, POLL_INTERVAL_BOUNDS.1);
        self
    }

    /// How changes are to come in.
    #[must_use]
    pub fn transport(mut self, choice: TransportChoice) -> Self {
        self.transport = choice;
        self
    }

    /// What becomes of the data when the server refuses the token; without this it stays.
    #[must_use]
    pub fn on_needs_auth(mut self, choice: OnNeedsAuth) -> Self {
        self.on_needs_auth = choice;
        self
    }

    /// Copies everything anew, beside the old data.
    #[must_use]
    pub fn rebuild(mut self) -> Self {
        self.rebuild = true;
        self
    }

    /// Starts a client that runs until it is stopped. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The set-up can't work. What the replica or the server has against it shows later, in the status
    /// and in [`SyncClient::ended`].
    pub fn start(self) -> Result<SyncClient, ClientError> {
        let transports = self.transports()?;
        self.start_with(transports, false)
    }

    /// Starts a client over a transport of the caller's; `server` names what is behind it.
    ///
    /// # Errors
    /// As for [`ClientBuilder::start`].
    pub fn start_over<T: Transport>(self, transport: T) -> Result<SyncClient, ClientError> {
        let name = self.servers.join(",");
        self.start_with(vec![(name, transport)], false)
    }

    /// Starts a client that ends by itself when it has caught up, and gives up early: see
    /// [`ClientBuilder::sync_once`], which waits for it.
    ///
    /// # Errors
    /// As for [`ClientBuilder::start`].
    pub fn start_once(self) -> Result<SyncClient, ClientError> {
        let transports = self.transports()?;
        self.start_with(transports, true)
    }

    /// Catches up with the server and returns.
    ///
    /// # Errors
    /// The server can't be reached or refuses the token, or the replica can't be written. What was
    /// committed before stays; a later run goes on from there.
    pub async fn sync_once(self) -> Result<Summary, ClientError> {
        self.start_once()?.finished().await
    }

    /// [`ClientBuilder::sync_once`] over a transport of the caller's.
    ///
    /// # Errors
    /// As there.
    pub async fn sync_once_over<T: Transport>(self, transport: T) -> Result<Summary, ClientError> {
        let name = self.servers.join(",");
        self.start_with(vec![(name, transport)], true)?.finished().await
    }

    /// One for each server, under its address in one spelling.
    fn transports(&self) -> Result<Vec<(String, HttpPull)>, ClientError> {
        let mut transports: Vec<(String, HttpPull)> = Vec::new();
        for server in &self.servers {
            let transport = HttpPull::new(server)?;
            let name = transport.address().to_owned();
            if transports.iter().all(|(known, _)| *known != name) {
                transports.push((name, transport));
            }
        }
        Ok(transports)
    }

    fn start_with<T: Transport>(
        self,
        transports: Vec<(String, T)>,
        once: bool,
    ) -> Result<SyncClient, ClientError> {
        let usage = |what: &str| ClientError::Usage(what.to_owned());
        let path = self.replica.ok_or_else(|| usage("a client needs the path of its replica"))?;
        let source = self.source.ok_or_else(|| usage("a client needs a token or a token file"))?;
        if transports.is_empty() || transports.len() > SERVERS_MAX {
            return Err(usage("a client needs 1 to 16 servers"));
        }
        let token = source.read()?;
        let options = Options {
            servers: transports.len(),
            once,
            poll_only: self.transport == TransportChoice::Poll,
            push: self.transport != TransportChoice::Poll && !once,
            push_only: self.transport == TransportChoice::Push && !once,
            wipe: self.on_needs_auth == OnNeedsAuth::Wipe,
            poll_interval: self.poll_interval,
            seed: rand::rng().random(),
        };
        let (orders, inbox) = mpsc::channel(ORDERS);
        let (watch, status) = watch::channel(Status::first());
        let (told, commits) = broadcast::channel(COMMITS_WAITING_MAX);
        let servers = transports.iter().map(|(name, _)| name.clone()).collect();
        let identity = Identity { servers, subject: token.subject() };
        let driver = Driver {
            machine: Machine::new(options),
            transports,
            replica: path.clone(),
            source,
            token,
            once,
            poll_interval: self.poll_interval,
            orders: inbox,
            watch,
            now: self.now,
            hands: Hands::default(),
        };
        let store = Store::open(path.clone(), identity, self.rebuild, told)?;
        let task = tokio::spawn(driver.run(store));
        Ok(SyncClient { orders, status, commits, replica: path, task })
    }
}

impl SyncClient {
    /// Waits for the end of a client that runs once.
    ///
    /// # Errors
    /// Why it could not catch up.
    pub async fn finished(self) -> Result<Summary, ClientError> {
        let status = self.status();
        self.ended().await?;
        let status = status.borrow().clone();
        Ok(Summary { status })
    }
}

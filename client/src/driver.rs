//! The machine's hands: sockets, timers, the token, and the thread that owns the replica.

use std::path::PathBuf;
use std::time::Duration;

use futures::future::{BoxFuture, TryFutureExt as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::clock::{Clock, Due, TICK};
use crate::error::ClientError;
use crate::machine::{Action, Event, Machine, Outcome};
use crate::page::Page;
use crate::pulls::{Asker, Pulls};
use crate::repair::{Comparison, GivenUp, Verified, VerifyError};
use crate::replica::{ReplicaError, Report, now_ms, rfc3339};
use crate::status::{State, Status};
use crate::store::{Command, Reply, Store};
use crate::token::{Token, TokenSource};
use crate::transport::{Failure, Heard, ListenRequest, PullRequest, Transport};

/// The list of collections is asked for again after this.
const COLLECTIONS_EVERY: Duration = Duration::from_secs(10 * 60);
/// A report holds for so long …
const REPORT_VALID: Duration = Duration::from_secs(60);
/// … and is renewed when less than this is left.
const REPORT_RENEW: Duration = Duration::from_secs(20);

/// A token's end that moved by less than this, in milliseconds, is the same.
const EXPIRY_STEP_MS: i64 = 2_000;

/// Who asked for a comparison.
pub(crate) type Wants = oneshot::Sender<Result<Verified, VerifyError>>;

/// What an app asks of a running client.
#[derive(Debug)]
pub(crate) enum Order {
    /// A pull at once; what it brought goes there.
    PullNow(Option<Asker>),
    /// Another token; told there when the replica belongs to its user.
    SetToken(Token, oneshot::Sender<()>),
    Rebuild,
    /// Compare with the server; the answer goes there.
    Verify(Wants),
    Stop,
}

/// How a client that was not stopped by an error ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    CaughtUp,
    Stopped,
}

/// The first reason to end.
type Ended = Result<End, ClientError>;

/// Everything that a running client holds.
pub(crate) struct Driver<T> {
    pub(crate) machine: Machine,
    /// One for each server of the list, and the servers' names.
    pub(crate) transports: Vec<(String, T)>,
    pub(crate) replica: PathBuf,
    pub(crate) source: TokenSource,
    pub(crate) token: Token,
    pub(crate) once: bool,
    pub(crate) poll_interval: Duration,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) watch: watch::Sender<Status>,
    /// The wall clock, milliseconds since 1970; a test's may jump.
    pub(crate) now: fn() -> i64,
    pub(crate) hands: Hands,
}

/// What is under way.
#[derive(Default)]
pub(crate) struct Hands {
    /// A pull, or the wait for the push socket's next.
    pull: Option<BoxFuture<'static, Result<Heard, Failure>>>,
    asked: Option<Instant>,
    listing: Option<BoxFuture<'static, Result<Vec<String>, Failure>>>,
    timer: Option<Instant>,
    /// A page that came and waits for the machine's word.
    page: Option<Page>,
    pulls: Pulls,
    /// Where the catch-up under way began, in thousandths.
    catch_up_from: Option<u16>,
    epoch: u64,
    /// The server in use: an index.
    server: usize,
    /// When the token runs out, as it is shown: milliseconds since 1970.
    expires_ms: Option<i64>,
    /// When the machine was last told how much time had passed.
    told: Option<Instant>,
    /// A comparison with the server, and who wants to know what it finds.
    comparison: Option<BoxFuture<'static, Result<Verified, VerifyError>>>,
    wants: Option<Wants>,
    /// All data is being removed, or is gone.
    wipe: Wipe,
    /// When the next one is due; `None` before the replica is open.
    due: Option<Due>,
    reported: Option<(Report, Instant)>,
    listed: Option<Instant>,
}

/// What has become of the data, where the app wants none without a token.
#[derive(Debug, Default, PartialEq, Eq)]
enum Wipe {
    /// There may be some.
    #[default]
    None,
    /// It is being removed; a run that is over then ends with this refusal.
    UnderWay(Option<String>),
    /// There is none.
    Done,
}

impl<T: Transport> Driver<T> {
    /// Runs until an order, an error or, with `once`, being caught up ends it.
    pub(crate) async fn run(mut self, mut store: Store) -> Ended {
        let mut clock = Clock::new((self.now)());
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ended = loop {
            let step = tokio::select! {
                biased;
                // An order to stop goes before all; replies before pages, so that little waits.
                order = self.orders.recv() => self.order(order.unwrap_or(Order::Stop), &mut store).await,
                reply = store.reply() => self.reply(reply, &store).await,
                page = or_never(&mut self.hands.pull) => self.pulled(page, &store).await,
                list = or_never(&mut self.hands.listing) => self.list_came(list, &store).await,
                found = or_never(&mut self.hands.comparison) => self.verified(found, &store).await,
                () = at_or_never(self.hands.timer) => {
                    self.hands.timer = None;
                    self.event(Event::Timer, &store).await
                }
                _ = ticks.tick() => self.tick(&mut clock, &mut store).await,
            };
            if let Some(ended) = step {
                break ended;
            }
            self.publish(&store).await;
        };
        self.end(ended, store).await
    }

    async fn end(mut self, ended: Ended, store: Store) -> Ended {
        self.hands.pull = None;
        self.machine.halt(ended.as_ref().err().map(ToString::to_string));
        let closed = store.close(self.machine.error().map(str::to_owned)).await;
        let ended = match (ended, closed) {
            // The thread's own error is the one behind whatever followed from it.
            (Ok(_) | Err(ClientError::Died), Err(error)) => Err(error.into()),
            (ended, _) => ended,
        };
        let error = ended.as_ref().err().map(ToString::to_string);
        self.watch.send_modify(|status| {
            status.state = State::Stopped;
            status.is_online = false;
            status.transport = crate::status::TransportName::None;
            status.error = error;
        });
        ended
    }

    fn transport(&self) -> &T {
        &self.transports[self.hands.server].1
    }

    async fn event(&mut self, event: Event, store: &Store) -> Option<Ended> {
        let now = Instant::now();
        if let Some(told) = self.hands.told.replace(now) {
            self.machine.passed(now - told);
        }
        for action in self.machine.on(event) {
            if let Some(ended) = self.act(action, store).await {
                return Some(ended);
            }
        }
        None
    }

    async fn act(&mut self, action: Action, store: &Store) -> Option<Ended> {
        match action {
            Action::UseServer(server) => {
                self.transport().hang_up();
                self.hands.server = server;
                tracing::info!(server = %self.transports[server].0, "asking another server");
            }
            Action::Pull { since, wait } => {
                self.hands.timer = None;
                let request = PullRequest { since, wait };
                self.hands.asked = Some(Instant::now());
                self.hands.pulls.sent_one();
                let page = self.transport().pull(request, self.token.clone());
                self.hands.pull = Some(Box::pin(page.map_ok(|page| Heard::Page(Box::new(page)))));
            }
            Action::Listen { since, complete } => {
                self.hands.timer = None;
                self.hands.asked = Some(Instant::now());
                self.hands.pulls.listens();
                let request = ListenRequest { since, complete };
                let heard = self.transport().listen(request, self.token.clone());
                self.hands.pull = Some(Box::pin(heard));
            }
            Action::CancelPull => {
                self.hands.pull = None;
                self.transport().hang_up();
            }
            Action::FetchCollections => {
                self.hands.timer = None;
                let listing = self.transport().collections(self.token.clone());
                self.hands.listing = Some(Box::pin(listing));
            }
            Action::Apply => {
                if let Some(page) = self.hands.page.take() {
                    self.hands.wipe = Wipe::None;
                    self.hands.pulls.came(page.head().has_more);
                    store.send(Command::Apply { page, epoch: self.hands.epoch }).await;
                }
            }
            Action::DropPartial => store.send(Command::DropPartial).await,
            Action::BeginFill => store.send(Command::BeginFill).await,
            Action::Arm(delay) => self.hands.timer = Some(Instant::now() + delay),
            Action::Wipe => self.wipe(store).await,
            Action::WaitForToken => {
                self.hands.timer = None;
                return self.needs_token();
            }
            Action::Halt(Outcome::CaughtUp) => return Some(Ok(End::CaughtUp)),
            Action::Halt(Outcome::Refused(failure)) => {
                return self.refused(failure.to_string());
            }
            Action::Halt(Outcome::Unreachable(failure)) => {
                return Some(Err(ClientError::Unreachable(failure.to_string())));
            }
        }
        None
    }

    /// A token was refused. The file may hold a newer one already, which the next tick takes; a client
    /// that runs once does not wait for one.
    fn needs_token(&mut self) -> Option<Ended> {
        if self.has_newer_token() || !self.once {
            return None;
        }
        let why = self.machine.error().unwrap_or("the server refuses the token").to_owned();
        self.refused(why)
    }

    fn has_newer_token(&self) -> bool {
        self.source.read().is_ok_and(|token| token != self.token)
    }

    /// Removes all data, once, unless the refused token has a successor already.
    async fn wipe(&mut self, store: &Store) {
        if self.hands.wipe != Wipe::None || self.has_newer_token() {
            return;
        }
        tracing::info!("the token is refused: all data is wiped");
        self.give_up_comparison(store).await;
        store.send(Command::Wipe).await;
        self.hands.wipe = Wipe::UnderWay(None);
    }

    /// Ends the run, at once or when the data that must not stay is gone.
    fn refused(&mut self, why: String) -> Option<Ended> {
        match &mut self.hands.wipe {
            Wipe::UnderWay(end) => {
                *end = Some(why);
                None
            }
            Wipe::None | Wipe::Done => Some(Err(ClientError::Refused(why))),
        }
    }

    async fn pulled(&mut self, heard: Result<Heard, Failure>, store: &Store) -> Option<Ended> {
        self.hands.pull = None;
        let took = self.hands.asked.take().map(|asked| asked.elapsed()).unwrap_or_default();
        let event = match heard {
            Ok(Heard::Listening) => Event::Listening,
            Ok(Heard::Page(page)) => {
                let head = page.head().clone();
                self.show_progress(head.progress);
                tracing::debug!(
                    through = %head.checkpoint,
                    last = page.last_position().map(tracing::field::display),
                    count = head.count,
                    complete = head.complete,
                    has_more = head.has_more,
                    "a page came"
                );
                self.hands.page = Some(*page);
                Event::Fetched { head, took }
            }
            Err(failure) => {
                tracing::info!(error = %failure, "no page came");
                self.hands.pulls.failed(|| rfc3339(now_ms()));
                Event::FetchFailed { failure, took }
            }
        };
        self.event(event, store).await
    }

    async fn list_came(
        &mut self,
        list: Result<Vec<String>, Failure>,
        store: &Store,
    ) -> Option<Ended> {
        self.hands.listing = None;
        match list {
            Ok(names) => {
                self.hands.listed = Some(Instant::now());
                store.send(Command::Collections(names)).await;
                None
            }
            Err(failure) => {
                tracing::info!(error = %failure, "the list of collections can't be had");
                self.hands.pulls.none(|| rfc3339(now_ms()));
                self.event(Event::Collections(Err(failure)), store).await
            }
        }
    }

    async fn reply(&mut self, reply: Option<Reply>, store: &Store) -> Option<Ended> {
        let event = match reply {
            None => return Some(Err(ClientError::Died)),
            Some(Reply::Failed(error)) => return Some(Err(error.into())),
            Some(Reply::Past { was_killed, is_unchecked, verified_ms }) => {
                self.past(was_killed, is_unchecked, verified_ms);
                return None;
            }
            Some(Reply::Opened(resume, status)) => {
                self.show(*status);
                Event::Opened(resume)
            }
            Some(Reply::Listed) => Event::Collections(Ok(())),
            Some(Reply::Applied(applied, status)) => {
                let pulls = &mut self.hands.pulls;
                pulls.applied(applied.complete, status.last_sync.as_ref());
                self.show(*status);
                if let Some(ended) = self.event(Event::Applied(applied), store).await {
                    return Some(ended);
                }
                if !self.hands.pulls.is_owed() {
                    return None;
                }
                Event::PullNow
            }
            Some(Reply::Reset(resume, status)) => {
                self.reset();
                self.show(*status);
                if matches!(self.hands.wipe, Wipe::UnderWay(_)) {
                    // The damaged file lies beside it.
                    store.send(Command::Wipe).await;
                    return None;
                }
                Event::Opened(resume)
            }
            Some(Reply::Wiped(resume, status)) => {
                self.show(*status);
                let wipe = std::mem::replace(&mut self.hands.wipe, Wipe::Done);
                if let Wipe::UnderWay(Some(why)) = wipe {
                    return Some(Err(ClientError::Refused(why)));
                }
                Event::Wiped(resume)
            }
            // Only asked for, and waited for, in `set_token`.
            Some(Reply::Belongs(resume, _)) => Event::TokenSet(resume),
        };
        self.event(event, store).await
    }

    fn past(&mut self, was_killed: bool, is_unchecked: bool, verified_ms: i64) {
        let mut due = Due::new(was_killed, verified_ms);
        if is_unchecked {
            due.unchecked((self.now)());
        }
        self.hands.due = Some(due);
    }

    fn show(&self, status: Status) {
        self.watch.send_modify(|shown| shown.take_data(status));
    }

    /// The replica was begun anew: what is on its way belongs to the old one.
    fn reset(&mut self) {
        self.hands.pull = None;
        self.hands.page = None;
        self.hands.pulls.dropped();
        self.hands.epoch += 1;
    }

    async fn order(&mut self, order: Order, store: &mut Store) -> Option<Ended> {
        match order {
            Order::Stop => Some(Ok(End::Stopped)),
            Order::PullNow(asker) => self.pull_now(asker, store).await,
            Order::Verify(wants) => {
                self.verify(Some(wants), store);
                None
            }
            Order::Rebuild => self.rebuild(store).await,
            Order::SetToken(token, taken) => {
                self.source = TokenSource::Given(token.clone());
                let ended = self.set_token(token, store).await;
                if ended.is_none() {
                    taken.send(()).ok();
                }
                ended
            }
        }
    }

    async fn pull_now(&mut self, asker: Option<Asker>, store: &Store) -> Option<Ended> {
        let last = self.hands.pulls.last();
        let ended = self.event(Event::PullNow, store).await;
        if let Some(asker) = asker {
            self.hands.pulls.ask(asker, last);
            if self.machine.asks_nothing() {
                self.hands.pulls.none(|| rfc3339(now_ms()));
            }
        }
        ended
    }

    /// How far a copy or a catch-up is, in percent of its own way.
    fn show_progress(&mut self, reached: Option<u16>) {
        let Some(reached) = reached else {
            self.hands.catch_up_from = None;
            self.watch.send_if_modified(|status| status.applying_percent.take().is_some());
            return;
        };
        let begin = if self.machine.copies() { 0 } else { reached };
        let from = *self.hands.catch_up_from.get_or_insert(begin);
        let (way, gone) = (1_000_u16.saturating_sub(from).max(1), reached.saturating_sub(from));
        let percent = u8::try_from(u32::from(gone) * 100 / u32::from(way)).unwrap_or(100);
        self.watch
            .send_if_modified(|status| status.applying_percent.replace(percent) != Some(percent));
    }

    /// Takes a token into use. Nothing that was asked for with the old one is applied after the replica
    /// has become the new one's.
    async fn set_token(&mut self, token: Token, store: &mut Store) -> Option<Ended> {
        let is_the_same = token.is_of_the_same_subject_as(&self.token);
        if self.machine.renews() && is_the_same {
            self.token = token;
            return self.event(Event::TokenRenewed, store).await;
        }
        self.hands.pull = None;
        self.hands.listing = None;
        self.hands.page = None;
        self.hands.wipe = Wipe::None;
        if !is_the_same {
            self.give_up_comparison(store).await;
        }
        store.send(Command::Belong(token.subject())).await;
        self.token = token;
        loop {
            match store.reply().await {
                Some(Reply::Belongs(resume, status)) => {
                    self.show(*status);
                    return self.event(Event::TokenSet(resume), store).await;
                }
                Some(Reply::Reset(..)) => {
                    // What was to be dropped for the token's sake is gone with the file, and the
                    // command with it: asked again.
                    self.reset();
                    store.send(Command::Belong(self.token.subject())).await;
                }
                Some(Reply::Failed(error)) => return Some(Err(error.into())),
                None => return Some(Err(ClientError::Died)),
                Some(Reply::Applied(applied, status)) => {
                    self.hands.pulls.applied(applied.complete, status.last_sync.as_ref());
                }
                Some(Reply::Past { was_killed, is_unchecked, verified_ms }) => {
                    self.past(was_killed, is_unchecked, verified_ms);
                }
                Some(Reply::Wiped(..)) => self.hands.wipe = Wipe::Done,
                Some(Reply::Opened(..) | Reply::Listed) => {}
            }
        }
    }

    /// It reads what may have to be wiped, and another subject's rows are none of its concern.
    async fn give_up_comparison(&mut self, store: &Store) {
        if self.hands.comparison.is_some() {
            self.compared(Err(VerifyError::Unavailable), store).await;
        }
    }

    /// Copies everything anew. What is on its way is of no use any more.
    async fn rebuild(&mut self, store: &Store) -> Option<Ended> {
        self.hands.page = None;
        self.hands.listing = None;
        self.event(Event::Rebuild, store).await
    }

    /// Begins to compare the replica with the server's digests, beside everything else.
    fn verify(&mut self, wants: Option<Wants>, store: &Store) {
        if let Some(due) = &mut self.hands.due {
            due.begun((self.now)());
        }
        let server = self.transport().digests().filter(|_| self.hands.comparison.is_none());
        let Some(server) = server else {
            if let Some(wants) = wants {
                wants.send(Err(VerifyError::Unavailable)).ok();
            }
            return;
        };
        let (token, replica) = (self.token.clone(), self.replica.clone());
        let (store, status) = (store.commands(), self.watch.clone());
        let given_up = GivenUp::default();
        let comparison = Comparison { server, token, replica, store, status, given_up };
        self.hands.comparison = Some(Box::pin(comparison.run()));
        self.hands.wants = wants;
    }

    async fn verified(
        &mut self,
        found: Result<Verified, VerifyError>,
        store: &Store,
    ) -> Option<Ended> {
        let by_itself = self.hands.wants.is_none();
        let too_much = matches!(found, Err(VerifyError::TooMuch));
        self.compared(found, store).await;
        if too_much && by_itself {
            return self.rebuild(store).await;
        }
        None
    }

    /// Says what a comparison came to.
    async fn compared(&mut self, found: Result<Verified, VerifyError>, store: &Store) {
        self.hands.comparison = None;
        self.watch.send_if_modified(|status| status.comparing.take().is_some());
        match &found {
            Ok(verified) => {
                if let Some(due) = &mut self.hands.due {
                    due.done((self.now)());
                }
                let Verified { differences, mended, .. } = verified;
                if *mended > 0 {
                    tracing::warn!(differences, mended, "the replica differed, and was mended");
                }
                self.watch.send_modify(|status| status.verified = Some(verified.clone()));
            }
            Err(error) => {
                tracing::info!(%error, "the replica could not be compared");
                store.send(Command::ForgetComparison).await;
                if matches!(error, VerifyError::Replica(error) if error.is_damage()) {
                    store.send(Command::Check).await;
                }
            }
        }
        if let Some(wants) = self.hands.wants.take() {
            wants.send(found).ok();
        }
    }

    async fn tick(&mut self, clock: &mut Clock, store: &mut Store) -> Option<Ended> {
        if let TokenSource::File(_) = &self.source
            && let Ok(token) = self.source.read()
            && token != self.token
        {
            tracing::info!("the token file has changed");
            return self.set_token(token, store).await;
        }
        if self.hands.listed.is_some_and(|at| at.elapsed() >= COLLECTIONS_EVERY) {
            self.hands.listed = None;
            self.event(Event::CollectionsDue, store).await;
        }
        let now = (self.now)();
        if let Some(slept) = clock.jumped(now) {
            if let Some(due) = &mut self.hands.due {
                due.slept(slept);
            }
            tracing::info!("the machine slept or its clock jumped: pulling at once");
            return self.event(Event::Woke, store).await;
        }
        if self.machine.state() == State::NeedsAuth {
            tracing::debug!("waiting for another token");
        }
        let caught_up = matches!(self.machine.state(), State::Live | State::Polling);
        let due = self.hands.due.as_ref().is_some_and(|due| due.is_due(now));
        if due && caught_up && !self.once && self.hands.comparison.is_none() {
            self.verify(None, store);
        }
        None
    }

    /// Shows what has changed, in the watch and in the file.
    async fn publish(&mut self, store: &Store) {
        self.publish_source();
        let machine = &self.machine;
        let valid = match machine.state() {
            State::Polling => self.poll_interval + REPORT_VALID,
            _ => REPORT_VALID,
        };
        let valid_ms = i64::try_from(valid.as_millis()).unwrap_or(i64::MAX);
        let mut report = Report {
            state: machine.state(),
            transport: machine.transport(),
            is_online: machine.online(),
            error: machine.error().map(str::to_owned),
            failed: machine.error().is_some(),
            valid_until_ms: 0,
        };
        let fresh = self
            .hands
            .reported
            .as_ref()
            .is_some_and(|(last, at)| *last == report && at.elapsed() + REPORT_RENEW < valid);
        if fresh {
            return;
        }
        let changed = self.hands.reported.as_ref().is_none_or(|(last, _)| *last != report);
        self.hands.reported = Some((report.clone(), Instant::now()));
        if changed {
            self.watch.send_modify(|status| status.take_report(&report));
        }
        // A renewal of the same report is not another failed exchange.
        report.failed &= changed;
        report.valid_until_ms = now_ms().saturating_add(valid_ms);
        store.send(Command::Report(report)).await;
    }

    /// Shows which server is asked, and how long the token lasts.
    fn publish_source(&mut self) {
        let (server, transport) = &self.transports[self.hands.server];
        let expires_ms = transport.token_expires_ms().or_else(|| self.token.expires_ms());
        let shown = self.hands.expires_ms;
        if expires_ms.zip(shown).is_none_or(|(now, shown)| (now - shown).abs() > EXPIRY_STEP_MS) {
            self.hands.expires_ms = expires_ms;
        }
        let expires_at = self.hands.expires_ms.map(rfc3339);
        self.watch.send_if_modified(|status| {
            let same =
                status.server.as_ref() == Some(server) && status.token_expires_at == expires_at;
            if !same {
                status.server = Some(server.clone());
                status.token_expires_at = expires_at;
            }
            !same
        });
    }
}

async fn or_never<O>(slot: &mut Option<BoxFuture<'static, O>>) -> O {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn at_or_never(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl From<std::io::Error> for ClientError {
    fn from(source: std::io::Error) -> Self {
        Self::Replica(ReplicaError::Io { path: "the replica's thread".into(), source })
    }
}

#[cfg(test)]
#[path = "sleep_tests.rs"]
mod sleep_tests;

//! The tail: the one thread that writes the log. It takes batches of change events and chunks of
//! copies, turns them into changes, and commits whole commits only, several at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::RawDocumentBuf;
use tidewire_protocol::Position;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::commits::{Mark, whole};
use super::copier::{Chunk, Order};
use super::decode::{Event, Undecodable, token_time};
use super::quarantine::Defect;
use super::reads::Reads;
use super::reply::Batch;
use super::source::Ended;
use super::walk::{CheckOrder, CheckOrders, Owed, Walk};
use crate::access::channels::RuleSet;
use crate::log::{CollectionId, CopyState, LogError, TailState, Writer};
use crate::retry::Failure;
use crate::status::{SourceStatus, StatusSender};

/// With nothing to write, the stream's high-water mark is stored this often: a source that is busy
/// elsewhere may drop the oplog behind it.
const HIGH_WATER_INTERVAL: Duration = Duration::from_secs(5);

/// The log is looked through for what is older than the retention this often, or four times in a
/// shorter retention …
const COMPACT_EVERY_MAX: Duration = Duration::from_secs(30);
/// … and, while there is more of it, in steps of so many changes with so much time between them: the
/// tail goes before.
const COMPACT_VISITS_MAX: u32 = 2_000;
const COMPACT_PAUSE: Duration = Duration::from_millis(100);

/// No chunk that arrives was read longer ago: the source keeps older times for five minutes, a cursor of the
/// copier reads for a minute, and what has to be sorted at no time of its own takes half an hour at most.
const CHUNK_AGE_MAX: Duration = Duration::from_secs(2_400);

/// What a run leaves.
#[derive(Debug)]
pub(super) struct Back {
    /// With nothing open.
    pub(super) writer: Writer,
    /// Checks that the next run owes.
    pub(super) owed: Owed,
    /// Why it ended.
    pub(super) ended: Result<(), Ended>,
}

/// What the tail is made of.
#[derive(Debug)]
pub(super) struct TailParts {
    pub(super) writer: Writer,
    pub(super) database_name: String,
    pub(super) rules: Arc<RuleSet>,
    pub(super) reads: Reads,
    pub(super) status: StatusSender,
    pub(super) orders: watch::Sender<Option<Order>>,
    pub(super) high_water: watch::Sender<u64>,
    pub(super) checks: CheckOrders,
    /// Checks that earlier runs owed.
    pub(super) owed: Owed,
    /// Everything is to be checked.
    pub(super) check_all: bool,
    /// The stream starts at a time, not after a token.
    pub(super) from_time: bool,
    pub(super) runtime: Handle,
}

/// One followed collection.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) name: Arc<str>,
    pub(super) id: CollectionId,
    /// How far its copy has come.
    pub(super) copy: CopyState,
    /// Beyond what the copy has done, images up to here may lack changes that the stream did not tell,
    /// or were put under other rules without being read again: nothing is built on them.
    pub(super) untrusted_through: u64,
    /// Chunks read earlier than this may hold what is gone since without a change of its own.
    pub(super) chunks_not_before: u64,
    /// Documents of it were read at no single time, but by this one (a capped collection).
    pub(super) mixed_until: u64,
    /// The source's estimate.
    pub(super) documents_total: u64,
}

impl Tracked {
    /// The copy has yet to come past this key.
    pub(super) fn is_ahead(&self, key: &[u8]) -> bool {
        !self.copy.finished && self.copy.done_through.as_deref().is_none_or(|done| key > done)
    }
}

/// The commit that the stream is in the middle of.
#[derive(Debug)]
struct Open {
    cluster_time: u64,
    /// The next change's.
    ordinal: u32,
    /// Of the last event so far.
    token: Option<RawDocumentBuf>,
}

/// A document that changed while its copy had not come to it: read when it does.
#[derive(Debug)]
pub(super) struct Awaited {
    /// `{_id: …}`.
    pub(super) id: RawDocumentBuf,
    /// Of its latest change.
    pub(super) cluster_time: u64,
}

/// The tail's state for one run of the stream. Everything that must outlive it is in the log.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) writer: Writer,
    pub(super) database_name: String,
    pub(super) rules: Arc<RuleSet>,
    pub(super) reads: Reads,
    pub(super) status: StatusSender,
    pub(super) tracked: Vec<Tracked>,
    pub(super) by_name: HashMap<Arc<str>, usize>,
    /// By collection (its place in `tracked`) and key. At most [`super::apply::AWAITED_MAX`].
    pub(super) awaited: BTreeMap<(usize, Vec<u8>), Awaited>,
    /// Documents that were read exactly at the open commit's time: its other changes are in them.
    pub(super) exact_now: HashSet<(usize, Vec<u8>)>,
    /// How far the stream has come: whole commits only, stored or about to be.
    pub(super) stands: TailState,
    orders: watch::Sender<Option<Order>>,
    high_water: watch::Sender<u64>,
    pub(super) walk: Option<Walk>,
    /// Checks that follow.
    pub(super) owed: Owed,
    /// Documents without a known key that the walk under way has come upon, where it goes through all
    /// of a collection: what else is listed of that kind is gone. At most
    /// [`crate::log::QUARANTINE_MAX`].
    pub(super) unknown_seen: Option<HashSet<Vec<u8>>>,
    pub(super) generation: u64,
    checks: CheckOrders,
    /// Waits for the tail to reach its time.
    pub(super) held: Option<Chunk>,
    /// The last position that reconcile gave.
    pub(super) reconciled: Position,
    open: Option<Open>,
    /// What the stream tells up to here is in the log, or in the copies that are to come: a time is
    /// started at inclusively, a high-water token too where more collections are followed than before.
    skip_through: u64,
    /// No token of this time or earlier is kept: 0 where the stream started after one.
    no_token_through: u64,
    /// Something was appended or set since the last commit.
    pub(super) dirty: bool,
    stored_at: Instant,
    compact_at: Instant,
    runtime: Handle,
}

enum Input {
    Batch(Option<Batch>),
    Chunk(Option<Chunk>),
    Check(Option<CheckOrder>),
}

impl Tail {
    /// Takes the log's state up and works until both ends are closed, or something fails. What was whole
    /// is committed, what was not is forgotten: the stream tells it again.
    pub(super) fn run(
        parts: TailParts,
        mut batches: mpsc::Receiver<Batch>,
        mut chunks: mpsc::Receiver<Chunk>,
    ) -> Back {
        let check_all = parts.check_all;
        let mut tail = Self::new(parts);
        let mut ended = match tail.track(check_all) {
            Ok(()) => tail.take_all(&mut batches, &mut chunks),
            Err(error) => Err(error.into()),
        };
        tail.leave_check();
        if let Err(error) = tail.writer.abort() {
            ended = Err(error.into());
        }
        Back { writer: tail.writer, owed: tail.owed, ended }
    }

    fn new(parts: TailParts) -> Self {
        let mut stands = parts.writer.tail().clone();
        if parts.from_time {
            // The token is missing or of no use.
            stands.resume_token = None;
        }
        let skip_through = stands.high_water;
        let reconciled = parts.writer.head().position;
        Self {
            writer: parts.writer,
            database_name: parts.database_name,
            rules: parts.rules,
            reads: parts.reads,
            status: parts.status,
            tracked: Vec::new(),
            by_name: HashMap::new(),
            awaited: BTreeMap::new(),
            exact_now: HashSet::new(),
            stands,
            orders: parts.orders,
            high_water: parts.high_water,
            walk: None,
            owed: parts.owed,
            unknown_seen: None,
            generation: 0,
            checks: parts.checks,
            held: None,
            reconciled,
            open: None,
            skip_through,
            no_token_through: if parts.from_time { skip_through } else { 0 },
            dirty: false,
            stored_at: Instant::now(),
            compact_at: Instant::now(),
            runtime: parts.runtime,
        }
    }

    /// Takes up every configured collection: copies that are not finished go on.
    fn track(&mut self, check_all: bool) -> Result<(), LogError> {
        let rules = Arc::clone(&self.rules);
        for rules in rules.iter() {
            let id = self.writer.collection(rules.name())?;
            let copy = self.writer.copy_state(id);
            // An unfinished copy may follow a gap in the stream: what is older than this run is not
            // built upon. A finished one has no gap.
            let untrusted_through = if copy.finished { 0 } else { self.stands.high_water };
            let name: Arc<str> = rules.name().into();
            self.by_name.insert(Arc::clone(&name), self.tracked.len());
            self.tracked.push(Tracked {
                name,
                id,
                copy,
                untrusted_through,
                chunks_not_before: 0,
                mixed_until: 0,
                documents_total: 0,
            });
        }
        if check_all {
            (0..self.tracked.len()).try_for_each(|collection| self.owe_check(collection))?;
        }
        self.recall_owed();
        self.high_water.send_replace(self.stands.high_water);
        self.walk_on();
        Ok(())
    }

    fn take_all(
        &mut self,
        batches: &mut mpsc::Receiver<Batch>,
        chunks: &mut mpsc::Receiver<Chunk>,
    ) -> Result<(), Ended> {
        let (mut copier_lives, mut checks_come) = (true, true);
        loop {
            let may_take = copier_lives && self.held.is_none();
            let may_check =
                copier_lives && checks_come && self.walk.is_none() && self.open.is_none();
            let checks = self.checks.clone();
            let input = self.runtime.block_on(async {
                tokio::select! {
                    batch = batches.recv() => Input::Batch(batch),
                    chunk = chunks.recv(), if may_take => Input::Chunk(chunk),
                    order = checks.next(), if may_check => Input::Check(order),
                }
            });
            match input {
                Input::Batch(None) => return self.finish(),
                Input::Batch(Some(batch)) => self.take_batch(&batch)?,
                Input::Chunk(None) => copier_lives = false,
                Input::Chunk(Some(chunk)) => self.held = Some(chunk),
                Input::Check(None) => checks_come = false,
                Input::Check(Some(order)) => self.take_check(order),
            }
            // Only between commits, and only when the log is not behind the chunk.
            if self.open.is_none()
                && let Some(chunk) = self.held.take_if(|c| c.until <= self.stands.high_water)
            {
                self.take_chunk(chunk)?;
            }
            if self.open.is_none() {
                self.end_overdue_check();
            }
            self.compact()?;
        }
    }

    /// Drops a little of what is older than the retention, between two commits. The source answers
    /// twice a second at least, so this comes round on an idle stream too.
    fn compact(&mut self) -> Result<(), LogError> {
        if self.open.is_some() || self.dirty || Instant::now() < self.compact_at {
            return Ok(());
        }
        let mut now = u64::try_from(SourceStatus::now_ms() / 1_000).unwrap_or(0);
        if self.walk.is_some() {
            // A chunk on its way must still find what was deleted after it was read.
            now =
                now.saturating_sub(CHUNK_AGE_MAX.saturating_sub(self.writer.retention()).as_secs());
        }
        let boundary = self.writer.retention_boundary(now);
        let compacted = self.writer.compact(boundary, COMPACT_VISITS_MAX)?;
        if compacted.dropped > 0 {
            tracing::debug!(dropped = compacted.dropped, "superseded changes are dropped");
        }
        let every = (self.writer.retention() / 4).clamp(COMPACT_PAUSE, COMPACT_EVERY_MAX);
        let pause = if compacted.more { COMPACT_PAUSE } else { every };
        self.compact_at = Instant::now() + pause;
        Ok(())
    }

    /// The stream ended: what is not whole is forgotten, how far the rest reaches is kept.
    fn finish(&mut self) -> Result<(), Ended> {
        if self.open.take().is_some() {
            self.writer.abort()?;
            self.dirty = false;
        }
        if *self.writer.tail() != self.stands {
            self.commit()?;
        }
        Ok(())
    }

    /// Takes a batch in: its whole commits are committed, together; a commit that may go on stays open
    /// in the log's transaction, alone.
    fn take_batch(&mut self, batch: &Batch) -> Result<(), Ended> {
        let reply = &batch.reply;
        let events: Vec<_> = reply.documents().map(Event::decode).collect();
        let token = reply.post_batch_token();
        let whole = whole(&self.marks(&events), token.and_then(token_time), batch.full);
        for event in &events[..whole] {
            self.take_event(event)?;
        }
        if whole == events.len() {
            let last = events.last().and_then(token_of);
            if reply.is_last() {
                // An `invalidate` ended the stream. After its token nothing of its time is told again,
                // at its time the same `invalidate` is.
                self.no_token_through = 0;
            }
            self.close(token.or(last).map(ToOwned::to_owned));
        } else if whole > 0 {
            self.close(token_of(&events[whole - 1]).map(ToOwned::to_owned));
        } else if self.open.as_ref().is_some_and(|o| Some(o.cluster_time) != time_of(&events[0])) {
            let token = self.open.as_mut().and_then(|open| open.token.take());
            self.close(token);
        }
        if self.open.is_none() {
            self.store()?;
        }
        for event in &events[whole..] {
            self.take_event(event)?;
        }
        if let (Some(open), Some(last)) = (&mut self.open, events.last()) {
            open.token = token_of(last).map(ToOwned::to_owned);
        }
        self.tell(reply.operation_time());
        Ok(())
    }

    /// What the boundaries are told from. An event whose time can't be read is taken to be of the time
    /// before it.
    fn marks(&self, events: &[Result<Event<'_>, Undecodable<'_>>]) -> Vec<Mark> {
        let mut time = self.open.as_ref().map_or(self.stands.high_water, |open| open.cluster_time);
        let mark = |event: &Result<Event<'_>, Undecodable<'_>>| {
            time = time_of(event).unwrap_or(time);
            let in_transaction = match event {
                Ok(event) => event.in_transaction,
                Err(undecodable) => undecodable.in_transaction,
            };
            Mark { cluster_time: time, in_transaction }
        };
        events.iter().map(mark).collect()
    }

    fn take_event(&mut self, event: &Result<Event<'_>, Undecodable<'_>>) -> Result<(), Ended> {
        let Some(cluster_time) = time_of(event) else {
            return self.skip_undecodable(event);
        };
        if cluster_time <= self.skip_through {
            return Ok(());
        }
        if self.open.as_ref().is_none_or(|open| open.cluster_time != cluster_time) {
            self.open_commit(cluster_time)?;
        }
        match event {
            Ok(event) => self.apply(event),
            Err(_) => self.skip_undecodable(event),
        }
    }

    fn open_commit(&mut self, cluster_time: u64) -> Result<(), Ended> {
        if cluster_time <= self.stands.high_water {
            // It can't be put where it belongs: what follows it is out already.
            let message = "the stream told a change after it had said that there was none";
            return Err(Ended::new(Failure::HistoryLost, message));
        }
        self.exact_now.clear();
        self.open = Some(Open { cluster_time, ordinal: 0, token: None });
        Ok(())
    }

    fn skip_undecodable(
        &mut self,
        event: &Result<Event<'_>, Undecodable<'_>>,
    ) -> Result<(), Ended> {
        if let Err(undecodable) = event {
            let position = self.next_position();
            let defect = Defect::Event(undecodable.part);
            let token = undecodable.token.map_or(&[][..], bson::raw::RawDocument::as_bytes);
            self.set_aside_event(position, undecodable.collection, token, defect)?;
            // What it was about is found by looking at all of the collection.
            if let Some(&collection) = self.by_name.get(undecodable.collection) {
                self.tracked[collection].chunks_not_before = self.now();
                self.owe_check(collection)?;
                self.walk_on();
            }
        }
        Ok(())
    }

    /// The cluster time of the commit that the stream is in the middle of, or else of what is told.
    pub(super) fn now(&self) -> u64 {
        self.open.as_ref().map_or(self.stands.high_water, |open| open.cluster_time)
    }

    /// The position of the open commit's next change.
    pub(super) fn next_position(&mut self) -> Position {
        let Some(open) = &mut self.open else {
            return Position::new(self.stands.high_water, 0);
        };
        let position = Position::new(open.cluster_time, open.ordinal);
        open.ordinal += 1;
        position
    }

    /// Everything told so far is whole; the stream goes on after `token`.
    fn close(&mut self, token: Option<RawDocumentBuf>) {
        if let Some(open) = self.open.take() {
            self.stands.high_water = self.stands.high_water.max(open.cluster_time);
        }
        let told = token.as_deref().and_then(token_time).unwrap_or(0);
        self.stands.high_water = self.stands.high_water.max(told);
        // A token of the time where the stream started would tell that time's changes again, and there
        // would be no knowing that the log has them.
        if told > self.no_token_through {
            self.stands.resume_token = token;
        }
    }

    /// Commits what was appended; with nothing appended, the high-water mark from time to time.
    fn store(&mut self) -> Result<(), LogError> {
        let first = self.writer.tail().resume_token.is_none() && self.stands.resume_token.is_some();
        let due = self.stored_at.elapsed() >= HIGH_WATER_INTERVAL;
        if self.dirty || first || (due && *self.writer.tail() != self.stands) {
            self.commit()?;
        }
        self.high_water.send_if_modified(|time| {
            std::mem::replace(time, self.stands.high_water) != self.stands.high_water
        });
        Ok(())
    }

    /// Commits, with where the stream stands.
    pub(super) fn commit(&mut self) -> Result<(), LogError> {
        self.writer.set_tail(self.stands.clone())?;
        self.writer.commit()?;
        self.dirty = false;
        self.stored_at = Instant::now();
        Ok(())
    }

    fn tell(&self, operation_time: u64) {
        let high_water = self.stands.high_water;
        let in_quarantine = self.writer.quarantine_len() as u64;
        self.status.send_modify(|status| {
            status.operation_time = status.operation_time.max(operation_time);
            status.in_quarantine = in_quarantine;
            status.heard_at_ms = SourceStatus::now_ms();
            if high_water != status.high_water || status.advanced_at_ms == 0 {
                status.advanced_at_ms = status.heard_at_ms;
            }
            status.high_water = high_water;
            status.trouble = None;
        });
    }

    /// Hands the copier its next order, `None` when all is copied.
    pub(super) fn send_order(&self, order: Option<Order>) {
        self.orders.send_replace(order);
    }
}

fn time_of(event: &Result<Event<'_>, Undecodable<'_>>) -> Option<u64> {
    match event {
        Ok(event) => Some(event.cluster_time),
        Err(undecodable) => undecodable.cluster_time,
    }
}

fn token_of<'a>(event: &Result<Event<'a>, Undecodable<'a>>) -> Option<&'a bson::raw::RawDocument> {
    match event {
        Ok(event) => Some(event.token),
        Err(undecodable) => undecodable.token,
    }
}

impl From<LogError> for Ended {
    fn from(error: LogError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        let failure = if error.is_damage() { Failure::LogDamaged } else { Failure::Store };
        Self::new(failure, format!("{error}{}", cause.unwrap_or_default()))
    }
}

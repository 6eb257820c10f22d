//! What is read from the source to be compared with the log, one thing at a time.
//!
//! ```text
//!            copy_again, a gap, a new collection
//!                        │
//!   (nothing yet) ──► copying ──────────────► finished ◄───┐ its end
//!                        ▲    its last chunk     │         │
//!                        └───── copy_again ──────┤ order   │
//!                                                └──► checked (stays finished, stays served)
//! ```
//!
//! A *copy* is for what the stream can't tell: its collection is unsettled until the last chunk, its
//! progress is in the log, and a restart goes on with it. A *check* is for a collection that should be
//! right: it is served meanwhile, what differs is mended, and whoever asked is told, where the run ends
//! in the middle too. Copies go first, then the checks that the tail owes itself: either ends a check that
//! was asked for, which is asked for again.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use bson::RawDocumentBuf;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::copier::{Chunk, Order};
use super::tail::Tail;
use crate::config::Hours;
use crate::log::{LogError, sort_key};
use crate::metrics::now_ms;
use crate::status::{CopyProgress, SourcePhase};

/// Checks that wait for the tail.
const CHECKS_MAX: usize = 16;

/// Asks for a collection, or the rest of one, to be compared with the source, and mended, while it is
/// served.
#[derive(Debug)]
pub struct CheckOrder {
    /// The collection's name.
    pub collection: String,
    /// What is after this `{_id: …}` (exclusive) in the order of `_id`; `None`: all of it.
    pub after: Option<RawDocumentBuf>,
    /// What the source reads for it in a second, at most, what it reads to sort counted too: where it can't
    /// go by an index (a collection with a collation) it reads all at once and the rest waits. `None`: as fast
    /// as it goes.
    pub bytes_per_second: Option<u32>,
    /// It is cut off when these are over, within a second; `None`: never for that.
    pub hours: Option<Hours>,
    /// Told at the end. Dropped where there is none and nothing was stored: the stream ended, or the
    /// collection is not followed or has to be copied anyway. Ask again then. A check whose asker has
    /// dropped the other end is given up.
    pub done: oneshot::Sender<Checked>,
}

/// How a check ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Checked {
    /// At the collection's end.
    Whole(CheckReport),
    /// The stream or its hours ended before: everything through this `{_id: …}` is done, ask for the rest.
    CutOff(CheckReport, RawDocumentBuf),
}

/// What a check found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Documents of the source that were looked at.
    pub documents: u64,
    /// Documents that the log did not have as the source has them. They are mended.
    pub upserted: u64,
    /// Documents that the log had and the source has not. They are deleted.
    pub deleted: u64,
    /// The cluster time of the last read.
    pub time: u64,
}

impl CheckReport {
    /// Both together, `rest` being the later one.
    #[must_use]
    pub fn and(self, rest: Self) -> Self {
        Self {
            documents: self.documents + rest.documents,
            upserted: self.upserted + rest.upserted,
            deleted: self.deleted + rest.deleted,
            time: rest.time,
        }
    }
}

/// Where checks are asked for.
pub type CheckSender = mpsc::Sender<CheckOrder>;

/// Where the tail takes them from, one run after another.
#[derive(Clone, Debug)]
pub struct CheckOrders(Arc<Mutex<mpsc::Receiver<CheckOrder>>>);

/// A new pair.
#[must_use]
pub fn checks() -> (CheckSender, CheckOrders) {
    let (sender, receiver) = mpsc::channel(CHECKS_MAX);
    (sender, CheckOrders(Arc::new(Mutex::new(receiver))))
}

impl CheckOrders {
    /// The next one; `None` when nobody can ask any more.
    pub(super) async fn next(&self) -> Option<CheckOrder> {
        self.0.lock().await.recv().await
    }
}

/// What the tail is comparing with the source.
#[derive(Debug)]
pub(super) enum Walk {
    /// The copy of this collection.
    Copy(usize),
    /// A check.
    Check(Check),
}

/// A check under way.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) collection: usize,
    /// Everything through this key is done.
    pub(super) done_through: Option<Vec<u8>>,
    /// The same as `{_id: …}`.
    done_through_id: Option<RawDocumentBuf>,
    /// What of it is stored, with what was found up to there.
    stored: Option<(RawDocumentBuf, CheckReport)>,
    bytes_per_second: Option<u32>,
    hours: Option<Hours>,
    pub(super) report: CheckReport,
    /// `None`: nobody asked but ourselves.
    done: Option<oneshot::Sender<Checked>>,
}

impl Check {
    fn of(due: Due) -> Self {
        let key = |id: &RawDocumentBuf| Some(sort_key(id.get("_id").ok()??));
        let done_through = due.after.as_ref().and_then(key);
        Self {
            collection: due.collection,
            done_through_id: due.after.filter(|_| done_through.is_some()),
            done_through,
            stored: None,
            bytes_per_second: None,
            hours: None,
            report: CheckReport::default(),
            done: None,
        }
    }
}

/// A check that the tail owes itself: a collection, by its place, and what of it is done.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) collection: usize,
    after: Option<RawDocumentBuf>,
}

/// Of these at most one for each collection. They outlive the run.
pub(super) type Owed = VecDeque<Due>;

impl Tail {
    /// The collection that is read, by its place in `tracked`.
    pub(super) fn walked(&self) -> Option<usize> {
        match self.walk.as_ref()? {
            Walk::Copy(collection) => Some(*collection),
            Walk::Check(check) => Some(check.collection),
        }
    }

    /// Goes on to what is to be read next, where nothing is under way that goes before it.
    pub(super) fn walk_on(&mut self) {
        let unfinished = |at: usize| !self.tracked[at].copy.finished;
        let copy = match self.walk {
            Some(Walk::Copy(collection)) if unfinished(collection) => return,
            _ => (0..self.tracked.len()).find(|&at| unfinished(at)),
        };
        let check_goes_on = match &self.walk {
            Some(Walk::Check(check)) => check.done.is_none() || self.owed.is_empty(),
            _ => false,
        };
        if check_goes_on && copy.is_none() {
            return;
        }
        self.leave_check();
        if let Some(copy) = copy {
            self.walk = Some(Walk::Copy(copy));
            self.unknown_seen = self.tracked[copy].copy.done_through.is_none().then(HashSet::new);
        } else {
            let due = self.owed.pop_front();
            self.unknown_seen =
                due.as_ref().filter(|due| due.after.is_none()).map(|_| HashSet::new());
            self.walk = due.map(Check::of).map(Walk::Check);
        }
        self.order();
    }

    /// A check of all of the collection is owed, by the log too from the next commit on. Until it is made
    /// nothing is built upon what the log has of it by now.
    pub(super) fn owe_check(&mut self, collection: usize) -> Result<(), LogError> {
        self.tracked[collection].untrusted_through = self.now();
        self.owed.retain(|due| due.collection != collection);
        self.owed.push_back(Due { collection, after: None });
        self.note_owed(collection, true)
    }

    fn note_owed(&mut self, collection: usize, is_owed: bool) -> Result<(), LogError> {
        let tracked = &mut self.tracked[collection];
        if tracked.copy.owes_check == is_owed {
            return Ok(());
        }
        tracked.copy.owes_check = is_owed;
        let (id, copy) = (tracked.id, tracked.copy.clone());
        self.dirty = true;
        self.writer.set_copy_state(id, copy)
    }

    /// Takes up what the log says is owed and this process does not know of.
    pub(super) fn recall_owed(&mut self) {
        for collection in 0..self.tracked.len() {
            if !self.tracked[collection].copy.owes_check {
                continue;
            }
            self.tracked[collection].untrusted_through = self.stands.high_water;
            if !self.owes_check(collection) {
                self.owed.push_back(Due { collection, after: None });
            }
        }
    }

    pub(super) fn owes_check(&self, collection: usize) -> bool {
        self.owed.iter().any(|due| due.collection == collection)
    }

    /// A check under way ends before its time: whoever asked is told how far it came, or it is owed on.
    pub(super) fn leave_check(&mut self) {
        let Some(Walk::Check(check)) = self.walk.take_if(|walk| matches!(walk, Walk::Check(_)))
        else {
            return;
        };
        match (check.done, check.stored) {
            (Some(done), Some((id, report))) => {
                // Whoever asked may have gone.
                let _ = done.send(Checked::CutOff(report, id));
            }
            (Some(_), None) => {}
            (None, stored) => {
                let after = stored.map(|(id, _)| id);
                self.owed.push_front(Due { collection: check.collection, after });
            }
        }
    }

    /// Orders what is under way, from where it stands.
    pub(super) fn order(&mut self) {
        self.generation += 1;
        let order = self.walk.as_ref().map(|walk| {
            let (at, after, bytes_per_second) = match walk {
                Walk::Copy(at) => (*at, self.tracked[*at].copy.done_through_id.clone(), None),
                Walk::Check(c) => (c.collection, c.done_through_id.clone(), c.bytes_per_second),
            };
            Order {
                generation: self.generation,
                collection: self.tracked[at].name.to_string(),
                after,
                not_before: self.tracked[at].chunks_not_before,
                bytes_per_second,
            }
        });
        self.send_order(order);
        self.tell_copies();
    }

    /// Begins a check, between two commits and with nothing under way.
    pub(super) fn take_check(&mut self, order: CheckOrder) {
        let Some(&collection) = self.by_name.get(order.collection.as_str()) else { return };
        if order.done.is_closed() {
            return;
        }
        self.unknown_seen = order.after.is_none().then(HashSet::new);
        let mut check = Check::of(Due { collection, after: order.after });
        (check.bytes_per_second, check.hours) = (order.bytes_per_second, order.hours);
        check.done = Some(order.done);
        self.walk = Some(Walk::Check(check));
        self.order();
    }

    /// What is done of the walk: everything through `end`, which `last` says is all.
    pub(super) fn advance(
        &mut self,
        chunk: &Chunk,
        end: Option<(Vec<u8>, RawDocumentBuf)>,
        documents: u64,
    ) -> Result<(), LogError> {
        if chunk.last
            && let (Some(seen), Some(at)) = (self.unknown_seen.take(), self.walked())
        {
            self.dirty |= self.writer.keep_unknown(self.tracked[at].id, &seen)? > 0;
        }
        match &mut self.walk {
            Some(Walk::Copy(at)) => {
                let tracked = &mut self.tracked[*at];
                tracked.documents_total = chunk.documents_total;
                tracked.copy.documents += documents;
                // Not before the stream has told what a read at no single time had ahead of it.
                tracked.copy.finished = chunk.last && tracked.mixed_until <= self.stands.high_water;
                if let Some((key, id)) = end {
                    tracked.copy.done_through = Some(key);
                    tracked.copy.done_through_id = Some(id);
                }
                let (id, copy) = (tracked.id, tracked.copy.clone());
                self.writer.set_copy_state(id, copy)?;
            }
            Some(Walk::Check(check)) => {
                self.tracked[check.collection].documents_total = chunk.documents_total;
                check.report.documents += documents;
                check.report.time = chunk.time;
                if let Some((key, id)) = end {
                    check.done_through = Some(key);
                    check.done_through_id = Some(id);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// A chunk is committed; where it was the walk's last one, the next walk begins.
    pub(super) fn walked_through(&mut self, chunk: &Chunk) -> Result<(), LogError> {
        match self.walk.take() {
            Some(Walk::Copy(at)) if self.tracked[at].copy.finished => {
                let cluster_time = self.stands.high_water;
                tracing::info!(collection = %self.tracked[at].name, cluster_time, "the copy is finished");
            }
            Some(Walk::Check(check)) if chunk.last => self.end_check(check)?,
            mut under_way => {
                if let Some(Walk::Check(check)) = &mut under_way {
                    check.stored = check.done_through_id.clone().map(|id| (id, check.report));
                }
                self.walk = under_way;
                self.tell_copies();
                return Ok(());
            }
        }
        self.walk_on();
        Ok(())
    }

    /// Ends a check, between two commits, that nobody waits for any more or whose hours are over: a slow one
    /// may have long to wait for its next chunk.
    pub(super) fn end_overdue_check(&mut self) {
        if let Some(Walk::Check(check)) = &self.walk
            && check.is_overdue()
        {
            self.leave_check();
            self.walk_on();
        }
    }

    fn end_check(&mut self, check: Check) -> Result<(), LogError> {
        if check.done.is_none() && !self.owes_check(check.collection) {
            self.note_owed(check.collection, false)?;
        }
        let collection = &self.tracked[check.collection].name;
        let CheckReport { documents, upserted, deleted, .. } = check.report;
        if upserted + deleted > 0 {
            tracing::warn!(%collection, documents, upserted, deleted, "a check mended the log");
        } else {
            tracing::debug!(%collection, documents, "a check found the log as the source");
        }
        if let Some(done) = check.done {
            // Whoever asked may have gone.
            let _ = done.send(Checked::Whole(check.report));
        }
        Ok(())
    }

    /// Tells the status which copies are not finished.
    pub(super) fn tell_copies(&self) {
        // Without it readers are told what they were told before.
        let followed = self.writer.followed().unwrap_or_default();
        let whole = |id| followed.iter().any(|f| f.collection == id && f.whole);
        let unfinished = self.tracked.iter().filter(|tracked| !tracked.copy.finished);
        let copies: BTreeMap<_, _> = unfinished
            .map(|tracked| {
                let documents = tracked.copy.documents;
                let documents_total = tracked.documents_total.max(documents);
                let first = !whole(tracked.id);
                (tracked.name.to_string(), CopyProgress { documents, documents_total, first })
            })
            .collect();
        let checking = match &self.walk {
            Some(Walk::Check(check)) => {
                let tracked = &self.tracked[check.collection];
                let documents = check.report.documents;
                let documents_total = tracked.documents_total.max(documents);
                let progress = CopyProgress { documents, documents_total, first: false };
                Some((tracked.name.to_string(), progress))
            }
            _ => None,
        };
        self.status.send_modify(|status| {
            status.checking = checking;
            let following = copies.is_empty();
            status.phase = if following { SourcePhase::Following } else { SourcePhase::Copying };
            status.whole |= followed.iter().any(|f| f.whole);
            status.copies = copies;
        });
    }
}

impl Check {
    /// Whoever asked has gone, or the hours are over.
    fn is_overdue(&self) -> bool {
        self.done.as_ref().is_some_and(oneshot::Sender::is_closed)
            || self.hours.is_some_and(|hours| !hours.hold_at(now_ms()))
    }
}

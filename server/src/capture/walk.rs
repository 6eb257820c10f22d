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
//! right: it is served meanwhile, what differs is mended, and whoever asked is told; it ends with the
//! run. Copies go first: a collection that has to be copied ends its check.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use bson::RawDocumentBuf;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::copier::{Chunk, Order};
use super::tail::Tail;
use crate::log::{LogError, sort_key};
use crate::status::{CopyProgress, SourcePhase};

/// Checks that wait for the tail.
const CHECKS_MAX: usize = 16;

/// Asks for a part of a collection to be compared with the source, and mended, while it is served.
#[derive(Debug)]
pub struct CheckOrder {
    /// The collection's name.
    pub collection: String,
    /// Which part of it.
    pub part: Part,
    /// Read at most so much a second; `None`: as fast as it goes.
    pub bytes_per_second: Option<u32>,
    /// Told at the end. Dropped where there is none: the stream ended, or the collection is not
    /// followed or has to be copied anyway. Ask again then. A check whose asker has dropped the other
    /// end is given up.
    pub done: oneshot::Sender<CheckReport>,
}

/// A part of a collection.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// The documents with these `_id`s, each `{_id: …}`; at most [`Part::IDS_MAX`] are looked at.
    Ids(Vec<RawDocumentBuf>),
    /// What is after `after` (exclusive) through `through` (inclusive) in the order of `_id`, both
    /// `{_id: …}`; `None` is an open end.
    Range {
        /// The start.
        after: Option<RawDocumentBuf>,
        /// The end.
        through: Option<RawDocumentBuf>,
    },
}

impl Part {
    /// Most `_id`s in one order.
    pub const IDS_MAX: usize = super::reads::IDS_MAX;
    /// All of a collection.
    pub const ALL: Self = Self::Range { after: None, through: None };
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
    /// Where it ends.
    pub(super) through: Option<Vec<u8>>,
    bytes_per_second: Option<u32>,
    pub(super) report: CheckReport,
    /// `None`: nobody asked but ourselves.
    done: Option<oneshot::Sender<CheckReport>>,
}

impl Check {
    fn of_all(collection: usize) -> Self {
        Self {
            collection,
            done_through: None,
            done_through_id: None,
            through: None,
            bytes_per_second: None,
            report: CheckReport::default(),
            done: None,
        }
    }
}

/// The `_id` and the key of `{_id: …}`.
fn keyed(id: Option<RawDocumentBuf>) -> (Option<RawDocumentBuf>, Option<Vec<u8>>) {
    let key = id.as_ref().and_then(|id| Some(sort_key(id.get("_id").ok()??)));
    (id.filter(|_| key.is_some()), key)
}

/// The checks that the tail owes itself: at most one for each collection.
pub(super) type Owed = VecDeque<usize>;

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
        if let Some(copy) = copy {
            if let Some(Walk::Check(Check { collection, done: None, .. })) = self.walk {
                self.owed.push_front(collection);
            }
            self.walk = Some(Walk::Copy(copy));
            self.unknown_seen = self.tracked[copy].copy.done_through.is_none().then(HashSet::new);
        } else if matches!(self.walk, Some(Walk::Check(_))) {
            return;
        } else {
            self.walk = self.owed.pop_front().map(Check::of_all).map(Walk::Check);
            self.unknown_seen = self.walk.as_ref().map(|_| HashSet::new());
        }
        self.order();
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
    pub(super) fn take_check(&mut self, order: CheckOrder) -> Result<(), super::source::Ended> {
        let Some(&collection) = self.by_name.get(order.collection.as_str()) else { return Ok(()) };
        if order.done.is_closed() {
            return Ok(());
        }
        let check = match order.part {
            Part::Ids(ids) => {
                if let Some(report) = self.check_ids(collection, ids)? {
                    // Whoever asked may have gone.
                    let _ = order.done.send(report);
                }
                return Ok(());
            }
            Part::Range { after, through } => {
                let (done_through_id, done_through) = keyed(after);
                let (_, through) = keyed(through);
                let (bytes_per_second, done) = (order.bytes_per_second, Some(order.done));
                let report = CheckReport::default();
                Check {
                    collection,
                    done_through,
                    done_through_id,
                    through,
                    bytes_per_second,
                    report,
                    done,
                }
            }
        };
        let is_all = check.done_through.is_none() && check.through.is_none();
        self.unknown_seen = is_all.then(HashSet::new);
        self.walk = Some(Walk::Check(check));
        self.order();
        Ok(())
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
                tracked.copy.finished = chunk.last;
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
    pub(super) fn walked_through(&mut self, chunk: &Chunk) {
        match self.walk.take() {
            Some(Walk::Copy(at)) if self.tracked[at].copy.finished => {
                let cluster_time = self.stands.high_water;
                tracing::info!(collection = %self.tracked[at].name, cluster_time, "the copy is finished");
            }
            Some(Walk::Check(check)) if chunk.last || check.is_through() => {
                self.end_check(check);
            }
            Some(Walk::Check(check)) if check.is_unwanted() => {}
            under_way => {
                self.walk = under_way;
                return self.tell_copies();
            }
        }
        self.walk_on();
    }

    fn end_check(&self, check: Check) {
        let collection = &self.tracked[check.collection].name;
        let CheckReport { documents, upserted, deleted, .. } = check.report;
        if upserted + deleted > 0 {
            tracing::warn!(%collection, documents, upserted, deleted, "a check mended the log");
        } else {
            tracing::debug!(%collection, documents, "a check found the log as the source");
        }
        if let Some(done) = check.done {
            // Whoever asked may have gone.
            let _ = done.send(check.report);
        }
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
    /// Whoever asked has gone: somebody else's turn.
    fn is_unwanted(&self) -> bool {
        self.done.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    /// It has come to its end.
    fn is_through(&self) -> bool {
        self.through.is_some() && self.done_through >= self.through
    }
}

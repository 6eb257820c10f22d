//! Lays what the witness was told beside what each log tells, commit by commit: nothing lost, doubled,
//! reordered, torn or invented, and every document as the source had it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::findings::{Findings, Kind};
use super::stage::{COLLECTIONS, PLAIN};
use super::told::Told;

const SERVERS: usize = 2;
/// Broken commits of which each change is named.
const NAMED_MAX: usize = 3;

/// From `from` (exclusive) through `through` (inclusive) a log may tell a collection's changes by
/// reconcile instead of one by one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    pub(super) collection: usize,
    pub(super) from: u64,
    pub(super) through: u64,
}

#[derive(Debug, Default)]
struct Log {
    /// By cluster time, what is not judged yet.
    commits: BTreeMap<u64, Vec<Told>>,
    /// Everything up to here has been read.
    through: u64,
    gaps: Vec<Gap>,
}

#[derive(Debug, Default)]
struct Books {
    /// By cluster time, what is not judged yet.
    witness: BTreeMap<u64, Vec<Told>>,
    /// The last one may go on.
    witness_last: u64,
    logs: [Log; SERVERS],
    judged_through: u64,
}

/// The judge. Cheap calls from any thread.
#[derive(Debug)]
pub(super) struct Judge {
    books: Mutex<Books>,
    findings: Arc<Findings>,
    ready: watch::Sender<bool>,
}

impl Judge {
    pub(super) fn new(findings: Arc<Findings>) -> Self {
        Self { books: Mutex::default(), findings, ready: watch::Sender::new(false) }
    }

    pub(super) fn findings(&self) -> &Findings {
        &self.findings
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The witness's stream is open.
    pub(super) fn witness_is_there(&self) {
        self.ready.send_replace(true);
    }

    /// Waits for that. Nothing may be written before.
    pub(super) async fn has_witness(&self) {
        // The sender is ours.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// The source told a change, in its order.
    pub(super) fn witnessed(&self, time: u64, told: Told) {
        let mut books = self.books();
        books.witness_last = time;
        books.witness.entry(time).or_default().push(told);
    }

    /// A log tells a change of the stream, in its order.
    pub(super) fn logged(&self, server: usize, time: u64, told: Told) {
        if told.collection < PLAIN {
            self.books().logs[server].commits.entry(time).or_default().push(told);
        }
    }

    pub(super) fn gap_opens(&self, server: usize, gap: Gap) {
        let name = COLLECTIONS[gap.collection];
        self.findings.note(&format!("log {server}: {name} is copied from {:016x}", gap.from));
        self.books().logs[server].gaps.push(gap);
    }

    pub(super) fn gap_closes(&self, server: usize, collection: usize, through: u64) {
        let name = COLLECTIONS[collection];
        self.findings.note(&format!("log {server}: {name} is copied through {through:016x}"));
        let mut books = self.books();
        let open = |gap: &&mut Gap| gap.collection == collection && gap.through == u64::MAX;
        books.logs[server].gaps.iter_mut().filter(open).for_each(|gap| gap.through = through);
    }

    pub(super) fn is_in_gap(&self, server: usize, collection: usize, time: u64) -> bool {
        self.books().logs[server].is_in_gap(collection, time)
    }

    /// Everything up to `time` of a log has been told here; judges what can be.
    pub(super) fn follows(&self, server: usize, time: u64) {
        let mut books = self.books();
        let log = &mut books.logs[server];
        log.through = log.through.max(time);
        let read = books.logs.iter().map(|log| log.through).min().unwrap_or(0);
        // The witness's last commit may go on.
        let through = read.min(books.witness_last.saturating_sub(1));
        self.judge(&mut books, through);
    }

    /// Up to which time everything has been judged.
    pub(super) fn judged_through(&self) -> u64 {
        self.books().judged_through
    }

    fn judge(&self, books: &mut Books, through: u64) {
        if through <= books.judged_through {
            return;
        }
        books.judged_through = through;
        let witness = take_through(&mut books.witness, through);
        for (index, log) in books.logs.iter_mut().enumerate() {
            let told = take_through(&mut log.commits, through);
            for (time, expected) in &witness {
                let found = told.get(time).map_or(&[][..], Vec::as_slice);
                self.compare(index, log, *time, expected, found);
            }
            for (time, found) in told.iter().filter(|(time, _)| !witness.contains_key(time)) {
                self.compare(index, log, *time, &[], found);
            }
            log.gaps.retain(|gap| gap.through > through);
        }
    }

    fn compare(&self, server: usize, log: &Log, time: u64, expected: &[Told], found: &[Told]) {
        self.findings.count("changes checked", expected.len() as u64);
        let is_equal = expected.len() == found.len()
            && expected.iter().zip(found).all(|(e, f)| e.is_like(f) && e.has_content_of(f));
        if is_equal {
            return;
        }
        let mut wrong = Vec::new();
        let mut left: HashMap<(usize, &str, bool), Vec<&Told>> = HashMap::new();
        for told in found.iter().rev() {
            left.entry((told.collection, &told.key, told.is_delete)).or_default().push(told);
        }
        for told in expected {
            match left.get_mut(&(told.collection, &told.key, told.is_delete)).and_then(Vec::pop) {
                Some(other) if told.has_content_of(other) => {}
                Some(_) if is_merged(told, expected, found) => {}
                Some(_) => wrong.push((Kind::Different, told)),
                None if log.is_in_gap(told.collection, time) => {
                    self.findings.count("changes told by reconcile instead", 1);
                }
                // Read once, exactly at this time, for all its changes of this commit.
                None if is_merged(told, expected, found) => {}
                None if found.is_empty() => wrong.push((Kind::Lost, told)),
                None => wrong.push((Kind::Torn, told)),
            }
        }
        for told in left.into_values().flatten() {
            let is_known = expected.iter().any(|other| other.is_like(told));
            wrong.push((if is_known { Kind::Duplicated } else { Kind::Invented }, told));
        }
        if wrong.is_empty() && expected.len() == found.len() {
            wrong.extend(found.first().map(|first| (Kind::Reordered, first)));
        }
        for (kind, told) in wrong.iter().take(NAMED_MAX) {
            let name = COLLECTIONS[told.collection];
            let verb = if told.is_delete { "delete" } else { "upsert" };
            let text = format!("log {server} at {time:016x}: {verb} of {name} {}", told.key);
            self.findings.broken(*kind, text);
        }
    }
}

impl Log {
    fn is_in_gap(&self, collection: usize, time: u64) -> bool {
        let holds =
            |gap: &Gap| gap.collection == collection && gap.from < time && time <= gap.through;
        self.gaps.iter().any(holds)
    }
}

fn take_through(commits: &mut BTreeMap<u64, Vec<Told>>, through: u64) -> BTreeMap<u64, Vec<Told>> {
    let later = commits.split_off(&(through + 1));
    std::mem::replace(commits, later)
}

/// Whether a log tells the last state of a document in a commit, where the source told it several times.
fn is_merged(told: &Told, expected: &[Told], found: &[Told]) -> bool {
    let is_same = |other: &&Told| (other.collection, &other.key) == (told.collection, &told.key);
    let last = expected.iter().rfind(is_same);
    let mut all = found.iter().filter(is_same);
    let (first, only) = (all.next(), all.next().is_none());
    let is_last = |(last, first): (&Told, &Told)| last.is_like(first) && last.has_content_of(first);
    only && last.zip(first).is_some_and(is_last)
}

//! The log against a model: whatever is written, read, regranted, compacted, aborted or reopened, a
//! reader that has a complete page holds the source as it stood there, cut to what it may see.

mod beside;
mod damage;
mod edges;
mod gaps;
mod news;
mod rebuild;
mod rules;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bson::raw::RawDocument;
use bson::rawdoc;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidewire_protocol::{Position, ResyncReason};

use super::*;

const COLLECTIONS: [&str; 3] = ["users", "plans", "invoices"];
const RULES: &str = "rules";
const CHANNELS: [&str; 5] = ["everyone", "user:1", "user:2", "role:admin", "role:agent"];

/// By collection and `_id`: the number that each document holds.
type Documents = BTreeMap<(String, i32), i32>;

/// A change as the model knows it.
#[derive(Clone)]
struct Known {
    position: Position,
    collection: usize,
    id: i32,
    /// Document and channels; `None`: deleted.
    state: Option<(Vec<u8>, Vec<String>)>,
    /// The channels are the document's before.
    as_before: bool,
}

/// The model of a source: every change.
#[derive(Clone, Default)]
struct Model {
    changes: Vec<Known>,
    /// Every change up to this cluster time is there.
    through: u64,
}

impl Model {
    /// What a view sees at a position.
    fn at(&self, position: Position, view: &MyView) -> Documents {
        let mut documents = Documents::new();
        for change in self.changes.iter().take_while(|change| change.position <= position) {
            let name = COLLECTIONS[change.collection].to_owned();
            let visible = change.state.as_ref().filter(|(_, channels)| {
                view.collections.contains(&name)
                    && channels.iter().any(|channel| view.channels.contains(channel))
            });
            match visible {
                Some((document, _)) => {
                    documents.insert((name, change.id), number(document));
                }
                None => {
                    documents.remove(&(name, change.id));
                }
            }
        }
        documents
    }
}

fn number(document: &[u8]) -> i32 {
    RawDocument::from_bytes(document).unwrap().get_i32("n").unwrap()
}

#[derive(Clone, Debug)]
struct MyView {
    collections: Vec<String>,
    channels: Vec<String>,
}

impl MyView {
    fn random(rng: &mut StdRng) -> Self {
        let mut some = |names: &[&str]| -> Vec<String> {
            let picked: Vec<String> =
                names.iter().filter(|_| rng.random_bool(0.6)).map(ToString::to_string).collect();
            if picked.is_empty() { vec![names[0].to_owned()] } else { picked }
        };
        Self { collections: some(&COLLECTIONS), channels: some(&CHANNELS) }
    }
}

/// Writes random commits to the log and to the model.
struct Source {
    dir: tempfile::TempDir,
    writer: Option<Writer>,
    reader: Reader,
    model: Arc<RwLock<Model>>,
    time: u64,
    number: i32,
}

fn options() -> LogOptions {
    LogOptions { source: "rs0/invoify".to_owned(), retention: Duration::from_secs(3600) }
}

impl Source {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader) = Writer::open(dir.path(), &options()).unwrap();
        writer.set_tail(TailState { resume_token: None, high_water: 1 << 32 }).unwrap();
        for name in COLLECTIONS {
            let collection = writer.collection(name).unwrap();
            writer.follow(collection, RULES).unwrap();
            let finished = CopyState { finished: true, ..CopyState::default() };
            writer.set_copy_state(collection, finished).unwrap();
        }
        writer.commit().unwrap();
        let model = Arc::new(RwLock::new(Model { changes: Vec::new(), through: 1 << 32 }));
        Self { dir, writer: Some(writer), reader, model, time: 1 << 32, number: 0 }
    }

    fn writer(&mut self) -> &mut Writer {
        self.writer.as_mut().unwrap()
    }

    /// One store transaction of some commits; sometimes aborted first and then done again.
    fn write(&mut self, rng: &mut StdRng) {
        let commits = rng.random_range(1..6);
        let mut changes = Vec::new();
        for _ in 0..commits {
            self.time += rng.random_range(1..3) << 20;
            let size_max = if rng.random_bool(0.1) { 60 } else { 3 };
            for ordinal in 0..rng.random_range(1..=size_max) {
                self.number += 1;
                let id = rng.random_range(0..40);
                let collection = rng.random_range(0..COLLECTIONS.len());
                let model = self.model.read().unwrap();
                let before = model
                    .changes
                    .iter()
                    .chain(&changes)
                    .rev()
                    .find(|change| (change.collection, change.id) == (collection, id))
                    .and_then(|change| Some(change.state.as_ref()?.1.clone()))
                    .filter(|_| rng.random_bool(0.5));
                let as_before = before.is_some();
                let state = rng.random_bool(0.75).then(|| {
                    let document = rawdoc! { "_id": id, "n": self.number };
                    let mut some = || -> Vec<String> {
                        let some = CHANNELS.iter().filter(|_| rng.random_bool(0.3));
                        some.map(ToString::to_string).collect()
                    };
                    let mut channels = before.unwrap_or_else(&mut some);
                    channels.sort();
                    (document.into_bytes(), channels)
                });
                let position = Position::new(self.time, ordinal);
                changes.push(Known { position, collection, id, state, as_before });
            }
        }
        if rng.random_bool(0.2) {
            let part = rng.random_range(0..changes.len());
            self.append(&changes[..part]);
            self.writer().abort().unwrap();
        }
        self.append(&changes);
        let high_water = self.time;
        self.writer().set_tail(TailState { resume_token: None, high_water }).unwrap();
        self.writer().commit().unwrap();
        let mut model = self.model.write().unwrap();
        model.changes.extend(changes);
        model.through = high_water;
    }

    fn append(&mut self, changes: &[Known]) {
        append(self.writer(), changes);
    }

    fn reopen(&mut self) {
        self.writer = None;
        let (writer, reader) = Writer::open(self.dir.path(), &options()).unwrap();
        (self.writer, self.reader) = (Some(writer), reader);
    }

    fn compact(&mut self, rng: &mut StdRng) {
        let before = Position::new(self.time - (rng.random_range(0_u64..60) << 20), 0);
        let visits = rng.random_range(1..200);
        while self.writer().compact(before, visits).unwrap().more {}
    }
}

fn append(writer: &mut Writer, changes: &[Known]) {
    for change in changes {
        let collection = writer.collection(COLLECTIONS[change.collection]).unwrap();
        let tombstone = rawdoc! { "_id": change.id };
        let key = sort_key(tombstone.get("_id").unwrap().unwrap());
        let (body, channels) = match &change.state {
            Some((document, channels)) => {
                let document = RawDocument::from_bytes(document).unwrap();
                let channels = match change.as_before {
                    true => Channels::AsBefore,
                    false => Channels::Named(channels),
                };
                (Body::Upsert(document), channels)
            }
            None => (Body::Delete(&tombstone), Channels::Named(&[])),
        };
        if change.id % 2 == 0 {
            writer.latest(collection, &key).unwrap();
        }
        let new = NewChange {
            position: change.position,
            wall_time_ms: 0,
            collection,
            key: &key,
            body,
            channels,
            rules: 0,
        };
        writer.append(&new).unwrap();
    }
}

/// Follows the log page by page and compares with the model wherever a page says that it is complete.
struct Follower {
    since: Since,
    view: MyView,
    replica: Documents,
    /// The farthest complete position so far: a reader that goes back is equal again from there on.
    farthest: Position,
    compared: usize,
    resyncs: usize,
    trace: Vec<String>,
}

impl Follower {
    fn new(rng: &mut StdRng) -> Self {
        Self {
            since: Since::Nothing,
            view: MyView::random(rng),
            replica: BTreeMap::new(),
            farthest: Position::ZERO,
            compared: 0,
            resyncs: 0,
            trace: Vec::new(),
        }
    }

    fn is_behind(&self) -> bool {
        matches!(&self.since, Since::Cursor(cursor) if cursor.position() < self.farthest)
    }

    /// Reads one page; true when there is more.
    fn step(&mut self, source: &Source, limit: usize) -> bool {
        match self.try_step(&source.reader, &source.model, limit) {
            Ok(more) => more,
            Err(error) => panic!("{error}"),
        }
    }

    fn try_step(
        &mut self,
        reader: &Reader,
        model: &RwLock<Model>,
        limit: usize,
    ) -> Result<bool, ReadError> {
        let scope =
            Scope::Channels { collections: &self.view.collections, channels: &self.view.channels };
        let request = PageRequest { since: &self.since, scope, limit, operation_time: 0 };
        let mut entries = Vec::new();
        let end = reader.page(&request, &mut |entry| {
            let (id, document) = match entry.body {
                Body::Upsert(document) => (document, Some(number(document.as_bytes()))),
                Body::Delete(document) => (document, None),
            };
            let id = id.get_i32("_id").unwrap();
            entries.push((entry.position, (entry.collection.to_owned(), id), document));
            Flow::Took
        });
        let end = match end {
            Ok(end) => end,
            Err(ReadError::Resync(ResyncReason::CursorTooOld)) => {
                self.since = Since::Nothing;
                self.replica.clear();
                self.farthest = Position::ZERO;
                self.resyncs += 1;
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        assert_eq!(end.count, entries.len());
        assert!(end.count <= limit);
        // What is gained and lost is told as of where the reader stands.
        let stands = |at| matches!(&self.since, Since::Cursor(cursor) if cursor.position() == at);
        let is_ascending = entries.is_sorted_by(|a, b| a.0 < b.0 || (a.0 == b.0 && stands(a.0)));
        assert!(is_ascending, "entries out of order");
        if self.since == Since::Nothing {
            assert!(entries.iter().all(|(.., document)| document.is_some()), "a tombstone");
        }
        for (_, key, document) in entries {
            match document {
                Some(document) => self.replica.insert(key, document),
                None => self.replica.remove(&key),
            };
        }
        let position = end.cursor.position();
        if end.complete && position >= self.farthest {
            // Committed, and about to be in the model too.
            while model.read().unwrap().through < position.cluster_time {
                std::thread::yield_now();
            }
            let known = model.read().unwrap();
            let wanted = known.at(position, &self.view);
            let surplus: Vec<_> =
                self.replica.iter().filter(|it| !wanted.contains_key(it.0)).collect();
            let missing: Vec<_> =
                wanted.iter().filter(|it| self.replica.get(it.0) != Some(it.1)).collect();
            if self.replica != wanted {
                for t in &self.trace {
                    println!("{t}");
                }
                for k in surplus.iter().chain(&missing) {
                    for c in &known.changes {
                        if (COLLECTIONS[c.collection], c.id) == (k.0.0.as_str(), k.0.1) {
                            println!(
                                "{:?} {} {:?} {:?}",
                                k.0,
                                c.position,
                                c.state.as_ref().map(|s| number(&s.0)),
                                c.state.as_ref().map(|s| s.1.clone())
                            );
                        }
                    }
                }
            }
            assert!(
                self.replica == wanted,
                "at {position} with {:?}: surplus {surplus:?}, missing {missing:?}",
                self.view
            );
            self.compared += 1;
            self.farthest = position;
        }
        if end.complete {
            let reads = |name: &String| end.cursor.covers(name, &self.view.channels);
            assert!(self.view.collections.iter().all(reads));
            self.compare_documents((reader, model), &end.cursor, limit)?;
        }
        self.trace.push(format!(
            "{:?} count {} head {:?} -> {:?}",
            self.view,
            end.count,
            reader.head().borrow().seq,
            end.cursor
        ));
        self.since = Since::Cursor(end.cursor.to_string().parse().unwrap());
        Ok(end.has_more)
    }

    /// The documents as of a cursor, read in parts of `limit`, are those of the source then.
    fn compare_documents(
        &self,
        (reader, model): (&Reader, &RwLock<Model>),
        at: &Cursor,
        limit: usize,
    ) -> Result<(), ReadError> {
        let channels = &self.view.channels;
        let model = model.read().unwrap();
        for collection in &self.view.collections {
            if !at.covers(collection, channels) {
                // The view has changed since.
                continue;
            }
            let (mut from, mut documents) = (None, Documents::new());
            loop {
                let request =
                    DocumentsRequest { at, collection, channels, from, operation_time: 0 };
                let mut count = 0;
                let next = reader.documents(&request, &mut |entry| {
                    let Body::Upsert(document) = entry.body else { panic!("a delete") };
                    if count == limit {
                        return Flow::Full;
                    }
                    count += 1;
                    let key = (entry.collection.to_owned(), document.get_i32("_id").unwrap());
                    let again = documents.insert(key, number(document.as_bytes()));
                    assert_eq!(again, None, "a document comes once");
                    Flow::Took
                });
                match next {
                    Ok(None) => break,
                    Ok(next) => from = next,
                    Err(DocumentsError::Read(ReadError::Resync(ResyncReason::CursorTooOld))) => {
                        return Ok(());
                    }
                    Err(DocumentsError::Read(error)) => return Err(error),
                    Err(error) => panic!("{error}"),
                }
            }
            let mut wanted = model.at(at.position(), &self.view);
            wanted.retain(|key, _| key.0 == *collection);
            assert_eq!(documents, wanted, "{collection} at {}", at.position());
        }
        Ok(())
    }
}

fn run(seed: u64) -> (usize, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut source = Source::new();
    let mut followers: Vec<Follower> = (0..4).map(|_| Follower::new(&mut rng)).collect();
    let mut older: Vec<Since> = vec![Since::Nothing; 4];
    for _ in 0..150 {
        match rng.random_range(0..20) {
            0 => source.reopen(),
            1 => source.compact(&mut rng),
            _ => source.write(&mut rng),
        }
        for (follower, older) in followers.iter_mut().zip(&mut older) {
            match rng.random_range(0..30) {
                0..10 => {
                    let limit = rng.random_range(1..50);
                    follower.step(&source, limit);
                }
                10..14 => while follower.step(&source, rng.random_range(1..100)) {},
                // A reader that reads again what it has holds more than its cursor says: its view must
                // not change before it is where it was.
                14 if !follower.is_behind() => {
                    follower.view = MyView::random(&mut rng);
                    // What it will hold is not what the older cursor says any more.
                    *older = Since::Nothing;
                }
                15 => {
                    if matches!(&follower.since, Since::Cursor(cursor) if cursor.is_complete()) {
                        *older = follower.since.clone();
                    }
                }
                17 => {
                    if let Since::Cursor(at) = &older {
                        let from = (&source.reader, &*source.model);
                        follower.compare_documents(from, at, 1 + rng.random_range(0..50)).unwrap();
                    }
                }
                16 => {
                    // Reads again what it has read; the view it had then comes with the cursor.
                    if let Since::Cursor(_) = older {
                        follower.since = older.clone();
                    }
                }
                _ => {}
            }
        }
    }
    for follower in &mut followers {
        while follower.step(&source, 1 + rng.random_range(0..1000)) {}
        let head = *source.reader.head().borrow();
        assert_eq!(follower.farthest, head.position, "a reader at the head is complete");
    }
    (
        followers.iter().map(|follower| follower.compared).sum(),
        followers.iter().map(|follower| follower.resyncs).sum(),
    )
}

/// Runs the first `seeds` of a random test, or the one that `TIDEWIRE_TEST_SEED` names. `run` tells how
/// many complete pages were compared and how many readers started again.
fn over_seeds(seeds: u64, run: impl Fn(u64) -> (usize, usize)) {
    let seeds = std::env::var("TIDEWIRE_TEST_SEED").map_or(0..seeds, |seed| {
        let seed: u64 = seed.parse().expect("a number");
        seed..seed + 1
    });
    let (mut compared, mut resyncs) = (0, 0);
    for seed in seeds {
        println!("seed {seed}");
        let (more_compared, more_resyncs) = run(seed);
        compared += more_compared;
        resyncs += more_resyncs;
    }
    println!("{compared} complete pages compared, {resyncs} resyncs");
    assert!(compared > 50);
}

#[test]
fn every_complete_page_is_the_source_at_one_commit_cut_to_the_view() {
    over_seeds(10, run);
}

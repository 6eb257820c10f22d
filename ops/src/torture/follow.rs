//! Reads a server's change log from its file as it grows, and the server's own lines beside it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tidewire_protocol::{Position, ResyncReason};
use tidewire_server::log::{
    Body, Cursor, Entry, Flow, PageRequest, ReadError, Reader, Scope, Since,
};
use tokio_util::sync::CancellationToken;

use super::findings::Kind;
use super::history;
use super::judge::{Gap, Judge};
use super::stage::{ACCOUNTS, ACCOUNTS_EACH, COLLECTIONS, ServerSite, TOTAL};
use super::told::{Told, content, key, number};

const TICK: Duration = Duration::from_millis(700);
const PAGE: usize = 5_000;
/// What stands for the content of a document in quarantine.
const SET_ASIDE: u64 = 1;
/// And of one that the log of now may hold otherwise than the log before told it.
const UNSURE: u64 = 2;

/// Follows until the checks are over, then once more to the log's end.
pub(super) async fn run(server: ServerSite, judge: Arc<Judge>, over: CancellationToken) {
    let follower = Follower::new(server, judge);
    let task = move || {
        let mut follower = follower;
        loop {
            let ending = over.is_cancelled();
            follower.step();
            if ending {
                return;
            }
            std::thread::sleep(TICK);
        }
    };
    let _ = tokio::task::spawn_blocking(task).await;
}

/// What the log last told of a document.
#[derive(Clone, Copy, Debug)]
struct Last {
    is_delete: bool,
    content: u64,
    version: i64,
}

#[derive(Debug)]
struct Follower {
    server: ServerSite,
    judge: Arc<Judge>,
    cursor: Option<Cursor>,
    /// Of the log that gave it out.
    generation: u64,
    /// It reads from nothing, or from far behind: superseded changes are left out, and the rest is not compared one by one.
    fills: bool,
    /// The last change's.
    position: Position,
    documents: HashMap<(usize, Box<str>), Last>,
    balances: HashMap<Box<str>, (String, i64)>,
    /// Which collection was put under other rules in which commit: what they show to others is told again.
    rulings: HashSet<(usize, u64)>,
    /// A name that is no collection was followed, and is no more: to read everything is refused from then on.
    has_left_a_name: bool,
    /// How much of the server's lines has been read.
    lines_read: u64,
}

/// What one change is about.
struct Change {
    position: Position,
    told: Told,
    version: i64,
    /// Of an account: whose, and how much.
    account: Option<(String, i64)>,
}

impl Follower {
    fn new(server: ServerSite, judge: Arc<Judge>) -> Self {
        Self {
            server,
            judge,
            cursor: None,
            generation: 0,
            fills: false,
            position: Position::ZERO,
            documents: HashMap::new(),
            balances: HashMap::new(),
            rulings: HashSet::new(),
            has_left_a_name: false,
            lines_read: 0,
        }
    }

    fn broken(&self, kind: Kind, text: &str) {
        self.judge.findings().broken(kind, format!("{}'s log: {text}", self.server.name));
    }

    /// Everything that is new.
    fn step(&mut self) {
        let log = Arc::clone(&self.server.history);
        let Some(_there) = log.reading() else { return };
        // A log that is being made, or was taken away, is there later.
        let Ok(reader) = Reader::open(&self.server.data_dir()) else { return };
        loop {
            let since = self.cursor.clone().map_or(Since::Nothing, Since::Cursor);
            let request = PageRequest {
                since: &since,
                scope: Scope::Everything,
                limit: PAGE,
                operation_time: 0,
            };
            let mut changes = Vec::new();
            let page = reader.page(&request, &mut |entry| {
                changes.extend(read(entry));
                Flow::Took
            });
            let page = match page {
                Ok(page) => page,
                // After the loss of its log it is copied anew, and comes up to here again.
                Err(ReadError::Ahead | ReadError::Copying) => return,
                Err(ReadError::Resync(reason)) => {
                    self.read_lines();
                    self.must_be_excused(reason);
                    self.judge.findings().note(&format!(
                        "{}'s log does not go on from {}: {reason:?}",
                        self.server.name, self.position
                    ));
                    self.start_anew();
                    return;
                }
                Err(error) => {
                    self.broken(Kind::Stuck, &format!("{error:#}"));
                    return;
                }
            };
            // What the server says of a gap, it says before the changes behind the gap are written.
            self.read_lines();
            self.note_generation(log.generation());
            // Far behind it is a fill, too.
            self.fills |= self.cursor.is_none() || page.filled.is_some();
            self.take(changes);
            self.cursor = Some(page.cursor);
            if self.fills && page.complete {
                self.fills = false;
                self.skip(page.checkpoint.cluster_time);
            }
            if !page.has_more {
                if page.complete {
                    self.check_bank(page.checkpoint);
                }
                // Until a log read from nothing is complete, what it tells is not counted change by change.
                if !self.fills {
                    self.judge.follows(self.server.index, page.checkpoint.cluster_time);
                }
                return;
            }
        }
    }

    fn must_be_excused(&self, reason: ResyncReason) {
        let is_own = self.server.history.generation() == self.generation;
        let may = |cursor| history::may_refuse(&self.server, cursor, is_own, reason);
        let is_of_a_name = self.has_left_a_name && reason == ResyncReason::CursorTooOld;
        if !is_of_a_name && !self.cursor.as_ref().is_some_and(may) {
            let text = format!("{reason:?} of the cursor of {}", self.position);
            self.broken(Kind::Refused, &text);
        }
    }

    /// A restored or rebuilt log goes on from the cursor; what it told before, this one may copy later.
    fn note_generation(&mut self, generation: u64) {
        if std::mem::replace(&mut self.generation, generation) != generation {
            self.documents.values_mut().for_each(|last| last.content = UNSURE);
        }
    }

    /// The log is another one: what is in it now is not compared with what the old one told.
    fn start_anew(&mut self) {
        self.cursor = None;
        self.position = Position::ZERO;
        self.documents.clear();
        self.balances.clear();
    }

    /// What was read from nothing has not been told change by change.
    fn skip(&self, through: u64) {
        for collection in 0..COLLECTIONS.len() {
            self.judge.gap_opens(self.server.index, Gap { collection, from: 0, through });
        }
    }

    fn take(&mut self, changes: Vec<Change>) {
        let mut commit = None;
        for change in changes {
            let at = change.position;
            if !self.fills && commit.is_some_and(|time| time != at.cluster_time) {
                self.check_bank(self.position);
            }
            commit = Some(at.cluster_time);
            if at <= self.position {
                let text = format!("{at} comes after {}", self.position);
                self.broken(Kind::Reordered, &text);
            }
            self.position = at;
            self.check_versions(&change);
            if let Some(account) = change.account {
                self.balances.insert(change.told.key.clone(), account);
            }
            let is_stream = at.ordinal < Position::RECONCILE_ORDINAL_FIRST;
            if is_stream && !self.fills {
                self.judge.logged(self.server.index, at.cluster_time, change.told);
            } else if !is_stream {
                self.judge.findings().count("changes by reconcile", 1);
            }
        }
    }

    fn check_versions(&mut self, change: &Change) {
        let Change { position, told, version, .. } = change;
        let place = (told.collection, told.key.clone());
        let now = Last { is_delete: told.is_delete, content: told.content, version: *version };
        let Some(last) = self.documents.insert(place.clone(), now) else { return };
        let name = COLLECTIONS[told.collection];
        if told.is_delete {
            // What was deleted had that version: it does not come back with an older one.
            self.documents.insert(place, Last { version: last.version, ..now });
        } else if *version < last.version {
            let text =
                format!("{name} {} at {position}: {version} after {}", told.key, last.version);
            self.broken(Kind::Reordered, &text);
        }
        // Of a document in quarantine a change is told that nobody here can see: its size.
        let is_same = last.is_delete == now.is_delete
            && last.content == now.content
            && now.content != SET_ASIDE;
        let is_ruled = self.rulings.contains(&(told.collection, position.cluster_time));
        if is_same && !is_ruled && position.ordinal >= Position::RECONCILE_ORDINAL_FIRST {
            let text = format!("{name} {} at {position}: reconcile tells what is told", told.key);
            self.broken(Kind::Duplicated, &text);
        }
    }

    /// Between two commits every owner has what was there at the beginning.
    fn check_bank(&mut self, at: Position) {
        let mut sums: HashMap<&str, (i32, i64)> = HashMap::new();
        for (owner, balance) in self.balances.values() {
            let sum = sums.entry(owner).or_default();
            *sum = (sum.0 + 1, sum.1 + balance);
        }
        let torn = sums.iter().find(|(_, sum)| **sum != (ACCOUNTS_EACH, TOTAL));
        if let Some((owner, sum)) = torn
            && !self.judge.is_in_gap(self.server.index, ACCOUNTS, at.cluster_time)
        {
            let text = format!("at {at} {owner} has {sum:?}, not {:?}", (ACCOUNTS_EACH, TOTAL));
            self.broken(Kind::Torn, &text);
        }
        self.judge.findings().count("commits of logs", 1);
    }

    /// Copies that begin and end: meanwhile the log may tell a change by reconcile instead.
    fn read_lines(&mut self) {
        let Ok(text) = self.server.said_after(self.lines_read) else { return };
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.lines_read += whole as u64;
        for line in String::from_utf8_lossy(&text[..whole]).lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                if line.contains("panicked at") {
                    self.broken(Kind::Stuck, line);
                }
                if history::is_rebuilt(line) {
                    let all = (0..COLLECTIONS.len()).map(|collection| Gap {
                        collection,
                        from: 0,
                        through: u64::MAX,
                    });
                    all.for_each(|gap| self.judge.gap_opens(self.server.index, gap));
                }
                continue;
            };
            self.read_line(&line);
        }
    }

    fn read_line(&mut self, line: &Value) {
        let fields = &line["fields"];
        let message = fields["message"].as_str().unwrap_or_default();
        let collection =
            COLLECTIONS.iter().position(|name| Some(*name) == fields["collection"].as_str());
        let gap = |collection, from| Gap { collection, from, through: u64::MAX };
        let index = self.server.index;
        match message {
            "copies begin" => {
                let from = fields["from"].as_u64().unwrap_or(0);
                if from == 0 {
                    // Another log in the old one's place: it tells everything once more.
                    self.documents.clear();
                    self.has_left_a_name = false;
                }
                (0..COLLECTIONS.len()).for_each(|c| self.judge.gap_opens(index, gap(c, from)));
            }
            "the collection is copied again" => {
                let from = fields["cluster_time"].as_u64().unwrap_or(0);
                if let Some(collection) = collection {
                    self.judge.gap_opens(index, gap(collection, from));
                }
            }
            _ if message.starts_with("no longer followed") => {
                self.has_left_a_name |= collection.is_none();
            }
            "the copy is finished" => {
                let through = fields["cluster_time"].as_u64().unwrap_or(u64::MAX);
                if let Some(collection) = collection {
                    self.judge.gap_closes(index, collection, through);
                }
            }
            "the collection's documents are under other rules now" => {
                let time = fields["cluster_time"].as_u64().unwrap_or(0);
                self.rulings.extend(collection.map(|collection| (collection, time)));
            }
            "a check mended the log" => self.broken(Kind::Different, &line.to_string()),
            _ if line["level"] == "ERROR"
                && self.server.history.was_damaged()
                && tells_damage(line) =>
            {
                self.judge.findings().count("lines about a damaged log", 1);
            }
            _ if line["level"] == "ERROR"
                && self.server.history.was_unwritable()
                && fields["failure"] == "Store" =>
            {
                self.judge.findings().count("lines about a log that can't be written", 1);
            }
            _ if line["level"] == "ERROR" => self.broken(Kind::Stuck, &line.to_string()),
            _ => {}
        }
    }
}

/// We flip bytes of logs: this is what servers say of it.
fn tells_damage(line: &Value) -> bool {
    let text = line["fields"].to_string();
    ["damaged", "malformed", "does not match its checksum"].iter().any(|word| text.contains(word))
}

fn read(entry: &Entry<'_>) -> Option<Change> {
    let (is_delete, document) = match entry.body {
        Body::Upsert(document) => (false, document),
        Body::Delete(document) => (true, document),
    };
    // A rebuilt log tells of a lost row by a document that is its `_id` alone, and deletes that.
    let is_stand_in = !is_delete && document.iter().count() == 1;
    let is_delete = is_delete || is_stand_in;
    let collection = COLLECTIONS.iter().position(|name| *name == entry.collection)?;
    let key = key(document)?;
    let account = (collection == ACCOUNTS && !is_delete).then(|| {
        let owner = document.get_str("owner").unwrap_or_default().to_owned();
        (owner, number(document, "balance").unwrap_or(0))
    });
    let version = number(document, "v").unwrap_or(0);
    // A document in quarantine is told as gone, and is something else than one that is.
    let content = match entry.set_aside {
        Some(_) => SET_ASIDE,
        None if is_stand_in => SET_ASIDE,
        None if is_delete => 0,
        None => content(document),
    };
    let told = Told { collection, key, is_delete, content };
    Some(Change { position: entry.position, told, version, account })
}

//! What was done, checked and found: one book for everything that runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};

/// Broken promises that are kept and shown; all are counted.
const SHOWN_MAX: usize = 40;

/// How a promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A change that the source committed is not told.
    Lost,
    /// A change is told twice.
    Duplicated,
    /// Changes are told in another order than the source's, or go backwards.
    Reordered,
    /// A state that the source never had: half a transaction.
    Torn,
    /// A change that the source never committed.
    Invented,
    /// What is told or held is not what the source has.
    Different,
    /// A cursor that must go on is not continued.
    Refused,
    /// Bytes that a token may not see.
    Leaked,
    /// Something ended, or did not come back.
    Stuck,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Lost,
        Self::Duplicated,
        Self::Reordered,
        Self::Torn,
        Self::Invented,
        Self::Different,
        Self::Refused,
        Self::Leaked,
        Self::Stuck,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Reordered => "reordered",
            Self::Torn => "torn",
            Self::Invented => "invented",
            Self::Different => "different",
            Self::Refused => "refused",
            Self::Leaked => "leaked",
            Self::Stuck => "stuck",
        }
    }
}

#[derive(Debug, Default)]
struct Book {
    broken: BTreeMap<Kind, u64>,
    shown: Vec<String>,
    faults: BTreeMap<&'static str, u64>,
    rare: BTreeMap<&'static str, u64>,
    counts: BTreeMap<&'static str, u64>,
}

/// The book, and a file that tells it by time.
#[derive(Debug)]
pub(super) struct Findings {
    book: Mutex<Book>,
    diary: Mutex<File>,
    started: Instant,
}

impl Findings {
    /// A new book; its diary is `torture.log` in `dir`.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let diary = File::create_new(dir.join("torture.log")).with_context(|| {
            format!("{} holds an earlier run: remove it, or choose another --dir", dir.display())
        })?;
        let (book, diary) = (Mutex::default(), Mutex::new(diary));
        Ok(Self { book, diary, started: Instant::now() })
    }

    /// Something that happened, for the diary alone.
    pub(super) fn note(&self, text: &str) {
        let now = time::OffsetDateTime::now_utc().time();
        let (hour, minute, second, milli) = now.as_hms_milli();
        let after = self.started.elapsed().as_secs_f64();
        let line = format!("{hour:02}:{minute:02}:{second:02}.{milli:03} {after:8.3} {text}\n");
        // A diary that can't be written is no reason to stop.
        let _ = lock(&self.diary).write_all(line.as_bytes());
    }

    /// A fault begins.
    pub(super) fn fault(&self, name: &'static str, whom: &str) {
        self.note(&format!("fault: {name}: {whom}"));
        *lock(&self.book).faults.entry(name).or_default() += 1;
    }

    /// A write that is more than a few documents, or none of its own.
    pub(super) fn rare_write(&self, name: &'static str) {
        self.note(&format!("write: {name}"));
        *lock(&self.book).rare.entry(name).or_default() += 1;
    }

    /// `more` of something that was done or checked.
    pub(super) fn count(&self, what: &'static str, more: u64) {
        *lock(&self.book).counts.entry(what).or_default() += more;
    }

    pub(super) fn counted(&self, what: &str) -> u64 {
        lock(&self.book).counts.get(what).copied().unwrap_or(0)
    }

    /// A promise was broken.
    pub(super) fn broken(&self, kind: Kind, text: impl Into<String>) {
        let text = format!("{}: {}", kind.word().to_uppercase(), text.into());
        self.note(&text);
        let mut book = lock(&self.book);
        *book.broken.entry(kind).or_default() += 1;
        if book.shown.len() < SHOWN_MAX {
            book.shown.push(text);
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        lock(&self.book).broken.is_empty()
    }

    pub(super) fn broken_count(&self) -> u64 {
        lock(&self.book).broken.values().sum()
    }

    pub(super) fn fault_count(&self) -> u64 {
        lock(&self.book).faults.values().sum()
    }

    /// Everything, for people.
    pub(super) fn report(&self, seed: u64) -> String {
        let book = lock(&self.book);
        let mut text = String::from("\nfaults\n");
        for (name, count) in &book.faults {
            let _ = writeln!(text, "  {count:>7}  {name}");
        }
        let _ = writeln!(text, "  {:>7}  in all\nrare writes", book.faults.values().sum::<u64>());
        for (name, count) in &book.rare {
            let _ = writeln!(text, "  {count:>7}  {name}");
        }
        text.push_str("done and checked\n");
        for (what, count) in &book.counts {
            let _ = writeln!(text, "  {count:>7}  {what}");
        }
        for line in &book.shown {
            let _ = writeln!(text, "{line}");
        }
        let changes = book.counts.get("changes checked").copied().unwrap_or(0);
        let count = |kind: &Kind| book.broken.get(kind).copied().unwrap_or(0);
        let counts = Kind::ALL.iter().map(|kind| format!("{} {}", count(kind), kind.word()));
        let counts = counts.collect::<Vec<_>>().join(", ");
        let verdict = if book.broken.is_empty() { "held" } else { "BROKEN" };
        let _ = writeln!(
            text,
            "{verdict}: seed {seed}, {} faults, {changes} changes: {counts}",
            book.faults.values().sum::<u64>()
        );
        text
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The comparison itself, document by document.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bson::{Document, RawDocument};
use futures::TryStreamExt;
use mongodb::Database;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::json::{Comparison, Json};
use super::plan::{Collection, Plan, Visible};
use super::source::{self, Moment, position_time};
use super::{json, key, payload};

/// Differences that are kept of each collection; all are counted.
const DIFFERENCES_KEPT_MAX: usize = 100;
/// Characters of a value that a difference shows.
const SHOWN_CHARS_MAX: usize = 200;
/// How often `Observer::progress` is called: once in so many documents.
const PROGRESS_EVERY: u64 = 500;

/// What the comparison found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The replica's position.
    pub position: String,
    /// By collection.
    pub collections: Vec<CollectionReport>,
}

/// What it found in one collection.
#[derive(Clone, Debug, Default)]
pub struct CollectionReport {
    /// The collection's name.
    pub name: String,
    /// Documents of the source that the replica should hold.
    pub expected: u64,
    /// Rows of the replica.
    pub found: u64,
    /// Equal but for the order of fields, which the contract does not promise everywhere.
    pub reordered: u64,
    /// Documents that can't be decoded and so can't be in the replica.
    pub unreadable: u64,
    /// How many differences there are.
    pub differences: u64,
    /// The first hundred of them.
    pub examples: Vec<Difference>,
}

/// One difference. The text is the row's `_id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The replica has no such table.
    NoTable,
    /// The replica lacks the document.
    Missing(String),
    /// The replica holds a document that it should not.
    Extra(String),
    /// The documents differ.
    Content {
        /// The row's `_id`.
        id: String,
        /// Where, as `.field[index]`.
        path: String,
        /// The source's value there.
        expected: String,
        /// The replica's.
        found: String,
    },
}

/// Who wants to know how far it has come.
pub trait Observer {
    /// `compared` documents of `collection` so far.
    fn progress(&mut self, collection: &str, compared: u64);
    /// Something that a person should know.
    fn notice(&mut self, text: &str);
}

impl Observer for () {
    fn progress(&mut self, _collection: &str, _compared: u64) {}
    fn notice(&mut self, _text: &str) {}
}

impl Report {
    /// No difference anywhere.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.collections.iter().all(|collection| collection.differences == 0)
    }

    /// Documents compared.
    #[must_use]
    pub fn documents(&self) -> u64 {
        self.collections.iter().map(|collection| collection.expected).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for collection in &self.collections {
            let CollectionReport { name, expected, found, differences, .. } = collection;
            writeln!(out, "{name}: {expected} documents, {found} rows, {differences} differences")?;
            for example in &collection.examples {
                writeln!(out, "  {example}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => write!(out, "the replica has no such table"),
            Self::Missing(id) => write!(out, "{id}: missing in the replica"),
            Self::Extra(id) => write!(out, "{id}: not in the source, or not to be seen"),
            Self::Content { id, path, expected, found } => {
                write!(out, "{id}: at {path} the source has {expected}, the replica {found}")
            }
        }
    }
}

/// Compares the replica file with the source as it was at the replica's own position, or, where
/// `moment` says so or the source no longer knows that moment, with the source as it is.
///
/// # Errors
/// When either can't be read. Differences are no error.
pub async fn compare(
    source: &Database,
    plan: &Plan,
    replica: &Path,
    moment: Option<Moment>,
    observer: &mut dyn Observer,
) -> Result<Report> {
    let replica = Replica::open(replica)?;
    let position = replica.position()?;
    let mut moment = moment.map_or_else(|| position_time(&position).map(Moment::At), Ok)?;
    let mut collections = Vec::new();
    for collection in &plan.collections {
        let cursor = match source::read(source, &collection.name, moment).await {
            Err(error) if moment != Moment::Now && source::is_out_of_window(&error) => {
                observer.notice(
                    "the replica's position is outside the source's snapshot window: comparing \
                     with the source as it is now; recent writes show as differences",
                );
                moment = Moment::Now;
                source::read(source, &collection.name, moment).await
            }
            other => other,
        };
        let cursor = cursor.with_context(|| format!("read {}", collection.name))?;
        let documents = cursor.map_err(anyhow::Error::from);
        collections.push(compare_one(plan, collection, documents, &replica, observer).await?);
    }
    Ok(Report { position, collections })
}

async fn compare_one(
    plan: &Plan,
    collection: &Collection,
    documents: impl futures::Stream<Item = Result<bson::RawDocumentBuf>>,
    replica: &Replica,
    observer: &mut dyn Observer,
) -> Result<CollectionReport> {
    let mut report = CollectionReport { name: collection.name.clone(), ..Default::default() };
    let has_table = replica.has_table(&collection.name)?;
    let mut seen = BTreeSet::new();
    let mut compared = 0;
    futures::pin_mut!(documents);
    while let Some(raw) = documents.try_next().await? {
        compared += 1;
        if compared % PROGRESS_EVERY == 0 {
            observer.progress(&collection.name, compared);
        }
        let Some(document) = decode(&raw) else {
            report.unreadable += 1;
            continue;
        };
        let Some(id) = document.get("_id").map(key::mongo_id) else { continue };
        let visible = plan.visible(collection, &document);
        if visible == Visible::No {
            continue;
        }
        let row = if has_table { replica.row(&collection.name, &id)? } else { None };
        if visible == Visible::MayBe && row.is_none() {
            continue;
        }
        report.expected += 1;
        match row {
            None if has_table => report.add(Difference::Missing(id)),
            None => {}
            Some(text) => {
                report.judge(&id, &payload::document(&collection.cut(document)), &text);
                seen.insert(id);
            }
        }
    }
    if !has_table && report.expected > 0 {
        report.add(Difference::NoTable);
    }
    if has_table {
        report.found = replica.each_id(&collection.name, |id| {
            if !seen.contains(id) {
                report.add(Difference::Extra(id.to_owned()));
            }
        })?;
    }
    observer.progress(&collection.name, compared);
    Ok(report)
}

/// How a payload's text differs from its document; `None` where it does not, but for the order of
/// fields.
#[must_use]
pub fn payload_differs(document: &Document, text: &str) -> Option<Difference> {
    let mut report = CollectionReport::default();
    let id = document.get("_id").map(key::mongo_id).unwrap_or_default();
    report.judge(&id, &payload::document(document), text);
    report.examples.pop()
}

fn decode(raw: &RawDocument) -> Option<Document> {
    Document::try_from(raw).ok()
}

impl CollectionReport {
    fn add(&mut self, difference: Difference) {
        self.differences += 1;
        if self.examples.len() < DIFFERENCES_KEPT_MAX {
            self.examples.push(difference);
        }
    }

    fn judge(&mut self, id: &str, expected: &Json, found: &str) {
        let parsed = Json::parse(found);
        let comparison = match &parsed {
            Ok(found) => json::compare(expected, found),
            Err(error) => Comparison::Different {
                path: String::new(),
                expected: "JSON".into(),
                found: error.clone(),
            },
        };
        match comparison {
            Comparison::Equal => {}
            Comparison::OrderOnly => self.reordered += 1,
            Comparison::Different { path, expected, found } => {
                let (expected, found) = (shown(&expected), shown(&found));
                self.add(Difference::Content { id: id.to_owned(), path, expected, found });
            }
        }
    }
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The replica at one moment: everything is read in one transaction.
struct Replica(Connection);

impl Replica {
    fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .with_context(|| format!("open the replica {}", path.display()))?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.execute_batch("BEGIN")?;
        Ok(Self(connection))
    }

    fn position(&self) -> Result<String> {
        let read = "SELECT position FROM _tidewire_status";
        let position: Option<String> =
            self.0.query_row(read, [], |row| row.get(0)).context("read _tidewire_status")?;
        match position {
            Some(position) if !position.is_empty() => Ok(position),
            _ => bail!("the replica holds nothing yet: let the first copy finish"),
        }
    }

    fn has_table(&self, name: &str) -> Result<bool> {
        let read = "SELECT count(*) > 0 FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        Ok(self.0.query_row(read, [name], |row| row.get(0))?)
    }

    fn row(&self, table: &str, id: &str) -> Result<Option<String>> {
        let read = format!("SELECT _doc FROM {} WHERE _id = ?1", quoted(table));
        let mut statement = self.0.prepare_cached(&read)?;
        Ok(statement.query_row([id], |row| row.get(0)).optional()?)
    }

    fn each_id(&self, table: &str, mut take: impl FnMut(&str)) -> Result<u64> {
        let mut statement = self.0.prepare(&format!("SELECT _id FROM {}", quoted(table)))?;
        let mut rows = statement.query([])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            take(row.get_ref(0)?.as_str()?);
            count += 1;
        }
        Ok(count)
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

//! The documents that everybody is told: 500 bytes, numbered, with the time of their sending.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bson::{Document, doc};
use futures::{StreamExt as _, TryStreamExt as _};
use mongodb::Database;
use mongodb::options::WriteConcern;

/// Their collection.
pub(super) const COLLECTION: &str = "notices";
/// One that nobody ever writes to.
pub(super) const QUIET: &str = "quiet";
/// What those are sent who never read.
pub(super) const BALLAST: &str = "ballast";
/// Its documents, and the bytes of each.
const BALLAST_DOCUMENTS: i32 = 3_000;
const BALLAST_BYTES: usize = 10_000;
/// For the server's configuration.
pub(in super::super) const CONFIGURED: &str = r#"[[collections]]
name = "notices"
channels = ["everyone"]
[[collections]]
name = "quiet"
channels = ["everyone"]
[[collections]]
name = "ballast"
channels = ["everyone"]
"#;
/// Writes under way at once where speed is wanted.
const WRITES_AT_ONCE: usize = 16;

/// Notice `number`.
pub(super) fn notice(number: u64) -> Result<Document> {
    let number = i64::try_from(number)?;
    let text = "all hands are asked to read this notice to its end; ".repeat(8);
    Ok(doc! { "_id": format!("notice-{number}"), "n": number, "text": text, "open": true })
}

/// Writes the ballast, once for a database.
pub(super) async fn write_ballast(database: &Database) -> Result<()> {
    let text = "x".repeat(BALLAST_BYTES);
    let all = (0..BALLAST_DOCUMENTS).map(|number| doc! { "_id": number, "text": &text });
    let ballast = database.collection::<Document>(BALLAST);
    ballast.insert_many(all).write_concern(WriteConcern::majority()).await?;
    Ok(())
}

/// Writes a notice, acknowledged by a majority.
pub(super) async fn write(database: &Database, number: u64) -> Result<()> {
    let concern = WriteConcern::majority();
    let notices = database.collection(COLLECTION);
    let written = notices.insert_one(notice(number)?).write_concern(concern).await;
    written.context("write a notice")?;
    Ok(())
}

/// Writes notices one by one, `interval` apart, as `sent` is told just before each.
pub(super) async fn write_at_intervals(
    database: &Database,
    numbers: std::ops::Range<u64>,
    interval: Duration,
    sent: impl Fn(u64),
) -> Result<()> {
    let mut due = Instant::now();
    for number in numbers {
        tokio::time::sleep_until(due.into()).await;
        sent(number);
        write(database, number).await?;
        due = (due + interval).max(Instant::now());
    }
    Ok(())
}

/// Writes notices as fast as the source takes them one by one.
pub(super) async fn write_fast(
    database: &Database,
    numbers: std::ops::Range<u64>,
    sent: impl Fn(u64),
) -> Result<()> {
    let writes = numbers.map(|number| {
        sent(number);
        write(database, number)
    });
    futures::stream::iter(writes).buffer_unordered(WRITES_AT_ONCE).try_collect().await
}

//! The source, at one moment of its history.

use anyhow::{Context, Result};
use bson::{Bson, RawDocumentBuf, Timestamp, doc};
use mongodb::error::{Error, ErrorKind};
use mongodb::{Cursor, Database};

const SNAPSHOT_TOO_OLD: i32 = 239;
const SNAPSHOT_UNAVAILABLE: i32 = 246;
const BATCH: i32 = 1_000;

/// When the source is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// As it was at this cluster time, exactly.
    At(u64),
    /// As it is while it is read; exact only where nobody writes.
    Now,
}

/// The cluster time of a position's text.
///
/// # Errors
/// When it is none.
pub fn position_time(position: &str) -> Result<u64> {
    let time = position.split('.').next().unwrap_or_default();
    u64::from_str_radix(time, 16).with_context(|| format!("{position:?} is no position"))
}

/// Documents by `_id`, of every BSON type.
pub(super) async fn read(
    source: &Database,
    collection: &str,
    moment: Moment,
) -> Result<Cursor<RawDocumentBuf>, Error> {
    let level = match moment {
        Moment::At(time) => {
            doc! { "level": "snapshot", "atClusterTime": Bson::Timestamp(timestamp(time)) }
        }
        Moment::Now => doc! { "level": "majority" },
    };
    let find = doc! {
        "find": collection,
        "sort": { "_id": 1 },
        "batchSize": BATCH,
        "readConcern": level,
    };
    Ok(source.run_cursor_command(find).await?.with_type())
}

/// Whether the source no longer (or, after a restart, not yet) knows that moment.
pub(super) fn is_out_of_window(error: &Error) -> bool {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => {
            matches!(command.code, SNAPSHOT_TOO_OLD | SNAPSHOT_UNAVAILABLE)
        }
        _ => false,
    }
}

fn timestamp(time: u64) -> Timestamp {
    let [high, low] = [time >> 32, time & u64::from(u32::MAX)];
    let part = |half: u64| u32::try_from(half).expect("32 bits");
    Timestamp { time: part(high), increment: part(low) }
}

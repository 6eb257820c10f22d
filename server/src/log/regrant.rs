//! A reader's view has changed: tells what it gained and lost among the changes it has read past.
//!
//! Walks the postings of the channels gained and lost through the reader's boundary. What comes after
//! the boundary is told by the walk over the new view that follows, so here a document counts as it
//! stood at the boundary, unless a later change decides it within the fill.

use std::collections::HashSet;

use rusqlite::Connection;

use super::LogError;
use super::cursor::{Regrant, View};
use super::merge::Merge;
use super::page::{Stop, Taker, channel_numbers};
use super::rows::{Decision, Row, Rows};

/// Tells what of `(told, boundary]` must be told; `until` is the end of the fill that it begins.
pub(super) fn tell(
    conn: &Connection,
    rows: &mut Rows<'_>,
    old: &View,
    regrant: &Regrant,
    until: u64,
    taker: &mut Taker<'_>,
) -> Result<Stop, LogError> {
    let before: HashSet<(u64, u64)> = old.pairs().collect();
    let after: HashSet<(u64, u64)> = regrant.target.pairs().collect();
    let changed = channel_numbers(conn, before.symmetric_difference(&after).copied())?;
    let held: HashSet<u32> = channel_numbers(conn, after.into_iter())?.into_iter().collect();
    let mut merge = Merge::channels(conn, &changed, regrant.told, regrant.boundary)?;
    let mut done = regrant.told;
    while let Some(touched) = merge.next(conn)? {
        if !taker.look() {
            return Ok(Stop::Full { done, next: None });
        }
        let decided = rows
            .with(touched.seq, |row| decide(row, touched.inside, &held, regrant.boundary, until))?;
        let taken = match decided {
            None | Some(Told::Nothing) => true,
            Some(Told::ByRow(decision)) => {
                rows.with(touched.seq, |row| row.give(decision, taker))?.unwrap_or(true)
            }
            // A later change within the fill decides: where it leaves the document out of sight, its
            // own posting may be in no channel that is held, so the delete is told here.
            Some(Told::ByLater(later)) => {
                let visible = rows.with(later, |row| row.is_in(&held))?.unwrap_or(true);
                visible
                    || rows
                        .with(touched.seq, |row| row.give(Decision::Gone, taker))?
                        .unwrap_or(true)
            }
        };
        if !taken {
            return Ok(Stop::Full { done, next: None });
        }
        done = touched.seq;
    }
    Ok(Stop::AtEnd)
}

enum Told {
    Nothing,
    ByRow(Decision),
    ByLater(u64),
}

fn decide(
    row: &mut Row<'_, '_>,
    inside: bool,
    held: &HashSet<u32>,
    boundary: u64,
    until: u64,
) -> Result<Told, LogError> {
    let latest = row.latest()?;
    if latest > row.seq && latest <= boundary {
        return Ok(Told::Nothing);
    }
    if latest > boundary && latest <= until {
        return Ok(Told::ByLater(latest));
    }
    let visible = row.is_in(held)?;
    if latest == row.seq && !inside && !visible {
        // It had left the channel by the boundary: the reader was told then, or never had it.
        return Ok(Told::Nothing);
    }
    // The row is the latest, or the latest is beyond the fill: then versions in between, if any, are
    // postings of the same channels and come later in this walk or in the one that follows.
    let decision = if visible { Decision::AsItIs } else { Decision::Gone };
    Ok(Told::ByRow(decision))
}

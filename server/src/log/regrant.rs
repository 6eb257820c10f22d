//! A reader's view has changed: tells what it gained and lost among the changes it has read past.
//!
//! Walks the postings of the channels gained and lost through the reader's boundary. What comes after
//! the boundary is told by the walk over the new view that follows.

use std::collections::HashSet;

use rusqlite::Connection;

use super::LogError;
use super::cursor::{Regrant, View};
use super::merge::Merge;
use super::page::{Stop, Taker, channel_numbers};
use super::recent::SharedRecent;
use super::rows::{Decision, Row, Rows};

/// A regrant about to be told.
pub(super) struct Telling {
    merge: Merge,
    /// The channels that the reader now holds.
    held: HashSet<u32>,
    told: u64,
    boundary: u64,
}

impl Telling {
    pub(super) fn prepare(
        conn: &Connection,
        recent: &SharedRecent,
        old: &View,
        regrant: &Regrant,
    ) -> Result<Self, LogError> {
        let before: HashSet<(u64, u64)> = old.pairs().collect();
        let after: HashSet<(u64, u64)> = regrant.target.pairs().collect();
        let changed: Vec<(u64, u64)> = if regrant.afresh {
            before.union(&after).copied().collect()
        } else {
            before.symmetric_difference(&after).copied().collect()
        };
        let changed = channel_numbers(conn, changed.into_iter())?;
        let held = channel_numbers(conn, after.into_iter())?.into_iter().collect();
        let (told, boundary) = (regrant.told, regrant.boundary);
        let merge = Merge::channels(&recent.read().recent, &changed, told, boundary);
        Ok(Self { merge, held, told, boundary })
    }

    /// Tells what of `(told, boundary]` must be told; `until` is the end of the fill that it begins.
    pub(super) fn tell(
        self,
        conn: &Connection,
        rows: &mut Rows<'_>,
        until: u64,
        taker: &mut Taker<'_>,
    ) -> Result<Stop, LogError> {
        let held = self.held;
        let mut merge = self.merge.start(conn)?;
        let mut done = self.told;
        while let Some(touched) = merge.next(conn)? {
            if !taker.look() {
                return Ok(Stop::Full { done, next: None });
            }
            let taken = rows.with(touched, |row| {
                match decide(row, touched.inside, &held, self.boundary, until)? {
                    Told::NotYet => Ok(false),
                    Told::Nothing => Ok(true),
                    Told::As(decision) => row.give(decision, taker),
                }
            })?;
            if taken == Some(false) {
                return Ok(Stop::Full { done, next: None });
            }
            done = touched.seq;
        }
        Ok(Stop::AtEnd)
    }
}

enum Told {
    /// It can't be known in this snapshot.
    NotYet,
    Nothing,
    As(Decision),
}

/// A document is told once: as it stood at the boundary, where it was in a channel gained or lost.
fn decide(
    row: &mut Row<'_, '_>,
    inside: bool,
    held: &HashSet<u32>,
    boundary: u64,
    until: u64,
) -> Result<Told, LogError> {
    if !inside {
        return Ok(Told::Nothing);
    }
    let Some(latest) = row.latest()? else {
        return Ok(Told::NotYet);
    };
    match row.version_at(latest, boundary)? {
        None => return Ok(Told::NotYet),
        Some(version) if version != row.seq => return Ok(Told::Nothing),
        Some(_) => {}
    }
    if !row.is_in(held)? {
        return Ok(Told::As(Decision::Gone));
    }
    if latest > row.seq && latest <= until {
        // What follows in this fill tells where it went; what it was is nobody's business now.
        return Ok(Told::Nothing);
    }
    Ok(Told::As(Decision::AsItIs))
}

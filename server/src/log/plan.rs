//! Where a page starts and what it is part of: what the log makes of a reader's cursor.

use rusqlite::{Connection, OptionalExtension};
use tidewire_protocol::{Position, ResyncReason};

use super::cursor::{Fill, Inside, Regrant, View, name_hash};
use super::followed::{Follows, Gap, gap_at};
use super::read::{PageRequest, ReadError, Since};
use super::record::{StoredRow, select_rows};
use super::state::LogState;
use super::{Cursor, Head, LogError};

/// A reader farther behind than this many changes is served a fill.
const LIVE_BACKLOG_MAX: u64 = if cfg!(test) { 40 } else { 20_000 };
/// A cursor this far ahead of the source's own time is not of this source, seconds. Less may be our
/// knowledge of that time being late.
const AHEAD_SECONDS_MAX: u64 = 60;

/// Where a page starts and what it is part of.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) position: Position,
    pub(super) after: u64,
    pub(super) fill: Option<Fill>,
    /// What the reader has been reading with, until a regrant is told.
    pub(super) old_view: View,
    /// The log that told the reader what it holds.
    pub(super) log_id: u64,
    /// What the page is read with.
    pub(super) follows: Follows,
}

pub(super) fn plan(
    conn: &Connection,
    state: &LogState,
    request: &PageRequest<'_>,
    view: &View,
    follows: Follows,
) -> Result<Plan, ReadError> {
    let head = state.head;
    // Older versions may be in channels of rules that hold no more.
    let ruled = follows.ruled_seq(view);
    match request.since {
        Since::Nothing => {
            let fill = Fill { until: head.seq, blank_through: head.seq, regrant: None };
            let (position, old_view) = (Position::ZERO, view.clone());
            let log_id = state.log_id;
            Ok(Plan { position, after: 0, fill: Some(fill), old_view, log_id, follows })
        }
        Since::Time(second) => {
            let position = Position::at_second(*second);
            let after = start(conn, state, request.operation_time, position)?;
            let fill = far_behind(after, ruled, head);
            let (old_view, log_id) = (view.clone(), state.log_id);
            Ok(Plan { position, after, fill, old_view, log_id, follows })
        }
        Since::Cursor(cursor) => {
            let (after, fill) = match &cursor.inside {
                None => {
                    let now = request.operation_time;
                    let after = start_of(conn, state, &follows, cursor, now)?;
                    (after, far_behind(after, ruled, head))
                }
                Some(inside) => {
                    let fill = go_on_inside(state, inside, ruled)?;
                    too_old_by_now(inside.seq, fill.as_ref(), state)?;
                    (inside.seq, fill)
                }
            };
            let (position, old_view) = (cursor.position, cursor.view.clone());
            let log_id = cursor.basis.log_id;
            let mut plan = Plan { position, after, fill, old_view, log_id, follows };
            regrant(&mut plan, view, head)?;
            Ok(plan)
        }
    }
}

fn far_behind(after: u64, ruled: u64, head: Head) -> Option<Fill> {
    let behind = after < ruled || head.seq.saturating_sub(after) > LIVE_BACKLOG_MAX;
    behind.then_some(Fill { until: head.seq, blank_through: 0, regrant: None })
}

/// The last change at or before a position; as [`start_of`].
fn start(
    conn: &Connection,
    state: &LogState,
    operation_time: u64,
    position: Position,
) -> Result<u64, ReadError> {
    if position > state.head.position {
        let source_seconds = operation_time >> 32;
        let ahead = u64::from(position.unix_seconds()) > source_seconds + AHEAD_SECONDS_MAX;
        return if source_seconds != 0 && ahead {
            Err(ReadError::Resync(ResyncReason::ForeignLog))
        } else {
            Err(ReadError::Ahead)
        };
    }
    let origin = Position::new(state.origin, Position::RECONCILE_ORDINAL_FIRST - 1);
    if position < origin || position < state.trim.position {
        return Err(ReadError::Resync(ResyncReason::CursorTooOld));
    }
    if position == state.head.position {
        return Ok(state.head.seq);
    }
    // The one at the trim point may be gone itself.
    Ok(seq_at(conn, state.head.seq, position)?.max(state.trim.seq))
}

/// The last change at or before a complete cursor that any log of the source may have given out, where what
/// follows leads on from there. `operation_time` is the source's own, 0 when unknown.
pub(super) fn start_of(
    conn: &Connection,
    state: &LogState,
    follows: &Follows,
    cursor: &Cursor,
    operation_time: u64,
) -> Result<u64, ReadError> {
    if cursor.basis.source != name_hash(&state.source) {
        return Err(ReadError::Resync(ResyncReason::ForeignLog));
    }
    let after = start(conn, state, operation_time, cursor.position)?;
    outside_gaps(conn, follows, cursor)?;
    if !follows.leads_on_from(&cursor.view, &cursor.basis.rules, after) {
        return Err(ReadError::Resync(ResyncReason::RulesChanged));
    }
    Ok(after)
}

/// A complete cursor of another log may stand where this one was copying. What its sender holds and
/// loses between there and the copy's end this log may never have had: it could not tell the delete.
/// (This log's own cursors are not complete there.)
fn outside_gaps(conn: &Connection, follows: &Follows, cursor: &Cursor) -> Result<(), ReadError> {
    match gap_at(conn, follows, cursor.position.cluster_time, &cursor.view)? {
        None => Ok(()),
        Some(Gap::Open) => Err(ReadError::Copying),
        Some(Gap::Closed) => Err(ReadError::Resync(ResyncReason::CursorTooOld)),
    }
}

fn go_on_inside(state: &LogState, inside: &Inside, ruled: u64) -> Result<Option<Fill>, ReadError> {
    let until = inside.fill.as_ref().map_or(inside.seq, |fill| fill.until);
    if inside.log_id != state.log_id || inside.seq > state.head.seq || until > state.head.seq {
        return Err(ReadError::Resync(ResyncReason::ForeignLog));
    }
    let mut fill = inside.fill.clone().or_else(|| far_behind(inside.seq, ruled, state.head));
    if let Some(fill) = fill.as_mut().filter(|fill| fill.until < ruled) {
        // Versions that were latest at its end are not to be shown any more; those that are follow.
        fill.until = state.head.seq;
    }
    Ok(fill)
}

/// Where the request's view is not the one that the reader has been reading with, all it gained and
/// lost so far is told first.
fn regrant(plan: &mut Plan, view: &View, head: Head) -> Result<(), ReadError> {
    let told_for = plan.fill.as_ref().and_then(|fill| fill.regrant.as_ref());
    if told_for.is_some_and(|regrant| regrant.target == *view) {
        return Ok(());
    }
    if told_for.is_none() && plan.old_view == *view {
        return Ok(());
    }
    if plan.old_view.everything || view.everything {
        return Err(ReadError::Resync(ResyncReason::RulesChanged));
    }
    let afresh = told_for.is_some();
    if let Some(regrant) = told_for {
        let both = plan.old_view.union(&regrant.target);
        plan.old_view = both.ok_or(ReadError::Resync(ResyncReason::RulesChanged))?;
    }
    let new = Regrant { boundary: plan.after, told: 0, target: view.clone(), afresh };
    let fill = plan.fill.get_or_insert(Fill { until: head.seq, blank_through: 0, regrant: None });
    fill.regrant = Some(new);
    // What is told makes deletes matter, also to a reader that started from nothing.
    fill.blank_through = 0;
    Ok(())
}

/// Compaction may have passed what a fill still has to read.
fn too_old_by_now(after: u64, fill: Option<&Fill>, state: &LogState) -> Result<(), ReadError> {
    let floor = match fill {
        // Its end when it began: it may have been put off since.
        Some(fill) if fill.blank_through > 0 && fill.regrant.is_none() => fill.blank_through,
        _ => after,
    };
    if state.trim.seq > floor {
        return Err(ReadError::Resync(ResyncReason::CursorTooOld));
    }
    Ok(())
}

/// The last change at or before `position`, 0 when there is none. Positions ascend with the numbers,
/// so it is found by halving.
pub(super) fn seq_at(
    conn: &Connection,
    head_seq: u64,
    position: Position,
) -> Result<u64, LogError> {
    let mut select = conn.prepare_cached(
        "SELECT seq, cluster_time, ordinal FROM changes WHERE seq >= ?1 ORDER BY seq LIMIT 1",
    )?;
    let mut at_or_after = |seq: u64| {
        select
            .query_row([seq.cast_signed()], |row| {
                let at = Position::new(row.get::<_, i64>(1)?.cast_unsigned(), row.get(2)?);
                Ok((row.get::<_, i64>(0)?.cast_unsigned(), at))
            })
            .optional()
    };
    // Every change at or below `low` is at or before the position, every one at or above `high` is
    // after it.
    let (mut low, mut high) = (0, head_seq + 1);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        match at_or_after(middle)? {
            Some((seq, at)) if at <= position => low = seq,
            _ => high = middle,
        }
    }
    // The way there was not held against checksums; the place is.
    let after = position_after(conn, low)?;
    if position_at(conn, low)? > position || after.is_some_and(|after| after <= position) {
        return Err(LogError::Damaged(format!("the positions around change {low} do not ascend")));
    }
    Ok(low)
}

/// The position of the change `seq`, or of the last one before it.
pub(super) fn position_at(conn: &Connection, seq: u64) -> Result<Position, LogError> {
    let last = select_rows!("WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1");
    Ok(position_of(conn, last, seq)?.unwrap_or(Position::ZERO))
}

/// The position of the first change after `seq`.
fn position_after(conn: &Connection, seq: u64) -> Result<Option<Position>, LogError> {
    position_of(conn, select_rows!("WHERE seq > ?1 ORDER BY seq LIMIT 1"), seq)
}

fn position_of(conn: &Connection, select: &str, seq: u64) -> Result<Option<Position>, LogError> {
    let mut select = conn.prepare_cached(select)?;
    let mut rows = select.query([seq.cast_signed()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(StoredRow::read(row)?.position))
}

//! Reading a page: what to leave out, where it ends and what that makes of it. Where it starts: `plan.rs`.
//!
//! A page is read in one of two ways. *Live*: every change after the cursor, so every end of a commit
//! is a state of the source. *Fill* (a first copy, a long catch-up): changes that are superseded
//! before the fill's end are left out, so only its end is a state of the source. A change of what
//! the reader may see is told first (`regrant.rs`) and makes the page part of a fill.

use rusqlite::Connection;
use tidewire_protocol::{Position, ResyncReason};

use super::channels::damaged_channel;
use super::cursor::{Basis, Fill, Inside, Regrant, View, name_hash};
use super::followed::{Follows, is_settled, was_copying};
use super::merge::Merge;
use super::plan::{Plan, plan, position_at, seq_at};
use super::read::{Entry, Flow, PageEnd, PageRequest, ReadError, Scope};
use super::recent::SharedRecent;
use super::regrant::Telling;
use super::rows::{Decision, Rows};
use super::state::LogState;
use super::{Cursor, LogError};

/// Changes looked at for one page, taken or not.
const LOOKED_AT_MAX: usize = if cfg!(test) { 70 } else { 100_000 };

/// Counts what a page takes.
pub(super) struct Taker<'e> {
    limit: usize,
    emit: &'e mut dyn FnMut(&Entry<'_>) -> Flow,
    pub(super) count: usize,
    looked_at: usize,
    /// The last entry's position.
    pub(super) last: Option<Position>,
    /// What is told stands here at least.
    floor: Position,
}

impl<'e> Taker<'e> {
    pub(super) fn new(limit: usize, emit: &'e mut dyn FnMut(&Entry<'_>) -> Flow) -> Self {
        Self { limit, emit, count: 0, looked_at: 0, last: None, floor: Position::ZERO }
    }

    /// Gives an entry away; false when the page is full and ends before it.
    pub(super) fn take(&mut self, entry: Entry<'_>) -> bool {
        let entry = Entry { position: entry.position.max(self.floor), ..entry };
        if self.count >= self.limit || (self.emit)(&entry) == Flow::Full {
            return false;
        }
        self.count += 1;
        self.last = Some(entry.position);
        true
    }

    /// Counts a look; false when it is one too many.
    pub(super) fn look(&mut self) -> bool {
        self.looked_at += 1;
        self.looked_at <= LOOKED_AT_MAX
    }
}

/// Where a walk over changes stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// There is nothing more.
    AtEnd,
    /// The page is full: everything through `done` is dealt with; the next entry stands at `next`
    /// (`None`: not known).
    Full { done: u64, next: Option<Position> },
}

/// Reads one page; `None` when the snapshot misses index entries that have just been moved to the
/// store, and must be taken again. Nothing has been emitted then.
pub(super) fn read(
    conn: &Connection,
    recent: &SharedRecent,
    request: &PageRequest<'_>,
    emit: &mut dyn FnMut(&Entry<'_>) -> Flow,
) -> Result<Option<PageEnd>, ReadError> {
    let mut state = LogState::read(conn)?;
    if !shared_head(&mut state, recent) {
        return Ok(None);
    }
    let mut view = View::of(&request.scope);
    let follows = Follows::read(conn)?;
    follows.leave_out_unready(&mut view);
    let plan = plan(conn, &state, request, &view, follows)?;
    let until = plan.fill.as_ref().map_or(state.head.seq, |fill| fill.until);
    let regrant = plan.fill.as_ref().and_then(|fill| fill.regrant.as_ref());
    let telling = regrant
        .map(|regrant| Telling::prepare(conn, recent, &plan.old_view, regrant))
        .transpose()?;
    let merge = merge(conn, recent, &view, plan.after, until)?;
    if recent.read().indexed_seq > state.indexed_seq {
        return Ok(None);
    }
    let mut taker = Taker::new(request.limit.max(1), emit);
    if plan.log_id != state.log_id {
        // Another log takes its differences down at places of its own: what its reader holds of a document
        // may stand later than here, and would outlive what it gained or lost since.
        taker.floor = plan.position;
    }
    let mut rows = Rows::prepare(conn, recent, &state)?;
    if let Some(telling) = telling
        && let Stop::Full { done, .. } = telling.tell(conn, &mut rows, until, &mut taker)?
    {
        return Ok(Some(end_of_telling(plan, &state, done, &taker)));
    }
    let mut merge = merge.start(conn)?;
    let stop = walk(conn, &mut merge, &mut rows, plan.after, plan.fill.as_ref(), &mut taker)?;
    end(conn, &state, plan, view, until, &stop, &taker).map(Some)
}

/// Takes the head that readers have been told where the snapshot's is later. False when the snapshot
/// is too early for the index entries in memory.
pub(super) fn shared_head(state: &mut LogState, recent: &SharedRecent) -> bool {
    let shared = recent.read();
    if (shared.head.seq, shared.head.position) < (state.head.seq, state.head.position) {
        state.head = shared.head;
    }
    shared.indexed_seq <= state.indexed_seq
}

/// All changes of a view in `(after, until]`.
pub(super) fn merge(
    conn: &Connection,
    recent: &SharedRecent,
    view: &View,
    after: u64,
    until: u64,
) -> Result<Merge, LogError> {
    if view.everything {
        return Ok(Merge::everything(after, until));
    }
    let channels = channel_numbers(conn, view.pairs())?;
    Ok(Merge::channels(&recent.read().recent, &channels, after, until))
}

fn end_of_telling(plan: Plan, state: &LogState, done: u64, taker: &Taker<'_>) -> PageEnd {
    let fill = plan.fill.map(|fill| {
        let regrant = fill.regrant.map(|regrant| Regrant { told: done, ..regrant });
        Fill { regrant, ..fill }
    });
    let inside = Inside { log_id: state.log_id, seq: plan.after, fill };
    let position = taker.last.unwrap_or(plan.position);
    let ours = basis(state, &plan.follows, &plan.old_view);
    let basis = Basis { log_id: plan.log_id, ..ours };
    let cursor = Cursor { position, view: plan.old_view, basis, inside: Some(inside) };
    // What is told of a changed view is no part of the way.
    PageEnd { filled: None, ..page_end(cursor, state, true, taker) }
}

/// What a reader of the view reads from.
fn basis(state: &LogState, follows: &Follows, view: &View) -> Basis {
    let (log_id, source) = (state.log_id, name_hash(&state.source));
    Basis { log_id, source, rules: follows.rules(view) }
}

/// The numbers of the (collection, channel) pairs that this log has ever seen.
pub(super) fn channel_numbers(
    conn: &Connection,
    pairs: impl Iterator<Item = (u64, u64)>,
) -> Result<Vec<u32>, LogError> {
    let collections = super::rows::collections(conn)?;
    let mut select =
        conn.prepare_cached("SELECT id, name FROM channels WHERE collection = ?1 AND hash = ?2")?;
    let mut numbers = Vec::new();
    for (collection, channel) in pairs {
        for known in collections.iter().filter(|known| known.hash == collection) {
            let mut rows = select.query((known.id.0, channel.cast_signed()))?;
            if let Some(row) = rows.next()? {
                let name = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
                if name_hash(name) != channel {
                    return Err(damaged_channel(name));
                }
                numbers.push(row.get(0)?);
            }
        }
    }
    Ok(numbers)
}

fn walk(
    conn: &Connection,
    merge: &mut Merge,
    rows: &mut Rows<'_>,
    after: u64,
    fill: Option<&Fill>,
    taker: &mut Taker<'_>,
) -> Result<Stop, LogError> {
    let mut done = after;
    while let Some(touched) = merge.next(conn)? {
        if !taker.look() {
            return Ok(Stop::Full { done, next: None });
        }
        let full = rows.with(touched, |row| {
            if let Some(fill) = fill {
                let Some(latest) = row.latest()? else {
                    // Not known in this snapshot: the next page knows.
                    return Ok(Some(None));
                };
                // What supersedes a visible change touches the same channels and is told. What
                // supersedes a delete may be in none of them, so a delete is only left out where the
                // reader has not got the document: it started from nothing.
                let left_out = if row.is_delete(touched.inside) {
                    touched.seq <= fill.blank_through
                } else {
                    let Some(version) = row.version_at(latest, fill.until)? else {
                        return Ok(Some(None));
                    };
                    version != touched.seq
                };
                if left_out {
                    return Ok(None);
                }
            }
            let decision = if touched.inside { Decision::AsItIs } else { Decision::Gone };
            let taken = row.give(decision, taker)?;
            Ok((!taken).then_some(Some(row.position)))
        })?;
        if let Some(Some(next)) = full {
            return Ok(Stop::Full { done, next });
        }
        done = touched.seq;
    }
    Ok(Stop::AtEnd)
}

/// What a page's end makes of it.
fn end(
    conn: &Connection,
    state: &LogState,
    plan: Plan,
    view: View,
    until: u64,
    stop: &Stop,
    taker: &Taker<'_>,
) -> Result<PageEnd, ReadError> {
    let (position, seq, complete, has_more) = match (stop, plan.fill.is_some()) {
        (Stop::AtEnd, _) => {
            let position = if until == state.head.seq {
                state.head.position
            } else {
                position_at(conn, until)?.max(state.trim.position)
            };
            (position, until, is_settled(conn, until, &view)?, state.head.seq > until)
        }
        (Stop::Full { done, next }, filling) => {
            let position = taker.last.unwrap_or(plan.position);
            let at_boundary = next.is_some_and(|next| next.cluster_time > position.cluster_time);
            let complete =
                !filling && at_boundary && taker.count > 0 && is_settled(conn, *done, &view)?;
            (position, *done, complete, true)
        }
    };
    let basis = basis(state, &plan.follows, &view);
    let fill = match stop {
        Stop::AtEnd => None,
        Stop::Full { .. } => plan.fill.map(|fill| Fill { regrant: None, ..fill }),
    };
    let inside = (!complete).then_some(Inside { log_id: state.log_id, seq, fill });
    Ok(page_end(Cursor { position, view, basis, inside }, state, has_more, taker))
}

fn page_end(cursor: Cursor, state: &LogState, has_more: bool, taker: &Taker<'_>) -> PageEnd {
    let inside = cursor.inside.as_ref();
    PageEnd {
        filled: inside.and_then(|inside| Some((inside.seq, inside.fill.as_ref()?.until))),
        complete: cursor.is_complete(),
        cursor,
        checkpoint: state.head.position,
        has_more,
        count: taker.count,
    }
}

/// The end of the commit that a position is in: the source's own changes at that time, or what a reconcile
/// tells after them.
fn whole_commit(position: Position) -> Position {
    let last = match position.ordinal < Position::RECONCILE_ORDINAL_FIRST {
        true => Position::RECONCILE_ORDINAL_FIRST - 1,
        false => u32::MAX,
    };
    Position::new(position.cluster_time, last)
}

/// See [`super::Reader::replay`]; `None` as in [`read`].
pub(super) fn replay(
    conn: &Connection,
    recent: &SharedRecent,
    through: Option<Position>,
    scope: &Scope<'_>,
    emit: &mut dyn FnMut(&Entry<'_>) -> Flow,
) -> Result<Option<Position>, ReadError> {
    let mut state = LogState::read(conn)?;
    if !shared_head(&mut state, recent) {
        return Ok(None);
    }
    let (until, reached) = match through {
        None => (state.head.seq, state.head.position),
        Some(through) if through > state.head.position => return Err(ReadError::Ahead),
        Some(through) if through < state.trim.position => {
            return Err(ReadError::Resync(ResyncReason::CursorTooOld));
        }
        Some(through) => {
            let through = whole_commit(through).min(state.head.position);
            (seq_at(conn, state.head.seq, through)?, through)
        }
    };
    let began = state.origin > 0 && reached.cluster_time >= state.origin;
    let (view, follows) = (View::of(scope), Follows::read(conn)?);
    if !began || !is_settled(conn, until, &view)? {
        return Err(ReadError::Unsettled);
    }
    // What happened in a gap the log has only at its end.
    if through.is_some() && was_copying(conn, &follows, reached.cluster_time, &view)? {
        return Err(ReadError::Unsettled);
    }
    // Older versions are in channels of rules that hold no more.
    if !view.everything && follows.ruled_seq(&view) > until {
        return Err(ReadError::Resync(ResyncReason::RulesChanged));
    }
    let merge = merge(conn, recent, &view, 0, until)?;
    if recent.read().indexed_seq > state.indexed_seq {
        return Ok(None);
    }
    let mut taker = Taker::new(usize::MAX, emit);
    let mut rows = Rows::prepare(conn, recent, &state)?;
    let mut merge = merge.start(conn)?;
    while let Some(touched) = merge.next(conn)? {
        let decision = if touched.inside { Decision::AsItIs } else { Decision::Gone };
        if rows.with(touched, |row| row.give(decision, &mut taker))? == Some(false) {
            return Ok(Some(taker.last.unwrap_or(Position::ZERO)));
        }
    }
    Ok(Some(reached))
}

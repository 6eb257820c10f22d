//! The documents of a collection as they stood at a reader's cursor: what digests are made of.

use std::fmt;
use std::str::FromStr;

use rusqlite::Connection;

use super::cursor::View;
use super::followed::{Follows, is_settled};
use super::page::{Taker, merge, shared_head};
use super::plan::start_of;
use super::recent::SharedRecent;
use super::rows::{Decision, Row, Rows};
use super::state::LogState;
use super::{Cursor, Entry, Flow, LogError, ReadError, Reader, Scope};

/// Which documents.
#[derive(Clone, Copy, Debug)]
pub struct DocumentsRequest<'a> {
    /// As of this; must be complete.
    pub at: &'a Cursor,
    /// Of this collection.
    pub collection: &'a str,
    /// In one of these channels then.
    pub channels: &'a [String],
    /// Where an earlier part ended; `None`: the first part.
    pub from: Option<Place>,
    /// The source's own time, 0 when unknown: a cursor ahead of it is refused.
    pub operation_time: u64,
}

/// Where a part of the documents ended, in one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    log_id: u64,
    seq: u64,
}

/// Why there are no documents.
#[derive(Debug, thiserror::Error)]
pub enum DocumentsError {
    /// The place is of another log: what was read there can't be gone on with here.
    #[error("the place is of another log")]
    Elsewhere,
    /// As for a page.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What came of a part.
enum Part {
    /// It ended here.
    Through(Place),
    Last,
    Elsewhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{:x}", self.log_id, self.seq)
    }
}

/// The text is not a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a place that a Tidewire server gave out")]
pub struct PlaceError;

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (log_id, seq) = text.split_once('.').ok_or(PlaceError)?;
        let number = |hex: &str| {
            let is_hex = hex.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| u64::from_str_radix(hex, 16).ok()).flatten().ok_or(PlaceError)
        };
        let (log_id, seq) = (number(log_id)?, number(seq)?);
        // Fits the store's signed integers.
        i64::try_from(seq).map(|_| Self { log_id, seq }).map_err(|_| PlaceError)
    }
}

impl Reader {
    /// Gives documents that stood at the cursor to `emit`, each once over all parts, in the order of
    /// their last change. Gives the next part's place; `None` after the last. `emit` ends a part with
    /// [`Flow::Full`], and so do 100,000 changes looked at, visible then or not.
    ///
    /// # Errors
    /// [`DocumentsError::Elsewhere`]; [`ReadError::Ahead`] when the log does not reach the cursor;
    /// [`ReadError::Copying`]; [`ReadError::Unsettled`]; [`ReadError::Resync`] when a page after the cursor
    /// would be refused too. Entries given before an error are void.
    ///
    /// # Panics
    /// When the cursor is not complete.
    pub fn documents(
        &self,
        request: &DocumentsRequest<'_>,
        emit: &mut dyn FnMut(&Entry<'_>) -> Flow,
    ) -> Result<Option<Place>, DocumentsError> {
        assert!(request.at.is_complete(), "documents are read as of a complete cursor");
        let recent = self.recent();
        match self.read(|conn| read(conn, recent, request, emit))? {
            Part::Through(place) => Ok(Some(place)),
            Part::Last => Ok(None),
            Part::Elsewhere => Err(DocumentsError::Elsewhere),
        }
    }
}

/// `None`: the snapshot must be taken again; nothing has been emitted then.
fn read(
    conn: &Connection,
    recent: &SharedRecent,
    request: &DocumentsRequest<'_>,
    emit: &mut dyn FnMut(&Entry<'_>) -> Flow,
) -> Result<Option<Part>, ReadError> {
    let mut state = LogState::read(conn)?;
    if !shared_head(&mut state, recent) {
        return Ok(None);
    }
    let log_id = state.log_id;
    if request.from.is_some_and(|from| from.log_id != log_id) {
        return Ok(Some(Part::Elsewhere));
    }
    let follows = Follows::read(conn)?;
    let until = start_of(conn, &state, &follows, request.at, request.operation_time)?;
    let collections = &[request.collection.to_owned()];
    let mut view = View::of(&Scope::Channels { collections, channels: request.channels });
    follows.leave_out_unready(&mut view);
    let is_ruled_since = follows.ruled_seq(&view) > until;
    if view.collections.is_empty() || is_ruled_since || !is_settled(conn, until, &view)? {
        return Err(ReadError::Unsettled);
    }
    let mut done = request.from.map_or(0, |from| from.seq);
    let merge = merge(conn, recent, &view, done, until)?;
    if recent.read().indexed_seq > state.indexed_seq {
        return Ok(None);
    }
    let mut taker = Taker::new(usize::MAX, emit);
    let mut rows = Rows::prepare(conn, recent, &state)?;
    let mut merge = merge.start(conn)?;
    while let Some(touched) = merge.next(conn)? {
        let goes_on = taker.look()
            && rows
                .with(touched, |row| match stands(row, touched.inside, until)? {
                    // The next part knows.
                    None => Ok(false),
                    Some(false) => Ok(true),
                    Some(true) => row.give(Decision::AsItIs, &mut taker),
                })?
                .unwrap_or(true);
        if !goes_on {
            return Ok(Some(Part::Through(Place { log_id, seq: done })));
        }
        done = touched.seq;
    }
    Ok(Some(Part::Last))
}

/// Whether the document stood as in this row at the change `until`, inside the view. `None`: it can't
/// be known in this snapshot.
fn stands(row: &mut Row<'_, '_>, inside: bool, until: u64) -> Result<Option<bool>, LogError> {
    if row.is_delete(inside) {
        return Ok(Some(false));
    }
    let Some(latest) = row.latest()? else { return Ok(None) };
    let version = row.version_at(latest, until)?;
    Ok(version.map(|version| version == row.seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_from_its_text_and_nothing_else_is_one() {
        let place = Place { log_id: 7, seq: 300 };
        assert_eq!(place.to_string().parse(), Ok(place));
        for bad in ["", "0", ".", "1.", "+1.1", "1.ffffffffffffffff", "1.1.1", "x.1", "\u{e9}.1"] {
            assert_eq!(bad.parse::<Place>(), Err(PlaceError), "{bad}");
        }
    }
}

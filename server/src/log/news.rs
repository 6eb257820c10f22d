//! What a stretch of the log holds for some channels: a live page without a reader's view, so that it can
//! be made once for all readers whom it concerns alike.

use rusqlite::Connection;
use tidewire_protocol::ResyncReason;

use super::cursor::View;
use super::followed::{Follows, is_settled};
use super::merge::Merge;
use super::page::{Taker, channel_numbers, shared_head};
use super::recent::SharedRecent;
use super::rows::{Decision, Rows};
use super::state::LogState;
use super::{ChannelKey, Cursor, Entry, Flow, Head, ReadError, Reader};

impl Reader {
    /// Gives every change in `(after, through]` that touches one of `channels` to `emit`, as a live page
    /// would to a reader that holds these channels: of the others that the stretch touched it must hold
    /// none. Both ends are heads that this log has had. True when all of it was taken and a reader that
    /// has it is complete.
    ///
    /// # Errors
    /// [`ReadError`]; entries given before an error, or when false is given back, are void.
    pub fn news(
        &self,
        after: Head,
        through: Head,
        channels: &[ChannelKey],
        limit: usize,
        emit: &mut dyn FnMut(&Entry<'_>) -> Flow,
    ) -> Result<bool, ReadError> {
        let recent = self.recent();
        self.read(|conn| {
            let taker = Taker::new(limit, emit);
            read(conn, recent, (after, through), channels, taker)
        })
    }
}

/// `None`: the snapshot must be taken again; nothing has been emitted then.
fn read(
    conn: &Connection,
    recent: &SharedRecent,
    (after, through): (Head, Head),
    channels: &[ChannelKey],
    mut taker: Taker<'_>,
) -> Result<Option<bool>, ReadError> {
    let mut state = LogState::read(conn)?;
    if !shared_head(&mut state, recent) || state.head.seq < through.seq {
        return Ok(None);
    }
    if state.trim.seq > after.seq {
        return Err(ReadError::Resync(ResyncReason::CursorTooOld));
    }
    // Under other rules older versions are nobody's, and where a copy is under way the whole view of each
    // reader counts: both are for its own page.
    let everything = View { everything: true, ..View::default() };
    let touched =
        View { collections: channels.iter().map(|key| key.pair().0).collect(), ..View::default() };
    let ruled = Follows::read(conn)?.ruled_seq(&touched);
    if ruled > after.seq || !is_settled(conn, through.seq, &everything)? {
        return Ok(Some(false));
    }
    let numbers = channel_numbers(conn, channels.iter().map(|key| key.pair()))?;
    let merge = Merge::channels(&recent.read().recent, &numbers, after.seq, through.seq);
    if recent.read().indexed_seq > state.indexed_seq {
        return Ok(None);
    }
    let mut rows = Rows::prepare(conn, recent, &state)?;
    let mut merge = merge.start(conn)?;
    while let Some(touched) = merge.next(conn)? {
        let decision = if touched.inside { Decision::AsItIs } else { Decision::Gone };
        let taken = taker.look()
            && rows.with(touched, |row| row.give(decision, &mut taker))?.unwrap_or(true);
        if !taken {
            return Ok(Some(false));
        }
    }
    Ok(Some(true))
}

impl Cursor {
    /// Whether what was read up to here was read with all these channels.
    #[must_use]
    pub fn reads(&self, channels: &[ChannelKey]) -> bool {
        let View { collections, channels: held, .. } = &self.view;
        let reads = |(collection, channel)| {
            collections.binary_search(&collection).is_ok() && held.binary_search(&channel).is_ok()
        };
        channels.iter().all(|key| reads(key.pair()))
    }

    /// Where its reader stands once all that concerns it through `head`, where it is complete, is told.
    #[must_use]
    pub fn moved_to(&self, head: Head) -> Self {
        Self { position: head.position, inside: None, ..self.clone() }
    }
}

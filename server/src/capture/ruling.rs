//! The configuration against the log, before anything is followed or served: collections that came or
//! went, and documents that other rules show to others.
//!
//! The log has every document whole, so changed rules need no source: what they put into other
//! channels, or show other fields of, is appended anew, all of it in one commit. So no reader ever sees
//! a collection half under these rules and half under those.

use bson::raw::RawDocument;
use tidewire_protocol::Position;
use tidewire_protocol::payload::write_ejson;

use super::aside::set_aside_again;
use super::reconcile::place_after;
use crate::access::channels::{RuleSet, Rules};
use crate::log::{
    Body, Channels, CollectionId, CopyState, Followed, LogError, NewAside, NewChange, Writer,
};

/// Keys looked up at a time.
const KEYS_MAX: usize = 4_096;

/// Makes the log follow what the rules name, in one commit.
///
/// # Errors
/// When the log's store fails. Nothing is changed then.
pub(super) fn take_up(writer: &mut Writer, rules: &RuleSet) -> Result<(), LogError> {
    let taken_up = take_up_all(writer, rules);
    if taken_up.is_err() {
        writer.abort()?;
    }
    taken_up
}

fn take_up_all(writer: &mut Writer, rules: &RuleSet) -> Result<(), LogError> {
    let known = writer.followed()?;
    let names = writer.collections();
    for old in known.iter().filter(|old| old.active) {
        let name = names.iter().find(|(_, id)| *id == old.collection).map(|(name, _)| name);
        if let Some(name) = name.filter(|name| rules.get(name).is_none()) {
            tracing::info!(collection = %name, "no longer followed: it is not in the configuration");
            writer.unfollow(old.collection)?;
        }
    }
    let mut ruled = Ruled { last: writer.head().position };
    for rules in rules.iter() {
        let id = writer.collection(rules.name())?;
        let old = known.iter().find(|old| old.collection == id);
        match old {
            Some(old) if old.active && old.rules == rules.text() => continue,
            Some(old) if old.rules != rules.text() => ruled.apply(writer, old, rules)?,
            _ => {}
        }
        writer.follow(id, rules.text())?;
        let copy = match old {
            Some(old) if old.active => {
                CopyState { rules: rules.fingerprint(), ..writer.copy_state(id) }
            }
            // Nobody told what happened to it.
            _ => CopyState { rules: rules.fingerprint(), ..CopyState::default() },
        };
        writer.set_copy_state(id, copy)?;
    }
    writer.commit()?;
    Ok(())
}

/// Documents that are put under other rules.
struct Ruled {
    /// The last position that was given.
    last: Position,
}

impl Ruled {
    fn apply(&mut self, writer: &mut Writer, old: &Followed, new: &Rules) -> Result<(), LogError> {
        let (id, before) = (old.collection, Rules::from_text(new.name(), &old.rules));
        let mut after: Option<Vec<u8>> = None;
        let mut changed = 0_u64;
        loop {
            let keys = writer.keys_between(id, after.as_deref(), None, KEYS_MAX)?;
            for entry in keys.iter().filter(|entry| entry.live) {
                let Some(latest) = writer.latest(id, &entry.key)? else { continue };
                if let Some(aside) = &latest.set_aside {
                    self.set_aside(writer, id, &entry.key, aside, new)?;
                    changed += 1;
                }
                let Some(document) = latest.document else { continue };
                if before.as_ref().is_none_or(|before| show_differently(before, new, &document)) {
                    self.append(writer, id, &entry.key, &document, new)?;
                    changed += 1;
                }
            }
            match keys.into_iter().last() {
                Some(last) => after = Some(last.key),
                None => break,
            }
        }
        let cluster_time = self.last.cluster_time;
        tracing::info!(collection = %new.name(), changed, cluster_time,
            "the collection's documents are under other rules now");
        Ok(())
    }

    fn append(
        &mut self,
        writer: &mut Writer,
        collection: CollectionId,
        key: &[u8],
        document: &RawDocument,
        rules: &Rules,
    ) -> Result<(), LogError> {
        let next = self.place(writer);
        writer.append(&NewChange {
            position: next,
            wall_time_ms: i64::from(next.unix_seconds()) * 1_000,
            collection,
            key,
            body: Body::Upsert(document),
            channels: Channels::Named(&rules.channels_of(document)),
            rules: rules.fingerprint(),
        })
    }

    /// In which channels the last version of a quarantined document that could be carried would be now,
    /// nobody knows: in none.
    fn set_aside(
        &mut self,
        writer: &mut Writer,
        collection: CollectionId,
        key: &[u8],
        aside: &RawDocument,
        rules: &Rules,
    ) -> Result<(), LogError> {
        let position = self.place(writer);
        let again = NewAside {
            position,
            wall_time_ms: i64::from(position.unix_seconds()) * 1_000,
            collection,
            reason: aside.get_str("reason").unwrap_or_default(),
            size: aside.get_i64("size").unwrap_or(0).unsigned_abs(),
            rules: rules.fingerprint(),
        };
        set_aside_again(writer, &again, key, aside)
    }

    fn place(&mut self, writer: &Writer) -> Position {
        let time = self.last.cluster_time.max(writer.tail().high_water);
        self.last = place_after(self.last, time);
        self.last
    }
}

/// The rules show the document to others, or another part of it.
fn show_differently(before: &Rules, now: &Rules, document: &RawDocument) -> bool {
    let shown = |rules: &Rules| {
        let mut text = Vec::new();
        write_ejson(document, rules.exclude(), &mut text).ok().map(|()| text)
    };
    before.channels_of(document) != now.channels_of(document)
        || (before.exclude() != now.exclude() && shown(before) != shown(now))
}

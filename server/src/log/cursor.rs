//! Cursors: opaque text that says where a reader stands and what it has been reading.
//!
//! A cursor grants nothing: access is decided by the request. What it carries only says what its
//! sender already holds, so a forged one can spoil its sender's replica and nothing else.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use tidewire_protocol::Position;

use super::postings::{put_varint, take_varint};
use super::read::Scope;

/// The first byte of every cursor of this version.
const VERSION: u8 = 2;
/// Most names (collections and channels together) that a cursor tells apart.
const NAMES_MAX: usize = 1_024;
/// Longest text of a cursor, bytes: that of two views of the most names is shorter, and fits a URL.
const TEXT_LEN_MAX: usize = 28 * 1024;

/// What a client sends back as its next `since`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(super) position: Position,
    pub(super) view: View,
    pub(super) basis: Basis,
    /// `None`: the reader is complete at `position`, and any log of the same source, under the same rules
    /// there, can go on.
    pub(super) inside: Option<Inside>,
}

/// What it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Basis {
    /// The log: so no two logs ever give out the same cursor, and an answer of one is none of another's.
    pub(super) log_id: u64,
    /// [`name_hash`] of the source's identity.
    pub(super) source: u64,
    /// By which rules each of the view's collections was read, in its order.
    pub(super) rules: Vec<u32>,
}

/// Where a reader stands that is not complete; only the log that said so can go on from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    /// The log.
    pub(super) log_id: u64,
    /// Everything through this change has been read.
    pub(super) seq: u64,
    /// A first copy or catch-up under way.
    pub(super) fill: Option<Fill>,
}

/// A first copy or catch-up: superseded changes are left out, so it is complete only at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fill {
    /// Its end.
    pub(super) until: u64,
    /// The reader started from nothing: deletes through this change mean nothing to it.
    pub(super) blank_through: u64,
    /// A change of what the reader may see is being told.
    pub(super) regrant: Option<Regrant>,
}

/// The reader's view has changed: what it gained and lost up to `boundary` is told first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Regrant {
    /// The reader had read through this change with the old view.
    pub(super) boundary: u64,
    /// Told through this change.
    pub(super) told: u64,
    /// The new view; the cursor's own is the old one until all is told.
    pub(super) target: View,
    /// The view changed again before a change of it was told: what the reader holds of either view is
    /// not known, so all of both is told.
    pub(super) afresh: bool,
}

/// What a reader may see, as hashes of names: collections × channels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// The operator's: everything. Then the lists are empty.
    pub(super) everything: bool,
    /// [`name_hash`]es of collections, sorted, unique.
    pub(super) collections: Vec<u64>,
    /// [`name_hash`]es of channels, sorted, unique.
    pub(super) channels: Vec<u64>,
}

/// 64 bits of the SHA-256 of a name; the same on every server.
pub(super) fn name_hash(name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    u64::from_be_bytes(digest[..8].try_into().expect("a SHA-256 has 32 bytes"))
}

impl View {
    pub(super) fn of(scope: &Scope<'_>) -> Self {
        let hashes = |names: &[String]| {
            let mut hashes: Vec<u64> = names.iter().map(|name| name_hash(name)).collect();
            hashes.sort_unstable();
            hashes.dedup();
            hashes
        };
        match scope {
            Scope::Everything => Self { everything: true, ..Self::default() },
            Scope::Channels { collections, channels } => Self {
                everything: false,
                collections: hashes(collections),
                channels: hashes(channels),
            },
        }
    }

    /// A view that covers both; `None` where it has more names than a cursor can say.
    pub(super) fn union(&self, other: &Self) -> Option<Self> {
        let merge = |a: &[u64], b: &[u64]| {
            let mut all = [a, b].concat();
            all.sort_unstable();
            all.dedup();
            all
        };
        let both = Self {
            everything: self.everything || other.everything,
            collections: merge(&self.collections, &other.collections),
            channels: merge(&self.channels, &other.channels),
        };
        (both.collections.len() + both.channels.len() <= NAMES_MAX).then_some(both)
    }

    /// All (collection, channel) pairs.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.collections
            .iter()
            .flat_map(|&collection| self.channels.iter().map(move |&channel| (collection, channel)))
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.everything));
        for list in [&self.collections, &self.channels] {
            put_varint(list.len() as u64, out);
            for hash in list {
                out.extend_from_slice(&hash.to_be_bytes());
            }
        }
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let everything = take_flag(bytes)?;
        let mut list = || -> Option<Vec<u64>> {
            let len = usize::try_from(take_varint(bytes)?).ok().filter(|&len| len <= NAMES_MAX)?;
            let hashes = (0..len)
                .map(|_| take_bytes::<8>(bytes).map(u64::from_be_bytes))
                .collect::<Option<Vec<u64>>>()?;
            hashes.is_sorted_by(|a, b| a < b).then_some(hashes)
        };
        Some(Self { everything, collections: list()?, channels: list()? })
    }
}

/// The text is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor that a Tidewire server gave out")]
pub struct CursorError;

impl Cursor {
    /// Most names (collections and channels together) that a request may read with.
    pub const NAMES_MAX: usize = NAMES_MAX;

    /// Everything at or before it has been read, as far as the reader may see.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Whether a replica that has applied everything up to here is the source at one commit.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.inside.is_none()
    }

    /// Whether it was read with these channels, and `collection` among others.
    #[must_use]
    pub fn covers(&self, collection: &str, channels: &[String]) -> bool {
        let collections = &[collection.to_owned()];
        let asked = View::of(&Scope::Channels { collections, channels });
        let reads = |collection: &u64| self.view.collections.contains(collection);
        self.view.channels == asked.channels && asked.collections.iter().all(reads)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.position.cluster_time.to_be_bytes());
        out.extend_from_slice(&self.position.ordinal.to_be_bytes());
        self.view.put(&mut out);
        self.basis.put(&mut out);
        let Some(inside) = &self.inside else {
            return out;
        };
        out.extend_from_slice(&inside.log_id.to_be_bytes());
        put_varint(inside.seq, &mut out);
        let Some(fill) = &inside.fill else {
            return out;
        };
        put_varint(fill.until, &mut out);
        put_varint(fill.blank_through, &mut out);
        if let Some(regrant) = &fill.regrant {
            put_varint(regrant.boundary, &mut out);
            put_varint(regrant.told, &mut out);
            out.push(u8::from(regrant.afresh));
            regrant.target.put(&mut out);
        }
        out
    }

    fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        if take_bytes::<1>(bytes)? != [VERSION] {
            return None;
        }
        let position = Position {
            cluster_time: u64::from_be_bytes(take_bytes(bytes)?),
            ordinal: u32::from_be_bytes(take_bytes(bytes)?),
        };
        let view = View::take(bytes)?;
        let basis = Basis::take(bytes, &view)?;
        let inside = if bytes.is_empty() { None } else { Some(take_inside(bytes)?) };
        bytes.is_empty().then_some(Self { position, view, basis, inside })
    }
}

impl Basis {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.log_id.to_be_bytes());
        out.extend_from_slice(&self.source.to_be_bytes());
        out.extend(self.rules.iter().flat_map(|rules| rules.to_be_bytes()));
    }

    fn take(bytes: &mut &[u8], view: &View) -> Option<Self> {
        let log_id = take_bytes(bytes).map(u64::from_be_bytes)?;
        let source = take_bytes(bytes).map(u64::from_be_bytes)?;
        let rules = view.collections.iter().map(|_| take_bytes(bytes).map(u32::from_be_bytes));
        Some(Self { log_id, source, rules: rules.collect::<Option<_>>()? })
    }
}

fn take_inside(bytes: &mut &[u8]) -> Option<Inside> {
    let log_id = u64::from_be_bytes(take_bytes(bytes)?);
    let seq = take_seq(bytes)?;
    let fill = if bytes.is_empty() { None } else { Some(take_fill(bytes)?) };
    Some(Inside { log_id, seq, fill })
}

fn take_fill(bytes: &mut &[u8]) -> Option<Fill> {
    let (until, blank_through) = (take_seq(bytes)?, take_seq(bytes)?);
    let regrant = if bytes.is_empty() {
        None
    } else {
        let (boundary, told) = (take_seq(bytes)?, take_seq(bytes)?);
        let afresh = take_flag(bytes)?;
        Some(Regrant { boundary, told, target: View::take(bytes)?, afresh })
    };
    Some(Fill { until, blank_through, regrant })
}

/// A change's number: fits the store's signed integers.
fn take_seq(bytes: &mut &[u8]) -> Option<u64> {
    take_varint(bytes).filter(|&seq| i64::try_from(seq).is_ok())
}

fn take_flag(bytes: &mut &[u8]) -> Option<bool> {
    match take_bytes::<1>(bytes)? {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

fn take_bytes<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.to_bytes()))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > TEXT_LEN_MAX {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        Self::from_bytes(&bytes).ok_or(CursorError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursors() -> Vec<Cursor> {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let view = View::of(&Scope::Channels {
            collections: &names(&["users", "plans"]),
            channels: &names(&["everyone", "user:7", "everyone"]),
        });
        let basis = Basis { log_id: u64::MAX - 1, source: 1 << 63, rules: vec![u32::MAX, 0] };
        let position = Position::new(77, 3);
        let at = Cursor { position, view: view.clone(), basis, inside: None };
        let inside = |fill| Cursor {
            inside: Some(Inside { log_id: u64::MAX, seq: 300, fill }),
            ..at.clone()
        };
        let fill = |regrant| Some(Fill { until: 9_999, blank_through: 0, regrant });
        let target = View::of(&Scope::Everything);
        let regrant = Regrant { boundary: 300, told: 17, target, afresh: true };
        vec![at.clone(), inside(None), inside(fill(None)), inside(fill(Some(regrant)))]
    }

    #[test]
    fn every_cursor_comes_back_from_its_text() {
        for cursor in cursors() {
            let text = cursor.to_string();
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            assert_eq!(text.parse(), Ok(cursor));
        }
    }

    #[test]
    fn what_is_cut_lengthened_or_made_up_is_no_cursor_and_no_panic() {
        for cursor in cursors() {
            let bytes = cursor.to_bytes();
            for len in 0..bytes.len() {
                // A cut at the seam of an optional part is a cursor again: never the same one.
                assert_ne!(Cursor::from_bytes(&bytes[..len]), Some(cursor.clone()));
            }
            let longer = [bytes.as_slice(), &[0xff]].concat();
            assert_ne!(Cursor::from_bytes(&longer), Some(cursor));
        }
        for text in ["", "0", "AAAA", "not a cursor", "____", &"A".repeat(100_000)] {
            assert_eq!(text.parse::<Cursor>(), Err(CursorError), "{text:.20}");
        }
    }
}

//! Digests: how a replica and a server find out, without sending the documents, where they differ.
//!
//! A document's hash is the first 16 bytes of SHA-256 over the length of its `mongoId` in bytes (8
//! bytes, big endian), the `mongoId`, and its `json` payload, all as UTF-8. A range's digest is how many
//! documents are in it and the sum of their hashes, big endian, modulo 2^128: no order is needed, and
//! digests of parts add up to the digest of the whole.
//!
//! A collection is cut into `2^depth` ranges of keys: a document is in the range that the first `depth`
//! bits of SHA-256 over its `mongoId` name. So both sides cut alike without asking, and ranges are even
//! whatever the keys look like. Positions play no part: replicas of different servers have one digest.

use std::borrow::Cow;
use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::page::Change;
use crate::position::Position;

/// The finest cut: 4,096 ranges.
pub const DEPTH_MAX: u8 = 12;

/// The hash of one document, or a sum of such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HashSum(u128);

/// The hash of the document `mongo_id` with this `json` payload.
#[must_use]
pub fn document_hash(mongo_id: &[u8], payload: &[u8]) -> HashSum {
    let mut hash = Sha256::new();
    hash.update((mongo_id.len() as u64).to_be_bytes());
    hash.update(mongo_id);
    hash.update(payload);
    HashSum(first_bytes(&hash.finalize()))
}

/// The range that `mongo_id` is in where a collection is cut into `2^depth`.
///
/// # Panics
/// When `depth` is beyond [`DEPTH_MAX`].
#[must_use]
pub fn range_of(mongo_id: &[u8], depth: u8) -> u32 {
    assert!(depth <= DEPTH_MAX, "a collection is not cut into 2^{depth} ranges");
    let place = first_bytes(&Sha256::digest(mongo_id));
    // At most 12 bits; a depth of 0 shifts all of them out.
    place.checked_shr(128 - u32::from(depth)).unwrap_or(0) as u32
}

fn first_bytes(digest: &[u8]) -> u128 {
    u128::from_be_bytes(digest[..16].try_into().expect("a SHA-256 has 32 bytes"))
}

impl AddAssign for HashSum {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl fmt::Display for HashSum {
    /// 32 hex digits, lower case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The text is not a sum of hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 32 hex digits in lower case")]
pub struct ParseHashError;

impl FromStr for HashSum {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let sum = (text.len() == 32 && is_hex).then(|| u128::from_str_radix(text, 16).ok());
        sum.flatten().map(Self).ok_or(ParseHashError)
    }
}

impl Serialize for HashSum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HashSum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a range holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDigest {
    /// Documents.
    pub count: u64,
    /// The sum of their hashes.
    pub digest: HashSum,
}

impl AddAssign for RangeDigest {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.digest += other.digest;
    }
}

/// A collection's digests: one for each of its `2^depth` ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectionDigest {
    depth: u8,
    ranges: Vec<RangeDigest>,
}

impl CollectionDigest {
    /// Of no documents.
    ///
    /// # Panics
    /// When `depth` is beyond [`DEPTH_MAX`].
    #[must_use]
    pub fn new(depth: u8) -> Self {
        assert!(depth <= DEPTH_MAX, "a collection is not cut into 2^{depth} ranges");
        Self { depth, ranges: vec![RangeDigest::default(); 1 << depth] }
    }

    /// Adds a document.
    pub fn add(&mut self, mongo_id: &[u8], payload: &[u8]) {
        let range = &mut self.ranges[range_of(mongo_id, self.depth) as usize];
        *range += RangeDigest { count: 1, digest: document_hash(mongo_id, payload) };
    }

    /// Adds a part of an answer. False, and nothing is added, where it is cut in another way or names
    /// a range that there is not.
    pub fn add_part(&mut self, depth: u8, part: &[NumberedDigest]) -> bool {
        let fits = |one: &NumberedDigest| (one.range as usize) < self.ranges.len();
        if depth != self.depth || !part.iter().all(fits) {
            return false;
        }
        for NumberedDigest { range, digest } in part {
            self.ranges[*range as usize] += *digest;
        }
        true
    }

    /// The ranges that hold something, ascending.
    pub fn filled(&self) -> impl Iterator<Item = NumberedDigest> + '_ {
        let numbered = (0..).zip(&self.ranges);
        numbered
            .filter(|(_, digest)| **digest != RangeDigest::default())
            .map(|(range, &digest)| NumberedDigest { range, digest })
    }

    /// All of it as one.
    #[must_use]
    pub fn total(&self) -> RangeDigest {
        self.ranges.iter().fold(RangeDigest::default(), |mut total, range| {
            total += *range;
            total
        })
    }

    /// The numbers of the ranges in which the two differ, ascending.
    ///
    /// # Panics
    /// When the two are cut in different ways.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<u32> {
        assert_eq!(self.depth, other.depth, "digests of one cut are compared");
        let pairs = (0..).zip(self.ranges.iter().zip(&other.ranges));
        pairs.filter(|(_, (ours, theirs))| ours != theirs).map(|(range, _)| range).collect()
    }
}

/// A range of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedDigest {
    /// 0 to `2^depth - 1`.
    pub range: u32,
    /// What it holds.
    #[serde(flatten)]
    pub digest: RangeDigest,
}

/// One answer of `GET /api/sync/digest`, borrowed from its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DigestPage<'a> {
    /// Always true; an error has a body of its own.
    pub success: bool,
    /// The server's clock: RFC 3339, UTC, milliseconds.
    #[serde(borrow)]
    pub server_time: Cow<'a, str>,
    /// The collection's name.
    #[serde(borrow)]
    pub collection: Cow<'a, str>,
    /// The cursor's position: what is told is the collection as of it.
    pub position: Position,
    /// There are `2^depth` ranges.
    pub depth: u8,
    /// Those that hold something, by ascending number; of a part where there is a `next`.
    pub ranges: Vec<NumberedDigest>,
    /// Opaque: the next `from`. `None`: all is told.
    #[serde(borrow, default)]
    pub next: Option<Cow<'a, str>>,
}

/// One answer of `GET /api/sync/range`, borrowed from its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangePage<'a> {
    /// Always true; an error has a body of its own.
    pub success: bool,
    /// The server's clock: RFC 3339, UTC, milliseconds.
    #[serde(borrow)]
    pub server_time: Cow<'a, str>,
    /// The collection's name.
    #[serde(borrow)]
    pub collection: Cow<'a, str>,
    /// The cursor's position: what is told is the collection as of it.
    pub position: Position,
    /// There are `2^depth` ranges.
    pub depth: u8,
    /// Documents of the ranges asked for, each once over all parts, as a pull would tell them. A
    /// document that can't be served is a delete here too.
    #[serde(borrow)]
    pub changes: Vec<Change<'a>>,
    /// Opaque: the next `from`. `None`: all is told.
    #[serde(borrow, default)]
    pub next: Option<Cow<'a, str>>,
}

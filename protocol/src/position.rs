//! Positions: MongoDB's own time, as sortable text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A place in the change log: `(cluster time, ordinal)`, ordered as the source ordered its changes.
///
/// Written as `<cluster time: 16 hex>.<ordinal: 8 hex>`, lower case, 25 characters; comparing two
/// texts compares the positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// MongoDB's cluster time: seconds since 1970 in the upper 32 bits, increment in the lower.
    pub cluster_time: u64,
    /// Counts the changes of one cluster time in stream order, from 0. Ordinals from
    /// [`Position::RECONCILE_ORDINAL_FIRST`] belong to reconcile.
    pub ordinal: u32,
}

impl Position {
    /// Before every change.
    pub const ZERO: Self = Self { cluster_time: 0, ordinal: 0 };
    /// After every change.
    pub const MAX: Self = Self { cluster_time: u64::MAX, ordinal: u32::MAX };
    /// The first ordinal of the range that reconcile uses, above all ordinals of stream changes.
    pub const RECONCILE_ORDINAL_FIRST: u32 = 0x8000_0000;
    /// Length of the text form in bytes.
    pub const TEXT_LEN: usize = 25;

    /// The position `ordinal` at `cluster_time`.
    #[must_use]
    pub const fn new(cluster_time: u64, ordinal: u32) -> Self {
        Self { cluster_time, ordinal }
    }

    /// The first possible position of the second `unix_seconds` (seconds since 1970).
    #[must_use]
    pub const fn at_second(unix_seconds: u32) -> Self {
        Self { cluster_time: (unix_seconds as u64) << 32, ordinal: 0 }
    }

    /// Whole seconds since 1970 of the cluster time.
    #[must_use]
    pub const fn unix_seconds(self) -> u32 {
        (self.cluster_time >> 32) as u32
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{:08x}", self.cluster_time, self.ordinal)
    }
}

/// The text is not a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a position is 16 hex digits, a dot and 8 hex digits, in lower case")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (time, ordinal) = text.split_once('.').ok_or(ParsePositionError)?;
        let lower_hex = |s: &str| s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if time.len() != 16 || ordinal.len() != 8 || !lower_hex(time) || !lower_hex(ordinal) {
            return Err(ParsePositionError);
        }
        Ok(Self {
            cluster_time: u64::from_str_radix(time, 16).map_err(|_| ParsePositionError)?,
            ordinal: u32::from_str_radix(ordinal, 16).map_err(|_| ParsePositionError)?,
        })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_order_is_position_order() {
        let mut positions = [
            Position::ZERO,
            Position::new(0, 1),
            Position::new(1, 0),
            Position::new(1, Position::RECONCILE_ORDINAL_FIRST),
            Position::new(2, 0),
            Position::at_second(1_700_000_000),
            Position::MAX,
        ];
        let mut texts = positions.map(|p| p.to_string());
        texts.sort();
        positions.sort();
        assert_eq!(texts, positions.map(|p| p.to_string()));
        for (text, position) in texts.iter().zip(positions) {
            assert_eq!(text.len(), Position::TEXT_LEN);
            assert_eq!(text.parse(), Ok(position));
        }
    }

    #[test]
    fn what_is_not_a_position_is_refused() {
        for bad in ["", "0", "1.2", "000000000000000G.00000000", "0000000000000001.0000000A"] {
            assert_eq!(bad.parse::<Position>(), Err(ParsePositionError), "{bad}");
        }
    }
}

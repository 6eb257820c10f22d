//! What may be asked of a collection's digests, each parameter once and within its bounds.

use axum::http::Uri;
use tidewire_protocol::ErrorCode;
use tidewire_protocol::digest::DEPTH_MAX;

use super::super::errors::{ApiError, shown};
use super::super::query::{LIMIT_DEFAULT, Values, parse_limit, whole};
use crate::log::{Cursor, Place};

const DEPTH_DEFAULT: u8 = 8;
/// Ranges of one request: more would not fit its URL beside the longest cursor.
const RANGES_MAX: usize = 1_024;

/// What both routes ask.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) collection: String,
    /// Complete.
    pub(super) at: Cursor,
    /// 0 to [`DEPTH_MAX`].
    pub(super) depth: u8,
    pub(super) from: Option<Place>,
}

/// What is asked of the documents of ranges.
#[derive(Debug)]
pub(super) struct RangeQuery {
    pub(super) asked: Asked,
    /// Ascending, 1 to [`RANGES_MAX`].
    pub(super) ranges: Vec<u32>,
    /// 1 to 10,000.
    pub(super) limit: usize,
}

pub(super) fn parse_digest(uri: &Uri) -> Result<Asked, ApiError> {
    Asked::parse(&Values::of(uri)?)
}

pub(super) fn parse_range(uri: &Uri) -> Result<RangeQuery, ApiError> {
    let values = Values::of(uri)?;
    let asked = Asked::parse(&values)?;
    let limit = values.one("limit", ErrorCode::InvalidLimit)?;
    let limit = limit.map_or(Ok(LIMIT_DEFAULT), parse_limit)?;
    let text = values.one("ranges", ErrorCode::BadRequest)?.unwrap_or_default();
    let ranges = parse_ranges(text, asked.depth).ok_or_else(|| {
        let count = 1_u32 << asked.depth;
        let remedy = format!("send 1 to {RANGES_MAX} numbers below {count}, comma-separated");
        ApiError::new(ErrorCode::BadRequest, format!("ranges is {}", shown(text)), remedy)
    })?;
    Ok(RangeQuery { asked, ranges, limit })
}

impl Asked {
    fn parse(values: &Values) -> Result<Self, ApiError> {
        let collection = values.one("collection", ErrorCode::UnknownCollection)?;
        let at = values.one("at", ErrorCode::InvalidSince)?.unwrap_or_default();
        let depth = values.one("depth", ErrorCode::BadRequest)?;
        let from = values.one("from", ErrorCode::BadRequest)?;
        Ok(Self {
            collection: collection.unwrap_or_default().to_owned(),
            at: parse_at(at)?,
            depth: depth.map_or(Ok(DEPTH_DEFAULT), parse_depth)?,
            from: from.map(parse_from).transpose()?,
        })
    }
}

fn parse_at(text: &str) -> Result<Cursor, ApiError> {
    let cursor = text.parse::<Cursor>().ok();
    cursor.filter(Cursor::is_complete).ok_or_else(|| {
        let message = format!("at is {}, which is no cursor that came as complete", shown(text));
        let remedy = "send the cursor of a page or frame with complete: true";
        ApiError::new(ErrorCode::InvalidSince, message, remedy)
    })
}

fn parse_depth(text: &str) -> Result<u8, ApiError> {
    let depth = whole(text).and_then(|depth| u8::try_from(depth).ok());
    depth.filter(|depth| *depth <= DEPTH_MAX).ok_or_else(|| {
        let remedy = format!("send a whole number from 0 to {DEPTH_MAX}");
        ApiError::new(ErrorCode::BadRequest, format!("depth is {}", shown(text)), remedy)
    })
}

fn parse_from(text: &str) -> Result<Place, ApiError> {
    text.parse().map_err(|_| {
        let message = format!("from is {}", shown(text));
        ApiError::new(ErrorCode::BadRequest, message, "send the last answer's next, or nothing")
    })
}

fn parse_ranges(text: &str, depth: u8) -> Option<Vec<u32>> {
    let numbers = text.split(',').take(RANGES_MAX + 1).map(|text| {
        let number = whole(text).and_then(|number| u32::try_from(number).ok());
        number.filter(|number| *number < 1 << depth)
    });
    let mut ranges = numbers.collect::<Option<Vec<u32>>>()?;
    let asked = ranges.len();
    ranges.sort_unstable();
    ranges.dedup();
    (asked <= RANGES_MAX).then_some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_numbers_below_their_count_and_not_too_many() {
        assert_eq!(parse_ranges("3,1,3", 2), Some(vec![1, 3]));
        assert_eq!(parse_ranges("0", 0), Some(vec![0]));
        for bad in ["", "4", "1,", "-1", "x", "1;2", "99999999999999999999"] {
            assert_eq!(parse_ranges(bad, 2), None, "{bad}");
        }
        let many: Vec<String> = (0..=RANGES_MAX).map(|n| n.to_string()).collect();
        assert_eq!(parse_ranges(&many.join(","), 12), None);
        assert!(parse_ranges(&many[1..].join(","), 12).is_some());
    }
}

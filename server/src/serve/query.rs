//! The pull's parameters: each once, each within its bounds, nothing guessed.

use std::time::Duration;

use axum::extract::Query;
use axum::http::Uri;
use tidewire_protocol::ErrorCode;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::errors::{ApiError, shown};
use super::page::Format;
use crate::log::{Cursor, Since};

pub(super) const LIMIT_DEFAULT: usize = 1_000;
const LIMIT_MAX: usize = 10_000;
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Wall clocks may run ahead of the cluster time by as much, so a time reads from this far before.
const TIME_SLACK_SECONDS: i64 = 10;
/// A time further ahead than clocks differ is a mistake: nothing would ever seem to happen.
const TIME_AHEAD_SECONDS_MAX: i64 = 300;
/// More names than a configuration may hold.
const COLLECTIONS_MAX: usize = 1_000;

/// What a pull asks for, checked apart from the names of collections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PullQuery {
    pub(super) since: Since,
    /// `since` as it was asked, empty where it was not.
    pub(super) asked: String,
    /// 1 to 10,000.
    pub(super) limit: usize,
    /// 0 to 60 s.
    pub(super) wait: Duration,
    /// `None`: all that the token may see.
    pub(super) collections: Option<Vec<String>>,
    pub(super) format: Format,
}

impl PullQuery {
    /// Reads the query of `uri`; `now_seconds` since 1970 is what "the future" is measured by.
    pub(super) fn parse(uri: &Uri, now_seconds: i64) -> Result<Self, ApiError> {
        let values = Values::of(uri)?;
        let since = values.one("since", ErrorCode::InvalidSince)?;
        let limit = values.one("limit", ErrorCode::InvalidLimit)?;
        let wait = values.one("wait", ErrorCode::InvalidWait)?;
        let collections = values.one("collections", ErrorCode::UnknownCollection)?;
        let format = values.one("format", ErrorCode::InvalidFormat)?;
        Ok(Self {
            since: parse_since(since.unwrap_or_default(), now_seconds)?,
            asked: since.unwrap_or_default().to_owned(),
            limit: limit.map_or(Ok(LIMIT_DEFAULT), parse_limit)?,
            wait: wait.map_or(Ok(Duration::ZERO), parse_wait)?,
            collections: collections.map(parse_collections).transpose()?,
            format: format.map_or(Ok(Format::Json), parse_format)?,
        })
    }
}

/// Names and values of a query.
pub(super) struct Values(Vec<(String, String)>);

impl Values {
    pub(super) fn of(uri: &Uri) -> Result<Self, ApiError> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|_| {
            ApiError::new(
                ErrorCode::BadRequest,
                "the query can't be read",
                "write it as name=value&name=value",
            )
        })?;
        Ok(Self(pairs.0))
    }

    /// The value of `name`; twice, or as an array or an object (`since[]`, `since[$gt]`), is refused.
    pub(super) fn one(&self, name: &str, code: ErrorCode) -> Result<Option<&str>, ApiError> {
        let mut found = None;
        for (key, value) in &self.0 {
            let Some(rest) = key.strip_prefix(name) else { continue };
            if rest.starts_with('[') || rest.starts_with('.') {
                let message = format!("{} is not a parameter", shown(key));
                return Err(ApiError::new(
                    code,
                    message,
                    format!("send {name} once, as plain text"),
                ));
            }
            if rest.is_empty() && found.replace(value.as_str()).is_some() {
                let message = format!("{name} is there more than once");
                return Err(ApiError::new(code, message, format!("send {name} once")));
            }
        }
        Ok(found)
    }
}

pub(super) fn parse_since(text: &str, now_seconds: i64) -> Result<Since, ApiError> {
    if matches!(text, "" | "0") {
        return Ok(Since::Nothing);
    }
    if let Some(seconds) = parse_time(text) {
        if seconds > now_seconds + TIME_AHEAD_SECONDS_MAX {
            let message = format!("since is {}, which is in the future", shown(text));
            let remedy = "send a time that has been, a cursor, or 0; compare the clocks";
            return Err(ApiError::new(ErrorCode::InvalidSince, message, remedy));
        }
        let from = (seconds - TIME_SLACK_SECONDS).clamp(0, i64::from(u32::MAX));
        return Ok(Since::Time(u32::try_from(from).expect("clamped to its range")));
    }
    text.parse::<Cursor>().map(Since::Cursor).map_err(|_| {
        let message = format!("since is {}, which is no cursor and no time", shown(text));
        let remedy = "send a cursor as it came, an RFC 3339 time as 2026-01-01T12:00:00Z, or 0";
        ApiError::new(ErrorCode::InvalidSince, message, remedy)
    })
}

/// Whole seconds since 1970 of an RFC 3339 time, rounded down.
fn parse_time(text: &str) -> Option<i64> {
    // The + of an offset that nobody escaped arrives as a space.
    let unescaped = match text.rfind(' ') {
        Some(at) if at >= "2026-01-01T12:00:00".len() => {
            format!("{}+{}", &text[..at], &text[at + 1..])
        }
        _ => text.to_owned(),
    };
    OffsetDateTime::parse(&unescaped, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

pub(super) fn parse_limit(text: &str) -> Result<usize, ApiError> {
    whole(text).filter(|limit| (1..=LIMIT_MAX).contains(limit)).ok_or_else(|| {
        let message = format!("limit is {}", shown(text));
        let remedy = format!("send a whole number from 1 to {LIMIT_MAX}");
        ApiError::new(ErrorCode::InvalidLimit, message, remedy)
    })
}

fn parse_wait(text: &str) -> Result<Duration, ApiError> {
    let wait = whole(text).map(|seconds| Duration::from_secs(seconds as u64));
    wait.filter(|wait| *wait <= WAIT_MAX).ok_or_else(|| {
        let message = format!("wait is {}", shown(text));
        let remedy = format!("send whole seconds from 0 to {}", WAIT_MAX.as_secs());
        ApiError::new(ErrorCode::InvalidWait, message, remedy)
    })
}

/// Digits alone: no sign, no space, no fraction.
pub(super) fn whole(text: &str) -> Option<usize> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn parse_collections(text: &str) -> Result<Vec<String>, ApiError> {
    let mut names: Vec<String> = text.split(',').map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > COLLECTIONS_MAX {
        let message = format!("collections has {} names", names.len());
        let remedy = format!("send at most {COLLECTIONS_MAX}");
        return Err(ApiError::new(ErrorCode::UnknownCollection, message, remedy));
    }
    Ok(names)
}

pub(super) fn parse_format(text: &str) -> Result<Format, ApiError> {
    match text {
        "json" => Ok(Format::Json),
        "ejson" => Ok(Format::Ejson),
        other => {
            let message = format!("format is {}", shown(other));
            Err(ApiError::new(ErrorCode::InvalidFormat, message, "send json or ejson"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn parse(query: &str) -> Result<PullQuery, u16> {
        let uri = format!("/api/sync/pull?{query}").parse().unwrap();
        PullQuery::parse(&uri, NOW).map_err(|error| error.status().as_u16())
    }

    #[test]
    fn nothing_said_is_everything_from_nothing() {
        let query = parse("").unwrap();
        assert_eq!((query.since, query.limit, query.wait), (Since::Nothing, 1_000, Duration::ZERO));
        assert_eq!((query.collections, query.format), (None, Format::Json));
    }

    #[test]
    fn a_time_reads_from_a_little_before_it() {
        let check = |text: &str, seconds: u32| {
            assert_eq!(
                parse(&format!("since={text}")).map(|q| q.since),
                Ok(Since::Time(seconds)),
                "{text}"
            );
        };
        check("2026-01-01T12:00:00Z", 1_767_268_790);
        check("2026-01-01T12:00:00.999Z", 1_767_268_790);
        check("2026-01-01T13:00:00%2B01:00", 1_767_268_790);
        check("2026-01-01T13:00:00+01:00", 1_767_268_790);
        check("1969-01-01T00:00:00Z", 0);
        check("0000-01-01T00:00:00Z", 0);
    }

    #[test]
    fn a_time_to_come_is_refused_beyond_what_clocks_differ() {
        let at = |seconds: i64| {
            let time = OffsetDateTime::from_unix_timestamp(NOW + seconds).unwrap();
            parse(&format!("since={}", time.format(&Rfc3339).unwrap())).map(|_| ())
        };
        assert_eq!(at(299), Ok(()));
        assert_eq!(at(301), Err(400));
    }

    #[test]
    fn values_out_of_bounds_are_refused_and_never_guessed() {
        for bad in [
            "limit=0",
            "limit=-1",
            "limit=1e9",
            "limit=1000000000",
            "limit=10001",
            "limit=",
            "limit=%2B1",
            "limit=99999999999999999999999",
            "limit=1&limit=1",
            "limit[]=1",
            "limit[$gt]=1",
            "wait=61",
            "wait=-1",
            "wait=1.5",
            "wait=",
            "format=xml",
            "format=",
            "format=JSON",
            "since=0&since=0",
        ] {
            assert_eq!(parse(bad).map(|_| ()), Err(400), "{bad}");
        }
    }
}

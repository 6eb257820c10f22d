//! `GET /api/sync/pull`: a page, at once or as soon as there is something to tell.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::Response;
use tidewire_protocol::ErrorCode;
use tokio::time::Instant;

use super::Parts;
use super::compress::Encoding;
use super::errors::{ApiError, shown};
use super::query::PullQuery;
use super::read::{PageJob, ReadOutcome, ReadyPage, respond};
use crate::access::{Identity, TokenError};
use crate::log::{Cursor, Since};

/// How long a cursor that is ahead of the log is held although the caller did not ask to wait: a
/// server that just restarted is back there in no time.
const AHEAD_GRACE: Duration = Duration::from_secs(1);
/// Least time between two reads of one long poll: a busy log that has nothing for this caller must
/// not cost it a read for every commit.
const REREAD_PAUSE: Duration = Duration::from_millis(20);

pub(super) async fn pull(
    State(parts): State<Arc<Parts>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let identity = parts.identify(&headers)?;
    let query = PullQuery::parse(&uri, crate::metrics::now_ms() / 1_000)?;
    let collections = parts.visible(&identity, query.collections.as_deref())?;
    let began = Instant::now();
    // An answer is not held beyond the token that asked for it.
    let wait = query.wait.min(identity.valid_for(crate::metrics::now_ms()));
    let mut job = PageJob {
        since: query.since,
        asked: query.asked.into(),
        collections: collections.into(),
        channels: identity.channels.into(),
        limit: query.limit,
        format: query.format,
        encoding: Encoding::negotiate(&headers),
    };
    let mut head = parts.reader.head();
    loop {
        parts.check_serving()?;
        parts.check_copied(&job.collections)?;
        // Marked as seen before the read: what is committed while it runs wakes the wait below.
        head.mark_unchanged();
        let (deadline, page) = match parts.read_page(job.clone()).await? {
            ReadOutcome::Page(page) if page.end.count > 0 || page.end.has_more => {
                return Ok(answer(page));
            }
            // That it is complete now is news.
            ReadOutcome::Page(page) if page.end.complete && was_partial(&job.since) => {
                return Ok(answer(page));
            }
            ReadOutcome::Page(page) => (began + wait, page),
            ReadOutcome::Ahead(page) => (began + wait.max(AHEAD_GRACE), page),
        };
        if Instant::now() >= deadline {
            return Ok(answer(page));
        }
        let moved = async {
            tokio::time::sleep(REREAD_PAUSE).await;
            head.changed().await
        };
        tokio::select! {
            biased;
            () = parts.draining.cancelled() => return Ok(answer(page)),
            // The last answer is read afresh: its time and its cursor are those of its sending.
            _ = tokio::time::timeout_at(deadline, moved) => {}
        }
        job.since = Since::Cursor(page.end.cursor);
    }
}

fn was_partial(since: &Since) -> bool {
    matches!(since, Since::Cursor(cursor) if !cursor.is_complete())
}

fn answer(page: ReadyPage) -> Response {
    respond(page.body, page.encoding)
}

impl Parts {
    /// Who asks: the one `Authorization` header, verified, and not too often.
    pub(super) fn identify(&self, headers: &HeaderMap) -> Result<Identity, ApiError> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().map(|value| value.to_str().map_err(|_| TokenError::NotBearer));
        if values.next().is_some() {
            return Err(TokenError::NotBearer.into());
        }
        self.admit(self.verifier.verify_header(value.transpose()?)?)
    }

    /// Whose token is good may still ask too often.
    pub(super) fn admit(&self, identity: Identity) -> Result<Identity, ApiError> {
        if let Some(rates) = &self.rates {
            rates.check(&identity.subject)?;
        }
        Ok(identity)
    }

    /// The collections to read: those asked for (or all) that the token may see, by ascending name.
    pub(super) fn visible(
        &self,
        identity: &Identity,
        asked: Option<&[String]>,
    ) -> Result<Vec<String>, ApiError> {
        let seen = |name: &&str| {
            self.rules.get(name).is_some_and(|rules| rules.may_be_seen_by(&identity.channels))
        };
        if let Some(unknown) =
            asked.into_iter().flatten().find(|name| self.rules.get(name).is_none())
        {
            let all: Vec<&str> = self.rules.iter().map(|rules| rules.name()).filter(seen).collect();
            let message = format!("there is no collection {}", shown(unknown));
            let remedy = format!("this token may name: {}", shown_names(&all));
            return Err(ApiError::new(ErrorCode::UnknownCollection, message, remedy));
        }
        let names: Vec<&str> = match asked {
            Some(names) => names.iter().map(String::as_str).filter(seen).collect(),
            None => self.rules.iter().map(|rules| rules.name()).filter(seen).collect(),
        };
        if names.len() + identity.channels.len() > Cursor::NAMES_MAX {
            let message = format!("this token holds {} channels", identity.channels.len());
            let remedy = format!(
                "grant fewer: channels and collections together may be {}",
                Cursor::NAMES_MAX
            );
            return Err(ApiError::new(ErrorCode::Forbidden, message, remedy));
        }
        if names.is_empty() {
            let message = "this token may see nothing of what it asks for";
            let remedy = "ask for a token whose claims grant a channel, or for other collections";
            return Err(ApiError::new(ErrorCode::Forbidden, message, remedy));
        }
        Ok(names.into_iter().map(str::to_owned).collect())
    }
}

fn shown_names(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        names => names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", "),
    }
}

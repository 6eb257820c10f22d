//! `/scrub` on the operators' listener: `POST` asks for one (`?collections=a,b` narrows it), `GET` tells
//! how it stands.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use tidewire_protocol::ErrorCode;
use tokio::sync::oneshot;

use super::Parts;
use super::errors::{ApiError, shown};
use crate::metrics::time_text;
use crate::scrub::ScrubRequest;
use crate::status::{ScrubState, SourceStatus};

/// How long a request waits for a scrub that is under way.
const BEGIN_MAX: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
pub(super) struct Asked {
    collections: Option<String>,
}

/// How a scrub stands.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ScrubAnswer {
    success: bool,
    number: u64,
    state: &'static str,
    asked_for: bool,
    collections: Vec<CollectionAnswer>,
    /// When the last one came to its end; null before.
    finished_at: Option<String>,
    /// Why the source is not followed, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CollectionAnswer {
    name: String,
    done: bool,
    documents: u64,
    /// About how many there are, while it is compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    documents_total: Option<u64>,
    upserted: u64,
    deleted: u64,
}

pub(super) async fn ask(
    State(parts): State<Arc<Parts>>,
    asked: Result<Query<Asked>, QueryRejection>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<ScrubAnswer>), ApiError> {
    if headers.contains_key(header::ORIGIN) {
        let message = "a page in a browser may not ask for a scrub";
        return Err(ApiError::new(ErrorCode::Forbidden, message, "use tidewire-ops scrub"));
    }
    let Query(asked) = asked.map_err(|error| {
        let remedy = "send nothing, or collections once: names with commas between them";
        ApiError::new(ErrorCode::BadRequest, format!("the query: {}", error.body_text()), remedy)
    })?;
    let names = asked.collections.as_deref().map(|names| names.split(',').map(str::to_owned));
    let collections: Option<Vec<String>> = names.map(Iterator::collect);
    let unknown = collections.iter().flatten().find(|name| parts.rules.get(name).is_none());
    if let Some(unknown) = unknown {
        let message = format!("there is no collection {}", shown(unknown));
        let remedy = "name collections of the server's configuration";
        return Err(ApiError::new(ErrorCode::UnknownCollection, message, remedy));
    }
    let (begun, number) = oneshot::channel();
    let request = ScrubRequest { collections, begun };
    let busy = || ApiError::not_ready("another scrub is under way", 30);
    parts.scrubs.as_ref().ok_or_else(busy)?.try_send(request).map_err(|_| busy())?;
    match tokio::time::timeout(BEGIN_MAX, number).await {
        Ok(Ok(_)) => Ok((StatusCode::ACCEPTED, Json(answer(&parts.status.borrow())))),
        Ok(Err(_)) => Err(ApiError::draining()),
        Err(_) => Err(busy()),
    }
}

pub(super) fn tell(State(parts): State<Arc<Parts>>) -> std::future::Ready<Json<ScrubAnswer>> {
    let status = parts.status.borrow();
    std::future::ready(Json(answer(&status)))
}

fn answer(status: &SourceStatus) -> ScrubAnswer {
    let scrub = &status.scrub;
    let running = scrub.state == ScrubState::Running;
    let collections = scrub.collections.iter().map(|one| {
        let checking = status.checking.as_ref().filter(|(name, _)| running && *name == one.name);
        let progress = checking.filter(|_| !one.done).map(|(_, progress)| progress);
        CollectionAnswer {
            name: one.name.clone(),
            done: one.done,
            documents: progress.map_or(one.documents, |progress| progress.documents),
            documents_total: progress.map(|progress| progress.documents_total),
            upserted: one.upserted,
            deleted: one.deleted,
        }
    });
    ScrubAnswer {
        success: true,
        number: scrub.number,
        state: match scrub.state {
            ScrubState::None => "none",
            ScrubState::Running => "running",
            ScrubState::Finished => "finished",
            ScrubState::CutOff => "cutOff",
        },
        asked_for: scrub.asked_for,
        collections: collections.collect(),
        finished_at: (scrub.finished_at_ms > 0).then(|| time_text(scrub.finished_at_ms)),
        trouble: status.trouble.clone(),
    }
}

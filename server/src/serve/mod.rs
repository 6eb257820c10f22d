//! Serves the log: one read, delivered by pull, long poll and push; the routes beside them; the operators'
//! listener. Reads the log and what capture says about itself, and knows neither MongoDB nor tokens'
//! keys.

mod admin;
mod compress;
mod digest;
mod errors;
mod guard;
mod health;
mod listen;
mod live;
mod openapi;
mod page;
mod pull;
mod query;
mod rate;
mod read;
mod scrub;
mod stall;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::access::{RuleSet, TokenVerifier};
use crate::log::Reader;
use crate::metrics::Metrics;
use crate::scrub::ScrubSender;
use crate::status::StatusReceiver;

use listen::serve;
pub use page::{Format, PageWriter};
use rate::Buckets;
pub use rate::Rate;

/// Everything that serving needs, alive. One for both listeners.
#[derive(Debug)]
pub struct Parts {
    /// The log.
    pub reader: Reader,
    /// What is served, and to which channels.
    pub rules: Arc<RuleSet>,
    /// Who asks.
    pub verifier: TokenVerifier,
    /// What capture says about itself.
    pub status: StatusReceiver,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the server is to stop: nothing new is begun, what waits is answered.
    pub draining: CancellationToken,
    /// Origins whose pages may open a push socket.
    pub allowed_origins: Vec<String>,
    pub(crate) live: live::Live,
    digests: digest::Turns,
    scrubs: Option<ScrubSender>,
    rates: Option<Buckets>,
    bounds: Bounds,
}

/// How much may go on at once. A request that can't begin within its wait is told to come again.
#[derive(Debug)]
struct Bounds {
    /// Pages being read and encoded.
    reads: Arc<Semaphore>,
    /// KiB of pages from the start of their reading until the client has taken them.
    page_memory_kib: Arc<Semaphore>,
}

/// Pages that are read at the same time: more would only queue for the cores.
const READS_MAX: usize = 4;
/// Memory for pages of all requests, in KiB.
const PAGE_MEMORY_KIB: usize = 40 * 1024;

impl Parts {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        reader: Reader,
        rules: Arc<RuleSet>,
        verifier: TokenVerifier,
        status: StatusReceiver,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
        allowed_origins: Vec<String>,
    ) -> Self {
        let bounds = Bounds {
            reads: Arc::new(Semaphore::new(READS_MAX)),
            page_memory_kib: Arc::new(Semaphore::new(PAGE_MEMORY_KIB)),
        };
        let (live, digests) = (live::Live::default(), digest::Turns::default());
        Self {
            reader,
            rules,
            verifier,
            status,
            metrics,
            draining,
            allowed_origins,
            live,
            digests,
            scrubs: None,
            rates: None,
            bounds,
        }
    }

    /// Operators may ask for a scrub here.
    #[must_use]
    pub fn with_scrubs(self, scrubs: ScrubSender) -> Self {
        Self { scrubs: Some(scrubs), ..self }
    }

    /// No subject may ask more often than that.
    #[must_use]
    pub fn with_rate(self, rate: Rate) -> Self {
        Self { rates: Some(Buckets::new(rate)), ..self }
    }
}

/// Serves clients on `listener` until the parts drain, then ends what was begun.
pub async fn serve_clients(listener: TcpListener, parts: Arc<Parts>) {
    let draining = parts.draining.clone();
    let hub = Arc::clone(&parts.live.hub);
    let (reader, status) = (parts.reader.clone(), parts.status.clone());
    let waking = tokio::spawn(live::follow(hub, reader, status, draining.clone()));
    let listening = serve(listener, router(Arc::clone(&parts)), draining.clone());
    let sockets = async {
        draining.cancelled().await;
        parts.live.finished().await;
    };
    tokio::join!(listening, sockets);
    waking.abort();
}

/// Serves operators on `listener` until the parts drain.
pub async fn serve_operators(listener: TcpListener, parts: Arc<Parts>) {
    let draining = parts.draining.clone();
    serve(listener, admin_router(parts), draining).await;
}

/// The routes for clients.
fn router(parts: Arc<Parts>) -> Router {
    Router::new()
        .route("/api/sync/pull", get(pull::pull))
        .route("/api/sync/live", get(live::live))
        .route("/api/sync/digest", get(digest::digest))
        .route("/api/sync/range", get(digest::range))
        .route("/api/sync/status", get(status::status))
        .route("/api/sync/openapi.json", get(openapi::openapi))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .fallback(errors::not_found)
        .method_not_allowed_fallback(errors::method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&parts), guard::guard))
        .with_state(parts)
}

/// The routes for operators; no token is asked, so they belong on a loopback address.
fn admin_router(parts: Arc<Parts>) -> Router {
    Router::new()
        .route("/", get(admin::page))
        .route("/metrics", get(admin::metrics))
        .route("/scrub", get(scrub::tell).post(scrub::ask))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .fallback(errors::not_found)
        .method_not_allowed_fallback(errors::method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&parts), guard::guard))
        .with_state(parts)
}

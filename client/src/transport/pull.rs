//! The pull endpoint over HTTP: one request, one bounded answer, and a verdict on what it is.

use std::future::Future;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use super::digest::Digests;
use super::push::Line;
use super::refusal::{Refusal, plain};
use super::{Failure, Heard, ListenRequest, PullRequest, Transport};
use crate::page::Page;
use crate::token::Token;

/// Changes asked for in one page; the server's own byte limit mostly ends it sooner.
const PAGE_CHANGES: u32 = 10_000;
/// Largest answer that is taken, unpacked, in bytes: one document of 16 MB, all of it escapes.
pub(super) const ANSWER_BYTES_MAX: usize = 128 << 20;
/// Largest error body or list of collections that is read, in bytes.
const SMALL_ANSWER_BYTES_MAX: usize = 4 << 20;
/// Time for a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// Time for the answer to begin, beyond what the server was asked to wait.
pub(super) const ANSWER_GRACE: Duration = Duration::from_secs(8);
/// Longest silence inside an answer.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A body up to this size is decoded where it is; a larger one away from the runtime's threads.
const INLINE_BYTES_MAX: usize = 32 << 10;

/// The address is not one that a server can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a server's address: {1}; write it like https://sync.example.com")]
pub struct AddressError(String, String);

/// Pulls from a server, and listens to it.
#[derive(Clone, Debug)]
pub struct HttpPull {
    client: Client,
    base: Url,
    line: Line,
}

impl HttpPull {
    /// For the server at `address`, `http` or `https`.
    ///
    /// # Errors
    /// The address can't be one, or TLS can't be set up.
    pub fn new(address: &str) -> Result<Self, AddressError> {
        let fail = |what: &str| AddressError(address.to_owned(), what.to_owned());
        let mut base = Url::parse(address).map_err(|error| fail(&error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(fail("it must begin with http:// or https://"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(fail("it must not hold a user or password"));
        }
        base.set_query(None);
        base.set_fragment(None);
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        // Installed once per process; another library may have chosen before.
        rustls::crypto::ring::default_provider().install_default().ok();
        let mut client = Client::builder()
            .user_agent(concat!("tidewire/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(1);
        if is_loopback(&base) {
            // Copying is cheaper than packing where no wire lies between.
            client = client.no_gzip().no_zstd().no_proxy();
        } else if base.scheme() == "http" {
            tracing::warn!("http without TLS: the token can be read on the way");
        }
        let client = client.build().map_err(|error| fail(&causes(&error)))?;
        Ok(Self { client, line: Line::new(&base), base })
    }

    /// The address in one spelling.
    #[must_use]
    pub fn address(&self) -> &str {
        self.base.as_str()
    }

    pub(super) fn url(&self, route: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}api/sync/{route}", self.base.path()));
        url
    }

    /// Sends a request; the answer's head, once it is a server's 200.
    pub(super) async fn get(
        &self,
        url: Url,
        token: &Token,
        wait: Duration,
    ) -> Result<Response, Failure> {
        if token.is_none() {
            return Err(Failure::Challenged("there is none yet".to_owned()));
        }
        let request =
            self.client.get(url).header(AUTHORIZATION, format!("Bearer {}", token.reveal())).send();
        let patience = wait + ANSWER_GRACE;
        let response = tokio::time::timeout(patience, request)
            .await
            .map_err(|_| Failure::Unreachable(format!("no answer in {} s", patience.as_secs())))?
            .map_err(|error| Failure::Unreachable(causes(&error)))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        Err(refusal(response).await)
    }
}

impl Transport for HttpPull {
    fn pull(
        &self,
        request: PullRequest,
        token: Token,
    ) -> impl Future<Output = Result<Page, Failure>> + Send + 'static {
        let this = self.clone();
        async move {
            let mut url = this.url("pull");
            {
                let mut query = url.query_pairs_mut();
                if !request.since.is_empty() {
                    query.append_pair("since", &request.since);
                }
                query.append_pair("limit", &PAGE_CHANGES.to_string());
                if !request.wait.is_zero() {
                    query.append_pair("wait", &request.wait.as_secs().to_string());
                }
            }
            let response = this.get(url, &token, request.wait).await?;
            let body = json_body(response, ANSWER_BYTES_MAX).await?;
            decode(body, request.since).await
        }
    }

    fn listen(
        &self,
        request: ListenRequest,
        token: Token,
    ) -> impl Future<Output = Result<Heard, Failure>> + Send + 'static {
        self.line.clone().listen(request, token)
    }

    fn digests(&self) -> Option<Digests> {
        Some(Digests(self.clone()))
    }

    fn hang_up(&self) {
        self.line.hang_up();
    }

    fn token_expires_ms(&self) -> Option<i64> {
        self.line.token_expires_ms()
    }

    fn collections(
        &self,
        token: Token,
    ) -> impl Future<Output = Result<Vec<String>, Failure>> + Send + 'static {
        let this = self.clone();
        async move {
            let response = this.get(this.url("status"), &token, Duration::ZERO).await?;
            let body = json_body(response, SMALL_ANSWER_BYTES_MAX).await?;
            let told: Told = serde_json::from_slice(&body)
                .map_err(|error| Failure::Garbage(format!("a status: {error}")))?;
            Ok(told.collections)
        }
    }
}

/// What the client needs of `/api/sync/status`.
#[derive(Deserialize)]
struct Told {
    collections: Vec<String>,
}

async fn decode(body: Vec<u8>, since: String) -> Result<Page, Failure> {
    let garbage = |what: String| Failure::Garbage(what);
    let small = body.len() <= INLINE_BYTES_MAX;
    let decode = move || {
        let text =
            String::from_utf8(body).map_err(|_| garbage("a page that is not UTF-8".into()))?;
        Page::decode_answer(text, Some(&since)).map_err(|error| garbage(error.to_string()))
    };
    if small {
        return decode();
    }
    tokio::task::spawn_blocking(decode)
        .await
        .unwrap_or_else(|_| Err(Failure::Garbage("a page that can't be decoded".into())))
}

/// The body of an answer that must be JSON, up to `max` bytes unpacked.
pub(super) async fn json_body(response: Response, max: usize) -> Result<Vec<u8>, Failure> {
    if !is_json(&response) {
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = plain(kind.unwrap_or("an unnamed kind of content"));
        return Err(Failure::Garbage(format!("it sent {kind} (a portal that wants a sign-in?)")));
    }
    body(response, max).await
}

async fn body(mut response: Response, max: usize) -> Result<Vec<u8>, Failure> {
    let expected = response.content_length().unwrap_or(0).min(max as u64);
    let mut body = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    loop {
        let chunk = tokio::time::timeout(STALL_TIMEOUT, response.chunk())
            .await
            .map_err(|_| Failure::Unreachable("the answer stopped in the middle".into()))?
            .map_err(|error| Failure::Unreachable(causes(&error)))?;
        let Some(chunk) = chunk else { return Ok(body) };
        if body.len() + chunk.len() > max {
            return Err(Failure::Garbage(format!("an answer of more than {max} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
}

fn is_json(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.split(';').next().unwrap_or("").trim() == "application/json")
}

/// What an answer other than 200 means. Only a body that a Tidewire server writes is taken for its
/// word where that would stop the client or start it anew.
async fn refusal(response: Response) -> Failure {
    let status = response.status();
    if status.is_redirection() {
        let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("?");
        return Failure::Garbage(format!("it redirects to {} (a portal?)", plain(to)));
    }
    let headers = response.headers().clone();
    let json = is_json(&response);
    let text = match body(response, SMALL_ANSWER_BYTES_MAX).await {
        Ok(text) => text,
        Err(failure) => return failure,
    };
    let told = if json { Refusal::read(&text) } else { Refusal::default() };
    told.verdict(status, &headers)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("").trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An error and what it came from, in one line.
fn causes(error: &reqwest::Error) -> String {
    let mut text = match error {
        _ if error.is_timeout() => "it timed out".to_owned(),
        _ if error.is_connect() => "no connection".to_owned(),
        _ => "the exchange failed".to_owned(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    plain(&text)
}

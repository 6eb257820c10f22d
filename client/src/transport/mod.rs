//! How pages get here. One seam, two sides: a server (the pull endpoint, and the push socket beside
//! it) and pages from memory.

pub mod digest;
pub mod memory;
pub mod pull;
mod push;
mod refusal;

use std::future::Future;
use std::time::Duration;

use tidewire_protocol::ResyncReason;

use crate::page::Page;
use crate::token::Token;

/// What to ask the server for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequest {
    /// A cursor; empty for "from nothing".
    pub since: String,
    /// How long the server may hold the answer while there is nothing to tell; whole seconds, 0 to 60.
    pub wait: Duration,
}

/// What to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenRequest {
    /// A cursor; empty for "from nothing".
    pub since: String,
    /// The replica is complete at that cursor.
    pub complete: bool,
}

/// What was heard on the push socket.
#[derive(Debug)]
pub enum Heard {
    /// The socket is open: what happens from now on comes by itself.
    Listening,
    /// Changes, or the word that there were none.
    Page(Box<Page>),
}

/// Why there is no page. What to do about each is the machine's business.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No answer: no route, refused, timed out, cut off.
    #[error("the server can't be reached: {0}")]
    Unreachable(String),
    /// An answer that is not a Tidewire server's: a captive portal's page, a cut or mangled body.
    #[error("what answers is not a Tidewire server: {0}")]
    Garbage(String),
    /// 429 or 503: come back later.
    #[error("the server is not ready: {message}")]
    Busy {
        /// The server's own words.
        message: String,
        /// From `Retry-After` or the body; `None` where neither says.
        retry_after: Option<Duration>,
    },
    /// 401, by the server's own word.
    #[error("the server refuses the token: {0}")]
    Unauthorized(String),
    /// 401 by something before the server (a gateway), or there is no token that could be sent.
    #[error("a token is wanted: {0}")]
    Challenged(String),
    /// 403: a valid token that may see nothing.
    #[error("access refused: {0}")]
    Forbidden(String),
    /// 410, or a cursor that the server can't read.
    #[error("the cursor can't be continued ({0:?})")]
    Resync(ResyncReason),
    /// Another 4xx or 5xx.
    #[error("the server answered {status}: {message}")]
    Server {
        /// The HTTP status.
        status: u16,
        /// The server's own words, or what there is.
        message: String,
    },
}

impl Failure {
    /// The server's own word was not heard: what lies between is to blame, or the server is gone.
    pub(crate) fn is_of_the_way(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Garbage(_) | Self::Server { .. })
    }
}

/// Where pages come from. Calls never overlap; dropping a future drops its request.
pub trait Transport: Send + 'static {
    /// One page of changes after `request.since`.
    fn pull(
        &self,
        request: PullRequest,
        token: Token,
    ) -> impl Future<Output = Result<Page, Failure>> + Send + 'static;

    /// The next that the push socket tells after `request.since`; opens it where it is not open, or not
    /// there, and renews the token on it where that is another one. A future that is dropped leaves the
    /// socket open. Without a socket: a failure of the way.
    fn listen(
        &self,
        _request: ListenRequest,
        _token: Token,
    ) -> impl Future<Output = Result<Heard, Failure>> + Send + 'static {
        std::future::ready(Err(Failure::Unreachable("there is no push socket".to_owned())))
    }

    /// Where digests are asked for; `None` where there are none.
    fn digests(&self) -> Option<digest::Digests> {
        None
    }

    /// Closes the push socket, if it is open.
    fn hang_up(&self) {}

    /// When the token runs out by the server's own word, on this machine's clock; `None` where the
    /// server has not said.
    fn token_expires_ms(&self) -> Option<i64> {
        None
    }

    /// The names of the collections that the token may see, those without documents too.
    fn collections(
        &self,
        token: Token,
    ) -> impl Future<Output = Result<Vec<String>, Failure>> + Send + 'static;
}

//! A running client for any process of the same user: JSON-RPC 2.0, one message a line, over a Unix
//! socket, a Windows named pipe, or standard input and output. `docs/local-protocol.md` is the
//! contract for apps.
//!
//! `rpc` knows the messages and does no I/O; `session` talks to one app; `socket` and `pipe` let it in.

#[cfg(windows)]
mod pipe;
mod rpc;
mod session;
#[cfg(unix)]
mod socket;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::client::SyncClient;
#[cfg(windows)]
pub use pipe::Endpoint;
#[cfg(unix)]
pub use socket::Endpoint;

/// Apps that are connected at a time; one more waits to be let in.
const SESSIONS_MAX: usize = 32;

/// There is no place to listen at.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Somebody listens there.
    #[error("another daemon listens at {0}; stop it first, or choose another --socket")]
    InUse(PathBuf),
    /// There is something else.
    #[error("{0} is there and is no socket; choose another --socket")]
    Taken(PathBuf),
    /// The system says no.
    #[error("can't listen at {path}: {source}")]
    Io {
        /// The socket or pipe.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Lets apps in at `endpoint` until `stop` completes.
///
/// # Errors
/// The endpoint does not take connections any more.
pub async fn serve(
    client: Arc<SyncClient>,
    mut endpoint: Endpoint,
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let mut sessions = JoinSet::new();
    tokio::pin!(stop);
    let ended = loop {
        tokio::select! {
            () = &mut stop => break Ok(()),
            accepted = endpoint.accept(), if sessions.len() < SESSIONS_MAX => {
                let stream = match accepted {
                    Ok(stream) => stream,
                    Err(error) => break Err(error),
                };
                let client = Arc::clone(&client);
                sessions.spawn(async move {
                    let (input, output) = tokio::io::split(stream);
                    session::talk(&client, input, output).await;
                });
            }
            Some(_) = sessions.join_next(), if !sessions.is_empty() => {}
        }
    };
    sessions.shutdown().await;
    ended
}

/// Talks over standard input and output until the input ends.
///
/// # Errors
/// There is no standard input or output.
pub async fn serve_stdio(client: &SyncClient) -> std::io::Result<()> {
    let (input, output) = standard()?;
    let [input, output] = [input, output].map(tokio::fs::File::from_std);
    session::talk(client, input, output).await;
    Ok(())
}

/// Standard input and output as files, past the buffers of the standard library.
fn standard() -> std::io::Result<(std::fs::File, std::fs::File)> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd as _;
        let input = std::io::stdin().as_fd().try_clone_to_owned()?;
        Ok((input.into(), std::io::stdout().as_fd().try_clone_to_owned()?.into()))
    }
    #[cfg(windows)]
    {
        use std::os::windows::io::AsHandle as _;
        let input = std::io::stdin().as_handle().try_clone_to_owned()?;
        Ok((input.into(), std::io::stdout().as_handle().try_clone_to_owned()?.into()))
    }
}

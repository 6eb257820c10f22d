//! The named pipe of Windows. Its default rights let other users read and not write: they can't ask, and
//! a session tells nothing to who has not asked.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::windows::named_pipe::{NamedPipeServer, ServerOptions};

use super::EndpointError;

/// A pipe that apps connect to.
#[derive(Debug)]
pub struct Endpoint {
    name: PathBuf,
    /// The instance that the next app finds.
    next: NamedPipeServer,
}

impl Endpoint {
    /// The name of a replica's pipe, unless another one was chosen: `\\.\pipe\tidewire-` and the
    /// replica's path with `-` in the place of `\`, `/` and `:`.
    #[must_use]
    pub fn beside(replica: &Path) -> PathBuf {
        let path = std::path::absolute(replica).unwrap_or_else(|_| replica.to_owned());
        let name = path.to_string_lossy().replace(['\\', '/', ':'], "-");
        format!(r"\\.\pipe\tidewire-{name}").into()
    }

    /// Listens under that name, on this machine only.
    ///
    /// # Errors
    /// Somebody has that name, or the system says no.
    pub fn bind(name: &Path) -> Result<Self, EndpointError> {
        let next = instance(name, true).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => EndpointError::InUse(name.to_owned()),
            _ => EndpointError::Io { path: name.to_owned(), source },
        })?;
        Ok(Self { name: name.to_owned(), next })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        self.name.display().to_string()
    }

    /// The next app. Can be dropped while it waits.
    pub(super) async fn accept(&mut self) -> io::Result<NamedPipeServer> {
        self.next.connect().await?;
        Ok(std::mem::replace(&mut self.next, instance(&self.name, false)?))
    }
}

fn instance(name: &Path, first: bool) -> io::Result<NamedPipeServer> {
    let mut options = ServerOptions::new();
    options.first_pipe_instance(first).reject_remote_clients(true).create(name)
}

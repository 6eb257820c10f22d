//! The named pipe of Windows, which its user alone may open.

mod owner;

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::windows::named_pipe::{ClientOptions, NamedPipeServer, ServerOptions};

use owner::Rights;

use super::EndpointError;

/// A pipe that apps connect to.
#[derive(Debug)]
pub struct Endpoint {
    name: PathBuf,
    rights: Rights,
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
        // Wine lets a second one be the first of a name.
        if ClientOptions::new().open(name).is_ok() {
            return Err(EndpointError::InUse(name.to_owned()));
        }
        let failed = |source: io::Error| EndpointError::Io { path: name.to_owned(), source };
        let rights = Rights::ours().map_err(failed)?;
        let next = instance(name, &rights, true).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => EndpointError::InUse(name.to_owned()),
            _ => failed(source),
        })?;
        Ok(Self { name: name.to_owned(), rights, next })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        self.name.display().to_string()
    }

    /// The next app. Can be dropped while it waits.
    pub(super) async fn accept(&mut self) -> io::Result<NamedPipeServer> {
        self.next.connect().await?;
        let next = instance(&self.name, &self.rights, false)?;
        Ok(std::mem::replace(&mut self.next, next))
    }
}

fn instance(name: &Path, rights: &Rights, first: bool) -> io::Result<NamedPipeServer> {
    let mut options = ServerOptions::new();
    rights.create(options.first_pipe_instance(first).reject_remote_clients(true), name)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn our_user_is_let_in_again_and_again_and_the_name_is_taken_meanwhile() {
        let name = Path::new(r"\\.\pipe\tidewire-test-of-the-pipe");
        let mut endpoint = Endpoint::bind(name).expect("a pipe");
        assert!(matches!(Endpoint::bind(name), Err(EndpointError::InUse(_))));
        // That one looked in, and is gone.
        endpoint.accept().await.expect("who looked");
        for _ in 0..3 {
            let mut app = ClientOptions::new().open(name).expect("the same user");
            let mut session = endpoint.accept().await.expect("an app");
            app.write_all(b"ping").await.expect("asked");
            let mut asked = [0; 4];
            session.read_exact(&mut asked).await.expect("heard");
            session.write_all(&asked).await.expect("answered");
            app.read_exact(&mut asked).await.expect("told");
            assert_eq!(&asked, b"ping");
        }
        drop(endpoint);
        Endpoint::bind(name).expect("it is free again");
    }
}

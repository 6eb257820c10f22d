//! The Unix socket: a file that its owner alone may open, and the other side's user is asked for.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::EndpointError;

/// A socket that apps connect to. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Endpoint {
    listener: UnixListener,
    path: PathBuf,
    owner: u32,
}

impl Endpoint {
    /// Where a replica's socket is, unless another place was chosen: `<replica>.sock`.
    #[must_use]
    pub fn beside(replica: &Path) -> PathBuf {
        let mut name = replica.as_os_str().to_owned();
        name.push(".sock");
        name.into()
    }

    /// Listens at `path`. What a killed daemon left there is removed.
    ///
    /// # Errors
    /// Somebody listens there, something else is there, or the system says no.
    pub fn bind(path: &Path) -> Result<Self, EndpointError> {
        let failed = |source| EndpointError::Io { path: path.to_owned(), source };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let there = std::fs::symlink_metadata(path).map_err(failed)?;
                if !there.file_type().is_socket() {
                    return Err(EndpointError::Taken(path.to_owned()));
                }
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(EndpointError::InUse(path.to_owned()));
                }
                std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
            }
            bound => bound,
        };
        let listener = listener.map_err(failed)?;
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, private).map_err(failed)?;
        // The file is ours: so is its owner's number.
        let owner = std::fs::symlink_metadata(path).map_err(failed)?.uid();
        Ok(Self { listener, path: path.to_owned(), owner })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        self.path.display().to_string()
    }

    /// The next app of the same user.
    pub(super) async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == self.owner => return Ok(stream),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "another user is not let in"),
                Err(error) => tracing::warn!(%error, "whose connection it is can't be told"),
            }
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}

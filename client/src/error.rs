//! Why a client did not start or did not go on, and the exit code that each has.

use crate::replica::ReplicaError;
use crate::token::TokenError;
use crate::transport::pull::AddressError;

/// The end of a client that is not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's address can't be one.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The token can't be had.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Set up in a way that can't work.
    #[error("{0}")]
    Usage(String),
    /// The replica can't be opened or written.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// The server refuses the token.
    #[error("{0}")]
    Refused(String),
    /// The server can't be reached.
    #[error("{0}")]
    Unreachable(String),
    /// The client's own thread died.
    #[error("the replica's thread ended unexpectedly")]
    Died,
}

impl ClientError {
    /// The exit code of a program that ends with this: 1 failed, 2 bad usage, 3 access refused,
    /// 4 unreachable.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Address(_) | Self::Token(_) | Self::Usage(_) => 2,
            Self::Replica(ReplicaError::NotAReplica(_)) => 2,
            Self::Replica(_) | Self::Died => 1,
            Self::Refused(_) => 3,
            Self::Unreachable(_) => 4,
        }
    }
}

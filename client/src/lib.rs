//! Keeps a read-only SQLite replica of what a Tidewire server serves.
//!
//! [`SyncClient`] follows a server and keeps the file; [`Replica`] reads it, as any SQLite library
//! can. The parts: [`machine`] decides what to do next and does no I/O, the driver has the sockets,
//! timers and the database's thread, [`transport`] gets pages, the replica's room writes them.

mod backoff;
mod changes;
mod client;
mod clock;
pub mod daemon;
mod driver;
mod error;
mod fields;
mod live_query;
pub mod machine;
pub mod page;
mod pulls;
mod repair;
mod replica;
pub mod status;
mod store;
mod token;
pub mod transport;

pub use changes::{Changed, ChangedRows, Changes};
pub use client::{ClientBuilder, OnNeedsAuth, Summary, SyncClient, TransportChoice};
pub use error::ClientError;
pub use live_query::LiveQuery;
pub use repair::{Verified, VerifyError};
pub use replica::{Applied, Replica, ReplicaError, Resume, Rows};
pub use rusqlite::types::Value;
pub use status::{LastSync, State, Status, TransportName};
pub use tidewire_protocol::Position;
pub use token::Token;

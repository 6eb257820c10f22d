//! Keeps a read-only SQLite replica of what a Tidewire server serves.
//!
//! [`SyncClient`] follows a server and keeps the file; [`Replica`] reads it, as any SQLite library
//! can. The parts: [`machine`] decides what to do next and does no I/O, the driver has the sockets,
//! timers and the database's thread, [`transport`] gets pages, the replica's room writes them.

mod backoff;
mod client;
mod driver;
mod error;
mod fields;
pub mod machine;
pub mod page;
mod replica;
pub mod status;
mod store;
mod token;
pub mod transport;

pub use client::{ClientBuilder, Summary, SyncClient, TransportChoice};
pub use error::ClientError;
pub use replica::{Applied, Replica, ReplicaError, Resume, Rows};
pub use rusqlite::types::Value;
pub use status::{LastSync, State, Status, TransportName};
pub use token::Token;

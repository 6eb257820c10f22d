//! A real MongoDB on this machine: the binary, and replica sets of one or three nodes on loopback.

mod fetch;
mod node;
mod replica_set;

pub use fetch::{FetchError, Progress, fetch};
pub use node::Node;
pub use replica_set::{Options, ReplicaSet};

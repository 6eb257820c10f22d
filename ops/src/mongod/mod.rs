//! A real MongoDB on this machine: the binary, and replica sets of one or three nodes on loopback.

mod fetch;
mod node;
mod replica_set;

use bson::Timestamp;
pub use fetch::{FetchError, Progress, fetch};
pub use node::Node;
pub use replica_set::{Options, ReplicaSet};

/// A time of the source's as a number: seconds, then the count within one.
pub(crate) fn cluster_time(time: Timestamp) -> u64 {
    u64::from(time.time) << 32 | u64::from(time.increment)
}

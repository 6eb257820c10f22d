//! Real parts, started and ended by tests: MongoDB, the server, the client, a network that fails.
//!
//! Every test runs in a process of its own and starts its own mongod (about a second): tests then
//! share nothing, run side by side, and may kill what they like.

mod client;
mod daemon;
mod mongo;
mod oracle;
mod server;
mod socket;
mod wait;

pub use client::Client;
pub use daemon::Daemon;
pub use mongo::{FailPoint, Mongo, MongoOptions, mongo, mongo_with, three_nodes};
pub use oracle::{differences, must_equal};
pub use server::{Server, ServerOptions, collection};
pub use socket::{Socket, socket_request, socket_request_as};
pub use tidewire_ops::proxy::Proxy;
pub use tidewire_ops::token::{Claims, sign};
pub use wait::{eventually, kills, seed};

use std::path::PathBuf;

use tidewire_ops::black_hole::BlackHole;

/// No packet comes from a port of this machine or gets to it until this is dropped. `None`, said loudly,
/// where that may not be done.
#[must_use]
pub fn black_hole(port: u16) -> Option<BlackHole> {
    let hole = BlackHole::of(port);
    if hole.is_none() {
        eprintln!("SKIPPED: a black hole needs root and iptables");
    }
    hole
}

/// The secret of every test's server.
pub const SECRET: &str = "a secret for tests, long enough for HS256";

/// A program of the workspace, built before the tests by `tidewire-ops check`
/// (`cargo build --workspace --bins`).
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let variable = format!("CARGO_BIN_EXE_{name}");
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let path = built().join(name);
    assert!(path.is_file(), "{} is missing: cargo build --workspace --bins", path.display());
    path
}

/// An example of the client's, built with the tests.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    let path = built().join("examples").join(name);
    assert!(path.is_file(), "{} is missing: cargo build --workspace --examples", path.display());
    path
}

/// `target/<profile>`, of `target/<profile>/deps/<test>`.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    test.parent().and_then(|deps| deps.parent()).expect("the target folder").to_owned()
}

//! Ports on loopback that are free now and likely to stay so.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, bail};

/// Below the range from which Linux takes the near ends of outgoing connections: a port from here
/// stays free while its process is down between two starts.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const TRIES_MAX: usize = 1_000;

/// `count` different ports that nobody listens on. Another process may still take one before it is
/// used: callers retry.
///
/// # Errors
/// When no free port is found.
pub fn free(count: usize) -> Result<Vec<u16>> {
    let mut held = Vec::new();
    for _ in 0..TRIES_MAX {
        if held.len() == count {
            break;
        }
        let port = rand::random_range(PORTS);
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        bail!("no free port between {} and {} on loopback", PORTS.start, PORTS.end);
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

/// Whether nobody listens on this port of loopback.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

//! A port of this machine that answers nobody any more, not even with a refusal.

use std::process::{Command, Stdio};

/// No packet comes from the port or gets to it until this is dropped.
#[derive(Debug)]
pub struct BlackHole {
    port: u16,
}

impl BlackHole {
    /// `None` where that may not be done: it needs root and iptables.
    ///
    /// # Panics
    /// When it can be done by half only.
    #[must_use]
    pub fn of(port: u16) -> Option<Self> {
        if !rule("-I", "--dport", port) {
            return None;
        }
        let hole = Self { port };
        assert!(rule("-I", "--sport", port), "the other direction");
        Some(hole)
    }
}

impl Drop for BlackHole {
    fn drop(&mut self) {
        for direction in ["--dport", "--sport"] {
            rule("-D", direction, self.port);
        }
    }
}

fn rule(change: &str, direction: &str, port: u16) -> bool {
    let mut iptables = Command::new("iptables");
    iptables.args(["-w", "10", change, "INPUT", "-i", "lo", "-p", "tcp", direction]);
    iptables.args([&port.to_string(), "-j", "DROP"]).stderr(Stdio::null());
    iptables.status().is_ok_and(|status| status.success())
}

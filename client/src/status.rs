//! What a client says of itself: the same for the library's watch, the replica's view and
//! `tidewire status --json`.

use serde::{Deserialize, Serialize};

use crate::repair::Verified;
use crate::replica::{Report, now_ms, rfc3339};

/// The state of a client and of its replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The first copy is complete: the replica's tables can be read.
    pub initialized: bool,
    /// The last exchange with the server worked.
    pub is_online: bool,
    /// What the client is doing.
    pub state: State,
    /// How changes come in at present.
    pub transport: TransportName,
    /// The last exchange; `None` before the first.
    pub last_sync: Option<LastSync>,
    /// The next `since`, opaque; `None` before the first copy is complete.
    pub cursor: Option<String>,
    /// The replica equals the source (as far as the token may see) at this position; `None` before
    /// the first copy is complete.
    pub position: Option<String>,
    /// Milliseconds by which the replica may be behind. While changes come in as they happen (`live`)
    /// that is how long the newest page's last change took from the source's write to its commit here, 0 after a
    /// page without changes; at any other time it is the time since the replica last equalled the
    /// server's head. `None` before the first copy is complete.
    pub lag_ms: Option<u64>,
    /// What is wrong, for people; `None` while nothing is.
    pub error: Option<String>,
    /// Changes applied by the copy or catch-up that is under way; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applying: Option<u64>,
    /// How far that is, in percent, where the server says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applying_percent: Option<u8>,
    /// How far the comparison with the server that is under way is, in percent; absent when there is
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparing: Option<u8>,
    /// The server in use, of those in the list. Known to the running client alone, as what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// When the token runs out, by this machine's clock: RFC 3339, UTC, milliseconds. Renew it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_expires_at: Option<String>,
    /// What the last comparison with the server found; `None` while there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

impl Status {
    /// The status before the replica has been opened.
    pub(crate) fn first() -> Self {
        Self {
            initialized: false,
            is_online: false,
            state: State::Starting,
            transport: TransportName::None,
            last_sync: None,
            cursor: None,
            position: None,
            lag_ms: None,
            error: None,
            applying: None,
            applying_percent: None,
            comparing: None,
            server: None,
            token_expires_at: None,
            verified: None,
        }
    }

    /// Takes over what the replica knows.
    pub(crate) fn take_data(&mut self, data: Self) {
        let Self { initialized, last_sync, cursor, position, lag_ms, applying, .. } = data;
        self.initialized = initialized;
        self.last_sync = last_sync;
        self.cursor = cursor;
        self.position = position;
        self.lag_ms = lag_ms;
        self.applying = applying;
    }

    /// Takes over what the machine says.
    pub(crate) fn take_report(&mut self, report: &Report) {
        self.state = report.state;
        self.transport = report.transport;
        self.is_online = report.is_online;
        self.error.clone_from(&report.error);
        if report.failed {
            let timestamp = rfc3339(now_ms());
            self.last_sync = Some(LastSync { success: false, timestamp, applied: 0 });
        }
    }
}

/// How the last exchange with the server went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSync {
    /// Whether it worked.
    pub success: bool,
    /// When it ended, by this machine's clock: RFC 3339, UTC, milliseconds.
    pub timestamp: String,
    /// Changes that it brought.
    pub applied: u64,
}

/// What a client is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not yet in contact with the server.
    Starting,
    /// Reading what it does not have yet.
    Syncing,
    /// Caught up; changes arrive as they happen.
    Live,
    /// Caught up; asking again every so often.
    Polling,
    /// The server can't be reached; trying again.
    Offline,
    /// The server refuses the token; waiting for another one.
    NeedsAuth,
    /// Copying anew, beside the old data, which stays readable.
    Resyncing,
    /// Not running.
    #[default]
    Stopped,
}

impl State {
    /// The name on the wire and in the status view.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Syncing => "syncing",
            Self::Live => "live",
            Self::Polling => "polling",
            Self::Offline => "offline",
            Self::NeedsAuth => "needs_auth",
            Self::Resyncing => "resyncing",
            Self::Stopped => "stopped",
        }
    }
}

/// How changes come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransportName {
    /// Over a socket.
    Push,
    /// By a pull that the server holds until there is something to tell.
    LongPoll,
    /// By a pull every so often.
    Poll,
    /// Not at all, at present.
    #[default]
    None,
}

impl TransportName {
    /// The name on the wire and in the status view.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::LongPoll => "long_poll",
            Self::Poll => "poll",
            Self::None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_is_the_contracts() {
        let status = Status {
            initialized: true,
            is_online: true,
            state: State::Live,
            transport: TransportName::LongPoll,
            last_sync: Some(LastSync {
                success: true,
                timestamp: "2026-01-01T12:00:00.000Z".into(),
                applied: 150,
            }),
            cursor: Some("c".into()),
            position: Some("p".into()),
            lag_ms: Some(12),
            error: None,
            ..Status::first()
        };
        let expected = r#"{"initialized":true,"isOnline":true,"state":"live","transport":"long_poll","lastSync":{"success":true,"timestamp":"2026-01-01T12:00:00.000Z","applied":150},"cursor":"c","position":"p","lagMs":12,"error":null}"#;
        assert_eq!(serde_json::to_string(&status).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Status>(expected).unwrap(), status);
    }
}

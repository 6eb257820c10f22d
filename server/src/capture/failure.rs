//! What failed, told from the driver's errors. What to do about it is said in [`crate::retry`].

use mongodb::error::{Error, ErrorKind};

use crate::retry::Failure;

/// Snapshot reads answer with one of these when the time asked for is no longer, or not yet, to be had:
/// `SnapshotTooOld`, `SnapshotUnavailable`.
const SNAPSHOT_CODES: [i32; 2] = [239, 246];

/// Sorts an error of the driver.
pub(super) fn classify(error: &Error) -> Failure {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => match command.code {
            // Unauthorized, AuthenticationFailed, Atlas's own.
            13 | 18 | 8000 => Failure::AccessRefused,
            // ChangeStreamFatalError, InvalidResumeToken.
            280 | 260 => Failure::TokenRefused,
            // ChangeStreamHistoryLost, CappedPositionLost.
            286 | 136 => Failure::HistoryLost,
            // BSONObjectTooLarge.
            10334 => Failure::EventTooLarge,
            // CursorNotFound has no label before the driver adds it; CursorKilled and timeouts
            // (MaxTimeMSExpired, NetworkInterfaceExceededTimeLimit, ExceededTimeLimit) pass by
            // themselves.
            43 | 237 | 50 | 202 | 262 => Failure::Interrupted,
            _ if error.contains_label("ResumableChangeStreamError")
                || error.contains_label("RetryableError")
                || is_state_change(command.code) =>
            {
                Failure::Interrupted
            }
            _ => Failure::Unexpected,
        },
        ErrorKind::Authentication { .. } => Failure::AccessRefused,
        ErrorKind::Io(_)
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. } => Failure::Interrupted,
        _ => Failure::Unexpected,
    }
}

/// "Not primary", "shutting down", "recovering": another node answers soon.
fn is_state_change(code: i32) -> bool {
    matches!(
        code,
        6 | 7
            | 63
            | 89
            | 91
            | 133
            | 150
            | 189
            | 234
            | 9001
            | 10107
            | 11600
            | 11602
            | 13388
            | 13435
            | 13436
    )
}

/// The snapshot at the time asked for can't be read (any more, or yet).
pub(super) fn is_snapshot_unavailable(error: &Error) -> bool {
    matches!(error.kind.as_ref(), ErrorKind::Command(c) if SNAPSHOT_CODES.contains(&c.code))
}

/// The source does not know an option of the command: BadValue, FailedToParse, InvalidOptions, and
/// what its parser says of a field that it does not have.
pub(super) fn is_unknown_option(error: &Error) -> bool {
    matches!(error.kind.as_ref(), ErrorKind::Command(c) if matches!(c.code, 2 | 9 | 72 | 40415))
}

/// There is no such collection, it is a view, or the user may not ask: NamespaceNotFound,
/// CommandNotSupportedOnView, Unauthorized.
pub(super) fn has_no_answer(error: &Error) -> bool {
    matches!(error.kind.as_ref(), ErrorKind::Command(c) if matches!(c.code, 26 | 166 | 13))
}

/// The source does not know a stage of the pipeline.
pub(super) fn is_unknown_stage(error: &Error) -> bool {
    matches!(error.kind.as_ref(), ErrorKind::Command(c) if c.code == 40_324)
}

/// What may be shown of an error: its kind. The whole of it may hold a reply, and so documents.
pub(super) fn shown(error: &Error) -> String {
    error.kind.to_string()
}

//! Exit codes: 0 done, 1 failed or differences found, 2 bad usage or configuration, 3 access refused,
//! 4 unreachable.

use std::process::ExitCode;

use mongodb::error::{Error as MongoError, ErrorKind};
use tidewire::ClientError;
use tidewire_server::run::RunError;

pub(super) const FAILED: u8 = 1;
pub(super) const USAGE: u8 = 2;
const REFUSED: u8 = 3;
const UNREACHABLE: u8 = 4;

const UNAUTHORIZED: i32 = 13;
const AUTHENTICATION_FAILED: i32 = 18;

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked for is done.
    Done,
    /// It was looked for, and differences were found.
    Different,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Different => Self::from(FAILED),
        }
    }
}

/// A failure that knows its exit code; found anywhere in an error's chain.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Bad usage or configuration.
    #[error("{0}")]
    Usage(String),
    /// Somebody does not let us.
    #[error("{0}")]
    Refused(String),
    /// Somebody does not answer.
    #[error("{0}")]
    Unreachable(String),
}

/// Prints the error with its causes, and gives its exit code.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", chain(error));
    ExitCode::from(code(error))
}

/// An error and its causes in one line, each said once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let mongo = cause.downcast_ref::<MongoError>();
        let cause = mongo.map_or_else(|| cause.to_string(), mongo_words);
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

/// The driver's errors name everything; a person at a terminal wants the reason.
fn mongo_words(error: &MongoError) -> String {
    match error.kind.as_ref() {
        ErrorKind::ServerSelection { message, .. } => {
            let reason = message.split("Error: Kind: ").nth(1).unwrap_or(message);
            let reason = reason.split(", labels:").next().unwrap_or(reason);
            format!("MongoDB does not answer ({reason}): is it running, and is the address right?")
        }
        ErrorKind::Command(command) => {
            format!("MongoDB refused: {} ({} {})", command.message, command.code, command.code_name)
        }
        ErrorKind::Authentication { message, .. } => {
            format!("MongoDB refused the login: {message}")
        }
        ErrorKind::InvalidArgument { message, .. } => message.clone(),
        ErrorKind::Io(error) => format!("the connection to MongoDB: {error}"),
        _ => error.to_string(),
    }
}

fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return match failure {
                Failure::Usage(_) => USAGE,
                Failure::Refused(_) => REFUSED,
                Failure::Unreachable(_) => UNREACHABLE,
            };
        }
        if let Some(server) = cause.downcast_ref::<RunError>() {
            return server.exit_code();
        }
        if let Some(client) = cause.downcast_ref::<ClientError>() {
            return client.exit_code();
        }
        if let Some(mongo) = cause.downcast_ref::<MongoError>() {
            return mongo_code(mongo);
        }
    }
    FAILED
}

fn mongo_code(error: &MongoError) -> u8 {
    match error.kind.as_ref() {
        ErrorKind::ServerSelection { .. } | ErrorKind::DnsResolve { .. } | ErrorKind::Io(_) => {
            UNREACHABLE
        }
        ErrorKind::Authentication { .. } => REFUSED,
        ErrorKind::InvalidArgument { .. } => USAGE,
        ErrorKind::Command(command)
            if matches!(command.code, UNAUTHORIZED | AUTHENTICATION_FAILED) =>
        {
            REFUSED
        }
        _ => FAILED,
    }
}

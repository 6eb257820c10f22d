//! The program around the library: flags, exit codes, what is printed where.

mod daemon;
mod narrate;
mod query;
mod show;
mod sync;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tidewire::{ClientError, ReplicaError};
use tracing_subscriber::EnvFilter;

/// Keeps a read-only SQLite replica of what a Tidewire server serves.
#[derive(Debug, Parser)]
#[command(name = "tidewire", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines are written, on standard error; what is logged says RUST_LOG
    #[arg(long, global = true, env = "TIDEWIRE_LOG_FORMAT", default_value = "text", value_enum)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep a replica up to date
    Sync(SyncArgs),
    /// Keep a replica up to date and talk to other programs of the same user: JSON-RPC 2.0, one message
    /// a line
    Daemon(DaemonArgs),
    /// Say what state a replica is in
    Status(StatusArgs),
    /// Copy everything anew, beside the old data, which stays readable until then
    Rebuild(RebuildArgs),
    /// Compare a replica with its server, row by row where digests differ, and mend it; exit 1 where
    /// there were differences
    Verify(SourceArgs),
    /// Ask a replica a question
    Query(QueryArgs),
}

#[derive(Debug, Args)]
struct ServersArg {
    /// The server's address, like https://sync.example.com; more than one (again, or after a comma)
    /// where several follow the same source: the next is asked when one fails
    #[arg(
        long,
        env = "TIDEWIRE_SERVER",
        value_name = "URL",
        value_delimiter = ',',
        required = true
    )]
    server: Vec<String>,
}

#[derive(Debug, Args)]
struct SourceArgs {
    #[command(flatten)]
    servers: ServersArg,
    /// A file that holds the token; read again whenever it changes
    #[arg(long, env = "TIDEWIRE_TOKEN_FILE", value_name = "FILE")]
    token_file: PathBuf,
    #[command(flatten)]
    db: DbArg,
    /// Print the status as a line of JSON whenever it changes, and at the end
    #[arg(long, env = "TIDEWIRE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

#[derive(Debug, Args)]
struct DbArg {
    /// The replica's file
    #[arg(long, env = "TIDEWIRE_DB", value_name = "FILE")]
    db: PathBuf,
}

#[derive(Debug, Args)]
struct SyncArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Stop when caught up
    #[arg(long, env = "TIDEWIRE_ONCE", value_parser = BoolishValueParser::new())]
    once: bool,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Args)]
struct DaemonArgs {
    #[command(flatten)]
    servers: ServersArg,
    /// A file that holds the token; read again whenever it changes. Without it the token comes by
    /// setAuthToken
    #[arg(long, env = "TIDEWIRE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    db: DbArg,
    #[command(flatten)]
    how: HowArgs,
    /// Talk over standard input and output; ends when the input does
    #[arg(long, env = "TIDEWIRE_STDIO", value_parser = BoolishValueParser::new(), conflicts_with = "socket")]
    stdio: bool,
    /// Where to listen: a Unix socket (without this REPLICA.sock), on Windows a named pipe
    #[arg(long, env = "TIDEWIRE_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct HowArgs {
    /// How changes come in
    #[arg(long, env = "TIDEWIRE_TRANSPORT", default_value = "auto", value_enum)]
    transport: Transport,
    /// The time between two polls, where changes do not come as they happen: 30s, 5m, 1h
    #[arg(long, env = "TIDEWIRE_POLL_INTERVAL", default_value = "5m", value_parser = duration)]
    poll_interval: Duration,
    /// What becomes of the data when the server refuses the token
    #[arg(long, env = "TIDEWIRE_ON_NEEDS_AUTH", default_value = "keep", value_enum)]
    on_needs_auth: OnNeedsAuth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnNeedsAuth {
    /// It stays, and can be read
    Keep,
    /// Every trace of it is removed; another token copies everything anew
    Wipe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// The best that works
    Auto,
    /// A socket on which the server sends changes
    Push,
    /// A pull every so often
    Poll,
}

#[derive(Debug, Args)]
struct RebuildArgs {
    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    db: DbArg,
    /// Print JSON
    #[arg(long, env = "TIDEWIRE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

#[derive(Debug, Args)]
struct QueryArgs {
    #[command(flatten)]
    db: DbArg,
    /// What to ask, in SQL
    #[arg(value_name = "SQL")]
    sql: String,
    /// Print a JSON array of objects
    #[arg(long, env = "TIDEWIRE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log_format);
    let done = match cli.command {
        Command::Sync(args) => sync::sync(&args),
        Command::Rebuild(args) => sync::rebuild(&args),
        Command::Daemon(args) => daemon::daemon(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Status(args) => show::status(&args),
        Command::Query(args) => query::query(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            if is_broken_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            eprintln!("tidewire: {}", show::plain(&reason(&error)));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// What was tried, and why it failed: the library's own errors say all that is behind them.
fn reason(error: &anyhow::Error) -> String {
    let mut reasons = Vec::new();
    for cause in error.chain() {
        reasons.push(cause.to_string());
        if cause.is::<ClientError>() || cause.is::<ReplicaError>() {
            break;
        }
    }
    reasons.join(": ")
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<ClientError>() {
        return error.exit_code();
    }
    match error.downcast_ref::<ReplicaError>() {
        Some(ReplicaError::NotAReplica(_)) => 2,
        _ => 1,
    }
}

/// The reader of our output has gone, as `head` does: nothing is wrong.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(console::colors_enabled_stderr()).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Reads `90s`, `5m`, `2h`, `1d`: 1 s to 24 h.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time from 1s to 24h, like 30s, 5m or 1h");
    let number_ends = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(number_ends);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let seconds =
        number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds)).ok_or_else(wrong)?;
    if (1..=24 * 60 * 60).contains(&seconds) {
        Ok(Duration::from_secs(seconds))
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_within_their_bounds() {
        for (text, seconds) in
            [("1s", 1), ("90s", 90), ("5m", 300), ("24h", 86_400), ("1d", 86_400)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "m", "0s", "25h", "-1s", "1.5m", "5 m", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_flags_are_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

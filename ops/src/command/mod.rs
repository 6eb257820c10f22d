//! The command line: what may be typed, and which exit code it ends with.

mod bar;
mod check;
mod diff;
mod exit;
mod internal;
mod log;
mod logging;
mod mongod;
mod replay;
mod scrub;
mod seed;
mod token;
mod torture;
mod up;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use exit::{Failure, Outcome};
use logging::LogFormat;

/// The operator's program of Tidewire.
#[derive(Debug, Parser)]
#[command(name = "tidewire-ops", version, about, max_term_width = 100)]
struct Cli {
    /// How log lines on standard error look
    #[arg(long, global = true, value_enum, default_value_t, env = "TIDEWIRE_LOG_FORMAT")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole stack on this machine from nothing: MongoDB, sample data, the server, a live client
    Up(up::Up),
    /// Everything that must pass before a change lands, its set-up included
    Check(check::Check),
    #[command(hide = true)]
    InternalServer(internal::InternalServer),
    #[command(hide = true)]
    InternalClient(internal::InternalClient),
    /// Build a replica from the change log alone, no MongoDB needed
    Replay(replay::Replay),
    /// Compare two replicas, row by row; exit 1 where they differ
    Diff(diff::Diff),
    /// Look into a change log, or look after it
    #[command(subcommand)]
    Log(log::Log),
    /// A MongoDB replica set on this machine, for development and tests
    #[command(subcommand)]
    Mongod(mongod::Mongod),
    /// Write sample data of a chit fund's office into a database
    Seed(seed::Seed),
    /// Make a token for trials
    Token(token::Token),
    /// Compare a replica with its source, document by document; exit 1 where they differ
    Verify(verify::Verify),
    /// Random load and random faults against three mongods, two servers and four clients at once; exit 1
    /// where a promise was broken
    Torture(torture::Torture),
    /// Have a running server compare its log with MongoDB and mend what differs; exit 1 where it did
    Scrub(scrub::Scrub),
    /// Figures that anyone can repeat, each beside what it is compared with
    Bench(crate::bench::BenchArgs),
}

/// Runs what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version go to standard output and are no failure.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    // A server's log is read later, by whoever asks what happened; a command's is on the terminal.
    let is_server = matches!(cli.command, Command::InternalServer(_));
    logging::start(cli.log_format, if is_server { "info" } else { "warn" });
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&anyhow::Error::new(error).context("start the runtime")),
    };
    // One crypto library for every connection of this process.
    rustls::crypto::ring::default_provider().install_default().ok();
    let ended = runtime.block_on(run(cli.command));
    // What still blocks a thread (a download) is not waited for; its program ends with us.
    runtime.shutdown_background();
    match ended {
        Ok(outcome) => outcome.into(),
        Err(error) => exit::report(&error),
    }
}

async fn run(command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Up(command) => command.run().await,
        Command::Check(command) => command.run().await,
        Command::Replay(command) => command.run().await,
        Command::InternalServer(command) => command.run().await,
        Command::InternalClient(command) => command.run().await,
        Command::Diff(command) => command.run().await,
        Command::Log(command) => command.run().await,
        Command::Mongod(command) => command.run().await,
        Command::Seed(command) => command.run().await,
        Command::Token(command) => command.run(),
        Command::Verify(command) => command.run().await,
        Command::Torture(command) => command.run().await,
        Command::Scrub(command) => command.run().await,
        Command::Bench(args) => crate::bench::run(&args).await.map(|()| Outcome::Done),
    }
}

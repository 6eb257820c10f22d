//! The program `tidewire-server`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use tidewire_server::config::{Config, Flags};
use tidewire_server::logging::{self, LogFormat};
use tidewire_server::run::{self, RunError};

/// Threads that may block on the disk: a few pages at once, and metrics. More would only hold memory.
const BLOCKING_THREADS_MAX: usize = 8;

/// Follows a MongoDB replica set into a durable change log and serves it to replicas.
#[derive(Parser)]
#[command(name = "tidewire-server", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    /// Validate the configuration and stop
    #[arg(long, env = "TIDEWIRE_CHECK", value_parser = clap::builder::FalseyValueParser::new())]
    check: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t, env = "TIDEWIRE_LOG_FORMAT")]
    log_format: LogFormat,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.log_format);
    let config = Config::load(&cli.flags).map_err(RunError::from);
    let result = match config {
        Ok(config) if cli.check => return check(&config),
        Ok(config) => serve(config),
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn check(config: &Config) -> ExitCode {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let told = writeln!(std::io::stdout(), "{}", run::summary(config));
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn serve(config: Config) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .map_err(RunError::Signals)?;
    let result = runtime.block_on(run::run(config));
    // What still blocks (a page for a client that was cut off) must not hold the end up.
    runtime.shutdown_background();
    result
}

/// The whole chain of causes, on one line of its own for each thing to do.
fn tell(error: &RunError) {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    if let RunError::Config(_) = error {
        // Many lines, for people: the log would escape their ends.
        let _ = writeln!(std::io::stderr(), "error: {text}");
    } else {
        tracing::error!("{text}");
    }
}

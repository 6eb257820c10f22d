//! `tidewire`: keeps a replica, shows its state, asks it questions.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}

//! The operator's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidewire_ops::command::main()
}

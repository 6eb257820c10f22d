//! Everything that must pass before a change lands: formatting, the rules of the house, lints, a build,
//! the stack in containers, and at the end all tests.

mod house;
mod steps;

pub use house::{Finding, inspect};
pub use steps::{CheckError, run};

//! What the tests of the promises share. The promises are in `tests/promises/`, one binary, files
//! named for what they hold us to.

pub mod harness;

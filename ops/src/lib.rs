//! The operator's tools, as a library: real MongoDB replica sets on this machine, sample data and a
//! trickle of writes, tokens, the independent comparison, and the whole stack at once. Linux only: the bench waits for files by inotify.

pub mod bench;
pub mod black_hole;
pub mod check;
pub mod command;
pub mod diff;
mod folder;
pub mod mongod;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod replay;
pub mod sample;
pub mod signals;
pub mod temporary;
pub mod token;
pub mod torture;
pub mod up;
pub mod verify;

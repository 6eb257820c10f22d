//! Sample data: the office of a chit fund. Members join savings plans, are invoiced every month and
//! pay; and a trickle of the writes that such an office makes, through the ordinary driver.

mod documents;
mod names;
mod office;
mod seed;
mod trickle;

pub use office::{COLLECTIONS, Office};
pub use seed::{Existing, SeedError, count, seed};
pub use trickle::{Operation, Trickle, Write};

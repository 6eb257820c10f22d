//! The independent comparison of a replica with its source.
//!
//! Slow and plain on purpose: it reads whole `bson::Document`s and has its own encoding of keys and
//! payloads, its own channel templates and its own JSON parser, none of them the server's. Where both
//! agree, two programs have understood the contract alike.

mod compare;
mod extended;
mod json;
mod key;
mod number;
mod payload;
mod plan;
mod source;

pub use compare::{CollectionReport, Difference, Observer, Report, compare, payload_differs};
pub use key::mongo_id;
pub use plan::{Collection, Plan};
pub use source::{Moment, position_time};

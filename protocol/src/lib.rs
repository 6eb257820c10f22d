//! The wire between a Tidewire server and its clients, and nothing else: positions, changes, pages,
//! errors, digests, and the encodings of keys and documents. No I/O, no runtime, no driver.

pub mod digest;
pub mod error;
pub mod key;
pub mod number;
pub mod page;
pub mod payload;
pub mod position;
pub mod raw;

pub use error::{ErrorBody, ErrorCode, ResyncReason};
pub use page::{Change, ChangeKind, PullPage};
pub use position::Position;

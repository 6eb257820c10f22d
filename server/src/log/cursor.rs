//! Cursors: opaque text that says where a reader stands and what it has been reading.

use tidewire_protocol::Position;

/// What a client sends back as its next `since`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(super) position: Position,
}

/// The text is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor that a Tidewire server gave out")]
pub struct CursorError;

impl Cursor {
    /// Everything at or before it has been read.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        unimplemented!()
    }
}

impl std::str::FromStr for Cursor {
    type Err = CursorError;

    fn from_str(_text: &str) -> Result<Self, Self::Err> {
        unimplemented!()
    }
}

//! What an update changed in one document or array: a tree whose leaves are values.

use std::collections::HashMap;

use super::Untrusted;
use super::element::Value;

/// The depth of nesting that is followed. MongoDB stores 179 levels.
pub(super) const DEPTH_MAX: usize = 200;
/// Up to this many parts are searched one by one, more by an index.
const SCANNED_MAX: usize = 16;

/// What an update changed in one document or array.
#[derive(Default)]
pub(super) struct Delta<'a> {
    pub(super) kind: Kind,
    /// The array's new length, where the update cut it.
    pub(super) truncated: Option<usize>,
    /// The changed fields or members in the order in which the delta tells them. Names are unique.
    parts: Vec<(&'a [u8], Part<'a>)>,
    /// Where each name stands in `parts`, once there are more than [`SCANNED_MAX`].
    index: HashMap<&'a [u8], usize>,
}

/// What the delta knows of the value that it changes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    /// Whichever of the two the previous document has there.
    #[default]
    AsBefore,
    /// An array: in a document this order of paths would mean that some name holds a dot.
    NotADocument,
    Document,
    Array,
}

/// What happened to one field or member.
pub(super) enum Part<'a> {
    Removed,
    /// It was there and has this value now.
    Updated(Value<'a>),
    /// It stands at the end now, whether or not it was there before.
    Inserted(Value<'a>),
    /// It has this value now, whether or not it was there before: dotted paths tell no more.
    Written(Value<'a>),
    /// Something inside of it changed.
    Inside(Delta<'a>),
}

impl<'a> Delta<'a> {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, ..Self::default() }
    }

    /// All parts, in the delta's order.
    pub(super) fn parts(&self) -> &[(&'a [u8], Part<'a>)] {
        &self.parts
    }

    /// The number of the part called `name`.
    pub(super) fn part(&self, name: &[u8]) -> Option<usize> {
        if self.parts.len() > SCANNED_MAX {
            return self.index.get(name).copied();
        }
        self.parts.iter().position(|(known, _)| *known == name)
    }

    /// Adds a part.
    ///
    /// # Errors
    /// [`Untrusted::Ambiguous`] when there is one of this name.
    pub(super) fn add(&mut self, name: &'a [u8], part: Part<'a>) -> Result<(), Untrusted> {
        if self.part(name).is_some() {
            return Err(Untrusted::Ambiguous);
        }
        self.parts.push((name, part));
        if self.parts.len() == SCANNED_MAX + 1 {
            self.index = self.parts.iter().enumerate().map(|(at, (name, _))| (*name, at)).collect();
        } else if self.parts.len() > SCANNED_MAX {
            self.index.insert(name, self.parts.len() - 1);
        }
        Ok(())
    }

    /// The delta inside of the field or member `name`, made where there is none yet.
    ///
    /// # Errors
    /// [`Untrusted::Ambiguous`] when the field as a whole was removed or written.
    pub(super) fn inside(&mut self, name: &'a [u8]) -> Result<&mut Self, Untrusted> {
        // Paths come depth first: it is nearly always the last one.
        let last = self.parts.len().wrapping_sub(1);
        let known = match self.parts.last() {
            Some((known, _)) if *known == name => Some(last),
            _ => self.part(name),
        };
        let at = match known {
            Some(at) => at,
            None => {
                self.add(name, Part::Inside(Self::default()))?;
                self.parts.len() - 1
            }
        };
        match &mut self.parts[at].1 {
            Part::Inside(delta) => Ok(delta),
            _ => Err(Untrusted::Ambiguous),
        }
    }
}

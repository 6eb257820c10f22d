//! The cursors that were left behind: a page that leads back to one has come before.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Cursors that are remembered.
const CURSORS_MAX: usize = 64;

/// Hashes of the last cursors, so that a page that comes again, out of its turn, is known for what it is.
#[derive(Debug, Default)]
pub(super) struct Passed(VecDeque<u64>);

impl Passed {
    pub(super) fn add(&mut self, cursor: &str) {
        if self.0.len() == CURSORS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(hash(cursor));
    }

    pub(super) fn holds(&self, cursor: &str) -> bool {
        self.0.contains(&hash(cursor))
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

fn hash(cursor: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    cursor.hash(&mut hasher);
    hasher.finish()
}

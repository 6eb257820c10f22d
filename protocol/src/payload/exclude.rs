//! Fields that a collection's rules hide.

/// Fields that no reader gets to see, as dotted paths.
///
/// A path means what it means in a MongoDB projection: it goes through embedded documents and, at
/// every step, through arrays (arrays of arrays too) into the documents in them. A number in a path
/// is a field name, never an array's index; a field whose own name has a dot in it can't be named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Exclude {
    root: Node,
}

/// One step of the paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    /// Sorted by name. A child without children is hidden whole.
    children: Vec<(String, Node)>,
}

/// What the rules hide of one field.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hidden<'a> {
    Nothing,
    /// Fields inside it.
    Inside(&'a Node),
    Whole,
}

/// The most steps of a path: MongoDB nests no deeper.
const STEPS_MAX: usize = 200;

/// A path that can't be excluded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExcludeError {
    /// Nothing between two dots, or nothing at all.
    #[error("exclude {0:?} has an empty step: write field names with single dots between them")]
    EmptyStep(String),
    /// The key of a document is told with every change of it.
    #[error("exclude {0:?} would hide the _id, which every change carries: remove it")]
    Id(String),
    /// No field is nested as deep.
    #[error("exclude {0:?} has more than {STEPS_MAX} steps: no document is nested as deep")]
    TooDeep(String),
    /// Field names are without NUL.
    #[error("exclude {0:?} has a NUL character, which no field name has: remove it")]
    Nul(String),
}

impl Exclude {
    /// Hides nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Hides the fields at `paths` and everything in them.
    ///
    /// # Errors
    /// On the first path that names no field or the `_id`.
    pub fn parse(paths: &[String]) -> Result<Self, ExcludeError> {
        let mut root = Node::default();
        for path in paths {
            let steps: Vec<&str> = path.split('.').collect();
            if steps.contains(&"") {
                return Err(ExcludeError::EmptyStep(path.clone()));
            }
            if steps[0] == "_id" {
                return Err(ExcludeError::Id(path.clone()));
            }
            if steps.len() > STEPS_MAX {
                return Err(ExcludeError::TooDeep(path.clone()));
            }
            if path.contains('\0') {
                return Err(ExcludeError::Nul(path.clone()));
            }
            root.hide(&steps, true);
        }
        Ok(Self { root })
    }

    /// Whether nothing is hidden.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.children.is_empty()
    }

    pub(crate) fn root(&self) -> Option<&Node> {
        (!self.is_empty()).then_some(&self.root)
    }
}

impl Node {
    /// `is_new`: this node was made for this path, so it is not one that is hidden whole already.
    fn hide(&mut self, steps: &[&str], is_new: bool) {
        let Some((step, steps)) = steps.split_first() else {
            return self.children.clear();
        };
        if !is_new && self.children.is_empty() {
            return;
        }
        match self.children.binary_search_by(|(name, _)| name.as_str().cmp(step)) {
            Ok(at) => self.children[at].1.hide(steps, false),
            Err(at) => {
                self.children.insert(at, ((*step).to_owned(), Self::default()));
                self.children[at].1.hide(steps, true);
            }
        }
    }

    /// What is hidden of the field `name`.
    pub(crate) fn at(&self, name: &[u8]) -> Hidden<'_> {
        match self.children.iter().find(|(child, _)| child.as_bytes() == name) {
            None => Hidden::Nothing,
            Some((_, node)) if node.children.is_empty() => Hidden::Whole,
            Some((_, node)) => Hidden::Inside(node),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(paths: &[&str]) -> Result<Exclude, ExcludeError> {
        Exclude::parse(&paths.iter().map(|&p| p.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_wider_of_two_paths_wins_in_either_order() {
        let wide = parse(&["a", "b.c"]).unwrap();
        assert_eq!(parse(&["a.x", "a", "b.c", "b.c.d"]).unwrap(), wide);
        assert_eq!(parse(&["b.c", "b.c.d.e", "a", "a.x.y"]).unwrap(), wide);
        assert!(!wide.is_empty() && Exclude::none().is_empty() && parse(&[]).unwrap().is_empty());
    }

    #[test]
    fn paths_that_name_no_field_are_refused() {
        for bad in ["", ".", "a.", ".a", "a..b"] {
            assert_eq!(parse(&[bad]), Err(ExcludeError::EmptyStep(bad.to_owned())));
        }
        assert_eq!(parse(&["a", "_id"]), Err(ExcludeError::Id("_id".to_owned())));
        assert_eq!(parse(&["_id.a"]), Err(ExcludeError::Id("_id.a".to_owned())));
        assert_eq!(parse(&["a\0"]), Err(ExcludeError::Nul("a\0".to_owned())));
        assert!(parse(&["a._id", "$a.0"]).is_ok());
        assert!(matches!(parse(&[&["a"; 201].join(".")]), Err(ExcludeError::TooDeep(_))));
    }
}

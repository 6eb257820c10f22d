//! Which top-level fields of a document are scalar, found by one scan of its JSON text: the replica
//! makes a generated column of each.

use std::collections::HashSet;

/// Most field names remembered per collection and page; the replica makes fewer columns of them.
const FIELDS_MAX: usize = 2_000;

/// The scalar top-level fields of one collection's documents, gathered document by document.
///
/// Documents of one collection mostly share one shape, so the last one's keys are tried first and a
/// name is looked up only where the shape differs.
#[derive(Debug, Default)]
pub(crate) struct FieldScout<'a> {
    /// The last document's keys (raw JSON text between the quotes), and whether each is in `found`.
    shape: Vec<(&'a str, bool)>,
    found: HashSet<&'a str>,
    /// Decoded names in the order in which they were first seen.
    names: Vec<String>,
}

impl<'a> FieldScout<'a> {
    /// Notes the scalar fields of `document`, the text of a valid JSON object. What is not an object
    /// has no fields.
    pub(crate) fn see(&mut self, document: &'a str) {
        let mut scan = Scan { bytes: document.as_bytes(), at: 0 };
        scan.space();
        if !scan.eat(b'{') {
            return;
        }
        let mut index = 0;
        while let Some((start, end)) = scan.key() {
            let scalar = scan.skip_value();
            let Some(key) = document.get(start..end) else { return };
            self.note(index, key, scalar);
            index += 1;
        }
        self.shape.truncate(index);
    }

    /// The names found, in the order of their first appearance.
    pub(crate) fn into_names(self) -> Vec<String> {
        self.names
    }

    fn note(&mut self, index: usize, key: &'a str, scalar: bool) {
        match self.shape.get(index) {
            Some(&(known, found)) if known == key && (found || !scalar) => return,
            _ => {}
        }
        let mut found = self.found.contains(key);
        if scalar && !found && self.found.len() < FIELDS_MAX {
            self.found.insert(key);
            found = true;
            if let Ok(name) = serde_json::from_str(&format!("\"{key}\"")) {
                self.names.push(name);
            }
        }
        match self.shape.get_mut(index) {
            Some(slot) => *slot = (key, found),
            None => self.shape.push((key, found)),
        }
    }
}

/// A walk over the text of valid JSON; on anything else it ends early, it never panics.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let hit = self.peek() == Some(byte);
        self.at += usize::from(hit);
        hit
    }

    /// Steps over the next key and its colon; the key's bounds without the quotes.
    fn key(&mut self) -> Option<(usize, usize)> {
        self.space();
        self.eat(b',');
        self.space();
        if self.peek() != Some(b'"') {
            return None;
        }
        let start = self.at + 1;
        self.string();
        let end = self.at.checked_sub(1).filter(|end| *end >= start)?;
        self.space();
        if !self.eat(b':') {
            return None;
        }
        self.space();
        Some((start, end))
    }

    /// Steps over a value; whether it is neither an object nor an array.
    fn skip_value(&mut self) -> bool {
        match self.peek() {
            Some(b'"') => {
                self.string();
                true
            }
            Some(b'{' | b'[') => {
                self.nested();
                false
            }
            _ => {
                while self.peek().is_some_and(|b| b != b',' && b != b'}') {
                    self.at += 1;
                }
                true
            }
        }
    }

    /// Steps over a string, from its opening quote to behind its closing one.
    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += match byte {
                b'\\' => 2,
                _ => 1,
            };
            if byte == b'"' {
                return;
            }
        }
    }

    fn nested(&mut self) {
        let mut depth = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.string();
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(documents: &[&str], expected: &[&str]) {
        let mut scout = FieldScout::default();
        for document in documents {
            scout.see(document);
        }
        assert_eq!(scout.into_names(), expected);
    }

    #[test]
    fn scalars_are_found_and_nested_values_are_not() {
        check(
            &[r#"{"_id":"a","n":1,"b":true,"x":null,"o":{"in":1},"l":[1,{"z":2}],"last":-1.5e3}"#],
            &["_id", "n", "b", "x", "last"],
        );
    }

    #[test]
    fn a_field_that_is_scalar_in_one_document_counts() {
        check(&[r#"{"a":[1]}"#, r#"{"a":2}"#, r#"{"a":{"b":1}}"#], &["a"]);
    }

    #[test]
    fn strings_that_look_like_structure_are_stepped_over() {
        check(
            &[r#"{ "a" : "}\",\"b\":1" , "c\"d" : "\\" , "é":{"k":"]}"},"f":0}"#],
            &["a", "c\"d", "f"],
        );
    }

    #[test]
    fn what_is_no_object_or_is_cut_does_no_harm() {
        let whole = r#"{"a":"x\\","b":[{"c":"d"}],"e":1}"#;
        for end in 0..whole.len() {
            FieldScout::default().see(&whole[..end]);
        }
        check(&["[1]", "", "{}", "{\"", "{\"a\"", "{\"a\":}}}"], &["a"]);
    }
}

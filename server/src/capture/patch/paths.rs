//! Reads a delta from an `updateDescription`, whose places are dotted paths.
//!
//! A path is taken apart at its dots, unless `disambiguatedPaths` tells its parts; what the parts
//! are in the previous document is found when the delta is applied.

use std::collections::HashMap;

use bson::raw::RawDocument;

use super::Untrusted;
use super::delta::{DEPTH_MAX, Delta, Kind, Part};
use super::element::{Value, elements};

/// The delta of an `updateDescription`.
pub(super) fn read(description: &RawDocument) -> Result<Delta<'_>, Untrusted> {
    let (mut updated, mut removed, mut truncated) = (None, None, None);
    let mut parts_of = HashMap::new();
    for field in elements(description) {
        let field = field?;
        match field.name {
            b"updatedFields" => updated = Some(field.value.document()?),
            b"removedFields" => removed = Some(field.value.array()?),
            b"truncatedArrays" => truncated = Some(field.value.array()?),
            b"disambiguatedPaths" => parts_of = disambiguated(field.value.document()?)?,
            _ => return Err(Untrusted::Unknown),
        }
    }
    let mut reader = Reader { delta: Delta::default(), parts_of };
    for field in elements(updated.ok_or(Untrusted::Unknown)?) {
        let field = field?;
        let (delta, name) = reader.place(field.name)?;
        // A document's own fields are told before what changed inside of its fields. Where it is
        // the other way round, this is an array, or some name has a dot.
        let inside_before = matches!(delta.parts().last(), Some((_, Part::Inside(_))));
        if inside_before && delta.kind == Kind::AsBefore {
            delta.kind = Kind::NotADocument;
        }
        delta.add(name, Part::Written(field.value))?;
    }
    for path in removed.iter().copied().flat_map(elements) {
        let (delta, name) = reader.place(path?.value.text()?)?;
        delta.add(name, Part::Removed)?;
    }
    for array in truncated.iter().copied().flat_map(elements) {
        let (path, size) = truncation(array?.value.document()?)?;
        let (delta, name) = reader.place(path)?;
        let array = delta.inside(name)?;
        array.truncated = Some(size);
        array.is_array()?;
    }
    Ok(reader.delta)
}

struct Reader<'a> {
    delta: Delta<'a>,
    /// The parts of those paths that `disambiguatedPaths` names.
    parts_of: HashMap<&'a [u8], &'a RawDocument>,
}

impl<'a> Reader<'a> {
    /// Where a path ends: what holds its last part, and that part's name.
    fn place(&mut self, path: &'a [u8]) -> Result<(&mut Delta<'a>, &'a [u8]), Untrusted> {
        match self.parts_of.get(path) {
            Some(parts) => told(&mut self.delta, path, parts),
            None => split(&mut self.delta, path),
        }
    }
}

/// A path whose parts are what stands between its dots.
fn split<'a, 'd>(
    mut delta: &'d mut Delta<'a>,
    path: &'a [u8],
) -> Result<(&'d mut Delta<'a>, &'a [u8]), Untrusted> {
    let mut rest = path;
    let mut depth = 0;
    while let Some(dot) = rest.iter().position(|&byte| byte == b'.') {
        let (name, after) = (&rest[..dot], &rest[dot + 1..]);
        delta = delta.inside(name)?;
        rest = after;
        depth += 1;
        if depth > DEPTH_MAX {
            return Err(Untrusted::TooDeep);
        }
    }
    Ok((delta, rest))
}

/// A path whose parts are told: strings are names in documents, numbers are indexes in arrays.
fn told<'a, 'd>(
    mut delta: &'d mut Delta<'a>,
    path: &'a [u8],
    parts: &'a RawDocument,
) -> Result<(&'d mut Delta<'a>, &'a [u8]), Untrusted> {
    let mut rest = Some(path);
    let mut last = None;
    let mut depth = 0;
    for part in elements(parts) {
        let value = part?.value;
        if let Some(name) = last {
            delta = delta.inside(name)?;
        }
        let left = rest.ok_or(Untrusted::Ambiguous)?;
        let length = if let Ok(name) = value.text() {
            delta.is_document()?;
            if left.starts_with(name) { name.len() } else { return Err(Untrusted::Ambiguous) }
        } else {
            delta.is_array()?;
            let index = value.size()?.to_string();
            if left.starts_with(index.as_bytes()) {
                index.len()
            } else {
                return Err(Untrusted::Ambiguous);
            }
        };
        last = Some(&left[..length]);
        rest = match left[length..].strip_prefix(b".") {
            None if left.len() > length => return Err(Untrusted::Ambiguous),
            after => after,
        };
        depth += 1;
        if depth > DEPTH_MAX {
            return Err(Untrusted::TooDeep);
        }
    }
    match (last, rest) {
        (Some(name), None) => Ok((delta, name)),
        _ => Err(Untrusted::Ambiguous),
    }
}

impl Delta<'_> {
    /// Notes that this is in a document.
    fn is_document(&mut self) -> Result<(), Untrusted> {
        match self.kind {
            Kind::AsBefore | Kind::Document => self.kind = Kind::Document,
            Kind::NotADocument | Kind::Array => return Err(Untrusted::Ambiguous),
        }
        Ok(())
    }

    /// Notes that this is in an array.
    fn is_array(&mut self) -> Result<(), Untrusted> {
        match self.kind {
            Kind::Document => return Err(Untrusted::Ambiguous),
            _ => self.kind = Kind::Array,
        }
        Ok(())
    }
}

fn disambiguated(paths: &RawDocument) -> Result<HashMap<&[u8], &RawDocument>, Untrusted> {
    let mut parts_of = HashMap::new();
    for field in elements(paths) {
        let field = field?;
        if parts_of.insert(field.name, field.value.array()?).is_some() {
            return Err(Untrusted::Ambiguous);
        }
    }
    Ok(parts_of)
}

/// The path and new length of one of `truncatedArrays`.
fn truncation(truncated: &RawDocument) -> Result<(&[u8], usize), Untrusted> {
    let (mut path, mut size) = (None, None);
    for field in elements(truncated) {
        let field = field?;
        match field.name {
            b"field" => path = Some(Value::text(field.value)?),
            b"newSize" => size = Some(Value::size(field.value)?),
            _ => return Err(Untrusted::Unknown),
        }
    }
    path.zip(size).ok_or(Untrusted::Unknown)
}

//! Reads a delta as the oplog holds it: `{$v: 2, diff: {…}}`.
//!
//! A document's diff has, in this order and each only where needed, `d: {name: false}` for removed
//! fields, `u: {name: value}` for changed ones, `i: {name: value}` for those that stand at the end
//! now, and `s<name>: diff` for each field that changed inside. An array's has `a: true`, `l: <new
//! length>` where it was cut, and `u<index>: value` and `s<index>: diff`.

use bson::raw::RawDocument;

use super::Untrusted;
use super::delta::{DEPTH_MAX, Delta, Kind, Part};
use super::element::{Element, elements};

/// The delta of a `rawUpdateDescription`.
pub(super) fn read(description: &RawDocument) -> Result<Delta<'_>, Untrusted> {
    let mut delta = None;
    for field in elements(description) {
        let field = field?;
        match field.name {
            b"$v" if field.value.size() == Ok(2) => {}
            b"diff" => delta = Some(document(field.value.document()?, 0)?),
            _ => return Err(Untrusted::Unknown),
        }
    }
    delta.ok_or(Untrusted::Unknown)
}

fn document(diff: &RawDocument, depth: usize) -> Result<Delta<'_>, Untrusted> {
    let mut delta = Delta::new(Kind::Document);
    for section in elements(diff) {
        let section = section?;
        if let Some(name) = section.name.strip_prefix(b"s") {
            delta.add(name, Part::Inside(inner(&section, depth + 1)?))?;
            continue;
        }
        for field in elements(section.value.document()?) {
            let Element { name, value, .. } = field?;
            let part = match section.name {
                b"d" => Part::Removed,
                b"u" => Part::Updated(value),
                b"i" => Part::Inserted(value),
                _ => return Err(Untrusted::Unknown),
            };
            delta.add(name, part)?;
        }
    }
    Ok(delta)
}

fn array(diff: &RawDocument, depth: usize) -> Result<Delta<'_>, Untrusted> {
    let mut delta = Delta::new(Kind::Array);
    for section in elements(diff).skip(1) {
        let section = section?;
        if section.name == b"l" {
            delta.truncated = Some(section.value.size()?);
        } else if let Some(index) = section.name.strip_prefix(b"u") {
            delta.add(index, Part::Updated(section.value))?;
        } else if let Some(index) = section.name.strip_prefix(b"s") {
            delta.add(index, Part::Inside(inner(&section, depth + 1)?))?;
        } else {
            return Err(Untrusted::Unknown);
        }
    }
    Ok(delta)
}

/// The diff of something inside: an array's starts with `a`, which no document's can.
fn inner<'a>(section: &Element<'a>, depth: usize) -> Result<Delta<'a>, Untrusted> {
    if depth > DEPTH_MAX {
        return Err(Untrusted::TooDeep);
    }
    let diff = section.value.document()?;
    match elements(diff).next() {
        Some(Ok(first)) if first.name == b"a" => array(diff, depth),
        _ => document(diff, depth),
    }
}

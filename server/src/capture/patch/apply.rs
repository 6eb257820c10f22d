//! Applies a delta: one walk over the previous document, beside the delta's tree.

use bson::raw::{RawDocument, RawDocumentBuf};

use super::Untrusted;
use super::delta::{Delta, Kind, Part};
use super::element::{Element, NULL, Value, elements};

/// The most members by which MongoDB pads an array in one update.
const PADDING_MAX: usize = 1_500_000;
/// Up to this many fields are compared in pairs to find a name that is there twice, more are sorted.
const PAIRED_MAX: usize = 24;

/// The document after `delta`; `room` is about how many bytes it will have.
pub(super) fn apply(
    previous: &RawDocument,
    delta: &Delta<'_>,
    room: usize,
) -> Result<RawDocumentBuf, Untrusted> {
    if !matches!(delta.kind, Kind::AsBefore | Kind::Document) {
        return Err(Untrusted::Ambiguous);
    }
    let mut out = Vec::with_capacity(room);
    document(previous, delta, &mut out)?;
    RawDocumentBuf::from_bytes(out).map_err(|_| Untrusted::Malformed)
}

/// Writes the document that `previous` is after `delta`.
fn document(previous: &RawDocument, delta: &Delta<'_>, out: &mut Vec<u8>) -> Result<(), Untrusted> {
    let (fields, found) = find(previous, delta)?;
    let parts = delta.parts();
    // Changed fields are told before those that stand at the end: from the first new one on, a
    // field that was there before has moved to the end.
    let is_new = |at: &usize| matches!(parts[*at].1, Part::Written(_)) && !found[*at];
    let moved_from = (0..parts.len()).find(is_new).unwrap_or(parts.len());

    let start = open(out);
    for (field, part) in fields {
        let Some(at) = part else {
            out.extend_from_slice(field.bytes);
            continue;
        };
        match &parts[at].1 {
            Part::Removed | Part::Inserted(_) => {}
            Part::Written(_) if at > moved_from => {}
            // `$push` with `$slice` or `$sort` writes an array that came out as it was.
            Part::Written(value) if *value == field.value && !value.is_array() => {
                return Err(Untrusted::Moved);
            }
            Part::Updated(value) | Part::Written(value) => write(field.name, *value, out),
            Part::Inside(inner) => inside(field, inner, out)?,
        }
    }
    for (at, (name, part)) in parts.iter().enumerate() {
        match part {
            Part::Inserted(value) => write(name, *value, out),
            Part::Written(value) if at >= moved_from => write(name, *value, out),
            _ if found[at] => {}
            _ => return Err(Untrusted::Missing),
        }
    }
    close(start, out)
}

/// The fields of a document, each with the number of its part.
type Fields<'a> = Vec<(Element<'a>, Option<usize>)>;

/// The fields of `previous` with their parts of the delta, and for each part whether it was found.
fn find<'a>(
    previous: &'a RawDocument,
    delta: &Delta<'_>,
) -> Result<(Fields<'a>, Vec<bool>), Untrusted> {
    let mut fields = Fields::with_capacity(PAIRED_MAX);
    let mut found = vec![false; delta.parts().len()];
    for field in elements(previous) {
        let field = field?;
        let part = delta.part(field.name);
        if let Some(at) = part {
            found[at] = true;
        }
        // `a.b` beside a path that starts with `a` may be what the path means.
        if delta.kind == Kind::AsBefore
            && let Some(dot) = field.name.iter().position(|&byte| byte == b'.')
            && delta.part(&field.name[..dot]).is_some()
        {
            return Err(Untrusted::Ambiguous);
        }
        fields.push((field, part));
    }
    if has_name_twice(&fields) { Err(Untrusted::DuplicateName) } else { Ok((fields, found)) }
}

fn has_name_twice(fields: &Fields<'_>) -> bool {
    if fields.len() <= PAIRED_MAX {
        let has_before = |at: usize| fields[..at].iter().any(|(f, _)| f.name == fields[at].0.name);
        return (1..fields.len()).any(has_before);
    }
    let mut names: Vec<&[u8]> = fields.iter().map(|(field, _)| field.name).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// Writes the array that `previous` is after `delta`.
fn array(previous: &RawDocument, delta: &Delta<'_>, out: &mut Vec<u8>) -> Result<(), Untrusted> {
    let mut changes = Vec::with_capacity(delta.parts().len());
    for (name, part) in delta.parts() {
        changes.push((index(name).ok_or(Untrusted::Index)?, part));
    }
    changes.sort_unstable_by_key(|(at, _)| *at);
    let mut changes = changes.into_iter().peekable();
    let kept = delta.truncated.unwrap_or(usize::MAX);

    let start = open(out);
    let mut length = 0;
    for member in elements(previous) {
        let member = member?;
        if index(member.name) != Some(length) {
            return Err(Untrusted::Index);
        }
        if length < kept {
            match changes.next_if(|(at, _)| *at == length) {
                None => out.extend_from_slice(member.bytes),
                Some((_, Part::Updated(value) | Part::Written(value))) => {
                    write(member.name, *value, out);
                }
                Some((_, Part::Inside(inner))) => inside(member, inner, out)?,
                Some((_, Part::Removed | Part::Inserted(_))) => return Err(Untrusted::Unknown),
            }
        }
        length += 1;
    }
    if delta.truncated.is_some() && (kept >= length || changes.peek().is_some()) {
        return Err(Untrusted::Index);
    }
    let mut padding_left = PADDING_MAX;
    for (at, part) in changes {
        let (Part::Updated(value) | Part::Written(value)) = part else {
            return Err(Untrusted::Missing);
        };
        padding_left = padding_left.checked_sub(at - length).ok_or(Untrusted::Index)?;
        for padded in length..at {
            write(padded.to_string().as_bytes(), NULL, out);
        }
        write(at.to_string().as_bytes(), *value, out);
        length = at + 1;
    }
    close(start, out)
}

/// Writes a field or member that changed inside.
fn inside(field: Element<'_>, delta: &Delta<'_>, out: &mut Vec<u8>) -> Result<(), Untrusted> {
    let before = field.value.inside()?;
    head(field.value.kind, field.name, out);
    match delta.kind {
        Kind::AsBefore | Kind::Document if field.value.is_document() => {
            document(before, delta, out)
        }
        Kind::AsBefore | Kind::NotADocument | Kind::Array if field.value.is_array() => {
            array(before, delta, out)
        }
        Kind::NotADocument => Err(Untrusted::Ambiguous),
        _ => Err(Untrusted::WrongKind),
    }
}

/// The index that a name is, as MongoDB writes it: decimal, no sign, no leading zero.
fn index(name: &[u8]) -> Option<usize> {
    let plain = name.iter().all(u8::is_ascii_digit);
    let leading_zero = name.len() > 1 && name.starts_with(b"0");
    let text = std::str::from_utf8(name).ok().filter(|_| plain && !leading_zero)?;
    text.parse::<u32>().ok().map(|at| at as usize)
}

fn head(kind: u8, name: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(name);
    out.push(0);
}

fn write(name: &[u8], value: Value<'_>, out: &mut Vec<u8>) {
    head(value.kind, name, out);
    out.extend_from_slice(value.bytes);
}

/// Begins a document or array; what it answers is for [`close`].
fn open(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[0; 4]);
    out.len() - 4
}

fn close(start: usize, out: &mut Vec<u8>) -> Result<(), Untrusted> {
    out.push(0);
    let length = i32::try_from(out.len() - start).map_err(|_| Untrusted::Malformed)?;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

//! Canonical Extended JSON v2: every value with its BSON type.

use bson::spec::ElementType;

use super::decimal::write_decimal;
use super::text::{
    write_base64, write_finite_double, write_hex, write_integer, write_special_double, write_string,
};
use super::walk::Style;
use crate::raw::{self, Reason};

/// Canonical Extended JSON v2.
pub(crate) struct Canonical;

impl Style for Canonical {
    const IS_ONE_TO_ONE: bool = false;

    fn write_scalar(kind: ElementType, value: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
        match kind {
            ElementType::String => return write_string(raw::text(value)?, out),
            ElementType::Boolean => {
                out.extend_from_slice(if raw::boolean(value)? { b"true" } else { b"false" });
            }
            ElementType::Null => out.extend_from_slice(b"null"),
            ElementType::ObjectId => write_object_id(raw::fixed(value)?, out),
            ElementType::Int32 => {
                out.extend_from_slice(b"{\"$numberInt\":\"");
                write_integer(i32::from_le_bytes(raw::fixed(value)?), out);
                out.extend_from_slice(b"\"}");
            }
            ElementType::Int64 => write_long(i64::from_le_bytes(raw::fixed(value)?), out),
            ElementType::Double => write_double(f64::from_le_bytes(raw::fixed(value)?), out),
            ElementType::Decimal128 => {
                out.extend_from_slice(b"{\"$numberDecimal\":\"");
                write_decimal(raw::fixed(value)?, out);
                out.extend_from_slice(b"\"}");
            }
            ElementType::DateTime => write_date(i64::from_le_bytes(raw::fixed(value)?), out),
            ElementType::Binary => {
                let (subtype, bytes) = raw::binary_payload(value)?;
                out.extend_from_slice(b"{\"$binary\":{\"base64\":\"");
                write_base64(bytes, out);
                out.extend_from_slice(b"\",\"subType\":\"");
                write_hex(&[subtype], out);
                out.extend_from_slice(b"\"}}");
            }
            _ => return write_rare(kind, value, out),
        }
        Ok(())
    }
}

/// The types that no payload can do without an own form for, alike in all encodings.
fn write_rare(kind: ElementType, value: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
    match kind {
        ElementType::Timestamp => {
            let bits = u64::from_le_bytes(raw::fixed(value)?);
            out.extend_from_slice(b"{\"$timestamp\":{\"t\":");
            write_integer(bits >> 32, out);
            out.extend_from_slice(b",\"i\":");
            write_integer(bits & u64::from(u32::MAX), out);
            out.extend_from_slice(b"}}");
        }
        ElementType::RegularExpression => {
            let (pattern, options) = raw::regex(value)?;
            // Extended JSON has them in alphabetical order; a driver may have stored another.
            let mut options = options.to_vec();
            options.sort_unstable();
            write_regex(pattern, &options, out)?;
        }
        ElementType::JavaScriptCode => write_wrapped("$code", raw::text(value)?, out)?,
        ElementType::Symbol => write_wrapped("$symbol", raw::text(value)?, out)?,
        ElementType::DbPointer => {
            let (namespace, id) = raw::db_pointer(value)?;
            out.extend_from_slice(b"{\"$dbPointer\":{\"$ref\":");
            write_string(namespace, out)?;
            out.extend_from_slice(b",\"$id\":");
            write_object_id(id, out);
            out.extend_from_slice(b"}}");
        }
        ElementType::MinKey => out.extend_from_slice(b"{\"$minKey\":1}"),
        ElementType::MaxKey => out.extend_from_slice(b"{\"$maxKey\":1}"),
        ElementType::Undefined => out.extend_from_slice(b"{\"$undefined\":true}"),
        _ => return Err("a type that has no text of its own"),
    }
    Ok(())
}

/// Appends a regular expression with its options in the order given.
pub(crate) fn write_regex(pattern: &[u8], options: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
    out.extend_from_slice(b"{\"$regularExpression\":{\"pattern\":");
    write_string(pattern, out)?;
    out.extend_from_slice(b",\"options\":");
    write_string(options, out)?;
    out.extend_from_slice(b"}}");
    Ok(())
}

fn write_wrapped(name: &str, text: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
    out.extend_from_slice(b"{\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    write_string(text, out)?;
    out.push(b'}');
    Ok(())
}

fn write_object_id(id: [u8; 12], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"$oid\":\"");
    write_hex(&id, out);
    out.extend_from_slice(b"\"}");
}

fn write_long(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"$numberLong\":\"");
    write_integer(value, out);
    out.extend_from_slice(b"\"}");
}

/// Appends `{"$date":{"$numberLong":"…"}}`.
pub(super) fn write_date(ms: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"$date\":");
    write_long(ms, out);
    out.push(b'}');
}

/// Appends `{"$numberDouble":"…"}`, also for NaN and infinities.
pub(super) fn write_double(value: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"$numberDouble\":\"");
    let start = out.len();
    if value.is_finite() {
        write_finite_double(value, out);
        // The specification's own samples have a capital E.
        if let Some(at) = out[start..].iter().position(|&b| b == b'e') {
            out[start + at] = b'E';
        }
    } else {
        write_special_double(value, out);
    }
    out.extend_from_slice(b"\"}");
}

//! The `json` encoding: plain values for programs that never heard of BSON.

use bson::spec::ElementType;

use super::decimal::write_decimal;
use super::ejson::{Canonical, write_date, write_double};
use super::text::{
    TIME_MS_MAX, TIME_MS_MIN, write_base64, write_finite_double, write_hex, write_integer,
    write_string, write_time_ms, write_uuid,
};
use super::walk::Style;
use crate::raw::{self, Reason};

/// The contract's `json` payloads.
pub(super) struct Plain;

impl Style for Plain {
    const IS_ONE_TO_ONE: bool = false;

    #[inline]
    fn write_scalar(kind: ElementType, value: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
        match kind {
            ElementType::String => return write_string(raw::text(value)?, out),
            ElementType::Int32 => write_integer(i32::from_le_bytes(raw::fixed(value)?), out),
            ElementType::Int64 => write_integer(i64::from_le_bytes(raw::fixed(value)?), out),
            ElementType::Double => match f64::from_le_bytes(raw::fixed(value)?) {
                double if double.is_finite() => write_finite_double(double, out),
                double => write_double(double, out),
            },
            ElementType::ObjectId => {
                out.push(b'"');
                write_hex(&raw::fixed::<12>(value)?, out);
                out.push(b'"');
            }
            ElementType::DateTime => match i64::from_le_bytes(raw::fixed(value)?) {
                ms @ TIME_MS_MIN..=TIME_MS_MAX => {
                    out.push(b'"');
                    write_time_ms(ms, out);
                    out.push(b'"');
                }
                ms => write_date(ms, out),
            },
            ElementType::Decimal128 => {
                out.push(b'"');
                write_decimal(raw::fixed(value)?, out);
                out.push(b'"');
            }
            ElementType::Binary => {
                let (subtype, bytes) = raw::binary_payload(value)?;
                out.push(b'"');
                match <[u8; 16]>::try_from(bytes) {
                    Ok(uuid) if subtype == 4 => write_uuid(uuid, out),
                    _ => write_base64(bytes, out),
                }
                out.push(b'"');
            }
            // The relaxed form of the other types is the canonical one.
            _ => return Canonical::write_scalar(kind, value, out),
        }
        Ok(())
    }
}

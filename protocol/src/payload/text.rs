//! The small texts inside a document: strings, base64, hex, times, doubles, integers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;

use crate::raw::Reason;

/// The first and last millisecond that four-digit years can say: 0000-01-01 to 9999-12-31.
pub(super) const TIME_MS_MIN: i64 = -62_167_219_200_000;
pub(super) const TIME_MS_MAX: i64 = 253_402_300_799_999;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends `text` as a JSON string, in quotes and escaped.
pub fn write_json_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    if is_plain(text.as_bytes()) {
        out.extend_from_slice(text.as_bytes());
    } else {
        write_escaped(text.as_bytes(), out);
    }
    out.push(b'"');
}

/// Appends the JSON string of bytes that must be UTF-8.
#[inline]
pub(crate) fn write_string(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
    if is_plain(bytes) {
        out.push(b'"');
        out.extend_from_slice(bytes);
        out.push(b'"');
        return Ok(());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "a text that is not UTF-8")?;
    out.push(b'"');
    write_escaped(text.as_bytes(), out);
    out.push(b'"');
    Ok(())
}

/// Whether the bytes are ASCII that JSON takes as it is. No branch inside, so that it runs on
/// several bytes at once; nearly every name and most strings are plain.
#[inline]
fn is_plain(bytes: &[u8]) -> bool {
    let odd = |b: u8| !(0x20..0x80).contains(&b) | (b == b'"') | (b == b'\\');
    !bytes.iter().fold(false, |found, &b| found | odd(b))
}

/// Appends UTF-8 with what JSON must escape escaped, the shortest way.
fn write_escaped(text: &[u8], out: &mut Vec<u8>) {
    let mut copied = 0;
    for (at, &byte) in text.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text[copied..at]);
        copied = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0A => out.extend_from_slice(b"\\n"),
            0x0C => out.extend_from_slice(b"\\f"),
            0x0D => out.extend_from_slice(b"\\r"),
            _ => {
                out.extend_from_slice(b"\\u00");
                write_hex(&[byte], out);
            }
        }
    }
    out.extend_from_slice(&text[copied..]);
}

/// Appends two lower-case hex digits a byte.
#[inline]
pub(crate) fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    let pair = |byte: &u8| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
    out.extend(bytes.iter().flat_map(pair));
}

/// Appends the text of a UUID.
pub(super) fn write_uuid(bytes: [u8; 16], out: &mut Vec<u8>) {
    let groups = [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]];
    for (at, group) in groups.into_iter().enumerate() {
        if at > 0 {
            out.push(b'-');
        }
        write_hex(group, out);
    }
}

/// Appends padded base64, RFC 4648 section 4.
pub(crate) fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]);
    assert_eq!(written, Ok(out.len() - start), "base64 has four characters for three bytes");
}

#[inline]
pub(super) fn write_integer(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a finite double: the shortest text that reads back as the same double, always with a
/// decimal point (`1.0`, `1.0e+300`), so that every reader takes it for a double.
#[inline]
pub(super) fn write_finite_double(value: f64, out: &mut Vec<u8>) {
    let mut buffer = zmij::Buffer::new();
    let text = buffer.format_finite(value);
    match text.split_once('e') {
        Some((mantissa, power)) if !mantissa.contains('.') => {
            out.extend_from_slice(mantissa.as_bytes());
            out.extend_from_slice(b".0e");
            out.extend_from_slice(power.as_bytes());
        }
        _ => out.extend_from_slice(text.as_bytes()),
    }
}

/// Appends the name of a double that is not finite.
pub(super) fn write_special_double(value: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(match value {
        _ if value.is_nan() => b"NaN",
        _ if value > 0.0 => b"Infinity",
        _ => b"-Infinity",
    });
}

/// Appends milliseconds since 1970 as RFC 3339, UTC, with milliseconds, without quotes:
/// `2026-01-01T12:00:00.000Z`. A time outside years 0 to 9999 becomes the nearest inside.
pub fn write_time_ms(ms: i64, out: &mut Vec<u8>) {
    let ms = ms.clamp(TIME_MS_MIN, TIME_MS_MAX);
    let time = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000))
        .expect("years 0 to 9999 are within the library's range");
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    let year = year.unsigned_abs();
    let milli = ms.rem_euclid(1000).unsigned_abs();
    let digit = |value: u64| b'0' + (value % 10) as u8;
    let pair = |value: u8| [digit(u64::from(value) / 10), digit(u64::from(value))];
    let mut text = *b"0000-00-00T00:00:00.000Z";
    for (at, divisor) in [1000, 100, 10, 1].into_iter().enumerate() {
        text[at] = digit(u64::from(year) / divisor);
    }
    for (at, value) in [(5, month as u8), (8, day), (11, hour), (14, minute), (17, second)] {
        text[at..at + 2].copy_from_slice(&pair(value));
    }
    text[20..23].copy_from_slice(&[digit(milli / 100), digit(milli / 10), digit(milli)]);
    out.extend_from_slice(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_are_told_to_the_millisecond_on_both_sides_of_1970() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (1_767_268_800_123, "2026-01-01T12:00:00.123Z"),
            (951_827_696_789, "2000-02-29T12:34:56.789Z"),
            (TIME_MS_MIN, "0000-01-01T00:00:00.000Z"),
            (TIME_MS_MAX, "9999-12-31T23:59:59.999Z"),
            (i64::MIN, "0000-01-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(text(|out| write_time_ms(ms, out)), expected);
        }
    }

    #[test]
    fn doubles_have_a_point_and_read_back_as_themselves() {
        let doubles = [0.0, -0.0, 1.0, -2.5, 0.1, 1e15, 1e16, 1e22, 1e300, 5e-324, f64::MAX];
        for value in doubles {
            let written = text(|out| write_finite_double(value, out));
            assert!(written.contains('.'), "{written}");
            let read: f64 = serde_json::from_str(&written).unwrap();
            assert_eq!(read.to_bits(), value.to_bits(), "{written}");
        }
    }

    #[test]
    fn every_character_comes_back_from_its_json_string() {
        let all: String =
            (0..0x300).chain([0x2028, 0xFFFF, 0x1F600]).filter_map(char::from_u32).collect();
        for sample in [all.as_str(), "", "plain", "a\0b", "\"", "\\", "é"] {
            let written = text(|out| write_json_string(sample, out));
            assert_eq!(serde_json::from_str::<String>(&written).unwrap(), sample);
        }
    }
}

//! Keys whose byte order is MongoDB's order of `_id` values.
//!
//! A key is a type's byte and what orders the values of that type. Everything after the type's byte
//! ends by itself (no key is the beginning of another), so values of documents and arrays can follow
//! each other. The order is that of MongoDB's own index keys, checked against MongoDB 6.0.5: within a
//! document each field counts by type, then name, then value; of arrays only the values count.

use bson::oid::ObjectId;
use bson::raw::{RawBsonRef, RawDocumentBuf};
use bson::spec::ElementType;
use tidewire_protocol::number::{Finite, Number};
use tidewire_protocol::raw::{self, Elements, Reason};

/// Ends a document, an array or a text: below every type's byte.
const END: u8 = 0x00;
/// Stands before the bytes 0 and 1 of a text, which it raises by one, so that no text has an [`END`].
const RAISED: u8 = 0x01;

/// The types' bytes. Numbers have a range: most of them are told by the first byte how long they are.
mod order {
    pub(super) const MIN_KEY: u8 = 0x08;
    pub(super) const UNDEFINED: u8 = 0x0A;
    pub(super) const NULL: u8 = 0x0C;
    pub(super) const NAN: u8 = 0x10;
    pub(super) const NEGATIVE_INFINITY: u8 = 0x11;
    pub(super) const ZERO: u8 = 0x2A;
    pub(super) const INFINITY: u8 = 0x43;
    pub(super) const STRING: u8 = 0x50;
    pub(super) const DOCUMENT: u8 = 0x58;
    pub(super) const ARRAY: u8 = 0x60;
    pub(super) const BINARY: u8 = 0x68;
    pub(super) const OBJECT_ID: u8 = 0x70;
    pub(super) const BOOLEAN: u8 = 0x78;
    pub(super) const DATE: u8 = 0x80;
    pub(super) const TIMESTAMP: u8 = 0x88;
    pub(super) const REGEX: u8 = 0x90;
    pub(super) const DB_POINTER: u8 = 0x98;
    pub(super) const CODE: u8 = 0xA0;
    pub(super) const CODE_WITH_SCOPE: u8 = 0xA8;
    pub(super) const MAX_KEY: u8 = 0xF0;
}

/// A number's magnitude class, added to or taken from [`order::ZERO`]: below 1; 1 to 20 digits before
/// the point; more.
const CLASS_BELOW_ONE: u8 = 1;
const CLASS_WHOLE_DIGITS_MAX: u8 = 20;
const CLASS_HUGE: u8 = CLASS_BELOW_ONE + CLASS_WHOLE_DIGITS_MAX + 1;

/// The key of an `_id`: bytes that order as MongoDB orders `_id` values over all types (simple
/// collation) and are equal exactly where MongoDB takes two `_id`s for one.
///
/// An ObjectId's key has 13 bytes, a small integer's 2 or 3, a String's 2 more than its own. Values
/// that no `_id` can be (Array, Regex, Undefined) have keys too. Bytes that are not BSON count as they
/// are; MongoDB stores none such.
#[must_use]
pub fn sort_key(id: RawBsonRef<'_>) -> Vec<u8> {
    let mut key = Vec::with_capacity(24);
    match id {
        RawBsonRef::ObjectId(id) => {
            key.push(order::OBJECT_ID);
            key.extend_from_slice(&id.bytes());
            return key;
        }
        RawBsonRef::String(text) => {
            key.push(order::STRING);
            write_text(text.as_bytes(), &mut key);
            return key;
        }
        RawBsonRef::Int32(value) => {
            write_number(&i64::from(value).into(), &mut key);
            return key;
        }
        RawBsonRef::Int64(value) => {
            write_number(&value.into(), &mut key);
            return key;
        }
        _ => {}
    }
    // The other types are rare as `_id`s: laid out as BSON first, they need no second way to be read.
    let mut element = RawDocumentBuf::new();
    element.append(bson::cstr!(""), id);
    let written = Elements::of(element.as_bytes()).and_then(|mut elements| {
        match elements.step().map_err(|damage| damage.reason)? {
            Some(element) => write_value(element.kind, element.value, &mut key),
            None => Err("no value"),
        }
    });
    if written.is_err() {
        key.extend_from_slice(element.as_bytes());
    }
    key
}

/// `{_id: …}` with this key, of the types that most `_id`s are of.
pub(super) fn id_of(key: &[u8]) -> Option<RawDocumentBuf> {
    let mut document = RawDocumentBuf::new();
    match key {
        [order::OBJECT_ID, id @ ..] => {
            document.append(bson::cstr!("_id"), ObjectId::from_bytes(id.try_into().ok()?));
        }
        [order::STRING, text @ .., END] if !text.contains(&RAISED) => {
            document.append(bson::cstr!("_id"), std::str::from_utf8(text).ok()?);
        }
        _ => return None,
    }
    let id = document.get("_id").ok()??;
    (sort_key(id) == key).then_some(document)
}

fn write_value(kind: ElementType, value: &[u8], key: &mut Vec<u8>) -> Result<(), Reason> {
    if let Some(number) = Number::read(kind, value)? {
        write_number(&number, key);
        return Ok(());
    }
    key.push(type_byte(kind));
    match kind {
        ElementType::String | ElementType::Symbol | ElementType::JavaScriptCode => {
            write_text(raw::text(value)?, key);
        }
        ElementType::EmbeddedDocument => write_document(value, key)?,
        ElementType::Array => write_array(value, key)?,
        ElementType::Binary => {
            let (subtype, bytes) = raw::binary(value)?;
            write_length(bytes, key)?;
            key.push(subtype);
            key.extend_from_slice(bytes);
        }
        ElementType::DateTime => {
            let ms = i64::from_le_bytes(raw::fixed(value)?);
            // The sign bit turned over puts the times before 1970 below the others.
            key.extend_from_slice(&(ms ^ i64::MIN).to_be_bytes());
        }
        ElementType::Timestamp => {
            key.extend_from_slice(&u64::from_le_bytes(raw::fixed(value)?).to_be_bytes());
        }
        ElementType::RegularExpression => {
            let (pattern, options) = raw::regex(value)?;
            write_text(pattern, key);
            write_text(options, key);
        }
        ElementType::DbPointer => {
            let (namespace, id) = raw::db_pointer(value)?;
            write_length(namespace, key)?;
            key.extend_from_slice(namespace);
            key.extend_from_slice(&id);
        }
        ElementType::JavaScriptCodeWithScope => {
            let (code, scope) = raw::code_with_scope(value)?;
            write_text(code, key);
            write_document(scope, key)?;
        }
        // ObjectId and Bool are their bytes; what is left has none.
        _ => key.extend_from_slice(value),
    }
    Ok(())
}

/// The byte that orders a type among the others; for a number the least that one begins with.
fn type_byte(kind: ElementType) -> u8 {
    match kind {
        ElementType::MinKey => order::MIN_KEY,
        ElementType::Undefined => order::UNDEFINED,
        ElementType::Null => order::NULL,
        ElementType::Int32 | ElementType::Int64 | ElementType::Double | ElementType::Decimal128 => {
            order::NAN
        }
        ElementType::String | ElementType::Symbol => order::STRING,
        ElementType::EmbeddedDocument => order::DOCUMENT,
        ElementType::Array => order::ARRAY,
        ElementType::Binary => order::BINARY,
        ElementType::ObjectId => order::OBJECT_ID,
        ElementType::Boolean => order::BOOLEAN,
        ElementType::DateTime => order::DATE,
        ElementType::Timestamp => order::TIMESTAMP,
        ElementType::RegularExpression => order::REGEX,
        ElementType::DbPointer => order::DB_POINTER,
        ElementType::JavaScriptCode => order::CODE,
        ElementType::JavaScriptCodeWithScope => order::CODE_WITH_SCOPE,
        ElementType::MaxKey => order::MAX_KEY,
    }
}

fn write_document(document: &[u8], key: &mut Vec<u8>) -> Result<(), Reason> {
    let mut elements = Elements::of(document)?;
    while let Some(element) = elements.step().map_err(|damage| damage.reason)? {
        key.push(type_byte(element.kind));
        write_text(element.name, key);
        write_value(element.kind, element.value, key)?;
    }
    key.push(END);
    Ok(())
}

fn write_array(array: &[u8], key: &mut Vec<u8>) -> Result<(), Reason> {
    let mut elements = Elements::of(array)?;
    while let Some(element) = elements.step().map_err(|damage| damage.reason)? {
        write_value(element.kind, element.value, key)?;
    }
    key.push(END);
    Ok(())
}

/// A text of any bytes, zero bytes too: ordered byte by byte, the shorter of two alike first.
fn write_text(text: &[u8], key: &mut Vec<u8>) {
    for part in text.split_inclusive(|&b| b <= RAISED) {
        match part.split_last() {
            Some((&last, plain)) if last <= RAISED => {
                key.extend_from_slice(plain);
                key.extend_from_slice(&[RAISED, last + 1]);
            }
            _ => key.extend_from_slice(part),
        }
    }
    key.push(END);
}

/// A length before the bytes it counts, where MongoDB orders the shorter first: one byte up to 254.
fn write_length(bytes: &[u8], key: &mut Vec<u8>) -> Result<(), Reason> {
    match u8::try_from(bytes.len()) {
        Ok(length @ ..=0xFE) => key.push(length),
        _ => {
            let length = u32::try_from(bytes.len()).map_err(|_| "a value of 4 GiB or more")?;
            key.push(0xFF);
            key.extend_from_slice(&length.to_be_bytes());
        }
    }
    Ok(())
}

fn write_number(number: &Number, key: &mut Vec<u8>) {
    match number {
        Number::NaN => key.push(order::NAN),
        Number::Infinite { negative: true } => key.push(order::NEGATIVE_INFINITY),
        Number::Infinite { negative: false } => key.push(order::INFINITY),
        Number::Finite(finite) => write_finite(finite, key),
    }
}

/// A finite number: class, where the first byte does not say it the exponent, then the digits in
/// pairs, each byte but the last odd. Below zero all of it is turned over, so that more is less.
fn write_finite(number: &Finite, key: &mut Vec<u8>) {
    if number.digits.is_empty() {
        return key.push(order::ZERO);
    }
    let class = match u8::try_from(number.exponent) {
        Ok(0) | Err(_) if number.exponent <= 0 => CLASS_BELOW_ONE,
        Ok(digits @ 1..=CLASS_WHOLE_DIGITS_MAX) => CLASS_BELOW_ONE + digits,
        _ => CLASS_HUGE,
    };
    key.push(if number.negative { order::ZERO - class } else { order::ZERO + class });
    let start = key.len();
    if class == CLASS_BELOW_ONE || class == CLASS_HUGE {
        let exponent = i16::try_from(number.exponent).expect("BSON numbers stay within 10^±6200");
        key.extend_from_slice(&(exponent ^ i16::MIN).to_be_bytes());
    }
    for pair in number.digits.chunks(2) {
        let tens = pair[0] - b'0';
        let ones = pair.get(1).map_or(0, |digit| digit - b'0');
        key.push((tens * 10 + ones) * 2 + 1);
    }
    *key.last_mut().expect("a number that is not zero has digits") -= 1;
    if number.negative {
        key[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }
}

#[cfg(test)]
mod tests {
    use bson::{Bson, RawBson, bson};

    use super::*;

    fn key(value: Bson) -> Vec<u8> {
        sort_key(RawBson::try_from(value).unwrap().as_raw_bson_ref())
    }

    fn decimal(text: &str) -> Bson {
        Bson::Decimal128(text.parse().unwrap())
    }

    #[test]
    fn the_common_keys_are_short() {
        assert_eq!(key(Bson::ObjectId(bson::oid::ObjectId::new())).len(), 13);
        assert_eq!(key(bson!("abc")).len(), 5);
        for (value, length) in [(0, 1), (7, 2), (-70, 2), (1234, 3), (1_000_000, 2)] {
            assert_eq!(key(bson!(value)).len(), length, "{value}");
        }
        assert_eq!(key(bson!(i64::MAX)).len(), 11);
        assert_eq!(key(bson!({"a": 1})).len(), 7);
    }

    #[test]
    fn numbers_order_by_their_exact_value_across_types() {
        let ascending = [
            bson!(f64::NAN),
            bson!(f64::NEG_INFINITY),
            decimal("-9.999999999999999999999999999999999E+6144"),
            bson!(-1e300),
            bson!(-100),
            bson!(-99.5),
            bson!(-12),
            decimal("-1E-6176"),
            bson!(0),
            decimal("1E-6176"),
            bson!(5e-324),
            decimal("0.1"),
            bson!(0.1),
            bson!(1),
            bson!(1.5),
            bson!(12),
            decimal("12.01"),
            bson!(i64::MAX - 1),
            bson!(i64::MAX),
            bson!(9_223_372_036_854_775_808.0),
            decimal("1E+300"),
            bson!(1e300),
            decimal("1E+6144"),
            bson!(f64::INFINITY),
            bson!(""),
        ];
        for pair in ascending.windows(2) {
            assert!(key(pair[0].clone()) < key(pair[1].clone()), "{pair:?}");
        }
    }

    #[test]
    fn equal_numbers_have_one_key_whatever_their_type() {
        for same in [
            vec![bson!(7), bson!(7_i64), bson!(7.0), decimal("7.00")],
            vec![bson!(0), bson!(-0.0), decimal("-0E+10")],
            vec![bson!(f64::NAN), bson!(-f64::NAN), decimal("NaN")],
            vec![bson!(f64::INFINITY), decimal("Infinity")],
            vec![bson!(2_f64.powi(100)), decimal("1267650600228229401496703205376")],
            vec![bson!({"a": [1, {"b": 2.0}]}), bson!({"a": [1.0, {"b": decimal("2")}]})],
            vec![bson!("s"), Bson::Symbol("s".to_owned())],
        ] {
            for other in &same {
                assert_eq!(key(other.clone()), key(same[0].clone()), "{other:?}");
            }
        }
    }
}

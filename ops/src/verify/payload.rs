//! Payloads in the `json` encoding.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bson::spec::BinarySubtype;
use bson::{Bson, Document};
use time::OffsetDateTime;

use super::extended::{self, Form};
use super::json::Json;
use super::key::double_text;

pub(super) fn document(fields: &Document) -> Json {
    Json::Object(fields.iter().map(|(name, v)| (name.clone(), value(v))).collect())
}

fn value(of: &Bson) -> Json {
    match of {
        Bson::Null => Json::Null,
        Bson::Boolean(truth) => Json::Bool(*truth),
        Bson::String(text) => Json::string(text),
        Bson::Int32(number) => Json::Number(number.to_string()),
        Bson::Int64(number) => Json::Number(number.to_string()),
        Bson::Double(number) if number.is_finite() => Json::Number(double_text(*number)),
        Bson::Double(number) => {
            Json::tagged("$numberDouble", Json::string(extended::double(*number)))
        }
        Bson::Decimal128(number) => Json::string(number.to_string()),
        Bson::ObjectId(id) => Json::string(id.to_hex()),
        Bson::Array(values) => Json::Array(values.iter().map(value).collect()),
        Bson::Document(fields) => document(fields),
        Bson::DateTime(date) => match rfc3339(date.timestamp_millis()) {
            Some(text) => Json::string(text),
            None => extended::value_of(of, Form::Canonical),
        },
        Bson::Binary(binary) => match <[u8; 16]>::try_from(binary.bytes.as_slice()) {
            Ok(bytes) if binary.subtype == BinarySubtype::Uuid => {
                Json::string(bson::Uuid::from_bytes(bytes).to_string())
            }
            _ => Json::string(BASE64_STANDARD.encode(&binary.bytes)),
        },
        // The scope is a document like any other.
        Bson::JavaScriptCodeWithScope(code) => Json::Object(vec![
            ("$code".into(), Json::string(&code.code)),
            ("$scope".into(), document(&code.scope)),
        ]),
        odd => extended::value_of(odd, Form::Canonical),
    }
}

/// RFC 3339 with milliseconds, for the years 0 to 9999.
fn rfc3339(ms: i64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()?;
    (0..=9_999).contains(&at.year()).then(|| {
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second(),
            at.millisecond()
        )
    })
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    #[test]
    fn the_contracts_table_holds() {
        let check = |of: Bson, expected: &str| assert_eq!(value(&of).to_string(), expected);
        check(Bson::Double(7.0), "7.0");
        check(Bson::Double(f64::NAN), r#"{"$numberDouble":"NaN"}"#);
        check(Bson::Int64(i64::MAX), "9223372036854775807");
        check(Bson::Decimal128("12.50".parse().unwrap()), r#""12.50""#);
        check(bson::DateTime::from_millis(0).into(), r#""1970-01-01T00:00:00.000Z""#);
        let far = bson::DateTime::from_millis(i64::MAX).into();
        check(far, r#"{"$date":{"$numberLong":"9223372036854775807"}}"#);
        check(
            Bson::Timestamp(bson::Timestamp { time: 1, increment: 2 }),
            r#"{"$timestamp":{"t":1,"i":2}}"#,
        );
        check(doc! { "a": [1, "x", null] }.into(), r#"{"a":[1,"x",null]}"#);
    }
}

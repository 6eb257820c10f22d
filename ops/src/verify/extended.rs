//! Extended JSON, for the types that plain JSON has no words for and for keys.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bson::{Bson, Document};

use super::json::Json;
use super::{key, number};

/// Which Extended JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Canonical.
    Canonical,
    /// The variant inside keys: numbers by value, symbols as strings.
    Key,
}

pub(super) fn document(fields: &Document, form: Form) -> Json {
    let convert = |(name, value): (&String, &Bson)| (name.clone(), value_of(value, form));
    let object = Json::Object(fields.iter().map(convert).collect());
    // A document that would read like a value of another type says that it is none; a DBRef is no type.
    let first = fields.keys().next();
    let mistaken = first.is_some_and(|name| name.starts_with('$') && name != "$ref");
    match form {
        Form::Key if mistaken => Json::tagged("$document", object),
        _ => object,
    }
}

pub(super) fn value_of(value: &Bson, form: Form) -> Json {
    if form == Form::Key {
        if let Some(text) = number::text(value) {
            return Json::tagged("$number", Json::string(text));
        }
        if let Bson::Symbol(text) = value {
            return Json::string(text);
        }
    }
    match value {
        Bson::Null => Json::Null,
        Bson::Boolean(value) => Json::Bool(*value),
        Bson::String(text) => Json::string(text),
        Bson::Array(values) => Json::Array(values.iter().map(|v| value_of(v, form)).collect()),
        Bson::Document(fields) => document(fields, form),
        Bson::Int32(number) => Json::tagged("$numberInt", Json::string(number.to_string())),
        Bson::Int64(number) => Json::tagged("$numberLong", Json::string(number.to_string())),
        Bson::Double(number) => Json::tagged("$numberDouble", Json::string(double(*number))),
        Bson::Decimal128(number) => {
            Json::tagged("$numberDecimal", Json::string(number.to_string()))
        }
        Bson::ObjectId(id) => Json::tagged("$oid", Json::string(id.to_hex())),
        Bson::DateTime(date) => {
            let ms = Json::string(date.timestamp_millis().to_string());
            Json::tagged("$date", Json::tagged("$numberLong", ms))
        }
        Bson::Binary(binary) => {
            let base64 = Json::string(BASE64_STANDARD.encode(&binary.bytes));
            let subtype = Json::string(format!("{:02x}", u8::from(binary.subtype)));
            pair("$binary", "base64", base64, "subType", subtype)
        }
        other => odd(other, form),
    }
}

/// The types of which canonical and relaxed form are one.
fn odd(value: &Bson, form: Form) -> Json {
    match value {
        Bson::Timestamp(at) => {
            let number = |number: u32| Json::Number(number.to_string());
            pair("$timestamp", "t", number(at.time), "i", number(at.increment))
        }
        Bson::RegularExpression(regex) => {
            let (pattern, mut options) = (regex.pattern.as_str(), sorted(regex.options.as_str()));
            options.dedup();
            let options: String = options.into_iter().collect();
            let (pattern, options) = (Json::string(pattern), Json::string(options));
            pair("$regularExpression", "pattern", pattern, "options", options)
        }
        Bson::JavaScriptCode(code) => Json::tagged("$code", Json::string(code)),
        Bson::JavaScriptCodeWithScope(code) => Json::Object(vec![
            ("$code".into(), Json::string(&code.code)),
            ("$scope".into(), document(&code.scope, form)),
        ]),
        Bson::Symbol(text) => Json::tagged("$symbol", Json::string(text)),
        Bson::MinKey => Json::tagged("$minKey", Json::Number("1".into())),
        Bson::MaxKey => Json::tagged("$maxKey", Json::Number("1".into())),
        Bson::Undefined => Json::tagged("$undefined", Json::Bool(true)),
        pointer => db_pointer(pointer),
    }
}

/// The driver keeps a DBPointer's parts to itself, but writes them out.
fn db_pointer(pointer: &Bson) -> Json {
    let text = serde_json::to_string(pointer).unwrap_or_default();
    Json::parse(&text).unwrap_or(Json::Null)
}

fn pair(tag: &str, first: &str, one: Json, second: &str, two: Json) -> Json {
    Json::tagged(tag, Json::Object(vec![(first.into(), one), (second.into(), two)]))
}

fn sorted(text: &str) -> Vec<char> {
    let mut letters: Vec<char> = text.chars().collect();
    letters.sort_unstable();
    letters
}

pub(super) fn double(number: f64) -> String {
    if number.is_nan() {
        "NaN".into()
    } else if number.is_infinite() {
        if number > 0.0 { "Infinity".into() } else { "-Infinity".into() }
    } else {
        key::double_text(number)
    }
}

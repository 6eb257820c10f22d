//! The encodings against `goldens/`: lines of JSON that every implementation of the wire can read.
//! Their Extended JSON was checked against another driver, their keys against MongoDB 6.0.5.

use std::path::Path;

use bson::RawDocumentBuf;
use bson::raw::RawBsonRef;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tidewire_protocol::key::mongo_id;
use tidewire_protocol::payload::{EncodeError, Exclude, write_ejson, write_json};

/// A document and its two texts.
#[derive(Deserialize)]
struct Payload {
    name: String,
    bson: String,
    json: Box<RawValue>,
    ejson: Box<RawValue>,
}

/// A document with an `_id` only, and the text of that `_id`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Id {
    name: String,
    bson: String,
    mongo_id: String,
}

/// A document that can't be written, and where the damage is.
#[derive(Deserialize)]
struct Damaged {
    name: String,
    bson: String,
    path: String,
}

fn goldens<T: DeserializeOwned>(file: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<T> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty());
    lines
}

fn document(hex: &str) -> RawDocumentBuf {
    let digits: Vec<u8> = hex.bytes().map(|b| char::from(b).to_digit(16).unwrap() as u8).collect();
    let bytes = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    RawDocumentBuf::from_bytes(bytes).unwrap()
}

fn json(document: &RawDocumentBuf) -> Result<String, EncodeError> {
    let mut out = Vec::new();
    write_json(document, &Exclude::none(), &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn ejson(document: &RawDocumentBuf) -> Result<String, EncodeError> {
    let mut out = Vec::new();
    write_ejson(document, &Exclude::none(), &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn payloads_are_written_as_the_goldens_say() {
    for golden in goldens::<Payload>("payloads.jsonl") {
        let document = document(&golden.bson);
        assert_eq!(json(&document).as_deref(), Ok(golden.json.get()), "{}", golden.name);
        assert_eq!(ejson(&document).as_deref(), Ok(golden.ejson.get()), "{}", golden.name);
    }
}

#[test]
fn ids_are_written_as_the_goldens_say() {
    for golden in goldens::<Id>("ids.jsonl") {
        let document = document(&golden.bson);
        let id: RawBsonRef<'_> = document.get("_id").unwrap().unwrap();
        assert_eq!(mongo_id(id), golden.mongo_id, "{}", golden.name);
    }
}

#[test]
fn damage_is_told_with_its_path_and_leaves_nothing_half_written() {
    for golden in goldens::<Damaged>("damaged.jsonl") {
        let document = document(&golden.bson);
        for write in [write_json, write_ejson] {
            let mut out = b"before".to_vec();
            let error = write(&document, &Exclude::none(), &mut out).expect_err(&golden.name);
            assert_eq!(error.path(), golden.path, "{}: {error}", golden.name);
            assert_eq!(out, b"before", "{}", golden.name);
        }
    }
}

#[test]
fn an_id_that_cannot_be_decoded_still_has_a_text_of_its_own() {
    let bad = |byte: u8| {
        let mut bytes = bson::rawdoc! { "_id": { "a": "x" } }.into_bytes();
        let at = bytes.iter().rposition(|&b| b == b'x').unwrap();
        bytes[at] = byte;
        RawDocumentBuf::from_bytes(bytes).unwrap()
    };
    let (one, other) = (bad(0xFE), bad(0xFF));
    let text = |document: &RawDocumentBuf| mongo_id(document.get("_id").unwrap().unwrap());
    assert!(text(&one).starts_with("~x:"));
    assert_ne!(text(&one), text(&other));
}

#[test]
fn nesting_beyond_what_mongodb_allows_is_an_error_and_not_a_crash() {
    let mut document = bson::rawdoc! {};
    for _ in 0..10_000 {
        let mut outer = RawDocumentBuf::new();
        outer.append(bson::cstr!("d"), document);
        document = outer;
    }
    let error = json(&document).unwrap_err();
    assert!(error.path().starts_with("d.d.d.") && error.path().ends_with('…'), "{error}");
    assert!(mongo_id(RawBsonRef::Document(&document)).starts_with("~x:"));
}

#[test]
fn excluded_paths_go_through_documents_and_arrays_as_in_a_projection() {
    let document = bson::rawdoc! {
        "_id": 1,
        "notes": "hidden",
        "items": [
            { "sku": "a", "cost": 1 }, 5, [{ "cost": 2, "sku": "b" }], { "cost": { "x": 1 } },
        ],
        "user": { "name": "n", "secret": { "a": 1 }, "0": "zero" },
        "cost": 3,
        "scalar": 4,
    };
    let paths = ["notes", "items.cost", "user.secret.a", "user.0", "scalar.deeper", "absent"];
    let exclude = Exclude::parse(&paths.map(str::to_owned)).unwrap();
    let mut out = Vec::new();
    write_json(&document, &exclude, &mut out).unwrap();
    let expected = concat!(
        r#"{"_id":1,"items":[{"sku":"a"},5,[{"sku":"b"}],{}],"#,
        r#""user":{"name":"n","secret":{}},"cost":3,"scalar":4}"#
    );
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn a_repeated_name_cannot_bring_an_excluded_field_back() {
    let mut document = RawDocumentBuf::new();
    for value in ["x", "y"] {
        document.append(bson::cstr!("secret"), value);
        document.append(bson::cstr!("open"), value);
    }
    let exclude = Exclude::parse(&["secret".to_owned()]).unwrap();
    let mut out = Vec::new();
    write_json(&document, &exclude, &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), r#"{"open":"y"}"#);
}

#[test]
fn an_error_in_a_hidden_field_stops_nothing() {
    let mut bytes = bson::rawdoc! { "secret": "x", "open": 1 }.into_bytes();
    let at = bytes.iter().position(|&b| b == b'x').unwrap();
    bytes[at] = 0xFF;
    let document = RawDocumentBuf::from_bytes(bytes).unwrap();
    let exclude = Exclude::parse(&["secret".to_owned()]).unwrap();
    let mut out = Vec::new();
    write_json(&document, &exclude, &mut out).unwrap();
    assert_eq!(out, br#"{"open":1}"#);
}

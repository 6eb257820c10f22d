//! The public BSON corpus, where it is at hand: set `BSON_CORPUS` to the folder of its JSON files
//! (pymongo's source package has them in `test/bson_corpus`). It is not ours to ship.

use std::path::Path;

use bson::RawDocumentBuf;
use serde_json::Value;
use tidewire_protocol::payload::{Exclude, write_ejson, write_json};

fn bytes(case: &Value, field: &str) -> Option<Vec<u8>> {
    let hex = case.get(field)?.as_str()?;
    let digits: Vec<u8> = hex.bytes().map(|b| char::from(b).to_digit(16).unwrap() as u8).collect();
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Doubles count by value: the corpus lets drivers choose their digits.
fn by_value(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(by_value),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str().map(str::parse::<f64>) {
                    Some(Ok(double)) if name == "$numberDouble" => {
                        *value = Value::from(double.to_bits());
                    }
                    _ => by_value(value),
                }
            }
        }
        _ => {}
    }
}

fn check_valid(case: &Value) {
    let expected = case["canonical_extjson"].as_str().unwrap();
    // serde_json's numbers could change in reading; a corpus text is compared as values.
    let mut expected: Value = serde_json::from_str(expected).unwrap();
    by_value(&mut expected);
    for field in ["canonical_bson", "degenerate_bson"] {
        let Some(bytes) = bytes(case, field) else { continue };
        let document = RawDocumentBuf::from_bytes(bytes).unwrap();
        let mut out = Vec::new();
        write_ejson(&document, &Exclude::none(), &mut out).unwrap();
        let mut written: Value = serde_json::from_slice(&out).unwrap();
        by_value(&mut written);
        assert_eq!(written, expected, "{}", case["description"]);
        out.clear();
        write_json(&document, &Exclude::none(), &mut out).unwrap();
        serde_json::from_slice::<Value>(&out).unwrap();
    }
}

fn check_damaged(case: &Value) {
    let Ok(document) = RawDocumentBuf::from_bytes(bytes(case, "bson").unwrap()) else { return };
    let mut out = Vec::new();
    let written = write_ejson(&document, &Exclude::none(), &mut out);
    assert!(written.is_err(), "{}: {}", case["description"], String::from_utf8_lossy(&out));
}

#[test]
fn the_public_corpus_is_written_as_it_says() {
    let Some(folder) = std::env::var_os("BSON_CORPUS") else {
        eprintln!("SKIPPED: BSON_CORPUS names no folder with the public BSON corpus");
        return;
    };
    let mut cases = 0;
    for file in std::fs::read_dir(Path::new(&folder)).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let suite: Value = serde_json::from_str(&text).unwrap();
        for case in suite["valid"].as_array().into_iter().flatten() {
            check_valid(case);
            cases += 1;
        }
        for case in suite["decodeErrors"].as_array().into_iter().flatten() {
            check_damaged(case);
            cases += 1;
        }
    }
    assert!(cases > 400, "only {cases} cases: is this the whole corpus?");
}

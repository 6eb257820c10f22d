//! What holds of every document, tried on random ones. A failure prints its smallest case.

use std::collections::HashMap;

use bson::raw::RawBsonRef;
use bson::{Bson, Document, RawDocumentBuf};
use proptest::prelude::*;
use tidewire_protocol::key::mongo_id;
use tidewire_protocol::payload::{Exclude, write_ejson, write_json};

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-d]{0,3}", "[^\u{0}$]{1,12}", Just("_id".to_owned())]
}

fn scalar() -> impl Strategy<Value = Bson> {
    prop_oneof![
        any::<String>().prop_map(Bson::String),
        any::<i32>().prop_map(Bson::Int32),
        any::<i64>().prop_map(Bson::Int64),
        any::<f64>().prop_map(Bson::Double),
        any::<bool>().prop_map(Bson::Boolean),
        Just(Bson::Null),
        any::<[u8; 12]>().prop_map(|id| Bson::ObjectId(bson::oid::ObjectId::from_bytes(id))),
        any::<i64>().prop_map(|ms| Bson::DateTime(bson::DateTime::from_millis(ms))),
        any::<[u8; 16]>().prop_map(|bytes| Bson::Decimal128(bson::Decimal128::from_bytes(bytes))),
        (any::<u32>(), any::<u32>())
            .prop_map(|(time, increment)| Bson::Timestamp(bson::Timestamp { time, increment })),
        (any::<u8>(), any::<Vec<u8>>()).prop_map(|(subtype, bytes)| {
            Bson::Binary(bson::Binary { subtype: subtype.into(), bytes })
        }),
        any::<String>().prop_map(Bson::JavaScriptCode),
        any::<String>().prop_map(Bson::Symbol),
        Just(Bson::MinKey),
        Just(Bson::MaxKey),
        Just(Bson::Undefined),
    ]
}

fn document() -> impl Strategy<Value = Document> {
    let value = scalar().prop_recursive(6, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Bson::Array),
            prop::collection::vec((name(), inner), 0..5)
                .prop_map(|fields| Bson::Document(fields.into_iter().collect())),
        ]
    });
    prop::collection::vec((name(), value), 0..12).prop_map(|fields| fields.into_iter().collect())
}

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
}

fn json(document: &RawDocumentBuf) -> String {
    let mut out = Vec::new();
    write_json(document, &Exclude::none(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn ejson(document: &RawDocumentBuf) -> String {
    let mut out = Vec::new();
    write_ejson(document, &Exclude::none(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// What Extended JSON does not carry: the bits of a NaN, and the digits of what is no number.
fn without_hidden_bits(document: Document) -> Document {
    fn of(value: Bson) -> Bson {
        match value {
            Bson::Double(double) if double.is_nan() => Bson::Double(f64::NAN),
            Bson::Decimal128(decimal) => {
                let text = json(&bson::rawdoc! { "x": decimal });
                let text: HashMap<String, String> = serde_json::from_str(&text).unwrap();
                Bson::Decimal128(text["x"].parse().unwrap())
            }
            Bson::Array(values) => values.into_iter().map(of).collect(),
            Bson::Document(fields) => Bson::Document(without_hidden_bits(fields)),
            other => other,
        }
    }
    document.into_iter().map(|(name, value)| (name, of(value))).collect()
}

proptest! {
    #[test]
    fn extended_json_reads_back_as_the_same_bytes(document in document()) {
        let document = without_hidden_bits(document);
        let raw = raw(&document);
        let read: Document = serde_json::from_str(&ejson(&raw)).unwrap();
        let back = RawDocumentBuf::try_from(&read).unwrap();
        prop_assert_eq!(back.as_bytes(), raw.as_bytes());
    }

    #[test]
    fn json_is_json_with_the_names_in_order(document in document()) {
        let text = json(&raw(&document));
        let read: Ordered = serde_json::from_str(&text).unwrap();
        let names: Vec<&str> = document.keys().map(String::as_str).collect();
        prop_assert_eq!(read.0, names);
    }

    #[test]
    fn a_string_and_a_document_never_share_an_id(text in any::<String>(), document in document()) {
        let raw = raw(&document);
        let id = mongo_id(RawBsonRef::Document(&raw));
        prop_assert_eq!(&id[..2], "~{");
        prop_assert_ne!(&id, &mongo_id(RawBsonRef::String(&text)));
        prop_assert_ne!(&id, &mongo_id(RawBsonRef::String(&id)));
    }

    #[test]
    fn an_integer_is_its_digits_whatever_its_type(value in any::<i32>()) {
        let expected = format!("~{value}");
        let decimal: bson::Decimal128 = format!("{value}.00").parse().unwrap();
        for id in [
            RawBsonRef::Int32(value),
            RawBsonRef::Int64(value.into()),
            RawBsonRef::Double(value.into()),
            RawBsonRef::Decimal128(decimal),
        ] {
            prop_assert_eq!(mongo_id(id), expected.as_str());
        }
    }

    #[test]
    fn a_number_s_text_reads_back_as_the_double(value in any::<f64>()) {
        let text = mongo_id(RawBsonRef::Double(value));
        let read: f64 = text[1..].parse().unwrap();
        prop_assert!(read == value || (read.is_nan() && value.is_nan()), "{}", text);
    }
}

/// The names of an object in the order of its text.
struct Ordered(Vec<String>);

impl<'de> serde::Deserialize<'de> for Ordered {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> serde::de::Visitor<'de> for Names {
            type Value = Ordered;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Ordered, A::Error> {
                let mut names = Vec::new();
                while let Some((name, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                    names.push(name);
                }
                Ok(Ordered(names))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

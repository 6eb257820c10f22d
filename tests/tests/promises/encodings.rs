//! Keys and payloads are as the contract's section 4 has them: two programs that were written apart
//! agree on documents of every BSON type.

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{
    Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, RawBson, RawDocumentBuf,
    Regex, Timestamp, doc,
};
use proptest::prelude::*;
use tidewire_ops::verify;
use tidewire_protocol::key;
use tidewire_protocol::payload::{Exclude, write_json};

const LEVELS: u32 = 5;
const NODES: u32 = 40;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z$~. ]{0,12}",
        1 => "\\PC{0,8}",
        1 => any::<String>(),
        1 => "[0-9a-f]{24}",
    ]
}

fn name() -> impl Strategy<Value = String> {
    text().prop_map(|text| text.replace('\0', ""))
}

fn double() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>(),
        any::<i32>().prop_map(f64::from),
        prop_oneof![
            Just(0.1),
            Just(-0.0),
            Just(1e300),
            Just(5e-324),
            Just(9_007_199_254_740_993.0)
        ],
        prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY)],
    ]
}

fn decimal() -> impl Strategy<Value = Decimal128> {
    (any::<i64>(), -60_i32..60, any::<bool>()).prop_map(|(digits, power, is_plain)| {
        let text = if is_plain { digits.to_string() } else { format!("{digits}E{power}") };
        text.parse().expect("a decimal")
    })
}

fn scalar() -> impl Strategy<Value = Bson> {
    prop_oneof![
        Just(Bson::Null),
        Just(Bson::MinKey),
        Just(Bson::MaxKey),
        Just(Bson::Undefined),
        any::<bool>().prop_map(Bson::Boolean),
        any::<i32>().prop_map(Bson::Int32),
        any::<i64>().prop_map(Bson::Int64),
        double().prop_map(Bson::Double),
        decimal().prop_map(Bson::Decimal128),
        text().prop_map(Bson::String),
        text().prop_map(Bson::Symbol),
        text().prop_map(Bson::JavaScriptCode),
        any::<[u8; 12]>().prop_map(|bytes| ObjectId::from_bytes(bytes).into()),
        any::<i64>().prop_map(|ms| DateTime::from_millis(ms).into()),
        (-70_000_000_000_000_i64..260_000_000_000_000)
            .prop_map(|ms| DateTime::from_millis(ms).into()),
        (any::<u32>(), any::<u32>())
            .prop_map(|(time, increment)| Timestamp { time, increment }.into()),
        (prop::collection::vec(any::<u8>(), 0..20), 0_u8..7).prop_map(binary),
        any::<[u8; 16]>().prop_map(|bytes| binary((bytes.to_vec(), 4))),
        (name(), "[imsx]{0,4}").prop_map(|(pattern, options)| regex(&pattern, &options)),
    ]
}

fn binary((mut bytes, subtype): (Vec<u8>, u8)) -> Bson {
    // Subtype 2 has a length of its own inside; the driver checks it.
    let subtype = BinarySubtype::from(subtype);
    if subtype == BinarySubtype::BinaryOld {
        bytes.clear();
    }
    Bson::Binary(Binary { subtype, bytes })
}

fn regex(pattern: &str, options: &str) -> Bson {
    let pattern = bson::raw::CString::try_from(pattern).expect("no NUL in it");
    let mut options: Vec<char> = options.chars().collect();
    options.sort_unstable();
    options.dedup();
    let options: String = options.into_iter().collect();
    let options = bson::raw::CString::try_from(options).expect("no NUL in it");
    Bson::RegularExpression(Regex { pattern, options })
}

fn value() -> impl Strategy<Value = Bson> {
    scalar().prop_recursive(LEVELS, NODES, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Bson::Array),
            document(inner.clone()).prop_map(Bson::Document),
            (text(), document(inner)).prop_map(|(code, scope)| {
                Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code, scope })
            }),
        ]
    })
}

fn document(value: impl Strategy<Value = Bson>) -> impl Strategy<Value = Document> {
    prop::collection::vec((name(), value), 0..6).prop_map(|fields| fields.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_payload_says_what_its_document_says(id in value(), fields in document(value())) {
        let mut document = doc! { "_id": id };
        document.extend(fields);
        let raw = RawDocumentBuf::try_from(&document).expect("raw");
        let mut text = Vec::new();
        write_json(&raw, &Exclude::none(), &mut text).expect("a payload");
        let text = String::from_utf8(text).expect("UTF-8");
        prop_assert_eq!(verify::payload_differs(&document, &text), None, "{}", text);
    }

    #[test]
    fn every_key_has_the_contracts_text(id in value()) {
        let raw = RawBson::try_from(id.clone()).expect("raw");
        prop_assert_eq!(key::mongo_id(raw.as_raw_bson_ref()), verify::mongo_id(&id));
    }
}

//! The log's keys: MongoDB's order, and one key exactly where MongoDB sees one `_id`.
//!
//! The goldens stand in the order in which MongoDB 6.0.5 returned them by its `_id` index; those that
//! share a `mongoId` it refused as duplicates.

use std::path::Path;

use bson::raw::RawBsonRef;
use bson::{Bson, RawBson, RawDocumentBuf};
use proptest::prelude::*;
use tidewire_protocol::key::mongo_id;
use tidewire_server::log::sort_key;

#[derive(serde::Deserialize)]
struct Golden {
    name: String,
    bson: String,
    #[serde(rename = "mongoId")]
    mongo_id: String,
}

fn goldens() -> Vec<(Golden, Vec<u8>)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/goldens/ids.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    let key_of = |line: &str| {
        let golden: Golden = serde_json::from_str(line).unwrap();
        let digits: Vec<u8> =
            golden.bson.bytes().map(|b| char::from(b).to_digit(16).unwrap() as u8).collect();
        let bytes = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        let document = RawDocumentBuf::from_bytes(bytes).unwrap();
        let key = sort_key(document.get("_id").unwrap().unwrap());
        (golden, key)
    };
    text.lines().map(key_of).collect()
}

#[test]
fn keys_order_as_mongodb_orders_ids() {
    for pair in goldens().windows(2) {
        let [(one, one_key), (next, next_key)] = pair else { unreachable!() };
        let expected = if one.mongo_id == next.mongo_id { "equal" } else { "less" };
        let found = match one_key.cmp(next_key) {
            std::cmp::Ordering::Less => "less",
            std::cmp::Ordering::Equal => "equal",
            std::cmp::Ordering::Greater => "greater",
        };
        assert_eq!(
            found, expected,
            "{} ({}) and {} ({})",
            one.name, one.bson, next.name, next.bson
        );
    }
}

#[test]
fn no_key_is_the_beginning_of_another() {
    let goldens = goldens();
    for (one, key) in &goldens {
        for (other, other_key) in &goldens {
            let same = one.mongo_id == other.mongo_id;
            assert!(same || !other_key.starts_with(key), "{} and {}", one.name, other.name);
        }
    }
}

/// Values that are often equal across types, so that the laws below meet both outcomes.
fn id() -> impl Strategy<Value = Bson> {
    let decimal = |text: String| Bson::Decimal128(text.parse().unwrap());
    let leaf = prop_oneof![
        (-3..3_i32).prop_map(Bson::Int32),
        (-3..3_i64).prop_map(Bson::Int64),
        (-6..6_i32).prop_map(|halves| Bson::Double(f64::from(halves) / 2.0)),
        (-30..30_i32, -3..3_i32).prop_map(move |(c, e)| decimal(format!("{c}E{e}"))),
        any::<i64>().prop_map(Bson::Int64),
        any::<f64>().prop_map(Bson::Double),
        any::<i64>().prop_map(|value| Bson::Double(value as f64)),
        any::<[u8; 16]>().prop_map(|bytes| Bson::Decimal128(bson::Decimal128::from_bytes(bytes))),
        "[~a\u{0}\u{1}]{0,3}".prop_map(Bson::String),
        "[~a\u{0}]{0,2}".prop_map(Bson::Symbol),
        any::<bool>().prop_map(Bson::Boolean),
        (-2..2_i64).prop_map(|ms| Bson::DateTime(bson::DateTime::from_millis(ms))),
        any::<[u8; 12]>().prop_map(|id| Bson::ObjectId(bson::oid::ObjectId::from_bytes(id))),
        (0..5_u8, prop::collection::vec(0..2_u8, 0..3)).prop_map(|(subtype, bytes)| {
            Bson::Binary(bson::Binary { subtype: subtype.into(), bytes })
        }),
        "[a]{0,2}".prop_map(Bson::JavaScriptCode),
        prop_oneof![
            Just(Bson::Null),
            Just(Bson::Undefined),
            Just(Bson::MinKey),
            Just(Bson::MaxKey)
        ],
    ];
    leaf.prop_recursive(4, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Bson::Array),
            prop::collection::vec(("[ab]{0,2}", inner), 0..3)
                .prop_map(|fields| Bson::Document(fields.into_iter().collect())),
        ]
    })
}

fn raw(id: Bson) -> RawBson {
    RawBson::try_from(id).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn two_ids_have_one_key_exactly_where_they_have_one_mongo_id(one in id(), other in id()) {
        let (one, other) = (raw(one), raw(other));
        let (one, other): (RawBsonRef<'_>, RawBsonRef<'_>) =
            (one.as_raw_bson_ref(), other.as_raw_bson_ref());
        prop_assert_eq!(sort_key(one) == sort_key(other), mongo_id(one) == mongo_id(other));
    }

    #[test]
    fn doubles_and_decimals_order_exactly(
        one in any::<f64>(),
        digits in 0..10_u64.pow(17),
        power in -330..310_i32,
    ) {
        prop_assume!(one.is_finite());
        // Compared through text: std reads decimals into the nearest double, and only a tie needs more.
        let text = format!("{digits}E{power}");
        let nearest: f64 = text.parse().unwrap();
        prop_assume!(nearest != one);
        let decimal = raw(Bson::Decimal128(text.parse().unwrap()));
        let (double_key, decimal_key) =
            (sort_key(RawBsonRef::Double(one)), sort_key(decimal.as_raw_bson_ref()));
        prop_assert_eq!(double_key < decimal_key, one < nearest);
    }
}

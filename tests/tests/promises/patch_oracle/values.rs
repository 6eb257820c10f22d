//! Random values, `_id`s and documents of known shape, so that most operations fit.

use bson::spec::BinarySubtype;
use bson::{
    Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, bson,
    doc, oid::ObjectId,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// One of several.
pub(super) fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

/// A number of any type.
pub(super) fn number(rng: &mut StdRng) -> Bson {
    let small = rng.random_range(-20..100);
    match rng.random_range(0..8) {
        0 => Bson::Int64(i64::from(small) << 33),
        1 => Bson::Double(f64::from(small) / 4.0),
        2 => Bson::Decimal128(decimal(rng)),
        3 => Bson::Int64(small.into()),
        _ => Bson::Int32(small),
    }
}

fn decimal(rng: &mut StdRng) -> Decimal128 {
    format!("{}.{:02}", rng.random_range(-99..999), rng.random_range(0..100))
        .parse()
        .expect("a decimal")
}

fn text(rng: &mut StdRng, most: usize) -> String {
    let letters = ['a', 'b', 'é', '日', '\0', '.', '$', '0', '🦀', '"'];
    (0..rng.random_range(0..=most)).map(|_| pick(rng, &letters)).collect()
}

fn object_id(rng: &mut StdRng) -> ObjectId {
    let mut bytes = [0; 12];
    rng.fill_bytes(&mut bytes);
    ObjectId::from_bytes(bytes)
}

/// A value of any type that MongoDB stores and an update may set.
pub(super) fn value(rng: &mut StdRng, depth: u32) -> Bson {
    match rng.random_range(0..22) {
        0 => Bson::String(text(rng, 12)),
        1 => Bson::Boolean(rng.random()),
        2 => Bson::Null,
        3 => Bson::DateTime(DateTime::from_millis(rng.random())),
        4 => Bson::ObjectId(object_id(rng)),
        5 => Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2, 3] }),
        6 => Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: vec![7; 16] }),
        7 => Bson::RegularExpression(Regex {
            pattern: bson::cstr!("^a.b$").into(),
            options: bson::cstr!("im").into(),
        }),
        8 => Bson::JavaScriptCode(text(rng, 5)),
        9 => Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope {
            code: "f()".into(),
            scope: doc! { "a": 1 },
        }),
        10 => Bson::Symbol(text(rng, 4)),
        11 => Bson::Timestamp(Timestamp { time: rng.random(), increment: 1 }),
        12 => Bson::MinKey,
        13 => Bson::MaxKey,
        14 => Bson::Undefined,
        15 => Bson::Double(pick(rng, &[f64::NAN, f64::INFINITY, -0.0, 1e300, 2.0])),
        16 if depth > 0 => Bson::Document(fields(rng, depth - 1)),
        17 if depth > 0 => {
            Bson::Array((0..rng.random_range(0..4)).map(|_| value(rng, depth - 1)).collect())
        }
        _ => number(rng),
    }
}

/// A small document.
pub(super) fn fields(rng: &mut StdRng, depth: u32) -> Document {
    let mut document = Document::new();
    for _ in 0..rng.random_range(0..4) {
        let name = pick(rng, &["x", "y", "z", "k", "0", "12", "new"]);
        document.insert(name, value(rng, depth));
    }
    document
}

/// The `_id` of document `n`: every type that is not refused for one; unique by `n`.
pub(super) fn id(n: i32) -> Bson {
    let bytes = n.to_be_bytes().to_vec();
    match n % 12 {
        0 => Bson::Int32(n),
        1 => Bson::Int64(i64::from(n) << 32),
        2 => Bson::Double(f64::from(n) + 0.5),
        3 => Bson::Decimal128(format!("{n}.25").parse().expect("a decimal")),
        4 => Bson::String(format!("id {n}")),
        5 => bson!({ "n": n, "s": "part" }),
        6 => Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes }),
        7 => Bson::DateTime(DateTime::from_millis(n.into())),
        8 => Bson::Timestamp(Timestamp { time: n.unsigned_abs(), increment: 0 }),
        9 => Bson::Symbol(format!("symbol {n}")),
        10 => bson!({ "n": { "m": [n, 2.0] } }),
        _ => {
            let mut id = [0; 12];
            id[8..].copy_from_slice(&bytes);
            Bson::ObjectId(ObjectId::from_bytes(id))
        }
    }
}

/// A document with the places that [`super::operations`] names.
pub(super) fn plain(rng: &mut StdRng, id: Bson) -> Document {
    let mut ints = |n: usize| -> Vec<Bson> {
        (0..rng.random_range(0..=n)).map(|_| Bson::Int32(rng.random_range(0..20))).collect()
    };
    let (arr, q, t, row) = (ints(8), ints(5), ints(3), ints(3));
    let mut document = doc! {
        "_id": id, "i": rng.random_range(0..99), "l": 1_i64 << 40, "d": 2.5, "m": decimal(rng),
        "s": text(rng, 30), "t": DateTime::from_millis(1_700_000_000_000),
        "n": { "x": 1, "y": "why", "z": { "p": 1, "q": q, "r": { "deep": [{ "er": 1 }] } }, "w": 7 },
        "arr": arr,
        "objs": [{ "k": 1, "v": "one", "t": t }, { "k": 5, "v": "five" }, { "k": 9, "0": 1 }],
        "mat": [[1, 2], row, []], "e": {}, "em": [],
        "num": { "0": 1, "1": { "0": 2, "7": [1, { "3": 3 }] }, "10": 3 },
        "ts": Timestamp { time: 1, increment: 1 }, "pad": "long enough that a delta is worth it ".repeat(8),
    };
    for name in ["f1", "f2", "f3"] {
        if rng.random_ratio(1, 2) {
            document.insert(name, value(rng, 2));
        }
    }
    document
}

/// A document of odd names: empty, numbers, `$`, dots. `d.e` stands beside `d` → `e`.
pub(super) fn odd(rng: &mut StdRng, id: Bson) -> Document {
    doc! {
        "_id": id, "": 1, "0": { "1": 1, "01": 2, "": 3 }, "01": 2, "$x": number(rng), "$y": { "$z": 1 },
        "p.q": 1, "d": { "e": 1, "0": 2, "f": [{ "0": 1, "00": 2 }, { "g.h": 1, "u": 1 }] }, "d.e": 5,
        "arr": [{ "0": 1 }, [1, { "1": 2 }]], "n": { "": 1, "a.b": 2, "x": 1, "$k": 1, "v": { "w": 1 } },
        "pad": "long enough that a delta is worth it ".repeat(8),
    }
}

//! Random updates: every operator, on the places that [`super::values`] makes.

use bson::{Bson, Document, bson, doc};
use rand::RngExt;
use rand::rngs::StdRng;

use super::values::{fields, number, pick, value};

/// One update, as the commands take it.
pub(super) struct Update {
    /// The operators or stages in it.
    pub(super) kinds: Vec<&'static str>,
    /// What the document must match beside its `_id`.
    pub(super) filter: Document,
    /// An update document or a pipeline.
    pub(super) update: Bson,
    pub(super) array_filters: Vec<Document>,
}

const NUMBERS: &[&str] =
    &["i", "l", "d", "m", "n.x", "n.z.p", "num.0", "num.1.0", "arr.0", "objs.0.k"];
const PLACES: &[&str] = &[
    "i",
    "s",
    "n.x",
    "n.y",
    "n.z.p",
    "n.new",
    "n.z.new",
    "n.z.q.1",
    "n.z.r.deep.0.er",
    "n.z.r.deep.2",
    "arr.0",
    "arr.3",
    "arr.11",
    "objs.1.k",
    "objs.0.t.2",
    "objs.2.0",
    "objs.4",
    "mat.0.1",
    "mat.1",
    "mat.2.2",
    "num.0",
    "num.1.0",
    "num.1.7.0",
    "num.1.7.1.3",
    "num.5",
    "e.f",
    "em.0",
    "em.1.x",
    "f1",
    "f2",
    "f2.x",
    "f3.0",
    "f3.sub.x",
    "fresh",
    "deep.er.x",
    "9",
    "10",
    "e",
];
const ARRAYS: &[&str] = &["arr", "n.z.q", "objs.0.t", "mat.0", "mat.1", "em", "num.1.7", "f3"];

/// An update for a document of [`super::values::plain`].
pub(super) fn plain(rng: &mut StdRng) -> Update {
    match rng.random_range(0..20) {
        0..=3 => positional(rng),
        4..=8 => pipeline(rng),
        _ => operators(rng),
    }
}

/// One to four operators; those whose places clash are refused by MongoDB, which is no harm.
fn operators(rng: &mut StdRng) -> Update {
    let mut update = Document::new();
    let mut kinds = Vec::new();
    for _ in 0..rng.random_range(1..=4) {
        let (operator, place, argument) = operator(rng);
        if !update.contains_key(operator) {
            update.insert(operator, Document::new());
            kinds.push(operator);
        }
        update.get_document_mut(operator).expect("just put there").insert(place, argument);
    }
    Update { kinds, filter: doc! {}, update: update.into(), array_filters: Vec::new() }
}

fn operator(rng: &mut StdRng) -> (&'static str, &'static str, Bson) {
    let array = pick(rng, ARRAYS);
    match rng.random_range(0..20) {
        0..=3 => ("$set", pick(rng, PLACES), value(rng, 2)),
        4..=5 => ("$unset", pick(rng, PLACES), "".into()),
        6 => ("$inc", pick(rng, NUMBERS), number(rng)),
        7 => ("$mul", pick(rng, NUMBERS), bson!(rng.random_range(-1..3))),
        8 => ("$min", pick(rng, NUMBERS), number(rng)),
        9 => ("$max", pick(rng, NUMBERS), number(rng)),
        10 => rename(rng),
        11..=12 => ("$push", array, push(rng)),
        13 => ("$push", "objs", push_sorted(rng)),
        14 => ("$pull", array, bson!({ "$gte": rng.random_range(0..20) })),
        15 => ("$pullAll", array, bson!([rng.random_range(0..20), 1, 2])),
        16 => ("$addToSet", array, bson!({ "$each": [number(rng), 3, number(rng)] })),
        17 => ("$pop", array, bson!(pick(rng, &[-1, 1]))),
        18 => {
            let bits = rng.random_range(0..64);
            (
                "$bit",
                pick(rng, &["i", "l", "n.x", "num.0"]),
                match rng.random_range(0..3) {
                    0 => bson!({ "and": bits }),
                    1 => bson!({ "or": bits }),
                    _ => bson!({ "xor": bits }),
                },
            )
        }
        _ => (
            "$currentDate",
            pick(rng, &["t", "ts", "n.when", "objs.1.at"]),
            match rng.random() {
                true => true.into(),
                false => bson!({ "$type": "timestamp" }),
            },
        ),
    }
}

fn rename(rng: &mut StdRng) -> (&'static str, &'static str, Bson) {
    let pairs = [
        ("i", "fresh"),
        ("fresh", "i"),
        ("n.x", "n.xx"),
        ("n.xx", "n.x"),
        ("n.y", "top"),
        ("top", "n.y"),
        ("f1", "f2"),
        ("f2", "e.g"),
        ("s", "d"),
        ("num.0", "num.3"),
        ("n.w", "n.z.p"),
        ("d", "d2"),
        ("d2", "d"),
    ];
    let (from, to) = pick(rng, &pairs);
    ("$rename", from, to.into())
}

fn push(rng: &mut StdRng) -> Bson {
    let mut push = doc! { "$each": [number(rng), value(rng, 1)] };
    for (modifier, argument) in [
        ("$position", bson!(rng.random_range(-2..4))),
        ("$slice", bson!(rng.random_range(-6..6))),
        ("$sort", bson!(pick(rng, &[-1, 1]))),
    ] {
        if rng.random_ratio(1, 3) {
            push.insert(modifier, argument);
        }
    }
    if rng.random_ratio(1, 3) { value(rng, 1) } else { push.into() }
}

fn push_sorted(rng: &mut StdRng) -> Bson {
    let new = doc! { "k": rng.random_range(0..9), "v": "pushed", "t": [1] };
    let mut push = doc! { "$each": [new], "$slice": pick(rng, &[-4, 3, 6]) };
    if rng.random() {
        push.insert("$sort", doc! { "k": pick(rng, &[-1, 1]) });
    }
    push.into()
}

/// `$`, `$[]` and `$[name]`.
fn positional(rng: &mut StdRng) -> Update {
    let least = rng.random_range(0..10);
    let (kind, filter, update, array_filters) = match rng.random_range(0..9) {
        0 => (
            "arr.$",
            doc! { "arr": { "$gte": least } },
            doc! { "$set": { "arr.$": value(rng, 1) } },
            vec![],
        ),
        1 => (
            "arr.$",
            doc! { "objs.k": { "$gte": least } },
            doc! { "$inc": { "objs.$.k": 1 }, "$set": { "objs.$.new": 1 } },
            vec![],
        ),
        2 => (
            "arr.$",
            doc! { "objs.k": least },
            doc! { "$unset": { "objs.$.v": "", "objs.$.new": "" } },
            vec![],
        ),
        3 => ("arr.$[]", doc! {}, doc! { "$inc": { "arr.$[]": 1, "objs.$[].k": 2 } }, vec![]),
        4 => (
            "arr.$[]",
            doc! {},
            doc! { "$push": { "mat.$[]": least }, "$set": { "n.z.q.$[]": least } },
            vec![],
        ),
        5 => ("arr.$[]", doc! {}, doc! { "$pull": { "mat.$[]": { "$gte": least } } }, vec![]),
        6 => (
            "arr.$[e]",
            doc! {},
            doc! { "$set": { "objs.$[e].v": value(rng, 1) } },
            vec![doc! { "e.k": { "$gte": least } }],
        ),
        7 => (
            "arr.$[e]",
            doc! {},
            doc! { "$unset": { "objs.$[e].t": "" }, "$mul": { "arr.$[f]": 2 } },
            vec![doc! { "e.k": { "$gte": least } }, doc! { "f": { "$lt": least } }],
        ),
        _ => (
            "arr.$[e]",
            doc! {},
            doc! { "$set": { "mat.$[].$[e]": least } },
            vec![doc! { "e": { "$gt": 1 } }],
        ),
    };
    Update { kinds: vec![kind], filter, update: update.into(), array_filters }
}

/// One to three stages.
fn pipeline(rng: &mut StdRng) -> Update {
    let mut kinds = Vec::new();
    let mut stages = Vec::new();
    for _ in 0..rng.random_range(1..=3) {
        let (kind, stage) = stage(rng);
        kinds.push(kind);
        stages.push(Bson::Document(stage));
    }
    Update { kinds, filter: doc! {}, update: stages.into(), array_filters: Vec::new() }
}

fn stage(rng: &mut StdRng) -> (&'static str, Document) {
    let literal = bson!({ "$literal": value(rng, 2) });
    let place = pick(
        rng,
        &["i", "n.x", "n.z.p", "n.new", "e.f", "fresh", "f1", "f2.x", "num.0", "num.5.6", "arr.x"],
    );
    let array = pick(rng, &["arr", "n.z.q", "mat", "objs", "em"]);
    let is_array = doc! { "$isArray": format!("${array}") };
    let old = bson!({ "$cond": [is_array, format!("${array}"), []] });
    match rng.random_range(0..15) {
        0 => ("|$set", doc! { "$set": { place: literal } }),
        1 => (
            "|$set",
            doc! { "$set": { "i": { "$add": [{ "$convert": { "input": "$i", "to": "int", "onError": 0, "onNull": 1 } }, 1] } } },
        ),
        2 => ("|$set", doc! { "$set": { array: { "$concatArrays": [old, [literal, 1]] } } }),
        3 => ("|$set", doc! { "$set": { array: { "$slice": [old, rng.random_range(1..4)] } } }),
        4 => ("|$set", doc! { "$set": { array: { "$reverseArray": old } } }),
        5 => (
            "|$set",
            doc! { "$set": { array: { "$filter": { "input": old, "cond": { "$gt": ["$$this", 3] } } } } },
        ),
        6 => (
            "|$set",
            doc! { "$set": { "objs": { "$map": { "input": { "$cond": [{ "$isArray": "$objs" }, "$objs", []] }, "in": { "$mergeObjects": [{ "$cond": [{ "$eq": [{ "$type": "$$this" }, "object"] }, "$$this", {}] }, { "new": rng.random_range(0..3) }] } } } } },
        ),
        7 => (
            "|$unset",
            doc! { "$unset": [pick(rng, &["f1", "i", "s"]), "n.x", "num.1.0", "objs.k"] },
        ),
        8 => ("|$unset", doc! { "$unset": pick(rng, PLACES) }),
        9 => (
            "|$replaceWith",
            doc! { "$replaceWith": { "$mergeObjects": ["$$ROOT", fields(rng, 0)] } },
        ),
        // These move fields, which is rare in life.
        10 if rng.random_ratio(1, 3) => (
            "|$replaceWith",
            doc! { "$replaceWith": { "$mergeObjects": [{ "_id": "$_id", "n": 1, "s": 2, "fresh": 3 }, "$$ROOT"] } },
        ),
        11 if rng.random_ratio(1, 3) => (
            "|$replaceWith",
            doc! { "$replaceWith": { "$mergeObjects": [{ "$unsetField": { "field": "i", "input": "$$ROOT" } }, { "i": literal }] } },
        ),
        12 => (
            "|$setField",
            doc! { "$replaceWith": { "$setField": { "field": "f3", "input": "$$ROOT", "value": literal } } },
        ),
        13 if rng.random_ratio(1, 3) => (
            "|$set",
            doc! { "$set": { "n": { "$mergeObjects": [{ "w": 1, "x": literal }, { "$cond": [{ "$eq": [{ "$type": "$n" }, "object"] }, "$n", {}] }] } } },
        ),
        _ => (
            "|$project",
            doc! { "$project": { pick(rng, &["f1", "f2", "n.y", "objs.v", "num.1"]): 0 } },
        ),
    }
}

/// An update for a document of [`super::values::odd`]. Never makes a new `d.…` at the top, which a
/// dotted path can't tell from a field inside `d`; `told_apart` makes those too.
pub(super) fn odd(rng: &mut StdRng, told_apart: bool) -> Update {
    let new = value(rng, 1);
    if rng.random() {
        let place = pick(
            rng,
            &[
                "0.1",
                "0.01",
                "0.2",
                "01",
                "1",
                "d.e",
                "d.0",
                "d.new",
                "d.f.0.0",
                "d.f.0.00",
                "d.f.1.u",
                "d.f.3.0",
                "arr.0.0",
                "arr.1.0",
                "arr.1.1.1",
                "arr.4",
                "n.x",
                "n.v.w",
                "n.y.0",
            ],
        );
        let (kind, update) = match rng.random_range(0..4) {
            0 => ("$unset", doc! { "$unset": { place: "" } }),
            1 => ("$inc", doc! { "$inc": { place: 3 } }),
            _ => ("$set", doc! { "$set": { place: new } }),
        };
        return Update {
            kinds: vec![kind],
            filter: doc! {},
            update: update.into(),
            array_filters: vec![],
        };
    }
    let new = bson!({ "$literal": new });
    let (inner, outer) = if told_apart {
        (["a.b", "v.w", "v.new", "$k", "0"], ["d.e", "d.new", "n.x", "arr.0", "0."])
    } else {
        (["", "a.b", "$k", "0", "c."], ["", "01", "$x", "p.q", "q."])
    };
    let name = |name: &str| bson!({ "$literal": name });
    let (kind, stage) = match rng.random_range(0..4) {
        0 => (
            "|$unsetField",
            doc! { "$replaceWith": { "$unsetField": { "field": name(pick(rng, &outer)), "input": "$$ROOT" } } },
        ),
        1 => (
            "|$setField",
            doc! { "$set": { "n": { "$setField": { "field": name(pick(rng, &inner)), "input": "$n", "value": new } } } },
        ),
        _ => (
            "|$setField",
            doc! { "$replaceWith": { "$setField": { "field": name(pick(rng, &outer)), "input": "$$ROOT", "value": new } } },
        ),
    };
    Update { kinds: vec![kind], filter: doc! {}, update: bson!([stage]), array_filters: vec![] }
}

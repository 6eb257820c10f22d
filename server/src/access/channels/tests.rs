//! Which channels documents are in and tokens hold.

use bson::{RawBson, RawDocumentBuf, oid::ObjectId, rawdoc};
use serde_json::json;

use super::*;

fn rules(channels: &[&str]) -> Rules {
    Rules::compile(&config(channels, &[])).unwrap()
}

fn config(channels: &[&str], exclude: &[&str]) -> CollectionConfig {
    let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    CollectionConfig { name: "c".into(), channels: owned(channels), exclude: owned(exclude) }
}

fn check(template: &str, document: &RawDocumentBuf, expected: &[&str]) {
    assert_eq!(rules(&[template]).channels_of(document), expected, "{template} {document:?}");
}

#[test]
fn a_value_in_a_document_puts_it_into_a_channel() {
    let id = ObjectId::parse_str("642ab00000000000000000ff").unwrap();
    check("user:{u}", &rawdoc! {"u": "ann"}, &["user:ann"]);
    check("user:{u}", &rawdoc! {"u": id}, &["user:642ab00000000000000000ff"]);
    check("user:{u}", &rawdoc! {"u": 7_i32}, &["user:7"]);
    check("user:{u}", &rawdoc! {"u": -7_i64}, &["user:-7"]);
    check("user:{u}", &rawdoc! {"u": 7.0}, &["user:7"]);
    check("user:{u}", &rawdoc! {"u": true}, &["user:true"]);
    check("user:{u.v}", &rawdoc! {"u": {"v": "ann"}}, &["user:ann"]);
    check("everyone", &rawdoc! {}, &["everyone"]);
}

#[test]
fn an_array_gives_several_channels_each_once_and_sorted() {
    check(
        "user:{u}",
        &rawdoc! {"u": ["b", "a", "b", RawBson::Null, 3]},
        &["user:3", "user:a", "user:b"],
    );
    check(
        "user:{u.v}",
        &rawdoc! {"u": [{"v": "b"}, {"v": ["a", "c"]}, {}]},
        &["user:a", "user:b", "user:c"],
    );
    check("{a}:{b}", &rawdoc! {"a": ["x", "y"], "b": [1, 2]}, &["x:1", "x:2", "y:1", "y:2"]);
}

#[test]
fn what_names_nobody_is_in_no_channel() {
    for document in [
        rawdoc! {},
        rawdoc! {"u": RawBson::Null},
        rawdoc! {"u": ""},
        rawdoc! {"u": 1.5},
        rawdoc! {"u": f64::NAN},
        rawdoc! {"u": 1e300},
        rawdoc! {"u": {"v": "x"}},
        rawdoc! {"u": []},
        rawdoc! {"u": [["x"]]},
        rawdoc! {"u": bson::DateTime::from_millis(0)},
        rawdoc! {"u": "x".repeat(600)},
    ] {
        check("user:{u}", &document, &[]);
    }
    check("user:{u.v}", &rawdoc! {"u": "x"}, &[]);
}

#[test]
fn the_last_of_two_fields_of_one_name_decides_as_it_is_the_one_served() {
    let mut document = rawdoc! {"u": "first"};
    document.append(bson::cstr!("u"), "last");
    check("user:{u}", &document, &["user:last"]);
}

#[test]
fn a_damaged_document_is_in_no_channel_of_a_value() {
    let mut bytes = rawdoc! {"u": "ann", "s": "text"}.into_bytes();
    let at = bytes.windows(4).position(|w| w == b"text").unwrap();
    bytes[at] = 0xff;
    let document = RawDocumentBuf::from_bytes(bytes).unwrap();
    check("user:{s}", &document, &[]);
}

#[test]
fn the_fingerprint_changes_with_the_rules_and_not_with_their_order() {
    let rules = |channels: &[&str], exclude: &[&str]| {
        Rules::compile(&config(channels, exclude)).expect("rules")
    };
    let print = |channels: &[&str], exclude: &[&str]| rules(channels, exclude).fingerprint();
    let texts = [["a", "b"], ["b", "a"]].map(|some| rules(&some, &some).text().to_owned());
    assert_eq!(texts[0], texts[1], "servers whose lists differ in their order alone have one text");
    assert_eq!(print(&["a", "b"], &[]), print(&["b", "a"], &[]));
    assert_ne!(print(&["a", "b"], &[]), print(&["ab"], &[]));
    assert_ne!(print(&["a"], &[]), print(&["a"], &["x"]));
    assert_ne!(print(&["a"], &["b"]), print(&["a", "b"], &[]));
}

#[test]
fn claims_give_a_token_its_channels() {
    let grants = ["everyone", "user:{sub}", "role:{roles}", "team:{org.team}"];
    let grants = Grants::compile(&grants.map(String::from)).unwrap();
    let check = |claims: Value, expected: &[&str]| {
        let Value::Object(map) = &claims else { panic!("claims are an object") };
        assert_eq!(grants.channels_of(map), expected, "{claims}");
    };
    check(json!({"sub": "ann"}), &["everyone", "user:ann"]);
    check(
        json!({"sub": "ann", "roles": ["b", "a", 7, null, {}]}),
        &["everyone", "role:7", "role:a", "role:b", "user:ann"],
    );
    check(json!({"sub": "ann", "roles": "admin"}), &["everyone", "role:admin", "user:ann"]);
    check(json!({"sub": "ann", "org": {"team": 7}}), &["everyone", "team:7", "user:ann"]);
    check(json!({"sub": "ann", "roles": {"admin": true}, "org": "x"}), &["everyone", "user:ann"]);
}

//! What each form of delta gives, told in Extended JSON.

use bson::Document;
use bson::raw::RawDocumentBuf;

use super::{Untrusted, patch};

/// A document told in Extended JSON, field order kept.
fn raw(json: &str) -> RawDocumentBuf {
    let document: Document = serde_json::from_str(json).unwrap();
    RawDocumentBuf::try_from(&document).unwrap()
}

fn check(previous: &str, description: &str, expected: &str) {
    let patched = patch(&raw(previous), &raw(description));
    let patched = patched.unwrap_or_else(|e| panic!("{previous} {description}: {e}"));
    let got = Document::try_from(&patched).unwrap();
    assert_eq!(patched, raw(expected), "{previous} {description} gave {got}");
}

fn check_untrusted(previous: &str, description: &str, reason: Untrusted) {
    let patched = patch(&raw(previous), &raw(description));
    assert_eq!(patched, Err(reason), "{previous} {description}");
}

/// An `updateDescription` with these three members, in Extended JSON.
fn told(updated: &str, removed: &str, truncated: &str) -> String {
    format!(
        r#"{{"updatedFields": {updated}, "removedFields": {removed}, "truncatedArrays": {truncated}}}"#
    )
}

fn oplog(diff: &str) -> String {
    format!(r#"{{"$v": 2, "diff": {diff}}}"#)
}

#[test]
fn dotted_paths_are_read_against_the_previous_document() {
    for (previous, updated, expected) in [
        (r#"{"_id": 1, "a": 1, "b": 2}"#, r#"{"a": "x"}"#, r#"{"_id": 1, "a": "x", "b": 2}"#),
        (r#"{"_id": 1, "z": 1}"#, r#"{"a": 1, "b": 2}"#, r#"{"_id": 1, "z": 1, "a": 1, "b": 2}"#),
        (r#"{"a": {"b": 1, "c": 2}}"#, r#"{"a.b": 3}"#, r#"{"a": {"b": 3, "c": 2}}"#),
        (r#"{"a": {"b": {}}}"#, r#"{"a.b.c": 3}"#, r#"{"a": {"b": {"c": 3}}}"#),
        // A number is an index in an array and a name in a document.
        (r#"{"a": [1, 2]}"#, r#"{"a.1": 3}"#, r#"{"a": [1, 3]}"#),
        (r#"{"a": {"1": 2}}"#, r#"{"a.1": 3}"#, r#"{"a": {"1": 3}}"#),
        (r#"{"a": {"01": 2}}"#, r#"{"a.1": 3}"#, r#"{"a": {"01": 2, "1": 3}}"#),
        (r#"{"a": [{"0": 1}]}"#, r#"{"a.0.0": 3}"#, r#"{"a": [{"0": 3}]}"#),
        (r#"{"a": [[1], [2]]}"#, r#"{"a.1.0": 3}"#, r#"{"a": [[1], [3]]}"#),
        (r#"{"0": 1, "a": 1}"#, r#"{"0": 3}"#, r#"{"0": 3, "a": 1}"#),
        // Arrays grow, and are padded.
        (r#"{"a": []}"#, r#"{"a.0": 3}"#, r#"{"a": [3]}"#),
        (r#"{"a": [1]}"#, r#"{"a.1": 2, "a.2": 3}"#, r#"{"a": [1, 2, 3]}"#),
        (r#"{"a": [1]}"#, r#"{"a.3": 2}"#, r#"{"a": [1, null, null, 2]}"#),
        // In an array a member may be told after what changed inside of the one before.
        (r#"{"a": [{"b": 1}, 1]}"#, r#"{"a.0.b": 2, "a.1": 2}"#, r#"{"a": [{"b": 2}, 2]}"#),
        // Odd names that mean one thing only.
        (r#"{"": 1, "$x": {"$y": 1}}"#, r#"{"": 2, "$x.$y": 2}"#, r#"{"": 2, "$x": {"$y": 2}}"#),
        (r#"{"a": {"": 1}}"#, r#"{"a.": 2}"#, r#"{"a": {"": 2}}"#),
        (r#"{"x.y": 1, "a": {"b": 1}}"#, r#"{"a.b": 2}"#, r#"{"x.y": 1, "a": {"b": 2}}"#),
        // `$push` with `$slice` writes an array that came out as it was.
        (r#"{"a": [1, 2], "b": 2}"#, r#"{"a": [1, 2]}"#, r#"{"a": [1, 2], "b": 2}"#),
        // What follows a new field has moved to the end.
        (
            r#"{"a": 1, "b": 2, "c": 3}"#,
            r#"{"n": 0, "a": 1}"#,
            r#"{"b": 2, "c": 3, "n": 0, "a": 1}"#,
        ),
    ] {
        check(previous, &told(updated, "[]", "[]"), expected);
    }
}

#[test]
fn fields_are_removed_and_arrays_are_cut() {
    let previous = r#"{"_id": 1, "a": {"b": [1, 2, 3, {"c": 1, "d": 2}]}, "e": [1, 2], "f": 1}"#;
    for (updated, removed, truncated, expected) in [
        ("{}", r#"["a", "f"]"#, "[]", r#"{"_id": 1, "e": [1, 2]}"#),
        ("{}", r#"["e", "f", "a.b.3.c"]"#, "[]", r#"{"_id": 1, "a": {"b": [1, 2, 3, {"d": 2}]}}"#),
        (
            r#"{"g": 1, "a.b.0": 9}"#,
            r#"["f"]"#,
            r#"[{"field": "a.b", "newSize": 2}, {"field": "e", "newSize": 0}]"#,
            r#"{"_id": 1, "a": {"b": [9, 2]}, "e": [], "g": 1}"#,
        ),
    ] {
        check(previous, &told(updated, removed, truncated), expected);
    }
}

#[test]
fn a_path_that_could_mean_two_places_is_untrusted() {
    use Untrusted::{Ambiguous, DuplicateName, Index, Missing, Moved, WrongKind};
    for (previous, updated, reason) in [
        (r#"{"a.b": 1, "a": {"b": 1}}"#, r#"{"a.b": 2}"#, Ambiguous),
        (r#"{"a.b": 1}"#, r#"{"a.b": 2}"#, Ambiguous),
        (r#"{"a": {"b.c": 1, "b": {"c": 1}}}"#, r#"{"a.b.c": 2}"#, Ambiguous),
        (r#"{"a": {"b": 1}}"#, r#"{"a": 2, "a.b": 3}"#, Ambiguous),
        // A document's own fields come first: one that follows can't be what it seems.
        (r#"{"a": {"b": 1}, "c": 1}"#, r#"{"a.b": 2, "c": 2}"#, Ambiguous),
        (r#"{"x": {"a": {"b": 1}, "c": 1}}"#, r#"{"x.a.b": 2, "x.c": 2}"#, Ambiguous),
        // The parent is missing or holds no fields.
        (r#"{"c": 1}"#, r#"{"a.b": 2}"#, Missing),
        (r#"{"a": 1}"#, r#"{"a.b": 2}"#, WrongKind),
        (r#"{"a": null}"#, r#"{"a.0": 2}"#, WrongKind),
        (r#"{"a": [1]}"#, r#"{"a.b": 2}"#, Index),
        (r#"{"a": [1, 2]}"#, r#"{"a.01": 2}"#, Index),
        (r#"{"a": [1]}"#, r#"{"a.1500002": 2}"#, Index),
        (r#"{"a": [1]}"#, r#"{"a.1.b": 2}"#, Missing),
        // Written with what it had: moved.
        (r#"{"a": 1, "b": 2}"#, r#"{"a": 1}"#, Moved),
    ] {
        check_untrusted(previous, &told(updated, "[]", "[]"), reason);
    }
    let twice = |name| {
        let mut document = RawDocumentBuf::new();
        document.append(bson::cstr!("a"), 1);
        document.append(bson::cstr!("a"), 2);
        document.append(name, 3);
        document
    };
    let update = raw(&told(r#"{"b": 5}"#, "[]", "[]"));
    assert_eq!(patch(&twice(bson::cstr!("b")), &update), Err(DuplicateName));
    let mut update = RawDocumentBuf::new();
    update.append(bson::cstr!("updatedFields"), twice(bson::cstr!("c")));
    assert_eq!(patch(&raw("{}"), &update), Err(Ambiguous));
}

#[test]
fn a_delta_that_does_not_fit_is_untrusted() {
    use Untrusted::{Identity, Index, Missing, Unknown, WrongKind};
    let previous = r#"{"_id": 1, "a": {"b": 1}, "c": [1, 2]}"#;
    for (description, reason) in [
        ("{}".into(), Unknown),
        (r#"{"removedFields": []}"#.into(), Unknown),
        (r#"{"updatedFields": {}, "more": 1}"#.into(), Unknown),
        (told(r#"{"_id": 2}"#, "[]", "[]"), Identity),
        (told(r#"{"_id.x": 2}"#, "[]", "[]"), Identity),
        (told("{}", r#"["x"]"#, "[]"), Missing),
        (told("{}", r#"["a.x"]"#, "[]"), Missing),
        (told("{}", r#"["c.0"]"#, "[]"), Unknown),
        (told("{}", "[]", r#"[{"field": "c", "newSize": 2}]"#), Index),
        (told(r#"{"c.1": 3}"#, "[]", r#"[{"field": "c", "newSize": 1}]"#), Index),
        (told("{}", "[]", r#"[{"field": "a", "newSize": 1}]"#), WrongKind),
        (oplog(r#"{"u": {"x": 1}}"#), Missing),
        (oplog(r#"{"d": {"x": false}}"#), Missing),
        (oplog(r#"{"sx": {"u": {"y": 1}}}"#), Missing),
        (oplog(r#"{"sa": {"a": true, "u0": 1}}"#), WrongKind),
        (oplog(r#"{"sc": {"u": {"0": 1}}}"#), WrongKind),
        (oplog(r#"{"b": {"x": 1}}"#), Unknown),
        (oplog(r#"{"i": {"_id": 2}}"#), Identity),
        (r#"{"$v": 1, "diff": {}}"#.into(), Unknown),
    ] {
        check_untrusted(previous, &description, reason);
    }
}

#[test]
fn disambiguated_paths_are_exact() {
    for (previous, updated, paths, expected) in [
        (
            r#"{"a.b": 1, "a": {"b": 1}}"#,
            r#"{"a.b": 2}"#,
            r#"{"a.b": ["a.b"]}"#,
            r#"{"a.b": 2, "a": {"b": 1}}"#,
        ),
        (
            r#"{"r": [{"0": 1}]}"#,
            r#"{"r.0.0": 2}"#,
            r#"{"r.0.0": ["r", {"$numberInt": "0"}, "0"]}"#,
            r#"{"r": [{"0": 2}]}"#,
        ),
        (r#"{"a": {}}"#, r#"{"a.b": 2}"#, r#"{"a.b": ["a.b"]}"#, r#"{"a": {}, "a.b": 2}"#),
        (r#"{"a": {}}"#, r#"{"a..": 2}"#, r#"{"a..": ["a", "."]}"#, r#"{"a": {".": 2}}"#),
    ] {
        let description =
            format!(r#"{{"updatedFields": {updated}, "disambiguatedPaths": {paths}}}"#);
        check(previous, &description, expected);
    }
    for (previous, paths, reason) in [
        (r#"{"a": {"0": 1}}"#, r#"["a", {"$numberInt": "0"}]"#, Untrusted::WrongKind),
        (r#"{"a": [1]}"#, r#"["a", "0"]"#, Untrusted::WrongKind),
        (r#"{"a": [1]}"#, r#"["a"]"#, Untrusted::Ambiguous),
        (r#"{"a": [1]}"#, r#"["a.", "0"]"#, Untrusted::Ambiguous),
        (r#"{"a": [1]}"#, "[]", Untrusted::Ambiguous),
    ] {
        let description = format!(
            r#"{{"updatedFields": {{"a.0": 2}}, "disambiguatedPaths": {{"a.0": {paths}}}}}"#
        );
        check_untrusted(previous, &description, reason);
    }
}

#[test]
fn the_delta_of_the_oplog_is_exact() {
    for (previous, diff, expected) in [
        (
            r#"{"_id": 1, "a": 1, "b": 2, "c": 3}"#,
            r#"{"d": {"a": false}, "u": {"b": 4}, "i": {"d": 5, "c": 3}}"#,
            r#"{"_id": 1, "b": 4, "d": 5, "c": 3}"#,
        ),
        (r#"{"a": {"b": 1}}"#, r#"{"i": {"a.b": 2}}"#, r#"{"a": {"b": 1}, "a.b": 2}"#),
        (
            r#"{"a.b": 1, "a": {"b": 1}}"#,
            r#"{"sa": {"u": {"b": 2}}}"#,
            r#"{"a.b": 1, "a": {"b": 2}}"#,
        ),
        (
            r#"{"": [1, {"0": 1}, [2, 3]]}"#,
            r#"{"s": {"a": true, "u0": 5, "s1": {"u": {"0": 2}}, "s2": {"a": true, "l": 1}, "u4": 6}}"#,
            r#"{"": [5, {"0": 2}, [2], null, 6]}"#,
        ),
        // A field that is called as a section is.
        (r#"{"d": {"u": 1}, "a": 1}"#, r#"{"sd": {"u": {"u": 2}}}"#, r#"{"d": {"u": 2}, "a": 1}"#),
        (r#"{"s": {"a": 1}}"#, r#"{"ss": {"u": {"a": 2}}}"#, r#"{"s": {"a": 2}}"#),
    ] {
        check(previous, &oplog(diff), expected);
    }
}

#[test]
fn many_changes_in_wide_documents_are_found() {
    let fields = |add: i32| {
        let fields: Vec<_> = (0..500).map(|n| format!(r#""f{n}": {}"#, n + add)).collect();
        format!("{{{}}}", fields.join(", "))
    };
    check(&fields(0), &told(&fields(1), "[]", "[]"), &fields(1));
    check(&fields(0), &oplog(&format!(r#"{{"u": {}}}"#, fields(1))), &fields(1));
}

#[test]
fn what_is_not_touched_is_copied_byte_for_byte() {
    // A string with bad UTF-8, which mongod stores and the driver does not decode.
    let mut bytes = raw(r#"{"_id": 1, "bad": "??", "a": {"b": 1, "bad": "??"}}"#).into_bytes();
    bytes.iter_mut().filter(|byte| **byte == b'?').for_each(|byte| *byte = 0xff);
    let previous = RawDocumentBuf::from_bytes(bytes).unwrap();
    let patched = patch(&previous, &raw(&told(r#"{"a.b": 1.0}"#, "[]", "[]"))).unwrap();
    let bad = patched.as_bytes().iter().filter(|byte| **byte == 0xff).count();
    assert_eq!((patched.as_bytes().len(), bad), (previous.as_bytes().len() + 4, 4));
}

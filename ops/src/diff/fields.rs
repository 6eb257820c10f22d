//! In which fields two documents differ: their texts are compared, so that `5` and `5.0` are two values.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// Paths that are told of one row.
const PATHS_MAX: usize = 20;
/// Told in place of the paths beyond them.
const MORE: &str = "…";
/// Two documents with the same fields in another order.
const ORDER: &str = "(order of fields)";

type Object<'a> = BTreeMap<String, &'a RawValue>;

/// Dotted paths of what differs; never empty for two texts that differ. A document that can't be taken
/// apart differs as a whole, in `_doc`.
pub(super) fn differing(a: Option<&str>, b: Option<&str>) -> Vec<String> {
    let mut paths = Vec::new();
    match (a, b) {
        (Some(a), Some(b)) => compare(a, b, "", &mut paths),
        _ => paths.push("_doc".to_owned()),
    }
    if paths.is_empty() {
        paths.push(ORDER.to_owned());
    }
    if paths.len() > PATHS_MAX {
        paths.truncate(PATHS_MAX);
        paths.push(MORE.to_owned());
    }
    paths
}

fn compare(a: &str, b: &str, path: &str, paths: &mut Vec<String>) {
    if a == b || paths.len() > PATHS_MAX {
        return;
    }
    let whole = |paths: &mut Vec<String>| {
        paths.push(if path.is_empty() { "_doc".to_owned() } else { path.to_owned() });
    };
    let below = |name: &str| {
        if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
    };
    if let (Some(a), Some(b)) = (parse::<Object<'_>>(a), parse::<Object<'_>>(b)) {
        for (name, value) in &a {
            match b.get(name) {
                Some(other) => compare(value.get(), other.get(), &below(name), paths),
                None => paths.push(below(name)),
            }
        }
        paths.extend(b.keys().filter(|name| !a.contains_key(*name)).map(|name| below(name)));
    } else if let (Some(a), Some(b)) = (parse::<Vec<&RawValue>>(a), parse::<Vec<&RawValue>>(b))
        && a.len() == b.len()
    {
        for (n, (value, other)) in a.iter().zip(&b).enumerate() {
            compare(value.get(), other.get(), &below(&n.to_string()), paths);
        }
    } else {
        whole(paths);
    }
}

fn parse<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(a: &str, b: &str, expected: &[&str]) {
        assert_eq!(differing(Some(a), Some(b)), expected, "{a} {b}");
    }

    #[test]
    fn paths_lead_to_what_differs_and_no_farther() {
        check(r#"{"_id":1,"a":1}"#, r#"{"_id":1,"a":2}"#, &["a"]);
        check(r#"{"a":1,"b":2}"#, r#"{"a":1,"c":2}"#, &["b", "c"]);
        check(r#"{"a":{"b":[1,{"c":2}]}}"#, r#"{"a":{"b":[1,{"c":3}]}}"#, &["a.b.1.c"]);
        check(r#"{"a":[1,2]}"#, r#"{"a":[1]}"#, &["a"]);
        check(r#"{"a":{"b":1}}"#, r#"{"a":[1]}"#, &["a"]);
    }

    #[test]
    fn texts_are_compared_not_numbers() {
        check(r#"{"a":5}"#, r#"{"a":5.0}"#, &["a"]);
        check(r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#, &["a"]);
    }

    #[test]
    fn another_order_is_told_as_that() {
        check(r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#, &["(order of fields)"]);
    }

    #[test]
    fn what_cannot_be_taken_apart_differs_as_a_whole() {
        check("nonsense", "{}", &["_doc"]);
        assert_eq!(differing(None, Some("{}")), ["_doc"]);
        let many = |n: i32| {
            let fields: Vec<String> = (0..100).map(|at| format!("\"f{at:02}\":{n}")).collect();
            format!("{{{}}}", fields.join(","))
        };
        let paths = differing(Some(&many(1)), Some(&many(2)));
        assert_eq!((paths.len(), paths.last().map(String::as_str)), (PATHS_MAX + 1, Some(MORE)));
    }
}

//! Names of databases and collections that can't be followed, or can't be a table of the replica.

use std::collections::BTreeMap;

/// MongoDB's bound for `<database>.<collection>`.
pub(super) const NAMESPACE_BYTES_MAX: usize = 255;
/// MongoDB's bound for a database's name.
const DATABASE_BYTES_MAX: usize = 63;

pub(super) fn check_database(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > DATABASE_BYTES_MAX {
        return Err(format!("{name:?} must have 1 to {DATABASE_BYTES_MAX} bytes"));
    }
    if matches!(name, "admin" | "local" | "config") {
        return Err(format!("{name:?} is MongoDB's own and has no change stream; name yours"));
    }
    match name.chars().find(|c| c.is_control() || r#"/\. "$*<>:|?"#.contains(*c)) {
        Some(bad) => {
            Err(format!("{name:?} holds {bad:?}, which MongoDB forbids in a database's name"))
        }
        None => Ok(()),
    }
}

/// Why `name` can't be followed, to be read after the name.
pub(super) fn check_collection(name: &str) -> Result<(), String> {
    let lower = name.to_ascii_lowercase();
    let refusal = if name.is_empty() {
        "is empty; name a collection"
    } else if name.starts_with("system.") {
        "is MongoDB's own; system collections can't be followed"
    } else if name.starts_with("tmp.") {
        "is a name of MongoDB's passing collections ($out, renames); they can't be followed"
    } else if lower.starts_with("_tidewire") {
        "begins with _tidewire, which names Tidewire's own tables in the replica; rename the collection"
    } else if lower.starts_with("sqlite_") {
        "begins with sqlite_, which SQLite keeps for itself; rename the collection"
    } else if name.contains('$') {
        "holds a $, which MongoDB forbids in a collection's name"
    } else if name.chars().any(char::is_control) {
        "holds a control character; rename the collection"
    } else if name.contains(',') {
        "holds a comma, which separates the names in the pull's collections parameter; rename the collection"
    } else {
        return Ok(());
    };
    Err(refusal.to_owned())
}

/// Names that are one table to SQLite, which folds ASCII case.
pub(super) fn collisions<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut first_by_fold = BTreeMap::new();
    names
        .filter_map(|name| match first_by_fold.insert(name.to_ascii_lowercase(), name) {
            Some(first) if first == name => Some(format!("{name:?} is named twice; keep one")),
            Some(first) => Some(format!(
                "{first:?} and {name:?} differ in case only and would be one table in the replica; serve one of them or rename one"
            )),
            None => None,
        })
        .collect()
}

/// A path that can be left out: dotted, no empty part, and not the `_id`, which every change needs.
pub(super) fn check_exclude(path: &str) -> Result<(), String> {
    if path.is_empty() || path.split('.').any(str::is_empty) {
        return Err(format!("{path:?} is not a path; write field or field.inner"));
    }
    if path == "_id" || path.starts_with("_id.") {
        return Err("_id can't be excluded: it is what a replica knows a document by".to_owned());
    }
    tidewire_protocol::payload::Exclude::parse(&[path.to_owned()])
        .map(|_| ())
        .map_err(|error| format!("{path:?}: {error}"))
}

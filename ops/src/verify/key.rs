//! `mongoId`: the replica's `_id`.

use bson::Bson;

use super::extended::{self, Form};
use super::number;

/// The text of an `_id` as the contract's section 4 has it.
#[must_use]
pub fn mongo_id(id: &Bson) -> String {
    match id {
        Bson::ObjectId(id) => id.to_hex(),
        Bson::String(text) | Bson::Symbol(text) => {
            let looks_like_hex = text.len() == 24 && text.chars().all(|c| c.is_ascii_hexdigit());
            if looks_like_hex || text.starts_with('~') {
                format!("~s:{text}")
            } else {
                text.clone()
            }
        }
        other => match number::text(other) {
            Some(text) => format!("~{text}"),
            None => format!("~{}", extended::value_of(other, Form::Key)),
        },
    }
}

/// A finite double's digits; a whole one keeps a `.0`.
pub(super) fn double_text(number: f64) -> String {
    let text = format!("{number:?}");
    if text.contains(['.', 'e']) { text } else { format!("{text}.0") }
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    #[test]
    fn every_kind_of_id_has_a_text_of_its_own() {
        let check = |id: Bson, expected: &str| assert_eq!(mongo_id(&id), expected);
        check("plain".into(), "plain");
        check("~s".into(), "~s:~s");
        check("642abc642abc642abc642abc".into(), "~s:642abc642abc642abc642abc");
        check(7.into(), "~7");
        check(Bson::Null, "~null");
        check(true.into(), "~true");
        check(doc! { "a": 1, "b": "x" }.into(), r#"~{"a":{"$number":"1"},"b":"x"}"#);
        check(doc! { "$ref": "c", "$id": 1 }.into(), r#"~{"$ref":"c","$id":{"$number":"1"}}"#);
        check(doc! { "$oid": "c" }.into(), r#"~{"$document":{"$oid":"c"}}"#);
        check(Bson::DateTime(bson::DateTime::from_millis(5)), r#"~{"$date":{"$numberLong":"5"}}"#);
    }
}

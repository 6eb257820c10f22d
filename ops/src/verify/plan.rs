//! Who may see what, read from the server's configuration and a token's claims by plain code of our
//! own.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bson::{Bson, Document};
use serde_json::Value;

/// What a replica should hold.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The configured collections.
    pub collections: Vec<Collection>,
    /// The channels held; `None`: all of them.
    pub held: Option<BTreeSet<String>>,
}

/// One configured collection.
#[derive(Clone, Debug)]
pub struct Collection {
    /// Its name.
    pub name: String,
    /// The templates of the channels that its documents are in.
    pub channels: Vec<String>,
    /// Dotted paths that are hidden.
    pub exclude: Vec<String>,
}

/// Whether a document belongs into a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visible {
    Yes,
    No,
    /// In no channel, and the replica's reader sees everything: served to nobody, but a replay of the
    /// whole log holds it.
    MayBe,
}

impl Plan {
    /// Reads `[[collections]]` and `[access]` of a server's configuration. `token`: the text of the
    /// token whose eyes to see with; its signature is not looked at.
    ///
    /// # Errors
    /// When the file can't be read or is not such a configuration, or the token is none.
    pub fn from_config(path: &Path, token: Option<&str>) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the configuration {}", path.display()))?;
        let config: toml::Table =
            toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        let entries = config.get("collections").and_then(toml::Value::as_array);
        let entries = entries.ok_or_else(|| anyhow!("{} names no collections", path.display()))?;
        let collections = entries.iter().map(collection).collect::<Result<_>>()?;
        let held = match token {
            None => None,
            Some(token) => {
                let grants = config.get("access").and_then(|access| access.get("grants"));
                // As in the server: a token holds nothing that is not granted.
                let grants = grants.map_or_else(Vec::new, texts);
                Some(held(&grants, &claims(token)?))
            }
        };
        Ok(Self { collections, held })
    }

    /// Everything of these collections, with no rules.
    #[must_use]
    pub fn everything(names: &[&str]) -> Self {
        let collection = |name: &&str| Collection {
            name: (*name).to_owned(),
            channels: vec!["everyone".into()],
            exclude: Vec::new(),
        };
        Self { collections: names.iter().map(collection).collect(), held: None }
    }

    /// The collections of which the reader may see something: those have tables.
    pub(super) fn visible(&self, collection: &Collection, document: &Document) -> Visible {
        let channels = collection.channels_of(document);
        match &self.held {
            Some(held) if channels.iter().any(|channel| held.contains(channel)) => Visible::Yes,
            Some(_) => Visible::No,
            None if channels.is_empty() => Visible::MayBe,
            None => Visible::Yes,
        }
    }
}

impl Collection {
    fn channels_of(&self, document: &Document) -> BTreeSet<String> {
        let whole = Bson::Document(document.clone());
        let expand = |template: &String| {
            expand(template, &|path| {
                let mut values = Vec::new();
                bson_values(&whole, path, false, &mut values);
                values
            })
        };
        self.channels.iter().flat_map(expand).collect()
    }

    /// The document without what is hidden.
    pub(super) fn cut(&self, mut document: Document) -> Document {
        for path in &self.exclude {
            let steps: Vec<&str> = path.split('.').collect();
            remove(&mut document, &steps);
        }
        document
    }
}

fn collection(entry: &toml::Value) -> Result<Collection> {
    let name = entry.get("name").and_then(toml::Value::as_str);
    Ok(Collection {
        name: name.context("a collection without a name")?.to_owned(),
        channels: entry.get("channels").map(texts).unwrap_or_default(),
        exclude: entry.get("exclude").map(texts).unwrap_or_default(),
    })
}

fn texts(list: &toml::Value) -> Vec<String> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn remove(document: &mut Document, steps: &[&str]) {
    match steps {
        [] => {}
        [last] => {
            document.remove(last);
        }
        [first, rest @ ..] => {
            if let Some(value) = document.get_mut(first) {
                remove_inside(value, rest);
            }
        }
    }
}

fn remove_inside(value: &mut Bson, steps: &[&str]) {
    match value {
        Bson::Document(inner) => remove(inner, steps),
        Bson::Array(values) => values.iter_mut().for_each(|value| remove_inside(value, steps)),
        _ => {}
    }
}

/// The payload of a token.
fn claims(token: &str) -> Result<Value> {
    let payload = token.trim().split('.').nth(1).context("the token is no JWT")?;
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(payload).context("the token is no JWT")?;
    serde_json::from_slice(&bytes).context("the token's claims are not JSON")
}

fn held(grants: &[String], claims: &Value) -> BTreeSet<String> {
    let expand = |template: &String| {
        expand(template, &|path| {
            let mut values = Vec::new();
            claim_values(claims, path, &mut values);
            values
        })
    };
    grants.iter().flat_map(expand).collect()
}

/// Every text of a template, each `{path}` replaced by each of its values.
fn expand(template: &str, values: &dyn Fn(&[&str]) -> Vec<String>) -> Vec<String> {
    let Some((before, rest)) = template.split_once('{') else {
        return vec![template.to_owned()];
    };
    let Some((path, after)) = rest.split_once('}') else { return Vec::new() };
    let path: Vec<&str> = path.split('.').collect();
    let ends = expand(after, values);
    let join = |value: String| ends.iter().map(move |end| format!("{before}{value}{end}"));
    values(&path).into_iter().flat_map(join).collect()
}

fn bson_values(value: &Bson, path: &[&str], in_array: bool, values: &mut Vec<String>) {
    match (value, path) {
        (Bson::Array(elements), _) if !in_array => {
            elements.iter().for_each(|element| bson_values(element, path, true, values));
        }
        (Bson::Document(fields), [first, rest @ ..]) => {
            if let Some(inner) = fields.get(first) {
                bson_values(inner, rest, false, values);
            }
        }
        (Bson::String(text), []) if !text.is_empty() => values.push(text.clone()),
        (Bson::ObjectId(id), []) => values.push(id.to_hex()),
        (Bson::Int32(number), []) => values.push(number.to_string()),
        (Bson::Int64(number), []) => values.push(number.to_string()),
        (Bson::Double(number), []) => values.extend(whole(*number)),
        (Bson::Boolean(truth), []) => values.push(truth.to_string()),
        _ => {}
    }
}

fn claim_values(value: &Value, path: &[&str], values: &mut Vec<String>) {
    match (value, path) {
        (Value::Array(elements), _) => {
            let inner = elements.iter().filter(|element| !element.is_array());
            inner.for_each(|element| claim_values(element, path, values));
        }
        (Value::Object(fields), [first, rest @ ..]) => {
            if let Some(inner) = fields.get(*first) {
                claim_values(inner, rest, values);
            }
        }
        (Value::String(text), []) if !text.is_empty() => values.push(text.clone()),
        (Value::Bool(truth), []) => values.push(truth.to_string()),
        (Value::Number(number), []) if number.is_f64() => {
            values.extend(number.as_f64().and_then(whole));
        }
        (Value::Number(number), []) => values.push(number.to_string()),
        _ => {}
    }
}

/// Whole numbers that a double holds exactly, in plain digits.
fn whole(number: f64) -> Option<String> {
    (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0)
        .then(|| format!("{}", number as i64))
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    #[test]
    fn templates_take_each_value_of_an_array() {
        let collection = Collection {
            name: "a".into(),
            channels: vec!["user:{owners.id}".into(), "role:admin".into()],
            exclude: vec!["owners.secret".into()],
        };
        let document = doc! { "owners": [{ "id": 7, "secret": 1 }, { "id": "x" }] };
        let channels = collection.channels_of(&document);
        let expected = ["role:admin", "user:7", "user:x"].map(str::to_owned);
        assert_eq!(channels, expected.into());
        let cut = collection.cut(document);
        assert_eq!(cut, doc! { "owners": [{ "id": 7 }, { "id": "x" }] });
    }
}

//! Channels: the ones a document is in, from its collection's rules, and the ones a token holds, from
//! its claims.

use std::collections::BTreeMap;

use bson::oid::ObjectId;
use bson::raw::RawDocument;
use bson::spec::ElementType;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tidewire_protocol::payload::Exclude;
use tidewire_protocol::raw::{self, Element, Elements, Reason};

use super::template::Template;
use crate::config::CollectionConfig;

/// Whole numbers up to here are exact as doubles.
const WHOLE_DOUBLE_MAX: f64 = 9_007_199_254_740_992.0;
/// How deep arrays of documents are walked into; MongoDB itself stops at 180 levels.
const DEPTH_MAX: usize = 200;

/// One collection's rules, compiled: which channels its documents are in, what is left out of them.
#[derive(Debug)]
pub struct Rules {
    name: String,
    channels: Vec<Template>,
    exclude: Exclude,
    fingerprint: u64,
    text: String,
}

impl Rules {
    /// Compiles one `[[collections]]` entry.
    ///
    /// # Errors
    /// A template or a path that is none; the configuration's check finds it first.
    pub fn compile(config: &CollectionConfig) -> Result<Self, String> {
        let mut sorted = config.clone();
        sorted.channels.sort_unstable();
        sorted.exclude.sort_unstable();
        let channels = sorted.channels.iter().map(|text| Template::parse(text));
        Ok(Self {
            name: sorted.name.clone(),
            channels: channels.collect::<Result<_, _>>()?,
            exclude: Exclude::parse(&sorted.exclude).map_err(|error| error.to_string())?,
            fingerprint: fingerprint(&sorted),
            text: serde_json::json!([sorted.channels, sorted.exclude]).to_string(),
        })
    }

    /// The rules that [`Rules::text`] told; `None` where it told none that this version reads.
    #[must_use]
    pub fn from_text(collection: &str, text: &str) -> Option<Self> {
        let (channels, exclude) = serde_json::from_str(text).ok()?;
        Self::compile(&CollectionConfig { name: collection.to_owned(), channels, exclude }).ok()
    }

    /// The rules as text: one for the same rules, in whatever order they are configured.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The channels that `document` is in: sorted, each once, at most 1,024. None means that nobody
    /// sees it.
    ///
    /// Strings count as themselves, ObjectIds as hex, whole numbers in digits, booleans as words; an
    /// array gives each of its elements, a document in an array is walked into. What is missing,
    /// null, empty or of another type gives no channel, and so does a document that can't be read.
    #[must_use]
    pub fn channels_of(&self, document: &RawDocument) -> Vec<String> {
        let mut channels = Vec::new();
        for template in &self.channels {
            template.expand(|path| values_at(document, path), &mut channels);
        }
        channels.sort_unstable();
        channels.dedup();
        channels
    }

    /// Whether some template reads one of the top-level fields for which `changed` answers true: the
    /// channels of a document are the same before and after where none does.
    pub fn reads_any(&self, changed: impl Fn(&str) -> bool) -> bool {
        self.channels.iter().flat_map(Template::fields).any(changed)
    }

    /// The paths that are never served.
    #[must_use]
    pub fn exclude(&self) -> &Exclude {
        &self.exclude
    }

    /// Changes when the rules do, and only then: the same on every server and after a restart.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The collection's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a document of this collection could be in one of `channels`.
    #[must_use]
    pub fn may_be_seen_by(&self, channels: &[String]) -> bool {
        self.channels.iter().any(|template| channels.iter().any(|c| template.may_give(c)))
    }
}

/// Every collection's rules, by name.
#[derive(Debug, Default)]
pub struct RuleSet(BTreeMap<String, Rules>);

impl RuleSet {
    /// Compiles all `[[collections]]` entries.
    ///
    /// # Errors
    /// As [`Rules::compile`].
    pub fn compile(collections: &[CollectionConfig]) -> Result<Self, String> {
        let rules =
            collections.iter().map(|config| Ok((config.name.clone(), Rules::compile(config)?)));
        rules.collect::<Result<_, String>>().map(Self)
    }

    /// The rules of `collection`; `None` when it is not served.
    #[must_use]
    pub fn get(&self, collection: &str) -> Option<&Rules> {
        self.0.get(collection)
    }

    /// All rules, by ascending name.
    pub fn iter(&self) -> impl Iterator<Item = &Rules> {
        self.0.values()
    }
}

/// The templates that turn a token's claims into channels.
#[derive(Clone, Debug)]
pub struct Grants(Vec<Template>);

impl Grants {
    /// Compiles `access.grants`.
    ///
    /// # Errors
    /// A template that is none; the configuration's check finds it first.
    pub fn compile(grants: &[String]) -> Result<Self, String> {
        grants.iter().map(|text| Template::parse(text)).collect::<Result<_, _>>().map(Self)
    }

    /// The channels that a token with `claims` holds: sorted, each once, at most 1,024.
    #[must_use]
    pub fn channels_of(&self, claims: &Map<String, Value>) -> Vec<String> {
        let mut channels = Vec::new();
        for template in &self.0 {
            template.expand(|path| claim_values(claims, path), &mut channels);
        }
        channels.sort_unstable();
        channels.dedup();
        channels
    }
}

/// Of rules whose lists are sorted.
fn fingerprint(sorted: &CollectionConfig) -> u64 {
    let mut hash = Sha256::new();
    // Lengths keep ["ab"] and ["a", "b"] apart.
    for list in [std::slice::from_ref(&sorted.name), &sorted.channels, &sorted.exclude] {
        hash.update((list.len() as u64).to_le_bytes());
        for text in list {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
    }
    let digest = hash.finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

fn values_at(document: &RawDocument, path: &[String]) -> Vec<String> {
    let mut values = Vec::new();
    // What can't be read is in no channel: default deny.
    if collect_values(document.as_bytes(), path, 0, &mut values).is_err() {
        values.clear();
    }
    values
}

/// `document` is the bytes of a document or of an array.
fn collect_values(
    document: &[u8],
    path: &[String],
    depth: usize,
    values: &mut Vec<String>,
) -> Result<(), Reason> {
    let Some((name, rest)) = path.split_first() else { return Ok(()) };
    // The last of several fields of one name is the one that is served, so it is the one that counts.
    let mut found = None;
    let mut fields = Elements::of(document)?;
    while let Some(field) = fields.step().map_err(|damage| damage.reason)? {
        if field.name == name.as_bytes() {
            found = Some(field);
        }
    }
    found.map_or(Ok(()), |field| collect_value(field, rest, depth, values))
}

fn collect_value(
    field: Element<'_>,
    rest: &[String],
    depth: usize,
    values: &mut Vec<String>,
) -> Result<(), Reason> {
    if depth > DEPTH_MAX {
        return Ok(());
    }
    match field.kind {
        ElementType::EmbeddedDocument if !rest.is_empty() => {
            collect_values(field.value, rest, depth + 1, values)?;
        }
        ElementType::Array => {
            let mut members = Elements::of(field.value)?;
            while let Some(member) = members.step().map_err(|damage| damage.reason)? {
                // An array inside an array gives nothing, as MongoDB's queries see it.
                if member.kind != ElementType::Array {
                    collect_value(member, rest, depth + 1, values)?;
                }
            }
        }
        _ if rest.is_empty() => values.extend(text_of(field)?),
        _ => {}
    }
    Ok(())
}

fn text_of(field: Element<'_>) -> Result<Option<String>, Reason> {
    let value = field.value;
    Ok(match field.kind {
        ElementType::String => {
            let text =
                std::str::from_utf8(raw::text(value)?).map_err(|_| "a text that is not UTF-8")?;
            (!text.is_empty()).then(|| text.to_owned())
        }
        ElementType::ObjectId => Some(ObjectId::from_bytes(raw::fixed(value)?).to_hex()),
        ElementType::Int32 => Some(i32::from_le_bytes(raw::fixed(value)?).to_string()),
        ElementType::Int64 => Some(i64::from_le_bytes(raw::fixed(value)?).to_string()),
        ElementType::Double => whole(f64::from_le_bytes(raw::fixed(value)?)),
        ElementType::Boolean => Some(raw::boolean(value)?.to_string()),
        _ => None,
    })
}

/// 7.0 is 7, as in MongoDB; a fraction names no channel.
fn whole(number: f64) -> Option<String> {
    (number.fract() == 0.0 && number.abs() <= WHOLE_DOUBLE_MAX)
        .then(|| format!("{}", number as i64))
}

fn claim_values(claims: &Map<String, Value>, path: &[String]) -> Vec<String> {
    let mut values = Vec::new();
    if let Some((name, rest)) = path.split_first() {
        collect_claims(claims.get(name), rest, &mut values);
    }
    values
}

fn collect_claims(value: Option<&Value>, rest: &[String], values: &mut Vec<String>) {
    match (value, rest) {
        (Some(Value::Object(inner)), [name, rest @ ..]) => {
            collect_claims(inner.get(name), rest, values);
        }
        (Some(Value::Array(elements)), _) => {
            for element in elements.iter().filter(|element| !element.is_array()) {
                collect_claims(Some(element), rest, values);
            }
        }
        (Some(value), []) => values.extend(match value {
            Value::String(text) => (!text.is_empty()).then(|| text.clone()),
            Value::Bool(truth) => Some(truth.to_string()),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(n), _) => Some(n.to_string()),
                (None, Some(n)) => Some(n.to_string()),
                (None, None) => number.as_f64().and_then(whole),
            },
            _ => None,
        }),
        _ => {}
    }
}

#[cfg(test)]
mod tests;

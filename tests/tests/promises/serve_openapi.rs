//! The OpenAPI document says what the server really answers.

use bson::rawdoc;
use serde_json::Value;
use tidewire_server::status::SourcePhase;

use crate::served::{Served, at};

/// The OpenAPI document, as far as it uses JSON Schema.
struct Document(Value);

impl Document {
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema.get("$ref").and_then(Value::as_str) {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').expect("a local reference");
                self.resolve(self.0.pointer(pointer).unwrap_or_else(|| panic!("{reference}")))
            }
            None => schema,
        }
    }

    /// Why `value` is not of `schema`; nothing when it is.
    fn differences(&self, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        let schema = self.resolve(schema);
        let mut found = Vec::new();
        for (keyword, wanted) in schema.as_object().expect("a schema") {
            let fits = match keyword.as_str() {
                "description" | "format" | "pattern" => true,
                "type" => types(wanted).iter().any(|name| is_of_type(value, name)),
                "const" => value == wanted,
                "enum" => wanted.as_array().unwrap().contains(value),
                "minimum" => value.as_f64().is_none_or(|n| n >= wanted.as_f64().unwrap()),
                "maximum" => value.as_f64().is_none_or(|n| n <= wanted.as_f64().unwrap()),
                "minLength" => value.as_str().unwrap().len() as u64 >= wanted.as_u64().unwrap(),
                "maxItems" => value.as_array().unwrap().len() as u64 <= wanted.as_u64().unwrap(),
                "required" => {
                    let names = wanted.as_array().unwrap();
                    names.iter().all(|name| value.get(name.as_str().unwrap()).is_some())
                }
                "additionalProperties" => {
                    let known = schema["properties"].as_object().unwrap();
                    value.as_object().unwrap().keys().all(|name| known.contains_key(name))
                }
                "properties" => {
                    for (name, schema) in wanted.as_object().unwrap() {
                        if let Some(inner) = value.get(name) {
                            found.extend(self.differences(schema, inner, &format!("{at}.{name}")));
                        }
                    }
                    true
                }
                "items" => {
                    for (n, inner) in value.as_array().unwrap().iter().enumerate() {
                        found.extend(self.differences(wanted, inner, &format!("{at}[{n}]")));
                    }
                    true
                }
                other => panic!("this test does not know the keyword {other}"),
            };
            if !fits {
                found.push(format!("{at}: {keyword} is {wanted}, got {value}"));
            }
        }
        found
    }

    /// Holds an answer to what the document says of its route and status.
    fn check(&self, path: &str, status: u16, content_type: &str, body: &str) {
        let operation = &self.0["paths"][path]["get"];
        assert!(operation.is_object(), "{path} is not in the document");
        let answer = self.resolve(&operation["responses"][status.to_string()]);
        assert!(answer.is_object(), "{path} {status} is not in the document: {body}");
        let media = content_type.split(';').next().unwrap();
        let schema = &answer["content"][media]["schema"];
        assert!(schema.is_object(), "{path} {status} {media} is not in the document");
        let value = match media {
            "application/json" => serde_json::from_str(body).unwrap(),
            _ => Value::String(body.to_owned()),
        };
        assert_eq!(self.differences(schema, &value, path), Vec::<String>::new());
    }
}

fn types(wanted: &Value) -> Vec<&str> {
    match wanted {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        name => vec![name.as_str().unwrap()],
    }
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_real_answer_is_as_the_document_says() {
    let mut served = Served::start().await;
    let text = served.get_as("ann", "/api/sync/openapi.json").await.text().await.unwrap();
    let document = Document(serde_json::from_str(&text).unwrap());
    served.put(at(1), "plans", &rawdoc! {"_id": 1, "text": "x"});
    served.put(at(2), "plans", &rawdoc! {"_id": 2});
    served.commit(at(2));
    let cursor = served.pull("ann", "").await["cursor"].as_str().unwrap().to_owned();
    served.delete(at(3), "plans", &rawdoc! {"_id": 2});
    served.commit(at(3));
    let inside = served.pull("ann", "limit=1&since=0").await["cursor"].as_str().unwrap().to_owned();
    let live = format!("?since={cursor}");
    let forged = format!("?since={}", inside.replacen(&inside[30..34], "zzzz", 1));
    let long = format!("?since={}", "A".repeat(40_000));
    let digest = format!("?collection=plans&at={cursor}");
    let range = format!("{digest}&depth=0&ranges=0&limit=1");
    let mut statuses = Vec::new();
    for (path, query) in [
        ("/api/sync/pull", ""),
        ("/api/sync/pull", &live),
        ("/api/sync/pull", "?limit=1"),
        ("/api/sync/pull", "?format=ejson"),
        ("/api/sync/pull", "?limit=0"),
        ("/api/sync/pull", "?collections=vault"),
        ("/api/sync/pull", &forged),
        ("/api/sync/pull", &long),
        ("/api/sync/digest", &digest),
        ("/api/sync/digest", ""),
        ("/api/sync/range", &range),
        ("/api/sync/range", &digest),
        ("/api/sync/status", ""),
        ("/api/sync/openapi.json", ""),
        ("/healthz", ""),
        ("/readyz", ""),
    ] {
        let answer = served.get_as("ann", &format!("{path}{query}")).await;
        statuses.push(check(&document, path, answer).await);
        let nobody = served.http.get(format!("{}{path}{query}", served.url)).send().await.unwrap();
        statuses.push(check(&document, path, nobody).await);
        let post = served.http.post(format!("{}{path}{query}", served.url)).send().await.unwrap();
        statuses.push(check(&document, path, post).await);
    }
    served.status.send_modify(|status| status.phase = SourcePhase::Copying);
    for path in ["/api/sync/pull", "/api/sync/status", "/readyz"] {
        statuses.push(check(&document, path, served.get_as("ann", path).await).await);
    }
    for status in [200, 400, 401, 403, 405, 414, 503] {
        assert!(statuses.contains(&status), "{status} was not seen: {statuses:?}");
    }
    // Every route of the document is there.
    for path in document.0["paths"].as_object().unwrap().keys() {
        assert_ne!(served.get_as("ann", path).await.status(), 404, "{path}");
    }
}

async fn check(document: &Document, path: &str, answer: reqwest::Response) -> u16 {
    let status = answer.status().as_u16();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    document.check(path, status, &kind, &answer.text().await.unwrap());
    status
}

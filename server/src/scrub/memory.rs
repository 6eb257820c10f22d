//! What is known of comparisons across restarts: `scrub.json` in the data folder. Nothing depends on it: without
//! it every collection is due, from its beginning.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bson::RawDocumentBuf;
use serde::{Deserialize, Serialize};

use crate::capture::CheckReport;

const FILE: &str = "scrub.json";

/// When each collection was last compared, and how far a comparison has come that was cut off.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    known: BTreeMap<String, Known>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    /// Milliseconds since 1970; 0: never.
    done_at_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<Part>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Part {
    /// `{_id: …}` in base64: everything through it is compared.
    after: String,
    documents: u64,
    upserted: u64,
    deleted: u64,
}

impl Memory {
    /// What is known of these collections; nothing where the file is not there or can't be read.
    #[must_use]
    pub fn load(dir: &Path, collections: &[String]) -> Self {
        let path = dir.join(FILE);
        let text = std::fs::read(&path).unwrap_or_default();
        let mut known: BTreeMap<String, Known> = serde_json::from_slice(&text).unwrap_or_default();
        known.retain(|name, _| collections.contains(name));
        Self { path, known }
    }

    /// When a collection was last compared to its end (milliseconds since 1970, 0 for never).
    #[must_use]
    pub fn done_at_ms(&self, collection: &str) -> i64 {
        self.known.get(collection).map_or(0, |known| known.done_at_ms)
    }

    /// When any was.
    #[must_use]
    pub fn last_ms(&self) -> i64 {
        self.known.values().map(|known| known.done_at_ms).max().unwrap_or(0)
    }

    /// How far a comparison has come that was cut off: what it found, and the `{_id: …}` through which it came.
    #[must_use]
    pub fn part(&self, collection: &str) -> Option<(CheckReport, RawDocumentBuf)> {
        let part = self.known.get(collection)?.part.as_ref()?;
        let after = RawDocumentBuf::from_bytes(STANDARD.decode(&part.after).ok()?).ok()?;
        after.get("_id").ok()??;
        let Part { documents, upserted, deleted, .. } = *part;
        Some((CheckReport { documents, upserted, deleted, ..CheckReport::default() }, after))
    }

    /// A collection was compared to its end.
    pub fn done(&mut self, collection: &str, now_ms: i64) {
        self.known.insert(collection.to_owned(), Known { done_at_ms: now_ms, part: None });
        self.save();
    }

    /// Its comparison was cut off there.
    pub fn cut_off(&mut self, collection: &str, report: CheckReport, after: &RawDocumentBuf) {
        let CheckReport { documents, upserted, deleted, .. } = report;
        let after = STANDARD.encode(after.as_bytes());
        let part = Some(Part { after, documents, upserted, deleted });
        self.known.entry(collection.to_owned()).or_default().part = part;
        self.save();
    }

    /// A file that can't be written (a full disk) costs a comparison, and is said.
    fn save(&self) {
        let part = self.path.with_extension("part");
        let text = serde_json::to_vec(&self.known).unwrap_or_default();
        let saved = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &self.path));
        if let Err(error) = saved {
            tracing::warn!(%error, "what was compared can't be written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    #[test]
    fn what_was_compared_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["plans", "users"].map(str::to_owned);
        let load = || Memory::load(dir.path(), &names);
        let mut memory = load();
        assert_eq!((memory.done_at_ms("plans"), memory.last_ms()), (0, 0));
        memory.done("plans", 7_000);
        let report = CheckReport { documents: 5, upserted: 2, deleted: 1, time: 0 };
        let after = rawdoc! { "_id": { "a": 1 } };
        memory.cut_off("plans", report, &after);
        memory.cut_off("users", report, &after);
        memory.done("users", 9_000);
        let again = load();
        assert_eq!((again.done_at_ms("plans"), again.last_ms()), (7_000, 9_000));
        assert_eq!(again.part("plans"), Some((report, after)));
        assert_eq!(again.part("users"), None, "it was finished");
        let fewer = Memory::load(dir.path(), &names[1..]);
        assert_eq!((fewer.done_at_ms("plans"), fewer.part("plans")), (0, None));
        for nonsense in [&b"no json"[..], b"{\"plans\":{\"doneAtMs\":1,\"part\":{\"after\":\"AAAA\",\"documents\":1,\"upserted\":0,\"deleted\":0}}}"] {
            std::fs::write(dir.path().join(FILE), nonsense).unwrap();
            assert_eq!(load().part("plans"), None);
        }
    }
}

//! The quarantine in the log: who is told of it, and how long it lasts.

use bson::rawdoc;
use tidewire_protocol::Position;

use super::*;

const REASON: &str = "a string or a field name that is not UTF-8";

struct Log {
    writer: Option<Writer>,
    reader: Reader,
    collection: CollectionId,
    time: u64,
    dir: tempfile::TempDir,
}

impl Log {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader) = Writer::open(dir.path(), &options()).unwrap();
        let collection = writer.collection("users").unwrap();
        writer.set_tail(TailState { resume_token: None, high_water: 1 }).unwrap();
        writer.commit().unwrap();
        Self { writer: Some(writer), reader, collection, time: 1, dir }
    }

    fn writer(&mut self) -> &mut Writer {
        self.writer.as_mut().unwrap()
    }

    fn next(&mut self) -> Position {
        self.time += 1;
        Position::new(self.time, 0)
    }

    fn commit(&mut self) {
        let high_water = self.time;
        self.writer().set_tail(TailState { resume_token: None, high_water }).unwrap();
        self.writer().commit().unwrap();
    }

    fn append(&mut self, id: i32, channel: Option<&str>) {
        let (position, collection) = (self.next(), self.collection);
        let document = rawdoc! { "_id": id };
        let channels: Vec<String> = channel.into_iter().map(str::to_owned).collect();
        let body =
            if channel.is_some() { Body::Upsert(&document) } else { Body::Delete(&document) };
        let key = sort_key(document.get("_id").unwrap().unwrap());
        let (key, channels) = (&key[..], Channels::Named(&channels));
        let change =
            NewChange { position, wall_time_ms: 0, collection, key, body, channels, rules: 1 };
        self.writer().append(&change).unwrap();
        self.commit();
    }

    fn aside(&mut self, rules: u64) -> NewAside<'static> {
        let (position, collection) = (self.next(), self.collection);
        NewAside { position, wall_time_ms: 0, collection, reason: REASON, size: 77, rules }
    }

    fn set_aside(&mut self, id: i32, rules: u64) {
        let document = rawdoc! { "_id": id };
        let key = sort_key(document.get("_id").unwrap().unwrap());
        let aside = self.aside(rules);
        self.writer().set_aside(&aside, &key, &document, &format!("~{id}")).unwrap();
        self.commit();
    }

    /// What a holder of `channel` is told after `since`: `_id`, and `"upsert"`, `"delete"` or the reason.
    fn told(&self, since: &Since, channel: &str) -> (Vec<(i32, String)>, Since) {
        let (collections, channels) = (["users".to_owned()], [channel.to_owned()]);
        let scope = Scope::Channels { collections: &collections, channels: &channels };
        let request = PageRequest { since, scope, limit: 100, operation_time: 0 };
        let mut told = Vec::new();
        let end = self.reader.page(&request, &mut |entry| {
            let (document, what) = match entry.body {
                Body::Upsert(document) => (document, "upsert"),
                Body::Delete(key) => (key, entry.set_aside.unwrap_or("delete")),
            };
            assert_eq!(document.iter().count(), 1, "the key only: {document:?}");
            told.push((document.get_i32("_id").unwrap(), what.to_owned()));
            Flow::Took
        });
        (told, Since::Cursor(end.unwrap().cursor))
    }

    fn listed(&self) -> Vec<String> {
        self.reader.quarantine().unwrap().into_iter().map(|one| one.shown_id).collect()
    }
}

fn options() -> LogOptions {
    LogOptions { source: "rs0/shop".into(), retention: std::time::Duration::from_secs(60) }
}

#[test]
fn only_those_who_could_see_its_last_version_are_told_that_a_document_is_in_quarantine() {
    let mut log = Log::new();
    log.append(7, Some("a"));
    let (_, a) = log.told(&Since::Nothing, "a");
    let (_, b) = log.told(&Since::Nothing, "b");
    log.set_aside(7, 1);
    log.set_aside(8, 1);
    let reason = vec![(7, REASON.to_owned())];
    assert_eq!(log.told(&a, "a").0, reason);
    assert_eq!(log.told(&b, "b").0, [], "another's document");
    assert_eq!(log.told(&Since::Nothing, "a").0, reason, "a new reader is told what it misses");
    assert_eq!(log.told(&Since::Nothing, "b").0, []);
    assert_eq!(log.listed(), ["~7", "~8"], "the operator knows of both");
    let before = Position::new(log.time + 1, 0);
    log.writer().compact(before, 100).unwrap();
    let (told, a) = log.told(&Since::Nothing, "a");
    assert_eq!(told, reason, "it outlives the retention");
    let (_, b) = log.told(&Since::Nothing, "b");
    // Well again, in another channel.
    log.append(7, Some("b"));
    assert_eq!(log.told(&a, "a").0, [(7, "delete".to_owned())]);
    assert_eq!(log.told(&b, "b").0, [(7, "upsert".to_owned())]);
    log.append(8, None);
    assert_eq!(log.listed(), [""; 0]);
}

#[test]
fn a_document_that_was_visible_under_other_rules_is_in_quarantine_for_the_operator_alone() {
    let mut log = Log::new();
    log.append(7, Some("a"));
    let (_, a) = log.told(&Since::Nothing, "a");
    log.set_aside(7, 2);
    assert_eq!(log.told(&a, "a").0, [(7, "delete".to_owned())]);
    assert_eq!(log.told(&Since::Nothing, "a").0, []);
    assert_eq!(log.listed(), ["~7"]);
}

#[test]
fn the_quarantine_commits_with_the_changes_and_is_forgotten_with_them() {
    let mut log = Log::new();
    log.set_aside(1, 1);
    let aside = log.aside(1);
    log.writer().set_aside_unknown(&aside, b"digest", "0xff").unwrap();
    log.writer().abort().unwrap();
    assert_eq!((log.listed(), log.writer().quarantine_len()), (vec!["~1".to_owned()], 1));
    log.writer().set_aside_unknown(&aside, b"digest", "0xff").unwrap();
    log.commit();
    log.writer = None;
    let (writer, reader) = Writer::open(log.dir.path(), &options()).unwrap();
    (log.writer, log.reader) = (Some(writer), reader);
    assert_eq!(log.writer().quarantine_len(), 2);
    let collection = log.collection;
    log.writer().keep_unknown(collection, &[b"digest".to_vec()].into()).unwrap();
    log.commit();
    assert_eq!(log.listed(), ["~1", "0xff"]);
    log.writer().forget_unknown(collection, b"digest").unwrap();
    log.commit();
    assert_eq!(log.listed(), ["~1"]);
}

#[test]
fn the_list_has_a_bound_and_what_is_beyond_it_is_set_aside_all_the_same() {
    let mut log = Log::new();
    log.append(7, Some("a"));
    let aside = log.aside(1);
    for n in 0..QUARANTINE_MAX {
        assert!(log.writer().set_aside_unknown(&aside, &n.to_be_bytes(), "?").unwrap());
    }
    assert!(!log.writer().set_aside_unknown(&aside, b"more", "?").unwrap());
    log.set_aside(7, 1);
    assert_eq!(log.listed().len(), QUARANTINE_MAX);
    assert_eq!(log.told(&Since::Nothing, "a").0, [(7, REASON.to_owned())]);
}

//! A cursor says from which source and by which rules its sender has read: another log goes on with it
//! where what follows leads on from there, and nowhere else.

use super::*;

const NAMES: [&str; 1] = ["plans"];

/// A log of `plans` that its rules have changed in.
struct Log {
    dir: tempfile::TempDir,
    writer: Writer,
    reader: Reader,
    id: CollectionId,
    time: u64,
}

type Told = Result<(Vec<(i32, Position)>, Since), ReadError>;

impl Log {
    fn of(source: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { source: source.to_owned(), ..options() };
        let (mut writer, reader) = Writer::open(dir.path(), &options).unwrap();
        let id = writer.collection("plans").unwrap();
        let mut log = Self { dir, writer, reader, id, time: 100 };
        log.writer.follow(id, "first").unwrap();
        let finished = CopyState { finished: true, ..CopyState::default() };
        log.writer.set_copy_state(id, finished).unwrap();
        log.commit(100);
        log
    }

    /// Nothing more happens until this second.
    fn commit(&mut self, second: u64) {
        self.time = second;
        let tail = TailState { resume_token: None, high_water: second << 32 };
        self.writer.set_tail(tail).unwrap();
        self.writer.commit().unwrap();
    }

    fn append(&mut self, id: i32, ordinal: u32, channel: &str) {
        let document = rawdoc! { "_id": id };
        let key = sort_key(document.get("_id").unwrap().unwrap());
        let change = NewChange {
            position: Position::new(self.time << 32, ordinal),
            wall_time_ms: 0,
            collection: self.id,
            key: &key,
            body: Body::Upsert(&document),
            channels: Channels::Named(&[channel.to_owned()]),
            rules: 0,
        };
        self.writer.append(&change).unwrap();
    }

    /// A change of the source, at its second.
    fn put(&mut self, second: u64, id: i32, channel: &str) {
        self.time = second;
        self.append(id, 0, channel);
        self.commit(second);
    }

    /// Other rules from this second on: they put one document into another place.
    fn rules(&mut self, second: u64, rules: &str, id: i32) {
        self.commit(second);
        self.append(id, Position::RECONCILE_ORDINAL_FIRST, "everyone");
        self.writer.follow(self.id, rules).unwrap();
        self.writer.commit().unwrap();
        self.commit(second + 1);
    }

    fn read(&self, since: &Since, channels: &[&str]) -> Told {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (collections, channels) = (names(&NAMES), names(channels));
        let scope = Scope::Channels { collections: &collections, channels: &channels };
        let request = PageRequest { since, scope, limit: 1_000, operation_time: 0 };
        let mut told = Vec::new();
        let end = self.reader.page(&request, &mut |entry| {
            let (Body::Upsert(document) | Body::Delete(document)) = entry.body;
            told.push((document.get_i32("_id").unwrap(), entry.position));
            Flow::Took
        })?;
        assert!(end.complete);
        Ok((told, Since::Cursor(end.cursor.to_string().parse().unwrap())))
    }

    /// Which documents follow.
    fn tells(&self, since: &Since) -> Result<Vec<i32>, ResyncReason> {
        match self.read(since, &["everyone"]) {
            Ok((told, _)) => Ok(told.into_iter().map(|(id, _)| id).collect()),
            Err(ReadError::Resync(reason)) => Err(reason),
            Err(error) => panic!("{error}"),
        }
    }

    /// Where a reader stands who has read all.
    fn all(&self) -> Since {
        self.read(&Since::Nothing, &["everyone"]).unwrap().1
    }
}

/// Two logs of one source, which has written two documents so far.
fn two() -> (Log, Log) {
    let (mut here, mut there) = (Log::of("rs0/invoify"), Log::of("rs0/invoify"));
    for log in [&mut here, &mut there] {
        log.put(110, 1, "everyone");
        log.put(120, 2, "everyone");
    }
    (here, there)
}

#[test]
fn a_cursor_of_another_source_is_not_continued() {
    let (here, _) = two();
    let mut other = Log::of("rs0/another");
    other.put(120, 2, "everyone");
    assert_eq!(here.tells(&other.all()), Err(ResyncReason::ForeignLog));
    assert_eq!(here.tells(&here.all()), Ok(vec![]));
}

#[test]
fn who_read_by_other_rules_is_told_what_changed_them_or_begins_anew() {
    let (mut here, mut there) = two();
    let (own, before) = (here.all(), there.all());
    here.rules(130, "second", 1);
    assert_eq!(here.tells(&own), Ok(vec![1]));
    assert_eq!(here.tells(&before), Ok(vec![1]), "it stood before the rules changed here");

    for log in [&mut here, &mut there] {
        log.put(140, 3, "everyone");
    }
    let after = there.all();
    assert_eq!(here.tells(&after), Err(ResyncReason::RulesChanged), "by the old rules, after them");
    let newer = here.all();
    assert_eq!(there.tells(&newer), Err(ResyncReason::RulesChanged), "by rules not known there");

    there.rules(150, "second", 1);
    assert_eq!(there.tells(&newer), Ok(vec![1]), "the same rules");
    here.commit(160);
    assert_eq!(here.tells(&there.all()), Ok(vec![]), "the same rules");
    // Back again: who has read by what held between is told too.
    there.commit(160);
    let between = there.all();
    here.commit(170);
    here.rules(180, "first", 1);
    assert_eq!(here.tells(&between), Ok(vec![1]));
    assert_eq!(here.tells(&own), Ok(vec![3, 1]));
}

#[test]
fn of_rules_that_were_left_the_last_are_remembered_across_a_restart() {
    let mut log = Log::of("rs0/invoify");
    let mut cursors = Vec::new();
    for n in 0..20 {
        log.commit(200 + 10 * n);
        cursors.push(log.all());
        log.rules(205 + 10 * n, &format!("rules {n}"), 1);
    }
    let refused = |log: &Log| {
        let known = cursors.iter().map(|since| log.tells(since));
        known.filter(|told| *told == Err(ResyncReason::RulesChanged)).count()
    };
    assert_eq!(refused(&log), 4, "sixteen are known");
    let Log { dir, writer, id, time, .. } = log;
    drop(writer);
    let (writer, reader) = Writer::open(dir.path(), &options()).unwrap();
    assert_eq!(refused(&Log { dir, writer, reader, id, time }), 4);
}

/// Another log takes a difference down where it finds it, which is later than where this one has the
/// change: a reader that comes from there keeps the version of the later place.
#[test]
fn what_is_gained_and_lost_is_told_as_of_where_the_reader_stands() {
    let (mut here, mut there) = two();
    there.commit(150);
    there.append(2, Position::RECONCILE_ORDINAL_FIRST, "everyone");
    there.commit(160);
    here.commit(160);
    let (held, since) = there.read(&Since::Nothing, &["everyone"]).unwrap();
    let held: std::collections::HashMap<_, _> = held.into_iter().collect();
    let (lost, _) = here.read(&since, &["another"]).unwrap();
    assert_eq!(lost.len(), 2);
    for (id, position) in lost {
        assert!(position >= held[&id], "the delete of {id} at {position} is older than the row");
    }
}

//! A cursor says from which source and by which rules its sender has read: another log goes on with it
//! where what follows leads on from there, and nowhere else.

use std::collections::BTreeSet;

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
        log.finish();
        log.commit(100);
        log
    }

    /// The copy has come to its end.
    fn finish(&mut self) {
        let finished = CopyState { finished: true, ..CopyState::default() };
        self.writer.set_copy_state(self.id, finished).unwrap();
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

    fn delete(&mut self, second: u64, id: i32) {
        self.time = second;
        let tombstone = rawdoc! { "_id": id };
        let key = sort_key(tombstone.get("_id").unwrap().unwrap());
        let change = NewChange {
            position: Position::new(second << 32, 0),
            wall_time_ms: 0,
            collection: self.id,
            key: &key,
            body: Body::Delete(&tombstone),
            channels: Channels::Named(&[]),
            rules: 0,
        };
        self.writer.append(&change).unwrap();
        self.commit(second);
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

    /// Which documents there were at a moment.
    fn replayed(&self, at: Position, channels: Option<&[&str]>) -> Result<Vec<i32>, ReadError> {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (collections, channels) = (names(&NAMES), channels.map(names));
        let scope = match &channels {
            Some(channels) => Scope::Channels { collections: &collections, channels },
            None => Scope::Everything,
        };
        let mut told = Vec::new();
        self.reader.replay(Some(at), &scope, &mut |entry| {
            if let Body::Upsert(document) = entry.body {
                told.push(document.get_i32("_id").unwrap());
            }
            Flow::Took
        })?;
        Ok(told)
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

    for log in [&mut here, &mut there] {
        log.put(145, 5, "everyone");
    }
    there.rules(150, "second", 1);
    // What was deleted there before the rules changed is in the channels of the old ones alone.
    assert_eq!(there.tells(&newer), Err(ResyncReason::RulesChanged), "by new rules, before them");
    for log in [&mut here, &mut there] {
        log.put(160, 4, "everyone");
    }
    let both = here.all();
    assert_eq!(there.tells(&both), Ok(vec![]), "the same rules on both sides");

    // Back again: who stood where the others held is told too, and nobody who stood elsewhere.
    let between = there.all();
    here.rules(170, "first", 1);
    assert_eq!(here.tells(&between), Ok(vec![1]));
    assert_eq!(here.tells(&own), Ok(vec![3, 5, 4, 1]));
    assert_eq!(here.tells(&after), Err(ResyncReason::RulesChanged), "the first rules, between");
}

/// A reader by rules that this log came under later holds what was deleted here under the earlier ones,
/// whose channels were others.
#[test]
fn what_was_deleted_under_other_rules_keeps_no_reader() {
    let (mut here, mut there) = two();
    there.rules(130, "second", 1);
    here.commit(131);
    there.put(140, 5, "new");
    here.put(140, 5, "old");
    let (held, since) = there.read(&Since::Nothing, &["new"]).unwrap();
    assert_eq!(held.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [5]);
    here.delete(150, 5);
    here.rules(160, "second", 1);
    let told = here.read(&since, &["new"]);
    let is_refused = matches!(told, Err(ReadError::Resync(ResyncReason::RulesChanged)));
    assert!(is_refused, "{told:?}: it would keep what is deleted");
}

/// What is not followed any more is not told: another log's reader, who holds later versions of it, is not
/// left waiting for it.
#[test]
fn where_a_collection_is_not_followed_any_more_its_later_readers_begin_anew() {
    let (mut here, mut there) = two();
    let before = there.all();
    here.writer.unfollow(here.id).unwrap();
    here.commit(130);
    there.put(140, 3, "everyone");
    let later = there.all();
    here.commit(150);
    assert_eq!(here.tells(&later), Err(ResyncReason::CursorTooOld));
    // It stood where the log still knew everything, and is told that all of it is lost.
    assert_eq!(here.tells(&before), Ok(vec![1, 2]));
}

/// Where it was copying, a log may never have had what another one told: that stays so while the collection is
/// not followed, and after.
#[test]
fn where_a_collection_was_copied_is_remembered_while_it_is_not_followed() {
    let (mut here, mut there) = two();
    // What happened while it was away is found by comparing.
    here.writer.set_copy_state(here.id, CopyState::default()).unwrap();
    here.commit(130);
    there.put(140, 7, "everyone");
    let later = there.all();
    there.delete(150, 7);
    here.finish();
    here.commit(160);
    assert_eq!(here.tells(&later), Err(ResyncReason::CursorTooOld));
    here.writer.unfollow(here.id).unwrap();
    here.commit(200);
    here.writer.follow(here.id, "first").unwrap();
    here.writer.set_copy_state(here.id, CopyState::default()).unwrap();
    here.finish();
    here.commit(210);
    assert_eq!(here.tells(&later), Err(ResyncReason::CursorTooOld), "it would keep 7");
}

#[test]
fn a_moment_is_replayed_whole_or_not_at_all() {
    let mut log = Log::of("rs0/invoify");
    let at = |second: u64, ordinal| Position::new(second << 32, ordinal);
    let end = Position::RECONCILE_ORDINAL_FIRST - 1;
    log.time = 300;
    log.append(5, 0, "everyone");
    log.append(6, 1, "everyone");
    log.commit(300);
    assert_eq!(log.replayed(at(299, end), None).unwrap(), [0; 0]);
    assert_eq!(log.replayed(at(300, 0), None).unwrap(), [5, 6], "all of the commit");
    // It is away from 300 on, and compares everything at 400.
    log.writer.set_copy_state(log.id, CopyState::default()).unwrap();
    log.commit(400);
    log.time = 400;
    log.append(7, Position::RECONCILE_ORDINAL_FIRST, "everyone");
    log.finish();
    log.commit(410);
    let told = log.replayed(at(350, end), None);
    assert!(matches!(told, Err(ReadError::Unsettled)), "{told:?}: what was there at 350?");
    assert_eq!(log.replayed(at(300, end), None).unwrap(), [5, 6]);
    assert_eq!(log.replayed(at(410, end), None).unwrap(), [5, 6, 7]);
    // Who was shown what before other rules came is not told to a token of today.
    log.rules(500, "second", 5);
    let told = log.replayed(at(450, end), Some(&["everyone"]));
    let is_refused = matches!(told, Err(ReadError::Resync(ResyncReason::RulesChanged)));
    assert!(is_refused, "{told:?}");
    assert_eq!(log.replayed(at(450, end), None).unwrap(), [5, 6, 7]);
    let now = log.replayed(at(501, end), Some(&["everyone"])).unwrap();
    assert_eq!(BTreeSet::from_iter(now), BTreeSet::from([5, 6, 7]));
}

#[test]
fn of_rules_that_were_left_the_last_are_remembered_across_a_restart() {
    let mut log = Log::of("rs0/invoify");
    let mut cursors = Vec::new();
    for n in 0..70 {
        log.commit(200 + 10 * n);
        cursors.push(log.all());
        log.rules(205 + 10 * n, &format!("rules {n}"), 1);
    }
    let refused = |log: &Log| {
        let known = cursors.iter().map(|since| log.tells(since));
        known.filter(|told| *told == Err(ResyncReason::RulesChanged)).count()
    };
    assert_eq!(refused(&log), 7, "of the oldest that is known, nobody knows when it began");
    let Log { dir, writer, id, time, .. } = log;
    drop(writer);
    let (writer, reader) = Writer::open(dir.path(), &options()).unwrap();
    let log = Log { dir, writer, reader, id, time };
    assert_eq!(refused(&log), 7);
    let Log { dir, writer, .. } = log;
    drop(writer);
    rebuild(dir.path(), &mut |_, _| {}).unwrap();
    let (writer, reader) = Writer::open(dir.path(), &options()).unwrap();
    let mut log = Log { dir, writer, reader, id, time };
    log.finish();
    log.commit(log.time + 10);
    assert_eq!(refused(&log), 7, "a rebuilt log knows it too");
}

#[test]
fn who_stands_where_all_since_the_rules_changed_is_compacted_goes_on() {
    let mut log = Log::of("rs0/invoify");
    for (second, id) in [(105, 7), (110, 1), (120, 2)] {
        log.put(second, id, "everyone");
    }
    log.delete(125, 2);
    log.rules(130, "second", 1);
    log.delete(140, 1);
    log.commit(150);
    let since = log.all();
    log.put(160, 8, "everyone");
    while log.writer.compact(Position::new(145 << 32, 0), 1_000).unwrap().more {}
    log.commit(170);
    assert_eq!(log.tells(&since), Ok(vec![8]));
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
    // Its own readers are told where each change stands, as they would be from the beginning.
    let (stood, _) = here.read(&Since::Nothing, &["everyone"]).unwrap();
    let (_, blank) = here.read(&Since::Nothing, &["another"]).unwrap();
    let (gained, _) = here.read(&blank, &["everyone"]).unwrap();
    assert_eq!(gained, stood);
}

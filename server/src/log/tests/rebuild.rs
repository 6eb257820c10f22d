//! A log that is rebuilt: what was lost of it is told to whoever was told it, or cursors are refused.

use std::path::Path;

use rusqlite::Connection;

use super::damage::{Before, log, read_on};
use super::*;

/// Damaged logs; `TIDEWIRE_TEST_FLIPS` for more.
const DAMAGES: usize = 60;

/// What came of rebuilds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcomes {
    pub(super) done: usize,
    /// Something was lost, and every cursor went on; of these:
    pub(super) lossy: usize,
    /// … the log ended earlier.
    pub(super) cut: usize,
    /// Cursors were refused.
    pub(super) refused: usize,
    /// Nothing could be kept.
    pub(super) set_aside: usize,
}

/// What a server makes of a rebuilt log: the stream goes on where it ends, and every collection is
/// compared with the source.
fn follow_again(dir: &Path, model: &Model) -> (Writer, Reader) {
    let (mut writer, reader) = Writer::open(dir, &options()).unwrap();
    for name in COLLECTIONS {
        let collection = writer.collection(name).unwrap();
        let known = writer.followed().unwrap();
        let known = known.iter().any(|f| f.collection == collection && f.rules == RULES);
        if !known {
            writer.follow(collection, RULES).unwrap();
            writer.set_copy_state(collection, CopyState::default()).unwrap();
        }
    }
    writer.commit().unwrap();
    let from = writer.tail().high_water;
    let later = model.changes.iter().filter(|change| change.position.cluster_time > from);
    let later: Vec<_> = later.map(|change| Known { as_before: false, ..change.clone() }).collect();
    append(&mut writer, &later);
    writer.set_tail(TailState { resume_token: None, high_water: model.through }).unwrap();
    writer.commit().unwrap();
    let mut now: BTreeMap<(usize, i32), Option<_>> = BTreeMap::new();
    for change in &model.changes {
        now.insert((change.collection, change.id), change.state.clone());
    }
    let mut position = Position::new(model.through, Position::RECONCILE_ORDINAL_FIRST);
    position = position.max(writer.last_position());
    for (at, name) in COLLECTIONS.iter().enumerate() {
        let collection = writer.collection(name).unwrap();
        for id in 0..40 {
            let tombstone = rawdoc! { "_id": id };
            let key = sort_key(tombstone.get("_id").unwrap().unwrap());
            let latest = writer.latest(collection, &key).unwrap();
            let has = latest.and_then(|latest| latest.document);
            let state = now.get(&(at, id)).cloned().flatten();
            if has.as_ref().map(|has| has.as_bytes())
                != state.as_ref().map(|state| state.0.as_slice())
            {
                position.ordinal += 1;
                let change = Known { position, collection: at, id, state, as_before: false };
                append(&mut writer, &[change]);
            }
        }
        let finished = CopyState { finished: true, ..CopyState::default() };
        writer.set_copy_state(collection, finished).unwrap();
    }
    writer.commit().unwrap();
    (writer, reader)
}

/// Readers from before go on where they were and end up equal, each from its complete cursor unless the
/// rebuild said that it can't.
fn readers_go_on(dir: &Path, before: &Before, rebuilt: &Rebuilt, rng: &mut StdRng) {
    // What the write-ahead log has lost at its end, the rebuild can't know of.
    let end = Writer::open(dir, &options()).unwrap().0.head().position;
    let (writer, reader) = follow_again(dir, &before.model.read().unwrap());
    for (view, since, replica, farthest) in &before.readers {
        let Since::Cursor(cursor) = since else { continue };
        if !cursor.is_complete() {
            // Good for the log that issued it.
            continue;
        }
        let mut follower = Follower::new(rng);
        (follower.view, follower.since) = (view.clone(), since.clone());
        (follower.replica, follower.farthest) = (replica.clone(), *farthest);
        let found = read_on(&mut follower, (&reader, &before.model), rng);
        assert!(found.is_none(), "{found:?}");
        let head = writer.head().position;
        assert_eq!(
            follower.farthest, head,
            "{rebuilt:?}: it ends at the head; {:?}",
            follower.since
        );
        let known = writer.trim.position..=end;
        let can = rebuilt.cursors_go_on && known.contains(&cursor.position());
        assert!(!can || follower.resyncs == 0, "{rebuilt:?}: {cursor:?} was refused");
    }
}

/// A rebuild keeps what is whole, or says that nothing can be kept; either leaves a log that opens.
pub(super) fn rebuild_it(dir: &Path, before: &Before, rng: &mut StdRng, counts: &mut Outcomes) {
    match rebuild(dir, &mut |_, _| {}) {
        Ok(rebuilt) => {
            counts.done += 1;
            counts.lossy += usize::from(rebuilt.lost > 0 && rebuilt.cursors_go_on);
            counts.cut += usize::from(rebuilt.cut.is_some());
            counts.refused += usize::from(!rebuilt.cursors_go_on);
            assert!(rebuilt.aside.exists());
            let checked = check(&dir.join("log.db"), &mut |_, _, _| {}).unwrap();
            assert_eq!(checked.findings, [""; 0]);
            assert!(checked.changes >= rebuilt.kept);
            readers_go_on(dir, before, &rebuilt, rng);
        }
        Err(error) => {
            assert!(error.is_damage(), "{error}: {error:?}");
            set_aside(dir).unwrap();
            counts.set_aside += 1;
        }
    }
    drop(Writer::open(dir, &options()).unwrap());
}

/// Spoils part of a log as no writer does.
fn spoil(conn: &Connection, rng: &mut StdRng) {
    let some = |table: &str, rng: &mut StdRng| -> i64 {
        let sql = format!("SELECT ifnull(max(seq), 0) FROM {table}");
        let last: i64 = conn.query_row(&sql, [], |row| row.get(0)).unwrap();
        rng.random_range(1..=last.max(1))
    };
    let seq = some("changes", rng);
    let which = rng.random_range(0..12);
    println!("damage {which} at {seq}");
    let spoilt = match which {
        0..4 => conn.execute(
            "UPDATE changes SET document = CAST(document AS TEXT) WHERE seq >= ?1 AND seq < ?1 + ?2",
            (seq, rng.random_range(1..4)),
        ),
        4 => conn.execute("UPDATE changes SET cluster_time = cluster_time + 8 WHERE seq = ?1", [seq]),
        5 => conn.execute("UPDATE changes SET channels = x'01' WHERE seq = ?1", [seq]),
        6 => conn.execute(
            "DELETE FROM changes WHERE seq >= ?1 AND seq < ?1 + ?2",
            (seq, rng.random_range(1..12)),
        ),
        7 => conn.execute("UPDATE latest SET seq = seq - 1 WHERE seq = ?1", [some("latest", rng)]),
        8 => conn.execute(
            "UPDATE postings SET entries = x'00' || entries WHERE channel = ?1",
            [rng.random_range(1..12)],
        ),
        9 => conn.execute("UPDATE gaps SET from_time = 7", []),
        10 => conn.execute("UPDATE unsettled SET through_seq = NULL", []),
        _ => conn.execute("UPDATE collections SET name = name || '2' WHERE id = 1", []),
    };
    spoilt.unwrap();
}

#[test]
fn what_a_log_has_lost_is_told_by_the_rebuilt_one_or_cursors_are_refused() {
    let seed =
        std::env::var("TIDEWIRE_TEST_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    let damages =
        std::env::var("TIDEWIRE_TEST_FLIPS").map_or(DAMAGES, |n| n.parse().expect("a number"));
    let mut outcomes = Outcomes::default();
    let mut harmless = 0;
    for seed in (seed..).take(damages) {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let (before, [_, image]) = log(&mut rng);
        let dir = tempfile::tempdir().unwrap();
        image.put(dir.path());
        let path = dir.path().join("log.db");
        {
            let conn = Connection::open(&path).unwrap();
            for _ in 0..rng.random_range(1..4) {
                spoil(&conn, &mut rng);
            }
        }
        if check(&path, &mut |_, _, _| {}).unwrap().findings_total == 0 {
            harmless += 1;
        }
        rebuild_it(dir.path(), &before, &mut rng, &mut outcomes);
    }
    println!("{outcomes:?}, {harmless} without effect");
    assert!(outcomes.lossy > outcomes.done / 4 && outcomes.cut > 0, "{outcomes:?}");
}

#[test]
fn damage_in_any_table_is_found_at_open_or_by_a_check() {
    let spoils = [
        "UPDATE log SET high_water = high_water + 1",
        "UPDATE collections SET documents = documents + 1",
        "UPDATE followed SET active = NOT active",
        "UPDATE followed SET rules = rules || ' '",
        "UPDATE unsettled SET through_seq = 1",
        "UPDATE gaps SET through_time = 1",
        "UPDATE quarantine SET reason = 'none'",
        "UPDATE channels SET name = name || '2'",
        "UPDATE postings SET entries = x'0000'",
        "UPDATE latest SET seq = 1",
        "UPDATE changes SET rules = rules + 1",
    ];
    let mut rng = StdRng::seed_from_u64(5);
    let mut source = Source::new();
    source.write(&mut rng);
    let writer = source.writer();
    let users = writer.collection(COLLECTIONS[0]).unwrap();
    writer.set_copy_state(users, CopyState::default()).unwrap();
    let aside = NewAside {
        position: Position::new(writer.tail().high_water + 1, 0),
        wall_time_ms: 0,
        collection: users,
        reason: "odd",
        size: 1,
        rules: 0,
    };
    writer.set_aside_unknown(&aside, b"digest", "odd one").unwrap();
    writer.write_index().unwrap();
    writer.commit().unwrap();
    let dir = source.dir.path().to_owned();
    source.writer = None;
    let log = Connection::open(dir.join("log.db")).unwrap();
    let is_busy: bool =
        log.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert!(!is_busy, "all of it is in the file");
    drop(log);
    let whole = std::fs::read(dir.join("log.db")).unwrap();
    for spoil in spoils {
        std::fs::write(dir.join("log.db"), &whole).unwrap();
        let checked = check(&dir.join("log.db"), &mut |_, _, _| {}).unwrap();
        assert_eq!(checked.findings, [""; 0]);
        let touched = Connection::open(dir.join("log.db")).unwrap().execute(spoil, []).unwrap();
        assert!(touched > 0, "{spoil}: there is something to spoil");
        let checked = check(&dir.join("log.db"), &mut |_, _, _| {}).unwrap();
        assert!(checked.findings_total > 0, "{spoil}: a check finds it");
        let table = spoil.split(' ').nth(1).unwrap();
        // What is read row by row, or through the index, is found when it is read.
        if !["changes", "latest", "channels"].contains(&table) {
            let opened = Writer::open(&dir, &options()).map(|_| ());
            assert!(opened.is_err_and(|error| error.is_damage()), "{spoil}: found at open");
        }
    }
}

#[test]
fn a_rebuilt_log_has_in_quarantine_what_the_old_one_had() {
    let mut rng = StdRng::seed_from_u64(11);
    let mut source = Source::new();
    source.write(&mut rng);
    let writer = source.writer();
    let users = writer.collection(COLLECTIONS[0]).unwrap();
    let id = rawdoc! { "_id": 3 };
    let key = sort_key(id.get("_id").unwrap().unwrap());
    let time = writer.tail().high_water + (1 << 20);
    let mut aside = NewAside {
        position: Position::new(time, 0),
        wall_time_ms: 0,
        collection: users,
        reason: "odd",
        size: 1,
        rules: 0,
    };
    writer.set_aside(&aside, &key, &id, "3").unwrap();
    aside.position.ordinal = 1;
    writer.set_aside_unknown(&aside, b"digest", "odd one").unwrap();
    writer.set_tail(TailState { resume_token: None, high_water: time }).unwrap();
    writer.commit().unwrap();
    let listed = source.reader.quarantine().unwrap();
    assert_eq!(listed.len(), 2);
    source.writer = None;
    let dir = source.dir.path();
    let rebuilt = rebuild(dir, &mut |_, _| {}).unwrap();
    assert_eq!((rebuilt.lost, rebuilt.cursors_go_on), (0, true));
    let (mut writer, reader) = Writer::open(dir, &options()).unwrap();
    assert_eq!(reader.quarantine().unwrap(), listed);
    let users = writer.collection(COLLECTIONS[0]).unwrap();
    assert!(writer.latest(users, &key).unwrap().is_some_and(|latest| latest.set_aside.is_some()));
}

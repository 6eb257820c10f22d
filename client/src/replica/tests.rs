//! The replica's promises, each against a real file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;

use super::testing::{delete, dump, identity, open, page, quarantined, stranger, upsert};
use super::{Replica, ReplicaError, Writer};
use crate::status::{State, TransportName};

/// A folder that lives as long as the test, and the replica's path in it.
fn place() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replica.db");
    (folder, path)
}

fn one<T: rusqlite::types::FromSql>(conn: &Connection, sql: &str) -> T {
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn nothing_is_visible_before_the_first_copy_is_complete() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    let reader = stranger(&path);
    writer.set_collections(&["users".into(), "empty".into()]).unwrap();
    writer.apply(&page(&[upsert("users", "a", 1, r#"{"n":1}"#)], "p1", true, false)).unwrap();
    writer.commit().unwrap();
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('users', 'empty')";
    assert_eq!(one::<i64>(&reader, tables), 0);
    assert!(!one::<bool>(&reader, "SELECT initialized FROM _tidewire_status"));
    assert_eq!(one::<i64>(&reader, "SELECT applying FROM _tidewire_status"), 1);
    writer.apply(&page(&[upsert("users", "b", 2, r#"{"n":2}"#)], "p2", false, true)).unwrap();
    assert_eq!(one::<i64>(&reader, "SELECT sum(n) FROM users"), 3);
    assert_eq!(one::<i64>(&reader, "SELECT count(*) FROM empty"), 0);
    assert_eq!(one::<String>(&reader, "SELECT cursor FROM _tidewire_status"), "p2");
}

#[test]
fn top_level_scalars_become_columns_with_their_values() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    let document = r#"{"_id":"a","paid":true,"open":false,"big":9223372036854775807,"price":"12.50","rate":1.0,
        "none":null,"tags":["x"],"Name":"first","a b":1,"it's":2,"q\"uote":3,"back\\slash":4,"dot.ted":5,"$d":6,
        "select":7,"":8,"é":9,"tab\t":10,"_doc":"no","_ID":"no"}"#;
    writer.apply(&page(&[upsert("things", "a", 1, document)], "p1", false, true)).unwrap();
    let later = [upsert("things", "b", 2, r#"{"name":"second","tags":5,"new":1}"#)];
    writer.apply(&page(&later, "p2", false, true)).unwrap();
    let reader = stranger(&path);
    let all = r#"SELECT paid || '|' || open || '|' || big || '|' || price || '|' || rate || '|' || ifnull(none, '-') || '|' || tags
        || '|' || "Name" || '|' || "a b" || "it's" || "q""uote" || "back\slash" || "dot.ted" || "$d" || "select" || "" || "é" || "tab	"
        FROM things WHERE _id = 'a'"#;
    assert_eq!(
        one::<String>(&reader, all),
        "1|0|9223372036854775807|12.50|1.0|-|[\"x\"]|first|12345678910"
    );
    // `name` differs from `Name` in case only: the first spelling's field is the column.
    let second = "SELECT (Name IS NULL) || tags || new FROM things WHERE _id = 'b'";
    assert_eq!(one::<String>(&reader, second), "151");
    let columns = "SELECT count(*) FROM pragma_table_xinfo('things') WHERE hidden = 2";
    assert_eq!(one::<i64>(&reader, columns), 19);
}

#[test]
fn a_table_has_five_hundred_columns_at_most() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    let fields: Vec<String> = (0..700).map(|n| format!(r#""f{n}":{n}"#)).collect();
    let document = format!("{{{}}}", fields.join(","));
    writer.apply(&page(&[upsert("wide", "a", 1, &document)], "p1", false, true)).unwrap();
    writer.apply(&page(&[upsert("wide", "b", 2, r#"{"more":1}"#)], "p2", false, true)).unwrap();
    let reader = stranger(&path);
    assert_eq!(one::<i64>(&reader, "SELECT f499 FROM wide WHERE _id = 'a'"), 499);
    assert!(reader.prepare("SELECT f500 FROM wide").is_err());
    let beyond = "SELECT json_extract(_doc, '$.f699') FROM wide WHERE _id = 'a'";
    assert_eq!(one::<i64>(&reader, beyond), 699);
}

#[test]
fn a_write_by_anybody_else_is_refused_by_the_file() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    let rows = [upsert("users", "a", 1, r#"{"n":1}"#)];
    writer.apply(&page(&rows, "p1", false, true)).unwrap();
    writer.begin_fill().unwrap();
    writer.apply(&page(&rows, "p1", true, false)).unwrap();
    writer.commit().unwrap();
    let other = stranger(&path);
    let writes = [
        "INSERT INTO users (_id) VALUES ('x')",
        "INSERT OR REPLACE INTO users (_id, _doc) VALUES ('a', '{}')",
        "INSERT OR IGNORE INTO users (_id) VALUES ('x')",
        "REPLACE INTO users (_id) VALUES ('a')",
        "INSERT INTO users (_id) VALUES ('a') ON CONFLICT DO UPDATE SET _doc = ''",
        "UPDATE users SET _doc = '{}'",
        "UPDATE OR IGNORE users SET _id = 'b'",
        "DELETE FROM users",
        "DELETE FROM users WHERE _id = 'a'",
        "DELETE FROM _tidewire_new_users",
        "UPDATE _tidewire_state SET cursor = 'x'",
        "DELETE FROM _tidewire_state",
        "INSERT INTO _tidewire_staged (collection) VALUES ('x')",
        "UPDATE _tidewire_tables SET live = 0",
        "DELETE FROM _tidewire_fields",
        "UPDATE _tidewire_status SET state = 'live'",
        "DELETE FROM _tidewire_status",
        "INSERT INTO _tidewire_status (state) VALUES ('live')",
        "DELETE FROM _tidewire_set_aside",
        "INSERT INTO _tidewire_quarantine (reason) VALUES ('x')",
    ];
    for sql in writes {
        let before = dump(&other);
        // A delete of no rows has nothing to refuse.
        match other.execute(sql, []) {
            Ok(0) => assert!(sql.contains("_fields") || sql.contains("_set_aside")),
            Ok(_) => panic!("{sql} was let through"),
            Err(error) => assert_eq!(error.to_string(), "read-only replica", "{sql}"),
        }
        assert_eq!(dump(&other), before, "{sql}");
    }
    drop(other);
    writer.apply(&page(&[delete("users", "a", 2)], "p2", false, true)).unwrap();
    assert_eq!(dump(&stranger(&path)), "");
}

#[test]
fn a_change_that_is_older_than_the_row_leaves_it_alone() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    writer.apply(&page(&[upsert("u", "a", 5, r#"{"v":5}"#)], "p5", false, true)).unwrap();
    let older = [upsert("u", "a", 3, r#"{"v":3}"#), delete("u", "a", 4)];
    writer.apply(&page(&older, "p5", false, true)).unwrap();
    assert_eq!(one::<i64>(&stranger(&path), "SELECT v FROM u"), 5);
}

#[test]
fn a_catch_up_is_shown_all_at_once() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    let reader = stranger(&path);
    writer.apply(&page(&[upsert("u", "a", 1, r#"{"v":1}"#)], "p1", false, true)).unwrap();
    let before = dump(&reader);
    writer.apply(&page(&[upsert("u", "a", 2, r#"{"v":2,"w":"x"}"#)], "p2", true, false)).unwrap();
    drop(writer);
    let mut writer = open(&path);
    assert_eq!(writer.resume().since, "p2");
    writer.apply(&page(&[upsert("new", "b", 3, r#"{"v":3}"#)], "p3", true, false)).unwrap();
    assert_eq!(dump(&reader), before);
    writer.apply(&page(&[delete("u", "zz", 4)], "p4", false, true)).unwrap();
    assert_eq!(one::<String>(&reader, "SELECT v || w FROM u"), "2x");
    assert_eq!(one::<i64>(&reader, "SELECT v FROM new"), 3);
    assert_eq!(one::<i64>(&reader, "SELECT count(*) FROM _tidewire_staged"), 0);
}

#[test]
fn a_copy_that_is_not_where_readers_are_yet_takes_their_place_when_it_is_or_there_is_no_more() {
    for (last, has_more, takes_over) in [(4, true, false), (5, true, true), (4, false, true)] {
        let (_folder, path) = place();
        let mut writer = open(&path);
        let reader = stranger(&path);
        writer.apply(&page(&[upsert("u", "a", 5, r#"{"v":5}"#)], "p5", false, true)).unwrap();
        let before = dump(&reader);
        writer.begin_fill().unwrap();
        let copy = [upsert("u", "b", 3, r#"{"v":3}"#), upsert("u", "c", last, r#"{"v":4}"#)];
        let applied = writer.apply(&page(&copy, "q4", has_more, true)).unwrap();
        assert_eq!((applied.complete, dump(&reader) != before), (takes_over, takes_over));
        if takes_over {
            continue;
        }
        assert_eq!((writer.resume().since.as_str(), writer.resume().partial), ("q4", true));
        let rest = [delete("u", "b", 5), upsert("u", "a", 6, r#"{"v":6}"#)];
        assert!(writer.apply(&page(&rest, "q6", true, true)).unwrap().complete);
        let rows = "SELECT group_concat(_id || v, ' ') FROM (SELECT _id, v FROM u ORDER BY _id)";
        assert_eq!(one::<String>(&reader, rows), "a6 c4");
    }
}

#[test]
fn a_resync_leaves_the_old_data_readable_until_it_is_complete() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    let reader = stranger(&path);
    let old = [upsert("u", "a", 1, r#"{"old":1}"#), upsert("gone", "g", 1, "{}")];
    writer.apply(&page(&old, "p1", false, true)).unwrap();
    let before = dump(&reader);
    let resume = writer.begin_fill().unwrap();
    assert_eq!((resume.since.as_str(), resume.initialized, resume.filling), ("", true, true));
    writer.apply(&page(&[upsert("u", "b", 2, r#"{"new":2}"#)], "q1", true, false)).unwrap();
    drop(writer);
    assert_eq!(dump(&reader), before);
    let mut writer = open(&path);
    assert_eq!(writer.resume().since, "", "what was not committed is read again");
    writer.apply(&page(&[upsert("u", "b", 2, r#"{"new":2}"#)], "q1", true, false)).unwrap();
    writer.commit().unwrap();
    drop(writer);
    let mut writer = open(&path);
    assert_eq!(writer.resume().since, "q1", "and what was committed is not");
    writer.apply(&page(&[upsert("u", "c", 3, r#"{"new":3}"#)], "q2", false, true)).unwrap();
    assert_eq!(one::<i64>(&reader, "SELECT sum(new) FROM u"), 5);
    assert!(reader.prepare("SELECT old FROM u").is_err(), "columns of the old copy are gone");
    assert!(reader.prepare("SELECT * FROM gone").is_err(), "and so are its collections");
}

#[test]
fn names_that_sql_dislikes_get_tables_of_their_own() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    let names = [
        "users",
        "Users",
        "sqlite_master",
        "_tidewire_state",
        "a\"b",
        "it's",
        "drop table x; --",
        "select",
        "a.b",
        "système",
        " ",
        "[x]",
        "`",
        "order",
    ];
    let rows: Vec<_> = names.iter().map(|name| upsert(name, name, 1, r#"{"v":1}"#)).collect();
    writer.apply(&page(&rows, "p1", false, true)).unwrap();
    let moved = [upsert("Users", "x", 2, r#"{"extra":1}"#), delete("users", "users", 2)];
    writer.apply(&page(&moved, "p2", false, true)).unwrap();
    let reader = stranger(&path);
    let mapped = "SELECT group_concat(collection || '=' || table_name, ' ') FROM \
                  (SELECT * FROM _tidewire_tables WHERE collection != table_name ORDER BY 1)";
    assert_eq!(
        one::<String>(&reader, mapped),
        "Users=Users~2 _tidewire_state=~_tidewire_state sqlite_master=~sqlite_master"
    );
    assert_eq!(one::<i64>(&reader, "SELECT count(*) FROM users"), 0);
    assert_eq!(one::<i64>(&reader, "SELECT sum(extra) FROM \"Users~2\""), 1);
    assert_eq!(one::<i64>(&reader, "SELECT v FROM \"drop table x; --\""), 1);
    assert_eq!(dump(&reader).lines().count(), names.len());
    drop(writer);
    drop(reader);
    assert_eq!(dump(&open(&path).conn).lines().count(), names.len(), "and are found again");
}

#[test]
fn a_collection_that_is_no_longer_listed_goes_once_it_is_empty() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    writer.set_collections(&["a".into(), "b".into()]).unwrap();
    writer.apply(&page(&[upsert("a", "1", 1, "{}")], "p1", false, true)).unwrap();
    let reader = stranger(&path);
    writer.set_collections(&["c".into()]).unwrap();
    assert_eq!(one::<i64>(&reader, "SELECT count(*) FROM a"), 1, "it holds something");
    assert!(reader.prepare("SELECT * FROM b").is_err());
    assert_eq!(one::<i64>(&reader, "SELECT count(*) FROM c"), 0);
}

#[test]
fn a_second_client_on_the_same_replica_is_refused() {
    let (_folder, path) = place();
    let writer = open(&path);
    match Writer::open(&path, &identity("ada")) {
        Err(ReplicaError::Locked { holder, .. }) => {
            assert_eq!(holder, format!("process {}", std::process::id()));
        }
        other => panic!("{other:?}"),
    }
    drop(writer);
    open(&path);
}

#[test]
fn a_copied_file_goes_on_alone() {
    let (folder, path) = place();
    let mut writer = open(&path);
    writer.apply(&page(&[upsert("u", "a", 1, "{}")], "p1", false, true)).unwrap();
    writer.close(None).unwrap();
    let _original = open(&path);
    let copy = folder.path().join("copy.db");
    std::fs::copy(&path, &copy).unwrap();
    assert_eq!(open(&copy).resume().since, "p1");
}

#[test]
fn another_subject_finds_nothing_of_the_first() {
    let (folder, path) = place();
    let mut writer = open(&path);
    let rows: Vec<_> = (0..500)
        .map(|n| upsert("secrets", &format!("id{n}"), n + 1, r#"{"s":"canary-of-ada"}"#))
        .collect();
    writer.apply(&page(&rows, "p1", false, true)).unwrap();
    writer.apply(&page(&rows, "p2", true, false)).unwrap();
    std::fs::write(folder.path().join("replica.db.damaged"), "canary-of-ada").unwrap();
    drop(writer);
    let writer = Writer::open(&path, &identity("bob")).unwrap();
    assert_eq!(writer.resume(), super::Resume::default());
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let found = bytes.windows(13).any(|window| window == b"canary-of-ada");
        assert!(!found, "{} still holds the first subject's data", path.display());
    }
}

/// The files beside `path` that hold the first subject's data.
fn holders(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let holds = |path: &PathBuf| {
        std::fs::read(path).unwrap().windows(13).any(|window| window == b"canary-of-ada")
    };
    paths.filter(holds).collect()
}

fn filled_by_ada(path: &Path) {
    let mut writer = open(path);
    let rows: Vec<_> = (0..2_000)
        .map(|n| upsert("u", &format!("id{n}"), n + 1, r#"{"t":"canary-of-ada"}"#))
        .collect();
    writer.apply(&page(&rows, "p1", false, true)).unwrap();
    writer.close(None).unwrap();
}

#[test]
fn another_subject_finds_nothing_of_the_first_in_a_damaged_file_either() {
    // The header, and rows.
    for place_of_damage in [0_usize, 40_000] {
        for (subject, may_be_kept) in [("bob", false), ("ada", true)] {
            let (folder, path) = place();
            filled_by_ada(&path);
            let mut bytes = std::fs::read(&path).unwrap();
            for byte in &mut bytes[place_of_damage..place_of_damage + 2_000] {
                *byte ^= 0x5a;
            }
            std::fs::write(&path, &bytes).unwrap();
            let writer = Writer::open(&path, &identity(subject)).unwrap();
            assert_eq!(writer.resume(), super::Resume::default());
            let kept = holders(folder.path());
            if may_be_kept && place_of_damage > 0 {
                assert_eq!(kept, [folder.path().join("replica.db.damaged")], "it is ada's own");
            } else {
                assert_eq!(kept, Vec::<PathBuf>::new(), "{subject}, damage at {place_of_damage}");
            }
        }
    }
}

#[test]
fn a_comparison_that_is_given_up_is_in_nobodys_way() {
    let (folder, path) = place();
    filled_by_ada(&path);
    let mut replica = Replica::open(&path).unwrap();
    let given_up = Arc::<AtomicBool>::default();
    replica.until(Arc::clone(&given_up)).unwrap();
    let mut rows = 0;
    let sums = replica.sums(|done, _| {
        rows = done;
        given_up.store(done > 100, Ordering::Relaxed);
    });
    assert!(sums.unwrap_err().to_string().contains("interrupted"));
    assert!(100 < rows && rows < 2_000, "it was under way: {rows}");
    drop(Writer::open(&path, &identity("bob")).unwrap());
    assert_eq!(holders(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_file_that_is_too_large_to_be_looked_at_says_so() {
    let (_folder, path) = place();
    open(&path).close(None).unwrap();
    assert!(!open(&path).is_unchecked);
    let mut writer = open(&path);
    let large = format!(r#"{{"t":"{}"}}"#, "x".repeat(1 << 20));
    let rows: Vec<_> = (0..34).map(|n| upsert("u", &format!("id{n}"), n + 1, &large)).collect();
    writer.apply(&page(&rows, "p1", false, true)).unwrap();
    drop(writer);
    let killed = open(&path);
    assert!((killed.was_killed, killed.is_unchecked) == (true, false), "looked at all the same");
    killed.close(None).unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() > super::open::CHECK_BYTES_MAX);
    let writer = open(&path);
    assert_eq!((writer.was_killed, writer.is_unchecked), (false, true));
}

#[test]
fn a_wipe_that_a_reader_blocked_is_done_at_the_next_start() {
    let (folder, path) = place();
    filled_by_ada(&path);
    let reader = stranger(&path);
    reader.execute_batch("BEGIN; SELECT count(*) FROM u").unwrap();
    for _ in 0..2 {
        let refused = Writer::open(&path, &identity("bob"));
        assert!(matches!(refused, Err(ReplicaError::WipeBlocked(_))), "{refused:?}");
    }
    reader.execute_batch("COMMIT").unwrap();
    let _writer = Writer::open(&path, &identity("bob")).unwrap();
    assert_eq!(holders(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn what_is_wiped_for_want_of_a_token_is_gone_for_its_own_subject_too() {
    let (folder, path) = place();
    filled_by_ada(&path);
    std::fs::copy(&path, folder.path().join("replica.db.damaged")).unwrap();
    let mut writer = Writer::open(&path, &identity("ada")).unwrap();
    let reader = stranger(&path);
    reader.execute_batch("BEGIN; SELECT count(*) FROM u").unwrap();
    assert!(matches!(writer.wipe(), Err(ReplicaError::WipeBlocked(_))));
    drop(writer);
    assert_ne!(holders(folder.path()), Vec::<PathBuf>::new(), "the reader still reads it");
    reader.execute_batch("COMMIT").unwrap();
    // The same subject comes back, and the rest of the wipe comes first.
    let mut writer = Writer::open(&path, &identity("ada")).unwrap();
    assert_eq!(holders(folder.path()), Vec::<PathBuf>::new());
    assert_eq!(writer.resume(), super::Resume::default());
    writer.apply(&page(&[upsert("u", "a", 1, "{}")], "p1", false, true)).unwrap();
    writer.wipe().unwrap();
    assert_eq!(writer.resume(), super::Resume::default());
    assert!(!writer.status().unwrap().initialized);
}

#[test]
fn another_server_is_copied_anew_beside_the_old_data() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    writer.apply(&page(&[upsert("u", "a", 1, "{}")], "p1", false, true)).unwrap();
    drop(writer);
    let with = |servers: &[&str]| super::Identity {
        servers: servers.iter().map(|server| (*server).to_owned()).collect(),
        ..identity("ada")
    };
    // One more in the list, and another order: the same source.
    for servers in [&["other", "memory"][..], &["other"], &["third", "other"]] {
        let writer = Writer::open(&path, &with(servers)).unwrap();
        assert_eq!((writer.resume().since.as_str(), writer.resume().filling), ("p1", false));
    }
    let elsewhere = with(&["elsewhere", "memory"]);
    let writer = Writer::open(&path, &elsewhere).unwrap();
    assert_eq!((writer.resume().since.as_str(), writer.resume().filling), ("", true));
    assert_eq!(dump(&stranger(&path)).lines().count(), 1);
}

#[test]
fn a_file_that_is_no_replica_is_left_alone() {
    let (_folder, path) = place();
    for content in [&b"my diary"[..], &[0x53; 5000]] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(Writer::open(&path, &identity("a")), Err(ReplicaError::NotAReplica(_))));
        assert_eq!(std::fs::read(&path).unwrap(), content);
        assert!(matches!(Replica::open(&path), Err(ReplicaError::NotAReplica(_))));
    }
    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE mine (x)").unwrap();
    assert!(matches!(Writer::open(&path, &identity("a")), Err(ReplicaError::NotAReplica(_))));
    assert!(!path.with_extension("db.lock").exists(), "not even a lock beside it");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Replica::open(&path), Err(ReplicaError::Missing(_))));
    std::fs::write(&path, "").unwrap();
    assert!(matches!(Replica::open(&path), Err(ReplicaError::Missing(_))), "about to be made");
}

fn filled(path: &Path) {
    let mut writer = open(path);
    let rows: Vec<_> = (0..2_000)
        .map(|n| upsert("u", &format!("id{n}"), n + 1, &format!(r#"{{"n":{n},"t":"some text"}}"#)))
        .collect();
    writer.apply(&page(&rows, "p1", false, true)).unwrap();
    writer.close(None).unwrap();
}

#[test]
fn a_damaged_file_is_made_anew_and_never_served() {
    let (_folder, path) = place();
    // The header, the schema, rows, the end; and a file that was cut.
    filled(&path);
    let bytes = std::fs::read(&path).unwrap();
    let schema = b"CREATE TABLE _tidewire_state";
    let schema = bytes.windows(schema.len()).position(|found| found == schema).unwrap();
    std::fs::remove_file(&path).unwrap();
    for place in [0_usize, 20, 100, schema - 1_000, 40_000] {
        filled(&path);
        let mut bytes = std::fs::read(&path).unwrap();
        for byte in &mut bytes[place..place + 2_000] {
            *byte ^= 0x5a;
        }
        std::fs::write(&path, &bytes).unwrap();
        let writer = open(&path);
        assert_eq!(writer.resume(), super::Resume::default(), "damage at {place}");
        drop(writer);
        std::fs::remove_file(&path).unwrap();
    }
    // Words of the schema: the file is sound, and says something else or nothing.
    let words = [
        "subject TEXT",
        "read-only replica'); END",
        "t\"')) VIRTUAL",
        "_updated_at TEXT, _position",
    ];
    for (word, bit) in words.into_iter().flat_map(|word| [(word, 1), (word, 0x80)]) {
        filled(&path);
        spoil(&path, word, bit);
        assert_eq!(open(&path).resume(), super::Resume::default(), "{word}");
        std::fs::remove_file(&path).unwrap();
    }
    filled(&path);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    drop(file);
    assert_eq!(open(&path).resume(), super::Resume::default());
}

/// Turns a bit of the second letter of `word` over, wherever the file has it.
fn spoil(path: &Path, word: &str, bit: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    let is_there = |place: &usize| bytes[*place..].starts_with(word.as_bytes());
    let places: Vec<usize> = (0..bytes.len()).filter(is_there).collect();
    assert!(!places.is_empty(), "{word}");
    places.into_iter().for_each(|place| bytes[place + 1] ^= bit);
    std::fs::write(path, &bytes).unwrap();
}

#[test]
fn views_that_are_spoiled_are_made_anew() {
    let (_folder, path) = place();
    filled(&path);
    let held = open(&path).resume();
    for word in ["s.cursor AS cursor", "reason, updated_at AS _updated_at"] {
        spoil(&path, word, 1);
        let writer = open(&path);
        assert_eq!(writer.resume(), held, "{word}");
        assert_eq!(writer.status().unwrap().cursor, Some(held.since.clone()), "{word}");
        let reader = stranger(&path);
        reader.query_row("SELECT count(*) FROM _tidewire_quarantine", [], |_| Ok(())).unwrap();
        let refused = reader.execute("UPDATE _tidewire_status SET state = 'live'", []).unwrap_err();
        assert!(refused.to_string().contains("read-only replica"), "{refused}");
    }
}

#[test]
fn a_table_that_somebody_dropped_means_a_new_copy() {
    let (_folder, path) = place();
    filled(&path);
    stranger(&path).execute_batch("DROP TABLE u").unwrap();
    assert_eq!(open(&path).resume(), super::Resume::default());
}

fn live_report() -> super::Report {
    super::Report {
        state: State::Live,
        transport: TransportName::LongPoll,
        is_online: true,
        error: None,
        failed: false,
        valid_until_ms: super::now_ms() + 60_000,
    }
}

#[test]
fn a_server_that_follows_nothing_any_more_is_not_taken_for_one_with_nothing_to_tell() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    writer.apply(&page(&[upsert("u", "a", 1, "{}")], "p1", false, true)).unwrap();
    writer.report(&live_report()).unwrap();
    assert_eq!(writer.status().unwrap().lag_ms, Some(0));
    let text = super::testing::page_text(&[], "p1", false, true);
    let behind = text.replace(r#""complete":true"#, r#""complete":true,"sourceLagMs":3600000"#);
    writer.apply(&crate::page::Page::decode(behind).unwrap()).unwrap();
    assert_eq!(writer.status().unwrap().lag_ms, Some(3_600_000));
    writer.apply(&page(&[], "p1", false, true)).unwrap();
    assert_eq!(writer.status().unwrap().lag_ms, Some(0), "it follows again");
}

#[test]
fn the_status_of_a_client_that_died_is_stopped() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    writer.apply(&page(&[upsert("u", "a", 1, "{}")], "p1", false, true)).unwrap();
    let report = live_report();
    writer.report(&report).unwrap();
    let replica = Replica::open(&path).unwrap();
    let status = replica.status().unwrap();
    assert_eq!((status.state, status.is_online, status.lag_ms), (State::Live, true, Some(0)));
    assert_eq!(status.last_sync.as_ref().map(|last| last.applied), Some(1));
    drop(writer);
    let status = replica.status().unwrap();
    assert_eq!((status.state, status.is_online), (State::Stopped, false));
    assert!(status.initialized && status.lag_ms.is_some());
    let mut writer = open(&path);
    writer.report(&super::Report { valid_until_ms: super::now_ms() - 1_000, ..report }).unwrap();
    let view: String = one(&stranger(&path), "SELECT state FROM _tidewire_status");
    assert_eq!(view, "stopped", "the view alone knows it when the last word is too old");
}

#[test]
fn a_rebuilt_replica_gives_the_space_back() {
    let (_folder, path) = place();
    filled(&path);
    let bytes = || std::fs::metadata(&path).unwrap().len();
    let mut writer = open(&path);
    let text = "x".repeat(4_000);
    let rows: Vec<_> = (0..6_000)
        .map(|n| upsert("big", &format!("b{n}"), n + 1, &format!(r#"{{"t":"{text}"}}"#)))
        .collect();
    writer.apply(&page(&rows, "p2", false, true)).unwrap();
    writer.conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").ok();
    let large = bytes();
    writer.begin_fill().unwrap();
    writer.apply(&page(&rows[..10], "q", false, true)).unwrap();
    writer.close(None).unwrap();
    assert!(bytes() < large / 2, "{} of {large}", bytes());
}

/// What readers see of the quarantine.
fn quarantine(conn: &Connection) -> Vec<String> {
    let sql =
        "SELECT collection || ' ' || _id || ': ' || reason FROM _tidewire_quarantine ORDER BY 1";
    let mut statement = conn.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_document_in_quarantine_is_missing_and_named_until_it_is_well_again_or_gone() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    let reader = stranger(&path);
    let users = |id, at| upsert("users", id, at, r#"{"n":1}"#);
    writer.apply(&page(&[users("a", 1), users("b", 2)], "p1", false, true)).unwrap();
    let aside = [quarantined("users", "a", 3), quarantined("users", "b", 4)];
    writer.apply(&page(&aside, "p2", false, true)).unwrap();
    let both = ["users a: not UTF-8", "users b: not UTF-8"];
    assert_eq!(one::<i64>(&reader, "SELECT count(*) FROM users"), 0);
    assert_eq!(quarantine(&reader), both);
    // A page applied again, and a copy that is not complete, change nothing.
    writer.apply(&page(&aside[..1], "p2", false, true)).unwrap();
    writer.begin_fill().unwrap();
    writer.apply(&page(&[users("c", 1)], "f1", true, false)).unwrap();
    assert_eq!(quarantine(&reader), both);
    writer.apply(&page(&aside[..1], "f2", false, true)).unwrap();
    assert_eq!(quarantine(&reader), both[..1], "the copy's own");
    // A catch-up that is moved in one.
    writer.apply(&page(&[users("a", 5)], "c1", true, false)).unwrap();
    writer.apply(&page(&[quarantined("users", "c", 6)], "c2", true, false)).unwrap();
    assert_eq!(quarantine(&reader), both[..1]);
    writer.apply(&page(&[], "c3", false, true)).unwrap();
    assert_eq!(quarantine(&reader), ["users c: not UTF-8"]);
    drop(writer);
    let mut writer = open(&path);
    writer.apply(&page(&[delete("users", "c", 7)], "p3", false, true)).unwrap();
    assert_eq!(quarantine(&reader), [""; 0]);
}

#[test]
fn a_replica_of_an_older_version_is_taken_over_as_it_is() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    writer.apply(&page(&[upsert("users", "a", 1, r#"{"n":1}"#)], "p1", false, true)).unwrap();
    drop(writer);
    let old = stranger(&path);
    old.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
    old.execute_batch(
        "DROP VIEW _tidewire_quarantine; DROP TABLE _tidewire_set_aside;
         ALTER TABLE _tidewire_state DROP COLUMN verified_ms;
         ALTER TABLE _tidewire_staged DROP COLUMN quarantined;
         UPDATE _tidewire_state SET schema_version = 1",
    )
    .unwrap();
    let mut writer = open(&path);
    assert_eq!(writer.resume().since, "p1");
    writer.apply(&page(&[quarantined("users", "a", 2)], "p2", false, true)).unwrap();
    assert_eq!(quarantine(&old), ["users a: not UTF-8"]);
    assert!(writer.verified_ms > 0, "as if it had been made now");
}

#[test]
fn the_time_of_the_last_comparison_outlives_the_client() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    writer.apply(&page(&[upsert("users", "a", 1, "{}")], "p1", false, true)).unwrap();
    let made = writer.verified_ms;
    assert!((0..60_000).contains(&(super::now_ms() - made)), "it counts from the making");
    let long_ago = "UPDATE _tidewire_state SET verified_ms = 7";
    writer.conn.execute(long_ago, []).unwrap();
    writer.close(None).unwrap();
    let mut writer = open(&path);
    assert_eq!(writer.verified_ms, 7);
    writer.begin_comparison();
    assert_eq!(writer.mend(&[]).unwrap(), Some(0));
    writer.close(None).unwrap();
    assert!(open(&path).verified_ms >= made);
}

#[test]
fn a_comparison_that_came_to_no_end_notes_nothing_more() {
    let (_folder, path) = place();
    filled(&path);
    let mut writer = open(&path);
    writer.begin_comparison();
    writer.forget_comparison();
    writer.apply(&page(&[upsert("u", "new", 3_000, "{}")], "p2", false, true)).unwrap();
    assert!(matches!(writer.touched, super::mend::Touched::Unwatched), "{:?}", writer.touched);
    assert_eq!(writer.mend(&[]).unwrap(), None, "there is nothing to be mended by");
}

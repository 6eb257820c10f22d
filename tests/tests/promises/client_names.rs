//! Names that MongoDB takes and SQL does not (FAULTS row 41): refused by the server's check with the
//! reason, or a table like any other; never part of a statement.

use std::process::Command;
use std::time::Duration;

use bson::{Document, doc};
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Server, ServerOptions, collection, eventually, mongo, must_equal, program,
};

/// MongoDB takes all of them.
const NASTY: [&str; 14] = [
    "a\"b",
    "it's",
    "x; DROP TABLE users; --",
    "\"); DROP TABLE users; --",
    "select",
    "order",
    "a.b",
    "système",
    "[x]",
    "`",
    "%s{}",
    "-- ",
    "users~2",
    "main.users",
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_collection_is_called_its_table_has_its_rows_and_no_other() {
    let mongo = mongo().await;
    let names = [&["users"][..], &NASTY].concat();
    let mut collections = String::new();
    for (n, name) in names.iter().enumerate() {
        let n = i64::try_from(n).expect("few");
        let fields = doc! { "_id": n, "n": n, "oid": n, "RowId": n, "_rowid_": n, "a\"b; --": n, "'": "x", "select": true, "_doc": 1 };
        mongo.db.collection::<Document>(name).insert_one(fields).await.expect("insert");
        collections += &collection(name, &["everyone"], &[]);
    }
    let options = ServerOptions { collections, ..ServerOptions::following(&mongo, &[]) };
    let server = Server::start(options).await;
    let client = Client::new(&server.url(), &server.token(&Claims::of("asha")));
    client.sync_once().await;
    for name in &names {
        let all = mongo.db.collection::<Document>(name);
        all.update_one(doc! {}, doc! { "$inc": { "n": 100 } }).await.expect("update");
    }
    let last = quoted(names.last().expect("names"));
    let has_last = || async {
        client.sync_once().await;
        let sql = format!("SELECT 1 FROM {last} WHERE n >= 100");
        client.open().ok()?.query_row(&sql, [], |_| Ok(())).ok()
    };
    eventually("the last update is there", Duration::from_secs(30), has_last).await;
    must_equal(&mongo.db, &Plan::everything(&names), &client.db()).await;
    let db = client.open().expect("the replica");
    for (n, name) in (100_i64..).zip(&names) {
        // As any program would ask.
        let sql = format!("SELECT n FROM {}", quoted(name));
        assert_eq!(db.query_row(&sql, [], |row| row.get::<_, i64>(0)), Ok(n), "{name}");
    }
    let sound: String =
        db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    assert_eq!(sound, "ok");
}

#[test]
fn names_that_can_be_no_table_are_refused_by_the_check_with_the_reason() {
    let dir = tempfile::tempdir().expect("a folder");
    let refused = [
        (&["users", "Users"][..], "differ in case only"),
        (&["sqlite_master"], "which SQLite keeps for itself"),
        (&["SQLite_x"], "which SQLite keeps for itself"),
        (&["_tidewire_state"], "names Tidewire's own tables"),
        (&["_Tidewire"], "names Tidewire's own tables"),
        (&["system.users"], "system collections can't be followed"),
        (&["a$b"], "MongoDB forbids"),
        (&["a\u{0}b"], "control character"),
        (&["a\nb"], "control character"),
        (&["a,b"], "a comma"),
        (&[""], "is empty"),
    ];
    for (names, reason) in refused {
        let config = dir.path().join("tidewire.toml");
        let named = |name: &&str| {
            let name = serde_json::Value::from(*name);
            format!("[[collections]]\nname = {name}\nchannels = [\"everyone\"]\n")
        };
        let collections = names.iter().map(named);
        let text = "[source]\nuri = \"mongodb://127.0.0.1:1/?replicaSet=rs0\"\ndatabase = \"d\"\n\
                    [auth]\nhs256_secret = \"0123456789abcdef0123456789abcdef\"\n"
            .to_owned();
        std::fs::write(&config, text + &collections.collect::<String>()).expect("write");
        let mut check = Command::new(program("tidewire-server"));
        let check = check.args(["--check", "--config"]).arg(&config).output().expect("run");
        let told = String::from_utf8_lossy(&check.stderr);
        assert_eq!(check.status.code(), Some(2), "{names:?}: {told}");
        assert!(told.contains(reason), "{names:?}: {told}");
    }
}

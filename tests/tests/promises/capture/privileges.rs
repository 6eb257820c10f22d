//! The source takes rights away and changes the password: that is said, and ends by itself.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Database;
use tidewire_server::config::SourceConfig;
use tidewire_server::status::SourcePhase;
use tidewire_tests::harness::{
    Claims, Mongo, MongoOptions, Server, ServerOptions, eventually, mongo_with,
};

use super::{
    COLLECTIONS, Capture, back_up, collections, dir, insert, numbered, put_back, source_state,
};

const PATIENCE: Duration = Duration::from_secs(60);

async fn admin(root: &Database, command: Document) {
    root.client().database("admin").run_command(command).await.expect("a command of root's");
}

/// Waits until it is said that the source refuses us, without the password; what the log has is still there.
async fn in_trouble(capture: &Capture, held: usize) {
    let trouble = eventually("the trouble is said", PATIENCE, || async {
        let status = capture.status.borrow();
        status.trouble.clone().filter(|_| status.phase == SourcePhase::Refused)
    })
    .await;
    assert!(!trouble.contains("open sesame"), "{trouble}");
    assert_eq!(capture.state().len(), held, "what the log has is served");
}

/// The source's database as a new connection of root's sees it.
async fn as_root(mongo: &Mongo) -> Database {
    let hosts = mongo.uri().replace("mongodb://", "");
    let uri = format!("mongodb://root:all%20of%20it@{hosts}&authSource=admin");
    mongodb::Client::with_uri_str(uri).await.unwrap().database("invoify")
}

/// A source whose users have passwords: itself, its database as root sees it, and one by which `tidewire` may
/// do what `role` says.
async fn with_passwords(dir: &Path, role: Document) -> (Mongo, Database, SourceConfig) {
    let key = dir.join("key");
    std::fs::write(&key, "a key of the nodes among themselves").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let args = vec!["--keyFile".to_owned(), key.to_str().unwrap().to_owned()];
    let options = MongoOptions { args, test_commands: true, ..MongoOptions::default() };
    let mongo = mongo_with(options).await;
    // The first user may be made by whoever is on the machine.
    let user = |name: &str, password: &str, roles: Document| {
        doc! { "createUser": name, "pwd": password, "roles": [roles] }
    };
    let root_role = doc! { "role": "root", "db": "admin" };
    admin(&mongo.db, user("root", "all of it", root_role)).await;
    let root = as_root(&mongo).await;
    admin(&root, user("tidewire", "open sesame", role)).await;
    let hosts = mongo.uri().replace("mongodb://", "");
    let uri = format!("mongodb://tidewire:open%20sesame@{hosts}&authSource=admin");
    (mongo, root, SourceConfig { uri, database: "invoify".to_owned() })
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_rights_and_a_changed_password_are_said_and_recovered_from_alone() {
    let dir = dir();
    let role = doc! { "role": "read", "db": "invoify" };
    let (mut mongo, root, config) = with_passwords(dir.path(), role.clone()).await;
    insert(&root, "invoices", numbered(0..50)).await;
    let log = dir.path().join("log");
    let capture = Capture::start_with(config, &log, &collections(&COLLECTIONS));
    capture.must_equal(&root, &COLLECTIONS).await;

    admin(&root, doc! { "revokeRolesFromUser": "tidewire", "roles": [role.clone()] }).await;
    in_trouble(&capture, 50).await;
    insert(&root, "invoices", numbered(50..60)).await;
    admin(&root, doc! { "grantRolesToUser": "tidewire", "roles": [role] }).await;
    capture.must_equal(&root, &COLLECTIONS).await;

    let password = |password: &str| doc! { "updateUser": "tidewire", "pwd": password };
    admin(&root, password("something else")).await;
    // Connections that are open stay so.
    mongo.node(0).restart().await.unwrap();
    mongo.set.primary().await.unwrap();
    in_trouble(&capture, 60).await;
    insert(&root, "invoices", numbered(60..70)).await;
    admin(&root, password("open sesame")).await;
    capture.must_equal(&root, &COLLECTIONS).await;
    capture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_started_while_the_source_refuses_it_serves_what_it_has_and_recovers_alone()
 {
    let dir = dir();
    let role = doc! { "role": "read", "db": "invoify" };
    let (mongo, root, config) = with_passwords(dir.path(), role.clone()).await;
    insert(&root, "invoices", numbered(0..50)).await;
    let mut options = ServerOptions::following(&mongo, &COLLECTIONS);
    options.uri = config.uri;
    let mut server = Server::start(options).await;
    let token = server.token(&Claims::of("ann"));
    admin(&root, doc! { "revokeRolesFromUser": "tidewire", "roles": [role.clone()] }).await;
    assert!(server.stop().await.success());
    server.launch();
    server.listens().await;
    let (status, page) = server.pull(&token, "since=0&limit=100").await;
    assert_eq!((status, &page["count"]), (200, &50.into()), "{page}");
    assert!(server.log_text().contains("MongoDB refuses access"), "{}", server.log_text());
    insert(&root, "invoices", numbered(50..60)).await;
    admin(&root, doc! { "grantRolesToUser": "tidewire", "roles": [role.clone()] }).await;
    server.ready().await;
    let cursor = page["cursor"].as_str().expect("a cursor").to_owned();
    eventually("what came meanwhile is told", PATIENCE, || async {
        let (_, page) = server.pull(&token, &format!("since={cursor}")).await;
        (page["count"] == 10).then_some(())
    })
    .await;
    server.stop().await;

    // With nothing to serve it ends with the reason.
    admin(&root, doc! { "revokeRolesFromUser": "tidewire", "roles": [role] }).await;
    server.options.data_dir = Some(dir.path().join("none"));
    server.options.expected_errors.push("MongoDB refuses access".to_owned());
    server.launch();
    assert_eq!(server.ended(PATIENCE).await.code(), Some(3), "{}", server.log_text());
}

/// A source that was restored from a backup while the log was followed, and then not: 0 to 99 are in the backup,
/// 100 to 129 only in the log, where 50 is another one, too.
async fn restored(dir: &Path) -> (Mongo, Database, SourceConfig) {
    let role = doc! { "role": "read", "db": "invoify" };
    let (mut mongo, root, config) = with_passwords(dir, role).await;
    insert(&root, "invoices", numbered(0..100)).await;
    let backup = back_up(&mut mongo).await;
    insert(&root, "invoices", numbered(100..130)).await;
    set(&root, "lost").await;
    let capture = Capture::start_with(config.clone(), &dir.join("log"), &collections(&COLLECTIONS));
    capture.must_equal(&root, &COLLECTIONS).await;
    capture.stop().await;
    put_back(&mut mongo, &backup).await;
    // The old one knows a time that the source has never had.
    let root = as_root(&mongo).await;
    (mongo, root, config)
}

async fn set(root: &Database, field: &str) {
    let update = doc! { "$set": { field: true } };
    root.collection::<Document>("invoices").update_one(doc! { "_id": 50 }, update).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_the_oplog_compares_everything_with_a_source_that_was_started_again() {
    let dir = dir();
    let (_mongo, root, config) = restored(dir.path()).await;
    insert(&root, "invoices", numbered(500..501)).await;
    // What the comparison reads is on its way when 50 changes: nothing may be built upon the log's.
    let wait = doc! { "failCommands": ["find"], "blockConnection": true, "blockTimeMS": 3_000 };
    let wait = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": wait };
    admin(&root, wait).await;
    let capture = Capture::start_with(config, &dir.path().join("log"), &collections(&COLLECTIONS));
    let operations = root.client().database("admin");
    eventually("it is being read", PATIENCE, || async {
        let running = operations.run_command(doc! { "currentOp": true }).await.ok()?;
        let running = running.get_array("inprog").ok()?.clone();
        let reads = |operation: &bson::Bson| {
            let command = operation.as_document().and_then(|o| o.get_document("command").ok());
            command.is_some_and(|command| command.get_str("find").is_ok_and(|of| of == "invoices"))
        };
        running.iter().any(reads).then_some(())
    })
    .await;
    set(&root, "found").await;
    admin(&root, doc! { "configureFailPoint": "failCommand", "mode": "off" }).await;
    eventually("all is as in the source", PATIENCE, || async {
        let right = source_state(&root, &COLLECTIONS).await;
        (capture.state() == right && capture.status.borrow().checking.is_none()).then_some(())
    })
    .await;
    capture.stop().await;
}

//! The source takes rights away and changes the password: that is said, and ends by itself.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Database;
use tidewire_server::config::SourceConfig;
use tidewire_tests::harness::{MongoOptions, eventually, mongo_with};

use super::{COLLECTIONS, Capture, collections, dir, insert, numbered};

const PATIENCE: Duration = Duration::from_secs(60);

async fn admin(root: &Database, command: Document) {
    root.client().database("admin").run_command(command).await.expect("a command of root's");
}

/// Waits until the trouble is said, without the password; what the log has is still there.
async fn in_trouble(capture: &Capture, held: usize) {
    let trouble = eventually("the trouble is said", PATIENCE, || async {
        capture.status.borrow().trouble.clone()
    })
    .await;
    assert!(!trouble.contains("open sesame"), "{trouble}");
    assert_eq!(capture.state().len(), held, "what the log has is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_rights_and_a_changed_password_are_said_and_recovered_from_alone() {
    let dir = dir();
    let key = dir.path().join("key");
    std::fs::write(&key, "a key of the nodes among themselves").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let args = vec!["--keyFile".to_owned(), key.to_str().unwrap().to_owned()];
    let mut mongo = mongo_with(MongoOptions { args, ..MongoOptions::default() }).await;
    // The first user may be made by whoever is on the machine.
    let user = |name: &str, password: &str, roles: Document| {
        doc! { "createUser": name, "pwd": password, "roles": [roles] }
    };
    let root_role = doc! { "role": "root", "db": "admin" };
    admin(&mongo.db, user("root", "all of it", root_role)).await;
    let hosts = mongo.uri().replace("mongodb://", "");
    let uri = format!("mongodb://root:all%20of%20it@{hosts}&authSource=admin");
    let root = mongodb::Client::with_uri_str(uri).await.unwrap().database("invoify");
    let role = doc! { "role": "read", "db": "invoify" };
    admin(&root, user("tidewire", "open sesame", role.clone())).await;
    insert(&root, "invoices", numbered(0..50)).await;

    let uri = format!("mongodb://tidewire:open%20sesame@{hosts}&authSource=admin");
    let config = SourceConfig { uri, database: "invoify".to_owned() };
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

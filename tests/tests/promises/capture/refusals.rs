//! What can't be followed is refused at start, with the reason.

use bson::doc;
use tidewire_server::access::channels::RuleSet;
use tidewire_server::capture::{CheckError, check_source};
use tidewire_server::config::SourceConfig;
use tidewire_tests::harness::{mongo, mongo_with};

use super::{COLLECTIONS, collections, insert, numbered, source};

fn rules() -> RuleSet {
    RuleSet::compile(&collections(&COLLECTIONS)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_is_followed_and_named() {
    let mongo = mongo().await;
    let checked = check_source(&source(&mongo), &rules()).await.unwrap();
    assert_eq!(checked.identity, format!("{}/invoify", checked.replica_set));
}

#[tokio::test(flavor = "multi_thread")]
async fn views_and_time_series_collections_are_refused() {
    let mongo = mongo().await;
    insert(&mongo.db, "elsewhere", numbered(0..1)).await;
    let view = doc! { "create": "plans", "viewOn": "elsewhere", "pipeline": [] };
    mongo.db.run_command(view).await.unwrap();
    let error = check_source(&source(&mongo), &rules()).await.unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(
        text.contains("plans") && text.contains("view") && text.contains("elsewhere"),
        "{text}"
    );
    mongo.db.run_command(doc! { "drop": "plans" }).await.unwrap();
    let series = doc! { "create": "invoices", "timeseries": { "timeField": "at" } };
    mongo.db.run_command(series).await.unwrap();
    let text = check_source(&source(&mongo), &rules()).await.unwrap_err().to_string();
    assert!(text.contains("invoices") && text.contains("time-series"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_unreachable_and_a_wrong_set_name_is_told() {
    let config = |uri: String| SourceConfig { uri, database: "invoify".to_owned() };
    let nobody =
        config("mongodb://127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=500".into());
    let error = check_source(&nobody, &rules()).await.unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    let bad = check_source(&config("postgres://x".into()), &rules()).await.unwrap_err();
    assert_eq!(bad.exit_code(), 2, "{bad}");
    let mongo = mongo_with(Default::default()).await;
    let port = mongo.set.nodes()[0].port();
    let uri = format!("mongodb://127.0.0.1:{port}/?replicaSet=other&serverSelectionTimeoutMS=500");
    let error = check_source(&config(uri), &rules()).await.unwrap_err();
    assert!(matches!(error, CheckError::OtherSet { .. }), "{error}");
    assert_eq!(error.exit_code(), 2);
}

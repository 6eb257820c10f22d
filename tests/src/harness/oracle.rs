//! Compares replicas with MongoDB, document by document, by none of the server's code.

use std::path::Path;

use mongodb::Database;
use tidewire_ops::verify::{Plan, Report, compare};

/// What a comparison at the replica's own position finds.
///
/// # Panics
/// When the source or the replica can't be read.
pub async fn differences(source: &Database, plan: &Plan, replica: &Path) -> Report {
    compare(source, plan, replica, None, &mut ()).await.expect("compare")
}

/// The replica equals the source at the replica's own position, cut to what `plan` lets it see.
///
/// # Panics
/// When it does not.
pub async fn must_equal(source: &Database, plan: &Plan, replica: &Path) -> Report {
    let report = differences(source, plan, replica).await;
    assert!(report.is_equal(), "the replica at {} differs:\n{report}", report.position);
    report
}

//! Writes an office into a database.

use bson::{Document, doc};
use mongodb::Database;
use mongodb::error::Error;

use super::office::{COLLECTIONS, Office};

const BATCH: usize = 1_000;

/// What to do where the office's collections hold documents already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Write nothing and say so with an error.
    Refuse,
    /// Write nothing and be content.
    Keep,
    /// Delete the documents of those five collections first.
    Replace,
}

/// Why nothing was seeded.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// There are documents, and nobody said that they may go.
    #[error(
        "{database} holds {documents} documents in {collection} already and nothing was changed: choose \
         another --database, or say --replace to delete the documents of users, plans, enrollments, \
         invoices and payments first"
    )]
    NotEmpty {
        /// The database.
        database: String,
        /// The first collection that is not empty.
        collection: &'static str,
        /// How many it holds.
        documents: u64,
    },
    /// MongoDB's.
    #[error(transparent)]
    Mongo(#[from] Error),
}

/// Writes `office`; `told` hears of every batch (the collection, documents in it so far). Returns how
/// many documents were written, 0 where there were some and they were kept.
///
/// # Errors
/// See [`SeedError`].
pub async fn seed(
    database: &Database,
    office: Office,
    existing: Existing,
    mut told: impl FnMut(&str, u64),
) -> Result<u64, SeedError> {
    for collection in COLLECTIONS {
        let documents = count(database, collection).await?;
        match existing {
            _ if documents == 0 => {}
            Existing::Keep => return Ok(0),
            Existing::Replace => {
                database.collection::<Document>(collection).delete_many(doc! {}).await?;
            }
            Existing::Refuse => {
                let database = database.name().to_owned();
                return Err(SeedError::NotEmpty { database, collection, documents });
            }
        }
    }
    let mut total = 0;
    for (name, documents) in office.into_collections() {
        let collection = database.collection::<Document>(name);
        let mut written = 0;
        for batch in documents.chunks(BATCH) {
            collection.insert_many(batch).await?;
            written += batch.len() as u64;
            told(name, written);
        }
        total += written;
    }
    Ok(total)
}

/// Documents in a collection, exactly.
///
/// # Errors
/// MongoDB's.
pub async fn count(database: &Database, collection: &str) -> Result<u64, Error> {
    database.collection::<Document>(collection).count_documents(doc! {}).await
}

//! Writes an office into a database.

use bson::{Document, doc};
use mongodb::Database;
use mongodb::error::Error;

use super::office::{COLLECTIONS, Office};

const BATCH: usize = 1_000;

/// What to do where the office's collections hold documents already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// The same office is kept as it has become; anything else is refused with an error.
    Keep,
    /// Delete the documents of those five collections first.
    Replace,
}

/// Why nothing was seeded.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// There are documents that are not of this office, and nobody said that they may go.
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
/// many documents were written: 0 where this very office was there already.
///
/// # Errors
/// See [`SeedError`].
pub async fn seed(
    database: &Database,
    office: Office,
    existing: Existing,
    mut told: impl FnMut(&str, u64),
) -> Result<u64, SeedError> {
    if existing == Existing::Keep && is_seeded(database, &office).await? {
        return Ok(0);
    }
    for collection in COLLECTIONS {
        let documents = count(database, collection).await?;
        if documents > 0 && existing != Existing::Replace {
            let database = database.name().to_owned();
            return Err(SeedError::NotEmpty { database, collection, documents });
        }
        database.collection::<Document>(collection).delete_many(doc! {}).await?;
    }
    let mut total = 0;
    // The first user comes last: it is what tells a whole office from half of one.
    let mut collections = office.into_collections();
    collections.iter_mut().for_each(|(_, documents)| documents.reverse());
    collections.reverse();
    for (name, documents) in collections {
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

/// Whether this office's first user is there.
async fn is_seeded(database: &Database, office: &Office) -> Result<bool, Error> {
    let Some(id) = office.users.first().and_then(|user| user.get("_id")) else { return Ok(false) };
    let users = database.collection::<Document>("users");
    Ok(users.find_one(doc! { "_id": id }).await?.is_some())
}

/// Documents in a collection, exactly.
///
/// # Errors
/// MongoDB's.
pub async fn count(database: &Database, collection: &str) -> Result<u64, Error> {
    database.collection::<Document>(collection).count_documents(doc! {}).await
}

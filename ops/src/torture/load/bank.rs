//! Money moves between the accounts of one owner, two or more in a transaction: what the owner has stays
//! what it is in every state of the source.

use bson::{Document, doc};
use mongodb::error::Result;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::torture::stage::{ACCOUNTS_EACH, OWNERS, Site};

const TRANSFERS_MAX: usize = 4;

/// One transaction of one or more transfers.
pub(super) async fn transfer(site: &Site, rng: &mut StdRng) -> Result<()> {
    let accounts = site.database.collection::<Document>("accounts");
    let mut session = site.driver.start_session().await?;
    session.start_transaction().await?;
    let transfers = if rng.random_ratio(1, 5) { rng.random_range(2..=TRANSFERS_MAX) } else { 1 };
    for _ in 0..transfers {
        let owner = OWNERS[rng.random_range(0..OWNERS.len())];
        let from = rng.random_range(0..ACCOUNTS_EACH);
        let to = (from + rng.random_range(1..ACCOUNTS_EACH)) % ACCOUNTS_EACH;
        let amount = rng.random_range(1_i64..50);
        for (number, amount) in [(from, -amount), (to, amount)] {
            let id = doc! { "_id": format!("{owner}-{number}") };
            let change = doc! { "$inc": { "balance": amount, "v": 1_i64 } };
            let done = accounts.update_one(id, change).session(&mut session).await;
            if let Err(error) = done {
                // Another writer has it: give way.
                session.abort_transaction().await.ok();
                return Err(error);
            }
        }
    }
    if rng.random_ratio(1, 10) {
        return session.abort_transaction().await;
    }
    session.commit_transaction().await
}

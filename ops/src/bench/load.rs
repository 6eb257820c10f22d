//! What the measurements are made over: invoices of 500 bytes, and a backlog of changes to them.

use anyhow::{Context, Result, ensure};
use bson::oid::ObjectId;
use bson::{Bson, DateTime, Decimal128, Document, Timestamp, doc};
use futures::{StreamExt, TryStreamExt};
use mongodb::Database;

/// The collection of every measurement.
pub(super) const COLLECTION: &str = "invoices";
/// Users, each with a channel.
const USERS: u64 = 2_000;
/// Documents or updates in one command.
const COMMAND_MAX: u64 = 1_000;
/// Commands under way at once: with more, one mongod on two cores is no faster.
const COMMANDS_AT_ONCE: usize = 3;
/// 2026-01-01T00:00:00Z, milliseconds.
const EPOCH_MS: i64 = 1_767_225_600_000;

/// Invoice `number`, always the same; its `_id` ascends with its number, as a backend's do.
pub(super) fn invoice(number: u64) -> Result<Document> {
    let mixed = mix(number);
    let amount: Decimal128 = format!("{}.{:02}", mixed % 9_000 + 10, mixed % 100).parse()?;
    let item = |line: u64| {
        let price = format!("{}.{:02}", mixed % 500 + line, line * 25);
        Ok::<_, anyhow::Error>(doc! {
            "sku": format!("SKU-{:05}", (mixed >> line) % 20_000),
            "quantity": i32::try_from(line)? + 1,
            "price": price.parse::<Decimal128>()?,
        })
    };
    let at = |days: i64| DateTime::from_millis(EPOCH_MS + days * 86_400_000);
    Ok(doc! {
        "_id": id(number),
        "number": format!("INV-2026-{number:07}"),
        "userId": format!("user{}", mixed % USERS),
        "customer": format!("Customer {:x} and Sons Ltd.", mixed >> 40),
        "status": "open",
        "amount": amount,
        "currency": "EUR",
        "issuedAt": at(i64::try_from(mixed % 300)?),
        "dueAt": at(i64::try_from(mixed % 300)? + 30),
        "paid": false,
        "items": [item(0)?, item(1)?],
        "address": doc! {
            "street": format!("{} Long Acre Road", mixed % 400),
            "city": "Rotterdam",
            "postcode": format!("{:04} AB", mixed % 10_000),
            "country": "NL",
        },
        "notes": format!("reference {mixed:016x}"),
    })
}

fn id(number: u64) -> ObjectId {
    let mut bytes = [0x65; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    ObjectId::from_bytes(bytes)
}

/// Inserts `count` invoices.
pub(super) async fn insert(database: &Database, count: u64) -> Result<()> {
    let commands = (0..count).step_by(usize::try_from(COMMAND_MAX)?).map(|from| async move {
        let numbers = from..count.min(from + COMMAND_MAX);
        let invoices: Vec<Document> = numbers.map(invoice).collect::<Result<_>>()?;
        database.collection(COLLECTION).insert_many(invoices).await.context("insert invoices")?;
        Ok(())
    });
    futures::stream::iter(commands).buffer_unordered(COMMANDS_AT_ONCE).try_collect().await
}

/// Updates `count` times one of `documents` invoices, picked at random but always the same, each
/// with three fields set, as a payment would.
pub(super) async fn update(database: &Database, documents: u64, count: u64) -> Result<()> {
    let commands = (0..count).step_by(usize::try_from(COMMAND_MAX)?).map(|from| async move {
        let numbers = from..count.min(from + COMMAND_MAX);
        let updates: Vec<Bson> = numbers
            .map(|number| {
                let set = doc! {
                    "status": "paid",
                    "paidBy": format!("transfer {number}"),
                    "address.postcode": format!("{:04} XY", mix(number) % 10_000),
                };
                let which = doc! { "_id": id(mix(number ^ 0x55AA) % documents) };
                Bson::Document(doc! { "q": which, "u": { "$set": set } })
            })
            .collect();
        let expected = i32::try_from(updates.len())?;
        let answer = database
            .run_command(doc! { "update": COLLECTION, "updates": updates, "ordered": false })
            .await
            .context("update invoices")?;
        ensure!(answer.get_i32("n")? == expected, "not every update was taken: {answer}");
        Ok(())
    });
    futures::stream::iter(commands).buffer_unordered(COMMANDS_AT_ONCE).try_collect().await
}

/// The time of the source's last write.
pub(super) async fn operation_time(database: &Database) -> Result<Timestamp> {
    let answer = database.run_command(doc! { "ping": 1 }).await.context("ask the source's time")?;
    answer.get_timestamp("operationTime").context("the source tells no time: not a replica set?")
}

/// `SplitMix64`: numbers that look random and are the same in every run.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invoice_has_the_size_that_the_figures_are_quoted_for() {
        let sizes: Vec<usize> = (0..1_000)
            .map(|n| bson::serialize_to_vec(&invoice(n).unwrap()).unwrap().len())
            .collect();
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!((490..=510).contains(&mean), "{mean} bytes");
    }
}

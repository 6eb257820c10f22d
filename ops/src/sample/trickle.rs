//! A trickle of the writes that an office makes: invoices, payments in transactions, people who move,
//! now and then a deletion. Through the ordinary driver, with majority writes.

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, Timestamp, doc};
use futures::TryStreamExt;
use mongodb::error::{Error, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::options::{Acknowledgment, WriteConcern};
use mongodb::{Client, ClientSession, Collection, Database};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::documents;
use super::names;
use crate::mongod::cluster_time;

/// Documents of a kind that are kept in mind to write to.
const KNOWN_MAX: usize = 2_000;
const TRANSACTION_TRIES_MAX: usize = 5;

/// What was written.
#[derive(Clone, Debug)]
pub struct Write {
    /// The collection of the document that matters.
    pub collection: &'static str,
    /// Its `_id`.
    pub id: ObjectId,
    /// What was done to it.
    pub operation: Operation,
    /// In words.
    pub text: String,
    /// Changes that this makes: a payment makes three.
    pub changes: u32,
    /// The write's own time in the source: a replica whose position has this cluster time or a later
    /// one shows it.
    pub cluster_time: u64,
}

/// What was done to a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Operation {
    Insert,
    Update,
    Delete,
}

/// The writer.
#[derive(Debug)]
pub struct Trickle {
    database: Database,
    session: ClientSession,
    rng: StdRng,
    users: Vec<Document>,
    enrollments: Vec<Document>,
    open: Vec<Document>,
    invoices: u64,
}

impl Trickle {
    /// Reads what there is to write to. Seed the database first.
    ///
    /// # Errors
    /// MongoDB's, and where there are no users or enrollments.
    pub async fn start(client: &Client, database: &str, seed: u64) -> Result<Self, Error> {
        let majority = WriteConcern::builder().w(Acknowledgment::Majority).build();
        let options = mongodb::options::DatabaseOptions::builder().write_concern(majority).build();
        let database = client.database_with_options(database, options);
        let users = known(&database, "users", doc! {}).await?;
        let enrollments = known(&database, "enrollments", doc! {}).await?;
        if users.is_empty() || enrollments.is_empty() {
            return Err(Error::custom("no users and enrollments to write to: seed first"));
        }
        let open = known(&database, "invoices", doc! { "status": { "$ne": "paid" } }).await?;
        let invoices = super::count(&database, "invoices").await?;
        let session = client.start_session().await?;
        let rng = StdRng::seed_from_u64(seed);
        Ok(Self { database, session, rng, users, enrollments, open, invoices })
    }

    /// One write, any of them.
    ///
    /// # Errors
    /// MongoDB's. Another try is another write.
    pub async fn write(&mut self) -> Result<Write, Error> {
        let dice = self.rng.random_range(0..100);
        if self.open.is_empty() || self.open.len() < 20 && dice < 50 {
            return self.issue().await;
        }
        match dice {
            0..30 => self.pay().await,
            30..55 => self.issue().await,
            55..70 => self.remind().await,
            70..85 => self.move_house().await,
            85..92 => self.add_fee().await,
            92..96 => self.join().await,
            _ => self.cancel().await,
        }
    }

    fn collection(&self, name: &str) -> Collection<Document> {
        self.database.collection(name)
    }

    fn written(
        &self,
        collection: &'static str,
        id: ObjectId,
        operation: Operation,
        text: String,
        changes: u32,
    ) -> Write {
        let time = self.session.operation_time().unwrap_or(Timestamp { time: 0, increment: 0 });
        let cluster_time = cluster_time(time);
        Write { collection, id, operation, text, changes, cluster_time }
    }

    async fn issue(&mut self) -> Result<Write, Error> {
        let enrollment = self.enrollments.choose(&mut self.rng).expect("there are some").clone();
        let user_id = enrollment.get_object_id("userId").expect("an enrollment has a user");
        let user = self.users.iter().find(|user| id_of(user) == user_id);
        let user = user.unwrap_or(&self.users[0]).clone();
        self.invoices += 1;
        let instalment = [100_000, 200_000, 250_000, 500_000][self.rng.random_range(0..4)];
        let (number, now) = (self.invoices, DateTime::now());
        let invoice =
            documents::invoice(&mut self.rng, number, &user, &enrollment, instalment, now);
        let session = &mut self.session;
        let invoices = self.database.collection::<Document>("invoices");
        invoices.insert_one(&invoice).session(session).await?;
        let text = format!(
            "{} for {}: ₹{}",
            text(&invoice, "number"),
            text(&invoice, "customer"),
            text(&invoice, "amount")
        );
        let id = id_of(&invoice);
        if self.open.len() < KNOWN_MAX {
            self.open.push(invoice);
        }
        Ok(self.written("invoices", id, Operation::Insert, text, 1))
    }

    /// A payment, its invoice and the enrollment, in one transaction.
    async fn pay(&mut self) -> Result<Write, Error> {
        let invoice = self.take_open();
        let payment = documents::payment(&mut self.rng, &invoice, DateTime::now());
        for attempt in 1.. {
            match self.try_pay(&invoice, &payment).await {
                Ok(()) => break,
                Err(error)
                    if attempt < TRANSACTION_TRIES_MAX
                        && error.contains_label(TRANSIENT_TRANSACTION_ERROR) => {}
                Err(error) => {
                    let _ = self.session.abort_transaction().await;
                    return Err(error);
                }
            }
        }
        let text = format!(
            "{} paid ₹{} by {}: {} and the enrollment in one transaction",
            text(&invoice, "customer"),
            text(&payment, "amount"),
            text(&payment, "method"),
            text(&invoice, "number"),
        );
        Ok(self.written("payments", id_of(&payment), Operation::Insert, text, 3))
    }

    async fn try_pay(&mut self, invoice: &Document, payment: &Document) -> Result<(), Error> {
        let [payments, invoices, enrollments] =
            ["payments", "invoices", "enrollments"].map(|name| self.collection(name));
        let session = &mut self.session;
        session.start_transaction().await?;
        payments.insert_one(payment).session(&mut *session).await?;
        let paid = doc! { "$set": { "status": "paid", "paidAt": payment.get("paidAt"), "updatedAt": DateTime::now() } };
        let invoice_id = doc! { "_id": id_of(invoice) };
        invoices.update_one(invoice_id, paid).session(&mut *session).await?;
        let one_more =
            doc! { "$inc": { "instalmentsPaid": 1 }, "$currentDate": { "updatedAt": true } };
        let enrollment_id = doc! { "_id": invoice.get("enrollmentId") };
        enrollments.update_one(enrollment_id, one_more).session(&mut *session).await?;
        for attempt in 1.. {
            match session.commit_transaction().await {
                Err(error)
                    if attempt < TRANSACTION_TRIES_MAX
                        && error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) => {}
                done => return done,
            }
        }
        Ok(())
    }

    async fn remind(&mut self) -> Result<Write, Error> {
        let invoice = self.open.choose(&mut self.rng).expect("there are some").clone();
        let change = doc! {
            "$inc": { "reminders": 1 },
            "$set": { "status": "overdue", "lastReminder": { "channel": "sms", "at": DateTime::now() } },
            "$currentDate": { "updatedAt": true },
        };
        let said = format!("{} is overdue, reminded", text(&invoice, "number"));
        self.update("invoices", id_of(&invoice), change, said).await
    }

    async fn move_house(&mut self) -> Result<Write, Error> {
        let user = self.users.choose(&mut self.rng).expect("there are some").clone();
        let (city, state, code, street) = names::place(&mut self.rng);
        let change = doc! {
            "$set": { "address.city": city, "address.state": state, "address.postalCode": code, "address.street": street },
            "$addToSet": { "tags": "moved" },
            "$currentDate": { "updatedAt": true },
        };
        let said = format!("{} moved to {city}", text(&user, "name"));
        self.update("users", id_of(&user), change, said).await
    }

    /// An item more, and the amount computed by the server: an update by a pipeline.
    async fn add_fee(&mut self) -> Result<Write, Error> {
        let invoice = self.open.choose(&mut self.rng).expect("there are some").clone();
        let fee = documents::money(self.rng.random_range(1..20) * 2_500);
        let item =
            doc! { "description": "Late fee", "quantity": 1, "unitPrice": fee, "amount": fee };
        let change = vec![doc! { "$set": {
            "items": { "$concatArrays": ["$items", [item]] },
            "amount": { "$add": ["$amount", fee] },
            "updatedAt": "$$NOW",
        } }];
        let said = format!("{}: a late fee of ₹{fee}", text(&invoice, "number"));
        self.update("invoices", id_of(&invoice), change, said).await
    }

    async fn update(
        &mut self,
        collection: &'static str,
        id: ObjectId,
        change: impl Into<mongodb::options::UpdateModifications>,
        said: String,
    ) -> Result<Write, Error> {
        let target = self.collection(collection);
        target.update_one(doc! { "_id": id }, change).session(&mut self.session).await?;
        Ok(self.written(collection, id, Operation::Update, said, 1))
    }

    async fn join(&mut self) -> Result<Write, Error> {
        let user = documents::user(&mut self.rng, DateTime::now(), "subscriber");
        let users = self.collection("users");
        users.insert_one(&user).session(&mut self.session).await?;
        let (id, said) = (id_of(&user), format!("{} joined", text(&user, "name")));
        if self.users.len() < KNOWN_MAX {
            self.users.push(user);
        }
        Ok(self.written("users", id, Operation::Insert, said, 1))
    }

    async fn cancel(&mut self) -> Result<Write, Error> {
        let invoice = self.take_open();
        let id = id_of(&invoice);
        let invoices = self.collection("invoices");
        invoices.delete_one(doc! { "_id": id }).session(&mut self.session).await?;
        let said = format!("{} cancelled and deleted", text(&invoice, "number"));
        Ok(self.written("invoices", id, Operation::Delete, said, 1))
    }

    fn take_open(&mut self) -> Document {
        let index = self.rng.random_range(0..self.open.len());
        self.open.swap_remove(index)
    }
}

async fn known(database: &Database, name: &str, filter: Document) -> Result<Vec<Document>, Error> {
    let limit = i64::try_from(KNOWN_MAX).expect("a small number");
    let collection = database.collection::<Document>(name);
    collection.find(filter).sort(doc! { "_id": -1 }).limit(limit).await?.try_collect().await
}

fn id_of(document: &Document) -> ObjectId {
    document.get_object_id("_id").expect("the office's ids are ObjectIds")
}

fn text(document: &Document, field: &str) -> String {
    match document.get(field) {
        Some(Bson::String(text)) => text.clone(),
        Some(Bson::Decimal128(amount)) => amount.to_string(),
        _ => String::new(),
    }
}

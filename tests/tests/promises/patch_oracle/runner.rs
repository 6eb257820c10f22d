//! Runs random operations and notes what changed when.

use std::collections::BTreeMap;

use bson::raw::RawDocumentBuf;
use bson::{Bson, Document, Timestamp, doc};
use mongodb::ClientSession;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidewire_tests::harness::Mongo;

use super::operations::{self, Update};
use super::{DOCUMENTS, values};

/// What was done.
pub(super) struct Ran {
    /// From here the stream holds everything.
    pub(super) start: Timestamp,
    /// By cluster time: what changed then.
    pub(super) done: BTreeMap<Timestamp, Done>,
    /// Operations that changed something, by operator; `refused` and `changed nothing` too.
    pub(super) kinds: BTreeMap<String, u64>,
}

pub(super) struct Done {
    pub(super) has_pipeline: bool,
    /// The document afterwards, where the operation answered it.
    pub(super) after: Option<RawDocumentBuf>,
}

pub(super) struct Runner<'a> {
    mongo: &'a Mongo,
    /// Those that are written to; the first most often.
    collections: &'a [&'static str],
    rng: StdRng,
    ran: Ran,
}

impl<'a> Runner<'a> {
    pub(super) fn new(mongo: &'a Mongo, collections: &'a [&'static str], seed: u64) -> Self {
        let start = Timestamp { time: 0, increment: 0 };
        let ran = Ran { start, done: BTreeMap::new(), kinds: BTreeMap::new() };
        Self { mongo, collections, rng: StdRng::seed_from_u64(seed), ran }
    }

    pub(super) async fn run(mut self, operations: usize) -> Ran {
        let pong = self.mongo.db.run_command(doc! { "ping": 1 }).await.expect("ping");
        self.ran.start = pong.get_timestamp("operationTime").expect("a replica set");
        for _ in 0..operations {
            match self.rng.random_range(0..100) {
                0..=7 => self.put(true).await,
                8..=9 => self.delete().await,
                10..=11 => self.put(false).await,
                12..=14 => self.transaction().await,
                15 => self.many().await,
                _ => self.update_one().await,
            }
        }
        self.ran
    }

    fn collection(&mut self) -> &'static str {
        let at = [0, 0, 0, 0, 0, 0, 0, 1, 1, 2][self.rng.random_range(0..10)];
        self.collections[at.min(self.collections.len() - 1)]
    }

    fn id(&mut self) -> Bson {
        values::id(self.rng.random_range(0..DOCUMENTS))
    }

    fn document(&mut self, collection: &str, id: Bson) -> Document {
        match collection {
            "plain" => values::plain(&mut self.rng, id),
            _ => values::odd(&mut self.rng, id),
        }
    }

    fn an_update(&mut self, collection: &str) -> Update {
        match collection {
            "plain" => operations::plain(&mut self.rng),
            other => operations::odd(&mut self.rng, other == "told_apart"),
        }
    }

    fn count(&mut self, kind: &str) {
        *self.ran.kinds.entry(kind.to_owned()).or_default() += 1;
    }

    /// Notes what was done at the time that the answer tells. An answer to what changed nothing
    /// tells an earlier time, which is noted already.
    fn note(&mut self, answer: &Document, has_pipeline: bool, after: Option<RawDocumentBuf>) {
        let time = answer.get_timestamp("operationTime").expect("a replica set");
        self.ran.done.entry(time).or_insert(Done { has_pipeline, after });
    }

    /// A replacement, or an insert where there is no such document; odd names go by a pipeline.
    async fn put(&mut self, replace: bool) {
        let collection = self.collection();
        let id = self.id();
        let document = self.document(collection, id.clone());
        let update = match collection {
            "plain" if replace => Bson::Document(document),
            _ => bson::bson!([{ "$replaceWith": { "$literal": document } }]),
        };
        let update = doc! { "q": { "_id": id }, "u": update, "upsert": true };
        let command = doc! { "update": collection, "updates": [update] };
        let answer = self.mongo.db.run_command(command).await.expect("a replacement");
        assert!(!answer.contains_key("writeErrors"), "{answer}");
        self.note(&answer, true, None);
        self.count("replace or insert");
    }

    async fn delete(&mut self) {
        let (collection, id) = (self.collection(), self.id());
        let command =
            doc! { "delete": collection, "deletes": [{ "q": { "_id": id }, "limit": 1 }] };
        let answer = self.mongo.db.run_command(command).await.expect("a delete");
        self.note(&answer, false, None);
        self.count("delete");
    }

    async fn update_one(&mut self) {
        let (collection, id) = (self.collection(), self.id());
        let update = self.an_update(collection);
        let answers_document = self.rng.random();
        let command = update.command(collection, Some(id), answers_document);
        let answer = match self.mongo.db.run_command(command).await {
            Ok(answer) if !answer.contains_key("writeErrors") => answer,
            _ => return self.count("refused"),
        };
        let after = answer.get_document("value").ok();
        let after = after.map(|after| RawDocumentBuf::try_from(after).expect("a document"));
        let changed = answers_document || answer.get_i32("nModified").is_ok_and(|n| n == 1);
        self.note(&answer, update.is_pipeline(), after);
        match changed {
            true => update.kinds.iter().for_each(|kind| self.count(kind)),
            false => self.count("changed nothing"),
        }
    }

    /// One update of many documents: each has a cluster time of its own before the answer's.
    async fn many(&mut self) {
        let update = Update {
            kinds: vec!["many"],
            filter: doc! { "i": { "$gte": self.rng.random_range(30..99) } },
            update: doc! { "$inc": { "i": -1, "n.count": 1 }, "$push": { "log": 1 } }.into(),
            array_filters: Vec::new(),
        };
        let answer = self.mongo.db.run_command(update.command("plain", None, false)).await;
        let answer = answer.expect("an update of many");
        self.note(&answer, false, None);
        self.count(if answer.contains_key("writeErrors") { "refused" } else { "many" });
    }

    /// A few updates that commit together: one cluster time for all.
    async fn transaction(&mut self) {
        let mut session = self.mongo.client.start_session().await.expect("a session");
        session.start_transaction().await.expect("a transaction");
        let mut has_pipeline = false;
        for _ in 0..self.rng.random_range(1..5) {
            let (collection, id) = (self.collection(), self.id());
            let update = self.an_update(collection);
            has_pipeline |= update.is_pipeline();
            let command = update.command(collection, Some(id), false);
            let answer = self.mongo.db.run_command(command).session(&mut session).await;
            if !answer.is_ok_and(|answer| !answer.contains_key("writeErrors")) {
                session.abort_transaction().await.ok();
                return self.count("transaction aborted");
            }
        }
        session.commit_transaction().await.expect("commit");
        let time = operation_time(&session);
        self.ran.done.entry(time).or_insert(Done { has_pipeline, after: None });
        self.count("transaction");
    }
}

fn operation_time(session: &ClientSession) -> Timestamp {
    session.operation_time().expect("the time of the commit")
}

impl Update {
    fn is_pipeline(&self) -> bool {
        matches!(self.update, Bson::Array(_))
    }

    /// The command for the document `id`, or for all that match.
    fn command(&self, collection: &str, id: Option<Bson>, answers_document: bool) -> Document {
        let mut filter = self.filter.clone();
        let multi = id.is_none();
        filter.extend(id.map(|id| ("_id".to_owned(), id)));
        let update = self.update.clone();
        let filters = self.array_filters.clone();
        let mut command = if answers_document {
            doc! { "findAndModify": collection, "query": filter, "update": update, "new": true }
        } else {
            doc! { "q": filter, "u": update, "multi": multi }
        };
        if !filters.is_empty() {
            command.insert("arrayFilters", filters);
        }
        if answers_document {
            command
        } else {
            doc! { "update": collection, "updates": [command] }
        }
    }
}

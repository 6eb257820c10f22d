//! MongoDB for a test: a replica set of its own and a database in it.

use bson::{Document, doc};
use mongodb::{Client, Database};
use tidewire_ops::mongod::{Node, ReplicaSet};

pub use tidewire_ops::mongod::Options as MongoOptions;

/// A running replica set and a client for it.
#[derive(Debug)]
pub struct Mongo {
    /// The nodes.
    pub set: ReplicaSet,
    /// The ordinary driver.
    pub client: Client,
    /// The database that the test uses.
    pub db: Database,
}

/// One node, failpoints allowed.
///
/// # Panics
/// When it can't be started.
pub async fn mongo() -> Mongo {
    mongo_with(MongoOptions { test_commands: true, ..MongoOptions::default() }).await
}

/// Three nodes that elect a new primary within about two seconds, failpoints allowed.
///
/// # Panics
/// When they can't be started.
pub async fn three_nodes() -> Mongo {
    let election_timeout = std::time::Duration::from_secs(1);
    let options =
        MongoOptions { nodes: 3, test_commands: true, election_timeout, ..Default::default() };
    mongo_with(options).await
}

/// As the options say.
///
/// # Panics
/// When it can't be started.
pub async fn mongo_with(options: MongoOptions) -> Mongo {
    let set = ReplicaSet::start(options).await.expect("start MongoDB");
    let client = Client::with_uri_str(set.uri()).await.expect("a client");
    let db = client.database("invoify");
    Mongo { set, client, db }
}

impl Mongo {
    /// The connection string of the set.
    #[must_use]
    pub fn uri(&self) -> String {
        self.set.uri()
    }

    /// Node `index`, from 0.
    pub fn node(&mut self, index: usize) -> &mut Node {
        self.set.node(index)
    }

    /// Makes the primary fail in its own code until the answer is dropped with [`FailPoint::off`].
    /// `mode`: `"alwaysOn"`, `{times: n}`, …
    ///
    /// # Panics
    /// When the primary refuses.
    pub async fn fail_point(
        &self,
        name: &str,
        mode: impl Into<bson::Bson>,
        data: Document,
    ) -> FailPoint {
        let on = doc! { "configureFailPoint": name, "mode": mode.into(), "data": data };
        let index = self.set.primary().await.expect("a primary");
        let client = self.set.nodes()[index].client();
        let answer = client.database("admin").run_command(on).await.expect("set the failpoint");
        FailPoint { name: name.to_owned(), client, before: count(&answer) }
    }

    /// Fails `commands` with error `code`, with labels where there are any (`failCommand`).
    ///
    /// # Panics
    /// When the primary refuses.
    pub async fn fail_command(
        &self,
        commands: &[&str],
        code: i32,
        labels: &[&str],
        mode: impl Into<bson::Bson>,
    ) -> FailPoint {
        let mut data = doc! { "failCommands": commands.to_vec(), "errorCode": code };
        if !labels.is_empty() {
            data.insert("errorLabels", labels.to_vec());
        }
        self.fail_point("failCommand", mode, data).await
    }
}

/// A failure that is switched on.
#[derive(Debug)]
pub struct FailPoint {
    name: String,
    client: Client,
    /// What it had failed before it was switched on.
    before: i64,
}

impl FailPoint {
    /// Waits until it has failed `times` commands, the last of them perhaps still under way.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn fired(&self, times: i64) {
        let wait = doc! {
            "waitForFailPoint": &self.name, "timesEntered": self.before + times, "maxTimeMS": 60_000,
        };
        let waited = self.client.database("admin").run_command(wait).await;
        waited
            .unwrap_or_else(|error| panic!("{} has not failed {times} times: {error}", self.name));
    }

    /// Switches it off; how often it has failed something.
    ///
    /// # Panics
    /// When the node refuses.
    pub async fn off(self) -> i64 {
        let off = doc! { "configureFailPoint": self.name, "mode": "off" };
        let admin = self.client.database("admin");
        let answer = admin.run_command(off).await.expect("switch the failpoint off");
        count(&answer) - self.before
    }
}

/// How often a failpoint has failed something since its node was started.
fn count(answer: &Document) -> i64 {
    let count = answer.get("count").unwrap_or_else(|| panic!("how often? {answer}"));
    count.as_i32().map(i64::from).or(count.as_i64()).expect("a number")
}

//! The way to the source: the driver's settings, and what is checked before anything is followed.

use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Document, doc};
use futures::TryStreamExt;
use mongodb::error::ErrorKind;
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use tokio::time::timeout;

use super::decode::cluster_time;
use super::failure::{classify, shown};
use crate::access::channels::RuleSet;
use crate::config::SourceConfig;
use crate::retry::Failure;

/// How long the driver looks for a primary.
const SELECTION_MAX: Duration = Duration::from_secs(5);
/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How often the driver looks whether a node is well.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Connections to one node: the stream, the copy, exact reads and the driver's own.
const CONNECTIONS_MAX: u32 = 8;
/// How long one check of the source may take.
const CHECK_MAX: Duration = Duration::from_secs(10);
/// `maxWireVersion` of MongoDB 6.0.
const WIRE_VERSION_MIN: i32 = 17;

/// The source can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The URI is none, or asks for something that is not there.
    #[error("the MongoDB URI can't be used: {0}")]
    Uri(String),
    /// Nobody answers.
    #[error("MongoDB can't be reached: {0}; check the URI and that a primary runs")]
    Unreachable(String),
    /// Wrong user or password, or too few rights.
    #[error(
        "MongoDB refuses access: {0}; the user needs the role `read` on the database {database:?}",
        database = .1
    )]
    Refused(String, String),
    /// One mongod without an oplog has no change streams.
    #[error(
        "the mongod at {0} is a standalone and has no change streams; start it with --replSet rs0 and \
         run rs.initiate() once"
    )]
    Standalone(String),
    /// Started as a member of a replica set that nobody has made yet.
    #[error("the mongod at {0} is in no replica set yet; run rs.initiate() once")]
    NotInitiated(String),
    /// A mongos.
    #[error("{0} is a mongos; a sharded cluster can't be followed, use the URI of a replica set")]
    Sharded(String),
    /// The name in the URI is not the set's.
    #[error("the replica set is called {found:?}, not {wanted:?}; correct replicaSet in the URI")]
    OtherSet {
        /// In the URI.
        wanted: String,
        /// What the node says.
        found: String,
    },
    /// Too old.
    #[error("this MongoDB is older than 6.0 (wire version {0}); 6.0 or newer is needed")]
    TooOld(i32),
    /// Views and time-series collections have no change events of their own.
    #[error(
        "the collection {name:?} is a {kind}, which has no change events; take it out of the \
         configuration{hint}"
    )]
    NotACollection {
        /// Its name.
        name: String,
        /// `view` or `time-series collection`.
        kind: &'static str,
        /// What to name instead.
        hint: String,
    },
    /// Anything else that MongoDB says.
    #[error("MongoDB can't be followed: {0}")]
    Other(String),
}

impl CheckError {
    /// What the program exits with: 2 bad configuration, 3 access refused, 4 unreachable.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable(_) => 4,
            Self::Refused(..) => 3,
            Self::Other(_) => 1,
            _ => 2,
        }
    }
}

/// What the check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedSource {
    /// The replica set's name.
    pub replica_set: String,
    /// See [`source_identity`].
    pub identity: String,
}

/// What a log is bound to: `<replica set>/<database>`.
#[must_use]
pub fn source_identity(replica_set: &str, database: &str) -> String {
    format!("{replica_set}/{database}")
}

/// Looks whether the source can be followed: reachable, a replica set of MongoDB 6.0 or newer, readable
/// by this user, and each configured collection one that has change events (one that does not exist
/// yet has).
///
/// # Errors
/// [`CheckError`], within about 20 s; it says what to do.
pub async fn check_source(
    config: &SourceConfig,
    rules: &RuleSet,
) -> Result<CheckedSource, CheckError> {
    let options = client_options(config).await?;
    let client = Client::with_options(options.clone()).map_err(|e| CheckError::Uri(shown(&e)))?;
    let database = client.database(&config.database);
    let host = options.hosts.first().map(ToString::to_string).unwrap_or_default();
    let hello = match checked(&database, doc! { "hello": 1 }).await {
        Ok(hello) => hello,
        Err(CheckError::Unreachable(message)) => {
            return Err(diagnose(options, &host).await.unwrap_or(CheckError::Unreachable(message)));
        }
        Err(error) => return Err(error),
    };
    let replica_set = replica_set_of(&hello, &host)?;
    let wire_version = hello.get_i32("maxWireVersion").unwrap_or(0);
    if wire_version < WIRE_VERSION_MIN {
        return Err(CheckError::TooOld(wire_version));
    }
    check_collections(&database, rules).await?;
    let stream = doc! {
        "aggregate": 1,
        "pipeline": [{ "$changeStream": { "showExpandedEvents": true } }],
        "cursor": {},
    };
    let opened = timeout(CHECK_MAX, database.run_cursor_command(stream).batch()).await;
    opened
        .map_err(|_| out_of_time())?
        .map_err(|error| refused_or_unreachable(&error, &config.database))?;
    let identity = source_identity(&replica_set, &config.database);
    Ok(CheckedSource { replica_set, identity })
}

/// The driver's settings: the URI's where it says something, ours where it does not.
pub(super) async fn client_options(config: &SourceConfig) -> Result<ClientOptions, CheckError> {
    let parsed = timeout(CHECK_MAX, async { ClientOptions::parse(&config.uri).await }).await;
    let mut options = match parsed.map_err(|_| out_of_time())? {
        Ok(options) => options,
        Err(error) if matches!(error.kind.as_ref(), ErrorKind::DnsResolve { .. }) => {
            return Err(CheckError::Unreachable(shown(&error)));
        }
        Err(error) => return Err(CheckError::Uri(shown(&error))),
    };
    options.app_name.get_or_insert_with(|| "tidewire".to_owned());
    options.connect_timeout.get_or_insert(CONNECT_MAX);
    options.server_selection_timeout.get_or_insert(SELECTION_MAX);
    options.heartbeat_freq.get_or_insert(HEARTBEAT);
    options.max_pool_size.get_or_insert(CONNECTIONS_MAX);
    Ok(options)
}

/// The source's own times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// Its present time.
    pub(super) operation: u64,
    /// The newest that a majority has, so that no rollback can take it back.
    pub(super) majority: u64,
    /// Which process the primary is: another one after each of its starts. MongoDB 4.4 and later say it.
    pub(super) process: Option<ObjectId>,
}

/// Asks the primary for its times.
pub(super) async fn times(database: &Database) -> mongodb::error::Result<Times> {
    let hello = database.run_command(doc! { "hello": 1 }).await?;
    let last_write = hello.get_document("lastWrite").ok();
    let majority = last_write.and_then(|written| written.get_document("majorityOpTime").ok());
    let majority = majority.and_then(|time| time.get_timestamp("ts").ok()).map(cluster_time);
    let operation = hello.get_timestamp("operationTime").ok().map(cluster_time);
    let version = hello.get_document("topologyVersion").ok();
    let process = version.and_then(|version| version.get_object_id("processId").ok());
    operation
        .zip(majority)
        .map(|(operation, majority)| Times { operation, majority, process })
        .ok_or_else(|| std::io::Error::other("the source does not tell its time").into())
}

fn replica_set_of(hello: &Document, host: &str) -> Result<String, CheckError> {
    if hello.get_str("msg").is_ok_and(|kind| kind == "isdbgrid") {
        return Err(CheckError::Sharded(host.to_owned()));
    }
    match hello.get_str("setName") {
        Ok(name) => Ok(name.to_owned()),
        Err(_) if hello.get_bool("isreplicaset").unwrap_or(false) => {
            Err(CheckError::NotInitiated(host.to_owned()))
        }
        Err(_) => Err(CheckError::Standalone(host.to_owned())),
    }
}

/// Why no primary was found, where the first node alone can tell it.
async fn diagnose(mut options: ClientOptions, host: &str) -> Option<CheckError> {
    let wanted = options.repl_set_name.take();
    options.direct_connection = Some(true);
    options.hosts.truncate(1);
    let client = Client::with_options(options).ok()?;
    let hello = checked(&client.database("admin"), doc! { "hello": 1 }).await.ok()?;
    match replica_set_of(&hello, host) {
        Err(error) => Some(error),
        Ok(found) => {
            let wanted = wanted.filter(|wanted| *wanted != found)?;
            Some(CheckError::OtherSet { wanted, found })
        }
    }
}

async fn check_collections(database: &Database, rules: &RuleSet) -> Result<(), CheckError> {
    let names: Vec<&str> = rules.iter().map(|rules| rules.name()).collect();
    let command = doc! { "listCollections": 1, "filter": { "name": { "$in": names } } };
    let list = timeout(CHECK_MAX, async {
        database.run_cursor_command(command).await?.try_collect::<Vec<Document>>().await
    });
    let found = list
        .await
        .map_err(|_| out_of_time())?
        .map_err(|error| refused_or_unreachable(&error, database.name()))?;
    for collection in found {
        let name = collection.get_str("name").unwrap_or_default().to_owned();
        match collection.get_str("type") {
            Ok("view") => {
                let on = collection
                    .get_document("options")
                    .and_then(|options| options.get_str("viewOn"))
                    .map(|on| format!(" and name {on:?}, which it shows, instead"))
                    .unwrap_or_default();
                return Err(CheckError::NotACollection { name, kind: "view", hint: on });
            }
            Ok("timeseries") => {
                let hint = String::new();
                let kind = "time-series collection";
                return Err(CheckError::NotACollection { name, kind, hint });
            }
            _ => {}
        }
    }
    Ok(())
}

async fn checked(database: &Database, command: Document) -> Result<Document, CheckError> {
    timeout(CHECK_MAX, database.run_command(command).into_future())
        .await
        .map_err(|_| out_of_time())?
        .map_err(|error| refused_or_unreachable(&error, database.name()))
}

fn out_of_time() -> CheckError {
    CheckError::Unreachable(format!("no answer within {} s", CHECK_MAX.as_secs()))
}

fn refused_or_unreachable(error: &mongodb::error::Error, database: &str) -> CheckError {
    match classify(error) {
        Failure::AccessRefused => CheckError::Refused(shown(error), database.to_owned()),
        Failure::Interrupted | Failure::Silent => CheckError::Unreachable(shown(error)),
        _ => CheckError::Other(shown(error)),
    }
}

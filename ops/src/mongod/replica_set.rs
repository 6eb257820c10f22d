//! A replica set of one or three nodes on loopback.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use mongodb::options::WriteConcern;

use super::node::{Node, StartError};
use super::{Progress, cluster_time, fetch};
use crate::temporary::Temporary;
use crate::{folder, ports};

const PRIMARY_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const PORT_TRIES_MAX: usize = 5;
/// Of each document that pushes others out of the oplog.
const ROLLING_BYTES: usize = 4_000_000;
const ROLLED_WITHIN: Duration = Duration::from_secs(60);
const NOT_YET_INITIALIZED: i32 = 94;
const UNAUTHORIZED: i32 = 13;

/// How a replica set is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary; `None`: [`fetch`].
    pub mongod: Option<PathBuf>,
    /// 1 to 7.
    pub nodes: usize,
    /// Where the data is, kept afterwards; `None`: a temporary folder, removed afterwards.
    pub dir: Option<PathBuf>,
    /// The first node's port, the others follow; `None`: free ones.
    pub port: Option<u16>,
    /// The name of the replica set.
    pub name: String,
    /// WiredTiger's cache of each node, in GB, at least 0.25.
    pub cache_gb: f64,
    /// The oplog's size in MB; `None`: MongoDB's choice.
    pub oplog_mb: Option<u32>,
    /// How long secondaries wait before they elect another primary.
    pub election_timeout: Duration,
    /// Failpoints and other test commands.
    pub test_commands: bool,
    /// More `--setParameter`s.
    pub parameters: Vec<(String, String)>,
    /// More command line arguments.
    pub args: Vec<String>,
}

impl Default for Options {
    /// One node in a temporary folder.
    fn default() -> Self {
        Self {
            mongod: None,
            nodes: 1,
            dir: None,
            port: None,
            name: "rs0".into(),
            cache_gb: 0.25,
            oplog_mb: None,
            election_timeout: Duration::from_secs(10),
            test_commands: false,
            parameters: Vec::new(),
            args: Vec::new(),
        }
    }
}

/// A running replica set. Its processes end with it, and with us, however we end.
#[derive(Debug)]
pub struct ReplicaSet {
    nodes: Vec<Node>,
    options: Options,
    dir: PathBuf,
    /// Removed after the nodes: fields drop in order.
    _temporary: Option<Temporary>,
}

impl ReplicaSet {
    /// Starts the nodes, initiates the set where it is new, and waits for a primary that takes writes.
    /// Data in `dir` from an earlier start is used again, on other ports where need be.
    ///
    /// # Errors
    /// When there is no mongod, when it ends at once (with its reason), or no primary is elected in a
    /// minute.
    pub async fn start(options: Options) -> Result<Self> {
        let mongod = match &options.mongod {
            Some(path) => path.clone(),
            None => tokio::task::spawn_blocking(|| fetch(Progress::Shown)).await??,
        };
        let (dir, temporary) = match &options.dir {
            Some(dir) => (dir.clone(), None),
            None => {
                let temporary = Temporary::new("mongod")?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let nodes = start_nodes(&mongod, &dir, &options).await?;
        let set = Self { nodes, options, dir, _temporary: temporary };
        set.configure().await?;
        set.is_whole().await?;
        set.primary().await?;
        Ok(set)
    }

    /// For a driver: all hosts, majority writes.
    #[must_use]
    pub fn uri(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(Node::host).collect();
        format!("mongodb://{}/?replicaSet={}", hosts.join(","), self.options.name)
    }

    /// Where its data and logs are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The nodes in the order of their ports' choice.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Node `index`, from 0.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// # Errors
    /// When a node that should run has ended by itself.
    pub fn must_run(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::must_run)
    }

    /// The index of the primary; waits for one up to a minute.
    ///
    /// # Errors
    /// When none is elected.
    pub async fn primary(&self) -> Result<usize> {
        let deadline = Instant::now() + PRIMARY_WITHIN;
        while Instant::now() < deadline {
            for (index, node) in self.nodes.iter().enumerate() {
                if node.id().is_some() && node.is_primary().await {
                    return Ok(index);
                }
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("no primary after {PRIMARY_WITHIN:?}: see the logs in {}", self.dir.display())
    }

    /// Waits until every node is a primary or a secondary: before that it can't be elected.
    ///
    /// # Errors
    /// When one of them is not in a minute.
    pub async fn is_whole(&self) -> Result<()> {
        let deadline = Instant::now() + PRIMARY_WITHIN;
        while Instant::now() < deadline {
            let hellos = self.nodes.iter().map(|node| node.admin(doc! { "hello": 1 }));
            let hellos = futures::future::join_all(hellos).await;
            let takes_part = |hello: &Document| {
                hello.get_bool("isWritablePrimary").unwrap_or(false)
                    || hello.get_bool("secondary").unwrap_or(false)
            };
            if hellos.iter().all(|hello| hello.as_ref().is_ok_and(takes_part)) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("not all nodes take part after {PRIMARY_WITHIN:?}: see {}", self.dir.display())
    }

    /// Ends all nodes cleanly. Without it, dropping kills them, which MongoDB survives too.
    ///
    /// # Errors
    /// When a node does not end.
    pub async fn stop(mut self) -> Result<()> {
        let stops = self.nodes.iter_mut().map(Node::stop);
        for stopped in futures::future::join_all(stops).await {
            stopped?;
        }
        Ok(())
    }

    /// Ends all nodes, copies what they have to the folder `to`, and starts them again.
    ///
    /// # Errors
    /// When a node does not end or start, or its files can't be copied.
    pub async fn back_up(&mut self, to: &Path) -> Result<()> {
        self.whole_stopped(|data, node| folder::copy(data, &to.join(node))).await
    }

    /// All nodes hold what they held when it was copied to `from`.
    ///
    /// # Errors
    /// As [`ReplicaSet::back_up`].
    pub async fn put_back(&mut self, from: &Path) -> Result<()> {
        let put_back = |data: &Path, node: &str| {
            std::fs::remove_dir_all(data)?;
            folder::copy(&from.join(node), data)
        };
        self.whole_stopped(put_back).await
    }

    /// Writes to a database of its own until no node's oplog reaches back to `time`, a cluster time.
    ///
    /// # Errors
    /// When it can't be written to, or a minute is not enough.
    pub async fn roll_over(&self, time: u64) -> Result<()> {
        let neighbour = self.nodes[self.primary().await?].client().database("neighbour");
        let bytes = vec![7; ROLLING_BYTES];
        let blob = Binary { subtype: BinarySubtype::Generic, bytes };
        let deadline = Instant::now() + ROLLED_WITHIN;
        while !self.has_forgotten(time).await {
            if Instant::now() > deadline {
                bail!("the oplog still reaches back after {ROLLED_WITHIN:?}");
            }
            let wide = neighbour.collection::<Document>("wide");
            let written = wide.insert_one(doc! { "blob": blob.clone() });
            written.write_concern(WriteConcern::majority()).await?;
        }
        // The primary may be another one by now; what is left is dropped the next time.
        let _ = neighbour.drop().await;
        Ok(())
    }

    async fn has_forgotten(&self, time: u64) -> bool {
        for node in &self.nodes {
            let oplog = node.client().database("local").collection::<Document>("oplog.rs");
            // It may go while it is read.
            let Ok(Some(first)) = oplog.find_one(doc! {}).await else { return false };
            if first.get_timestamp("ts").is_ok_and(|first| cluster_time(first) <= time) {
                return false;
            }
        }
        true
    }

    /// Does something with the data of each node while none runs.
    async fn whole_stopped(&mut self, work: impl Fn(&Path, &str) -> io::Result<()>) -> Result<()> {
        for stopped in futures::future::join_all(self.nodes.iter_mut().map(Node::stop)).await {
            stopped?;
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let data = node.data();
            work(data, &format!("node{index}"))
                .with_context(|| format!("copy between {} and a backup", data.display()))?;
        }
        for started in futures::future::join_all(self.nodes.iter_mut().map(Node::restart)).await {
            started?;
        }
        self.is_whole().await?;
        self.primary().await?;
        Ok(())
    }

    /// Initiates a new set, or tells an old one its new ports.
    async fn configure(&self) -> Result<()> {
        let first = &self.nodes[0];
        match first.admin(doc! { "replSetGetConfig": 1 }).await {
            Ok(answer) => {
                let config = answer.get_document("config").context("the replica set's config")?;
                self.readdress(config.clone()).await
            }
            // With a key file a new set lets itself be initiated, by its own machine, and nothing else.
            Err(error) if matches!(code(&error), Some(NOT_YET_INITIALIZED | UNAUTHORIZED)) => {
                let config = self.config(1, doc! {});
                let initiate = doc! { "replSetInitiate": config };
                first.admin(initiate).await.context("initiate the replica set")?;
                Ok(())
            }
            Err(error) => Err(error).context("ask for the replica set's config"),
        }
    }

    async fn readdress(&self, config: Document) -> Result<()> {
        let members = config.get_array("members").context("members of the config")?;
        let hosts = members.iter().filter_map(Bson::as_document);
        let hosts: Vec<&str> = hosts.filter_map(|member| member.get_str("host").ok()).collect();
        if hosts.len() != self.nodes.len() {
            bail!(
                "{} holds a replica set of {} nodes, not {}: choose another folder",
                self.dir.display(),
                hosts.len(),
                self.nodes.len()
            );
        }
        if hosts.iter().zip(&self.nodes).all(|(host, node)| *host == node.host()) {
            return Ok(());
        }
        let version = config.get_i32("version").unwrap_or(1);
        let settings = config.get_document("settings").cloned().unwrap_or_default();
        let config = self.config(version + 1, settings);
        let command = doc! { "replSetReconfig": config, "force": true };
        self.nodes[0].admin(command).await.context("give the replica set its new ports")?;
        Ok(())
    }

    fn config(&self, version: i32, mut settings: Document) -> Document {
        let members = self.nodes.iter().zip(0i32..);
        let members = members.map(|(node, id)| doc! { "_id": id, "host": node.host() });
        let timeout_ms =
            i64::try_from(self.options.election_timeout.as_millis()).unwrap_or(i64::MAX);
        settings.insert("electionTimeoutMillis", timeout_ms);
        // Heartbeats well within the election timeout, or it would be missed by chance.
        settings.insert("heartbeatIntervalMillis", (timeout_ms / 5).clamp(100, 2_000));
        // A new primary waits for a word of every node before it takes writes.
        settings.insert("heartbeatTimeoutSecs", (timeout_ms / 1_000).clamp(1, 10));
        doc! {
            "_id": &self.options.name,
            "version": version,
            "members": members.collect::<Vec<_>>(),
            "settings": settings,
        }
    }
}

fn code(error: &mongodb::error::Error) -> Option<i32> {
    match error.kind.as_ref() {
        mongodb::error::ErrorKind::Command(command) => Some(command.code),
        _ => None,
    }
}

async fn start_nodes(mongod: &Path, dir: &Path, options: &Options) -> Result<Vec<Node>> {
    let args = arguments(options);
    let fixed = options.port.map(|first| (first..).take(options.nodes).collect::<Vec<u16>>());
    for _ in 0..PORT_TRIES_MAX {
        let ports = match &fixed {
            Some(ports) => ports.clone(),
            None => ports::free(options.nodes)?,
        };
        match try_start(mongod, dir, &ports, &args).await {
            Ok(nodes) => return Ok(nodes),
            Err(StartError::PortTaken(port)) if fixed.is_some() => {
                bail!("port {port} is taken: choose another one, or leave the choice to us")
            }
            Err(StartError::PortTaken(_)) => {}
            Err(StartError::Other(error)) => return Err(error),
        }
    }
    bail!("{PORT_TRIES_MAX} times somebody else took a port before mongod did")
}

async fn try_start(
    mongod: &Path,
    dir: &Path,
    ports: &[u16],
    args: &[String],
) -> Result<Vec<Node>, StartError> {
    let mut nodes = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        nodes.push(Node::new(mongod, &dir.join(format!("node{index}")), *port, args)?);
    }
    let starts = nodes.iter_mut().map(Node::start);
    futures::future::join_all(starts).await.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(nodes)
}

fn arguments(options: &Options) -> Vec<String> {
    let mut args = vec!["--replSet".into(), options.name.clone()];
    args.extend(["--wiredTigerCacheSizeGB".into(), options.cache_gb.to_string()]);
    if let Some(mb) = options.oplog_mb {
        args.extend(["--oplogSize".into(), mb.to_string()]);
    }
    let mut parameters = vec![("diagnosticDataCollectionEnabled".to_owned(), "false".to_owned())];
    if options.test_commands {
        parameters.push(("enableTestCommands".into(), "1".into()));
    }
    parameters.extend(options.parameters.iter().cloned());
    for (name, value) in parameters {
        args.extend(["--setParameter".into(), format!("{name}={value}")]);
    }
    args.extend(options.args.iter().cloned());
    args
}

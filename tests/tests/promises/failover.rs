//! Three nodes, of which the primary goes away in every way: no change is lost, doubled or reordered, none
//! that was rolled back is told, and the log goes on soon (FAULTS 13 to 16).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use futures::TryStreamExt;
use mongodb::options::{Acknowledgment, ClientOptions, WriteConcern};
use mongodb::{Client as Driver, Database};
use serde_json::Value;
use tidewire_ops::mongod::Node;
use tidewire_ops::verify::Plan;
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, black_hole, eventually, must_equal, three_nodes,
};

/// What a slow, shared machine may need for what takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// From the fault to the first write of a new primary in the log: the election and the majority's
/// agreement are MongoDB's, and a machine that runs much else needs more for both.
const GOES_ON_WITHIN: Duration = Duration::from_secs(25);
/// From the acknowledgement of a new primary's first write to that write in the log, which takes milliseconds where
/// the server has heard of that primary.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(2);
/// A stream at a primary that fell silent ends at last by the watchdog, or by the driver's own doubts about the node,
/// which take three seconds at least: a new primary that is there before this is heard of first.
const ELECTED_IN_TIME: Duration = Duration::from_millis(2_500);
const DOCUMENTS: i32 = 40;

/// Three nodes, a server that follows them, a client, and one who writes all along.
struct Set {
    mongo: Mongo,
    /// Gives up on a node that does not answer.
    writes: Database,
    server: Server,
    client: Client,
    token: String,
    cursor: String,
    /// By document: its last version in the pages.
    seen: BTreeMap<String, i64>,
    written: BTreeMap<i32, i64>,
}

impl Set {
    async fn start() -> Self {
        let mongo = three_nodes().await;
        let mut options = ClientOptions::parse(mongo.uri()).await.expect("a URI");
        options.server_selection_timeout = Some(Duration::from_secs(5));
        options.heartbeat_freq = Some(Duration::from_millis(500));
        options.connect_timeout = Some(Duration::from_secs(1));
        options.write_concern = Some(WriteConcern::majority());
        let writes = Driver::with_options(options).expect("a driver").database("invoify");
        let all = (0..DOCUMENTS).map(|id| doc! { "_id": id, "v": 0_i64 });
        writes.collection::<Document>("counters").insert_many(all).await.expect("insert");
        let server = Server::start(ServerOptions::following(&mongo, &["counters"])).await;
        let token = server.token(&Claims::of("somebody"));
        let mut client = Client::new(&server.url(), &token);
        client.start();
        let (seen, written) = (BTreeMap::new(), (0..DOCUMENTS).map(|id| (id, 0)).collect());
        let mut set =
            Self { mongo, writes, server, client, token, cursor: "0".into(), seen, written };
        set.read().await;
        assert_eq!(set.seen.len(), DOCUMENTS as usize);
        set
    }

    /// Gives every document its next version.
    async fn write(&mut self) {
        let ids: Vec<i32> = self.written.keys().copied().collect();
        for id in ids {
            self.write_one(&self.writes.clone(), id).await;
        }
    }

    /// Gives one document its next version by `database`.
    async fn write_one(&mut self, database: &Database, id: i32) {
        let version = self.written[&id];
        // The version says whether an attempt that was cut off had been done.
        let from = doc! { "_id": id, "v": version };
        let change = doc! { "$set": { "v": version + 1 } };
        let counters = database.collection::<Document>("counters");
        eventually("a write goes through", PATIENCE, || {
            let write = counters.update_one(from.clone(), change.clone()).into_future();
            async move { tokio::time::timeout(Duration::from_secs(3), write).await.ok()?.ok() }
        })
        .await;
        self.written.insert(id, version + 1);
    }

    /// Waits for a primary, each node asked by a connection of its own: a driver for all of them may take
    /// longer to notice than what is timed here.
    async fn primary(&self) -> Database {
        let nodes = self.mongo.set.nodes().iter();
        let found = nodes.map(|node| Box::pin(becomes_primary(node)));
        let (database, ..) = futures::future::select_all(found).await;
        database
    }

    /// Reads pages to the log's head; each document's versions come one by one.
    async fn read(&mut self) {
        loop {
            let query = format!("since={}&limit=7", self.cursor);
            let (status, page) = self.server.pull(&self.token, &query).await;
            assert_eq!(status, 200, "{page}");
            for change in page["changes"].as_array().expect("changes") {
                let id = change["mongoId"].as_str().expect("an id").to_owned();
                let version = change["payload"]["v"].as_i64().expect("a version");
                let last = self.seen.insert(id.clone(), version);
                let follows = last.is_none_or(|last| version == last + 1);
                assert!(follows, "{id}: {version} after {last:?}: lost, doubled or reordered");
            }
            page["cursor"].as_str().expect("a cursor").clone_into(&mut self.cursor);
            if page["hasMore"] == false {
                return;
            }
        }
    }

    /// Waits until the pages tell everything that was written.
    async fn goes_on(&mut self) {
        let wanted: i64 = self.written.values().sum();
        let deadline = Instant::now() + PATIENCE;
        while self.seen.values().sum::<i64>() < wanted {
            assert!(Instant::now() < deadline, "the log does not go on");
            self.read().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Has these nodes take nothing from the others any more, or go on.
    async fn replicates(&self, nodes: &[usize], goes_on: bool) {
        let mode = if goes_on { "off" } else { "alwaysOn" };
        for node in nodes {
            let producer = doc! { "configureFailPoint": "stopReplProducer", "mode": mode };
            self.mongo.set.nodes()[*node].admin(producer).await.expect("it obeys");
        }
    }

    /// Has the nodes wait for the primary's word for longer than a test takes: a machine that runs much else is
    /// no reason for another primary.
    async fn elects_nobody(&self, primary: usize) {
        let node = &self.mongo.set.nodes()[primary];
        let found = node.admin(doc! { "replSetGetConfig": 1 }).await.expect("a configuration");
        let mut config = found.get_document("config").expect("it").clone();
        let version = config.get_i32("version").expect("a version");
        config.insert("version", version + 1);
        let settings = config.get_document_mut("settings").expect("settings");
        settings.insert("electionTimeoutMillis", 600_000);
        node.admin(doc! { "replSetReconfig": config }).await.expect("another configuration");
    }

    async fn ready(&self) -> (u16, Value) {
        let answer =
            reqwest::get(format!("{}/readyz", self.server.url())).await.expect("an answer");
        let status = answer.status().as_u16();
        let text = answer.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Waits until the server's stream is open at the node of `database`.
    async fn is_followed_at(&self, database: &Database) {
        let streams = [
            doc! { "$currentOp": { "idleCursors": true } },
            doc! { "$match": {
                "appName": "tidewire",
                "cursor.originatingCommand.pipeline.0.$changeStream": { "$exists": true },
            } },
        ];
        eventually("the stream is at the new primary", PATIENCE, || async {
            let admin = database.client().database("admin");
            let streams: Vec<Document> =
                admin.aggregate(streams.clone()).await.ok()?.try_collect().await.ok()?;
            (!streams.is_empty()).then_some(())
        })
        .await;
    }

    async fn lag(&self) -> f64 {
        let url = format!("{}/api/sync/status", self.server.url());
        let http = reqwest::Client::new();
        let answer = http.get(url).bearer_auth(&self.token).send().await.expect("an answer");
        let status: Value =
            serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON");
        status["lag"].as_f64().expect("a lag")
    }
}

/// Waits until the node is the primary that others vote for.
async fn becomes_primary(node: &Node) -> Database {
    loop {
        let hello = tokio::time::timeout(Duration::from_secs(1), node.admin(doc! { "hello": 1 }));
        let hello = hello.await.ok().and_then(Result::ok);
        if hello.is_some_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false)) {
            return node.client().database("invoify");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How an old primary goes.
#[derive(Clone, Copy, PartialEq)]
enum Leaves {
    /// Its connections end, or go on as a secondary's.
    ByTelling,
    /// It says nothing any more: only the others can tell.
    Silently,
}

/// The primary, which is where the server's stream is, goes in one way and comes back: the log goes on
/// without it, at the new one, as soon as there is one. Figures are printed, for those who run it alone.
async fn goes_on_without_the_primary(
    what: &str,
    leaves: Leaves,
    go: impl AsyncFnOnce(&mut Mongo, usize),
    come_back: impl AsyncFnOnce(&mut Mongo, usize),
) {
    let mut set = Set::start().await;
    set.write().await;
    set.goes_on().await;
    let primary = set.mongo.set.primary().await.expect("a primary");
    let gone = Instant::now();
    go(&mut set.mongo, primary).await;
    let database = set.primary().await;
    let elected = gone.elapsed();
    set.write_one(&database, 0).await;
    let written = gone.elapsed();
    set.goes_on().await;
    let told = gone.elapsed();
    println!(
        "{what}: after {:.1} s another primary, after {:.1} s its first write acknowledged by a majority, \
         {:.2} s later in the log",
        elected.as_secs_f64(),
        written.as_secs_f64(),
        (told - written).as_secs_f64(),
    );
    assert!(told < GOES_ON_WITHIN, "{what}: {told:?}");
    assert!(told - written < FOLLOWED_WITHIN, "{what}: {:?} after the write", told - written);
    if leaves == Leaves::Silently && elected < ELECTED_IN_TIME {
        let heard = set.server.log_text().contains("another node has become the primary");
        assert!(heard, "{what}: nobody has heard of the new primary, the stream ended otherwise");
    }
    // One that stepped down would tell what it hears itself, for ever.
    set.is_followed_at(&database).await;
    set.write().await;
    set.goes_on().await;
    come_back(&mut set.mongo, primary).await;
    set.mongo.set.is_whole().await.expect("all three");
    set.write().await;
    set.goes_on().await;
    must_come_through(&set).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_primary_steps_down_the_log_goes_on_with_every_change_once() {
    let go = async |mongo: &mut Mongo, primary: usize| {
        let command = doc! { "replSetStepDown": 20, "secondaryCatchUpPeriodSecs": 5 };
        // It may cut the connection that asked for it.
        let _ = mongo.set.nodes()[primary].admin(command).await;
    };
    goes_on_without_the_primary("step-down", Leaves::ByTelling, go, async |_, _| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_primary_is_killed_the_log_goes_on_with_every_change_once() {
    let go = async |mongo: &mut Mongo, primary: usize| {
        mongo.node(primary).kill().await.expect("kill it");
    };
    let come_back = async |mongo: &mut Mongo, primary: usize| {
        mongo.node(primary).restart().await.expect("start it");
    };
    goes_on_without_the_primary("kill -9", Leaves::ByTelling, go, come_back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_primary_is_stopped_the_log_goes_on_with_every_change_once() {
    let go = async |mongo: &mut Mongo, primary: usize| {
        mongo.node(primary).pause().expect("stop it");
    };
    let come_back = async |mongo: &mut Mongo, primary: usize| {
        mongo.node(primary).resume().expect("let it go on");
    };
    goes_on_without_the_primary("SIGSTOP", Leaves::Silently, go, come_back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_primary_is_in_a_black_hole_the_log_goes_on_with_every_change_once() {
    // Rules of this machine's firewall, for one port: nobody hears of the node, and it of nobody.
    let hole = std::cell::RefCell::new(None);
    let go = async |mongo: &mut Mongo, primary: usize| {
        *hole.borrow_mut() = black_hole(mongo.node(primary).port());
    };
    let come_back = async |_: &mut Mongo, _| drop(hole.borrow_mut().take());
    if black_hole(9).is_some() {
        // No other bound than for the others: not a connection ends, but the two that are left tell the driver
        // by their own connections. What takes longer here, a majority's agreement without the lost one, is over
        // when the write is acknowledged, where that bound begins.
        goes_on_without_the_primary("black hole", Leaves::Silently, go, come_back).await;
    }
}

/// The client has everything, too.
async fn must_come_through(set: &Set) {
    let (_, page) = set.server.pull(&set.token, &format!("since={}", set.cursor)).await;
    let head = page["checkpoint"].as_str().expect("a checkpoint");
    set.client.reaches(head, PATIENCE).await;
    must_equal(&set.writes, &Plan::everything(&["counters"]), &set.client.db()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_the_lag_grows_it_is_said_why_and_pulls_are_served() {
    let mut set = Set::start().await;
    set.write().await;
    set.goes_on().await;
    let mut quiet = Client::new(&set.server.url(), &set.token);
    quiet.args.extend(["--transport", "poll", "--poll-interval", "1s"].map(str::to_owned));
    quiet.start();
    let primary = set.mongo.set.primary().await.expect("a primary");
    let others: Vec<usize> = (0..3).filter(|node| *node != primary).collect();
    for node in &others {
        set.mongo.node(*node).kill().await.expect("kill it");
    }
    let (status, said) = eventually("the server says that it is not ready", PATIENCE, || async {
        Some(set.ready().await).filter(|(status, _)| *status == 503)
    })
    .await;
    println!("without a majority /readyz says {status}: {}", said["error"]["message"]);
    let message = said["error"]["message"].as_str().expect("a message");
    let reasons = ["the source can't be reached", "it has no majority"];
    assert!(reasons.iter().any(|reason| message.contains(reason)), "{said}");
    let lag = set.lag().await;
    eventually("the lag grows", PATIENCE, || async { (set.lag().await > lag + 1.0).then_some(()) })
        .await;
    // A client that is told nothing new does not take that for an idle source.
    eventually("the client's lag is the server's", PATIENCE, || async {
        let status = quiet.status().await;
        (status["state"] == "polling" && status["lagMs"].as_i64()? > 30_000).then_some(())
    })
    .await;
    // What the log has is served, to the last change and to a new reader.
    let (status, page) = set.server.pull(&set.token, "since=0&limit=1000").await;
    assert_eq!((status, page["count"].as_i64()), (200, Some(i64::from(DOCUMENTS))), "{page}");
    for node in &others {
        set.mongo.node(*node).restart().await.expect("start it");
    }
    set.mongo.set.is_whole().await.expect("all three");
    set.write().await;
    set.goes_on().await;
    eventually("the server is ready again", PATIENCE, || async {
        (set.ready().await.0 == 200).then_some(())
    })
    .await;
    eventually("the client has caught up", PATIENCE, || async {
        (quiet.status().await["lagMs"].as_i64()? < 5_000).then_some(())
    })
    .await;
    quiet.stop().await;
    must_come_through(&set).await;
}

/// How a write is acknowledged by one node, once it is in its journal.
fn by_the_primary_alone() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Nodes(1)).journal(true).build()
}

/// The number after `name` in the metrics.
async fn metric(set: &Set, name: &str) -> f64 {
    let text = set.server.metrics().await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

/// For how many seconds the source has committed nothing, as the server says by being not ready for that.
async fn standstill(set: &Set) -> Option<i64> {
    let (status, said) = set.ready().await;
    let message = said["error"]["message"].as_str().filter(|_| status == 503)?;
    let seconds = message.strip_prefix("the source has committed nothing for ")?;
    let seconds = seconds.strip_suffix(" s: it has no majority; what the log has is served")?;
    seconds.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_primary_alone_has_is_told_only_when_a_majority_has_it_and_the_standstill_is_said()
{
    let mut set = Set::start().await;
    set.write().await;
    set.goes_on().await;
    let primary = set.mongo.set.primary().await.expect("a primary");
    let others: Vec<usize> = (0..3).filter(|node| *node != primary).collect();
    set.elects_nobody(primary).await;
    set.replicates(&others, false).await;
    let before = set.written.clone();
    let alone = set.mongo.set.nodes()[primary].client().database("invoify");
    let counters = alone.collection::<Document>("counters");
    let more = (1_000..1_010).map(|id| doc! { "_id": id, "v": 1_i64 });
    let more = counters.insert_many(more).write_concern(by_the_primary_alone());
    more.await.expect("w: 1");
    let next = counters.update_many(doc! { "_id": { "$lt": 1_000 } }, doc! { "$inc": { "v": 1 } });
    next.write_concern(by_the_primary_alone()).await.expect("w: 1");
    set.written.values_mut().for_each(|version| *version += 1);
    set.written.extend((1_000..1_010).map(|id| (id, 1)));

    let still = eventually("it is said why", PATIENCE, || standstill(&set)).await;
    assert!(still >= 25, "{still} s");
    eventually("the standstill grows", PATIENCE, || async {
        standstill(&set).await.filter(|seconds| *seconds > still + 1)
    })
    .await;
    // The operators' page and those who ask for the status see it grow, too.
    let lag = metric(&set, "tidewire_lag_seconds").await;
    assert!(lag >= 25.0 && set.lag().await >= lag, "{lag}");
    eventually("the lag grows", PATIENCE, || async {
        (metric(&set, "tidewire_lag_seconds").await > lag + 1.0).then_some(())
    })
    .await;
    // The primary is the same all along, and has no other's word for what was written.
    let hello = set.mongo.set.nodes()[primary].admin(doc! { "hello": 1 }).await.expect("hello");
    assert!(hello.get_bool("isWritablePrimary").expect("an answer"), "{hello}");
    let last = hello.get_document("lastWrite").expect("its last write");
    let date = |of: &str| last.get_datetime(of).expect("a date").timestamp_millis();
    let (majority, newest) = (date("majorityWriteDate"), date("lastWriteDate"));
    assert!(majority < newest, "nothing is proven: {last}");
    // A reader who goes on, one who begins, and the replica: they have what a majority has.
    set.read().await;
    let (status, page) = set.server.pull(&set.token, "since=0&limit=1000").await;
    assert_eq!(status, 200, "{page}");
    let versions = page["changes"].as_array().expect("changes").iter();
    let versions = versions.map(|change| change["payload"]["v"].as_i64().expect("a version"));
    let versions: Vec<i64> = versions.collect();
    let sum = |text: &str| -> (i64, i64) {
        let db = set.client.open().expect("a replica");
        db.query_row(text, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("counters")
    };
    let wanted = (before.len() as i64, before.values().sum::<i64>());
    assert_eq!((set.seen.len() as i64, set.seen.values().sum::<i64>()), wanted);
    assert_eq!((versions.len() as i64, versions.iter().sum::<i64>()), wanted);
    assert_eq!(sum("SELECT count(*), sum(_doc ->> '$.v') FROM counters"), wanted);

    set.replicates(&others, true).await;
    set.goes_on().await;
    assert_eq!(set.seen.len(), set.written.len());
    eventually("the server is ready again", PATIENCE, || async {
        (set.ready().await.0 == 200).then_some(())
    })
    .await;
    set.write().await;
    set.goes_on().await;
    must_come_through(&set).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_rolled_back_is_never_in_the_log() {
    let mut set = Set::start().await;
    set.write().await;
    set.goes_on().await;
    let primary = set.mongo.set.primary().await.expect("a primary");
    let others: Vec<usize> = (0..3).filter(|node| *node != primary).collect();
    set.replicates(&others, false).await;
    // Acknowledged by the primary, in its journal, and nowhere else.
    let alone = set.mongo.set.nodes()[primary].client().database("invoify");
    let alone = alone.collection::<Document>("counters");
    let journaled = by_the_primary_alone();
    let lost = (1_000..1_050).map(|id| doc! { "_id": id, "v": 0_i64 });
    alone.insert_many(lost).write_concern(journaled.clone()).await.expect("w: 1");
    let spoil = doc! { "$set": { "v": 1_000_000_i64 } };
    alone.update_many(doc! {}, spoil).write_concern(journaled).await.expect("w: 1");
    set.mongo.node(primary).kill().await.expect("kill it");
    set.replicates(&others, true).await;
    set.mongo.set.primary().await.expect("another primary");
    // What was lost can't be passed over unseen: versions must follow each other.
    set.write().await;
    set.goes_on().await;
    set.mongo.node(primary).restart().await.expect("it comes back and rolls back");
    set.mongo.set.is_whole().await.expect("all three");
    set.write().await;
    set.goes_on().await;
    let survived = doc! { "_id": { "$gte": 1_000 } };
    let survived = set.writes.collection::<Document>("counters").count_documents(survived).await;
    assert_eq!(survived.expect("a count"), 0, "the writes were not rolled back: nothing is proven");
    let strangers: Vec<&String> = set.seen.keys().filter(|id| id.len() > 3).collect();
    assert!(strangers.is_empty(), "told although rolled back: {strangers:?}");
    must_come_through(&set).await;
}

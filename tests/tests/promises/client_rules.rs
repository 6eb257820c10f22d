//! The server's configuration changes under a live client: what that gives and takes arrives as changes,
//! and the rest goes on from its cursor.

use std::time::Duration;

use bson::{Document, doc};
use tidewire_ops::verify::{Collection, Plan};
use tidewire_tests::harness::{
    Claims, Client, Mongo, Server, ServerOptions, collection, eventually, mongo, must_equal,
};

const SOON: Duration = Duration::from_secs(90);

/// One `[[collections]]`: its name, its channels, what is left out.
type Rules = (&'static str, &'static [&'static str], &'static [&'static str]);

struct Office {
    mongo: Mongo,
    server: Server,
    client: Client,
    rules: Vec<Rules>,
    marks: i64,
}

const MARKS: Rules = ("marks", &["everyone"], &[]);
const PLANS: Rules = ("plans", &["everyone"], &[]);

impl Office {
    /// Invoices of two users, in part to be read by the other one; her client is live.
    async fn open(rules: &[Rules]) -> Self {
        let mongo = mongo().await;
        let invoices = (0..300).map(|n| {
            let (owner, other) = if n % 2 == 0 { ("asha", "ravi") } else { ("ravi", "asha") };
            let reader = if n % 3 == 0 { other } else { owner };
            doc! { "_id": n, "owner": owner, "reader": reader, "internal": format!("canary {n}"), "n": n }
        });
        mongo.db.collection("invoices").insert_many(invoices).await.expect("insert");
        let plans = (0..40).map(|n| doc! { "_id": n, "name": format!("plan {n}") });
        mongo.db.collection("plans").insert_many(plans).await.expect("insert");
        let options =
            ServerOptions { collections: toml(rules), ..ServerOptions::following(&mongo, &[]) };
        let server = Server::start(options).await;
        let mut client = Client::new(&server.url(), &server.token(&Claims::of("asha")));
        client.logs = Some("tidewire=info");
        client.start();
        let mut office = Self { mongo, server, client, rules: rules.to_vec(), marks: 0 };
        office.settles().await;
        office
    }

    /// The server is started again with other rules, and her replica comes to be what they let her see.
    async fn rules(&mut self, rules: &[Rules]) {
        self.rules = rules.to_vec();
        self.server.options.collections = toml(rules);
        assert!(self.server.stop().await.success());
        self.server.launch();
        self.server.ready().await;
        self.settles().await;
    }

    /// A write made now has come by push, and everything before it.
    async fn settles(&mut self) {
        self.marks += 1;
        let mark = doc! { "_id": self.marks };
        self.mongo.db.collection::<Document>("marks").insert_one(mark).await.expect("insert");
        let sql = format!("SELECT count(*) FROM marks WHERE _id = '~{}'", self.marks);
        self.comes(&sql, 1).await;
        eventually("the client is live by push", SOON, || async {
            let status = self.client.status().await;
            (status["state"] == "live" && status["transport"] == "push").then_some(())
        })
        .await;
        must_equal(&self.mongo.db, &self.plan(), &self.client.db()).await;
    }

    fn plan(&self) -> Plan {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let collection = |&(name, channels, exclude): &Rules| Collection {
            name: name.to_owned(),
            channels: texts(channels),
            exclude: texts(exclude),
        };
        let held = ["everyone", "user:asha"].map(str::to_owned).into();
        Plan { collections: self.rules.iter().map(collection).collect(), held: Some(held) }
    }

    /// Where each row of a collection came from.
    fn places(&self, table: &str) -> String {
        let sql = format!("SELECT group_concat(_id || _position) FROM {table}");
        let db = self.client.open().expect("a replica");
        db.query_row(&sql, [], |row| row.get(0)).expect("places")
    }

    fn number(&self, sql: &str) -> rusqlite::Result<i64> {
        self.client.open()?.query_row(sql, [], |row| row.get(0))
    }

    async fn comes(&self, sql: &str, wanted: i64) {
        eventually(&format!("{sql} is {wanted}"), SOON, || async {
            self.number(sql).ok().filter(|found| *found == wanted)
        })
        .await;
    }

    /// Nothing was copied anew: what is there was told as changes.
    fn went_on(&self) {
        let copies = self.number("SELECT generation FROM _tidewire_state").expect("a number");
        assert_eq!(copies, 1, "it went on with its cursor");
        let log = self.client.log_text();
        assert!(!log.contains("can't be continued"), "a cursor was refused:\n{log}");
    }
}

fn toml(rules: &[Rules]) -> String {
    rules.iter().map(|(name, channels, exclude)| collection(name, channels, exclude)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_named_appears_and_one_that_is_not_any_more_goes() {
    const INVOICES: Rules = ("invoices", &["user:{owner}"], &[]);
    let mut office = Office::open(&[MARKS, INVOICES]).await;
    let before = office.places("invoices");
    let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'plans'";
    assert_eq!(office.number(tables), Ok(0));
    office.rules(&[MARKS, INVOICES, PLANS]).await;
    office.comes("SELECT count(*) FROM plans", 40).await;
    // What is written into it comes as everything does.
    let plans = office.mongo.db.collection::<Document>("plans");
    plans.delete_one(doc! { "_id": 1 }).await.expect("delete");
    office.settles().await;
    assert_eq!(office.number("SELECT count(*) FROM plans"), Ok(39));

    office.rules(&[MARKS, INVOICES]).await;
    office.comes(tables, 0).await;
    plans.insert_one(doc! { "_id": 100, "name": "unseen" }).await.expect("insert");
    office.settles().await;
    assert_eq!(office.client.files_with("unseen"), Vec::<String>::new());
    assert_eq!(
        office.places("invoices"),
        before,
        "what the rules say nothing of was not sent again"
    );
    office.went_on();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_channels_and_hidden_fields_arrive_as_gains_and_losses() {
    let rules = |channels, exclude| [MARKS, PLANS, ("invoices", channels, exclude)];
    let mut office = Office::open(&rules(&["user:{owner}"], &[])).await;
    let before = office.places("plans");
    let seen = "SELECT count(*) FROM invoices";
    let canaries = "SELECT count(*) FROM invoices WHERE _doc LIKE '%canary%'";
    assert_eq!((office.number(seen), office.number(canaries)), (Ok(150), Ok(150)));

    office.rules(&rules(&["user:{owner}"], &["internal"])).await;
    assert_eq!((office.number(seen), office.number(canaries)), (Ok(150), Ok(0)));
    office.rules(&rules(&["user:{owner}", "user:{reader}"], &["internal"])).await;
    assert_eq!((office.number(seen), office.number(canaries)), (Ok(200), Ok(0)));
    office.rules(&rules(&["user:{reader}"], &["internal"])).await;
    assert_eq!((office.number(seen), office.number(canaries)), (Ok(150), Ok(0)));
    office.rules(&rules(&["user:{reader}"], &[])).await;
    assert_eq!((office.number(seen), office.number(canaries)), (Ok(150), Ok(150)));
    assert_eq!(office.places("plans"), before, "what the rules say nothing of was not sent again");
    office.went_on();
}

/// Two servers come under other rules one after the other, and her client goes from one to the other.
#[tokio::test(flavor = "multi_thread")]
async fn servers_whose_rules_differ_for_a_while_leave_nothing_hidden_in_a_replica() {
    const SHOWN: [Rules; 2] = [MARKS, ("invoices", &["user:{owner}"], &[])];
    const HIDDEN: [Rules; 2] = [MARKS, ("invoices", &["user:{owner}"], &["internal"])];
    let mut office = Office::open(&SHOWN).await;
    let options =
        ServerOptions { collections: toml(&SHOWN), ..ServerOptions::following(&office.mongo, &[]) };
    let mut other = Server::start(options).await;
    let both = format!("{},{}", office.server.url(), other.url());
    office.client.stop().await;
    office.client.set_server(&both);
    office.client.start();
    office.settles().await;
    let canaries = "SELECT count(*) FROM invoices WHERE _doc LIKE '%canary%'";
    let copies = "SELECT generation FROM _tidewire_state";
    let ruled = async |server: &mut Server, rules: &[Rules]| {
        server.options.collections = toml(rules);
        assert!(server.stop().await.success());
        server.launch();
        server.ready().await;
    };

    // The other one hides what is at hers already, and more is written.
    ruled(&mut other, &HIDDEN).await;
    let change = doc! { "$inc": { "n": 1 } };
    let invoices = office.mongo.db.collection::<Document>("invoices");
    invoices.update_many(doc! {}, change).await.expect("update");
    office.settles().await;
    assert_eq!((office.number(canaries), office.number(copies)), (Ok(150), Ok(1)));
    office.server.kill().await;
    office.rules = HIDDEN.to_vec();
    office.comes(canaries, 0).await;
    office.settles().await;
    assert_eq!(office.number(copies), Ok(2), "nothing else can be right");

    // Where rules are the same, and where they have changed since, a cursor goes on.
    office.server.options.collections = toml(&HIDDEN);
    office.server.launch();
    office.server.ready().await;
    other.kill().await;
    office.settles().await;
    office.client.stop().await;
    other.launch();
    other.ready().await;
    for server in [&mut office.server, &mut other] {
        ruled(server, &SHOWN).await;
    }
    office.rules = SHOWN.to_vec();
    office.server.kill().await;
    office.client.start();
    office.comes(canaries, 150).await;
    office.settles().await;
    assert_eq!(office.number(copies), Ok(2), "it went on with its cursor");
}

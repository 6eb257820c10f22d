//! Readers that pull small pages over HTTP, now from one server, now from the other, with one cursor: every
//! complete page leaves a state that the source had, and nothing but what the token may see comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use serde_json::Value;
use tidewire_protocol::ResyncReason;
use tidewire_server::log::Cursor;
use tokio_util::sync::CancellationToken;

use super::findings::{Findings, Kind};
use super::history;
use super::stage::{ACCOUNTS_EACH, HIDDEN, NOT_FOLLOWED, OWNERS, ServerSite, Site, TOTAL, token};

const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(300);
const TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);
const LIMIT_MAX: u32 = 300;

/// One for an administrator, one for an owner.
pub(super) fn readers(site: &Site, seed: u64) -> Result<Vec<Reader>> {
    let reader = |(number, owner): (u64, Option<&'static str>)| {
        Ok(Reader {
            name: owner.unwrap_or("admin"),
            owner,
            token: token(owner, TOKEN_TTL)?,
            servers: site.servers.clone(),
            http: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?,
            rng: StdRng::seed_from_u64(seed ^ (0x9a9e5 + number)),
            cursor: "0".into(),
            given_by: (0, 0),
            position: String::new(),
            complete_by: None,
            accounts: HashMap::new(),
            versions: HashMap::new(),
        })
    };
    [None, Some("cem")]
        .into_iter()
        .zip(0..)
        .map(|(owner, number)| reader((number, owner)))
        .collect()
}

pub(super) struct Reader {
    name: &'static str,
    owner: Option<&'static str>,
    token: String,
    servers: Vec<ServerSite>,
    http: reqwest::Client,
    rng: StdRng,
    cursor: String,
    /// The server, and which of its logs.
    given_by: (usize, u64),
    /// The last change's.
    position: String,
    /// The server of the last complete page, and which of its configurations; `None`: there was none yet.
    complete_by: Option<(usize, u64)>,
    /// Owner and balance.
    accounts: HashMap<String, (String, i64)>,
    versions: HashMap<(String, String), i64>,
}

impl Reader {
    /// Reads until the checks are over.
    pub(super) async fn run(mut self, findings: Arc<Findings>, over: CancellationToken) {
        let mut server = 0;
        loop {
            if self.rng.random_ratio(1, 20) {
                server = self.rng.random_range(0..self.servers.len());
            }
            let step = self.step(server, &findings);
            match over.run_until_cancelled(step).await {
                None => return,
                Some(true) => {}
                Some(false) => {
                    tokio::time::sleep(PAUSE).await;
                    server = (server + 1) % self.servers.len();
                }
            }
        }
    }

    /// One page; false where there was none to be had.
    async fn step(&mut self, server: usize, findings: &Findings) -> bool {
        let limit = self.rng.random_range(1..LIMIT_MAX);
        let (url, cursor) = (&self.servers[server].url, &self.cursor);
        let log = Arc::clone(&self.servers[server].history);
        let (generation, was_suspect) = (log.generation(), log.is_suspect());
        let configuration = log.configuration();
        let url = format!("{url}/api/sync/pull?since={cursor}&limit={limit}&wait=1");
        let asked = self.http.get(url).bearer_auth(&self.token).send().await;
        let Ok(answer) = asked else { return false };
        let status = answer.status().as_u16();
        let Ok(text) = answer.text().await else { return false };
        let Ok(page) = serde_json::from_str::<Value>(&text) else {
            findings
                .broken(Kind::Different, format!("a page that is no JSON from server {server}"));
            return false;
        };
        match status {
            200 => {}
            410 => {
                findings.count("answers 410 to page readers", 1);
                let reason = &page["error"]["reason"];
                findings.note(&format!("page reader {}: 410 {reason} from {server}", self.name));
                if !self.may_be_refused(server, generation, reason) {
                    let text = format!("page reader {}, {}: {text}", self.name, self.position);
                    findings.broken(Kind::Refused, format!("server {server} to {text}"));
                }
                self.cursor = "0".into();
                self.position.clear();
                self.complete_by = None;
                self.accounts.clear();
                self.versions.clear();
                return false;
            }
            429 | 503 => return false,
            500 if was_suspect || log.is_suspect() => return false,
            _ => {
                findings.broken(Kind::Stuck, format!("server {server} answers {status}: {text}"));
                return false;
            }
        }
        if text.contains(HIDDEN) {
            findings.broken(Kind::Leaked, format!("server {server} sends what is hidden"));
        }
        if page["cursor"] != *self.cursor {
            // A server that is behind gives back what another one gave.
            self.given_by = (server, generation);
        }
        self.take(&page, (server, configuration), findings);
        findings.count("pages", 1);
        true
    }

    fn may_be_refused(&self, server: usize, generation: u64, reason: &Value) -> bool {
        let (cursor, reason) = (self.cursor.parse::<Cursor>(), ResyncReason::deserialize(reason));
        let (Ok(cursor), Ok(reason)) = (cursor, reason) else { return false };
        let is_own = self.given_by == (server, generation);
        history::may_refuse(&self.servers[server], &cursor, is_own, reason)
    }

    fn take(&mut self, page: &Value, by: (usize, u64), findings: &Findings) {
        let (none, server) = (Vec::new(), by.0);
        for change in page["changes"].as_array().unwrap_or(&none) {
            self.take_change(change, by, findings);
        }
        if page["complete"] == true {
            self.complete_by = Some(by);
            findings.count("complete pages", 1);
            self.check_bank(server, findings);
        }
        page["cursor"].as_str().unwrap_or_default().clone_into(&mut self.cursor);
    }

    fn take_change(&mut self, change: &Value, by: (usize, u64), findings: &Findings) {
        let server = by.0;
        let text = |name: &str| change[name].as_str().unwrap_or_default().to_owned();
        let (collection, id, position) = (text("collection"), text("mongoId"), text("position"));
        let from =
            format!("page reader {} at server {server}, {position}: {collection} {id}", self.name);
        // What the server follows no more, or again, is gained or lost with the positions that it has.
        let is_regranted = collection == NOT_FOLLOWED && self.complete_by != Some(by);
        if position < self.position && !is_regranted {
            let last = &self.position;
            findings.broken(Kind::Reordered, format!("{from} comes after {last}"));
        }
        self.position = position;
        findings.count("changes in pages", 1);
        if change["type"] == "delete" {
            self.accounts.remove(&id);
            return;
        }
        let payload = &change["payload"];
        let is_stand_in = payload.as_object().is_some_and(|payload| payload.len() == 1);
        // Of a row that a rebuilt log has lost; its delete follows.
        if is_stand_in && self.servers[server].history.was_damaged() {
            return;
        }
        let owner = payload["owner"].as_str();
        let is_owned = matches!(collection.as_str(), "accounts" | "items");
        if is_owned && self.owner.is_some() && owner != self.owner {
            findings.broken(Kind::Leaked, format!("{from} is {owner:?}'s"));
        }
        let version = payload["v"].as_i64().unwrap_or(0);
        if collection == "accounts" {
            let account =
                (owner.unwrap_or_default().to_owned(), payload["balance"].as_i64().unwrap_or(0));
            self.accounts.insert(id.clone(), account);
        }
        let last = self.versions.insert((collection, id), version);
        if last.is_some_and(|last| last > version) {
            findings.broken(Kind::Reordered, format!("{from}: version {version} after {last:?}"));
        }
    }

    fn check_bank(&self, server: usize, findings: &Findings) {
        let owners = self.owner.map_or_else(|| OWNERS.to_vec(), |owner| vec![owner]);
        for owner in owners {
            let own = self.accounts.values().filter(|(whose, _)| whose == owner);
            let (count, sum) = own.fold((0, 0), |sum, (_, balance)| (sum.0 + 1, sum.1 + balance));
            if (count, sum) != (ACCOUNTS_EACH, TOTAL) {
                findings.broken(
                    Kind::Torn,
                    format!(
                        "page reader {} at server {server}, {}: {owner} has {count} accounts with {sum}",
                        self.name, self.position
                    ),
                );
            }
        }
    }
}

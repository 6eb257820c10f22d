//! A bank behind a real socket: transfers between accounts, so that the total never changes. Serves
//! first copies, catch-ups and live pages by cursors of its own.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Query, State};
use axum::response::IntoResponse;

use super::page;

pub(crate) const ACCOUNTS: u64 = 600;
/// What each account holds at the start.
pub(crate) const EACH: i64 = 100;
/// A reader farther behind gets a catch-up, which is complete at its end only.
const LIVE_BACKLOG_MAX: u64 = 40;

#[derive(Clone)]
pub(crate) struct Bank {
    pub(crate) address: String,
    /// Commits so far; the first one opens all accounts.
    head: Arc<Mutex<u64>>,
    /// Transfers that happen with every request, up to so many in all.
    per_request: u64,
    transfers_max: u64,
    /// Changes of a page.
    page_changes: u64,
}

/// The accounts of a transfer.
fn transfer(commit: u64) -> (u64, u64) {
    let mixed = commit.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (from, step) = (mixed % ACCOUNTS, 1 + (mixed >> 32) % (ACCOUNTS - 1));
    (from, (from + step) % ACCOUNTS)
}

/// The balance of each account after a commit, and the commit that changed it last.
pub(crate) fn balances(commit: u64) -> Vec<(i64, u64)> {
    let mut all = vec![(EACH, 1); usize::try_from(ACCOUNTS).unwrap()];
    for commit in 2..=commit {
        let (from, to) = transfer(commit);
        for (account, by) in [(from, -1), (to, 1)] {
            let entry = &mut all[usize::try_from(account).unwrap()];
            *entry = (entry.0 + by, commit);
        }
    }
    all
}

impl Bank {
    pub(crate) async fn open(per_request: u64, transfers_max: u64, page_changes: u64) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bank = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            head: Arc::new(Mutex::new(1)),
            per_request,
            transfers_max,
            page_changes,
        };
        let router = Router::new()
            .route("/api/sync/pull", axum::routing::get(pull))
            .route(
                "/api/sync/status",
                axum::routing::get(|| async { json("{\"collections\":[\"accounts\"]}".into()) }),
            )
            .with_state(bank.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        bank
    }

    fn answer(&self, since: &str) -> String {
        let head = {
            let mut head = self.head.lock().unwrap();
            *head = (*head + self.per_request).min(self.transfers_max);
            *head
        };
        let parts: Vec<u64> = since.split('.').skip(1).map(|part| part.parse().unwrap()).collect();
        match since.split('.').next().unwrap() {
            "" => self.copy(head, 0),
            "copy" => self.copy(parts[0], parts[1]),
            "catch" => self.changes(parts[0], parts[1], true, head),
            _ if head - parts[0] > LIVE_BACKLOG_MAX => self.changes(head, parts[0], true, head),
            _ => self.changes(head, parts[0], false, head),
        }
    }

    /// Each account once, as it stood at `until`, by the commit that changed it last.
    fn copy(&self, until: u64, after: u64) -> String {
        let mut rows: Vec<(u64, usize, i64)> = balances(until)
            .into_iter()
            .enumerate()
            .map(|(account, (balance, at))| (at, account, balance))
            .collect();
        rows.sort_unstable();
        let (from, to) =
            (usize::try_from(after).unwrap(), usize::try_from(after + self.page_changes).unwrap());
        let page = &rows[from..to.min(rows.len())];
        let ends = to >= rows.len();
        let cursor = if ends { format!("at.{until}") } else { format!("copy.{until}.{to}") };
        text(page, &cursor, true, ends)
    }

    /// The changes of whole commits after `after`, at most through `until`.
    fn changes(&self, until: u64, after: u64, catch_up: bool, head: u64) -> String {
        let last = until.min(after + (self.page_changes / 2).max(1));
        let mut rows = Vec::new();
        for commit in after + 1..=last {
            let state = balances(commit);
            let (from, to) = transfer(commit);
            for account in [from, to].map(|account| usize::try_from(account).unwrap()) {
                rows.push((commit, account, state[account].0));
            }
        }
        let ends = !catch_up || last == until;
        let cursor = if ends { format!("at.{last}") } else { format!("catch.{until}.{last}") };
        text(&rows, &cursor, last < head, ends)
    }
}

fn text(rows: &[(u64, usize, i64)], cursor: &str, more: bool, complete: bool) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|(at, account, balance)| {
            (format!("account{account:04}"), *at, format!(r#"{{"balance":{balance}}}"#))
        })
        .collect();
    let rows: Vec<_> = rows
        .iter()
        .map(|(id, at, document)| ("accounts", id.as_str(), *at, Some(document.as_str())))
        .collect();
    page(&rows, cursor, more, complete)
}

fn json(body: String) -> impl IntoResponse {
    ([("content-type", "application/json")], body)
}

async fn pull(
    State(bank): State<Bank>,
    Query(query): Query<Vec<(String, String)>>,
) -> impl IntoResponse {
    let since = query.iter().find(|(name, _)| name == "since").map_or("", |(_, value)| value);
    let body = bank.answer(since);
    let idle = body.contains("\"count\":0");
    if idle && query.iter().any(|(name, _)| name == "wait") {
        // A held poll; the tests never wait for it to end.
        std::future::pending::<()>().await;
    }
    json(body)
}

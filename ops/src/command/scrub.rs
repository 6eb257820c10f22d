//! `scrub`: asks a running server, shows how it goes, says what was found.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;

use super::{Failure, Outcome};

/// Between two looks at how it goes.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Every document of the source is compared with the log, while both go on; what differs is appended to
/// the log as a change, so that clients get it in the ordinary way. What is in quarantine is tried again.
/// Exit 0: nothing differed; 1: something did and is mended; 4: the server or the source can't be reached, or
/// the scrub was cut off.
#[derive(Args, Debug)]
pub(super) struct Scrub {
    /// The server's listener for operators
    #[arg(long, env = "TIDEWIRE_ADMIN_LISTEN", default_value = "127.0.0.1:8788")]
    admin: String,
    /// Only these collections
    #[arg(long, value_delimiter = ',')]
    collections: Vec<String>,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    number: u64,
    state: String,
    collections: Vec<Collection>,
    trouble: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Collection {
    name: String,
    done: bool,
    documents: u64,
    documents_total: Option<u64>,
    upserted: u64,
    deleted: u64,
}

#[derive(Deserialize)]
struct Refused {
    error: tidewire_protocol::error::ErrorDetail,
}

impl Scrub {
    pub(super) async fn run(self) -> Result<Outcome> {
        let mut url = Url::parse(&format!("http://{}/scrub", self.admin))
            .map_err(|error| Failure::Usage(format!("--admin {}: {error}", self.admin)))?;
        let http = Client::builder().no_proxy().timeout(ANSWER_MAX).build()?;
        let mut ask = url.clone();
        if !self.collections.is_empty() {
            ask.query_pairs_mut().append_pair("collections", &self.collections.join(","));
        }
        let begun = told(http.post(ask)).await?;
        url.set_query(None);
        let bar = ProgressBar::new_spinner().with_style(style());
        let end = loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let (now, text) = told(http.get(url.clone())).await?;
            if now.number != begun.0.number {
                bail!("the server was started again meanwhile: ask once more");
            }
            bar.set_message(progress(&now));
            bar.tick();
            if now.state != "running" {
                bar.finish_and_clear();
                break (now, text);
            }
        };
        self.report(&end.0, &end.1)
    }

    fn report(&self, end: &Told, text: &str) -> Result<Outcome> {
        if self.json {
            println!("{text}");
        } else {
            for one in end.collections.iter().filter(|one| one.done) {
                let Collection { name, documents, upserted, deleted, .. } = one;
                let name = name.escape_debug();
                match upserted + deleted {
                    0 => println!("{name}: {documents} documents, as the source has them"),
                    _ => println!(
                        "{name}: {documents} documents; mended {upserted} that were missing or wrong, \
                         {deleted} that are gone"
                    ),
                }
            }
        }
        if end.state != "finished" {
            let why = end.trouble.as_deref().unwrap_or("the source could not be read to the end");
            return Err(Failure::Unreachable(format!("the scrub was cut off: {why}")).into());
        }
        let differed = end.collections.iter().any(|one| one.upserted + one.deleted > 0);
        Ok(if differed { Outcome::Different } else { Outcome::Done })
    }
}

/// What the server says, and the text of it.
async fn told(request: reqwest::RequestBuilder) -> Result<(Told, String)> {
    let answer = request.send().await.map_err(|error| {
        let what = "no server answers; is it running, and is --admin its admin_listen?";
        Failure::Unreachable(format!("{what} ({error})"))
    })?;
    let status = answer.status();
    let text = answer.text().await.context("the server's answer")?;
    if status.is_success() {
        let told = serde_json::from_str(&text).context("the server's answer")?;
        return Ok((told, text));
    }
    let said = match serde_json::from_str::<Refused>(&text) {
        Ok(refused) => format!("{}; {}", refused.error.message, refused.error.remedy),
        Err(_) => format!("the server answers {status}"),
    };
    Err(match status {
        StatusCode::BAD_REQUEST => Failure::Usage(said).into(),
        StatusCode::SERVICE_UNAVAILABLE => Failure::Unreachable(said).into(),
        _ => anyhow::anyhow!(said),
    })
}

fn progress(told: &Told) -> String {
    let done = told.collections.iter().filter(|one| one.done).count();
    let all = told.collections.len();
    let under_way = told.collections.iter().find(|one| !one.done && one.documents_total.is_some());
    match (under_way, &told.trouble) {
        (Some(one), _) => format!(
            "{} of {all}: {}, {} of about {} documents",
            done + 1,
            one.name.escape_debug(),
            one.documents,
            one.documents_total.unwrap_or_default().max(one.documents),
        ),
        (None, Some(trouble)) => format!("{done} of {all}; waiting: {trouble}"),
        (None, None) => format!("{done} of {all}"),
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg}").expect("a template that is right")
}

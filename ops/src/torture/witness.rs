//! The witness: the source's own change stream through the bare driver, with the source's own images of
//! documents. No fault is aimed at it, and what it is told goes to the judge.

use std::sync::Arc;
use std::time::Duration;

use bson::raw::RawDocument;
use bson::{RawDocumentBuf, doc};
use mongodb::change_stream::event::ResumeToken;
use mongodb::error::Result;
use mongodb::options::{ChangeStreamOptions, FullDocumentType};

use super::findings::Kind;
use super::judge::Judge;
use super::stage::{COLLECTIONS, PLAIN, Site};
use super::told::{Told, content, key};
use crate::mongod::cluster_time;

/// Nothing heard for this long: the stream is opened again. The driver alone waits for a stopped
/// primary much longer.
const SILENCE_MAX: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(200);

/// Tells the judge every change of the plain collections until the checks are over.
pub(super) async fn follow(site: Site, judge: Arc<Judge>) {
    let mut after = None;
    // What is behind the first opening is never told: it is opened before anything is written.
    while !site.checks.is_cancelled() {
        let followed = follow_once(&site, &judge, &mut after);
        let ended = site.checks.run_until_cancelled(followed).await;
        if let Some(Err(error)) = ended {
            judge.findings().note(&format!("the witness opens its stream again: {error}"));
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn follow_once(site: &Site, judge: &Judge, after: &mut Option<ResumeToken>) -> Result<()> {
    let pipeline = [doc! { "$match": { "ns.coll": { "$in": COLLECTIONS[..PLAIN].to_vec() } } }];
    let mut options = ChangeStreamOptions::default();
    options.full_document = Some(FullDocumentType::WhenAvailable);
    options.max_await_time = Some(Duration::from_millis(500));
    options.start_after.clone_from(after);
    let stream = site.database.watch().pipeline(pipeline).with_options(options);
    let mut stream = stream.await?.with_type::<RawDocumentBuf>();
    judge.witness_is_there();
    loop {
        // `next_if_any` comes back on every answer of the source, empty ones too.
        let Ok(next) = tokio::time::timeout(SILENCE_MAX, stream.next_if_any()).await else {
            return Err(mongodb::error::Error::custom("silence"));
        };
        let event = next?;
        if let Some(event) = &event {
            match decode(event) {
                Some((time, told)) => judge.witnessed(time, told),
                None => judge.findings().broken(
                    Kind::Stuck,
                    format!("the witness can't read an event of {:?}", event.get("operationType")),
                ),
            }
        } else if !stream.is_alive() {
            return Err(mongodb::error::Error::custom("closed"));
        }
        *after = stream.resume_token();
    }
}

fn decode(event: &RawDocument) -> Option<(u64, Told)> {
    let time = cluster_time(event.get_timestamp("clusterTime").ok()?);
    let name = event.get_document("ns").ok()?.get_str("coll").ok()?;
    let collection = COLLECTIONS.iter().position(|known| *known == name)?;
    let key = key(event.get_document("documentKey").ok()?)?;
    let is_delete = match event.get_str("operationType").ok()? {
        "insert" | "update" | "replace" => false,
        "delete" => true,
        _ => return None,
    };
    let document = event.get_document("fullDocument").ok();
    let content = document.filter(|_| !is_delete).map_or(0, content);
    Some((time, Told { collection, key, is_delete, content }))
}

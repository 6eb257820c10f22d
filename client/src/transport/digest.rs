//! Digests, and the documents of ranges that differ: what a replica is compared with.

use std::borrow::Cow;
use std::time::Duration;

use tidewire_protocol::Position;
use tidewire_protocol::digest::{CollectionDigest, DigestPage};

use super::Failure;
use super::pull::{ANSWER_BYTES_MAX, HttpPull, json_body};
use crate::page::{Asked, Page};
use crate::token::Token;

/// Parts of one answer: far more than any log has.
pub(crate) const PARTS_MAX: usize = 100_000;
/// Time for a part to be begun, beyond a pull's: they are made one at a time, for all clients.
const TURN_MAX: Duration = Duration::from_secs(60);

/// A server's digests.
#[derive(Clone, Debug)]
pub struct Digests(pub(super) HttpPull);

/// Which ranges of a collection, as of which cursor.
#[derive(Clone, Debug)]
pub(crate) struct RangesOf {
    pub(crate) collection: String,
    /// Complete.
    pub(crate) at: String,
    pub(crate) depth: u8,
    /// Ascending; empty where a digest is asked for, which tells all.
    pub(crate) ranges: Vec<u32>,
    /// The last part's `next`.
    pub(crate) from: Option<String>,
    /// Where the cursor stands, once the server has said it.
    pub(crate) position: Option<Position>,
}

impl Digests {
    /// What a collection must add up to; `tell` is told how many documents are added up.
    pub(crate) async fn digest(
        &self,
        of: &mut RangesOf,
        token: &Token,
        mut tell: impl FnMut(u64),
    ) -> Result<CollectionDigest, Failure> {
        let mut digest = CollectionDigest::new(of.depth);
        for _ in 0..PARTS_MAX {
            let body = self.ask("digest", of, token).await?;
            let part: DigestPage<'_> = serde_json::from_slice(&body)
                .map_err(|error| Failure::Garbage(format!("a digest: {error}")))?;
            let at = *of.position.get_or_insert(part.position);
            let is_of_it = part.success && part.collection == of.collection && part.position == at;
            if !is_of_it || !digest.add_part(part.depth, &part.ranges) {
                return Err(Failure::Garbage("a digest that is cut in another way".to_owned()));
            }
            tell(digest.total().count);
            of.from = part.next.map(Cow::into_owned);
            if of.from.is_none() {
                return Ok(digest);
            }
        }
        Err(Failure::Garbage("a digest without an end".to_owned()))
    }

    /// The documents of some ranges: a part, and the next one's `from`.
    pub(crate) async fn range(
        &self,
        of: &RangesOf,
        token: &Token,
    ) -> Result<(Page, Option<String>), Failure> {
        let body = self.ask("range", of, token).await?;
        let text = String::from_utf8(body)
            .map_err(|_| Failure::Garbage("an answer that is not UTF-8".to_owned()))?;
        let asked = Asked {
            collection: &of.collection,
            depth: of.depth,
            ranges: &of.ranges,
            position: of.position.unwrap_or(Position::ZERO),
        };
        Page::decode_range(text, &asked).map_err(|error| Failure::Garbage(error.to_string()))
    }

    async fn ask(&self, route: &str, of: &RangesOf, token: &Token) -> Result<Vec<u8>, Failure> {
        let mut url = self.0.url(route);
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("collection", &of.collection).append_pair("at", &of.at);
            query.append_pair("depth", &of.depth.to_string());
            if !of.ranges.is_empty() {
                let ranges: Vec<String> = of.ranges.iter().map(u32::to_string).collect();
                query.append_pair("ranges", &ranges.join(","));
            }
            if let Some(from) = &of.from {
                query.append_pair("from", from);
            }
        }
        json_body(self.0.get(url, token, TURN_MAX).await?, ANSWER_BYTES_MAX).await
    }
}

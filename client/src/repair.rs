//! Repair instead of resync: a replica's digests are compared with its server's, and the rows of the ranges
//! that differ are mended. The replica goes on being followed meanwhile: a row that changes while it is
//! compared is right by that, and is left alone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::page::Page;
use crate::replica::{Fix, Replica, ReplicaError, Sums, now_ms, rfc3339};
use crate::store::Command;
use crate::token::Token;
use crate::transport::Failure;
use crate::transport::digest::{Digests, RangesOf};

/// Ranges that are asked for at a time.
const RANGES_MAX: usize = 128;
/// Wrong rows that are held in memory, in bytes; with more a new copy is cheaper.
const FIXES_BYTES_MAX: usize = 64 << 20;
/// Parts of one answer.
const PARTS_MAX: usize = 100_000;

/// What a comparison with the server found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// When it ended, by this machine's clock: RFC 3339, UTC, milliseconds.
    pub timestamp: String,
    /// Collections that were compared.
    pub collections: u64,
    /// Rows that were not as they should be.
    pub differences: u64,
    /// Those of them that were mended: the others have changed meanwhile, and are right by that.
    pub mended: u64,
}

/// Why a comparison came to no end.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The server does not answer, or refuses.
    #[error(transparent)]
    Server(#[from] Failure),
    /// The replica can't be read or mended.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// There is no complete copy to compare, or it was replaced meanwhile.
    #[error("there is nothing to compare while everything is copied; try again later")]
    Copying,
    /// So much differs that a new copy is cheaper.
    #[error("too much differs to be mended row by row; copy everything anew: tidewire rebuild")]
    TooMuch,
    /// The client has ended, or compares already.
    #[error("the client has ended, or is comparing already")]
    Unavailable,
}

/// One comparison.
pub(crate) struct Comparison {
    pub(crate) server: Digests,
    pub(crate) token: Token,
    pub(crate) replica: PathBuf,
    pub(crate) store: mpsc::Sender<Command>,
}

impl Comparison {
    pub(crate) async fn run(self) -> Result<Verified, VerifyError> {
        let (begun, begins) = oneshot::channel();
        self.store.send(Command::BeginComparison(begun)).await.ok();
        begins.await.map_err(|_| VerifyError::Unavailable)?;
        let sums = self.read(|replica| replica.sums()).await?;
        let (cursor, sums) = sums.ok_or(VerifyError::Copying)?;
        let mut fixes = Vec::new();
        let collections = sums.len() as u64;
        for ours in sums {
            self.compare(&cursor, ours, &mut fixes).await?;
        }
        let differences = fixes.len() as u64;
        for fix in &fixes {
            tracing::warn!(
                collection = fix.collection,
                id = fix.id,
                "a row was not as it should be"
            );
        }
        let (mended, mends) = oneshot::channel();
        self.store.send(Command::Mend(fixes, mended)).await.ok();
        let mended = mends.await.map_err(|_| VerifyError::Unavailable)??;
        let mended = mended.ok_or(VerifyError::Copying)?;
        Ok(Verified { timestamp: rfc3339(now_ms()), collections, differences, mended })
    }

    async fn compare(
        &self,
        cursor: &str,
        ours: Sums,
        fixes: &mut Vec<Fix>,
    ) -> Result<(), VerifyError> {
        let Sums { collection, depth, digest } = ours;
        let mut of =
            RangesOf { collection, at: cursor.to_owned(), depth, ranges: Vec::new(), from: None };
        let theirs = self.server.digest(of.clone(), &self.token).await?;
        let differing = digest.differing(&theirs);
        for ranges in differing.chunks(RANGES_MAX) {
            (of.ranges, of.from) = (ranges.to_vec(), None);
            let (mut right, mut bytes) = (Vec::new(), 0);
            for _ in 0..PARTS_MAX {
                let (page, next) = self.server.range(&of, &self.token).await?;
                bytes += page.bytes();
                if bytes > FIXES_BYTES_MAX {
                    return Err(VerifyError::TooMuch);
                }
                right.push(page);
                of.from = next;
                if of.from.is_none() {
                    break;
                }
            }
            let found = self.fixes(&of, right).await?;
            let held: usize = found.iter().map(bytes_of).sum();
            fixes.extend(found);
            if held + fixes.iter().map(bytes_of).sum::<usize>() > FIXES_BYTES_MAX {
                return Err(VerifyError::TooMuch);
            }
        }
        Ok(())
    }

    async fn fixes(&self, of: &RangesOf, right: Vec<Page>) -> Result<Vec<Fix>, VerifyError> {
        let of = of.clone();
        self.read(move |replica| replica.fixes(&of.collection, of.depth, &of.ranges, &right)).await
    }

    /// Reads the replica as any app does, away from the runtime's threads.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Replica) -> Result<T, ReplicaError> + Send + 'static,
    ) -> Result<T, VerifyError> {
        let path = self.replica.clone();
        let done = tokio::task::spawn_blocking(move || read(&mut Replica::open(path)?)).await;
        Ok(done.map_err(|_| VerifyError::Unavailable)??)
    }
}

fn bytes_of(fix: &Fix) -> usize {
    fix.id.len() + fix.row.as_ref().map_or(0, |(document, ..)| document.len())
}

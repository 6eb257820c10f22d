//! Repair instead of resync: a replica's digests are compared with its server's, and the rows of the ranges
//! that differ are mended. The replica goes on being followed meanwhile: a row that changes while it is
//! compared is right by that, and is left alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::page::Page;
use crate::replica::{Fix, Replica, ReplicaError, Sums, now_ms, rfc3339};
use crate::status::Status;
use crate::store::Command;
use crate::token::Token;
use crate::transport::Failure;
use crate::transport::digest::{Digests, PARTS_MAX, RangesOf};

/// Ranges that are asked for at a time.
const RANGES_MAX: usize = 128;
/// Wrong rows that are held in memory, in bytes; with more a new copy is cheaper.
const FIXES_BYTES_MAX: usize = 64 << 20;

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
    /// The client has ended, got another token, or compares already.
    #[error("the client has ended, got another token, or is comparing already")]
    Unavailable,
}

/// One comparison.
pub(crate) struct Comparison {
    pub(crate) server: Digests,
    pub(crate) token: Token,
    pub(crate) replica: PathBuf,
    pub(crate) store: mpsc::Sender<Command>,
    /// Where it says how far it is.
    pub(crate) status: watch::Sender<Status>,
    pub(crate) given_up: GivenUp,
}

/// Set when it goes: what reads the replica for a comparison ends soon after, and holds nothing of it.
#[derive(Debug, Default)]
pub(crate) struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Comparison {
    pub(crate) async fn run(self) -> Result<Verified, VerifyError> {
        let (begun, begins) = oneshot::channel();
        self.store.send(Command::BeginComparison(begun)).await.ok();
        begins.await.map_err(|_| VerifyError::Unavailable)?;
        let mut ours = self.progress(0);
        let sums = self.read(move |replica| replica.sums(|done, all| ours.tell(done, all))).await?;
        let (cursor, sums) = sums.ok_or(VerifyError::Copying)?;
        let mut fixes = Vec::new();
        let collections = sums.len() as u64;
        let all = sums.iter().map(|sums| sums.digest.total().count).sum();
        let (mut theirs, mut before) = (self.progress(1), 0);
        for ours in sums {
            let rows = ours.digest.total().count;
            self.compare(&cursor, ours, &mut fixes, |done| theirs.tell(before + done, all)).await?;
            before += rows;
        }
        let differences = fixes.len() as u64;
        for fix in &fixes {
            tracing::info!(
                collection = fix.collection,
                id = fix.id,
                held = fix.held,
                right = fix.row.as_ref().map(|(_, _, position)| position),
                "a row is not as it should be, or has changed meanwhile"
            );
        }
        let (mended, mends) = oneshot::channel();
        self.store.send(Command::Mend(fixes, mended)).await.ok();
        let mended = mends.await.map_err(|_| VerifyError::Unavailable)??;
        let mended = mended.ok_or(VerifyError::Copying)?;
        Ok(Verified { timestamp: rfc3339(now_ms()), collections, differences, mended })
    }

    fn progress(&self, half: u64) -> Progress {
        let given_up = Arc::clone(&self.given_up.0);
        Progress { status: self.status.clone(), given_up, half, shown: None }
    }

    async fn compare(
        &self,
        cursor: &str,
        ours: Sums,
        fixes: &mut Vec<Fix>,
        tell: impl FnMut(u64),
    ) -> Result<(), VerifyError> {
        let Sums { collection, depth, digest } = ours;
        let mut of = RangesOf {
            collection,
            at: cursor.to_owned(),
            depth,
            ranges: Vec::new(),
            from: None,
            position: None,
        };
        let theirs = self.server.digest(&mut of, &self.token, tell).await?;
        let differing = digest.differing(&theirs);
        for ranges in differing.chunks(RANGES_MAX) {
            (of.ranges, of.from) = (ranges.to_vec(), None);
            let (mut right, mut bytes) = (Vec::new(), 0);
            loop {
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
                if right.len() >= PARTS_MAX {
                    let endless = "ranges without an end".to_owned();
                    return Err(Failure::Garbage(endless).into());
                }
            }
            fixes.extend(self.fixes(&of, right).await?);
            if fixes.iter().map(bytes_of).sum::<usize>() > FIXES_BYTES_MAX {
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
        let (path, given_up) = (self.replica.clone(), Arc::clone(&self.given_up.0));
        let read = move || {
            let mut replica = Replica::open(path)?;
            replica.until(given_up)?;
            read(&mut replica)
        };
        let done = tokio::task::spawn_blocking(read).await;
        Ok(done.map_err(|_| VerifyError::Unavailable)??)
    }
}

/// How far a comparison is: this machine's half, then the server's.
struct Progress {
    status: watch::Sender<Status>,
    given_up: Arc<AtomicBool>,
    half: u64,
    /// Percent.
    shown: Option<u8>,
}

impl Progress {
    /// So many rows of so many are added up.
    fn tell(&mut self, done: u64, all: u64) {
        let share = done.min(all) * 50 / all.max(1);
        let percent = u8::try_from(50 * self.half + share).unwrap_or(100);
        if self.shown.replace(percent) != Some(percent) {
            // Whoever gives it up says after that that nothing is compared.
            self.status.send_if_modified(|status| {
                let goes_on = !self.given_up.load(Ordering::Relaxed);
                if goes_on {
                    status.comparing = Some(percent);
                }
                goes_on
            });
        }
    }
}

fn bytes_of(fix: &Fix) -> usize {
    fix.id.len() + fix.row.as_ref().map_or(0, |(document, ..)| document.len())
}

//! Capture: follows the source's change stream into the log, exactly and without end, and copies what
//! the stream can't tell.
//!
//! ```text
//! source (task) ── raw batches ──► tail (thread, owns the writer) ──► log
//! copier (task) ── raw chunks  ──►   │ patch · exact reads · compare
//!       ▲───────── orders, time ─────┘
//! ```
//!
//! A run of the three starts from what the log says and ends at the first failure; [`run`] then decides
//! by [`crate::retry`] where the next one starts. So there is no state to repair but the log's; what a run
//! leaves beside it is which collections are still to be checked.

mod apply;
mod aside;
mod commits;
mod connect;
mod copier;
mod ddl;
mod decode;
mod entries;
mod failure;
mod giants;
mod oplog;
mod pace;
pub mod patch;
mod primary;
mod quarantine;
mod reads;
mod reconcile;
mod reply;
mod ruling;
mod source;
mod tail;
mod walk;

use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bson::oid::ObjectId;
use mongodb::{Client, Database};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use connect::{CheckError, CheckedSource, check_source, source_identity};
pub use walk::{CheckOrder, CheckOrders, CheckReport, CheckSender, Checked, checks};

use crate::access::channels::RuleSet;
use crate::config::SourceConfig;
use crate::log::{CopyState, LogError, TailState, Writer};
use crate::retry::{self, Attempts, Failure, Step};
use crate::status::{SourcePhase, StatusSender};
use copier::Copier;
use oplog::{Guard, Stands};
use pace::Pace;
use primary::Primary;
use reads::Reads;
use source::{Ended, SILENCE_MAX, Source, StartAt};
use tail::{Back, Tail, TailParts};
use walk::Owed;

/// Failures in a row after which the driver's client is made anew: it may hold on to a node that is gone.
const CLIENT_FAILURES_MAX: u32 = 3;
/// How long the driver may take to end its connections.
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);
/// The tail finishes what it has when the stream ended, however long that takes (a dropped collection of
/// millions of documents is one commit); it is said this often.
const FINISH_TOLD_EVERY: Duration = Duration::from_secs(60);

/// What capture needs.
#[derive(Debug)]
pub struct CaptureParts {
    /// The source.
    pub config: SourceConfig,
    /// What is followed, and who may see it.
    pub rules: Arc<RuleSet>,
    /// The log.
    pub writer: Writer,
    /// Where capture says how it is.
    pub status: StatusSender,
    /// Where checks are asked for, see [`checks`].
    pub checks: CheckOrders,
    /// Ends it.
    pub shutdown: CancellationToken,
}

/// Capture can't go on without a person.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The configuration of the source can't be used.
    #[error(transparent)]
    Source(#[from] CheckError),
    /// The log's file is damaged.
    #[error("{0}")]
    LogDamaged(String),
    /// The thread that writes the log ended without giving the log back.
    #[error("the tail ended unexpectedly; the log is whole up to its head, restart the server")]
    TailLost,
}

/// Follows the source until `shutdown`. What fails is retried for ever, with bounded waits; the log is
/// served meanwhile.
///
/// # Errors
/// [`CaptureError`], when only a person can help.
pub async fn run(parts: CaptureParts) -> Result<(), CaptureError> {
    let status = parts.status.clone();
    let ended = follow(parts).await;
    if let Err(error) = &ended {
        status.send_modify(|status| {
            status.phase = SourcePhase::Failed;
            status.trouble = Some(error.to_string());
        });
    }
    ended
}

async fn follow(parts: CaptureParts) -> Result<(), CaptureError> {
    let CaptureParts { config, rules, writer, status, checks, shutdown } = parts;
    let mut attempts = Attempts::default();
    let mut step = Step::Resume;
    let oplog_refused = Arc::new(AtomicBool::new(false));
    let (process, pace) = (Arc::default(), Arc::default());
    let Some(mut writer) = take_up(writer, &rules, &status, &shutdown).await? else {
        return Ok(());
    };
    let first = first_connection(&config, &status, &mut attempts);
    let Some(connected) = shutdown.run_until_cancelled(first).await else { return Ok(()) };
    let (mut client, mut primary) = connected?;
    let (mut is_writable, mut owed) = (true, Owed::new());
    while !shutdown.is_cancelled() {
        if !is_writable && let Err(error) = touch(&mut writer) {
            let (_, wait) = retry::next_step(Failure::Store, &mut attempts);
            tracing::warn!(%error, "the log still can't be written");
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(retry::jittered(wait)) => {}
            }
            continue;
        }
        let run = Run {
            client: client.clone(),
            database: client.database(&config.database),
            primary: primary.clone(),
            rules: Arc::clone(&rules),
            status: status.clone(),
            checks: checks.clone(),
            oplog_refused: Arc::clone(&oplog_refused),
            process: Arc::clone(&process),
            patience: attempts.patience(),
            pace: Arc::clone(&pace),
            shutdown: shutdown.clone(),
        };
        let before = writer.tail().clone();
        let ended;
        Back { writer, owed, ended } = run.follow(writer, owed, step).await?;
        is_writable = true;
        let Err(ended) = ended else { continue };
        if ended.failure == Failure::LogDamaged {
            return Err(CaptureError::LogDamaged(ended.message));
        }
        is_writable = ended.failure != Failure::Store;
        // A stream that began anew and told nothing has no token yet: that is no success.
        if writer.tail().resume_token.is_some() && *writer.tail() != before {
            attempts.succeeded();
        }
        let (next, wait) = retry::next_step(ended.failure, &mut attempts);
        // What was to be compared stays so until that has begun, whatever fails before.
        let is_owed = step == Step::Reconcile && *writer.tail() == before;
        step = if is_owed { Step::Reconcile } else { next };
        tell(&status, &ended, &attempts);
        if ended.failure == Failure::Silent || attempts.in_a_row() % CLIENT_FAILURES_MAX == 0 {
            match connect(&config).await {
                Ok(made) => (client, primary) = made,
                Err(error) => tracing::warn!(%error, "the old connections are kept"),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(retry::jittered(wait)) => {}
        }
    }
    // The driver still ends cursors in the background, and panics where its runtime goes before that.
    let _ = timeout(SHUTDOWN_MAX, client.shutdown().into_future()).await;
    Ok(())
}

/// Connections to a source whose very address may be unknown for now (DNS that is away).
async fn first_connection(
    config: &SourceConfig,
    status: &StatusSender,
    attempts: &mut Attempts,
) -> Result<(Client, Primary), CaptureError> {
    loop {
        let error = match connect(config).await {
            Err(CaptureError::Source(error @ CheckError::Unreachable(_))) => error,
            connected => {
                attempts.succeeded();
                return connected;
            }
        };
        let (_, wait) = retry::next_step(Failure::Interrupted, attempts);
        tell(status, &Ended::new(Failure::Interrupted, error.to_string()), attempts);
        tokio::time::sleep(retry::jittered(wait)).await;
    }
}

/// Makes the log follow what the rules name; until it does, nothing of it is served. `None`: shutdown.
async fn take_up(
    writer: Writer,
    rules: &Arc<RuleSet>,
    status: &StatusSender,
    shutdown: &CancellationToken,
) -> Result<Option<Writer>, CaptureError> {
    let mut writer = Some(writer);
    while let Some(mut with) = writer.take() {
        let rules = Arc::clone(rules);
        let work = move || {
            let taken_up = ruling::take_up(&mut with, &rules);
            (with, taken_up)
        };
        let (back, taken_up) =
            tokio::task::spawn_blocking(work).await.map_err(|_| CaptureError::TailLost)?;
        let Err(error) = taken_up else {
            let whole = back.followed().unwrap_or_default().iter().any(|f| f.whole);
            status.send_modify(|status| status.whole = whole);
            return Ok(Some(back));
        };
        let ended = Ended::from(error);
        if ended.failure == Failure::LogDamaged {
            return Err(CaptureError::LogDamaged(ended.message));
        }
        tracing::error!(error = %ended.message, "the configuration can't be taken up for now");
        status.send_modify(|status| status.trouble = Some(ended.message.clone()));
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(retry::BACKOFF_SLOW) => writer = Some(back),
        }
    }
    Ok(None)
}

/// Writes what is there already, to see whether the disk takes it. Blocks, as a page does.
fn touch(writer: &mut Writer) -> Result<(), LogError> {
    // The last one may have failed, on a disk that could not be read either.
    writer.abort()?;
    let tail = writer.tail().clone();
    let written = writer.set_tail(tail).and_then(|()| writer.commit());
    if written.is_err() {
        writer.abort()?;
    }
    written.map(|_| ())
}

async fn connect(config: &SourceConfig) -> Result<(Client, Primary), CaptureError> {
    let mut options = connect::client_options(config).await?;
    let primary = Primary::watched(&mut options);
    let client = Client::with_options(options);
    let client = client.map_err(|error| CheckError::Uri(failure::shown(&error)))?;
    Ok((client, primary))
}

fn tell(status: &StatusSender, ended: &Ended, attempts: &Attempts) {
    let Ended { failure, message } = ended;
    match failure {
        Failure::Closed => return tracing::info!(reason = %message, "the stream is opened again"),
        Failure::SourceBehind if attempts.in_a_row() > 1 => {}
        Failure::Store | Failure::SourceBehind => {
            tracing::error!(?failure, error = %message, "capture stopped for now")
        }
        _ => tracing::warn!(?failure, error = %message, "the stream ended; going on"),
    }
    if *failure == Failure::Store {
        status.send_modify(|status| {
            status.trouble = Some(message.clone());
            status.phase = SourcePhase::Unwritable;
        });
    } else if attempts.in_a_row() > 1 {
        // One lost connection is no news to anybody but the log.
        status.send_modify(|status| {
            status.trouble = Some(message.clone());
            match failure {
                Failure::AccessRefused => status.phase = SourcePhase::Refused,
                Failure::Interrupted | Failure::Silent | Failure::SourceBehind => {
                    status.phase = SourcePhase::Unreachable;
                }
                _ => {}
            }
        });
    }
}

const RESTORED: &str = "the source does not have what the log has of it: it was restored from an older backup; \
     everything is compared with it as soon as its time has passed the log's";

const UNPROVEN: &str = "without the right to read local.oplog.rs it can't be seen whether the source was restored from \
     a backup while nobody looked: all of it is compared; grant the user `read` on `local` to be spared that";

/// One run of source, copier and tail.
struct Run {
    client: Client,
    database: Database,
    primary: Primary,
    rules: Arc<RuleSet>,
    status: StatusSender,
    checks: CheckOrders,
    oplog_refused: Arc<AtomicBool>,
    /// The primary's process that was asked last, where it says which.
    process: Arc<Mutex<Option<Option<ObjectId>>>>,
    /// How many times as long as usual the source may take for an answer.
    patience: u32,
    pace: Arc<Pace>,
    shutdown: CancellationToken,
}

type Outcome = Result<(), Ended>;

impl Run {
    /// Follows the stream until it fails or `shutdown`. The writer comes back with nothing open.
    async fn follow(
        self,
        mut writer: Writer,
        owed: Owed,
        step: Step,
    ) -> Result<Back, CaptureError> {
        let silence_max = SILENCE_MAX * self.patience;
        let mut replaced = pin!(self.primary.clone().replaced());
        let start = tokio::select! {
            start = self.start(&mut writer, step) => start?,
            () = &mut replaced => Err(another_primary()),
        };
        let (start, unproven) = match start {
            Ok(start) => start,
            Err(ended) => return Ok(Back { writer, owed, ended: Err(ended) }),
        };
        tracing::info!(high_water = writer.tail().high_water, "the stream is opened");
        let (batches, batches_out) = mpsc::channel(source::BATCHES_MAX);
        let (chunks, chunks_out) = mpsc::channel(copier::CHUNKS_MAX);
        let (orders, orders_out) = watch::channel(None);
        let (high_water, high_water_out) = watch::channel(writer.tail().high_water);
        let runtime = Handle::current();
        let tail = TailParts {
            writer,
            database_name: self.database.name().to_owned(),
            rules: Arc::clone(&self.rules),
            reads: Reads { database: self.database.clone(), runtime: runtime.clone(), silence_max },
            status: self.status.clone(),
            orders,
            high_water,
            checks: self.checks.clone(),
            owed,
            // A token that the source refused, and a time that it took: nobody knows what that was.
            check_all: unproven || step == Step::ResumeFromTime,
            from_time: matches!(start, StartAt::Time(_)),
            runtime,
        };
        let mut finished = spawn_tail(tail, batches_out, chunks_out)?;
        let copier = Copier {
            database: self.database.clone(),
            orders: orders_out,
            high_water: high_water_out.clone(),
            chunks,
            patience: self.patience,
            pace: self.pace,
        };
        let guard = Guard {
            client: self.client.clone(),
            high_water: high_water_out,
            status: self.status,
            refused: self.oplog_refused,
        };
        let collections = self.rules.iter().map(|rules| rules.name().to_owned()).collect();
        let in_parts = step == Step::ResumeInParts;
        let source = Source {
            client: self.client,
            database: self.database,
            collections,
            in_parts,
            silence_max,
        };
        let ended = tokio::select! {
            ended = both(&source, start, batches, copier, self.shutdown) => ended,
            ended = guard.watch() => Err(ended),
            () = replaced => Err(another_primary()),
            back = &mut finished => return back.map_err(|_| CaptureError::TailLost),
        };
        // The ends are closed: the tail commits what is whole and gives the log back.
        let back = loop {
            match timeout(FINISH_TOLD_EVERY, &mut finished).await {
                Ok(back) => break back.map_err(|_| CaptureError::TailLost)?,
                Err(_) => tracing::warn!("the tail still works on what it has"),
            }
        };
        Ok(Back { ended: back.ended.and(ended), ..back })
    }

    /// Where the stream starts; what the log must know about it is committed before. True: the log may be
    /// of another history than the source's, which is found by comparing all of it.
    async fn start(
        &self,
        writer: &mut Writer,
        step: Step,
    ) -> Result<Result<(StartAt, bool), Ended>, CaptureError> {
        let asked = timeout(SILENCE_MAX, connect::times(&self.database)).await;
        let times = match asked {
            Ok(Ok(times)) => times,
            Ok(Err(error)) => return Ok(Err(error.into())),
            Err(_) => return Ok(Err(Ended::new(Failure::Silent, "the source does not answer"))),
        };
        let stored = writer.tail().clone();
        let mut unproven = false;
        if stored.high_water > times.operation {
            // Kept in the log, so that a restart does not forget it.
            if let Err(error) = begin_anew(writer, &self.rules, stored.high_water) {
                return Ok(Err(error.into()));
            }
            return Ok(Err(Ended::new(Failure::SourceBehind, RESTORED)));
        }
        let silence_max = SILENCE_MAX * self.patience;
        let step = if step == Step::Reconcile || stored.high_water == 0 {
            step
        } else {
            match oplog::entry_at(&self.client, stored.high_water, silence_max).await {
                Ok(Stands::Strange) => {
                    tracing::error!(high_water = stored.high_water, "{RESTORED}");
                    Step::Reconcile
                }
                Ok(Stands::Forgotten) => {
                    let high_water = stored.high_water;
                    tracing::warn!(
                        high_water,
                        "the oplog does not reach back to where the log ends"
                    );
                    Step::Reconcile
                }
                Ok(Stands::Refused) if self.is_another_process(times.process) => {
                    tracing::warn!("{UNPROVEN}");
                    unproven = true;
                    step
                }
                Ok(Stands::Known | Stands::Untold | Stands::Refused) => step,
                Err(ended) => return Ok(Err(ended)),
            }
        };
        let start = match (step, stored) {
            (Step::Resume | Step::ResumeInParts, TailState { resume_token: Some(token), .. }) => {
                Ok(StartAt::Token(token))
            }
            (
                Step::Resume | Step::ResumeInParts | Step::ResumeFromTime,
                TailState { high_water, .. },
            ) if high_water > 0 => Ok(StartAt::Time(high_water)),
            // The first start, or what lies between can't be had as changes.
            _ => {
                self.is_another_process(times.process);
                let begun = begin_anew(writer, &self.rules, times.majority);
                begun.map(StartAt::Time).map_err(Ended::from)
            }
        };
        Ok(start.map(|start| (start, unproven)))
    }

    /// Whether the primary is another process than when this was asked last: in between the source may have
    /// been restored.
    fn is_another_process(&self, process: Option<ObjectId>) -> bool {
        let mut last = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        last.replace(process) != Some(process)
    }
}

fn another_primary() -> Ended {
    Ended::new(Failure::Interrupted, "another node has become the primary")
}

/// The log starts, or goes on after a gap, at `time`: every collection is to be compared with the source.
/// In one commit, so that a crash finds either all of it or none. Gives the time, which is never before
/// what the log has.
fn begin_anew(writer: &mut Writer, rules: &RuleSet, time: u64) -> Result<u64, LogError> {
    for rules in rules.iter() {
        let id = writer.collection(rules.name())?;
        let copy = CopyState { rules: rules.fingerprint(), ..CopyState::default() };
        writer.set_copy_state(id, copy)?;
    }
    let from = writer.tail().high_water;
    let time = time.max(from);
    tracing::info!(from, through = time, "copies begin");
    writer.set_tail(TailState { resume_token: None, high_water: time })?;
    writer.commit()?;
    Ok(time)
}

/// Reads the stream and the copies until one of them ends.
async fn both(
    source: &Source,
    start: StartAt,
    batches: mpsc::Sender<reply::Batch>,
    copier: Copier,
    shutdown: CancellationToken,
) -> Outcome {
    let followed = source.follow(start, batches, shutdown);
    tokio::pin!(followed);
    tokio::select! {
        ended = &mut followed => ended,
        copied = copier.run() => match copied {
            // Nobody orders copies any more: the tail is ending, and says why.
            Ok(()) => followed.await,
            Err(ended) => Err(ended),
        },
    }
}

type Finished = oneshot::Receiver<Back>;

fn spawn_tail(
    parts: TailParts,
    batches: mpsc::Receiver<reply::Batch>,
    chunks: mpsc::Receiver<copier::Chunk>,
) -> Result<Finished, CaptureError> {
    let (done, finished) = oneshot::channel();
    let runtime = parts.runtime.clone();
    let work = move || {
        // What the driver drops here ends its business on the runtime.
        let _entered = runtime.enter();
        let back = Tail::run(parts, batches, chunks);
        // Nobody waits any more when capture itself was dropped.
        let _ = done.send(back);
    };
    let spawned = std::thread::Builder::new().name("tail".to_owned()).spawn(work);
    spawned.map(|_| finished).map_err(|_| CaptureError::TailLost)
}

//! The replica's own thread: commands in, replies out, in one order, so that SQLite never blocks the
//! runtime and what was asked first is done first.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{broadcast, mpsc, oneshot};

use crate::changes::Changed;
use crate::page::Page;
use crate::replica::{Applied, Fix, Identity, ReplicaError, Report, Resume, Writer};
use crate::status::Status;
use crate::token::Subject;

/// Commands and replies that may wait. The machine keeps fewer than that under way.
const QUEUE: usize = 16;
/// Damaged replicas made anew in one run before the disk is believed to be broken.
const REBUILDS_MAX: u32 = 3;

/// Where it is told what commits changed.
pub(crate) type Commits = broadcast::Sender<Arc<Changed>>;

/// What the thread is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Answered by [`Reply::Applied`]. A page of an older epoch is dropped without an answer.
    Apply { page: Page, epoch: u64 },
    /// Answered by [`Reply::Listed`].
    Collections(Vec<String>),
    /// Answered by [`Reply::Opened`].
    BeginFill,
    /// Answered by [`Reply::Opened`].
    DropPartial,
    /// Answered by [`Reply::Belongs`].
    Belong(Subject),
    /// Answered by [`Reply::Wiped`].
    Wipe,
    /// From now on rows that change are noted.
    BeginComparison(oneshot::Sender<()>),
    /// It came to no end: rows that change are not noted any more. Not answered.
    ForgetComparison,
    /// Mends what a comparison found; how many rows, or nothing where it means nothing any more.
    Mend(Vec<Fix>, oneshot::Sender<Result<Option<u64>, ReplicaError>>),
    /// Who reads found the file damaged: look for oneself. Not answered.
    Check,
    /// Not answered.
    Report(Report),
    /// The last one; not answered.
    Close(Option<String>),
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Reply {
    /// What happened before; comes ahead of the first [`Reply::Opened`].
    Past {
        /// The last client of this replica did not end in order.
        was_killed: bool,
        /// The file was too large to be looked at as a whole.
        is_unchecked: bool,
        /// When the replica was compared with its server last, or made: milliseconds since 1970.
        verified_ms: i64,
    },
    Opened(Resume, Box<Status>),
    Applied(Applied, Box<Status>),
    Listed,
    Belongs(Resume, Box<Status>),
    Wiped(Resume, Box<Status>),
    /// The file was damaged and was begun anew; a new epoch.
    Reset(Resume, Box<Status>),
    /// The thread has ended.
    Failed(ReplicaError),
}

/// The thread's other end.
#[derive(Debug)]
pub(crate) struct Store {
    commands: mpsc::Sender<Command>,
    replies: mpsc::Receiver<Reply>,
    thread: JoinHandle<Result<(), ReplicaError>>,
}

impl Store {
    /// Opens the replica on a thread of its own; the first reply is [`Reply::Opened`] or
    /// [`Reply::Failed`].
    /// What each commit changed goes to `commits`.
    pub(crate) fn open(
        path: PathBuf,
        identity: Identity,
        rebuild: bool,
        commits: Commits,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (outbox, replies) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("tidewire-replica".into())
            .spawn(move || run(&path, identity, rebuild, commits, inbox, &outbox))?;
        Ok(Self { commands, replies, thread })
    }

    /// Hands a command over; a thread that has ended says so by its last reply.
    pub(crate) async fn send(&self, command: Command) {
        self.commands.send(command).await.ok();
    }

    /// Where others than the driver hand commands over that are answered in their own way.
    pub(crate) fn commands(&self) -> mpsc::Sender<Command> {
        self.commands.clone()
    }

    /// The next reply; `None` when the thread has ended.
    pub(crate) async fn reply(&mut self) -> Option<Reply> {
        self.replies.recv().await
    }

    /// Waits for everything asked so far, closes the file and ends the thread.
    pub(crate) async fn close(mut self, error: Option<String>) -> Result<(), ReplicaError> {
        self.send(Command::Close(error)).await;
        let mut failed = None;
        while let Some(reply) = self.replies.recv().await {
            if let Reply::Failed(error) = reply {
                failed = Some(error);
            }
        }
        let ended = tokio::task::spawn_blocking(move || self.thread.join()).await;
        match (failed, ended) {
            (Some(error), _) => Err(error),
            (None, Ok(Ok(result))) => result,
            (None, _) => Ok(()),
        }
    }
}

fn run(
    path: &std::path::Path,
    identity: Identity,
    rebuild: bool,
    commits: Commits,
    mut inbox: mpsc::Receiver<Command>,
    outbox: &mpsc::Sender<Reply>,
) -> Result<(), ReplicaError> {
    // The driver hangs up only when it is being dropped; nobody is left to tell then.
    let tell = |reply| outbox.blocking_send(reply).ok();
    let opened = Writer::open(path, &identity).and_then(|mut writer| {
        if rebuild { writer.begin_fill().map(|_| writer) } else { Ok(writer) }
    });
    let writer = match opened {
        Ok(writer) => writer,
        Err(error) => {
            tell(Reply::Failed(error));
            return Ok(());
        }
    };
    let Writer { was_killed, is_unchecked, verified_ms, .. } = writer;
    tell(Reply::Past { was_killed, is_unchecked, verified_ms });
    let first = writer.status().map(|status| Reply::Opened(writer.resume(), Box::new(status)));
    let mut thread = Thread { writer: Some(writer), identity, epoch: 0 };
    match first {
        Ok(first) => tell(first),
        Err(error) => tell(Reply::Failed(error)),
    };
    thread.tell_changes(&commits);
    while let Some(command) = inbox.blocking_recv() {
        if let Command::Close(error) = command {
            return thread.writer.take().map_or(Ok(()), |writer| writer.close(error));
        }
        let obeyed = thread.obey(command);
        thread.tell_changes(&commits);
        match obeyed {
            Ok(Some(reply)) => {
                tell(reply);
            }
            Ok(None) => {}
            Err(error) => {
                let told = error.to_string();
                tell(Reply::Failed(error));
                if let Some(writer) = thread.writer.take() {
                    // What can't be written can't be said in the file either.
                    writer.close(Some(told)).ok();
                }
                return Ok(());
            }
        }
    }
    thread.writer.take().map_or(Ok(()), |writer| writer.close(None))
}

struct Thread {
    /// `None` only while the file is made anew.
    writer: Option<Writer>,
    identity: Identity,
    /// Counts how often the file was begun anew.
    epoch: u64,
}

impl Thread {
    fn tell_changes(&mut self, commits: &Commits) {
        if let Some(changed) = self.writer.as_mut().and_then(Writer::take_changed) {
            // Nobody may be listening.
            commits.send(Arc::new(changed)).ok();
        }
    }

    /// Does what is asked; a damaged file is begun anew, other errors end the thread.
    fn obey(&mut self, command: Command) -> Result<Option<Reply>, ReplicaError> {
        match self.try_to(command) {
            Err(error) if error.is_damage() && self.epoch < u64::from(REBUILDS_MAX) => {
                tracing::warn!(%error, "the replica is damaged: it is made anew");
                let Some(writer) = self.writer.take() else { return Err(error) };
                let writer = writer.recreate(&self.identity)?;
                self.epoch += 1;
                let (resume, status) = (writer.resume(), writer.status()?);
                self.writer = Some(writer);
                Ok(Some(Reply::Reset(resume, Box::new(status))))
            }
            result => result,
        }
    }

    fn try_to(&mut self, command: Command) -> Result<Option<Reply>, ReplicaError> {
        let Some(writer) = &mut self.writer else { return Ok(None) };
        Ok(match command {
            Command::Apply { epoch, .. } if epoch != self.epoch => None,
            Command::Apply { page, .. } => {
                let applied = writer.apply(&page)?;
                Some(Reply::Applied(applied, Box::new(writer.status()?)))
            }
            Command::Collections(names) => {
                writer.set_collections(&names)?;
                Some(Reply::Listed)
            }
            Command::BeginFill => {
                Some(Reply::Opened(writer.begin_fill()?, Box::new(writer.status()?)))
            }
            Command::DropPartial => {
                Some(Reply::Opened(writer.drop_partial()?, Box::new(writer.status()?)))
            }
            Command::Belong(subject) => {
                self.identity.subject = subject;
                writer.belong_to(&self.identity)?;
                Some(Reply::Belongs(writer.resume(), Box::new(writer.status()?)))
            }
            Command::Wipe => {
                writer.wipe()?;
                Some(Reply::Wiped(writer.resume(), Box::new(writer.status()?)))
            }
            Command::BeginComparison(begun) => {
                writer.begin_comparison();
                begun.send(()).ok();
                None
            }
            Command::ForgetComparison => {
                writer.forget_comparison();
                None
            }
            Command::Mend(fixes, mended) => {
                mended.send(writer.mend(&fixes)).ok();
                None
            }
            Command::Check => {
                writer.check()?;
                None
            }
            Command::Report(report) => {
                writer.report(&report)?;
                None
            }
            Command::Close(_) => None,
        })
    }
}

//! `log check | compact | backup | restore | rebuild`: looking after a log.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tidewire_server::config::parse_duration;
use tidewire_server::log::{self, CheckPart, LogError, LogOptions, Writer};
use time::OffsetDateTime;

use super::super::bar::Bar;
use super::super::{Failure, Outcome};
use super::{Folder, open, when};

/// Changes that one step of a compaction visits before it commits.
const VISITS_PER_STEP: u32 = 10_000;

/// SQLite's own check of the file; every change's checksum; positions that ascend; every document's and
/// every channel's index entries, each against the changes. Nothing is written.
#[derive(Args, Debug)]
pub(in crate::command) struct Check {
    #[command(flatten)]
    folder: Folder,
    /// A backup, instead of a data folder
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Check {
    pub(super) fn run(self) -> Result<Outcome> {
        let path = self.file.unwrap_or_else(|| log::log_path(&self.folder.data_dir));
        if !path.is_file() {
            bail!(Failure::Usage(format!("there is no log at {}", path.display())));
        }
        let mut bar = Bar::to_an_end();
        let checked = log::check(&path, &mut |part, done, total| {
            let part = match part {
                CheckPart::Store => "the file",
                CheckPart::Changes => "changes",
                CheckPart::Documents => "documents",
                CheckPart::Postings => "channels",
            };
            bar.tell(part, done, total);
        })?;
        drop(bar);
        for finding in &checked.findings {
            println!("{finding}");
        }
        let told = checked.findings.len() as u64;
        if checked.findings_total > told {
            println!("and {} more", checked.findings_total - told);
        }
        let (changes, documents) = (checked.changes, checked.documents);
        if checked.findings_total == 0 {
            println!("whole: {changes} changes of {documents} documents, head {}", checked.head);
            return Ok(Outcome::Done);
        }
        println!(
            "damaged: {} findings in {changes} changes; stop the server and run `tidewire-ops log rebuild`",
            checked.findings_total
        );
        Ok(Outcome::Different)
    }
}

#[derive(Args, Debug)]
pub(in crate::command) struct Compact {
    #[command(flatten)]
    folder: Folder,
    /// How much to keep
    #[arg(long, default_value = "7d", value_parser = parse_duration)]
    retention: Duration,
}

impl Compact {
    pub(super) fn run(self) -> Result<()> {
        let dir = &self.folder.data_dir;
        // The log's own word for its source: compaction needs no configuration.
        let source = open(dir)?.stat(dir)?.source;
        let (mut writer, _reader) =
            Writer::open(dir, &LogOptions { source, retention: self.retention })
                .context("stop the server first: it compacts by itself while it runs")?;
        let now = u64::try_from(OffsetDateTime::now_utc().unix_timestamp())?;
        let before = writer.retention_boundary(now);
        let mut dropped = 0;
        loop {
            let step = writer.compact(before, VISITS_PER_STEP)?;
            dropped += step.dropped;
            if !step.more {
                break;
            }
        }
        println!("dropped {dropped} changes from before {}", when(before));
        Ok(())
    }
}

/// The log as it is at this moment, in one file; the server goes on writing. Keep it with the time it
/// was made: a server that starts on it takes the rest from MongoDB, as far as the oplog reaches back.
#[derive(Args, Debug)]
pub(in crate::command) struct Backup {
    #[command(flatten)]
    folder: Folder,
    /// The new file
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

impl Backup {
    pub(super) fn run(self) -> Result<()> {
        if self.to.exists() {
            bail!(Failure::Usage(format!("{} is there already", self.to.display())));
        }
        let mut bar = Bar::to_an_end();
        open(&self.folder.data_dir)?
            .backup(&self.to, &mut |done, total| bar.tell("pages", done, total))?;
        drop(bar);
        println!("{}", self.to.display());
        Ok(())
    }
}

/// The backup is checked first. A server started on the folder goes on from where the backup was made;
/// clients that are ahead of it wait until it has caught up, and go on from the cursors they have.
#[derive(Args, Debug)]
pub(in crate::command) struct Restore {
    /// The backup
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The data folder; it must hold no log
    #[arg(long, env = "TIDEWIRE_DATA_DIR", default_value = "tidewire-data")]
    data_dir: PathBuf,
}

impl Restore {
    pub(super) fn run(self) -> Result<()> {
        log::restore(&self.from, &self.data_dir).map_err(|error| match error {
            LogError::Refused(why) => Failure::Usage(why).into(),
            error => anyhow::Error::from(error),
        })?;
        println!("{}", log::log_path(&self.data_dir).display());
        Ok(())
    }
}

/// Every change that matches its checksum is kept, at its position; the damaged file is set aside, not
/// removed. At the next start the server compares every collection with MongoDB and appends what is
/// different; clients go on from the cursors that they have, unless this says that they can't.
#[derive(Args, Debug)]
pub(in crate::command) struct Rebuild {
    #[command(flatten)]
    folder: Folder,
    /// Keep nothing: the next start copies MongoDB anew, and clients do the same beside the data they
    /// have. For a log of which nothing can be kept
    #[arg(long)]
    from_nothing: bool,
}

impl Rebuild {
    pub(super) fn run(self) -> Result<()> {
        let dir = &self.folder.data_dir;
        if !log::log_path(dir).is_file() {
            bail!(Failure::Usage(format!("there is no log in {}", dir.display())));
        }
        if self.from_nothing {
            println!("the old log is {}", log::set_aside(dir)?.display());
            return Ok(());
        }
        let mut bar = Bar::to_an_end();
        let rebuilt = log::rebuild(dir, &mut |done, total| bar.tell("changes", done, total))
            .context("if nothing can be kept: --from-nothing")?;
        drop(bar);
        println!(
            "kept {} changes, {} were damaged; the old log is {}",
            rebuilt.kept,
            rebuilt.lost,
            rebuilt.aside.display()
        );
        if let Some(cut) = rebuilt.cut {
            println!(
                "it ends at {cut}: what follows could not be told apart, and comes from MongoDB again"
            );
        }
        if !rebuilt.cursors_go_on {
            println!(
                "who was told what is lost is not known: clients start again, beside their data"
            );
        }
        Ok(())
    }
}

//! `log …`: a change log's folder, with or without its server running.

mod care;
mod quarantine;

use std::io::{BufWriter, Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use tidewire_protocol::payload::{Exclude, write_ejson, write_json_string, write_time_ms};
use tidewire_protocol::position::Position;
use tidewire_server::log::{Body, Entry, Flow, Reader, Scope};

use super::{Failure, Outcome};

#[derive(Debug, Subcommand)]
pub(super) enum Log {
    /// What the log holds, by collection
    Stat(Folder),
    /// Every change in the log, one JSON object a line, documents in canonical Extended JSON
    Dump(Dump),
    /// Hold the log against itself, also while the server writes; exit 1 where there are findings
    Check(care::Check),
    /// The documents that can't be carried: which, why, how large, since when
    Quarantine(quarantine::Quarantine),
    /// Drop superseded changes and tombstones that are older than the retention; the server must not run
    Compact(care::Compact),
    /// Copy the log into one new file, also while the server writes
    Backup(care::Backup),
    /// Make a backup the log of an empty data folder
    Restore(care::Restore),
    /// Build a damaged log anew from what is whole of it; the server must not run
    Rebuild(care::Rebuild),
}

#[derive(Args, Debug)]
pub(super) struct Folder {
    /// The server's data folder
    #[arg(long, env = "TIDEWIRE_DATA_DIR", default_value = "tidewire-data")]
    data_dir: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct Dump {
    #[command(flatten)]
    folder: Folder,
    /// Only changes of this collection
    #[arg(long)]
    collection: Option<String>,
    /// Only changes after this position (exclusive)
    #[arg(long, value_name = "POSITION")]
    after: Option<Position>,
    /// At most so many
    #[arg(long)]
    limit: Option<u64>,
}

impl Log {
    pub(super) async fn run(self) -> Result<Outcome> {
        let work = move || {
            match self {
                Self::Check(check) => return check.run(),
                Self::Stat(folder) => stat(&folder.data_dir)?,
                Self::Dump(dump) => dump.run()?,
                Self::Quarantine(quarantine) => quarantine.run()?,
                Self::Compact(compact) => compact.run()?,
                Self::Backup(backup) => backup.run()?,
                Self::Restore(restore) => restore.run()?,
                Self::Rebuild(rebuild) => rebuild.run()?,
            }
            Ok(Outcome::Done)
        };
        tokio::task::spawn_blocking(work).await?
    }
}

fn open(dir: &Path) -> Result<Reader> {
    Reader::open(dir).map_err(|error| Failure::Usage(format!("{error:#}")).into())
}

fn stat(dir: &Path) -> Result<()> {
    let stat = open(dir)?.stat(dir)?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["collection", "documents", "changes", "channels", ""]);
    for collection in &stat.collections {
        table.add_row([
            collection.name.clone(),
            collection.live.to_string(),
            collection.changes.to_string(),
            collection.channels.to_string(),
            if collection.copying { "copy not finished" } else { "" }.into(),
        ]);
    }
    println!("source      {}", stat.source);
    println!("head        {} ({})", stat.head, when(stat.head));
    println!("last change {} ({})", stat.last, when(stat.last));
    println!("trim point  {} ({})", stat.trim, when(stat.trim));
    println!("changes     {}, {} bytes of documents", stat.changes, stat.document_bytes);
    println!("file        {} bytes\n\n{table}", stat.file_bytes);
    Ok(())
}

/// The second of a position, for people.
fn when(position: Position) -> String {
    if position == Position::ZERO {
        return "nothing yet".into();
    }
    let mut text = Vec::new();
    write_time_ms(i64::from(position.unix_seconds()) * 1_000, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

impl Dump {
    fn run(self) -> Result<()> {
        let mut out = BufWriter::new(stdout().lock());
        let mut line = Vec::new();
        let mut failed = None;
        let mut left = self.limit.unwrap_or(u64::MAX);
        let after = self.after.unwrap_or(Position::ZERO);
        let mut emit = |entry: &Entry<'_>| {
            let wanted = self.collection.as_deref().is_none_or(|name| name == entry.collection);
            if entry.position <= after || !wanted {
                return Flow::Took;
            }
            if left == 0 {
                return Flow::Full;
            }
            left -= 1;
            line.clear();
            write_entry(entry, &mut line);
            match out.write_all(&line) {
                Ok(()) => Flow::Took,
                Err(error) => {
                    failed = Some(error);
                    Flow::Full
                }
            }
        };
        open(&self.folder.data_dir)?.replay(None, &Scope::Everything, &mut emit)?;
        // A reader that has seen enough (`| head`) is no failure.
        match failed.map_or_else(|| out.flush(), Err) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn write_entry(entry: &Entry<'_>, line: &mut Vec<u8>) {
    let (kind, document) = match entry.body {
        Body::Upsert(document) => ("upsert", document),
        Body::Delete(key) => ("delete", key),
    };
    line.extend_from_slice(format!(r#"{{"position":"{}","at":""#, entry.position).as_bytes());
    write_time_ms(entry.wall_time_ms, line);
    line.extend_from_slice(format!(r#"","type":"{kind}","collection":"#).as_bytes());
    write_json_string(entry.collection, line);
    if let Some(reason) = entry.set_aside {
        line.extend_from_slice(br#","quarantined":"#);
        write_json_string(reason, line);
    }
    line.extend_from_slice(br#","document":"#);
    let start = line.len();
    if write_ejson(document, &Exclude::none(), line).is_err() {
        line.truncate(start);
        line.extend_from_slice(b"null");
    }
    line.extend_from_slice(b"}\n");
}

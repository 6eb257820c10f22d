//! What happens to a server's log: lost, restored, damaged and rebuilt.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::RngExt;
use rusqlite::Connection;

use super::{FAILED, UP_WITHIN, end, is_sources_fault};
use crate::torture::faults::Lane;
use crate::torture::findings::Kind;
use crate::torture::history;
use crate::torture::stage::ServerPart;

/// In documents that clients are shown.
const NEEDLE: &[u8] = b"beside text";
/// Not each place that holds it is in use.
const FLIPS_MAX: usize = 8;
/// A larger log is not restored: a backup is looked through, which takes long.
const RESTORED_BYTES_MAX: u64 = 200 << 20;
/// Meanwhile somebody may read what is damaged.
const MET_WITHIN: Duration = Duration::from_secs(8);

/// Removes the log, in one step: whoever reads along must not put a file into what is left of it.
pub(super) fn lose(lane: &mut Lane, server: &ServerPart) -> Result<()> {
    let lost = server.site.dir.join(format!("lost-{}", lane.rng.random::<u32>()));
    std::fs::rename(server.site.data_dir(), &lost)?;
    let _ = std::fs::remove_dir_all(lost);
    Ok(())
}

/// Waits until nobody reads the log.
pub(super) async fn take_away(server: &ServerPart) -> Result<()> {
    let history = Arc::clone(&server.site.history);
    Ok(tokio::task::spawn_blocking(move || history.take_away()).await?)
}

/// A backup of the running server; a while later its log is gone, and the backup is put in its place.
pub(super) async fn restore(lane: &mut Lane, server: &mut ServerPart) -> Result<()> {
    if !server.is_ready_within(UP_WITHIN).await {
        return Ok(());
    }
    let (data, file) = (server.site.data_dir(), server.site.dir.join("backup.db"));
    if std::fs::metadata(data.join("log.db"))?.len() > RESTORED_BYTES_MAX {
        return Ok(());
    }
    let _ = std::fs::remove_file(&file);
    let backup = ["backup", "--data-dir"].map(OsStr::new);
    let backup = [&backup[..], &[data.as_os_str(), OsStr::new("--to"), file.as_os_str()]].concat();
    let copies = history::copies(&server.site);
    if !done(lane, server, &backup).await? {
        return Ok(());
    }
    if copies.is_none() || copies != history::copies(&server.site) {
        lane.findings.count("backups of an unfinished copy, not used", 1);
        return Ok(());
    }
    lane.findings.fault("server's log restored from a backup", server.site.name);
    lane.hold(1.0..12.0).await;
    if lane.rng.random_ratio(1, 2) {
        server.kill().await?;
    } else {
        end(lane, server).await?;
    }
    take_away(server).await?;
    lose(lane, server)?;
    let restore = ["restore", "--data-dir"].map(OsStr::new);
    let restore =
        [&restore[..], &[data.as_os_str(), OsStr::new("--from"), file.as_os_str()]].concat();
    done(lane, server, &restore).await?;
    std::fs::remove_file(file)?;
    server.site.history.replaced();
    server.site.history.give_back();
    server.start()
}

/// Bits of one row are flipped while the server is down. It must say so where it meets them, and serves
/// nothing of it; the log is rebuilt, and clients go on.
pub(super) async fn damage(lane: &mut Lane, server: &mut ServerPart) -> Result<()> {
    if !server.is_ready_within(UP_WITHIN).await {
        return Ok(());
    }
    end(lane, server).await?;
    take_away(server).await?;
    if flipped(lane, server).await? {
        lane.findings.fault("byte of the log flipped, log rebuilt", server.site.name);
        server.site.history.set_suspect(true);
        meet(lane, server).await?;
        rebuild(lane, server).await?;
        server.site.history.replaced();
        server.site.history.set_suspect(false);
    }
    server.site.history.give_back();
    server.start()
}

/// Flips a byte of a row that the log has; false where none was hit.
async fn flipped(lane: &mut Lane, server: &ServerPart) -> Result<bool> {
    let data = server.site.data_dir();
    let path = data.join("log.db");
    {
        let log = Connection::open(&path)?;
        log.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    for _ in 0..FLIPS_MAX {
        if !flip(lane, &path)? {
            return Ok(false);
        }
        let check = [OsStr::new("check"), OsStr::new("--data-dir"), data.as_os_str()];
        let (code, said) = server.care(&check).await?;
        match code {
            Some(0) => {}
            Some(FAILED) if said.contains("does not match its checksum") => return Ok(true),
            _ => anyhow::bail!("log check ended with {code:?}: {said}"),
        }
    }
    Ok(false)
}

/// Flips a bit of a document somewhere in the file; false where there is none.
fn flip(lane: &mut Lane, path: &Path) -> Result<bool> {
    let bytes = std::fs::read(path)?;
    let found = bytes.windows(NEEDLE.len()).enumerate().filter(|(_, part)| *part == NEEDLE);
    let found: Vec<usize> = found.map(|(at, _)| at).collect();
    if found.is_empty() {
        return Ok(false);
    }
    let at = found[lane.rng.random_range(0..found.len())];
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&[bytes[at] ^ 0x10], at as u64)?;
    Ok(true)
}

/// The server runs on the damaged log until it meets the damage, or for a while.
async fn meet(lane: &mut Lane, server: &mut ServerPart) -> Result<()> {
    server.start()?;
    let Some((status, words)) = server.ends_within(MET_WITHIN).await else {
        lane.findings.count("damaged logs of which nobody read what was damaged", 1);
        return server.kill().await;
    };
    if is_sources_fault(status.code()) {
        lane.findings.note("the server on the damaged log did not reach the source");
        return Ok(());
    }
    lane.findings.count("damaged logs that a server found", 1);
    if status.code() != Some(FAILED) || !words.contains("tidewire-ops log rebuild --data-dir") {
        let text = format!("{} on a damaged log: {status}: {words}", server.site.name);
        lane.findings.broken(Kind::Different, text);
    }
    Ok(())
}

async fn rebuild(lane: &mut Lane, server: &ServerPart) -> Result<()> {
    let data = server.site.data_dir();
    let rebuild = [OsStr::new("rebuild"), OsStr::new("--data-dir"), data.as_os_str()];
    let (code, said) = server.care(&rebuild).await?;
    lane.findings.note(&format!("rebuild of {}'s log: {said}", server.site.name));
    // Among the server's own lines, for those who judge by them.
    let mut lines = OpenOptions::new().append(true).open(server.site.log())?;
    lines.write_all(said.as_bytes()).context("note the rebuild")?;
    if code != Some(0) {
        let text = format!("{}'s log can't be rebuilt: {said}", server.site.name);
        lane.findings.broken(Kind::Stuck, text);
        lose(lane, server)?;
        return Ok(());
    }
    if said.contains("it ends at ") {
        lane.findings.count("rebuilt logs that end before the damage", 1);
    }
    if said.contains("clients start again") {
        lane.findings.count("rebuilt logs that no cursor goes on with", 1);
    }
    for old in std::fs::read_dir(data)? {
        let old = old?.path();
        if old.to_string_lossy().contains("log.db.damaged-") {
            std::fs::remove_file(old)?;
        }
    }
    Ok(())
}

/// Nothing can be written to the log's files for a while: the tail stands, and goes on alone.
pub(super) async fn read_only(lane: &mut Lane, server: &mut ServerPart) -> Result<()> {
    if !server.is_ready_within(UP_WITHIN).await {
        return Ok(());
    }
    let Some(frozen) = Immutable::of(&server.site.data_dir()) else {
        let left_out = "faults left out: a log that can't be written needs root and chattr";
        lane.findings.count(left_out, 1);
        return Ok(());
    };
    server.site.history.set_unwritable();
    lane.findings.fault("server's log can't be written", server.site.name);
    lane.hold(1.0..9.0).await;
    drop(frozen);
    Ok(())
}

/// A log's files, which nobody can write to until this is dropped.
struct Immutable([PathBuf; 2]);

impl Immutable {
    /// `None` where that may not be done: it needs root, chattr and a file system that knows of it.
    fn of(data: &Path) -> Option<Self> {
        let this = Self(["log.db", "log.db-wal"].map(|file| data.join(file)));
        this.change("+i").then_some(this)
    }

    fn change(&self, flag: &str) -> bool {
        let mut chattr = Command::new("chattr");
        let changed = chattr.arg(flag).args(&self.0).stderr(Stdio::null()).status();
        changed.is_ok_and(|status| status.success())
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        self.change("-i");
    }
}

/// Runs a part of `tidewire-ops log` that must not fail.
async fn done(lane: &Lane, server: &ServerPart, args: &[&OsStr]) -> Result<bool> {
    let (code, said) = server.care(args).await?;
    if code != Some(0) {
        let text = format!("{}'s log: {:?} ended with {code:?}: {said}", server.site.name, args[0]);
        lane.findings.broken(Kind::Stuck, text);
    }
    Ok(code == Some(0))
}

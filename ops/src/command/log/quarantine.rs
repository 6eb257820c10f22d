//! `log quarantine`: a table on a terminal, plain lines in a pipe, JSON where it is asked for.

use std::io::{IsTerminal, Write, stdout};

use anyhow::Result;
use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;
use tidewire_protocol::payload::write_time_ms;
use tidewire_server::log::{QUARANTINE_MAX, Quarantined};

use super::{Folder, open};

#[derive(Args, Debug)]
pub(in crate::command) struct Quarantine {
    #[command(flatten)]
    folder: Folder,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// A line of `--json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    collection: &'a str,
    /// As a client would see it; only its beginning where `cut`.
    id: &'a str,
    /// False: `id` is no more than a help to find the document.
    id_known: bool,
    reason: &'a str,
    /// Null where it is not known.
    bytes: Option<u64>,
    position: String,
    at: String,
}

impl Quarantine {
    pub(super) fn run(self) -> Result<()> {
        let found = open(&self.folder.data_dir)?.quarantine()?;
        let told = if self.json { json(&found) } else { table(&found) };
        match told {
            // A reader that has seen enough is no failure.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn json(found: &[Quarantined]) -> std::io::Result<()> {
    let mut out = stdout().lock();
    for one in found {
        let line = Line {
            collection: &one.collection,
            id: &one.shown_id,
            id_known: one.has_key,
            reason: &one.reason,
            bytes: bytes(one),
            position: one.position.to_string(),
            at: when(one.wall_time_ms),
        };
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

fn table(found: &[Quarantined]) -> std::io::Result<()> {
    let mut table = Table::new();
    let is_terminal = stdout().is_terminal();
    table.load_style(if is_terminal { presets::UTF8_HORIZONTAL_ONLY } else { presets::NOTHING });
    table.set_header(["collection", "_id", "reason", "bytes", "found"]);
    for one in found {
        table.add_row([
            one.collection.clone(),
            one.shown_id.escape_debug().to_string(),
            one.reason.clone(),
            bytes(one).map_or_else(|| "?".into(), |bytes| bytes.to_string()),
            when(one.wall_time_ms),
        ]);
    }
    let more = if found.len() >= QUARANTINE_MAX { " or more" } else { "" };
    let mut out = stdout().lock();
    if !found.is_empty() {
        writeln!(out, "{table}")?;
    }
    if is_terminal {
        writeln!(out, "{}{more} documents in quarantine", found.len())?;
    }
    out.flush()
}

fn bytes(one: &Quarantined) -> Option<u64> {
    (one.size > 0).then_some(one.size)
}

fn when(ms: i64) -> String {
    let mut text = Vec::new();
    write_time_ms(ms, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

//! Printing for people: the status, and texts that a terminal can bear.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Table, presets};
use tidewire::{Replica, Status};

use super::StatusArgs;

/// `tidewire status`.
pub(super) fn status(args: &StatusArgs) -> Result<ExitCode> {
    let status = Replica::open(&args.db.db)?.status()?;
    print_status(&status, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a status: JSON, or a table on a terminal, or `name<tab>value` lines.
pub(super) fn print_status(status: &Status, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(status)?)?;
        return Ok(());
    }
    let lines = status_lines(status);
    if console::user_attended() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for (name, value) in lines {
            table.add_row([console::style(name).bold().to_string(), value]);
        }
        writeln!(out, "{table}")?;
    } else {
        for (name, value) in lines {
            writeln!(out, "{name}\t{value}")?;
        }
    }
    Ok(())
}

fn status_lines(status: &Status) -> Vec<(&'static str, String)> {
    let unknown = || "-".to_owned();
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let last = status.last_sync.as_ref().map_or_else(unknown, |last| {
        let how = if last.success { format!("{} changes", last.applied) } else { "failed".into() };
        format!("{}, {how}", last.timestamp)
    });
    let mut lines = vec![
        ("state", status.state.name().to_owned()),
        ("online", yes(status.is_online)),
        ("transport", status.transport.name().to_owned()),
        ("readable", yes(status.initialized)),
        ("last sync", last),
        ("position", status.position.clone().unwrap_or_else(unknown)),
        ("lag", status.lag_ms.map_or_else(unknown, |ms| format!("{ms} ms"))),
    ];
    if let Some(applying) = status.applying {
        lines.push(("under way", format!("{applying} changes")));
    }
    lines.push(("error", status.error.as_deref().map_or_else(unknown, plain)));
    lines
}

/// A text without anything that would steer a terminal.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

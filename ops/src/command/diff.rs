//! `diff`: two replicas side by side.

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::Outcome;
use super::bar::{Bar, WITHOUT_TOTAL};
use crate::diff::{Options, Side, TableDifference, diff};

/// Rows are the same when their documents are, whenever each replica got them: another position or
/// time of the same document is no difference unless --positions asks for it.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// A replica, of `tidewire sync` or `tidewire-ops replay`
    a: PathBuf,
    /// Another one
    b: PathBuf,
    /// Compare _position and _updated_at too
    #[arg(long)]
    positions: bool,
    /// Rows of each table that are told one by one; all are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    rows: usize,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub(super) async fn run(self) -> Result<Outcome> {
        tokio::task::spawn_blocking(move || self.compare()).await?
    }

    fn compare(self) -> Result<Outcome> {
        let options = Options { rows_max: self.rows, positions: self.positions };
        let mut bar = Bar::new(WITHOUT_TOTAL);
        let tables = diff(&self.a, &self.b, options, |table, rows| {
            bar.tell(table, rows, 0);
        })?;
        drop(bar);
        let equal = tables.iter().all(TableDifference::is_equal);
        let mut out = stdout().lock();
        if self.json {
            writeln!(out, "{}", json!({ "equal": equal, "tables": tables }))?;
        } else {
            for table in &tables {
                write_table(&mut out, table)?;
            }
            let rows: u64 = tables.iter().map(|table| table.rows_a.max(table.rows_b)).sum();
            let said = if equal { "equal" } else { "different" };
            writeln!(out, "{said}: {} tables, {rows} rows", tables.len())?;
        }
        Ok(if equal { Outcome::Done } else { Outcome::Different })
    }
}

/// `-` is in A only, `+` in B only, `~` in both and not the same.
fn write_table(out: &mut impl Write, table: &TableDifference) -> Result<()> {
    let name = table.name.escape_debug();
    let TableDifference { rows_a, rows_b, only_in_a, only_in_b, different, .. } = table;
    match table.side {
        _ if table.is_equal() => return Ok(()),
        Side::A => writeln!(out, "{name}: only in A ({rows_a} rows)")?,
        Side::B => writeln!(out, "{name}: only in B ({rows_b} rows)")?,
        Side::Both => writeln!(
            out,
            "{name}: {only_in_a} rows only in A, {only_in_b} only in B, {different} differ \
             (of {rows_a} and {rows_b})"
        )?,
    }
    for row in &table.rows {
        let id = row.id.escape_debug();
        match row.side {
            Side::A => writeln!(out, "  - {id}")?,
            Side::B => writeln!(out, "  + {id}")?,
            Side::Both => writeln!(out, "  ~ {id}: {}", row.fields.join(", ").escape_debug())?,
        }
    }
    Ok(())
}

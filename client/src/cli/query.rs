//! `tidewire query`: a table on a terminal, tab-separated lines in a pipe, JSON on request.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use tidewire::{Replica, Value};

use super::QueryArgs;
use super::show::plain;

/// Most rows that are laid out as one table; a longer answer goes on as lines.
const TABLE_ROWS_MAX: usize = 1_000;

pub(super) fn query(args: &QueryArgs) -> Result<ExitCode> {
    let replica = Replica::open(&args.db.db)?;
    let mut sink = Sink {
        out: std::io::BufWriter::new(std::io::stdout().lock()),
        form: match args.json {
            true => Form::Json,
            false if console::user_attended() => Form::Table(Vec::new()),
            false => Form::Lines,
        },
        rows: 0,
        failed: None,
    };
    let columns = replica.query_each(&args.sql, |columns, row| sink.take(columns, &row))?;
    sink.finish(&columns)?;
    Ok(ExitCode::SUCCESS)
}

enum Form {
    Json,
    Lines,
    Table(Vec<Vec<String>>),
}

struct Sink<W> {
    out: W,
    form: Form,
    rows: usize,
    /// Output that failed; the rest of the rows is passed over.
    failed: Option<std::io::Error>,
}

impl<W: Write> Sink<W> {
    fn take(&mut self, columns: &[String], row: &[Value]) {
        if self.failed.is_none() {
            self.failed = self.write(columns, row).err();
        }
        self.rows += 1;
    }

    fn write(&mut self, columns: &[String], row: &[Value]) -> std::io::Result<()> {
        match &mut self.form {
            Form::Json => {
                self.out.write_all(if self.rows == 0 { b"[" } else { b",\n " })?;
                let object: serde_json::Map<_, _> =
                    columns.iter().cloned().zip(row.iter().map(json)).collect();
                serde_json::to_writer(&mut self.out, &object)?;
                Ok(())
            }
            Form::Lines => {
                if self.rows == 0 {
                    write_line(&mut self.out, columns.iter().map(|name| plain(name)))?;
                }
                write_line(&mut self.out, row.iter().map(text))
            }
            Form::Table(rows) => {
                rows.push(row.iter().map(text).collect());
                if rows.len() == TABLE_ROWS_MAX {
                    let rows = std::mem::take(rows);
                    self.form = Form::Lines;
                    write_table(&mut self.out, columns, rows)?;
                }
                Ok(())
            }
        }
    }

    fn finish(mut self, columns: &[String]) -> Result<()> {
        if let Some(error) = self.failed {
            return Err(error.into());
        }
        match self.form {
            Form::Json if self.rows == 0 => writeln!(self.out, "[]")?,
            Form::Json => writeln!(self.out, "]")?,
            Form::Lines if self.rows == 0 => {
                write_line(&mut self.out, columns.iter().map(|name| plain(name)))?;
            }
            Form::Lines => {}
            Form::Table(rows) => write_table(&mut self.out, columns, rows)?,
        }
        self.out.flush()?;
        Ok(())
    }
}

fn write_table(
    out: &mut impl Write,
    columns: &[String],
    rows: Vec<Vec<String>>,
) -> std::io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(columns.iter().map(|name| plain(name)));
    table.add_rows(rows);
    writeln!(out, "{table}")
}

fn write_line(out: &mut impl Write, cells: impl Iterator<Item = String>) -> std::io::Result<()> {
    let cells: Vec<String> = cells.collect();
    writeln!(out, "{}", cells.join("\t"))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => format!("{number:?}"),
        Value::Text(text) => plain(text),
        Value::Blob(bytes) => format!("({} bytes)", bytes.len()),
    }
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Integer(number) => (*number).into(),
        Value::Real(number) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Blob(bytes) => bytes.as_slice().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(form: Form, rows: usize) -> String {
        let mut out = Vec::new();
        let mut sink = Sink { out: &mut out, form, rows: 0, failed: None };
        let columns = ["a".to_owned(), "b".to_owned()];
        for n in 0..rows {
            let row = [Value::Integer(n as i64), Value::Text("x\ty\u{1b}[31m".into())];
            sink.take(&columns, &row);
        }
        sink.finish(&columns).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_and_json_carry_the_values() {
        assert_eq!(written(Form::Lines, 0), "a\tb\n");
        assert_eq!(written(Form::Lines, 1), "a\tb\n0\tx\\ty\\u{1b}[31m\n");
        assert_eq!(written(Form::Json, 0), "[]\n");
        let json: serde_json::Value = serde_json::from_str(&written(Form::Json, 2)).unwrap();
        assert_eq!(json[1], serde_json::json!({"a": 1, "b": "x\ty\u{1b}[31m"}));
    }

    #[test]
    fn a_long_answer_does_not_gather_in_memory() {
        let text = written(Form::Table(Vec::new()), TABLE_ROWS_MAX + 5);
        assert!(text.ends_with(&format!("{}\tx\\ty\\u{{1b}}[31m\n", TABLE_ROWS_MAX + 4)));
    }
}

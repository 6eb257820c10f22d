//! What the replica's tests share: pages made by hand, and a reader that takes everything down.

use std::fmt::Write as _;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use tidewire_protocol::Position;

use super::{Identity, Writer};
use crate::page::Page;
use crate::token::Subject;

/// One change of a page made by hand; `document` is `None` for a delete.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Made {
    pub(crate) collection: String,
    pub(crate) id: String,
    pub(crate) document: Option<String>,
    pub(crate) position: Position,
    pub(crate) quarantined: bool,
}

impl Made {
    pub(crate) fn is_tombstone(&self) -> bool {
        self.document.is_none() && !self.quarantined
    }
}

pub(crate) fn upsert(collection: &str, id: &str, at: u64, document: &str) -> Made {
    let position = Position::new(at, 0);
    let document = Some(document.to_owned());
    Made { collection: collection.into(), id: id.into(), document, position, quarantined: false }
}

/// Its document goes into quarantine.
pub(crate) fn quarantined(collection: &str, id: &str, at: u64) -> Made {
    Made { quarantined: true, ..delete(collection, id, at) }
}

pub(crate) fn delete(collection: &str, id: &str, at: u64) -> Made {
    let position = Position::new(at, 0);
    let (collection, id) = (collection.into(), id.into());
    Made { collection, id, document: None, position, quarantined: false }
}

/// The text of a page; `checkpoint` is its last position.
pub(crate) fn page_text(changes: &[Made], cursor: &str, has_more: bool, complete: bool) -> String {
    let json = |text: &str| serde_json::Value::from(text).to_string();
    let mut list = String::new();
    for (index, change) in changes.iter().enumerate() {
        let kind = if change.document.is_some() { "upsert" } else { "delete" };
        write!(
            list,
            r#"{}{{"type":"{kind}","collection":{},"mongoId":{},"updatedAt":"2026-01-01T00:00:00.000Z","position":"{}""#,
            if index == 0 { "" } else { "," },
            json(&change.collection),
            json(&change.id),
            change.position,
        )
        .unwrap();
        match (&change.document, change.quarantined) {
            (Some(document), _) => write!(list, r#","payload":{document}"#).unwrap(),
            (None, true) => list.push_str(r#","quarantined":"not UTF-8""#),
            (None, false) => {}
        }
        list.push('}');
    }
    let checkpoint = changes.last().map_or(Position::ZERO, |change| change.position);
    format!(
        r#"{{"success":true,"serverTime":"2026-01-01T00:00:00.000Z","changes":[{list}],"count":{},"hasMore":{has_more},"cursor":{},"checkpoint":"{checkpoint}","complete":{complete}}}"#,
        changes.len(),
        json(cursor),
    )
}

pub(crate) fn page(changes: &[Made], cursor: &str, has_more: bool, complete: bool) -> Page {
    Page::decode(page_text(changes, cursor, has_more, complete)).unwrap()
}

pub(crate) fn identity(sub: &str) -> Identity {
    let subject = Subject { iss: None, sub: Some(sub.into()) };
    Identity { servers: vec!["memory".into()], subject }
}

pub(crate) fn open(path: &Path) -> Writer {
    Writer::open(path, &identity("ada")).unwrap()
}

/// A connection as another program has it.
pub(crate) fn stranger(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap()
}

/// All that a reader sees: every collection's rows, whole, in one text.
pub(crate) fn dump(conn: &Connection) -> String {
    let mut out = String::new();
    let sql = "SELECT collection, table_name FROM _tidewire_tables WHERE live ORDER BY 1";
    let mut tables = conn.prepare(sql).unwrap();
    let tables = tables.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    for (collection, table) in tables.map(|row| row.unwrap()).collect::<Vec<(String, String)>>() {
        let table = super::schema::quote(&table);
        let sql = format!("SELECT _id, _doc, _updated_at, _position FROM {table} ORDER BY _id");
        let mut rows = conn.prepare(&sql).unwrap();
        let mut rows = rows.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let cell = |at| row.get::<_, String>(at).unwrap();
            writeln!(out, "{collection} {} {} {} {}", cell(0), cell(1), cell(2), cell(3)).unwrap();
        }
    }
    let mut aside = conn.prepare("SELECT * FROM _tidewire_quarantine ORDER BY 1, 2").unwrap();
    let mut rows = aside.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let cell = |at| row.get::<_, String>(at).unwrap();
        let (at, position) = (cell(3), cell(4));
        writeln!(out, "{} {} {} {at} {position}", cell(0), cell(1), cell(2)).unwrap();
    }
    out
}

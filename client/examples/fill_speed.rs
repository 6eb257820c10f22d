//! How fast a new replica is filled, against a bare loop that inserts the same finished rows into the
//! same table: `cargo run --release -p tidewire --example fill_speed [documents] [rounds]`.
//!
//! Pages are made beforehand and come over a real socket on loopback; rounds alternate.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use tidewire::{SyncClient, Token};

/// Changes of a page: as many as the server's 4 MiB hold.
const PAGE: usize = 6_000;

struct Row {
    id: String,
    document: String,
    updated_at: String,
    position: String,
}

fn main() {
    let number = |at, default| std::env::args().nth(at).map_or(default, |n| n.parse().unwrap());
    let (documents, rounds) = (number(1, 200_000), number(2, 5));
    let rows = rows(documents);
    let json: usize = rows.iter().map(|row| row.document.len()).sum();
    println!("{documents} documents of {} bytes", json / documents);
    let address = serve(&rows);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let folder = std::env::temp_dir().join(format!("tidewire-fill-speed-{}", std::process::id()));
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        std::fs::remove_dir_all(&folder).ok();
        std::fs::create_dir_all(&folder).unwrap();
        let (ours, bare) = (folder.join("ours.db"), folder.join("bare.db"));
        let before = cpu_ms();
        let synced = runtime.block_on(sync(&address, &ours));
        let between = cpu_ms();
        let looped = bare_loop(&table_of(&ours), &bare, &rows);
        let plain = "CREATE TABLE invoices (_id TEXT PRIMARY KEY, _doc TEXT, _updated_at TEXT, _position TEXT)";
        let plain = bare_loop(plain, &folder.join("plain.db"), &rows);
        let after = cpu_ms();
        let ratio = looped.as_secs_f64() / synced.as_secs_f64();
        ratios.push(ratio);
        let per_row = |ms: u64| ms as f64 * 1e3 / documents as f64;
        println!(
            "CPU per row: sync, server included, {:.1} µs; both bare loops {:.1} µs",
            per_row(between - before),
            per_row(after - between)
        );
        let rate = |time: Duration| documents as f64 / time.as_secs_f64();
        println!(
            "round {round}: sync {:.0} rows/s, bare loop {:.0} rows/s, ratio {ratio:.2} \
             ({:.2} without generated columns), file / JSON {:.2}",
            rate(synced),
            rate(looped),
            plain.as_secs_f64() / synced.as_secs_f64(),
            std::fs::metadata(&ours).unwrap().len() as f64 / json as f64,
        );
    }
    std::fs::remove_dir_all(&folder).ok();
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2}; peak memory {} MB", ratios[ratios.len() / 2], peak_mb());
}

async fn sync(address: &str, path: &Path) -> Duration {
    let start = Instant::now();
    let client = SyncClient::builder(address).replica(path).token(Token::new("a.e30.c"));
    client.sync_once().await.unwrap();
    start.elapsed()
}

/// How the replica's table is made, generated columns included.
fn table_of(replica: &Path) -> String {
    let read = "SELECT sql FROM sqlite_schema WHERE name = 'invoices'";
    Connection::open(replica).unwrap().query_row(read, [], |row| row.get(0)).unwrap()
}

/// The same rows, finished, into the table that `sql` makes.
fn bare_loop(sql: &str, path: &Path, rows: &[Row]) -> Duration {
    let start = Instant::now();
    let conn = Connection::open(path).unwrap();
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
    conn.pragma_update(None, "synchronous", "NORMAL").unwrap();
    conn.execute_batch(sql).unwrap();
    for chunk in rows.chunks(10_000) {
        conn.execute_batch("BEGIN").unwrap();
        let insert =
            "INSERT INTO invoices (_id, _doc, _updated_at, _position) VALUES (?1, ?2, ?3, ?4)";
        let mut insert = conn.prepare_cached(insert).unwrap();
        for row in chunk {
            insert.execute(params![row.id, row.document, row.updated_at, row.position]).unwrap();
        }
        drop(insert);
        conn.execute_batch("COMMIT").unwrap();
    }
    conn.close().unwrap();
    start.elapsed()
}

fn rows(documents: usize) -> Vec<Row> {
    (0..documents)
        .map(|n| {
            let id = format!("65{n:022x}");
            let mut document = format!(
                r#"{{"_id":"{id}","number":"INV-{n:08}","customerId":"c{}","status":"{}","amount":"{}.50","currency":"EUR","paid":{},"issuedAt":"2026-01-01T00:00:00.000Z","items":[{{"sku":"A{}","quantity":{},"price":"12.50"}},{{"sku":"B{}","quantity":1,"price":"7.25"}}],"note":""#,
                n % 5_000, ["open", "paid", "late"][n % 3], n % 1_000, n % 2 == 0, n % 97, n % 9, n % 89,
            );
            while document.len() < 498 {
                write!(document, "{} ", n % 10).unwrap();
            }
            document.push_str("\"}");
            let position = format!("{:016x}.{:08x}", 7_000_000_000_000_000_000 + n as u64 / 10, n % 10);
            Row { id, document, updated_at: "2026-01-01T00:00:00.000Z".into(), position }
        })
        .collect()
}

/// Serves the pages, made beforehand, by cursor.
fn serve(rows: &[Row]) -> String {
    let chunks = rows.chunks(PAGE).count();
    let mut answers = HashMap::new();
    for (index, chunk) in rows.chunks(PAGE).enumerate() {
        let mut list = String::new();
        for row in chunk {
            write!(
                list,
                r#"{}{{"type":"upsert","collection":"invoices","mongoId":"{}","payload":{},"updatedAt":"{}","position":"{}"}}"#,
                if list.is_empty() { "" } else { "," }, row.id, row.document, row.updated_at, row.position,
            )
            .unwrap();
        }
        let last = index + 1 == chunks;
        let body = format!(
            r#"{{"success":true,"serverTime":"2026-01-01T00:00:00.000Z","changes":[{list}],"count":{},"hasMore":{},"cursor":"{}","checkpoint":"{}","complete":{last}}}"#,
            chunk.len(),
            !last,
            index + 1,
            rows.last().unwrap().position,
        );
        answers.insert(index, body);
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answers = Arc::new(answers);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answers = Arc::clone(&answers);
            std::thread::spawn(move || answer(stream.unwrap(), &answers));
        }
    });
    address
}

fn answer(mut stream: std::net::TcpStream, answers: &HashMap<usize, String>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(first)) = lines.next() {
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        let since = first.split("since=").nth(1).and_then(|rest| rest.split(['&', ' ']).next());
        let body = match since {
            _ if first.contains("/status") => r#"{"collections":["invoices"]}"#,
            since => &answers[&since.map_or(0, |since| since.parse().unwrap())],
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        if stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body.as_bytes()))
            .is_err()
        {
            return;
        }
    }
}

/// The most memory that this process ever had, the rows and pages made beforehand included.
fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// CPU time of this process so far, all threads.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10
}

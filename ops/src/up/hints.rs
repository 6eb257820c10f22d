//! What to try next in another terminal: commands that work as they stand here.

use std::path::Path;

use super::files::Files;

pub(super) fn print(uri: &str, database: &str, server: &str, files: &Files) {
    let [client, ops] = ["tidewire", "tidewire-ops"].map(program);
    let path = |path: &Path| shown(path);
    let (db, token) = (path(&files.replica()), path(&files.token()));
    let config = path(&files.config());
    println!(
        r#"
Try in another terminal:

  rows, while they change:
    {client} query --db {db} "SELECT number, customer, amount, status FROM invoices ORDER BY number DESC LIMIT 5"
    {client} status --db {db}
    sqlite3 -readonly {db} "SELECT status, count(*) FROM invoices GROUP BY status"

  your own change, there at once:
    mongosh "{uri}" --eval 'db.getSiblingDB("{database}").users.updateOne({{}}, {{$set: {{name: "It is me"}}}})'
    {ops} seed --uri "{uri}" --database {database} --trickle 50

  what a client is told:
    curl -s -H "Authorization: Bearer $(cat {token})" "{server}/api/sync/pull?limit=2"

  the replica against MongoDB, document by document:
    {ops} verify --uri "{uri}" --database {database} --config {config} --db {db} --token-file {token}
"#
    );
}

/// How the programs are called here: by cargo where cargo runs us, by name otherwise.
fn program(name: &str) -> String {
    if std::env::var_os("CARGO").is_none() {
        return name.to_owned();
    }
    // A debug build is at hand where we are one.
    let release = if cfg!(debug_assertions) { "" } else { "--release " };
    format!("cargo run -q {release}-p {name} --")
}

fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

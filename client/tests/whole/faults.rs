//! The program under faults: killed at any moment, on a disk that is full.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rusqlite::Connection;

use super::bank::{ACCOUNTS, Bank, EACH, balances};
use super::{one, token};

/// `tidewire` with what every run here has in common.
fn program(bank: &Bank, folder: &Path, command: &str) -> Command {
    std::fs::write(folder.join("token"), token("ada")).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_tidewire"));
    program.args([command, "--server", &bank.address]);
    program
        .arg("--token-file")
        .arg(folder.join("token"))
        .arg("--db")
        .arg(folder.join("replica.db"));
    program.stdout(Stdio::null()).stderr(Stdio::piped());
    program
}

/// Reads the total as an app would; `None` before the first copy is complete. Anything but the one
/// total that the bank ever had is a state that it never had.
fn check_total(db: &Path) -> Option<i64> {
    let reader =
        Connection::open_with_flags(db, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    let sql = "SELECT count(*), sum(balance) FROM accounts";
    let read = reader.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)));
    let (count, total): (i64, Option<i64>) = match read {
        Err(error) if error.to_string().starts_with("no such table") => return None,
        read => read.unwrap(),
    };
    let total = total.unwrap_or(0);
    let accounts = i64::try_from(ACCOUNTS).unwrap();
    assert_eq!((count, total), (accounts, EACH * accounts));
    Some(total)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_goes_on_and_readers_never_see_half_a_state() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut chance = rand::rngs::StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    // Small pages and a few transfers with each: copies, catch-ups and live pages all take a while.
    let bank = Bank::open(1, 1_500, 10).await;
    let (mut checks, mut kills) = (0, 0);
    while kills < 25 {
        let command = if kills % 8 == 7 { "rebuild" } else { "sync" };
        let mut child = program(&bank, folder.path(), command).spawn().unwrap();
        let end = Instant::now() + Duration::from_millis(chance.random_range(20..250));
        while Instant::now() < end {
            checks += u32::from(check_total(&db).is_some());
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        check_total(&db);
    }
    let run = program(&bank, folder.path(), "sync").arg("--once").output().unwrap();
    assert!(run.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&run.stderr));
    println!("{checks} reads between {kills} kills");
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok", "seed {seed}");
    assert_equal(&db, seed);
}

/// Every row is as the bank had it at the replica's cursor.
fn assert_equal(db: &Path, seed: u64) {
    let cursor: String = one(db, "SELECT cursor FROM _tidewire_status");
    let commit: u64 = cursor.strip_prefix("at.").unwrap().parse().unwrap();
    let conn = Connection::open(db).unwrap();
    let mut rows = conn.prepare("SELECT balance, _position FROM accounts ORDER BY _id").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let rows: Vec<(i64, String)> = rows.map(Result::unwrap).collect();
    let expected: Vec<(i64, String)> = balances(commit)
        .into_iter()
        .map(|(balance, at)| (balance, format!("{at:016x}.00000000")))
        .collect();
    for (account, (row, expected)) in
        rows.iter().zip(&expected).enumerate().filter(|(_, (a, b))| a != b)
    {
        eprintln!("account {account}: {row:?}, in the bank {expected:?}");
    }
    assert!(rows == expected, "the replica is not the bank at {cursor}; seed {seed}");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_no_more_stops_it_with_the_reason_and_later_it_goes_on() {
    // In blocks of 512 bytes: the disk ends in the middle of the copy, of the catch-up, of the live
    // pages.
    for blocks in [100, 150, 192, 240, 300, 400] {
        let folder = tempfile::tempdir().unwrap();
        let db = folder.path().join("replica.db");
        let bank = Bank::open(1, 2_000, 10).await;
        let mut once = program(&bank, folder.path(), "sync");
        once.arg("--once");
        let words: Vec<String> = std::iter::once(once.get_program())
            .chain(once.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        // A real error of a real write: no file may grow beyond that.
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec {}", words.join(" "));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(1), "{blocks}: {output:?}");
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(told.contains("the replica can't be used: "), "{blocks}: {told}");
        }
        assert!(blocks > 192 || !output.status.success(), "{blocks}: the disk was not full");
        check_total(&db);
        let run = once.output().unwrap();
        assert!(run.status.success(), "{blocks}: {}", String::from_utf8_lossy(&run.stderr));
        assert_equal(&db, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_program_on_the_same_replica_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bank = Bank::open(1, 60, 100).await;
    let mut first = program(&bank, folder.path(), "sync").spawn().unwrap();
    while check_total(&folder.path().join("replica.db")).is_none() {
        tokio::task::yield_now().await;
    }
    let second = program(&bank, folder.path(), "sync").arg("--once").output().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(told.contains(&format!("process {}", first.id())), "{told}");
    let third = program(&bank, folder.path(), "sync").arg("--once").output().unwrap();
    assert!(third.status.success(), "the lock died with its process");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_never_wait_while_a_copy_a_catch_up_and_a_rebuild_are_moved_in() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    let bank = Bank::open(300, 3_000, 200).await;
    let mut first = program(&bank, folder.path(), "sync").arg("--once").spawn().unwrap();
    tokio::task::block_in_place(|| first.wait()).unwrap();
    let reader =
        Connection::open_with_flags(&db, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    // A reader that would have to wait gets an error instead.
    reader.busy_timeout(Duration::ZERO).unwrap();
    let mut reads = 0;
    for (command, more) in [("sync", Some("--once")), ("rebuild", None), ("rebuild", None)] {
        let mut child = program(&bank, folder.path(), command).args(more).spawn().unwrap();
        let ended = loop {
            let sql = "SELECT count(*), sum(balance) FROM accounts";
            let seen: (i64, i64) =
                reader.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            let accounts = i64::try_from(ACCOUNTS).unwrap();
            assert_eq!(seen, (accounts, EACH * accounts), "during {command}");
            reads += 1;
            if let Some(ended) = child.try_wait().unwrap() {
                break ended;
            }
            tokio::task::yield_now().await;
        };
        assert!(ended.success(), "{command}: {ended}");
    }
    println!("{reads} reads");
    assert!(reads > 20);
}

//! Kills a writer at a random moment and looks at what the next one finds.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::cell::open;
use crate::data::{Change, Keys, Stream, mix};
use crate::store::Store;

const STREAM: Stream = Stream { documents: 20_000, keys: Keys::Random };

/// Appends batches of 1 to 1,000 changes; says each committed number on standard output.
pub fn write(name: &str, dir: &Path) -> Result<()> {
    let mut store = open(name, dir)?;
    let mut seq = store.last()?;
    let mut out = std::io::stdout();
    loop {
        let size = 1 + mix(seq) % if mix(seq + 7) % 4 == 0 { 1_000 } else { 20 };
        let batch: Vec<Change> = (seq + 1..=seq + size).map(|seq| STREAM.change(seq)).collect();
        store.append(&batch)?;
        seq += size;
        out.write_all(&seq.to_le_bytes())?;
        out.flush()?;
    }
}

/// Kills each store's writer `kills` times, the store growing from kill to kill.
pub fn run(stores: &[String], kills: u32) -> Result<()> {
    println!(
        "| store | kills | changes written | lost, most at once | holes or wrong rows | open, slowest |"
    );
    println!("|---|---|---|---|---|---|");
    for name in stores {
        let dir = tempfile::tempdir()?;
        let (mut lost_most, mut wrong, mut open_most, mut last) = (0, 0, Duration::ZERO, 0);
        let mut lossy = 0;
        for kill in 0..kills {
            let acknowledged =
                kill_one(name, dir.path(), 150 + mix(u64::from(kill)) % 600)?.max(last);
            let started = Instant::now();
            let store = open(name, dir.path())?;
            open_most = open_most.max(started.elapsed());
            last = store.last()?;
            let lost = acknowledged.saturating_sub(last);
            lossy += u32::from(lost > 0);
            lost_most = lost_most.max(lost);
            wrong += check(&*store, last)?;
        }
        println!(
            "| {name} | {kills} | {last} | {lost_most} (in {lossy} of {kills}) | {wrong} | {} ms |",
            open_most.as_millis()
        );
    }
    Ok(())
}

fn kill_one(name: &str, dir: &Path, after_ms: u64) -> Result<u64> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["write", name])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut pipe = child.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let (mut said, mut last) = ([0; 8], 0);
        while pipe.read_exact(&mut said).is_ok() {
            last = u64::from_le_bytes(said);
        }
        last
    });
    std::thread::sleep(Duration::from_millis(after_ms));
    child.kill()?;
    child.wait()?;
    Ok(reader.join().expect("the reader"))
}

/// Counts what is not as a prefix of the stream must be: rows, key index, channels.
fn check(store: &dyn Store, last: u64) -> Result<u64> {
    let mut wrong = 0;
    let mut latest = std::collections::HashMap::new();
    let mut of_user = std::collections::HashMap::<u32, usize>::new();
    for seq in 1..=last {
        let expected = Change { update: false, ..STREAM.change(seq) };
        wrong += u64::from(store.get(seq)?.as_ref() != Some(&expected));
        latest.insert(expected.key, seq);
        *of_user.entry(expected.channels[1]).or_default() += 1;
    }
    for (key, seq) in &latest {
        wrong += u64::from(store.latest(key)? != Some(*seq));
    }
    for (channel, count) in of_user.iter().take(100) {
        wrong += u64::from(store.page(0, &[*channel], usize::MAX)?.0 != *count);
    }
    ensure!(store.page(0, &[0], usize::MAX)?.0 as u64 == last, "role:admin misses changes");
    Ok(wrong)
}

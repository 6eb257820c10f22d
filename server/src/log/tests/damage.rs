//! Flipped bytes at random places of the file and of its write-ahead log: they are found when the log is
//! opened or read, or they change nothing. Nothing wrong is ever read.

use std::path::Path;

use super::rebuild::{Outcomes, rebuild_it};
use super::*;

/// Damaged files, each with up to eight flipped bits; `TIDEWIRE_TEST_FLIPS` for more.
const FLIPS: usize = 120;
const READERS: usize = 3;

/// A log's two files as bytes.
#[derive(Clone)]
pub(super) struct Image {
    main: Vec<u8>,
    wal: Option<Vec<u8>>,
}

impl Image {
    fn take(dir: &Path) -> Self {
        let main = std::fs::read(dir.join("log.db")).unwrap();
        Self { main, wal: std::fs::read(dir.join("log.db-wal")).ok() }
    }

    pub(super) fn put(&self, dir: &Path) {
        std::fs::write(dir.join("log.db"), &self.main).unwrap();
        if let Some(wal) = &self.wal {
            std::fs::write(dir.join("log.db-wal"), wal).unwrap();
        }
    }

    fn flip(&mut self, rng: &mut StdRng) {
        for _ in 0..rng.random_range(1..=8) {
            let bytes = match &mut self.wal {
                Some(wal) if !wal.is_empty() && rng.random_bool(0.5) => wal,
                _ => &mut self.main,
            };
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << rng.random_range(0..8);
        }
    }
}

/// What readers knew before the damage.
pub(super) struct Before {
    pub(super) model: Arc<RwLock<Model>>,
    pub(super) readers: Vec<(MyView, Since, Documents, Position)>,
}

/// A log with a history, as it lies on the disk when its server is killed and when it is stopped.
pub(super) fn log(rng: &mut StdRng) -> (Before, [Image; 2]) {
    let mut source = Source::new();
    let mut followers: Vec<Follower> = (0..READERS).map(|_| Follower::new(rng)).collect();
    for round in 0..60 {
        match rng.random_range(0..12) {
            0 => source.compact(rng),
            1 => {
                // Part of the write-ahead log is in the main file too.
                let other = rusqlite::Connection::open(source.dir.path().join("log.db")).unwrap();
                other.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
            }
            _ => source.write(rng),
        }
        for follower in &mut followers {
            while round < 45 && rng.random_bool(0.7) && follower.step(&source, 200) {}
        }
    }
    let readers = followers
        .into_iter()
        .map(|reader| (reader.view, reader.since, reader.replica, reader.farthest))
        .collect();
    let before = Before { model: Arc::clone(&source.model), readers };
    let killed = Image::take(source.dir.path());
    source.writer = None;
    (before, [killed, Image::take(source.dir.path())])
}

#[derive(Debug, Default)]
struct Counts {
    at_open: usize,
    at_read: usize,
    harmless: usize,
    rebuilt: Outcomes,
}

/// Reads to the end; what was found on the way.
pub(super) fn read_on(
    follower: &mut Follower,
    source: (&Reader, &RwLock<Model>),
    rng: &mut StdRng,
) -> Option<LogError> {
    for _ in 0..10_000 {
        match follower.try_step(source.0, source.1, rng.random_range(1..300)) {
            Ok(true) => {}
            // A log whose end was cut off waits for it.
            Ok(false) | Err(ReadError::Ahead | ReadError::Resync(_)) => return None,
            Err(ReadError::Log(error)) => return Some(error),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("there is no end");
}

/// Opens a damaged log and reads all of it; what was found.
fn read_all(dir: &Path, before: &Before, rng: &mut StdRng, counts: &mut Counts) -> bool {
    let found = |error: LogError| assert!(error.is_damage(), "{error}: {error:?}");
    let (mut writer, reader) = match Writer::open(dir, &options()) {
        Ok(opened) => opened,
        Err(error) => {
            found(error);
            counts.at_open += 1;
            return true;
        }
    };
    let mut is_found = false;
    for (view, since, replica, farthest) in &before.readers {
        let mut behind = Follower::new(rng);
        (behind.view, behind.since) = (view.clone(), since.clone());
        (behind.replica, behind.farthest) = (replica.clone(), *farthest);
        for mut follower in [Follower::new(rng), behind] {
            if let Some(error) = read_on(&mut follower, (&reader, &before.model), rng) {
                found(error);
                is_found = true;
            }
        }
    }
    if let Err(error) = writer.compact(Position::MAX, 10_000) {
        found(error);
        is_found = true;
    }
    counts.at_read += usize::from(is_found);
    counts.harmless += usize::from(!is_found);
    is_found
}

#[test]
fn flipped_bytes_are_found_at_open_or_at_read_and_nothing_wrong_is_served() {
    let seed =
        std::env::var("TIDEWIRE_TEST_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    let flips =
        std::env::var("TIDEWIRE_TEST_FLIPS").map_or(FLIPS, |n| n.parse().expect("a number"));
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut counts = Counts::default();
    let (mut before, mut images) = log(&mut rng);
    for n in 0..flips {
        if n % 40 == 39 {
            (before, images) = log(&mut rng);
        }
        let dir = tempfile::tempdir().unwrap();
        let mut image = images[n % 2].clone();
        image.flip(&mut rng);
        image.put(dir.path());
        println!("damage {n}");
        let found = read_all(dir.path(), &before, &mut rng, &mut counts);
        if found && n % 3 == 0 {
            image.put(dir.path());
            let checked = check(&dir.path().join("log.db"), &mut |_, _, _| {}).unwrap();
            assert!(checked.findings_total > 0, "what a reader found, a check does not");
            rebuild_it(dir.path(), &before, &mut rng, &mut counts.rebuilt);
        }
    }
    println!("{counts:?}");
    assert!(counts.at_open > 0 && counts.at_read > 0 && counts.rebuilt.done > 0, "{counts:?}");
}

#[test]
fn an_undamaged_log_has_no_findings_at_any_moment() {
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..4 {
        let (before, images) = log(&mut rng);
        for image in images {
            let dir = tempfile::tempdir().unwrap();
            image.put(dir.path());
            let checked = check(&dir.path().join("log.db"), &mut |_, _, _| {}).unwrap();
            assert_eq!(checked.findings, [""; 0]);
            let mut counts = Counts::default();
            assert!(!read_all(dir.path(), &before, &mut rng, &mut counts));
            let mut outcomes = Outcomes::default();
            rebuild_it(dir.path(), &before, &mut rng, &mut outcomes);
            assert_eq!(outcomes, Outcomes { done: 1, ..Outcomes::default() });
        }
    }
}

#[test]
fn a_log_that_was_found_damaged_is_refused_until_it_is_rebuilt() {
    let mut rng = StdRng::seed_from_u64(3);
    let (before, [_, image]) = log(&mut rng);
    let dir = tempfile::tempdir().unwrap();
    image.put(dir.path());
    mark_damaged(dir.path(), "change 7 does not match its checksum").unwrap();
    let error = Writer::open(dir.path(), &options()).unwrap_err();
    assert!(matches!(error, LogError::NeedsRebuild { .. }), "{error}");
    assert!(error.to_string().contains("tidewire-ops log rebuild"), "{error}");
    rebuild_it(dir.path(), &before, &mut rng, &mut Outcomes::default());
}

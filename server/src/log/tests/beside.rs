//! Readers beside the writer and compaction, each in a thread of its own: what they are told is what
//! the source had, however the three interleave.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const READERS: u64 = 3;
const ROUNDS: u32 = 250;

/// One reader's life: pages of any size, views that change, resyncs; until the writer is done, and then
/// to the end.
fn follow(reader: &Reader, model: &RwLock<Model>, done: &AtomicBool, seed: u64) -> (usize, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut follower = Follower::new(&mut rng);
    let mut last_round = false;
    loop {
        let limit = rng.random_range(1..80);
        let more = match follower.try_step(reader, model, limit) {
            Ok(more) => more,
            // The bounds of a test are so small that the index moves all the time.
            Err(ReadError::Log(LogError::Busy)) => true,
            Err(error) => panic!("seed {seed}: {error}"),
        };
        if more {
            continue;
        }
        if last_round {
            let head = reader.head().borrow().position;
            assert_eq!(follower.farthest, head, "a reader at the head is complete");
            return (follower.compared, follower.resyncs);
        }
        last_round = done.load(Ordering::Acquire);
        if rng.random_bool(0.1) {
            follower.view = MyView::random(&mut rng);
        }
    }
}

fn run(seed: u64) -> (usize, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut source = Source::new();
    let (reader, model) = (source.reader.clone(), Arc::clone(&source.model));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|n| {
                let (reader, model, done) = (&reader, &*model, &done);
                scope.spawn(move || follow(reader, model, done, seed ^ (n + 1) << 32))
            })
            .collect();
        for _ in 0..ROUNDS {
            match rng.random_range(0..12) {
                0 => source.compact(&mut rng),
                _ => source.write(&mut rng),
            }
        }
        done.store(true, Ordering::Release);
        let told = readers.into_iter().map(|reader| reader.join().expect("a reader"));
        told.fold((0, 0), |sum, told| (sum.0 + told.0, sum.1 + told.1))
    })
}

#[test]
fn readers_beside_the_writer_and_compaction_see_only_what_the_source_had() {
    over_seeds(4, run);
}

//! What a stretch of the log tells of some channels is what a page tells of them.

use super::*;

/// What a read of the log emits, in a form to compare.
fn noted(entry: &Entry<'_>) -> (Position, String, i32, Option<i32>) {
    let (key, document) = match entry.body {
        Body::Upsert(document) => (document, Some(number(document.as_bytes()))),
        Body::Delete(key) => (key, None),
    };
    (entry.position, entry.collection.to_owned(), key.get_i32("_id").unwrap(), document)
}

#[test]
fn news_of_the_channels_that_a_stretch_touched_are_what_a_page_tells_of_it() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut source = Source::new();
    let mut told = 0;
    for _ in 0..120 {
        let view = MyView::random(&mut rng);
        let scope = Scope::Channels { collections: &view.collections, channels: &view.channels };
        let page = |since: &Since, reader: &Reader| {
            let request = PageRequest { since, scope, limit: 1_000, operation_time: 0 };
            let mut entries = Vec::new();
            let end = reader.page(&request, &mut |entry| {
                entries.push(noted(entry));
                Flow::Took
            });
            (entries, end.unwrap())
        };
        let mut since = Since::Nothing;
        loop {
            let (_, end) = page(&since, &source.reader);
            since = Since::Cursor(end.cursor);
            if !end.has_more {
                break;
            }
        }
        let after = *source.reader.head().borrow();
        for _ in 0..rng.random_range(1..4) {
            source.write(&mut rng);
        }
        let through = *source.reader.head().borrow();
        let Touched::Channels(numbers) = source.reader.touched_since(after.seq) else { continue };
        let watched = ChannelKey::of(&view.collections, &view.channels);
        let touched = numbers.iter().filter_map(|n| source.reader.channel_key(*n).unwrap());
        let channels: Vec<ChannelKey> = touched.filter(|key| watched.contains(key)).collect();
        let mut entries = Vec::new();
        let mut emit = |entry: &Entry<'_>| {
            entries.push(noted(entry));
            Flow::Took
        };
        let whole = source.reader.news(after, through, &channels, 1_000, &mut emit).unwrap();
        let (wanted, end) = page(&since, &source.reader);
        // Farther behind, a page leaves out what is superseded.
        if !end.has_more && whole && through.seq - after.seq <= 40 {
            assert_eq!(entries, wanted);
            let Since::Cursor(cursor) = &since else { panic!("no cursor") };
            assert_eq!(cursor.moved_to(through), end.cursor);
            told += entries.len();
        }
    }
    assert!(told > 300, "{told} changes compared");
}

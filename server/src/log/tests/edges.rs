//! Bounds and seams that random tests hardly come to.

use super::*;

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

fn read(
    reader: &Reader,
    since: &Since,
    (collections, channels): (&[String], &[String]),
    limit: usize,
) -> Result<(Vec<i32>, PageEnd), ReadError> {
    let scope = Scope::Channels { collections, channels };
    let request = PageRequest { since, scope, limit, operation_time: 0 };
    let mut ids = Vec::new();
    let end = reader.page(&request, &mut |entry| {
        let (Body::Upsert(document) | Body::Delete(document)) = entry.body;
        ids.push(document.get_i32("_id").unwrap());
        Flow::Took
    })?;
    Ok((ids, end))
}

/// Puts (or deletes) a plan of these channels, at this second, in a commit of its own.
fn put(source: &mut Source, second: u64, id: i32, channels: Option<&[String]>) {
    let document = rawdoc! { "_id": id, "n": id };
    let state = channels.map(|channels| (document.as_bytes().to_vec(), channels.to_vec()));
    let position = Position::new(second << 32, 0);
    let collection = COLLECTIONS.iter().position(|name| *name == "plans").unwrap();
    source.append(&[Known { position, collection, id, state, as_before: false }]);
    commit(source, second);
}

fn commit(source: &mut Source, second: u64) {
    let tail = TailState { resume_token: None, high_water: second << 32 };
    source.writer().set_tail(tail).unwrap();
    source.writer().commit().unwrap();
}

#[test]
fn every_cursor_that_is_given_out_is_taken_back_however_many_names_it_says() {
    let mut source = Source::new();
    let plans = ["plans".to_owned()];
    let views = ["a", "b", "c"].map(|prefix| names(prefix, Cursor::NAMES_MAX - 1));
    for (view, second) in views.iter().zip([2, 12, 22]) {
        for id in 0..3 {
            let id = second + id;
            put(&mut source, u64::try_from(id).unwrap(), id, Some(&view[..1]));
        }
    }
    let (_, end) = read(&source.reader, &Since::Nothing, (&plans, &views[0]), 100).unwrap();
    let again = |end: PageEnd| Since::Cursor(end.cursor.to_string().parse().unwrap());
    // In the middle of what is told of the change it says both views.
    let (told, end) = read(&source.reader, &again(end), (&plans, &views[1]), 1).unwrap();
    assert_eq!((told.len(), end.complete), (1, false));
    let inside = again(end);
    let (told, end) = read(&source.reader, &inside, (&plans, &views[1]), 100).unwrap();
    assert_eq!((told.len(), end.complete), (5, true));
    // What it held of three such views no cursor can say.
    let refused = read(&source.reader, &inside, (&plans, &views[2]), 1);
    let is_refused = matches!(refused, Err(ReadError::Resync(ResyncReason::RulesChanged)));
    assert!(is_refused, "{refused:?}");
}

#[test]
fn a_first_copy_put_off_by_new_rules_is_too_old_where_deletes_since_its_beginning_are_gone() {
    let mut source = Source::new();
    let (plans, channels) = (["plans".to_owned()], ["everyone".to_owned()]);
    for id in 2..12 {
        put(&mut source, u64::try_from(id).unwrap(), id, Some(&channels));
    }
    let (told, end) = read(&source.reader, &Since::Nothing, (&plans, &channels), 3).unwrap();
    assert_eq!(told, [2, 3, 4]);
    put(&mut source, 20, 2, None);
    put(&mut source, 21, 30, Some(&channels));
    let id = source.writer().collection("plans").unwrap();
    source.writer().follow(id, "other rules").unwrap();
    // Known before, and now under other rules.
    source.writer().follow(id, "rules").unwrap();
    let copied = CopyState { finished: true, ..CopyState::default() };
    source.writer().set_copy_state(id, copied).unwrap();
    commit(&mut source, 22);
    let inside = Since::Cursor(end.cursor);
    let (told, _) = read(&source.reader, &inside, (&plans, &channels), 1_000).unwrap();
    assert!(told.contains(&2), "what is deleted since is told: {told:?}");
    while source.writer().compact(Position::new(22 << 32, 0), 1_000).unwrap().more {}
    let refused = read(&source.reader, &inside, (&plans, &channels), 1_000);
    let is_refused = matches!(refused, Err(ReadError::Resync(ResyncReason::CursorTooOld)));
    assert!(is_refused, "{refused:?}");
}

#[tokio::test]
async fn damage_that_push_or_a_comparison_meets_is_noted_as_a_pages_is() {
    for read_on in [by_push as fn(&Reader, &Cursor), by_comparison] {
        let mut source = Source::new();
        let (plans, channels) = (["plans".to_owned()], ["everyone".to_owned()]);
        put(&mut source, 2, 1, Some(&channels));
        let (_, end) = read(&source.reader, &Since::Nothing, (&plans, &channels), 9).unwrap();
        let other = rusqlite::Connection::open(source.dir.path().join("log.db")).unwrap();
        let changed = other.execute("UPDATE changes SET wall_time = wall_time + 1", []);
        assert_eq!(changed, Ok(1));
        read_on(&source.reader, &end.cursor);
        let noted = tokio::time::timeout(Duration::from_secs(5), source.reader.damaged());
        assert!(noted.await.is_ok_and(|found| !found.is_empty()));
    }
}

fn by_push(reader: &Reader, _: &Cursor) {
    let keys = ChannelKey::of(&["plans".to_owned()], &["everyone".to_owned()]);
    let head = *reader.head().borrow();
    let told = reader.news(Head::default(), head, &keys, 9, &mut |_| Flow::Took);
    assert!(matches!(&told, Err(ReadError::Log(error)) if error.is_damage()), "{told:?}");
}

fn by_comparison(reader: &Reader, at: &Cursor) {
    let channels = &["everyone".to_owned()];
    let from = None;
    let request = DocumentsRequest { at, collection: "plans", channels, from, operation_time: 0 };
    let told = reader.documents(&request, &mut |_| Flow::Took);
    let is_damage = |error: &DocumentsError| matches!(error, DocumentsError::Read(ReadError::Log(error)) if error.is_damage());
    assert!(told.as_ref().is_err_and(is_damage), "{told:?}");
}

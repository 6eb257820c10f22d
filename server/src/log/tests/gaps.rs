//! Where a log was copying, it continues no cursor of another one.

use super::super::cursor::{Basis, name_hash};
use super::*;

#[test]
fn a_cursor_of_another_log_is_not_continued_where_this_one_was_copying() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = Writer::open(dir.path(), &options()).unwrap();
    let time = |second: u64| second << 32;
    let id = writer.collection("plans").unwrap();
    let mut copy = |finished: bool, second: u64| {
        writer.set_copy_state(id, CopyState { finished, ..CopyState::default() }).unwrap();
        writer.set_tail(TailState { resume_token: None, high_water: time(second) }).unwrap();
        writer.commit().unwrap();
    };
    let basis = || Basis { log_id: 7, source: name_hash(&options().source), rules: vec![0] };
    let read = |second: u64| {
        // Complete, as another log gave it out.
        let position = Position::new(time(second), 0);
        let view = super::super::cursor::View { everything: true, ..Default::default() };
        let since = Since::Cursor(Cursor { position, view, basis: basis(), inside: None });
        let request =
            PageRequest { since: &since, scope: Scope::Everything, limit: 9, operation_time: 0 };
        reader.page(&request, &mut |_| Flow::Took)
    };
    let is_too_old = |page| matches!(page, Err(ReadError::Resync(ResyncReason::CursorTooOld)));
    // Nor are its documents told there.
    let documents = |second: u64| {
        let (collections, channels) = (["plans".to_owned()], ["everyone".to_owned()]);
        let scope = Scope::Channels { collections: &collections, channels: &channels };
        let view = super::super::cursor::View::of(&scope);
        let position = Position::new(time(second), 0);
        let at = &Cursor { position, view, basis: basis(), inside: None };
        let [collection] = &collections;
        let (from, channels) = (None, &channels);
        let request = DocumentsRequest { at, collection, channels, from, operation_time: 0 };
        match reader.documents(&request, &mut |_| Flow::Took) {
            Err(DocumentsError::Read(error)) => Err(error),
            told => Ok(told.expect("of this log")),
        }
    };
    let is_refused = |told| matches!(told, Err(ReadError::Resync(ResyncReason::CursorTooOld)));
    // A new log: what is deleted before the copy's end it may never have had.
    copy(false, 100);
    copy(true, 110);
    assert!(is_too_old(read(105)));
    read(110).unwrap();
    // History is lost: the log goes on from 120 at 200. No difference is found, which proves nothing about
    // documents that came and went between.
    copy(true, 120);
    copy(false, 200);
    assert!(matches!(read(150), Err(ReadError::Copying)));
    read(120).expect("this log's own reader waits for the copy");
    copy(true, 210);
    assert!(is_too_old(read(150)));
    assert!(is_too_old(read(205)));
    assert!(is_refused(documents(150)) && is_refused(documents(205)));
    documents(210).unwrap();
    for second in [115, 120, 210] {
        read(second).unwrap();
    }
    // It changes untold at 250, which is read together with what was told before: nothing is committed
    // since 210, but up to 250 the log is exact.
    writer.copy_again(id, CopyState::default(), time(250)).unwrap();
    let finished = CopyState { finished: true, ..CopyState::default() };
    writer.set_copy_state(id, finished).unwrap();
    writer.set_tail(TailState { resume_token: None, high_water: time(260) }).unwrap();
    writer.commit().unwrap();
    read(249).unwrap();
    assert!(is_too_old(read(250)) && is_too_old(read(259)));
    read(260).unwrap();
}

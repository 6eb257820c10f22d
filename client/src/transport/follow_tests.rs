//! What a frame follows from, on an open socket.

use futures::{SinkExt as _, StreamExt as _};
use tokio::net::TcpListener;
use tokio_tungstenite::accept_async;

use super::*;

/// What is heard of the first frame after a welcome.
async fn heard(welcome: &'static str, frame: String) -> Result<Position, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut server = accept_async(stream).await.unwrap();
        server.next().await.unwrap().unwrap();
        server.send(Message::text(welcome)).await.unwrap();
        server.send(Message::text(frame)).await.unwrap();
        while server.next().await.is_some() {}
    });
    let line = Line::new(&Url::parse(&url).unwrap());
    let listen = || {
        let request = ListenRequest { since: "c".to_owned(), complete: true };
        line.clone().listen(request, Token::new("a.b.c"))
    };
    assert!(matches!(listen().await, Ok(Heard::Listening)));
    match listen().await? {
        Heard::Page(page) => Ok(page.head().checkpoint),
        Heard::Listening => panic!("it was open"),
    }
}

#[tokio::test]
async fn a_frame_that_was_left_out_is_noticed_by_the_next_one_whichever_it_is() {
    const WELCOME: &str = r#"{"type":"welcome","after":"0000000000000004.00000000"}"#;
    let at = |n: u64| format!("{n:016x}.00000000");
    let changes = |after| {
        let (after, through) = (at(after), at(9));
        format!(
            r#"{{"type":"changes","after":"{after}","changes":[],"through":"{through}","cursor":"d","complete":true}}"#
        )
    };
    let keepalive = |after: &str| {
        format!(r#"{{"type":"keepalive",{after}"through":"{}","cursor":"d"}}"#, at(9))
    };
    let follows = |after| keepalive(&format!(r#""after":"{}","#, at(after)));
    for frame in [changes(4), follows(4), keepalive("")] {
        assert_eq!(heard(WELCOME, frame.clone()).await, Ok(Position::new(9, 0)), "{frame}");
    }
    for gap in [changes(5), follows(5)] {
        let failure = heard(WELCOME, gap.clone()).await.unwrap_err();
        assert!(matches!(failure, Failure::Garbage(_)), "{failure:?}");
        // An older server's welcome does not say.
        assert!(heard(r#"{"type":"welcome"}"#, gap).await.is_ok());
    }
}

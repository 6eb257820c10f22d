//! A token renewed on an open socket.

use futures::{SinkExt as _, StreamExt as _};
use tokio::net::TcpListener;
use tokio_tungstenite::accept_async;

use super::*;

/// What the second listening says to an error of this code, which the server sends once it has read
/// `frames` of the client's.
async fn told(code: &'static str, frames: usize, tokens: [&str; 2]) -> Failure {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut server = accept_async(stream).await.unwrap();
        for n in 0..frames {
            server.next().await.unwrap().unwrap();
            if n == 0 {
                server.send(Message::text(r#"{"type":"welcome"}"#)).await.unwrap();
            }
        }
        let error = format!(r#"{{"type":"error","error":{{"code":"{code}","message":"no"}}}}"#);
        server.send(Message::text(error)).await.unwrap();
        while server.next().await.is_some() {}
    });
    let line = Line::new(&Url::parse(&url).unwrap());
    let listen = |token| {
        let request = ListenRequest { since: "c".to_owned(), complete: true };
        // Of one subject; only what stands for the signature differs.
        let claims = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiIsImlzcyI6Imh0dHBzOi8vYSIsImV4cCI6MX0";
        line.clone().listen(request, Token::new(&format!("{claims}.{token}")))
    };
    assert!(matches!(listen(tokens[0]).await, Ok(Heard::Listening)));
    listen(tokens[1]).await.unwrap_err()
}

#[tokio::test]
async fn an_error_about_the_token_before_is_not_taken_for_one_about_the_new_one() {
    // On its way before the server has read of the new one, or after.
    for frames in [1, 2] {
        let failure = told("token_expired", frames, ["a", "b"]).await;
        assert!(matches!(failure, Failure::Unreachable(_)), "{failure:?}");
    }
    let failure = told("token_expired", 1, ["a", "a"]).await;
    assert!(matches!(failure, Failure::Unauthorized(_)), "{failure:?}");
    let failure = told("forbidden", 2, ["a", "b"]).await;
    assert!(matches!(failure, Failure::Forbidden(_)), "{failure:?}");
}

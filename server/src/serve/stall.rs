//! A stream whose writes must get on: a client that takes nothing for a while, or a drop now and then,
//! loses its connection, and with it the page that is kept for it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Wraps a stream; reads pass as they are.
#[derive(Debug)]
pub(super) struct StallGuard<S> {
    stream: S,
    stall_max: Duration,
    /// Bytes a second.
    rate_min: f64,
    /// Running since the stream last refused to take more.
    stalled: Option<Pin<Box<Sleep>>>,
    /// When it first refused, since all there was to take was taken, and what it has taken since.
    slow: Option<(Instant, u64)>,
}

impl<S> StallGuard<S> {
    /// Writes to `stream` fail once nothing was taken for `stall_max`, or for longer than that less than
    /// `rate_min` bytes a second.
    pub(super) fn new(stream: S, stall_max: Duration, rate_min: u32) -> Self {
        Self { stream, stall_max, rate_min: rate_min.into(), stalled: None, slow: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.stalled = None;
            return poll;
        }
        let now = Instant::now();
        let (since, taken) = *self.slow.get_or_insert((now, 0));
        #[expect(
            clippy::cast_precision_loss,
            reason = "bytes of one connection, and a rough measure"
        )]
        let earned = Duration::from_secs_f64(taken as f64 / self.rate_min);
        let until = (now + self.stall_max).min(since + self.stall_max + earned);
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes too little")))
    }

    fn wrote(&mut self, poll: &Poll<io::Result<usize>>) {
        if let (Some((_, taken)), Poll::Ready(Ok(bytes))) = (&mut self.slow, poll) {
            *taken = taken.saturating_add(*bytes as u64);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallGuard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallGuard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(&poll);
        self.watch(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.wrote(&poll);
        self.watch(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        if poll.is_ready() {
            self.slow = None;
        }
        self.watch(cx, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_reader_that_takes_nothing_loses_the_stream_and_a_slow_one_keeps_it() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut guarded = StallGuard::new(ours, Duration::from_millis(50), 1);
        guarded.write_all(&[0; 16]).await.unwrap();
        assert_eq!(guarded.write_all(&[0; 1]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        theirs.read_exact(&mut [0; 8]).await.unwrap();
        guarded.write_all(&[0; 8]).await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_takes_a_drop_now_and_then_loses_the_stream_and_a_steady_one_keeps_it() {
        for (rate_min, is_kept) in [(1_000_000, false), (1, true)] {
            let (ours, mut theirs) = tokio::io::duplex(16);
            let mut guarded = StallGuard::new(ours, Duration::from_millis(200), rate_min);
            let drips = tokio::spawn(async move {
                let mut drop = tokio::time::interval(Duration::from_millis(5));
                loop {
                    drop.tick().await;
                    if theirs.read_exact(&mut [0; 1]).await.is_err() {
                        return;
                    }
                }
            });
            let written = guarded.write_all(&[0; 150]).await;
            assert_eq!(written.is_ok(), is_kept, "{written:?}");
            guarded.flush().await.unwrap_or_default();
            drop(guarded);
            drips.await.unwrap();
        }
    }
}

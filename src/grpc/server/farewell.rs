//! The last moments of a connection, after HTTP/2 is done with it.
//!
//! A socket that is closed while bytes of the client lie in it unread (an acknowledgement, a window update) is reset by the
//! kernel, and what we wrote and the network has not delivered yet is lost with it: an answer that is on record and that
//! nobody gets. So we stop writing, read until the client has closed its side too, and only then close.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// A stream that HTTP/2 takes and swallows, and that we still hold when it is done. Nobody ever waits for the lock: HTTP/2
/// is polled by the task that holds the other half, or not at all any more.
#[derive(Debug)]
pub(super) struct Held<S>(Arc<Mutex<S>>);

impl<S> Held<S> {
    /// The same stream twice: for HTTP/2, and for the end.
    pub(super) fn pair(stream: S) -> (Self, Self) {
        let stream = Arc::new(Mutex::new(stream));
        (Self(Arc::clone(&stream)), Self(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Held<S> {
    /// Waits until the client has closed its side as well, or `limit` is over.
    pub(super) async fn see_off(mut self, limit: Duration) {
        let seeing_off = async {
            // Written by HTTP/2 already, unless it broke off. An error means that the client is gone.
            self.shutdown().await?;
            let mut rest = [0; 4096];
            while self.read(&mut rest).await? > 0 {}
            Ok::<(), io::Error>(())
        };
        let _ = tokio::time::timeout(limit, seeing_off).await;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.lock().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_shutdown(context)
    }
}

//! A body of many messages, each of which has to come in within its time. Between two of them there may be silence: how
//! long, is the stream's business.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;
use tower::BoxError;

/// What stands before each message: a flag, and four bytes of length. Source: gRPC over HTTP/2, "Length-Prefixed-Message".
const PREFIX: usize = 5;

/// Each message of `request` has to come in whole within `time`, counted from when we wait for the rest of it.
pub(in crate::grpc) fn paced<B>(request: Request<B>, time: Duration) -> Request<Paced<B>> {
    request.map(|body| Paced { body, time, frames: Frames::default(), due: None })
}

/// A body whose messages have their time.
pub(in crate::grpc) struct Paced<B> {
    body: B,
    time: Duration,
    frames: Frames,
    /// Set while the rest of a message is waited for.
    due: Option<Pin<Box<Sleep>>>,
}

/// Where in its messages a sequence of bytes stands.
#[derive(Debug, Default)]
struct Frames {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that are here.
    begun: usize,
    /// Bytes of the message that are not.
    missing: usize,
}

impl Frames {
    /// Takes more bytes; whether a message came to its end in them.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        let mut ended = false;
        while !bytes.is_empty() {
            if self.missing > 0 {
                let rest = bytes.len().min(self.missing);
                bytes = bytes.get(rest..).unwrap_or_default();
                self.missing -= rest;
                ended |= self.missing == 0;
                continue;
            }
            let (first, rest) = bytes.split_at(1);
            bytes = rest;
            if let (Some(place), Some(byte)) = (self.prefix.get_mut(self.begun), first.first()) {
                *place = *byte;
            }
            self.begun += 1;
            if self.begun == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.begun = 0;
                self.missing = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                ended |= self.missing == 0;
            }
        }
        ended
    }

    fn is_amid(&self) -> bool {
        self.begun > 0 || self.missing > 0
    }
}

impl<B> http_body::Body for Paced<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let come = Pin::new(&mut self.body).poll_frame(context);
        match &come {
            Poll::Ready(Some(Ok(frame))) => {
                let ended = frame.data_ref().is_some_and(|data| self.frames.take(data));
                if ended || !self.frames.is_amid() {
                    self.due = None;
                }
            }
            Poll::Ready(_) => {}
            Poll::Pending if self.frames.is_amid() => {
                let time = self.time;
                let due = self.due.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
                if due.as_mut().poll(context).is_ready() {
                    let late = tonic::Status::deadline_exceeded("a message took too long to come in");
                    return Poll::Ready(Some(Err(late.into())));
                }
            }
            Poll::Pending => {}
        }
        come.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_whole_when_its_last_byte_is_there_however_the_bytes_are_cut() {
        let two = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[0, 0, 0, 1, 0]].concat();
        for size in 1..=two.len() {
            let mut frames = Frames::default();
            let ends = two.chunks(size).filter(|chunk| frames.take(chunk)).count();
            assert!((1..=2).contains(&ends), "{size}: {ends}");
            assert_eq!((frames.begun, frames.missing), (0, 256), "{size}: amid the third");
        }
        let mut frames = Frames::default();
        assert!(!frames.is_amid() && !frames.take(&[0]) && frames.is_amid(), "one byte is a beginning");
    }
}

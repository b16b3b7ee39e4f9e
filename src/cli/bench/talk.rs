//! A stream of questions: one call that stays open, and answers that find whoever waits for them.
//!
//! As on any [`line`](super::line), the bytes of a question are sent as they are, and of an answer only the decision is read.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::line::{ANSWER_BYTES, Seen, SeenError, count, refused, screaming, word};
use super::tally::{Decisions, Failure, Outcome, Refusal};

/// Messages that may wait until the server reads them.
const WAITING: usize = 16;
/// What stands before each message: a flag, and four bytes of length.
const PREFIX: usize = 5;

/// The messages of a stream, as the body of its request.
pub type Messages = StreamBody<ReceiverStream<Result<Frame<Bytes>, Infallible>>>;

/// A stream that is open.
pub struct Talk {
    to: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Who waits for which answer.
#[derive(Default)]
struct Waiting {
    of: HashMap<u64, oneshot::Sender<Outcome>>,
    has_ended: bool,
}

/// One who waits, and does no longer when it is dropped.
struct Wait<'t>(&'t Talk, u64);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().of.remove(&self.1);
    }
}

/// The body of a request that begins with `opening`, and who adds to it.
pub fn begun_with(opening: Bytes) -> (mpsc::Sender<Result<Frame<Bytes>, Infallible>>, Messages) {
    let (to, messages) = mpsc::channel(WAITING);
    // There is room for one.
    let _ = to.try_send(Ok(Frame::data(opening)));
    (to, StreamBody::new(ReceiverStream::new(messages)))
}

impl Talk {
    /// Listens to what comes back.
    ///
    /// # Errors
    /// What came instead of answers.
    pub fn begin(
        to: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
        response: Response<Incoming>,
    ) -> Result<Self, Outcome> {
        let (head, body) = response.into_parts();
        if let Some(status) = Status::from_header_map(&head.headers) {
            return Err(refused(&status));
        }
        let waiting = Arc::default();
        tokio::spawn(listen(body, Arc::clone(&waiting)));
        Ok(Self { to, waiting })
    }

    /// Whether nothing can be asked any more.
    pub fn has_ended(&self) -> bool {
        self.waiting.lock().has_ended
    }

    /// Asks the question of this number, which no other has.
    pub async fn ask(&self, number: u64, question: Bytes) -> Outcome {
        let (tell, told) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.has_ended {
                return Outcome::Failed(Failure::Connection);
            }
            waiting.of.insert(number, tell);
        }
        let _wait = Wait(self, number);
        if self.to.send(Ok(Frame::data(question))).await.is_err() {
            return Outcome::Failed(Failure::Connection);
        }
        told.await.unwrap_or(Outcome::Failed(Failure::Connection))
    }
}

/// Hands each answer to whoever waits for it, until the stream ends; all others then hear how it ended.
async fn listen(mut body: Incoming, waiting: Arc<Mutex<Waiting>>) {
    let (mut bytes, mut status) = (BytesMut::new(), None);
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(more) => bytes.extend_from_slice(&more),
            Err(frame) => status = frame.trailers_ref().and_then(Status::from_header_map),
        }
        while let Some(message) = next_message(&mut bytes) {
            let Ok(told) = Told::decode(message) else { continue };
            // Nobody waits any more for what is late.
            if let Some(tell) = waiting.lock().of.remove(&told.id) {
                let _ = tell.send(told.outcome());
            }
        }
        if bytes.len() > ANSWER_BYTES {
            break;
        }
    }
    let mut waiting = waiting.lock();
    waiting.has_ended = true;
    for (_, tell) in waiting.of.drain() {
        let ended = status.as_ref().filter(|status| status.code() != tonic::Code::Ok);
        let _ = tell.send(ended.map_or(Outcome::Failed(Failure::Connection), refused));
    }
}

/// The next message, if all of it is here.
fn next_message(bytes: &mut BytesMut) -> Option<Bytes> {
    let prefix = bytes.first_chunk::<PREFIX>()?;
    let [_, length @ ..] = *prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    if bytes.len() - PREFIX < length {
        return None;
    }
    bytes.advance(PREFIX);
    Some(bytes.split_to(length).freeze())
}

/// As much of `CheckStreamResponse` as is counted.
#[derive(Clone, PartialEq, prost::Message)]
struct Told {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, optional, tag = "2")]
    response: Option<Seen>,
    #[prost(message, optional, tag = "3")]
    error: Option<SeenError>,
}

impl Told {
    fn outcome(&self) -> Outcome {
        let mut decisions = Decisions::default();
        match (&self.response, &self.error) {
            (Some(seen), None) if count(seen, &mut decisions) => Outcome::Answered(decisions),
            (None, Some(error)) => {
                let why = Refusal { code: screaming(tonic::Code::from_i32(error.code)), reason: word(&error.reason) };
                Outcome::Refused { why, retry: false }
            }
            (Some(_) | None, Some(_) | None) => Outcome::Failed(Failure::Contract),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1;

    #[test]
    fn answers_are_whole_when_their_last_byte_is_there_and_name_their_question() {
        use v1::check_stream_response::Result::{Error, Response};
        let allow = v1::CheckResponse { decision: v1::Decision::Allow.into(), ..Default::default() };
        let error = v1::ItemError { code: 8, reason: "OVERLOADED".into(), ..Default::default() };
        let mut wire = Vec::new();
        for (id, result) in [(7, Response(allow)), (1 << 28, Error(error))] {
            let message = v1::CheckStreamResponse { id, result: Some(result) }.encode_to_vec();
            wire.push(0);
            wire.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            wire.extend(message);
        }
        let (mut bytes, mut told) = (BytesMut::new(), Vec::new());
        for byte in wire {
            bytes.extend_from_slice(&[byte]);
            told.extend(next_message(&mut bytes).map(|message| Told::decode(message).unwrap()));
        }
        let ids: Vec<u64> = told.iter().map(|told| told.id).collect();
        assert_eq!((ids, bytes.len()), (vec![7, 1 << 28], 0));
        assert!(matches!(told[0].outcome(), Outcome::Answered(Decisions { allowed: 1, .. })));
        match told[1].outcome() {
            Outcome::Refused { why, .. } => assert_eq!(why.reason, "OVERLOADED"),
            other @ (Outcome::Answered(_) | Outcome::Failed(_)) => panic!("{other:?}"),
        }
    }
}

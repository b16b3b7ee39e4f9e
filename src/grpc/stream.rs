//! CheckStream: one call, many questions, answers as they come.
//!
//! A conversation is one task beside the call. It takes a place for the answer before it reads a message, so whoever does
//! not take answers is not read from, and what waits is never more than `limits.stream_window` of either. Every question
//! has a future of its own in that task: records of many are written together, and none waits for another's token.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::sync::mpsc::{OwnedPermit, Receiver, Sender};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tracing::Instrument as _;

use super::convert::stream::{Memory, deadline};
use super::{convert, status};
use crate::model::question::{Question, Subject};
use crate::pdp::stream::{Holder, Seat};
use crate::pdp::{Call, DecideError, Pdp};
use crate::policy::Misfit;
use crate::proto::v1;
use crate::proto::v1::check_stream_request::Message;
use crate::secret::SecretString;

/// The path of the method, as it is called.
pub(super) const PATH: &str = "/gatepost.v1.DecisionService/CheckStream";
/// How long the decisions of one stream may keep a thread before everybody else has their turn.
const TURN: Duration = Duration::from_millis(1);
/// Looks at a stream in each idle time-out; it ends after this many in a row without a question.
const IDLE_LOOKS: u32 = 4;

/// The connection that a call came over has to go: it takes no more questions. In the extensions of a stream's request.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaving(pub(super) CancellationToken);

/// The answers of one stream, and at last how it ended.
pub struct Answers {
    coming: Receiver<v1::CheckStreamResponse>,
    end: Option<oneshot::Receiver<Result<(), Status>>>,
}

/// One stream, as the task beside the call knows it.
struct Conversation {
    pdp: Arc<Pdp>,
    /// With the deadline of a question that names none.
    call: Arc<Call>,
    answers: Sender<v1::CheckStreamResponse>,
    leaving: Leaving,
    /// When the client said that it would wait no longer.
    patience: Option<Duration>,
    _seat: Seat,
}

/// A place for an answer.
type Place = OwnedPermit<v1::CheckStreamResponse>;

/// Begins a stream, if the caller may have one. Nothing of it has been read by then.
///
/// # Errors
/// The status of a refusal that is on record.
pub(super) async fn open(
    pdp: &Arc<Pdp>,
    mut call: Call,
    patience: Option<Duration>,
    leaving: Leaving,
    asked: Streaming<v1::CheckStreamRequest>,
) -> Result<Answers, Status> {
    let seat = pdp.open_stream(&call).await.map_err(|refusal| status::to_status(&refusal))?;
    call.circumstances.batch_id = Some(pdp.name_stream());
    call.deadline = pdp.limits.default_deadline;
    let (answers, coming) = mpsc::channel(pdp.limits.stream_window);
    let (tell, end) = oneshot::channel();
    let (pdp, call) = (Arc::clone(pdp), Arc::new(call));
    let conversation = Conversation { pdp, call, answers, leaving, patience, _seat: seat };
    let task = async move {
        // Nobody to tell any more is no fault.
        let _ = tell.send(conversation.hold(asked).await);
    };
    tokio::spawn(task.in_current_span());
    Ok(Answers { coming, end: Some(end) })
}

impl Conversation {
    /// From the first message to the last answer.
    async fn hold(self, mut asked: Streaming<v1::CheckStreamRequest>) -> Result<(), Status> {
        let limits = &self.pdp.limits;
        let mut working = FuturesUnordered::new();
        let mut unanswered = HashSet::new();
        let (mut memory, mut holder) = (None, None);
        let mut place: Option<Place> = None;
        let (mut leaving, mut closed) = (pin!(self.leaving.0.cancelled()), pin!(self.answers.closed()));
        let mut impatient = pin!(async {
            match self.patience {
                Some(patience) => tokio::time::sleep(patience).await,
                None => std::future::pending().await,
            }
        });
        let (mut read, mut seen, mut quiet) = (0_u64, 0_u64, 0_u32);
        let mut look = pin!(tokio::time::sleep(limits.stream_idle_timeout / IDLE_LOOKS));
        let mut turn = self.pdp.clock.monotonic();
        let end = loop {
            if place.is_none() {
                place = self.answers.clone().try_reserve_owned().ok();
            }
            let message = tokio::select! {
                biased;
                // The client is gone, and so is whoever would hear the answers.
                () = closed.as_mut() => return Ok(()),
                () = leaving.as_mut() => break Err(elsewhere()),
                () = impatient.as_mut() => break Err(Status::deadline_exceeded("the stream's deadline passed")),
                Some(answered) = working.next(), if !working.is_empty() => {
                    if let Some(id) = answered {
                        unanswered.remove(&id);
                    }
                    continue;
                }
                kept = self.answers.clone().reserve_owned(), if place.is_none() => {
                    place = kept.ok();
                    continue;
                }
                message = asked.message(), if place.is_some() => message,
                () = look.as_mut() => {
                    quiet = if read == seen && working.is_empty() { quiet + 1 } else { 0 };
                    if quiet >= IDLE_LOOKS {
                        break Err(Status::unavailable("nothing was asked for long; open another stream"));
                    }
                    seen = read;
                    let next = look.deadline() + limits.stream_idle_timeout / IDLE_LOOKS;
                    look.as_mut().reset(next);
                    continue;
                }
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => break Ok(()),
                Err(status) => match unreadable(&status) {
                    Some(error) => break Err(self.refused(error).await),
                    None => return Ok(()),
                },
            };
            let memory = match (message.message, &mut memory) {
                (Some(Message::Open(opening)), opened @ None) => {
                    match Memory::open(opening, limits) {
                        Ok(begun) => {
                            holder = self.holder(begun.subject()).await;
                            *opened = Some(begun);
                        }
                        Err(misfit) => break Err(self.broken(misfit).await),
                    }
                    continue;
                }
                (Some(Message::Open(_)), Some(_)) => break Err(self.broken(rule("open", "must come once")).await),
                (_, None) => break Err(self.broken(rule("open", "must be the first message")).await),
                (message, Some(memory)) => (message, memory),
            };
            let told = match memory {
                (Some(Message::Ask(question)), memory) => {
                    read = read.wrapping_add(1);
                    let Some(place) = place.take() else { continue };
                    let id = question.id;
                    let is_new = unanswered.insert(id);
                    let (call, question) = self.read(question, memory, is_new);
                    working.push(self.answer(id, is_new, call, question, place));
                    if self.pdp.clock.monotonic().saturating_sub(turn) >= TURN {
                        tokio::task::yield_now().await;
                        turn = self.pdp.clock.monotonic();
                    }
                    continue;
                }
                (Some(Message::Remember(told)), memory) => memory.remember(&told, limits),
                (Some(Message::Forget(told)), memory) => memory.forget(&told, limits),
                (Some(Message::Renew(renewal)), memory) => {
                    self.renewed(SecretString::from(renewal.token), holder.as_ref(), memory).await
                }
                (Some(Message::Open(_)) | None, _) => {
                    Err(rule("message", "must be open, remember, forget, ask or renew"))
                }
            };
            if let Err(misfit) = told {
                break Err(self.broken(misfit).await);
            }
        };
        // Each has its place, so nothing here waits for the client.
        while working.next().await.is_some() {}
        end
    }

    /// A question as its own call, or why it is none.
    fn read(
        &self,
        question: v1::StreamQuestion,
        memory: &Memory,
        is_new: bool,
    ) -> (Arc<Call>, Result<(Subject, Question), Misfit>) {
        let limits = &self.pdp.limits;
        if !is_new {
            return (Arc::clone(&self.call), Err(rule("id", "is that of a question that is not answered yet")));
        }
        let call = match (question.deadline.is_some(), deadline(question.deadline.as_ref(), limits)) {
            (false, _) => Arc::clone(&self.call),
            (true, Ok(deadline)) => Arc::new(Call { deadline, ..Call::clone(&self.call) }),
            (true, Err(misfit)) => return (Arc::clone(&self.call), Err(misfit)),
        };
        (call, memory.question(question, limits))
    }

    /// Decides one question and puts the answer into its place. Gives the id that is free again.
    async fn answer(
        &self,
        id: u64,
        is_new: bool,
        call: Arc<Call>,
        question: Result<(Subject, Question), Misfit>,
        place: Place,
    ) -> Option<u64> {
        use v1::check_stream_response::Result as Wire;
        // A panic is the end of this question, and of no other.
        let decided = AssertUnwindSafe(self.pdp.check_in_stream(&call, question)).catch_unwind().await;
        let decided = match decided {
            Ok(decided) => decided,
            Err(_) => Err(self.pdp.record_refused(&call, DecideError::Panicked).await),
        };
        let result = match decided {
            Ok(answer) => Wire::Response(convert::answer(&answer)),
            Err(refusal) => Wire::Error(status::to_item_error(&refusal)),
        };
        place.send(v1::CheckStreamResponse { id, result: Some(result) });
        is_new.then_some(id)
    }

    /// Who the stream's token makes, so that a newer one can be held against it.
    async fn holder(&self, subject: &Subject) -> Option<Holder> {
        match subject {
            Subject::Token(token) => self.pdp.holder(token).await,
            Subject::Asserted(_) | Subject::ApiKey(_) | Subject::Caller | Subject::Anonymous => None,
        }
    }

    async fn renewed(&self, token: SecretString, holder: Option<&Holder>, memory: &mut Memory) -> Result<(), Misfit> {
        if holder.is_none() || self.pdp.holder(&token).await.as_ref() != holder {
            return Err(rule("renew.token", "must be good, and of the principal whose good token opened the stream"));
        }
        memory.renew(token);
        Ok(())
    }

    /// The status of a stream that breaks the rules, on record.
    async fn broken(&self, misfit: Misfit) -> Status {
        self.refused(DecideError::Invalid(misfit)).await
    }

    async fn refused(&self, error: DecideError) -> Status {
        status::to_status(&self.pdp.record_refused(&self.call, error).await)
    }
}

fn rule(at: &str, rule: &'static str) -> Misfit {
    Misfit { at: at.to_owned(), rule }
}

/// Told to whoever may ask the same elsewhere.
fn elsewhere() -> Status {
    Status::unavailable("the connection has to go; open another stream over another")
}

/// Why nothing more can be read; `None`: the client left, and there is nobody to tell.
fn unreadable(status: &Status) -> Option<DecideError> {
    match status.code() {
        Code::DeadlineExceeded => Some(DecideError::Deadline),
        Code::Internal
        | Code::OutOfRange
        | Code::InvalidArgument
        | Code::ResourceExhausted
        | Code::Unimplemented
        | Code::DataLoss => Some(DecideError::Unreadable),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unavailable
        | Code::Unauthenticated => None,
    }
}

impl Stream for Answers {
    type Item = Result<v1::CheckStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.coming.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(answer)) => return Poll::Ready(Some(Ok(answer))),
            Poll::Ready(None) => {}
        }
        let Some(end) = &mut self.end else { return Poll::Ready(None) };
        let ended = match end.poll_unpin(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(ended)) => ended,
            // It panicked outside of any question.
            Poll::Ready(Err(_)) => Err(Status::internal("no decision could be made")),
        };
        self.end = None;
        Poll::Ready(ended.err().map(Err))
    }
}

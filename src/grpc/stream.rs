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

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use prost::Message as _;
use tokio::sync::mpsc::{OwnedPermit, Receiver, Sender};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::Instrument as _;

use super::convert::stream::{Memory, apart, deadline};
use super::status;
use super::written::{Answered, CheckWritten, StreamWritten};
use crate::model::question::{Question, Subject};
use crate::pdp::stream::{Coming, Holder, Seat};
use crate::pdp::{AskedKey, Call, DecideError, Pdp, Told};
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
    coming: Receiver<StreamWritten>,
    end: Option<oneshot::Receiver<Result<(), Status>>>,
}

/// One stream, as the task beside the call knows it.
struct Conversation {
    pdp: Arc<Pdp>,
    /// With the deadline of a question that names none.
    call: Arc<Call>,
    answers: Sender<StreamWritten>,
    leaving: Leaving,
    /// When the client said that it would wait no longer.
    patience: Option<Duration>,
    _seat: Seat,
}

/// A place for an answer.
type Place = OwnedPermit<StreamWritten>;

/// What one stream has told.
struct Opened {
    memory: Memory,
    holder: Option<Holder>,
    /// What stands for all of it, where questions are known by their bytes.
    told: Option<Told>,
}

/// What a question asks; nothing where it need not be read.
type Wanted = Result<Option<(Subject, Question)>, Misfit>;

/// A question as it came: named by its bytes if it can be, or read.
enum Asked {
    Apart { id: u64, key: AskedKey },
    Read(Box<v1::StreamQuestion>),
}

impl Asked {
    fn id(&self) -> u64 {
        match self {
            Self::Apart { id, .. } => *id,
            Self::Read(question) => question.id,
        }
    }
}

/// Begins a stream, if the caller may have one. Nothing of it has been read by then.
///
/// # Errors
/// The status of a refusal that is on record.
pub(super) async fn open(
    pdp: &Arc<Pdp>,
    mut call: Call,
    patience: Option<Duration>,
    leaving: Leaving,
    asked: impl Stream<Item = Result<Bytes, Status>> + Unpin + Send + 'static,
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
    async fn hold(self, mut asked: impl Stream<Item = Result<Bytes, Status>> + Unpin) -> Result<(), Status> {
        let limits = &self.pdp.limits;
        let mut working = FuturesUnordered::new();
        let mut unanswered = HashSet::new();
        let mut opened = None;
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
                message = asked.next(), if place.is_some() => message,
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
                Some(Ok(message)) => message,
                None => break Ok(()),
                Some(Err(status)) => match unreadable(&status) {
                    Some(error) => break Err(self.refused(error).await),
                    None => return Ok(()),
                },
            };
            let question = match self.hear(&message, &mut opened).await {
                Ok(None) => continue,
                Ok(Some(question)) => question,
                Err(error) => break Err(self.refused(error).await),
            };
            read = read.wrapping_add(1);
            let (Some(place), Some(opened)) = (place.take(), &opened) else { continue };
            let id = question.id();
            let is_new = unanswered.insert(id);
            let (call, coming, question) = match self.read(question, &message, opened, is_new) {
                Ok(read) => read,
                Err(error) => break Err(self.refused(error).await),
            };
            // Most need not wait for anything: those are answered here and now.
            let mut answer = Box::pin(self.answer(id, is_new, call, coming, question, place));
            match futures_util::poll!(answer.as_mut()) {
                Poll::Ready(Some(id)) => drop(unanswered.remove(&id)),
                Poll::Ready(None) => {}
                Poll::Pending => working.push(answer),
            }
            if self.pdp.clock.monotonic().saturating_sub(turn) >= TURN {
                tokio::task::yield_now().await;
                turn = self.pdp.clock.monotonic();
            }
        };
        // Each has its place, so nothing here waits for the client.
        while working.next().await.is_some() {}
        end
    }

    /// Takes in what the stream is told, or gives the question that it is asked.
    ///
    /// # Errors
    /// What ends the stream.
    async fn hear(&self, message: &[u8], opened: &mut Option<Opened>) -> Result<Option<Asked>, DecideError> {
        if let Some(Opened { told: Some(told), .. }) = opened
            && let Some((id, question)) = apart(message)
        {
            return Ok(Some(Asked::Apart { id, key: self.pdp.recalls.asked(told, question) }));
        }
        let limits = &self.pdp.limits;
        let said = v1::CheckStreamRequest::decode(message).map_err(|_| DecideError::Unreadable)?.message;
        let (said, opened) = match (said, opened) {
            (Some(Message::Open(opening)), unopened @ None) => {
                let memory = Memory::open(opening, limits).map_err(DecideError::Invalid)?;
                let holder = self.holder(memory.subject()).await;
                *unopened = Some(Opened { memory, holder, told: self.pdp.stream_key(&self.call, message) });
                return Ok(None);
            }
            (_, None) => return Err(broken("open", "must be the first message")),
            (said, Some(opened)) => (said, opened),
        };
        match said {
            Some(Message::Ask(question)) => return Ok(Some(Asked::Read(Box::new(question)))),
            Some(Message::Remember(told)) => opened.memory.remember(&told, limits).map_err(DecideError::Invalid)?,
            Some(Message::Forget(told)) => opened.memory.forget(&told, limits).map_err(DecideError::Invalid)?,
            Some(Message::Renew(renewal)) => self.renewed(SecretString::from(renewal.token), opened).await?,
            Some(Message::Open(_)) => return Err(broken("open", "must come once")),
            None => return Err(broken("message", "must be open, remember, forget, ask or renew")),
        }
        opened.told = opened.told.map(|before| self.pdp.recalls.told(&before, message));
        Ok(None)
    }

    /// A question as its own call, looked at, and what it asks: unless it was answered before, or why it is none.
    ///
    /// # Errors
    /// What ends the stream.
    fn read(
        &self,
        asked: Asked,
        message: &[u8],
        opened: &Opened,
        is_new: bool,
    ) -> Result<(Arc<Call>, Coming, Wanted), DecideError> {
        let limits = &self.pdp.limits;
        let call = || Arc::clone(&self.call);
        if !is_new {
            let twice = rule("id", "is that of a question that is not answered yet");
            return Ok((call(), self.pdp.look_in_stream(&self.call, None), Err(twice)));
        }
        let key = match asked {
            Asked::Apart { key, .. } => Some(key),
            Asked::Read(_) => None,
        };
        let coming = self.pdp.look_in_stream(&self.call, key);
        if coming.is_known() {
            return Ok((call(), coming, Ok(None)));
        }
        let question = match asked {
            Asked::Read(question) => *question,
            Asked::Apart { .. } => {
                match v1::CheckStreamRequest::decode(message).map_err(|_| DecideError::Unreadable)?.message {
                    Some(Message::Ask(question)) => question,
                    Some(Message::Open(_) | Message::Remember(_) | Message::Forget(_) | Message::Renew(_)) | None => {
                        return Err(DecideError::Unreadable);
                    }
                }
            }
        };
        let call = match (question.deadline.is_some(), deadline(question.deadline.as_ref(), limits)) {
            (false, _) => call(),
            (true, Ok(deadline)) => Arc::new(Call { deadline, ..Call::clone(&self.call) }),
            (true, Err(misfit)) => return Ok((call(), coming, Err(misfit))),
        };
        Ok((call, coming, opened.memory.question(question, limits).map(Some)))
    }

    /// Decides one question and puts the answer into its place. Gives the id that is free again.
    async fn answer(
        &self,
        id: u64,
        is_new: bool,
        call: Arc<Call>,
        coming: Coming,
        question: Wanted,
        place: Place,
    ) -> Option<u64> {
        // A panic is the end of this question, and of no other.
        let decided = AssertUnwindSafe(self.pdp.check_in_stream(&call, coming, question)).catch_unwind().await;
        let decided = match decided {
            Ok(decided) => decided,
            Err(_) => Err(self.pdp.record_refused(&call, DecideError::Panicked).await),
        };
        let result = decided.as_ref().map(CheckWritten::of).map_err(status::to_item_error);
        place.send(StreamWritten { id, result: Answered(result) });
        is_new.then_some(id)
    }

    /// Who the stream's token makes, so that a newer one can be held against it.
    async fn holder(&self, subject: &Subject) -> Option<Holder> {
        match subject {
            Subject::Token(token) => self.pdp.holder(token).await,
            Subject::Asserted(_) | Subject::ApiKey(_) | Subject::Caller | Subject::Anonymous => None,
        }
    }

    async fn renewed(&self, token: SecretString, opened: &mut Opened) -> Result<(), DecideError> {
        if opened.holder.is_none() || self.pdp.holder(&token).await != opened.holder {
            return Err(broken("renew.token", "must be good, and of the principal whose good token opened the stream"));
        }
        opened.memory.renew(token);
        Ok(())
    }

    async fn refused(&self, error: DecideError) -> Status {
        status::to_status(&self.pdp.record_refused(&self.call, error).await)
    }
}

/// A stream that breaks the rules ends.
fn broken(at: &str, broken: &'static str) -> DecideError {
    DecideError::Invalid(rule(at, broken))
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
    type Item = Result<StreamWritten, Status>;

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

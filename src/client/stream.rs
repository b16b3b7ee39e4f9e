//! Many questions of one subject over one call.
//!
//! Whoever asks waits for its own answer; many may ask at once. When the stream ends, everybody who waits hears that nobody
//! answered, which is no access; then open another.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::ask::Opening;
use super::{ANSWER_BYTES, Answer, Ask, AskError, Client, EntityData};
use crate::proto::v1;
use crate::proto::v1::check_stream_request::Message;
use crate::proto::v1::decision_service_client::DecisionServiceClient;

/// Messages that may wait until Gatepost reads them; whoever sends the next waits too.
const WAITING: usize = 16;

/// An open stream. Clones ask over the same one; it is closed when the last is dropped.
#[derive(Clone)]
pub struct AskStream {
    to: mpsc::Sender<v1::CheckStreamRequest>,
    waiting: Arc<Mutex<Waiting>>,
    next: Arc<AtomicU64>,
    understood: Arc<BTreeSet<String>>,
    deadline: Duration,
}

type Told = Result<v1::check_stream_response::Result, AskError>;

/// Who waits for which answer.
#[derive(Default)]
struct Waiting {
    of: HashMap<u64, oneshot::Sender<Told>>,
    /// How the stream ended.
    ended: Option<Status>,
}

/// One who waits, and does no longer when it is dropped.
struct Wait<'s> {
    stream: &'s AskStream,
    id: u64,
}

impl Client {
    /// Opens a stream of questions with one subject and one context.
    ///
    /// # Errors
    /// [`AskError`] when Gatepost does not let it begin, or cannot be reached within the deadline. A bad token is no
    /// error: it denies every question.
    pub async fn stream(&self, opening: Opening) -> Result<AskStream, AskError> {
        let inner = &*self.inner;
        let open = v1::CheckStreamRequest { message: Some(Message::Open(opening.to_wire()?)) };
        let (to, messages) = mpsc::channel(WAITING);
        to.try_send(open).map_err(|_| AskError::Question("a stream that is full before it begins"))?;
        let begun = async {
            let mut service =
                DecisionServiceClient::new(inner.connection.channel().await).max_decoding_message_size(ANSWER_BYTES);
            service.check_stream(opening.about().named(ReceiverStream::new(messages))).await
        };
        let begun = tokio::time::timeout(inner.deadline, begun).await.map_err(|_| AskError::Deadline)?;
        let waiting = Arc::default();
        tokio::spawn(listen(begun?.into_inner(), Arc::clone(&waiting)));
        let understood = Arc::new(inner.understood.clone());
        Ok(AskStream { to, waiting, next: Arc::default(), understood, deadline: inner.deadline })
    }
}

/// Hands each answer to whoever waits for it, until the stream ends.
async fn listen(mut answers: Streaming<v1::CheckStreamResponse>, waiting: Arc<Mutex<Waiting>>) {
    let ended = loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                let waited = waiting.lock().of.remove(&answer.id);
                // Nobody waits any more for what is late.
                if let (Some(tell), Some(result)) = (waited, answer.result) {
                    let _ = tell.send(Ok(result));
                }
            }
            Ok(None) => break Status::unavailable("the stream has ended"),
            Err(status) => break status,
        }
    };
    let mut waiting = waiting.lock();
    for (_, tell) in waiting.of.drain() {
        let _ = tell.send(Err(AskError::from(ended.clone())));
    }
    waiting.ended = Some(ended);
}

impl AskStream {
    /// Has Gatepost remember an entity: questions asked after this has returned may name it
    /// ([`Ask::remembered`], [`Ask::remembered_resource`]). One that is remembered already is replaced.
    ///
    /// # Errors
    /// [`AskError`] when the stream has ended. One that breaks a limit ends the stream.
    pub async fn remember(&self, entity: EntityData) -> Result<(), AskError> {
        let entities = vec![entity.to_wire()?];
        self.send(Message::Remember(v1::RememberedEntities { entities })).await
    }

    /// Has Gatepost remember an entity no longer.
    ///
    /// # Errors
    /// [`AskError`] when the stream has ended.
    pub async fn forget(&self, entity_type: impl Into<String>, id: impl Into<String>) -> Result<(), AskError> {
        let entities = vec![v1::EntityRef { r#type: entity_type.into(), id: id.into() }];
        self.send(Message::Forget(v1::ForgottenEntities { entities })).await
    }

    /// Has questions from now on asked with a newer token of the same principal. Any other ends the stream.
    ///
    /// # Errors
    /// [`AskError`] when the stream has ended.
    pub async fn renew(&self, token: impl Into<String>) -> Result<(), AskError> {
        self.send(Message::Renew(v1::StreamRenewal { token: token.into() })).await
    }

    /// Asks one question, without a subject and entities of its own. Its context adds to the stream's.
    ///
    /// # Errors
    /// [`AskError`] when there is no answer; that is no access.
    pub async fn check(&self, question: Ask) -> Result<Answer, AskError> {
        use v1::check_stream_response::Result::{Error, Response};
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (wire, asked) = (question.to_stream(id, self.deadline)?, question.asked()?);
        let answered = async {
            let (tell, told) = oneshot::channel();
            let _wait = self.wait(id, tell)?;
            self.send(Message::Ask(wire)).await?;
            told.await.map_err(|_| self.ended())?
        };
        let answered = tokio::time::timeout(self.deadline, answered).await;
        match answered.map_err(|_| AskError::Deadline)?? {
            Response(response) => Answer::take(response, &asked, &self.understood).map_err(AskError::Answer),
            Error(error) if error.code == Code::DeadlineExceeded as i32 => Err(AskError::Deadline),
            Error(error) => Err(AskError::Refused {
                code: Code::from_i32(error.code),
                reason: Some(error.reason),
                decision_id: Some(error.decision_id).filter(|id| !id.is_empty()),
            }),
        }
    }

    /// Whether nothing can be asked any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.waiting.lock().ended.is_some()
    }

    fn wait(&self, id: u64, tell: oneshot::Sender<Told>) -> Result<Wait<'_>, AskError> {
        let mut waiting = self.waiting.lock();
        if let Some(ended) = &waiting.ended {
            return Err(AskError::from(ended.clone()));
        }
        waiting.of.insert(id, tell);
        Ok(Wait { stream: self, id })
    }

    async fn send(&self, message: Message) -> Result<(), AskError> {
        let message = v1::CheckStreamRequest { message: Some(message) };
        self.to.send(message).await.map_err(|_| self.ended())
    }

    fn ended(&self) -> AskError {
        let ended = self.waiting.lock().ended.clone();
        AskError::from(ended.unwrap_or_else(|| Status::unavailable("the stream is ending")))
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.stream.waiting.lock().of.remove(&self.id);
    }
}

impl fmt::Debug for AskStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskStream").field("has_ended", &self.has_ended()).finish_non_exhaustive()
    }
}

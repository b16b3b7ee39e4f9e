//! One HTTP/2 connection, and calls over it that cost as little as they can.
//!
//! The bytes of a question are sent as they are and of an answer only the decisions are read, so that the measure does
//! not take the time of what it measures. Questions of a stream go over one call, a [`talk`](super::talk), that stays open. A connection that breaks is made again; one that can't be made again for
//! [`GIVE_UP`] is lost, and says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use http::{Method, Request, Response, Uri, Version};
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tonic::Status;
use tonic_types::StatusExt as _;

use super::question::Questions;
use super::talk::{Messages, Talk, begun_with};
use super::tally::{Decisions, Failure, Outcome, Refusal};
use crate::client::connection::Connection;
use crate::clock::SharedClock;
use crate::proto::v1::DenialCode;

/// An answer, bytes.
pub(super) const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// How long a connection that broke is tried again.
const GIVE_UP: Duration = Duration::from_secs(3);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(100);
/// How much longer than the deadline is waited: the server tells the deadline, and only silence ends here.
const SILENCE: Duration = Duration::from_millis(500);

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Where calls go, and how.
#[derive(Clone)]
pub struct Route {
    /// The files, and the address.
    pub connection: Arc<Connection>,
    /// `https://host:port` and the path of the method.
    pub uri: Uri,
    /// Of every call.
    pub deadline: Duration,
    /// The machine's.
    pub clock: SharedClock,
}

/// What is sent: one message, or more and more of them.
type Sent = Either<Full<Bytes>, Messages>;

/// One connection.
pub struct Line {
    route: Route,
    headers: HeaderMap,
    live: Mutex<Option<SendRequest<Sent>>>,
    dialling: tokio::sync::Mutex<()>,
    /// The stream over it, where questions are asked in one.
    talk: tokio::sync::Mutex<Option<Arc<Talk>>>,
    lost: AtomicBool,
    /// What the connection itself said when it ended: a refused certificate is told there.
    last_words: Arc<Mutex<Option<String>>>,
}

impl Line {
    /// Connects.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn open(route: Route) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        // RFC-less, but fixed: gRPC over HTTP/2, "Timeout", at most eight digits and a unit.
        let timeout = format!("{}m", route.deadline.as_millis());
        if let Ok(timeout) = HeaderValue::from_str(&timeout) {
            headers.insert(TIMEOUT, timeout);
        }
        let line = Self {
            route,
            headers,
            live: Mutex::new(None),
            dialling: tokio::sync::Mutex::new(()),
            talk: tokio::sync::Mutex::new(None),
            lost: AtomicBool::new(false),
            last_words: Arc::default(),
        };
        let sender = line.dial().await?;
        *line.live.lock() = Some(sender);
        Ok(line)
    }

    /// Whether it could not be made again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// What was heard when a connection ended.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        self.last_words.lock().clone()
    }

    /// Asks the next question.
    pub async fn ask(&self, questions: &Questions) -> Outcome {
        let (number, question) = questions.next();
        let Some(opening) = questions.opening() else {
            return self.exchange(question, |frame| decisions(frame, questions.items())).await;
        };
        let asked = async {
            match self.talk(opening).await {
                Ok(talk) => talk.ask(number, question).await,
                Err(outcome) => outcome,
            }
        };
        let answered = tokio::time::timeout(self.route.deadline + SILENCE, asked).await;
        answered.unwrap_or(Outcome::Failed(Failure::Silence))
    }

    /// The stream, begun again if it has ended.
    async fn talk(&self, opening: Bytes) -> Result<Arc<Talk>, Outcome> {
        let mut talk = self.talk.lock().await;
        if let Some(open) = talk.as_ref().filter(|talk| !talk.has_ended()) {
            return Ok(Arc::clone(open));
        }
        let failed = || Outcome::Failed(Failure::Connection);
        let mut sender = self.sender().await.ok_or_else(failed)?;
        let (to, messages) = begun_with(opening);
        let mut request = self.request(Either::Right(messages));
        // It would end the stream, not a question.
        request.headers_mut().remove(TIMEOUT);
        let response = sender.try_send_request(request).await.map_err(|_| failed())?;
        let begun = Arc::new(Talk::begin(to, response)?);
        *talk = Some(Arc::clone(&begun));
        Ok(begun)
    }

    /// Sends one message, framed, and has the one that comes back `read`; `None` from it: that is no answer.
    pub async fn exchange(&self, body: Bytes, read: impl Fn(&[u8]) -> Option<Decisions>) -> Outcome {
        // A connection that was asked to go takes no new call: that call goes over the next one, once.
        for _ in 0..2 {
            let Some(mut sender) = self.sender().await else { return Outcome::Failed(Failure::Connection) };
            let call = async {
                let response = sender.try_send_request(self.request(Either::Left(Full::new(body.clone())))).await;
                match response {
                    Ok(response) => Some(answer(response, &read).await),
                    Err(failed) if failed.message().is_some() => None,
                    Err(_) => Some(Outcome::Failed(Failure::Connection)),
                }
            };
            match tokio::time::timeout(self.route.deadline + SILENCE, call).await {
                Ok(Some(outcome)) => return outcome,
                Ok(None) => {}
                Err(_) => return Outcome::Failed(Failure::Silence),
            }
        }
        Outcome::Failed(Failure::Connection)
    }

    fn request(&self, body: Sent) -> Request<Sent> {
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.route.uri.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// The connection, made again if it must be. `None`: it is lost.
    async fn sender(&self) -> Option<SendRequest<Sent>> {
        if let Some(sender) = self.usable() {
            return Some(sender);
        }
        // One dials, the others wait.
        let _one = self.dialling.lock().await;
        let began = self.route.clock.monotonic();
        loop {
            if let Some(sender) = self.usable() {
                return Some(sender);
            }
            if self.is_lost() {
                return None;
            }
            match self.dial().await {
                Ok(sender) => {
                    *self.live.lock() = Some(sender);
                    continue;
                }
                Err(why) => *self.last_words.lock() = Some(why),
            }
            if self.route.clock.monotonic().saturating_sub(began) >= GIVE_UP {
                self.lost.store(true, Ordering::Relaxed);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn usable(&self) -> Option<SendRequest<Sent>> {
        self.live.lock().as_ref().filter(|sender| !sender.is_closed()).cloned()
    }

    async fn dial(&self) -> Result<SendRequest<Sent>, String> {
        let stream = self.route.connection.stream().await.map_err(|error| innermost(&error))?;
        let shaken = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| innermost(&error));
        let (sender, connection) = shaken?;
        let last_words = Arc::clone(&self.last_words);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                *last_words.lock() = Some(innermost(&error));
            }
        });
        Ok(sender)
    }
}

/// Connects and says nothing, to hear why the server hangs up; `None`: it does not. Whoever is asked something may lose
/// the alert of a refused certificate to the write that fails first.
pub async fn unasked(route: &Route) -> Option<String> {
    use tokio::io::AsyncReadExt as _;
    let heard = async { route.connection.stream().await?.read_u8().await };
    let heard = tokio::time::timeout(SILENCE, heard).await.ok()?;
    heard.err().map(|error| innermost(&error))
}

/// The innermost cause alone: whoever passed it on said no more than that it is a transport's error.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(next) = innermost.source() {
        innermost = next;
    }
    innermost.to_string()
}

/// What came back.
async fn answer(response: Response<Incoming>, read: &impl Fn(&[u8]) -> Option<Decisions>) -> Outcome {
    let (head, body) = response.into_parts();
    // A refusal has its status in the head and no body (gRPC over HTTP/2, "Trailers-Only").
    if let Some(status) = Status::from_header_map(&head.headers).filter(|status| status.code() != tonic::Code::Ok) {
        return refused(&status);
    }
    if head.status != http::StatusCode::OK {
        return Outcome::Failed(Failure::Contract);
    }
    let Ok(collected) = Limited::new(body, ANSWER_BYTES).collect().await else {
        return Outcome::Failed(Failure::Connection);
    };
    let status = collected.trailers().or(Some(&head.headers)).and_then(Status::from_header_map);
    match status {
        Some(status) if status.code() == tonic::Code::Ok => {}
        Some(status) => return refused(&status),
        None => return Outcome::Failed(Failure::Contract),
    }
    let frame = collected.to_bytes();
    read(&frame).map_or(Outcome::Failed(Failure::Contract), Outcome::Answered)
}

/// What a status says.
pub(super) fn refused(status: &Status) -> Outcome {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| word(&info.reason)).unwrap_or_default();
    let retry = details.retry_info().is_some_and(|info| info.retry_delay.is_some());
    Outcome::Refused { why: Refusal { code: screaming(status.code()), reason }, retry }
}

/// What a server says goes to a terminal, a table and a page: words of a fixed alphabet alone.
pub(super) fn word(reason: &str) -> String {
    let is_word = reason.len() <= 64 && reason.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_word { reason.to_owned() } else { "(unreadable)".to_owned() }
}

/// `ResourceExhausted` as the wire's documents spell it.
pub(super) fn screaming(code: tonic::Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// As much of `CheckResponse` as is counted; whatever else there is, is skipped.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Seen {
    #[prost(enumeration = "crate::proto::v1::Decision", tag = "1")]
    decision: i32,
    #[prost(message, optional, tag = "4")]
    denial: Option<SeenDenial>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SeenDenial {
    #[prost(enumeration = "crate::proto::v1::DenialCode", tag = "1")]
    code: i32,
}

/// As much of `BatchCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct SeenBatch {
    #[prost(message, repeated, tag = "1")]
    results: Vec<SeenResult>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SeenResult {
    #[prost(message, optional, tag = "1")]
    response: Option<Seen>,
    #[prost(message, optional, tag = "2")]
    error: Option<SeenError>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SeenError {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) reason: String,
}

/// The decisions of an answer; `None` if it is none to so many questions.
fn decisions(frame: &[u8], items: usize) -> Option<Decisions> {
    use prost::Message as _;
    let (head, message) = frame.split_at_checked(5)?;
    let (compressed, length) = head.split_first()?;
    if *compressed != 0 || u32::from_be_bytes(length.try_into().ok()?) as usize != message.len() {
        return None;
    }
    let mut counted = Decisions::default();
    let single = Seen::decode(message).ok();
    if items == 1 {
        // A batch of one looks different from a question: its first member is a message, not a number.
        if let Some(seen) = single {
            return count(&seen, &mut counted).then_some(counted);
        }
    }
    let batch = SeenBatch::decode(message).ok()?;
    for result in &batch.results {
        match (&result.response, &result.error) {
            (Some(seen), None) if count(seen, &mut counted) => {}
            (None, Some(_)) => counted.refused += 1,
            (Some(_) | None, Some(_) | None) => return None,
        }
    }
    (batch.results.len() == items).then_some(counted)
}

/// Denials that say nothing about policies.
const TOKEN_DENIALS: [DenialCode; 5] = [
    DenialCode::TokenExpired,
    DenialCode::TokenRejected,
    DenialCode::TokenRevoked,
    DenialCode::TokenNotForCaller,
    DenialCode::IssuerUnavailable,
];

/// Adds the decision of an answer; false: it has none.
pub(super) fn count(seen: &Seen, counted: &mut Decisions) -> bool {
    use crate::proto::v1::Decision;
    match seen.decision() {
        Decision::Allow => counted.allowed += 1,
        Decision::Deny => {
            counted.denied += 1;
            let code = seen.denial.as_ref().map(SeenDenial::code).unwrap_or_default();
            counted.token_denied += u64::from(TOKEN_DENIALS.contains(&code));
            counted.token_expired += u64::from(code == DenialCode::TokenExpired);
        }
        Decision::Conditional => counted.conditional += 1,
        Decision::Unspecified => return false,
    }
    true
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::proto::v1;

    fn frame(message: &impl prost::Message) -> Vec<u8> {
        let bytes = message.encode_to_vec();
        let mut frame = vec![0];
        frame.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        frame.extend(bytes);
        frame
    }

    fn response(decision: v1::Decision) -> v1::CheckResponse {
        v1::CheckResponse {
            decision: decision.into(),
            decision_id: "0190".into(),
            determining_policies: vec!["p".into()],
            cache: Some(v1::CacheHint::default()),
            ..Default::default()
        }
    }

    #[test]
    fn decisions_are_read_from_whole_answers_alone() {
        let allow = frame(&response(v1::Decision::Allow));
        assert_eq!(decisions(&allow, 1), Some(Decisions { allowed: 1, ..Decisions::default() }));
        let denied = frame(&v1::CheckResponse { denial: Some(v1::Denial::default()), ..response(v1::Decision::Deny) });
        assert_eq!(decisions(&denied, 1), Some(Decisions { denied: 1, ..Decisions::default() }));
        assert_eq!(decisions(&frame(&response(v1::Decision::Unspecified)), 1), None, "no decision");
        assert_eq!(decisions(&allow[..allow.len() - 1], 1), None, "cut off");
        assert_eq!(decisions(&[], 1), None, "nothing");
    }

    #[test]
    fn a_batch_counts_its_items_and_has_as_many_as_were_asked() {
        use v1::batch_check_result::Result::{Error, Response};
        let result = |result| v1::BatchCheckResult { result: Some(result) };
        let error = v1::ItemError { code: 7, ..Default::default() };
        let results = vec![
            result(Response(response(v1::Decision::Allow))),
            result(Response(response(v1::Decision::Conditional))),
            result(Error(error)),
        ];
        let batch = frame(&v1::BatchCheckResponse { results });
        let counted = Decisions { allowed: 1, conditional: 1, refused: 1, ..Decisions::default() };
        assert_eq!((decisions(&batch, 3), decisions(&batch, 4)), (Some(counted), None));
        let one = frame(&v1::BatchCheckResponse { results: vec![result(Response(response(v1::Decision::Deny)))] });
        assert_eq!(decisions(&one, 1), Some(Decisions { denied: 1, ..Decisions::default() }), "a batch of one");
    }

    #[test]
    fn a_reason_from_outside_is_a_word_or_unreadable() {
        let info = |reason: &str| {
            let details = tonic_types::ErrorDetails::with_error_info(
                reason,
                "gatepost.dev",
                std::collections::HashMap::<String, String>::new(),
            );
            match refused(&Status::with_error_details(tonic::Code::ResourceExhausted, "", details)) {
                Outcome::Refused { why, retry: false } => (why.code, why.reason),
                other @ (Outcome::Answered(_) | Outcome::Refused { .. } | Outcome::Failed(_)) => panic!("{other:?}"),
            }
        };
        assert_eq!(info("OVERLOADED"), ("RESOURCE_EXHAUSTED".into(), "OVERLOADED".into()));
        assert_eq!(info("\u{1b}[2J<script>").1, "(unreadable)");
    }
}

//! For the services that ask: one call before the data is touched, and an answer that can't be misread.
//!
//! A [`Client`] speaks to Gatepost over mutual TLS 1.3. It fails closed: an error is no access, and so is every answer
//! that is not an allow with all its obligations understood. It asks again only what may be asked again (a question
//! changes nothing) and only when nobody answered. It never logs a token.
//!
//! Knows the wire ([`proto`](crate::proto)) and the words ([`model`](crate::model)), and nothing of the house.
//!
//! ```no_run
//! # async fn example(token: String, mut account: serde_json::Value) -> Result<(), Box<dyn std::error::Error>> {
//! use gatepost::client::{Ask, Client};
//!
//! let gatepost = Client::builder("https://gatepost.internal:8443")
//!     .ca("/run/tls/ca.pem")
//!     .identity("/run/tls/client.pem", "/run/tls/client.key")
//!     .build()?;
//! let ask = Ask::new("Account.read").token(token).resource("Account", "1").reference("owner", "User", "alice");
//! let answer = gatepost.check(ask.fields_all()).await?;
//! let Some(mask) = answer.mask() else { return Err("no such account".into()) };
//! mask.apply(&mut account);
//! # Ok(()) }
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::pki_types::ServerName;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

pub use self::answer::Answer;
use self::ask::{About, Asked};
pub use self::ask::{Ask, Batch, EntityData, Opening};
pub use self::connection::IdentityError;
use self::connection::{Connection, Files, Target};
pub use self::mask::{Mask, MaskError, leaf_paths};
pub use self::stream::AskStream;
use crate::clock::{SharedClock, SystemClock};
use crate::proto::v1;
use crate::proto::v1::decision_service_client::DecisionServiceClient;

mod answer;
mod ask;
pub(crate) mod connection;
mod mask;
mod stream;
#[cfg(test)]
mod tests;

/// The longest deadline that may be set.
const LONGEST_DEADLINE: Duration = Duration::from_secs(10);
/// How often a question may be asked again.
const MOST_RETRIES: u32 = 2;
/// An answer, bytes.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// A `traceparent` or `x-request-id`, bytes.
const HEADER_BYTES: usize = 128;

/// Asks Gatepost. Cheap to clone; clones share one connection.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    connection: Connection,
    deadline: Duration,
    retries: u32,
    understood: BTreeSet<String>,
    clock: SharedClock,
}

/// Puts a [`Client`] together.
#[must_use]
pub struct Builder {
    endpoint: String,
    server_name: Option<String>,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    deadline: Duration,
    retries: u32,
    understood: BTreeSet<String>,
    reload_interval: Duration,
    clock: SharedClock,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not `https://host:port`, or a server name that is none.
    #[error("endpoint: {0}")]
    Endpoint(&'static str),
    /// Something that has no default was not said.
    #[error("{0} must be given")]
    Missing(&'static str),
    /// A number out of its range.
    #[error("{0}")]
    Range(&'static str),
    /// The certificate files cannot be used.
    #[error("identity")]
    Identity(#[from] IdentityError),
}

/// Why there is no answer. It is never access.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It was not asked: this question cannot be put. A mistake in the service, or in what it was sent.
    #[error("the question cannot be asked: {0}")]
    Question(&'static str),
    /// Nobody answered in time.
    #[error("no answer within the deadline")]
    Deadline,
    /// Gatepost cannot be reached, or cannot decide now.
    #[error("gatepost is unavailable{}", reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Unavailable {
        /// Gatepost's reason, if it was Gatepost who said so: `AUDIT_UNAVAILABLE`.
        reason: Option<String>,
        /// What gRPC had to say.
        #[source]
        status: Box<Status>,
    },
    /// Gatepost does not answer this question of this service: not enrolled, malformed, too much at once.
    #[error("gatepost refused the question: {code:?}{}", reason.as_deref().map(|reason| format!(", {reason}")).unwrap_or_default())]
    Refused {
        /// The gRPC code.
        code: Code,
        /// Gatepost's reason.
        reason: Option<String>,
        /// Names the refusal in the audit trail.
        decision_id: Option<String>,
    },
    /// What came back is not an answer to what was asked.
    #[error("the answer breaks the contract: {0}")]
    Answer(&'static str),
}

impl Client {
    /// A client for the Gatepost at `endpoint`, `https://host:port`.
    pub fn builder(endpoint: impl Into<String>) -> Builder {
        Builder {
            endpoint: endpoint.into(),
            server_name: None,
            ca: None,
            identity: None,
            deadline: Duration::from_millis(200),
            retries: 1,
            understood: BTreeSet::new(),
            reload_interval: Duration::from_secs(10),
            clock: SystemClock::shared(),
        }
    }

    /// Asks one question.
    ///
    /// # Errors
    /// [`AskError`] when there is no answer; that is no access.
    pub async fn check(&self, question: Ask) -> Result<Answer, AskError> {
        let (wire, asked) = (question.to_wire()?, question.asked()?);
        let call = |mut service: Service, request| async move { service.check(request).await };
        let response = self.ask(question.about(), wire, call).await?;
        Answer::take(response, &asked, &self.inner.understood).map_err(AskError::Answer)
    }

    /// Asks many questions at once; the answers stand in the order of the questions, each with its own fate.
    ///
    /// # Errors
    /// [`AskError`] when there is no answer to any of them; that is no access to any of them.
    pub async fn batch(&self, batch: Batch) -> Result<Vec<Result<Answer, AskError>>, AskError> {
        let (wire, asked) = (batch.to_wire()?, batch.asked()?);
        let call = |mut service: Service, request| async move { service.batch_check(request).await };
        let results = self.ask(batch.about(), wire, call).await?.results;
        if results.len() != asked.len() {
            return Err(AskError::Answer("not as many answers as questions"));
        }
        Ok(results.into_iter().zip(&asked).map(|(result, asked)| self.take(result, asked)).collect())
    }

    fn take(&self, result: v1::BatchCheckResult, asked: &Asked) -> Result<Answer, AskError> {
        use v1::batch_check_result::Result::{Error, Response};
        match result.result {
            Some(Response(response)) => Answer::take(response, asked, &self.inner.understood).map_err(AskError::Answer),
            Some(Error(error)) => Err(AskError::Refused {
                code: Code::from_i32(error.code),
                reason: Some(error.reason),
                decision_id: Some(error.decision_id).filter(|id| !id.is_empty()),
            }),
            None => Err(AskError::Answer("neither an answer nor an error")),
        }
    }

    /// Calls until there is an answer, it makes no sense any more, or the deadline has passed, all attempts together.
    async fn ask<Q, A, F>(
        &self,
        about: &About,
        question: Q,
        call: impl Fn(Service, Request<Q>) -> F,
    ) -> Result<A, AskError>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let inner = &*self.inner;
        let started = inner.clock.monotonic();
        let attempts = async {
            let mut left = inner.retries;
            loop {
                let spent = inner.clock.monotonic().saturating_sub(started);
                let Some(remaining) = inner.deadline.checked_sub(spent).filter(|time| !time.is_zero()) else {
                    return Err(AskError::Deadline);
                };
                let service = DecisionServiceClient::new(inner.connection.channel().await)
                    .max_decoding_message_size(ANSWER_BYTES);
                let failure = match call(service, about.request(question.clone(), remaining)).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) => AskError::from(status),
                };
                match (&failure, left.checked_sub(1)) {
                    (AskError::Unavailable { .. }, Some(fewer)) => left = fewer,
                    _ => return Err(failure),
                }
                tokio::time::sleep(jitter()).await;
            }
        };
        tokio::time::timeout(inner.deadline, attempts).await.unwrap_or(Err(AskError::Deadline))
    }
}

type Service = DecisionServiceClient<Channel>;

impl About {
    fn request<Q>(&self, question: Q, remaining: Duration) -> Request<Q> {
        let mut request = self.named(question);
        request.set_timeout(remaining);
        request
    }

    /// With the caller's names for it, and for as long as it takes.
    fn named<Q>(&self, question: Q) -> Request<Q> {
        let mut request = Request::new(question);
        let names = [("traceparent", &self.traceparent), ("x-request-id", &self.request_id)];
        for (key, value) in names {
            let value = value.as_deref().filter(|value| !value.is_empty() && value.len() <= HEADER_BYTES);
            if let Some(value) = value.and_then(|value| MetadataValue::try_from(value).ok()) {
                request.metadata_mut().insert(key, value);
            }
        }
        request
    }
}

/// 5 to 20 ms, so that the callers of one Gatepost that went away do not all come back at once.
fn jitter() -> Duration {
    let mut byte = [0_u8];
    // Without randomness the shortest wait is as good as any.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    Duration::from_micros(5_000 + u64::from(u8::from_le_bytes(byte)) * 60)
}

impl From<Status> for AskError {
    /// What Gatepost said keeps its code. What happened on the way here (a connection that was refused, cut off or told
    /// to go away) has a source, which nothing that came over the wire has: it is always "unavailable".
    fn from(status: Status) -> Self {
        let on_the_way = std::error::Error::source(&status).is_some();
        if status.code() == Code::DeadlineExceeded || (on_the_way && timed_out(&status)) {
            return Self::Deadline;
        }
        let info = status.get_error_details().error_info().cloned();
        let reason = info.as_ref().map(|info| info.reason.clone());
        if on_the_way || status.code() == Code::Unavailable {
            return Self::Unavailable { reason, status: Box::new(status) };
        }
        let decision_id = info.and_then(|info| info.metadata.get("decision_id").cloned());
        Self::Refused { code: status.code(), reason, decision_id }
    }
}

fn timed_out(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

impl Builder {
    /// The name that Gatepost's certificate must carry; the endpoint's host when unset.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// PEM: the authorities that Gatepost's certificate must chain to. The system's are never used.
    pub fn ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca = Some(path.into());
        self
    }

    /// PEM: this service's certificate chain, leaf first, and its private key.
    pub fn identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// How long a question may take, all attempts together: 1 ms to 10 s; 200 ms when unset.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How often a question that nobody answered is asked again within the deadline: 0 to 2; 1 when unset. A denial, a
    /// refusal and a passed deadline are answers, and final.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// The obligations that this service fulfils. An allow with any other is no access.
    pub fn understands<I>(mut self, obligations: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.understood.extend(obligations.into_iter().map(Into::into));
        self
    }

    /// How often the certificate files are looked at while questions are asked; 10 s when unset.
    pub fn reload_interval(mut self, interval: Duration) -> Self {
        self.reload_interval = interval;
        self
    }

    /// Another clock than the machine's.
    pub fn clock(mut self, clock: SharedClock) -> Self {
        self.clock = clock;
        self
    }

    /// Reads the certificate files. Gatepost itself is not called until there is a question.
    ///
    /// # Errors
    /// [`BuildError`] for the first thing that is wrong.
    pub fn build(self) -> Result<Client, BuildError> {
        let endpoint: Uri = self.endpoint.parse().map_err(|_| BuildError::Endpoint("not a URL"))?;
        if endpoint.scheme_str() != Some("https") {
            return Err(BuildError::Endpoint("must start with https://"));
        }
        if !matches!(endpoint.path_and_query().map(http::uri::PathAndQuery::as_str), None | Some("/")) {
            return Err(BuildError::Endpoint("must end after the port"));
        }
        let host = endpoint.host().unwrap_or_default().trim_matches(['[', ']']);
        let server_name = ServerName::try_from(self.server_name.unwrap_or_else(|| host.to_owned()))
            .map_err(|_| BuildError::Endpoint("the server name is neither a DNS name nor an address"))?;
        if self.deadline < Duration::from_millis(1) || self.deadline > LONGEST_DEADLINE {
            return Err(BuildError::Range("the deadline must be 1 ms to 10 s"));
        }
        if self.retries > MOST_RETRIES {
            return Err(BuildError::Range("there are at most 2 retries"));
        }
        let (certificate, key) = self.identity.ok_or(BuildError::Missing("a client certificate and its key"))?;
        let ca = self.ca.ok_or(BuildError::Missing("the authority of gatepost's certificate"))?;
        let connection = Connection::prepare(
            Target { endpoint, server_name },
            Files { ca, certificate, key },
            Arc::clone(&self.clock),
            self.reload_interval,
        )?;
        let (deadline, retries, understood, clock) = (self.deadline, self.retries, self.understood, self.clock);
        Ok(Client { inner: Arc::new(Inner { connection, deadline, retries, understood, clock }) })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("deadline", &self.inner.deadline)
            .field("retries", &self.inner.retries)
            .finish_non_exhaustive()
    }
}

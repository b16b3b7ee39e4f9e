//! OTLP logs over gRPC: `LogsService.Export`, one call a batch.
//!
//! What a collector can't take at once is halved until it can. One that takes only a part says how many it refused and not
//! which, and the protocol forbids asking again: so all of them are put aside, with its words and the number. None is called
//! delivered that may not be there. Whatever an operator can mend (a missing right, a wrong address) is tried again. A single
//! record that is refused as if it were too long may meet a collector that is merely busy: it is tried a few times more, and
//! then put aside, so that it does not hold up all that come after it.
//!
//! Source: OTLP 1.x, sections "OTLP/gRPC Response", "Partial Success", "Failures" and "OTLP/gRPC Throttling".

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::syslog::Duplex;
use super::target::{Delivery, Fault, Outgoing, Taken, Target, bounded};
use super::tls::{TlsProblem, client};
use crate::audit::encode::otlp::resource_logs;
use crate::config::{OtlpTarget, SinkTls};

/// An answer has a number and a few words.
const ANSWER_BYTES: usize = 64 << 10;
/// How often a single record is tried that seems to be too long.
const ATTEMPTS: u32 = 5;

pub(super) struct OtlpSink {
    endpoint: Endpoint,
    address: Address,
    timeout: Duration,
    /// Let go after a failure, so that renewed certificates count.
    channel: Option<Channel>,
    /// The record that was last refused by itself, as too long it seems, and how often in a row.
    stuck: (u64, u32),
}

/// Where the collector is.
#[derive(Debug, Clone)]
struct Address {
    host: String,
    port: u16,
    tls: Option<SinkTls>,
}

impl OtlpSink {
    pub(super) fn new(settings: &OtlpTarget, timeout: Duration) -> Result<Self, TlsProblem> {
        let secure = settings.endpoint.scheme() == "https";
        if secure {
            client(&settings.tls)?;
        }
        let host = settings.endpoint.host_str().unwrap_or_default();
        let address = Address {
            host: host.trim_matches(['[', ']']).to_owned(),
            // An `http` or `https` URL has one.
            port: settings.endpoint.port_or_known_default().unwrap_or_default(),
            tls: secure.then(|| settings.tls.clone()),
        };
        let uri = Uri::builder()
            .scheme(if secure { "https" } else { "http" })
            .authority(format!("{host}:{}", address.port))
            .path_and_query("/")
            .build()
            .map_err(|_| TlsProblem::Authorities)?;
        let endpoint = Endpoint::from(uri);
        Ok(Self { endpoint, address, timeout, channel: None, stuck: (0, 0) })
    }

    async fn channel(&mut self) -> Result<Channel, Fault> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let address = self.address.clone();
        let dial = tower::service_fn(move |_: Uri| {
            let address = address.clone();
            async move { address.dial().await.map(TokioIo::new) }
        });
        let connected = self.endpoint.connect_with_connector(dial).await;
        let channel = connected.map_err(|error| Fault::new(&format!("no connection: {}", root(&error))))?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    /// Whether this single record has been refused often enough.
    fn is_stuck(&mut self, part: &[Outgoing]) -> bool {
        let sequence = part.first().map_or(0, |one| one.sequence);
        let before = if self.stuck.0 == sequence { self.stuck.1 } else { 0 };
        self.stuck = (sequence, before + 1);
        before + 1 >= ATTEMPTS
    }

    async fn export(&mut self, batch: &[Outgoing]) -> Exported {
        let records = batch.iter().map(|one| (&one.record, one.encoded.as_slice()));
        let request = Request::new(ExportLogsServiceRequest { resource_logs: resource_logs(records) });
        let limit = self.timeout;
        let call = async {
            let channel = self.channel().await?;
            let mut service = LogsServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
            Ok(service.export(request).await)
        };
        let answer = match tokio::time::timeout(limit, call).await {
            Ok(Ok(Ok(answer))) => answer.into_inner(),
            Ok(Ok(Err(status))) => return meaning(&status),
            Ok(Err(fault)) => return Exported::Failed(fault),
            Err(_) => return Exported::Failed(Fault::new("no answer in time")),
        };
        match answer.partial_success {
            // None refused, but words: a warning, and everything was taken.
            Some(partial) if partial.rejected_log_records > 0 => {
                let (count, words) = (partial.rejected_log_records, bounded(&partial.error_message));
                Exported::Refused(format!("the collector refused {count} of {}: {words}", batch.len()))
            }
            _ => Exported::Taken,
        }
    }
}

/// What became of one call.
enum Exported {
    Taken,
    /// It will never have them.
    Refused(String),
    /// Not all of this at once; of a single record: this one never, or not now.
    Smaller(Result<String, Fault>),
    Failed(Fault),
}

/// What a status means here (section "Failures").
fn meaning(status: &Status) -> Exported {
    let retry_after = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
    let fault = || {
        let words = if status.source().is_some() { root(status) } else { status.message().to_owned() };
        Fault { retry_after, ..Fault::new(&format!("the collector answers {:?}: {words}", status.code())) }
    };
    match status.code() {
        Code::InvalidArgument => Exported::Smaller(Ok(bounded(status.message()))),
        // Without a time to come back these mean a message that is too long, to some servers.
        Code::ResourceExhausted | Code::OutOfRange if retry_after.is_none() => Exported::Smaller(Err(fault())),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => Exported::Failed(fault()),
    }
}

impl Address {
    async fn dial(&self) -> io::Result<Box<dyn Duplex>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
        let mut config = client(tls).map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        Ok(Box::new(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?))
    }
}

/// The first cause: what is above it says only that something went wrong.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

impl Target for OtlpSink {
    fn deliver<'a>(&'a mut self, batch: &'a [Outgoing]) -> Delivery<'a> {
        Box::pin(async move {
            let (mut taken, mut refused, mut size) = (0, Vec::new(), batch.len());
            while let Some(rest) = batch.get(taken..).filter(|rest| !rest.is_empty()) {
                let part = rest.get(..size.max(1)).unwrap_or(rest);
                let reason = match self.export(part).await {
                    Exported::Taken => None,
                    Exported::Refused(reason) => Some(reason),
                    Exported::Smaller(_) if part.len() > 1 => {
                        size = part.len() / 2;
                        continue;
                    }
                    Exported::Smaller(Ok(reason)) => Some(reason),
                    Exported::Smaller(Err(fault)) if self.is_stuck(part) => Some(fault.message),
                    Exported::Smaller(Err(fault)) | Exported::Failed(fault) => {
                        self.channel = None;
                        return Err(Fault { taken, refused, ..fault });
                    }
                };
                if let Some(reason) = reason {
                    refused.extend((taken..taken + part.len()).map(|at| (at, reason.clone())));
                }
                taken += part.len();
                size = part.len().saturating_mul(2);
            }
            Ok(Taken { refused })
        })
    }

    /// Each call has its time; what earlier ones of a batch achieved must not be forgotten with a later one.
    fn patient(&self) -> bool {
        true
    }
}

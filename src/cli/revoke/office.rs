//! The admin listener, from an operator's side.

use std::time::Duration;

use prost_types::Timestamp;
use rustls_pki_types::ServerName;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::ServerArgs;
use super::show::Shown;
use crate::client::connection::{Connection, Files, Target};
use crate::clock::SystemClock;
use crate::proto::admin::v1;
use crate::proto::admin::v1::revocation_service_client::RevocationServiceClient;

/// How long one call may take, the connection included.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// Entries of a page.
const PAGE: usize = 1000;

/// Why it came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// Files are wrong.
    #[error("{0}")]
    Files(String),
    /// Nobody answered, or could not.
    #[error("{0}")]
    Unreachable(String),
    /// The server said no.
    #[error("refused: {told}")]
    Refused { told: String },
}

pub(super) struct Office {
    connection: Connection,
}

impl Office {
    /// Reads the files; connects to nobody yet.
    pub(super) fn open(args: &ServerArgs) -> Result<Self, Failure> {
        let usage = |what: &str| Failure::Usage(format!("--server {what}"));
        let endpoint: http::Uri = args.server.parse().map_err(|_| usage("must be https://HOST:PORT"))?;
        if endpoint.scheme_str() != Some("https") {
            return Err(usage("must be https://HOST:PORT"));
        }
        let host = endpoint.host().ok_or_else(|| usage("names no host"))?.trim_matches(['[', ']']).to_owned();
        let name = args.server_name.clone().unwrap_or(host);
        let server_name = ServerName::try_from(name).map_err(|_| usage("or --server-name is no name of a host"))?;
        let files = Files { ca: args.ca.clone(), certificate: args.certificate.clone(), key: args.key.clone() };
        let target = Target { endpoint, server_name };
        let connection = Connection::prepare(target, files, SystemClock::shared(), Duration::from_secs(3600));
        Ok(Self { connection: connection.map_err(|error| Failure::Files(error.to_string()))? })
    }

    pub(super) async fn token(
        &self,
        id: &str,
        sha256: bool,
        issuer: &str,
        until: Option<jiff::Timestamp>,
        reason: &str,
    ) -> Result<Shown, Failure> {
        use v1::revoke_token_request::Token;
        let message = v1::RevokeTokenRequest {
            issuer: issuer.to_owned(),
            token: Some(if sha256 { Token::TokenIdSha256(id.to_owned()) } else { Token::TokenId(id.to_owned()) }),
            expire_time: until.map(timestamp),
            reason: reason.to_owned(),
        };
        let answer = self.service().await.revoke_token(within(message)).await.map_err(failed)?.into_inner();
        Shown::revoked(answer.revocation, answer.call_id)
    }

    pub(super) async fn subject(
        &self,
        subject: &str,
        issuer: &str,
        issued_before: Option<jiff::Timestamp>,
        reason: &str,
    ) -> Result<Shown, Failure> {
        let message = v1::RevokeSubjectRequest {
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            issued_before: issued_before.map(timestamp),
            reason: reason.to_owned(),
        };
        let answer = self.service().await.revoke_subject(within(message)).await.map_err(failed)?.into_inner();
        Shown::revoked(answer.revocation, answer.call_id)
    }

    pub(super) async fn session(
        &self,
        id: &str,
        issuer: &str,
        until: Option<jiff::Timestamp>,
        reason: &str,
    ) -> Result<Shown, Failure> {
        let message = v1::RevokeSessionRequest {
            issuer: issuer.to_owned(),
            session_id: id.to_owned(),
            expire_time: until.map(timestamp),
            reason: reason.to_owned(),
        };
        let answer = self.service().await.revoke_session(within(message)).await.map_err(failed)?.into_inner();
        Shown::revoked(answer.revocation, answer.call_id)
    }

    pub(super) async fn certificate(
        &self,
        sha256: &str,
        until: jiff::Timestamp,
        reason: &str,
    ) -> Result<Shown, Failure> {
        let message = v1::RevokeCertificateRequest {
            certificate_sha256: sha256.to_owned(),
            expire_time: Some(timestamp(until)),
            reason: reason.to_owned(),
        };
        let answer = self.service().await.revoke_certificate(within(message)).await.map_err(failed)?.into_inner();
        Shown::revoked(answer.revocation, answer.call_id)
    }

    /// Page by page, slowly enough for the listener.
    pub(super) async fn list(&self, limit: usize) -> Result<Shown, Failure> {
        let (mut revocations, mut page_token) = (Vec::new(), String::new());
        loop {
            let page_size = i32::try_from(limit.saturating_sub(revocations.len()).min(PAGE)).unwrap_or(i32::MAX);
            let message = v1::ListRevocationsRequest { page_size, page_token };
            let answer = self.service().await.list_revocations(within(message)).await.map_err(failed)?.into_inner();
            revocations.extend(answer.revocations);
            page_token = answer.next_page_token;
            if page_token.is_empty() || revocations.len() >= limit {
                return Ok(Shown::List { revocations, total: answer.total_size });
            }
            tokio::time::sleep(Duration::from_millis(110)).await;
        }
    }

    async fn service(&self) -> RevocationServiceClient<tonic::transport::Channel> {
        RevocationServiceClient::new(self.connection.channel().await)
    }
}

fn within<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_WITHIN);
    request
}

fn timestamp(instant: jiff::Timestamp) -> Timestamp {
    Timestamp { seconds: instant.as_second(), nanos: instant.subsec_nanosecond() }
}

/// The innermost cause alone: whoever passed it on said no more than that it is a transport's error, or the same again.
fn cause(status: &Status) -> String {
    let mut innermost: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(next) = innermost.and_then(std::error::Error::source) {
        innermost = Some(next);
    }
    innermost.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// What the server said keeps its words; what happened on the way has a source.
fn failed(status: Status) -> Failure {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| {
        let call = info.metadata.get("call_id").map(|id| format!(", call {id}")).unwrap_or_default();
        format!(" ({}{call})", info.reason)
    });
    if reason.is_none() {
        return Failure::Unreachable(format!("the server can't be reached: {}", cause(&status)));
    }
    let field = details.bad_request().and_then(|bad| bad.field_violations.first());
    let field = field.map(|field| format!("; `{}` {}", field.field, field.description)).unwrap_or_default();
    let told = format!("{}{field}{}", status.message(), reason.unwrap_or_default());
    if status.code() == Code::Unavailable { Failure::Unreachable(told) } else { Failure::Refused { told } }
}

//! `gatepost.admin.v1.RevocationService` over [`Admin`]: the wire on one side, what operators do on the other.

use std::sync::Arc;

use prost_types::Timestamp;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::service::request_id;
use super::status::DOMAIN;
use crate::admin::{Admin, AdminCall, AdminError, AdminRefusal, Asked, AskedFor};
use crate::config::AdminMethod;
use crate::proto::admin::v1;
use crate::proto::admin::v1::revocation_service_server::RevocationService;
use crate::revocation::{Key, Kind, Place, Revocation};
use crate::tls::peer::Peer;

pub mod recorded;

/// A message, bytes.
pub const MESSAGE_BYTES: usize = 16 * 1024;
/// Entries of a page: when none are named, and at most. Source: AIP-158.
const PAGE: (usize, usize) = (100, 1000);
/// 9999-12-31T23:59:59Z, the last second that a Timestamp has.
const LAST_SECOND: u64 = 253_402_300_799;

/// The service.
#[derive(Clone)]
pub struct Operators {
    admin: Arc<Admin>,
}

impl Operators {
    /// A door to `admin`.
    #[must_use]
    pub fn new(admin: Arc<Admin>) -> Self {
        Self { admin }
    }

    async fn revoke<M: Send>(
        &self,
        method: AdminMethod,
        request: Request<M>,
        asked: impl FnOnce(M) -> Asked + Send,
    ) -> Result<(Option<v1::Revocation>, String), Status> {
        let (metadata, extensions, message) = request.into_parts();
        let call = call(Some(method), &metadata.into_headers(), extensions.get::<Arc<Peer>>().cloned());
        match self.admin.revoke(&call, || asked(message)).await {
            Ok(done) => Ok((Some(revocation(&done.outcome)), done.call_id.to_string())),
            Err(refusal) => Err(to_status(&refusal)),
        }
    }
}

#[tonic::async_trait]
impl RevocationService for Operators {
    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        use v1::revoke_token_request::Token;
        let asked = |message: v1::RevokeTokenRequest| Asked {
            what: match message.token {
                Some(Token::TokenId(id)) => AskedFor::Token(id),
                Some(Token::TokenIdSha256(sha256)) => AskedFor::TokenSha256(sha256),
                None => AskedFor::NoToken,
            },
            issuer: message.issuer,
            until: message.expire_time.map(seconds),
            reason: message.reason,
        };
        let (revocation, call_id) = self.revoke(AdminMethod::RevokeToken, request, asked).await?;
        Ok(Response::new(v1::RevokeTokenResponse { revocation, call_id }))
    }

    async fn revoke_subject(
        &self,
        request: Request<v1::RevokeSubjectRequest>,
    ) -> Result<Response<v1::RevokeSubjectResponse>, Status> {
        let asked = |message: v1::RevokeSubjectRequest| Asked {
            what: AskedFor::Subject(message.subject, message.issued_before.map(seconds)),
            issuer: message.issuer,
            until: None,
            reason: message.reason,
        };
        let (revocation, call_id) = self.revoke(AdminMethod::RevokeSubject, request, asked).await?;
        Ok(Response::new(v1::RevokeSubjectResponse { revocation, call_id }))
    }

    async fn revoke_session(
        &self,
        request: Request<v1::RevokeSessionRequest>,
    ) -> Result<Response<v1::RevokeSessionResponse>, Status> {
        let asked = |message: v1::RevokeSessionRequest| Asked {
            what: AskedFor::Session(message.session_id),
            issuer: message.issuer,
            until: message.expire_time.map(seconds),
            reason: message.reason,
        };
        let (revocation, call_id) = self.revoke(AdminMethod::RevokeSession, request, asked).await?;
        Ok(Response::new(v1::RevokeSessionResponse { revocation, call_id }))
    }

    async fn revoke_certificate(
        &self,
        request: Request<v1::RevokeCertificateRequest>,
    ) -> Result<Response<v1::RevokeCertificateResponse>, Status> {
        let asked = |message: v1::RevokeCertificateRequest| Asked {
            what: AskedFor::Certificate(message.certificate_sha256),
            issuer: String::new(),
            until: message.expire_time.map(seconds),
            reason: message.reason,
        };
        let (revocation, call_id) = self.revoke(AdminMethod::RevokeCertificate, request, asked).await?;
        Ok(Response::new(v1::RevokeCertificateResponse { revocation, call_id }))
    }

    async fn list_revocations(
        &self,
        request: Request<v1::ListRevocationsRequest>,
    ) -> Result<Response<v1::ListRevocationsResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let peer = extensions.get::<Arc<Peer>>().cloned();
        let call = call(Some(AdminMethod::ListRevocations), &metadata.into_headers(), peer);
        let done = self.admin.list(&call, || page_of(&message)).await.map_err(|refusal| to_status(&refusal))?;
        let page = done.outcome;
        let next = page.revocations.last().filter(|_| page.more).map(|last| page_token((last.kind, last.key)));
        Ok(Response::new(v1::ListRevocationsResponse {
            next_page_token: next.unwrap_or_default(),
            total_size: i64::try_from(page.total).unwrap_or(i64::MAX),
            revocations: page.revocations.iter().map(revocation).collect(),
            call_id: done.call_id.to_string(),
        }))
    }
}

fn call(method: Option<AdminMethod>, headers: &http::HeaderMap, peer: Option<Arc<Peer>>) -> AdminCall {
    AdminCall { method, peer, request_id: request_id(headers) }
}

/// After which entry the page begins, and how many it has.
fn page_of(message: &v1::ListRevocationsRequest) -> Result<(Option<Place>, usize), AdminError> {
    let size = match usize::try_from(message.page_size) {
        Ok(0) => PAGE.0,
        Ok(size) => size.min(PAGE.1),
        Err(_) => return Err(AdminError::Invalid { field: "page_size", rule: "must not be negative" }),
    };
    if message.page_token.is_empty() {
        return Ok((None, size));
    }
    let after = read_page_token(&message.page_token);
    let after = after.ok_or(AdminError::Invalid { field: "page_token", rule: "must be what the page before said" });
    after.map(|after| (Some(after), size))
}

/// `v1.token.<key>`: the last entry that was told. It says nothing that was not.
fn page_token((kind, key): Place) -> String {
    format!("v1.{}.{key}", kind.as_str())
}

fn read_page_token(text: &str) -> Option<Place> {
    let (kind, key) = text.strip_prefix("v1.")?.split_once('.')?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some((kind, Key::parse(key)?))
}

fn revocation(one: &Revocation) -> v1::Revocation {
    let kind = match one.kind {
        Kind::Token => v1::RevocationKind::Token,
        Kind::Subject => v1::RevocationKind::Subject,
        Kind::Session => v1::RevocationKind::Session,
        Kind::Certificate => v1::RevocationKind::Certificate,
    };
    v1::Revocation {
        kind: kind.into(),
        key: one.key.to_string(),
        issued_before: one.cut_off().map(timestamp),
        expire_time: Some(timestamp(one.until)),
    }
}

fn timestamp(seconds: u64) -> Timestamp {
    Timestamp { seconds: i64::try_from(seconds.min(LAST_SECOND)).unwrap_or_default(), nanos: 0 }
}

/// Whole seconds, a fraction counted as one more: then no less is revoked than was meant.
fn seconds(time: Timestamp) -> Result<u64, &'static str> {
    let fraction = match time.nanos {
        0 => 0,
        1..=999_999_999 => 1,
        _ => return Err("must have `nanos` of 0 to 999999999"),
    };
    let seconds = u64::try_from(time.seconds).ok().and_then(|seconds| seconds.checked_add(fraction));
    seconds.filter(|seconds| *seconds <= LAST_SECOND).ok_or("must be between the years 1970 and 9999")
}

/// The operator learns a code, a fixed sentence and the call's id; what else there is stays in a log line with that id.
pub(super) fn to_status(refusal: &AdminRefusal) -> Status {
    let AdminRefusal { id, error } = refusal;
    let (code, message) = match error {
        AdminError::NotIdentified(_) => (Code::Unauthenticated, "the operator has no usable identity"),
        AdminError::NotEnrolled => (Code::PermissionDenied, "the caller is not an operator"),
        AdminError::NotEntitled => (Code::PermissionDenied, "the operator may not call this method"),
        AdminError::TooFast(_) => (Code::ResourceExhausted, "more than ten calls a second; try again"),
        AdminError::Invalid { .. } => (Code::InvalidArgument, "the request is malformed"),
        AdminError::NoSuchMethod => (Code::Unimplemented, "there is no such method"),
        AdminError::Unreadable => (Code::InvalidArgument, "the message can't be read, or is longer than its limit"),
        AdminError::Full(_) => (Code::ResourceExhausted, "`limits.revocations` are in force; nothing was revoked"),
        AdminError::Audit(_) => (Code::Unavailable, "it could not be recorded; nothing was revoked"),
        AdminError::NotStored(_) => (Code::Unavailable, "it could not be stored; nothing was revoked"),
        AdminError::Deadline => (Code::DeadlineExceeded, "the deadline passed"),
        AdminError::Panicked => (Code::Internal, "a fault of ours"),
    };
    tracing::warn!(
        call.id = %id,
        reason = error.reason(),
        error = error as &dyn std::error::Error,
        "an operator's call was refused"
    );
    let metadata = [("call_id".to_owned(), id.to_string())];
    let mut details = ErrorDetails::with_error_info(error.reason(), DOMAIN, metadata);
    if let AdminError::Invalid { field, rule } = error {
        details.set_bad_request(vec![FieldViolation::new(*field, *rule)]);
    }
    if let AdminError::TooFast(wait) = error {
        details.set_retry_info(Some(*wait));
    }
    Status::with_error_details(code, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_is_what_a_page_said_or_nothing() {
        let place = (Kind::Session, Key::of(Kind::Session, "https://idp.test", "s-1"));
        assert_eq!(read_page_token(&page_token(place)), Some(place));
        let hex = "ab".repeat(32);
        let table = [
            (format!("v1.token.{hex}"), true, "as they are"),
            (format!("v2.token.{hex}"), false, "another version"),
            (format!("v1.cookie.{hex}"), false, "no kind"),
            (format!("v1.token.{}", hex.to_uppercase()), false, "upper case"),
            (format!("v1.token.{hex}0"), false, "too long"),
            ("v1.token".to_owned(), false, "no key"),
            ("../../etc/passwd".to_owned(), false, "nonsense"),
        ];
        for (text, expected, why) in table {
            assert_eq!(read_page_token(&text).is_some(), expected, "{why}");
        }
    }

    #[test]
    fn a_time_is_rounded_so_that_no_less_is_revoked() {
        let table = [
            ((5, 0), Some(5), "whole"),
            ((5, 1), Some(6), "a fraction"),
            ((0, 0), Some(0), "the epoch"),
            ((-1, 0), None, "before it"),
            ((5, -1), None, "no fraction"),
            ((5, 1_000_000_000), None, "more than one"),
            ((253_402_300_799, 0), Some(253_402_300_799), "the last"),
            ((253_402_300_799, 1), None, "past it"),
            ((i64::MAX, 999_999_999), None, "absurd"),
        ];
        for ((whole, nanos), expected, why) in table {
            assert_eq!(seconds(Timestamp { seconds: whole, nanos }).ok(), expected, "{why}");
        }
    }
}

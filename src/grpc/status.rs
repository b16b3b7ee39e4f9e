//! Where errors part: the client learns a code, a fixed sentence and the decision id; everything else stays in a log line
//! that carries the same id.

use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::pdp::{DecideError, Refusal};
use crate::proto::v1;

mod shed;

/// `google.rpc.ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "gatepost.dev";

/// How a refusal looks from outside.
struct Outside {
    code: Code,
    message: &'static str,
}

fn outside(error: &DecideError) -> Outside {
    let (code, message) = match error {
        DecideError::NotIdentified(_) => (Code::Unauthenticated, "the calling service has no usable identity"),
        DecideError::NotEnrolled => (Code::PermissionDenied, "the calling service is not enrolled"),
        DecideError::NotEntitled(_) => (Code::PermissionDenied, "the calling service may not ask this"),
        DecideError::Invalid(_) => (Code::InvalidArgument, "the question is malformed"),
        DecideError::NoSuchMethod => (Code::Unimplemented, "there is no such method"),
        DecideError::Unreadable => (Code::InvalidArgument, "the message can't be read, or is longer than its limit"),
        DecideError::Overloaded { .. } => (Code::ResourceExhausted, "too many decisions at once; try again"),
        DecideError::OverShare { .. } => {
            (Code::ResourceExhausted, "the calling service has its share of decisions; try again")
        }
        DecideError::Deadline => (Code::DeadlineExceeded, "the deadline passed"),
        DecideError::Audit(_) | DecideError::ShedUnrecorded { .. } => {
            (Code::Unavailable, "no decision could be recorded")
        }
        DecideError::Panicked => (Code::Internal, "no decision could be made"),
    };
    Outside { code, message }
}

/// The status of a refused call.
#[must_use]
pub fn to_status(refusal: &Refusal) -> Status {
    let Refusal { id, error } = refusal;
    let Outside { code, message } = outside(error);
    log(refusal);
    if let Some(after) = error.retry_after() {
        let mut metadata = MetadataMap::with_capacity(1);
        // For clients that retry by themselves. Source: gRFC A6, "Pushback".
        metadata.insert("grpc-retry-pushback-ms", u64::try_from(after.as_millis()).unwrap_or(0).into());
        let details = shed::details(code, message, error.reason(), &id.to_string(), after);
        return Status::with_details_and_metadata(code, message, details, metadata);
    }
    let metadata = [("decision_id".to_owned(), id.to_string())];
    let mut details = ErrorDetails::with_error_info(error.reason(), DOMAIN, metadata);
    if let DecideError::Invalid(misfit) = error {
        details.set_bad_request(vec![FieldViolation::new(&misfit.at, misfit.rule)]);
    }
    Status::with_error_details(code, message, details)
}

/// The error of one item of a batch.
#[must_use]
pub fn to_item_error(refusal: &Refusal) -> v1::ItemError {
    let Refusal { id, error } = refusal;
    let Outside { code, message } = outside(error);
    log(refusal);
    v1::ItemError {
        code: code.into(),
        reason: error.reason().to_owned(),
        message: message.to_owned(),
        decision_id: id.to_string(),
        field: match error {
            DecideError::Invalid(misfit) => misfit.at.clone(),
            DecideError::NotIdentified(_)
            | DecideError::NotEnrolled
            | DecideError::NotEntitled(_)
            | DecideError::NoSuchMethod
            | DecideError::Unreadable
            | DecideError::Overloaded { .. }
            | DecideError::OverShare { .. }
            | DecideError::Deadline
            | DecideError::Audit(_)
            | DecideError::ShedUnrecorded { .. }
            | DecideError::Panicked => String::new(),
        },
    }
}

fn log(refusal: &Refusal) {
    let error = &refusal.error;
    if error.retry_after().is_some() {
        // An overload must not fill the log as well: each of these is counted, and has its record unless even those are too many.
        tracing::debug!(decision.id = %refusal.id, reason = error.reason(), "a call was shed");
        return;
    }
    tracing::warn!(
        decision.id = %refusal.id,
        reason = error.reason(),
        error = error as &dyn std::error::Error,
        "no decision"
    );
}

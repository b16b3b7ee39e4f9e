//! Why there is no decision. A deny is a decision, so it is never one of these.

use crate::audit::{AuditError, Outcome};
use crate::caller::CallerError;
use crate::model::ids::DecisionId;
use crate::policy::Misfit;

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// The connection's certificate names no workload.
    #[error("the calling workload has no usable identity: {0}")]
    NotIdentified(&'static str),
    /// The workload is not in the configuration.
    #[error("the calling workload is not enrolled")]
    NotEnrolled,
    /// The workload may not ask this; the word says what it lacks.
    #[error("the calling workload lacks the right {0}")]
    NotEntitled(&'static str),
    /// The question is malformed.
    #[error("`{}` {}", .0.at, .0.rule)]
    Invalid(Misfit),
    /// There is no such method.
    #[error("no such method")]
    NoSuchMethod,
    /// The message is longer than its limit, or is no message.
    #[error("the message can't be read")]
    Unreadable,
    /// Too many decisions are being worked on.
    #[error("too many decisions at once")]
    Overloaded,
    /// The caller's time ran out.
    #[error("the deadline passed")]
    Deadline,
    /// It can't be recorded, so it can't be answered.
    #[error("the audit record could not be written")]
    Audit(#[source] AuditError),
    /// A fault of ours.
    #[error("a decision panicked")]
    Panicked,
}

/// An error and the record that has it.
#[derive(Debug)]
pub struct Refusal {
    /// Names the record.
    pub id: DecisionId,
    /// What happened.
    pub error: DecideError,
}

impl DecideError {
    /// The gRPC status code's name.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::NotIdentified(_) => "UNAUTHENTICATED",
            Self::NotEnrolled | Self::NotEntitled(_) => "PERMISSION_DENIED",
            Self::Invalid(_) | Self::Unreadable => "INVALID_ARGUMENT",
            Self::NoSuchMethod => "UNIMPLEMENTED",
            Self::Overloaded => "RESOURCE_EXHAUSTED",
            Self::Deadline => "DEADLINE_EXCEEDED",
            Self::Audit(_) => "UNAVAILABLE",
            Self::Panicked => "INTERNAL",
        }
    }

    /// The reason, from a closed list.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotIdentified(_) => "CALLER_NOT_IDENTIFIED",
            Self::NotEnrolled => "CALLER_NOT_ENROLLED",
            Self::NotEntitled(_) => "CALLER_NOT_ENTITLED",
            Self::Invalid(_) => "INVALID_QUESTION",
            Self::NoSuchMethod => "NO_SUCH_METHOD",
            Self::Unreadable => "UNREADABLE_MESSAGE",
            Self::Overloaded => "OVERLOADED",
            Self::Deadline => "DEADLINE_EXCEEDED",
            Self::Audit(_) => "AUDIT_UNAVAILABLE",
            Self::Panicked => "INTERNAL",
        }
    }

    /// How the record tells it: by our choice, or by our fault.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let (status, reason) = (self.status(), self.reason());
        match self {
            Self::NotIdentified(_)
            | Self::NotEnrolled
            | Self::NotEntitled(_)
            | Self::Invalid(_)
            | Self::NoSuchMethod
            | Self::Unreadable
            | Self::Overloaded => Outcome::Refused { status, reason },
            Self::Deadline | Self::Audit(_) | Self::Panicked => Outcome::Failed { status, reason },
        }
    }
}

impl From<CallerError> for DecideError {
    fn from(error: CallerError) -> Self {
        match error {
            CallerError::NotIdentified(error) => Self::NotIdentified(error.reason()),
            CallerError::NotEnrolled => Self::NotEnrolled,
        }
    }
}

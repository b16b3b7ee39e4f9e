//! Why an operator's call came to nothing.

use std::time::Duration;

use crate::audit::{AdminFailure, AuditError};
use crate::model::ids::DecisionId;
use crate::revocation::Full;
use crate::revocation::file::FileError;

/// Why an operator's call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The connection's certificate names nobody, or nobody any more.
    #[error("the operator has no usable identity: {0}")]
    NotIdentified(&'static str),
    /// Whoever it names is no operator.
    #[error("the caller is not an operator")]
    NotEnrolled,
    /// The operator may not call this.
    #[error("the operator may not call this method")]
    NotEntitled,
    /// More than ten calls in a second; the time to wait.
    #[error("the operator calls too often")]
    TooFast(Duration),
    /// A field is wrong.
    #[error("`{field}` {rule}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// The rule it breaks. Never its content.
        rule: &'static str,
    },
    /// There is no such method.
    #[error("no such method")]
    NoSuchMethod,
    /// The message is longer than it may be, or is no message.
    #[error("the message can't be read")]
    Unreadable,
    /// There is no room on the list.
    #[error(transparent)]
    Full(Full),
    /// It could not be recorded.
    #[error("the audit record could not be written")]
    Audit(#[source] AuditError),
    /// It could not be written into the file.
    #[error("the revocation could not be stored")]
    NotStored(#[source] FileError),
    /// The message took too long.
    #[error("the deadline passed")]
    Deadline,
    /// A fault of ours.
    #[error("a call panicked")]
    Panicked,
}

/// An error and the record that has it.
#[derive(Debug)]
pub struct AdminRefusal {
    /// Names the record.
    pub id: DecisionId,
    /// What happened.
    pub error: AdminError,
}

impl AdminError {
    /// Every status with its reason, for the error reference.
    pub const ALL: [(&'static str, &'static str); 12] = [
        ("UNAUTHENTICATED", "CALLER_NOT_IDENTIFIED"),
        ("PERMISSION_DENIED", "OPERATOR_NOT_ENROLLED"),
        ("PERMISSION_DENIED", "OPERATOR_NOT_ENTITLED"),
        ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"),
        ("INVALID_ARGUMENT", "INVALID_REQUEST"),
        ("UNIMPLEMENTED", "NO_SUCH_METHOD"),
        ("INVALID_ARGUMENT", "UNREADABLE_MESSAGE"),
        ("RESOURCE_EXHAUSTED", "REVOCATIONS_FULL"),
        ("UNAVAILABLE", "AUDIT_UNAVAILABLE"),
        ("UNAVAILABLE", "REVOCATION_NOT_STORED"),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        ("INTERNAL", "INTERNAL"),
    ];

    /// Status, reason, and whether it is our fault.
    fn told(&self) -> (&'static str, &'static str, bool) {
        match self {
            Self::NotIdentified(_) => ("UNAUTHENTICATED", "CALLER_NOT_IDENTIFIED", false),
            Self::NotEnrolled => ("PERMISSION_DENIED", "OPERATOR_NOT_ENROLLED", false),
            Self::NotEntitled => ("PERMISSION_DENIED", "OPERATOR_NOT_ENTITLED", false),
            Self::TooFast(_) => ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS", false),
            Self::Invalid { .. } => ("INVALID_ARGUMENT", "INVALID_REQUEST", false),
            Self::NoSuchMethod => ("UNIMPLEMENTED", "NO_SUCH_METHOD", false),
            Self::Unreadable => ("INVALID_ARGUMENT", "UNREADABLE_MESSAGE", false),
            Self::Full(_) => ("RESOURCE_EXHAUSTED", "REVOCATIONS_FULL", false),
            Self::Audit(_) => ("UNAVAILABLE", "AUDIT_UNAVAILABLE", true),
            Self::NotStored(_) => ("UNAVAILABLE", "REVOCATION_NOT_STORED", true),
            Self::Deadline => ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", true),
            Self::Panicked => ("INTERNAL", "INTERNAL", true),
        }
    }

    /// The gRPC status code's name.
    #[must_use]
    pub fn status(&self) -> &'static str {
        self.told().0
    }

    /// The reason, from a closed list.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.told().1
    }

    /// As the record tells it.
    pub(super) fn failure(&self) -> AdminFailure {
        let (status, reason, ours) = self.told();
        let caller_refusal = match self {
            Self::NotIdentified(word) => Some(*word),
            Self::NotEnrolled
            | Self::NotEntitled
            | Self::TooFast(_)
            | Self::Invalid { .. }
            | Self::NoSuchMethod
            | Self::Unreadable
            | Self::Full(_)
            | Self::Audit(_)
            | Self::NotStored(_)
            | Self::Deadline
            | Self::Panicked => None,
        };
        AdminFailure { status, reason, caller_refusal, ours }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_in_the_list_that_the_reference_page_is_held_against() {
        let every = [
            AdminError::NotIdentified("NO_SPIFFE_ID"),
            AdminError::NotEnrolled,
            AdminError::NotEntitled,
            AdminError::TooFast(Duration::ZERO),
            AdminError::Invalid { field: "reason", rule: "is missing" },
            AdminError::NoSuchMethod,
            AdminError::Unreadable,
            AdminError::Full(Full { limit: 1 }),
            AdminError::Audit(AuditError::QueueFull),
            AdminError::NotStored(FileError::Locked { path: "x".into() }),
            AdminError::Deadline,
            AdminError::Panicked,
        ];
        let told: Vec<_> = every.iter().map(|error| (error.status(), error.reason())).collect();
        assert_eq!(told, AdminError::ALL);
    }
}

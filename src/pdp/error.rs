//! Why there is no decision. A deny is a decision, so it is never one of these.

use std::time::Duration;

use crate::admission::TurnedAway;
use crate::audit::{AuditError, Outcome};
use crate::caller::CallerError;
use crate::caller::rights::Lacks;
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
    /// More comes than can be answered.
    #[error("too many decisions at once")]
    Overloaded {
        /// When to come back.
        retry_after: Duration,
    },
    /// This caller has, or asks for, more than its share.
    #[error("the calling workload has its share of decisions at once")]
    OverShare {
        /// When to come back.
        retry_after: Duration,
    },
    /// The caller's time ran out.
    #[error("the deadline passed")]
    Deadline,
    /// It can't be recorded, so it can't be answered.
    #[error("the audit record could not be written")]
    Audit(#[source] AuditError),
    /// More comes than can be answered, and than can be put on record.
    #[error("too many decisions at once, and too many audit records are waiting")]
    ShedUnrecorded {
        /// When to come back.
        retry_after: Duration,
    },
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
    /// Every status with its reason, for the error reference.
    pub const ALL: [(&'static str, &'static str); 11] = [
        ("UNAUTHENTICATED", "CALLER_NOT_IDENTIFIED"),
        ("PERMISSION_DENIED", "CALLER_NOT_ENROLLED"),
        ("PERMISSION_DENIED", "CALLER_NOT_ENTITLED"),
        ("INVALID_ARGUMENT", "INVALID_QUESTION"),
        ("INVALID_ARGUMENT", "UNREADABLE_MESSAGE"),
        ("UNIMPLEMENTED", "NO_SUCH_METHOD"),
        ("RESOURCE_EXHAUSTED", "OVERLOADED"),
        ("RESOURCE_EXHAUSTED", "CALLER_OVER_SHARE"),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        ("UNAVAILABLE", "AUDIT_UNAVAILABLE"),
        ("INTERNAL", "INTERNAL"),
    ];

    /// The gRPC status code's name.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::NotIdentified(_) => "UNAUTHENTICATED",
            Self::NotEnrolled | Self::NotEntitled(_) => "PERMISSION_DENIED",
            Self::Invalid(_) | Self::Unreadable => "INVALID_ARGUMENT",
            Self::NoSuchMethod => "UNIMPLEMENTED",
            Self::Overloaded { .. } | Self::OverShare { .. } => "RESOURCE_EXHAUSTED",
            Self::Deadline => "DEADLINE_EXCEEDED",
            Self::Audit(_) | Self::ShedUnrecorded { .. } => "UNAVAILABLE",
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
            Self::Overloaded { .. } => "OVERLOADED",
            Self::OverShare { .. } => "CALLER_OVER_SHARE",
            Self::Deadline => "DEADLINE_EXCEEDED",
            Self::Audit(_) | Self::ShedUnrecorded { .. } => "AUDIT_UNAVAILABLE",
            Self::Panicked => "INTERNAL",
        }
    }

    /// The first check that the caller itself failed, for the record: a word from a closed list.
    #[must_use]
    pub fn caller_refusal(&self) -> Option<&'static str> {
        match self {
            Self::NotIdentified(word) | Self::NotEntitled(word) => Some(word),
            Self::NotEnrolled
            | Self::Invalid(_)
            | Self::NoSuchMethod
            | Self::Unreadable
            | Self::Overloaded { .. }
            | Self::OverShare { .. }
            | Self::Deadline
            | Self::Audit(_)
            | Self::ShedUnrecorded { .. }
            | Self::Panicked => None,
        }
    }

    /// When to come back, of what was shed.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after }
            | Self::OverShare { retry_after }
            | Self::ShedUnrecorded { retry_after } => Some(*retry_after),
            Self::NotIdentified(_)
            | Self::NotEnrolled
            | Self::NotEntitled(_)
            | Self::Invalid(_)
            | Self::NoSuchMethod
            | Self::Unreadable
            | Self::Deadline
            | Self::Audit(_)
            | Self::Panicked => None,
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
            | Self::Overloaded { .. }
            | Self::OverShare { .. } => Outcome::Refused { status, reason },
            Self::Deadline | Self::Audit(_) | Self::ShedUnrecorded { .. } | Self::Panicked => {
                Outcome::Failed { status, reason }
            }
        }
    }

    /// What it becomes when it can't be put on record. Who was shed is told when to come back all the same: it is the same
    /// crowd that has no room here.
    #[must_use]
    pub fn unrecorded(&self, why: AuditError) -> Self {
        match self.retry_after() {
            Some(retry_after) => Self::ShedUnrecorded { retry_after },
            None => Self::Audit(why),
        }
    }
}

impl From<TurnedAway> for DecideError {
    fn from(away: TurnedAway) -> Self {
        match away {
            TurnedAway::Full { retry_after } => Self::Overloaded { retry_after },
            TurnedAway::OverShare { retry_after } => Self::OverShare { retry_after },
            TurnedAway::Late => Self::Deadline,
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

impl From<Lacks> for DecideError {
    fn from(lacks: Lacks) -> Self {
        Self::NotEntitled(lacks.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_in_the_list_that_the_reference_page_is_held_against() {
        let misfit = Misfit { at: "action".to_owned(), rule: "is wrong" };
        let every = [
            DecideError::NotIdentified("NO_SPIFFE_ID"),
            DecideError::NotEnrolled,
            DecideError::NotEntitled("ASK"),
            DecideError::Invalid(misfit),
            DecideError::NoSuchMethod,
            DecideError::Unreadable,
            DecideError::Overloaded { retry_after: Duration::ZERO },
            DecideError::OverShare { retry_after: Duration::ZERO },
            DecideError::Deadline,
            DecideError::Audit(AuditError::QueueFull),
            DecideError::ShedUnrecorded { retry_after: Duration::ZERO },
            DecideError::Panicked,
        ];
        let mut told: Vec<_> = every.iter().map(|error| (error.status(), error.reason())).collect();
        let mut listed = DecideError::ALL.to_vec();
        told.sort_unstable();
        told.dedup();
        listed.sort_unstable();
        assert_eq!(told, listed);
    }
}

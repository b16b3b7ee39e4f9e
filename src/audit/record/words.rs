//! Our words in OCSF's numbers: how a call ended, and what kind of activity it was about.

use crate::audit::Outcome;
use crate::audit::ocsf::{Code, FAILURE, HIGH, INFORMATIONAL, LOW, SUCCESS};
use crate::model::decision::{Decision, DenialCode, Ruling};

/// How a call ended, in OCSF's words.
pub(super) struct Ending {
    pub(super) severity: Code,
    pub(super) status: Code,
    pub(super) action: Code,
    pub(super) disposition: Code,
    /// The gRPC status that left: a denial is data, so every decision leaves with `OK`.
    pub(super) grpc: &'static str,
    pub(super) reason: Option<&'static str>,
    pub(super) decision: Option<&'static str>,
}

const ALLOWED: Code = Code(1, "Allowed");
const DENIED: Code = Code(2, "Denied");
const BLOCKED: Code = Code(2, "Blocked");
const REJECTED: Code = Code(25, "Rejected");
const UNAUTHORIZED: Code = Code(26, "Unauthorized");
const ERROR: Code = Code(27, "Error");
const CONDITIONAL: Code = Code(99, "Conditional");

impl Ending {
    pub(super) fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Decided { ruling, .. } => Self::of_ruling(ruling),
            Outcome::Refused { status, reason } => Self {
                severity: LOW,
                status: FAILURE,
                action: DENIED,
                disposition: match *status {
                    "UNAUTHENTICATED" | "PERMISSION_DENIED" => UNAUTHORIZED,
                    _ => REJECTED,
                },
                grpc: status,
                reason: Some(reason),
                decision: None,
            },
            Outcome::Failed { status, reason } => Self {
                severity: HIGH,
                status: FAILURE,
                action: DENIED,
                disposition: ERROR,
                grpc: status,
                reason: Some(reason),
                decision: None,
            },
        }
    }

    fn of_ruling(ruling: &Ruling) -> Self {
        let code = ruling.denial.as_ref().map(|denial| denial.code);
        let (status, action, disposition, decision) = match ruling.decision {
            Decision::Allow => (SUCCESS, ALLOWED, ALLOWED, "allow"),
            Decision::Conditional => (SUCCESS, CONDITIONAL, CONDITIONAL, "conditional"),
            Decision::Deny => {
                let disposition = match code {
                    Some(code) if code.is_about_the_token() => UNAUTHORIZED,
                    Some(DenialCode::PolicyError) => ERROR,
                    Some(_) | None => BLOCKED,
                };
                (FAILURE, DENIED, disposition, "deny")
            }
        };
        Self {
            severity: if ruling.errors.is_empty() { INFORMATIONAL } else { HIGH },
            status,
            action,
            disposition,
            grpc: "OK",
            reason: code.map(DenialCode::as_str),
            decision: Some(decision),
        }
    }
}

/// OCSF's create, read, update and delete for the action's verb, the part after its last dot; `Other`, with the verb
/// as its name, for everything else.
pub(super) fn activity(action: &str) -> (u32, &str) {
    let local = action.rsplit("::").next().unwrap_or(action);
    let base = local.split([':', '#']).next().unwrap_or(local);
    match base.rsplit('.').next().unwrap_or(base) {
        "create" => (1, "Create"),
        "read" | "get" | "view" | "list" => (2, "Read"),
        "update" | "write" => (3, "Update"),
        "delete" => (4, "Delete"),
        "" => (99, "Other"),
        verb => (99, verb),
    }
}

/// The number of a gRPC status. Source: grpc/doc/statuscodes.md.
pub(super) fn grpc_number(name: &str) -> i32 {
    match name {
        "OK" => 0,
        "CANCELLED" => 1,
        "INVALID_ARGUMENT" => 3,
        "DEADLINE_EXCEEDED" => 4,
        "NOT_FOUND" => 5,
        "ALREADY_EXISTS" => 6,
        "PERMISSION_DENIED" => 7,
        "RESOURCE_EXHAUSTED" => 8,
        "FAILED_PRECONDITION" => 9,
        "ABORTED" => 10,
        "OUT_OF_RANGE" => 11,
        "UNIMPLEMENTED" => 12,
        "INTERNAL" => 13,
        "UNAVAILABLE" => 14,
        "DATA_LOSS" => 15,
        "UNAUTHENTICATED" => 16,
        _ => 2,
    }
}

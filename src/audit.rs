//! The audit trail: one record for every answer and every refused call, written before the answer leaves.
//!
//! What is recorded is decided by [`record`] and [`redact`]; how it gets out by [`writer`] and [`sinks`]. Records are
//! OCSF 1.8 (API Activity, Authentication, Entity Management, Application Lifecycle), one JSON object a line.
//!
//! Imports `model`, `config`, `clock` and the facts of a verified token. Knows nothing of gRPC, Cedar or the cache.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::model::decision::{CacheUse, Ruling};
use crate::model::entity::{EntityUid, RawValue};
use crate::model::ids::{DecisionId, PolicyRevision, RequestId};
use crate::model::question::Circumstances;

mod buffers;
pub(crate) mod checkpoint;
pub(crate) mod delivered;
mod disk;
pub(crate) mod encode;
pub(crate) mod format;
mod keeper;
mod ocsf;
pub mod patterns;
pub(crate) mod reader;
mod record;
mod redact;
pub(crate) mod scrub;
mod sinks;
mod spool;
mod text;
pub(crate) mod verify;
mod writer;

pub use checkpoint::KeyError;
pub use disk::FolderError;
pub use record::template::Again;
pub use redact::{Place, Pseudonyms, Redaction};
pub use sinks::{Level, SinkError, Sinks};
pub use spool::SpoolError;
pub use writer::{AuditError, Company, Repeated, Trail};

/// What the trail tells whoever counts.
#[derive(Debug, Clone, Copy)]
pub enum News<'a> {
    /// Records that will never arrive, at the `trail` or at a sink, for a reason from a closed list.
    Lost {
        /// `trail`, or the sink's name.
        place: &'a str,
        /// Why.
        reason: &'static str,
        /// How many.
        count: u64,
    },
    /// The disk kept what was written.
    Synced {
        /// How long it took.
        took: Duration,
    },
    /// What became of records at a sink.
    Sent {
        /// The sink's name.
        sink: &'a str,
        /// `delivered`, `filtered`, `refused`, `skipped`.
        result: &'static str,
        /// How many.
        count: u64,
    },
    /// So many calls were not looked at for unusual patterns: too many waited for it.
    Unwatched {
        /// How many.
        count: u64,
    },
    /// An unusual pattern was recorded.
    Alert {
        /// Its name, of a closed list.
        pattern: &'static str,
    },
}

/// Is told what happens. Must be quick.
pub type Heard = Arc<dyn Fn(News<'_>) + Send + Sync>;

/// What every record says about where it was written.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// The machine's name; in Kubernetes the pod's.
    pub hostname: String,
}

impl HostFacts {
    /// What the kernel says; `localhost` when it does not say.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let told = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = told.trim();
        Self { hostname: if name.is_empty() { "localhost".to_owned() } else { name.to_owned() } }
    }
}

/// Something that happened and must be on record.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A question was answered, or a call refused.
    Call(Box<CallEntry>),
    /// A TLS handshake was refused: no certificate, a foreign one, or too slow.
    Handshake(HandshakeEntry),
    /// The bundle changed, or a changed bundle was not taken.
    Policy(PolicyEntry),
    /// The service started or stopped.
    Lifecycle(LifecycleEntry),
    /// An operator called the admin listener.
    Admin(Box<AdminEntry>),
    /// Records will never arrive somewhere.
    Lost(LostEntry),
    /// Something unusual was found in what was asked.
    Alert(Box<AlertEntry>),
}

/// A question that was answered, or a call that was refused.
#[derive(Debug, Clone)]
pub struct CallEntry {
    /// Names the answer.
    pub decision_id: DecisionId,
    /// When the call came.
    pub time: SystemTime,
    /// How long the answer took.
    pub duration: Duration,
    /// The RPC: `Check`, `BatchCheck`, `CheckStream`, `Explain`.
    pub operation: &'static str,
    /// The calling workload.
    pub caller: CallerFacts,
    /// The listener's address.
    pub listener: SocketAddr,
    /// The caller's names for the request.
    pub circumstances: Circumstances,
    /// What the question was, as far as it could be read.
    pub question: Option<QuestionFacts>,
    /// Who the principal is, as far as it is known.
    pub subject: SubjectFacts,
    /// How it ended.
    pub outcome: Outcome,
}

/// The calling workload, from its connection alone.
#[derive(Debug, Clone, Default)]
pub struct CallerFacts {
    /// Its network address.
    pub address: Option<SocketAddr>,
    /// Its verified name (SPIFFE ID, `dns:..`), when it has one.
    pub name: Option<String>,
    /// What the configuration calls it, when it is enrolled.
    pub label: Option<String>,
    /// SHA-256 of the leaf certificate, hex.
    pub certificate_sha256: Option<String>,
    /// Why it was refused, from a closed list: what was wrong with its certificate, or the right it lacks.
    pub refusal: Option<&'static str>,
}

/// What was asked.
#[derive(Debug, Clone)]
pub struct QuestionFacts {
    /// The Cedar action.
    pub action: String,
    /// The resource's type.
    pub resource_type: String,
    /// Its id; none at the function level.
    pub resource_id: Option<String>,
    /// The asked field paths; `None`: no fields were asked for; empty: all.
    pub fields: Option<Vec<String>>,
    /// SHA-256 over the framed context, hex; proof of what was sent without showing it.
    pub context_sha256: Option<String>,
    /// Allow-listed values: `context.x`, `resource.x`, `principal.x`.
    pub kept: Vec<(String, RawValue)>,
    /// What the caller asserted, by name: `subject`, `resource.owner`, `resource.parents`, `entities[User].suspended`..
    pub asserted: Vec<String>,
}

impl QuestionFacts {
    /// The level it is asked at: `function`, `object`, `field`.
    #[must_use]
    pub fn level(&self) -> &'static str {
        match (&self.resource_id, &self.fields) {
            (None, _) => "function",
            (Some(_), None) => "object",
            (Some(_), Some(_)) => "field",
        }
    }
}

/// Who the principal is.
#[derive(Debug, Clone, Default)]
pub struct SubjectFacts {
    /// `token`, `asserted`, `api_key`, `caller`, `anonymous`, or nothing when the call did not get so far.
    pub kind: Option<&'static str>,
    /// The principal entity.
    pub principal: Option<EntityUid>,
    /// What the verified token said.
    pub token: Option<Arc<crate::token::TokenFacts>>,
    /// Why a token was refused, from a closed list: for the record, never for the client.
    pub token_refusal: Option<&'static str>,
    /// Where an API key came from, by the caller's word.
    pub client_address: Option<std::net::IpAddr>,
}

/// How a call ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// With a decision.
    Decided {
        /// What evaluation gave.
        ruling: Arc<Ruling>,
        /// By which policies.
        revision: PolicyRevision,
        /// How the cache took part.
        cache: CacheUse,
    },
    /// Without one, by our choice: not admitted, malformed, past a limit, shed.
    Refused {
        /// The gRPC code's name: `PERMISSION_DENIED`.
        status: &'static str,
        /// The reason, from a closed list.
        reason: &'static str,
    },
    /// Without one, by our fault.
    Failed {
        /// The gRPC code's name: `UNAVAILABLE`.
        status: &'static str,
        /// The reason, from a closed list.
        reason: &'static str,
    },
}

impl Outcome {
    /// Whether the call was shed: more came than can be answered.
    #[must_use]
    pub fn is_shed(&self) -> bool {
        matches!(self, Self::Refused { status: "RESOURCE_EXHAUSTED", .. })
    }
}

/// A refused handshake.
#[derive(Debug, Clone)]
pub struct HandshakeEntry {
    /// When.
    pub time: SystemTime,
    /// The other end.
    pub address: SocketAddr,
    /// The listener's address.
    pub listener: SocketAddr,
    /// From a closed list: `NO_CERTIFICATE`, `UNKNOWN_ISSUER`, `EXPIRED`, `TIMEOUT`, `PROTOCOL`, ..
    pub reason: &'static str,
    /// Refused handshakes since the last record that were not recorded on their own.
    pub suppressed: u64,
}

/// A change of policies, or one that was not taken.
#[derive(Debug, Clone)]
pub struct PolicyEntry {
    /// When.
    pub time: SystemTime,
    /// What was in force.
    pub before: Option<PolicyRevision>,
    /// What is in force now; `None`: the new bundle was refused and the old one stays.
    pub after: Option<PolicyRevision>,
    /// Problems in the refused bundle.
    pub problems: usize,
}

/// A call on the admin listener: a change that is about to take effect, or a call that was refused.
#[derive(Debug, Clone)]
pub struct AdminEntry {
    /// Names the call.
    pub call_id: DecisionId,
    /// When it came.
    pub time: SystemTime,
    /// The method, `unknown` when there is none.
    pub operation: &'static str,
    /// The operator.
    pub operator: CallerFacts,
    /// The operator's name for the request.
    pub request_id: Option<RequestId>,
    /// What was asked for, as far as it could be read.
    pub change: Option<ChangeFacts>,
    /// How it ended; `None`: well.
    pub failure: Option<AdminFailure>,
}

/// What an operator asked to revoke.
#[derive(Debug, Clone)]
pub struct ChangeFacts {
    /// `token`, `subject`, `session`, `certificate`.
    pub kind: &'static str,
    /// What stands for its id: 64 hex digits.
    pub key: String,
    /// Whose token, subject or session it is.
    pub issuer: Option<String>,
    /// The subject. Other ids are never recorded.
    pub subject: Option<String>,
    /// The cut-off, seconds since 1970.
    pub issued_before: Option<u64>,
    /// The end, seconds since 1970.
    pub until: u64,
    /// What the operator said about it.
    pub reason: String,
}

/// How a call on the admin listener came to nothing.
#[derive(Debug, Clone, Copy)]
pub struct AdminFailure {
    /// The gRPC code's name.
    pub status: &'static str,
    /// The reason, from a closed list.
    pub reason: &'static str,
    /// Why whoever called has no identity, when that is what failed.
    pub caller_refusal: Option<&'static str>,
    /// Whether it was our fault and not our choice.
    pub ours: bool,
}

/// Records that will never arrive.
#[derive(Debug, Clone)]
pub struct LostEntry {
    /// When it was noticed.
    pub time: SystemTime,
    /// `trail`, or the sink that does not get them.
    pub place: String,
    /// Why, from a closed list: `queue_full`, `failed`, `quarantined`, `refused`, `skipped`.
    pub reason: &'static str,
    /// How many.
    pub count: u64,
    /// Since when.
    pub since: SystemTime,
}

/// Something unusual.
#[derive(Debug, Clone)]
pub struct AlertEntry {
    /// When it was found.
    pub time: SystemTime,
    /// What.
    pub alert: patterns::Alert,
}

/// Start or stop.
#[derive(Debug, Clone)]
pub struct LifecycleEntry {
    /// When.
    pub time: SystemTime,
    /// Whether it is a start.
    pub started: bool,
}

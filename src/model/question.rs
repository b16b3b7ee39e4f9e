//! What a caller asks, parsed from the wire and within its limits, but not yet checked against a schema or a caller's rights.

use std::sync::Arc;

use secrecy::SecretString;

use super::entity::{EntityId, EntityType, RawEntity, RawRecord};
use super::field_path::FieldPath;
use super::ids::RequestId;

/// On whose behalf. There is no default: nobody is privileged by forgetting the token.
#[derive(Debug, Clone)]
pub enum Subject {
    /// The bearer token that the caller was given; the principal comes from it alone.
    Token(SecretString),
    /// The caller vouches for the subject; needs the right to.
    Asserted(Box<RawEntity>),
    /// The API key that the caller was given.
    ApiKey(PresentedKey),
    /// The calling workload itself.
    Caller,
    /// Nobody in particular.
    Anonymous,
}

/// An API key that somebody sent to the caller, and from where.
#[derive(Debug, Clone)]
pub struct PresentedKey {
    /// The key.
    pub text: SecretString,
    /// The address it came from, by the caller's word; IPv4 addresses as such, mapped ones included.
    pub client_address: Option<std::net::IpAddr>,
}

impl Subject {
    /// `token`, `asserted`, `api_key`, `caller`, `anonymous`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::Asserted(_) => "asserted",
            Self::ApiKey(_) => "api_key",
            Self::Caller => "caller",
            Self::Anonymous => "anonymous",
        }
    }
}

/// The object, or (without an id) every object of the type.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Its type.
    pub entity_type: EntityType,
    /// Absent: the question is asked at the function level.
    pub id: Option<EntityId>,
    /// What the caller says about it.
    pub attributes: RawRecord,
    /// What the caller says it belongs to.
    pub parents: Vec<super::entity::EntityUid>,
}

/// Which fields are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldSelection {
    /// Every field that the action knows.
    All,
    /// These, in the order asked; no duplicates, at least one.
    Named(Vec<FieldPath>),
}

/// What to do when not every asked field is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FieldMode {
    /// Deny, naming the refused ones. The default for writing.
    Strict,
    /// Answer with the granted ones. The default for reading.
    Filter,
}

/// The field level of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldQuery {
    /// Which.
    pub selection: FieldSelection,
    /// And what if not all; `None`: the action's default (reading filters, writing is strict).
    pub mode: Option<FieldMode>,
}

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// The Cedar action's id: `Account.read`. May carry a namespace: `Shop::Account.read`.
    pub action: String,
    /// The object or type.
    pub resource: Resource,
    /// The fields, if any are asked for.
    pub fields: Option<FieldQuery>,
    /// What the caller says about the circumstances.
    pub context: RawRecord,
    /// What else the policies may need to know. All questions of a batch share them.
    pub entities: Arc<[RawEntity]>,
    /// Ask the policies even if the cache knows.
    pub bypass_cache: bool,
}

/// Where in a batch a question stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPosition {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

/// What surrounds a question: the caller's names for it.
#[derive(Debug, Clone, Default)]
pub struct Circumstances {
    /// The caller's request id.
    pub request_id: Option<RequestId>,
    /// W3C trace id of the span the question is answered in: 32 hex digits.
    pub trace_id: Option<String>,
    /// W3C span id: 16 hex digits.
    pub span_id: Option<String>,
    /// The position in a batch.
    pub batch: Option<BatchPosition>,
    /// The batch's own id, when there is one.
    pub batch_id: Option<super::ids::DecisionId>,
}

//! What leaves: a decision, why not, and what the caller must do.

use std::time::Duration;

use super::field_path::FieldPath;
use super::ids::{DecisionId, PolicyRevision};

/// Allow or deny; conditional only at the function level ("ask again with the object").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Access.
    Allow,
    /// No access.
    Deny,
    /// Some objects of this type might be allowed. Not access.
    Conditional,
}

/// Why access was denied, from a closed list. The name is what the wire, the record and the metric carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenialCode {
    /// No policy permits it.
    NoPermit,
    /// A policy forbids it.
    Forbidden,
    /// A policy that forbids could not be evaluated, so it is taken to forbid.
    PolicyError,
    /// The base action is allowed, but none of the asked fields.
    NoFieldGranted,
    /// A strict question asked for fields that are not all granted.
    FieldNotGranted,
    /// The token's `exp` has passed.
    TokenExpired,
    /// The token is not (yet) valid for us.
    TokenRejected,
    /// The token has been revoked.
    TokenRevoked,
    /// The keys of the token's issuer could not be had.
    IssuerUnavailable,
    /// The principal lacks data that the schema requires of it.
    PrincipalIncomplete,
    /// The action's context requires something this question cannot have.
    ContextIncomplete,
    /// The action is not in the schema.
    UnknownAction,
    /// This kind of principal or resource is not one the action applies to.
    NotApplicable,
    /// The token is good, but not in this caller's hands.
    TokenNotForCaller,
}

impl DenialCode {
    /// Every code, in the order of the wire's enum.
    pub const ALL: [Self; 14] = [
        Self::NoPermit,
        Self::Forbidden,
        Self::PolicyError,
        Self::NoFieldGranted,
        Self::FieldNotGranted,
        Self::TokenExpired,
        Self::TokenRejected,
        Self::TokenRevoked,
        Self::IssuerUnavailable,
        Self::PrincipalIncomplete,
        Self::ContextIncomplete,
        Self::UnknownAction,
        Self::NotApplicable,
        Self::TokenNotForCaller,
    ];

    /// The code's name: `NO_PERMIT`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoPermit => "NO_PERMIT",
            Self::Forbidden => "FORBIDDEN",
            Self::PolicyError => "POLICY_ERROR",
            Self::NoFieldGranted => "NO_FIELD_GRANTED",
            Self::FieldNotGranted => "FIELD_NOT_GRANTED",
            Self::TokenExpired => "TOKEN_EXPIRED",
            Self::TokenRejected => "TOKEN_REJECTED",
            Self::TokenRevoked => "TOKEN_REVOKED",
            Self::IssuerUnavailable => "ISSUER_UNAVAILABLE",
            Self::PrincipalIncomplete => "PRINCIPAL_INCOMPLETE",
            Self::ContextIncomplete => "CONTEXT_INCOMPLETE",
            Self::UnknownAction => "UNKNOWN_ACTION",
            Self::NotApplicable => "NOT_APPLICABLE",
            Self::TokenNotForCaller => "TOKEN_NOT_FOR_CALLER",
        }
    }

    /// The HTTP status that fits where the caller is an HTTP API and has no reason to say something else (to hide that
    /// an object exists, a denied read is better a 404). 401 where another token would help (RFC 9110 section 15.5.2,
    /// RFC 6750 section 3.1), 403 where it would not, 503 where nothing is wrong with what the client sent, 500 where
    /// the service asked for what does not exist.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::TokenExpired | Self::TokenRejected | Self::TokenRevoked => 401,
            Self::NoPermit
            | Self::Forbidden
            | Self::PolicyError
            | Self::NoFieldGranted
            | Self::FieldNotGranted
            | Self::PrincipalIncomplete
            | Self::ContextIncomplete
            | Self::NotApplicable
            // Signing in again would bring the same token.
            | Self::TokenNotForCaller => 403,
            Self::UnknownAction => 500,
            Self::IssuerUnavailable => 503,
        }
    }

    /// Whether it speaks of the token (or the API key) rather than of the policies.
    #[must_use]
    pub fn is_about_the_token(self) -> bool {
        matches!(
            self,
            Self::TokenExpired
                | Self::TokenRejected
                | Self::TokenRevoked
                | Self::IssuerUnavailable
                | Self::TokenNotForCaller
        )
    }
}

/// Why, and which asked fields were not granted (a strict question only).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The code.
    pub code: DenialCode,
    /// The fields that a strict question asked for and did not get; empty otherwise.
    pub refused_fields: Vec<FieldPath>,
}

impl From<DenialCode> for Denial {
    fn from(code: DenialCode) -> Self {
        Self { code, refused_fields: Vec::new() }
    }
}

/// A policy that could not be evaluated: skipped by Cedar, counted and recorded by us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// The policy's `@id`.
    pub policy: String,
    /// What kind of error, from a closed list; never the library's message.
    pub class: &'static str,
}

/// What evaluation gave. Immutable, shared by every answer that comes from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// Allow, deny or conditional.
    pub decision: Decision,
    /// Only with a deny.
    pub denial: Option<Denial>,
    /// Only with an allow to a question that asked for fields; never empty then. Sorted.
    pub fields: Option<Vec<FieldPath>>,
    /// What the caller must do or refuse, from `@obligation` of the permits that decided. Sorted, no duplicates.
    pub obligations: Vec<String>,
    /// The policies that settled the outcome, by `@id`. Sorted.
    pub determining: Vec<String>,
    /// The policies that could not be evaluated. Such a ruling is never cached.
    pub errors: Vec<PolicyError>,
}

impl Ruling {
    /// A deny that no policy had to be asked for.
    #[must_use]
    pub fn deny(code: DenialCode) -> Self {
        Self {
            decision: Decision::Deny,
            denial: Some(code.into()),
            fields: None,
            obligations: Vec::new(),
            determining: Vec::new(),
            errors: Vec::new(),
        }
    }
}

impl Ruling {
    /// How many bytes it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let texts = |texts: &[String]| texts.iter().map(|text| size_of::<String>() + text.len()).sum::<usize>();
        let paths =
            |paths: &[FieldPath]| paths.iter().map(|path| size_of::<FieldPath>() + path.as_str().len()).sum::<usize>();
        let denial = self.denial.as_ref().map_or(0, |denial| paths(&denial.refused_fields));
        let fields = self.fields.as_deref().map_or(0, paths);
        size_of::<Self>() + denial + fields + texts(&self.obligations) + texts(&self.determining)
    }
}

/// How the decision cache took part in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheUse {
    /// The ruling came out of the cache.
    Hit,
    /// It was evaluated, and kept if it may be.
    Miss,
    /// The cache was not asked: switched off, not wanted, or nothing to look up.
    Bypass,
}

impl CacheUse {
    /// `hit`, `miss`, `bypass`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
        }
    }
}

/// What leaves: the ruling with everything that belongs to this one question.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Names this answer in the audit trail.
    pub decision_id: DecisionId,
    /// What was decided.
    pub ruling: std::sync::Arc<Ruling>,
    /// The policies it was decided by; none when the token was refused before any was asked for.
    pub revision: PolicyRevision,
    /// How the cache took part.
    pub cache: CacheUse,
    /// For how long the caller may reuse the answer; zero: not at all.
    pub reusable_for: Duration,
    /// Whether the caller may see the determining policies.
    pub show_policies: bool,
    /// Of one that is given again: what a door wrote the last time, all but the id and how long it may be reused.
    pub said: Option<std::sync::Arc<arc_swap::ArcSwapOption<bytes::Bytes>>>,
}

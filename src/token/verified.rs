//! A token's second life: checked, and able to say who the principal is.

use std::sync::Arc;
use std::time::SystemTime;

use super::TokenFacts;
use crate::model::entity::RawEntity;

/// A token whose signature (or its issuer's word for it), issuer, audience and lifetime have all been checked; or an API
/// key whose secret, life and network have. Holding one is the proof: [`Verifier::check`](super::Verifier::check),
/// [`Verifier::verify`](super::Verifier::verify) and [`ApiKeys::verify`](super::api_key::ApiKeys::verify) are the only
/// ways to get one.
///
/// ```compile_fail,E0451
/// use gatepost::token::VerifiedToken;
/// fn forge(principal: gatepost::model::entity::RawEntity, facts: gatepost::token::TokenFacts) -> VerifiedToken {
///     VerifiedToken { principal: std::sync::Arc::new(principal), facts: std::sync::Arc::new(facts), digest: [0; 32] }
/// }
/// ```
#[derive(Debug)]
pub struct VerifiedToken {
    principal: Arc<RawEntity>,
    facts: Arc<TokenFacts>,
    digest: [u8; 32],
}

impl VerifiedToken {
    pub(super) fn seal(principal: RawEntity, facts: TokenFacts, digest: [u8; 32]) -> Self {
        Self { principal: Arc::new(principal), facts: Arc::new(facts), digest }
    }

    /// Who the token speaks for, by the issuer's claim mapping.
    #[must_use]
    pub fn principal(&self) -> &Arc<RawEntity> {
        &self.principal
    }

    /// What else it said that policies and records may know.
    #[must_use]
    pub fn facts(&self) -> &Arc<TokenFacts> {
        &self.facts
    }

    /// `exp`, without clock skew. Nothing that was earned with the token may outlive it.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.facts.expires_at
    }

    /// SHA-256 of the whole compact token.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

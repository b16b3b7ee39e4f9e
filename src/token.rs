//! Bearer tokens: from a string a stranger sent us to claims we may act on.
//!
//! A token has two lives. [`UnverifiedToken`] can tell which key it asks for and
//! nothing else. [`Verifier::verify`] spends it and returns a [`VerifiedToken`],
//! the only type in Gatepost that can say who the principal is.
//!
//! Imports `model`, `config`, `clock`. Knows nothing of gRPC, Cedar or audit.
//! Opaque tokens ([`introspection`]) and API keys ([`api_key`]) end in the same type: whatever is behind it treats them alike.
//! Follows RFC 7519 (JWT), RFC 7517 (JWKS), RFC 7662 (introspection) and the advice of RFC 8725.

use std::collections::BTreeSet;
use std::time::SystemTime;

use aws_lc_rs::digest;

mod address;
pub mod api_key;
mod claims;
mod confirmation;
mod discovery;
mod error;
pub mod examine;
mod fetch;
mod introspection;
mod json;
mod jwks;
mod key;
mod mapping;
mod ring;
mod roca;
mod status_list;
mod tend;
#[cfg(test)]
mod tests;
mod unverified;
mod verified;
mod verifier;

pub use confirmation::Confirmation;
pub use error::{SetupProblem, TokenError, TokenSetupError};
pub use jwks::{DocumentError, KeySet};
pub use unverified::UnverifiedToken;
pub use verified::VerifiedToken;
pub use verifier::{Standing, Verifier};

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Hears how an attempt to refresh an issuer's keys ended: the issuer, and whether it went well.
pub type Told = std::sync::Arc<dyn Fn(&str, bool) + Send + Sync>;

/// What the verifier did on its own account, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News<'n> {
    /// An introspection ended: `active`, `inactive`, `rejected` (active, but not for us), `failed`, or `shed` (not begun, or
    /// not waited for).
    Introspection {
        /// Whose token it was about.
        issuer: &'n str,
        /// How it ended.
        result: &'static str,
    },
    /// A token was looked for among those that are known.
    Lookup {
        /// Which cache: `tokens` or `introspections`.
        cache: &'static str,
        /// Whether it was there.
        hit: bool,
    },
    /// A status list was fetched, or could not be.
    StatusList {
        /// Whose list.
        issuer: &'n str,
        /// Whether it went well.
        well: bool,
    },
}

/// Hears the news.
pub type Heard = std::sync::Arc<dyn Fn(News<'_>) + Send + Sync>;

/// What a verified token said, for `context.token` and the record. Never the token, nor a claim beyond these.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenFacts {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// `iat`.
    pub issued_at: SystemTime,
    /// `exp`.
    pub expires_at: SystemTime,
    /// SHA-256 of `jti`, hex.
    pub id_sha256: Option<String>,
    /// `scope` (RFC 8693 section 4.2) split at spaces, or `scp` as a list.
    pub scopes: BTreeSet<String>,
    /// `acr` (OpenID Connect Core section 2).
    pub acr: Option<String>,
    /// `amr`.
    pub amr: BTreeSet<String>,
    /// `auth_time`.
    pub auth_time: Option<SystemTime>,
    /// `client_id` or `azp`: the OAuth client it was issued to. Where both are there, they are the same.
    pub client_id: Option<String>,
    /// `act`, the current actor first (RFC 8693 section 4.1). Only the first may matter to access control.
    pub actors: Vec<Actor>,
    /// `cnf`: what whoever presents the token has to prove.
    pub confirmation: Option<Confirmation>,
    /// SHA-256 of `sid` (OpenID Connect Back-Channel Logout section 2.1), hex.
    pub session_sha256: Option<String>,
    /// The algorithm's name.
    pub algorithm: &'static str,
    /// The key's id.
    pub key_id: Option<String>,
}

/// One party of a delegation: who acts for the subject (RFC 8693 section 4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `act.sub`.
    pub subject: String,
    /// `act.iss`; the token's own issuer when absent.
    pub issuer: Option<String>,
}

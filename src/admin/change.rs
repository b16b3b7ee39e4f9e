//! From what an operator sent to one entry that can take effect, or to the field that is wrong. Nothing happens before
//! all of it is right.

use std::collections::HashMap;
use std::time::SystemTime;

use super::AdminError;
use crate::audit::ChangeFacts;
use crate::clock::unix_seconds;
use crate::config::TrustedIssuer;
use crate::model::entity::{EntityId, is_hidden};
use crate::revocation::{Key, Kind, LATEST_CUT_OFF, Revocation};

/// Ids of tokens and sessions, bytes.
const ID_BYTES: usize = 1024;
/// The reason, bytes.
const REASON_BYTES: usize = 512;
/// `iat` may lie so far ahead of our clock, in seconds.
const IAT_AHEAD: u64 = 60;

/// What an operator asks to revoke, as it was sent. Times are seconds since 1970; `None`: not given. It holds ids that
/// nobody else is to read, so it does not print.
#[derive(Clone)]
pub struct Asked {
    /// What kind of thing.
    pub what: AskedFor,
    /// Whose it is; not for certificates.
    pub issuer: String,
    /// Until when the entry is needed.
    pub until: Option<Result<u64, &'static str>>,
    /// Why.
    pub reason: String,
}

/// Which one.
#[derive(Clone)]
pub enum AskedFor {
    /// A token, by id.
    Token(String),
    /// A token, by the SHA-256 of its id.
    TokenSha256(String),
    /// A token, and nothing that says which.
    NoToken,
    /// A subject, and the cut-off.
    Subject(String, Option<Result<u64, &'static str>>),
    /// A session, by id.
    Session(String),
    /// A certificate, by the SHA-256 of its DER.
    Certificate(String),
}

impl AskedFor {
    fn kind(&self) -> Kind {
        match self {
            Self::Token(_) | Self::TokenSha256(_) | Self::NoToken => Kind::Token,
            Self::Subject(..) => Kind::Subject,
            Self::Session(_) => Kind::Session,
            Self::Certificate(_) => Kind::Certificate,
        }
    }
}

/// What was asked for, checked.
#[derive(Debug)]
pub(super) struct Change {
    /// The entry.
    pub revocation: Revocation,
    /// What the record says of it.
    pub facts: ChangeFacts,
}

/// What there is to know for it.
#[derive(Debug)]
pub(super) struct Checks {
    /// By the exact text of `iss`: how long after this instant a token that it gives out now can still pass.
    issuers: HashMap<String, u64>,
    id_bytes: usize,
}

impl Checks {
    pub(super) fn new(issuers: &[TrustedIssuer], id_bytes: usize) -> Self {
        let longest = |issuer: &TrustedIssuer| (issuer.max_lifetime + issuer.clock_skew).as_secs() + IAT_AHEAD;
        Self { issuers: issuers.iter().map(|issuer| (issuer.issuer.clone(), longest(issuer))).collect(), id_bytes }
    }

    /// Whether all of it is right. `now` is wall time.
    pub(super) fn check(&self, asked: Asked, now: SystemTime) -> Result<Change, AdminError> {
        let seconds = unix_seconds(now);
        reason(&asked.reason)?;
        let until = match asked.until {
            None => None,
            Some(until) => Some(within("expire_time", until, seconds, asked.what.kind())?),
        };
        let (revocation, subject) = match asked.what {
            AskedFor::Certificate(sha256) => {
                let key = Key::parse(&sha256).ok_or(hex("certificate_sha256"))?;
                let until = until.ok_or(invalid("expire_time", "is required: when the certificate expires"))?;
                (Revocation::whole(Kind::Certificate, key, until), None)
            }
            AskedFor::Token(id) => {
                let longest = self.longest(&asked.issuer, seconds)?;
                let key = Key::of(Kind::Token, &asked.issuer, plain("token_id", &id)?);
                (Revocation::whole(Kind::Token, key, until.unwrap_or(longest)), None)
            }
            AskedFor::TokenSha256(sha256) => {
                let longest = self.longest(&asked.issuer, seconds)?;
                Key::parse(&sha256).ok_or(hex("token_id_sha256"))?;
                let key = Key::of_sha256(Kind::Token, &asked.issuer, &sha256);
                (Revocation::whole(Kind::Token, key, until.unwrap_or(longest)), None)
            }
            AskedFor::NoToken => return Err(invalid("token_id", "is missing, and `token_id_sha256` too")),
            AskedFor::Session(id) => {
                let longest = self.longest(&asked.issuer, seconds)?;
                let key = Key::of(Kind::Session, &asked.issuer, plain("session_id", &id)?);
                (Revocation::whole(Kind::Session, key, until.unwrap_or(longest)), None)
            }
            AskedFor::Subject(subject, cut_off) => {
                let longest = self.longest(&asked.issuer, seconds)?;
                EntityId::parse(&subject, self.id_bytes).map_err(|_| {
                    invalid("subject", "must be an id: not empty, within `limits.id_bytes`, without hidden characters")
                })?;
                let issued_before = match cut_off {
                    // A token of this very second is among those issued so far.
                    None => seconds.saturating_add(1),
                    Some(cut_off) => cut_off.map_err(|rule| invalid("issued_before", rule))?,
                };
                if issued_before > seconds.saturating_add(LATEST_CUT_OFF) {
                    return Err(invalid("issued_before", "must not be more than 120 s ahead"));
                }
                let key = Key::of(Kind::Subject, &asked.issuer, &subject);
                // Not before the last of what it is about has expired.
                let until = longest.saturating_add(issued_before.saturating_sub(seconds));
                (Revocation { kind: Kind::Subject, key, issued_before, until }, Some(subject))
            }
        };
        let facts = ChangeFacts {
            kind: revocation.kind.as_str(),
            key: revocation.key.to_string(),
            issuer: (revocation.kind != Kind::Certificate).then_some(asked.issuer),
            subject,
            issued_before: revocation.cut_off(),
            until: revocation.until,
            reason: asked.reason,
        };
        Ok(Change { revocation, facts })
    }

    /// The last second at which a token that `issuer` gives out now can pass. An issuer that is none of ours is a slip:
    /// nothing would be revoked, and the operator would think it was.
    fn longest(&self, issuer: &str, now: u64) -> Result<u64, AdminError> {
        let longest = self.issuers.get(issuer);
        longest
            .map(|longest| now.saturating_add(*longest))
            .ok_or(invalid("issuer", "is not one of the configured issuers"))
    }
}

const fn invalid(field: &'static str, rule: &'static str) -> AdminError {
    AdminError::Invalid { field, rule }
}

const fn hex(field: &'static str) -> AdminError {
    invalid(field, "must be 64 lower-case hex digits")
}

fn reason(text: &str) -> Result<(), AdminError> {
    if text.trim().is_empty() {
        return Err(invalid("reason", "is missing: say why, for the record"));
    }
    if text.len() > REASON_BYTES {
        return Err(invalid("reason", "must have at most 512 bytes"));
    }
    if text.chars().any(is_hidden) {
        return Err(invalid("reason", "must be one line without hidden characters"));
    }
    Ok(())
}

fn plain<'a>(field: &'static str, id: &'a str) -> Result<&'a str, AdminError> {
    if id.is_empty() {
        return Err(invalid(field, "is missing"));
    }
    if id.len() > ID_BYTES {
        return Err(invalid(field, "must have at most 1024 bytes"));
    }
    if id.chars().any(is_hidden) {
        return Err(invalid(field, "must not hold hidden characters"));
    }
    Ok(id)
}

fn within(field: &'static str, seconds: Result<u64, &'static str>, now: u64, kind: Kind) -> Result<u64, AdminError> {
    let seconds = seconds.map_err(|rule| invalid(field, rule))?;
    if seconds < now {
        return Err(invalid(field, "is past: there is nothing left to revoke"));
    }
    if seconds > kind.latest_end(now) {
        return Err(invalid(field, "must not be more than ten years ahead"));
    }
    Ok(seconds)
}

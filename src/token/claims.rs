//! What a signed claims set must say before anyone acts on it (RFC 7519 section 4.1, RFC 9068 section 2.2).
//!
//! Types are strict: a date is a number, an audience is text or a list of texts, and nothing is guessed. Comparison of
//! names is byte for byte.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;

use super::Actor;
use super::confirmation::Confirmation;
use super::error::TokenError;
use super::json::{self, Json, JsonObject};
use crate::clock::unix_seconds;
use crate::config::{Limits, TrustedIssuer};
use crate::model::entity::EntityId;

/// How far in the future `iat` may lie: issuers' clocks differ, and nobody backdates by this.
pub(super) const IAT_AHEAD: u64 = 60;
/// The last second of the year 9999; what lies past it is no date but milliseconds or an attack.
const LAST_SECOND: i64 = 253_402_300_799;

/// A claims set within its limits. Nobody has vouched for it yet.
pub(super) struct Claims {
    members: JsonObject,
}

/// When a token is valid, in whole seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    pub(super) issued_at: u64,
    not_before: Option<u64>,
    pub(super) expires_at: u64,
}

impl Claims {
    /// Reads the claims, however untrue they may be.
    pub(super) fn read(bytes: &[u8], limits: &Limits) -> Result<Self, TokenError> {
        let members = json::read_object(bytes, limits.token_json_depth).map_err(|_| TokenError::Shape)?;
        if members.len() > limits.token_claims {
            return Err(TokenError::ClaimLimit);
        }
        Ok(Self { members })
    }

    /// `iss`: which of our issuers is asked for. Never an address to fetch from.
    pub(super) fn issuer(&self) -> Result<&str, TokenError> {
        self.required_text("iss")
    }

    /// `sub`, which must be fit to be an id (RFC 7519 section 4.1.2).
    pub(super) fn subject(&self, limits: &Limits) -> Result<&str, TokenError> {
        let subject = self.required_text("sub")?;
        EntityId::parse(subject, limits.id_bytes).map_err(|_| TokenError::Subject)?;
        Ok(subject)
    }

    /// `aud`: we must be named (RFC 7519 section 4.1.3).
    pub(super) fn check_audience(&self, issuer: &TrustedIssuer, limits: &Limits) -> Result<(), TokenError> {
        let named: Vec<&str> = match self.members.get("aud") {
            Some(Json::Text(one)) => vec![one],
            Some(Json::List(list)) if list.len() > limits.token_audiences => return Err(TokenError::ClaimLimit),
            Some(Json::List(list)) => {
                list.iter().map(Json::as_text).collect::<Option<_>>().ok_or(TokenError::Claims)?
            }
            Some(_) | None => return Err(TokenError::Claims),
        };
        let ours = |name: &&str| issuer.audiences.iter().any(|audience| audience == name);
        if named.iter().any(|name| name.is_empty()) || !named.iter().any(ours) {
            return Err(TokenError::Audience);
        }
        Ok(())
    }

    /// `iat` and `exp`, which must be there, and `nbf`, which may. A fraction of a second never helps the token.
    pub(super) fn validity(&self) -> Result<Validity, TokenError> {
        let not_before = match self.members.get("nbf") {
            Some(value) => Some(seconds(value, f64::ceil)?),
            None => None,
        };
        Ok(Validity { issued_at: self.seconds("iat")?, not_before, expires_at: self.seconds("exp")? })
    }

    /// `act` (RFC 8693 section 4.1), the current actor first: each has a `sub`, and they may be nested so deeply and no
    /// deeper.
    pub(super) fn actors(&self, limits: &Limits) -> Result<Vec<Actor>, TokenError> {
        let (mut actors, mut next) = (Vec::new(), self.members.get("act"));
        while let Some(actor) = next {
            if actors.len() == limits.token_actor_depth {
                return Err(TokenError::ClaimLimit);
            }
            let Json::Object(members) = actor else { return Err(TokenError::Claims) };
            let text = |name: &str| match members.get(name) {
                None => Ok(None),
                Some(Json::Text(text)) if (1..=limits.id_bytes).contains(&text.len()) => Ok(Some(text.clone())),
                Some(_) => Err(TokenError::Claims),
            };
            let subject = text("sub")?.ok_or(TokenError::Claims)?;
            actors.push(Actor { subject, issuer: text("iss")? });
            next = members.get("act");
        }
        Ok(actors)
    }

    /// `cnf` (RFC 7800). A null is a claim that demands nothing we could check, not an absent one.
    pub(super) fn confirmation(&self) -> Result<Option<Confirmation>, TokenError> {
        self.members.get("cnf").map(Confirmation::read).transpose()
    }

    /// SHA-256 of `sid`, hex.
    pub(super) fn session_sha256(&self) -> Result<Option<String>, TokenError> {
        Ok(self.optional_text("sid")?.map(|id| sha256_hex(&id)))
    }

    /// The claim at `path`: the claim of that whole name if there is one (`https://example.com/roles`), else the one
    /// that dots lead to. A null is as good as absent.
    pub(super) fn at(&self, path: &str) -> Option<&Json> {
        let found = match self.members.get(path) {
            Some(whole) => Some(whole),
            None if !path.contains('.') => None,
            None => {
                let mut steps = path.split('.');
                let first = steps.next().and_then(|name| self.members.get(name));
                steps.fold(first, |value, name| match value {
                    Some(Json::Object(members)) => members.get(name),
                    Some(_) | None => None,
                })
            }
        };
        found.filter(|value| **value != Json::Null)
    }

    /// `scope` (RFC 8693 section 4.2: separated by spaces), or `scp`, or either as a list.
    pub(super) fn scopes(&self) -> Result<BTreeSet<String>, TokenError> {
        match self.at("scope").or_else(|| self.at("scp")) {
            Some(Json::Text(text)) => Ok(text.split(' ').filter(|one| !one.is_empty()).map(str::to_owned).collect()),
            value => texts(value),
        }
    }

    /// `amr` (RFC 8176): a list of texts; one text stands for a list of one.
    pub(super) fn authentication_methods(&self) -> Result<BTreeSet<String>, TokenError> {
        match self.at("amr") {
            Some(Json::Text(one)) => Ok(BTreeSet::from([one.clone()])),
            value => texts(value),
        }
    }

    /// `auth_time` (OpenID Connect Core section 2).
    pub(super) fn authenticated_at(&self) -> Result<Option<SystemTime>, TokenError> {
        self.at("auth_time").map(|value| Ok(instant(seconds(value, f64::floor)?))).transpose()
    }

    /// SHA-256 of `jti`, hex.
    pub(super) fn id_sha256(&self) -> Result<Option<String>, TokenError> {
        Ok(self.optional_text("jti")?.map(|id| sha256_hex(&id)))
    }

    /// `client_id` (RFC 9068 section 2.2), else `azp`. Two that disagree name nobody.
    pub(super) fn client_id(&self) -> Result<Option<String>, TokenError> {
        match (self.optional_text("client_id")?, self.optional_text("azp")?) {
            (Some(client), Some(party)) if client != party => Err(TokenError::Claims),
            (client, party) => Ok(client.or(party)),
        }
    }

    /// `status` (Token Status List draft, section 6.1), whatever it is. A null points nowhere, and is not an absent one.
    pub(super) fn status(&self) -> Option<&Json> {
        self.members.get("status")
    }

    /// A claim that is text if it is there at all.
    pub(super) fn optional_text(&self, name: &str) -> Result<Option<String>, TokenError> {
        match self.at(name) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text.clone())),
            Some(_) => Err(TokenError::Claims),
        }
    }

    fn required_text(&self, name: &str) -> Result<&str, TokenError> {
        let text = self.members.get(name).and_then(Json::as_text);
        text.filter(|text| !text.is_empty()).ok_or(TokenError::Claims)
    }

    /// A claim that is a NumericDate or a number of seconds if it is there at all.
    pub(super) fn optional_seconds(&self, name: &str) -> Result<Option<u64>, TokenError> {
        self.members.get(name).map(|value| seconds(value, f64::floor)).transpose()
    }

    /// A claim that must be a NumericDate.
    pub(super) fn seconds(&self, name: &str) -> Result<u64, TokenError> {
        seconds(self.members.get(name).ok_or(TokenError::Claims)?, f64::floor)
    }
}

impl Validity {
    /// Whether `now` is within it. In this order: `nbf`, `exp`, `iat`, lifetime. The clock skew is for `nbf` and `exp`.
    pub(super) fn check(&self, issuer: &TrustedIssuer, now: SystemTime) -> Result<(), TokenError> {
        let (now, skew) = (unix_seconds(now), issuer.clock_skew.as_secs());
        if self.not_before.is_some_and(|not_before| not_before > now + skew) {
            return Err(TokenError::NotYetValid);
        }
        // RFC 7519 section 4.1.4: "on or after" `exp` it is too late.
        if now >= self.expires_at + skew {
            return Err(TokenError::Expired);
        }
        if self.issued_at > now + IAT_AHEAD {
            return Err(TokenError::IssuedInFuture);
        }
        let lifetime = self.expires_at.checked_sub(self.issued_at).ok_or(TokenError::Lifetime)?;
        if lifetime == 0 || lifetime > issuer.max_lifetime.as_secs() {
            return Err(TokenError::Lifetime);
        }
        Ok(())
    }
}

/// Seconds since 1970 as a point in time.
pub(super) fn instant(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// NumericDate (RFC 7519 section 2): a number, never text.
fn seconds(value: &Json, round: fn(f64) -> f64) -> Result<u64, TokenError> {
    let whole = match value {
        Json::Integer(whole) => *whole,
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "both are within 2^53")]
        Json::Number(number) if (0.0..=LAST_SECOND as f64).contains(number) => round(*number) as i64,
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) | Json::List(_) | Json::Object(_) => {
            return Err(TokenError::Claims);
        }
    };
    u64::try_from(whole).ok().filter(|_| whole <= LAST_SECOND).ok_or(TokenError::Claims)
}

pub(super) fn sha256_hex(text: &str) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn texts(value: Option<&Json>) -> Result<BTreeSet<String>, TokenError> {
    match value {
        None => Ok(BTreeSet::new()),
        Some(Json::List(list)) => {
            list.iter().map(|item| item.as_text().map(str::to_owned).ok_or(TokenError::Claims)).collect()
        }
        Some(_) => Err(TokenError::Claims),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(text: &str) -> Claims {
        Claims::read(text.as_bytes(), &Limits::default()).unwrap()
    }

    /// RFC 7519 section 2: a NumericDate is a JSON number.
    #[test]
    fn a_date_is_a_number_of_this_era() {
        let table = [
            ("1800000000", Some(1_800_000_000), "the everyday shape"),
            ("1.8e9", Some(1_800_000_000), "the same number"),
            ("1800000000.9", Some(1_800_000_000), "a fraction never helps"),
            ("0", Some(0), "the epoch"),
            ("253402300799", Some(253_402_300_799), "the last second"),
            ("253402300800", None, "one past it"),
            ("1800000000000", None, "milliseconds"),
            ("9223372036854775807", None, "the largest integer"),
            ("1e40", None, "absurd"),
            ("-1", None, "before the epoch"),
            ("\"1800000000\"", None, "text"),
            ("null", None, "null"),
            ("[1800000000]", None, "a list"),
        ];
        for (literal, expected, why) in table {
            let got = claims(&format!(r#"{{"iat":1,"exp":{literal}}}"#)).validity();
            assert_eq!(got.ok().map(|validity| validity.expires_at), expected, "{literal}: {why}");
        }
        let not_before = claims(r#"{"iat":1,"exp":9,"nbf":2.1}"#).validity().unwrap().not_before;
        assert_eq!(not_before, Some(3), "nor does it help nbf");
    }

    #[test]
    fn a_path_names_a_claim_or_leads_to_one() {
        let claims = claims(r#"{"a":{"b":{"c":1}},"a.b":2,"n":null,"https://x.test/r":3}"#);
        let table = [
            ("a.b.c", Some(Json::Integer(1)), "dots lead into objects"),
            ("a.b", Some(Json::Integer(2)), "a whole name goes first"),
            ("https://x.test/r", Some(Json::Integer(3)), "dots in a name"),
            ("n", None, "null is absent"),
            ("a.x", None, "nothing there"),
            ("a.b.c.d", None, "a number has no members"),
            ("", None, "no name"),
        ];
        for (path, expected, why) in table {
            assert_eq!(claims.at(path).cloned(), expected, "{path}: {why}");
        }
    }

    #[test]
    fn claims_and_actors_have_limits() {
        let many = |count: usize| {
            let members: Vec<_> = (0..count).map(|at| format!(r#""c{at}":0"#)).collect();
            Claims::read(format!("{{{}}}", members.join(",")).as_bytes(), &Limits::default()).map(|_| ())
        };
        assert_eq!(many(256), Ok(()), "at the limit");
        assert_eq!(many(257), Err(TokenError::ClaimLimit), "one past it");

        let actors = |depth: usize| {
            let text = format!("{{{}{}}}", r#""act":{"sub":"s","iss":"i","#.repeat(depth), "}".repeat(depth));
            claims(&text.replace(",}", "}")).actors(&Limits::default()).map(|actors| actors.len())
        };
        assert_eq!(actors(8), Ok(8), "at the limit");
        assert_eq!(actors(9), Err(TokenError::ClaimLimit), "one past it");
    }

    /// RFC 8693 section 4.1, RFC 9068 section 2.2.
    #[test]
    fn an_actor_has_a_name_and_a_client_has_one() {
        let actor = |text: &str| claims(text).actors(&Limits::default()).map(|actors| actors.len());
        let table = [
            ("{}", Ok(0), "nobody acts for the subject"),
            (r#"{"act":{"sub":"a"}}"#, Ok(1), "one does"),
            (r#"{"act":{"sub":"a","act":{"sub":"b"}}}"#, Ok(2), "and did it for another"),
            (r#"{"act":{}}"#, Err(TokenError::Claims), "without a name"),
            (r#"{"act":{"sub":""}}"#, Err(TokenError::Claims), "an empty name"),
            (r#"{"act":{"iss":"i"}}"#, Err(TokenError::Claims), "an issuer alone"),
            (r#"{"act":"a"}"#, Err(TokenError::Claims), "no object"),
            (r#"{"act":null}"#, Err(TokenError::Claims), "null"),
            (r#"{"act":{"sub":"a","act":[]}}"#, Err(TokenError::Claims), "a list below"),
        ];
        for (text, expected, why) in table {
            assert_eq!(actor(text), expected, "{text}: {why}");
        }
        let table = [
            (r#"{"client_id":"a"}"#, Ok(Some("a")), "RFC 9068"),
            (r#"{"azp":"a"}"#, Ok(Some("a")), "OpenID Connect"),
            (r#"{"azp":"a","client_id":"a"}"#, Ok(Some("a")), "both, the same"),
            (r#"{"azp":"b","client_id":"a"}"#, Err(TokenError::Claims), "both, and they disagree"),
            (r#"{"client_id":["a"]}"#, Err(TokenError::Claims), "a list"),
            ("{}", Ok(None), "none"),
        ];
        for (text, expected, why) in table {
            assert_eq!(claims(text).client_id(), expected.map(|id| id.map(str::to_owned)), "{text}: {why}");
        }
    }

    #[test]
    fn scopes_come_as_text_or_list() {
        let table = [
            (r#"{"scope":"a b  a"}"#, Ok(vec!["a", "b"]), "RFC 8693"),
            (r#"{"scp":["a","b"]}"#, Ok(vec!["a", "b"]), "a list"),
            (r#"{"scp":"a"}"#, Ok(vec!["a"]), "text under the other name"),
            ("{}", Ok(vec![]), "none"),
            (r#"{"scope":1}"#, Err(TokenError::Claims), "a number"),
            (r#"{"scope":["a",1]}"#, Err(TokenError::Claims), "a number among them"),
        ];
        for (text, expected, why) in table {
            let expected = expected.map(|scopes| scopes.into_iter().map(str::to_owned).collect());
            assert_eq!(claims(text).scopes(), expected, "{why}");
        }
    }
}

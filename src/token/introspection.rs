//! Opaque tokens: the issuer is asked whether they count (RFC 7662), and its answer is read like a JWT's claims.
//!
//! The one place where a question waits for the network, so everything about it is bounded: one flight a token, so many
//! flights an issuer, so many who wait for them, so many bytes and so much time each. A flight goes on when whoever asked first has gone: the next
//! one finds its answer. An answer is kept for a short time, a failure never is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::claims::{Claims, Validity};
use super::error::{SetupProblem, TokenError};
use super::json::Json;
use super::mapping;
use super::status_list::{StatusReference, Statuses};
use super::verified::VerifiedToken;
use super::verifier::facts;
use super::{Heard, News};
use crate::clock::{SharedClock, unix_seconds};
use crate::config::{IntrospectionConfig, Limits, TrustedIssuer};
use crate::secret::{ExposeSecret as _, SecretString};

pub(super) mod door;

use door::Door;

/// How long it is remembered that a token is not active: a flood of one bad token must not become a flood at the
/// authorization server.
const INACTIVE_KEPT: Duration = Duration::from_secs(3);

/// How often the client's secret or certificate is looked at for a newer one.
const CREDENTIALS_LOOKED_AT: Duration = Duration::from_secs(10);

/// What stands in a record for the algorithm of a token that was introspected.
const ALGORITHM: &str = "introspection";

/// One issuer, and how it is asked.
#[derive(Debug)]
pub(super) struct Introspection {
    issuer: TrustedIssuer,
    config: IntrospectionConfig,
    statuses: Arc<Statuses>,
    door: ArcSwap<Door>,
    /// By the SHA-256 of the whole token; each issuer has answers of its own (THREATS V-KEY-5).
    answers: Option<Cache<[u8; 32], Kept>>,
    under_way: Mutex<HashMap<[u8; 32], Flight>>,
    flights: Arc<Semaphore>,
    /// Questions that may wait for a flight at once.
    seats: Semaphore,
    limits: Limits,
    clock: SharedClock,
}

/// A token that its issuer called active, and what has to be looked at on every question.
#[derive(Debug, Clone)]
pub(super) struct Active {
    pub(super) token: Arc<VerifiedToken>,
    pub(super) status: Option<StatusReference>,
    validity: Validity,
}

type Answer = Result<Active, TokenError>;
type Flight = watch::Receiver<Option<Answer>>;

/// An answer, and until when (monotonic) it may be used again.
#[derive(Debug, Clone)]
struct Kept {
    answer: Answer,
    until: Duration,
}

/// What a question finds.
enum Found {
    Known(Answer),
    UnderWay(Flight),
}

impl Introspection {
    /// Opens the way to the issuer's authorization server, one of `servers`; nothing is asked yet. About `entries` answers
    /// are kept; with 0 none.
    pub(super) fn open(
        issuer: &TrustedIssuer,
        config: &IntrospectionConfig,
        statuses: Arc<Statuses>,
        servers: usize,
        entries: u64,
        limits: &Limits,
        clock: &SharedClock,
    ) -> Result<Self, SetupProblem> {
        // Each has its own share, so that one that does not answer takes nothing from the others.
        let share = |of: usize| (of / servers.max(1)).clamp(1, Semaphore::MAX_PERMITS);
        let answers = (entries > 0).then(|| {
            let longest = config.max_cache.max(INACTIVE_KEPT) + Duration::from_secs(1);
            Cache::builder().max_capacity(entries).time_to_live(longest).build()
        });
        Ok(Self {
            issuer: issuer.clone(),
            config: config.clone(),
            statuses,
            door: ArcSwap::from_pointee(Door::open(config, limits)?),
            answers,
            under_way: Mutex::default(),
            flights: Arc::new(Semaphore::new(share(limits.introspection_flights))),
            // Whoever waits takes up a decision: half of them stay for questions that need nobody.
            seats: Semaphore::new(share(limits.concurrent_decisions / 2)),
            limits: limits.clone(),
            clock: Arc::clone(clock),
        })
    }

    /// What this issuer's opaque tokens start with.
    pub(super) fn prefix(&self) -> &str {
        &self.config.token_prefix
    }

    /// What the issuer says of `token`, whose SHA-256 is `digest`: as it said a short time ago, or by asking.
    ///
    /// # Errors
    /// [`TokenError::Inactive`] when it does not count; [`TokenError::IssuerUnavailable`] when nobody can say; the first
    /// check that the answer failed otherwise.
    pub(super) async fn verify(
        self: &Arc<Self>,
        token: &SecretString,
        digest: [u8; 32],
        now: SystemTime,
        heard: &Heard,
    ) -> Answer {
        let mut flight = match self.find(token, digest, now, heard)? {
            Found::Known(answer) => return answer,
            Found::UnderWay(flight) => flight,
        };
        let Ok(_seat) = self.seats.try_acquire() else { return Err(self.shed(heard)) };
        // The sender is dropped without an answer only if the flight broke off.
        let landed = flight.wait_for(Option::is_some).await.map_err(|_| TokenError::IssuerUnavailable)?;
        landed.clone().unwrap_or(Err(TokenError::IssuerUnavailable))
    }

    fn find(
        self: &Arc<Self>,
        token: &SecretString,
        digest: [u8; 32],
        now: SystemTime,
        heard: &Heard,
    ) -> Result<Found, TokenError> {
        let known = self.recall(&digest, now);
        if self.answers.is_some() {
            heard(News::Lookup { cache: "introspections", hit: known.is_some() });
        }
        if let Some(answer) = known {
            return Ok(Found::Known(answer));
        }
        let mut under_way = self.under_way.lock();
        if let Some(flight) = under_way.get(&digest) {
            return Ok(Found::UnderWay(flight.clone()));
        }
        // One may have landed in between: it leaves its answer before it goes.
        if let Some(answer) = self.recall(&digest, now) {
            return Ok(Found::Known(answer));
        }
        let Ok(permit) = Arc::clone(&self.flights).try_acquire_owned() else {
            return Err(self.shed(heard));
        };
        let (landed, flight) = watch::channel(None);
        under_way.insert(digest, flight.clone());
        let (asker, token, heard) = (Arc::clone(self), token.clone(), Arc::clone(heard));
        tokio::spawn(async move {
            let _permit = permit;
            // However this ends, the next question about this token must not wait for it.
            let _gone = Gone { asker: &asker, digest };
            let answer = asker.ask(&token, digest).await;
            heard(News::Introspection { issuer: &asker.issuer.issuer, result: word(&answer) });
            asker.keep(digest, &answer);
            landed.send_replace(Some(answer));
        });
        Ok(Found::UnderWay(flight))
    }

    /// What becomes of a question that there is no room for.
    fn shed(&self, heard: &Heard) -> TokenError {
        heard(News::Introspection { issuer: &self.issuer.issuer, result: "shed" });
        TokenError::IssuerUnavailable
    }

    /// An answer that may be used again: young enough, and the token still within its time, without any skew.
    fn recall(&self, digest: &[u8; 32], now: SystemTime) -> Option<Answer> {
        let Kept { answer, until } = self.answers.as_ref()?.get(digest)?;
        let young = self.clock.monotonic() < until;
        let in_time = answer.as_ref().is_ok_and(|active| {
            unix_seconds(now) < active.validity.expires_at && active.validity.check(&self.issuer, now).is_ok()
        });
        (young && (in_time || answer.is_err())).then_some(answer)
    }

    /// Keeps what the issuer said, and nothing else: not a failure, not an answer that we refuse.
    fn keep(&self, digest: [u8; 32], answer: &Answer) {
        let lifetime = match answer {
            Ok(_) => self.config.max_cache,
            Err(TokenError::Inactive) => INACTIVE_KEPT,
            Err(_) => return,
        };
        if let Some(answers) = &self.answers
            && !lifetime.is_zero()
        {
            answers.insert(digest, Kept { answer: answer.clone(), until: self.clock.monotonic() + lifetime });
        }
    }

    async fn ask(&self, token: &SecretString, digest: [u8; 32]) -> Answer {
        let failed = |reason: &dyn std::fmt::Display| {
            tracing::warn!(issuer = %self.issuer.issuer, %reason, "an introspection gave no usable answer");
            TokenError::IssuerUnavailable
        };
        let door = self.door.load_full();
        let answer = door.ask(token.expose_secret()).await.map_err(|error| failed(&error))?;
        let claims = Claims::read(&answer, &self.limits).map_err(|error| failed(&error))?;
        match claims.at("active") {
            Some(Json::Bool(true)) => self.read(&claims, digest),
            Some(Json::Bool(false)) => Err(TokenError::Inactive),
            // RFC 7662 section 2.2: REQUIRED, a Boolean. What says neither yes nor no is no answer.
            Some(_) | None => Err(failed(&"`active` is neither true nor false")),
        }
    }

    /// The answer about an active token, held to what a JWT's claims are held to. In this order: issuer, kind, audience,
    /// `nbf`, `exp`, `iat`, lifetime, subject, the other claims, mapping.
    fn read(&self, claims: &Claims, digest: [u8; 32]) -> Answer {
        // RFC 7662 leaves `iss` open. An authorization server that answers for several issuers may know another's.
        if claims.optional_text("iss")?.is_some_and(|named| named != self.issuer.issuer) {
            return Err(TokenError::UnknownIssuer);
        }
        // A refresh token is active too, and no access token; DPoP demands a proof that we can't check.
        if claims.optional_text("token_type")?.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err(TokenError::Type);
        }
        if claims.at("aud").is_some() {
            claims.check_audience(&self.issuer, &self.limits)?;
        } else if self.config.require_audience {
            return Err(TokenError::Audience);
        }
        let validity = claims.validity()?;
        validity.check(&self.issuer, self.clock.now())?;
        let facts = facts(claims, &self.issuer, &validity, ALGORITHM, None, &self.limits)?;
        let principal = mapping::principal(claims, &self.issuer.mapping, &self.limits)?;
        let status = self.statuses.reference(claims)?;
        Ok(Active { token: Arc::new(VerifiedToken::seal(principal, facts, digest)), status, validity })
    }

    /// Takes a renewed secret or certificate when there is one, until told to stop.
    pub(super) async fn keep_credentials(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(CREDENTIALS_LOOKED_AT) => {}
            }
            let this = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || this.renew_credentials()).await {
                tracing::error!(error = &error as &dyn std::error::Error, "looking at client credentials broke off");
            }
        }
    }

    /// Looks at the files once; whether they were others than before.
    pub(super) fn renew_credentials(&self) -> bool {
        match self.door.load().renewed(&self.config, &self.limits) {
            Ok(None) => false,
            Ok(Some(door)) => {
                self.door.store(Arc::new(door));
                tracing::info!(issuer = %self.issuer.issuer, "the client credentials for introspection were renewed");
                true
            }
            Err(problem) => {
                tracing::error!(
                    issuer = %self.issuer.issuer, reason = %problem,
                    "renewed client credentials are not usable; the old ones stay"
                );
                false
            }
        }
    }
}

/// Strikes a flight off the list when it ends.
struct Gone<'a> {
    asker: &'a Introspection,
    digest: [u8; 32],
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.asker.under_way.lock().remove(&self.digest);
    }
}

/// The metric's word for an answer.
fn word(answer: &Answer) -> &'static str {
    match answer {
        Ok(_) => "active",
        Err(TokenError::Inactive) => "inactive",
        Err(TokenError::IssuerUnavailable) => "failed",
        Err(_) => "rejected",
    }
}

/// Whether `text` could be a bearer token at all (RFC 6750 section 2.1, `b64token`). Nothing else is sent anywhere.
pub(super) fn is_bearer_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty() && body.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6750 section 2.1.
    #[test]
    fn an_opaque_token_has_a_bearer_token_s_characters() {
        let table = [
            ("mF_9.B5f-4.1JqM~+/", true, "all of the alphabet's kinds"),
            ("abc==", true, "padding at the end"),
            ("==", false, "padding alone"),
            ("", false, "nothing"),
            ("a=b", false, "padding inside"),
            ("a b", false, "a space"),
            ("a&token=b", false, "what could end a form's field"),
            ("a\r\nb", false, "what could end a header"),
            ("t\u{e9}", false, "not ASCII"),
        ];
        for (text, expected, why) in table {
            assert_eq!(is_bearer_token(text), expected, "{text}: {why}");
        }
    }
}

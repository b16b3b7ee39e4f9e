//! The only door from an [`UnverifiedToken`] to a [`VerifiedToken`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use moka::sync::Cache;
use tokio_util::sync::CancellationToken;

use super::api_key::text::KeyText;
use super::claims::{Claims, Validity, instant};
use super::error::{SetupProblem, TokenError, TokenSetupError};
use super::introspection::{Introspection, is_bearer_token};
use super::mapping;
use super::ring::KeyRing;
use super::status_list::{StatusReference, Statuses};
use super::tend::tend;
use super::unverified::{UnverifiedToken, plain_type};
use super::verified::VerifiedToken;
use super::{Heard, News, TokenFacts, sha256};
use crate::clock::SharedClock;
use crate::config::{Limits, TrustedIssuer};
use crate::secret::{ExposeSecret as _, SecretString};

/// Checks tokens of the trusted issuers, and keeps those issuers' keys.
#[derive(Debug)]
pub struct Verifier {
    /// By the exact text of `iss`.
    issuers: HashMap<String, Arc<Issuer>>,
    limits: Limits,
    /// Verified tokens by the SHA-256 of the whole compact token: a cache keyed by less has let tampered claims through
    /// elsewhere (Cerbos 0.53). Errors are never kept.
    cache: Option<Cache<[u8; 32], Kept>>,
    /// Whom to ask about tokens that are no JWTs; none's prefix is the beginning of another's.
    introspections: Vec<Arc<Introspection>>,
    heard: Ears,
}

/// Who hears the news; nobody at first.
struct Ears(Heard);

impl std::fmt::Debug for Ears {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ears")
    }
}

#[derive(Debug)]
struct Issuer {
    settings: TrustedIssuer,
    /// `settings.token_types` in the form that tokens are compared in.
    types: Option<BTreeSet<String>>,
    keys: KeyRing,
    statuses: Arc<Statuses>,
}

#[derive(Debug, Clone)]
struct Kept {
    token: Arc<VerifiedToken>,
    validity: Validity,
    status: Option<StatusReference>,
    issuer: Arc<Issuer>,
    /// The keys it was verified with; with others it must be verified again.
    generation: u64,
    /// How many bytes it takes, about.
    bytes: u32,
}

/// What an entry takes beside what the token says.
const ENTRY_BYTES: usize = 1024;

/// A token that was verified, and what it takes to say whether it would be again: the same keys, within its time, and not
/// taken back by its issuer.
#[derive(Debug)]
pub struct Standing(Kept);

impl Standing {
    /// The token. That there is one does not say that it [`holds`](Self::holds).
    #[must_use]
    pub fn token(&self) -> &VerifiedToken {
        &self.0.token
    }

    /// Whether it would be verified again at `now`.
    #[must_use]
    pub fn holds(&self, now: SystemTime) -> bool {
        self.0.stands(now) && self.0.status.as_ref().is_none_or(|status| status.check(now).is_ok())
    }
}

impl Kept {
    fn stands(&self, now: SystemTime) -> bool {
        let same_keys = self.issuer.keys.generation() == Some(self.generation);
        same_keys && self.validity.check(&self.issuer.settings, now).is_ok()
    }
}

impl Verifier {
    /// A verifier for `issuers`. Key files are read now, key URLs by [`start`](Self::start). Keeps at most
    /// `token_cache_entries` verified tokens; with 0 none.
    ///
    /// # Errors
    /// [`TokenSetupError`] names the first issuer whose settings can't be run.
    pub fn new(
        issuers: &[TrustedIssuer],
        limits: &Limits,
        token_cache_entries: u64,
        clock: SharedClock,
    ) -> Result<Self, TokenSetupError> {
        let mut opened = HashMap::new();
        let mut introspections: Vec<Arc<Introspection>> = Vec::new();
        let servers = issuers.iter().filter(|issuer| issuer.introspection.is_some()).count();
        for settings in issuers {
            let failed = |problem| TokenSetupError { issuer: settings.issuer.clone(), problem };
            if settings.audiences.is_empty() || settings.audiences.iter().any(String::is_empty) {
                return Err(failed(SetupProblem::Audiences));
            }
            let statuses = Arc::new(Statuses::open(settings, limits, &clock).map_err(failed)?);
            if let Some(config) = &settings.introspection {
                let mine = config.token_prefix.as_str();
                let same =
                    |other: &Arc<Introspection>| mine.starts_with(other.prefix()) || other.prefix().starts_with(mine);
                if introspections.iter().any(same) {
                    return Err(failed(SetupProblem::Prefix));
                }
                let statuses = Arc::clone(&statuses);
                let way = Introspection::open(settings, config, statuses, servers, token_cache_entries, limits, &clock);
                introspections.push(Arc::new(way.map_err(failed)?));
            }
            let issuer = Issuer {
                settings: settings.clone(),
                types: settings.token_types.as_ref().map(|types| types.iter().map(|one| plain_type(one)).collect()),
                keys: KeyRing::open(settings, limits, &clock).map_err(failed)?,
                statuses,
            };
            if opened.insert(settings.issuer.clone(), Arc::new(issuer)).is_some() {
                return Err(failed(SetupProblem::Duplicate));
            }
        }
        let cache = cache(&opened, token_cache_entries, token_cache_entries);
        let heard = Ears(Arc::new(|_| ()));
        Ok(Self { issuers: opened, limits: limits.clone(), cache, introspections, heard })
    }

    /// The same, and what it keeps takes `bytes` at most, about.
    #[must_use]
    pub fn within_bytes(self, bytes: u64) -> Self {
        let entries = self.cache.as_ref().and_then(|cache| cache.policy().max_capacity()).unwrap_or(0);
        Self { cache: cache(&self.issuers, entries, bytes), ..self }
    }

    /// The same, and `heard` hears of introspections and status lists.
    #[must_use]
    pub fn heard_by(self, heard: Heard) -> Self {
        Self { heard: Ears(heard), ..self }
    }

    /// Keeps the issuers' keys fresh in the background until `cancel`led; `told` hears of every attempt. Must be called
    /// inside a runtime.
    pub fn start(self: &Arc<Self>, cancel: &CancellationToken, told: super::Told) {
        self.start_lookups(cancel);
        for issuer in self.issuers.values() {
            if let KeyRing::Public(_) = &issuer.keys {
                let (issuer, ending, told) = (Arc::clone(issuer), cancel.clone(), Arc::clone(&told));
                tend("an issuer's keys", cancel, move || {
                    let (issuer, cancel, told) = (Arc::clone(&issuer), ending.clone(), Arc::clone(&told));
                    async move {
                        if let KeyRing::Public(keys) = &issuer.keys {
                            keys.keep_fresh(cancel, &told).await;
                        }
                    }
                });
            }
        }
    }

    /// Keeps status lists and client credentials fresh.
    fn start_lookups(&self, cancel: &CancellationToken) {
        for issuer in self.issuers.values() {
            for list in issuer.statuses.lists() {
                let (list, issuer, ending) = (Arc::clone(list), Arc::clone(issuer), cancel.clone());
                let heard = Arc::clone(&self.heard.0);
                tend("a status list", cancel, move || {
                    let (list, issuer, cancel) = (Arc::clone(&list), Arc::clone(&issuer), ending.clone());
                    let heard = Arc::clone(&heard);
                    async move { list.keep_fresh(&issuer.settings, &issuer.keys, cancel, &heard).await }
                });
            }
        }
        for introspection in &self.introspections {
            let (introspection, ending) = (Arc::clone(introspection), cancel.clone());
            tend("client credentials", cancel, move || Arc::clone(&introspection).keep_credentials(ending.clone()));
        }
    }

    /// How many verified tokens are kept, about.
    #[must_use]
    pub fn cached(&self) -> u64 {
        self.cache.as_ref().map_or(0, Cache::entry_count)
    }

    /// Every issuer, and whether its keys are there and not too old. Sorted.
    #[must_use]
    pub fn issuers_ready(&self) -> Vec<(String, bool)> {
        let mut ready: Vec<_> =
            self.issuers.values().map(|one| (one.settings.issuer.clone(), one.keys.generation().is_some())).collect();
        ready.sort();
        ready
    }

    /// Every issuer, and how long ago its keys were last seen to be its own. Issuers without public keys, and those whose
    /// keys were never had, are left out.
    #[must_use]
    pub fn key_ages(&self) -> Vec<(String, Duration)> {
        let age = |issuer: &Arc<Issuer>| Some((issuer.settings.issuer.clone(), issuer.keys.age()?));
        self.issuers.values().filter_map(age).collect()
    }

    /// Checks a bearer token of either kind: three parts with dots between them are a JWT and are verified here; of
    /// anything else the issuer is asked whose opaque tokens start like this one. Waits for the network only then.
    ///
    /// # Errors
    /// [`TokenError`] names the first check that failed.
    pub async fn check(&self, text: &SecretString, now: SystemTime) -> Result<Arc<VerifiedToken>, TokenError> {
        let token = text.expose_secret();
        if token.len() > self.limits.token_bytes {
            return Err(TokenError::Size);
        }
        let digest = sha256(token.as_bytes());
        // What was verified before needs no look at its parts.
        if let Some(known) = self.known(&digest, now) {
            return known;
        }
        // An API key in a token's place is a slip, and no authorization server's to see.
        let opaque = token.split('.').count() != 3 && is_bearer_token(token) && KeyText::parse(token).is_none();
        let asked = self.introspections.iter().find(|one| opaque && token.starts_with(one.prefix()));
        let Some(introspection) = asked else {
            return self.verify_anew(&UnverifiedToken::digested(text, digest, &self.limits)?, now);
        };
        let active = introspection.verify(text, digest, now, &self.heard.0).await?;
        if let Some(status) = &active.status {
            status.check(now)?;
        }
        Ok(active.token)
    }

    /// Checks `token` and, if everything holds, returns what it says.
    ///
    /// In this order, stopping at the first failure: shape of the claims, issuer, type, algorithm, key, signature,
    /// audience, `nbf`, `exp`, `iat`, lifetime, subject, the other claims, mapping, status. `now` is wall time; `exp` and `nbf`
    /// are compared in whole seconds and may be off by the issuer's clock skew, `iat` by 60 s. Never waits for the
    /// network: a key we don't have is a key that does not exist, until the background has fetched it.
    ///
    /// What a stranger can tell apart by time is what he knows already. Before the signature nothing is looked at but the
    /// token's form, its header and `iss`, and what decides there is public: our issuers, their algorithms, the ids of
    /// their keys. So he can tell a token that fails there from one whose signature is computed, and one algorithm from
    /// another; whether a subject, an audience or a time would have passed he can't, because no claim but `iss` is looked
    /// at until the signature holds. Signatures with public keys hold no secret of ours, and an HMAC is compared in
    /// constant time. Who holds a validly signed token can tell by time whether it was verified lately.
    ///
    /// # Errors
    /// [`TokenError`] names the first check that failed. It is for our log: the caller is told the bounded code alone.
    ///
    /// Source: RFC 7519 section 7.2; RFC 8725 section 3.1 (the algorithm comes from our configuration, never from the
    /// token).
    #[expect(
        clippy::unused_async,
        reason = "the other kinds of token wait for others; callers need not know which kind does not"
    )]
    pub async fn verify(&self, token: UnverifiedToken<'_>, now: SystemTime) -> Result<Arc<VerifiedToken>, TokenError> {
        self.known(token.digest(), now).unwrap_or_else(|| self.verify_anew(&token, now))
    }

    fn verify_anew(&self, token: &UnverifiedToken<'_>, now: SystemTime) -> Result<Arc<VerifiedToken>, TokenError> {
        if self.cache.is_some() {
            self.heard.0(News::Lookup { cache: "tokens", hit: false });
        }
        let claims = Claims::read(token.claims(), &self.limits)?;
        // `iss` chooses among the issuers we were given, and does nothing else.
        let issuer = self.issuers.get(claims.issuer()?).ok_or(TokenError::UnknownIssuer)?;
        issuer.check_type(token)?;
        let (key_id, generation) = issuer.keys.check(token, &issuer.settings.algorithms)?;
        claims.check_audience(&issuer.settings, &self.limits)?;
        let validity = claims.validity()?;
        validity.check(&issuer.settings, now)?;
        let facts = facts(&claims, &issuer.settings, &validity, token.algorithm().as_str(), key_id, &self.limits)?;
        let principal = mapping::principal(&claims, &issuer.settings.mapping, &self.limits)?;
        let status = issuer.statuses.reference(&claims)?;
        status.as_ref().map_or(Ok(()), |status| status.check(now))?;

        let verified = Arc::new(VerifiedToken::seal(principal, facts, *token.digest()));
        if let Some(cache) = &self.cache {
            // What is kept of a token is made of its text, and seldom longer.
            let token_bytes = token.bytes();
            let (token, issuer) = (Arc::clone(&verified), Arc::clone(issuer));
            let bytes = u32::try_from(token_bytes + ENTRY_BYTES).unwrap_or(u32::MAX);
            cache.insert(*verified.digest(), Kept { token, validity, status, issuer, generation, bytes });
        }
        Ok(verified)
    }

    /// A token that was verified before, if it would be again: same keys, and still within its time.
    fn known(&self, digest: &[u8; 32], now: SystemTime) -> Option<Result<Arc<VerifiedToken>, TokenError>> {
        let kept = self.cache.as_ref()?.get(digest).filter(|kept| kept.stands(now))?;
        self.heard.0(News::Lookup { cache: "tokens", hit: true });
        // Asked on every question: a status may change while the token is known.
        let status = kept.status.as_ref().map_or(Ok(()), |status| status.check(now));
        Some(status.map(|()| kept.token))
    }

    /// How `token`, which was verified here and is a JWT, stands. `None` when it is not kept, or another is in its place.
    #[must_use]
    pub fn standing(&self, token: &Arc<VerifiedToken>) -> Option<Standing> {
        let kept = self.cache.as_ref()?.get(token.digest())?;
        Arc::ptr_eq(&kept.token, token).then(|| Standing(kept))
    }
}

/// A cache for so many entries, that take so many bytes. Each weighs its share of the bytes at least, so that neither limit is
/// passed.
fn cache(issuers: &HashMap<String, Arc<Issuer>>, entries: u64, bytes: u64) -> Option<Cache<[u8; 32], Kept>> {
    // Past this age an entry can't be valid any more, so it need not take up room.
    let longest = issuers.values().map(|one| one.settings.max_lifetime + one.settings.clock_skew * 2).max();
    let share = u32::try_from(bytes.checked_div(entries)?.max(1)).unwrap_or(u32::MAX);
    // As many bytes as entries: only the number counts.
    let weigh = move |_: &[u8; 32], kept: &Kept| if share == 1 { 1 } else { kept.bytes.max(share) };
    let life = longest.unwrap_or(Duration::from_secs(1)) + Duration::from_secs(1);
    Some(Cache::builder().max_capacity(bytes).weigher(weigh).time_to_live(life).build())
}

/// What the claims say that policies and records may know. The caller has checked who vouches for them: `issuer`.
pub(super) fn facts(
    claims: &Claims,
    issuer: &TrustedIssuer,
    validity: &Validity,
    algorithm: &'static str,
    key_id: Option<String>,
    limits: &Limits,
) -> Result<TokenFacts, TokenError> {
    let id_sha256 = claims.id_sha256()?;
    if issuer.require_token_id && id_sha256.is_none() {
        return Err(TokenError::NoTokenId);
    }
    Ok(TokenFacts {
        issuer: issuer.issuer.clone(),
        subject: claims.subject(limits)?.to_owned(),
        issued_at: instant(validity.issued_at),
        expires_at: instant(validity.expires_at),
        id_sha256,
        scopes: claims.scopes()?,
        acr: claims.optional_text("acr")?,
        amr: claims.authentication_methods()?,
        auth_time: claims.authenticated_at()?,
        client_id: claims.client_id()?,
        actors: claims.actors(limits)?,
        confirmation: claims.confirmation()?,
        session_sha256: claims.session_sha256()?,
        algorithm,
        key_id,
    })
}

#[cfg(test)]
impl Verifier {
    /// Which keys are in force, issuer by issuer.
    pub(super) fn generations(&self) -> Vec<Option<u64>> {
        self.issuers.values().map(|issuer| issuer.keys.generation()).collect()
    }

    /// What the background does, done now.
    pub(super) async fn refresh_all(&self) {
        for issuer in self.issuers.values() {
            if let KeyRing::Public(keys) = &issuer.keys {
                keys.refresh().await;
            }
        }
    }
}

impl Issuer {
    /// RFC 8725 section 3.11: a token of another kind, such as an ID token, is not an access token.
    fn check_type(&self, token: &UnverifiedToken<'_>) -> Result<(), TokenError> {
        match (&self.types, token.token_type()) {
            (None, _) => Ok(()),
            // An empty text among the accepted stands for no `typ`, never for an empty one.
            (Some(accepted), Some(named)) if !named.is_empty() && accepted.contains(named) => Ok(()),
            (Some(accepted), None) if accepted.contains("") => Ok(()),
            (Some(_), _) => Err(TokenError::Type),
        }
    }
}

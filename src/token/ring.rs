//! The keys of one issuer over time: where they come from, when they are fetched again, how long they are believed.
//!
//! One task an issuer does all the fetching, so there is never more than one fetch under way. Answering a token reads
//! what is there and at most leaves a wish; nobody waits for a fetch. Between two fetches lies at least the floor,
//! whoever wishes (OpenFGA's and others' key storms; THREATS T16).

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_lc_rs::digest;
use jsonwebtoken::DecodingKey;
use parking_lot::Mutex;
use secrecy::ExposeSecret as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::discovery::{Discovery, DiscoveryError};
use super::error::{SetupProblem, TokenError};
use super::examine::KeysFound;
use super::fetch::{FetchError, Fetched, Fetcher};
use super::jwks::{DocumentError, KeySet};
use super::key;
use super::unverified::UnverifiedToken;
use crate::clock::SharedClock;
use crate::config::{KeySource, Limits, TokenAlgorithm, TrustedIssuer};

/// An issuer's keys.
#[derive(Debug)]
pub(super) enum KeyRing {
    /// One secret, for good, and its id.
    Shared(DecodingKey, Option<String>),
    /// Public keys that come and go.
    Public(Box<PublicKeys>),
    /// None at all: the issuer's tokens are opaque.
    Absent,
}

/// Public keys that come and go.
#[derive(Debug)]
pub(super) struct PublicKeys {
    issuer: String,
    origin: Origin,
    current: ArcSwapOption<Dated>,
    schedule: Mutex<Schedule>,
    wished_for: Notify,
    limits: Limits,
    clock: SharedClock,
}

#[derive(Debug)]
enum Origin {
    File(PathBuf),
    Url(Fetcher),
    Discovery(Box<Discovery>),
}

/// A key set, and since when it is known to be the issuer's. Times are monotonic.
#[derive(Debug)]
struct Dated {
    keys: Arc<KeySet>,
    fingerprint: Vec<u8>,
    /// Changes with the keys; a token verified under another generation is verified again.
    generation: u64,
    confirmed_at: Duration,
}

#[derive(Debug, Default)]
struct Schedule {
    last_attempt: Option<Duration>,
    failures: u32,
}

/// Why the keys stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RefreshError {
    #[error("the file can't be read")]
    File,
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error(transparent)]
    Document(#[from] DocumentError),
}

/// The longest pause between two attempts while they fail.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

impl KeyRing {
    /// Opens the issuer's source. A file is read now, so that a mistake is told at start; a URL is not.
    pub(super) fn open(issuer: &TrustedIssuer, limits: &Limits, clock: &SharedClock) -> Result<Self, SetupProblem> {
        let symmetric = issuer.algorithms.contains(&TokenAlgorithm::Hs256);
        let origin = match &issuer.keys {
            KeySource::Nowhere => return Ok(Self::Absent),
            KeySource::Shared { secret, id } => {
                if issuer.algorithms != [TokenAlgorithm::Hs256] {
                    return Err(SetupProblem::Algorithms);
                }
                let secret = secret.expose_secret();
                if secret.len() < 32 {
                    return Err(SetupProblem::ShortSecret);
                }
                return Ok(Self::Shared(DecodingKey::from_secret(secret), id.clone()));
            }
            _ if symmetric || issuer.algorithms.is_empty() => return Err(SetupProblem::Algorithms),
            KeySource::File(path) => Origin::File(path.clone()),
            KeySource::Url { url, ca, allow_private_addresses } => {
                Origin::Url(fetcher(url, ca.as_deref(), *allow_private_addresses, limits)?)
            }
            KeySource::Discovery { url, hosts, ca, allow_private_addresses } => {
                let fetcher = fetcher(url, ca.as_deref(), *allow_private_addresses, limits)?;
                Origin::Discovery(Box::new(Discovery::new(fetcher, url, &issuer.issuer, hosts, limits)))
            }
        };
        let keys = PublicKeys {
            issuer: issuer.issuer.clone(),
            origin,
            current: ArcSwapOption::empty(),
            schedule: Mutex::default(),
            wished_for: Notify::new(),
            limits: limits.clone(),
            clock: Arc::clone(clock),
        };
        if let Origin::File(path) = &keys.origin {
            let document = read_file(path, limits.jwks_bytes).map_err(|_| SetupProblem::KeyFile)?;
            keys.take(&document).map_err(|_| SetupProblem::KeyDocument)?;
        }
        Ok(Self::Public(Box::new(keys)))
    }

    /// Checks the signature of `token`; gives the id of the key it holds under, and the generation of the keys.
    pub(super) fn check(
        &self,
        token: &UnverifiedToken<'_>,
        pinned: &[TokenAlgorithm],
    ) -> Result<(Option<String>, u64), TokenError> {
        match self {
            Self::Shared(secret, id) => {
                if token.algorithm() != TokenAlgorithm::Hs256 {
                    return Err(TokenError::Algorithm);
                }
                // There is one key, so a token need not name it; one that names a key names this one.
                if token.key_id().is_ok_and(|named| id.as_deref() != Some(named)) {
                    return Err(TokenError::UnknownKey);
                }
                if key::signature_holds(token, secret) { Ok((id.clone(), 0)) } else { Err(TokenError::BadSignature) }
            }
            Self::Public(keys) => keys.check(token, pinned),
            Self::Absent => Err(TokenError::UnknownKey),
        }
    }

    /// Which keys are in force; none when they are not to be had.
    pub(super) fn generation(&self) -> Option<u64> {
        match self {
            Self::Shared(..) | Self::Absent => Some(0),
            Self::Public(keys) => keys.believed().map(|dated| dated.generation),
        }
    }

    /// How long ago the keys were last seen to be the issuer's; nothing when they never were, or are one secret for good.
    pub(super) fn age(&self) -> Option<Duration> {
        match self {
            Self::Shared(..) | Self::Absent => None,
            Self::Public(keys) => keys.current.load_full().map(|dated| keys.age(&dated)),
        }
    }
}

impl PublicKeys {
    fn check(
        &self,
        token: &UnverifiedToken<'_>,
        pinned: &[TokenAlgorithm],
    ) -> Result<(Option<String>, u64), TokenError> {
        // An algorithm that the issuer never uses, or no key id, is no reason to fetch.
        if !pinned.contains(&token.algorithm()) {
            return Err(TokenError::Algorithm);
        }
        let wanted = token.key_id()?;
        let Some(dated) = self.believed() else {
            self.wish();
            return Err(TokenError::IssuerUnavailable);
        };
        if !dated.keys.knows(wanted) {
            self.wish();
        }
        let id = dated.keys.check(token, pinned)?;
        Ok((Some(id.to_owned()), dated.generation))
    }

    /// The keys, unless it is too long ago that they were seen to be the issuer's.
    fn believed(&self) -> Option<Arc<Dated>> {
        self.current.load_full().filter(|dated| self.age(dated) <= self.limits.jwks_max_stale)
    }

    fn age(&self, dated: &Dated) -> Duration {
        self.clock.monotonic().saturating_sub(dated.confirmed_at)
    }

    /// Asks for a fetch, unless the last attempt is younger than the floor.
    fn wish(&self) {
        if self.may_attempt() {
            self.wished_for.notify_one();
        }
    }

    fn may_attempt(&self) -> bool {
        let now = self.clock.monotonic();
        let last = self.schedule.lock().last_attempt;
        last.is_none_or(|last| now.saturating_sub(last) >= self.limits.jwks_refresh_floor)
    }

    /// Fetches when there is a cause, when it is time, and again after a failure, until told to stop.
    /// `told` hears how each attempt ended.
    pub(super) async fn keep_fresh(&self, cancel: CancellationToken, told: &super::Told) {
        loop {
            // A wish that was left before the last attempt is not carried past it.
            if self.may_attempt() {
                let well = self.refresh().await;
                told(&self.issuer, well);
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.wished_for.notified() => {}
                () = tokio::time::sleep(self.pause()) => {}
            }
        }
    }

    /// One attempt; whether it went well. Whatever comes of it, the last good keys stay until better ones are there.
    pub(super) async fn refresh(&self) -> bool {
        self.schedule.lock().last_attempt = Some(self.clock.monotonic());
        let outcome = self.attempt().await;
        let mut schedule = self.schedule.lock();
        match outcome.map(|(changed, _)| changed) {
            Ok(changed) => {
                let failed = std::mem::take(&mut schedule.failures) > 0;
                if changed {
                    tracing::info!(issuer = %self.issuer, "the issuer's keys have changed");
                } else if failed {
                    tracing::info!(issuer = %self.issuer, "the issuer's keys can be refreshed again, and are the same");
                }
                true
            }
            Err(error) => {
                schedule.failures = schedule.failures.saturating_add(1);
                tracing::warn!(
                    issuer = %self.issuer, reason = %error, failures = schedule.failures,
                    "the issuer's keys could not be refreshed"
                );
                false
            }
        }
    }

    /// Fetches the document and puts its keys in force; tells whether they are others than before, and what time it was
    /// where they came from.
    async fn attempt(&self) -> Result<(bool, Option<String>), RefreshError> {
        let Fetched { document, date } = self.document().await?;
        Ok((self.take(&document)?, date))
    }

    /// What one attempt gives: how many keys may be used with each of `pinned`, how many were left out, and what time it
    /// was where they came from.
    pub(super) async fn examine(&self, pinned: &[TokenAlgorithm]) -> Result<KeysFound, RefreshError> {
        let (_, date) = self.attempt().await?;
        let keys = self.current.load_full().map(|dated| Arc::clone(&dated.keys));
        let count = |algorithm: &TokenAlgorithm| keys.as_ref().map_or(0, |keys| keys.usable_with(*algorithm));
        let usable = pinned.iter().map(|algorithm| (*algorithm, count(algorithm))).collect();
        Ok(KeysFound { usable, left_out: keys.map_or(0, |keys| keys.left_out()), date })
    }

    async fn document(&self) -> Result<Fetched, RefreshError> {
        match &self.origin {
            Origin::Url(fetcher) => Ok(fetcher.fetch().await?),
            // Both documents are one attempt, and have one attempt's time.
            Origin::Discovery(discovery) => {
                let fetching = tokio::time::timeout(self.limits.jwks_timeout, discovery.fetch());
                Ok(fetching.await.unwrap_or(Err(DiscoveryError::Document(FetchError::Timeout)))?)
            }
            Origin::File(path) => {
                let (path, max_bytes) = (path.clone(), self.limits.jwks_bytes);
                let reading = tokio::task::spawn_blocking(move || read_file(&path, max_bytes));
                let document = reading.await.unwrap_or(Err(RefreshError::File))?;
                Ok(Fetched { document, date: None })
            }
        }
    }

    /// Puts a document's keys in force; tells whether they are others than before.
    fn take(&self, document: &[u8]) -> Result<bool, RefreshError> {
        let fingerprint = digest::digest(&digest::SHA256, document).as_ref().to_vec();
        let before = self.current.load_full();
        let confirmed_at = self.clock.monotonic();
        // The very same document says the very same: it need not be read, nor complained of, again.
        if let Some(before) = before.as_ref().filter(|before| before.fingerprint == fingerprint) {
            let (keys, generation) = (Arc::clone(&before.keys), before.generation);
            self.current.store(Some(Arc::new(Dated { keys, fingerprint, generation, confirmed_at })));
            return Ok(false);
        }
        let keys = Arc::new(KeySet::read(document, &self.limits)?);
        let generation = before.map_or(1, |before| before.generation + 1);
        self.current.store(Some(Arc::new(Dated { keys, fingerprint, generation, confirmed_at })));
        Ok(true)
    }

    /// How long until the next attempt without a cause. Jitter only lengthens it, so the floor holds.
    fn pause(&self) -> Duration {
        let floor = self.limits.jwks_refresh_floor;
        let failures = self.schedule.lock().failures;
        let pause = match (failures, &self.origin) {
            // A file costs nothing to look at.
            (0, Origin::File(_)) => floor.min(self.limits.jwks_refresh_interval),
            (0, Origin::Url(_) | Origin::Discovery(_)) => self.limits.jwks_refresh_interval,
            (failures, _) => Duration::from_secs(1 << failures.min(6)).min(LONGEST_BACKOFF),
        };
        let mut random = [0; 1];
        // Without randomness there is no jitter, and nothing worse.
        let jitter = aws_lc_rs::rand::fill(&mut random).map_or(0, |()| u32::from(random[0]));
        let pause = pause.max(floor);
        pause + pause / 4 * jitter / 256
    }
}

fn fetcher(url: &Url, ca: Option<&Path>, private: bool, limits: &Limits) -> Result<Fetcher, SetupProblem> {
    Fetcher::new(url, ca, private, limits.jwks_bytes, limits.jwks_timeout)
}

/// At most `max_bytes` and one more: enough to see that it is too long.
fn read_file(path: &Path, max_bytes: usize) -> Result<Vec<u8>, RefreshError> {
    let file = std::fs::File::open(path).map_err(|_| RefreshError::File)?;
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let mut document = Vec::new();
    file.take(limit).read_to_end(&mut document).map_err(|_| RefreshError::File)?;
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn keys(limits: &Limits) -> PublicKeys {
        let url: Url = "https://idp.test/jwks".parse().unwrap();
        let ca = tempfile::NamedTempFile::new().unwrap();
        let authority = rcgen::generate_simple_self_signed(vec!["idp.test".to_owned()]).unwrap();
        std::fs::write(ca.path(), authority.cert.pem()).unwrap();
        PublicKeys {
            issuer: "https://idp.test".to_owned(),
            origin: Origin::Url(fetcher(&url, Some(ca.path()), false, limits).unwrap()),
            current: ArcSwapOption::empty(),
            schedule: Mutex::default(),
            wished_for: Notify::new(),
            limits: limits.clone(),
            clock: ManualClock::at(std::time::SystemTime::UNIX_EPOCH),
        }
    }

    /// THREATS F7: 1 to 60 s and jitter, and never below the floor.
    #[test]
    fn pauses_grow_with_failures_vary_and_never_undercut_the_floor() {
        let table = [
            (0, 10, 45, "all is well: the interval"),
            (1, 1, 2, "the first failure"),
            (3, 1, 8, "twice as long each time"),
            (6, 1, 60, "up to a minute"),
            (1_000_000, 1, 60, "and no longer"),
            (1, 10, 10, "the floor holds"),
            (3, 10, 10, "whatever the backoff says"),
            (4, 10, 16, "until that is longer"),
            (6, 120, 120, "even a floor beyond the longest backoff"),
        ];
        for (failures, floor, least, why) in table {
            let limits = Limits { jwks_refresh_floor: Duration::from_secs(floor), ..Limits::default() };
            let keys = keys(&limits);
            keys.schedule.lock().failures = failures;
            let pauses: Vec<Duration> = (0..64).map(|_| keys.pause()).collect();
            let least = Duration::from_secs(least);
            assert!(pauses.iter().all(|pause| (least..least * 5 / 4).contains(pause)), "{why}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{why}: replicas don't ask together");
        }
    }
}

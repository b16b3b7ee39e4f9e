//! API keys: for machines that can't get a token. A key is a long random secret with a name; whoever holds it is its owner.
//!
//! [`ApiKeys::verify`] takes what somebody presented and gives the same proof that a token gives, a
//! [`VerifiedToken`](super::VerifiedToken), so that everything behind it treats the two alike. The keys come from a file
//! that `gatepost apikey` writes ([`file`]); it is read again when it changes, and a broken one changes nothing.
//!
//! Timing tells nothing (THREATS T13): an unknown id costs the same comparison as a known one, and the checks of a
//! known key come after its secret.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::TokenFacts;
use super::claims::sha256_hex;
use super::error::TokenError;
use super::verified::VerifiedToken;
use crate::config::{API_KEYS_ISSUER, ApiKeyConfig, Limits};
use crate::model::entity::{EntityId, EntityUid, RawEntity, RawRecord};
use crate::model::question::PresentedKey;
use crate::secret::{ExposeSecret as _, same};

pub mod file;
pub mod text;

use file::{ApiKeyFile, ApiKeyFileError, Stamp};
use text::KeyText;

/// What stands in a record for the algorithm of a token.
const ALGORITHM: &str = "api-key";

/// How often the file is looked at. A look costs one system call.
const LOOKED_AT: Duration = Duration::from_millis(250);

/// Every key that counts. Without settings none does.
#[derive(Debug)]
pub struct ApiKeys {
    config: Option<ApiKeyConfig>,
    limits: Limits,
    current: ArcSwap<Loaded>,
}

/// One state of the file.
#[derive(Debug, Default)]
struct Loaded {
    by_id: HashMap<String, Known>,
    stamp: Option<Stamp>,
}

/// One key, ready to be compared with.
#[derive(Debug)]
struct Known {
    secret_sha256: [u8; 32],
    principal: RawEntity,
    facts: TokenFacts,
    revoked: bool,
    networks: Vec<IpNet>,
}

/// Why a key does not count, and if it was really that key, whose it is: for the record.
#[derive(Debug)]
pub struct KeyRefusal {
    /// The first check that failed.
    pub error: TokenError,
    /// The key, where its secret was right.
    pub known: Option<Arc<TokenFacts>>,
}

impl ApiKeys {
    /// Reads the file of `config`; with none, every key is refused.
    ///
    /// # Errors
    /// [`ApiKeyFileError`] when there is no usable file.
    pub fn open(config: Option<&ApiKeyConfig>, limits: &Limits) -> Result<Self, ApiKeyFileError> {
        let loaded = match config {
            None => Loaded::default(),
            Some(config) => Loaded::read(config, limits)?,
        };
        Ok(Self { config: config.cloned(), limits: limits.clone(), current: ArcSwap::from_pointee(loaded) })
    }

    /// How many keys there are, revoked and expired ones included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.current.load().by_id.len()
    }

    /// Checks what was presented. In this order, stopping at the first failure: shape, id and secret together, revoked,
    /// expired, network. `now` is wall time; there is no skew, because both ends are our own.
    ///
    /// # Errors
    /// [`KeyRefusal`] names the first check that failed.
    pub fn verify(&self, presented: &PresentedKey, now: SystemTime) -> Result<Arc<VerifiedToken>, KeyRefusal> {
        let unknown = || KeyRefusal { error: TokenError::ApiKey, known: None };
        let key = KeyText::parse(presented.text.expose_secret()).ok_or_else(unknown)?;
        let loaded = self.current.load();
        let known = loaded.by_id.get(key.id());
        // An unknown id is compared with something that no secret hashes to, so that it takes as long as a wrong secret.
        let right = same(known.map_or(&[0; 32], |known| &known.secret_sha256), &key.secret_sha256());
        let known = known.filter(|_| right).ok_or_else(unknown)?;
        if let Err(error) = known.check(presented.client_address, now) {
            return Err(KeyRefusal { error, known: Some(Arc::new(known.facts.clone())) });
        }
        Ok(Arc::new(VerifiedToken::seal(known.principal.clone(), known.facts.clone(), key.digest())))
    }

    /// Reads the file again whenever it changes, until `cancel`. `on` hears of every new state (how many keys) and of
    /// every one that is not usable, once.
    pub fn spawn_watch(
        self: &Arc<Self>,
        cancel: CancellationToken,
        on: impl Fn(Result<usize, &ApiKeyFileError>) + Send + Sync + 'static,
    ) -> Option<JoinHandle<()>> {
        let path = self.config.as_ref()?.file.clone();
        let keys = Arc::clone(self);
        Some(tokio::spawn(async move {
            let stamp = keys.current.load().stamp.clone();
            let mut progress = Progress { seen: stamp.clone(), told: stamp };
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(LOOKED_AT) => {}
                }
                let (looking, path, before) = (Arc::clone(&keys), path.clone(), progress.seen.clone());
                let look = tokio::task::spawn_blocking(move || {
                    let stamp = Stamp::of(&path);
                    (stamp != before).then(|| (stamp, looking.reload()))
                });
                match look.await {
                    Ok(None) => {}
                    Ok(Some((stamp, outcome))) => {
                        if progress.is_news(stamp, &outcome) {
                            on(outcome.as_ref().map(|count| *count));
                        }
                    }
                    Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "a reload broke off"),
                }
            }
        }))
    }

    /// Reads the file now; with an error the keys stay as they are.
    fn reload(&self) -> Result<usize, ApiKeyFileError> {
        let Some(config) = &self.config else { return Ok(0) };
        let loaded = Loaded::read(config, &self.limits)?;
        let count = loaded.by_id.len();
        self.current.store(Arc::new(loaded));
        Ok(count)
    }
}

/// How far the watching has come.
struct Progress {
    /// The state that needs no second look.
    seen: Option<Stamp>,
    /// The state that was last told of.
    told: Option<Stamp>,
}

impl Progress {
    /// Takes note of what came of the state `stamp`; whether that is to be told.
    fn is_news(&mut self, stamp: Option<Stamp>, outcome: &Result<usize, ApiKeyFileError>) -> bool {
        let is_news = outcome.is_ok() || self.told != stamp;
        self.told.clone_from(&stamp);
        // What could not be read now (no file descriptor left, a disk that stalls) may be read at the next look without
        // any further change. Until then a revoked key would go on counting.
        if !matches!(outcome, Err(ApiKeyFileError::Io { .. })) {
            self.seen = stamp;
        }
        is_news
    }
}

impl Loaded {
    fn read(config: &ApiKeyConfig, limits: &Limits) -> Result<Self, ApiKeyFileError> {
        // Taken before the content: a change in between is seen at the next look.
        let stamp = Stamp::of(&config.file);
        let file = ApiKeyFile::read(&config.file, limits)?;
        file::warn_if_open(&config.file);
        let mut by_id = HashMap::with_capacity(file.keys.len());
        for entry in file.keys {
            let owner = EntityId::parse(&entry.owner, limits.id_bytes)
                .map_err(|_| ApiKeyFileError::entry(&config.file, &entry.id, "`owner` is not fit to be an id"))?;
            let principal = RawEntity {
                uid: EntityUid { entity_type: config.principal_type.clone(), id: owner },
                attributes: RawRecord::new(),
                parents: Vec::new(),
            };
            let instant = |time: Timestamp| {
                SystemTime::try_from(time)
                    .map_err(|_| ApiKeyFileError::entry(&config.file, &entry.id, "a time is out of range"))
            };
            let facts = TokenFacts {
                issuer: API_KEYS_ISSUER.to_owned(),
                subject: entry.owner.clone(),
                issued_at: instant(entry.created)?,
                expires_at: instant(entry.expires)?,
                id_sha256: Some(sha256_hex(&entry.id)),
                scopes: entry.scopes,
                acr: None,
                amr: BTreeSet::new(),
                auth_time: None,
                client_id: None,
                actors: Vec::new(),
                confirmation: None,
                session_sha256: None,
                algorithm: ALGORITHM,
                key_id: Some(entry.id.clone()),
            };
            let known = Known {
                secret_sha256: entry.secret_sha256.0,
                principal,
                facts,
                revoked: entry.revoked.is_some(),
                networks: entry.networks,
            };
            by_id.insert(entry.id, known);
        }
        Ok(Self { by_id, stamp })
    }
}

impl Known {
    fn check(&self, client: Option<IpAddr>, now: SystemTime) -> Result<(), TokenError> {
        if self.revoked {
            return Err(TokenError::ApiKeyRevoked);
        }
        if now >= self.facts.expires_at {
            return Err(TokenError::Expired);
        }
        // An IPv4 address in an IPv6 coat (::ffff:10.0.0.1) is the IPv4 address; networks were stripped when read.
        let inside = |address: IpAddr| self.networks.iter().any(|network| network.contains(&address.to_canonical()));
        if !self.networks.is_empty() && !client.is_some_and(inside) {
            return Err(TokenError::ApiKeyNetwork);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! The decision cache: rulings, kept under a hash of everything they depend on.
//!
//! Right by construction: the key covers the whole request as it was evaluated (revision, principal, action, resource,
//! context, entities, fields) and who asked, each part framed by kind and length. An entry ends at the earliest of its
//! lifetime and the token's `exp`; a ruling that reads the time, or that a policy failed in, is never kept.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use moka::sync::Cache;

use crate::clock::SharedClock;
use crate::config::CacheConfig;
use crate::model::decision::{CacheUse, Ruling};
use crate::policy::{AuthorizationRequest, Ruled};

/// A keyed 256-bit hash (blake3): nobody outside can make two requests meet.
type Key = [u8; 32];

/// For keys that are keyed hashes already: nobody can foresee any part of one, so the beginning will do.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, key: &[u8]) {
        if let Some(beginning) = key.first_chunk() {
            self.0 = u64::from_ne_bytes(*beginning);
        }
    }

    /// Of a key there is nothing else: all are of one length.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What a cache with such keys is built with.
pub type ByKey = BuildHasherDefault<KeyHasher>;

/// Rulings, by what they depend on.
#[derive(Debug)]
pub struct Rulings {
    /// `None`: switched off.
    kept: Option<Cache<Key, Kept, ByKey>>,
    hash_key: Key,
    ttl: Duration,
    clock: SharedClock,
}

#[derive(Debug, Clone)]
struct Kept {
    ruling: Arc<Ruling>,
    /// Monotonic, in nanoseconds: a clock jump neither lengthens nor shortens it.
    until: u64,
    /// Wall, in nanoseconds since 1970: what the token says of itself. [`NEVER`] without one.
    ends: u64,
    /// What the ruling takes of this cache: nothing if its bundle keeps it anyway.
    bytes: u32,
}

/// What an entry takes beside its ruling: its key, its place in the cache, what is counted of it.
const ENTRY_BYTES: u64 = 320;
/// No end.
const NEVER: u64 = u64::MAX;

/// On whose account a ruling is looked up: entries are never shared between callers or subjects, so that nobody can tell
/// by timing what another has asked.
#[derive(Debug, Clone, Copy)]
pub struct Account<'a> {
    /// The calling workload.
    pub caller: &'a str,
    /// Issuer of the token; empty without one.
    pub issuer: &'a str,
    /// The token's `exp`.
    pub ends: Option<SystemTime>,
}

impl Rulings {
    /// A cache as configured; `hash_key` must be random and of this process alone.
    #[must_use]
    pub fn new(config: &CacheConfig, hash_key: Key, clock: SharedClock) -> Self {
        let kept = (config.decisions > 0).then(|| {
            // moka's own lifetime only frees memory; whether an entry may be used is decided by our clock.
            // Each weighs at least its share of the bytes, so that neither limit is passed.
            let share = config.decision_bytes.div_ceil(config.decisions);
            Cache::builder()
                .max_capacity(config.decision_bytes)
                .weigher(move |_, kept: &Kept| {
                    u32::try_from(share.max(u64::from(kept.bytes) + ENTRY_BYTES)).unwrap_or(u32::MAX)
                })
                .time_to_live(config.decision_ttl * 2)
                .build_with_hasher(ByKey::default())
        });
        Self { kept, hash_key, ttl: config.decision_ttl, clock }
    }

    /// The kept ruling, with the monotonic time until which it may be used; or the one that `rule` gives, kept if it may be.
    pub fn get_or(
        &self,
        account: Account<'_>,
        request: &AuthorizationRequest,
        bypass: bool,
        rule: impl FnOnce() -> Ruled,
    ) -> (Arc<Ruling>, CacheUse, Option<Duration>) {
        let Some(kept) = self.kept.as_ref().filter(|_| !bypass && !request.reads_now()) else {
            return (rule().into_shared(), CacheUse::Bypass, None);
        };
        let key = self.key(account, request);
        if let Some(found) = kept.get(&key)
            && nanos(self.clock.monotonic()) < found.until
            && (found.ends == NEVER || since_1970(self.clock.now()) < found.ends)
        {
            return (found.ruling, CacheUse::Hit, Some(Duration::from_nanos(found.until)));
        }
        let until = nanos(self.clock.monotonic() + self.ttl);
        let ends = account.ends.map_or(NEVER, since_1970);
        let ruled = rule();
        let bytes = if ruled.is_kept() { 0 } else { u32::try_from(ruled.bytes()).unwrap_or(u32::MAX) };
        let ruling = ruled.into_shared();
        if ruling.errors.is_empty() {
            kept.insert(key, Kept { ruling: Arc::clone(&ruling), until, ends, bytes });
        }
        (ruling, CacheUse::Miss, None)
    }

    /// How many rulings are kept, about.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.kept.as_ref().map_or(0, Cache::entry_count)
    }

    fn key(&self, account: Account<'_>, request: &AuthorizationRequest) -> Key {
        let mut hasher = blake3::Hasher::new_keyed(&self.hash_key);
        for part in [account.caller.as_bytes(), account.issuer.as_bytes(), &request.framed()] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }
}

/// Nanoseconds, for six centuries.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER - 1)
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanos)
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher as _;

    use super::*;

    #[test]
    fn a_key_is_hashed_by_its_beginning_and_nothing_else() {
        let hash = |key: Key| ByKey::default().hash_one(key);
        let mut key = [0; 32];
        key[..8].copy_from_slice(&7_u64.to_ne_bytes());
        assert_eq!(hash(key), 7);
        key[7] ^= 1;
        assert_ne!(hash(key), 7, "the last byte of the beginning counts");
        assert_eq!(hash([9; 32]), u64::from_ne_bytes([9; 8]));
    }
}

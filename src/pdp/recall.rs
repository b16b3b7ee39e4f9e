//! The short way: a question that was answered before, byte for byte, by the same caller.
//!
//! What the bytes mean, what the caller may ask, and what the policies say to it are as they were: they depend on the
//! message, the caller's enrolment and the bundle, and on nothing else. What can have changed is looked at each time, and
//! is cheap to look at: the caller's certificate, the token's time, keys and status, whose it is to present, what is
//! revoked, the policies in force. If any of it has changed the question goes the long way, which then says why.
//!
//! An entry is made when a question hits the cache of rulings, and ends when that ruling does. It holds no token: the key is
//! a keyed hash of the message, and the record's template holds what a record may say.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use moka::sync::Cache;

use super::{Begun, Call, DecideError, Decided, Known, Pdp, Refusal, traces, what_became, words};
use crate::audit::{Again, AuditError, CallEntry, Repeated};
use crate::cache::ByKey;
use crate::caller::Caller;
use crate::config::CacheConfig;
use crate::model::decision::{Answer, CacheUse, Ruling};
use crate::model::ids::{DecisionId, PolicyRevision};
use crate::model::question::BatchPosition;
use crate::policy::Bundle;
use crate::telemetry::metrics::{ActionLabel, Answered, Tally};
use crate::telemetry::traces::{End, Ending};
use crate::tls::peer::Peer;
use crate::token::{Standing, VerifiedToken};

/// A keyed 256-bit hash (blake3): nobody outside can make two messages meet.
pub(super) type Key = [u8; 32];

/// What stands for all that a stream was told so far, by whom, in the order in which it was told.
#[derive(Debug, Clone, Copy)]
pub struct Told(Key);

/// What stands for one question, and for all that it refers to.
#[derive(Debug, Clone, Copy)]
pub struct AskedKey(pub(super) Key);

/// Questions already answered.
#[derive(Debug)]
pub struct Recalls {
    /// `None`: switched off, as the cache of rulings is.
    kept: Option<Cache<Key, Arc<Recalled>, ByKey>>,
    hash_key: Key,
}

/// A question that was answered.
#[derive(Debug)]
struct Recalled {
    bundle: Weak<Bundle>,
    /// Whose question it is, if a token says so.
    standing: Option<Standing>,
    ruling: Arc<Ruling>,
    /// In monotonic time.
    until: Duration,
    record: Repeated,
    /// When the record was made: names in it may change with the day.
    recorded: SystemTime,
    level: &'static str,
    action: ActionLabel,
    tally: Tally,
    /// What the caller was told, as its door wrote it.
    said: Arc<ArcSwapOption<Bytes>>,
    reusable: bool,
}

/// What is known of a question that was answered before, once it is sure that the answer holds.
pub(super) struct LookedUp {
    peer: Arc<Peer>,
    recalled: Arc<Recalled>,
    revision: PolicyRevision,
    reusable_for: Duration,
    show_policies: bool,
}

/// What an entry takes beside its template: itself, its key, its place in the cache, and the ruling that it shares.
const ENTRY_BYTES: usize = 1024;

impl Recalls {
    /// As configured; `hash_key` must be random and of this process alone.
    #[must_use]
    pub fn new(config: &CacheConfig, hash_key: Key) -> Self {
        let kept = (config.decisions > 0 && config.question_bytes > 0).then(|| {
            // The lifetime only frees memory; whether an entry may be used is decided by our clock.
            Cache::builder()
                .max_capacity(config.question_bytes)
                .weigher(|_, recalled: &Arc<Recalled>| {
                    // What is said of a ruling takes about what the ruling does.
                    let bytes = recalled.record.bytes() + recalled.ruling.bytes() + ENTRY_BYTES;
                    u32::try_from(bytes).unwrap_or(u32::MAX)
                })
                .time_to_live(config.decision_ttl)
                .build_with_hasher(ByKey::default())
        });
        Self { kept, hash_key }
    }

    /// What stands for this message from this caller; `None` when nothing is kept.
    fn key(&self, peer: &Peer, message: &[u8]) -> Option<Key> {
        let (_, caller) = (self.kept.as_ref()?, peer.name_text());
        let mut hasher = blake3::Hasher::new_keyed(&self.hash_key);
        hasher.update(&(caller.len() as u64).to_be_bytes());
        hasher.update(caller.as_bytes());
        hasher.update(message);
        Some(*hasher.finalize().as_bytes())
    }

    /// What stands for all that the questions of a batch share. Their records say whether there are several.
    pub(super) fn shared_key(&self, peer: Option<&Peer>, common: &[u8], several: bool) -> Option<Key> {
        let (_, caller) = (self.kept.as_ref()?, peer?.name_text());
        let mut hasher = blake3::Hasher::new_keyed(&self.hash_key);
        // No name is so long: nothing of a batch is taken for anything else.
        hasher.update(&u64::MAX.to_be_bytes()).update(&[u8::from(several)]);
        hasher.update(&(caller.len() as u64).to_be_bytes()).update(caller.as_bytes()).update(common);
        Some(*hasher.finalize().as_bytes())
    }

    /// What stands for one question of such a batch.
    pub(super) fn item_key(&self, shared: &Key, item: &[u8]) -> Key {
        let mut hasher = blake3::Hasher::new_keyed(&self.hash_key);
        hasher.update(&(u64::MAX - 1).to_be_bytes()).update(shared).update(item);
        *hasher.finalize().as_bytes()
    }

    /// What stands for a stream that begins with this message.
    pub(super) fn stream_key(&self, peer: Option<&Peer>, opening: &[u8]) -> Option<Told> {
        let (_, caller) = (self.kept.as_ref()?, peer?.name_text());
        let mut hasher = blake3::Hasher::new_keyed(&self.hash_key);
        hasher.update(&(u64::MAX - 2).to_be_bytes());
        hasher.update(&(caller.len() as u64).to_be_bytes()).update(caller.as_bytes()).update(opening);
        Some(Told(*hasher.finalize().as_bytes()))
    }

    /// The same once the stream was told this as well.
    #[must_use]
    pub fn told(&self, before: &Told, message: &[u8]) -> Told {
        let mut hasher = blake3::Hasher::new_keyed(&self.hash_key);
        hasher.update(&(u64::MAX - 3).to_be_bytes()).update(&before.0).update(message);
        Told(*hasher.finalize().as_bytes())
    }

    /// What stands for a question of such a stream, without its number.
    #[must_use]
    pub fn asked(&self, told: &Told, question: &[u8]) -> AskedKey {
        AskedKey(self.item_key(&told.0, question))
    }
}

impl Pdp {
    /// The answer to what was answered before. `None`: it has to go the long way.
    pub(super) async fn recall(
        &self,
        call: &Call,
        message: &[u8],
        begun: &Begun,
        known: &mut Known,
    ) -> Option<Result<Answer, Refusal>> {
        let again = self.find_again(call, begun, known, |peer| {
            // Longer ones are no questions.
            let message = Some(message).filter(|message| message.len() <= self.limits.request_bytes)?;
            self.recalls.key(peer, message)
        })?;
        Some(self.conclude_again(call, begun, &again).await)
    }

    /// What the question behind `key` was answered before, if caller and token still count.
    pub(super) fn find_again(
        &self,
        call: &Call,
        begun: &Begun,
        known: &mut Known,
        key: impl FnOnce(&Peer) -> Option<Key>,
    ) -> Option<LookedUp> {
        let peer = call.peer.as_ref()?;
        if self.revocations.certificate_is_revoked(peer.certificate_sha256()) {
            return None;
        }
        let caller = self.callers.admit(peer, begun.wall).ok()?;
        // Without one the long way tells why, and has it on record.
        self.seat(&caller, call, known).ok()?;
        let key = key(peer)?;
        known.key = Some(key);
        let recalled = self.recalls.kept.as_ref()?.get(&key)?;
        let token = recalled.standing.as_ref().map(Standing::token);
        if let (Some(token), Some(standing)) = (token, &recalled.standing)
            && (!standing.holds(begun.wall)
                || self.bond.hold(&caller, token.facts()).is_err()
                || self.revocations.revoked(token.facts()).is_some())
        {
            return None;
        }
        let has_token = recalled.standing.is_some();
        let again = self.look_again(recalled, peer, &caller, &self.store.current(), begun)?;
        if has_token {
            self.metrics.cache_lookup("tokens", "hit");
        }
        traces::called_by(caller.label());
        Some(again)
    }

    /// What a question of a batch was answered before, by a subject that counts now: `token` was looked at for all of them.
    pub(super) fn look_up(
        &self,
        key: &Key,
        peer: &Arc<Peer>,
        caller: &Caller,
        bundle: &Arc<Bundle>,
        token: Option<&Arc<VerifiedToken>>,
        begun: &Begun,
    ) -> Option<LookedUp> {
        let recalled = self.recalls.kept.as_ref()?.get(key)?;
        let same = match (&recalled.standing, token) {
            (None, None) => true,
            // Another one would be looked at as a whole.
            (Some(standing), Some(token)) => {
                std::ptr::eq(standing.token(), Arc::as_ptr(token)) && standing.holds(begun.wall)
            }
            (None, Some(_)) | (Some(_), None) => false,
        };
        if same { self.look_again(recalled, peer, caller, bundle, begun) } else { None }
    }

    fn look_again(
        &self,
        recalled: Arc<Recalled>,
        peer: &Arc<Peer>,
        caller: &Caller,
        bundle: &Arc<Bundle>,
        begun: &Begun,
    ) -> Option<LookedUp> {
        let current = std::ptr::eq(Arc::as_ptr(bundle), recalled.bundle.as_ptr());
        if !current
            || begun.monotonic >= recalled.until
            || self.redaction.renames_between(recalled.recorded, begun.wall)
        {
            return None;
        }
        let ends = recalled.standing.as_ref().map(|standing| standing.token().expires_at());
        let left = ends.map_or(Duration::MAX, |ends| ends.duration_since(begun.wall).unwrap_or(Duration::ZERO));
        let reusable_for = if recalled.reusable { self.caller_reuse.min(left) } else { Duration::ZERO };
        let revision = bundle.revision().clone();
        Some(LookedUp {
            peer: Arc::clone(peer),
            recalled,
            revision,
            reusable_for,
            show_policies: caller.sees_policies(),
        })
    }

    /// Puts one more call on record, and only then lets its answer leave.
    pub(super) async fn conclude_again(&self, call: &Call, begun: &Begun, again: &LookedUp) -> Result<Answer, Refusal> {
        let shown = call.circumstances.batch_id.is_none();
        let asked = self.clock.monotonic();
        let record = self.record_again(call, begun, again, None, asked);
        let stage = self.stage_since("record", shown, asked);
        let written = self.trail.write_again(&again.recalled.record, &record).await;
        let told = self.clock.monotonic();
        stage.end_at(what_became(&written), told);
        self.count_again(&written);
        self.concluded(begun, again, shown, written, told)
    }

    /// Puts the items of a batch on record that were answered before, together, and only then lets their answers leave. They
    /// come with their places in the batch, of which the id is `batch` and which has so many items.
    pub(super) async fn conclude_all_again(
        &self,
        call: &Call,
        (batch, of): (DecisionId, usize),
        items: Vec<(usize, Begun, LookedUp)>,
    ) -> Vec<(usize, Result<Answer, Refusal>)> {
        let asked = self.clock.monotonic();
        let stage = self.stage_since("record", false, asked);
        let records: Vec<_> = items
            .iter()
            .map(|(index, begun, again)| {
                let place = Some((batch, BatchPosition { index: *index, of }));
                (&again.recalled.record, self.record_again(call, begun, again, place, asked))
            })
            .collect();
        let written = self.trail.write_all_again(&records).await;
        let told = self.clock.monotonic();
        stage.end_each(items.len(), told);
        let concluded = items.iter().zip(written).map(|((index, begun, again), written)| {
            self.count_again(&written);
            (*index, self.concluded(begun, again, false, written, told))
        });
        concluded.collect()
    }

    /// What differs in the record of one more call.
    fn record_again<'c>(
        &self,
        call: &'c Call,
        begun: &Begun,
        again: &'c LookedUp,
        place: Option<(DecisionId, BatchPosition)>,
        now: Duration,
    ) -> Again<'c> {
        Again {
            decision_id: begun.id,
            time: begun.wall,
            duration: now.saturating_sub(begun.monotonic),
            address: again.peer.address(),
            certificate_sha256: again.peer.certificate_sha256_hex(),
            circumstances: &call.circumstances,
            place,
        }
    }

    fn count_again(&self, written: &Result<(), AuditError>) {
        self.metrics.audit_record(what_became(written));
        if written.is_ok() {
            self.metrics.cache_lookup("decisions", CacheUse::Hit.as_str());
        }
    }

    /// The answer whose record was written, or not; `now`, by the monotonic clock.
    fn concluded(
        &self,
        begun: &Begun,
        again: &LookedUp,
        shown: bool,
        written: Result<(), AuditError>,
        now: Duration,
    ) -> Result<Answer, Refusal> {
        let LookedUp { recalled, revision, reusable_for, show_policies, peer: _ } = again;
        let tell = |end: End<'_>| {
            if shown {
                let level = Some(recalled.level);
                traces::ended(&Ending { decision_id: &begun.id, action: &recalled.action, level, end });
            }
        };
        if let Err(error) = written {
            let error = DecideError::Audit(error);
            let (status, reason) = (error.status(), error.reason());
            self.metrics.refused(status, reason);
            tell(End::Refused { status, reason, failed: true });
            return Err(Refusal { id: begun.id, error });
        }
        let ((outcome, denial), cache) = (words(&recalled.ruling), CacheUse::Hit);
        tell(End::Answered { outcome, denial, cache: cache.as_str(), revision: revision.short() });
        recalled.tally.add(now.saturating_sub(begun.monotonic).as_secs_f64());
        Ok(Answer {
            decision_id: begun.id,
            ruling: Arc::clone(&recalled.ruling),
            revision: revision.clone(),
            cache,
            reusable_for: *reusable_for,
            show_policies: *show_policies,
            said: Some(Arc::clone(&recalled.said)),
        })
    }

    /// Keeps what answered the message behind `key`, if it may be given again.
    pub(super) fn remember(
        &self,
        key: Key,
        entry: &CallEntry,
        decided: &Decided,
        action: ActionLabel,
        level: &'static str,
    ) {
        let (Some(kept), Some(until)) = (&self.recalls.kept, decided.kept_until) else { return };
        let standing = match (entry.subject.kind, &decided.token) {
            // Whoever vouches, or asks for itself, has nothing that could run out.
            (Some("asserted" | "caller" | "anonymous"), None) => None,
            (Some("token"), Some(token)) => match self.tokens.standing(token) {
                Some(standing) => Some(standing),
                None => return,
            },
            // An API key, or a token that its issuer has to be asked about.
            _ => return,
        };
        let bundle = self.store.current();
        if *bundle.revision() != decided.revision {
            return;
        }
        let Some(record) = self.trail.template(entry) else { return };
        let (outcome, denial) = words(&decided.ruling);
        let answered = Answered {
            operation: entry.operation,
            action: action.clone(),
            level,
            outcome,
            denial,
            cache: CacheUse::Hit.as_str(),
            seconds: 0.0,
        };
        let recalled = Recalled {
            tally: self.metrics.tally(answered),
            said: Arc::default(),
            bundle: Arc::downgrade(&bundle),
            standing,
            ruling: Arc::clone(&decided.ruling),
            until,
            record,
            recorded: entry.time,
            level,
            action,
            reusable: decided.reusable_for > Duration::ZERO,
        };
        kept.insert(key, Arc::new(recalled));
    }
}

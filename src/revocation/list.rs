//! The list itself. Readers take a snapshot and wait for nobody; whoever adds makes a new one and puts it in its place.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::entry::{Key, Kind, Revocation};
use super::{Fate, Source, Told};
use crate::clock::{SharedClock, unix_seconds};
use crate::token::TokenFacts;

/// Kept so much longer than it says, in seconds: a token passes for up to 60 s after its `exp` (the clock skew), and
/// clocks differ.
const GRACE: u64 = 120;

/// Which entry. Sorted by it, lists are told page by page.
pub type Place = (Kind, Key);

/// What an entry says: the cut-off and the end, the later of each where two met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Term {
    issued_before: u64,
    until: u64,
}

/// Entries joined: of two that are about the same thing the later cut-off and the later end hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Joined(HashMap<Place, Term>);

impl Joined {
    /// Whether everything that `one` says is said already.
    pub(super) fn covers(&self, one: &Revocation) -> bool {
        let known = self.0.get(&(one.kind, one.key));
        known.is_some_and(|known| known.issued_before >= one.issued_before && known.until >= one.until)
    }

    pub(super) fn join(&mut self, one: &Revocation) {
        let term = self.0.entry((one.kind, one.key));
        let term = term.or_insert(Term { issued_before: one.issued_before, until: one.until });
        // The cut-off of one entry never moves back, whoever says so.
        term.issued_before = term.issued_before.max(one.issued_before);
        term.until = term.until.max(one.until);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Revocation> + '_ {
        self.0.iter().map(|(place, term)| revocation(*place, *term))
    }

    pub(super) fn purge(&mut self, now: u64) {
        self.0.retain(|_, term| !is_over(term.until, now));
    }
}

fn revocation((kind, key): Place, term: Term) -> Revocation {
    Revocation { kind, key, issued_before: term.issued_before, until: term.until }
}

pub(super) fn is_over(until: u64, now: u64) -> bool {
    until.saturating_add(GRACE) < now
}

/// One state of the list.
#[derive(Debug, Default)]
struct Snapshot {
    entries: Joined,
    /// Which kinds there are at all, so that a question costs nothing for the others.
    kinds: [bool; Kind::ALL.len()],
}

impl Snapshot {
    fn of(entries: Joined) -> Self {
        let mut kinds = [false; Kind::ALL.len()];
        for (kind, there) in Kind::ALL.iter().zip(&mut kinds) {
            *there = entries.0.keys().any(|(known, _)| known == kind);
        }
        Self { entries, kinds }
    }

    /// Whether something with this key that was issued at `issued` is revoked. The key is made, and the time asked for, only
    /// when it is needed.
    fn has(&self, kind: Kind, key: impl FnOnce() -> Key, issued: u64, now: impl FnOnce() -> u64) -> bool {
        if !self.kinds.get(kind as usize).is_some_and(|there| *there) {
            return false;
        }
        let term = self.entries.0.get(&(kind, key()));
        term.is_some_and(|term| issued < term.issued_before && !is_over(term.until, now()))
    }
}

/// Why a token does not count any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hit {
    /// Its id is revoked.
    Token,
    /// It was issued before its subject's cut-off.
    Subject,
    /// Its session is revoked.
    Session,
}

impl Hit {
    /// The word for the record.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Token => "REVOKED_TOKEN",
            Self::Subject => "REVOKED_SUBJECT",
            Self::Session => "REVOKED_SESSION",
        }
    }
}

/// There is no room for another entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{limit} revocations are in force, and `limits.revocations` allows no more")]
pub struct Full {
    /// The limit.
    pub limit: usize,
}

/// Everything that is revoked.
pub struct Revocations {
    current: ArcSwap<Snapshot>,
    changing: Mutex<Changing>,
    limit: usize,
    clock: SharedClock,
    told: Told,
    /// Counts the changes, for whoever passes them on.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Changing {
    /// Places that [`Room`]s hold for entries that are still to come.
    held: usize,
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revocations").field("entries", &self.len()).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Revocations {
    /// An empty list of at most `limit` entries. `told` hears what becomes of those that come.
    #[must_use]
    pub fn new(limit: usize, clock: SharedClock, told: Told) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::default(),
            changing: Mutex::default(),
            limit,
            clock,
            told,
            version: watch::Sender::new(0),
        })
    }

    /// Why a verified token does not count any more, if so. To be asked on every question.
    ///
    /// A token that was issued in the very second of its subject's cut-off still counts: RFC 7519 dates are seconds.
    #[must_use]
    pub fn revoked(&self, token: &TokenFacts) -> Option<Hit> {
        let list = self.current.load();
        let (now, issued) = (|| self.now(), unix_seconds(token.issued_at));
        let by_hash = |kind, id: &Option<String>| {
            id.as_ref().is_some_and(|id| list.has(kind, || Key::of_sha256(kind, &token.issuer, id), issued, now))
        };
        let subject = || Key::of(Kind::Subject, &token.issuer, &token.subject);
        if by_hash(Kind::Token, &token.id_sha256) {
            return Some(Hit::Token);
        }
        if list.has(Kind::Subject, subject, issued, now) {
            return Some(Hit::Subject);
        }
        by_hash(Kind::Session, &token.session_sha256).then_some(Hit::Session)
    }

    /// Whether a certificate with this SHA-256 is revoked. To be asked on every call.
    #[must_use]
    pub fn certificate_is_revoked(&self, sha256: &[u8; 32]) -> bool {
        self.current.load().has(Kind::Certificate, || Key::of_certificate(sha256), 0, || self.now())
    }

    /// Takes entries that came from `source`, as many as there is room for. What is known or over is passed by.
    pub fn take(&self, source: Source, entries: &[Revocation]) {
        let now = self.now();
        let (mut taken, mut full, mut purged) = (0, 0, false);
        {
            let changing = self.changing.lock();
            let mut list: Option<Joined> = None;
            for one in entries {
                let current = self.current.load();
                let entries = list.as_ref().unwrap_or(&current.entries);
                if is_over(one.until, now) || entries.covers(one) {
                    continue;
                }
                let list = list.get_or_insert_with(|| current.entries.clone());
                if !purged && !self.fits(list, one, changing.held) {
                    // Once is enough: nothing that comes here is over.
                    list.purge(now);
                    purged = true;
                }
                if self.fits(list, one, changing.held) {
                    list.join(one);
                    taken += 1;
                } else {
                    full += 1;
                }
            }
            if let Some(list) = list.filter(|_| taken > 0 || purged) {
                self.put(list);
            }
        }
        self.tell(source, taken, full);
    }

    /// Keeps a place for `one`, so that there is one when it takes effect.
    ///
    /// # Errors
    /// When there is none.
    pub fn make_room(self: &Arc<Self>, one: Revocation) -> Result<Room, Full> {
        let mut changing = self.changing.lock();
        let current = self.current.load();
        let mut fits = self.fits(&current.entries, &one, changing.held);
        if !fits {
            let mut list = current.entries.clone();
            list.purge(self.now());
            fits = self.fits(&list, &one, changing.held);
            if list.len() < current.entries.len() {
                self.put(list);
            }
        }
        if !fits {
            drop(changing);
            self.tell(Source::Admin, 0, 1);
            return Err(Full { limit: self.limit });
        }
        changing.held += 1;
        Ok(Room { list: Arc::clone(self), one })
    }

    /// Lets go what is over.
    pub fn purge(&self) {
        let now = self.now();
        let _changing = self.changing.lock();
        let current = self.current.load();
        if current.entries.iter().any(|one| is_over(one.until, now)) {
            let mut list = current.entries.clone();
            list.purge(now);
            self.put(list);
        }
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.current.load().entries.len()
    }

    /// Whether nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `size` entries after `after`, in order, and whether there are more.
    #[must_use]
    pub fn page(&self, after: Option<Place>, size: usize) -> (Vec<Revocation>, bool) {
        let list = self.current.load();
        let after = list.entries.iter().filter(|one| after.is_none_or(|after| (one.kind, one.key) > after));
        let mut rest: Vec<Revocation> = after.collect();
        let more = rest.len() > size;
        if more {
            // The first `size` come to the front, unsorted, without sorting all the others.
            rest.select_nth_unstable_by_key(size, |one| (one.kind, one.key));
            rest.truncate(size);
        }
        rest.sort_unstable_by_key(|one| (one.kind, one.key));
        (rest, more)
    }

    /// What is in force and not in `known`.
    pub(super) fn beyond(&self, known: &Joined) -> Vec<Revocation> {
        let now = self.now();
        let list = self.current.load();
        list.entries.iter().filter(|one| !is_over(one.until, now) && !known.covers(one)).collect()
    }

    /// Changes with every change of the list.
    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn tell_malformed(&self, source: Source, count: usize) {
        (self.told)(source, Fate::Malformed, count);
    }

    pub(super) fn now(&self) -> u64 {
        unix_seconds(self.clock.now())
    }

    pub(super) fn clock(&self) -> &SharedClock {
        &self.clock
    }

    fn fits(&self, list: &Joined, one: &Revocation, held: usize) -> bool {
        list.0.contains_key(&(one.kind, one.key)) || list.len().saturating_add(held) < self.limit
    }

    /// To be called with `changing` locked.
    fn put(&self, list: Joined) {
        self.current.store(Arc::new(Snapshot::of(list)));
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    fn tell(&self, source: Source, taken: usize, full: usize) {
        for (fate, count) in [(Fate::Taken, taken), (Fate::Full, full)] {
            if count > 0 {
                (self.told)(source, fate, count);
            }
        }
        if full > 0 {
            let (source, limit) = (source.as_str(), self.limit);
            tracing::error!(source, refused = full, limit, "revocations were refused: raise `limits.revocations`");
        }
    }
}

/// A place on the list for one entry. Given back when dropped.
#[derive(Debug)]
pub struct Room {
    list: Arc<Revocations>,
    one: Revocation,
}

impl Room {
    /// The entry takes effect: whoever asks from now on is told. Gives what is in force, which may say more than the
    /// entry did.
    #[must_use]
    pub fn fill(self) -> Revocation {
        let one = self.one;
        let changed = {
            let _changing = self.list.changing.lock();
            let current = self.list.current.load();
            let changed = !current.entries.covers(&one);
            if changed {
                let mut list = current.entries.clone();
                list.join(&one);
                self.list.put(list);
            }
            changed
        };
        self.list.tell(Source::Admin, usize::from(changed), 0);
        let current = self.list.current.load();
        current.entries.0.get(&(one.kind, one.key)).map_or(one, |term| revocation((one.kind, one.key), *term))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut changing = self.list.changing.lock();
        changing.held = changing.held.saturating_sub(1);
    }
}

//! Whether the chain of a peer still holds, asked on every call of its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;

use super::{IdentityError, validity};
use crate::clock::unix_seconds;
use crate::tls::server::ServerIdentity;

/// How long the last verification counts when nothing is known to have changed, in seconds.
const VERIFIED_FOR: u64 = 60;

/// The chain, and what was found when it was verified last.
pub(super) struct Standing {
    chain: Vec<CertificateDer<'static>>,
    identity: Arc<ServerIdentity>,
    /// One of [`Standing::VERDICTS`]. Written before the generation.
    verdict: AtomicU8,
    /// By which generation of the identity it was verified.
    generation: AtomicU64,
    /// Until when that counts, in seconds since 1970.
    due: AtomicU64,
    /// One verification at a time, so that an older one can't overtake a newer.
    verifying: Mutex<()>,
}

/// The rest is long, and is everybody's.
impl std::fmt::Debug for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Standing").field("verdict", &self.verdict).finish_non_exhaustive()
    }
}

impl Standing {
    const VERDICTS: [Result<(), IdentityError>; 3] =
        [Ok(()), Err(IdentityError::Revoked), Err(IdentityError::NotTrusted)];

    /// Of a chain that was verified by `generation` of `identity`. For how long that counts is found with the first call.
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, identity: Arc<ServerIdentity>, generation: u64) -> Self {
        Self {
            chain,
            identity,
            verdict: AtomicU8::new(0),
            generation: AtomicU64::new(generation),
            due: AtomicU64::new(0),
            verifying: Mutex::new(()),
        }
    }

    /// Two comparisons while nothing changed.
    pub(super) fn at(&self, now: SystemTime) -> Result<(), IdentityError> {
        if let Some(verdict) = self.known(unix_seconds(now)) {
            return verdict;
        }
        let _one_at_a_time = self.verifying.lock();
        if let Some(verdict) = self.known(unix_seconds(now)) {
            return verdict;
        }
        // Taken first: should something change while the chain is verified, it is verified again.
        let generation = self.identity.generation();
        let verdict: u8 = match self.identity.stands(&self.chain, now) {
            Ok(()) => 0,
            Err(webpki::Error::CertRevoked) => 1,
            Err(_) => 2,
        };
        self.verdict.store(verdict, Ordering::Relaxed);
        // Whoever sees the new term sees the new verdict.
        self.due.store(self.due_after(now), Ordering::Release);
        self.generation.store(generation, Ordering::Release);
        Self::verdict(verdict)
    }

    /// What was found last, if it still counts.
    fn known(&self, now: u64) -> Option<Result<(), IdentityError>> {
        let verified_by = self.generation.load(Ordering::Acquire);
        let left = self.due.load(Ordering::Acquire).checked_sub(now)?;
        // More than that is left only if the clock was set back.
        let counts = verified_by == self.identity.generation() && (1..=VERIFIED_FOR).contains(&left);
        counts.then(|| Self::verdict(self.verdict.load(Ordering::Relaxed)))
    }

    fn verdict(number: u8) -> Result<(), IdentityError> {
        Self::VERDICTS.get(usize::from(number)).copied().unwrap_or(Err(IdentityError::NotTrusted))
    }

    /// A minute from now, or as soon as a certificate of the chain or a list runs out: a certificate after its last
    /// second, a list when the next is due.
    fn due_after(&self, now: SystemTime) -> u64 {
        let ends = self.chain.iter().filter_map(validity).map(|(_, end)| unix_seconds(end).saturating_add(1));
        let ends = ends.chain(self.identity.next_list_end(now).map(unix_seconds));
        let now = unix_seconds(now);
        let next = ends.filter(|end| *end > now).min().unwrap_or(u64::MAX);
        next.min(now.saturating_add(VERIFIED_FOR))
    }
}

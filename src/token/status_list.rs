//! Token status lists: the issuer says of each of its tokens, by a number, whether it still counts.
//!
//! One task a list does all the fetching, so there is never more than one fetch under way, and none waits for it.
//! Only the lists of the configuration are ever fetched, whatever a token says. A status that can't be told is no
//! status: the token is denied.
//!
//! Follows draft-ietf-oauth-status-list-21.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::claims::Claims;
use super::error::{SetupProblem, TokenError};
use super::fetch::{FetchError, Fetcher};
use super::json::Json;
use super::ring::KeyRing;
use super::{Heard, News};
use crate::clock::{SharedClock, unix_seconds};
use crate::config::{Limits, StatusLists, TrustedIssuer};

mod document;

use document::{Document, DocumentError};

/// What the issuers send (draft section 8.1); other formats exist and are not asked for.
const MEDIA_TYPE: &str = "application/statuslist+jwt";

/// The longest pause between two attempts while they fail.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// How often it is looked whether the issuer's first keys are there.
const KEYS_LOOKED_FOR: Duration = Duration::from_millis(100);

/// What becomes of an issuer's tokens that point to a status list.
#[derive(Debug)]
pub(super) enum Statuses {
    /// Nothing is looked at.
    Ignored,
    /// One of these lists has to say that the token counts.
    Listed(Vec<Arc<StatusList>>),
}

/// Where a token's status stands.
#[derive(Debug, Clone)]
pub(super) struct StatusReference {
    list: Arc<StatusList>,
    index: u64,
}

/// One list over time.
#[derive(Debug)]
pub(super) struct StatusList {
    /// As the configuration, the tokens and the list itself spell it.
    uri: String,
    issuer: String,
    fetcher: Fetcher,
    current: ArcSwapOption<Held>,
    schedule: Mutex<Schedule>,
    wished_for: Notify,
    limits: Limits,
    clock: SharedClock,
}

/// A list, and since when (monotonic) it is here.
#[derive(Debug)]
struct Held {
    document: Document,
    fetched_at: Duration,
}

#[derive(Debug, Default)]
struct Schedule {
    last_attempt: Option<Duration>,
    failures: u32,
}

/// Why the list stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RefreshError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Somebody, a cache perhaps, gives out a list from before: what it revoked since would count again.
    #[error("the list is older than the one from before")]
    Older,
}

impl Statuses {
    /// Takes an issuer's lists; nothing is fetched yet.
    pub(super) fn open(issuer: &TrustedIssuer, limits: &Limits, clock: &SharedClock) -> Result<Self, SetupProblem> {
        let StatusLists::Only { lists, ca, allow_private_addresses } = &issuer.status_lists else {
            return Ok(Self::Ignored);
        };
        let opened = lists.iter().map(|list| {
            let fetcher = Fetcher::new(
                &list.url,
                ca.as_deref(),
                *allow_private_addresses,
                limits.status_list_bytes,
                limits.status_list_timeout,
            )?;
            Ok(Arc::new(StatusList {
                uri: list.text.clone(),
                issuer: issuer.issuer.clone(),
                fetcher,
                current: ArcSwapOption::empty(),
                schedule: Mutex::default(),
                wished_for: Notify::new(),
                limits: limits.clone(),
                clock: Arc::clone(clock),
            }))
        });
        opened.collect::<Result<_, _>>().map(Self::Listed)
    }

    /// The lists that have to be kept fresh.
    pub(super) fn lists(&self) -> &[Arc<StatusList>] {
        match self {
            Self::Ignored => &[],
            Self::Listed(lists) => lists,
        }
    }

    /// Where the status of the token with these claims stands; nowhere when it has none (draft section 6.1).
    ///
    /// # Errors
    /// [`TokenError::StatusList`] when it has one that can't be checked: malformed, of another kind, or in a list that is
    /// not in the configuration.
    pub(super) fn reference(&self, claims: &Claims) -> Result<Option<StatusReference>, TokenError> {
        let (Self::Listed(lists), Some(status)) = (self, claims.status()) else { return Ok(None) };
        let Json::Object(status) = status else { return Err(TokenError::StatusList) };
        let Some(Json::Object(entry)) = status.get("status_list") else { return Err(TokenError::StatusList) };
        let (Some(Json::Integer(index)), Some(Json::Text(uri))) = (entry.get("idx"), entry.get("uri")) else {
            return Err(TokenError::StatusList);
        };
        let index = u64::try_from(*index).map_err(|_| TokenError::StatusList)?;
        let list = lists.iter().find(|list| list.uri == *uri).ok_or(TokenError::StatusList)?;
        Ok(Some(StatusReference { list: Arc::clone(list), index }))
    }
}

impl StatusReference {
    /// Whether the token counts at `now` (wall time). Asked on every question, whatever is cached.
    ///
    /// # Errors
    /// [`TokenError::StatusRevoked`] when it is invalid or suspended, [`TokenError::StatusUnknown`] when nobody can say,
    /// [`TokenError::StatusList`] when the list has no such place or the status no known meaning.
    pub(super) fn check(&self, now: SystemTime) -> Result<(), TokenError> {
        let held = self.list.believed(now).ok_or(TokenError::StatusUnknown)?;
        match held.document.status(self.index).ok_or(TokenError::StatusList)? {
            // Draft section 7.1.
            0x00 => Ok(()),
            0x01 | 0x02 => Err(TokenError::StatusRevoked),
            _ => Err(TokenError::StatusList),
        }
    }
}

impl StatusList {
    /// The list, while it lasts: until its own `exp`, or if it has none as long as the limit says.
    fn believed(&self, now: SystemTime) -> Option<Arc<Held>> {
        let held = self.current.load_full();
        let age = held.as_ref().map(|held| self.clock.monotonic().saturating_sub(held.fetched_at));
        let believed = held.filter(|held| match (held.document.expires_at, age) {
            (Some(end), _) => unix_seconds(now) < end,
            (None, age) => age.is_some_and(|age| age <= self.limits.status_list_max_age),
        });
        // Past what the list says of itself it is still believed, but a newer one is due.
        let due = believed.as_ref().is_none_or(|held| age.is_none_or(|age| age >= self.interval(held)));
        if due && self.may_attempt() {
            self.wished_for.notify_one();
        }
        believed
    }

    /// How long a list is kept before the next is fetched: its `ttl`, or what the configuration says. A `ttl` of years, or
    /// one in milliseconds, would be the end of all news.
    fn interval(&self, held: &Held) -> Duration {
        let told = held.document.ttl.map(Duration::from_secs);
        let (floor, longest) = (self.limits.status_list_refresh_floor, self.limits.status_list_max_age);
        told.unwrap_or(self.limits.status_list_refresh_interval).min(longest).max(floor)
    }

    fn may_attempt(&self) -> bool {
        let now = self.clock.monotonic();
        let last = self.schedule.lock().last_attempt;
        last.is_none_or(|last| now.saturating_sub(last) >= self.limits.status_list_refresh_floor)
    }

    /// Fetches when there is a cause, when it is time, and again after a failure, until told to stop. `issuer`'s keys
    /// vouch for the list.
    pub(super) async fn keep_fresh(
        &self,
        issuer: &TrustedIssuer,
        keys: &KeyRing,
        cancel: CancellationToken,
        heard: &Heard,
    ) {
        // Without keys there is nobody to vouch for it, and the attempt would be wasted until the floor has passed.
        while keys.generation().is_none() {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(KEYS_LOOKED_FOR) => {}
            }
        }
        loop {
            if self.may_attempt() {
                let well = self.refresh(issuer, keys).await;
                heard(News::StatusList { issuer: &self.issuer, well });
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.wished_for.notified() => {}
                () = tokio::time::sleep(self.pause()) => {}
            }
        }
    }

    /// One attempt; whether it went well. Whatever comes of it, the last good list stays until it ends.
    pub(super) async fn refresh(&self, issuer: &TrustedIssuer, keys: &KeyRing) -> bool {
        self.schedule.lock().last_attempt = Some(self.clock.monotonic());
        let outcome = self.attempt(issuer, keys).await;
        let mut schedule = self.schedule.lock();
        match outcome {
            Ok(()) => schedule.failures = 0,
            Err(error) => {
                schedule.failures = schedule.failures.saturating_add(1);
                tracing::warn!(
                    issuer = %self.issuer, list = %self.uri, reason = %error, failures = schedule.failures,
                    "a status list could not be refreshed"
                );
            }
        }
        schedule.failures == 0
    }

    /// Fetches the list and puts it in force.
    pub(super) async fn attempt(&self, issuer: &TrustedIssuer, keys: &KeyRing) -> Result<(), RefreshError> {
        let bytes = self.fetcher.fetch_as(MEDIA_TYPE).await?;
        self.take(bytes, issuer, keys)
    }

    /// Its address.
    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    fn take(&self, bytes: Vec<u8>, issuer: &TrustedIssuer, keys: &KeyRing) -> Result<(), RefreshError> {
        let document = Document::read(bytes, &self.uri, issuer, keys, &self.limits, self.clock.now())?;
        let before = self.current.load_full();
        if before.is_some_and(|before| before.document.issued_at > document.issued_at) {
            return Err(RefreshError::Older);
        }
        self.current.store(Some(Arc::new(Held { document, fetched_at: self.clock.monotonic() })));
        Ok(())
    }

    /// How long until the next attempt without a cause. Jitter only lengthens it, so the floor holds.
    fn pause(&self) -> Duration {
        let failures = self.schedule.lock().failures;
        let pause = match (failures, self.current.load_full()) {
            (0, Some(held)) => self.interval(&held),
            (0, None) => self.limits.status_list_refresh_interval,
            (failures, _) => Duration::from_secs(1 << failures.min(6)).min(LONGEST_BACKOFF),
        };
        let mut random = [0; 1];
        // Without randomness there is no jitter, and nothing worse.
        let jitter = aws_lc_rs::rand::fill(&mut random).map_or(0, |()| u32::from(random[0]));
        let pause = pause.max(self.limits.status_list_refresh_floor);
        pause + pause / 4 * jitter / 256
    }
}

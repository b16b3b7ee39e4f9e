//! Many questions over one call, each decided as if it were asked alone.
//!
//! A stream is a seat and a subject, and decides nothing: whether the caller is still admitted, whether its token still
//! counts, and which policies are in force is looked at for every question.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::recall::{AskedKey, LookedUp, Told};
use super::{Begun, Call, DecideError, Known, Pdp, Refusal};
use crate::caller::Caller;
use crate::model::decision::Answer;
use crate::model::entity::EntityUid;
use crate::model::question::{Question, Subject};
use crate::policy::Misfit;
use crate::secret::SecretString;
use crate::telemetry::metrics::Present;

/// When to come back for a stream: they last, so there is no hurry.
const LATER: Duration = Duration::from_secs(1);

/// The streams that are open, so that they are not too many: each remembers things.
pub struct OpenStreams {
    most: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    all: usize,
    /// By the caller's label. Who has none has no entry.
    of: HashMap<String, usize>,
}

/// A stream's place among those that are open, until it is dropped.
pub struct Seat {
    caller: String,
    open: Arc<Mutex<Open>>,
}

/// A question of a stream that was looked at and has no answer yet.
pub struct Coming {
    begun: Begun,
    known: Known,
    again: Option<LookedUp>,
    _present: Present,
}

impl Coming {
    /// Whether it was answered before, so that it need not be read.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.again.is_some()
    }
}

/// Whom a token makes: what a newer one must make as well.
#[derive(Debug, PartialEq, Eq)]
pub struct Holder {
    issuer: String,
    principal: EntityUid,
}

impl OpenStreams {
    /// So many of all callers together; each has its share of them.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, open: Arc::default() }
    }

    fn take(&self, caller: &Caller) -> Result<Seat, DecideError> {
        let mut open = self.open.lock();
        if open.all >= self.most {
            return Err(DecideError::Overloaded { retry_after: LATER });
        }
        let has = open.of.get(caller.label()).copied().unwrap_or(0);
        if has >= caller.share_of(self.most) {
            return Err(DecideError::OverShare { retry_after: LATER });
        }
        open.all += 1;
        open.of.insert(caller.label().to_owned(), has + 1);
        Ok(Seat { caller: caller.label().to_owned(), open: Arc::clone(&self.open) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        open.all = open.all.saturating_sub(1);
        let left = open.of.get(&self.caller).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            open.of.remove(&self.caller);
        } else if let Some(count) = open.of.get_mut(&self.caller) {
            *count = left;
        }
    }
}

impl Pdp {
    /// Lets a stream begin, before anything of it is read. What is asked over it is looked at on its own.
    ///
    /// # Errors
    /// When the caller is not admitted, or has its share of streams, or there are too many. Recorded.
    pub async fn open_stream(&self, call: &Call) -> Result<Seat, Refusal> {
        let admitted = self.admit(call, &mut Known::default());
        match admitted.and_then(|caller| self.streams.take(&caller)) {
            Ok(seat) => Ok(seat),
            Err(error) => Err(self.record_refused(call, error).await),
        }
    }

    /// What stands for a stream that `call` begins with this message. `None`: nothing is known by its bytes.
    #[must_use]
    pub fn stream_key(&self, call: &Call, opening: &[u8]) -> Option<Told> {
        self.recalls.stream_key(call.peer.as_deref(), opening)
    }

    /// Looks at one question of a stream when it comes. With a key it is looked for among those that were answered before.
    pub fn look_in_stream(&self, call: &Call, key: Option<AskedKey>) -> Coming {
        let (begun, present) = (self.begin(), self.metrics.inflight());
        let mut known = Known { of_batch: true, ..Known::default() };
        let again = key.and_then(|AskedKey(key)| self.find_again(call, &begun, &mut known, |_| Some(key)));
        Coming { begun, known, again, _present: present }
    }

    /// Answers one question of a stream, as [`check`](Self::check) would. `call` has this question's own deadline. `asked`
    /// need not be given where [`Coming::is_known`].
    ///
    /// # Errors
    /// Why there is no decision; recorded like an answer.
    pub async fn check_in_stream(
        &self,
        call: &Call,
        coming: Coming,
        asked: Result<Option<(Subject, Question)>, Misfit>,
    ) -> Result<Answer, Refusal> {
        let Coming { begun, known, again, _present } = coming;
        if let Some(again) = again {
            return self.conclude_again(call, &begun, &again).await;
        }
        let asked = || asked.map_err(DecideError::Invalid)?.ok_or(DecideError::Unreadable);
        Box::pin(self.check_anew(call, &begun, known, asked)).await
    }

    /// Whom `token` makes now, if it is good. Says nothing of whether it is this caller's to present: that is asked with
    /// every question.
    pub async fn holder(&self, token: &SecretString) -> Option<Holder> {
        let token = self.tokens.check(token, self.clock.now()).await.ok()?;
        Some(Holder { issuer: token.facts().issuer.clone(), principal: token.principal().uid.clone() })
    }

    /// A name for one stream, by which its records are found together.
    #[must_use]
    pub fn name_stream(&self) -> crate::model::ids::DecisionId {
        self.begin().id
    }
}

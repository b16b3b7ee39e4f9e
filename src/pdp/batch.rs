//! Many questions of one subject: what they share is worked out once, many are shared out to several threads, and all have
//! their records before the answer leaves.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::recall::{Key, LookedUp};
use super::turn::Turn;
use super::{Begun, Call, DecideError, Decided, Known, Pdp, ReadItem, Refusal, Shared, Who, asserted};
use crate::audit::{CallerFacts, Place};
use crate::caller::Caller;
use crate::model::decision::Answer;
use crate::model::entity::{RawEntity, RawValue};
use crate::model::question::{BatchPosition, Circumstances};
use crate::policy::{Bundle, Misfit};
use crate::telemetry::traces;
use crate::tls::peer::Peer;

/// Items that are worth waking a thread for.
const WORTH: usize = 16;

/// An item that has to be read and decided.
struct Unknown {
    /// Its place in the batch.
    index: usize,
    item: Bytes,
    key: Option<Key>,
}

/// The places of items that another thread looks at, and what it found.
type Part = (Vec<usize>, oneshot::Receiver<Vec<(usize, Looked)>>);

/// A batch whose items may be looked at.
struct Opened {
    caller: Caller,
    who: Who,
    peer: Option<Arc<Peer>>,
    items: Vec<Bytes>,
    read: ReadItem,
    entities: Arc<[RawEntity]>,
    /// What they share, from this caller: [`recall`] knows them by it.
    key: Option<Key>,
    /// For every item, so that a batch is of one revision.
    bundle: Arc<Bundle>,
}

/// What is the same for every item.
struct Batch {
    caller: Caller,
    who: Who,
    bundle: Arc<Bundle>,
    /// What every record says.
    facts: CallerFacts,
    vouched: Vec<String>,
    common: Arc<Common>,
    read: ReadItem,
    peer: Option<Arc<Peer>>,
    key: Option<Key>,
    /// By the monotonic clock.
    due: Duration,
}

/// What is worked out once and not for every item.
pub(super) struct Common {
    /// Whether the caller serves every tenant that the principal belongs to.
    pub(super) serves_principal: bool,
    /// What records show of the principal.
    pub(super) kept: Vec<(String, RawValue)>,
}

/// An item before it has its record.
enum Looked {
    /// It was looked at, and may be remembered under its key.
    At(Begun, Box<Known>, Result<Decided, DecideError>),
    /// It was answered before.
    Up(Begun, LookedUp),
}

impl Pdp {
    /// Answers many questions of one subject, each on its own; one bad item spoils no other.
    ///
    /// # Errors
    /// Why there is no decision on any of them.
    pub async fn check_batch(
        self: &Arc<Self>,
        call: &Call,
        asked: impl FnOnce() -> Result<Shared, DecideError> + Send,
    ) -> Result<Vec<Result<Answer, Refusal>>, Refusal> {
        let begun = self.begin();
        let _present = self.metrics.inflight();
        let mut known = Known::default();
        let deadline = self.left(call);
        let opened = self.within(deadline, self.open_batch(call, asked, &mut known)).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let refused = self.conclude(call, &begun, known, call.circumstances.clone(), Err(error)).await;
                return match refused {
                    Err(refusal) => Err(refusal),
                    // Nothing but an error was handed over.
                    Ok(answer) => Err(Refusal { id: answer.decision_id, error: DecideError::Panicked }),
                };
            }
        };
        let of = opened.items.len();
        traces::batch_of(of);
        let deciding = traces::stage_span("items");
        // Decisions don't wait, so the deadline is looked at between them.
        let due = begun.monotonic.saturating_add(deadline);
        let mut turn = Turn::take(&self.clock, due).await;
        let looked = self.look_at_all(opened, &known, due, &mut turn).await;
        drop(deciding);
        let recording = traces::stage_span("record");
        // Records are written together, so that a batch waits for the sink once and not once an item.
        let batch_id = begun.id;
        let company = self.trail.company();
        let (mut answers, mut waiting, mut again) = (Vec::with_capacity(of), Vec::new(), Vec::new());
        for (index, looked) in looked.into_iter().enumerate() {
            let (begun, known, decided) = match looked {
                Looked::At(begun, known, decided) => (begun, known, decided),
                Looked::Up(begun, found) => {
                    again.push((index, begun, found));
                    continue;
                }
            };
            let known = Known { company: Some(company.clone()), ..*known };
            let mut concluding = Box::pin(async move {
                let (batch, batch_id) = (Some(BatchPosition { index, of }), Some(batch_id));
                let circumstances = Circumstances { batch, batch_id, ..call.circumstances.clone() };
                (index, self.conclude(call, &begun, known, circumstances, decided).await)
            });
            match futures_util::poll!(concluding.as_mut()) {
                Poll::Ready(answer) => answers.push(answer),
                Poll::Pending => waiting.push(concluding),
            }
            turn.go_on().await;
        }
        drop(turn);
        company.close();
        let waiting = futures_util::future::join_all(waiting);
        let (late, known) = tokio::join!(waiting, self.conclude_all_again(call, (batch_id, of), again));
        answers.extend(late);
        answers.extend(known);
        answers.sort_unstable_by_key(|(index, _)| *index);
        drop(recording);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Admission, entitlement and the subject, for a batch.
    async fn open_batch(
        &self,
        call: &Call,
        asked: impl FnOnce() -> Result<Shared, DecideError> + Send,
        known: &mut Known,
    ) -> Result<Opened, DecideError> {
        let caller = self.admit(call, known)?;
        // Until the last item is answered.
        self.seat(&caller, call, known)?;
        let Shared { subject, common, entities, items, read } = asked()?;
        if let Some(Ok(seat)) = &mut known.seat {
            seat.holds(items.len());
        }
        known.subject.kind = Some(subject.kind());
        if caller.batch_items().is_some_and(|most| items.len() > most) {
            let misfit =
                Misfit { at: "items".to_owned(), rule: "are more than `callers[].batch_items` of this caller" };
            return Err(DecideError::Invalid(misfit));
        }
        let bundle = self.store.current();
        known.vouched = asserted::of_subject(&subject, &bundle);
        // A bad token denies every item, each with a record of its own.
        let who = self.identify(&caller, subject, true).await?;
        let key = self.recalls.shared_key(call.peer.as_deref(), &common, items.len() > 1);
        Ok(Opened { caller, who, peer: call.peer.clone(), items, read, entities, key, bundle })
    }

    /// Looks at every item, in order; those past `due` are not looked at any more. `known` is what is known of the call.
    async fn look_at_all(
        self: &Arc<Self>,
        opened: Opened,
        known: &Known,
        due: Duration,
        turn: &mut Turn,
    ) -> Vec<Looked> {
        let Opened { caller, who, peer, items, read, entities, key, bundle } = opened;
        let mut vouched = known.vouched.clone();
        // Every item has the same entities.
        vouched.extend(asserted::of_entities(&entities, &bundle));
        let principal = &who.data.principal;
        let common = Common {
            serves_principal: who.refusal.is_some() || self.serves_principal(&caller, principal, &bundle),
            kept: match who.refusal {
                Some(_) => Vec::new(),
                None => {
                    let place = Place::Principal(&principal.uid.entity_type);
                    self.redaction.kept(place, &principal.attributes, self.clock.now())
                }
            },
        };
        let facts = known.caller.clone();
        let batch =
            Arc::new(Batch { caller, who, bundle, facts, vouched, common: Arc::new(common), read, peer, key, due });

        // What was answered before takes less time than to wake a thread.
        let mut unknown = Vec::new();
        let items = items.into_iter().enumerate().collect();
        let known = in_turns(turn, items, |(index, item): (usize, Bytes)| {
            let begun = self.begin();
            let key = batch.key.as_ref().map(|shared| self.recalls.item_key(shared, &item));
            let again = key.as_ref().and_then(|key| self.look_up_item(&batch, key, &begun));
            if again.is_none() {
                unknown.push(Unknown { index, item, key });
            }
            again.map(|again| (index, Looked::Up(begun, again)))
        });
        let mut looked: Vec<_> = known.await.into_iter().flatten().collect();
        self.look_at_unknown(&batch, unknown, turn, &mut looked).await;
        looked.sort_unstable_by_key(|(index, _)| *index);
        looked.into_iter().map(|(_, looked)| looked).collect()
    }

    /// Looks at items on as many threads as are free.
    async fn look_at_unknown(
        self: &Arc<Self>,
        batch: &Arc<Batch>,
        mut items: Vec<Unknown>,
        turn: &mut Turn,
        looked: &mut Vec<(usize, Looked)>,
    ) {
        let parts = (items.len() / WORTH).clamp(1, self.crew.threads().saturating_add(1));
        let size = items.len().div_ceil(parts).max(1);
        let mut elsewhere = Vec::new();
        while items.len() > size {
            let part = items.split_off(items.len() - size);
            match self.share_out(batch, part) {
                Ok(part) => elsewhere.push(part),
                Err(part) => {
                    items.extend(part);
                    break;
                }
            }
        }
        looked.extend(in_turns(turn, items, |item| (item.index, self.look_at(batch, &item))).await);
        if !elsewhere.is_empty() {
            turn.leave();
        }
        for (indices, coming) in elsewhere {
            match coming.await {
                Ok(part) => looked.extend(part),
                Err(_) => looked.extend(indices.into_iter().map(|index| (index, self.spoilt(batch)))),
            }
        }
        turn.come_back().await;
    }

    /// Hands a part to another thread, or gives it back.
    fn share_out(self: &Arc<Self>, batch: &Arc<Batch>, part: Vec<Unknown>) -> Result<Part, Vec<Unknown>> {
        let indices = part.iter().map(|item| item.index).collect();
        let (tell, coming) = oneshot::channel();
        let part = Arc::new(Mutex::new(part));
        let (pdp, batch, taken) = (Arc::clone(self), Arc::clone(batch), Arc::clone(&part));
        let is_taken = self.crew.take(move || {
            let part = std::mem::take(&mut *taken.lock());
            // Nobody waits any more if the call has ended.
            let _ = tell.send(part.into_iter().map(|item| (item.index, pdp.look_at(&batch, &item))).collect());
        });
        if is_taken { Ok((indices, coming)) } else { Err(std::mem::take(&mut *part.lock())) }
    }

    /// What an item was answered before, if all of its batch still counts and there is time.
    fn look_up_item(&self, batch: &Batch, key: &Key, begun: &Begun) -> Option<LookedUp> {
        let is_in_time = begun.monotonic < batch.due && batch.who.refusal.is_none();
        let peer = batch.peer.as_ref().filter(|_| is_in_time)?;
        self.look_up(key, peer, &batch.caller, &batch.bundle, batch.who.token.as_ref(), begun)
    }

    /// One item. A panic is the end of this one, and of no other.
    fn look_at(&self, batch: &Batch, Unknown { item, key, .. }: &Unknown) -> Looked {
        let begun = self.begin();
        let mut known = Known { key: *key, ..self.known_of(batch) };
        let late = begun.monotonic >= batch.due;
        let read = || (batch.read)(item, &self.limits);
        let item = if late { Ok(Err(DecideError::Deadline)) } else { catch_unwind(AssertUnwindSafe(read)).map(Ok) };
        let decided = match item {
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DecideError::Panicked),
            Ok(Ok(Ok(question))) => {
                let decide = || self.decide_for(&batch.caller, &batch.who, &question, &batch.bundle, &mut known);
                catch_unwind(AssertUnwindSafe(decide)).unwrap_or(Err(DecideError::Panicked))
            }
            Ok(Ok(Err(misfit))) => Err(DecideError::Invalid(misfit)),
        };
        if known.subject.kind.is_none() {
            known.subject = batch.who.facts.clone();
        }
        Looked::At(begun, Box::new(known), decided)
    }

    /// An item of a part that is lost.
    fn spoilt(&self, batch: &Batch) -> Looked {
        let known = Known { subject: batch.who.facts.clone(), ..self.known_of(batch) };
        Looked::At(self.begin(), Box::new(known), Err(DecideError::Panicked))
    }

    fn known_of(&self, batch: &Batch) -> Known {
        Known {
            caller: batch.facts.clone(),
            vouched: batch.vouched.clone(),
            of_batch: true,
            common: Some(Arc::clone(&batch.common)),
            ..Known::default()
        }
    }
}

/// Looks at each in order, and gives way to others where it is time to.
async fn in_turns<I, L>(turn: &mut Turn, items: Vec<I>, mut look: impl FnMut(I) -> L) -> Vec<L> {
    let mut looked = Vec::with_capacity(items.len());
    for item in items {
        looked.push(look(item));
        turn.go_on().await;
    }
    looked
}

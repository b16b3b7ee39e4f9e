//! Records of questions that differ in the object alone: who asks, for whom, what, and what was said to it are as they were.
//! And those of calls that were shed, which differ in nothing that is known of them.
//!
//! Such a record is written from a [`Template`] that leaves the object out as well. What it is like is compared member by
//! member with the call that the template was made of; it is found by the ruling and the token, which such questions share
//! (`policy::Ruled`), or by the reason, and kept where it was found, one in a place.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use foldhash::fast::RandomState;

use super::super::format::Body;
use super::template::{About, Again, Template};
use super::{CallEntry, Frame, Outcome, QuestionFacts, SubjectFacts};

/// Places for templates.
const PLACES: usize = 256;

/// Templates of what was recorded lately.
#[derive(Debug)]
pub(in crate::audit) struct Kin {
    places: Box<[Place]>,
    hashing: RandomState,
}

#[derive(Debug, Default)]
struct Place {
    /// What was here last: a template is made of what comes twice in a row.
    last: AtomicU64,
    like: ArcSwapOption<Like>,
}

#[derive(Debug)]
struct Like {
    /// But for the values that it kept.
    call: CallEntry,
    /// Whether it kept any.
    keeps: bool,
    template: Template,
}

impl Default for Kin {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| Place::default()).collect(), hashing: RandomState::default() }
    }
}

impl Kin {
    /// The record of `call`, if one like it was written before. `buffer` gives an empty buffer with room for so many bytes.
    pub(in crate::audit) fn write(
        &self,
        call: &CallEntry,
        frame: &Frame,
        buffer: impl FnOnce(usize) -> Vec<u8>,
    ) -> Option<Body> {
        let (key, place) = self.place(call)?;
        if let Some(like) = place.like.load().as_ref().filter(|like| is_like(like, call)) {
            let again = Again {
                decision_id: call.decision_id,
                time: call.time,
                duration: call.duration,
                address: call.caller.address?,
                certificate_sha256: call.caller.certificate_sha256.as_deref()?,
                circumstances: &call.circumstances,
                place: None,
            };
            let about = call.question.as_ref().map(About::asked).unwrap_or_default();
            let longer = about.id.map_or(0, str::len) * ESCAPED;
            let out = buffer(like.template.longest() + longer);
            return Some(like.template.fill_about(&again, about, out));
        }
        if place.last.swap(key, Ordering::Relaxed) == key
            && is_short(call)
            && let Some(template) = Template::about_any(call, frame)
        {
            let mut call = call.clone();
            let kept = call.question.as_mut().map(|asked| std::mem::take(&mut asked.kept));
            let keeps = kept.is_some_and(|kept| !kept.is_empty());
            place.like.store(Some(Arc::new(Like { call, keeps, template })));
        }
        None
    }

    /// Where one like it would be, and what stands for all that are like it.
    fn place(&self, call: &CallEntry) -> Option<(u64, &Place)> {
        let caller = (&call.caller.name, &call.caller.label);
        let key = match (&call.outcome, &call.question) {
            (Outcome::Decided { ruling, cache, .. }, Some(asked)) => self.hashing.hash_one((
                (Arc::as_ptr(ruling), cache, call.operation, asked.kept.is_empty()),
                caller,
                (call.subject.token.as_ref().map(Arc::as_ptr), &call.subject.principal),
                (&asked.action, &asked.resource_type, &asked.fields, &asked.asserted),
            )),
            (Outcome::Refused { reason, .. }, None) if call.outcome.is_shed() => {
                self.hashing.hash_one((reason, call.operation, caller))
            }
            (Outcome::Decided { .. } | Outcome::Refused { .. } | Outcome::Failed { .. }, _) => return None,
        };
        Some((key, self.places.get(usize::try_from(key >> 32).unwrap_or_default() % PLACES)?))
    }
}

/// Whether a template of it is short enough to be kept: what else a record holds is bounded, and so is what all places hold.
fn is_short(call: &CallEntry) -> bool {
    let ruling = match &call.outcome {
        Outcome::Decided { ruling, .. } => ruling.bytes(),
        Outcome::Refused { .. } | Outcome::Failed { .. } => 0,
    };
    let asked = call.question.as_ref().and_then(|asked| asked.fields.as_ref()).map_or(0, Vec::len);
    asked <= MOST_FIELDS && ruling <= LONGEST_RULING
}

/// Fields that a question may name.
const MOST_FIELDS: usize = 64;
/// Bytes, about.
const LONGEST_RULING: usize = 4 * 1024;

/// A byte of text takes so many in JSON at most, and the id of an object stands there twice.
const ESCAPED: usize = 12;

/// Whether all that a template keeps is the same in both.
fn is_like(Like { call: one, keeps, .. }: &Like, other: &CallEntry) -> bool {
    let same_outcome = match (&one.outcome, &other.outcome) {
        (
            Outcome::Decided { ruling, revision, cache },
            Outcome::Decided { ruling: other_ruling, revision: other_revision, cache: other_cache },
        ) => Arc::ptr_eq(ruling, other_ruling) && revision == other_revision && cache == other_cache,
        (Outcome::Refused { status, reason }, Outcome::Refused { status: other_status, reason: other_reason }) => {
            status == other_status && reason == other_reason
        }
        _ => false,
    };
    let (caller, other_caller) = (&one.caller, &other.caller);
    same_outcome
        && one.operation == other.operation
        && one.listener == other.listener
        && (&caller.name, &caller.label, caller.refusal)
            == (&other_caller.name, &other_caller.label, other_caller.refusal)
        && other_caller.address.is_some()
        && other_caller.certificate_sha256.is_some()
        && same_subject(&one.subject, &other.subject)
        && match (&one.question, &other.question) {
            (None, None) => true,
            (Some(one), Some(other)) => same_question(one, other) && *keeps != other.kept.is_empty(),
            (None, Some(_)) | (Some(_), None) => false,
        }
}

fn same_subject(one: &SubjectFacts, other: &SubjectFacts) -> bool {
    let same_token = match (&one.token, &other.token) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, Some(_)) | (Some(_), None) => false,
    };
    same_token
        && one.kind == other.kind
        && one.principal == other.principal
        && one.token_refusal == other.token_refusal
        && one.client_address == other.client_address
}

/// But for the object, what was said of it, and what is kept of that.
fn same_question(one: &QuestionFacts, other: &QuestionFacts) -> bool {
    one.action == other.action
        && one.resource_type == other.resource_type
        && one.resource_id.is_some() == other.resource_id.is_some()
        && one.fields == other.fields
        && one.context_sha256.is_some() == other.context_sha256.is_some()
        && one.asserted == other.asserted
}

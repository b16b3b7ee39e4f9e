//! The decision path, top to bottom. Read this first.
//!
//! ```text
//! record(                                   whatever happens below is recorded before the answer leaves
//!   caller   = callers.admit(peer)          mTLS chain -> one name -> enrolled
//!   entitled = caller may ask about this    type, action, asserted subject, supplied attributes
//!   subject  = tokens.verify(token, now)    -> principal entity by the issuer's claim mapping
//!   policies = store.current()              one immutable revision for the whole decision
//!   request  = policies.request(..)         schema-checked; no other way to build one
//!   ruling   = cache.get_or(request, || policies.rule(request))
//! )
//! ```
//!
//! Plain code: no layers, no look-ups by type. A denial is an [`Answer`]; a [`DecideError`] is why there is none.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;

use crate::audit::{
    AuditError, CallEntry, CallerFacts, Entry, Outcome, Place, QuestionFacts, Redaction, SubjectFacts, Trail,
};
use crate::cache::{Account, Rulings};
use crate::caller::{Caller, Callers};
use crate::clock::SharedClock;
use crate::config::{Limits, PolicyConfig};
use crate::model::decision::{Answer, CacheUse, Decision, DenialCode, Ruling};
use crate::model::entity::{EntityId, EntityUid, RawEntity, RawRecord};
use crate::model::ids::{DecisionId, PolicyRevision};
use crate::model::question::{BatchPosition, Circumstances, Question, Subject};
use crate::policy::store::Store;
use crate::policy::{Bundle, CallerData, Misfit, RequestError, SubjectData};
use crate::telemetry::metrics::Metrics;
use crate::tls::peer::Peer;
use crate::token::{TokenError, TokenFacts, UnverifiedToken, VerifiedToken, Verifier};

pub mod error;

pub use error::{DecideError, Refusal};

/// Everything a decision needs. Built once by `app.rs`.
pub struct Pdp {
    /// Who may ask.
    pub callers: Callers,
    /// Whose tokens count.
    pub tokens: Arc<Verifier>,
    /// The policies in force.
    pub store: Arc<Store>,
    /// Rulings already made.
    pub rulings: Rulings,
    /// Where it is all recorded.
    pub trail: Trail,
    /// What values may stand there.
    pub redaction: Redaction,
    /// Counted.
    pub metrics: Metrics,
    /// Time.
    pub clock: SharedClock,
    /// Limits.
    pub limits: Limits,
    /// How callers and nobody-in-particular become principals.
    pub principals: PolicyConfig,
    /// Decisions worked on at once.
    pub slots: Semaphore,
    /// Where the listener is bound.
    pub listener: SocketAddr,
    /// For how long callers may reuse an answer at most.
    pub caller_reuse: Duration,
}

/// A call as it came in.
pub struct Call {
    /// The RPC's name.
    pub operation: &'static str,
    /// The connection's other end, when the handshake gave one.
    pub peer: Option<Arc<Peer>>,
    /// The caller's names for the request.
    pub circumstances: Circumstances,
    /// How long the caller is ready to wait.
    pub deadline: Duration,
}

/// The part of a batch that all its items share.
pub struct Shared {
    /// On whose behalf.
    pub subject: Subject,
    /// The questions; each may be malformed on its own.
    pub items: Vec<Result<Question, Misfit>>,
}

/// What is learned on the way, for the record: it must be there even when the call ends early.
#[derive(Default)]
struct Known {
    caller: CallerFacts,
    question: Option<QuestionFacts>,
    subject: SubjectFacts,
    level: Option<&'static str>,
}

/// The subject, once it is known who it is.
#[derive(Clone)]
struct Who {
    data: SubjectData,
    facts: SubjectFacts,
    issuer: String,
    ends: Option<SystemTime>,
    /// The token was refused: every question gets this answer.
    refusal: Option<DenialCode>,
}

/// A decision before it has its record.
struct Decided {
    ruling: Arc<Ruling>,
    revision: PolicyRevision,
    cache: CacheUse,
    show_policies: bool,
    reusable_for: Duration,
}

impl Pdp {
    /// Answers one question. It is read (`asked`) only once the caller is admitted: a stranger's message costs nothing more
    /// than its bytes.
    ///
    /// # Errors
    /// Why there is no decision; recorded like an answer. [`Refusal`] carries the id of the record.
    pub async fn check(
        &self,
        call: &Call,
        asked: impl FnOnce() -> Result<(Subject, Question), Misfit> + Send,
    ) -> Result<Answer, Refusal> {
        let begun = self.begin();
        let _present = self.metrics.inflight();
        let mut known = Known::default();
        let decided = self.within(call.deadline, self.decide(call, asked, &mut known)).await;
        self.conclude(call, &begun, known, call.circumstances.clone(), decided).await
    }

    /// Answers many questions of one subject, each on its own; one bad item spoils no other.
    ///
    /// # Errors
    /// Why there is no decision on any of them.
    pub async fn check_batch(
        &self,
        call: &Call,
        asked: impl FnOnce() -> Result<Shared, Misfit> + Send,
    ) -> Result<Vec<Result<Answer, Refusal>>, Refusal> {
        let begun = self.begin();
        let _present = self.metrics.inflight();
        let mut known = Known::default();
        // Held until the last item is answered.
        let slot = self.slots.try_acquire();
        let opened = self.within(call.deadline, self.open_batch(call, asked, slot.is_ok(), &mut known)).await;
        let (caller, who, items) = match opened {
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
        let of = items.len();
        let bundle = self.store.current();
        let mut answers = Vec::with_capacity(of);
        for (index, item) in items.into_iter().enumerate() {
            let item_begun = self.begin();
            let mut known = Known { caller: known.caller.clone(), subject: who.facts.clone(), ..Known::default() };
            // Decisions don't wait, so the deadline is looked at between them.
            let late = self.clock.monotonic().saturating_sub(begun.monotonic) >= call.deadline;
            let decided = match item {
                _ if late => Err(DecideError::Deadline),
                Ok(question) => self.decide_for(&caller, &who, &question, &bundle, &mut known),
                Err(misfit) => Err(DecideError::Invalid(misfit)),
            };
            let mut circumstances = call.circumstances.clone();
            circumstances.batch = Some(BatchPosition { index, of });
            circumstances.batch_id = Some(begun.id);
            answers.push((item_begun, known, circumstances, decided));
            // A long batch must not keep a thread from everybody else's questions.
            tokio::task::yield_now().await;
        }
        // Records are written together, so that a batch waits for the sink once and not once an item.
        let writing = answers.into_iter().map(|(begun, known, circumstances, decided)| async move {
            self.conclude(call, &begun, known, circumstances, decided).await
        });
        Ok(futures_util::future::join_all(writing).await)
    }

    /// Admission, entitlement and the subject, for a batch.
    async fn open_batch(
        &self,
        call: &Call,
        asked: impl FnOnce() -> Result<Shared, Misfit> + Send,
        has_slot: bool,
        known: &mut Known,
    ) -> Result<(Caller, Who, Vec<Result<Question, Misfit>>), DecideError> {
        let caller = self.admit(call, known)?;
        if !has_slot {
            return Err(DecideError::Overloaded);
        }
        let Shared { subject, items } = asked().map_err(DecideError::Invalid)?;
        known.subject.kind = Some(subject.kind());
        // A bad token denies every item, each with a record of its own.
        let who = self.identify(&caller, subject).await?;
        Ok((caller, who, items))
    }

    async fn decide(
        &self,
        call: &Call,
        asked: impl FnOnce() -> Result<(Subject, Question), Misfit> + Send,
        known: &mut Known,
    ) -> Result<Decided, DecideError> {
        // First, so that the record of a shed call says whose it was; it costs one look-up.
        let caller = self.admit(call, known)?;
        let _slot = self.slots.try_acquire().map_err(|_| DecideError::Overloaded)?;
        let (subject, question) = asked().map_err(DecideError::Invalid)?;
        known.subject.kind = Some(subject.kind());
        known.question = Some(self.describe(&subject, &question));
        entitled(&caller, &question)?;
        let who = self.identify(&caller, subject).await?;
        self.decide_for(&caller, &who, &question, &self.store.current(), known)
    }

    /// The synchronous rest: entitlement, schema, cache, policies.
    fn decide_for(
        &self,
        caller: &Caller,
        who: &Who,
        question: &Question,
        bundle: &Bundle,
        known: &mut Known,
    ) -> Result<Decided, DecideError> {
        known.subject = who.facts.clone();
        if known.question.is_none() {
            known.question = Some(self.describe_supplied(question, who.facts.kind == Some("asserted")));
        }
        entitled(caller, question)?;
        let denied = |code: DenialCode| Decided {
            ruling: Arc::new(Ruling::deny(code)),
            revision: bundle.revision().clone(),
            cache: CacheUse::Bypass,
            show_policies: caller.sees_policies(),
            reusable_for: Duration::ZERO,
        };
        if let Some(code) = who.refusal {
            return Ok(denied(code));
        }
        if let Some(facts) = &mut known.question {
            facts.kept.extend(
                self.redaction
                    .kept(Place::Principal(&who.data.principal.uid.entity_type), &who.data.principal.attributes),
            );
        }
        let now = self.clock.now();
        let checked = self.timed("request", || bundle.request(&who.data, question, now));
        let request = match checked {
            Ok(request) => request,
            Err(RequestError::Denied(code)) => return Ok(denied(code)),
            Err(RequestError::Invalid(misfit)) => return Err(DecideError::Invalid(misfit)),
        };
        known.level = Some(request.level().as_str());
        if let Some(facts) = &mut known.question {
            facts.context_sha256 = Some(sha256_hex(&request.framed_context()));
        }
        let account = Account { caller: caller.label(), issuer: &who.issuer, ends: who.ends };
        // One bad request must not end everybody's: a panic is a failure of this decision alone.
        let ruled = catch_unwind(AssertUnwindSafe(|| {
            self.timed("ruling", || {
                self.rulings.get_or(account, &request, question.bypass_cache, || bundle.rule(&request))
            })
        }));
        let Ok((ruling, cache)) = ruled else { return Err(DecideError::Panicked) };
        for error in &ruling.errors {
            self.metrics.policy_error(error.class);
            tracing::warn!(policy = error.policy, class = error.class, "a policy could not be evaluated");
        }
        let reusable_for = if request.reads_now() || !ruling.errors.is_empty() {
            Duration::ZERO
        } else {
            let left = who.ends.map_or(Duration::MAX, |ends| ends.duration_since(now).unwrap_or(Duration::ZERO));
            self.caller_reuse.min(left)
        };
        Ok(Decided {
            ruling,
            revision: bundle.revision().clone(),
            cache,
            show_policies: caller.sees_policies(),
            reusable_for,
        })
    }

    /// Who is calling, from the connection alone.
    fn admit(&self, call: &Call, known: &mut Known) -> Result<Caller, DecideError> {
        let Some(peer) = &call.peer else { return Err(DecideError::NotIdentified("NO_CERTIFICATE")) };
        known.caller.address = Some(peer.address());
        known.caller.certificate_sha256 = Some(peer.certificate_sha256_hex());
        let now = self.clock.now();
        known.caller.name = peer.name(now).ok().map(ToString::to_string);
        let admitted = self.timed("admit", || self.callers.admit(peer, now)).map_err(DecideError::from);
        let caller = admitted.inspect_err(|error| known.caller.refusal = error.identity())?;
        known.caller.label = Some(caller.label().to_owned());
        Ok(caller)
    }

    /// Who the principal is. A bad token is a denial to come, no error: it is the user's, not the caller's.
    async fn identify(&self, caller: &Caller, subject: Subject) -> Result<Who, DecideError> {
        let kind = Some(subject.kind());
        let caller_data = self.caller_entity(caller);
        let plain = |principal: RawEntity| {
            let facts = SubjectFacts { kind, principal: Some(principal.uid.clone()), ..SubjectFacts::default() };
            let data = SubjectData { principal, token: None, caller: caller_data.clone() };
            Ok(Who { data, facts, issuer: String::new(), ends: None, refusal: None })
        };
        let bare = |uid: EntityUid| RawEntity { uid, attributes: RawRecord::new(), parents: Vec::new() };
        match subject {
            Subject::Token(text) => {
                let begun = self.clock.monotonic();
                let verified = match UnverifiedToken::new(&text, &self.limits) {
                    Ok(token) => self.tokens.verify(token, self.clock.now()).await,
                    Err(error) => Err(error),
                };
                self.metrics.stage("token", self.since(begun));
                Ok(self.presented(caller, kind, verified))
            }
            // Nobody has that right yet.
            Subject::ApiKey(_) => Err(DecideError::NotEntitled("PRESENT_API_KEYS")),
            Subject::Asserted(principal) => {
                let kind = &principal.uid.entity_type;
                if !caller.may_assert(kind) {
                    return Err(DecideError::NotEntitled("ASSERT_SUBJECT"));
                }
                if !principal.attributes.is_empty() && !caller.may_supply_attributes(kind) {
                    return Err(DecideError::NotEntitled("SUPPLY_ATTRIBUTES"));
                }
                if !principal.parents.is_empty() && !caller.may_supply_parents(kind) {
                    return Err(DecideError::NotEntitled("SUPPLY_PARENTS"));
                }
                plain(*principal)
            }
            Subject::Caller => match &caller_data {
                Some(data) => plain(bare(data.uid.clone())),
                None => Err(DecideError::NotEntitled("CALLER_AS_PRINCIPAL")),
            },
            Subject::Anonymous => plain(bare(self.principals.anonymous.clone())),
        }
    }

    /// Whom a verified credential makes, in the hands of `caller`: bad or misplaced ones are a denial to come.
    fn presented(
        &self,
        caller: &Caller,
        kind: Option<&'static str>,
        verified: Result<Arc<VerifiedToken>, TokenError>,
    ) -> Who {
        let caller_data = self.caller_entity(caller);
        let refused = |known: Option<&VerifiedToken>, reason: &'static str, denial: DenialCode| {
            let nobody =
                RawEntity { uid: self.principals.anonymous.clone(), attributes: RawRecord::new(), parents: Vec::new() };
            Who {
                facts: SubjectFacts {
                    kind,
                    principal: known.map(|token| token.principal().uid.clone()),
                    token: known.map(|token| Arc::clone(token.facts())),
                    token_refusal: Some(reason),
                },
                issuer: String::new(),
                ends: None,
                refusal: Some(denial),
                data: SubjectData { principal: nobody, token: None, caller: self.caller_entity(caller) },
            }
        };
        let token = match verified {
            Ok(token) => token,
            Err(error) => return refused(None, error.reason(), error.denial()),
        };
        if let Some((reason, denial)) = self.out_of_place(caller, &token) {
            return refused(Some(&token), reason, denial);
        }
        let facts: &Arc<TokenFacts> = token.facts();
        Who {
            facts: SubjectFacts {
                kind,
                principal: Some(token.principal().uid.clone()),
                token: Some(Arc::clone(facts)),
                token_refusal: None,
            },
            issuer: facts.issuer.clone(),
            ends: Some(token.expires_at()),
            refusal: None,
            data: SubjectData {
                principal: token.principal().clone(),
                token: Some(Arc::clone(facts)),
                caller: caller_data,
            },
        }
    }

    /// Why a token that is good in itself does not count here and now: the word for the record, and the denial. Asked on
    /// every question, whatever is cached.
    fn out_of_place(&self, _caller: &Caller, _token: &VerifiedToken) -> Option<(&'static str, DenialCode)> {
        None
    }

    /// The calling workload as an entity.
    fn caller_entity(&self, caller: &Caller) -> Option<CallerData> {
        let id = EntityId::parse(&caller.name().to_string(), 4096).ok()?;
        Some(CallerData { uid: EntityUid { entity_type: self.principals.caller_type.clone(), id } })
    }

    fn describe(&self, subject: &Subject, question: &Question) -> QuestionFacts {
        self.describe_supplied(question, matches!(subject, Subject::Asserted(_)))
    }

    /// The question, as far as a record may show it.
    fn describe_supplied(&self, question: &Question, asserted_subject: bool) -> QuestionFacts {
        use crate::model::question::FieldSelection;
        let resource = &question.resource;
        let mut asserted = Vec::new();
        let mut note = |given: bool, what: String| {
            if given {
                asserted.push(what);
            }
        };
        note(asserted_subject, "subject".to_owned());
        note(!resource.attributes.is_empty(), "resource.attributes".to_owned());
        note(!resource.parents.is_empty(), "resource.parents".to_owned());
        note(!question.context.is_empty(), "context".to_owned());
        for entity in question.entities.iter() {
            asserted.push(format!("entities[{}]", entity.uid.entity_type));
        }
        asserted.sort();
        asserted.dedup();
        let mut kept = self.redaction.kept(Place::Resource(&resource.entity_type), &resource.attributes);
        kept.extend(self.redaction.kept(Place::Context, &question.context));
        QuestionFacts {
            action: question.action.clone(),
            resource_type: resource.entity_type.to_string(),
            resource_id: resource.id.as_ref().map(ToString::to_string),
            fields: question.fields.as_ref().map(|query| match &query.selection {
                FieldSelection::All => Vec::new(),
                FieldSelection::Named(paths) => paths.iter().map(ToString::to_string).collect(),
            }),
            context_sha256: None,
            kept,
            asserted,
        }
    }

    /// Puts the outcome on record and only then lets it leave.
    async fn conclude(
        &self,
        call: &Call,
        begun: &Begun,
        known: Known,
        circumstances: Circumstances,
        decided: Result<Decided, DecideError>,
    ) -> Result<Answer, Refusal> {
        let duration = self.clock.monotonic().saturating_sub(begun.monotonic);
        let outcome = match &decided {
            Ok(decided) => Outcome::Decided {
                ruling: Arc::clone(&decided.ruling),
                revision: decided.revision.clone(),
                cache: decided.cache,
            },
            Err(error) => error.outcome(),
        };
        let level =
            known.level.or(known.question.as_ref().map(|question| match (&question.resource_id, &question.fields) {
                (None, _) => "function",
                (Some(_), None) => "object",
                (Some(_), Some(_)) => "field",
            }));
        let entry = CallEntry {
            decision_id: begun.id,
            time: begun.wall,
            duration,
            operation: call.operation,
            caller: known.caller,
            listener: self.listener,
            circumstances,
            question: known.question,
            subject: known.subject,
            outcome,
        };
        let waiting = self.clock.monotonic();
        let bare = CallEntry { question: None, ..entry.clone() };
        let mut written = self.trail.write(Entry::Call(Box::new(entry))).await;
        if let Err(error @ AuditError::TooLarge { .. }) = written {
            // The answer is withheld, and that is put on record without what made the record too long.
            let error = DecideError::Audit(error);
            let bare = CallEntry { outcome: error.outcome(), ..bare };
            written = self.trail.write(Entry::Call(Box::new(bare))).await;
            if written.is_ok() {
                self.metrics.audit_record("too_large");
                self.metrics.refused(error.status(), error.reason());
                return Err(Refusal { id: begun.id, error });
            }
        }
        self.metrics.stage("record", self.since(waiting));
        if let Err(error) = written {
            self.metrics.audit_record(match error {
                AuditError::QueueFull => "queue_full",
                AuditError::TimedOut => "timed_out",
                AuditError::TooLarge { .. } => "too_large",
                AuditError::Open(_)
                | AuditError::Start(_)
                | AuditError::Unwritable(_)
                | AuditError::Sink(_)
                | AuditError::Closed => "failed",
            });
            self.metrics.refused("UNAVAILABLE", "AUDIT_UNAVAILABLE");
            return Err(Refusal { id: begun.id, error: DecideError::Audit(error) });
        }
        self.metrics.audit_record("written");
        match decided {
            Ok(decided) => {
                let (decision, denial) = match decided.ruling.decision {
                    Decision::Allow => ("allow", None),
                    Decision::Conditional => ("conditional", None),
                    Decision::Deny => ("deny", decided.ruling.denial.as_ref().map(|denial| denial.code.as_str())),
                };
                self.metrics.decision(
                    call.operation,
                    level.unwrap_or("object"),
                    decision,
                    denial,
                    decided.cache.as_str(),
                    self.since(begun.monotonic),
                );
                Ok(Answer {
                    decision_id: begun.id,
                    ruling: decided.ruling,
                    revision: decided.revision,
                    cache: decided.cache,
                    reusable_for: decided.reusable_for,
                    show_policies: decided.show_policies,
                })
            }
            Err(error) => {
                self.metrics.refused(error.status(), error.reason());
                Err(Refusal { id: begun.id, error })
            }
        }
    }

    /// Puts a call on record that never came as far as a question: an unknown method, a message too long to read.
    ///
    /// # Errors
    /// When even that can't be recorded.
    pub async fn record_refused(&self, call: &Call, error: DecideError) -> Refusal {
        let begun = self.begin();
        let mut known = Known::default();
        // Whether it would have been admitted does not matter any more, but who it was does.
        let _ = self.admit(call, &mut known);
        match self.conclude(call, &begun, known, call.circumstances.clone(), Err(error)).await {
            Err(refusal) => refusal,
            Ok(answer) => Refusal { id: answer.decision_id, error: DecideError::Panicked },
        }
    }

    fn begin(&self) -> Begun {
        let wall = self.clock.now();
        Begun { id: DecisionId::mint(wall), wall, monotonic: self.clock.monotonic() }
    }

    fn since(&self, begun: Duration) -> f64 {
        self.clock.monotonic().saturating_sub(begun).as_secs_f64()
    }

    fn timed<R>(&self, stage: &'static str, work: impl FnOnce() -> R) -> R {
        let begun = self.clock.monotonic();
        let done = work();
        self.metrics.stage(stage, self.since(begun));
        done
    }

    async fn within<R>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<R, DecideError>>,
    ) -> Result<R, DecideError> {
        match tokio::time::timeout(deadline, work).await {
            Ok(done) => done,
            Err(_) => Err(DecideError::Deadline),
        }
    }
}

struct Begun {
    id: DecisionId,
    wall: SystemTime,
    monotonic: Duration,
}

/// Whether this caller may ask this at all.
fn entitled(caller: &Caller, question: &Question) -> Result<(), DecideError> {
    let resource = &question.resource;
    if !caller.may_ask(&resource.entity_type, &question.action) {
        return Err(DecideError::NotEntitled("ASK"));
    }
    if !resource.attributes.is_empty() && !caller.may_supply_attributes(&resource.entity_type) {
        return Err(DecideError::NotEntitled("SUPPLY_ATTRIBUTES"));
    }
    if !resource.parents.is_empty() && !caller.may_supply_parents(&resource.entity_type) {
        return Err(DecideError::NotEntitled("SUPPLY_PARENTS"));
    }
    for entity in question.entities.iter() {
        if !caller.may_supply_attributes(&entity.uid.entity_type) {
            return Err(DecideError::NotEntitled("SUPPLY_ATTRIBUTES"));
        }
        if !entity.parents.is_empty() && !caller.may_supply_parents(&entity.uid.entity_type) {
            return Err(DecideError::NotEntitled("SUPPLY_PARENTS"));
        }
    }
    Ok(())
}

fn sha256_hex(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    PolicyRevision::from_digest(digest.as_ref()).as_str().to_owned()
}

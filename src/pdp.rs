//! The decision path, top to bottom. Read this first.
//!
//! ```text
//! record(                                   whatever happens below is recorded before the answer leaves
//!   caller   = callers.admit(peer)          mTLS chain -> one name -> enrolled
//!   seat     = admission.enter(caller, due) there is room for it, and time; held until the answer has its record
//!   policies = store.current()              one immutable revision for the whole decision, or batch
//!   entitled = caller may ask about this    type, action, asserted subject, supplied attributes, tenants
//!   subject  = tokens.verify(token, now)    -> principal entity by the issuer's claim mapping
//!   bond     = the token is this caller's   actor or client, and the certificate that it demands
//!   request  = policies.request(..)         schema-checked; no other way to build one
//!   ruling   = cache.get_or(request, || policies.rule(request))
//! )                                       a question that was answered before, byte for byte, takes a shorter way: recall
//! ```
//!
//! Plain code: no layers, no look-ups by type. A denial is an [`Answer`]; a [`DecideError`] is why there is none.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::admission::{Admission, Knocked, Seat, TurnedAway};
use crate::audit::{
    AuditError, CallEntry, CallerFacts, Company, Entry, Outcome, Place, QuestionFacts, Redaction, SubjectFacts, Trail,
};
use crate::cache::{Account, Rulings};
use crate::caller::bond::Bond;
use crate::caller::rights::Lacks;
use crate::caller::{Caller, Callers};
use crate::clock::SharedClock;
use crate::config::{Limits, PolicyConfig};
use crate::model::decision::{Answer, CacheUse, Decision, DenialCode, Ruling};
use crate::model::entity::{EntityType, RawEntity};
use crate::model::ids::{DecisionId, PolicyRevision};
use crate::model::question::{Circumstances, Question, Subject};
use crate::policy::store::Store;
use crate::policy::{Bundle, Misfit, RequestError, SubjectData};
use crate::revocation::Revocations;
use crate::telemetry::metrics::{Answered, Metrics};
use crate::telemetry::traces::{self, End, Ending};
use crate::tls::peer::Peer;
use crate::token::api_key::ApiKeys;
use crate::token::{VerifiedToken, Verifier};

mod asserted;
mod batch;
pub mod crew;
mod door;
pub mod error;
mod explain;
mod recall;
pub mod stream;
mod subject;
pub mod turn;

pub use error::{DecideError, Refusal};
pub use explain::Explained;
pub use recall::{AskedKey, Recalls, Told};

/// Everything a decision needs. Built once by `app.rs`.
pub struct Pdp {
    /// Who may ask.
    pub callers: Callers,
    /// Whose tokens count.
    pub tokens: Arc<Verifier>,
    /// And in whose hands.
    pub bond: Bond,
    /// What counts no longer. Asked on every question, before any cache.
    pub revocations: Arc<Revocations>,
    /// Which API keys count.
    pub api_keys: Arc<ApiKeys>,
    /// The policies in force.
    pub store: Arc<Store>,
    /// Rulings already made.
    pub rulings: Rulings,
    /// Questions already answered, byte for byte.
    pub recalls: Recalls,
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
    /// Whether there is room for a call.
    pub admission: Admission,
    /// Streams open at once.
    pub streams: stream::OpenStreams,
    /// Who helps with large batches.
    pub crew: crew::Crew,
    /// Where the listener is bound.
    pub listener: SocketAddr,
    /// For how long callers may reuse an answer at most.
    pub caller_reuse: Duration,
}

/// A call as it came in.
#[derive(Clone)]
pub struct Call {
    /// The RPC's name.
    pub operation: &'static str,
    /// The connection's other end, when the handshake gave one.
    pub peer: Option<Arc<Peer>>,
    /// The caller's names for the request.
    pub circumstances: Circumstances,
    /// How long the caller is ready to wait.
    pub deadline: Duration,
    /// Whether it said so itself.
    pub deadline_named: bool,
    /// When it will wait no longer, by our monotonic clock; `None` when it named no time. Counted from when the call came:
    /// until its message is whole its time runs and not ours, so a time that it did not name begins with the question.
    pub due: Option<Duration>,
    /// Whether it was let in before it was read.
    pub knocked: Option<Knocked>,
}

impl Call {
    /// The same, come in at `arrived` by our monotonic clock.
    #[must_use]
    pub fn come_in_at(self, arrived: Duration) -> Self {
        let due = self.deadline_named.then(|| arrived.saturating_add(self.deadline));
        Self { due, ..self }
    }
}

/// The part of a batch that all its items share.
pub struct Shared {
    /// On whose behalf.
    pub subject: Subject,
    /// All of what the items share, as it came.
    pub common: Zeroizing<Vec<u8>>,
    /// What else the policies may need to know, for each of them.
    pub entities: Arc<[RawEntity]>,
    /// The questions, as they came: what was answered before need not be read.
    pub items: Vec<Bytes>,
    /// Reads one; each may be malformed on its own.
    pub read: ReadItem,
}

/// Reads a question of a batch within limits.
pub type ReadItem = Arc<dyn Fn(&[u8], &Limits) -> Result<Question, Misfit> + Send + Sync>;

/// What is learned on the way, for the record: it must be there even when the call ends early.
#[derive(Default)]
struct Known {
    caller: CallerFacts,
    /// What the caller said of a subject that it vouches for.
    vouched: Vec<String>,
    question: Option<QuestionFacts>,
    subject: SubjectFacts,
    level: Option<&'static str>,
    /// One of many questions, of a batch or a stream: their stages are no spans of their own.
    of_batch: bool,
    /// Whether there was room. Held until the record is written: what waits for the disk is in the house.
    seat: Option<Result<Seat, TurnedAway>>,
    /// What the items of a batch share is worked out already; what it says of entities is among `vouched`.
    common: Option<Arc<batch::Common>>,
    /// What stands for the whole question, if its answer may be remembered.
    key: Option<recall::Key>,
    /// Those that its record had best be kept with.
    company: Option<Company>,
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
    token: Option<Arc<VerifiedToken>>,
}

/// A decision before it has its record.
struct Decided {
    /// Until when, in monotonic time, the very same question may be answered so. `None`: it is decided anew.
    kept_until: Option<Duration>,
    token: Option<Arc<VerifiedToken>>,
    ruling: Arc<Ruling>,
    revision: PolicyRevision,
    cache: CacheUse,
    show_policies: bool,
    reusable_for: Duration,
}

impl Pdp {
    /// Answers one question. It is read (`asked`, from `message`) only once the caller is admitted: a stranger's message
    /// costs nothing more than its bytes. What was asked before, byte for byte, need not be read again ([`recall`]).
    ///
    /// # Errors
    /// Why there is no decision; recorded like an answer. [`Refusal`] carries the id of the record.
    pub async fn check(
        &self,
        call: &Call,
        message: &[u8],
        asked: impl FnOnce() -> Result<(Subject, Question), DecideError> + Send,
    ) -> Result<Answer, Refusal> {
        let begun = self.begin();
        let _present = self.metrics.inflight();
        let mut known = Known::default();
        if let Some(answered) = self.recall(call, message, &begun, &mut known).await {
            return answered;
        }
        // Apart, so that a question which is known moves little about.
        Box::pin(self.check_anew(call, &begun, known, asked)).await
    }

    async fn check_anew(
        &self,
        call: &Call,
        begun: &Begun,
        mut known: Known,
        asked: impl FnOnce() -> Result<(Subject, Question), DecideError> + Send,
    ) -> Result<Answer, Refusal> {
        let decided = self.within(self.left(call), self.decide(call, asked, false, &mut known)).await;
        self.conclude(call, begun, known, call.circumstances.clone(), decided).await
    }

    async fn decide(
        &self,
        call: &Call,
        asked: impl FnOnce() -> Result<(Subject, Question), DecideError> + Send,
        explaining: bool,
        known: &mut Known,
    ) -> Result<Decided, DecideError> {
        // First, so that the record of a shed call says whose it was; it costs one look-up.
        let caller = self.admit(call, known)?;
        self.seat(&caller, call, known)?;
        let (subject, mut question) = asked()?;
        known.subject.kind = Some(subject.kind());
        let bundle = self.store.current();
        known.vouched = asserted::of_subject(&subject, &bundle);
        known.question = Some(self.describe(&question, &known.vouched, &question.entities, &bundle));
        if explaining {
            if !caller.may_explain() {
                return Err(Lacks::Explain.into());
            }
            question.bypass_cache = true;
        }
        caller.may_put(&question, self.tenant_type())?;
        let who = self.identify(&caller, subject, !known.of_batch).await?;
        let mut decided = self.decide_for(&caller, &who, &question, &bundle, known)?;
        if explaining {
            decided.reusable_for = Duration::ZERO;
        }
        Ok(decided)
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
            let entities = if known.common.is_some() { &[][..] } else { &question.entities };
            known.question = Some(self.describe(question, &known.vouched, entities, bundle));
        }
        if let Some(facts) = &mut known.question
            && who.facts.client_address.is_some()
        {
            facts.asserted.insert(0, "api_key.client_address".to_owned());
        }
        caller.may_put(question, self.tenant_type())?;
        let denied = |code: DenialCode| Decided {
            kept_until: None,
            token: None,
            ruling: Arc::new(Ruling::deny(code)),
            revision: bundle.revision().clone(),
            cache: CacheUse::Bypass,
            show_policies: caller.sees_policies(),
            reusable_for: Duration::ZERO,
        };
        if let Some(code) = who.refusal {
            return Ok(denied(code));
        }
        let principal = &who.data.principal;
        let common = known.common.as_deref();
        self.of_its_tenants(caller, question, bundle, || {
            common.map_or_else(|| self.serves_principal(caller, principal, bundle), |common| common.serves_principal)
        })?;
        if let Some(facts) = &mut known.question {
            let place = Place::Principal(&principal.uid.entity_type);
            facts.kept.extend(match common {
                Some(common) => common.kept.clone(),
                None => self.redaction.kept(place, &principal.attributes, self.clock.now()),
            });
        }
        let now = self.clock.now();
        let stage = self.stage("request", !known.of_batch);
        let checked = bundle.request(&who.data, question, now);
        stage.end(match &checked {
            Ok(_) => "checked",
            Err(RequestError::Denied(code)) => code.as_str(),
            Err(RequestError::Invalid(_)) => "invalid",
        });
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
        let stage = self.stage("ruling", !known.of_batch);
        let ruled = catch_unwind(AssertUnwindSafe(|| {
            self.rulings.get_or(account, &request, question.bypass_cache, || bundle.rule(&request))
        }));
        let Ok((ruling, cache, kept_until)) = ruled else { return Err(DecideError::Panicked) };
        stage.end(cache.as_str());
        self.metrics.cache_lookup("decisions", cache.as_str());
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
            kept_until,
            token: who.token.clone(),
            ruling,
            revision: bundle.revision().clone(),
            cache,
            show_policies: caller.sees_policies(),
            reusable_for,
        })
    }

    /// Whether the principal, and what the caller puts things under, belong to tenants that the caller is enrolled for:
    /// a service of one tenant can't ask for another's people, whoever says whose they are.
    fn of_its_tenants(
        &self,
        caller: &Caller,
        question: &Question,
        bundle: &Bundle,
        serves_principal: impl FnOnce() -> bool,
    ) -> Result<(), DecideError> {
        if self.tenant_type().is_none() || caller.serves_all() {
            return Ok(());
        }
        let parents = std::iter::once(&question.resource.parents);
        let parents = parents.chain(question.entities.iter().map(|entity| &entity.parents));
        let mut above = parents.filter(|parents| !parents.is_empty()).flat_map(|parents| bundle.tenants_above(parents));
        if !serves_principal() || above.any(|tenant| !caller.serves(&tenant)) {
            return Err(Lacks::Tenant.into());
        }
        Ok(())
    }

    /// Whether the caller serves every tenant that the principal belongs to.
    fn serves_principal(&self, caller: &Caller, principal: &RawEntity, bundle: &Bundle) -> bool {
        let is_held = self.tenant_type().is_some() && !caller.serves_all();
        !is_held || bundle.tenants_of(principal).iter().all(|tenant| caller.serves(tenant))
    }

    fn tenant_type(&self) -> Option<&EntityType> {
        self.principals.tenant_type.as_ref()
    }

    /// The question, as far as a record may show it. `vouched`: what the caller said of the subject, and of entities that
    /// are not among `entities`.
    fn describe(
        &self,
        question: &Question,
        vouched: &[String],
        entities: &[RawEntity],
        bundle: &Bundle,
    ) -> QuestionFacts {
        use crate::model::question::FieldSelection;
        let resource = &question.resource;
        let now = self.clock.now();
        let mut kept = self.redaction.kept(Place::Resource(&resource.entity_type), &resource.attributes, now);
        kept.extend(self.redaction.kept(Place::Context, &question.context, now));
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
            asserted: asserted::in_all(vouched, question, entities, bundle),
        }
    }

    /// Puts the outcome on record and only then lets it leave. The answer may be remembered
    /// under `key`, which stands for the whole request.
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
        let level = known.level.or(known.question.as_ref().map(QuestionFacts::level));
        let refusal = decided.as_ref().err().and_then(DecideError::caller_refusal);
        let mut known = known;
        let (key, company) = (known.key, known.company);
        // Before ids are renamed: those of the record are the record's.
        let action = self.metrics.action(known.question.as_ref().map(|question| question.action.as_str()));
        let shown = !known.of_batch;
        self.redaction.rename(&mut known.subject, known.question.as_mut(), begun.wall);
        let mut entry = Entry::Call(Box::new(CallEntry {
            decision_id: begun.id,
            time: begun.wall,
            duration,
            operation: call.operation,
            caller: CallerFacts { refusal, ..known.caller },
            listener: self.listener,
            circumstances,
            question: known.question,
            subject: known.subject,
            outcome,
        }));
        let tell = |end: End<'_>| {
            if shown {
                traces::ended(&Ending { decision_id: &begun.id, action: &action, level, end });
            }
        };
        let refused = |error: DecideError| {
            let (status, reason) = (error.status(), error.reason());
            self.metrics.refused(status, reason);
            tell(End::Refused { status, reason, failed: matches!(error.outcome(), Outcome::Failed { .. }) });
            Refusal { id: begun.id, error }
        };
        let stage = self.stage("record", shown);
        let mut written = self.trail.write_in(company.as_ref(), &entry).await;
        if let Err(error @ AuditError::TooLarge { .. }) = written {
            // The answer is withheld, and that is put on record without what made the record too long.
            let error = DecideError::Audit(error);
            if let Entry::Call(call) = &mut entry {
                (call.question, call.outcome) = (None, error.outcome());
            }
            written = self.trail.write_in(company.as_ref(), &entry).await;
            if written.is_ok() {
                stage.end("too_large");
                self.metrics.audit_record("too_large");
                return Err(refused(error));
            }
        }
        let result = what_became(&written);
        stage.end(result);
        self.metrics.audit_record(result);
        if let Err(why) = written {
            return Err(refused(match decided {
                Ok(_) => DecideError::Audit(why),
                Err(error) => error.unrecorded(why),
            }));
        }
        match decided {
            Ok(decided) => {
                let (decision, denial) = words(&decided.ruling);
                let (level, cache) = (level.unwrap_or("object"), decided.cache.as_str());
                tell(End::Answered { outcome: decision, denial, cache, revision: decided.revision.short() });
                self.metrics.decision(Answered {
                    operation: call.operation,
                    action: action.clone(),
                    level,
                    outcome: decision,
                    denial,
                    cache,
                    seconds: self.since(begun.monotonic),
                });
                if let (Some(key), Entry::Call(entry)) = (key, &entry) {
                    self.remember(key, entry, &decided, action, level);
                }
                Ok(Answer {
                    decision_id: begun.id,
                    ruling: decided.ruling,
                    revision: decided.revision,
                    cache: decided.cache,
                    reusable_for: decided.reusable_for,
                    show_policies: decided.show_policies,
                    said: None,
                })
            }
            Err(error) => Err(refused(error)),
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

    /// How long the caller still waits.
    fn left(&self, call: &Call) -> Duration {
        call.due.map_or(call.deadline, |due| due.saturating_sub(self.clock.monotonic()))
    }

    fn since(&self, begun: Duration) -> f64 {
        self.clock.monotonic().saturating_sub(begun).as_secs_f64()
    }

    /// Begins a stage of the path; `shown` as a span of its own.
    fn stage(&self, name: &'static str, shown: bool) -> Stage<'_> {
        self.stage_since(name, shown, self.clock.monotonic())
    }

    /// The same, begun at `begun` by the monotonic clock.
    fn stage_since(&self, name: &'static str, shown: bool, begun: Duration) -> Stage<'_> {
        let span = if shown { traces::stage_span(name) } else { tracing::Span::none() };
        Stage { pdp: self, name, begun, span }
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

/// One stage of the path, timed from its beginning.
struct Stage<'p> {
    pdp: &'p Pdp,
    name: &'static str,
    begun: Duration,
    span: tracing::Span,
}

impl Stage<'_> {
    /// It is over, with this result of a closed list. One that is never ended is not counted.
    fn end(self, result: &'static str) {
        let now = self.pdp.clock.monotonic();
        self.end_at(result, now);
    }

    /// The same, over at `now` by the monotonic clock.
    fn end_at(self, result: &'static str, now: Duration) {
        self.pdp.metrics.stage(self.name, now.saturating_sub(self.begun).as_secs_f64());
        traces::staged(&self.span, result);
    }

    /// It is over for so many questions at once, which have no spans of their own.
    fn end_each(self, questions: usize, now: Duration) {
        let seconds = now.saturating_sub(self.begun).as_secs_f64();
        (0..questions).for_each(|_| self.pdp.metrics.stage(self.name, seconds));
    }
}

struct Begun {
    id: DecisionId,
    wall: SystemTime,
    monotonic: Duration,
}

/// What became of a record, for the metrics.
fn what_became(written: &Result<(), AuditError>) -> &'static str {
    match written {
        Ok(()) => "written",
        Err(error) => match error {
            AuditError::QueueFull => "queue_full",
            AuditError::TimedOut => "timed_out",
            AuditError::TooLarge { .. } => "too_large",
            AuditError::Open(_)
            | AuditError::Start(_)
            | AuditError::Unwritable(_)
            | AuditError::Disk(_)
            | AuditError::Key { .. }
            | AuditError::Closed => "failed",
        },
    }
}

/// A decision and its denial code, for metrics and spans.
fn words(ruling: &Ruling) -> (&'static str, Option<&'static str>) {
    match ruling.decision {
        Decision::Allow => ("allow", None),
        Decision::Conditional => ("conditional", None),
        Decision::Deny => ("deny", ruling.denial.as_ref().map(|denial| denial.code.as_str())),
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    PolicyRevision::from_digest(digest.as_ref()).as_str().to_owned()
}

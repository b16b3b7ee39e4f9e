//! A question that may be put to the policies: typed by the schema, complete, and bound to one revision.
//!
//! [`AuthorizationRequest`] can't be made without that check; there is no other way to ask for a ruling.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use cedar_policy_core::ast::{
    Context, Entity, EntityType, EntityUID, EntityUIDEntry, PartialValue, Request, Value, ValueKind,
};
use cedar_policy_core::entities::{Dereference, Entities, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::CoreSchema;
use smol_str::SmolStr;

use super::bundle::Engine;
use super::compile::{CompiledAction, FieldSet};
use super::schema::FieldKind;
use super::types::{AttributeType, EntityShape, Misfit, RecordType};
use crate::config::Limits;
use crate::model::decision::DenialCode;
use crate::model::entity::{EntityUid, RawEntity};
use crate::model::field_path::FieldPath;
use crate::model::question::{FieldMode, FieldQuery, FieldSelection, Question};
use crate::token::TokenFacts;

/// Who asks on whose behalf, as far as policies may know.
#[derive(Debug, Clone)]
pub struct SubjectData {
    /// The principal: from the token's claims, asserted, the caller itself, or anonymous.
    pub principal: RawEntity,
    /// What the token said, for `context.token`.
    pub token: Option<Arc<TokenFacts>>,
    /// The calling workload, for `context.caller`.
    pub caller: Option<CallerData>,
}

/// The calling workload, as policies may know it.
#[derive(Debug, Clone)]
pub struct CallerData {
    /// Its entity: the configured caller type and its name.
    pub uid: EntityUid,
}

/// Why a question can't be put to the policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestError {
    /// It is malformed: the caller's mistake.
    Invalid(Misfit),
    /// The answer is no before any policy is asked.
    Denied(DenialCode),
}

impl From<Misfit> for RequestError {
    fn from(misfit: Misfit) -> Self {
        Self::Invalid(misfit)
    }
}

/// Object or function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Every object of the type.
    Function,
    /// One object.
    Object,
    /// One object, and fields of it.
    Field,
}

impl Level {
    /// `function`, `object`, `field`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Object => "object",
            Self::Field => "field",
        }
    }
}

/// The fields a question asks for, by the plan of its action and resource type.
#[derive(Debug, Clone)]
pub(crate) struct AskedFields {
    pub(crate) known: FieldSet,
    /// Asked for, but no field of this type: never granted.
    pub(crate) unknown: Vec<FieldPath>,
    pub(crate) mode: FieldMode,
}

/// A checked question. Holding one is the proof that it conforms to the schema of the revision it is bound to.
///
/// ```compile_fail
/// # fn forge(engine: std::sync::Arc<gatepost::policy::Bundle>) {
/// let request = gatepost::policy::AuthorizationRequest { engine };
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct AuthorizationRequest {
    pub(crate) engine: Arc<Engine>,
    pub(crate) action: Arc<CompiledAction>,
    pub(crate) principal: EntityUID,
    pub(crate) resource_type: EntityType,
    pub(crate) resource: Option<EntityUID>,
    pub(crate) context: Arc<BTreeMap<SmolStr, Value>>,
    pub(crate) entities: Entities,
    pub(crate) asked: Option<AskedFields>,
    pub(crate) level: Level,
}

impl AuthorizationRequest {
    /// Checks a question against the schema and gathers what its ruling may read.
    pub(super) fn new(
        engine: &Arc<Engine>,
        subject: &SubjectData,
        question: &Question,
        now: SystemTime,
    ) -> Result<Self, RequestError> {
        let limits = &engine.options.limits;
        if question.action.contains([':', '#'])
            && !engine.actions.contains_key(&question.action)
            && is_derived(&question.action)
        {
            return Err(Misfit::new("action", "must be a base action; ask for fields in `fields`").into());
        }
        let action = engine.actions.get(&question.action).ok_or(RequestError::Denied(DenialCode::UnknownAction))?;
        let (resource_type, resource_shape) = engine
            .shapes
            .entity(&question.resource.entity_type)
            .ok_or(RequestError::Denied(DenialCode::NotApplicable))?;
        let principal_type = engine.shapes.entity(&subject.principal.uid.entity_type);
        let (principal_type, principal_shape) =
            principal_type.ok_or(RequestError::Denied(DenialCode::NotApplicable))?;
        if !action.principals.contains(principal_type) || !action.resources.contains(resource_type) {
            return Err(RequestError::Denied(DenialCode::NotApplicable));
        }

        let mut gathering = Gathering { engine, limits, sent: HashMap::new(), ready: HashMap::new() };
        gathering.take_sent(&question.entities, &subject.principal.uid)?;

        // The resource: stored data wins, so nobody may talk over it.
        let resource = match &question.resource.id {
            None => {
                if !question.resource.attributes.is_empty() || !question.resource.parents.is_empty() {
                    return Err(Misfit::new("resource", "has no id, so it can't have attributes or parents").into());
                }
                None
            }
            Some(id) => {
                let described = RawEntity {
                    uid: EntityUid { entity_type: question.resource.entity_type.clone(), id: id.clone() },
                    attributes: question.resource.attributes.clone(),
                    parents: question.resource.parents.clone(),
                };
                let uid = engine.shapes.uid(&described.uid, "resource.id")?;
                if described.uid == subject.principal.uid {
                    // The same entity on both sides: the principal's own data stands.
                    if !described.attributes.is_empty() || !described.parents.is_empty() {
                        gathering.merge_with_principal(&described, subject)?;
                    }
                } else if !gathering.sent.contains_key(&uid)
                    || !described.attributes.is_empty()
                    || !described.parents.is_empty()
                {
                    gathering.add(&described, resource_shape, "resource", "resource.attributes", "resource.parents")?;
                }
                Some(uid)
            }
        };

        let principal = gathering.principal(subject, principal_shape)?;
        let context = gathering.context(action, subject, question, now)?;
        gathering.follow(&principal, resource.as_ref(), &context)?;
        let asked = match (&question.fields, &resource) {
            (None, _) => None,
            (Some(_), None) => return Err(Misfit::new("fields", "need a resource with an id").into()),
            (Some(query), Some(_)) => Some(asked_fields(action, resource_type, query)?),
        };
        let level = match (&resource, &asked) {
            (None, _) => Level::Function,
            (Some(_), None) => Level::Object,
            (Some(_), Some(_)) => Level::Field,
        };
        let entities = gathering.finish(action, resource_type, asked.is_some())?;
        Ok(Self {
            engine: Arc::clone(engine),
            action: Arc::clone(action),
            principal,
            resource_type: resource_type.clone(),
            resource,
            context: Arc::new(context),
            entities,
            asked,
            level,
        })
    }

    /// The level it asks at.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether its ruling may change as time passes, with nothing else changing.
    #[must_use]
    pub fn reads_now(&self) -> bool {
        self.action.reads_now
    }

    /// The request as Cedar takes it, with `action` as the action.
    pub(crate) fn cedar(&self, action: &EntityUID, resource: &EntityUID) -> Request {
        let known = |uid: &EntityUID| EntityUIDEntry::known(uid.clone(), None);
        Request::new_unchecked(
            known(&self.principal),
            known(action),
            known(resource),
            Some(Context::Value(Arc::clone(&self.context))),
        )
    }

    /// Everything that the ruling may depend on, each part framed by kind and length, so that no two requests that
    /// differ can look the same: revision, level, action, principal, resource, context, fields, entities.
    #[must_use]
    pub fn framed(&self) -> Vec<u8> {
        let mut frame = Frame { bytes: Vec::with_capacity(1024) };
        frame.text(1, self.engine.revision.as_str());
        frame.text(2, self.level.as_str());
        frame.uid(3, &self.action.uid);
        frame.uid(4, &self.principal);
        frame.text(5, &self.resource_type.to_string());
        if let Some(resource) = &self.resource {
            frame.uid(6, resource);
        }
        // The time is of no concern where no policy reads it, and would make every request another one.
        let matters = |name: &str| name != "now" || self.reads_now();
        frame.members(7, self.context.iter().filter(|(name, _)| matters(name)));
        if let Some(asked) = &self.asked {
            frame.part(
                8,
                &[match asked.mode {
                    FieldMode::Strict => 1,
                    FieldMode::Filter => 2,
                }],
            );
            for word in asked.known.words() {
                frame.part(9, &word.to_be_bytes());
            }
            for path in &asked.unknown {
                frame.text(10, path.as_str());
            }
        }
        let mut entities: Vec<&Entity> = self.entities.iter().collect();
        entities.sort_by(|a, b| a.uid().cmp(b.uid()));
        for entity in entities {
            frame.uid(11, entity.uid());
            let mut ancestors: Vec<&EntityUID> = entity.ancestors().collect();
            ancestors.sort();
            for ancestor in ancestors {
                frame.uid(12, ancestor);
            }
            for (kind, values) in [(13, entity.attrs().collect::<Vec<_>>()), (14, entity.tags().collect())] {
                for (name, value) in values {
                    frame.text(kind, name);
                    match value {
                        PartialValue::Value(value) => frame.value(&value.value),
                        PartialValue::Residual(expression) => frame.text(99, &expression.to_string()),
                    }
                }
            }
        }
        frame.bytes
    }

    /// Proof of which context was sent, without showing it: the framed context alone.
    #[must_use]
    pub fn framed_context(&self) -> Vec<u8> {
        let mut frame = Frame { bytes: Vec::new() };
        frame.record(7, &self.context);
        frame.bytes
    }
}

/// For the Cedar corpus alone, whose sets are not strict bundles: takes entities and context as they are.
#[doc(hidden)]
pub(super) fn dangerous_unchecked(
    engine: &Arc<Engine>,
    action: &Arc<CompiledAction>,
    principal: EntityUID,
    resource: EntityUID,
    context: Context,
    entities: Entities,
) -> Option<AuthorizationRequest> {
    let Context::Value(context) = context else { return None };
    Some(AuthorizationRequest {
        engine: Arc::clone(engine),
        action: Arc::clone(action),
        principal,
        resource_type: resource.entity_type().clone(),
        resource: Some(resource),
        context,
        entities,
        asked: None,
        level: Level::Object,
    })
}

/// Whether a name looks like a derived action's: a `:` or `#` in its part after the namespace.
fn is_derived(action: &str) -> bool {
    let id = action.rsplit_once("::").map_or(action, |(_, id)| id);
    id.contains([':', '#'])
}

fn asked_fields(
    action: &CompiledAction,
    resource_type: &EntityType,
    query: &FieldQuery,
) -> Result<AskedFields, Misfit> {
    let Some(kind) = action.field_kind else {
        return Err(Misfit::new(
            "fields",
            "are not known for this action: it is not marked with `@fields` in the schema",
        ));
    };
    let plan =
        action.plans.get(resource_type).ok_or_else(|| Misfit::new("fields", "are not known for this resource type"))?;
    let mode = query.mode.unwrap_or(match kind {
        FieldKind::Read => FieldMode::Filter,
        FieldKind::Write => FieldMode::Strict,
    });
    let mut asked = AskedFields { known: FieldSet::none(plan.paths.len()), unknown: Vec::new(), mode };
    match &query.selection {
        FieldSelection::All => asked.known = FieldSet::all(plan.paths.len()),
        FieldSelection::Named(paths) => {
            for path in paths {
                if let Some(position) = plan.positions.get(path.as_str()) {
                    asked.known.insert(*position);
                } else if let Some(subtree) = plan.subtrees.iter().find(|subtree| subtree.path == *path) {
                    asked.known.add(&subtree.fields);
                } else {
                    asked.unknown.push(path.clone());
                }
            }
        }
    }
    Ok(asked)
}

/// Collects the entities that a ruling may read.
struct Gathering<'e> {
    engine: &'e Arc<Engine>,
    limits: &'e Limits,
    /// What the caller sent, typed, ancestors not yet closed over.
    sent: HashMap<EntityUID, Sent>,
    /// Closed and ready.
    ready: HashMap<EntityUID, Arc<Entity>>,
}

struct Sent {
    attributes: BTreeMap<SmolStr, Value>,
    parents: Vec<EntityUID>,
}

impl Gathering<'_> {
    fn take_sent(&mut self, entities: &[RawEntity], principal: &EntityUid) -> Result<(), RequestError> {
        for (index, raw) in entities.iter().enumerate() {
            let at = format!("entities[{index}]");
            if raw.uid == *principal {
                return Err(Misfit::new(&at, "is the principal, which comes from the subject alone").into());
            }
            let Some((_, shape)) = self.engine.shapes.entity(&raw.uid.entity_type) else {
                return Err(Misfit::new(&format!("{at}.type"), "names a type that the schema does not declare").into());
            };
            self.add(raw, shape, &at, &format!("{at}.attributes"), &format!("{at}.parents"))?;
        }
        Ok(())
    }

    /// Types what the caller says of an entity.
    fn add(
        &mut self,
        raw: &RawEntity,
        shape: &EntityShape,
        at: &str,
        attributes_at: &str,
        parents_at: &str,
    ) -> Result<(), RequestError> {
        let uid = self.engine.shapes.uid(&raw.uid, at)?;
        if self.engine.stored.contains_key(&uid) {
            if raw.attributes.is_empty() && raw.parents.is_empty() {
                return Ok(());
            }
            return Err(Misfit::new(
                at,
                "is in the bundle's own data, which stands: send no attributes or parents for it",
            )
            .into());
        }
        let attributes = self.engine.shapes.record(&shape.attributes, &raw.attributes, attributes_at, self.limits)?;
        let parents = self.parents(&raw.parents, shape, parents_at)?;
        if self.sent.insert(uid, Sent { attributes, parents }).is_some() {
            return Err(Misfit::new(at, "is described twice").into());
        }
        Ok(())
    }

    fn parents(&self, raw: &[EntityUid], shape: &EntityShape, at: &str) -> Result<Vec<EntityUID>, Misfit> {
        if raw.len() > self.limits.ancestors {
            return Err(Misfit::new(at, "are more than `limits.ancestors`"));
        }
        let mut parents = Vec::with_capacity(raw.len());
        for parent in raw {
            let uid = self.engine.shapes.uid(parent, at)?;
            if !shape.ancestors.contains(uid.entity_type()) {
                return Err(Misfit::new(at, "hold a type that the schema does not put above this one"));
            }
            parents.push(uid);
        }
        Ok(parents)
    }

    /// The principal: what the token says, over what is stored.
    fn principal(&mut self, subject: &SubjectData, shape: &EntityShape) -> Result<EntityUID, RequestError> {
        let raw = &subject.principal;
        // A principal from a token is not the caller's fault, so what is wrong with it is a denial, not a malformed question.
        let blame = |misfit: Misfit| match subject.token {
            Some(_) => RequestError::Denied(DenialCode::PrincipalIncomplete),
            None => RequestError::Invalid(misfit),
        };
        let uid = self.engine.shapes.uid(&raw.uid, "subject").map_err(blame)?;
        let stored = self.engine.stored.get(&uid);
        if stored.is_some() && subject.token.is_none() && !(raw.attributes.is_empty() && raw.parents.is_empty()) {
            // A token may say more than what is stored; a caller may not.
            return Err(Misfit::new(
                "subject",
                "is in the bundle's own data, which stands: send no attributes or parents for it",
            )
            .into());
        }
        let at = "subject.attributes";
        let known = |name: &str| stored.is_some_and(|stored| stored.get(name).is_some());
        let mut attributes = self
            .engine
            .shapes
            .record_over(&shape.attributes, &raw.attributes, at, self.limits, known)
            .map_err(blame)?;
        let mut parents = self.parents(&raw.parents, shape, "subject.parents").map_err(blame)?;
        if let Some(stored) = stored {
            for (name, value) in stored.attrs() {
                if let (false, PartialValue::Value(value)) = (attributes.contains_key(name), value) {
                    attributes.insert(name.clone(), value.clone());
                }
            }
            parents.extend(stored.ancestors().cloned());
        }
        let entity = self.close(&uid, attributes, parents, stored.map(Arc::as_ref))?;
        self.ready.insert(uid.clone(), entity);
        Ok(uid)
    }

    /// A resource that is the principal itself may bring attributes that the token did not have; never others.
    fn merge_with_principal(&self, described: &RawEntity, subject: &SubjectData) -> Result<(), Misfit> {
        let same =
            described.attributes.iter().all(|(name, value)| subject.principal.attributes.get(name) == Some(value));
        if same && described.parents.is_empty() {
            return Ok(());
        }
        Err(Misfit::new(
            "resource",
            "is the principal itself, whose data comes from the subject: send no other attributes or parents for it",
        ))
    }

    fn context(
        &mut self,
        action: &CompiledAction,
        subject: &SubjectData,
        question: &Question,
        now: SystemTime,
    ) -> Result<BTreeMap<SmolStr, Value>, RequestError> {
        if INJECTED.iter().any(|name| question.context.contains_key(*name)) {
            return Err(
                Misfit::new("context", "holds `now`, `caller` or `token`, which Gatepost alone supplies").into()
            );
        }
        let mut context = self.engine.shapes.record(&action.context, &question.context, "context", self.limits)?;
        for (name, member) in &action.injected {
            let value = match (*name, &member.attribute) {
                ("now", _) => self.engine.datetime(now),
                ("caller", AttributeType::Entity(_)) => self.caller(subject)?,
                ("caller", _) => subject.caller.as_ref().map(|caller| Value::from(caller.uid.id.as_str())),
                (_, AttributeType::Record(record)) => match subject.token.as_deref() {
                    Some(token) => Some(self.token(record, token)?),
                    None => None,
                },
                (_, _) => None,
            };
            match value {
                Some(value) => drop(context.insert(SmolStr::new_static(name), value)),
                None if member.required => return Err(RequestError::Denied(DenialCode::ContextIncomplete)),
                None => {}
            }
        }
        Ok(context)
    }

    fn caller(&mut self, subject: &SubjectData) -> Result<Option<Value>, RequestError> {
        let Some(caller) = &subject.caller else { return Ok(None) };
        let Ok(uid) = self.engine.shapes.uid(&caller.uid, "subject") else {
            return Err(RequestError::Denied(DenialCode::ContextIncomplete));
        };
        if !self.ready.contains_key(&uid) && !self.engine.stored.contains_key(&uid) {
            let Some((_, shape)) = self.engine.shapes.entity(&caller.uid.entity_type) else {
                return Err(RequestError::Denied(DenialCode::ContextIncomplete));
            };
            if shape.attributes.members.values().any(|member| member.required) {
                return Err(RequestError::Denied(DenialCode::ContextIncomplete));
            }
            if self.sent.contains_key(&uid) {
                return Err(Misfit::new("entities", "describe the calling workload, which Gatepost alone knows").into());
            }
            let entity = self.close(&uid, BTreeMap::new(), Vec::new(), None)?;
            self.ready.insert(uid.clone(), entity);
        }
        Ok(Some(Value::from(uid)))
    }

    /// The declared facts of a token; a required one that the token lacks denies.
    fn token(&self, declared: &RecordType, token: &TokenFacts) -> Result<Value, RequestError> {
        let texts =
            |texts: &BTreeSet<String>| Some(Value::set(texts.iter().map(|text| Value::from(text.as_str())), None));
        let mut facts = BTreeMap::new();
        for (name, member) in &declared.members {
            let value = match name.as_str() {
                "issuer" => Some(Value::from(token.issuer.as_str())),
                "subject" => Some(Value::from(token.subject.as_str())),
                "scopes" => texts(&token.scopes),
                "amr" => texts(&token.amr),
                "acr" => token.acr.as_deref().map(Value::from),
                "client_id" => token.client_id.as_deref().map(Value::from),
                "auth_time" => token.auth_time.and_then(|time| self.engine.datetime(time)),
                "issued_at" => self.engine.datetime(token.issued_at),
                _ => None,
            };
            match value {
                Some(value) => drop(facts.insert(name.clone(), value)),
                None if member.required => return Err(RequestError::Denied(DenialCode::ContextIncomplete)),
                None => {}
            }
        }
        Ok(Value::record_arc(Arc::new(facts), None))
    }

    /// Makes every entity ready that the policies can reach: what is missing fails the question rather than weaken a forbid.
    fn follow(
        &mut self,
        principal: &EntityUID,
        resource: Option<&EntityUID>,
        context: &BTreeMap<SmolStr, Value>,
    ) -> Result<(), RequestError> {
        let mut wave: HashSet<EntityUID> = context.values().flat_map(Value::all_literal_uids).collect();
        if let Some(resource) = resource
            && resource != principal
        {
            self.make_ready(resource)?;
        }
        let mut roots: Vec<EntityUID> = std::iter::once(principal).chain(resource).cloned().collect();
        for step in 1..=self.engine.options.validation_level {
            for uid in &wave {
                if self.ready.contains_key(uid) {
                    continue;
                }
                if self.sent.contains_key(uid) || self.engine.stored.contains_key(uid) {
                    self.make_ready(uid)?;
                } else if self.engine.shapes.entities.get(uid.entity_type()).is_some_and(EntityShape::tells_something) {
                    let at = if step == 1 { "context" } else { "entities" };
                    return Err(Misfit::new(
                        at,
                        "refers to an entity that policies may look into: describe it in `entities`",
                    )
                    .into());
                }
            }
            roots.extend(wave.drain());
            if step < self.engine.options.validation_level {
                wave = roots
                    .iter()
                    .filter_map(|uid| self.ready.get(uid))
                    .flat_map(|entity| entity.attrs().chain(entity.tags()))
                    .filter_map(|(_, value)| match value {
                        PartialValue::Value(value) => Some(value.all_literal_uids()),
                        PartialValue::Residual(_) => None,
                    })
                    .flatten()
                    .collect();
            }
        }
        // What else the caller sent costs little and may be what a policy names outright.
        let rest: Vec<EntityUID> = self.sent.keys().filter(|uid| !self.ready.contains_key(*uid)).cloned().collect();
        for uid in rest {
            self.make_ready(&uid)?;
        }
        Ok(())
    }

    fn make_ready(&mut self, uid: &EntityUID) -> Result<(), RequestError> {
        if self.ready.contains_key(uid) {
            return Ok(());
        }
        let entity = match (self.engine.stored.get(uid), self.sent.get(uid)) {
            (Some(stored), _) if stored.ancestors().any(|above| self.adds_above(above)) => {
                let attributes = stored.attrs().filter_map(|(name, value)| match value {
                    PartialValue::Value(value) => Some((name.clone(), value.clone())),
                    PartialValue::Residual(_) => None,
                });
                self.close(uid, attributes.collect(), stored.ancestors().cloned().collect(), Some(stored))?
            }
            (Some(stored), _) => Arc::clone(stored),
            (None, Some(sent)) => self.close(uid, sent.attributes.clone(), sent.parents.clone(), None)?,
            (None, None) => return Ok(()),
        };
        self.ready.insert(uid.clone(), entity);
        Ok(())
    }

    /// Whether more is known of what stands above this entity than the bundle's own data say: it is the principal, whose
    /// subject may add parents, or the caller describes it.
    fn adds_above(&self, uid: &EntityUID) -> bool {
        self.sent.contains_key(uid) || self.ready.contains_key(uid)
    }

    /// An entity with all its ancestors: what was sent, is stored, or came with the principal about its parents counts.
    /// Tags can't be sent, so an entity has those that are `stored`.
    fn close(
        &self,
        uid: &EntityUID,
        attributes: BTreeMap<SmolStr, Value>,
        parents: Vec<EntityUID>,
        stored: Option<&Entity>,
    ) -> Result<Arc<Entity>, RequestError> {
        let direct: HashSet<EntityUID> = parents.into_iter().collect();
        let mut above: HashSet<EntityUID> = direct.clone();
        // Each is walked through once, by however many ways it can be reached: their number doubles with every step.
        let mut wave: Vec<EntityUID> = direct.iter().cloned().collect();
        let mut depth = 0;
        while !wave.is_empty() {
            depth += 1;
            if depth > self.limits.ancestor_depth {
                return Err(Misfit::new("entities", "stand higher than `limits.ancestor_depth`").into());
            }
            let mut next = Vec::new();
            let mut rise = |higher: &EntityUID, open: bool| {
                if above.insert(higher.clone()) && open {
                    next.push(higher.clone());
                }
            };
            for parent in wave {
                // The principal is ready before anything else is closed, and what is ready is closed.
                if let Some(ready) = self.ready.get(&parent) {
                    ready.ancestors().for_each(|higher| rise(higher, false));
                } else if let Some(stored) = self.engine.stored.get(&parent) {
                    stored.ancestors().for_each(|higher| rise(higher, self.adds_above(higher)));
                } else if let Some(sent) = self.sent.get(&parent) {
                    sent.parents.iter().for_each(|higher| rise(higher, true));
                }
            }
            if above.len() > self.limits.ancestors {
                return Err(Misfit::new("entities", "have more ancestors than `limits.ancestors`").into());
            }
            wave = next;
        }
        if above.contains(uid) {
            return Err(Misfit::new("entities", "hold an entity that is its own ancestor").into());
        }
        let indirect = above.difference(&direct).cloned().collect();
        let attributes = attributes.into_iter().map(|(name, value)| (name, PartialValue::Value(value)));
        let tags = stored.into_iter().flat_map(Entity::tags).map(|(name, value)| (name.clone(), value.clone()));
        Ok(Arc::new(Entity::new_with_attr_partial_value(uid.clone(), attributes, indirect, direct, tags)))
    }

    fn finish(
        self,
        action: &CompiledAction,
        resource_type: &EntityType,
        fields: bool,
    ) -> Result<Entities, RequestError> {
        let field_entities =
            fields.then(|| action.plans.get(resource_type)).flatten().into_iter().flat_map(|plan| plan.entities.iter());
        let all = self.ready.into_values().chain([Arc::clone(&action.entity)]).chain(field_entities.cloned());
        Entities::new()
            .add_entities(
                all,
                None::<&CoreSchema<'_>>,
                TCComputation::AssumeAlreadyComputed,
                Extensions::all_available(),
            )
            .map_err(|_| Misfit::new("entities", "contradict each other").into())
    }
}

/// What Gatepost itself supplies, where the action's context declares it.
pub(crate) const INJECTED: [&str; 3] = ["now", "caller", "token"];

/// Whether an entity is there, for the engine's own look-ups.
pub(crate) fn stored_entities(entities: &Entities) -> HashMap<EntityUID, Arc<Entity>> {
    entities
        .iter()
        .filter(|entity| !entity.uid().is_action())
        .map(|entity| match entities.entity(entity.uid()) {
            Dereference::Data(found) => (entity.uid().clone(), Arc::new(found.clone())),
            Dereference::NoSuchEntity | Dereference::Residual(_) => (entity.uid().clone(), Arc::new(entity.clone())),
        })
        .collect()
}

/// Kind, length, bytes.
struct Frame {
    bytes: Vec<u8>,
}

impl Frame {
    fn part(&mut self, kind: u8, bytes: &[u8]) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    fn text(&mut self, kind: u8, text: &str) {
        self.part(kind, text.as_bytes());
    }

    fn uid(&mut self, kind: u8, uid: &EntityUID) {
        self.text(kind, &uid.entity_type().to_string());
        self.text(kind, uid.eid().as_ref());
    }

    fn record(&mut self, kind: u8, record: &BTreeMap<SmolStr, Value>) {
        self.members(kind, record.iter());
    }

    fn members<'v>(&mut self, kind: u8, members: impl Iterator<Item = (&'v SmolStr, &'v Value)> + Clone) {
        self.part(kind, &(members.clone().count() as u64).to_be_bytes());
        for (name, value) in members {
            self.text(kind, name);
            self.value(&value.value);
        }
    }

    fn value(&mut self, value: &ValueKind) {
        use cedar_policy_core::ast::Literal;
        match value {
            ValueKind::Lit(Literal::Bool(value)) => self.part(20, &[u8::from(*value)]),
            ValueKind::Lit(Literal::Long(value)) => self.part(21, &value.to_be_bytes()),
            ValueKind::Lit(Literal::String(value)) => self.text(22, value),
            ValueKind::Lit(Literal::EntityUID(uid)) => self.uid(23, uid),
            ValueKind::Set(set) => {
                self.part(24, &(set.len() as u64).to_be_bytes());
                for element in set.iter() {
                    self.value(&element.value);
                }
            }
            ValueKind::Record(record) => self.record(25, record),
            ValueKind::ExtensionValue(_) => self.text(26, &value.to_string()),
        }
    }
}

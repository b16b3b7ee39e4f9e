//! The entities that a ruling may read: what the subject, the caller and the bundle say, in that order of trust, closed
//! under ancestors, complete as far as policies can look.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use cedar_policy_core::ast::{Entity, EntityType, EntityUID, PartialValue, Value};
use cedar_policy_core::entities::{Dereference, Entities, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::CoreSchema;
use smol_str::SmolStr;

use super::compile::CompiledAction;
use super::engine::Engine;
use super::keyed::ByUid;
use super::request::{RequestError, SubjectData};
use super::types::{AttributeType, EntityShape, Misfit, RecordType};
use crate::config::Limits;
use crate::model::decision::DenialCode;
use crate::model::entity::{EntityUid, RawEntity, RawRecord};
use crate::model::question::{Question, Resource};
use crate::token::TokenFacts;

/// Collects the entities that a ruling may read.
pub(super) struct Gathering<'e> {
    engine: &'e Arc<Engine>,
    limits: &'e Limits,
    /// What the caller sent, typed, ancestors not yet closed over; attributes only until it is ready.
    pub(super) sent: ByUid<Sent>,
    /// Closed and ready.
    ready: ByUid<Arc<Entity>>,
}

/// Where an entity and what is said of it stand in the question.
pub(super) struct Places<'p> {
    pub(super) whole: &'p str,
    pub(super) attributes: &'p str,
    pub(super) parents: &'p str,
}

pub(super) struct Sent {
    attributes: BTreeMap<SmolStr, Value>,
    parents: Vec<EntityUID>,
}

impl<'e> Gathering<'e> {
    /// Nothing yet.
    pub(super) fn new(engine: &'e Arc<Engine>) -> Self {
        // One seed for all questions of a bundle: drawing one takes longer than to look up what they are for.
        let hasher = || engine.stored.hasher().clone();
        Self {
            engine,
            limits: &engine.options.limits,
            sent: ByUid::with_hasher(hasher()),
            ready: ByUid::with_hasher(hasher()),
        }
    }
}

impl Gathering<'_> {
    pub(super) fn take_sent(&mut self, entities: &[RawEntity], principal: &EntityUid) -> Result<(), RequestError> {
        for (index, raw) in entities.iter().enumerate() {
            let at = format!("entities[{index}]");
            if raw.uid == *principal {
                return Err(Misfit::new(&at, "is the principal, which comes from the subject alone").into());
            }
            let Some((_, shape)) = self.engine.shapes.entity(&raw.uid.entity_type) else {
                return Err(Misfit::new(&format!("{at}.type"), "names a type that the schema does not declare").into());
            };
            let uid = self.engine.shapes.uid(&raw.uid, &at)?;
            let places =
                Places { whole: &at, attributes: &format!("{at}.attributes"), parents: &format!("{at}.parents") };
            self.add(uid, &raw.attributes, &raw.parents, shape, &places)?;
        }
        Ok(())
    }

    /// Types what the caller says of an entity.
    pub(super) fn add(
        &mut self,
        uid: EntityUID,
        attributes: &RawRecord,
        parents: &[EntityUid],
        shape: &EntityShape,
        at: &Places<'_>,
    ) -> Result<(), RequestError> {
        if self.engine.stored.contains_key(&uid) {
            if attributes.is_empty() && parents.is_empty() {
                return Ok(());
            }
            return Err(Misfit::new(
                at.whole,
                "is in the bundle's own data, which stands: send no attributes or parents for it",
            )
            .into());
        }
        if shape.tags {
            return Err(Misfit::new(at.whole, TAGGED).into());
        }
        let attributes = self.engine.shapes.record(&shape.attributes, attributes, at.attributes, self.limits)?;
        let parents = self.parents(parents, shape, at.parents)?;
        if self.sent.insert(uid, Sent { attributes, parents }).is_some() {
            return Err(Misfit::new(at.whole, "is described twice").into());
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
    pub(super) fn principal(&mut self, subject: &SubjectData, shape: &EntityShape) -> Result<EntityUID, RequestError> {
        if let Some(known) = self.engine.principals.find(subject)
            && !self.sent.keys().any(|sent| known.is_descendant_of(sent))
        {
            let uid = known.uid().clone();
            self.ready.insert(uid.clone(), known);
            return Ok(uid);
        }
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
        if stored.is_none() && shape.tags {
            return Err(blame(Misfit::new("subject", TAGGED)));
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
        // What the caller says of what stands above it is this question's alone.
        if !self.sent.keys().any(|sent| entity.is_descendant_of(sent)) {
            self.engine.principals.put(subject, &entity);
        }
        self.ready.insert(uid.clone(), entity);
        Ok(uid)
    }

    /// A resource that is the principal itself may bring attributes that the token did not have; never others.
    pub(super) fn merge_with_principal(&self, described: &Resource, subject: &SubjectData) -> Result<(), Misfit> {
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

    pub(super) fn context(
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
            if shape.tags || shape.attributes.members.values().any(|member| member.required) {
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
                // RFC 8693 section 4.1: the first is the current actor; those before it are told, and grant nothing.
                "actor" => token.actors.first().map(|actor| Value::from(actor.subject.as_str())),
                "actors" => {
                    let subjects = token.actors.iter().map(|actor| Value::from(actor.subject.as_str()));
                    Some(Value::set(subjects, None))
                }
                "sender_constrained" => Some(Value::from(token.confirmation.is_some())),
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
    pub(super) fn follow(
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
                } else if self
                    .engine
                    .shapes
                    .entities
                    .get(uid.entity_type())
                    .is_some_and(|shape| shape.tells_something())
                {
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
        // Others still have to find its parents; its attributes are of use to itself alone.
        let sent = self.sent.get_mut(uid).map(|sent| (std::mem::take(&mut sent.attributes), sent.parents.clone()));
        let entity = match (self.engine.stored.get(uid), sent) {
            (Some(stored), _) if stored.ancestors().any(|above| self.adds_above(above)) => {
                let attributes = stored.attrs().filter_map(|(name, value)| match value {
                    PartialValue::Value(value) => Some((name.clone(), value.clone())),
                    PartialValue::Residual(_) => None,
                });
                self.close(uid, attributes.collect(), stored.ancestors().cloned().collect(), Some(stored))?
            }
            (Some(stored), _) => Arc::clone(stored),
            (None, Some((attributes, parents))) => self.close(uid, attributes, parents, None)?,
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
        let indirect = if direct.is_empty() { HashSet::new() } else { self.above(uid, &direct)? };
        let attributes = attributes.into_iter().map(|(name, value)| (name, PartialValue::Value(value)));
        let tags = stored.into_iter().flat_map(Entity::tags).map(|(name, value)| (name.clone(), value.clone()));
        Ok(Arc::new(Entity::new_with_attr_partial_value(uid.clone(), attributes, indirect, direct, tags)))
    }

    /// What stands above what stands directly above an entity, `direct` left out.
    fn above(&self, uid: &EntityUID, direct: &HashSet<EntityUID>) -> Result<HashSet<EntityUID>, RequestError> {
        let mut indirect = HashSet::new();
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
                if !direct.contains(higher) && indirect.insert(higher.clone()) && open {
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
            if direct.len() + indirect.len() > self.limits.ancestors {
                return Err(Misfit::new("entities", "have more ancestors than `limits.ancestors`").into());
            }
            wave = next;
        }
        if direct.contains(uid) || indirect.contains(uid) {
            return Err(Misfit::new("entities", "hold an entity that is its own ancestor").into());
        }
        Ok(indirect)
    }

    pub(super) fn finish(
        self,
        action: &CompiledAction,
        resource_type: &EntityType,
        fields: bool,
    ) -> Result<Entities, RequestError> {
        let field_entities = fields
            .then(|| action.plans.get(resource_type))
            .flatten()
            .into_iter()
            .flat_map(|plan| plan.looked_at.iter());
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

/// A `forbid` that asks for a tag must not pass because nobody could send the tag.
const TAGGED: &str = "is of a type with tags, which can't be sent: only entities in the bundle's own data can have it";

/// What Gatepost itself supplies, where the action's context declares it.
pub(crate) const INJECTED: [&str; 3] = ["now", "caller", "token"];

/// Whether an entity is there, for the engine's own look-ups.
pub(super) fn stored_entities(entities: &Entities) -> ByUid<Arc<Entity>> {
    entities
        .iter()
        .filter(|entity| !entity.uid().is_action())
        .map(|entity| match entities.entity(entity.uid()) {
            Dereference::Data(found) => (entity.uid().clone(), Arc::new(found.clone())),
            Dereference::NoSuchEntity | Dereference::Residual(_) => (entity.uid().clone(), Arc::new(entity.clone())),
        })
        .collect()
}

//! A question that may be put to the policies: typed by the schema, complete, and bound to one revision.
//!
//! [`AuthorizationRequest`] can't be made without that check; there is no other way to ask for a ruling.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use cedar_policy_core::ast::{Context, Entity, EntityType, EntityUID, EntityUIDEntry, PartialValue, Request, Value};
use cedar_policy_core::entities::Entities;
use smol_str::SmolStr;

use super::compile::{CompiledAction, FieldSet};
use super::engine::Engine;
use super::entities::{Gathering, Places};
use super::frame::Frame;
use super::schema::FieldKind;
use super::types::Misfit;
use crate::model::decision::DenialCode;
use crate::model::entity::{EntityUid, RawEntity};
use crate::model::field_path::FieldPath;
use crate::model::question::{FieldMode, FieldQuery, FieldSelection, Question};
use crate::token::TokenFacts;

/// Who asks on whose behalf, as far as policies may know.
#[derive(Debug, Clone)]
pub struct SubjectData {
    /// The principal: from the token's claims, asserted, the caller itself, or anonymous.
    pub principal: Arc<RawEntity>,
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

        let mut gathering = Gathering::new(engine);
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
                let described = &question.resource;
                let uid = engine.shapes.uid_of(&described.entity_type, id, "resource.id")?;
                let told = !described.attributes.is_empty() || !described.parents.is_empty();
                if *id == subject.principal.uid.id && described.entity_type == subject.principal.uid.entity_type {
                    // The same entity on both sides: the principal's own data stands.
                    if told {
                        gathering.merge_with_principal(described, subject)?;
                    }
                } else if !gathering.sent.contains_key(&uid) || told {
                    let places =
                        Places { whole: "resource", attributes: "resource.attributes", parents: "resource.parents" };
                    gathering.add(uid.clone(), &described.attributes, &described.parents, resource_shape, &places)?;
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
        let mut frame = Frame::default();
        frame.text(1, self.engine.revision.as_str());
        frame.text(2, self.level.as_str());
        frame.uid(3, &self.action.uid);
        frame.uid(4, &self.principal);
        frame.entity_type(5, &self.resource_type);
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
        // Actions come from the bundle alone: the revision and the action stand for them.
        let mut entities: Vec<&Entity> = self.entities.iter().filter(|entity| !entity.uid().is_action()).collect();
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
        let mut frame = Frame::default();
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
            // Masks mostly come sorted as ours are: the next field is then the next one here too.
            let mut next = 0;
            for path in paths {
                let expected = plan.paths.get(next).filter(|expected| *expected == path);
                if let Some(position) = expected.map(|_| next).or_else(|| plan.position(path)) {
                    asked.known.insert(position);
                    next = position + 1;
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

//! Policies made ready to be asked: scopes as data, conditions without their scopes, and who can match what.
//!
//! A Cedar policy means `principal scope && action scope && resource scope && condition`. Scopes can't fail, so a policy
//! whose scope does not match neither decides nor errs, and one whose scope matches is its condition. Only candidates by
//! action are looked at, and only conditions are evaluated. Proven equal to plain evaluation of the whole set by
//! `tests/spec/masks.rs` and the Cedar corpus.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cedar_policy_core::ast::{
    ActionConstraint, Effect, Entity, EntityReference, EntityType, EntityUID, Expr, Policy,
    PrincipalOrResourceConstraint,
};
use cedar_policy_core::entities::{Dereference, Entities};

use super::schema::FieldKind;
use super::types::{Member, RecordType, mentions_action, reads_now};
use crate::model::field_path::FieldPath;

/// A policy, ready to be asked.
#[derive(Debug)]
pub(crate) struct CompiledPolicy {
    /// Its `@id`.
    pub(crate) id: String,
    pub(crate) forbids: bool,
    /// From `@obligation`.
    pub(crate) obligation: Option<String>,
    pub(crate) policy: Policy,
    principal: PrincipalOrResourceConstraint,
    resource: PrincipalOrResourceConstraint,
    /// The condition alone; `None` is always true.
    pub(crate) body: Option<Arc<Expr>>,
    /// Whether the condition looks at `action`.
    pub(crate) mentions_action: bool,
    /// Whether the condition reads the time.
    pub(crate) reads_now: bool,
}

impl CompiledPolicy {
    pub(crate) fn new(id: String, policy: &Policy) -> Self {
        let body = policy.non_scope_constraints_arc().cloned();
        let annotation = |name: &str| {
            policy.annotations().find(|(key, _)| key.as_ref() == name).map(|(_, value)| value.val.to_string())
        };
        Self {
            id,
            forbids: policy.effect() == Effect::Forbid,
            obligation: annotation("obligation"),
            principal: policy.principal_constraint().into_inner(),
            resource: policy.resource_constraint().into_inner(),
            mentions_action: body.as_deref().is_some_and(mentions_action),
            reads_now: body.as_deref().is_some_and(reads_now),
            body,
            policy: policy.clone(),
        }
    }

    /// Whether the scope matches, the action's part aside.
    pub(crate) fn covers(&self, principal: &EntityUID, resource: &EntityUID, entities: &Entities) -> bool {
        matches_scope(&self.principal, principal, entities) && matches_scope(&self.resource, resource, entities)
    }

    /// Whether the action's part of the scope matches, by the schema's groups.
    pub(crate) fn covers_action(&self, action: &EntityUID, groups: &Entities) -> bool {
        match self.policy.action_constraint() {
            ActionConstraint::Any => true,
            ActionConstraint::Eq(wanted) => **wanted == *action,
            ActionConstraint::In(wanted) => wanted.iter().any(|wanted| is_in(action, wanted, groups)),
        }
    }

    /// Whether the action's part of the scope names `action` itself.
    pub(crate) fn names_action(&self, action: &EntityUID) -> bool {
        match self.policy.action_constraint() {
            ActionConstraint::Any => false,
            ActionConstraint::Eq(wanted) => **wanted == *action,
            ActionConstraint::In(wanted) => wanted.iter().any(|wanted| **wanted == *action),
        }
    }
}

fn matches_scope(constraint: &PrincipalOrResourceConstraint, uid: &EntityUID, entities: &Entities) -> bool {
    match constraint {
        PrincipalOrResourceConstraint::Any => true,
        PrincipalOrResourceConstraint::Eq(EntityReference::EUID(wanted)) => **wanted == *uid,
        PrincipalOrResourceConstraint::In(EntityReference::EUID(wanted)) => is_in(uid, wanted, entities),
        PrincipalOrResourceConstraint::Is(wanted) => **wanted == *uid.entity_type(),
        PrincipalOrResourceConstraint::IsIn(wanted, EntityReference::EUID(above)) => {
            **wanted == *uid.entity_type() && is_in(uid, above, entities)
        }
        // A linked policy's constraints come with their slots filled; an unfilled one is no policy.
        PrincipalOrResourceConstraint::Eq(EntityReference::Slot(_))
        | PrincipalOrResourceConstraint::In(EntityReference::Slot(_))
        | PrincipalOrResourceConstraint::IsIn(_, EntityReference::Slot(_)) => false,
    }
}

fn is_in(uid: &EntityUID, above: &EntityUID, entities: &Entities) -> bool {
    uid == above
        || match entities.entity(uid) {
            Dereference::Data(entity) => entity.is_descendant_of(above),
            Dereference::NoSuchEntity | Dereference::Residual(_) => false,
        }
}

/// Everything about one base action that does not depend on the question.
#[derive(Debug)]
pub(crate) struct CompiledAction {
    pub(crate) uid: EntityUID,
    /// The action as an entity, with the groups it is in.
    pub(crate) entity: Arc<Entity>,
    pub(crate) principals: Vec<EntityType>,
    pub(crate) resources: Vec<EntityType>,
    /// What callers supply.
    pub(crate) context: RecordType,
    /// What Gatepost itself supplies.
    pub(crate) injected: Vec<(&'static str, Member)>,
    /// The policies whose scope covers the action, in order.
    pub(crate) candidates: Vec<usize>,
    /// Whether one of them, or one that settles its fields, reads the time.
    pub(crate) reads_now: bool,
    /// The candidates as a set for partial evaluation (the function level).
    pub(crate) slice: cedar_policy::PolicySet,
    /// What its fields are for, when it has any.
    pub(crate) field_kind: Option<FieldKind>,
    pub(crate) plans: HashMap<EntityType, FieldPlan>,
}

/// The fields of one action on one resource type, and which policies speak about which of them.
#[derive(Debug, Default)]
pub(crate) struct FieldPlan {
    /// The leaf paths, sorted.
    pub(crate) paths: Vec<FieldPath>,
    /// Where each path stands in `paths`.
    pub(crate) positions: BTreeMap<String, usize>,
    /// The subtrees that a policy can grant whole, by their path without `.*`, with the fields in them and the group's id.
    pub(crate) subtrees: Vec<Subtree>,
    /// The derived action of each path.
    pub(crate) actions: Vec<EntityUID>,
    /// The same as entities.
    pub(crate) entities: Vec<Arc<Entity>>,
    pub(crate) rules: Vec<FieldRule>,
}

/// A record of a resource whose fields a policy may grant together, future ones included.
#[derive(Debug)]
pub(crate) struct Subtree {
    pub(crate) path: FieldPath,
    pub(crate) fields: FieldSet,
}

/// One policy, and the fields that its action scope covers.
#[derive(Debug)]
pub(crate) struct FieldRule {
    pub(crate) policy: usize,
    pub(crate) fields: FieldSet,
    /// The subtrees of the plan that the scope names, by position.
    pub(crate) subtrees: BTreeSet<usize>,
}

/// A set of fields of one plan, by position.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSet {
    words: Vec<u64>,
}

impl FieldSet {
    /// None of `fields` fields.
    #[must_use]
    pub fn none(fields: usize) -> Self {
        Self { words: vec![0; fields.div_ceil(64)] }
    }

    /// The first `fields` fields.
    #[must_use]
    pub fn all(fields: usize) -> Self {
        let mut set = Self::none(fields);
        for position in 0..fields {
            set.insert(position);
        }
        set
    }

    /// Adds one.
    pub fn insert(&mut self, position: usize) {
        if let Some(word) = self.words.get_mut(position / 64) {
            *word |= 1 << (position % 64);
        }
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// What is in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self { words: self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect() }
    }

    /// What is in this one alone.
    #[must_use]
    pub fn less(&self, other: &Self) -> Self {
        Self { words: self.words.iter().zip(&other.words).map(|(a, b)| a & !b).collect() }
    }

    /// Whether nothing is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The positions, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| index * 64 + bit)
        })
    }

    /// The bytes, for a key.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_sets_behave_as_sets_across_word_borders() {
        let mut set = FieldSet::none(130);
        for position in [0, 63, 64, 129] {
            set.insert(position);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 129]);
        let all = FieldSet::all(130);
        assert_eq!(all.iter().count(), 130);
        assert_eq!(all.less(&set).iter().count(), 126);
        assert_eq!(all.and(&set), set);
        assert!(set.less(&set).is_empty());
    }
}

//! Policies made ready to be asked: scopes as data, conditions without their scopes, and who can match what.
//!
//! A Cedar policy means `principal scope && action scope && resource scope && condition`. Scopes can't fail, so a policy
//! whose scope does not match neither decides nor errs, and one whose scope matches is its condition. Only what the
//! [index](super::index) finds is looked at, and only conditions are evaluated. Held against plain evaluation of the whole
//! set by `tests/spec/properties.rs` and the Cedar corpus.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{
    ActionConstraint, Annotations, Effect, Entity, EntityReference, EntityType, EntityUID, Expr, Policy,
    PrincipalConstraint, PrincipalOrResourceConstraint, ResourceConstraint, StaticPolicy, Template,
};
use cedar_policy_core::entities::{Dereference, Entities};

use super::index::ByScope;
use super::keyed::ByType;
use super::schema::FieldKind;
use super::types::{Member, RecordType, action_tests, mentions_action, reads_now};
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
    /// `names`: entities that policies before it name.
    pub(crate) fn new(id: String, policy: &Policy, names: &mut Names) -> Self {
        let body = policy.non_scope_constraints_arc().cloned();
        let bare = bare(policy, names);
        let annotation = |name: &str| {
            policy.annotations().find(|(key, _)| key.as_ref() == name).map(|(_, value)| value.val.to_string())
        };
        Self {
            id,
            forbids: policy.effect() == Effect::Forbid,
            obligation: annotation("obligation"),
            principal: bare.principal_constraint().into_inner(),
            resource: bare.resource_constraint().into_inner(),
            mentions_action: body.as_deref().is_some_and(mentions_action),
            reads_now: body.as_deref().is_some_and(reads_now),
            body,
            policy: bare,
        }
    }

    /// As Cedar's own.
    pub(crate) fn cedar(&self) -> cedar_policy::Policy {
        self.policy.clone().into()
    }

    /// Whether the scope matches, the action's part aside.
    pub(crate) fn covers(&self, principal: &Side<'_>, resource: &Side<'_>) -> bool {
        matches_scope(&self.principal, principal) && matches_scope(&self.resource, resource)
    }

    /// Whether the principal's part of the scope matches.
    pub(crate) fn covers_principal(&self, principal: &Side<'_>) -> bool {
        matches_scope(&self.principal, principal)
    }

    /// Whether the resource's part of the scope can match a resource of this type, as far as the type alone tells.
    pub(crate) fn covers_resource_type(&self, name: &EntityType) -> bool {
        match &self.resource {
            PrincipalOrResourceConstraint::Eq(EntityReference::EUID(wanted)) => wanted.entity_type() == name,
            PrincipalOrResourceConstraint::Is(wanted) | PrincipalOrResourceConstraint::IsIn(wanted, _) => {
                **wanted == *name
            }
            PrincipalOrResourceConstraint::Any
            | PrincipalOrResourceConstraint::In(_)
            | PrincipalOrResourceConstraint::Eq(EntityReference::Slot(_)) => true,
        }
    }

    /// Whether anything can match: a slot that is not filled matches nothing.
    pub(crate) fn can_match(&self) -> bool {
        let never = |scope: SideScope<'_>| matches!(scope, SideScope::Never);
        !never(self.principal_scope()) && !never(self.resource_scope())
    }

    /// What the scope says of the action.
    pub(crate) fn action_scope(&self) -> ActionScope<'_> {
        match self.policy.action_constraint() {
            ActionConstraint::Any => ActionScope::Open,
            ActionConstraint::Eq(wanted) => ActionScope::Is(wanted),
            ActionConstraint::In(wanted) => ActionScope::In(wanted.iter().map(Arc::as_ref).collect()),
        }
    }

    /// The most exact thing that the scope says of the principal.
    pub(crate) fn principal_scope(&self) -> SideScope<'_> {
        side(&self.principal)
    }

    /// The most exact thing that the scope says of the resource.
    pub(crate) fn resource_scope(&self) -> SideScope<'_> {
        side(&self.resource)
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

/// The policy without its annotations, and without its place in a file: a bundle holds thousands, and for what they decide
/// neither matters. Entities that others name as well are shared with them.
fn bare(policy: &Policy, names: &mut Names) -> Policy {
    let action = match policy.action_constraint() {
        ActionConstraint::Any => ActionConstraint::Any,
        ActionConstraint::Eq(wanted) => ActionConstraint::Eq(names.share(wanted)),
        ActionConstraint::In(wanted) => ActionConstraint::In(wanted.iter().map(|one| names.share(one)).collect()),
    };
    let template = Template::new_shared(
        policy.id().clone(),
        None,
        Arc::clone(&names.nothing),
        policy.effect(),
        PrincipalConstraint::new(names.share_in(policy.principal_constraint().into_inner())),
        action,
        ResourceConstraint::new(names.share_in(policy.resource_constraint().into_inner())),
        policy.non_scope_constraints_arc().cloned(),
    );
    // One with slots is a link of a template, and stays as it is.
    StaticPolicy::try_from(template).map_or_else(|_| policy.clone(), Policy::from)
}

/// Entities that scopes name, each held once however many policies name it.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: HashSet<Arc<EntityUID>>,
    nothing: Arc<Annotations>,
}

impl Names {
    fn share(&mut self, uid: &Arc<EntityUID>) -> Arc<EntityUID> {
        if let Some(known) = self.known.get(uid) {
            return Arc::clone(known);
        }
        self.known.insert(Arc::clone(uid));
        Arc::clone(uid)
    }

    fn share_in(&mut self, scope: PrincipalOrResourceConstraint) -> PrincipalOrResourceConstraint {
        use PrincipalOrResourceConstraint::{Any, Eq, In, Is, IsIn};
        let mut named = |named| match named {
            EntityReference::EUID(uid) => EntityReference::EUID(self.share(&uid)),
            EntityReference::Slot(place) => EntityReference::Slot(place),
        };
        match scope {
            Any => Any,
            Is(kind) => Is(kind),
            Eq(wanted) => Eq(named(wanted)),
            In(above) => In(named(above)),
            IsIn(kind, above) => IsIn(kind, named(above)),
        }
    }
}

/// What a scope says of the action.
#[derive(Debug)]
pub(crate) enum ActionScope<'p> {
    /// Nothing.
    Open,
    /// This one and no other.
    Is(&'p EntityUID),
    /// One of these, or what is in one of them.
    In(Vec<&'p EntityUID>),
}

/// The most exact thing that a scope says of a principal or a resource, to look a policy up by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SideScope<'p> {
    /// Nothing.
    Open,
    /// This one and no other.
    Is(&'p Arc<EntityUID>),
    /// This one or what is in it; perhaps of one type only.
    In(&'p Arc<EntityUID>),
    /// Any of the type.
    OfType(&'p EntityType),
    /// A slot that is not filled: nothing matches it.
    Never,
}

fn side(constraint: &PrincipalOrResourceConstraint) -> SideScope<'_> {
    match constraint {
        PrincipalOrResourceConstraint::Any => SideScope::Open,
        PrincipalOrResourceConstraint::Eq(EntityReference::EUID(wanted)) => SideScope::Is(wanted),
        PrincipalOrResourceConstraint::In(EntityReference::EUID(above))
        | PrincipalOrResourceConstraint::IsIn(_, EntityReference::EUID(above)) => SideScope::In(above),
        PrincipalOrResourceConstraint::Is(wanted) => SideScope::OfType(wanted),
        PrincipalOrResourceConstraint::Eq(EntityReference::Slot(_))
        | PrincipalOrResourceConstraint::In(EntityReference::Slot(_))
        | PrincipalOrResourceConstraint::IsIn(_, EntityReference::Slot(_)) => SideScope::Never,
    }
}

/// The principal or the resource of a question, with what stands above it: found once, and asked by every policy.
#[derive(Debug)]
pub(crate) struct Side<'r> {
    pub(crate) uid: &'r EntityUID,
    entity: Option<&'r Entity>,
    /// All that stands above it, where that is no more than [`FEW`].
    above: Option<Vec<&'r EntityUID>>,
}

/// So many are sooner compared than hashed.
const FEW: usize = 16;

impl<'r> Side<'r> {
    pub(crate) fn new(uid: &'r EntityUID, entities: &'r Entities) -> Self {
        let entity = match entities.entity(uid) {
            Dereference::Data(entity) => Some(entity),
            Dereference::NoSuchEntity | Dereference::Residual(_) => None,
        };
        let mut side = Self { uid, entity, above: None };
        let above: Vec<_> = side.ancestors().take(FEW + 1).collect();
        side.above = Some(above).filter(|above| above.len() <= FEW);
        side
    }

    /// All that stands above it.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = &'r EntityUID> + use<'r> {
        self.entity.into_iter().flat_map(Entity::ancestors)
    }

    /// Whether it is `wanted` or in it.
    fn is_in(&self, wanted: &EntityUID) -> bool {
        if is_same(self.uid, wanted) {
            return true;
        }
        match (&self.above, self.entity) {
            (Some(above), _) => above.iter().any(|above| is_same(above, wanted)),
            (None, Some(entity)) => entity.is_descendant_of(wanted),
            (None, None) => false,
        }
    }
}

/// Ids differ more often than types do, and are compared sooner.
fn is_same(one: &EntityUID, other: &EntityUID) -> bool {
    one.eid() == other.eid() && one.entity_type() == other.entity_type()
}

fn matches_scope(constraint: &PrincipalOrResourceConstraint, side: &Side<'_>) -> bool {
    match constraint {
        PrincipalOrResourceConstraint::Any => true,
        PrincipalOrResourceConstraint::Eq(EntityReference::EUID(wanted)) => is_same(wanted, side.uid),
        PrincipalOrResourceConstraint::In(EntityReference::EUID(wanted)) => side.is_in(wanted),
        PrincipalOrResourceConstraint::Is(wanted) => **wanted == *side.uid.entity_type(),
        PrincipalOrResourceConstraint::IsIn(wanted, EntityReference::EUID(above)) => {
            **wanted == *side.uid.entity_type() && side.is_in(above)
        }
        // A linked policy's constraints come with their slots filled; an unfilled one is no policy.
        PrincipalOrResourceConstraint::Eq(EntityReference::Slot(_))
        | PrincipalOrResourceConstraint::In(EntityReference::Slot(_))
        | PrincipalOrResourceConstraint::IsIn(_, EntityReference::Slot(_)) => false,
    }
}

/// Whether `uid` is `above` or in it.
pub(crate) fn is_in(uid: &EntityUID, above: &EntityUID, entities: &Entities) -> bool {
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
    /// The same by the rest of their scopes.
    pub(crate) index: ByScope,
    /// Whether one of them, or one that settles its fields, reads the time.
    pub(crate) reads_now: bool,
    /// What its fields are for, when it has any.
    pub(crate) field_kind: Option<FieldKind>,
    pub(crate) plans: ByType<FieldPlan>,
}

/// The fields of one action on one resource type, and which policies speak about which of them.
#[derive(Debug, Default)]
pub(crate) struct FieldPlan {
    /// No other plan of the bundle has it.
    pub(crate) number: usize,
    /// The leaf paths, sorted.
    pub(crate) paths: Vec<FieldPath>,
    /// The subtrees that a policy can grant whole, by their path without `.*`, with the fields in them and the group's id.
    pub(crate) subtrees: Vec<Subtree>,
    /// The derived action of each path.
    pub(crate) actions: Vec<EntityUID>,
    /// The actions, as entities, that conditions are evaluated with when they look at `action`.
    pub(crate) looked_at: Vec<Arc<Entity>>,
    /// In the order of their policies.
    pub(crate) rules: Vec<FieldRule>,
    /// The rules, by position, by the scopes of their policies.
    pub(crate) index: ByScope,
}

impl FieldPlan {
    /// Where a leaf path stands in `paths`.
    pub(crate) fn position(&self, path: &FieldPath) -> Option<usize> {
        self.paths.binary_search(path).ok()
    }
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
    pub(crate) subtrees: Vec<usize>,
    /// Only where the condition looks at `action`: the fields again, in classes that it can't tell apart.
    pub(crate) classes: Vec<FieldClass>,
}

/// Fields whose actions answer every test of one condition alike, so that one of them speaks for all.
#[derive(Debug)]
pub(crate) struct FieldClass {
    pub(crate) fields: FieldSet,
    /// The position of the one that speaks.
    pub(crate) speaker: usize,
}

/// Sorts `fields` by what `body` can see of their actions.
pub(crate) fn field_classes(
    body: &Expr,
    fields: &FieldSet,
    actions: &[EntityUID],
    groups: &Entities,
) -> Vec<FieldClass> {
    let tests = action_tests(body);
    let mut classes: Vec<FieldClass> = Vec::new();
    let mut known: HashMap<Vec<bool>, usize> = HashMap::new();
    for position in fields.iter() {
        let Some(action) = actions.get(position) else { continue };
        let answers: Option<Vec<bool>> =
            tests.as_ref().map(|tests| tests.iter().map(|test| test.holds(action, groups)).collect());
        let class = answers.as_ref().and_then(|answers| known.get(answers).copied());
        if let Some(class) = class.and_then(|class| classes.get_mut(class)) {
            class.fields.insert(position);
            continue;
        }
        if let Some(answers) = answers {
            known.insert(answers, classes.len());
        }
        let mut alone = FieldSet::none(actions.len());
        alone.insert(position);
        classes.push(FieldClass { fields: alone, speaker: position });
    }
    classes
}

/// A set of fields of one plan, by position.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
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
        let mut set = Self { words: vec![u64::MAX; fields.div_ceil(64)] };
        if let (Some(last), rest @ 1..) = (set.words.last_mut(), fields % 64) {
            *last = (1 << rest) - 1;
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

    /// Adds what is in both `one` and `other`.
    pub fn add_both(&mut self, one: &Self, other: &Self) {
        for ((word, one), other) in self.words.iter_mut().zip(&one.words).zip(&other.words) {
            *word |= one & other;
        }
    }

    /// Takes out what is in `other`.
    pub fn remove(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
    }

    /// Whether anything is in both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// Whether nothing is in this one alone.
    #[must_use]
    pub fn within(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).all(|(a, b)| a & !b == 0)
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
            let rest = |left: &u64| Some(left & (left - 1)).filter(|left| *left != 0);
            let lefts = std::iter::successors(Some(*word).filter(|word| *word != 0), rest);
            lefts.map(move |left| index * 64 + left.trailing_zeros() as usize)
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
    fn a_policy_without_its_annotations_says_what_it_said() {
        let scopes = [
            "principal, action, resource",
            "principal == User::\"a\", action == Action::\"read\", resource == Doc::\"d\"",
            "principal in Role::\"r\", action in [Action::\"read\", Action::\"list\"], resource in Folder::\"f\"",
            "principal is User in Role::\"r\", action in Action::\"look\", resource is Doc in Folder::\"f\"",
            "principal is User, action, resource is Doc",
        ];
        let mut names = Names::default();
        let conditions = ["", " when { context.mfa }", " unless { resource.open } when { principal.level > 2 }"];
        for effect in ["permit", "forbid"] {
            for scope in scopes {
                for condition in conditions {
                    let text = format!("{effect} ({scope}){condition};");
                    let annotated = format!("@id(\"p\") @why(\"because\")\n{text}");
                    let parsed = |text: &str| text.parse::<cedar_policy::Policy>().unwrap();
                    let (annotated, plain) = (parsed(&annotated), parsed(&text));
                    assert_ne!(annotated.as_ref(), plain.as_ref(), "annotations are part of what is compared");
                    assert_eq!(&bare(annotated.as_ref(), &mut names), plain.as_ref(), "{text}");
                }
            }
        }
    }

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
        assert!(set.within(&all) && !all.within(&set) && set.meets(&all));
        let mut rest = all.clone();
        rest.remove(&set);
        assert_eq!(rest, all.less(&set));
        assert!(!rest.meets(&set));
        let mut both = rest.clone();
        both.add_both(&all, &set);
        assert_eq!(both, all);
        assert_eq!(FieldSet::all(128).iter().count(), 128, "a full last word");
        assert!(FieldSet::all(0).is_empty());
    }
}

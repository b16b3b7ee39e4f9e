//! Rulings: what the policies say to one checked question.
//!
//! Cedar skips a policy whose evaluation fails, a `forbid` included, and calls a short stack such a failure. Here a
//! `forbid` that fails denies, a `permit` that fails permits nothing, both are named in the ruling, and evaluation never
//! runs on less than [`STACK`].

use std::collections::BTreeSet;

use cedar_policy::{PartialEntities, PartialEntityUid, PartialRequest, PolicySet};
use cedar_policy_core::ast::{EntityUID, Literal, Value, ValueKind};
use cedar_policy_core::evaluator::{EvaluationError, Evaluator};
use cedar_policy_core::extensions::Extensions;

use super::compile::{CompiledPolicy, FieldPlan, FieldRule, FieldSet, Side};
use super::engine::Engine;
use super::given::{Grounds, Ruled};
use super::request::{AskedFields, AuthorizationRequest};
use crate::model::decision::{Decision, Denial, DenialCode, PolicyError, Ruling};
use crate::model::field_path::FieldPath;
use crate::model::question::FieldMode;

/// The stack that evaluation runs on, bytes.
pub const STACK: usize = 8 * 1024 * 1024;

/// When less than this is left of the thread's own stack, evaluation moves to a new one of [`STACK`].
const ENOUGH: usize = 4 * 1024 * 1024;

/// Rules on a request.
pub(super) fn rule(request: &AuthorizationRequest) -> Ruled {
    on_big_stack(|| match &request.resource {
        Some(resource) => rule_on_object(request, resource),
        None => Ruled::alone(rule_on_function(request)),
    })
}

/// Runs `work` with at least half of [`STACK`] left.
pub(super) fn on_big_stack<R>(work: impl FnOnce() -> R) -> R {
    stacker::maybe_grow(ENOUGH, STACK, work)
}

/// What one policy's condition gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Yes,
    No,
    Fails(&'static str),
}

/// The policies' conditions on one request, each evaluated once, or once for each class of fields that it tells apart.
struct Court<'r> {
    request: &'r AuthorizationRequest,
    engine: &'r Engine,
    principal: Side<'r>,
    resource: Side<'r>,
    evaluator: Evaluator<'r>,
    /// What the policies about the base action said, in their order; `None` where the scope does not match.
    known: Vec<(usize, Option<Truth>)>,
    /// Policies that failed, and how.
    errors: Vec<(usize, &'static str)>,
}

impl<'r> Court<'r> {
    fn new(request: &'r AuthorizationRequest, resource: &'r EntityUID) -> Self {
        let evaluator = Evaluator::new(
            request.cedar(&request.action.uid, resource),
            &request.entities,
            Extensions::all_available(),
        );
        let side = |uid| Side::new(uid, &request.entities);
        let (principal, resource) = (side(&request.principal), side(resource));
        Self { request, engine: &request.engine, principal, resource, evaluator, known: Vec::new(), errors: Vec::new() }
    }

    /// Asks every policy that can match the base action.
    fn ask_all(&mut self) {
        let request = self.request;
        let candidates = request.action.index.candidates(&self.principal, &self.resource);
        self.known.reserve(candidates.len());
        for index in candidates {
            let Some(policy) = self.engine.policies.get(index) else { continue };
            let truth = self.ask(index, policy);
            self.known.push((index, truth));
        }
    }

    /// What a policy says of the base action, or of any field if it does not look at `action`.
    fn ask(&mut self, index: usize, policy: &CompiledPolicy) -> Option<Truth> {
        if let Ok(at) = self.known.binary_search_by_key(&index, |(known, _)| *known) {
            return self.known.get(at).and_then(|(_, truth)| *truth);
        }
        if !self.covers(policy) {
            return None;
        }
        let truth = condition(&self.evaluator, policy);
        self.note(index, truth);
        Some(truth)
    }

    /// What a policy that looks at `action`, and whose scope matches, says of one field action.
    fn ask_about(&mut self, index: usize, policy: &CompiledPolicy, action: &EntityUID) -> Truth {
        let request = self.request.cedar(action, self.resource.uid);
        let evaluator = Evaluator::new(request, &self.request.entities, Extensions::all_available());
        let truth = condition(&evaluator, policy);
        self.note(index, truth);
        truth
    }

    /// Whether the scope matches, the action's part aside.
    fn covers(&self, policy: &CompiledPolicy) -> bool {
        policy.covers(&self.principal, &self.resource)
    }

    fn note(&mut self, index: usize, truth: Truth) {
        if let Truth::Fails(class) = truth {
            self.errors.push((index, class));
        }
    }

    fn deny(&self, code: DenialCode, policies: Vec<usize>) -> Ruled {
        let make = |grounds: &Grounds| Ruling {
            determining: names(self.engine, &grounds.policies),
            errors: self.errors(),
            ..Ruling::deny(code)
        };
        self.give(Grounds { denial: Some(code), policies, fields: None }, make)
    }

    fn allow(&self, permits: Vec<usize>, fields: Option<(&FieldPlan, FieldSet, Vec<usize>)>) -> Ruled {
        let plan = fields.as_ref().map(|(plan, _, _)| *plan);
        let fields = fields.map(|(plan, granted, subtrees)| (plan.number, granted, subtrees));
        let make = |grounds: &Grounds| {
            let permits = &grounds.policies;
            let mut obligations: Vec<String> =
                permits.iter().filter_map(|index| self.engine.policies.get(*index)?.obligation.clone()).collect();
            obligations.sort();
            obligations.dedup();
            let granted = grounds.fields.as_ref().zip(plan);
            Ruling {
                decision: Decision::Allow,
                denial: None,
                fields: granted.map(|((_, granted, subtrees), plan)| paths(plan, granted, subtrees)),
                obligations,
                determining: names(self.engine, permits),
                errors: self.errors(),
            }
        };
        self.give(Grounds { denial: None, policies: permits, fields }, make)
    }

    /// Which policies fail, and how, is part of a ruling, and not of its grounds.
    fn give(&self, grounds: Grounds, make: impl FnOnce(&Grounds) -> Ruling) -> Ruled {
        if self.errors.is_empty() { self.engine.given.get_or(grounds, make) } else { Ruled::alone(make(&grounds)) }
    }

    fn errors(&self) -> Vec<PolicyError> {
        let name = |(index, class): &(usize, &'static str)| {
            Some(PolicyError { policy: self.engine.policies.get(*index)?.id.clone(), class })
        };
        let mut errors: Vec<PolicyError> = self.errors.iter().filter_map(name).collect();
        errors.sort_by(|a, b| (&a.policy, a.class).cmp(&(&b.policy, b.class)));
        errors.dedup();
        errors
    }
}

fn condition(evaluator: &Evaluator<'_>, policy: &CompiledPolicy) -> Truth {
    let Some(body) = &policy.body else { return Truth::Yes };
    match evaluator.interpret(body, policy.policy.env()) {
        Ok(Value { value: ValueKind::Lit(Literal::Bool(true)), .. }) => Truth::Yes,
        Ok(Value { value: ValueKind::Lit(Literal::Bool(false)), .. }) => Truth::No,
        Ok(_) => Truth::Fails("type"),
        Err(error) => Truth::Fails(class(&error)),
    }
}

/// The kind of an evaluation error, from a closed list.
fn class(error: &EvaluationError) -> &'static str {
    match error {
        EvaluationError::EntityDoesNotExist(_) => "entity_missing",
        EvaluationError::EntityAttrDoesNotExist(_) | EvaluationError::RecordAttrDoesNotExist(_) => "attribute_missing",
        EvaluationError::FailedExtensionFunctionLookup(_) | EvaluationError::FailedExtensionFunctionExecution(_) => {
            "extension"
        }
        EvaluationError::TypeError(_) => "type",
        EvaluationError::WrongNumArguments(_) => "arguments",
        EvaluationError::IntegerOverflow(_) => "overflow",
        EvaluationError::UnlinkedSlot(_) => "slot",
        EvaluationError::NonValue(_) => "unknown_value",
        EvaluationError::RecursionLimit(_) => "recursion",
    }
}

fn rule_on_object(request: &AuthorizationRequest, resource: &EntityUID) -> Ruled {
    let mut court = Court::new(request, resource);
    court.ask_all();
    let (mut permits, mut forbids) = (Vec::new(), Vec::new());
    let mut broken_forbid = false;
    for (index, truth) in &court.known {
        let Some(policy) = court.engine.policies.get(*index) else { continue };
        match (truth, policy.forbids) {
            (Some(Truth::Yes), true) => forbids.push(*index),
            (Some(Truth::Yes), false) => permits.push(*index),
            (Some(Truth::Fails(_)), true) => broken_forbid = true,
            (Some(Truth::Fails(_)), false) | (Some(Truth::No) | None, _) => {}
        }
    }
    if !forbids.is_empty() {
        return court.deny(DenialCode::Forbidden, forbids);
    }
    if broken_forbid {
        return court.deny(DenialCode::PolicyError, forbids);
    }
    if permits.is_empty() {
        return court.deny(DenialCode::NoPermit, permits);
    }
    let mut fields = None;
    if let Some(asked) = &request.asked {
        let Some(plan) = request.action.plans.get(&request.resource_type) else {
            return court.deny(DenialCode::NoFieldGranted, Vec::new());
        };
        let mask = judge_fields(&mut court, plan, asked);
        let strict = asked.mode == FieldMode::Strict;
        if strict && !(asked.known.within(&mask.granted) && asked.unknown.is_empty()) {
            let refused = asked.known.less(&mask.granted);
            let mut paths: Vec<FieldPath> =
                refused.iter().filter_map(|at| plan.paths.get(at)).chain(&asked.unknown).cloned().collect();
            paths.sort();
            return Ruled::alone(Ruling {
                denial: Some(Denial { code: DenialCode::FieldNotGranted, refused_fields: paths }),
                determining: names(court.engine, &mask.forbids),
                errors: court.errors(),
                ..Ruling::deny(DenialCode::FieldNotGranted)
            });
        }
        if mask.granted.is_empty() {
            return court.deny(DenialCode::NoFieldGranted, mask.forbids);
        }
        permits.extend(mask.permits);
        permits.sort_unstable();
        permits.dedup();
        fields = Some((plan, mask.granted, mask.subtrees.into_iter().collect::<Vec<_>>()));
    }
    court.allow(permits, fields)
}

fn names(engine: &Engine, policies: &[usize]) -> Vec<String> {
    let mut names: Vec<String> =
        policies.iter().filter_map(|index| engine.policies.get(*index)).map(|policy| policy.id.clone()).collect();
    names.sort();
    names
}

/// The fields that are granted, and who settled that.
struct Mask {
    granted: FieldSet,
    permits: Vec<usize>,
    forbids: Vec<usize>,
    /// Subtrees of the plan that a satisfied permit names, by position.
    subtrees: BTreeSet<usize>,
}

/// One pass over the policies that speak about fields and can match: each condition is evaluated once, or once for each
/// class of asked fields when it looks at `action`.
///
/// None is left out because its fields are settled already: who determined a field, what the permits oblige to and which
/// policies fail is part of the ruling.
fn judge_fields(court: &mut Court<'_>, plan: &FieldPlan, asked: &AskedFields) -> Mask {
    let none = || FieldSet::none(plan.paths.len());
    let (mut granted, mut denied) = (none(), none());
    // A permit with the fields for which it holds, where those are not all of its own that are asked for.
    let mut holding: Vec<(&FieldRule, Option<FieldSet>)> = Vec::new();
    let (mut forbids, mut subtrees) = (Vec::new(), BTreeSet::new());
    for at in plan.index.candidates(&court.principal, &court.resource) {
        let Some(rule) = plan.rules.get(at) else { continue };
        let Some(policy) = court.engine.policies.get(rule.policy) else { continue };
        if !rule.fields.meets(&asked.known) {
            continue;
        }
        let apart = if rule.classes.is_empty() {
            let truth = court.ask(rule.policy, policy);
            match (truth, policy.forbids) {
                (Some(Truth::Yes | Truth::Fails(_)), true) => denied.add_both(&rule.fields, &asked.known),
                (Some(Truth::Yes), false) => granted.add_both(&rule.fields, &asked.known),
                (Some(Truth::Fails(_)), false) | (Some(Truth::No) | None, _) => {}
            }
            if truth != Some(Truth::Yes) {
                continue;
            }
            None
        } else {
            if !court.covers(policy) {
                continue;
            }
            let (mut holds, mut fails) = (none(), none());
            for class in rule.classes.iter().filter(|class| class.fields.meets(&asked.known)) {
                let Some(action) = plan.actions.get(class.speaker) else { continue };
                match court.ask_about(rule.policy, policy, action) {
                    Truth::Yes => holds.add_both(&class.fields, &asked.known),
                    Truth::Fails(_) => fails.add_both(&class.fields, &asked.known),
                    Truth::No => {}
                }
            }
            if policy.forbids {
                denied.add(&holds);
                denied.add(&fails);
            } else {
                granted.add(&holds);
            }
            if holds.is_empty() {
                continue;
            }
            Some(holds)
        };
        if policy.forbids {
            forbids.push(rule.policy);
        } else {
            holding.push((rule, apart));
        }
    }
    // Named by the scope, and held for every field below.
    for (rule, apart) in holding.iter().filter(|(rule, _)| !rule.subtrees.is_empty()) {
        let held = apart.clone().unwrap_or_else(|| rule.fields.and(&asked.known));
        let whole = |at: &&usize| plan.subtrees.get(**at).is_some_and(|subtree| subtree.fields.within(&held));
        subtrees.extend(rule.subtrees.iter().filter(whole));
    }
    granted.remove(&denied);
    let permits = holding
        .into_iter()
        .filter(|(rule, apart)| apart.as_ref().unwrap_or(&rule.fields).meets(&granted))
        .map(|(rule, _)| rule.policy)
        .collect();
    Mask { granted, permits, forbids, subtrees }
}

/// The mask: leaf paths, save where a policy granted a subtree by name and nothing below it was withheld.
fn paths(plan: &FieldPlan, granted: &FieldSet, named: &[usize]) -> Vec<FieldPath> {
    let leaves =
        |fields: &FieldSet| -> Vec<FieldPath> { fields.iter().filter_map(|at| plan.paths.get(at)).cloned().collect() };
    if named.is_empty() {
        return leaves(granted);
    }
    let mut covered = FieldSet::none(plan.paths.len());
    let mut paths = Vec::new();
    let mut whole: Vec<_> = named.iter().filter_map(|at| plan.subtrees.get(*at)).collect();
    // Outermost first, so that a subtree inside another is not listed again.
    whole.sort_by_key(|subtree| subtree.path.segments().count());
    for subtree in whole {
        if subtree.fields.within(granted) && !subtree.fields.within(&covered) {
            covered.add(&subtree.fields);
            paths.push(subtree.path.clone());
        }
    }
    paths.extend(leaves(&granted.less(&covered)));
    paths.sort();
    paths
}

/// The policies that can match some resource of the type, as a set. The others are false for every one of them.
fn slice(request: &AuthorizationRequest) -> Option<PolicySet> {
    let engine = &request.engine;
    let mut slice = PolicySet::new();
    let principal = Side::new(&request.principal, &request.entities);
    for policy in request.action.candidates.iter().filter_map(|at| engine.policies.get(*at)) {
        if policy.covers_principal(&principal) && policy.covers_resource_type(&request.resource_type) {
            slice.add(policy.cedar()).ok()?;
        }
    }
    Some(slice)
}

/// The same question of every object of the type at once, by partial evaluation with an unknown resource.
fn rule_on_function(request: &AuthorizationRequest) -> Ruling {
    let engine = &request.engine;
    let conditional = || Ruling {
        decision: Decision::Conditional,
        denial: None,
        fields: None,
        obligations: Vec::new(),
        determining: Vec::new(),
        errors: Vec::new(),
    };
    let uid = |uid: &EntityUID| cedar_policy::EntityUid::from(uid.clone());
    let context = cedar_policy::Context::from(cedar_policy_core::ast::Context::Value(request.context.clone()));
    let resource_type = cedar_policy::EntityTypeName::from(request.resource_type.clone());
    let partial = PartialRequest::new(
        PartialEntityUid::from_concrete(uid(&request.principal)),
        uid(&request.action.uid),
        PartialEntityUid::new(resource_type, None),
        Some(context),
        &engine.schema,
    );
    let entities = PartialEntities::from_concrete(request.entities.clone().into(), &engine.schema);
    // What can't be worked out for all objects is asked again with the object; it is never an allow.
    let (Ok(partial), Ok(entities)) = (partial, entities) else { return conditional() };
    let Some(slice) = slice(request) else { return conditional() };
    let Ok(response) = slice.tpe(&partial, &entities, &engine.schema) else { return conditional() };

    let ids = |policies: &mut dyn Iterator<Item = &cedar_policy::PolicyId>| -> Vec<String> {
        let mut ids: Vec<String> = policies.map(ToString::to_string).collect();
        ids.sort();
        ids
    };
    let errors: Vec<PolicyError> = ids(&mut response.error_forbids().chain(response.error_permits()))
        .into_iter()
        .map(|policy| PolicyError { policy, class: "partial" })
        .collect();
    let forbids = ids(&mut response.true_forbids());
    if !forbids.is_empty() {
        return Ruling { determining: forbids, errors, ..Ruling::deny(DenialCode::Forbidden) };
    }
    if response.error_forbids().next().is_some() {
        return Ruling { errors, ..Ruling::deny(DenialCode::PolicyError) };
    }
    let permits = ids(&mut response.true_permits());
    if permits.is_empty() && response.residual_permits().next().is_none() {
        return Ruling { errors, ..Ruling::deny(DenialCode::NoPermit) };
    }
    if permits.is_empty() || response.residual_forbids().next().is_some() {
        return Ruling { errors, ..conditional() };
    }
    let obligations: BTreeSet<String> = engine
        .policies
        .iter()
        .filter(|policy| permits.binary_search(&policy.id).is_ok())
        .filter_map(|policy| policy.obligation.clone())
        .collect();
    Ruling {
        decision: Decision::Allow,
        denial: None,
        fields: None,
        obligations: obligations.into_iter().collect(),
        determining: permits,
        errors,
    }
}

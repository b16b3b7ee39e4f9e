//! Rulings: what the policies say to one checked question.
//!
//! Cedar skips a policy whose evaluation fails, a `forbid` included, and calls a short stack such a failure. Here a
//! `forbid` that fails denies, a `permit` that fails permits nothing, both are named in the ruling, and evaluation never
//! runs on less than [`STACK`].

use std::collections::{BTreeSet, HashMap};

use cedar_policy::{PartialEntities, PartialEntityUid, PartialRequest};
use cedar_policy_core::ast::{EntityUID, Literal, Value, ValueKind};
use cedar_policy_core::evaluator::{EvaluationError, Evaluator};
use cedar_policy_core::extensions::Extensions;

use super::compile::{CompiledPolicy, FieldPlan, FieldSet};
use super::engine::Engine;
use super::request::{AskedFields, AuthorizationRequest};
use crate::model::decision::{Decision, Denial, DenialCode, PolicyError, Ruling};
use crate::model::field_path::FieldPath;
use crate::model::question::FieldMode;

/// The stack that evaluation runs on, bytes.
pub const STACK: usize = 8 * 1024 * 1024;

/// When less than this is left of the thread's own stack, evaluation moves to a new one of [`STACK`].
const ENOUGH: usize = 4 * 1024 * 1024;

/// Rules on a request.
pub(super) fn rule(request: &AuthorizationRequest) -> Ruling {
    on_big_stack(|| match &request.resource {
        Some(resource) => rule_on_object(request, resource),
        None => rule_on_function(request),
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

/// The policies' conditions on one request, each evaluated at most once per action it looks at.
struct Court<'r> {
    request: &'r AuthorizationRequest,
    engine: &'r Engine,
    resource: &'r EntityUID,
    evaluator: Evaluator<'r>,
    known: HashMap<usize, Option<Truth>>,
    errors: BTreeSet<(String, &'static str)>,
}

impl<'r> Court<'r> {
    fn new(request: &'r AuthorizationRequest, resource: &'r EntityUID) -> Self {
        let evaluator = Evaluator::new(
            request.cedar(&request.action.uid, resource),
            &request.entities,
            Extensions::all_available(),
        );
        Self { request, engine: &request.engine, resource, evaluator, known: HashMap::new(), errors: BTreeSet::new() }
    }

    /// What a policy says of the base action: `None` when its scope (the action aside) does not match.
    fn ask(&mut self, index: usize, policy: &CompiledPolicy) -> Option<Truth> {
        if let Some(known) = self.known.get(&index) {
            return *known;
        }
        let covers = policy.covers(&self.request.principal, self.resource, &self.request.entities);
        let truth = covers.then(|| condition(&self.evaluator, policy));
        if let Some(Truth::Fails(class)) = truth {
            self.errors.insert((policy.id.clone(), class));
        }
        self.known.insert(index, truth);
        truth
    }

    /// What a policy that looks at `action` says of one field action.
    fn ask_about(&mut self, policy: &CompiledPolicy, action: &EntityUID) -> Option<Truth> {
        if !policy.covers(&self.request.principal, self.resource, &self.request.entities) {
            return None;
        }
        let request = self.request.cedar(action, self.resource);
        let evaluator = Evaluator::new(request, &self.request.entities, Extensions::all_available());
        let truth = condition(&evaluator, policy);
        if let Truth::Fails(class) = truth {
            self.errors.insert((policy.id.clone(), class));
        }
        Some(truth)
    }

    fn errors(&self) -> Vec<PolicyError> {
        self.errors.iter().map(|(policy, class)| PolicyError { policy: policy.clone(), class }).collect()
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

fn rule_on_object(request: &AuthorizationRequest, resource: &EntityUID) -> Ruling {
    let mut court = Court::new(request, resource);
    let mut permits = BTreeSet::new();
    let mut forbids = BTreeSet::new();
    let mut broken_forbid = false;
    for index in &request.action.candidates {
        let Some(policy) = court.engine.policies.get(*index) else { continue };
        match (court.ask(*index, policy), policy.forbids) {
            (Some(Truth::Yes), true) => drop(forbids.insert(*index)),
            (Some(Truth::Yes), false) => drop(permits.insert(*index)),
            (Some(Truth::Fails(_)), true) => broken_forbid = true,
            (Some(Truth::Fails(_)), false) | (Some(Truth::No) | None, _) => {}
        }
    }
    let deny = |code: DenialCode, determining: &BTreeSet<usize>, court: &Court<'_>| Ruling {
        determining: names(court.engine, determining),
        errors: court.errors(),
        ..Ruling::deny(code)
    };
    if !forbids.is_empty() {
        return deny(DenialCode::Forbidden, &forbids, &court);
    }
    if broken_forbid {
        return deny(DenialCode::PolicyError, &forbids, &court);
    }
    if permits.is_empty() {
        return deny(DenialCode::NoPermit, &permits, &court);
    }
    let mut fields = None;
    if let Some(asked) = &request.asked {
        let Some(plan) = request.action.plans.get(&request.resource_type) else {
            return deny(DenialCode::NoFieldGranted, &BTreeSet::new(), &court);
        };
        let mask = judge_fields(&mut court, plan, asked);
        let refused = asked.known.less(&mask.granted);
        let strict = asked.mode == FieldMode::Strict;
        if strict && !(refused.is_empty() && asked.unknown.is_empty()) {
            let mut paths: Vec<FieldPath> =
                refused.iter().filter_map(|at| plan.paths.get(at)).chain(&asked.unknown).cloned().collect();
            paths.sort();
            let mut ruling = deny(DenialCode::FieldNotGranted, &mask.forbids, &court);
            ruling.denial = Some(Denial { code: DenialCode::FieldNotGranted, refused_fields: paths });
            return ruling;
        }
        if mask.granted.is_empty() {
            return deny(DenialCode::NoFieldGranted, &mask.forbids, &court);
        }
        permits.extend(mask.permits);
        fields = Some(paths(plan, &mask.granted, &mask.subtrees));
    }
    let obligations: BTreeSet<String> =
        permits.iter().filter_map(|index| court.engine.policies.get(*index)?.obligation.clone()).collect();
    Ruling {
        decision: Decision::Allow,
        denial: None,
        fields,
        obligations: obligations.into_iter().collect(),
        determining: names(court.engine, &permits),
        errors: court.errors(),
    }
}

fn names(engine: &Engine, policies: &BTreeSet<usize>) -> Vec<String> {
    let mut names: Vec<String> =
        policies.iter().filter_map(|index| engine.policies.get(*index)).map(|policy| policy.id.clone()).collect();
    names.sort();
    names
}

/// The fields that are granted, and who settled that.
struct Mask {
    granted: FieldSet,
    permits: BTreeSet<usize>,
    forbids: BTreeSet<usize>,
    /// Subtrees of the plan that a satisfied permit names, by position.
    subtrees: BTreeSet<usize>,
}

/// One pass over the policies that speak about fields: each condition is evaluated once, or once per asked field action
/// when it looks at `action`.
fn judge_fields(court: &mut Court<'_>, plan: &FieldPlan, asked: &AskedFields) -> Mask {
    let none = || FieldSet::none(plan.paths.len());
    let (mut granted, mut denied) = (none(), none());
    let mut by_policy: Vec<(usize, FieldSet)> = Vec::new();
    let (mut forbids, mut subtrees) = (BTreeSet::new(), BTreeSet::new());
    for rule in &plan.rules {
        let Some(policy) = court.engine.policies.get(rule.policy) else { continue };
        let concerned = rule.fields.and(&asked.known);
        if concerned.is_empty() {
            continue;
        }
        let (mut holds, mut fails) = (none(), none());
        if policy.mentions_action {
            for position in concerned.iter() {
                let Some(action) = plan.actions.get(position) else { continue };
                match court.ask_about(policy, action) {
                    Some(Truth::Yes) => holds.insert(position),
                    Some(Truth::Fails(_)) => fails.insert(position),
                    Some(Truth::No) | None => {}
                }
            }
        } else {
            match court.ask(rule.policy, policy) {
                Some(Truth::Yes) => holds = concerned,
                Some(Truth::Fails(_)) => fails = concerned,
                Some(Truth::No) | None => {}
            }
        }
        if policy.forbids {
            if !holds.is_empty() {
                forbids.insert(rule.policy);
            }
            denied.add(&holds);
            denied.add(&fails);
        } else if !holds.is_empty() {
            granted.add(&holds);
            for (at, subtree) in plan.subtrees.iter().enumerate() {
                // Named by the scope, and held for every field below.
                if rule.subtrees.contains(&at) && subtree.fields.less(&holds).is_empty() {
                    subtrees.insert(at);
                }
            }
            by_policy.push((rule.policy, holds));
        }
    }
    let granted = granted.less(&denied);
    let permits =
        by_policy.into_iter().filter(|(_, holds)| !holds.and(&granted).is_empty()).map(|(index, _)| index).collect();
    Mask { granted, permits, forbids, subtrees }
}

/// The mask: leaf paths, save where a policy granted a subtree by name and nothing below it was withheld.
fn paths(plan: &FieldPlan, granted: &FieldSet, named: &BTreeSet<usize>) -> Vec<FieldPath> {
    let mut covered = FieldSet::none(plan.paths.len());
    let mut paths = Vec::new();
    let mut whole: Vec<_> = named.iter().filter_map(|at| plan.subtrees.get(*at)).collect();
    // Outermost first, so that a subtree inside another is not listed again.
    whole.sort_by_key(|subtree| subtree.path.segments().count());
    for subtree in whole {
        if subtree.fields.less(granted).is_empty() && !subtree.fields.less(&covered).is_empty() {
            covered.add(&subtree.fields);
            paths.push(subtree.path.clone());
        }
    }
    paths.extend(granted.less(&covered).iter().filter_map(|at| plan.paths.get(at)).cloned());
    paths.sort();
    paths
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
    let Ok(response) = request.action.slice.tpe(&partial, &entities, &engine.schema) else { return conditional() };

    let ids = |policies: &mut dyn Iterator<Item = &cedar_policy::PolicyId>| -> Vec<String> {
        let mut ids: Vec<String> = policies.map(ToString::to_string).collect();
        ids.sort();
        ids
    };
    let errors: Vec<PolicyError> = response
        .error_forbids()
        .chain(response.error_permits())
        .map(|policy| PolicyError { policy: policy.to_string(), class: "partial" })
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

//! A loaded set, immutable: everything that does not depend on a question, worked out once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use cedar_policy::{PolicyId, Schema};
use cedar_policy_core::ast::{Entity, EntityType, EntityUID, Value};
use cedar_policy_core::entities::Entities;
use parking_lot::Mutex;

use super::bundle::Parsed;
use super::compile::{CompiledAction, CompiledPolicy, FieldPlan, FieldRule, FieldSet, Names, Subtree, field_classes};
use super::entities::{INJECTED, stored_entities};
use super::given::Given;
use super::index::{ByAction, ByScope};
use super::keyed::{ByName, ByType, ByUid};
use super::principals::Principals;
use super::report::Problem;
use super::schema::{DerivedField, DerivedSchema, FieldActions};
use super::types::{Extension, Shapes, record_type};
use crate::config::{KeptValue, Limits};
use crate::model::entity::{EntityId, EntityType as TypeName, EntityUid};
use crate::model::field_path::FieldPath;
use crate::model::ids::PolicyRevision;

/// How strictly a bundle is read.
#[derive(Debug, Clone)]
pub struct BundleOptions {
    /// How many steps of entity data a policy may take: 1 or 2.
    pub validation_level: u32,
    /// The entity type of a calling workload.
    pub caller_type: TypeName,
    /// The entity that stands for nobody in particular.
    pub anonymous: EntityUid,
    /// The entity type of tenants, when callers are held to theirs.
    pub tenant_type: Option<TypeName>,
    /// Values that records shall hold: the schema must declare each.
    pub recorded: Vec<KeptValue>,
    /// Sizes, counts and depths.
    pub limits: Limits,
}

impl Default for BundleOptions {
    fn default() -> Self {
        let named = |name: &str| TypeName::parse(name).ok();
        // Both names are constants that parse; the fallback keeps this free of panics.
        let (caller_type, anonymous_type, id) =
            match (named("Service"), named("Anonymous"), EntityId::parse("anonymous", 64)) {
                (Some(caller), Some(anonymous), Ok(id)) => (caller, anonymous, id),
                _ => unreachable!("constant names parse"),
            };
        Self {
            validation_level: 1,
            caller_type,
            anonymous: EntityUid { entity_type: anonymous_type, id },
            tenant_type: None,
            recorded: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// One policy, for people and tools.
#[derive(Debug, Clone)]
pub struct PolicyFacts {
    /// `@id`.
    pub id: String,
    /// Whether it forbids.
    pub forbids: bool,
    /// The file it stands in.
    pub file: Arc<str>,
    /// Where, from 1.
    pub line: usize,
}

/// Counts for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BundleCounts {
    /// Policies that permit.
    pub permits: usize,
    /// Policies that forbid.
    pub forbids: usize,
    /// Entity types.
    pub types: usize,
    /// Actions that the author declared.
    pub actions: usize,
    /// Actions derived from annotations, groups included.
    pub derived: usize,
    /// Entities in `entities.json`.
    pub entities: usize,
}

/// A loaded set, immutable.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) revision: PolicyRevision,
    pub(crate) options: BundleOptions,
    pub(crate) schema: Schema,
    pub(crate) shapes: Shapes,
    pub(crate) policies: Vec<CompiledPolicy>,
    /// How the time is told to policies.
    datetime: Option<Extension>,
    /// The last time told, in milliseconds: Cedar makes one from text alone, which takes longer than a whole ruling.
    told: Mutex<Option<(i64, Value)>>,
    /// By the name callers use: `Account.read`, `Shop::Account.read`.
    pub(crate) actions: ByName<Arc<CompiledAction>>,
    pub(crate) stored: ByUid<Arc<Entity>>,
    /// Who asked lately.
    pub(super) principals: Principals,
    /// Rulings that were given, for whoever gets the same.
    pub(super) given: Given,
    pub(crate) facts: Vec<PolicyFacts>,
    pub(crate) warnings: Vec<Problem>,
    pub(crate) counts: BundleCounts,
    /// The stored entities and every action with its groups, for the oracle.
    pub(crate) base_entities: Entities,
}

impl Engine {
    /// A `datetime` of Cedar's, in milliseconds.
    pub(crate) fn datetime(&self, time: SystemTime) -> Option<Value> {
        let instant = jiff::Timestamp::try_from(time).ok()?;
        let millisecond = instant.as_nanosecond().div_euclid(1_000_000);
        let millisecond = i64::try_from(millisecond).ok()?;
        if let Some((_, value)) = self.told.lock().as_ref().filter(|(told, _)| *told == millisecond) {
            return Some(value.clone());
        }
        let text = instant.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
        let value = self.datetime.as_ref()?.value(&text)?;
        *self.told.lock() = Some((millisecond, value.clone()));
        Some(value)
    }
}

/// Puts a validated set together.
pub(super) fn assemble(
    derived: DerivedSchema,
    parsed: Parsed,
    entities: Entities,
    revision: PolicyRevision,
    warnings: Vec<Problem>,
    options: &BundleOptions,
) -> Result<Engine, Problem> {
    let core = derived.schema.as_ref();
    let shapes = Shapes::new(core);
    let find = |id: &str| parsed.set.policy(&PolicyId::new(id));
    let mut names = Names::default();
    let policies: Vec<CompiledPolicy> = parsed
        .facts
        .iter()
        .filter_map(|facts| Some(CompiledPolicy::new(facts.id.clone(), find(&facts.id)?.as_ref(), &mut names)))
        .collect();
    let groups: Entities = derived
        .schema
        .action_entities()
        .map(|entities| entities.as_ref().clone())
        .map_err(|error| Problem::bare("*.cedarschema", &error.to_string()))?;
    let entity_of: HashMap<EntityUID, Arc<Entity>> =
        groups.iter().map(|entity| (entity.uid().clone(), Arc::new(entity.clone()))).collect();

    let by_action = ByAction::new(&policies, &groups);
    let mut actions = ByName::default();
    let (mut declared, mut planned) = (0, 0);
    for action in core.action_ids() {
        let uid = action.name();
        let id: &str = uid.eid().as_ref();
        // In a bundle only derived actions can have such names; a corpus may have them without any being derived.
        if derived.derived > 0 && id.contains([':', '#']) {
            continue;
        }
        declared += 1;
        let type_name = uid.entity_type().to_string();
        let namespace = type_name.rsplit_once("::").map_or("", |(namespace, _)| namespace);
        let fields = derived.fields.get(&(namespace.to_owned(), id.to_owned()));
        let mut compiled = compile_action(action, fields, &policies, &by_action, &groups, &entity_of)?;
        for plan in compiled.plans.values_mut() {
            plan.number = planned;
            planned += 1;
        }
        let name = if namespace.is_empty() { id.to_owned() } else { format!("{namespace}::{id}") };
        if actions.insert(name.clone(), Arc::new(compiled)).is_some() {
            return Err(Problem::bare("*.cedarschema", &format!("two actions would be asked for as `{name}`")));
        }
    }
    let counts = BundleCounts {
        permits: policies.iter().filter(|policy| !policy.forbids).count(),
        forbids: policies.iter().filter(|policy| policy.forbids).count(),
        types: shapes.entities.len(),
        actions: declared,
        derived: derived.derived,
        entities: entities.iter().filter(|entity| !entity.uid().is_action()).count(),
    };
    Ok(Engine {
        revision,
        options: options.clone(),
        datetime: Extension::named("datetime"),
        told: Mutex::new(None),
        shapes,
        policies,
        actions,
        stored: stored_entities(&entities),
        principals: Principals::default(),
        given: Given::default(),
        facts: parsed.facts,
        warnings,
        counts,
        base_entities: entities,
        schema: derived.schema,
    })
}

fn compile_action(
    action: &cedar_policy_core::validator::ValidatorActionId,
    fields: Option<&FieldActions>,
    policies: &[CompiledPolicy],
    by_action: &ByAction,
    groups: &Entities,
    entity_of: &HashMap<EntityUID, Arc<Entity>>,
) -> Result<CompiledAction, Problem> {
    let uid = action.name().clone();
    let candidates = by_action.covering(&uid);
    let index = ByScope::new(candidates.iter().filter_map(|at| Some((*at, policies.get(*at)?))));
    let mut plans = ByType::default();
    for (resource, found) in fields.into_iter().flat_map(|fields| &fields.by_resource) {
        let Some(resource) = TypeName::parse(resource).ok().and_then(|name| super::types::cedar_type(&name)) else {
            continue;
        };
        let plan = plan_fields(&uid, &resource, found, policies, by_action, groups, entity_of)?;
        plans.insert(resource, plan);
    }
    let speaking: HashSet<usize> = candidates
        .iter()
        .copied()
        .chain(plans.values().flat_map(|plan| plan.rules.iter().map(|rule| rule.policy)))
        .collect();
    let mut context = match action.context_type() {
        Some(cedar_policy_core::validator::types::Type::Record { attrs, .. }) => record_type(attrs),
        _ => super::types::RecordType::default(),
    };
    let injected = INJECTED.iter().filter_map(|name| Some((*name, context.members.remove(*name)?))).collect();
    let resources: Vec<EntityType> = action.applies_to_resources().cloned().collect();
    Ok(CompiledAction {
        entity: Arc::clone(entity_of.get(&uid).ok_or_else(|| lost(&uid))?),
        principals: action.applies_to_principals().cloned().collect(),
        resources,
        reads_now: speaking.iter().filter_map(|index| policies.get(*index)).any(|policy| policy.reads_now),
        context,
        injected,
        candidates,
        index,
        field_kind: fields.map(|fields| fields.kind),
        plans,
        uid,
    })
}

/// The fields of the action `base` on one resource type, with the policies that speak about them.
fn plan_fields(
    base: &EntityUID,
    resource: &EntityType,
    found: &[DerivedField],
    policies: &[CompiledPolicy],
    by_action: &ByAction,
    groups: &Entities,
    entity_of: &HashMap<EntityUID, Arc<Entity>>,
) -> Result<FieldPlan, Problem> {
    let sibling =
        |id: &str| EntityUID::from_components(base.entity_type().clone(), cedar_policy_core::ast::Eid::new(id), None);
    let mut plan = FieldPlan::default();
    for field in found {
        let derived = sibling(&field.action_id);
        if !entity_of.contains_key(&derived) {
            return Err(lost(&derived));
        }
        plan.actions.push(derived);
        plan.paths.push(field.path.clone());
    }
    let mut subtrees: BTreeMap<String, FieldSet> = BTreeMap::new();
    for (position, path) in plan.paths.iter().enumerate() {
        let mut parent = path.as_str();
        while let Some((above, _)) = parent.rsplit_once('.') {
            subtrees.entry(above.to_owned()).or_insert_with(|| FieldSet::none(plan.paths.len())).insert(position);
            parent = above;
        }
    }
    let base: &str = base.eid().as_ref();
    let mut named = Vec::new();
    for (path, fields) in subtrees {
        named.push(sibling(&format!("{base}:{path}.*")));
        let path = FieldPath::parse(&path).map_err(|error| Problem::bare("*.cedarschema", &error.to_string()))?;
        plan.subtrees.push(Subtree { path, fields });
    }

    let mut covered: BTreeMap<usize, FieldSet> = BTreeMap::new();
    if !plan.paths.is_empty() {
        covered.extend(by_action.open().iter().map(|at| (*at, FieldSet::all(plan.paths.len()))));
    }
    for (position, derived) in plan.actions.iter().enumerate() {
        for at in by_action.naming(derived) {
            covered.entry(*at).or_insert_with(|| FieldSet::none(plan.paths.len())).insert(position);
        }
    }
    let mut speakers: BTreeSet<usize> = BTreeSet::new();
    for (at, fields) in covered {
        let Some(policy) = policies.get(at).filter(|policy| policy.covers_resource_type(resource)) else { continue };
        let classes = match &policy.body {
            Some(body) if policy.mentions_action => field_classes(body, &fields, &plan.actions, groups),
            Some(_) | None => Vec::new(),
        };
        speakers.extend(classes.iter().map(|class| class.speaker));
        let names = |(at, group): (usize, &EntityUID)| policy.names_action(group).then_some(at);
        let subtrees = named.iter().enumerate().filter_map(names).collect();
        plan.rules.push(FieldRule { policy: at, fields, subtrees, classes });
    }
    plan.looked_at =
        speakers.iter().filter_map(|speaker| entity_of.get(plan.actions.get(*speaker)?)).map(Arc::clone).collect();
    plan.index =
        ByScope::new(plan.rules.iter().enumerate().filter_map(|(at, rule)| Some((at, policies.get(rule.policy)?))));
    Ok(plan)
}

fn lost(uid: &EntityUID) -> Problem {
    Problem::bare("*.cedarschema", &format!("`{uid}` is not among the schema's actions"))
}

//! A bundle: a folder of `*.cedarschema`, `*.cedar` and `entities.json`, read, strictly validated and compiled.
//!
//! Either everything in it is right and it becomes an [`Engine`], or every problem is told at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use cedar_policy::{PolicyId, PolicySet, Schema, ValidationMode, Validator};
use cedar_policy_core::ast::{ActionConstraint, Effect, Entity, EntityType, EntityUID, PartialValue, Value};
use cedar_policy_core::entities::Entities;

use super::compile::{CompiledAction, CompiledPolicy, FieldPlan, FieldRule, FieldSet, Subtree};
use super::preflight;
use super::report::{BundleReport, Problem, SourceFile};
use super::request::{INJECTED, stored_entities};
use super::schema::{DerivedSchema, FieldActions, derive};
use super::types::{AttributeType, Extension, Shapes, record_type};
use crate::config::Limits;
use crate::model::entity::{EntityId, EntityType as TypeName, EntityUid};
use crate::model::field_path::FieldPath;
use crate::model::ids::PolicyRevision;

/// The stack that policy text is parsed and validated on, bytes. Address space, not memory: only what is used is touched.
const LOADING_STACK: usize = 256 * 1024 * 1024;

/// How strictly a bundle is read.
#[derive(Debug, Clone)]
pub struct BundleOptions {
    /// How many steps of entity data a policy may take: 1 or 2.
    pub validation_level: u32,
    /// The entity type of a calling workload.
    pub caller_type: TypeName,
    /// The entity that stands for nobody in particular.
    pub anonymous: EntityUid,
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
    pub file: String,
    /// Where, from 1.
    pub line: usize,
    /// All its annotations.
    pub annotations: BTreeMap<String, String>,
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
    /// By the name callers use: `Account.read`, `Shop::Account.read`.
    pub(crate) actions: HashMap<String, Arc<CompiledAction>>,
    pub(crate) stored: HashMap<EntityUID, Arc<Entity>>,
    pub(crate) facts: Vec<PolicyFacts>,
    pub(crate) warnings: Vec<Problem>,
    pub(crate) counts: BundleCounts,
    /// The whole set, as the oracle that tests hold our own evaluation against.
    pub(crate) whole: PolicySet,
    /// The stored entities and every action with its groups, for the oracle.
    pub(crate) base_entities: Entities,
}

impl Engine {
    /// A `datetime` of Cedar's, in milliseconds.
    pub(crate) fn datetime(&self, time: SystemTime) -> Option<Value> {
        let instant = jiff::Timestamp::try_from(time).ok()?;
        let text = instant.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
        self.datetime.as_ref()?.value(&text)
    }
}

/// The files of a bundle, in order of name.
#[derive(Debug, Clone, Default)]
pub struct BundleFiles {
    /// `*.cedarschema`.
    pub schemas: Vec<SourceFile>,
    /// `*.cedar`.
    pub policies: Vec<SourceFile>,
    /// `entities.json`.
    pub entities: Option<SourceFile>,
}

impl BundleFiles {
    /// Reads a folder; names that start with a dot, and sub-folders, are left alone.
    ///
    /// # Errors
    /// What can't be read, is too large, or is not UTF-8, by file.
    pub fn read(directory: &Path, limits: &Limits) -> Result<Self, BundleReport> {
        let shown = directory.display().to_string();
        // Kubernetes swaps `..data` for a new folder in one step; reading through it, no two revisions are mixed.
        let swapped = directory.join("..data");
        let settled = std::fs::canonicalize(if swapped.exists() { &swapped } else { directory });
        let entries = match settled.and_then(std::fs::read_dir) {
            Ok(entries) => entries,
            Err(error) => return Err(vec![Problem::bare(&shown, &format!("can't be read: {}", error.kind()))].into()),
        };
        let (mut files, mut problems, mut total) = (Self::default(), Vec::new(), 0usize);
        // A file that is passed over might be the one that forbids.
        let listed: std::io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut paths = match listed {
            Ok(paths) => paths,
            Err(error) => return Err(vec![Problem::bare(&shown, &format!("can't be listed: {}", error.kind()))].into()),
        };
        paths.sort();
        for path in paths {
            let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                problems
                    .push(Problem::bare(&shown, "holds a file whose name is not UTF-8").help("rename or remove it"));
                continue;
            };
            if !is_bundle_file(name.as_bytes()) {
                continue;
            }
            match read_bounded(&path, limits.policy_file_bytes) {
                Ok(text) => {
                    total += text.len();
                    let file = SourceFile { name: name.clone(), text };
                    if name.ends_with(".cedarschema") {
                        files.schemas.push(file);
                    } else if name.ends_with(".cedar") {
                        files.policies.push(file);
                    } else {
                        files.entities = Some(file);
                    }
                }
                Err(message) => problems.push(Problem::bare(&name, &message)),
            }
        }
        if total > limits.bundle_bytes {
            problems.push(
                Problem::bare(&shown, &format!("the bundle has {total} bytes, more than {}", limits.bundle_bytes))
                    .help("split it, or raise `limits.bundle_bytes`"),
            );
        }
        if problems.is_empty() { Ok(files) } else { Err(problems.into()) }
    }

    /// The revision: SHA-256 over every file's name and text, framed by length.
    #[must_use]
    pub fn revision(&self, options: &BundleOptions) -> PolicyRevision {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let mut part = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        };
        part(b"gatepost bundle 1");
        part(&options.validation_level.to_be_bytes());
        for file in self.schemas.iter().chain(&self.policies).chain(&self.entities) {
            part(file.name.as_bytes());
            part(file.text.as_bytes());
        }
        PolicyRevision::from_digest(context.finish().as_ref())
    }
}

/// Whether a file of this name belongs to a bundle. What starts with a dot is an editor's or a kubelet's.
pub(super) fn is_bundle_file(name: &[u8]) -> bool {
    !name.starts_with(b".")
        && (name.ends_with(b".cedarschema") || name.ends_with(b".cedar") || name == b"entities.json")
}

fn read_bounded(path: &Path, limit: usize) -> Result<String, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|error| format!("can't be read: {}", error.kind()))?;
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return Err("is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|error| format!("can't be read: {}", error.kind()))?;
    if bytes.len() > limit {
        return Err(format!("has more than {limit} bytes; split it, or raise `limits.policy_file_bytes`"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

/// Compiles the files of a bundle.
pub(super) fn compile(
    files: &BundleFiles,
    options: &BundleOptions,
    skip: Option<&str>,
) -> Result<Engine, BundleReport> {
    // Parsing and validating recurse; on a small stack they would abort the process or give up on a policy.
    stacker::grow(LOADING_STACK, || Compiler { options, skip, problems: Vec::new(), warnings: Vec::new() }.run(files))
}

/// Compiles a set that is no strict bundle: for the Cedar corpus alone.
pub(super) fn dangerous_unvalidated(
    schema: Schema,
    set: &PolicySet,
    entities: &Entities,
    options: &BundleOptions,
) -> Result<Engine, BundleReport> {
    let facts = |id: String, forbids: bool| PolicyFacts {
        id,
        forbids,
        file: String::new(),
        line: 0,
        annotations: BTreeMap::new(),
    };
    let parsed = Parsed {
        facts: set
            .policies()
            .map(|policy| facts(policy.id().to_string(), policy.as_ref().effect() == Effect::Forbid))
            .collect(),
        set: set.clone(),
        home: HashMap::new(),
    };
    let derived = DerivedSchema { schema, fields: BTreeMap::new(), derived: 0 };
    let revision = PolicyRevision::from_digest(&[0; 32]);
    stacker::grow(LOADING_STACK, || assemble(derived, &parsed, entities.clone(), revision, Vec::new(), options))
        .map_err(|problem| vec![problem].into())
}

struct Compiler<'o> {
    options: &'o BundleOptions,
    /// A policy to leave out.
    skip: Option<&'o str>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// The set as parsed, with what is known of each policy.
struct Parsed {
    set: PolicySet,
    facts: Vec<PolicyFacts>,
    /// By `@id`: the file it stands in.
    home: HashMap<String, usize>,
}

impl Compiler<'_> {
    fn run(mut self, files: &BundleFiles) -> Result<Engine, BundleReport> {
        let limits = &self.options.limits;
        for file in files.schemas.iter().chain(&files.policies) {
            if let Err(problem) = preflight::check(file, limits.policy_depth) {
                self.problems.push(problem);
            }
        }
        if !self.problems.is_empty() {
            return Err(self.problems.into());
        }
        let derived = derive(&files.schemas).map_err(BundleReport::from)?;
        let parsed = self.parse(files);
        self.check_injected(&derived, files);
        if self.problems.is_empty() {
            self.validate(&derived.schema, &parsed, files);
        }
        let entities = self.entities(&derived.schema, files);
        match entities {
            Some(entities) if self.problems.is_empty() => {
                let (revision, warnings) = (files.revision(self.options), self.warnings);
                assemble(derived, &parsed, entities, revision, warnings, self.options)
                    .map_err(|problem| vec![problem].into())
            }
            _ => Err(self.problems.into()),
        }
    }

    /// Parses every policy file and gives each policy its `@id`.
    fn parse(&mut self, files: &BundleFiles) -> Parsed {
        let mut parsed = Parsed { set: PolicySet::new(), facts: Vec::new(), home: HashMap::new() };
        for (index, file) in files.policies.iter().enumerate() {
            let found: PolicySet = match file.text.parse() {
                Ok(found) => found,
                Err(error) => {
                    self.problems.push(Problem::from_diagnostic(file, &error));
                    continue;
                }
            };
            if let Some(template) = found.templates().next() {
                let at = template.as_ref().loc().map_or(0, |loc| loc.span.offset());
                self.problems.push(
                    Problem::at(file, at, 1, "is a template, and a bundle has no links to fill its slots")
                        .help("write the policy out, or put the entities into a group"),
                );
            }
            let mut policies: Vec<_> = found.policies().collect();
            let place = |policy: &cedar_policy::Policy| {
                policy.as_ref().loc().map_or((0, 0), |loc| (loc.span.offset(), loc.span.len()))
            };
            policies.sort_by_key(|policy| place(policy));
            for policy in policies {
                self.take(policy, place(policy), (index, file), &mut parsed);
            }
        }
        if parsed.facts.len() > self.options.limits.policies {
            let message =
                format!("the bundle has {} policies, more than {}", parsed.facts.len(), self.options.limits.policies);
            self.problems.push(Problem::bare("*.cedar", &message).help("raise `limits.policies`"));
        }
        parsed
    }

    fn take(
        &mut self,
        policy: &cedar_policy::Policy,
        place: (usize, usize),
        home: (usize, &SourceFile),
        parsed: &mut Parsed,
    ) {
        let (index, file) = home;
        let (offset, length) = place;
        let annotations: BTreeMap<String, String> =
            policy.annotations().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let line = Problem::at(file, offset, length, "").line;
        let Some(id) = annotations.get("id").filter(|id| is_policy_id(id)).cloned() else {
            self.problems.push(
                Problem::at(file, offset, length.min(6), "has no usable `@id`")
                    .help("write `@id(\"resource.rule\")` before it: 1 to 128 characters of `a-z A-Z 0-9 . _ : / -`"),
            );
            return;
        };
        let core = policy.as_ref();
        let unbounded = matches!(core.action_constraint(), ActionConstraint::Any);
        let why = annotations.get("unrestricted").is_some_and(|why| !why.trim().is_empty());
        if unbounded && core.effect() == Effect::Permit && !why {
            self.problems.push(
                Problem::at(
                    file,
                    offset,
                    length.min(6),
                    &format!("`{id}` permits whatever the action, every field and every future one included"),
                )
                .help("constrain the action, or write `@unrestricted(\"why\")` before it"),
            );
        }
        if let Some(body) = core.non_scope_constraints()
            && depth(body) > self.options.limits.policy_depth
        {
            let message = format!("`{id}` nests deeper than {}", self.options.limits.policy_depth);
            self.problems.push(
                Problem::at(file, offset, length.min(6), &message)
                    .help("split it, use a set and `contains`, or raise `limits.policy_depth`"),
            );
        }
        if self.skip == Some(id.as_str()) {
            return;
        }
        if let Some(other) = parsed.facts.iter().find(|other| other.id == id) {
            let message = format!("`{id}` is the id of another policy: {}:{}", other.file, other.line);
            self.problems
                .push(Problem::at(file, offset, length.min(6), &message).help("give each policy an id of its own"));
            return;
        }
        if let Err(error) = parsed.set.add(policy.new_id(PolicyId::new(&id))) {
            self.problems.push(Problem::at(file, offset, length.min(6), &error.to_string()));
            return;
        }
        parsed.home.insert(id.clone(), index);
        let forbids = core.effect() == Effect::Forbid;
        parsed.facts.push(PolicyFacts { id, forbids, file: file.name.clone(), line, annotations });
    }

    /// Strict validation, and how far policies reach into entity data.
    fn validate(&mut self, schema: &Schema, parsed: &Parsed, files: &BundleFiles) {
        let validator = Validator::new(schema.clone());
        let level = self.options.validation_level;
        let result = validator.validate_with_level(&parsed.set, ValidationMode::Strict, level);
        let file_of =
            |id: &PolicyId| parsed.home.get(AsRef::<str>::as_ref(id)).and_then(|index| files.policies.get(*index));
        for error in result.validation_errors() {
            let problem = match file_of(error.policy_id()) {
                Some(file) => Problem::from_diagnostic(file, error),
                None => Problem::bare("*.cedar", &error.to_string()),
            };
            self.problems.push(problem);
        }
        for warning in result.validation_warnings() {
            let problem = match file_of(warning.policy_id()) {
                Some(file) => Problem::from_diagnostic(file, warning),
                None => Problem::bare("*.cedar", &warning.to_string()),
            };
            self.warnings.push(problem);
        }
    }

    /// What Gatepost itself puts into the context must be declared with a type it can fill.
    fn check_injected(&mut self, derived: &DerivedSchema, files: &BundleFiles) {
        let core = derived.schema.as_ref();
        let caller_type = self.options.caller_type.as_str();
        let mut wrong: Vec<(&'static str, String)> = Vec::new();
        for action in core.action_ids() {
            let Some(cedar_policy_core::validator::types::Type::Record { attrs, .. }) = action.context_type() else {
                continue;
            };
            let context = record_type(attrs);
            for name in INJECTED {
                let Some(member) = context.members.get(name) else { continue };
                let fits = match (name, &member.attribute) {
                    ("now", AttributeType::Extension(declared)) => declared.name == "datetime",
                    ("caller", AttributeType::Entity(name)) => name.to_string() == caller_type,
                    ("caller", AttributeType::Text) => true,
                    ("token", AttributeType::Record(record)) => {
                        record.members.iter().all(|(name, member)| match (name.as_str(), &member.attribute) {
                            ("issuer" | "subject" | "acr" | "client_id", AttributeType::Text) => true,
                            ("scopes" | "amr", AttributeType::Set(element)) => matches!(**element, AttributeType::Text),
                            ("auth_time" | "issued_at", AttributeType::Extension(declared)) => {
                                declared.name == "datetime"
                            }
                            _ => false,
                        })
                    }
                    _ => false,
                };
                if !fits {
                    let message = match name {
                        "now" => "in a context is the time, which Gatepost supplies: declare it as `datetime`".to_owned(),
                        "caller" => format!("in a context is the calling workload, which Gatepost supplies: declare it as `{caller_type}` or `String`"),
                        _ => "in a context holds what the token said, which Gatepost supplies: a record of issuer, subject, acr, client_id (String), scopes, amr (Set<String>), auth_time, issued_at (datetime)".to_owned(),
                    };
                    if !wrong.iter().any(|(_, known)| *known == message) {
                        wrong.push((name, message));
                    }
                }
            }
        }
        for (name, message) in wrong {
            let file = files.schemas.iter().find(|file| file.text.contains(name)).or(files.schemas.first());
            self.problems.push(match file {
                Some(file) => Problem::at_text(file, name, &message),
                None => Problem::bare("*.cedarschema", &message),
            });
        }
    }

    /// The stored entities, with the action entities of the schema.
    fn entities(&mut self, schema: &Schema, files: &BundleFiles) -> Option<Entities> {
        let Some(file) = &files.entities else {
            return match schema.action_entities() {
                Ok(actions) => Some(actions.as_ref().clone()),
                Err(error) => {
                    self.problems.push(Problem::bare("*.cedarschema", &error.to_string()));
                    None
                }
            };
        };
        let loaded = cedar_policy::Entities::from_json_str(&file.text, Some(schema));
        let entities: Entities = match loaded {
            Ok(entities) => entities.as_ref().clone(),
            Err(error) => {
                use miette::Diagnostic as _;
                let mut message = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(deeper) = source {
                    message = format!("{message}: {deeper}");
                    source = deeper.source();
                }
                let mut problem = Problem::whole(file, &message);
                problem.help = error.help().map(|help| help.to_string());
                self.problems.push(problem);
                return None;
            }
        };
        for entity in entities.iter() {
            // Cedar reads `unknown()` as any type; a forbid that meets one fails, and Cedar skips it.
            let known = |(_, value): (_, &PartialValue)| matches!(value, PartialValue::Value(_));
            if !entity.attrs().all(known) || !entity.tags().all(known) {
                let message = format!("`{}` has a value that is not known", entity.uid());
                self.problems.push(Problem::whole(file, &message).help("write the value out"));
            }
            if entity.ancestors().count() > self.options.limits.ancestors {
                let message = format!("`{}` has more ancestors than `limits.ancestors`", entity.uid());
                self.problems.push(Problem::whole(file, &message));
            }
        }
        Some(entities)
    }
}

fn is_policy_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b))
}

/// The depth of an expression's tree.
fn depth(expression: &cedar_policy_core::ast::Expr) -> usize {
    use cedar_policy_core::ast::ExprKind as Kind;
    1 + match expression.expr_kind() {
        Kind::Lit(_) | Kind::Var(_) | Kind::Slot(_) | Kind::Unknown(_) => 0,
        Kind::If { test_expr, then_expr, else_expr } => depth(test_expr).max(depth(then_expr)).max(depth(else_expr)),
        Kind::And { left, right } | Kind::Or { left, right } => depth(left).max(depth(right)),
        Kind::UnaryApp { arg, .. } => depth(arg),
        Kind::BinaryApp { arg1, arg2, .. } => depth(arg1).max(depth(arg2)),
        Kind::ExtensionFunctionApp { args, .. } | Kind::Set(args) => args.iter().map(depth).max().unwrap_or(0),
        Kind::GetAttr { expr, .. }
        | Kind::HasAttr { expr, .. }
        | Kind::ExtHasAttr { expr, .. }
        | Kind::Like { expr, .. }
        | Kind::Is { expr, .. } => depth(expr),
        Kind::Record(members) => members.values().map(depth).max().unwrap_or(0),
    }
}

/// Puts a validated set together.
fn assemble(
    derived: DerivedSchema,
    parsed: &Parsed,
    entities: Entities,
    revision: PolicyRevision,
    warnings: Vec<Problem>,
    options: &BundleOptions,
) -> Result<Engine, Problem> {
    let core = derived.schema.as_ref();
    let shapes = Shapes::new(core);
    let find = |id: &str| parsed.set.policy(&PolicyId::new(id));
    let policies: Vec<CompiledPolicy> = parsed
        .facts
        .iter()
        .filter_map(|facts| find(&facts.id).map(|policy| CompiledPolicy::new(facts.id.clone(), policy.as_ref())))
        .collect();
    let groups: Entities = derived
        .schema
        .action_entities()
        .map(|entities| entities.as_ref().clone())
        .map_err(|error| Problem::bare("*.cedarschema", &error.to_string()))?;
    let entity_of: HashMap<EntityUID, Arc<Entity>> =
        groups.iter().map(|entity| (entity.uid().clone(), Arc::new(entity.clone()))).collect();

    let mut actions = HashMap::new();
    let mut declared = 0;
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
        let compiled = compile_action(action, fields, &policies, &groups, &entity_of, &parsed.set)?;
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
        shapes,
        policies,
        actions,
        stored: stored_entities(&entities),
        facts: parsed.facts.clone(),
        warnings,
        counts,
        whole: parsed.set.clone(),
        base_entities: entities,
        schema: derived.schema,
    })
}

fn compile_action(
    action: &cedar_policy_core::validator::ValidatorActionId,
    fields: Option<&FieldActions>,
    policies: &[CompiledPolicy],
    groups: &Entities,
    entity_of: &HashMap<EntityUID, Arc<Entity>>,
    set: &PolicySet,
) -> Result<CompiledAction, Problem> {
    let uid = action.name().clone();
    let lost = |uid: &EntityUID| Problem::bare("*.cedarschema", &format!("`{uid}` is not among the schema's actions"));
    let candidates: Vec<usize> = positions(policies, |policy| policy.covers_action(&uid, groups));
    let mut slice = PolicySet::new();
    for index in &candidates {
        let Some(policy) = policies.get(*index).and_then(|policy| set.policy(&PolicyId::new(&policy.id))) else {
            continue;
        };
        slice.add(policy.clone()).map_err(|error| Problem::bare("*.cedar", &error.to_string()))?;
    }
    let mut plans = HashMap::new();
    for (resource, found) in fields.into_iter().flat_map(|fields| &fields.by_resource) {
        let Some(resource) = TypeName::parse(resource).ok().and_then(|name| super::types::cedar_type(&name)) else {
            continue;
        };
        let sibling = |id: &str| {
            EntityUID::from_components(uid.entity_type().clone(), cedar_policy_core::ast::Eid::new(id), None)
        };
        let mut plan = FieldPlan::default();
        for (position, field) in found.iter().enumerate() {
            let derived = sibling(&field.action_id);
            plan.entities.push(Arc::clone(entity_of.get(&derived).ok_or_else(|| lost(&derived))?));
            plan.actions.push(derived);
            plan.positions.insert(field.path.as_str().to_owned(), position);
            plan.paths.push(field.path.clone());
        }
        let base: &str = uid.eid().as_ref();
        let mut subtrees: BTreeMap<String, FieldSet> = BTreeMap::new();
        for (position, path) in plan.paths.iter().enumerate() {
            let mut parent = path.as_str();
            while let Some((above, _)) = parent.rsplit_once('.') {
                subtrees.entry(above.to_owned()).or_insert_with(|| FieldSet::none(plan.paths.len())).insert(position);
                parent = above;
            }
        }
        let mut named = Vec::new();
        for (path, fields) in subtrees {
            named.push(sibling(&format!("{base}:{path}.*")));
            let path = FieldPath::parse(&path).map_err(|error| Problem::bare("*.cedarschema", &error.to_string()))?;
            plan.subtrees.push(Subtree { path, fields });
        }
        for (index, policy) in policies.iter().enumerate() {
            let mut fields = FieldSet::none(plan.paths.len());
            for (position, derived) in plan.actions.iter().enumerate() {
                if policy.covers_action(derived, groups) {
                    fields.insert(position);
                }
            }
            if !fields.is_empty() {
                let subtrees = named
                    .iter()
                    .enumerate()
                    .filter(|(_, group)| policy.names_action(group))
                    .map(|(at, _)| at)
                    .collect();
                plan.rules.push(FieldRule { policy: index, fields, subtrees });
            }
        }
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
        slice,
        field_kind: fields.map(|fields| fields.kind),
        plans,
        uid,
    })
}

fn positions(policies: &[CompiledPolicy], wanted: impl Fn(&CompiledPolicy) -> bool) -> Vec<usize> {
    policies.iter().enumerate().filter(|(_, policy)| wanted(policy)).map(|(index, _)| index).collect()
}

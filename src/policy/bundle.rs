//! A bundle: a folder of `*.cedarschema`, `*.cedar` and `entities.json`, read, strictly validated and compiled.
//!
//! Either everything in it is right and it becomes an [`Engine`], or every problem is told at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cedar_policy::{PolicyId, PolicySet, Schema, ValidationMode, Validator};
use cedar_policy_core::ast::{ActionConstraint, Effect, PartialValue};
use cedar_policy_core::entities::Entities;

use super::engine::{BundleOptions, Engine, PolicyFacts, assemble};
use super::entities::INJECTED;
use super::files::BundleFiles;
use super::preflight;
use super::report::{BundleReport, Problem, SourceFile};
use super::schema::{DerivedSchema, derive};
use super::types::{AttributeType, record_type};
use super::validate::Admitted;
use crate::config::KeptValue;
use crate::model::ids::PolicyRevision;

/// The stack that policy text is parsed and validated on, bytes. Address space, not memory: only what is used is touched.
const LOADING_STACK: usize = 256 * 1024 * 1024;

/// Compiles the files of a bundle.
pub(super) fn compile(
    files: &BundleFiles,
    options: &BundleOptions,
    skip: Option<&str>,
) -> Result<Engine, BundleReport> {
    let compiler = |in_parts| Compiler { options, skip, in_parts, problems: Vec::new(), warnings: Vec::new() };
    // Parsing and validating recurse; on a small stack they would abort the process or give up on a policy.
    stacker::grow(LOADING_STACK, || {
        if files.policies.iter().all(|file| parts(&file.text).nth(1).is_none()) {
            return compiler(false).run(files);
        }
        match compiler(true).run(files) {
            Ok(engine) if engine.warnings.is_empty() => Ok(engine),
            // Whatever is to be told is told by its place in the whole file.
            Ok(_) | Err(_) => compiler(false).run(files),
        }
    })
}

/// Bytes of policies that Cedar parses at once, about: what it makes of them on the way takes a hundred times as much memory.
const PART: usize = 32 * 1024;

/// A file in parts, each with its place. Nothing but the end of a policy, or the inside of a string, is a `;` that no `//`
/// stands before on its line; and a part that ends inside a string does not parse.
fn parts(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut begin = 0;
    std::iter::from_fn(move || {
        let rest = text.get(begin..).filter(|rest| !rest.is_empty())?;
        let ends_there = |(at, _): &(usize, &str)| {
            let line = rest.get(..*at).and_then(|before| before.rsplit(['\n', '\r']).next());
            line.is_some_and(|line| !line.contains("//"))
        };
        let mut cuts = rest.match_indices(";\n").skip_while(|(at, _)| *at < PART);
        let end = cuts.find(ends_there).map_or(rest.len(), |(at, cut)| at + cut.len());
        let part = (begin, rest.get(..end)?);
        begin += end;
        Some(part)
    })
}

/// Compiles a set that is no strict bundle: for the Cedar corpus alone.
pub(super) fn dangerous_unvalidated(
    schema: Schema,
    set: &PolicySet,
    entities: &Entities,
    options: &BundleOptions,
) -> Result<Engine, BundleReport> {
    let facts = |id: String, forbids: bool| PolicyFacts { id, forbids, file: "".into(), line: 0 };
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
    stacker::grow(LOADING_STACK, || assemble(derived, parsed, entities.clone(), revision, Vec::new(), options))
        .map_err(|problem| vec![problem].into())
}

struct Compiler<'o> {
    options: &'o BundleOptions,
    /// A policy to leave out.
    skip: Option<&'o str>,
    /// Large files are parsed in [`parts`]: what Cedar says of them is not where it says it is.
    in_parts: bool,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// The set as parsed, with what is known of each policy.
pub(super) struct Parsed {
    pub(super) set: PolicySet,
    pub(super) facts: Vec<PolicyFacts>,
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
        self.check_tenants(&derived, files);
        self.check_recorded(&derived, files);
        if self.problems.is_empty() {
            self.validate(&derived.schema, &parsed, files);
        }
        let entities = self.entities(&derived.schema, files);
        match entities {
            Some(entities) if self.problems.is_empty() => {
                let (revision, warnings) = (files.revision(self.options), self.warnings);
                assemble(derived, parsed, entities, revision, warnings, self.options)
                    .map_err(|problem| vec![problem].into())
            }
            _ => Err(self.problems.into()),
        }
    }

    /// Parses every policy file and gives each policy its `@id`.
    fn parse(&mut self, files: &BundleFiles) -> Parsed {
        let mut parsed = Parsed { set: PolicySet::new(), facts: Vec::new(), home: HashMap::new() };
        for (index, file) in files.policies.iter().enumerate() {
            let name: Arc<str> = file.name.as_str().into();
            let (mut line, mut read) = (1, 0);
            let pieces: Vec<_> =
                if self.in_parts { parts(&file.text).collect() } else { vec![(0, file.text.as_str())] };
            for (begin, text) in pieces {
                let found: PolicySet = match text.parse() {
                    Ok(found) => found,
                    Err(error) => {
                        self.problems.push(Problem::from_diagnostic(file, &error));
                        continue;
                    }
                };
                if let Some(template) = found.templates().next() {
                    let at = template.as_ref().loc().map_or(0, |loc| begin + loc.span.offset());
                    self.problems.push(
                        Problem::at(file, at, 1, "is a template, and a bundle has no links to fill its slots")
                            .help("write the policy out, or put the entities into a group"),
                    );
                }
                let mut policies: Vec<_> = found.policies().collect();
                let place = |policy: &cedar_policy::Policy| {
                    policy.as_ref().loc().map_or((0, 0), |loc| (begin + loc.span.offset(), loc.span.len()))
                };
                policies.sort_by_key(|policy| place(policy));
                for policy in policies {
                    let (offset, length) = place(policy);
                    line += file.text.get(read..offset).unwrap_or_default().matches('\n').count();
                    read = offset;
                    self.take(policy, (offset, length, line), (index, file, &name), &mut parsed);
                }
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
        place: (usize, usize, usize),
        home: (usize, &SourceFile, &Arc<str>),
        parsed: &mut Parsed,
    ) {
        let (index, file, name) = home;
        let (offset, length, line) = place;
        let Some(id) = policy.annotation("id").filter(|id| is_policy_id(id)).map(ToOwned::to_owned) else {
            self.problems.push(
                Problem::at(file, offset, length.min(6), "has no usable `@id`")
                    .help("write `@id(\"resource.rule\")` before it: 1 to 128 characters of `a-z A-Z 0-9 . _ : / -`"),
            );
            return;
        };
        let core = policy.as_ref();
        let unbounded = matches!(core.action_constraint(), ActionConstraint::Any);
        let why = policy.annotation("unrestricted").is_some_and(|why| !why.trim().is_empty());
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
        if parsed.home.contains_key(&id)
            && let Some(other) = parsed.facts.iter().find(|other| other.id == id)
        {
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
        parsed.facts.push(PolicyFacts { id, forbids, file: Arc::clone(name), line });
    }

    /// Strict validation, and how far policies reach into entity data.
    fn validate(&mut self, schema: &Schema, parsed: &Parsed, files: &BundleFiles) {
        let level = self.options.validation_level;
        let result = match self.doubtful(schema, parsed) {
            Some(doubtful) if doubtful.is_empty() => return,
            doubtful => {
                let set = doubtful.as_ref().unwrap_or(&parsed.set);
                Validator::new(schema.clone()).validate_with_level(set, ValidationMode::Strict, level)
            }
        };
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

    /// The policies that plain validation may have something to say of; `None`: take them all.
    fn doubtful(&self, schema: &Schema, parsed: &Parsed) -> Option<PolicySet> {
        let admitted = Admitted::new(schema.as_ref(), self.options.validation_level);
        let mut doubtful = PolicySet::new();
        for facts in &parsed.facts {
            let policy = parsed.set.policy(&PolicyId::new(&facts.id))?;
            if !admitted.finds_nothing(policy.as_ref()) {
                doubtful.add(policy.clone()).ok()?;
            }
        }
        Some(doubtful)
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
                            ("issuer" | "subject" | "acr" | "client_id" | "actor", AttributeType::Text)
                            | ("sender_constrained", AttributeType::Bool) => true,
                            ("scopes" | "amr" | "actors", AttributeType::Set(element)) => {
                                matches!(**element, AttributeType::Text)
                            }
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
                        _ => "in a context holds what the token said, which Gatepost supplies: a record of issuer, subject, acr, client_id, actor (String), scopes, amr, actors (Set<String>), auth_time, issued_at (datetime), sender_constrained (Bool)".to_owned(),
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

    /// A tenant type that the schema does not know would hold nobody to anything.
    fn check_tenants(&mut self, derived: &DerivedSchema, files: &BundleFiles) {
        let Some(tenant_type) = &self.options.tenant_type else { return };
        let mut declared = derived.schema.as_ref().entity_types().map(|declared| declared.name().to_string());
        if declared.any(|name| name == tenant_type.as_str()) {
            return;
        }
        let message = format!("declares no entity type `{tenant_type}`, which `policies.tenant_type` names");
        self.problems.push(match files.schemas.first() {
            Some(file) => Problem::whole(file, &message),
            None => Problem::bare("*.cedarschema", &message),
        });
    }

    /// A rule about a value that there is not would quietly record nothing.
    fn check_recorded(&mut self, derived: &DerivedSchema, files: &BundleFiles) {
        let core = derived.schema.as_ref();
        let contexts: Vec<_> = core
            .action_ids()
            .filter_map(|action| match action.context_type() {
                Some(cedar_policy_core::validator::types::Type::Record { attrs, .. }) => Some(record_type(attrs)),
                _ => None,
            })
            .collect();
        let wrong = self.options.recorded.iter().filter_map(|value| match value {
            KeptValue::Context(name) if contexts.iter().any(|context| context.members.contains_key(name.as_str())) => {
                None
            }
            KeptValue::Context(name) => {
                Some(format!("declares no context with `{name}`, which `audit.attributes` names as `context.{name}`"))
            }
            KeptValue::Attribute { entity_type, attribute } => {
                let declared = core.entity_types().find(|declared| declared.name().to_string() == entity_type.as_str());
                let there = declared.is_some_and(|declared| {
                    record_type(declared.attributes()).members.contains_key(attribute.as_str())
                });
                (!there).then(|| {
                    format!(
                        "declares no attribute `{attribute}` of `{entity_type}`, which `audit.attributes` names as \
                         `{entity_type}.{attribute}`"
                    )
                })
            }
        });
        let problems: Vec<Problem> = wrong
            .map(|message| match files.schemas.first() {
                Some(file) => Problem::whole(file, &message),
                None => Problem::bare("*.cedarschema", &message),
            })
            .collect();
        self.problems.extend(problems);
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

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = "entity User = { level: Long }; entity Doc;
        action read appliesTo { principal: User, resource: Doc };";

    fn files(policies: String) -> BundleFiles {
        let file = |name: &str, text: String| SourceFile { name: name.to_owned(), text };
        BundleFiles {
            schemas: vec![file("t.cedarschema", SCHEMA.to_owned())],
            policies: vec![file("t.cedar", policies)],
            entities: None,
        }
    }

    fn run(files: &BundleFiles, in_parts: bool) -> Result<Engine, BundleReport> {
        let options = &BundleOptions::default();
        let compiler = Compiler { options, skip: None, in_parts, problems: Vec::new(), warnings: Vec::new() };
        stacker::grow(LOADING_STACK, || compiler.run(files))
    }

    fn told(engine: &Engine) -> Vec<(String, bool, String, usize, cedar_policy_core::ast::Policy)> {
        let facts = engine.facts.iter().zip(&engine.policies);
        let all = facts.map(|(f, p)| (f.id.clone(), f.forbids, f.file.to_string(), f.line, p.policy.clone()));
        all.collect()
    }

    #[test]
    fn a_file_in_parts_is_the_file_as_a_whole() {
        let mut text = String::new();
        for number in 0..2000 {
            text += match number % 4 {
                0 => "// @id(\"ghost\") permit (principal, action == Action::\"read\", resource);\n",
                1 => "//;\n// \" ;\n",
                2 => "/////// \r// @id(\"ghost\") forbid (principal, action, resource);\n",
                _ => "\n\n",
            };
            let effect = if number % 3 == 0 { "forbid" } else { "permit" };
            text += &format!(
                "@id(\"p{number}\") {effect} (principal, action == Action::\"read\", resource) // when ;\n when {{ principal.level > {number} }};\n"
            );
        }
        let cut: Vec<_> = parts(&text).collect();
        assert!(cut.len() > 5, "{} parts", cut.len());
        assert_eq!(cut.iter().map(|(_, part)| *part).collect::<String>(), text, "nothing is lost");
        assert!(
            cut.iter().all(|(begin, part)| text.get(*begin..).is_some_and(|rest| rest.starts_with(part))),
            "each is where it says it is"
        );
        let files = files(text);
        let (whole, in_parts) = (run(&files, false).unwrap(), run(&files, true).unwrap());
        assert_eq!(told(&in_parts), told(&whole));
        assert_eq!((whole.facts.len(), in_parts.revision), (2000, whole.revision));
    }

    #[test]
    fn a_part_that_ends_inside_a_string_does_not_parse_and_the_whole_does() {
        let policy = |number: usize| {
            format!(
                "@id(\"p{number}\") @why(\"a;\nb;\nc;\n\") permit (principal, action == Action::\"read\", resource);\n"
            )
        };
        let files = files((0..2000).map(policy).collect());
        assert!(run(&files, true).is_err());
        let engine = compile(&files, &BundleOptions::default(), None).unwrap();
        assert_eq!(engine.facts.len(), 2000);
    }
}

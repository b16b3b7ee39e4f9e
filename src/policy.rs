//! Policies: a bundle becomes an engine, a question becomes an [`AuthorizationRequest`], and that a ruling.
//!
//! This folder alone knows Cedar. `cedar-policy-core` gives no promise of stability, so its version is pinned exactly and
//! everything that is built on it is held against the public `Authorizer` by tests.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::model::decision::{Decision, DenialCode};
use crate::model::entity::{EntityType, EntityUid, RawEntity};
use crate::model::ids::PolicyRevision;
use crate::model::question::Question;

mod bundle;
mod compile;
mod engine;
mod entities;
mod evaluate;
mod files;
mod frame;
mod given;
mod index;
mod keyed;
mod preflight;
mod principals;
mod report;
mod request;
mod schema;
pub mod store;
mod tenants;
mod types;
mod validate;

pub use engine::{BundleCounts, BundleOptions, PolicyFacts};
pub use evaluate::STACK;
pub use files::BundleFiles;
pub use given::Ruled;
pub use report::{BundleReport, Problem, SourceFile};
pub use request::{AuthorizationRequest, CallerData, Level, RequestError, SubjectData};
pub use types::Misfit;

use engine::Engine;

/// One immutable, validated revision of policies, schema and entities. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bundle {
    engine: Arc<Engine>,
    files: Arc<BundleFiles>,
}

impl Bundle {
    /// Reads and compiles the folder `directory`.
    ///
    /// # Errors
    /// Everything that is wrong with it, by file, line and column.
    pub fn load(directory: &Path, options: &BundleOptions) -> Result<Self, BundleReport> {
        Self::compile(BundleFiles::read(directory, &options.limits)?, options)
    }

    /// Compiles files that are already read.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn compile(files: BundleFiles, options: &BundleOptions) -> Result<Self, BundleReport> {
        let engine = Arc::new(bundle::compile(&files, options, None)?);
        Ok(Self { engine, files: Arc::new(files) })
    }

    /// The same bundle without one policy, to see which tests notice.
    ///
    /// # Errors
    /// When what is left does not validate.
    pub fn without(&self, policy: &str) -> Result<Self, BundleReport> {
        let engine = Arc::new(bundle::compile(&self.files, &self.engine.options, Some(policy))?);
        Ok(Self { engine, files: Arc::clone(&self.files) })
    }

    /// The hash of everything in it.
    #[must_use]
    pub fn revision(&self) -> &PolicyRevision {
        &self.engine.revision
    }

    /// Its policies, in order of file and place.
    #[must_use]
    pub fn policies(&self) -> &[PolicyFacts] {
        &self.engine.facts
    }

    /// What looks wrong but loads.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.engine.warnings
    }

    /// Whether its schema has this entity type.
    #[must_use]
    pub fn declares_type(&self, entity_type: &EntityType) -> bool {
        self.engine.shapes.entity(entity_type).is_some()
    }

    /// How much is in it.
    #[must_use]
    pub fn counts(&self) -> BundleCounts {
        self.engine.counts
    }

    /// How it was read.
    #[must_use]
    pub fn options(&self) -> &BundleOptions {
        &self.engine.options
    }

    /// The actions that can be asked about.
    pub fn actions(&self) -> impl Iterator<Item = &str> {
        self.engine.actions.keys().map(String::as_str)
    }

    /// Whether the schema declares this attribute of this type.
    #[must_use]
    pub fn declares(&self, entity_type: &EntityType, attribute: &str) -> bool {
        let shape = self.engine.shapes.entity(entity_type);
        shape.is_some_and(|(_, shape)| shape.attributes.members.contains_key(attribute))
    }

    /// Whether the schema declares this member of the action's context.
    #[must_use]
    pub fn declares_context(&self, action: &str, member: &str) -> bool {
        self.engine.actions.get(action).is_some_and(|action| action.context.members.contains_key(member))
    }

    /// The tenants that `principal` belongs to, as far as anything says so: by id, where the options name a type.
    #[must_use]
    pub fn tenants_of(&self, principal: &RawEntity) -> BTreeSet<String> {
        tenants::of(&self.engine, principal)
    }

    /// The tenants that whatever has these parents belongs to by them.
    #[must_use]
    pub fn tenants_above(&self, parents: &[EntityUid]) -> BTreeSet<String> {
        tenants::above(&self.engine, parents)
    }

    /// Checks a question against the schema. The only way to something that can be ruled on.
    ///
    /// # Errors
    /// [`RequestError::Invalid`]: the caller's mistake; [`RequestError::Denied`]: no policy needs to be asked.
    pub fn request(
        &self,
        subject: &SubjectData,
        question: &Question,
        now: SystemTime,
    ) -> Result<AuthorizationRequest, RequestError> {
        AuthorizationRequest::new(&self.engine, subject, question, now)
    }

    /// What the policies say. Pure: the same request always gets the same ruling.
    #[must_use]
    pub fn rule(&self, request: &AuthorizationRequest) -> Ruled {
        evaluate::rule(request)
    }

    /// Proves that evaluation has the stack it needs: a deep and correct `forbid` must win on this very thread.
    #[must_use]
    pub fn evaluation_is_sound_here(&self) -> bool {
        self_test()
    }
}

/// A forbid as deep as the parser takes, beside a permit of everything: only a denial is right.
/// Cedar skips the forbid where the stack is short (cedar#1814), and then permits.
fn self_test() -> bool {
    let nested = |depth: usize| format!("{}context.bad{}", "!(!(".repeat(depth), "))".repeat(depth));
    let schema = "entity P; entity R; action go appliesTo { principal: P, resource: R, context: { bad: Bool } };";
    let policies = format!(
        "@id(\"all\") permit (principal, action == Action::\"go\", resource);\n@id(\"deep\") forbid (principal, action == Action::\"go\", resource) when {{ {} }};",
        nested(60)
    );
    let mut options = BundleOptions::default();
    options.limits.policy_depth = 1000;
    let files = BundleFiles {
        schemas: vec![SourceFile { name: "self-test.cedarschema".into(), text: schema.into() }],
        policies: vec![SourceFile { name: "self-test.cedar".into(), text: policies }],
        entities: None,
    };
    let Ok(bundle) = Bundle::compile(files, &options) else { return false };
    let named = |kind: &str| {
        Some(crate::model::entity::EntityUid {
            entity_type: crate::model::entity::EntityType::parse(kind).ok()?,
            id: crate::model::entity::EntityId::parse("x", 16).ok()?,
        })
    };
    let (Some(principal), Some(resource)) = (named("P"), named("R")) else { return false };
    let question = Question {
        action: "go".to_owned(),
        resource: crate::model::question::Resource {
            entity_type: resource.entity_type,
            id: Some(resource.id),
            attributes: crate::model::entity::RawRecord::new(),
            parents: Vec::new(),
        },
        fields: None,
        context: crate::model::entity::RawRecord::from_iter([(
            "bad".to_owned(),
            crate::model::entity::RawValue::Bool(true),
        )]),
        entities: Arc::default(),
        bypass_cache: true,
    };
    let principal = crate::model::entity::RawEntity {
        uid: principal,
        attributes: crate::model::entity::RawRecord::new(),
        parents: Vec::new(),
    };
    let subject = SubjectData { principal: principal.into(), token: None, caller: None };
    bundle.request(&subject, &question, SystemTime::UNIX_EPOCH).is_ok_and(|request| {
        let ruling = bundle.rule(&request);
        ruling.decision == Decision::Deny
            && ruling.denial.as_ref().is_some_and(|denial| denial.code == DenialCode::Forbidden)
    })
}

/// For the Cedar corpus and property tests: sets that are no strict bundles, and the plain evaluation to hold ours against.
/// No configuration reaches any of this.
#[doc(hidden)]
pub mod dangerous {
    use super::*;
    use cedar_policy_core::ast::Context;

    /// Compiles a set without validation, preflight or field actions.
    ///
    /// # Errors
    /// When it can't be put together at all.
    pub fn unvalidated(
        schema: cedar_policy::Schema,
        set: &cedar_policy::PolicySet,
        entities: &cedar_policy::Entities,
    ) -> Result<Bundle, BundleReport> {
        let engine = bundle::dangerous_unvalidated(schema, set, entities.as_ref(), &BundleOptions::default())?;
        Ok(Bundle { engine: Arc::new(engine), files: Arc::new(BundleFiles::default()) })
    }

    /// A request that no schema has checked; `None` for an action or context that can't be asked with.
    #[must_use]
    pub fn request(
        bundle: &Bundle,
        principal: &cedar_policy::EntityUid,
        action: &cedar_policy::EntityUid,
        resource: &cedar_policy::EntityUid,
        context: &cedar_policy::Context,
        entities: &cedar_policy::Entities,
    ) -> Option<AuthorizationRequest> {
        let compiled = bundle.engine.actions.values().find(|known| known.uid == *action.as_ref())?;
        let context: Context = context.as_ref().clone();
        request::dangerous_unchecked(
            &bundle.engine,
            compiled,
            principal.as_ref().clone(),
            resource.as_ref().clone(),
            context,
            entities.as_ref().clone(),
        )
    }

    /// Whether Cedar's own validation finds nothing wrong with the entities and context that our typing let through.
    #[must_use]
    pub fn conforms(request: &AuthorizationRequest) -> bool {
        let schema = &request.engine.schema;
        let Some(resource) = &request.resource else { return true };
        let entities: Vec<cedar_policy::Entity> = request
            .entities
            .iter()
            .filter(|entity| !entity.uid().is_action())
            .map(|entity| entity.clone().into())
            .collect();
        let asked: cedar_policy::Request = request.cedar(&request.action.uid, resource).into();
        let context =
            asked.context().is_some_and(|context| context.validate(schema, &request.action.uid.clone().into()).is_ok());
        context && cedar_policy::Entities::empty().add_entities(entities, Some(schema)).is_ok()
    }

    /// The policies of a bundle as they stand in its files, parsed by Cedar and by nobody else, under their `@id`s.
    #[must_use]
    pub fn oracle(bundle: &Bundle) -> cedar_policy::PolicySet {
        let mut oracle = cedar_policy::PolicySet::new();
        for file in &bundle.files.policies {
            let Ok(found) = file.text.parse::<cedar_policy::PolicySet>() else { continue };
            for policy in found.policies() {
                let Some(id) = policy.annotation("id") else { continue };
                // A bundle does not load with an id that stands twice, or with text that can't be parsed.
                let _ = oracle.add(policy.new_id(cedar_policy::PolicyId::new(id)));
            }
        }
        oracle
    }

    /// What Cedar's own authorizer says of a whole set for one action of the request, with its errors: decision, determining
    /// policies, erring policies. The action is the base action or one of its field actions; the resource is the object.
    #[must_use]
    pub fn plain(
        request: &AuthorizationRequest,
        oracle: &cedar_policy::PolicySet,
        field: Option<&str>,
    ) -> Option<(bool, Vec<String>, Vec<String>)> {
        let resource = request.resource.as_ref()?;
        let action = match field {
            None => request.action.uid.clone(),
            Some(path) => {
                let plan = request.action.plans.get(&request.resource_type)?;
                plan.actions.get(plan.position(&crate::model::field_path::FieldPath::parse(path).ok()?)?)?.clone()
            }
        };
        let entities = request
            .engine
            .base_entities
            .clone()
            .upsert_entities(
                request.entities.iter().map(|entity| Arc::new(entity.clone())),
                None::<&cedar_policy_core::validator::CoreSchema<'_>>,
                cedar_policy_core::entities::TCComputation::AssumeAlreadyComputed,
                cedar_policy_core::extensions::Extensions::all_available(),
            )
            .ok()?;
        let asked: cedar_policy::Request = request.cedar(&action, resource).into();
        let response =
            evaluate::on_big_stack(|| cedar_policy::Authorizer::new().is_authorized(&asked, oracle, &entities.into()));
        let determining = response.diagnostics().reason().map(ToString::to_string).collect();
        let errors = response
            .diagnostics()
            .errors()
            .map(|error| match error {
                cedar_policy::AuthorizationError::PolicyEvaluationError(error) => error.policy_id().to_string(),
            })
            .collect();
        Some((response.decision() == cedar_policy::Decision::Allow, determining, errors))
    }
}

//! Types of attributes, and raw values given one.
//!
//! A value that comes out of here conforms to the schema by construction: everything required is there, nothing
//! undeclared is, every reference is of the declared type. Callers' JSON never reaches Cedar's own entity parser, which
//! would take `unknown()` for any value and so switch a forbid off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cedar_policy_core::ast::{Eid, EntityType, EntityUID, Expr, Name, RestrictedExpr, Value};
use cedar_policy_core::entities::Entities;
use cedar_policy_core::evaluator::RestrictedEvaluator;
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::ValidatorSchema;
use cedar_policy_core::validator::types::{Attributes, EntityKind, Type};
use smol_str::SmolStr;

use super::compile::is_in;
use super::keyed::{ByName, ByType};
use crate::config::Limits;
use crate::model::entity::{EntityId, EntityType as TypeName, EntityUid, NameError, RawRecord, RawValue};

/// The type of one attribute.
#[derive(Debug, Clone)]
pub(crate) enum AttributeType {
    Bool,
    Long,
    Text,
    Entity(EntityType),
    Set(Box<AttributeType>),
    Record(RecordType),
    Extension(Extension),
}

/// An extension type, and how its values are made from text.
#[derive(Debug, Clone)]
pub(crate) struct Extension {
    /// `ipaddr`, `decimal`, `datetime`, `duration`.
    pub(crate) name: String,
    /// The function that reads its text.
    constructor: Name,
}

/// A closed record: nothing beyond what is declared.
#[derive(Debug, Clone, Default)]
pub(crate) struct RecordType {
    pub(crate) members: BTreeMap<SmolStr, Member>,
}

/// One declared member.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) attribute: AttributeType,
    pub(crate) required: bool,
}

/// What the schema says of an entity type.
#[derive(Debug, Clone)]
pub(crate) struct EntityShape {
    pub(crate) attributes: RecordType,
    /// The types that can stand above it, directly or not.
    pub(crate) ancestors: BTreeSet<EntityType>,
    /// The only ids there are, for an enumerated type.
    pub(crate) ids: Option<BTreeSet<Eid>>,
    /// Whether it can have tags. Nobody can send those, so only stored entities of such a type are known whole.
    pub(crate) tags: bool,
}

impl EntityShape {
    /// Whether a policy could learn anything by following a reference to such an entity.
    pub(crate) fn tells_something(&self) -> bool {
        !self.attributes.members.is_empty() || !self.ancestors.is_empty() || self.tags
    }
}

/// Why a value does not fit. Says where in the question and which rule; never shows the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// `resource.attributes.owner`. Names declared in the schema only; what is not declared is named by its holder.
    pub at: String,
    /// The broken rule, one fixed sentence.
    pub rule: &'static str,
}

/// The type tables of one schema.
#[derive(Debug)]
pub(crate) struct Shapes {
    pub(crate) entities: ByType<Arc<EntityShape>>,
    /// The same by the names that callers write: Cedar's own parser is no part of a decision.
    by_name: ByName<(EntityType, Arc<EntityShape>)>,
}

impl Shapes {
    /// Reads the tables out of a schema.
    pub(crate) fn new(schema: &ValidatorSchema) -> Self {
        use cedar_policy_core::validator::ValidatorEntityTypeKind;
        let entities: ByType<Arc<EntityShape>> = schema
            .entity_types()
            .map(|declared| {
                let name = declared.name().clone();
                let ids = match &declared.kind {
                    ValidatorEntityTypeKind::Enum(ids) => Some(ids.iter().cloned().collect()),
                    ValidatorEntityTypeKind::Standard(_) | ValidatorEntityTypeKind::External => None,
                };
                let ancestors = schema.ancestors(&name).into_iter().flatten().cloned().collect();
                (
                    name,
                    Arc::new(EntityShape {
                        attributes: record_type(declared.attributes()),
                        ancestors,
                        ids,
                        tags: declared.tag_type().is_some(),
                    }),
                )
            })
            .collect();
        let by_name =
            entities.iter().map(|(name, shape)| (name.to_string(), (name.clone(), Arc::clone(shape)))).collect();
        Self { entities, by_name }
    }

    /// The Cedar name and shape of a type, if the schema has it.
    pub(crate) fn entity(&self, name: &TypeName) -> Option<(&EntityType, &EntityShape)> {
        self.by_name.get(name.as_str()).map(|(name, shape)| (name, &**shape))
    }

    /// A reference, checked: the type is declared, and an enumerated type has this id.
    pub(crate) fn uid(&self, uid: &EntityUid, at: &str) -> Result<EntityUID, Misfit> {
        self.uid_of(&uid.entity_type, &uid.id, at)
    }

    /// The same of a type and an id that do not stand together.
    pub(crate) fn uid_of(&self, name: &TypeName, id: &EntityId, at: &str) -> Result<EntityUID, Misfit> {
        let (name, shape) =
            self.entity(name).ok_or_else(|| Misfit::new(at, "names a type that the schema does not declare"))?;
        reference(name, shape, id.as_str(), at)
    }

    /// Attributes of an entity or a context, typed. `at` is where they stand in the question.
    pub(crate) fn record(
        &self,
        declared: &RecordType,
        raw: &RawRecord,
        at: &str,
        limits: &Limits,
    ) -> Result<BTreeMap<SmolStr, Value>, Misfit> {
        self.record_over(declared, raw, at, limits, |_| false)
    }

    /// The same, where `known` members come from elsewhere and so are not missed.
    pub(crate) fn record_over(
        &self,
        declared: &RecordType,
        raw: &RawRecord,
        at: &str,
        limits: &Limits,
        known: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<SmolStr, Value>, Misfit> {
        let mut typed = BTreeMap::new();
        for (name, value) in raw {
            let Some((name, member)) = declared.members.get_key_value(name.as_str()) else {
                return Err(Misfit::new(at, "has an attribute that the schema does not declare"));
            };
            let value = self.value(&member.attribute, value, &mut || format!("{at}.{name}"), limits)?;
            typed.insert(name.clone(), value);
        }
        for (name, member) in &declared.members {
            if member.required && !typed.contains_key(name) && !known(name) {
                return Err(Misfit { at: format!("{at}.{name}"), rule: "is required by the schema" });
            }
        }
        Ok(typed)
    }

    fn value(
        &self,
        declared: &AttributeType,
        raw: &RawValue,
        at: &mut dyn FnMut() -> String,
        limits: &Limits,
    ) -> Result<Value, Misfit> {
        let mut misfit = |rule: &'static str| Misfit { at: at(), rule };
        match (declared, raw) {
            (AttributeType::Bool, RawValue::Bool(value)) => Ok(Value::from(*value)),
            (AttributeType::Bool, _) => Err(misfit("must be true or false")),
            (AttributeType::Long, RawValue::Integer(value)) => Ok(Value::from(*value)),
            (AttributeType::Long, RawValue::Number(value)) => whole(*value)
                .map(Value::from)
                .ok_or_else(|| misfit("must be a whole number within plus or minus 2^53; send larger ones as text")),
            (AttributeType::Long, RawValue::Text(text)) => {
                // The JSON form of a 64-bit integer is text (proto3 JSON mapping); only the canonical spelling is taken.
                let parsed = text.parse::<i64>().ok().filter(|value| value.to_string() == *text);
                parsed.map(Value::from).ok_or_else(|| misfit("must be a whole 64-bit number"))
            }
            (AttributeType::Long, _) => Err(misfit("must be a whole number")),
            (AttributeType::Text, RawValue::Text(text)) if text.len() > limits.string_bytes => {
                Err(misfit("is longer than `limits.string_bytes`"))
            }
            (AttributeType::Text, RawValue::Text(text)) => Ok(Value::from(text.as_str())),
            (AttributeType::Text, _) => Err(misfit("must be text")),
            (AttributeType::Entity(name), RawValue::Record(record)) => {
                let shape = self.entities.get(name).ok_or_else(|| misfit("has a type without a declaration"))?;
                let (Some(RawValue::Text(kind)), Some(RawValue::Text(id)), 2) =
                    (record.get("type"), record.get("id"), record.len())
                else {
                    return Err(misfit("must be an entity: {\"type\": .., \"id\": ..}"));
                };
                if self.by_name.get(kind).is_none_or(|(known, _)| known != name) {
                    return Err(misfit("must be an entity of the declared type"));
                }
                EntityId::parse(id, limits.id_bytes).map_err(|error| misfit(id_rule(error)))?;
                reference(name, shape, id, "").map(Value::from).map_err(|found| misfit(found.rule))
            }
            (AttributeType::Entity(_), _) => Err(misfit("must be an entity: {\"type\": .., \"id\": ..}")),
            (AttributeType::Set(element), RawValue::List(list)) => {
                if list.len() > limits.set_elements {
                    return Err(misfit("has more elements than `limits.set_elements`"));
                }
                let typed: Result<Vec<Value>, Misfit> =
                    list.iter().map(|raw| self.value(element, raw, at, limits)).collect();
                Ok(Value::set(typed?, None))
            }
            (AttributeType::Set(_), _) => Err(misfit("must be a list")),
            (AttributeType::Record(declared), RawValue::Record(record)) => {
                Ok(Value::record_arc(Arc::new(self.record(declared, record, &at(), limits)?), None))
            }
            (AttributeType::Record(_), _) => Err(misfit("must be a record")),
            (AttributeType::Extension(declared), RawValue::Text(text)) => {
                declared.value(text).ok_or_else(|| misfit("does not read as the declared extension type"))
            }
            (AttributeType::Extension(_), _) => Err(misfit("must be text that reads as the declared extension type")),
        }
    }
}

impl Misfit {
    pub(crate) fn new(at: &str, rule: &'static str) -> Self {
        Self { at: at.to_owned(), rule }
    }
}

pub(crate) fn id_rule(error: NameError) -> &'static str {
    match error {
        NameError::Empty => "must not be empty",
        NameError::TooLong => "is longer than `limits.id_bytes`",
        NameError::Unprintable => "holds a control, bidirectional or zero-width character",
        NameError::Shape => "is malformed",
    }
}

fn reference(name: &EntityType, shape: &EntityShape, id: &str, at: &str) -> Result<EntityUID, Misfit> {
    let eid = Eid::new(id);
    if shape.ids.as_ref().is_some_and(|ids| !ids.contains(&eid)) {
        return Err(Misfit::new(at, "is not one of the ids that the schema enumerates"));
    }
    Ok(EntityUID::from_components(name.clone(), eid, None))
}

/// A double that is a whole number which doubles still tell apart.
fn whole(value: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
    (value.fract() == 0.0 && value.abs() <= EXACT).then_some(value as i64)
}

/// The Cedar name of a type.
pub(crate) fn cedar_type(name: &TypeName) -> Option<EntityType> {
    let name: Name = name.as_str().parse().ok()?;
    Some(EntityType::from(name))
}

impl Extension {
    /// An extension type by its name; `None` for one that no text makes.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let constructor = match name {
            "ipaddr" => "ip",
            "decimal" | "datetime" | "duration" => name,
            _ => return None,
        };
        Some(Self { name: name.to_owned(), constructor: constructor.parse().ok()? })
    }

    /// A value from its text. IPv4-mapped IPv6 addresses are read as the IPv4 addresses that they are: Cedar refuses the
    /// mapped spelling, and a range check must not be dodged by it.
    pub(crate) fn value(&self, text: &str) -> Option<Value> {
        let text = if self.name == "ipaddr" { canonical_address(text) } else { text.to_owned() };
        let call = RestrictedExpr::call_extension_fn(self.constructor.clone(), [RestrictedExpr::val(text)]);
        RestrictedEvaluator::new(Extensions::all_available()).interpret(call.as_borrowed()).ok()
    }
}

fn canonical_address(text: &str) -> String {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let Ok(std::net::IpAddr::V6(v6)) = address.parse() else { return text.to_owned() };
    let Some(v4) = v6.to_ipv4_mapped() else { return text.to_owned() };
    match prefix.map(str::parse::<u8>) {
        None => v4.to_string(),
        Some(Ok(bits @ 96..=128)) => format!("{v4}/{}", bits - 96),
        Some(_) => text.to_owned(),
    }
}

/// The declared members of a record or entity type.
pub(crate) fn record_type(attributes: &Attributes) -> RecordType {
    let members = attributes
        .iter()
        .map(|(name, declared)| {
            (name.clone(), Member { attribute: attribute_type(&declared.attr_type), required: declared.is_required })
        })
        .collect();
    RecordType { members }
}

fn attribute_type(declared: &Type) -> AttributeType {
    match declared {
        Type::Bool(_) => AttributeType::Bool,
        Type::Long => AttributeType::Long,
        Type::Entity(EntityKind::Entity(lub)) => match lub.get_single_entity() {
            Some(name) => AttributeType::Entity(name.clone()),
            None => AttributeType::Record(RecordType::default()),
        },
        Type::Set { element_type: Some(element) } => AttributeType::Set(Box::new(attribute_type(element))),
        Type::Record { attrs, .. } => AttributeType::Record(record_type(attrs)),
        Type::ExtensionType { name } => match Extension::named(&name.to_string()) {
            Some(extension) => AttributeType::Extension(extension),
            None => AttributeType::Record(RecordType::default()),
        },
        Type::String => AttributeType::Text,
        // No schema declares these: they exist inside the typechecker only. A record without members takes no value.
        Type::Never | Type::Entity(EntityKind::AnyEntity) | Type::Set { element_type: None } => {
            AttributeType::Record(RecordType::default())
        }
    }
}

/// Whether an expression reads `context.now`, or the context as a whole (which may hold it).
pub(crate) fn reads_now(body: &Expr) -> bool {
    use cedar_policy_core::ast::{ExprKind, Var};
    let mut members = 0usize;
    let mut wholes = 0usize;
    for part in body.subexpressions() {
        #[expect(clippy::wildcard_enum_match_arm, reason = "every other expression is of no concern")]
        match part.expr_kind() {
            ExprKind::GetAttr { expr, attr } | ExprKind::HasAttr { expr, attr }
                if matches!(expr.expr_kind(), ExprKind::Var(Var::Context)) =>
            {
                if attr == "now" {
                    return true;
                }
                members += 1;
            }
            ExprKind::ExtHasAttr { expr, attrs } if matches!(expr.expr_kind(), ExprKind::Var(Var::Context)) => {
                if attrs.first() == "now" {
                    return true;
                }
                members += 1;
            }
            ExprKind::Var(Var::Context) => wholes += 1,
            _ => {}
        }
    }
    wholes > members
}

/// Whether an expression looks at `action`, so that it may differ between a field action and its base.
pub(crate) fn mentions_action(body: &Expr) -> bool {
    use cedar_policy_core::ast::{ExprKind, Var};
    body.subexpressions().any(|part| matches!(part.expr_kind(), ExprKind::Var(Var::Action)))
}

/// One test of `action` against actions or groups written out.
#[derive(Debug)]
pub(crate) enum ActionTest {
    /// `action == Action::"a"`.
    Is(EntityUID),
    /// `action in Action::"a"`, `action in [Action::"a", Action::"b"]`.
    In(Vec<EntityUID>),
}

impl ActionTest {
    /// What it gives for `action`, by the schema's groups.
    pub(crate) fn holds(&self, action: &EntityUID, groups: &Entities) -> bool {
        match self {
            Self::Is(wanted) => wanted == action,
            Self::In(wanted) => wanted.iter().any(|wanted| is_in(action, wanted, groups)),
        }
    }
}

/// Everything that an expression asks about `action`, when that is nothing but tests against what is written out.
/// Two actions that answer them alike can't be told apart by it. `None`: it looks at `action` in some other way.
pub(crate) fn action_tests(body: &Expr) -> Option<Vec<ActionTest>> {
    use cedar_policy_core::ast::{BinaryOp, ExprKind, Literal, Var};
    let is_action = |part: &Expr| matches!(part.expr_kind(), ExprKind::Var(Var::Action));
    let literal = |part: &Expr| {
        let ExprKind::Lit(Literal::EntityUID(uid)) = part.expr_kind() else { return None };
        Some(uid.as_ref().clone())
    };
    let mut looks = 0usize;
    let mut tests = Vec::new();
    for part in body.subexpressions() {
        if is_action(part) {
            looks += 1;
        }
        let ExprKind::BinaryApp { op, arg1, arg2 } = part.expr_kind() else { continue };
        let test = match (op, is_action(arg1), is_action(arg2)) {
            (BinaryOp::Eq, true, false) => literal(arg2).map(ActionTest::Is),
            (BinaryOp::Eq, false, true) => literal(arg1).map(ActionTest::Is),
            (BinaryOp::In, true, false) => {
                if let ExprKind::Set(members) = arg2.expr_kind() {
                    members.iter().map(literal).collect::<Option<_>>().map(ActionTest::In)
                } else {
                    literal(arg2).map(|wanted| ActionTest::In(vec![wanted]))
                }
            }
            _ => None,
        };
        tests.extend(test);
    }
    (tests.len() == looks).then_some(tests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_tells_actions_apart_by_the_tests_it_makes() {
        let table = [
            (r#"action == Action::"a""#, Some(1), "a test"),
            (r#"Action::"a" == action && principal.x"#, Some(1), "either way round"),
            (r#"if action in Action::"a" then action in [Action::"b", Action::"c"] else true"#, Some(2), "two tests"),
            ("principal.x", Some(0), "none"),
            ("action in resource.actions", None, "against data"),
            (r#"action == action"#, None, "against itself"),
            (r#"[action].contains(Action::"a")"#, None, "through a set"),
            (r#"action == Action::"a" || principal.last == action"#, None, "one test and one that is none"),
            (r#"action in [Action::"a", principal.last]"#, None, "a set that is not all written out"),
        ];
        for (text, expected, why) in table {
            let body: Expr = text.parse().unwrap();
            assert_eq!(action_tests(&body).map(|tests| tests.len()), expected, "{text}: {why}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_address_it_is() {
        let table = [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.0/120", "10.0.0.0/24"),
            ("2001:db8::1", "2001:db8::1"),
            ("nonsense", "nonsense"),
        ];
        for (text, expected) in table {
            assert_eq!(canonical_address(text), expected);
        }
    }

    #[test]
    fn a_double_is_a_long_only_where_it_is_exact() {
        assert_eq!(whole(42.0), Some(42));
        assert_eq!(whole(-9_007_199_254_740_992.0), Some(-9_007_199_254_740_992));
        for bad in [0.5, 9_007_199_254_740_994.0, f64::NAN, f64::INFINITY] {
            assert_eq!(whole(bad), None, "{bad}");
        }
    }
}

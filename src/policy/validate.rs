//! Strict validation, without asking about what a policy's scope rules out.
//!
//! Cedar's validator types every policy for every pair of principal and resource type of every action, which takes time in
//! the product of both. Most policies have a scope that admits few of those, and outside its scope a condition is false
//! before anything in it is looked at, so there is nothing to find there. [`Admitted::finds_nothing`] types a policy where
//! its scope admits it and says whether plain validation would have nothing to say at all. Wherever it is not sure, the
//! answer is no, and the plain validator decides and words what is wrong: it alone refuses and warns.

use std::collections::HashMap;

use cedar_policy_core::ast::{
    ActionConstraint, BinaryOp, EntityReference, EntityType, EntityUID, Expr, ExprKind, Policy,
    PrincipalOrResourceConstraint, Template,
};
use cedar_policy_core::validator::typecheck::{PolicyCheck, Typechecker};
use cedar_policy_core::validator::types::{EntityKind, RequestEnv, Type};
use cedar_policy_core::validator::{ValidationMode, Validator, ValidatorSchema, confusable_string_checks};

/// What can be asked at all, by action.
pub(super) struct Admitted<'s> {
    schema: &'s ValidatorSchema,
    by_action: HashMap<&'s EntityUID, Vec<RequestEnv<'s>>>,
    typechecker: Typechecker<'s>,
    /// How many steps of entity data a policy may take.
    level: u32,
}

impl<'s> Admitted<'s> {
    pub(super) fn new(schema: &'s ValidatorSchema, level: u32) -> Self {
        let mut by_action: HashMap<&EntityUID, Vec<RequestEnv<'_>>> = HashMap::new();
        for env in schema.unlinked_request_envs(ValidationMode::Strict) {
            if let RequestEnv::DeclaredAction { action, .. } = &env {
                by_action.entry(*action).or_default().push(env);
            }
        }
        Self { schema, by_action, typechecker: Typechecker::new(schema, ValidationMode::Strict), level }
    }

    /// Whether plain strict validation, the level included, would neither refuse `policy` nor warn of it. `false`: ask it.
    pub(super) fn finds_nothing(&self, policy: &Policy) -> bool {
        let template = policy.template();
        // At level 0 the scope itself may look too far, and slots are the validator's own business.
        if self.level == 0 || !policy.is_static() || self.schema.check_complete().is_err() {
            return false;
        }
        if Validator::validate_entity_types_and_literals(self.schema, template).next().is_some()
            || confusable_string_checks(std::iter::once(template)).next().is_some()
        {
            return false;
        }
        let mut applies = false;
        for env in self.admitted_by(template) {
            match self.typechecker.typecheck_by_single_request_env(template, env) {
                PolicyCheck::Success(typed) if self.reaches_no_further(&typed) => applies = true,
                PolicyCheck::Irrelevant(errors, typed) if errors.is_empty() && self.reaches_no_further(&typed) => {}
                PolicyCheck::Success(_) | PolicyCheck::Irrelevant(_, _) | PolicyCheck::Fail(_) => return false,
            }
        }
        // One that applies to nothing is warned of.
        applies
    }

    fn admitted_by<'a>(&'a self, template: &'a Template) -> impl Iterator<Item = &'a RequestEnv<'s>> {
        let actions: Vec<&EntityUID> = match template.action_constraint() {
            ActionConstraint::Any => self.by_action.keys().copied().collect(),
            ActionConstraint::Eq(wanted) => vec![wanted],
            ActionConstraint::In(wanted) => {
                let below = |group: &EntityUID| self.schema.get_action_id(group).map(|group| group.descendants());
                let mut actions: Vec<&EntityUID> = wanted.iter().map(AsRef::as_ref).collect();
                actions.extend(wanted.iter().filter_map(|group| below(group)).flatten());
                actions.sort();
                actions.dedup();
                actions
            }
        };
        let principals = template.principal_constraint().as_inner();
        let resources = template.resource_constraint().as_inner();
        actions.into_iter().filter_map(|action| self.by_action.get(action)).flatten().filter(move |env| match env {
            RequestEnv::DeclaredAction { principal, resource, .. } => {
                self.admits(principals, principal) && self.admits(resources, resource)
            }
            RequestEnv::UndeclaredAction => true,
        })
    }

    /// Whether this part of a scope can match something of the type.
    fn admits(&self, constraint: &PrincipalOrResourceConstraint, name: &EntityType) -> bool {
        let below = |above: &EntityUID| {
            let above = above.entity_type();
            above == name
                || self.schema.get_entity_type(above).is_some_and(|above| above.has_descendant_entity_type(name))
        };
        match constraint {
            PrincipalOrResourceConstraint::Eq(EntityReference::EUID(wanted)) => wanted.entity_type() == name,
            PrincipalOrResourceConstraint::In(EntityReference::EUID(above)) => below(above),
            PrincipalOrResourceConstraint::Is(wanted) => **wanted == *name,
            PrincipalOrResourceConstraint::IsIn(wanted, EntityReference::EUID(above)) => {
                **wanted == *name && below(above)
            }
            PrincipalOrResourceConstraint::Any
            | PrincipalOrResourceConstraint::Eq(EntityReference::Slot(_))
            | PrincipalOrResourceConstraint::In(EntityReference::Slot(_))
            | PrincipalOrResourceConstraint::IsIn(_, EntityReference::Slot(_)) => true,
        }
    }

    /// Whether a typed expression surely looks no further into entity data than the level allows (Cedar RFC 76). Some
    /// expressions are not followed: those are the validator's to judge.
    fn reaches_no_further(&self, typed: &Expr<Option<Type>>) -> bool {
        let looks = |target: &Expr<Option<Type>>| self.steps_to(target).is_some_and(|steps| steps < self.level);
        match typed.expr_kind() {
            ExprKind::Lit(_) | ExprKind::Var(_) => true,
            ExprKind::If { test_expr, then_expr, else_expr } => {
                [test_expr, then_expr, else_expr].into_iter().all(|part| self.reaches_no_further(part))
            }
            ExprKind::And { left, right } | ExprKind::Or { left, right } => {
                self.reaches_no_further(left) && self.reaches_no_further(right)
            }
            ExprKind::UnaryApp { arg, .. } => self.reaches_no_further(arg),
            ExprKind::BinaryApp { op: BinaryOp::In | BinaryOp::HasTag | BinaryOp::GetTag, arg1, arg2 } => {
                looks(arg1) && self.reaches_no_further(arg2)
            }
            ExprKind::BinaryApp { arg1, arg2, .. } => self.reaches_no_further(arg1) && self.reaches_no_further(arg2),
            ExprKind::ExtensionFunctionApp { args, .. } | ExprKind::Set(args) => {
                args.iter().all(|part| self.reaches_no_further(part))
            }
            ExprKind::GetAttr { expr, .. } | ExprKind::HasAttr { expr, .. } => match expr.data() {
                Some(Type::Entity(EntityKind::Entity(_))) => looks(expr),
                Some(Type::Record { .. }) => self.reaches_no_further(expr),
                _ => false,
            },
            ExprKind::Like { expr, .. } | ExprKind::Is { expr, .. } => self.reaches_no_further(expr),
            ExprKind::Record(members) => members.values().all(|part| self.reaches_no_further(part)),
            ExprKind::ExtHasAttr { .. } | ExprKind::Slot(_) | ExprKind::Unknown(_) => false,
        }
    }

    /// How many steps of entity data lead to the entity that `target` gives; `None` where that is not followed.
    #[expect(clippy::wildcard_enum_match_arm, reason = "what is not known to be near is taken to be far")]
    fn steps_to(&self, target: &Expr<Option<Type>>) -> Option<u32> {
        match target.expr_kind() {
            ExprKind::Var(_) => Some(0),
            ExprKind::If { test_expr, then_expr, else_expr } if self.reaches_no_further(test_expr) => {
                Some(self.steps_to(then_expr)?.max(self.steps_to(else_expr)?))
            }
            ExprKind::GetAttr { expr, .. } => match expr.data() {
                Some(Type::Entity(EntityKind::Entity(_))) => Some(self.steps_to(expr)? + 1),
                Some(Type::Record { .. }) => self.steps_to(expr),
                _ => None,
            },
            ExprKind::BinaryApp { op: BinaryOp::GetTag, arg1, arg2 } if self.reaches_no_further(arg2) => {
                Some(self.steps_to(arg1)? + 1)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r#"
        entity Role; entity Colour enum ["red", "green"];
        entity User in [Role] = { level: Long, boss?: User, home: { city?: String, mayor?: User } } tags String;
        entity Robot = { level: Long };
        entity Folder in [Folder] = { owner: User };
        entity Doc in [Folder] = { owner: User, size: Long, paint: Colour };
        action all;
        action read in [all] appliesTo { principal: [User, Robot], resource: [Doc, Folder], context: { mfa: Bool, by?: User } };
        action write in [all] appliesTo { principal: User, resource: Doc, context: { mfa: Bool } };
        action idle;
    "#;

    const PRINCIPALS: [&str; 8] = [
        "principal",
        "principal == User::\"ann\"",
        "principal is Robot",
        "principal in Role::\"staff\"",
        "principal is User in Role::\"staff\"",
        "principal is Robot in Role::\"staff\"",
        "principal == Role::\"staff\"",
        "principal is Ghost",
    ];
    const ACTIONS: [&str; 6] = [
        "action",
        "action == Action::\"read\"",
        "action in Action::\"all\"",
        "action in [Action::\"write\", Action::\"idle\"]",
        "action == Action::\"idle\"",
        "action == Action::\"gone\"",
    ];
    const RESOURCES: [&str; 7] = [
        "resource",
        "resource == Doc::\"d\"",
        "resource in Folder::\"f\"",
        "resource is Folder",
        "resource is Doc in Folder::\"f\"",
        "resource in Doc::\"d\"",
        "resource == Colour::\"blue\"",
    ];
    const BODIES: [&str; 30] = [
        "true",
        "false",
        "context.mfa",
        "context.by.level > 1",
        "context has by && context.by.level > 1",
        "principal.level > 1",
        "principal.levl > 1",
        "principal.boss == principal",
        "principal is User && principal has boss && principal.boss == resource.owner",
        "principal is User && principal has boss && principal.boss.level > 1",
        "principal is User && principal has boss.level && principal.boss.level > 1",
        "principal is User && principal has home.city && principal.home.city like \"a*\"",
        "principal is User && principal.home has mayor && principal.home.mayor.level > 1",
        "resource.owner == principal",
        "resource.owner.level > 1",
        "resource.owner in Role::\"staff\"",
        "resource in Folder::\"f\"",
        "User::\"ann\".level > 1",
        "User::\"ann\" in Role::\"staff\"",
        "resource is Doc && resource.paint == Colour::\"blue\"",
        "resource is Doc && resource.paint == Colour::\"red\"",
        "resource is Doc && [1, 2].contains(resource.size)",
        "[1, \"a\"].contains(1)",
        "principal is User && principal.hasTag(\"x\") && principal.getTag(\"x\") == \"y\"",
        "(if context.mfa then principal else resource.owner).level > 1",
        "{ who: principal }.who.level > 1",
        "action in Action::\"all\" && action == Action::\"write\"",
        "ip(\"300.1.1.1\").isLoopback()",
        "\"\u{430}dmin\" == \"admin\"",
        "resource is Folder || resource.size + 1 > 2",
    ];

    /// Every scope with every condition, at both levels. What is passed over must be what the plain validator has nothing
    /// to say of; and nearly all of that must be passed over, or it saves no time.
    #[test]
    fn what_is_passed_over_is_what_plain_validation_has_nothing_to_say_of() {
        let (schema, _) = cedar_policy::Schema::from_cedarschema_str(SCHEMA).unwrap();
        let plain = cedar_policy::Validator::new(schema.clone());
        for level in [1, 2] {
            let admitted = Admitted::new(schema.as_ref(), level);
            let (mut clean, mut passed, mut faulty) = (0, 0, 0);
            for principal in PRINCIPALS {
                for action in ACTIONS {
                    for resource in RESOURCES {
                        for body in BODIES {
                            let text = format!("permit ({principal}, {action}, {resource}) when {{ {body} }};");
                            let Ok(set) = text.parse::<cedar_policy::PolicySet>() else { continue };
                            let found = plain.validate_with_level(&set, cedar_policy::ValidationMode::Strict, level);
                            let nothing = found.validation_errors().next().is_none()
                                && found.validation_warnings().next().is_none();
                            let policy = set.policies().next().unwrap();
                            let over = admitted.finds_nothing(policy.as_ref());
                            assert!(nothing || !over, "{text}: {found}");
                            clean += usize::from(nothing);
                            faulty += usize::from(!nothing);
                            passed += usize::from(over);
                        }
                    }
                }
            }
            println!("level {level}: {clean} clean, {passed} of them passed over; {faulty} not");
            assert!(faulty > 2000 && clean > 500 && passed * 10 > clean * 8, "{clean} {passed} {faulty}");
        }
    }
}

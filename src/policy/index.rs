//! Which policies can match a question at all, found by their scopes instead of by trying each one.
//!
//! A policy is looked up by what its scope names: first by the action, when the bundle is loaded ([`ByAction`]), then by
//! the principal, the resource and what stands above them, at each question ([`ByScope`]). A policy that is not found has a
//! scope that does not match. Scopes can't fail, so it would neither decide nor err: leaving it out is exact. What is found
//! need not match, and is checked whole by [`CompiledPolicy::covers`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{EntityType, EntityUID};
use cedar_policy_core::entities::Entities;

use super::compile::{ActionScope, CompiledPolicy, Side, SideScope};
use super::keyed::{ByShared, ByType};

/// The policies of a bundle by the actions that their scopes cover, groups included.
#[derive(Debug, Default)]
pub(crate) struct ByAction {
    /// Those whose scope says nothing of the action.
    open: Vec<usize>,
    /// The others, under every action they cover.
    covering: HashMap<EntityUID, Vec<usize>>,
}

impl ByAction {
    /// Files every policy under all that its action scope covers, by the schema's groups.
    pub(crate) fn new(policies: &[CompiledPolicy], groups: &Entities) -> Self {
        let mut below: HashMap<&EntityUID, Vec<&EntityUID>> = HashMap::new();
        for action in groups.iter() {
            for above in action.ancestors() {
                below.entry(above).or_default().push(action.uid());
            }
        }
        let mut index = Self::default();
        for (position, policy) in policies.iter().enumerate() {
            match policy.action_scope() {
                ActionScope::Open => index.open.push(position),
                ActionScope::Is(wanted) => index.covering.entry(wanted.clone()).or_default().push(position),
                ActionScope::In(wanted) => {
                    let members = wanted.iter().flat_map(|group| below.get(group)).flatten().copied();
                    let covered: HashSet<&EntityUID> = wanted.iter().copied().chain(members).collect();
                    for action in covered {
                        index.covering.entry(action.clone()).or_default().push(position);
                    }
                }
            }
        }
        index
    }

    /// The policies whose scope covers `action`, in order.
    pub(crate) fn covering(&self, action: &EntityUID) -> Vec<usize> {
        let mut found: Vec<usize> = self.open.iter().chain(self.naming(action)).copied().collect();
        found.sort_unstable();
        found
    }

    /// The policies whose scope says nothing of the action, in order.
    pub(crate) fn open(&self) -> &[usize] {
        &self.open
    }

    /// The policies whose scope names `action` or a group that it is in, in order.
    pub(crate) fn naming(&self, action: &EntityUID) -> &[usize] {
        self.covering.get(action).map_or(&[], Vec::as_slice)
    }
}

/// Some policies by what their scopes say of principal and resource. Each is filed once, under what fewest of the others
/// share with it.
#[derive(Debug, Default)]
pub(crate) struct ByScope {
    by_entity: ByShared<Vec<Filed>>,
    by_principal_type: ByType<Vec<usize>>,
    by_resource_type: ByType<Vec<usize>>,
    /// Those that match whatever the principal and the resource.
    open: Vec<usize>,
}

/// A policy under one entity, by the part that the entity plays. Large bundles have tens of thousands.
#[derive(Debug)]
struct Filed {
    part: Part,
    number: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Resource,
    Principal,
    AbovePrincipal,
    AboveResource,
}

/// What a policy can be filed under, the most exact first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key<'p> {
    Resource(&'p Arc<EntityUID>),
    Principal(&'p Arc<EntityUID>),
    AbovePrincipal(&'p Arc<EntityUID>),
    AboveResource(&'p Arc<EntityUID>),
    ResourceType(&'p EntityType),
    PrincipalType(&'p EntityType),
}

impl ByScope {
    /// Files `policies`, each with the number that it is to be found as.
    pub(crate) fn new<'p>(policies: impl Iterator<Item = (usize, &'p CompiledPolicy)> + Clone) -> Self {
        let mut sharing: HashMap<Key<'p>, usize> = HashMap::new();
        for (_, policy) in policies.clone() {
            for key in keys(policy).into_iter().flatten() {
                *sharing.entry(key).or_default() += 1;
            }
        }
        let mut index = Self::default();
        for (number, policy) in policies {
            if !policy.can_match() {
                continue;
            }
            let rarest = keys(policy).into_iter().flatten().min_by_key(|key| (sharing.get(key), *key));
            index.file(number, rarest);
        }
        index
    }

    fn file(&mut self, number: usize, key: Option<Key<'_>>) {
        let (uid, part) = match key {
            None => return self.open.push(number),
            Some(Key::ResourceType(name)) => {
                return self.by_resource_type.entry(name.clone()).or_default().push(number);
            }
            Some(Key::PrincipalType(name)) => {
                return self.by_principal_type.entry(name.clone()).or_default().push(number);
            }
            Some(Key::Resource(uid)) => (uid, Part::Resource),
            Some(Key::Principal(uid)) => (uid, Part::Principal),
            Some(Key::AbovePrincipal(uid)) => (uid, Part::AbovePrincipal),
            Some(Key::AboveResource(uid)) => (uid, Part::AboveResource),
        };
        match u32::try_from(number) {
            Ok(number) => self.by_entity.entry(Arc::clone(uid)).or_default().push(Filed { part, number }),
            // Of four thousand million policies the last are looked at each time.
            Err(_) => self.open.push(number),
        }
    }

    /// The numbers of all that can match, ascending: every other has a scope that does not.
    pub(crate) fn candidates(&self, principal: &Side<'_>, resource: &Side<'_>) -> Vec<usize> {
        let mut found = Vec::with_capacity(self.open.len() + 16);
        found.extend_from_slice(&self.open);
        found.extend(self.by_principal_type.get(principal.uid.entity_type()).into_iter().flatten());
        found.extend(self.by_resource_type.get(resource.uid.entity_type()).into_iter().flatten());
        let mut under = |uid: &EntityUID, parts: &[Part]| {
            let filed = self.by_entity.get(uid).into_iter().flatten();
            found.extend(filed.filter(|filed| parts.contains(&filed.part)).map(|filed| filed.number as usize));
        };
        // `in` holds of an entity and itself.
        under(principal.uid, &[Part::Principal, Part::AbovePrincipal]);
        under(resource.uid, &[Part::Resource, Part::AboveResource]);
        principal.ancestors().for_each(|above| under(above, &[Part::AbovePrincipal]));
        resource.ancestors().for_each(|above| under(above, &[Part::AboveResource]));
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Everything that a policy could be filed under: one key for each side of its scope that says something.
fn keys(policy: &CompiledPolicy) -> [Option<Key<'_>>; 2] {
    let principal = match policy.principal_scope() {
        SideScope::Is(uid) => Some(Key::Principal(uid)),
        SideScope::In(uid) => Some(Key::AbovePrincipal(uid)),
        SideScope::OfType(name) => Some(Key::PrincipalType(name)),
        SideScope::Open | SideScope::Never => None,
    };
    let resource = match policy.resource_scope() {
        SideScope::Is(uid) => Some(Key::Resource(uid)),
        SideScope::In(uid) => Some(Key::AboveResource(uid)),
        SideScope::OfType(name) => Some(Key::ResourceType(name)),
        SideScope::Open | SideScope::Never => None,
    };
    [principal, resource]
}

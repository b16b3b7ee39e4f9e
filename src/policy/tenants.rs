//! Which tenants a principal belongs to, by everything that is known of it: what its token says, what is stored of it, and
//! what stands above either.

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityType, EntityUID, PartialValue};

use super::engine::Engine;
use crate::model::entity::{EntityType as TypeName, EntityUid, RawEntity, references};

/// The ids of the tenants that `principal` refers to. What is stored counts where the token does not say otherwise, as it
/// does for policies; a group that is in a tenant takes its members along.
pub(super) fn of(engine: &Engine, principal: &RawEntity) -> BTreeSet<String> {
    let mut found = above(engine, &principal.parents);
    let Some((tenant_type, stored_type)) = types(engine) else { return found };
    if principal.uid.entity_type == *tenant_type {
        found.insert(principal.uid.id.as_str().to_owned());
    }
    references(&principal.attributes, &mut |kind, id| {
        if kind == tenant_type.as_str() {
            found.insert(id.to_owned());
        }
    });
    let Some(entity) = stored(engine, &principal.uid) else { return found };
    let unsaid = entity.attrs().filter(|(name, _)| !principal.attributes.contains_key(name.as_str()));
    for (_, value) in unsaid.chain(entity.tags()) {
        if let PartialValue::Value(value) = value {
            found.extend(value.all_literal_uids().iter().filter_map(|uid| tenant(uid, stored_type)));
        }
    }
    found.extend(entity.ancestors().filter_map(|uid| tenant(uid, stored_type)));
    found
}

/// The ids of the tenants among `parents`, and of those that stored parents are in.
pub(super) fn above(engine: &Engine, parents: &[EntityUid]) -> BTreeSet<String> {
    let Some((tenant_type, stored_type)) = types(engine) else { return BTreeSet::new() };
    let named = parents.iter().filter(|parent| parent.entity_type == *tenant_type);
    let mut found: BTreeSet<String> = named.map(|parent| parent.id.as_str().to_owned()).collect();
    for entity in parents.iter().filter_map(|parent| stored(engine, parent)) {
        found.extend(entity.ancestors().filter_map(|uid| tenant(uid, stored_type)));
    }
    found
}

/// The type of tenants, as callers and as Cedar name it.
fn types(engine: &Engine) -> Option<(&TypeName, &EntityType)> {
    let tenant_type = engine.options.tenant_type.as_ref()?;
    Some((tenant_type, engine.shapes.entity(tenant_type)?.0))
}

fn stored<'e>(engine: &'e Engine, uid: &EntityUid) -> Option<&'e Arc<Entity>> {
    engine.stored.get(&engine.shapes.uid(uid, "subject").ok()?)
}

fn tenant(uid: &EntityUID, tenant_type: &EntityType) -> Option<String> {
    let id: &str = uid.eid().as_ref();
    (uid.entity_type() == tenant_type).then(|| id.to_owned())
}

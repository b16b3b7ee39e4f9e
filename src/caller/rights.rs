//! What a caller may put into a question: types and actions, and what it says of entities beyond their names.
//!
//! A policy believes what it is told, so whoever tells it decides with it. Each right is granted by type, or by
//! attribute; nothing is granted by leaving a key out. A lacking right has a word, for the record.

use super::Caller;
use crate::config::TenantGrant;
use crate::model::entity::{EntityType, EntityUid, RawEntity, RawRecord, references};
use crate::model::question::Question;

/// The right that a caller lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacks {
    /// To ask about this type and action.
    Ask,
    /// To vouch for a principal of this type.
    AssertSubject,
    /// To supply this attribute.
    SupplyAttributes,
    /// To supply parents of this type.
    SupplyParents,
    /// To speak of this tenant, or to ask for its people.
    Tenant,
    /// To ask why.
    Explain,
}

impl Lacks {
    /// The word for the record, from a closed list.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ask => "ASK",
            Self::AssertSubject => "ASSERT_SUBJECT",
            Self::SupplyAttributes => "SUPPLY_ATTRIBUTES",
            Self::SupplyParents => "SUPPLY_PARENTS",
            Self::Tenant => "TENANT",
            Self::Explain => "EXPLAIN",
        }
    }
}

impl Caller {
    /// Whether it may ask this, with everything that it says along the way. `tenant_type` is the type of tenants, if
    /// callers are held to theirs.
    ///
    /// # Errors
    /// The first right that it lacks.
    pub fn may_put(&self, question: &Question, tenant_type: Option<&EntityType>) -> Result<(), Lacks> {
        let resource = &question.resource;
        if !self.may_ask(&resource.entity_type, &question.action) {
            return Err(Lacks::Ask);
        }
        self.may_supply(&resource.entity_type, &resource.attributes, &resource.parents)?;
        for entity in question.entities.iter() {
            // To describe an entity at all takes a right to its attributes, be there none.
            if !self.enrolled.supply_attributes.covers_some(&entity.uid.entity_type) {
                return Err(Lacks::SupplyAttributes);
            }
            self.may_supply(&entity.uid.entity_type, &entity.attributes, &entity.parents)?;
        }
        let Some(tenants) = self.held_to(tenant_type) else { return Ok(()) };
        if let Some(id) = &resource.id {
            tenants.named(&resource.entity_type, id.as_str())?;
        }
        tenants.spoken_of(&resource.attributes, &resource.parents)?;
        tenants.spoken_of(&question.context, &[])?;
        question.entities.iter().try_for_each(|entity| tenants.described(entity))
    }

    /// Whether it may vouch for `principal`, with everything that it says of it.
    ///
    /// # Errors
    /// The first right that it lacks.
    pub fn may_vouch_for(&self, principal: &RawEntity, tenant_type: Option<&EntityType>) -> Result<(), Lacks> {
        if !self.enrolled.assert_subjects.covers(&principal.uid.entity_type) {
            return Err(Lacks::AssertSubject);
        }
        self.may_supply(&principal.uid.entity_type, &principal.attributes, &principal.parents)?;
        self.held_to(tenant_type).map_or(Ok(()), |tenants| tenants.described(principal))
    }

    /// Whether it may ask for somebody who belongs to this tenant.
    #[must_use]
    pub fn serves(&self, tenant: &str) -> bool {
        self.enrolled.tenants.covers(tenant)
    }

    /// Whether there is no tenant that it may not ask for.
    #[must_use]
    pub fn serves_all(&self) -> bool {
        self.enrolled.tenants == TenantGrant::All
    }

    fn may_supply(&self, kind: &EntityType, attributes: &RawRecord, parents: &[EntityUid]) -> Result<(), Lacks> {
        if !attributes.keys().all(|name| self.enrolled.supply_attributes.covers(kind, name)) {
            return Err(Lacks::SupplyAttributes);
        }
        if !parents.is_empty() && !self.enrolled.supply_parents.covers(kind) {
            return Err(Lacks::SupplyParents);
        }
        Ok(())
    }

    fn held_to<'c>(&'c self, tenant_type: Option<&'c EntityType>) -> Option<Held<'c>> {
        let tenant_type = tenant_type.filter(|_| !self.serves_all())?;
        Some(Held { caller: self, tenant_type })
    }
}

/// A caller that may speak of some tenants and not of others.
struct Held<'c> {
    caller: &'c Caller,
    tenant_type: &'c EntityType,
}

impl Held<'_> {
    fn named(&self, kind: &EntityType, id: &str) -> Result<(), Lacks> {
        if kind == self.tenant_type && !self.caller.serves(id) { Err(Lacks::Tenant) } else { Ok(()) }
    }

    fn described(&self, entity: &RawEntity) -> Result<(), Lacks> {
        self.named(&entity.uid.entity_type, entity.uid.id.as_str())?;
        self.spoken_of(&entity.attributes, &entity.parents)
    }

    fn spoken_of(&self, values: &RawRecord, parents: &[EntityUid]) -> Result<(), Lacks> {
        let mut beyond = false;
        references(values, &mut |kind, id| beyond |= kind == self.tenant_type.as_str() && !self.caller.serves(id));
        if beyond {
            return Err(Lacks::Tenant);
        }
        parents.iter().try_for_each(|parent| self.named(&parent.entity_type, parent.id.as_str()))
    }
}

//! What a caller may be granted beyond types and actions: whose tokens it presents, which attributes and tenants it may
//! speak of, how much of the house it may take.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::entity::{EntityId, EntityType};

/// OAuth clients, each of an issuer: a client id means nothing without the issuer that gave it (RFC 6749 section 2.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientNames {
    by_issuer: BTreeMap<String, BTreeSet<String>>,
}

impl ClientNames {
    /// Adds one. Whether it is new.
    pub fn insert(&mut self, issuer: String, id: String) -> bool {
        self.by_issuer.entry(issuer).or_default().insert(id)
    }

    /// Whether `id` at `issuer` is among them, both compared byte for byte.
    #[must_use]
    pub fn names(&self, issuer: &str, id: &str) -> bool {
        self.by_issuer.get(issuer).is_some_and(|ids| ids.contains(id))
    }

    /// Each, as issuer and id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_issuer.iter().flat_map(|(issuer, ids)| ids.iter().map(|id| (issuer.as_str(), id.as_str())))
    }
}

/// Whose tokens a caller may present although they are not its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresentGrant {
    /// Those of these clients and actors; possibly none.
    Only(ClientNames),
    /// `"*"`: everybody's, and those that name no client.
    All,
}

/// Attributes of entities, by type or one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttributeGrant {
    /// These; possibly none.
    Only {
        /// Every attribute of these types.
        types: BTreeSet<EntityType>,
        /// Single attributes.
        single: BTreeMap<EntityType, BTreeSet<String>>,
    },
    /// `"*"`.
    All,
}

impl AttributeGrant {
    /// Whether any attribute of the type is granted: enough to name an entity.
    #[must_use]
    pub fn covers_some(&self, entity_type: &EntityType) -> bool {
        match self {
            Self::Only { types, single } => types.contains(entity_type) || single.contains_key(entity_type),
            Self::All => true,
        }
    }

    /// Whether `attribute` of the type is granted.
    #[must_use]
    pub fn covers(&self, entity_type: &EntityType, attribute: &str) -> bool {
        match self {
            Self::Only { types, single } => {
                types.contains(entity_type)
                    || single.get(entity_type).is_some_and(|attributes| attributes.contains(attribute))
            }
            Self::All => true,
        }
    }
}

/// Some tenants, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantGrant {
    /// These; possibly none.
    Only(BTreeSet<EntityId>),
    /// `"*"`.
    All,
}

impl TenantGrant {
    /// Whether the tenant of this id is granted, compared byte for byte.
    #[must_use]
    pub fn covers(&self, tenant: &str) -> bool {
        match self {
            Self::Only(tenants) => tenants.iter().any(|granted| granted.as_str() == tenant),
            Self::All => true,
        }
    }
}

/// A part of something that is shared, in percent: 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u8);

impl Share {
    /// Everything.
    pub const WHOLE: Self = Self(100);

    /// `percent` of 1 to 100.
    #[must_use]
    pub fn new(percent: u8) -> Option<Self> {
        (1..=100).contains(&percent).then_some(Self(percent))
    }

    /// That part of `whole`, rounded down, and never nothing.
    #[must_use]
    pub fn of(self, whole: usize) -> usize {
        (whole.saturating_mul(usize::from(self.0)) / 100).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_part_of_the_whole_and_never_nothing() {
        let table = [
            (100, 1024, Some(1024), "the whole"),
            (25, 1024, Some(256), "a quarter"),
            (1, 1024, Some(10), "rounded down"),
            (1, 4, Some(1), "never nothing"),
            (0, 1024, None, "nothing is no share"),
            (101, 1024, None, "nobody has more than everything"),
        ];
        for (percent, whole, expected, why) in table {
            assert_eq!(Share::new(percent).map(|share| share.of(whole)), expected, "{percent}%: {why}");
        }
    }
}

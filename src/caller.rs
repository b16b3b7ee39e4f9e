//! Which workloads may ask, and about what.
//!
//! [`Callers::admit`] takes the peer of a connection and gives a [`Caller`]: the proof that it is enrolled, and the
//! only place to learn what it may do: [`rights`] for what it may put into a question, [`bond`] for the tokens it may
//! present. Imports `config`, `model`, the peer and a verified token's facts; knows nothing of policies.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use foldhash::fast::RandomState;

use crate::config::{ActionPattern, CallerName, EnrolledCaller};
use crate::model::entity::EntityType;
use crate::tls::peer::{IdentityError, Peer};

pub mod bond;
pub mod rights;

/// Everyone who is enrolled.
#[derive(Debug)]
pub struct Callers {
    by_name: HashMap<CallerName, (Arc<EnrolledCaller>, usize), RandomState>,
}

/// A workload that proved its name on its connection and is enrolled. Holding one is the proof: [`Callers::admit`]
/// is the only way to get one.
///
/// It can't be made by hand:
/// ```compile_fail,E0451
/// # fn forge(enrolled: gatepost::config::EnrolledCaller) -> gatepost::caller::Caller {
/// gatepost::caller::Caller { enrolled: std::sync::Arc::new(enrolled), certificate_sha256: [0; 32], number: 0 }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Caller {
    enrolled: Arc<EnrolledCaller>,
    certificate_sha256: [u8; 32],
    /// Its place in the enrolment.
    number: usize,
}

/// Why a peer is not a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// Its certificate names nobody, or no longer: `UNAUTHENTICATED`.
    #[error("the caller could not be identified")]
    NotIdentified(#[source] IdentityError),
    /// It has a name that nobody enrolled: `PERMISSION_DENIED`.
    #[error("the caller is not enrolled")]
    NotEnrolled,
}

impl CallerError {
    /// The word for records and metrics, from a closed list.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotIdentified(error) => error.reason(),
            Self::NotEnrolled => "CALLER_NOT_ENROLLED",
        }
    }
}

impl Callers {
    /// Takes the checked enrolment; its names are unique. They are numbered in its order, from 0.
    #[must_use]
    pub fn new(enrolled: &[EnrolledCaller]) -> Self {
        let one =
            |(number, caller): (usize, &EnrolledCaller)| (caller.name.clone(), (Arc::new(caller.clone()), number));
        Self { by_name: enrolled.iter().enumerate().map(one).collect() }
    }

    /// Admits `peer` if its certificate holds at `now` (wall time) and its name is enrolled, compared byte for byte.
    ///
    /// # Errors
    /// [`CallerError`] says which of the two failed.
    pub fn admit(&self, peer: &Peer, now: SystemTime) -> Result<Caller, CallerError> {
        let name = peer.name(now).map_err(CallerError::NotIdentified)?;
        let (enrolled, number) = self.by_name.get(name).ok_or(CallerError::NotEnrolled)?;
        Ok(Caller { enrolled: Arc::clone(enrolled), certificate_sha256: *peer.certificate_sha256(), number: *number })
    }
}

impl Caller {
    /// Who it is.
    #[must_use]
    pub fn name(&self) -> &CallerName {
        &self.enrolled.name
    }

    /// SHA-256 of the DER of the certificate that it has on this connection.
    #[must_use]
    pub fn certificate_sha256(&self) -> &[u8; 32] {
        &self.certificate_sha256
    }

    /// What people call it.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.enrolled.label
    }

    /// Whether it may ask whether somebody may do `action` to a resource of `resource_type`: both must be granted.
    ///
    /// `action` is as it was asked: `Order.read`, or with a namespace `Shop::Order.read`. A pattern that names a
    /// namespace speaks of the whole text (`Shop::Order.*`). A pattern that names none speaks of what stands after the
    /// last `::`, whatever the namespace; the type, which is always compared whole, then says which one.
    #[must_use]
    pub fn may_ask(&self, resource_type: &EntityType, action: &str) -> bool {
        self.enrolled.resource_types.covers(resource_type)
            && self.enrolled.actions.iter().any(|pattern| covers(pattern, action))
    }

    /// Whether it may present API keys that machines sent it.
    #[must_use]
    pub fn presents_api_keys(&self) -> bool {
        self.enrolled.presents_api_keys
    }

    /// Whether answers tell it the determining policies.
    #[must_use]
    pub fn sees_policies(&self) -> bool {
        self.enrolled.sees_policies
    }

    /// Whether it may ask why.
    #[must_use]
    pub fn may_explain(&self) -> bool {
        self.enrolled.explain
    }

    /// Items that one of its batches may hold; `None`: as many as anybody's.
    #[must_use]
    pub fn batch_items(&self) -> Option<usize> {
        self.enrolled.batch_items
    }

    /// Its share of `whole` things of which there are so many for everybody.
    #[must_use]
    pub fn share_of(&self, whole: usize) -> usize {
        self.enrolled.capacity.of(whole)
    }

    /// Its place in the enrolment, from 0: the same for all its connections, and for as long as the server runs.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }
}

fn covers(pattern: &ActionPattern, action: &str) -> bool {
    let names_namespace = match pattern {
        ActionPattern::Exact(text) | ActionPattern::Prefix(text) => text.contains("::"),
        ActionPattern::All => return true,
    };
    let bare = action.rsplit_once("::").map_or(action, |(_, bare)| bare);
    pattern.covers(if names_namespace { action } else { bare })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::rights::Lacks;
    use super::*;
    use crate::config::{AttributeGrant, ClientNames, PresentGrant, Share, TenantGrant, TypeGrant};
    use crate::model::entity::{EntityId, EntityUid, RawEntity, RawRecord, RawValue};
    use crate::tls::fixture::{Authority, leaf, names, noon, peer_with};

    fn enrolled(name: &str, actions: Vec<ActionPattern>) -> EnrolledCaller {
        let types = |types: &[&str]| {
            TypeGrant::Only(types.iter().map(|text| EntityType::parse(text).unwrap()).collect::<BTreeSet<_>>())
        };
        EnrolledCaller {
            name: CallerName::Spiffe(name.parse().unwrap()),
            label: "orders".into(),
            resource_types: types(&["Shop::Order"]),
            actions,
            assert_subjects: types(&["User"]),
            supply_attributes: AttributeGrant::All,
            supply_parents: types(&[]),
            sees_policies: true,
            clients: ClientNames::default(),
            presents_for: PresentGrant::Only(ClientNames::default()),
            tenants: TenantGrant::Only(BTreeSet::new()),
            batch_items: None,
            capacity: Share::WHOLE,
            explain: false,
            presents_api_keys: false,
        }
    }

    #[test]
    fn only_an_enrolled_workload_with_a_living_certificate_is_admitted() {
        const ORDERS: &str = "spiffe://corp.test/orders";
        let authority = Authority::new("corp");
        let callers = Callers::new(&[enrolled(ORDERS, vec![ActionPattern::All])]);
        let peer = |uris: &[&str]| peer_with(&authority, leaf(uris, &[]), &names(false));
        let hour = Duration::from_secs(3600);

        let table = [
            (peer(&[ORDERS]), noon(), Ok("orders"), "enrolled"),
            (peer(&["spiffe://corp.test/orders2"]), noon(), Err(CallerError::NotEnrolled), "another name"),
            (
                peer(&["spiffe://corp.test/Orders"]),
                noon(),
                Err(CallerError::NotEnrolled),
                "names are compared as written",
            ),
            (
                peer(&[ORDERS, ORDERS]),
                noon(),
                Err(CallerError::NotIdentified(IdentityError::ManyNames)),
                "two names are none",
            ),
            (
                peer(&[ORDERS]),
                noon() + 24 * hour,
                Err(CallerError::NotIdentified(IdentityError::Expired)),
                "expired while connected",
            ),
        ];
        for (peer, now, expected, why) in table {
            let got = callers.admit(&peer, now);
            assert_eq!(got.as_ref().map(Caller::label).map_err(|error| *error), expected, "{why}");
        }
    }

    #[test]
    fn a_caller_may_do_what_it_was_granted_and_nothing_beside() {
        let authority = Authority::new("corp");
        let name = "spiffe://corp.test/orders";
        let peer = peer_with(&authority, leaf(&[name], &[]), &names(false));
        let admit = |actions| Callers::new(&[enrolled(name, actions)]).admit(&peer, noon()).unwrap();
        let exact = |text: &str| ActionPattern::Exact(text.to_owned());
        let prefix = |text: &str| ActionPattern::Prefix(text.to_owned());

        let table = [
            (exact("Order.read"), "Shop::Order", "Order.read", true, "type and action granted"),
            (exact("Order.read"), "Order", "Order.read", false, "the type is compared whole"),
            (exact("Order.read"), "Shop::User", "Order.read", false, "another type"),
            (exact("Order.read"), "Shop::Order", "Order.rea", false, "another action"),
            (exact("Order.read"), "Shop::Order", "Order.reads", false, "a longer action"),
            (exact("Order.read"), "Shop::Order", "Shop::Order.read", true, "a bare pattern, any namespace"),
            (exact("Shop::Order.read"), "Shop::Order", "Shop::Order.read", true, "its namespace"),
            (exact("Shop::Order.read"), "Shop::Order", "Order.read", false, "no namespace"),
            (exact("Shop::Order.read"), "Shop::Order", "Big::Shop::Order.read", false, "a deeper namespace"),
            (prefix("Order."), "Shop::Order", "Shop::Order.cancel", true, "everything before the dot"),
            (prefix("Order."), "Shop::Order", "OrderLine.read", false, "the dot is part of it"),
            (prefix("Shop::Order."), "Shop::Order", "Bank::Order.read", false, "another namespace"),
            (ActionPattern::All, "Shop::Order", "Anything", true, "every action"),
            (ActionPattern::All, "Shop::User", "Anything", false, "though not of every type"),
        ];
        for (pattern, resource_type, action, expected, why) in table {
            let shown = format!("{pattern:?} {resource_type} {action}: {why}");
            let caller = admit(vec![pattern]);
            assert_eq!(caller.may_ask(&EntityType::parse(resource_type).unwrap(), action), expected, "{shown}");
        }

        let caller = admit(Vec::new());
        let user = EntityType::parse("User").unwrap();
        let order = EntityType::parse("Shop::Order").unwrap();
        assert!(!caller.may_ask(&order, "Order.read"), "no action granted");
        let bare = |kind: &EntityType| RawEntity {
            uid: EntityUid { entity_type: kind.clone(), id: EntityId::parse("x", 8).unwrap() },
            attributes: RawRecord::new(),
            parents: Vec::new(),
        };
        assert_eq!(caller.may_vouch_for(&bare(&user), None), Ok(()));
        assert_eq!(caller.may_vouch_for(&bare(&order), None), Err(Lacks::AssertSubject));
        let with = |parents: Vec<EntityUid>| RawEntity {
            attributes: RawRecord::from_iter([("any".to_owned(), RawValue::Bool(true))]),
            parents,
            ..bare(&user)
        };
        assert_eq!(caller.may_vouch_for(&with(Vec::new()), None), Ok(()), "every attribute");
        assert_eq!(caller.may_vouch_for(&with(vec![bare(&order).uid]), None), Err(Lacks::SupplyParents));
        assert!(caller.sees_policies() && !caller.may_explain());
    }
}

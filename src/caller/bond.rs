//! The bond between a token and the service that presents it: a good token in the wrong hands is worth nothing.
//!
//! Whoever holds a bearer token can show it, so a service could show what another was given. [`Bond::hold`] asks whether
//! this token was meant for this caller. It is asked on every question, whatever is cached.

use std::collections::BTreeSet;

use super::Caller;
use crate::config::{EnrolledCaller, PresentGrant, TrustedIssuer};
use crate::token::TokenFacts;

/// What is asked of tokens beyond their being good. Knows the issuers that demand more than others.
#[derive(Debug, Clone)]
pub struct Bond {
    /// Issuers whose tokens must be bound to a certificate.
    constrained: BTreeSet<String>,
}

/// Why a good token counts for nothing in this caller's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unbound {
    /// It is bound to another client certificate (RFC 8705 section 3).
    WrongCertificate,
    /// It is bound to none, and its issuer's tokens must be.
    NotSenderConstrained,
    /// The party that acts for the subject is another (RFC 8693 section 4.1).
    ActorNotCaller,
    /// It was issued to another client (RFC 9068 section 2.2).
    ClientNotCaller,
    /// It does not say to whom it was issued.
    NoClient,
}

impl Unbound {
    /// The word for the record, from a closed list.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::WrongCertificate => "WRONG_CERTIFICATE",
            Self::NotSenderConstrained => "NOT_SENDER_CONSTRAINED",
            Self::ActorNotCaller => "ACTOR_NOT_CALLER",
            Self::ClientNotCaller => "CLIENT_NOT_CALLER",
            Self::NoClient => "NO_CLIENT",
        }
    }
}

impl Bond {
    /// Takes the checked issuers.
    #[must_use]
    pub fn new(issuers: &[TrustedIssuer]) -> Self {
        let constrained = issuers.iter().filter(|issuer| issuer.require_sender_constrained);
        Self { constrained: constrained.map(|issuer| issuer.issuer.clone()).collect() }
    }

    /// Whether `token` counts in the hands of `caller`. In this order, stopping at the first failure:
    ///
    /// 1. The proof. What the token demands (`cnf`) must be the client certificate of this connection, and a token of an
    ///    issuer that requires it must demand something. First, because no right of the caller's outweighs it: a token
    ///    that is bound to another certificate was taken from somebody.
    /// 2. The party. With `act` it is the current actor, the outermost, and no other: prior actors "are not to be
    ///    considered in applying access control policies", and whom the token was issued to has handed it on. It must be
    ///    the caller, by its own name or as one of its clients. Without `act` it is `client_id` or `azp`.
    ///    `may_act` allows an exchange at the authorization server and nothing here.
    /// 3. The right to present for that party, when the party is another.
    ///
    /// Names are compared byte for byte, each with its issuer. An actor's issuer is `act.iss`, or the token's.
    ///
    /// # Errors
    /// [`Unbound`] names the first that failed, for the record. The caller hears one code for all of them.
    ///
    /// Source: RFC 8705 section 3 (the proof); RFC 8693 sections 4.1 and 4.4 (`act`, `may_act`); RFC 9068 section 2.2
    /// (`client_id`); OpenID Connect Core section 2 (`azp`).
    pub fn hold(&self, caller: &Caller, token: &TokenFacts) -> Result<(), Unbound> {
        self.hold_for(&caller.enrolled, caller.certificate_sha256(), token)
    }

    /// The same for a service as it is enrolled, with a certificate that nobody has shown: for corpora, whose
    /// certificates come without keys.
    ///
    /// # Errors
    /// As [`hold`](Self::hold).
    pub fn hold_for(
        &self,
        enrolled: &EnrolledCaller,
        certificate_sha256: &[u8; 32],
        token: &TokenFacts,
    ) -> Result<(), Unbound> {
        match &token.confirmation {
            Some(demanded) if !demanded.is_proven_by(certificate_sha256) => return Err(Unbound::WrongCertificate),
            None if self.constrained.contains(&token.issuer) => return Err(Unbound::NotSenderConstrained),
            Some(_) | None => {}
        }
        let granted = |issuer: &str, id: &str| {
            enrolled.clients.names(issuer, id)
                || match &enrolled.presents_for {
                    PresentGrant::All => true,
                    PresentGrant::Only(names) => names.names(issuer, id),
                }
        };
        match (token.actors.first(), &token.client_id) {
            (Some(actor), _) => {
                let issuer = actor.issuer.as_deref().unwrap_or(&token.issuer);
                // Its own name is one that the token's issuer uses of it; another issuer's word for it has to be mapped.
                let itself = issuer == token.issuer && actor.subject == enrolled.name.to_string();
                if itself || granted(issuer, &actor.subject) { Ok(()) } else { Err(Unbound::ActorNotCaller) }
            }
            (None, Some(client)) if granted(&token.issuer, client) => Ok(()),
            (None, Some(_)) => Err(Unbound::ClientNotCaller),
            (None, None) if enrolled.presents_for == PresentGrant::All => Ok(()),
            (None, None) => Err(Unbound::NoClient),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::SystemTime;

    use super::*;
    use crate::config::{
        ActionPattern, AttributeGrant, CallerName, ClientNames, Share, TenantGrant, TokenAlgorithm, TypeGrant,
    };
    use crate::config::{ClaimMapping, KeySource};
    use crate::model::entity::EntityType;
    use crate::token::{Actor, Confirmation};

    const HOME: &str = "https://idp.test";
    const AWAY: &str = "https://other.test";
    const ORDERS: &str = "spiffe://corp.test/orders";
    const CERTIFICATE: [u8; 32] = [7; 32];

    fn names(clients: &[(&str, &str)]) -> ClientNames {
        let mut names = ClientNames::default();
        for (issuer, id) in clients {
            names.insert((*issuer).to_owned(), (*id).to_owned());
        }
        names
    }

    fn service(name: CallerName, clients: &[(&str, &str)], presents_for: PresentGrant) -> EnrolledCaller {
        let nothing = || TypeGrant::Only(BTreeSet::new());
        EnrolledCaller {
            name,
            label: "orders".to_owned(),
            resource_types: nothing(),
            actions: vec![ActionPattern::All],
            assert_subjects: nothing(),
            supply_attributes: AttributeGrant::Only { types: BTreeSet::new(), single: BTreeMap::new() },
            supply_parents: nothing(),
            sees_policies: false,
            clients: names(clients),
            presents_for,
            tenants: TenantGrant::Only(BTreeSet::new()),
            batch_items: None,
            capacity: Share::WHOLE,
            explain: false,
            presents_api_keys: false,
        }
    }

    fn issuer(name: &str, require_sender_constrained: bool) -> TrustedIssuer {
        TrustedIssuer {
            issuer: name.to_owned(),
            audiences: vec!["gatepost".to_owned()],
            algorithms: vec![TokenAlgorithm::Es256],
            keys: KeySource::File("jwks.json".into()),
            token_types: None,
            clock_skew: std::time::Duration::ZERO,
            max_lifetime: std::time::Duration::from_secs(900),
            require_sender_constrained,
            require_token_id: false,
            introspection: None,
            status_lists: crate::config::StatusLists::default(),
            mapping: ClaimMapping {
                principal_type: EntityType::parse("User").unwrap(),
                id_claim: "sub".to_owned(),
                attributes: Vec::new(),
                parents: Vec::new(),
            },
        }
    }

    /// A token of `HOME`; actors are `(sub, iss)`, the current one first.
    fn token(client: Option<&str>, actors: &[(&str, Option<&str>)]) -> TokenFacts {
        let actor = |(subject, issuer): &(&str, Option<&str>)| Actor {
            subject: (*subject).to_owned(),
            issuer: issuer.map(str::to_owned),
        };
        TokenFacts {
            issuer: HOME.to_owned(),
            subject: "alice".to_owned(),
            issued_at: SystemTime::UNIX_EPOCH,
            expires_at: SystemTime::UNIX_EPOCH,
            id_sha256: None,
            scopes: BTreeSet::new(),
            acr: None,
            amr: BTreeSet::new(),
            auth_time: None,
            client_id: client.map(str::to_owned),
            actors: actors.iter().map(actor).collect(),
            confirmation: None,
            session_sha256: None,
            algorithm: "ES256",
            key_id: None,
        }
    }

    /// RFC 8693 section 4.1, RFC 9068 section 2.2.
    #[test]
    fn a_token_is_for_whoever_it_was_issued_to_or_acts_now() {
        use Unbound::{ActorNotCaller, ClientNotCaller, NoClient};
        let none = || PresentGrant::Only(ClientNames::default());
        let spiffe = || CallerName::Spiffe(ORDERS.parse().unwrap());
        let plain = service(spiffe(), &[(HOME, "orders")], none());
        let abroad = service(spiffe(), &[(HOME, "orders"), (AWAY, "orders-there")], none());
        let gateway = service(spiffe(), &[], PresentGrant::Only(names(&[(HOME, "shop-app"), (AWAY, "shop-app")])));
        let anybody = service(spiffe(), &[], PresentGrant::All);
        let dns = service(CallerName::Dns("orders.internal".to_owned()), &[], none());

        let table: &[(&EnrolledCaller, TokenFacts, Result<(), Unbound>, &str)] = &[
            (&plain, token(Some("orders"), &[]), Ok(()), "issued to it"),
            (&plain, token(Some("billing"), &[]), Err(ClientNotCaller), "issued to another"),
            (&plain, token(Some("Orders"), &[]), Err(ClientNotCaller), "another case"),
            (&plain, token(Some("orders "), &[]), Err(ClientNotCaller), "a longer name"),
            (&plain, token(Some(ORDERS), &[]), Err(ClientNotCaller), "a SPIFFE ID is no client id unless it is mapped"),
            (&plain, token(None, &[]), Err(NoClient), "issued to nobody in particular"),
            (&plain, token(None, &[(ORDERS, None)]), Ok(()), "it acts"),
            (&plain, token(None, &[("orders", None)]), Ok(()), "it acts, by its client id"),
            (&plain, token(None, &[(ORDERS, Some(HOME))]), Ok(()), "the token's issuer, said"),
            (&plain, token(None, &[(ORDERS, Some(AWAY))]), Err(ActorNotCaller), "another issuer's word for it"),
            (&plain, token(None, &[("orders", Some(AWAY))]), Err(ActorNotCaller), "another issuer's client"),
            (&plain, token(Some("orders"), &[("billing", None)]), Err(ActorNotCaller), "it was handed on"),
            (&plain, token(Some("billing"), &[("orders", None)]), Ok(()), "it was handed to it"),
            (&plain, token(None, &[("billing", None), (ORDERS, None)]), Err(ActorNotCaller), "it acted before"),
            (&plain, token(None, &[(ORDERS, None), ("billing", None)]), Ok(()), "another acted before"),
            (&abroad, token(None, &[("orders-there", Some(AWAY))]), Ok(()), "mapped at that issuer"),
            (&abroad, token(None, &[("orders-there", None)]), Err(ActorNotCaller), "and at no other"),
            (&abroad, token(None, &[(ORDERS, Some(AWAY))]), Err(ActorNotCaller), "a mapping is for one name"),
            (&abroad, token(Some("orders-there"), &[]), Err(ClientNotCaller), "the token's issuer did not issue to it"),
            (&gateway, token(Some("shop-app"), &[]), Ok(()), "a named right"),
            (&gateway, token(Some("shop"), &[]), Err(ClientNotCaller), "for that client alone"),
            (&gateway, token(None, &[("shop-app", None)]), Ok(()), "for the same as an actor"),
            (&gateway, token(None, &[("shop-app", Some(AWAY))]), Ok(()), "for the actor of another issuer, as named"),
            (
                &gateway,
                token(Some("shop-app"), &[("x", None)]),
                Err(ActorNotCaller),
                "the actor counts, not the client",
            ),
            (&gateway, token(None, &[]), Err(NoClient), "a named right names somebody"),
            (&anybody, token(Some("x"), &[]), Ok(()), "everybody's"),
            (&anybody, token(None, &[("x", Some("y"))]), Ok(()), "every actor's"),
            (&anybody, token(None, &[]), Ok(()), "and those that name nobody"),
            (&dns, token(None, &[("dns:orders.internal", None)]), Ok(()), "a caller that is known by its DNS name"),
            (&dns, token(None, &[("orders.internal", None)]), Err(ActorNotCaller), "which is written with `dns:`"),
        ];
        let bond = Bond::new(&[issuer(HOME, false), issuer(AWAY, true)]);
        for (service, token, expected, why) in table {
            assert_eq!(bond.hold_for(service, &CERTIFICATE, token), *expected, "{why}");
        }
    }

    /// RFC 8705 section 3.
    #[test]
    fn no_right_outweighs_the_certificate_that_a_token_demands() {
        let anybody = service(CallerName::Spiffe(ORDERS.parse().unwrap()), &[], PresentGrant::All);
        let bound = |certificate| TokenFacts {
            confirmation: Some(Confirmation::CertificateSha256(certificate)),
            ..token(Some("x"), &[])
        };
        let mut other = CERTIFICATE;
        other[31] ^= 1;
        let table = [
            (false, bound(CERTIFICATE), Ok(()), "this connection's"),
            (false, bound(other), Err(Unbound::WrongCertificate), "one bit off"),
            (false, token(Some("x"), &[]), Ok(()), "none is demanded"),
            (true, bound(CERTIFICATE), Ok(()), "required, and there"),
            (true, bound(other), Err(Unbound::WrongCertificate), "required, there, and another's"),
            (true, token(Some("x"), &[]), Err(Unbound::NotSenderConstrained), "required, and not there"),
        ];
        for (required, token, expected, why) in table {
            let bond = Bond::new(&[issuer(HOME, required)]);
            assert_eq!(bond.hold_for(&anybody, &CERTIFICATE, &token), expected, "{why}");
        }
    }
}

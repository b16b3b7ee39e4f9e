//! Whose word counts for which names: the authorities of each trust domain, and those of everybody else.
//!
//! A trust domain with authorities of its own is vouched for by them and by nobody else, and they vouch for nothing
//! else: an authority of one trust domain must not be able to name a workload of another. Which set is asked is chosen
//! by the name in the leaf, before its chain is looked at; the chain then has to end in that set.
//!
//! Follows SPIFFE Federation section 7.3 (the binding of trust domain and bundle) and X509-SVID section 5.1.

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use rustls::DistinguishedName;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use super::peer;
use crate::clock::unix_seconds;
use crate::model::spiffe_id::TrustDomain;

/// The authorities that are believed, by what they are believed about.
#[derive(Debug)]
pub struct Authorities {
    /// For every trust domain without authorities of its own, and for names of hosts.
    shared: Anchors,
    own: BTreeMap<TrustDomain, Anchors>,
}

/// Authorities that vouch for the same names. May be empty: then nobody vouches for them.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    /// In the order of `authorities`, in one piece, as webpki wants them.
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    authorities: Vec<Authority>,
}

/// One authority, and what a trust anchor does not tell of it.
#[derive(Debug)]
pub(super) struct Authority {
    pub(super) certificate: CertificateDer<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
    /// Names no uses, or signing revocation lists among them.
    pub(super) may_sign_lists: bool,
}

/// A certificate that may not vouch for others, or can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a certificate among the authorities is not one of an authority")]
pub struct NotAnAuthority;

impl Authorities {
    /// Believes `certificates` about every name.
    ///
    /// # Errors
    /// When one is no authority's.
    pub fn shared(certificates: Vec<CertificateDer<'static>>) -> Result<Self, NotAnAuthority> {
        Ok(Self { shared: Anchors::of(certificates)?, own: BTreeMap::new() })
    }

    /// Believes `certificates`, and nobody else, about the workloads of `domain`; with none, nobody.
    ///
    /// # Errors
    /// When one is no authority's.
    pub fn with_own(
        mut self,
        domain: TrustDomain,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, NotAnAuthority> {
        self.own.insert(domain, Anchors::of(certificates)?);
        Ok(self)
    }

    /// Who may vouch for `leaf`, by the trust domain it claims. A certificate with no name, several or an odd one is
    /// asked of those that vouch for everybody else; it names nobody in the end.
    pub(super) fn vouching_for(&self, leaf: &CertificateDer<'_>) -> &Anchors {
        if self.own.is_empty() {
            return &self.shared;
        }
        peer::claimed_trust_domain(leaf).and_then(|domain| self.own.get(&domain)).unwrap_or(&self.shared)
    }

    /// Names each authority together with what it is believed about: another set of these is another trust.
    pub(super) fn fingerprints(&self) -> HashSet<blake3::Hash> {
        let shared = self.shared.authorities.iter().map(|authority| authority.fingerprint(""));
        let own = self.own.iter().flat_map(|(domain, anchors)| {
            anchors.authorities.iter().map(|authority| authority.fingerprint(domain.as_str()))
        });
        shared.chain(own).collect()
    }

    pub(super) fn subjects(&self) -> Vec<DistinguishedName> {
        let every = self.every().flat_map(|anchors| &anchors.anchors);
        every.map(|anchor| DistinguishedName::in_sequence(anchor.subject.as_ref())).collect()
    }

    /// Every authority with the name that its lists carry.
    pub(super) fn with_subjects(&self) -> impl Iterator<Item = (&[u8], &Authority)> {
        self.every()
            .flat_map(|anchors| anchors.anchors.iter().map(|anchor| anchor.subject.as_ref()).zip(&anchors.authorities))
    }

    fn every(&self) -> impl Iterator<Item = &Anchors> {
        std::iter::once(&self.shared).chain(self.own.values())
    }
}

impl Anchors {
    fn of(certificates: Vec<CertificateDer<'static>>) -> Result<Self, NotAnAuthority> {
        let mut anchors = Self::default();
        for certificate in certificates {
            let (anchor, authority) = Authority::of(certificate).ok_or(NotAnAuthority)?;
            anchors.anchors.push(anchor);
            anchors.authorities.push(authority);
        }
        Ok(anchors)
    }

    /// The authority behind one of our own anchors.
    pub(super) fn behind(&self, anchor: &TrustAnchor<'_>) -> Option<&Authority> {
        let at = self.anchors.iter().position(|ours| std::ptr::eq(ours, anchor))?;
        self.authorities.get(at)
    }
}

impl Authority {
    /// A trust anchor's own constraints are not checked when a path is built, so they are checked here: it says that it
    /// is an authority, and may sign certificates (RFC 5280 sections 4.2.1.9 and 4.2.1.3).
    fn of(certificate: CertificateDer<'static>) -> Option<(TrustAnchor<'static>, Self)> {
        let parsed = peer::parse(&certificate)?;
        let uses = parsed.key_usage().ok()?.map(|uses| (uses.value.key_cert_sign(), uses.value.crl_sign()));
        let (may_sign, may_sign_lists) = uses.unwrap_or((true, true));
        if peer::is_authority(&parsed) != Ok(true) || !may_sign {
            return None;
        }
        let anchor = webpki::anchor_from_trusted_cert(&certificate).ok()?.to_owned();
        let (not_before, not_after) = peer::validity(&certificate)?;
        Some((anchor, Self { certificate, not_before, not_after, may_sign_lists }))
    }

    /// Whether it lives. webpki does not ask this of a trust anchor; an authority that has expired vouches for nobody.
    pub(super) fn lives_at(&self, unix: u64) -> bool {
        (unix_seconds(self.not_before)..=unix_seconds(self.not_after)).contains(&unix)
    }

    /// Framed by length, so that no domain runs into the certificate.
    fn fingerprint(&self, domain: &str) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(domain.len() as u64).to_le_bytes()).update(domain.as_bytes()).update(&self.certificate);
        hasher.finalize()
    }
}

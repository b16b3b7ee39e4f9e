//! Which certificates were taken back: the revocation lists in force, and the choice among them for one path.
//!
//! webpki asks the *first* list that carries an issuer's name, so an older, empty one could hide a newer. Here a path is
//! held only against the newest list of each issuer and partition, and only against one that the very key on that path
//! has signed: a list that somebody else signed under an issuer's name neither clears nor displaces anything.
//!
//! A list that was in force stays so until a newer one of its issuer comes. An old file that is put back, or a file that
//! is lost, revives nobody; a restart begins anew.
//!
//! Follows RFC 5280 sections 5 and 6.3. Indirect and delta lists are not taken.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::CertificateDer;
use webpki::{CertRevocationList, VerifiedPath};

use super::authorities::{Authorities, Authority};

pub(super) mod files;
pub mod list;

use list::RevocationList;

/// Lists of one issuer and partition whose signer is not known yet, for it shows itself only in a handshake: so many of
/// the newest are kept. One of them may be the true one.
const MAX_UNPROVEN: usize = 4;

/// The lists of one issuer by their issuing distribution point, if they have one; the newest first. In order, the whole
/// list before its parts: webpki asks the first that speaks of a certificate whether it has run out.
type Partitions = BTreeMap<Option<Vec<u8>>, Vec<Arc<RevocationList>>>;

/// The lists in force.
#[derive(Debug)]
pub struct Lists {
    /// By issuer: the content of its distinguished name.
    groups: HashMap<Vec<u8>, Partitions>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Lists {
    /// None: nothing is asked about revocation.
    #[must_use]
    pub fn none(algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { groups: HashMap::new(), algorithms }
    }

    /// Whether there is no list, and so no question.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// These and `read`: of each issuer, partition and signer the newest. Also gives the files with a list that is older
    /// than one that was in force before.
    #[must_use]
    pub fn renewed(&self, read: Vec<RevocationList>, authorities: &Authorities) -> (Self, Vec<Arc<PathBuf>>) {
        let mut groups = Self::none(self.algorithms).groups;
        let mut seen = HashSet::new();
        // Those in force come first: they keep what was proven about them.
        let offered: Vec<_> = read.into_iter().map(Arc::new).collect();
        for list in self.every().chain(&offered).filter(|list| seen.insert(list.hash)) {
            let partition = list.parsed.issuing_distribution_point().map(<[u8]>::to_vec);
            let of_issuer: &mut Partitions = groups.entry(list.parsed.issuer().to_vec()).or_default();
            of_issuer.entry(partition).or_default().push(Arc::clone(list));
        }
        let known: Vec<_> = authorities.with_subjects().filter(|(_, authority)| authority.may_sign_lists).collect();
        for (issuer, partitions) in &mut groups {
            let signers: Vec<_> =
                known.iter().filter(|(subject, _)| subject == issuer).map(|(_, authority)| *authority).collect();
            for lists in partitions.values_mut() {
                self.settle(lists, &signers);
            }
        }
        let renewed = Self { groups, algorithms: self.algorithms };
        let offered_ones: HashSet<_> = offered.iter().map(|list| list.hash).collect();
        let gone_back = offered.iter().filter(|list| renewed.has_newer(list, &offered_ones));
        let gone_back = gone_back.map(|list| Arc::clone(&list.file)).collect();
        (renewed, gone_back)
    }

    /// As [`renewed`](Self::renewed), within `limit` bytes if that can be. Past it those go whose signer is not known and
    /// that no file holds any more: none of them has ever cleared or revoked anybody.
    pub(super) fn renewed_within(
        &self,
        limit: usize,
        read: Vec<RevocationList>,
        authorities: &Authorities,
    ) -> (Self, Vec<Arc<PathBuf>>) {
        let offered: HashSet<_> = read.iter().map(|list| list.hash).collect();
        let (mut renewed, gone_back) = self.renewed(read, authorities);
        if renewed.bytes() > limit {
            for lists in renewed.groups.values_mut().flat_map(BTreeMap::values_mut) {
                lists.retain(|list| offered.contains(&list.hash) || !list.signers().is_empty());
            }
            // A part without lists is no part, an issuer without parts no issuer.
            for partitions in renewed.groups.values_mut() {
                partitions.retain(|_, lists| !lists.is_empty());
            }
            renewed.groups.retain(|_, partitions| !partitions.is_empty());
        }
        (renewed, gone_back)
    }

    /// Sorts the lists of one issuer and partition, and drops those that a newer one of the same signer replaces.
    fn settle(&self, lists: &mut Vec<Arc<RevocationList>>, authorities: &[&Authority]) {
        // Whoever is known to have signed one may have signed the others: certificates between leaf and authority are
        // known since a path with them held.
        let known: HashMap<_, _> = lists.iter().flat_map(|list| list.signers()).collect();
        for list in &*lists {
            for signer in authorities.iter().map(|authority| &authority.certificate).chain(known.values()) {
                // What it says is remembered with the list.
                let _ = list.is_signed_by(signer, &self.algorithms);
            }
        }
        // Stable: of two that are the same age, the one in force stays.
        lists.sort_by(|left, right| right.age(left));
        let (mut covered, mut unproven) = (HashSet::new(), 0);
        lists.retain(|list| {
            let signers = list.signers();
            if signers.is_empty() {
                unproven += 1;
                return unproven <= MAX_UNPROVEN;
            }
            // Each of them is covered from here on, so all are looked at.
            signers.into_keys().filter(|signer| covered.insert(*signer)).count() > 0
        });
    }

    /// Whether a newer list than this one stays in force though no file holds it any more.
    fn has_newer(&self, list: &RevocationList, offered: &HashSet<blake3::Hash>) -> bool {
        let signers = list.signers();
        let partition = list.parsed.issuing_distribution_point().map(<[u8]>::to_vec);
        let group = self.groups.get(list.parsed.issuer()).and_then(|partitions| partitions.get(&partition));
        group.into_iter().flatten().any(|kept| {
            let others = kept.signers();
            let may_be_of_one =
                signers.is_empty() || others.is_empty() || signers.keys().any(|one| others.contains_key(one));
            may_be_of_one && !offered.contains(&kept.hash) && kept.age(list).is_gt()
        })
    }

    /// What `path`, which ends at `authority`, is to be held against: for each issuer on it, and each partition, the
    /// newest list that its key signed. Where its key signed none, the newest there is: webpki then says that it is
    /// forged, and refuses.
    ///
    /// # Errors
    /// When the authority at the end of the path may not sign lists (webpki knows its key alone).
    pub(super) fn for_path(&self, path: &VerifiedPath<'_>, authority: &Authority) -> Result<Chosen<'_>, webpki::Error> {
        let mut chosen = Chosen { asked: Vec::new(), proven: Vec::new() };
        for issuer in path.intermediate_certificates() {
            self.of_issuer(issuer.subject(), &issuer.der(), &mut chosen);
        }
        let before = chosen.asked.len();
        self.of_issuer(path.anchor().subject.as_ref(), &authority.certificate, &mut chosen);
        if chosen.asked.len() > before && !authority.may_sign_lists {
            return Err(webpki::Error::IssuerNotCrlSigner);
        }
        Ok(chosen)
    }

    fn of_issuer<'a>(&'a self, subject: &[u8], certificate: &CertificateDer<'_>, chosen: &mut Chosen<'a>) {
        for lists in self.groups.get(subject).into_iter().flat_map(BTreeMap::values) {
            let signed = lists.iter().find(|list| list.is_signed_by(certificate, &self.algorithms));
            chosen.proven.extend(signed.map(|list| &list.parsed));
            chosen.asked.extend(signed.or(lists.first()).map(|list| &list.parsed));
        }
    }

    /// The first instant after `now` at which a list runs out.
    #[must_use]
    pub fn next_end(&self, now: SystemTime) -> Option<SystemTime> {
        self.every().map(|list| list.next_update).filter(|end| *end > now).min()
    }

    /// When the first list that is asked runs out, or did.
    #[must_use]
    pub fn first_end(&self) -> Option<SystemTime> {
        let groups = self.groups.values().flat_map(BTreeMap::values);
        let asked = groups.flat_map(|lists| {
            let proven: Vec<_> = lists.iter().filter(|list| !list.signers().is_empty()).collect();
            if proven.is_empty() { lists.first().into_iter().collect() } else { proven }
        });
        asked.map(|list| list.next_update).min()
    }

    /// All of them, together.
    pub(super) fn bytes(&self) -> usize {
        self.every().map(|list| list.bytes).fold(0, usize::saturating_add)
    }

    fn every(&self) -> impl Iterator<Item = &Arc<RevocationList>> {
        self.groups.values().flat_map(BTreeMap::values).flatten()
    }
}

/// The lists that one path is held against.
pub(super) struct Chosen<'a> {
    pub(super) asked: Vec<&'a CertRevocationList<'static>>,
    /// Those of them that a key on the path has signed.
    proven: Vec<&'a CertRevocationList<'static>>,
}

impl Chosen<'_> {
    /// Whether any list of its issuer names one of the first `depth` certificates of `path`. A serial number is given once
    /// by an issuer (RFC 5280 section 4.1.2.2), so whichever of its lists names it counts: of a whole list and a part of
    /// it, the one that webpki would not look at may be the newer.
    ///
    /// # Errors
    /// When a list can't be read at that place.
    pub(super) fn name_one_of(&self, path: &VerifiedPath<'_>, depth: usize) -> Result<bool, webpki::Error> {
        let leaf = std::iter::once((path.end_entity().serial(), path.end_entity().issuer()));
        let between = path.intermediate_certificates().map(|between| (between.serial(), between.issuer()));
        for (serial, issuer) in leaf.chain(between).take(depth) {
            for list in self.proven.iter().filter(|list| list.issuer() == issuer) {
                if list.find_serial(serial)?.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests;

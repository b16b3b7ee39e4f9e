//! One certificate revocation list: read once, and proven or not under the keys it is held against.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::CertificateDer;
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};
use x509_parser::asn1_rs::{Any, Class, FromDer as _, Tag};
use x509_parser::time::ASN1Time;

/// Keys whose verdict on one list is remembered. Only certificates of a path that already holds are asked about, so it
/// is a handful; past it the memory starts afresh.
const MAX_VERDICTS: usize = 64;

/// id-ce-cRLNumber, 2.5.29.20, as DER writes it.
const CRL_NUMBER: [u8; 3] = [0x55, 0x1d, 0x14];

/// A revocation list (RFC 5280 section 5). That it can be read says nothing about who signed it.
pub struct RevocationList {
    pub(super) parsed: CertRevocationList<'static>,
    pub(super) file: Arc<PathBuf>,
    pub(super) hash: blake3::Hash,
    pub(super) bytes: usize,
    number: Option<Number>,
    this_update: SystemTime,
    pub(in crate::tls) next_update: SystemTime,
    signed: Vec<u8>,
    algorithm: Vec<u8>,
    signature: Vec<u8>,
    /// Certificates, by hash; with the certificate itself where its key signed this list.
    verdicts: Mutex<HashMap<blake3::Hash, Option<CertificateDer<'static>>>>,
}

/// A cRLNumber, most significant byte first and without leading zeros: at most 20 bytes (RFC 5280 section 5.2.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Number(Vec<u8>);

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Issuer and size; a list may have a million entries.
impl std::fmt::Debug for RevocationList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RevocationList").field("file", &self.file).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl RevocationList {
    /// Reads one list, of which `file` is told. Nothing may follow it.
    ///
    /// # Errors
    /// What webpki says of a list that it can't use: indirect and delta lists, unknown critical extensions and entries
    /// that can't be read among them.
    pub fn read(der: &[u8], file: &Arc<PathBuf>) -> Result<Self, webpki::Error> {
        let parsed = CertRevocationList::Owned(OwnedCertRevocationList::from_der(der)?);
        let parts = Parts::of(der).ok_or(webpki::Error::BadDer)?;
        Ok(Self {
            parsed,
            file: Arc::clone(file),
            hash: blake3::hash(der),
            bytes: der.len(),
            number: parts.number,
            this_update: parts.this_update,
            next_update: parts.next_update,
            signed: parts.signed.to_vec(),
            algorithm: parts.algorithm.to_vec(),
            signature: parts.signature.to_vec(),
            verdicts: Mutex::new(HashMap::new()),
        })
    }

    /// Which of two lists of one issuer and partition is the newer: by number, one with a number before one without
    /// (RFC 5280 section 5.2.3), then by date.
    pub(super) fn age(&self, other: &Self) -> Ordering {
        self.number.cmp(&other.number).then(self.this_update.cmp(&other.this_update))
    }

    /// Whether the key of `signer` signed this list. Remembered, because lists are long.
    pub(super) fn is_signed_by(&self, signer: &CertificateDer<'_>, algorithms: &WebPkiSupportedAlgorithms) -> bool {
        let name = blake3::hash(signer);
        if let Some(known) = self.verdicts.lock().get(&name) {
            return known.is_some();
        }
        let verdict = self.holds_under(signer, algorithms);
        let mut verdicts = self.verdicts.lock();
        if verdicts.len() >= MAX_VERDICTS {
            verdicts.clear();
        }
        verdicts.insert(name, verdict.then(|| signer.clone().into_owned()));
        verdict
    }

    fn holds_under(&self, signer: &CertificateDer<'_>, algorithms: &WebPkiSupportedAlgorithms) -> bool {
        let Ok(signer) = EndEntityCert::try_from(signer) else { return false };
        let named = |algorithm: &&&'static dyn rustls_pki_types::SignatureVerificationAlgorithm| {
            algorithm.signature_alg_id().as_ref() == self.algorithm
        };
        let mut fitting = algorithms.all.iter().filter(named);
        fitting.any(|algorithm| signer.verify_signature(*algorithm, &self.signed, &self.signature).is_ok())
    }

    /// The certificates whose keys are known to have signed it, by hash.
    pub(super) fn signers(&self) -> HashMap<blake3::Hash, CertificateDer<'static>> {
        let verdicts = self.verdicts.lock();
        verdicts.iter().filter_map(|(name, signer)| Some((*name, signer.clone()?))).collect()
    }
}

/// What webpki reads and does not tell.
struct Parts<'a> {
    signed: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    number: Option<Number>,
    this_update: SystemTime,
    next_update: SystemTime,
}

impl<'a> Parts<'a> {
    /// RFC 5280 section 5.1; webpki has read the same bytes before, and was stricter.
    fn of(der: &'a [u8]) -> Option<Self> {
        let (_, whole) = Any::from_der(der).ok()?;
        let (after, list) = Any::from_der(whole.data).ok()?;
        let signed = whole.data.get(..whole.data.len().checked_sub(after.len())?)?;
        let (after, algorithm) = Any::from_der(after).ok()?;
        let (_, signature) = Any::from_der(after).ok()?;
        // The first byte of a BIT STRING counts unused bits; a signature has none.
        let (unused, signature) = signature.data.split_first()?;
        if *unused != 0 {
            return None;
        }
        // Version, algorithm and issuer come first.
        let mut rest = list.data;
        for _ in 0..3 {
            (rest, _) = Any::from_der(rest).ok()?;
        }
        let (rest, this_update) = ASN1Time::from_der(rest).ok()?;
        let (mut rest, next_update) = ASN1Time::from_der(rest).ok()?;
        let mut number = None;
        while !rest.is_empty() {
            let (after, part) = Any::from_der(rest).ok()?;
            if part.class() == Class::ContextSpecific && part.tag() == Tag(0) {
                number = extensions_number(part.data)?;
            }
            rest = after;
        }
        Some(Self {
            signed,
            algorithm: algorithm.data,
            signature,
            number,
            this_update: instant(&this_update)?,
            next_update: instant(&next_update)?,
        })
    }
}

/// The number among the extensions, if there is one.
fn extensions_number(explicit: &[u8]) -> Option<Option<Number>> {
    let (_, extensions) = Any::from_der(explicit).ok()?;
    let mut rest = extensions.data;
    while !rest.is_empty() {
        let (after, extension) = Any::from_der(rest).ok()?;
        rest = after;
        let (mut inner, id) = Any::from_der(extension.data).ok()?;
        if id.data != CRL_NUMBER {
            continue;
        }
        // `critical` may stand before the value.
        let (after, mut value) = Any::from_der(inner).ok()?;
        if value.tag() == Tag::Boolean {
            inner = after;
            (_, value) = Any::from_der(inner).ok()?;
        }
        let (_, number) = Any::from_der(value.data).ok()?;
        let digits = number.data.iter().copied().skip_while(|byte| *byte == 0).collect();
        return Some(Some(Number(digits)));
    }
    Some(None)
}

fn instant(time: &ASN1Time) -> Option<SystemTime> {
    let seconds = u64::try_from(time.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::fixture::{Authority, noon};

    #[test]
    fn numbers_are_compared_as_numbers_and_any_beats_none() {
        let number = |digits: &[u8]| Some(Number(digits.iter().copied().skip_while(|byte| *byte == 0).collect()));
        let table: [(Option<Number>, Option<Number>, Ordering, &str); 7] = [
            (number(&[2]), number(&[10]), Ordering::Less, "two and ten"),
            (number(&[1, 0]), number(&[0xff]), Ordering::Greater, "256 and 255"),
            (number(&[0, 0xff]), number(&[0xff]), Ordering::Equal, "a leading zero keeps it positive"),
            (number(&[0xff; 20]), number(&[1]), Ordering::Greater, "the longest"),
            (number(&[0]), None, Ordering::Greater, "zero is a number"),
            (None, number(&[1]), Ordering::Less, "none is not"),
            (None, None, Ordering::Equal, "neither has one"),
        ];
        for (left, right, expected, why) in table {
            assert_eq!(left.cmp(&right), expected, "{why}");
        }
    }

    /// RUSTSEC-2026-0104: read before any signature is looked at, so nobody has to be trusted to bring it.
    #[test]
    fn a_list_for_no_reasons_at_all_is_refused_and_brings_nobody_down() {
        let list = Authority::new("corp").list_of(1, noon(), &[7], Some("http://corp.test/1.crl"));
        let der = list.der().to_vec();
        let file = Arc::new(PathBuf::from("odd.crl"));
        assert!(RevocationList::read(&der, &file).is_ok());
        // `onlyContainsUserCerts` becomes `onlySomeReasons`, a BIT STRING without bits, or without anything.
        let at = der.windows(3).position(|part| part == [0x81, 0x01, 0xff]).unwrap();
        for odd in [[0x83, 0x01, 0x00], [0x83, 0x01, 0x07], [0x83, 0x01, 0xff], [0x83, 0x00, 0x00]] {
            let mut der = der.clone();
            der[at..at + 3].copy_from_slice(&odd);
            assert!(RevocationList::read(&der, &file).is_err(), "{odd:02x?}");
        }
    }
}

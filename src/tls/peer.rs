//! The workload at the other end of a connection: from its verified certificate to one name, or none.
//!
//! The chain is verified before anything here runs ([`server`](super::server)). What is left is the question of the
//! name: [`identify`] answers it, and [`Peer`] keeps the answer for the life of the connection together with what the
//! record says about the certificate. A peer without a name may finish its handshake, so that its calls can be
//! refused and recorded. And a name can be lost: the chain is verified anew when authorities or revocation lists
//! changed, when one of its certificates or a list runs out, and every minute. Knows nothing of callers, gRPC or HTTP.
//!
//! Follows X509-SVID (sections 2 to 5) and, for names of hosts, RFC 5280 section 4.2.1.6.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use rustls::ServerConnection;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::clock::unix_seconds;
use crate::config::{CallerName, IdentityConfig};
use crate::model::spiffe_id::{SpiffeId, TrustDomain};
use crate::tls::server::ServerIdentity;

mod standing;

use standing::Standing;

/// The other end of one connection. Made once, after the handshake, by [`Peer::of`].
///
/// Nobody can write one down, for it has no public fields:
/// ```compile_fail
/// let peer = gatepost::tls::peer::Peer { address: "127.0.0.1:1".parse().unwrap() };
/// ```
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    certificate_sha256: [u8; 32],
    /// Made once, for all calls of the connection; as are the words of `name`.
    certificate_sha256_hex: String,
    name_text: String,
    not_before: SystemTime,
    not_after: SystemTime,
    name: Result<CallerName, IdentityError>,
    standing: Standing,
}

/// Why a verified certificate names no workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum IdentityError {
    /// There is no certificate, or the handshake is not over.
    #[error("the connection has no client certificate")]
    NoCertificate,
    /// Not X.509, or an extension that matters can't be read.
    #[error("the certificate can't be read")]
    Unreadable,
    /// A certification authority, or one that may sign certificates or revocation lists.
    #[error("the certificate is one of an authority, not of a workload")]
    Authority,
    /// It names its key's uses, and signing a handshake is not among them.
    #[error("the certificate's key may not be used for signatures")]
    KeyUsage,
    /// An RSA key of less than 2 048 bits.
    #[error("the certificate's key is too weak")]
    WeakKey,
    /// No URI SAN, and names of hosts are not taken.
    #[error("the certificate has no SPIFFE ID")]
    NoName,
    /// More than one URI SAN, whatever they say.
    #[error("the certificate has more than one URI name")]
    ManyNames,
    /// The URI SAN is not a SPIFFE ID.
    #[error("the certificate's URI name is not a SPIFFE ID")]
    NotSpiffe,
    /// A trust domain without a path.
    #[error("the certificate's SPIFFE ID names a trust domain, not a workload")]
    NoWorkload,
    /// A trust domain that is not ours to believe.
    #[error("the certificate's trust domain is not configured")]
    ForeignTrustDomain,
    /// Names of hosts are taken, but there is not exactly one in lower case and without a wildcard.
    #[error("the certificate does not have exactly one plain lower-case DNS name")]
    DnsName,
    /// Its life has not begun.
    #[error("the certificate is not valid yet")]
    NotYetValid,
    /// Its life is over.
    #[error("the certificate has expired")]
    Expired,
    /// A revocation list that came into force since the handshake names it, or one above it.
    #[error("the certificate was revoked")]
    Revoked,
    /// Its chain holds no longer: an authority was taken out, a certificate or a revocation list ran out.
    #[error("the certificate's chain is not trusted any more")]
    NotTrusted,
}

impl IdentityError {
    /// The word for records and metrics, from a closed list.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoCertificate => "NO_CERTIFICATE",
            Self::Unreadable => "CERTIFICATE_UNREADABLE",
            Self::Authority => "CERTIFICATE_OF_AUTHORITY",
            Self::KeyUsage => "CERTIFICATE_KEY_USAGE",
            Self::WeakKey => "CERTIFICATE_WEAK_KEY",
            Self::NoName => "NO_SPIFFE_ID",
            Self::ManyNames => "MANY_URI_NAMES",
            Self::NotSpiffe => "NOT_A_SPIFFE_ID",
            Self::NoWorkload => "SPIFFE_ID_WITHOUT_PATH",
            Self::ForeignTrustDomain => "FOREIGN_TRUST_DOMAIN",
            Self::DnsName => "NO_SINGLE_DNS_NAME",
            Self::NotYetValid => "CERTIFICATE_NOT_YET_VALID",
            Self::Expired => "CERTIFICATE_EXPIRED",
            Self::Revoked => "CERTIFICATE_REVOKED",
            Self::NotTrusted => "CERTIFICATE_NOT_TRUSTED",
        }
    }
}

impl Peer {
    /// The other end of `connection`, whose handshake is over and whose client certificate was verified by it, with what
    /// `identity` gave when its [`generation`](ServerIdentity::generation) was `generation`, or later.
    ///
    /// # Errors
    /// [`IdentityError::NoCertificate`] when there is none. A certificate that names nobody is not an error here, but
    /// at every [`name`](Self::name).
    pub fn of(
        connection: &ServerConnection,
        address: SocketAddr,
        names: &IdentityConfig,
        identity: &Arc<ServerIdentity>,
        generation: u64,
    ) -> Result<Self, IdentityError> {
        let chain = connection.peer_certificates().unwrap_or_default();
        let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
        let (not_before, not_after) = validity(leaf).unwrap_or((SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH));
        let (certificate_sha256, name) = (sha256(leaf), identify(leaf, names));
        Ok(Self {
            address,
            certificate_sha256,
            certificate_sha256_hex: HEXLOWER.encode(&certificate_sha256),
            name_text: name.as_ref().map(ToString::to_string).unwrap_or_default(),
            not_before,
            not_after,
            name,
            standing: Standing::new(chain.to_vec(), Arc::clone(identity), generation),
        })
    }

    /// Who it is. To be asked on every call, because a certificate can expire or be revoked while its connection lives.
    ///
    /// # Errors
    /// [`IdentityError`] says why it has no name, or no longer.
    ///
    /// Source: RFC 5280 section 4.1.2.5: both ends of the validity period belong to it, in whole seconds.
    pub fn name(&self, now: SystemTime) -> Result<&CallerName, IdentityError> {
        let name = self.name.as_ref().map_err(|error| *error)?;
        if unix_seconds(now) < unix_seconds(self.not_before) {
            return Err(IdentityError::NotYetValid);
        }
        if unix_seconds(now) > unix_seconds(self.not_after) {
            return Err(IdentityError::Expired);
        }
        self.standing.at(now)?;
        Ok(name)
    }

    /// Its network address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// SHA-256 of its leaf certificate: what `cnf.x5t#S256` of RFC 8705 is compared with.
    #[must_use]
    pub fn certificate_sha256(&self) -> &[u8; 32] {
        &self.certificate_sha256
    }

    /// The same in lower-case hex, for records.
    #[must_use]
    pub fn certificate_sha256_hex(&self) -> &str {
        &self.certificate_sha256_hex
    }

    /// What its certificate names, whether or not it still does: [`name`](Self::name) says that. Empty when it names nobody.
    #[must_use]
    pub fn name_text(&self) -> &str {
        &self.name_text
    }

    /// From when its leaf certificate holds.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when its leaf certificate holds, that second included.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// The one name in `leaf`, a certificate whose chain is already verified. Says nothing about time.
///
/// # Errors
/// [`IdentityError`] names the first rule that is broken: more than one URI name is refused whatever the second says,
/// and a certificate with any URI name is never known by its host name. The common name is never looked at.
///
/// Source: X509-SVID sections 2 (one URI SAN, with a path for a workload), 4.1 (a leaf is no authority) and 4.3 (nor
/// may it sign certificates or lists); RFC 8446 section 4.4.2.4 (`digitalSignature`, if uses are named at all).
pub fn identify(leaf: &CertificateDer<'_>, names: &IdentityConfig) -> Result<CallerName, IdentityError> {
    let certificate = parse(leaf).ok_or(IdentityError::Unreadable)?;
    check_use(&certificate)?;
    let (uris, hosts) = alternative_names(&certificate)?;
    match uris.as_slice() {
        [uri] => {
            let id: SpiffeId = uri.parse().map_err(|_| IdentityError::NotSpiffe)?;
            if !names.trust_domains.contains(id.trust_domain()) {
                return Err(IdentityError::ForeignTrustDomain);
            }
            if !id.is_workload() {
                return Err(IdentityError::NoWorkload);
            }
            Ok(CallerName::Spiffe(id))
        }
        [] if names.dns_san => match hosts.as_slice() {
            [host] if is_plain_host(host) => Ok(CallerName::Dns((*host).to_owned())),
            _ => Err(IdentityError::DnsName),
        },
        [] => Err(IdentityError::NoName),
        _ => Err(IdentityError::ManyNames),
    }
}

/// The whole of `der` as a certificate; nothing may follow it.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

/// The trust domain that a certificate's only URI name claims; nothing when it has none, several, or an odd one. Nothing
/// is verified yet.
pub(super) fn claimed_trust_domain(der: &CertificateDer<'_>) -> Option<TrustDomain> {
    let certificate = parse(der)?;
    let (uris, _) = alternative_names(&certificate).ok()?;
    let [uri] = uris.as_slice() else { return None };
    Some(uri.parse::<SpiffeId>().ok()?.trust_domain().clone())
}

/// First and last second of a certificate's life.
pub(super) fn validity(der: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let certificate = parse(der)?;
    let time = |seconds: i64| {
        let distance = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 {
            SystemTime::UNIX_EPOCH.checked_sub(distance)
        } else {
            SystemTime::UNIX_EPOCH.checked_add(distance)
        }
    };
    let validity = certificate.validity();
    Some((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

/// Whether a certificate says that it is an authority. One whose constraints can't be read is treated as neither.
pub(super) fn is_authority(certificate: &X509Certificate<'_>) -> Result<bool, IdentityError> {
    let extension =
        certificate.get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS).map_err(|_| IdentityError::Unreadable)?;
    match extension.map(|extension| extension.parsed_extension()) {
        None => Ok(false),
        Some(ParsedExtension::BasicConstraints(constraints)) => Ok(constraints.ca),
        Some(_) => Err(IdentityError::Unreadable),
    }
}

fn check_use(certificate: &X509Certificate<'_>) -> Result<(), IdentityError> {
    if is_authority(certificate)? {
        return Err(IdentityError::Authority);
    }
    if let Some(uses) = certificate.key_usage().map_err(|_| IdentityError::Unreadable)? {
        if uses.value.key_cert_sign() || uses.value.crl_sign() {
            return Err(IdentityError::Authority);
        }
        if !uses.value.digital_signature() {
            return Err(IdentityError::KeyUsage);
        }
    }
    // The handshake refuses such a key too; this holds should another verifier ever stand there.
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < 2048 => Err(IdentityError::WeakKey),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The URI names and the DNS names. A name that can't be read makes the whole list unreadable: another reader might
/// see something else in it.
fn alternative_names<'a>(certificate: &'a X509Certificate<'a>) -> Result<(Vec<&'a str>, Vec<&'a str>), IdentityError> {
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
    let (mut uris, mut hosts) = (Vec::new(), Vec::new());
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(host) => hosts.push(*host),
            GeneralName::IPAddress(address) if !matches!(address.len(), 4 | 16) => {
                return Err(IdentityError::Unreadable);
            }
            GeneralName::Invalid(..) => return Err(IdentityError::Unreadable),
            GeneralName::IPAddress(_)
            | GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    Ok((uris, hosts))
}

/// Every name that a certificate is for, as people write them.
pub(super) fn names(der: &CertificateDer<'_>) -> Vec<String> {
    let Some(certificate) = parse(der) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let shown = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => Some(IpAddr::from(v4).to_string()),
            (_, Ok(v6)) => Some(IpAddr::from(v6).to_string()),
            (Err(_), Err(_)) => None,
        },
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    };
    names.value.general_names.iter().filter_map(shown).collect()
}

/// A host name in the preferred syntax of RFC 1034 section 3.5, lower case, at most 253 bytes. Upper case is refused
/// and not folded, so that a name has one spelling.
fn is_plain_host(host: &str) -> bool {
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    host.len() <= 253 && host.split('.').all(label_fits)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests;

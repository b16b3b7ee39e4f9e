//! Real certificates for tests: an authority, leaves of it, and peers that really shook hands.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams, CertifiedIssuer,
    CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType,
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

use super::peer::Peer;
use super::server::ServerIdentity;
use crate::clock::{ManualClock, SharedClock};
use crate::config::{IdentityConfig, ListenerTls, Revocation};

/// The hour at which the tests happen.
pub(crate) fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_899_979_200)
}

pub(crate) fn clock() -> SharedClock {
    ManualClock::at(noon())
}

/// What certificates write for `time`, in whole seconds.
fn written(time: SystemTime) -> impl Fn(&mut CertificateParams, bool) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    move |params, end| {
        let time = rcgen::date_time_ymd(1970, 1, 1) + since;
        if end { params.not_after = time } else { params.not_before = time }
    }
}

pub(crate) fn living(mut params: CertificateParams, from: SystemTime, until: SystemTime) -> CertificateParams {
    written(from)(&mut params, false);
    written(until)(&mut params, true);
    params
}

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A leaf and its key.
pub(crate) struct Leaf {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    /// Certificates that are shown with it.
    pub(crate) above: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Leaf {
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign])
    }

    /// One whose certificate names these uses.
    pub(crate) fn with(name: &str, uses: &[KeyUsagePurpose]) -> Self {
        Self::of(name, uses, CertificateParams::default())
    }

    /// One that lives so long.
    pub(crate) fn living(name: &str, from: SystemTime, until: SystemTime) -> Self {
        Self::of(name, &[], living(CertificateParams::default(), from, until))
    }

    /// The same name and key with a certificate that names other uses.
    pub(crate) fn twin(&self, name: &str, uses: &[KeyUsagePurpose]) -> Self {
        let key = KeyPair::from_pem(&self.0.key().serialize_pem()).unwrap();
        Self::keyed(name, uses, CertificateParams::default(), key)
    }

    fn of(name: &str, uses: &[KeyUsagePurpose], params: CertificateParams) -> Self {
        Self::keyed(name, uses, params, KeyPair::generate().unwrap())
    }

    fn keyed(name: &str, uses: &[KeyUsagePurpose], mut params: CertificateParams, key: KeyPair) -> Self {
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = uses.to_vec();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// The serial number of every authority under another.
    pub(crate) const SUBORDINATE: u64 = 77;

    /// An authority under this one, whose certificate names these uses.
    pub(crate) fn subordinate(&self, uses: &[KeyUsagePurpose]) -> Self {
        self.subordinate_of(uses, CertificateParams::default())
    }

    /// The same from other parameters.
    pub(crate) fn subordinate_of(&self, uses: &[KeyUsagePurpose], mut params: CertificateParams) -> Self {
        params.distinguished_name.push(DnType::CommonName, "subordinate");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.serial_number = Some(Self::SUBORDINATE.into());
        params.key_usages = uses.to_vec();
        Self(CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.0).unwrap())
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn issue(&self, params: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Leaf {
            certificate_pem: certificate.pem(),
            certificate: certificate.der().clone(),
            key_pem: key.serialize_pem(),
            above: Vec::new(),
            key: key.serialize_der(),
        }
    }

    /// A list of this authority, signed at noon or before: its number, its last second, and the serial numbers on it.
    pub(crate) fn list(&self, number: u64, until: SystemTime, revoked: &[u64]) -> CertificateRevocationList {
        self.list_of(number, until, revoked, None)
    }

    /// The same of one partition.
    pub(crate) fn list_of(
        &self,
        number: u64,
        until: SystemTime,
        revoked: &[u64],
        partition: Option<&str>,
    ) -> CertificateRevocationList {
        let time =
            |time: SystemTime| rcgen::date_time_ymd(1970, 1, 1) + time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: time(noon()),
            reason_code: None,
            invalidity_date: None,
        });
        let partition = partition.map(|uri| CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris: vec![uri.to_owned()] },
            scope: Some(CrlScope::UserCertsOnly),
        });
        let params = CertificateRevocationListParams {
            this_update: time(noon().min(until - Duration::from_secs(1))),
            next_update: time(until),
            crl_number: number.into(),
            issuing_distribution_point: partition,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap()
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.der()).unwrap();
        roots
    }
}

/// A leaf that lives from eleven to one, with these names.
pub(crate) fn leaf(uris: &[&str], hosts: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .chain(hosts.iter().map(|host| SanType::DnsName((*host).try_into().unwrap())))
        .collect();
    let hour = Duration::from_secs(3600);
    living(params, noon() - hour, noon() + hour)
}

/// The same with a serial number.
pub(crate) fn numbered(serial: u64, mut params: CertificateParams) -> CertificateParams {
    params.serial_number = Some(serial.into());
    params
}

/// The trust domain `corp.test`, and host names if `dns_san`.
pub(crate) fn names(dns_san: bool) -> IdentityConfig {
    IdentityConfig { trust_domains: ["corp.test".parse().unwrap()].into(), dns_san }
}

/// Writes a server's three files into `folder` and says where they are.
pub(crate) fn write_server(folder: &Path, server: &Leaf, client_ca: &str) -> ListenerTls {
    let config = ListenerTls {
        certificate: folder.join("tls.crt"),
        private_key: folder.join("tls.key"),
        client_ca: folder.join("ca.crt"),
        domain_ca: BTreeMap::new(),
        names: Vec::new(),
        revocation: Revocation::default(),
        reload_interval: Duration::from_secs(3600),
    };
    std::fs::write(&config.certificate, &server.certificate_pem).unwrap();
    std::fs::write(&config.private_key, &server.key_pem).unwrap();
    std::fs::write(&config.client_ca, client_ca).unwrap();
    config
}

/// A client that believes `authority` and shows `leaf`, if there is one.
pub(crate) fn client(authority: &Authority, leaf: Option<&Leaf>) -> ClientConfig {
    client_of(authority, leaf, &[&rustls::version::TLS13])
}

pub(crate) fn client_of(
    authority: &Authority,
    leaf: Option<&Leaf>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_details(provider, Arc::new(super::server::WallTime(clock())))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(authority.roots());
    let mut config = match leaf {
        Some(leaf) => {
            let chain = std::iter::once(&leaf.certificate).chain(&leaf.above).cloned().collect();
            builder.with_client_auth_cert(chain, leaf.key()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Both ends of a handshake in memory; the error is the server's.
pub(crate) fn shake_hands(
    server: Arc<rustls::ServerConfig>,
    client: Arc<ClientConfig>,
) -> Result<(ServerConnection, ClientConnection), rustls::Error> {
    let mut server = ServerConnection::new(server).unwrap();
    let mut client = ClientConnection::new(client, ServerName::try_from("gatepost.test").unwrap()).unwrap();
    while server.is_handshaking() || client.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    Ok((server, client))
}

/// A peer that really showed a certificate with `params`, issued by `authority`, at noon.
pub(crate) fn peer_with(authority: &Authority, params: CertificateParams, names: &IdentityConfig) -> Peer {
    let folder = tempfile::tempdir().unwrap();
    let server = authority.issue(&leaf(&[], &["gatepost.test"]));
    let identity = ServerIdentity::load(&write_server(folder.path(), &server, &authority.pem()), clock()).unwrap();
    peer_at(&identity, authority, &authority.issue(&params), names)
}

/// A peer that really showed `leaf` to `identity`, whose own certificate is of `authority`.
pub(crate) fn peer_at(
    identity: &Arc<ServerIdentity>,
    authority: &Authority,
    leaf: &Leaf,
    names: &IdentityConfig,
) -> Peer {
    let generation = identity.generation();
    let client = client(authority, Some(leaf));
    let (server, _client) = shake_hands(identity.current(), Arc::new(client)).unwrap();
    Peer::of(&server, "192.0.2.7:4711".parse().unwrap(), names, identity, generation).unwrap()
}

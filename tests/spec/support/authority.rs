//! An authority of the test's own: certificates with serial numbers, authorities under it, and revocation lists.

use std::time::{Duration, SystemTime};

use gatepost::cli::demo::world::{ClientFiles, World};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
};

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// What stands between its leaves and whoever is trusted.
    above: String,
}

/// A certificate and its key, PEM; the chain where there is one.
pub struct Issued {
    pub certificate: String,
    pub key: String,
    pub der: Vec<u8>,
    pub key_der: Vec<u8>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let (params, key) = Self::params(name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem, above: String::new() }
    }

    /// An authority under this one.
    pub fn subordinate(&self, name: &str, serial: u64) -> Self {
        let (mut params, key) = Self::params(name);
        params.serial_number = Some(serial.into());
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { issuer: Issuer::new(params, key), above: format!("{pem}{}", self.above), pem }
    }

    fn params(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params, KeyPair::generate().unwrap())
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn der(&self) -> Vec<u8> {
        pem_der(&self.pem)
    }

    /// A certificate for these names, for servers and clients, with its chain.
    pub fn issue(&self, serial: u64, names: &[SanType], until: Option<SystemTime>) -> Issued {
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial.into());
        // As SPIRE issues them.
        params.is_ca = IsCa::ExplicitNoCa;
        params.subject_alt_names = names.to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        if let Some(until) = until {
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since(until);
        }
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            certificate: format!("{}{}", leaf.pem(), self.above),
            key: key.serialize_pem(),
            der: leaf.der().to_vec(),
            key_der: key.serialize_der(),
        }
    }

    /// Files of a client of this authority that is called `spiffe_id`; it believes the world's server.
    pub fn client(&self, world: &World, name: &str, serial: u64, spiffe_id: &str) -> ClientFiles {
        self.client_until(world, name, serial, spiffe_id, None)
    }

    pub fn client_until(
        &self,
        world: &World,
        name: &str,
        serial: u64,
        spiffe_id: &str,
        until: Option<SystemTime>,
    ) -> ClientFiles {
        let issued = self.issue(serial, &[uri(spiffe_id)], until);
        world.write(&format!("{name}.pem"), &issued.certificate).unwrap();
        world.write(&format!("{name}.key"), &issued.key).unwrap();
        let path = |name: &str| world.folder().join(name);
        ClientFiles {
            ca: path("ca.pem"),
            certificate: path(&format!("{name}.pem")),
            private_key: path(&format!("{name}.key")),
        }
    }

    /// A revocation list, PEM.
    pub fn list(&self, number: u64, from: SystemTime, until: SystemTime, revoked: &[u64]) -> String {
        let time = |time: SystemTime| rcgen::date_time_ymd(1970, 1, 1) + since(time);
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: time(from),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: time(from),
            next_update: time(until),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

pub fn uri(spiffe_id: &str) -> SanType {
    SanType::URI(spiffe_id.try_into().unwrap())
}

pub fn host(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn pem_der(pem: &str) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject as _;
    rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

/// Certificates write whole seconds.
fn since(time: SystemTime) -> Duration {
    Duration::from_secs(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
}

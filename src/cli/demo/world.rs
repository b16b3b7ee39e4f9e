//! A small world to play in: an authority, certificates for services, an issuer with its key, and a configuration, all in
//! one folder. Nothing in it is trusted anywhere else, and the keys are thrown away with the folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::{Value, json};

use crate::clock::unix_seconds;

/// `iss` of the world's tokens.
pub const ISSUER: &str = "https://idp.shop.example";
/// The audience that Gatepost wants.
pub const AUDIENCE: &str = "gatepost";
/// The OAuth client that the world's people sign in with: no service, so services present its tokens by right.
pub const CLIENT: &str = "shop-app";

/// PEM files of one workload, and the authority that it trusts.
#[derive(Debug, Clone)]
pub struct ClientFiles {
    /// The server's authority.
    pub ca: PathBuf,
    /// The workload's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub private_key: PathBuf,
}

/// An authority with its key, ready to issue.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// The folder and the keys to everything in it.
pub struct World {
    folder: PathBuf,
    authority: Authority,
    issuer_key: KeyPair,
}

/// The name of one of the world's services.
#[must_use]
pub fn spiffe_id(service: &str) -> String {
    format!("spiffe://shop.example/ns/shop/sa/{service}")
}

impl Authority {
    /// A new one, called `name`.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// A certificate and its key, both PEM.
    ///
    /// # Errors
    /// When the names don't fit into a certificate.
    pub fn issue(&self, names: Vec<SanType>, server: bool) -> Result<(String, String), rcgen::Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let purpose = if server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth };
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Its own certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

impl World {
    /// Makes everything but the configuration in `folder`: `ca.pem`, `server.pem`, `server.key`, `jwks.json`.
    ///
    /// # Errors
    /// When keys can't be made or files can't be written.
    pub fn create(folder: &Path) -> io::Result<Self> {
        let authority = Authority::new("Gatepost demo CA").map_err(io::Error::other)?;
        let issuer_key = KeyPair::generate().map_err(io::Error::other)?;
        let world = Self { folder: folder.to_owned(), authority, issuer_key };
        world.write("ca.pem", &world.authority.pem)?;
        world.renew_server()?;
        world.write("jwks.json", &serde_json::to_string_pretty(&world.jwks())?)?;
        Ok(world)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a new certificate and key for the server.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn renew_server(&self) -> io::Result<()> {
        let localhost = "localhost".try_into().map_err(io::Error::other)?;
        let names = vec![SanType::DnsName(localhost), SanType::IpAddress([127, 0, 0, 1].into())];
        let (certificate, key) = self.authority.issue(names, true).map_err(io::Error::other)?;
        self.write("server.pem", &certificate)?;
        self.write("server.key", &key)
    }

    /// Files for the workload `spiffe_id`, called `name` in the folder.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn client(&self, name: &str, spiffe_id: &str) -> io::Result<ClientFiles> {
        self.client_of(&self.authority, name, spiffe_id)
    }

    /// The same from another authority: a forgery.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn client_of(&self, authority: &Authority, name: &str, spiffe_id: &str) -> io::Result<ClientFiles> {
        let uri = spiffe_id.try_into().map_err(io::Error::other)?;
        let (certificate, key) = authority.issue(vec![SanType::URI(uri)], false).map_err(io::Error::other)?;
        let (certificate_name, key_name) = (format!("{name}.pem"), format!("{name}.key"));
        self.write(&certificate_name, &certificate)?;
        self.write(&key_name, &key)?;
        Ok(ClientFiles {
            ca: self.folder.join("ca.pem"),
            certificate: self.folder.join(certificate_name),
            private_key: self.folder.join(key_name),
        })
    }

    /// A signed token for `subject`: `claims` are laid over the required ones.
    ///
    /// # Errors
    /// When the key does not sign.
    pub fn token(&self, subject: &str, claims: &Value, issued: SystemTime, lifetime: Duration) -> io::Result<String> {
        let now = unix_seconds(issued);
        let mut all = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "nbf": now, "exp": now + lifetime.as_secs(),
            "client_id": CLIENT,
        });
        if let (Some(all), Some(claims)) = (all.as_object_mut(), claims.as_object()) {
            all.extend(claims.clone());
        }
        let mut header = Header::new(Algorithm::ES256);
        header.typ = Some("at+jwt".to_owned());
        header.kid = Some("demo-1".to_owned());
        let key = EncodingKey::from_ec_der(self.issuer_key.serialized_der());
        jsonwebtoken::encode(&header, &all, &key).map_err(io::Error::other)
    }

    /// A configuration that fits the worked example in `policies`: its four services are enrolled, each for its own work.
    /// Ports are free ones; records go to `audit`, a spool.
    #[must_use]
    pub fn configuration(&self, policies: &Path) -> Value {
        json!({
            "server": {
                "listen": "127.0.0.1:0", "ops_listen": "127.0.0.1:0", "reflection": true,
                "certificate": "server.pem", "private_key": "server.key", "client_ca": "ca.pem",
            },
            "identity": { "trust_domains": ["shop.example"] },
            "callers": [
                {
                    "spiffe_id": spiffe_id("storefront"), "name": "storefront",
                    "resource_types": ["Account", "Order", "Product"],
                    "actions": ["Account.*", "Order.*", "Product.*"],
                    "supply_attributes": ["Account", "Order", "Product"], "sees_policies": true,
                    "presents_for": [{ "issuer": ISSUER, "client": CLIENT }], "tenants": ["acme", "globex"],
                },
                {
                    "spiffe_id": spiffe_id("back-office"), "name": "back-office",
                    "resource_types": "*", "actions": "*",
                    "supply_attributes": ["Account", "Order", "Product", "User"], "sees_policies": true,
                    "presents_for": [{ "issuer": ISSUER, "client": CLIENT }], "tenants": "*", "explain": true,
                },
                {
                    "spiffe_id": spiffe_id("fulfilment"), "name": "fulfilment",
                    "resource_types": ["Order"], "actions": ["Order.read"], "supply_attributes": ["Order"],
                    "clients": [{ "issuer": ISSUER, "id": "fulfilment" }], "tenants": ["acme"],
                },
                {
                    "spiffe_id": spiffe_id("fraud"), "name": "fraud",
                    "resource_types": ["Account"], "actions": ["Account.read"], "supply_attributes": ["Account"],
                    "tenants": ["acme"],
                },
            ],
            "issuers": [{
                "issuer": ISSUER, "audiences": [AUDIENCE], "algorithms": ["ES256"], "jwks_file": "jwks.json",
                "principal": {
                    "type": "User",
                    "attributes": { "tenant": { "claim": "tenant", "entity": "Tenant" }, "suspended": "suspended" },
                    "parents": [{ "claim": "roles", "type": "Role" }],
                },
            }],
            "policies": { "directory": policies, "tenant_type": "Tenant" },
            "audit": { "spool": { "directory": "audit" }, "attributes": { "Order.status": "keep" } },
            "telemetry": { "logs": { "format": "human", "filter": "warn" } },
        })
    }

    /// Writes a file of the folder; keys are for the owner alone.
    ///
    /// # Errors
    /// The system's own.
    pub fn write(&self, name: &str, text: &str) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let place = self.folder.join(name);
        let aside = place.with_file_name(format!(".{}.new", place.file_name().unwrap_or_default().to_string_lossy()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        io::Write::write_all(&mut options.open(&aside)?, text.as_bytes())?;
        fs::rename(aside, place)
    }

    fn jwks(&self) -> Value {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        // An uncompressed P-256 point: 0x04, then x and y of 32 bytes each (SEC 1 section 2.3.3).
        let point = self.issuer_key.public_key_raw();
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
        json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "demo-1", "x": part(1..33), "y": part(33..65),
        }]})
    }
}

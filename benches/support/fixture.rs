//! Everything `gatepost serve` needs, made up for one run: an authority, two certificates, an issuer, a configuration.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatepost::clock::{SystemClock, unix_seconds};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::Failure;

const CALLER: &str = "spiffe://shop.example/ns/shop/sa/storefront";
const ISSUER: &str = "https://id.shop.example";

/// A folder with the files, and one user's token.
pub struct Fixture {
    folder: tempfile::TempDir,
    port: u16,
    token: String,
}

impl Fixture {
    /// Writes everything; the server is to listen on `port`, its operators' door on `ops_port`.
    pub fn make(port: u16, ops_port: u16) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);

        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        write("ca.pem", &params.self_signed(&key)?.pem())?;
        let authority = Issuer::new(params, key);
        let server = SanType::DnsName("localhost".try_into()?);
        let caller = SanType::URI(CALLER.try_into()?);
        for (name, san, usage) in [
            ("server", server, ExtendedKeyUsagePurpose::ServerAuth),
            ("client", caller, ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![san];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            params.use_authority_key_identifier_extension = true;
            write(&format!("{name}.pem"), &params.signed_by(&key, &authority)?.pem())?;
            write(&format!("{name}.key"), &key.serialize_pem())?;
        }

        let signer = KeyPair::generate()?;
        let point = signer.public_key_raw();
        let (Some(x), Some(y)) = (point.get(1..33), point.get(33..65)) else { return Err("not a P-256 point".into()) };
        let coordinate = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "k1", "alg": "ES256", "use": "sig", "x": coordinate(x), "y": coordinate(y)});
        write("jwks.json", &json!({"keys": [jwk]}).to_string())?;

        let now = unix_seconds(SystemClock::shared().now());
        let claims = json!({
            "iss": ISSUER, "sub": "alice", "aud": "shop", "iat": now, "exp": now + 14 * 60, "jti": "bench",
            "tenant": "acme", "roles": [], "scope": "openid profile orders", "client_id": "storefront",
        });
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("k1".to_owned());
        header.typ = Some("at+jwt".to_owned());
        let token =
            jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_pem(signer.serialize_pem().as_bytes())?)?;

        let path = |name: &str| folder.path().join(name);
        let config = json!({
            "server": {
                "listen": format!("127.0.0.1:{port}"), "ops_listen": format!("127.0.0.1:{ops_port}"),
                "certificate": path("server.pem"), "private_key": path("server.key"), "client_ca": path("ca.pem"),
            },
            "identity": {"trust_domains": ["shop.example"]},
            "callers": [{
                "spiffe_id": CALLER, "name": "storefront", "resource_types": "*", "actions": "*", "supply_attributes": "*",
            }],
            "issuers": [{
                "issuer": ISSUER, "audiences": ["shop"], "jwks_file": path("jwks.json"),
                "principal": {
                    "type": "User", "attributes": {"tenant": {"claim": "tenant", "entity": "Tenant"}},
                    "parents": [{"claim": "roles", "type": "Role"}],
                },
            }],
            "policies": {"directory": Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")},
            "audit": {"file": {"path": path("audit.jsonl"), "max_bytes": "1GiB", "max_files": 1}},
            "telemetry": {"logs": {"filter": "warn"}},
        });
        // JSON is YAML.
        write("gatepost.yaml", &format!("{config:#}"))?;
        Ok(Self { folder, port, token })
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The configuration of the server.
    pub fn config(&self) -> PathBuf {
        self.path("gatepost.yaml")
    }

    /// Where the server is to listen.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Alice's token.
    pub fn token(&self) -> &str {
        &self.token
    }
}

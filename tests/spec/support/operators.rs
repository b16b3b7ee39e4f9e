//! Operators of a world: their own authority, their certificates, and their calls.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use gatepost::cli::demo::world::{Authority, ClientFiles, World};
use gatepost::proto::admin::v1;
use gatepost::proto::admin::v1::revocation_service_client::RevocationServiceClient;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{Gatepost, channel_to};

pub const ISSUER: &str = gatepost::cli::demo::world::ISSUER;
/// Every method of the admin listener.
pub const METHODS: [&str; 5] =
    ["RevokeToken", "RevokeSubject", "RevokeSession", "RevokeCertificate", "ListRevocations"];

pub fn operator_id(name: &str) -> String {
    format!("spiffe://shop.example/ops/{name}")
}

/// Those who may revoke.
pub struct Operators {
    pub authority: Authority,
    folder: tempfile::TempDir,
}

impl Operators {
    pub fn new() -> Self {
        let (authority, folder) = (Authority::new("operators").unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("operators.pem"), authority.pem()).unwrap();
        Self { authority, folder }
    }

    /// The `admin` section: `ops` may everything, and each of `others` what stands beside it.
    pub fn section(&self, others: &[(&str, &[&str])]) -> Value {
        let one = |name: &str, may: &[&str]| json!({ "spiffe_id": operator_id(name), "name": name, "may": may });
        let mut operators = vec![one("ops", &METHODS)];
        operators.extend(others.iter().map(|(name, may)| one(name, may)));
        json!({
            "listen": "127.0.0.1:0", "certificate": "server.pem", "private_key": "server.key",
            "client_ca": self.ca(), "operators": operators,
        })
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("operators.pem")
    }

    /// A folder outside of any world, for files that worlds share.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn files(&self, world: &World, name: &str) -> ClientFiles {
        world.client_of(&self.authority, name, &operator_id(name)).unwrap()
    }

    /// A server with an admin listener, and the operators.
    pub async fn start(change: impl FnOnce(&Self, &mut Value)) -> (Gatepost, Self) {
        let operators = Self::new();
        let gatepost = Gatepost::start_with(|settings| {
            settings["admin"] = operators.section(&[]);
            change(&operators, settings);
        })
        .await;
        (gatepost, operators)
    }

    /// Calls as `name`.
    pub async fn client(&self, gatepost: &Gatepost, name: &str) -> RevocationServiceClient<Channel> {
        let files = self.files(&gatepost.world, name);
        client(gatepost.admin_address.unwrap(), &files).await
    }
}

pub async fn client(address: SocketAddr, files: &ClientFiles) -> RevocationServiceClient<Channel> {
    RevocationServiceClient::new(channel_to(address, files).await.unwrap())
}

pub fn token_request(id: &str) -> v1::RevokeTokenRequest {
    v1::RevokeTokenRequest {
        issuer: ISSUER.to_owned(),
        token: Some(v1::revoke_token_request::Token::TokenId(id.to_owned())),
        reason: "found in a log".to_owned(),
        ..v1::RevokeTokenRequest::default()
    }
}

pub fn subject_request(subject: &str) -> v1::RevokeSubjectRequest {
    v1::RevokeSubjectRequest {
        issuer: ISSUER.to_owned(),
        subject: subject.to_owned(),
        reason: "laptop stolen".to_owned(),
        ..v1::RevokeSubjectRequest::default()
    }
}

pub fn session_request(id: &str) -> v1::RevokeSessionRequest {
    v1::RevokeSessionRequest {
        issuer: ISSUER.to_owned(),
        session_id: id.to_owned(),
        reason: "logged out".to_owned(),
        ..v1::RevokeSessionRequest::default()
    }
}

pub fn certificate_request(sha256: &str, until: u64) -> v1::RevokeCertificateRequest {
    v1::RevokeCertificateRequest {
        certificate_sha256: sha256.to_owned(),
        expire_time: Some(at(until)),
        reason: "key in a backup".to_owned(),
    }
}

pub fn at(seconds: u64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: i64::try_from(seconds).unwrap(), nanos: 0 }
}

/// The fingerprint of the first certificate of a PEM file.
pub fn fingerprint(pem: &Path) -> String {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;
    let der = CertificateDer::from_pem_file(pem).unwrap();
    hex(&der)
}

/// SHA-256, hex.
pub fn hex(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reason of an error, and the field that it names.
pub fn told(status: &tonic::Status) -> (String, String) {
    let details = tonic_types::StatusExt::get_error_details(status);
    let field = details.bad_request().and_then(|bad| bad.field_violations.first()).map(|one| one.field.clone());
    (details.error_info().map(|info| info.reason.clone()).unwrap_or_default(), field.unwrap_or_default())
}

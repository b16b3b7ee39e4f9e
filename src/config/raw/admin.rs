//! `admin` and `revocation`, as they are written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `admin`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawAdmin {
    /// Where operators' gRPC over mutual TLS listens: an IP address and a port; port 0 takes a free one.
    #[schemars(extend("x-required" = true))]
    pub listen: Option<String>,
    /// PEM file: the listener's certificate chain, leaf first.
    #[schemars(extend("x-required" = true))]
    pub certificate: Option<String>,
    /// PEM file: the private key of the leaf.
    #[schemars(extend("x-required" = true))]
    pub private_key: Option<String>,
    /// PEM file: the authorities that operators' certificates must chain to. Better none of `server.client_ca`.
    #[schemars(extend("x-required" = true))]
    pub client_ca: Option<String>,
    /// Certificate revocation lists for operators' certificates, as `server.client_crls` for callers'.
    pub client_crls: Vec<String>,
    /// The trust domains whose SPIFFE IDs are taken here; those of `identity` when unset.
    pub trust_domains: Option<Vec<String>>,
    /// Who may call, and what. Nobody else may, so there must be at least one.
    #[schemars(extend("x-required" = true))]
    pub operators: Vec<RawOperator>,
}

/// One of `admin.operators`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawOperator {
    /// The SPIFFE ID in its certificate. Exactly one of `spiffe_id` and `dns`.
    pub spiffe_id: Option<String>,
    /// The only DNS SAN of its certificate, in lower case.
    pub dns: Option<String>,
    /// What people call it, in records: 1 to 64 of `A-Z a-z 0-9 . _ -`, unique.
    #[schemars(extend("x-required" = true))]
    pub name: Option<String>,
    /// The methods it may call, each by name: `RevokeToken`, `RevokeSubject`, `RevokeSession`, `RevokeCertificate`,
    /// `ListRevocations`. There is no word for all of them.
    #[schemars(extend("x-required" = true))]
    pub may: Vec<String>,
}

/// `revocation`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawRevocation {
    /// A file of revocations, one JSON object a line: appended to by the admin listener, watched by every process that
    /// names it. Made when it is not there.
    pub file: Option<String>,
    /// A Redis or Valkey through which replicas tell each other.
    pub redis: Option<RawRedis>,
}

/// `revocation.redis`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawRedis {
    /// `rediss://host:6379` with TLS, `redis://host:6379` without; may name a user (`rediss://gatepost@host`) and a
    /// database (`/1`), but no password.
    #[schemars(extend("x-required" = true))]
    pub url: Option<String>,
    /// A file with the password; line ends after it are not part of it. Read at every connection.
    pub password_file: Option<String>,
    /// PEM file: the authorities of the server; the system's when unset. Goes with `rediss://`.
    pub ca: Option<String>,
    /// PEM file: our certificate chain, when the server wants one. Goes with `private_key` and `rediss://`.
    pub certificate: Option<String>,
    /// PEM file: its key.
    pub private_key: Option<String>,
    /// What the keys there begin with: 1 to 64 of `A-Z a-z 0-9 . _ : -`.
    pub prefix: String,
}

impl Default for RawRedis {
    fn default() -> Self {
        Self {
            url: None,
            password_file: None,
            ca: None,
            certificate: None,
            private_key: None,
            prefix: "gatepost".to_owned(),
        }
    }
}

//! Settings of the admin listener, and of the revocations that are told there.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{CallerName, IdentityConfig, ListenerTls};

/// The admin listener: operators' calls, over mutual TLS with authorities of its own.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Who it is, and whose clients it believes.
    pub tls: ListenerTls,
    /// How certificates become names there.
    pub identity: IdentityConfig,
    /// Who may call, and what. Nobody else may.
    pub operators: Vec<Operator>,
}

/// Somebody, or something, that may call the admin listener.
#[derive(Debug, Clone)]
pub struct Operator {
    /// Who it is.
    pub name: CallerName,
    /// What people call it, in records. Unique.
    pub label: String,
    /// The methods it may call; at least one.
    pub may: BTreeSet<AdminMethod>,
}

/// A method of the admin listener: what a right is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AdminMethod {
    /// Revoke one token.
    RevokeToken,
    /// Revoke everything of a subject that was issued before an instant.
    RevokeSubject,
    /// Revoke a session.
    RevokeSession,
    /// Revoke a caller's certificate.
    RevokeCertificate,
    /// See what is revoked.
    ListRevocations,
}

impl AdminMethod {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::RevokeToken, Self::RevokeSubject, Self::RevokeSession, Self::RevokeCertificate, Self::ListRevocations];

    /// Its name on the wire, which is also that of the right.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RevokeToken => "RevokeToken",
            Self::RevokeSubject => "RevokeSubject",
            Self::RevokeSession => "RevokeSession",
            Self::RevokeCertificate => "RevokeCertificate",
            Self::ListRevocations => "ListRevocations",
        }
    }
}

/// Where revocations live beside memory.
#[derive(Debug, Clone, Default)]
pub struct RevocationConfig {
    /// A file that is appended to, and watched.
    pub file: Option<PathBuf>,
    /// A store that replicas share.
    pub redis: Option<RedisConfig>,
}

/// Redis or Valkey.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The number of the database.
    pub database: i64,
    /// Who logs in; the server's default user when unset.
    pub username: Option<String>,
    /// Holds the password. Read whenever a connection is made.
    pub password_file: Option<PathBuf>,
    /// `rediss://`.
    pub tls: Option<RedisTls>,
    /// What its keys begin with.
    pub prefix: String,
}

/// TLS to the store. Files are read whenever a connection is made.
#[derive(Debug, Clone)]
pub struct RedisTls {
    /// PEM: the server's authorities; the system's when unset.
    pub ca: Option<PathBuf>,
    /// PEM: our certificate chain and its key, when the server wants one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

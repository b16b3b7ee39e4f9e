//! Settings, checked and ready to use. There is no half state: a [`Config`] that exists can be run.
//!
//! [`load`](load::load) reads the YAML file (its shape is `raw.rs`, private), lays environment and flags over it,
//! and reports every problem at once, by file, line and key. Knows nothing of the organs that use it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::entity::{EntityType, EntityUid};
use crate::model::spiffe_id::{SpiffeId, TrustDomain};
use crate::secret::SecretSlice;

mod admin;
mod audit;
pub mod load;
mod patterns;
mod raw;
mod rights;

pub use patterns::{Exemption, Pattern, PatternException, PatternRule, PatternsConfig};
pub use rights::{AttributeGrant, ClientNames, PresentGrant, Share, TenantGrant};

pub use audit::{
    ActionKeeping, AuditConfig, AuditMode, CheckpointConfig, ElasticTarget, Encoding, HttpCredential, KafkaTarget,
    Keeping, KeptValue, OnAuditFailure, OtlpTarget, PseudonymConfig, RedactRule, SinkConfig, SinkFilter, SinkTarget,
    SinkTls, SplunkTarget, SpoolConfig, SyslogTarget, WhenFull,
};

pub use admin::{AdminConfig, AdminMethod, Operator, RedisConfig, RedisTls, RevocationConfig};

/// Everything `gatepost serve` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Listeners and TLS.
    pub server: ServerConfig,
    /// How the chain of a client certificate becomes a name.
    pub identity: IdentityConfig,
    /// Who may ask, about what. Nobody else may.
    pub callers: Vec<EnrolledCaller>,
    /// Whose tokens are accepted. May be empty: then no token is.
    pub issuers: Vec<TrustedIssuer>,
    /// The API keys that are accepted; `None`: none is.
    pub api_keys: Option<ApiKeyConfig>,
    /// The bundle and how strictly it is read.
    pub policies: PolicyConfig,
    /// The decision cache and the verified-token cache.
    pub cache: CacheConfig,
    /// Where records go.
    pub audit: AuditConfig,
    /// Logs, traces, metrics.
    pub telemetry: TelemetryConfig,
    /// Every limit on what others send.
    pub limits: Limits,
    /// Where operators call; `None`: nothing listens.
    pub admin: Option<AdminConfig>,
    /// Where revocations live beside memory.
    pub revocation: RevocationConfig,
}

/// Listeners and TLS.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// gRPC over mTLS. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// `/livez /readyz /metrics`, plain HTTP.
    pub ops_listen: SocketAddr,
    /// Whether gRPC reflection answers. Off by default.
    pub reflection: bool,
    /// Who the listener is, and whose clients it believes.
    pub tls: ListenerIdentity,
    /// How long a drain may take before what is left is cut off. 10 s when unset.
    pub drain_timeout: Duration,
    /// How long readiness is already false while new calls are still taken, so that load balancers notice. 0 when unset.
    pub drain_delay: Duration,
}

/// Where a listener has its identity, and the authorities of its clients, from.
#[derive(Debug, Clone)]
pub enum ListenerIdentity {
    /// Files.
    Files(ListenerTls),
    /// The SPIFFE Workload API.
    WorkloadApi(WorkloadApi),
}

impl ListenerIdentity {
    /// How often files are looked at even when no change was announced.
    #[must_use]
    pub fn reload_interval(&self) -> Duration {
        match self {
            Self::Files(files) => files.reload_interval,
            Self::WorkloadApi(agent) => agent.reload_interval,
        }
    }
}

/// The SPIFFE Workload API as the source of an identity.
#[derive(Debug, Clone)]
pub struct WorkloadApi {
    /// `unix:///run/spire/agent.sock`.
    pub socket: String,
    /// How long the start waits for the first identity. 30 s when unset.
    pub start_timeout: Duration,
    /// The trust domains whose federated bundles are taken.
    pub trust_domains: BTreeSet<TrustDomain>,
    /// Which certificates were taken back.
    pub revocation: Revocation,
    /// How often lists are looked at even when no change was announced. 30 s when unset.
    pub reload_interval: Duration,
}

/// Which certificates were taken back.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// Files, and folders of files, of certificate revocation lists; with none, nothing is asked.
    pub lists: Vec<PathBuf>,
    /// Of all lists together. 8 MiB when unset.
    pub max_bytes: usize,
}

impl Default for Revocation {
    fn default() -> Self {
        Self { lists: Vec::new(), max_bytes: Limits::default().crl_bytes }
    }
}

/// Who a listener is by its files, and whose clients it believes.
#[derive(Debug, Clone)]
pub struct ListenerTls {
    /// PEM: the server's certificate chain, leaf first.
    pub certificate: PathBuf,
    /// PEM: the leaf's private key.
    pub private_key: PathBuf,
    /// PEM: the authorities that client certificates must chain to, unless their trust domain has its own.
    pub client_ca: PathBuf,
    /// PEM: the authorities of these trust domains, which alone vouch for them, and for nothing else.
    pub domain_ca: BTreeMap<TrustDomain, PathBuf>,
    /// The names that the certificate must be for; without any, whatever it is for is taken.
    pub names: Vec<String>,
    /// Which certificates were taken back.
    pub revocation: Revocation,
    /// How often files are looked at even when no change was announced. 30 s when unset.
    pub reload_interval: Duration,
}

/// How the chain of a client certificate becomes a name.
#[derive(Debug, Clone)]
pub struct IdentityConfig {
    /// The trust domains whose SPIFFE IDs are taken; at least one unless `dns_san` is on.
    pub trust_domains: BTreeSet<TrustDomain>,
    /// Whether a certificate without a SPIFFE ID may be named by its only DNS SAN.
    pub dns_san: bool,
}

/// How a caller is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CallerName {
    /// By its SPIFFE ID.
    Spiffe(SpiffeId),
    /// By its only DNS SAN (lower case, no wildcard).
    Dns(String),
}

impl std::fmt::Display for CallerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Spiffe(id) => id.fmt(f),
            Self::Dns(name) => write!(f, "dns:{name}"),
        }
    }
}

/// A workload that may ask, and about what.
#[derive(Debug, Clone)]
pub struct EnrolledCaller {
    /// Who it is.
    pub name: CallerName,
    /// What people call it, in records and metrics. Unique.
    pub label: String,
    /// The resource types it may ask about.
    pub resource_types: TypeGrant,
    /// The actions it may ask about.
    pub actions: Vec<ActionPattern>,
    /// The types of principals it may vouch for without a token.
    pub assert_subjects: TypeGrant,
    /// The attributes that it may supply.
    pub supply_attributes: AttributeGrant,
    /// The entity types whose parents it may supply.
    pub supply_parents: TypeGrant,
    /// Whether answers tell it the determining policies.
    pub sees_policies: bool,
    /// The OAuth clients that this service is. No other caller is one of them.
    pub clients: ClientNames,
    /// Whose tokens it may present besides.
    pub presents_for: PresentGrant,
    /// The tenants it may speak of and ask for, where `policies.tenant_type` says what a tenant is.
    pub tenants: TenantGrant,
    /// Items of one of its batches at most; `None`: as many as anybody's.
    pub batch_items: Option<usize>,
    /// Its share of `limits.concurrent_decisions`.
    pub capacity: Share,
    /// Whether it may ask why.
    pub explain: bool,
    /// Whether it may present API keys that machines sent it.
    pub presents_api_keys: bool,
}

/// Some entity types, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypeGrant {
    /// These; possibly none.
    Only(BTreeSet<EntityType>),
    /// `"*"`.
    All,
}

impl TypeGrant {
    /// Whether `entity_type` is granted.
    #[must_use]
    pub fn covers(&self, entity_type: &EntityType) -> bool {
        match self {
            Self::Only(types) => types.contains(entity_type),
            Self::All => true,
        }
    }
}

/// An action's whole id (`Order.read`), everything before a dot (`Order.*`), or all (`*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionPattern {
    /// Exactly this action.
    Exact(String),
    /// Every action that starts with this text, the dot included.
    Prefix(String),
    /// Every action.
    All,
}

impl ActionPattern {
    /// Whether `action` (without its field part) matches.
    #[must_use]
    pub fn covers(&self, action: &str) -> bool {
        match self {
            Self::Exact(name) => name == action,
            Self::Prefix(prefix) => action.starts_with(prefix.as_str()),
            Self::All => true,
        }
    }
}

/// A signature algorithm for tokens. `none` and its spellings do not exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TokenAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256.
    Es256,
    /// ECDSA on P-384.
    Es384,
    /// Ed25519.
    EdDsa,
    /// HMAC with SHA-256: only with a shared key, never beside public keys.
    Hs256,
}

impl TokenAlgorithm {
    /// The JWA name (RFC 7518 section 3.1, RFC 8037).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
            Self::Hs256 => "HS256",
        }
    }
}

/// An issuer whose tokens Gatepost accepts, checked and ready to use. There is no such thing as an issuer without an
/// audience: an empty list would accept tokens meant for other services.
#[derive(Debug, Clone)]
pub struct TrustedIssuer {
    /// The exact text of `iss`.
    pub issuer: String,
    /// At least one, never empty text; a token must name one of them in `aud`.
    pub audiences: Vec<String>,
    /// At least one. `[Hs256]` alone with [`KeySource::Shared`]; asymmetric with every other source.
    pub algorithms: Vec<TokenAlgorithm>,
    /// Where its keys are.
    pub keys: KeySource,
    /// The accepted values of the `typ` header, lower case, where an empty text stands for a token without one; `None`
    /// accepts any, and none at all.
    pub token_types: Option<BTreeSet<String>>,
    /// How far `exp` and `nbf` may be off. At most 60 s; 30 s when unset. (`iat` may lie 60 s ahead, whatever this says.)
    pub clock_skew: Duration,
    /// The longest `exp - iat`. At most 24 h; 15 min when unset.
    pub max_lifetime: Duration,
    /// Whether a token must demand a proof of whoever presents it (`cnf`).
    pub require_sender_constrained: bool,
    /// How claims become the principal.
    pub mapping: ClaimMapping,
    /// Whether a token must have a `jti`, so that it can be revoked by it.
    pub require_token_id: bool,
    /// Whom to ask about tokens that are no JWTs; `None`: such tokens are refused.
    pub introspection: Option<IntrospectionConfig>,
    /// What becomes of a token that points to a status list.
    pub status_lists: StatusLists,
}

/// Where an issuer's keys are.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// Nowhere: its tokens are opaque, and none of its JWTs is accepted.
    Nowhere,
    /// A JWKS file, read again when it changes.
    File(PathBuf),
    /// A JWKS behind https, from the configuration alone.
    Url {
        /// `https://..`.
        url: url::Url,
        /// PEM: the authorities for that host; the system's when unset.
        ca: Option<PathBuf>,
        /// Whether the host may be at a private or loopback address.
        allow_private_addresses: bool,
    },
    /// A JWKS to which a discovery document leads (OpenID Connect Discovery 1.0, RFC 8414).
    Discovery {
        /// Of the document: `https://..`.
        url: url::Url,
        /// Where `jwks_uri` may lead besides the document's own host and port.
        hosts: Vec<KeyHost>,
        /// PEM: the authorities for those hosts; the system's when unset.
        ca: Option<PathBuf>,
        /// Whether those hosts may be at private or loopback addresses.
        allow_private_addresses: bool,
    },
    /// A shared HS256 key of at least 256 bits, from a file.
    Shared {
        /// The key, as bytes.
        secret: SecretSlice<u8>,
        /// The only `kid` that a token may name; without one, a token that names any key names another.
        id: Option<String>,
    },
}

/// A host and a port that keys may be fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHost {
    host: url::Host<String>,
    port: u16,
}

impl KeyHost {
    /// Takes `keys.example.org` (port 443), `keys.example.org:8443` or an address in place of the name, and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.contains(['/', '\\', '?', '#', '@', '%']) || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return None;
        }
        Self::of(&url::Url::parse(&format!("https://{text}")).ok()?)
    }

    /// Without the port.
    #[must_use]
    pub fn host(&self) -> &url::Host {
        &self.host
    }

    /// Where `url` leads; nowhere when it has no host.
    #[must_use]
    pub fn of(url: &url::Url) -> Option<Self> {
        Some(Self { host: url.host()?.to_owned(), port: url.port_or_known_default()? })
    }
}

/// Whom to ask about an issuer's opaque tokens (RFC 7662).
#[derive(Debug, Clone)]
pub struct IntrospectionConfig {
    /// `https://..`.
    pub url: url::Url,
    /// Who we are at the authorization server.
    pub client_id: String,
    /// How we prove it.
    pub authentication: ClientAuthentication,
    /// PEM: the authorities for that host; the system's when unset.
    pub ca: Option<PathBuf>,
    /// Whether the host may be at a private or loopback address.
    pub allow_private_addresses: bool,
    /// What this issuer's opaque tokens start with; empty only where one issuer alone has introspection. None is the
    /// beginning of another's.
    pub token_prefix: String,
    /// How long an answer is kept at most, and never past `exp`. 30 s when unset, at most 5 m.
    pub max_cache: Duration,
    /// Whether the answer must name us in `aud`, which RFC 7662 leaves open. On when unset.
    pub require_audience: bool,
}

/// How a client proves itself to an authorization server. Files are read again when they change.
#[derive(Debug, Clone)]
pub enum ClientAuthentication {
    /// `client_secret_basic` (RFC 6749 section 2.3.1): the file holds the secret, and one line end that is not part of it.
    SecretFile(PathBuf),
    /// Mutual TLS (RFC 8705 section 2).
    Certificate {
        /// PEM: the chain, leaf first.
        certificate: PathBuf,
        /// PEM: the leaf's key.
        private_key: PathBuf,
    },
}

/// What becomes of a token whose `status` claim points to a status list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusLists {
    /// It counts if one of these lists says so; with none, it never does.
    Only {
        /// The lists that may be fetched, and no others.
        lists: Vec<StatusListUrl>,
        /// PEM: the authorities for their hosts; the system's when unset.
        ca: Option<PathBuf>,
        /// Whether their hosts may be at private or loopback addresses.
        allow_private_addresses: bool,
    },
    /// It counts whatever its list says.
    Ignore,
}

impl Default for StatusLists {
    fn default() -> Self {
        Self::Only { lists: Vec::new(), ca: None, allow_private_addresses: false }
    }
}

/// Where a status list is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusListUrl {
    /// As it is written here, in the token's `uri` and in the list's own `sub`.
    pub text: String,
    /// The same, parsed.
    pub url: url::Url,
}

/// The API keys that are accepted.
#[derive(Debug, Clone)]
pub struct ApiKeyConfig {
    /// Their file, read again when it changes.
    pub file: PathBuf,
    /// The type of the principals that keys make; the id is a key's owner.
    pub principal_type: EntityType,
}

/// What stands for `iss` in everything that says by whom an API key's principal is vouched for. No issuer may have it.
pub const API_KEYS_ISSUER: &str = "urn:gatepost:api-keys";

/// How claims become the principal entity.
#[derive(Debug, Clone)]
pub struct ClaimMapping {
    /// The principal's type.
    pub principal_type: EntityType,
    /// The claim that holds its id; `sub` when unset. A dot goes into an object.
    pub id_claim: String,
    /// Attribute name, and the claim it comes from.
    pub attributes: Vec<AttributeMapping>,
    /// Claims that hold the names of roles or groups.
    pub parents: Vec<ParentMapping>,
}

/// One attribute from one claim.
#[derive(Debug, Clone)]
pub struct AttributeMapping {
    /// The attribute's name.
    pub attribute: String,
    /// The claim, with dots into objects.
    pub claim: String,
    /// When set, the claim's text is the id of an entity of this type.
    pub entity_type: Option<EntityType>,
}

/// Parents from one claim: text, or a list of texts.
#[derive(Debug, Clone)]
pub struct ParentMapping {
    /// The claim, with dots into objects.
    pub claim: String,
    /// The parents' type.
    pub entity_type: EntityType,
}

/// The bundle and how strictly it is read.
#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// The folder.
    pub directory: PathBuf,
    /// How many steps of entity data a policy may take: 1 (`principal.x`) or 2 (`resource.owner.x`).
    pub validation_level: u32,
    /// The entity type of a calling workload as principal, and of `context.caller`.
    pub caller_type: EntityType,
    /// The entity that stands for nobody in particular.
    pub anonymous: EntityUid,
    /// The entity type of tenants, when callers are held to theirs.
    pub tenant_type: Option<EntityType>,
    /// How often the folder is looked at even when no change was announced. 10 s when unset.
    pub reload_interval: Duration,
}

/// The decision cache and the verified-token cache.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Rulings kept at most; 0 switches the cache off.
    pub decisions: u64,
    /// And in bytes, whichever is reached first.
    pub decision_bytes: u64,
    /// How long a ruling is kept at most. 30 s when unset.
    pub decision_ttl: Duration,
    /// Questions kept at most that are asked again byte for byte, in bytes; 0: none.
    pub question_bytes: u64,
    /// Verified tokens kept at most; 0 switches the cache off.
    pub tokens: u64,
    /// And in bytes, whichever is reached first.
    pub token_bytes: u64,
    /// How long callers may reuse an answer at most; 0 (unset): not at all.
    pub caller_reuse: Duration,
}

/// Logs, traces, metrics.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// JSON for machines, text for people.
    pub log_format: LogFormat,
    /// A `tracing` filter: `info`, `gatepost=debug,warn`.
    pub log_filter: String,
    /// OTLP over gRPC; `None`: nothing is exported.
    pub otlp: Option<OtlpConfig>,
}

/// How logs look. They go to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One object a line.
    Json,
    /// For people.
    Human,
}

/// Where traces and metrics are exported.
#[derive(Debug, Clone)]
pub struct OtlpConfig {
    /// `http://collector:4317`.
    pub endpoint: url::Url,
    /// Share of traces that are sampled when the caller did not decide: 0 to 1.
    pub sample_ratio: f64,
    /// How often metrics are exported. 30 s when unset.
    pub interval: Duration,
}

/// Every limit on what others send. Each has a name, a default and a test at the limit and one past it.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A compact token, bytes.
    pub token_bytes: usize,
    /// Nesting of a token's header and claims.
    pub token_json_depth: usize,
    /// Claims of a token.
    pub token_claims: usize,
    /// Values of `aud`.
    pub token_audiences: usize,
    /// Nesting of `act` (RFC 8693).
    pub token_actor_depth: usize,
    /// A CheckRequest, bytes.
    pub request_bytes: usize,
    /// A BatchCheckRequest, bytes.
    pub batch_bytes: usize,
    /// Items of a batch.
    pub batch_items: usize,
    /// Questions of one CheckStream that are not answered yet.
    pub stream_window: usize,
    /// Entities that one CheckStream remembers.
    pub stream_entities: usize,
    /// The same, encoded bytes.
    pub stream_entity_bytes: usize,
    /// How long a CheckStream may be without a question.
    pub stream_idle_timeout: Duration,
    /// CheckStreams open at once, of all callers together.
    pub open_streams: usize,
    /// The context, encoded bytes.
    pub context_bytes: usize,
    /// The context's keys, nested ones included.
    pub context_keys: usize,
    /// An id, bytes.
    pub id_bytes: usize,
    /// A string attribute, bytes.
    pub string_bytes: usize,
    /// Elements of a set.
    pub set_elements: usize,
    /// Nesting of attribute values.
    pub value_depth: usize,
    /// Attributes of one entity, nested ones included.
    pub entity_attributes: usize,
    /// Entities of a request.
    pub entities: usize,
    /// Ancestors of one entity.
    pub ancestors: usize,
    /// Steps from an entity up to its farthest ancestor.
    pub ancestor_depth: usize,
    /// Field paths of a question.
    pub field_paths: usize,
    /// gRPC metadata of a call, bytes.
    pub header_bytes: u32,
    /// Calls at once on one connection.
    pub streams_per_connection: u32,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one caller.
    pub connections_per_caller: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Handshakes at once.
    pub handshakes: usize,
    /// The deadline of a call that names none.
    pub default_deadline: Duration,
    /// The longest deadline that is honoured.
    pub max_deadline: Duration,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How old a connection may get, give or take the jitter, before it is asked to go.
    pub connection_age: Duration,
    /// Percent of the age, shorter or longer.
    pub connection_age_jitter: u32,
    /// How long the calls of a connection that was asked to go may take.
    pub connection_age_grace: Duration,
    /// Decisions worked on at once; past it calls are shed.
    pub concurrent_decisions: usize,
    /// How late a runtime may be for a tenth of a second, before calls are shed.
    pub overload_target: Duration,
    /// Policies of a bundle.
    pub policies: usize,
    /// One file of a bundle, bytes.
    pub policy_file_bytes: usize,
    /// A bundle, bytes.
    pub bundle_bytes: usize,
    /// Nesting of a policy's expression.
    pub policy_depth: usize,
    /// A JWKS document, bytes.
    pub jwks_bytes: usize,
    /// Keys of a JWKS document.
    pub jwks_keys: usize,
    /// How long fetching a JWKS may take.
    pub jwks_timeout: Duration,
    /// The shortest time between two fetches of one JWKS.
    pub jwks_refresh_floor: Duration,
    /// How often a JWKS is fetched without a cause.
    pub jwks_refresh_interval: Duration,
    /// How long the last good keys are used while fetching fails.
    pub jwks_max_stale: Duration,
    /// The answer to an introspection, bytes.
    pub introspection_bytes: usize,
    /// How long an introspection may take.
    pub introspection_timeout: Duration,
    /// Introspections under way at once, of all issuers together; past it tokens are denied.
    pub introspection_flights: usize,
    /// A file of API keys, bytes.
    pub api_key_file_bytes: usize,
    /// API keys of a file.
    pub api_keys: usize,
    /// A status list as it is sent, bytes.
    pub status_list_bytes: usize,
    /// A status list once it is inflated, bytes.
    pub status_list_inflated_bytes: usize,
    /// How long fetching a status list may take.
    pub status_list_timeout: Duration,
    /// The shortest time between two fetches of one status list.
    pub status_list_refresh_floor: Duration,
    /// How often a status list is fetched that does not say how long it may be kept.
    pub status_list_refresh_interval: Duration,
    /// How long a status list is believed that does not say when it ends.
    pub status_list_max_age: Duration,
    /// One audit record, bytes.
    pub audit_record_bytes: usize,
    /// Revocations in force.
    pub revocations: usize,
    /// All certificate revocation lists together, bytes.
    pub crl_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const KIB: usize = 1024;
        const MIB: usize = 1024 * KIB;
        Self {
            token_bytes: 16 * KIB,
            token_json_depth: 32,
            token_claims: 256,
            token_audiences: 16,
            token_actor_depth: 8,
            request_bytes: 256 * KIB,
            batch_bytes: MIB,
            batch_items: 100,
            stream_window: 64,
            stream_entities: 1000,
            stream_entity_bytes: 256 * KIB,
            stream_idle_timeout: Duration::from_secs(60),
            open_streams: 512,
            context_bytes: 64 * KIB,
            context_keys: 256,
            id_bytes: 1024,
            string_bytes: 4 * KIB,
            set_elements: 1000,
            value_depth: 32,
            entity_attributes: 256,
            entities: 500,
            ancestors: 256,
            ancestor_depth: 32,
            field_paths: 256,
            header_bytes: 16 * 1024,
            streams_per_connection: 100,
            connections: 2048,
            connections_per_caller: 256,
            handshake_timeout: Duration::from_secs(5),
            handshakes: 64,
            default_deadline: Duration::from_millis(200),
            max_deadline: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(300),
            connection_age: Duration::from_secs(600),
            connection_age_jitter: 10,
            connection_age_grace: Duration::from_secs(10),
            concurrent_decisions: 1024,
            overload_target: Duration::from_millis(20),
            policies: 10_000,
            policy_file_bytes: MIB,
            bundle_bytes: 16 * MIB,
            policy_depth: 64,
            jwks_bytes: 256 * KIB,
            jwks_keys: 64,
            jwks_timeout: Duration::from_secs(2),
            jwks_refresh_floor: Duration::from_secs(10),
            // With the jitter and the time-out below a minute: a key that is published for a minute is known before it
            // signs.
            jwks_refresh_interval: Duration::from_secs(45),
            jwks_max_stale: Duration::from_secs(24 * 3600),
            introspection_bytes: 64 * KIB,
            introspection_timeout: Duration::from_secs(2),
            introspection_flights: 64,
            api_key_file_bytes: 8 * MIB,
            api_keys: 10_000,
            status_list_bytes: MIB,
            status_list_inflated_bytes: 4 * MIB,
            status_list_timeout: Duration::from_secs(2),
            status_list_refresh_floor: Duration::from_secs(10),
            status_list_refresh_interval: Duration::from_secs(60),
            status_list_max_age: Duration::from_secs(3600),
            audit_record_bytes: 64 * KIB,
            revocations: 100_000,
            crl_bytes: 8 * MIB,
        }
    }
}

//! The configuration file as it is written: one struct a section, every value still text, number or list.
//!
//! The comments and the `Default`s here are what `docs/reference/configuration.md` says, word for word. Whether a
//! value makes sense is `load`'s business; nobody else sees these types.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::Limits;
use super::load::values::{duration_text, size_text};

pub(super) mod admin;
pub(super) mod audit;
pub(super) mod patterns;

/// The whole file.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Gatepost configuration")]
pub(super) struct RawConfig {
    /// Listeners and TLS.
    pub server: RawServer,
    /// How the chain of a client certificate becomes a name.
    pub identity: RawIdentity,
    /// Who may ask, about what. Nobody else may, so there must be at least one.
    #[schemars(extend("x-required" = true))]
    pub callers: Vec<RawCaller>,
    /// Whose tokens are accepted. With none, no token is.
    pub issuers: Vec<RawIssuer>,
    /// The API keys that are accepted. Without it none is, whoever presents it.
    pub api_keys: Option<RawApiKeys>,
    /// The bundle and how strictly it is read.
    pub policies: RawPolicies,
    /// The decision cache and the verified-token cache.
    pub cache: RawCache,
    /// Where records go, and what may be in them.
    pub audit: audit::RawAudit,
    /// Logs, traces and metrics.
    pub telemetry: RawTelemetry,
    /// Every limit on what others send. Past one, the caller gets a clear error that names it.
    pub limits: RawLimits,
    /// Where operators revoke what should count no longer. Without this section nothing listens.
    pub admin: Option<admin::RawAdmin>,
    /// Where revocations live beside memory, so that they outlast a restart and reach other replicas.
    pub revocation: admin::RawRevocation,
}

/// `server`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawServer {
    /// Where gRPC over mutual TLS listens: an IP address and a port; port 0 takes a free one.
    pub listen: String,
    /// Where `/livez`, `/readyz` and `/metrics` listen, in plain HTTP.
    pub ops_listen: String,
    /// Whether gRPC reflection answers.
    pub reflection: bool,
    /// PEM file: the server's certificate chain, leaf first. This, `private_key` and `client_ca`, or else `workload_api`.
    pub certificate: Option<String>,
    /// PEM file: the private key of the leaf.
    pub private_key: Option<String>,
    /// PEM file: the authorities that client certificates must chain to, unless their trust domain has a `ca` of its own.
    pub client_ca: Option<String>,
    /// The names by which callers reach the server, each a DNS name or an address. With any, a certificate that is not for
    /// all of them is refused, at the start and when it is renewed. Goes with `certificate`.
    pub names: Vec<String>,
    /// The SPIFFE Workload API, as the source of certificate, key and authorities in place of files:
    /// `unix:///run/spire/agent.sock`.
    pub workload_api: Option<String>,
    /// How long the start waits for the first identity from `workload_api`; 1s to 10m.
    pub workload_api_timeout: RawDuration,
    /// Certificate revocation lists: files (PEM or DER), and folders whose `*.pem`, `*.crl` and `*.der` are read. With any,
    /// every certificate of a client's chain but the authority's must be on record as not revoked, by a list in date.
    pub client_crls: Vec<String>,
    /// How often these files are looked at even when no change was announced; 1s to 1h.
    pub reload_interval: RawDuration,
    /// How long a drain may take before what is left is cut off; 100ms to 10m.
    pub drain_timeout: RawDuration,
    /// How long readiness is already false while new calls are still taken, so that load balancers notice: behind one,
    /// longer than it takes to look; at most 5m.
    pub drain_delay: RawDuration,
}

impl Default for RawServer {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8443".to_owned(),
            ops_listen: "127.0.0.1:9443".to_owned(),
            reflection: false,
            certificate: None,
            private_key: None,
            client_ca: None,
            names: Vec::new(),
            workload_api: None,
            workload_api_timeout: "30s".into(),
            client_crls: Vec::new(),
            reload_interval: "30s".into(),
            drain_timeout: "10s".into(),
            drain_delay: "0s".into(),
        }
    }
}

/// `identity`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawIdentity {
    /// The trust domains whose SPIFFE IDs are taken; at least one unless `dns_san` is on. A name, or a name with
    /// authorities of its own.
    pub trust_domains: Vec<RawTrustDomain>,
    /// Whether a certificate without a SPIFFE ID may be named by its only DNS SAN.
    pub dns_san: bool,
}

/// A trust domain's name, or its name and its authorities.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum RawTrustDomain {
    /// The part after `spiffe://`. `server.client_ca` vouches for its workloads.
    Name(String),
    /// With authorities of its own.
    Own(RawOwnTrustDomain),
}

/// A trust domain with authorities of its own.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawOwnTrustDomain {
    /// The part after `spiffe://`.
    #[schemars(extend("x-required" = true))]
    pub name: Option<String>,
    /// PEM file: the authorities that alone vouch for its workloads, and for nobody else's; `server.client_ca` when unset.
    pub ca: Option<String>,
}

/// One of `callers`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawCaller {
    /// The SPIFFE ID in its certificate. Exactly one of `spiffe_id` and `dns`.
    pub spiffe_id: Option<String>,
    /// The only DNS SAN of its certificate, in lower case; needs `identity.dns_san`.
    pub dns: Option<String>,
    /// What people call it, in records and metrics: 1 to 64 of `A-Z a-z 0-9 . _ -`, unique.
    #[schemars(extend("x-required" = true))]
    pub name: Option<String>,
    /// The resource types it may ask about; at least one.
    #[schemars(extend("x-required" = true))]
    pub resource_types: RawGrant,
    /// The actions it may ask about: whole ids (`Order.read`) or everything before a dot (`Order.*`); at least one.
    #[schemars(extend("x-required" = true))]
    pub actions: RawGrant,
    /// The types of principals it may vouch for without a token.
    pub assert_subjects: RawGrant,
    /// The attributes it may supply: all of a type (`Order`), or one (`Order.status`).
    pub supply_attributes: RawGrant,
    /// The entity types whose parents it may supply.
    pub supply_parents: RawGrant,
    /// Whether answers tell it the determining policies.
    pub sees_policies: bool,
    /// The OAuth clients that this service is: what was issued to them is its own to present. No two callers are one client.
    pub clients: Vec<RawClient>,
    /// The clients and actors whose tokens it may present besides. `*` is everybody's, and those that name no client.
    pub presents_for: RawPresents,
    /// The tenants it may speak of and ask for, by id. Counts where `policies.tenant_type` is set.
    pub tenants: RawGrant,
    /// Items of one of its batches; the smaller of this and `limits.batch_items` counts. 1 to 10000.
    pub batch_items: Option<u64>,
    /// Its share of `limits.concurrent_decisions`: past it, its calls are shed and others go on. `1%` to `100%`.
    pub capacity: RawShare,
    /// Whether it may ask why (`Explain`).
    pub explain: bool,
    /// Whether it may present API keys that machines sent it.
    pub presents_api_keys: bool,
}

impl Default for RawCaller {
    fn default() -> Self {
        let nothing = || RawGrant::Only(Vec::new());
        Self {
            spiffe_id: None,
            dns: None,
            name: None,
            resource_types: nothing(),
            actions: nothing(),
            assert_subjects: nothing(),
            supply_attributes: nothing(),
            supply_parents: nothing(),
            sees_policies: false,
            clients: Vec::new(),
            presents_for: RawPresents::Only(Vec::new()),
            tenants: nothing(),
            batch_items: None,
            capacity: RawShare("100%".to_owned()),
            explain: false,
            presents_api_keys: false,
        }
    }
}

/// One of `callers[].clients`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawClient {
    /// The issuer that knows it, as in `issuers[].issuer`. May be left out where there is one issuer only.
    pub issuer: Option<String>,
    /// Its `client_id` there.
    #[schemars(extend("x-required" = true))]
    pub id: Option<String>,
}

/// One of `callers[].presents_for`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPresented {
    /// The issuer that knows it, as in `issuers[].issuer`. May be left out where there is one issuer only.
    pub issuer: Option<String>,
    /// The `client_id` (or `azp`) that a token was issued to, or the `act.sub` that acts for its subject.
    #[schemars(extend("x-required" = true))]
    pub client: Option<String>,
}

/// One of `issuers`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawIssuer {
    /// The exact text of a token's `iss`.
    #[schemars(extend("x-required" = true))]
    pub issuer: Option<String>,
    /// A token must name one of these in `aud`; at least one.
    #[schemars(extend("x-required" = true))]
    pub audiences: Vec<String>,
    /// The accepted signature algorithms. `[RS256, PS256, ES256, EdDSA]` when unset; with `shared_key_file` it is
    /// `[HS256]`, and nothing else can be set.
    pub algorithms: Option<Vec<String>>,
    /// A JWKS file, read again when it changes. Exactly one of `jwks_file`, `jwks_url`, `discovery_url` and
    /// `shared_key_file`; none of them only beside `introspection`, and then no JWT of this issuer is accepted.
    pub jwks_file: Option<String>,
    /// An `https` URL of a JWKS, fetched, cached and refreshed.
    pub jwks_url: Option<String>,
    /// An `https` URL of a discovery document, `https://idp.example.org/.well-known/openid-configuration`, whose
    /// `jwks_uri` leads to the JWKS. Its `issuer` has to be the one above.
    pub discovery_url: Option<String>,
    /// Hosts where `jwks_uri` may lead besides the host and port of `discovery_url`: `keys.example.org`, which means port
    /// 443, or `keys.example.org:8443`.
    pub jwks_hosts: Vec<String>,
    /// A file with a shared HS256 key of at least 32 bytes; one line end after it is not part of the key.
    pub shared_key_file: Option<String>,
    /// The `kid` of the shared key. A token may name this one or none; when unset, none.
    pub shared_key_id: Option<String>,
    /// PEM file: the authorities for the hosts of `jwks_url`, `discovery_url` and `jwks_hosts`; the system's when unset.
    pub jwks_ca: Option<String>,
    /// Whether the hosts of `jwks_url`, `discovery_url` and `jwks_hosts` may be at private or loopback addresses.
    pub allow_private_addresses: bool,
    /// The accepted values of a token's `typ` header, without regard to case; an empty text accepts a token without `typ`,
    /// `any` accepts every one, and none at all.
    pub token_types: RawTokenTypes,
    /// How far `exp`, `nbf` and `iat` may be off; at most 60s.
    pub clock_skew: RawDuration,
    /// The longest time from `iat` to `exp`; 1s to 24h.
    pub max_lifetime: RawDuration,
    /// Whether a token must be bound to its presenter's certificate (`cnf`, RFC 8705). One that is bound always has to fit.
    pub require_sender_constrained: bool,
    /// How claims become the principal.
    pub principal: RawPrincipal,
    /// Whether a token must have a `jti`. One without can't be revoked by its id, only with its subject or session.
    pub require_token_id: bool,
    /// Whom to ask about tokens that are no JWTs (RFC 7662). Without it such tokens are refused.
    pub introspection: Option<RawIntrospection>,
    /// The `https` URLs of this issuer's token status lists, exactly as its tokens name them; `jwks_ca` and
    /// `allow_private_addresses` hold for them too. Nothing else is ever fetched, and a token that points anywhere else
    /// is refused; `ignore`: what a token points to does not matter.
    pub status_lists: RawStatusLists,
}

impl Default for RawIssuer {
    fn default() -> Self {
        Self {
            issuer: None,
            audiences: Vec::new(),
            algorithms: None,
            jwks_file: None,
            jwks_url: None,
            discovery_url: None,
            jwks_hosts: Vec::new(),
            shared_key_file: None,
            shared_key_id: None,
            jwks_ca: None,
            allow_private_addresses: false,
            token_types: RawTokenTypes::These(["at+jwt", "application/at+jwt", "jwt"].map(str::to_owned).to_vec()),
            clock_skew: "30s".into(),
            max_lifetime: "15m".into(),
            require_sender_constrained: false,
            principal: RawPrincipal::default(),
            require_token_id: false,
            introspection: None,
            status_lists: RawStatusLists::These(Vec::new()),
        }
    }
}

/// `issuers[].introspection`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawIntrospection {
    /// The `https` URL that is asked.
    #[schemars(extend("x-required" = true))]
    pub url: Option<String>,
    /// Who Gatepost is at the authorization server.
    #[schemars(extend("x-required" = true))]
    pub client_id: Option<String>,
    /// A file with the client's secret; one line end after it is not part of it. Either this, or `client_certificate`
    /// with `client_key`. Read again when it changes.
    pub client_secret_file: Option<String>,
    /// PEM file: the certificate chain that Gatepost shows to the authorization server (RFC 8705 section 2), leaf first.
    pub client_certificate: Option<String>,
    /// PEM file: the private key of `client_certificate`.
    pub client_key: Option<String>,
    /// PEM file: the authorities for the host of `url`; the system's when unset.
    pub ca: Option<String>,
    /// Whether the host of `url` may be at a private or loopback address.
    pub allow_private_addresses: bool,
    /// What this issuer's opaque tokens start with. Needed where several issuers have introspection: no prefix may be
    /// the beginning of another.
    pub token_prefix: String,
    /// How long it is kept at most that a token is active, and never past `exp`; `0s` asks every time; at most 5m. That
    /// one is not active is kept for 3s.
    pub max_cache: RawDuration,
    /// Whether the answer must name one of `audiences` in `aud`, which RFC 7662 leaves open.
    pub require_audience: bool,
}

impl Default for RawIntrospection {
    fn default() -> Self {
        Self {
            url: None,
            client_id: None,
            client_secret_file: None,
            client_certificate: None,
            client_key: None,
            ca: None,
            allow_private_addresses: false,
            token_prefix: String::new(),
            max_cache: "30s".into(),
            require_audience: true,
        }
    }
}

/// `api_keys`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawApiKeys {
    /// Their file, as `gatepost apikey` writes it; read again when it changes.
    #[schemars(extend("x-required" = true))]
    pub file: Option<String>,
    /// The entity type of the principals that keys make; the id is a key's owner.
    pub principal_type: String,
}

impl Default for RawApiKeys {
    fn default() -> Self {
        Self { file: None, principal_type: "ApiClient".to_owned() }
    }
}

/// `issuers[].principal`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPrincipal {
    /// The principal's entity type.
    #[serde(rename = "type")]
    #[schemars(extend("x-required" = true))]
    pub entity_type: Option<String>,
    /// The claim that holds its id; a dot goes into an object.
    pub id: String,
    /// Attributes of the principal, and the claim each comes from.
    pub attributes: BTreeMap<String, RawAttribute>,
    /// Claims that hold the names of roles or groups: a text or a list of texts.
    pub parents: Vec<RawParent>,
    /// Whether the type may also be that of another issuer's principals, or of calling services: then whoever chooses ids
    /// here can be taken for one of theirs. Each issuer that shares a type has to say so.
    pub shared_type: bool,
}

impl Default for RawPrincipal {
    fn default() -> Self {
        Self {
            entity_type: None,
            id: "sub".to_owned(),
            attributes: BTreeMap::new(),
            parents: Vec::new(),
            shared_type: false,
        }
    }
}

/// A claim's path, or a claim whose text is an entity's id.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum RawAttribute {
    /// The claim; a dot goes into an object.
    Claim(String),
    /// A claim that names an entity.
    Entity(RawEntityClaim),
}

/// A claim that names an entity.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawEntityClaim {
    /// The claim; a dot goes into an object.
    #[schemars(extend("x-required" = true))]
    pub claim: Option<String>,
    /// When set, the claim's text is the id of an entity of this type.
    pub entity: Option<String>,
}

/// One of `issuers[].principal.parents`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawParent {
    /// The claim; a dot goes into an object.
    #[schemars(extend("x-required" = true))]
    pub claim: Option<String>,
    /// The parents' entity type.
    #[serde(rename = "type")]
    #[schemars(extend("x-required" = true))]
    pub entity_type: Option<String>,
}

/// `policies`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPolicies {
    /// The folder of the bundle: `*.cedarschema`, `*.cedar`, `entities.json`.
    #[schemars(extend("x-required" = true))]
    pub directory: Option<String>,
    /// How many steps of entity data a policy may take: 1 (`principal.x`) or 2 (`resource.owner.x`).
    pub validation_level: u64,
    /// The entity type of a calling workload as principal, and of `context.caller`.
    pub caller_type: String,
    /// The entity that stands for nobody in particular.
    pub anonymous: RawEntity,
    /// The entity type of tenants. When set, a caller may speak of and ask for its `callers[].tenants` alone.
    pub tenant_type: Option<String>,
    /// How often the folder is looked at even when no change was announced; 1s to 1h.
    pub reload_interval: RawDuration,
}

impl Default for RawPolicies {
    fn default() -> Self {
        Self {
            directory: None,
            validation_level: 1,
            caller_type: "Service".to_owned(),
            anonymous: RawEntity::default(),
            tenant_type: None,
            reload_interval: "10s".into(),
        }
    }
}

/// `policies.anonymous`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawEntity {
    /// Its entity type.
    #[serde(rename = "type")]
    pub entity_type: String,
    /// Its id.
    pub id: String,
}

impl Default for RawEntity {
    fn default() -> Self {
        Self { entity_type: "Anonymous".to_owned(), id: "anonymous".to_owned() }
    }
}

/// `cache`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawCache {
    /// Rulings kept at most; 0 switches the cache off; at most 10000000.
    pub decisions: u64,
    /// And in bytes, whichever is reached first; 64KiB to 64GiB.
    pub decision_bytes: RawSize,
    /// How long a ruling is kept at most; 1ms to 1h.
    pub decision_ttl: RawDuration,
    /// Questions kept at most that are asked again byte for byte, with what their records say, in bytes; `0B`: none; at most
    /// 64GiB.
    pub question_bytes: RawSize,
    /// Verified tokens kept at most; 0 switches the cache off; at most 1000000.
    pub tokens: u64,
    /// And in bytes, whichever is reached first; 64KiB to 64GiB.
    pub token_bytes: RawSize,
    /// How long callers may reuse an answer at most; `0s`: not at all; at most 5m.
    pub caller_reuse: RawDuration,
}

impl Default for RawCache {
    fn default() -> Self {
        Self {
            decisions: 100_000,
            decision_bytes: RawSize::Text("64MiB".to_owned()),
            decision_ttl: "30s".into(),
            question_bytes: RawSize::Text("32MiB".to_owned()),
            tokens: 10_000,
            token_bytes: RawSize::Text("32MiB".to_owned()),
            caller_reuse: "0s".into(),
        }
    }
}

/// `telemetry`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTelemetry {
    /// Logs; they go to standard error.
    pub logs: RawLogs,
    /// Export of traces and metrics over OTLP. Without it nothing is exported.
    pub otlp: Option<RawOtlp>,
}

/// `telemetry.logs`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawLogs {
    /// `json`: one object a line; `human`: for people.
    pub format: RawLogFormat,
    /// What is logged: `info`, `gatepost=debug,warn`.
    pub filter: String,
}

impl Default for RawLogs {
    fn default() -> Self {
        Self { format: RawLogFormat::Json, filter: "info".to_owned() }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum RawLogFormat {
    Json,
    Human,
}

/// `telemetry.otlp`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawOtlp {
    /// The collector's OTLP over gRPC: `http://127.0.0.1:4317`.
    #[schemars(extend("x-required" = true))]
    pub endpoint: Option<String>,
    /// The share of traces that are sampled when the caller did not decide: 0 to 1.
    pub sample_ratio: f64,
    /// How often metrics are exported; 1s to 1h.
    pub interval: RawDuration,
}

impl Default for RawOtlp {
    fn default() -> Self {
        Self { endpoint: None, sample_ratio: 0.1, interval: "30s".into() }
    }
}

/// A time: a whole number and one of `ms`, `s`, `m`, `h`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^[0-9]+(ms|s|m|h)$", "x-type" = "duration"))]
pub(super) struct RawDuration(pub String);

impl From<&str> for RawDuration {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A size: a number of bytes, or a whole number and one of `B`, `KiB`, `MiB`, `GiB`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum RawSize {
    Bytes(u64),
    Text(String),
}

impl JsonSchema for RawSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+(B|KiB|MiB|GiB)?$", "x-type": "size",
        })
    }
}

/// `"*"`, or a list of names.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum RawGrant {
    All(String),
    Only(Vec<String>),
}

impl JsonSchema for RawGrant {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Grant".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "type": "string", "enum": ["*"] }, { "type": "array", "items": { "type": "string" } }],
            "x-type": "list of text, or `*`",
        })
    }
}

/// `"*"`, or a list of clients.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum RawPresents {
    All(String),
    Only(Vec<RawPresented>),
}

impl JsonSchema for RawPresents {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Presents".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let presented = generator.subschema_for::<RawPresented>();
        json_schema!({
            "anyOf": [{ "type": "string", "enum": ["*"] }, { "type": "array", "items": presented }],
            "x-type": "list of sections, or `*`",
        })
    }
}

/// A share: a whole number from 1 to 100 and `%`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^[0-9]+%$", "x-type" = "share such as `25%`"))]
pub(super) struct RawShare(pub String);

/// `any`, or a list of `typ` values.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum RawTokenTypes {
    Any(String),
    These(Vec<String>),
}

impl JsonSchema for RawTokenTypes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TokenTypes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "type": "string", "enum": ["any"] }, { "type": "array", "items": { "type": "string" } }],
            "x-type": "list of text, or `any`",
        })
    }
}

/// `ignore`, or a list of URLs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum RawStatusLists {
    Ignore(String),
    These(Vec<String>),
}

impl JsonSchema for RawStatusLists {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StatusLists".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "type": "string", "enum": ["ignore"] }, { "type": "array", "items": { "type": "string" } }],
            "x-type": "list of text, or `ignore`",
        })
    }
}

/// How a limit is written: a plain number.
pub(super) type RawCount = u64;

/// Writes a checked limit the way the file would.
pub(super) trait Written<T> {
    fn written(value: T) -> Self;
}

impl<T: TryInto<u64>> Written<T> for RawCount {
    fn written(value: T) -> Self {
        value.try_into().unwrap_or(Self::MAX)
    }
}

impl<T: TryInto<u64>> Written<T> for RawSize {
    fn written(value: T) -> Self {
        Self::Text(size_text(value.try_into().unwrap_or(u64::MAX)))
    }
}

impl Written<Duration> for RawDuration {
    fn written(value: Duration) -> Self {
        Self(duration_text(value))
    }
}

/// The limits: name, how it is written, least and most. Their defaults are those of [`Limits`].
macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident: $raw:ident, $check:ident($least:literal, $most:literal);)+) => {
        /// `limits`.
        #[derive(Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct RawLimits {
            $($(#[doc = $doc])+ #[schemars(extend("x-least" = $least, "x-most" = $most))] pub $name: $raw,)+
        }

        impl Default for RawLimits {
            fn default() -> Self {
                let checked = Limits::default();
                Self { $($name: $raw::written(checked.$name),)+ }
            }
        }

        impl RawLimits {
            /// Checks each on its own.
            pub(super) fn checked(&self, checks: &mut super::load::values::Checks<'_>) -> Option<Limits> {
                $(let $name = checks.$check(concat!("limits.", stringify!($name)), &self.$name, $least, $most);)+
                Some(Limits { $($name: $name?,)+ })
            }
        }
    };
}

limits! {
    /// A compact token, bytes.
    token_bytes: RawSize, size("1B", "1MiB");
    /// Nesting of a token's header and claims.
    token_json_depth: RawCount, count(1, 100);
    /// Claims of a token.
    token_claims: RawCount, count(1, 10000);
    /// Values of `aud`.
    token_audiences: RawCount, count(1, 1000);
    /// Nesting of `act` (RFC 8693).
    token_actor_depth: RawCount, count(1, 32);
    /// A CheckRequest, bytes.
    request_bytes: RawSize, size("1B", "4MiB");
    /// A BatchCheckRequest, bytes; no less than `request_bytes`.
    batch_bytes: RawSize, size("1B", "16MiB");
    /// Items of a batch.
    batch_items: RawCount, count(1, 10000);
    /// Questions of one CheckStream that are not answered yet. Past it no more are read until answers have left.
    stream_window: RawCount, count(1, 10000);
    /// Entities that one CheckStream remembers.
    stream_entities: RawCount, count(1, 100000);
    /// The entities that one CheckStream remembers, encoded bytes.
    stream_entity_bytes: RawSize, size("1B", "16MiB");
    /// How long a CheckStream may be without a question before it is ended.
    stream_idle_timeout: RawDuration, duration("1s", "1h");
    /// CheckStreams open at once, of all callers together; one caller has at most its `callers[].capacity` of them.
    open_streams: RawCount, count(1, 100000);
    /// The context, encoded bytes.
    context_bytes: RawSize, size("1B", "4MiB");
    /// The context's keys, nested ones included.
    context_keys: RawCount, count(1, 100000);
    /// An id, bytes.
    id_bytes: RawSize, size("1B", "64KiB");
    /// A string attribute, bytes.
    string_bytes: RawSize, size("1B", "1MiB");
    /// Elements of a set.
    set_elements: RawCount, count(1, 100000);
    /// Nesting of attribute values. Protobuf itself ends near 32.
    value_depth: RawCount, count(1, 32);
    /// Attributes of one entity, nested ones included.
    entity_attributes: RawCount, count(1, 10000);
    /// Entities of a request.
    entities: RawCount, count(1, 10000);
    /// Ancestors of one entity.
    ancestors: RawCount, count(1, 10000);
    /// Steps from an entity up to its farthest ancestor.
    ancestor_depth: RawCount, count(1, 100);
    /// Field paths of a question.
    field_paths: RawCount, count(1, 10000);
    /// gRPC metadata of a call, bytes.
    header_bytes: RawSize, size("1KiB", "1MiB");
    /// Calls at once on one connection.
    streams_per_connection: RawCount, count(1, 10000);
    /// Connections in all.
    connections: RawCount, count(1, 1000000);
    /// Connections of one caller; no more than `connections`.
    connections_per_caller: RawCount, count(1, 1000000);
    /// How long a TLS handshake may take.
    handshake_timeout: RawDuration, duration("10ms", "1m");
    /// Handshakes at once.
    handshakes: RawCount, count(1, 100000);
    /// The deadline of a call that names none; no more than `max_deadline`.
    default_deadline: RawDuration, duration("1ms", "1m");
    /// The longest deadline that is honoured.
    max_deadline: RawDuration, duration("1ms", "1m");
    /// How long a connection may be without a call before it is asked to go.
    idle_timeout: RawDuration, duration("1s", "24h");
    /// How old a connection may get, give or take `connection_age_jitter`, before it is asked to go: its calls finish, and
    /// the client's next ones go over a new connection, which may lead to a replica that was added meanwhile. It can't be
    /// switched off.
    connection_age: RawDuration, duration("1s", "24h");
    /// By how many percent, at most, a connection lives shorter or longer than `connection_age`, so that those that came
    /// together do not all come back together.
    connection_age_jitter: RawCount, count(1, 50);
    /// How long the calls of a connection that was asked to go may take to finish, before it is cut off. (At a drain
    /// `server.drain_timeout` is what counts.)
    connection_age_grace: RawDuration, duration("100ms", "10m");
    /// Decisions worked on at once; past it calls are shed.
    concurrent_decisions: RawCount, count(1, 100000);
    /// How late a runtime may be, for a tenth of a second on end, before it counts as overloaded: calls are then shed, those
    /// first of callers who ask for more than their share. It can't be switched off; a long time comes close.
    overload_target: RawDuration, duration("1ms", "1m");
    /// Policies of a bundle.
    policies: RawCount, count(1, 1000000);
    /// One file of a bundle, bytes; no more than `bundle_bytes`.
    policy_file_bytes: RawSize, size("1B", "64MiB");
    /// A bundle, bytes.
    bundle_bytes: RawSize, size("1B", "1GiB");
    /// Nesting of a policy's expression.
    policy_depth: RawCount, count(1, 100);
    /// A JWKS document, bytes.
    jwks_bytes: RawSize, size("1B", "4MiB");
    /// Keys of a JWKS document.
    jwks_keys: RawCount, count(1, 1000);
    /// How long fetching a JWKS may take.
    jwks_timeout: RawDuration, duration("10ms", "1m");
    /// The shortest time between two fetches of one JWKS; no more than `jwks_refresh_interval`.
    jwks_refresh_floor: RawDuration, duration("1s", "1h");
    /// How often a JWKS is fetched without a cause; no more than `jwks_max_stale`.
    jwks_refresh_interval: RawDuration, duration("1s", "24h");
    /// How long the last good keys are used while fetching fails.
    jwks_max_stale: RawDuration, duration("1s", "168h");
    /// The answer to an introspection, bytes.
    introspection_bytes: RawSize, size("1B", "1MiB");
    /// How long an introspection may take.
    introspection_timeout: RawDuration, duration("10ms", "1m");
    /// Introspections under way at once, of all issuers together; past it tokens are denied.
    introspection_flights: RawCount, count(1, 10000);
    /// A file of API keys, bytes.
    api_key_file_bytes: RawSize, size("1KiB", "64MiB");
    /// API keys of a file.
    api_keys: RawCount, count(1, 100000);
    /// A status list as it is sent, bytes.
    status_list_bytes: RawSize, size("1B", "16MiB");
    /// A status list once it is inflated, bytes.
    status_list_inflated_bytes: RawSize, size("1B", "64MiB");
    /// How long fetching a status list may take.
    status_list_timeout: RawDuration, duration("10ms", "1m");
    /// The shortest time between two fetches of one status list; no more than `status_list_refresh_interval`.
    status_list_refresh_floor: RawDuration, duration("1s", "1h");
    /// How often a status list is fetched that does not say how long it may be kept; no more than `status_list_max_age`.
    status_list_refresh_interval: RawDuration, duration("1s", "24h");
    /// How long a status list is believed that does not say when it ends, and the longest that any is kept before the
    /// next is fetched, whatever its `ttl`.
    status_list_max_age: RawDuration, duration("1s", "168h");
    /// One audit record, bytes.
    audit_record_bytes: RawSize, size("1KiB", "16MiB");
    /// Revocations in force, of all kinds together. Past it new ones are refused; none is ever dropped for another.
    revocations: RawCount, count(1, 1000000);
    /// All certificate revocation lists together, bytes.
    crl_bytes: RawSize, size("1KiB", "256MiB");
}

//! A whole file is taken; every way to spoil it is refused by its key, and no two ways hide each other.

use std::fs;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::*;
use crate::config::{
    ActionPattern, AttributeGrant, AuditMode, CallerName, ClientNames, Keeping, KeptValue, KeyHost, KeySource, Limits,
    ListenerIdentity, LogFormat, OnAuditFailure, PresentGrant, RedactRule, Share, SinkTarget, TokenAlgorithm,
};
use crate::config::{Pattern, PatternRule};
use crate::model::entity::EntityType;

const WHOLE: &str = r#"server:
  listen: 0.0.0.0:8443
  ops_listen: "[::1]:9443"
  reflection: true
  certificate: tls.crt
  private_key: tls.key
  client_ca: ca.crt
  names: [gatepost.shop.svc, 10.0.0.7]
  reload_interval: 1m
  drain_timeout: 20s
  drain_delay: 500ms
identity:
  trust_domains: [example.org, partner.example]
  dns_san: true
callers:
  - spiffe_id: spiffe://example.org/ns/shop/sa/orders
    name: orders
    resource_types: [Order, Shop::Account]
    actions: ["Order.*", Account.read]
    assert_subjects: [User]
    supply_attributes: [Product, Shop::Account.plan]
    supply_parents: [Order]
    sees_policies: true
    clients: [{ issuer: "batch", id: orders-svc }]
    presents_for: [{ issuer: "https://cloud.example", client: shop-app }, { issuer: "batch", client: cron }]
    tenants: [acme]
    batch_items: 20
    capacity: 25%
    explain: true
  - dns: billing.internal
    name: billing
    resource_types: "*"
    actions: "*"
    supply_attributes: "*"
    presents_for: "*"
issuers:
  - issuer: https://idp.example.org
    audiences: [gatepost, gatepost-staging]
    algorithms: [RS256, ES256]
    jwks_file: keys.json
    token_types: [at+jwt, JWT]
    clock_skew: 10s
    max_lifetime: 1h
    require_sender_constrained: true
    principal:
      type: User
      shared_type: true
      id: realm.sub
      attributes:
        tenant: { claim: tenant, entity: Tenant }
        email: email
      parents:
        - { claim: roles, type: Role }
  - issuer: https://cloud.example
    audiences: [gatepost]
    jwks_url: https://cloud.example/jwks.json
    jwks_ca: ca.crt
    allow_private_addresses: true
    token_types: any
    principal: { type: User, shared_type: true }
  - issuer: batch
    audiences: [gatepost]
    shared_key_file: shared.key
    principal: { type: Job }
policies:
  directory: policies
  validation_level: 2
  caller_type: Workload
  anonymous: { type: Visitor, id: nobody }
  tenant_type: Tenant
  reload_interval: 5s
cache:
  decisions: 5000
  decision_ttl: 10s
  tokens: 0
  caller_reuse: 1s
audit:
  mode: written
  on_failure: answer
  actions:
    - { actions: [Order.read, "Report.*"], mode: async }
    - { actions: [Order.delete], mode: durable, on_failure: refuse }
  write_timeout: 1s
  queue: 500
  spool: { directory: audit, segment_bytes: 1MiB, max_bytes: 16MiB, max_age: 48h, reserve: 1MiB }
  checkpoints: { key_file: tls.key, every: 10s, records: 100 }
  attributes: { Order.status: keep, User.iban: last_four, context.channel: "truncate:32" }
  patterns:
    rules:
      ENUM_DENIED: { threshold: 7, window: 90s, actions: [{ actions: [Order.search], off: true }, { actions: ["Order.*"], threshold: 9 }] }
      PAGE_WALK: { off: true }
    exempt: [{ principals: ["Service::\"nightly\""], callers: [orders], patterns: [BULK_READ] }]
    admin_actions: ["User.*"]
    keys: 500
  sinks:
    - { name: out, stdout: {}, encoding: rfc5424 }
    - { name: local, file: { path: audit.jsonl, max_bytes: 1MiB, max_files: 3 }, mask: [actor.user, src_endpoint.ip] }
    - { name: syslog, syslog: { host: syslog.internal, ca: ca.crt, facility: 4 }, encoding: cef, when_full: skip }
    - name: splunk
      splunk: { url: "https://splunk.internal:8088", token_file: shared.key, index: main, gzip: false }
      filter: { kinds: [decision, alert], decisions: [deny], actions: ["Order.*"], callers: [orders], severity: medium }
    - { name: elastic, elastic: { url: "http://127.0.0.1:9200", username: us, password_file: shared.key }, encoding: ecs }
    - { name: otlp, otlp: { endpoint: "https://collector.internal:4317", ca: ca.crt, certificate: tls.crt, private_key: tls.key } }
    - { name: kafka, kafka: { brokers: ["k-0:9093", "k-1:9093"], topic: audit, username: us, password_file: shared.key } }
telemetry:
  logs: { format: human, filter: "gatepost=debug,warn" }
  otlp: { endpoint: "http://127.0.0.1:4317", sample_ratio: 0.5, interval: 10s }
limits:
  token_bytes: 8KiB
  request_bytes: 131072
  max_deadline: 1500ms
"#;

const LEAST: &str = r#"server: { certificate: tls.crt, private_key: tls.key, client_ca: ca.crt }
identity: { trust_domains: [example.org] }
callers:
  - { spiffe_id: spiffe://example.org/orders, name: orders, resource_types: [Order], actions: [Order.read] }
policies: { directory: policies }
audit: { spool: { directory: audit } }
"#;

const SHARED_KEY: &str = "0123456789abcdef0123456789abcdef";

/// A folder with everything that a configuration may name.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in
            [("tls.crt", ""), ("tls.key", ""), ("ca.crt", ""), ("keys.json", "{}"), ("shared.key", SHARED_KEY)]
        {
            folder.write(name, text.as_bytes());
        }
        folder.write("short.key", b"hunter2\n");
        folder.write("binary.key", &[0xff; 40]);
        fs::create_dir(folder.path("policies")).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn source(&self, yaml: &str) -> Source {
        self.write("gatepost.yaml", yaml.as_bytes());
        Source::file(self.path("gatepost.yaml"))
    }

    fn load(&self, yaml: &str) -> Result<Config, ConfigReport> {
        load(&self.source(yaml))
    }

    fn refusal(&self, yaml: &str) -> ConfigReport {
        match self.load(yaml) {
            Err(report) => report,
            Ok(_) => panic!("taken:\n{yaml}"),
        }
    }
}

fn keys(report: &ConfigReport) -> Vec<&str> {
    report.problems.iter().map(|problem| problem.key.as_str()).collect()
}

fn entity_type(name: &str) -> EntityType {
    EntityType::parse(name).unwrap()
}

#[test]
fn a_whole_file_is_taken_as_it_is_written() {
    let folder = Folder::new();
    let config = folder.load(WHOLE).unwrap_or_else(|report| panic!("{report}"));

    assert_eq!(config.server.ops_listen.to_string(), "[::1]:9443");
    assert!(config.server.reflection);
    let ListenerIdentity::Files(tls) = &config.server.tls else { panic!("files") };
    assert_eq!(tls.certificate, folder.path("tls.crt"), "relative to the file's folder");
    assert_eq!(config.server.drain_delay, Duration::from_millis(500));
    assert_eq!(config.identity.trust_domains.len(), 2);
    let [orders, billing] = config.callers.as_slice() else { panic!("two callers") };
    assert_eq!(orders.label, "orders");
    assert_eq!(orders.actions, [ActionPattern::Prefix("Order.".into()), ActionPattern::Exact("Account.read".into())]);
    assert!(orders.resource_types.covers(&entity_type("Shop::Account")));
    assert!(!orders.resource_types.covers(&entity_type("Account")));
    let granted = |kind: &str, attribute: &str| orders.supply_attributes.covers(&entity_type(kind), attribute);
    assert!(granted("Product", "price") && granted("Shop::Account", "plan"), "a whole type, and one attribute");
    assert!(!granted("Shop::Account", "owner") && !granted("Account", "plan"), "and nothing beside");
    assert!(orders.clients.names("batch", "orders-svc") && !orders.clients.names("batch", "Orders-svc"));
    assert!(!orders.clients.names("https://cloud.example", "orders-svc"), "an id is of its issuer");
    let PresentGrant::Only(presented) = &orders.presents_for else { panic!("some") };
    assert_eq!(presented.iter().count(), 2);
    assert!(orders.tenants.covers("acme") && !orders.tenants.covers("Acme"));
    assert_eq!((orders.batch_items, orders.capacity, orders.explain), (Some(20), Share::new(25).unwrap(), true));
    assert_eq!((&billing.supply_attributes, &billing.presents_for), (&AttributeGrant::All, &PresentGrant::All));
    assert_eq!((billing.batch_items, billing.capacity, billing.explain), (None, Share::WHOLE, false));
    assert!(!billing.tenants.covers("acme") && billing.clients.iter().next().is_none(), "nothing unless it is written");
    assert_eq!(billing.name, CallerName::Dns("billing.internal".into()));
    assert_eq!(billing.actions, [ActionPattern::All]);
    assert!(!billing.assert_subjects.covers(&entity_type("User")), "nothing is granted unless it is written");
    let [file, url, shared] = config.issuers.as_slice() else { panic!("three issuers") };
    assert!(file.require_sender_constrained && !url.require_sender_constrained);
    assert!(matches!(&file.keys, KeySource::File(path) if *path == folder.path("keys.json")));
    assert_eq!(file.token_types.as_ref().unwrap().iter().collect::<Vec<_>>(), ["at+jwt", "jwt"], "lower case");
    assert_eq!(file.mapping.attributes.len(), 2);
    assert_eq!(file.mapping.id_claim, "realm.sub");
    assert!(matches!(&url.keys, KeySource::Url { ca: Some(_), allow_private_addresses: true, .. }));
    assert_eq!(url.token_types, None);
    assert!(matches!(&shared.keys, KeySource::Shared { id: None, .. }));
    assert_eq!(shared.algorithms, [TokenAlgorithm::Hs256]);
    assert_eq!(config.policies.anonymous.to_string(), "Visitor::\"nobody\"");
    assert_eq!(config.audit.spool.segment_bytes, 1_048_576);
    let kinds: Vec<&str> = config.audit.sinks.iter().map(|sink| sink.target.kind()).collect();
    assert_eq!(kinds, ["stdout", "file", "syslog", "splunk", "elastic", "otlp", "kafka"]);
    assert!(matches!(config.audit.sinks[1].target, SinkTarget::File { max_bytes: 1_048_576, max_files: 3, .. }));
    assert_eq!(config.audit.attributes.len(), 3);
    let patterns = &config.audit.patterns;
    let denied = patterns.rule(Pattern::EnumDenied).unwrap();
    assert_eq!(denied.window, Duration::from_secs(90));
    for (action, threshold, why) in [
        (Some("Order.search"), None, "the first that covers it"),
        (Some("Order.read"), Some(9), "and then the second"),
        (Some("Report.read"), Some(7), "no exception"),
        (None, Some(7), "nothing that was asked"),
    ] {
        assert_eq!(denied.threshold(action), threshold, "{action:?}: {why}");
    }
    assert_eq!(patterns.rule(Pattern::PageWalk).unwrap().threshold(None), None);
    let unsaid = patterns.rule(Pattern::BruteForce);
    assert_eq!(unsaid, Some(&PatternRule::standard(Pattern::BruteForce)));
    assert_eq!((patterns.keys, patterns.exempt.len(), patterns.admin_actions.len()), (500, 1, 1));
    let channel = (KeptValue::Context("channel".into()), RedactRule::Truncate(32));
    assert_eq!(config.audit.attributes.last(), Some(&channel));
    let keeping = |action: &str| {
        let keeping = config.audit.keeping_of(Some(action));
        (keeping.mode.as_str(), keeping.on_failure.as_str())
    };
    assert_eq!(keeping("Order.read"), ("async", "answer"));
    assert_eq!(keeping("Order.delete"), ("durable", "refuse"));
    assert_eq!(keeping("Order.update"), ("written", "answer"), "no exception is about it");
    assert_eq!(config.telemetry.log_format, LogFormat::Human);
    assert_eq!(config.limits.token_bytes, 8192);
    assert_eq!(config.limits.request_bytes, 131_072);
    assert_eq!(config.limits.max_deadline, Duration::from_millis(1500));
}

#[test]
fn an_issuer_may_be_asked_where_its_keys_are() {
    let folder = Folder::new();
    let issuer = "issuers:
  - issuer: https://idp.example.org
    audiences: [gatepost]
    discovery_url: https://idp.example.org/.well-known/openid-configuration
    jwks_hosts: [keys.example.org, \"keys.example.org:8443\"]
    token_types: [at+jwt, \"\"]
    principal: { type: User }
  - issuer: batch
    audiences: [gatepost]
    shared_key_file: shared.key
    shared_key_id: main
    principal: { type: Job }
";
    let config = folder.load(&format!("{LEAST}{issuer}")).unwrap();
    let [asked, shared] = config.issuers.as_slice() else { panic!("two issuers") };
    let KeySource::Discovery { url, hosts, ca: None, allow_private_addresses: false } = &asked.keys else {
        panic!("{:?}", asked.keys)
    };
    assert_eq!(url.path(), "/.well-known/openid-configuration");
    assert_eq!(*hosts, ["keys.example.org:443", "keys.example.org:8443"].map(|host| KeyHost::parse(host).unwrap()));
    let types: Vec<&str> = asked.token_types.iter().flatten().map(String::as_str).collect();
    assert_eq!(types, ["", "at+jwt"], "the empty text is no `typ` at all");
    assert!(matches!(&shared.keys, KeySource::Shared { id: Some(id), .. } if id == "main"));
}

/// Every default, as DESIGN.md, THREATS.md and the contract in `config.rs` name it.
#[test]
fn what_is_not_written_is_the_default_that_is_documented() {
    let folder = Folder::new();
    let issuer = "issuers: [{ issuer: i, audiences: [a], jwks_file: keys.json, principal: { type: User } }]\n";
    let otlp = "telemetry: { otlp: { endpoint: \"http://127.0.0.1:4317\" } }\n";
    let config = folder.load(&format!("{LEAST}{issuer}{otlp}")).unwrap_or_else(|report| panic!("{report}"));

    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8443", "this machine alone");
    assert_eq!(config.server.ops_listen.to_string(), "127.0.0.1:9443");
    assert!(!config.server.reflection && !config.identity.dns_san);
    let seconds = Duration::from_secs;
    let ListenerIdentity::Files(tls) = &config.server.tls else { panic!("files") };
    assert_eq!(tls.reload_interval, seconds(30));
    assert!(tls.revocation.lists.is_empty() && tls.domain_ca.is_empty());
    assert_eq!(tls.revocation.max_bytes, 8 << 20);
    assert_eq!((config.server.drain_timeout, config.server.drain_delay), (seconds(10), seconds(0)));
    let [issuer] = config.issuers.as_slice() else { panic!("one issuer") };
    let names: Vec<&str> = issuer.algorithms.iter().map(|algorithm| algorithm.as_str()).collect();
    assert_eq!(names, ["RS256", "PS256", "ES256", "EdDSA"]);
    let types: Vec<&String> = issuer.token_types.as_ref().unwrap().iter().collect();
    assert_eq!(types, ["application/at+jwt", "at+jwt", "jwt"]);
    assert_eq!((issuer.clock_skew, issuer.max_lifetime), (seconds(30), seconds(900)));
    assert!(!issuer.require_sender_constrained);
    let [caller] = config.callers.as_slice() else { panic!("one caller") };
    assert_eq!(caller.presents_for, PresentGrant::Only(ClientNames::default()), "no token but its own");
    assert_eq!((caller.batch_items, caller.capacity, caller.explain), (None, Share::WHOLE, false));
    assert!(!caller.tenants.covers("acme") && config.policies.tenant_type.is_none());
    assert_eq!(issuer.mapping.id_claim, "sub");
    assert_eq!(config.policies.validation_level, 1);
    assert_eq!(config.policies.caller_type.as_str(), "Service");
    assert_eq!(config.policies.anonymous.to_string(), "Anonymous::\"anonymous\"");
    assert_eq!(config.policies.reload_interval, seconds(10));
    assert_eq!((config.cache.decisions, config.cache.tokens), (100_000, 10_000));
    assert_eq!((config.cache.decision_ttl, config.cache.caller_reuse), (seconds(30), seconds(0)));
    assert_eq!(config.audit.keeping, Keeping { mode: AuditMode::Durable, on_failure: OnAuditFailure::Refuse });
    assert!(config.audit.sinks.is_empty() && config.audit.checkpoints.is_none());
    assert_eq!((config.audit.write_timeout, config.audit.queue), (seconds(2), 10_000));
    assert!(config.audit.attributes.is_empty(), "nothing is recorded unless it is written");
    assert_eq!((config.telemetry.log_format, config.telemetry.log_filter.as_str()), (LogFormat::Json, "info"));
    let otlp = config.telemetry.otlp.unwrap();
    assert!((otlp.sample_ratio - 0.1).abs() < f64::EPSILON);
    assert_eq!(otlp.interval, seconds(30));
    assert_eq!(format!("{:?}", config.limits), format!("{:?}", Limits::default()));
}

/// Where there is one issuer, a client is that issuer's; where there is none, it is nobody's.
#[test]
fn a_client_is_of_the_only_issuer_unless_it_says() {
    let folder = Folder::new();
    let caller = LEAST.replace("[Order.read] }", "[Order.read], clients: [{ id: a }], presents_for: [{ client: b }] }");
    let issuer = "issuers: [{ issuer: i, audiences: [a], jwks_file: keys.json, principal: { type: User } }]\n";
    let config = folder.load(&format!("{caller}{issuer}")).unwrap_or_else(|report| panic!("{report}"));
    assert!(config.callers[0].clients.names("i", "a"));
    let PresentGrant::Only(presented) = &config.callers[0].presents_for else { panic!("some") };
    assert!(presented.names("i", "b") && !presented.names("i", "a"));

    let report = folder.refusal(&caller);
    assert_eq!(keys(&report), ["callers[0].clients[0].issuer", "callers[0].presents_for[0].issuer"]);
}

/// Each row spoils one thing in `WHOLE`: text, what it becomes, the key that is named, why. V-CFG-1 is in here.
#[test]
fn every_way_to_be_wrong_is_refused_by_its_key() {
    let table = [
        ("0.0.0.0:8443", "localhost:8443", "server.listen", "a name is not an address"),
        ("0.0.0.0:8443", "0.0.0.0", "server.listen", "no port"),
        ("0.0.0.0:8443", "\"[::1]:9443\"", "server.ops_listen", "two listeners on one address"),
        ("reflection: true", "reflection: yes", "server.reflection", "YAML 1.1 booleans are text here"),
        ("reflection: true", "reflection: 1", "server.reflection", "a number is no switch"),
        ("certificate: tls.crt", "certificate: gone.crt", "server.certificate", "no such file"),
        ("certificate: tls.crt", "certificate: policies", "server.certificate", "a folder"),
        ("certificate: tls.crt", "certificate: \"\"", "server.certificate", "empty"),
        ("  private_key: tls.key\n", "", "server.private_key", "missing"),
        ("client_ca: ca.crt\n", "client_ca:\n", "server.client_ca", "a key without a value is not set"),
        ("[gatepost.shop.svc, 10.0.0.7]", "['https://a.example']", "server.names[0]", "a URL"),
        ("[gatepost.shop.svc, 10.0.0.7]", "[a.example, a.example]", "server.names[1]", "twice"),
        ("reload_interval: 1m", "reload_interval: 1", "server.reload_interval", "no unit"),
        ("reload_interval: 1m", "reload_interval: 0s", "server.reload_interval", "would never rest"),
        ("drain_timeout: 20s", "drain_timeout: 0s", "server.drain_timeout", "would cut everybody off"),
        ("drain_timeout: 20s", "drain_timeout: 11m", "server.drain_timeout", "past its ceiling"),
        ("drain_delay: 500ms", "drain_delay: 6m", "server.drain_delay", "past its ceiling"),
        ("drain_delay: 500ms", "drain_delay: -1s", "server.drain_delay", "backwards"),
        ("[example.org, partner.example]\n  dns_san: true", "[]", "identity.trust_domains", "nobody has a name"),
        ("partner.example", "Partner.example", "identity.trust_domains[1]", "upper case"),
        ("partner.example", "spiffe://partner.example", "identity.trust_domains[1]", "an ID and no domain"),
        ("partner.example", "example.org", "identity.trust_domains[1]", "listed twice"),
        ("partner.example", "17", "identity.trust_domains[1]", "a number"),
        ("partner.example]", "{ ca: ca.crt }]", "identity.trust_domains[1].name", "authorities of nobody"),
        (
            "partner.example]",
            "{ name: partner.example, ca: gone.crt }]",
            "identity.trust_domains[1].ca",
            "no such file",
        ),
        ("partner.example]", "{ name: Partner.example }]", "identity.trust_domains[1].name", "upper case"),
        ("partner.example]", "{ name: example.org }]", "identity.trust_domains[1].name", "listed twice"),
        ("partner.example]", "{ nme: partner.example }]", "identity.trust_domains[1].nme", "no such key"),
        ("reload_interval: 1m", "client_crls: [gone.crl]", "server.client_crls[0]", "no such file"),
        ("reload_interval: 1m", "client_crls: [ca.crt, ca.crt]", "server.client_crls[1]", "listed twice"),
        ("example.org, partner.example", "partner.example", "callers[0].spiffe_id", "its trust domain is not listed"),
        ("spiffe://example.org/ns/shop/sa/orders", "spiffe://example.org", "callers[0].spiffe_id", "no workload"),
        ("spiffe://example.org/ns/shop/sa/orders", "https://example.org/a", "callers[0].spiffe_id", "another scheme"),
        ("spiffe_id: spiffe://example.org/ns/shop/sa/orders\n    name", "name", "callers[0].spiffe_id", "no name"),
        ("name: orders", "name: orders\n    dns: orders.internal", "callers[0].dns", "two names"),
        ("dns: billing.internal", "spiffe_id: spiffe://example.org/ns/shop/sa/orders", "callers[1].spiffe_id", "twice"),
        ("dns: billing.internal", "dns: \"*.internal\"", "callers[1].dns", "wildcard"),
        ("dns: billing.internal", "dns: Billing.internal", "callers[1].dns", "upper case"),
        ("dns: billing.internal", "dns: 10.0.0.1", "callers[1].dns", "an address"),
        ("  dns_san: true\n", "", "callers[1].dns", "DNS names are off"),
        ("name: billing", "name: orders", "callers[1].name", "label twice"),
        ("name: billing", "name: two words", "callers[1].name", "would break a metric's label"),
        ("    name: billing\n", "", "callers[1].name", "no label"),
        ("[Order, Shop::Account]", "[Order, Shop.Account]", "callers[0].resource_types[1]", "not a type's name"),
        ("[Order, Shop::Account]", "[Order, \"*\"]", "callers[0].resource_types[1]", "all, among others"),
        ("[Order, Shop::Account]", "[]", "callers[0].resource_types", "may ask about nothing"),
        ("[Order, Shop::Account]", "Order", "callers[0].resource_types", "neither a list nor `*`"),
        ("\"Order.*\"", "\"Or*\"", "callers[0].actions[0]", "a star in a word"),
        ("\"Order.*\"", "\".*\"", "callers[0].actions[0]", "nothing before the dot"),
        ("\"Order.*\"", "\"Order.read:total\"", "callers[0].actions[0]", "a field"),
        ("\"Order.*\"", "Account.read", "callers[0].actions[1]", "listed twice"),
        ("    actions: \"*\"\n", "", "callers[1].actions", "may ask nothing"),
        ("assert_subjects: [User]", "assert_subjects: [\"\"]", "callers[0].assert_subjects[0]", "empty type"),
        ("sees_policies: true", "sees_policies: \"true\"", "callers[0].sees_policies", "text is no switch"),
        ("[Product, Sh", "[Product, Product.price, Sh", "callers[0].supply_attributes[1]", "says less than the type"),
        ("[Product, Sh", "[Pro duct.price, Sh", "callers[0].supply_attributes[0]", "not a type's name"),
        ("[Product, Sh", "[Product., Sh", "callers[0].supply_attributes[0]", "no attribute"),
        ("[Product, Sh", "[\"*\", Sh", "callers[0].supply_attributes[0]", "all, among others"),
        ("[Product, Sh", "[Shop::Action, Sh", "callers[0].supply_attributes[0]", "actions are the schema's"),
        (
            "issuer: \"batch\", id",
            "issuer: \"Batch\", id",
            "callers[0].clients[0].issuer",
            "an issuer nobody configured",
        ),
        ("issuer: \"batch\", id", "id", "callers[0].clients[0].issuer", "which of three issuers?"),
        (", id: orders-svc", "", "callers[0].clients[0].id", "which client?"),
        ("id: orders-svc", "id: \"\"", "callers[0].clients[0].id", "an empty id"),
        ("id: orders-svc }", "id: a }, { issuer: \"batch\", id: a }", "callers[0].clients[1]", "listed twice"),
        (
            "    presents_for: \"*\"\n",
            "    clients: [{ issuer: \"batch\", id: orders-svc }]\n",
            "callers[1].clients",
            "two services that are one client: one of them only presents for it",
        ),
        ("client: cron", "client: \" cron\"", "callers[0].presents_for[1].client", "a space that nobody sees"),
        ("client: cron", "clients: cron", "callers[0].presents_for[1].clients", "an unknown key"),
        ("presents_for: \"*\"", "presents_for: \"all\"", "callers[1].presents_for", "the word is `*`"),
        ("tenants: [acme]", "tenants: [acme, \"*\"]", "callers[0].tenants[1]", "all, among others"),
        ("tenants: [acme]", "tenants: [\"ac\\u200bme\"]", "callers[0].tenants[0]", "zero width"),
        ("  tenant_type: Tenant\n", "", "callers[0].tenants", "tenants, and nobody says what one is"),
        ("batch_items: 20", "batch_items: 0", "callers[0].batch_items", "no batch at all"),
        ("batch_items: 20", "batch_items: 10001", "callers[0].batch_items", "past its ceiling"),
        ("capacity: 25%", "capacity: 0%", "callers[0].capacity", "nothing is no share"),
        ("capacity: 25%", "capacity: 101%", "callers[0].capacity", "more than everything"),
        ("capacity: 25%", "capacity: 25", "callers[0].capacity", "of what?"),
        ("capacity: 25%", "capacity: \"2.5%\"", "callers[0].capacity", "whole percents"),
        ("explain: true", "explain: \"true\"", "callers[0].explain", "text is no switch"),
        ("tenant_type: Tenant", "tenant_type: \"Ten ant\"", "policies.tenant_type", "not a type's name"),
        ("issuer: https://idp.example.org", "issuer: \"\"", "issuers[0].issuer", "empty"),
        ("issuer: batch", "issuer: https://idp.example.org", "issuers[2].issuer", "the same issuer twice"),
        ("User, shared_type: true", "User", "issuers[1].principal.type", "alice of one issuer is alice of the other"),
        ("      shared_type: true\n", "", "issuers[0].principal.type", "and each has to say so"),
        ("type: Job", "type: Workload", "issuers[2].principal.type", "a token's subject could be a calling service"),
        ("    audiences: [gatepost, gatepost-staging]\n", "", "issuers[0].audiences", "V-CFG-1: no audience"),
        ("[gatepost, gatepost-staging]", "[]", "issuers[0].audiences", "V-CFG-1: no audience"),
        ("[gatepost, gatepost-staging]", "[\"\"]", "issuers[0].audiences[0]", "V-CFG-1: an empty audience"),
        ("[gatepost, gatepost-staging]", "", "issuers[0].audiences", "V-CFG-1: null"),
        ("[gatepost, gatepost-staging]", "gatepost", "issuers[0].audiences", "one audience is a list too"),
        ("[RS256, ES256]", "[RS256, HS256]", "issuers[0].algorithms[1]", "HMAC beside public keys"),
        ("[RS256, ES256]", "[none]", "issuers[0].algorithms[0]", "nobody signed"),
        ("[RS256, ES256]", "[NoNe]", "issuers[0].algorithms[0]", "nobody signed, in another case"),
        ("[RS256, ES256]", "[\" none\\u200b\"]", "issuers[0].algorithms[0]", "nobody signed, in disguise"),
        ("[RS256, ES256]", "[rs256]", "issuers[0].algorithms[0]", "names are compared as written"),
        ("[RS256, ES256]", "[HS512]", "issuers[0].algorithms[0]", "not offered"),
        ("[RS256, ES256]", "[]", "issuers[0].algorithms", "none at all"),
        (
            "shared_key_file: shared.key",
            "algorithms: [RS256]\n    shared_key_file: shared.key",
            "issuers[2].algorithms[0]",
            "RSA with a shared key",
        ),
        ("shared_key_file: shared.key", "shared_key_file: short.key", "issuers[2].shared_key_file", "56 bits"),
        ("shared_key_file: shared.key", "shared_key_file: binary.key", "issuers[2].shared_key_file", "not text"),
        ("shared_key_file: shared.key", "shared_key_file: gone.key", "issuers[2].shared_key_file", "no such file"),
        ("    shared_key_file: shared.key\n", "", "issuers[2]", "no keys"),
        (
            "    jwks_file: keys.json\n",
            "    jwks_file: keys.json\n    shared_key_file: shared.key\n",
            "issuers[0]",
            "two sources of keys",
        ),
        (
            "    jwks_file: keys.json\n",
            "    jwks_file: keys.json\n    jwks_ca: ca.crt\n",
            "issuers[0].jwks_ca",
            "a CA without a URL",
        ),
        ("jwks_file: keys.json", "jwks_file: gone.json", "issuers[0].jwks_file", "no such file"),
        ("https://cloud.example/jwks.json", "http://cloud.example/jwks.json", "issuers[1].jwks_url", "keys in clear"),
        ("https://cloud.example/jwks.json", "file:///etc/passwd", "issuers[1].jwks_url", "another scheme"),
        ("https://cloud.example/jwks.json", "https://a:hunter2@cloud.example/", "issuers[1].jwks_url", "a password"),
        (
            "jwks_url: https://cloud.example/jwks.json\n    jwks_ca: ca.crt\n    allow_private_addresses: true",
            "jwks_url: https://169.254.169.254/",
            "issuers[1].jwks_url",
            "the cloud's own metadata",
        ),
        ("jwks_ca: ca.crt", "jwks_ca: gone.crt", "issuers[1].jwks_ca", "no such file"),
        (
            "    jwks_file: keys.json\n",
            "    jwks_file: keys.json\n    discovery_url: https://idp.example.org/d\n",
            "issuers[0]",
            "a file and discovery",
        ),
        ("jwks_ca: ca.crt", "jwks_hosts: [keys.example]", "issuers[1].jwks_hosts", "nothing leads there"),
        ("jwks_file: keys.json", "discovery_url: http://idp.example.org/d", "issuers[0].discovery_url", "in the clear"),
        ("jwks_file: keys.json", "discovery_url: https://localhost/d", "issuers[0].discovery_url", "inside"),
        (
            "jwks_file: keys.json",
            "discovery_url: https://idp.example.org/d\n    jwks_hosts: [\"https://keys.example\"]",
            "issuers[0].jwks_hosts[0]",
            "a host is no URL",
        ),
        (
            "jwks_file: keys.json",
            "discovery_url: https://idp.example.org/d\n    jwks_hosts: [a@b]",
            "issuers[0].jwks_hosts[0]",
            "a user",
        ),
        (
            "jwks_file: keys.json",
            "discovery_url: https://idp.example.org/d\n    jwks_hosts: [keys.example, \"10.0.0.1:8443\"]",
            "issuers[0].jwks_hosts[1]",
            "inside, and that is not allowed",
        ),
        ("jwks_ca: ca.crt", "shared_key_id: a", "issuers[1].shared_key_id", "no shared key"),
        (
            "shared_key_file: shared.key",
            "shared_key_file: shared.key\n    shared_key_id: \"\"",
            "issuers[2].shared_key_id",
            "an empty name",
        ),
        ("token_types: any", "token_types: all", "issuers[1].token_types", "the word is `any`"),
        ("token_types: any", "token_types: []", "issuers[1].token_types", "would accept none"),
        ("clock_skew: 10s", "clock_skew: 61s", "issuers[0].clock_skew", "one past the limit"),
        ("max_lifetime: 1h", "max_lifetime: 25h", "issuers[0].max_lifetime", "past a day"),
        ("max_lifetime: 1h", "max_lifetime: 0s", "issuers[0].max_lifetime", "no token would do"),
        ("type: User\n      shared_type: true\n      id", "id", "issuers[0].principal.type", "missing"),
        (
            "type: User\n      shared_type: true\n      id",
            "type: A-B\n      id",
            "issuers[0].principal.type",
            "not a type's name",
        ),
        ("id: realm.sub", "id: realm..sub", "issuers[0].principal.id", "a step without a name"),
        ("email: email", "email: \"\"", "issuers[0].principal.attributes.email", "no claim"),
        ("claim: tenant, entity", "entity", "issuers[0].principal.attributes.tenant.claim", "no claim"),
        ("entity: Tenant", "entity: \"Ten ant\"", "issuers[0].principal.attributes.tenant.entity", "not a type's name"),
        ("claim: roles, type: Role", "claim: roles", "issuers[0].principal.parents[0].type", "of what type?"),
        ("directory: policies", "directory: nowhere", "policies.directory", "no such folder"),
        ("directory: policies", "directory: tls.crt", "policies.directory", "a file"),
        ("validation_level: 2", "validation_level: 0", "policies.validation_level", "would validate nothing"),
        ("validation_level: 2", "validation_level: 3", "policies.validation_level", "farther than we reach"),
        ("validation_level: 2", "validation_level: 1.5", "policies.validation_level", "not whole"),
        ("caller_type: Workload", "caller_type: Work load", "policies.caller_type", "not a type's name"),
        ("id: nobody", "id: \"no\\u202ebody\"", "policies.anonymous.id", "bidi"),
        ("decisions: 5000", "decisions: 10000001", "cache.decisions", "past its ceiling"),
        ("decisions: 5000", "decisions: -1", "cache.decisions", "less than nothing"),
        ("decision_ttl: 10s", "decision_ttl: 2h", "cache.decision_ttl", "past its ceiling"),
        ("caller_reuse: 1s", "caller_reuse: 1h", "cache.caller_reuse", "past its ceiling"),
        ("mode: written", "mode: never", "audit.mode", "auditing can't be switched off"),
        ("on_failure: answer", "on_failure: ignore", "audit.on_failure", "not a choice"),
        (
            "actions: [Order.delete], mode: durable",
            "actions: [], mode: durable",
            "audit.actions[1].actions",
            "about nothing",
        ),
        (
            "spool: { directory: audit",
            "spool: { directory: gone/audit",
            "audit.spool.directory",
            "no such folder above",
        ),
        ("spool: { directory: audit", "spool: { directory: tls.crt", "audit.spool.directory", "a file"),
        ("segment_bytes: 1MiB", "segment_bytes: 64KiB, x: 1", "audit.spool.x", "no such key"),
        ("segment_bytes: 1MiB", "segment_bytes: 1MB", "audit.spool.segment_bytes", "1000 or 1024?"),
        ("max_bytes: 16MiB", "max_bytes: 1MiB", "audit.spool.max_bytes", "less than two segments"),
        ("reserve: 1MiB", "reserve: 1KiB", "audit.spool.reserve", "would hold next to nothing"),
        ("key_file: tls.key", "key_file: gone.key", "audit.checkpoints.key_file", "no such file"),
        ("every: 10s", "every: 0s", "audit.checkpoints.every", "all the time"),
        ("User.iban: last_four", "User.iban: last_five", "audit.attributes.User.iban", "not a rule"),
        ("User.iban: last_four", "User.iban: hash", "audit.attributes.User.iban", "a hash without a key"),
        ("\"truncate:32\"", "\"truncate:0\"", "audit.attributes.context.channel", "nothing left"),
        ("context.channel: \"t", "channel: \"t", "audit.attributes.channel", "whose?"),
        ("ENUM_DENIED: {", "ENUM_ALLOWED: {", "audit.patterns.rules.ENUM_ALLOWED", "no such pattern"),
        ("threshold: 7", "threshold: 65", "audit.patterns.rules.ENUM_DENIED.threshold", "more than is remembered"),
        ("threshold: 7", "threshold: 1", "audit.patterns.rules.ENUM_DENIED.threshold", "everybody who mistypes"),
        ("window: 90s", "window: 900h", "audit.patterns.rules.ENUM_DENIED.window", "past its ceiling"),
        (
            "[Order.search], off: true",
            "[Order.search], off: true, threshold: 5",
            "audit.patterns.rules.ENUM_DENIED.actions[0]",
            "both",
        ),
        ("{ actions: [Order.search], off", "{ off", "audit.patterns.rules.ENUM_DENIED.actions[0].actions", "at none"),
        ("patterns: [BULK_READ]", "patterns: []", "audit.patterns.exempt[0]", "from nothing"),
        ("patterns: [BULK_READ]", "patterns: [BULK]", "audit.patterns.exempt[0].patterns[0]", "no such pattern"),
        ("Service::\\\"nightly", "\\\"nightly", "audit.patterns.exempt[0].principals[0]", "of which type?"),
        ("keys: 500", "keys: 99", "audit.patterns.keys", "forgotten at once"),
        ("keys: 500", "keys: 1000001", "audit.patterns.keys", "gigabytes"),
        ("name: out, stdout: {}", "name: Out, stdout: {}", "audit.sinks[0].name", "capital"),
        ("name: out, stdout: {}", "name: local, stdout: {}", "audit.sinks[1].name", "twice"),
        ("name: out, stdout: {}", "name: out", "audit.sinks[0]", "to nowhere"),
        ("name: local, file", "name: local, stdout: {}, file", "audit.sinks[1]", "to two places"),
        ("path: audit.jsonl", "path: gone/audit.jsonl", "audit.sinks[1].file.path", "no such folder"),
        ("path: audit.jsonl", "path: policies", "audit.sinks[1].file.path", "a folder"),
        (
            "max_bytes: 1MiB, max_files",
            "max_bytes: 4KiB, max_files",
            "audit.sinks[1].file.max_bytes",
            "smaller than a record",
        ),
        ("max_files: 3", "max_files: 0", "audit.sinks[1].file.max_files", "would delete what it rotates"),
        ("src_endpoint.ip", "metadata.uid", "audit.sinks[1].mask[1]", "nothing to tell records apart by"),
        ("encoding: cef", "encoding: rfc5424", "audit.sinks[2].encoding", "twice around"),
        ("facility: 4", "facility: 24", "audit.sinks[2].syslog.facility", "past the last"),
        ("https://splunk.internal", "http://splunk.internal", "audit.sinks[3].splunk.url", "a token in clear"),
        ("token_file: shared.key", "token_file: gone.key", "audit.sinks[3].splunk.token_file", "no such file"),
        ("severity: medium", "severity: fatal", "audit.sinks[3].filter.severity", "not one of four"),
        ("kinds: [decision, alert]", "kinds: [decisions]", "audit.sinks[3].filter.kinds[0]", "no such kind"),
        (
            "username: us, password_file: shared.key }, encoding: ecs",
            "username: us }, encoding: ecs",
            "audit.sinks[4].elastic",
            "half a credential",
        ),
        (", private_key: tls.key } }", " } }", "audit.sinks[5].otlp.private_key", "a certificate without its key"),
        ("\"k-0:9093\", ", "\"k-0\", ", "audit.sinks[6].kafka.brokers[0]", "no port"),
        (
            "topic: audit, user",
            "topic: audit, tls: false, user",
            "audit.sinks[6].kafka.username",
            "a password in clear",
        ),
        ("queue: 500", "queue: 0", "audit.queue", "no record would fit"),
        ("write_timeout: 1s", "write_timeout: 2m", "audit.write_timeout", "past its ceiling"),
        ("format: human", "format: xml", "telemetry.logs.format", "not a format"),
        ("gatepost=debug,warn", "gatepost=loud", "telemetry.logs.filter", "not a level"),
        ("http://127.0.0.1:4317", "127.0.0.1:4317", "telemetry.otlp.endpoint", "no scheme"),
        ("http://127.0.0.1:4317", "https://127.0.0.1:4317", "telemetry.otlp.endpoint", "would not start"),
        ("sample_ratio: 0.5", "sample_ratio: 1.01", "telemetry.otlp.sample_ratio", "more than all"),
        ("sample_ratio: 0.5", "sample_ratio: .nan", "", "not a number at all"),
        ("token_bytes: 8KiB", "token_bytes: 0", "limits.token_bytes", "no limit is zero"),
        ("token_bytes: 8KiB", "token_bytes: 1GiB", "limits.token_bytes", "past its ceiling"),
        ("token_bytes: 8KiB", "batch_items: 0", "limits.batch_items", "no limit is zero"),
        ("token_bytes: 8KiB", "value_depth: 33", "limits.value_depth", "deeper than Protobuf goes"),
        ("token_bytes: 8KiB", "default_deadline: 3s", "limits.default_deadline", "longer than the longest"),
        ("token_bytes: 8KiB", "connections_per_caller: 4096", "limits.connections_per_caller", "more than all"),
        ("token_bytes: 8KiB", "policy_file_bytes: 32MiB", "limits.policy_file_bytes", "more than the bundle"),
        ("token_bytes: 8KiB", "tokenbytes: 8KiB", "limits.tokenbytes", "V-CFG-2: an unknown key"),
        ("cache:\n", "cache:\n  decisions: 1\n", "cache.decisions", "a key that is there twice"),
        ("cache:\n", "server: {}\ncache:\n", "server", "a section that is there twice"),
        ("cache:\n", "<<: {}\ncache:\n", "", "merge keys hide what is set"),
        ("cache:\n", "---\ncache:\n", "", "a second document would be passed over"),
        ("cache:\n", "cache: [\n", "", "not YAML"),
    ];
    assert!(table.len() >= 60);
    let folder = Folder::new();
    for (text, becomes, key, why) in table {
        assert!(WHOLE.contains(text), "{text}");
        let report = folder.refusal(&WHOLE.replacen(text, becomes, 1));
        assert!(keys(&report).contains(&key), "{text} -> {becomes}, {why}; expected {key}, got:\n{report}");
        assert!(!report.to_string().contains("hunter2"), "{why}: repeats a secret");
        assert!(report.problems.iter().all(|problem| problem.at.is_some()), "{why}: says where\n{report}");
    }
}

#[test]
fn every_limit_is_refused_at_nothing_and_one_past_its_ceiling() {
    let folder = Folder::new();
    let schema = json_schema();
    let limits = schema.pointer("/$defs/RawLimits/properties").and_then(Json::as_object).unwrap();
    assert_eq!(limits.len(), format!("{:?}", Limits::default()).matches(": ").count(), "every limit can be set");
    for (name, limit) in limits {
        let past = match (&limit["x-most"], limit["x-type"].as_str()) {
            (Json::Number(most), _) => (json!(0), json!(most.as_u64().unwrap() + 1)),
            (Json::String(most), Some("size")) => (json!("0B"), json!(values::parse_size(most).unwrap() + 1)),
            (Json::String(most), _) => {
                let most = values::parse_duration(most).unwrap().as_millis();
                (json!("0s"), json!(format!("{}ms", most + 1)))
            }
            other => panic!("{name}: {other:?}"),
        };
        for value in [past.0, past.1] {
            let report = folder.refusal(&format!("{LEAST}limits: {{ {name}: {value} }}\n"));
            assert_eq!(keys(&report), [format!("limits.{name}")], "{value}");
        }
    }
}

#[test]
fn pseudonyms_need_a_key_that_nobody_guesses() {
    let folder = Folder::new();
    let with = |pseudonyms: &str| {
        LEAST.replace(
            "audit: { spool: { directory: audit } }",
            &format!(
                "audit: {{ spool: {{ directory: audit }}, attributes: {{ User.email: hash }}, pseudonyms: {{ {pseudonyms} }} }}"
            ),
        )
    };
    let config = folder.load(&with("key_file: shared.key, rotate: 24h, ids: [User]")).unwrap();
    let pseudonyms = config.audit.pseudonyms.as_ref().unwrap();
    assert_eq!(
        (pseudonyms.rotate, pseudonyms.ids.as_slice()),
        (std::time::Duration::from_secs(86_400), [entity_type("User")].as_slice())
    );
    assert!(!format!("{config:?}").contains(SHARED_KEY), "it is never printed");
    for (pseudonyms, key, why) in [
        ("ids: [User]", "audit.pseudonyms.key_file", "no key"),
        ("key_file: short.key", "audit.pseudonyms.key_file", "a word"),
        ("key_file: gone.key", "audit.pseudonyms.key_file", "no such file"),
        ("key_file: shared.key, rotate: 1m", "audit.pseudonyms.rotate", "all the time"),
        ("key_file: shared.key, ids: [\"Us er\"]", "audit.pseudonyms.ids[0]", "not a type's name"),
    ] {
        assert_eq!(keys(&folder.refusal(&with(pseudonyms))), [key], "{why}");
    }
}

#[test]
fn an_empty_file_is_told_everything_that_it_needs() {
    let report = Folder::new().refusal("# nothing yet\n");
    let mut found = keys(&report);
    found.sort_unstable();
    let needed = [
        "audit.spool.directory",
        "callers",
        "identity.trust_domains",
        "policies.directory",
        "server.certificate",
        "server.client_ca",
        "server.private_key",
    ];
    assert_eq!(found, needed);
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file_with_line_and_mend() {
    let folder = Folder::new();
    let yaml = r#"server:
  listn: 127.0.0.1:8443
  certificate: tls.crt
  private_key: tls.key
  client_ca: ca.crt
  drain_timeout: soon
identity: { trust_domains: [example.org] }
callers:
  - { spiffe_id: spiffe://example.org/orders, name: orders, resource_types: [Order], actions: [Order.read] }
issuers:
  - issuer: https://idp.example.org
    audiences: []
    jwks_file: keys.json
    clock_skew: 2m
    principal: { type: 7 }
policies: { directory: policies }
cache: none
audit: { spool: { directory: audit } }
"#;
    let report = folder.refusal(yaml);
    let file = folder.path("gatepost.yaml");
    let expected = [
        "2: server.listn: is not a known key; did you mean `listen`?",
        "6: server.drain_timeout: must be a time; write a whole number and a unit: `200ms`, `30s`, `15m`, `24h`",
        "12: issuers[0].audiences: must list at least one; add the audience that tokens for Gatepost carry",
        "14: issuers[0].clock_skew: must be 0s to 60s",
        "15: issuers[0].principal.type: must be text; put it in quotes",
        "17: cache: must be a section of keys",
    ];
    let expected: Vec<String> = expected.iter().map(|line| format!("{}:{line}", file.display())).collect();
    assert_eq!(report.to_string().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn the_environment_goes_over_the_file_and_flags_over_both() {
    let folder = Folder::new();
    let variables = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let source = folder
        .source(LEAST)
        .environment(variables(&[
            ("GATEPOST_SERVER__LISTEN", "127.0.0.2:1"),
            ("GATEPOST_SERVER__OPS_LISTEN", "127.0.0.2:2"),
            ("GATEPOST_LIMITS__TOKEN_BYTES", "4096"),
            ("GATEPOST_POLICIES__ANONYMOUS__ID", "007"),
            ("GATEPOST_CALLERS__0__ACTIONS", "[Order.read, \"Order.list\"]"),
            ("GATEPOST_ISSUERS__0__ISSUER", "1234"),
            ("GATEPOST_ISSUERS__0__AUDIENCES", "[gatepost]"),
            ("GATEPOST_ISSUERS__0__JWKS_FILE", "keys.json"),
            ("GATEPOST_ISSUERS__0__PRINCIPAL__TYPE", "User"),
            ("GATEPOST_PORT", "tcp://10.0.0.1:8443"),
            ("GATEPOST_CONFORMANCE", "/somewhere"),
            ("PATH", "/bin"),
        ]))
        .set("server.listen", "127.0.0.3:1")
        .set("callers[0].sees_policies", "true")
        .set("callers.1", "{ spiffe_id: spiffe://example.org/b, name: b, resource_types: \"*\", actions: \"*\" }");
    let config = load(&source).unwrap_or_else(|report| panic!("{report}"));

    assert_eq!(config.server.listen.to_string(), "127.0.0.3:1", "flag over variable");
    assert_eq!(config.server.ops_listen.to_string(), "127.0.0.2:2", "variable over file");
    assert_eq!(config.limits.token_bytes, 4096);
    assert_eq!(config.policies.anonymous.id.as_str(), "007", "text stays as it is where only text can stand");
    assert_eq!(config.issuers[0].issuer, "1234");
    assert_eq!(config.callers.len(), 2, "the next free number adds an item");
    assert!(config.callers[0].sees_policies);
    assert_eq!(config.callers[0].actions.len(), 2);
}

#[test]
fn a_wrong_variable_or_flag_is_named() {
    let folder = Folder::new();
    let table = [
        ("GATEPOST_SERVER__LISTEN", "nowhere", "server.listen"),
        ("GATEPOST_SERVER__LISTN", "127.0.0.1:1", "server.listn"),
        ("GATEPOST_CALLERS__5__NAME", "x", "callers.5.name"),
        ("GATEPOST_CALLERS__NAME", "x", "callers.name"),
        ("GATEPOST_SERVER__", "x", "server."),
        ("GATEPOST_CACHE__DECISIONS", "[", "cache.decisions"),
        ("GATEPOST_SERVER__LISTEN__PORT", "1", "server.listen.port"),
        ("GATEPOST_POLICIES__DIRECTORY", "gone", "policies.directory"),
    ];
    let file = LEAST.replacen("server: {", "server: { listen: 127.0.0.1:1,", 1);
    for (name, value, key) in table {
        let source = folder.source(&file).environment([(name.to_owned(), value.to_owned())]);
        let report = load(&source).unwrap_err();
        assert_eq!(keys(&report), [key], "{name}");
        assert_eq!(report.problems[0].at, Some(Origin::Variable(name.to_owned())));
    }
    let report = load(&folder.source(LEAST).set("cache.tokens", "many")).unwrap_err();
    assert_eq!(
        report.to_string(),
        "--set cache.tokens: cache.tokens: must be a whole number from 0 up",
        "the flag is named and its value is not repeated"
    );
}

#[test]
fn a_file_that_can_not_be_read_is_one_clear_problem() {
    let folder = Folder::new();
    let long = format!("#{}", "x".repeat(1024 * 1024));
    let deep = "[".repeat(5000);
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n\
                c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\n\
                e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e, *e]\n\
                g: &g [*e, *e, *e, *e, *e, *e, *e, *e, *e]\nh: [*g, *g, *g, *g, *g, *g, *g, *g, *g]\n";
    for (bytes, why) in [
        (long.as_bytes(), "past 1 MiB"),
        (b"\xff\xfe".as_slice(), "not UTF-8"),
        (b"server: {}\n\tcache: {}".as_slice(), "a tab"),
        (deep.as_bytes(), "5 000 brackets"),
        (bomb.as_bytes(), "aliases that grow"),
    ] {
        folder.write("odd.yaml", bytes);
        let report = load(&Source::file(folder.path("odd.yaml"))).unwrap_err();
        assert_eq!(report.problems.len(), 1, "{why}: {report}");
        assert!(report.to_string().len() < 500, "{why}: bounded");
    }
    let report = load(&Source::file(folder.path("gone.yaml"))).unwrap_err();
    assert!(report.to_string().contains("gone.yaml:1: does not exist"), "{report}");
}

/// V-CFG-2.
#[test]
fn two_hundred_files_with_an_unknown_key_somewhere_are_all_refused_and_the_key_is_named() {
    let folder = Folder::new();
    let whole: Json = serde_saphyr::from_str(WHOLE).unwrap();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % u64::try_from(below).unwrap()).unwrap()
    };
    for round in 0..200 {
        let mut mutated = whole.clone();
        let mut places = Vec::new();
        sections(&whole, String::new(), &mut places);
        let place = places.swap_remove(draw(places.len()));
        let section = mutated.pointer_mut(&place).and_then(Json::as_object_mut).unwrap();
        // A typo of a key that is there, or a key made up.
        let known: Vec<String> = section.keys().cloned().collect();
        let key = match draw(3) {
            0 => format!("{}s_", known[draw(known.len())]),
            1 => known[draw(known.len())].to_uppercase(),
            _ => format!("x{round}"),
        };
        let value = [json!(true), json!("x"), json!(1), json!([]), json!({})][draw(5)].clone();
        section.insert(key.clone(), value);
        // JSON is YAML.
        let report = folder.refusal(&mutated.to_string());
        assert!(
            report.problems.iter().any(|p| p.key.ends_with(&key) && p.message == "is not a known key"),
            "{place} {key}: {report}"
        );
    }
}

/// JSON pointers to every object whose keys are fixed.
fn sections(value: &Json, at: String, places: &mut Vec<String>) {
    match value {
        Json::Object(entries) => {
            for (key, value) in entries {
                sections(value, format!("{at}/{key}"), places);
            }
            if !at.ends_with("/attributes") && !at.ends_with("/rules") && !entries.is_empty() {
                places.push(at);
            }
        }
        Json::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                sections(item, format!("{at}/{index}"), places);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

#[test]
fn the_refusal_of_a_choice_names_all_that_is_possible() {
    let folder = Folder::new();
    let table = [
        ("resource_types: [Order]", "resource_types: Order", "must be a list of text, or `*`"),
        ("name: orders", "name: 7", "must be text; put it in quotes"),
        ("name: orders", "name: orders, sees_policies: yes", "must be `true` or `false`"),
    ];
    for (text, becomes, message) in table {
        let report = folder.refusal(&LEAST.replacen(text, becomes, 1)).to_string();
        assert!(report.ends_with(message), "{report}");
    }
}

#[test]
fn a_shared_key_is_never_printed() {
    let config = Folder::new().load(WHOLE).unwrap_or_else(|report| panic!("{report}"));
    assert!(!format!("{config:?}").contains(SHARED_KEY));
}

/// `UPDATE_REFERENCE=1 cargo test --lib reference` writes the page anew.
#[test]
fn the_reference_page_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/configuration.md");
    let page = reference_markdown();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &page).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/reference/configuration.md is out of date: UPDATE_REFERENCE=1 cargo test --lib reference"
    );
}

/// Either files or the Workload API; half of each is neither.
#[test]
fn a_listener_has_its_identity_from_one_source() {
    let folder = Folder::new();
    let names = "  names: [gatepost.shop.svc, 10.0.0.7]\n";
    let files = &format!("  certificate: tls.crt\n  private_key: tls.key\n  client_ca: ca.crt\n{names}");
    let agent = |socket: &str| format!("  workload_api: \"{socket}\"\n");
    let good = WHOLE.replace(files, &agent("unix:///run/spire/agent.sock"));
    let config = folder.load(&good).unwrap_or_else(|report| panic!("{report}"));
    let ListenerIdentity::WorkloadApi(api) = &config.server.tls else { panic!("the agent") };
    assert_eq!((api.socket.as_str(), api.start_timeout), ("unix:///run/spire/agent.sock", Duration::from_secs(30)));
    assert_eq!(api.trust_domains, config.identity.trust_domains);
    assert_eq!(api.reload_interval, Duration::from_secs(60));

    for socket in
        ["", "unix:", "unix://", "unix://run/agent.sock", "/run/agent.sock", "tcp://127.0.0.1:1", "unix:///a\\nb"]
    {
        let report = folder.refusal(&WHOLE.replace(files, &agent(socket)));
        assert_eq!(keys(&report), ["server.workload_api"], "{socket}");
    }
    let both = WHOLE.replace(files, &format!("{files}{}", agent("unix:///run/spire/agent.sock")));
    assert_eq!(
        keys(&folder.refusal(&both)),
        ["server.certificate", "server.private_key", "server.client_ca", "server.names"]
    );
    let own = good.replace("partner.example]", "{ name: partner.example, ca: ca.crt }]");
    assert_eq!(keys(&folder.refusal(&own)), ["identity.trust_domains[1].ca"], "bundles come from the agent");
    let own = WHOLE.replace("partner.example]", "{ name: partner.example, ca: ca.crt }]");
    let config = folder.load(&own).unwrap_or_else(|report| panic!("{report}"));
    let ListenerIdentity::Files(tls) = &config.server.tls else { panic!("files") };
    assert_eq!(tls.domain_ca.len(), 1);
    assert_eq!(config.identity.trust_domains.len(), 2, "a name is a name, with authorities or without");
}

/// `admin` and `revocation`: a slip here lets somebody revoke who should not, or lets nobody.
const REVOKING: &str = r#"admin:
  listen: 127.0.0.1:9444
  certificate: tls.crt
  private_key: tls.key
  client_ca: ca.crt
  trust_domains: [ops.example]
  operators:
    - { spiffe_id: spiffe://ops.example/on-call, name: on-call, may: [RevokeToken, ListRevocations] }
    - { dns: hook.internal, name: hook, may: [RevokeSession] }
revocation:
  file: revocations.jsonl
  redis:
    url: rediss://gatepost@redis.internal:6380/3
    password_file: shared.key
    ca: ca.crt
    certificate: tls.crt
    private_key: tls.key
    prefix: shop
"#;

#[test]
fn who_revokes_and_where_it_is_kept_is_taken_whole() {
    let folder = Folder::new();
    let config = folder.load(&format!("{LEAST}{REVOKING}")).unwrap_or_else(|report| panic!("{report}"));
    let admin = config.admin.unwrap();
    assert_eq!(admin.operators.len(), 2);
    assert!(admin.identity.dns_san && admin.identity.trust_domains.len() == 1);
    let redis = config.revocation.redis.unwrap();
    assert_eq!((redis.host.as_str(), redis.port, redis.database), ("redis.internal", 6380, 3));
    assert_eq!((redis.username.as_deref(), redis.prefix.as_str()), (Some("gatepost"), "shop"));
    assert!(redis.tls.unwrap().identity.is_some());
    let bare = folder.load(LEAST).unwrap();
    assert!(bare.admin.is_none() && bare.revocation.file.is_none() && bare.revocation.redis.is_none());
}

#[test]
fn every_slip_about_revoking_is_refused_by_its_key() {
    let table = [
        ("listen: 127.0.0.1:9444", "listen: 127.0.0.1:8443", "admin.listen", "the data listener's"),
        ("  listen: 127.0.0.1:9444\n", "", "admin.listen", "nowhere"),
        ("  client_ca: ca.crt\n", "", "admin.client_ca", "anybody's clients"),
        ("client_ca: ca.crt", "client_ca: gone.crt", "admin.client_ca", "not there"),
        ("[ops.example]", "[Ops]", "admin.trust_domains[0]", "not a trust domain"),
        ("[ops.example]", "[other.example]", "admin.operators[0].spiffe_id", "a foreign trust domain"),
        ("/on-call, name", ", name", "admin.operators[0].spiffe_id", "no workload"),
        ("may: [RevokeSession]", "may: []", "admin.operators[1].may", "a right to nothing"),
        ("may: [RevokeSession]", "may: [\"*\"]", "admin.operators[1].may[0]", "there is no word for all"),
        ("may: [RevokeSession]", "may: [revokesession]", "admin.operators[1].may[0]", "names are exact"),
        ("name: hook,", "name: on-call,", "admin.operators[1].name", "two of one name"),
        ("dns: hook.internal", "spiffe_id: spiffe://ops.example/on-call", "admin.operators[1].spiffe_id", "twice"),
        ("dns: hook.internal", "dns: \"*.internal\"", "admin.operators[1].dns", "a wildcard"),
        ("file: revocations.jsonl", "file: policies", "revocation.file", "a folder"),
        ("file: revocations.jsonl", "file: gone/revocations.jsonl", "revocation.file", "no such folder"),
        ("rediss://gatepost@", "rediss://gatepost:hunter2@", "revocation.redis.url", "a password in a URL"),
        ("rediss://", "https://", "revocation.redis.url", "no store"),
        ("6380/3", "6380/three", "revocation.redis.url", "no number"),
        ("6380/3", "6380/3?x=1", "revocation.redis.url", "a query"),
        ("rediss://", "redis://", "revocation.redis.ca", "an authority, and no TLS"),
        ("password_file: shared.key", "password_file: gone.key", "revocation.redis.password_file", "not there"),
        ("    private_key: tls.key\n    prefix", "    prefix", "revocation.redis.private_key", "half an identity"),
        ("prefix: shop", "prefix: \"a b\"", "revocation.redis.prefix", "a space"),
        ("prefix: shop", "prefix: \"{a}\"", "revocation.redis.prefix", "a hash tag"),
    ];
    let folder = Folder::new();
    for (text, becomes, key, why) in table {
        assert!(REVOKING.contains(text), "{text}");
        let report = folder.refusal(&format!("{LEAST}{}", REVOKING.replacen(text, becomes, 1)));
        assert!(keys(&report).contains(&key), "{text} -> {becomes}, {why}; expected {key}, got:\n{report}");
        assert!(!report.to_string().contains("hunter2"), "{why}: repeats a secret");
    }
}

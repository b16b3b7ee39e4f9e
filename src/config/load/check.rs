//! Do the settings make sense, each by itself and together? One function a section; each looks at all of it before it
//! gives up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::values::Checks;
use super::{admin, audit, credentials, issuers, listener, patterns, rights};
use crate::config::raw::{
    RawCache, RawCaller, RawConfig, RawGrant, RawIdentity, RawLogFormat, RawPolicies, RawTelemetry,
};
use crate::config::{
    ActionPattern, CacheConfig, CallerName, ClientNames, Config, EnrolledCaller, IdentityConfig, Limits, LogFormat,
    OtlpConfig, PolicyConfig, ServerConfig, TelemetryConfig, TypeGrant,
};
use crate::model::entity::{EntityId, EntityType, EntityUid, is_hidden};
use crate::model::spiffe_id::{SpiffeId, TrustDomain};

/// The settings, ready to use; `None` when `checks` noted a problem.
pub(super) fn check(raw: &RawConfig, checks: &mut Checks<'_>) -> Option<Config> {
    let limits = limits(raw, checks);
    let server = server(raw, limits.as_ref(), checks);
    let identity = identity(&raw.identity, checks);
    let issuer_names: Vec<&str> = raw.issuers.iter().filter_map(|issuer| issuer.issuer.as_deref()).collect();
    let callers = callers(&raw.callers, identity.as_ref(), &issuer_names, raw.policies.tenant_type.is_some(), checks);
    let issuers = issuers::issuers(&raw.issuers, &raw.policies.caller_type, checks);
    let api_keys = credentials::api_keys(raw, checks);
    let policies = policies(&raw.policies, limits.as_ref(), checks);
    let cache = cache(&raw.cache, checks);
    let mut audit = audit::audit(&raw.audit, limits.as_ref(), checks);
    if let (Some(audit), Some(callers)) = (&mut audit, &callers) {
        audit.patterns.presenters = patterns::presenters(callers);
    }
    let telemetry = telemetry(&raw.telemetry, checks);
    let admin = admin::admin(raw.admin.as_ref(), server.as_ref(), identity.as_ref(), limits.as_ref(), checks);
    let revocation = admin::revocation(&raw.revocation, checks);
    Some(Config {
        server: server?,
        identity: identity?,
        callers: callers?,
        issuers: issuers?,
        api_keys: api_keys?,
        policies: policies?,
        cache: cache?,
        audit: audit?,
        telemetry: telemetry?,
        limits: limits?,
        admin: admin?,
        revocation: revocation?,
    })
}

fn server(raw: &RawConfig, limits: Option<&Limits>, checks: &mut Checks<'_>) -> Option<ServerConfig> {
    let (identity, raw) = (&raw.identity, &raw.server);
    let listen = checks.address("server.listen", &raw.listen);
    let ops_listen = checks.address("server.ops_listen", &raw.ops_listen);
    if listen.is_some_and(|address| address.port() != 0 && Some(address) == ops_listen) {
        checks.refuse("server.ops_listen", "must not be the same as `server.listen`", "take another port");
    }
    let tls = listener::identity(raw, identity, limits, checks);
    let drain_timeout = checks.duration("server.drain_timeout", &raw.drain_timeout, "100ms", "10m");
    let drain_delay = checks.duration("server.drain_delay", &raw.drain_delay, "0s", "5m");
    Some(ServerConfig {
        listen: listen?,
        ops_listen: ops_listen?,
        reflection: raw.reflection,
        tls: tls?,
        drain_timeout: drain_timeout?,
        drain_delay: drain_delay?,
    })
}

fn identity(raw: &RawIdentity, checks: &mut Checks<'_>) -> Option<IdentityConfig> {
    if raw.trust_domains.is_empty() && !raw.dns_san {
        let help = "name the trust domain of your SPIFFE IDs, or switch `identity.dns_san` on";
        checks.refuse("identity.trust_domains", "must list at least one", help);
    }
    let domains = listener::trust_domains(raw, checks)?;
    Some(IdentityConfig { trust_domains: domains.into_iter().collect(), dns_san: raw.dns_san })
}

/// Each a trust domain, and once.
pub(super) fn trust_domains(key: &str, texts: &[String], checks: &mut Checks<'_>) -> Option<BTreeSet<TrustDomain>> {
    let domains = checks.each(key, texts, |checks, item, text| {
        let domain = text.parse().ok();
        if domain.is_none() {
            checks.refuse(item, "must be 1 to 255 characters of `a-z 0-9 . - _`", "the part after `spiffe://`");
        }
        domain
    });
    Some(domains?.into_iter().collect())
}

fn callers(
    raw: &[RawCaller],
    identity: Option<&IdentityConfig>,
    issuers: &[&str],
    has_tenants: bool,
    checks: &mut Checks<'_>,
) -> Option<Vec<EnrolledCaller>> {
    if raw.is_empty() {
        checks.refuse("callers", "must list at least one", "enrol the services that may ask; nobody else may");
        return None;
    }
    let mut names = BTreeMap::new();
    let mut labels = BTreeMap::new();
    let mut claimed = BTreeMap::new();
    let mut callers = Vec::with_capacity(raw.len());
    for (index, raw) in raw.iter().enumerate() {
        let key = format!("callers[{index}]");
        let name = caller_name(&key, raw, identity, checks);
        let label = caller_label(&key, raw, checks);
        let mut unique = |seen: &mut BTreeMap<String, usize>, name: Option<String>, item: &str| {
            if let Some(first) = name.and_then(|name| seen.insert(name, index)) {
                checks.refuse(&format!("{key}.{item}"), format!("is the same as in `callers[{first}]`"), "keep one");
            }
        };
        unique(&mut names, name.as_ref().map(ToString::to_string), if raw.dns.is_some() { "dns" } else { "spiffe_id" });
        unique(&mut labels, label.clone(), "name");
        let resource_types = at_least_one(&format!("{key}.resource_types"), &raw.resource_types, checks)
            .and_then(|()| types(&format!("{key}.resource_types"), &raw.resource_types, checks));
        let actions = at_least_one(&format!("{key}.actions"), &raw.actions, checks)
            .and_then(|()| actions(&format!("{key}.actions"), &raw.actions, checks));
        let assert_subjects = types(&format!("{key}.assert_subjects"), &raw.assert_subjects, checks);
        let supply_attributes = rights::attributes(&format!("{key}.supply_attributes"), &raw.supply_attributes, checks);
        let supply_parents = types(&format!("{key}.supply_parents"), &raw.supply_parents, checks);
        let clients = rights::clients(&format!("{key}.clients"), &raw.clients, issuers, checks);
        for (issuer, id) in clients.iter().flat_map(ClientNames::iter) {
            if let Some(first) = claimed.insert((issuer.to_owned(), id.to_owned()), index) {
                let message = format!("claim a client that `callers[{first}]` is");
                let help = "a client is one service; what another may present besides goes into its `presents_for`";
                checks.refuse(&format!("{key}.clients"), message, help);
            }
        }
        let presents_for = rights::presents_for(&format!("{key}.presents_for"), &raw.presents_for, issuers, checks);
        let tenants = rights::tenants(&format!("{key}.tenants"), &raw.tenants, has_tenants, checks);
        let batch_items = match &raw.batch_items {
            None => Some(None),
            Some(items) => checks.count(&format!("{key}.batch_items"), items, 1, 10_000).map(Some),
        };
        let capacity = rights::share(&format!("{key}.capacity"), &raw.capacity, checks);
        let caller = || {
            Some(EnrolledCaller {
                name: name?,
                label: label?,
                resource_types: resource_types?,
                actions: actions?,
                assert_subjects: assert_subjects?,
                supply_attributes: supply_attributes?,
                supply_parents: supply_parents?,
                sees_policies: raw.sees_policies,
                clients: clients?,
                presents_for: presents_for?,
                tenants: tenants?,
                batch_items: batch_items?,
                capacity: capacity?,
                explain: raw.explain,
                presents_api_keys: raw.presents_api_keys,
            })
        };
        callers.push(caller());
    }
    callers.into_iter().collect()
}

fn caller_name(
    key: &str,
    raw: &RawCaller,
    identity: Option<&IdentityConfig>,
    checks: &mut Checks<'_>,
) -> Option<CallerName> {
    name_of(key, raw.spiffe_id.as_deref(), raw.dns.as_deref(), identity, checks)
}

/// Whom a certificate names: by exactly one of the two.
pub(super) fn name_of(
    key: &str,
    spiffe_id: Option<&str>,
    dns: Option<&str>,
    identity: Option<&IdentityConfig>,
    checks: &mut Checks<'_>,
) -> Option<CallerName> {
    match (spiffe_id, dns) {
        (Some(text), None) => spiffe_name(&format!("{key}.spiffe_id"), text, identity, checks),
        (None, Some(text)) => dns_name(&format!("{key}.dns"), text, identity, checks),
        (Some(_), Some(_)) => {
            checks.refuse(&format!("{key}.dns"), "must not stand beside `spiffe_id`", "a caller has one name");
            None
        }
        (None, None) => {
            checks.refuse(&format!("{key}.spiffe_id"), "is missing", "name the caller's SPIFFE ID, or its `dns` name");
            None
        }
    }
}

fn spiffe_name(
    key: &str,
    text: &str,
    identity: Option<&IdentityConfig>,
    checks: &mut Checks<'_>,
) -> Option<CallerName> {
    let id: SpiffeId = match text.parse() {
        Ok(id) => id,
        Err(error) => {
            checks.refuse(key, format!("is not a SPIFFE ID: {error}"), "`spiffe://example.org/ns/shop/sa/orders`");
            return None;
        }
    };
    if !id.is_workload() {
        checks.refuse(key, "names a trust domain and no workload", "add the path: `/ns/shop/sa/orders`");
        return None;
    }
    if identity.is_some_and(|identity| !identity.trust_domains.contains(id.trust_domain())) {
        checks.refuse(key, "has a trust domain that is not listed", "add it to `identity.trust_domains`");
        return None;
    }
    Some(CallerName::Spiffe(id))
}

fn dns_name(key: &str, text: &str, identity: Option<&IdentityConfig>, checks: &mut Checks<'_>) -> Option<CallerName> {
    if identity.is_some_and(|identity| !identity.dns_san) {
        checks.refuse(key, "would never be taken", "switch `identity.dns_san` on, or give the caller a `spiffe_id`");
        return None;
    }
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // RFC 1123 section 2.1, in lower case; an address is no name.
    if text.len() > 253 || !text.split('.').all(label_fits) || text.parse::<IpAddr>().is_ok() {
        checks.refuse(key, "must be a DNS name in lower case, without wildcard", "`orders.internal`");
        return None;
    }
    Some(CallerName::Dns(text.to_owned()))
}

fn caller_label(key: &str, raw: &RawCaller, checks: &mut Checks<'_>) -> Option<String> {
    label(&format!("{key}.name"), raw.name.as_ref(), checks)
}

pub(super) fn label(key: &str, raw: Option<&String>, checks: &mut Checks<'_>) -> Option<String> {
    let label = checks.required(key, raw, "say what people call it: `orders`")?;
    if label.len() > 64 || !label.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        checks.refuse(key, "must be 1 to 64 characters of `A-Z a-z 0-9 . _ -`", "`orders`");
        return None;
    }
    Some(label.to_owned())
}

pub(super) fn at_least_one(key: &str, raw: &RawGrant, checks: &mut Checks<'_>) -> Option<()> {
    if matches!(raw, RawGrant::Only(names) if names.is_empty()) {
        checks.refuse(key, "must list at least one", "a caller that may ask about nothing needs no enrolment");
        return None;
    }
    Some(())
}

fn types(key: &str, raw: &RawGrant, checks: &mut Checks<'_>) -> Option<TypeGrant> {
    match raw {
        RawGrant::All(_) => Some(TypeGrant::All),
        RawGrant::Only(names) => {
            let types = checks.each(key, names, |checks, item, text| {
                if text == "*" {
                    checks.refuse(item, "must be a type's name", format!("for all types write `{}: \"*\"`", last(key)));
                    return None;
                }
                checks.entity_type(item, text)
            })?;
            Some(TypeGrant::Only(types.into_iter().collect::<BTreeSet<EntityType>>()))
        }
    }
}

pub(super) fn actions(key: &str, raw: &RawGrant, checks: &mut Checks<'_>) -> Option<Vec<ActionPattern>> {
    let RawGrant::Only(names) = raw else { return Some(vec![ActionPattern::All]) };
    checks.each(key, names, |checks, item, text| {
        if text == "*" {
            checks.refuse(item, "must be an action", "for all actions write `actions: \"*\"`");
            return None;
        }
        let (name, pattern) = match text.strip_suffix(".*") {
            Some(before) => (before, ActionPattern::Prefix(format!("{before}."))),
            None => (text, ActionPattern::Exact(text.to_owned())),
        };
        // Field actions (`Order.read:total`, `Order.read#basic`) are asked for with their base action.
        let fits = (1..=256).contains(&name.len()) && !name.chars().any(|c| "*:#".contains(c) || is_hidden(c));
        if !fits {
            let help = "a whole action (`Order.read`) or everything before a dot (`Order.*`), without field or group";
            checks.refuse(item, "is not an action", help);
            return None;
        }
        Some(pattern)
    })
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn policies(raw: &RawPolicies, limits: Option<&Limits>, checks: &mut Checks<'_>) -> Option<PolicyConfig> {
    let key = "policies.directory";
    let directory = checks.required(key, raw.directory.as_ref(), "name the folder of the bundle").and_then(|text| {
        let path = checks.path(text);
        checks.readable_folder(key, &path, "name the folder of the bundle")
    });
    let validation_level = checks.count("policies.validation_level", &raw.validation_level, 1, 2);
    let caller_type = checks.entity_type("policies.caller_type", &raw.caller_type);
    let entity_type = checks.entity_type("policies.anonymous.type", &raw.anonymous.entity_type);
    let most = limits.map_or(EntityId::DEFAULT_MAX_BYTES, |limits| limits.id_bytes);
    let id = EntityId::parse(&raw.anonymous.id, most);
    if let Err(error) = &id {
        checks.refuse("policies.anonymous.id", error.to_string(), "");
    }
    let tenant_type = match &raw.tenant_type {
        None => Some(None),
        Some(text) => checks.entity_type("policies.tenant_type", text).map(Some),
    };
    let reload_interval = checks.duration("policies.reload_interval", &raw.reload_interval, "1s", "1h");
    Some(PolicyConfig {
        directory: directory?,
        validation_level: validation_level?,
        caller_type: caller_type?,
        anonymous: EntityUid { entity_type: entity_type?, id: id.ok()? },
        tenant_type: tenant_type?,
        reload_interval: reload_interval?,
    })
}

fn cache(raw: &RawCache, checks: &mut Checks<'_>) -> Option<CacheConfig> {
    let decisions = checks.count("cache.decisions", &raw.decisions, 0, 10_000_000);
    let decision_ttl = checks.duration("cache.decision_ttl", &raw.decision_ttl, "1ms", "1h");
    let decision_bytes: Option<u64> = checks.size("cache.decision_bytes", &raw.decision_bytes, "64KiB", "64GiB");
    let question_bytes: Option<u64> = checks.size("cache.question_bytes", &raw.question_bytes, "0B", "64GiB");
    let tokens = checks.count("cache.tokens", &raw.tokens, 0, 1_000_000);
    let token_bytes: Option<u64> = checks.size("cache.token_bytes", &raw.token_bytes, "64KiB", "64GiB");
    let caller_reuse = checks.duration("cache.caller_reuse", &raw.caller_reuse, "0s", "5m");
    Some(CacheConfig {
        decisions: decisions?,
        decision_bytes: decision_bytes?,
        decision_ttl: decision_ttl?,
        question_bytes: question_bytes?,
        tokens: tokens?,
        token_bytes: token_bytes?,
        caller_reuse: caller_reuse?,
    })
}

fn telemetry(raw: &RawTelemetry, checks: &mut Checks<'_>) -> Option<TelemetryConfig> {
    let key = "telemetry.logs.filter";
    let filter = checks.plain_text(key, &raw.logs.filter, 1024);
    let filter_reads = |filter: &String| tracing_subscriber::EnvFilter::try_new(filter).is_ok();
    let filter_fits = filter.as_ref().is_none_or(filter_reads);
    if !filter_fits {
        checks.refuse(key, "is not a filter", "`info`, `warn`, `gatepost=debug,warn`");
    }
    let otlp = match &raw.otlp {
        None => Some(None),
        Some(otlp) => {
            let endpoint = endpoint(otlp.endpoint.as_ref(), checks);
            if !(0.0..=1.0).contains(&otlp.sample_ratio) {
                checks.refuse("telemetry.otlp.sample_ratio", "must be 0 to 1", "0.1 samples every tenth trace");
            }
            let interval = checks.duration("telemetry.otlp.interval", &otlp.interval, "1s", "1h");
            endpoint
                .zip(interval)
                .map(|(endpoint, interval)| Some(OtlpConfig { endpoint, sample_ratio: otlp.sample_ratio, interval }))
        }
    };
    let log_format = match raw.logs.format {
        RawLogFormat::Json => LogFormat::Json,
        RawLogFormat::Human => LogFormat::Human,
    };
    Some(TelemetryConfig { log_format, log_filter: filter?, otlp: otlp? })
}

fn endpoint(text: Option<&String>, checks: &mut Checks<'_>) -> Option<url::Url> {
    let key = "telemetry.otlp.endpoint";
    let help = "name the collector's OTLP over gRPC: `http://127.0.0.1:4317`";
    let text = checks.required(key, text, help)?;
    let url = url::Url::parse(text).ok().filter(url::Url::has_host);
    // The exporter is built without TLS.
    let Some(url) = url.filter(|url| url.scheme() == "http") else {
        checks.refuse(key, "must be an `http` URL: a collector beside us takes it from there", help);
        return None;
    };
    if !url.username().is_empty() || url.password().is_some() {
        checks.refuse(key, "must not hold a user name or password", "");
        return None;
    }
    Some(url)
}

fn limits(raw: &RawConfig, checks: &mut Checks<'_>) -> Option<Limits> {
    let limits = raw.limits.checked(checks)?;
    let l = &limits;
    checks.ordered(("limits.default_deadline", l.default_deadline), ("limits.max_deadline", l.max_deadline));
    checks.ordered(("limits.request_bytes", l.request_bytes), ("limits.batch_bytes", l.batch_bytes));
    checks.ordered(("limits.token_bytes", l.token_bytes), ("limits.request_bytes", l.request_bytes));
    checks.ordered(("limits.context_bytes", l.context_bytes), ("limits.request_bytes", l.request_bytes));
    checks.ordered(("limits.string_bytes", l.string_bytes), ("limits.request_bytes", l.request_bytes));
    checks.ordered(("limits.connections_per_caller", l.connections_per_caller), ("limits.connections", l.connections));
    checks.ordered(("limits.policy_file_bytes", l.policy_file_bytes), ("limits.bundle_bytes", l.bundle_bytes));
    let interval = ("limits.jwks_refresh_interval", l.jwks_refresh_interval);
    checks.ordered(("limits.jwks_refresh_floor", l.jwks_refresh_floor), interval);
    checks.ordered(interval, ("limits.jwks_max_stale", l.jwks_max_stale));
    let interval = ("limits.status_list_refresh_interval", l.status_list_refresh_interval);
    checks.ordered(("limits.status_list_refresh_floor", l.status_list_refresh_floor), interval);
    checks.ordered(interval, ("limits.status_list_max_age", l.status_list_max_age));
    Some(limits)
}

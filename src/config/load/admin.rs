//! The admin listener and where revocations live: the settings where a slip lets somebody revoke what he should not, or
//! lets nobody.

use std::collections::{BTreeMap, BTreeSet};

use super::values::Checks;
use super::{check, listener};
use crate::config::raw::admin::{RawAdmin, RawOperator, RawRedis, RawRevocation};
use crate::config::{
    AdminConfig, AdminMethod, CallerName, IdentityConfig, Limits, ListenerTls, Operator, RedisConfig, RedisTls,
    RevocationConfig, ServerConfig,
};

const MAX_OPERATORS: usize = 100;
const REDIS_PORT: u16 = 6379;
const MAX_PASSWORD_BYTES: u64 = 4096;

/// `None` when `checks` noted a problem; `Some(None)` when there is no such listener.
pub(super) fn admin(
    raw: Option<&RawAdmin>,
    server: Option<&ServerConfig>,
    identity: Option<&IdentityConfig>,
    limits: Option<&Limits>,
    checks: &mut Checks<'_>,
) -> Option<Option<AdminConfig>> {
    let Some(raw) = raw else { return Some(None) };
    let listen = checks
        .required("admin.listen", raw.listen.as_ref(), "for this machine alone `127.0.0.1:9444`")
        .and_then(|text| checks.address("admin.listen", text));
    let taken = server.map(|server| [("server.listen", server.listen), ("server.ops_listen", server.ops_listen)]);
    for (key, other) in taken.into_iter().flatten() {
        if listen.is_some_and(|address| address.port() != 0 && address == other) {
            checks.refuse("admin.listen", format!("must not be the same as `{key}`"), "take another port");
        }
    }
    let mut pem = |key: &str, value: &Option<String>, what: &str| {
        let path = checks.required(key, value.as_ref(), &format!("name {what}"))?;
        checks.readable_file(key, path, what)
    };
    let certificate = pem("admin.certificate", &raw.certificate, "a PEM file with the listener's certificate chain");
    let private_key = pem("admin.private_key", &raw.private_key, "a PEM file with the certificate's private key");
    let client_ca = pem("admin.client_ca", &raw.client_ca, "a PEM file with the authorities of operators");
    let revocation = listener::revocation("admin.client_crls", &raw.client_crls, limits, checks);
    let trust_domains = match &raw.trust_domains {
        None => identity.map(|identity| identity.trust_domains.clone()),
        Some(texts) => check::trust_domains("admin.trust_domains", texts, checks),
    };
    let names = trust_domains.map(|trust_domains| IdentityConfig {
        trust_domains,
        dns_san: raw.operators.iter().any(|operator| operator.dns.is_some()),
    });
    let operators = operators(&raw.operators, names.as_ref(), checks);
    Some(Some(AdminConfig {
        listen: listen?,
        tls: ListenerTls {
            certificate: certificate?,
            private_key: private_key?,
            client_ca: client_ca?,
            domain_ca: BTreeMap::new(),
            names: Vec::new(),
            revocation: revocation?,
            reload_interval: server?.tls.reload_interval(),
        },
        identity: names?,
        operators: operators?,
    }))
}

fn operators(raw: &[RawOperator], names: Option<&IdentityConfig>, checks: &mut Checks<'_>) -> Option<Vec<Operator>> {
    if raw.is_empty() {
        checks.refuse(
            "admin.operators",
            "must list at least one",
            "or take the whole section out: nothing listens then",
        );
        return None;
    }
    if raw.len() > MAX_OPERATORS {
        checks.refuse("admin.operators", format!("must list at most {MAX_OPERATORS}"), "");
        return None;
    }
    let (mut seen, mut operators) = (BTreeMap::new(), Vec::with_capacity(raw.len()));
    for (index, raw) in raw.iter().enumerate() {
        let key = format!("admin.operators[{index}]");
        let name = check::name_of(&key, raw.spiffe_id.as_deref(), raw.dns.as_deref(), None, checks);
        let name = name.filter(|name| is_believed(&key, name, names, checks));
        let label = check::label(&format!("{key}.name"), raw.name.as_ref(), checks);
        let item = if raw.dns.is_some() { "dns" } else { "spiffe_id" };
        for (text, item) in [(name.as_ref().map(ToString::to_string), item), (label.clone(), "name")] {
            if let Some(first) = text.and_then(|text| seen.insert((item, text), index)) {
                let message = format!("is the same as in `admin.operators[{first}]`");
                checks.refuse(&format!("{key}.{item}"), message, "keep one");
            }
        }
        let may = methods(&format!("{key}.may"), &raw.may, checks);
        let operator = || Some(Operator { name: name?, label: label?, may: may? });
        operators.push(operator());
    }
    operators.into_iter().collect()
}

fn is_believed(key: &str, name: &CallerName, names: Option<&IdentityConfig>, checks: &mut Checks<'_>) -> bool {
    let CallerName::Spiffe(id) = name else { return true };
    if names.is_none_or(|names| names.trust_domains.contains(id.trust_domain())) {
        return true;
    }
    checks.refuse(
        &format!("{key}.spiffe_id"),
        "has a trust domain that is not listed",
        "add it to `admin.trust_domains`, or to `identity.trust_domains` where that is unset",
    );
    false
}

fn methods(key: &str, raw: &[String], checks: &mut Checks<'_>) -> Option<BTreeSet<AdminMethod>> {
    let known = || AdminMethod::ALL.map(AdminMethod::as_str).join(", ");
    if raw.is_empty() {
        checks.refuse(key, "must list at least one", format!("some of {}", known()));
        return None;
    }
    let methods = checks.each(key, raw, |checks, item, text| {
        let method = AdminMethod::ALL.into_iter().find(|method| method.as_str() == text);
        if method.is_none() {
            checks.refuse(item, "is not a method of the admin listener", format!("one of {}", known()));
        }
        method
    });
    Some(methods?.into_iter().collect())
}

/// `None` when `checks` noted a problem.
pub(super) fn revocation(raw: &RawRevocation, checks: &mut Checks<'_>) -> Option<RevocationConfig> {
    let file = match &raw.file {
        None => Some(None),
        Some(text) => file(text, checks).map(Some),
    };
    let redis = match &raw.redis {
        None => Some(None),
        Some(raw) => redis(raw, checks).map(Some),
    };
    Some(RevocationConfig { file: file?, redis: redis? })
}

fn file(text: &str, checks: &mut Checks<'_>) -> Option<std::path::PathBuf> {
    let key = "revocation.file";
    let path = checks.path(text);
    if path.is_dir() {
        checks.refuse(key, "is a folder", "name a file; it is made when it is not there");
        return None;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).map(ToOwned::to_owned);
    if let Some(folder) = folder {
        checks.readable_folder(key, &folder, "its folder must be there, and open to this user")?;
    }
    Some(path)
}

fn redis(raw: &RawRedis, checks: &mut Checks<'_>) -> Option<RedisConfig> {
    let url = checks
        .required("revocation.redis.url", raw.url.as_ref(), "`rediss://redis.internal:6379`")
        .and_then(|text| redis_url(text, checks));
    let secure = url.as_ref().is_some_and(|url| url.scheme() == "rediss");
    let password_file = match &raw.password_file {
        None => Some(None),
        Some(text) => {
            let key = "revocation.redis.password_file";
            let what = "a file that holds the password and nothing else";
            checks
                .small_file(key, text, MAX_PASSWORD_BYTES, what)
                .map(zeroize::Zeroizing::new)
                .map(|_| Some(checks.path(text)))
        }
    };
    let mut pem = |key: &str, value: &Option<String>, what: &str| {
        let Some(text) = value else { return Some(None) };
        if url.is_some() && !secure {
            checks.refuse(key, "only goes with `rediss://`", "take it out, or speak TLS");
            return None;
        }
        checks.readable_file(key, text, what).map(Some)
    };
    let ca = pem("revocation.redis.ca", &raw.ca, "a PEM file with the server's authorities");
    let certificate = pem("revocation.redis.certificate", &raw.certificate, "a PEM file with our certificate chain");
    let private_key = pem("revocation.redis.private_key", &raw.private_key, "a PEM file with the certificate's key");
    let identity = match (certificate?, private_key?) {
        (None, None) => Some(None),
        (Some(certificate), Some(key)) => Some(Some((certificate, key))),
        (Some(_), None) => {
            checks.refuse("revocation.redis.private_key", "is missing", "name the key of `certificate`");
            None
        }
        (None, Some(_)) => {
            checks.refuse("revocation.redis.certificate", "is missing", "name the certificate of `private_key`");
            None
        }
    };
    let fits = (1..=64).contains(&raw.prefix.len())
        && raw.prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte));
    if !fits {
        checks.refuse("revocation.redis.prefix", "must be 1 to 64 of `A-Z a-z 0-9 . _ : -`", "`gatepost`");
        return None;
    }
    let url = url?;
    let (ca, identity) = (ca?, identity?);
    Some(RedisConfig {
        host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
        port: url.port().unwrap_or(REDIS_PORT),
        database: url.path().trim_matches('/').parse().unwrap_or(0),
        username: (!url.username().is_empty()).then(|| url.username().to_owned()),
        password_file: password_file?,
        tls: secure.then_some(RedisTls { ca, identity }),
        prefix: raw.prefix.clone(),
    })
}

fn redis_url(text: &str, checks: &mut Checks<'_>) -> Option<url::Url> {
    let parsed = url::Url::parse(text).ok().filter(|url| url.host_str().is_some_and(|host| !host.is_empty()));
    let message = match &parsed {
        None => "must be a `rediss://` or `redis://` URL with a host",
        Some(url) if !matches!(url.scheme(), "redis" | "rediss") => "must be a `rediss://` or `redis://` URL",
        Some(url) if url.password().is_some() => "must not hold a password: put it into `password_file`",
        Some(url) if url.query().is_some() || url.fragment().is_some() => "must not hold a query or a fragment",
        Some(url) if url.path().len() > 1 && url.path().trim_start_matches('/').parse::<u16>().is_err() => {
            "must have a database's number for its path, or none"
        }
        Some(url) if url.username().contains('%') => "must name a user without special characters",
        Some(_) => return parsed,
    };
    checks.refuse("revocation.redis.url", message, "`rediss://gatepost@redis.internal:6379/0`");
    None
}

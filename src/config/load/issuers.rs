//! Whose tokens are accepted: the settings where a slip lets strangers in, so each is looked at closely.
//!
//! Follows RFC 8725 (JWT best current practices) sections 3.1, 3.2, 3.5, 3.8 and 3.9.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use super::credentials;
use super::values::Checks;
use crate::config::raw::{RawAttribute, RawIssuer, RawPrincipal, RawTokenTypes};
use crate::config::{
    API_KEYS_ISSUER, AttributeMapping, ClaimMapping, KeyHost, KeySource, ParentMapping, TokenAlgorithm, TrustedIssuer,
};
use crate::secret::SecretSlice;

const MAX_ISSUERS: usize = 100;
const MAX_AUDIENCES: usize = 100;
const MAX_HOSTS: usize = 16;
const MIN_KEY_BYTES: usize = 32;
const MAX_KEY_BYTES: u64 = 4096;

const PUBLIC_KEY_ALGORITHMS: [TokenAlgorithm; 9] = [
    TokenAlgorithm::Rs256,
    TokenAlgorithm::Rs384,
    TokenAlgorithm::Rs512,
    TokenAlgorithm::Ps256,
    TokenAlgorithm::Ps384,
    TokenAlgorithm::Ps512,
    TokenAlgorithm::Es256,
    TokenAlgorithm::Es384,
    TokenAlgorithm::EdDsa,
];

const DEFAULT_ALGORITHMS: [TokenAlgorithm; 4] =
    [TokenAlgorithm::Rs256, TokenAlgorithm::Ps256, TokenAlgorithm::Es256, TokenAlgorithm::EdDsa];

/// All issuers; `None` when `checks` noted a problem. `caller_type` is what calling services are as principals.
pub(super) fn issuers(raw: &[RawIssuer], caller_type: &str, checks: &mut Checks<'_>) -> Option<Vec<TrustedIssuer>> {
    if raw.len() > MAX_ISSUERS {
        checks.refuse("issuers", format!("must list at most {MAX_ISSUERS}"), "");
        return None;
    }
    let mut seen = BTreeMap::new();
    let mut issuers = Vec::with_capacity(raw.len());
    for (index, raw) in raw.iter().enumerate() {
        let key = format!("issuers[{index}]");
        if let Some(first) = raw.issuer.as_ref().and_then(|name| seen.insert(name, index)) {
            let help = "one issuer has one set of keys and rules";
            checks.refuse(&format!("{key}.issuer"), format!("is the same as in `issuers[{first}]`"), help);
        }
        issuers.push(issuer(&key, raw, checks));
    }
    unshared_types(raw, caller_type, checks);
    credentials::prefixes(raw, checks);
    issuers.into_iter().collect()
}

/// A subject is unique within its issuer alone (RFC 7519 section 4.1.2), and a principal is named by type and id: where
/// two issuers make principals of one type, the `alice` of one is the `alice` of the other.
fn unshared_types(raw: &[RawIssuer], caller_type: &str, checks: &mut Checks<'_>) {
    const HELP: &str = "give each a type of its own, or set `shared_type: true` for each if they name the same people";
    let type_of = |issuer: &RawIssuer| issuer.principal.entity_type.clone().filter(|_| !issuer.principal.shared_type);
    for (index, issuer) in raw.iter().enumerate() {
        let Some(mine) = type_of(issuer) else { continue };
        let key = format!("issuers[{index}].principal.type");
        let same = |other: &RawIssuer| other.principal.entity_type.as_deref() == Some(mine.as_str());
        if mine == caller_type {
            checks.refuse(&key, "is the type of calling services: a token's subject could be one of them", HELP);
        } else if let Some(other) = raw.iter().enumerate().position(|(at, other)| at != index && same(other)) {
            let message = format!(
                "is the type of the principals of `issuers[{other}]` too: subjects of one could be taken for the other's"
            );
            checks.refuse(&key, message, HELP);
        }
    }
}

fn issuer(key: &str, raw: &RawIssuer, checks: &mut Checks<'_>) -> Option<TrustedIssuer> {
    let name_key = format!("{key}.issuer");
    let name = checks
        .required(&name_key, raw.issuer.as_ref(), "the exact text of `iss`: `https://idp.example.org`")
        .and_then(|text| checks.plain_text(&name_key, text, 1024));
    if raw.issuer.as_deref() == Some(API_KEYS_ISSUER) {
        checks.refuse(&name_key, "is what stands for API keys", "name the issuer by the exact text of `iss`");
    }
    let audiences = audiences(&format!("{key}.audiences"), raw, checks);
    let keys = keys(key, raw, checks);
    let algorithms = algorithms(&format!("{key}.algorithms"), raw, checks);
    let token_types = token_types(&format!("{key}.token_types"), &raw.token_types, checks);
    let clock_skew = checks.duration(&format!("{key}.clock_skew"), &raw.clock_skew, "0s", "60s");
    let max_lifetime = checks.duration(&format!("{key}.max_lifetime"), &raw.max_lifetime, "1s", "24h");
    let mapping = mapping(&format!("{key}.principal"), &raw.principal, checks);
    let introspection = match &raw.introspection {
        None => Some(None),
        Some(raw) => credentials::introspection(&format!("{key}.introspection"), raw, checks).map(Some),
    };
    let status_lists = credentials::status_lists(key, raw, checks);
    Some(TrustedIssuer {
        issuer: name?,
        audiences: audiences?,
        algorithms: algorithms?,
        keys: keys?,
        token_types: token_types?,
        clock_skew: clock_skew?,
        max_lifetime: max_lifetime?,
        require_sender_constrained: raw.require_sender_constrained,
        mapping: mapping?,
        require_token_id: raw.require_token_id,
        introspection: introspection?,
        status_lists: status_lists?,
    })
}

fn audiences(key: &str, raw: &RawIssuer, checks: &mut Checks<'_>) -> Option<Vec<String>> {
    if raw.audiences.is_empty() {
        checks.refuse(key, "must list at least one", "add the audience that tokens for Gatepost carry");
        return None;
    }
    if raw.audiences.len() > MAX_AUDIENCES {
        checks.refuse(key, format!("must list at most {MAX_AUDIENCES}"), "");
        return None;
    }
    checks.each(key, &raw.audiences, |checks, item, text| checks.plain_text(item, text, 1024))
}

/// RFC 8725 section 3.1: the algorithms come from here, never from a token; section 3.5 on key strength.
fn algorithms(key: &str, raw: &RawIssuer, checks: &mut Checks<'_>) -> Option<Vec<TokenAlgorithm>> {
    let shared = raw.shared_key_file.is_some();
    let Some(names) = &raw.algorithms else {
        return Some(if shared { vec![TokenAlgorithm::Hs256] } else { DEFAULT_ALGORITHMS.to_vec() });
    };
    if names.is_empty() {
        checks.refuse(key, "must list at least one", "leave the key out for the default");
        return None;
    }
    checks.each(key, names, |checks, item, name| {
        let known = PUBLIC_KEY_ALGORITHMS.into_iter().chain([TokenAlgorithm::Hs256]);
        let letters: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let algorithm = known.clone().find(|algorithm| algorithm.as_str() == name);
        match algorithm {
            Some(TokenAlgorithm::Hs256) if !shared => {
                let help = "`HS256` needs `shared_key_file` and never stands beside public keys";
                checks.refuse(item, "must be an algorithm with public keys", help);
                None
            }
            Some(algorithm) if shared && algorithm != TokenAlgorithm::Hs256 => {
                checks.refuse(item, "must be `HS256`", "a shared key is for `HS256` alone");
                None
            }
            Some(algorithm) => Some(algorithm),
            None if letters.eq_ignore_ascii_case("none") => {
                checks.refuse(item, "would accept tokens that nobody signed", "take it out");
                None
            }
            None => {
                let names: Vec<&str> = known.map(TokenAlgorithm::as_str).collect();
                checks.refuse(item, "is not a known algorithm", format!("one of {}", names.join(", ")));
                None
            }
        }
    })
}

/// Exactly one place where keys come from, and no key beside it that goes with another.
fn keys(key: &str, raw: &RawIssuer, checks: &mut Checks<'_>) -> Option<KeySource> {
    let places = [
        ("jwks_file", &raw.jwks_file),
        ("jwks_url", &raw.jwks_url),
        ("discovery_url", &raw.discovery_url),
        ("shared_key_file", &raw.shared_key_file),
    ];
    let mut named = places.iter().filter_map(|(name, text)| Some((*name, text.as_deref()?)));
    let fetched = raw.jwks_url.is_some() || raw.discovery_url.is_some() || credentials::fetches_lists(raw);
    let beside = [
        ("jwks_ca", raw.jwks_ca.is_some(), fetched, "`jwks_url`, `discovery_url` or `status_lists`"),
        (
            "allow_private_addresses",
            raw.allow_private_addresses,
            fetched,
            "`jwks_url`, `discovery_url` or `status_lists`",
        ),
        ("jwks_hosts", !raw.jwks_hosts.is_empty(), raw.discovery_url.is_some(), "`discovery_url`"),
        ("shared_key_id", raw.shared_key_id.is_some(), raw.shared_key_file.is_some(), "`shared_key_file`"),
    ];
    for (name, set, fits, with) in beside {
        if set && !fits {
            checks.refuse(&format!("{key}.{name}"), format!("only goes with {with}"), "take it out");
        }
    }
    let all: Vec<String> = places.iter().map(|(name, _)| format!("`{name}`")).collect();
    let (name, text) = match (named.next(), named.next()) {
        (Some(one), None) => one,
        (None, _) if raw.introspection.is_some() => return Some(KeySource::Nowhere),
        (None, _) => {
            checks.refuse(key, "has no keys", format!("set one of {}", all.join(", ")));
            return None;
        }
        (Some(_), Some(_)) => {
            checks.refuse(key, "has keys from more than one place", format!("keep one of {}", all.join(", ")));
            return None;
        }
    };
    let (name_key, private) = (format!("{key}.{name}"), raw.allow_private_addresses);
    match name {
        "jwks_file" => checks.readable_file(&name_key, text, "a JWKS file").map(KeySource::File),
        "jwks_url" => {
            let url = key_url(&name_key, text, "`https://idp.example.org/jwks.json`", private, checks);
            let ca = authorities(key, raw, checks);
            Some(KeySource::Url { url: url?, ca: ca?, allow_private_addresses: private })
        }
        "discovery_url" => {
            let example = "`https://idp.example.org/.well-known/openid-configuration`";
            let url = key_url(&name_key, text, example, private, checks);
            let hosts = key_hosts(&format!("{key}.jwks_hosts"), raw, checks);
            let ca = authorities(key, raw, checks);
            Some(KeySource::Discovery { url: url?, hosts: hosts?, ca: ca?, allow_private_addresses: private })
        }
        _ => {
            let id_key = format!("{key}.shared_key_id");
            let id = match &raw.shared_key_id {
                None => Some(None),
                Some(text) => checks.plain_text(&id_key, text, 256).map(Some),
            };
            let secret = shared_key(&name_key, text, checks);
            Some(KeySource::Shared { secret: secret?, id: id? })
        }
    }
}

/// `jwks_ca`, if there is one.
fn authorities(key: &str, raw: &RawIssuer, checks: &mut Checks<'_>) -> Option<Option<PathBuf>> {
    let Some(text) = &raw.jwks_ca else { return Some(None) };
    checks.readable_file(&format!("{key}.jwks_ca"), text, "a PEM file with authorities").map(Some)
}

fn key_hosts(key: &str, raw: &RawIssuer, checks: &mut Checks<'_>) -> Option<Vec<KeyHost>> {
    let (texts, private) = (&raw.jwks_hosts, raw.allow_private_addresses);
    if texts.len() > MAX_HOSTS {
        checks.refuse(key, format!("must list at most {MAX_HOSTS}"), "");
        return None;
    }
    checks.each(key, texts, |checks, item, text| {
        let Some(host) = KeyHost::parse(text) else {
            let help = "`keys.example.org` or `keys.example.org:8443`";
            checks.refuse(item, "must be a host, or a host and a port", help);
            return None;
        };
        if !private && is_local(host.host()) {
            checks.refuse(item, LOCAL, "");
            return None;
        }
        Some(host)
    })
}

const LOCAL: &str = "is at a private or loopback address; set `allow_private_addresses` if that is meant";

fn key_url(key: &str, text: &str, example: &str, private: bool, checks: &mut Checks<'_>) -> Option<url::Url> {
    let Some(url) = url::Url::parse(text).ok().filter(url::Url::has_host) else {
        checks.refuse(key, "must be an `https` URL", example);
        return None;
    };
    let message = if url.scheme() != "https" {
        "must be an `https` URL: whoever can change the keys on the way can sign tokens"
    } else if !url.username().is_empty() || url.password().is_some() {
        "must not hold a user name or password"
    } else if url.fragment().is_some() {
        "must not hold a fragment"
    } else if !private && url.host().is_some_and(|host| is_local(&host.to_owned())) {
        LOCAL
    } else {
        return Some(url);
    };
    checks.refuse(key, message, "");
    None
}

/// Whether the host says by itself that it is not public. Names are looked at again when they are resolved.
pub(super) fn is_local(host: &url::Host) -> bool {
    let v4_is_local =
        |ip: std::net::Ipv4Addr| ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified();
    let ip = match host {
        url::Host::Ipv4(ip) => IpAddr::V4(*ip),
        url::Host::Ipv6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(*ip), IpAddr::V4),
        url::Host::Domain(name) => {
            let name = name.trim_end_matches('.');
            return name == "localhost" || name.ends_with(".localhost");
        }
    };
    match ip {
        IpAddr::V4(ip) => v4_is_local(ip),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// RFC 7518 section 3.2: a key of at least 256 bits for HS256.
fn shared_key(key: &str, text: &str, checks: &mut Checks<'_>) -> Option<SecretSlice<u8>> {
    let bytes = checks.small_file(key, text, MAX_KEY_BYTES, "a file that holds the key and nothing else")?;
    let Ok(secret) = String::from_utf8(bytes).map(zeroize::Zeroizing::new) else {
        checks.refuse(key, "must hold UTF-8 text", "write the key in base64 or hex if it is made of random bytes");
        return None;
    };
    let line = secret.strip_suffix('\n').unwrap_or(&secret);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.len() < MIN_KEY_BYTES {
        checks.refuse(key, format!("must hold a key of at least {MIN_KEY_BYTES} bytes"), "`openssl rand -hex 32`");
        return None;
    }
    Some(SecretSlice::from(line.as_bytes().to_vec()))
}

fn token_types(key: &str, raw: &RawTokenTypes, checks: &mut Checks<'_>) -> Option<Option<BTreeSet<String>>> {
    let RawTokenTypes::These(types) = raw else { return Some(None) };
    if types.is_empty() {
        checks.refuse(key, "must list at least one", "write `any` to accept every type, and none at all");
        return None;
    }
    let types = checks.each(key, types, |checks, item, text| {
        // An empty text stands for a token without `typ`.
        if text.is_empty() {
            return Some(String::new());
        }
        checks.plain_text(item, text, 256).map(|text| text.to_ascii_lowercase())
    })?;
    Some(Some(types.into_iter().collect()))
}

fn mapping(key: &str, raw: &RawPrincipal, checks: &mut Checks<'_>) -> Option<ClaimMapping> {
    let type_key = format!("{key}.type");
    let principal_type = checks
        .required(&type_key, raw.entity_type.as_ref(), "name the principal's entity type: `User`")
        .and_then(|text| checks.entity_type(&type_key, text));
    let id_claim = checks.claim(&format!("{key}.id"), &raw.id);
    let attributes: Vec<_> =
        raw.attributes.iter().map(|(name, raw)| attribute(&format!("{key}.attributes"), name, raw, checks)).collect();
    let mut parents = Vec::with_capacity(raw.parents.len());
    for (index, raw) in raw.parents.iter().enumerate() {
        let claim_key = format!("{key}.parents[{index}].claim");
        let claim = checks
            .required(&claim_key, raw.claim.as_ref(), "name the claim that holds the parents' names")
            .and_then(|text| checks.claim(&claim_key, text));
        let type_key = format!("{key}.parents[{index}].type");
        let entity_type = checks
            .required(&type_key, raw.entity_type.as_ref(), "name the parents' entity type: `Role`")
            .and_then(|text| checks.entity_type(&type_key, text));
        parents.push(claim.zip(entity_type).map(|(claim, entity_type)| ParentMapping { claim, entity_type }));
    }
    Some(ClaimMapping {
        principal_type: principal_type?,
        id_claim: id_claim?,
        attributes: attributes.into_iter().collect::<Option<_>>()?,
        parents: parents.into_iter().collect::<Option<_>>()?,
    })
}

fn attribute(section: &str, name: &str, raw: &RawAttribute, checks: &mut Checks<'_>) -> Option<AttributeMapping> {
    let key = format!("{section}.{name}");
    let attribute = checks.plain_text(&key, name, 256);
    let (claim, entity_type) = match raw {
        RawAttribute::Claim(claim) => (checks.claim(&key, claim), Some(None)),
        RawAttribute::Entity(entity) => {
            let claim_key = format!("{key}.claim");
            let claim = checks
                .required(&claim_key, entity.claim.as_ref(), "name the claim that holds the entity's id")
                .and_then(|text| checks.claim(&claim_key, text));
            let entity_type = match &entity.entity {
                None => Some(None),
                Some(text) => checks.entity_type(&format!("{key}.entity"), text).map(Some),
            };
            (claim, entity_type)
        }
    };
    Some(AttributeMapping { attribute: attribute?, claim: claim?, entity_type: entity_type? })
}

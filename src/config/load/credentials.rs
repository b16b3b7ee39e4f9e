//! Credentials beside JWTs: whom to ask about opaque tokens, where API keys are, which status lists count.
//!
//! Follows RFC 7662 (introspection), RFC 6749 section 2.3.1 and RFC 8705 section 2 (client authentication), and the
//! Token Status List draft.

use super::issuers::is_local;
use super::values::Checks;
use crate::config::raw::{RawApiKeys, RawConfig, RawIntrospection, RawIssuer, RawStatusLists};
use crate::config::{ApiKeyConfig, ClientAuthentication, IntrospectionConfig, StatusListUrl, StatusLists};

const MAX_SECRET_BYTES: u64 = 4096;
const MAX_PREFIX_BYTES: usize = 64;
const MAX_STATUS_LISTS: usize = 16;

/// One issuer's introspection.
pub(super) fn introspection(key: &str, raw: &RawIntrospection, checks: &mut Checks<'_>) -> Option<IntrospectionConfig> {
    let url_key = format!("{key}.url");
    let url = checks
        .required(&url_key, raw.url.as_ref(), "`https://idp.example.org/introspect`")
        .and_then(|text| https_url(&url_key, text, raw.allow_private_addresses, checks));
    let id_key = format!("{key}.client_id");
    let client_id = checks
        .required(&id_key, raw.client_id.as_ref(), "who Gatepost is at the authorization server")
        .and_then(|text| checks.plain_text(&id_key, text, 1024));
    let authentication = authentication(key, raw, checks);
    let ca = match &raw.ca {
        None => Some(None),
        Some(text) => checks.readable_file(&format!("{key}.ca"), text, "a PEM file with authorities").map(Some),
    };
    // RFC 6750 section 2.1: these are the characters of a bearer token.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
    let prefix_fits = raw.token_prefix.len() <= MAX_PREFIX_BYTES && raw.token_prefix.chars().all(plain);
    if !prefix_fits {
        let message = format!("must be at most {MAX_PREFIX_BYTES} of `A-Z a-z 0-9 - . _ ~ + /`");
        checks.refuse(&format!("{key}.token_prefix"), message, "what all of this issuer's opaque tokens start with");
    }
    let max_cache = checks.duration(&format!("{key}.max_cache"), &raw.max_cache, "0s", "5m");
    Some(IntrospectionConfig {
        url: url?,
        client_id: client_id?,
        authentication: authentication?,
        ca: ca?,
        allow_private_addresses: raw.allow_private_addresses,
        token_prefix: prefix_fits.then(|| raw.token_prefix.clone())?,
        max_cache: max_cache?,
        require_audience: raw.require_audience,
    })
}

fn authentication(key: &str, raw: &RawIntrospection, checks: &mut Checks<'_>) -> Option<ClientAuthentication> {
    const HELP: &str = "set `client_secret_file`, or `client_certificate` and `client_key`";
    match (&raw.client_secret_file, &raw.client_certificate, &raw.client_key) {
        (Some(text), None, None) => {
            let key = format!("{key}.client_secret_file");
            let what = "a file that holds the secret and nothing else";
            let secret = checks.small_file(&key, text, MAX_SECRET_BYTES, what).map(zeroize::Zeroizing::new)?;
            if secret.trim_ascii().is_empty() {
                checks.refuse(&key, "must not be empty", what);
                return None;
            }
            if std::str::from_utf8(&secret).is_err() {
                checks.refuse(&key, "must hold UTF-8 text", what);
                return None;
            }
            Some(ClientAuthentication::SecretFile(checks.path(text)))
        }
        (None, Some(certificate), Some(private_key)) => {
            let certificate = checks.readable_file(
                &format!("{key}.client_certificate"),
                certificate,
                "a PEM file with the client's certificate chain",
            );
            let private_key = checks.readable_file(
                &format!("{key}.client_key"),
                private_key,
                "a PEM file with the certificate's private key",
            );
            Some(ClientAuthentication::Certificate { certificate: certificate?, private_key: private_key? })
        }
        (None, None, None) => {
            checks.refuse(key, "has no way to prove who Gatepost is", HELP);
            None
        }
        (Some(_), _, _) => {
            checks.refuse(key, "has two ways to prove who Gatepost is", format!("keep one: {HELP}"));
            None
        }
        (None, Some(_), None) | (None, None, Some(_)) => {
            checks.refuse(key, "has half a certificate", HELP);
            None
        }
    }
}

/// Which authorization server is asked about an opaque token is told by its first letters alone: they must tell one.
/// Sending a token to all of them would hand one issuer's tokens to another.
pub(super) fn prefixes(raw: &[RawIssuer], checks: &mut Checks<'_>) {
    let known: Vec<(usize, &str)> = raw
        .iter()
        .enumerate()
        .filter_map(|(index, issuer)| Some((index, issuer.introspection.as_ref()?.token_prefix.as_str())))
        .collect();
    for (position, (index, mine)) in known.iter().enumerate() {
        let other = known.iter().take(position).find(|(_, other)| mine.starts_with(other) || other.starts_with(mine));
        if let Some((other, _)) = other {
            checks.refuse(
                &format!("issuers[{index}].introspection.token_prefix"),
                format!("does not tell its tokens from those of `issuers[{other}]`"),
                "give each introspecting issuer the letters that its tokens start with; none the beginning of another's",
            );
        }
    }
}

/// Whether anything is fetched from this issuer's status lists.
pub(super) fn fetches_lists(raw: &RawIssuer) -> bool {
    matches!(&raw.status_lists, RawStatusLists::These(urls) if !urls.is_empty())
}

/// One issuer's status lists.
pub(super) fn status_lists(key: &str, raw: &RawIssuer, checks: &mut Checks<'_>) -> Option<StatusLists> {
    let list_key = format!("{key}.status_lists");
    let RawStatusLists::These(urls) = &raw.status_lists else { return Some(StatusLists::Ignore) };
    if urls.len() > MAX_STATUS_LISTS {
        checks.refuse(&list_key, format!("must list at most {MAX_STATUS_LISTS}"), "");
        return None;
    }
    let sources = [&raw.jwks_file, &raw.jwks_url, &raw.discovery_url, &raw.shared_key_file];
    if !urls.is_empty() && sources.iter().all(|source| source.is_none()) {
        checks.refuse(&list_key, "can't be verified", "a status list is signed with the issuer's keys: name them too");
        return None;
    }
    let lists = checks.each(&list_key, urls, |checks, item, text| {
        let text = checks.plain_text(item, text, 1024)?;
        https_url(item, &text, raw.allow_private_addresses, checks).map(|url| StatusListUrl { text, url })
    });
    let ca = match raw.jwks_ca.as_ref().filter(|_| !urls.is_empty()) {
        None => Some(None),
        // What is wrong with the file is told beside the URL of the keys.
        Some(text) if raw.jwks_url.is_some() || raw.discovery_url.is_some() => Some(Some(checks.path(text))),
        Some(text) => checks.readable_file(&format!("{key}.jwks_ca"), text, "a PEM file with authorities").map(Some),
    };
    Some(StatusLists::Only { lists: lists?, ca: ca?, allow_private_addresses: raw.allow_private_addresses })
}

/// The API keys' settings. Their owners must not be taken for somebody else's subjects, nor for calling services.
pub(super) fn api_keys(raw: &RawConfig, checks: &mut Checks<'_>) -> Option<Option<ApiKeyConfig>> {
    let Some(RawApiKeys { file, principal_type }) = &raw.api_keys else { return Some(None) };
    let key = "api_keys.file";
    let what = "the file of API keys; `gatepost apikey new --file FILE` makes it";
    let file = checks.required(key, file.as_ref(), &format!("name {what}"));
    let file = file.and_then(|text| checks.readable_file(key, text, what));
    let key = "api_keys.principal_type";
    let help = "give the owners of API keys a type of their own";
    let same = |issuer: &RawIssuer| issuer.principal.entity_type.as_deref() == Some(principal_type.as_str());
    if *principal_type == raw.policies.caller_type {
        checks.refuse(key, "is the type of calling services: a key's owner could be one of them", help);
    } else if *principal_type == raw.policies.anonymous.entity_type {
        checks.refuse(key, "is the type of nobody in particular", help);
    } else if let Some(index) = raw.issuers.iter().position(same) {
        let message = format!("is the type of the principals of `issuers[{index}]`: one could be taken for the other");
        checks.refuse(key, message, help);
    }
    let principal_type = checks.entity_type(key, principal_type);
    Some(Some(ApiKeyConfig { file: file?, principal_type: principal_type? }))
}

fn https_url(key: &str, text: &str, private: bool, checks: &mut Checks<'_>) -> Option<url::Url> {
    let Some(url) = url::Url::parse(text).ok().filter(url::Url::has_host) else {
        checks.refuse(key, "must be an `https` URL", "`https://idp.example.org/..`");
        return None;
    };
    let message = if url.scheme() != "https" {
        "must be an `https` URL: whoever can change the answer on the way decides who is let in"
    } else if !url.username().is_empty() || url.password().is_some() {
        "must not hold a user name or password"
    } else if url.fragment().is_some() {
        "must not hold a fragment"
    } else if !private && url.host().is_some_and(|host| is_local(&host.to_owned())) {
        "is at a private or loopback address; set `allow_private_addresses` if that is meant"
    } else {
        return Some(url);
    };
    checks.refuse(key, message, "");
    None
}

#[cfg(test)]
mod tests {
    use crate::config::load::{Source, load};
    use crate::config::{ClientAuthentication, Config, KeySource, StatusLists};

    const BASE: &str = r#"
server: { certificate: ca.pem, private_key: ca.pem, client_ca: ca.pem }
identity: { trust_domains: [example.org] }
callers:
  - { spiffe_id: spiffe://example.org/orders, name: orders, resource_types: [Order], actions: [Order.read] }
policies: { directory: . }
audit: { spool: { directory: audit } }
api_keys: { file: keys.json, principal_type: Machine }
issuers:
  - issuer: https://a.test
    audiences: [gatepost]
    introspection: { url: https://a.test/introspect, client_id: us, client_secret_file: secret, token_prefix: a_ }
    principal: { type: User }
  - issuer: https://b.test
    audiences: [gatepost]
    jwks_file: jwks.json
    introspection:
      url: https://10.0.0.1/introspect
      client_id: us
      client_certificate: ca.pem
      client_key: ca.pem
      ca: ca.pem
      allow_private_addresses: true
      token_prefix: b_
      max_cache: 5m
      require_audience: false
    principal: { type: Staff }
    status_lists: [https://b.test/lists/1]
"#;

    /// What is wrong: `key` of every problem.
    fn loaded(text: &str) -> Result<Config, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in
            [("ca.pem", ""), ("keys.json", ""), ("jwks.json", ""), ("secret", "s\n"), ("empty", "\n")]
        {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let file = folder.path().join("gatepost.yaml");
        std::fs::write(&file, text).unwrap();
        let problems = |problems: Vec<crate::config::load::ConfigProblem>| problems.into_iter().map(|one| one.key);
        load(&Source::file(file)).map_err(|report| problems(report.problems).collect())
    }

    #[test]
    fn credentials_are_read_as_they_are_written() {
        let config = loaded(BASE).unwrap();
        let introspection = |at: usize| config.issuers[at].introspection.clone().unwrap();
        let (first, second) = (introspection(0), introspection(1));
        assert!(matches!(config.issuers[0].keys, KeySource::Nowhere));
        assert!(matches!(first.authentication, ClientAuthentication::SecretFile(_)));
        assert!(matches!(second.authentication, ClientAuthentication::Certificate { .. }));
        assert_eq!((first.max_cache.as_secs(), first.require_audience), (30, true), "the defaults");
        assert_eq!((second.max_cache.as_secs(), second.require_audience), (300, false));
        assert!(matches!(&config.issuers[1].status_lists, StatusLists::Only { lists, .. } if lists.len() == 1));
        assert_eq!(config.api_keys.unwrap().principal_type.as_str(), "Machine");
        let discovered = "discovery_url: https://b.test/.well-known/openid-configuration\n    jwks_ca: ca.pem";
        let discovered = loaded(&BASE.replace("jwks_file: jwks.json", discovered)).unwrap();
        assert!(
            matches!(&discovered.issuers[1].status_lists, StatusLists::Only { ca: Some(_), .. }),
            "keys by discovery"
        );
        let ignoring = BASE.replace("[https://b.test/lists/1]", "ignore");
        assert_eq!(loaded(&ignoring).unwrap().issuers[1].status_lists, StatusLists::Ignore);
    }

    #[test]
    fn a_slip_in_credentials_is_told_by_its_key() {
        let table = [
            ("https://a.test/introspect", "http://a.test/", "issuers[0].introspection.url", "in clear"),
            ("https://a.test/introspect", "https://u:p@a.test/", "issuers[0].introspection.url", "a password"),
            ("https://a.test/introspect", "https://127.0.0.1/", "issuers[0].introspection.url", "loopback"),
            ("https://a.test/introspect", "https://a.test/#x", "issuers[0].introspection.url", "a fragment"),
            ("client_id: us, ", "", "issuers[0].introspection.client_id", "missing"),
            (", client_secret_file: secret", "", "issuers[0].introspection", "no proof of who we are"),
            ("file: secret", "file: empty", "issuers[0].introspection.client_secret_file", "an empty secret"),
            ("file: secret", "file: gone", "issuers[0].introspection.client_secret_file", "no such file"),
            ("      client_key: ca.pem\n", "", "issuers[1].introspection", "half a certificate"),
            (
                "      client_key: ca.pem\n",
                "      client_key: ca.pem\n      client_secret_file: secret\n",
                "issuers[1].introspection",
                "two proofs",
            ),
            (
                "token_prefix: b_",
                "token_prefix: a_b_",
                "issuers[1].introspection.token_prefix",
                "begins with the other's",
            ),
            (
                "token_prefix: b_",
                "token_prefix: a",
                "issuers[1].introspection.token_prefix",
                "the other's begins with it",
            ),
            ("      token_prefix: b_\n", "", "issuers[1].introspection.token_prefix", "every token is meant"),
            (
                "token_prefix: b_",
                "token_prefix: \"b \"",
                "issuers[1].introspection.token_prefix",
                "no token has a space",
            ),
            ("max_cache: 5m", "max_cache: 301s", "issuers[1].introspection.max_cache", "past five minutes"),
            ("https://b.test/lists/1", "http://b.test/1", "issuers[1].status_lists[0]", "in clear"),
            ("https://b.test/lists/1", "https://b.test/1, https://b.test/1", "issuers[1].status_lists[1]", "twice"),
            ("[https://b.test/lists/1]", "everything", "issuers[1].status_lists", "the word is `ignore`"),
            (
                "    principal: { type: User }\n",
                "    principal: { type: User }\n    status_lists: [https://a.test/1]\n",
                "issuers[0].status_lists",
                "nobody's keys could vouch for it",
            ),
            ("    jwks_file: jwks.json\n    introspection", "    introspectio", "issuers[1].introspectio", "unknown"),
            ("file: keys.json", "file: gone.json", "api_keys.file", "no such file"),
            ("file: keys.json, ", "", "api_keys.file", "missing"),
            ("principal_type: Machine", "principal_type: User", "api_keys.principal_type", "an issuer's type"),
            ("principal_type: Machine", "principal_type: Service", "api_keys.principal_type", "the callers' type"),
            ("principal_type: Machine", "principal_type: Anonymous", "api_keys.principal_type", "nobody's type"),
            ("issuer: https://a.test", "issuer: urn:gatepost:api-keys", "issuers[0].issuer", "what stands for keys"),
        ];
        for (from, to, key, why) in table {
            let text = BASE.replacen(from, to, 1);
            assert_ne!(text, BASE, "{why}");
            let problems = loaded(&text).unwrap_err();
            assert!(problems.iter().any(|problem| problem == key), "{why}: {problems:?}");
        }
    }
}

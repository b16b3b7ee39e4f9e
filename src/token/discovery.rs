//! Where an issuer says its keys are: its discovery document (OpenID Connect Discovery 1.0 section 4, RFC 8414 section 3).
//!
//! The document's address comes from the configuration, never from a token. The document may lead to one other address:
//! on its own host, or on a host that the operator named. Everything else in it is left unread.

use url::Url;

use super::fetch::{FetchError, Fetched, Fetcher};
use super::json::{self, Json};
use crate::config::{KeyHost, Limits};

/// Fetches an issuer's keys by way of its discovery document.
#[derive(Debug)]
pub(super) struct Discovery {
    fetcher: Fetcher,
    issuer: String,
    /// Where keys may be: the document's own host first, then those that the operator named.
    hosts: Vec<KeyHost>,
    max_depth: usize,
}

/// Why a discovery document leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum MetadataError {
    #[error("the discovery document is not a strict JSON object")]
    Shape,
    #[error("the discovery document is another issuer's")]
    Issuer,
    #[error("`jwks_uri` of the discovery document is missing or is not a plain https URL")]
    KeysUrl,
    #[error("`jwks_uri` of the discovery document is on a host that is not listed in `jwks_hosts`")]
    KeysHost,
}

/// Why neither keys nor news of them are to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum DiscoveryError {
    #[error("the discovery document: {0}")]
    Document(FetchError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("the keys it leads to: {0}")]
    Keys(FetchError),
}

impl Discovery {
    /// `fetcher` gets the document of `issuer` from `url`.
    pub(super) fn new(fetcher: Fetcher, url: &Url, issuer: &str, hosts: &[KeyHost], limits: &Limits) -> Self {
        let hosts = KeyHost::of(url).into_iter().chain(hosts.iter().cloned()).collect();
        Self { fetcher, issuer: issuer.to_owned(), hosts, max_depth: limits.token_json_depth }
    }

    /// The document that holds the keys. Fetches at most twice: what discovery says is asked anew each time, so that an
    /// issuer can move its keys.
    pub(super) async fn fetch(&self) -> Result<Fetched, DiscoveryError> {
        let metadata = self.fetcher.fetch().await.map_err(DiscoveryError::Document)?;
        let keys = self.keys_url(&metadata.document)?;
        self.fetcher.fetch_from(&keys).await.map_err(DiscoveryError::Keys)
    }

    /// `jwks_uri`, if the document is this issuer's and the operator agrees with where it leads.
    ///
    /// Source: OpenID Connect Discovery section 4.3 and RFC 8414 section 3.3: `issuer` must be identical, or one issuer
    /// could speak for another.
    fn keys_url(&self, metadata: &[u8]) -> Result<Url, MetadataError> {
        let members = json::read_object(metadata, self.max_depth).map_err(|_| MetadataError::Shape)?;
        if members.get("issuer").and_then(Json::as_text) != Some(self.issuer.as_str()) {
            return Err(MetadataError::Issuer);
        }
        let text = members.get("jwks_uri").and_then(Json::as_text).ok_or(MetadataError::KeysUrl)?;
        let url = Url::parse(text).map_err(|_| MetadataError::KeysUrl)?;
        let plain = url.scheme() == "https"
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none()
            && text.len() <= LONGEST_URL;
        if !plain {
            return Err(MetadataError::KeysUrl);
        }
        if KeyHost::of(&url).is_none_or(|host| !self.hosts.contains(&host)) {
            return Err(MetadataError::KeysHost);
        }
        Ok(url)
    }
}

/// Of `jwks_uri`, bytes.
const LONGEST_URL: usize = 2048;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn discovery() -> Discovery {
        let url: Url = "https://idp.test:8443/.well-known/openid-configuration".parse().unwrap();
        let ca = tempfile::NamedTempFile::new().unwrap();
        let authority = rcgen::generate_simple_self_signed(vec!["idp.test".to_owned()]).unwrap();
        std::fs::write(ca.path(), authority.cert.pem()).unwrap();
        let fetcher = Fetcher::new(&url, Some(ca.path()), false, 1000, Duration::from_secs(2)).unwrap();
        let hosts = ["keys.test", "keys.test:444", "[2001:db8::1]:8443"].map(|host| KeyHost::parse(host).unwrap());
        Discovery::new(fetcher, &url, "https://idp.test", &hosts, &Limits::default())
    }

    /// OpenID Connect Discovery sections 4.2 and 4.3.
    #[test]
    fn a_discovery_document_leads_to_where_the_operator_allows_or_nowhere() {
        use MetadataError::{Issuer, KeysHost, KeysUrl, Shape};
        let document = |issuer: &str, keys: &str| format!(r#"{{"issuer":"{issuer}","jwks_uri":"{keys}"}}"#);
        let at = |keys: &str| document("https://idp.test", keys);
        let table = [
            (at("https://idp.test:8443/jwks"), None, "the everyday shape"),
            (at("https://IDP.test:8443/a/b?c=d"), None, "host names have no case"),
            (at("https://keys.test/jwks"), None, "a host that the operator named"),
            (at("https://keys.test:444/jwks"), None, "and another port of it"),
            (at("https://[2001:db8::1]:8443/"), None, "by its address"),
            (at("https://idp.test/jwks"), Some(KeysHost), "another port"),
            (at("https://keys.test:8443/jwks"), Some(KeysHost), "another port of a named host"),
            (at("https://evil.test/jwks"), Some(KeysHost), "another host"),
            (at("https://idp.test.evil.test:8443/"), Some(KeysHost), "a host that begins alike"),
            (at("https://sub.idp.test:8443/"), Some(KeysHost), "a host below it"),
            (at("https://idp.test.:8443/"), Some(KeysHost), "another spelling of the name"),
            (at("https://169.254.169.254:8443/"), Some(KeysHost), "cloud metadata"),
            (at("http://idp.test:8443/jwks"), Some(KeysUrl), "in the clear"),
            (at("https://idp.test:8443@evil.test/"), Some(KeysUrl), "a user that looks like the host"),
            (at("https://a:b@idp.test:8443/"), Some(KeysUrl), "a user"),
            (at("https://idp.test:8443/#a"), Some(KeysUrl), "a fragment"),
            (at("file:///etc/passwd"), Some(KeysUrl), "a file"),
            (at("/jwks"), Some(KeysUrl), "no whole URL"),
            (at(""), Some(KeysUrl), "empty"),
            (at(&format!("https://idp.test:8443/{}", "a".repeat(2048))), Some(KeysUrl), "too long"),
            (r#"{"issuer":"https://idp.test"}"#.to_owned(), Some(KeysUrl), "no keys"),
            (r#"{"issuer":"https://idp.test","jwks_uri":["https://idp.test:8443/"]}"#.into(), Some(KeysUrl), "a list"),
            (document("https://idp.test/", "https://idp.test:8443/"), Some(Issuer), "compared byte for byte"),
            (document("https://IDP.test", "https://idp.test:8443/"), Some(Issuer), "case counts"),
            (document("https://evil.test", "https://idp.test:8443/"), Some(Issuer), "another issuer"),
            (r#"{"jwks_uri":"https://idp.test:8443/"}"#.to_owned(), Some(Issuer), "no issuer"),
            (
                r#"{"issuer":"https://idp.test","issuer":"https://idp.test","jwks_uri":"https://idp.test:8443/"}"#
                    .into(),
                Some(Shape),
                "said twice",
            ),
            ("[]".to_owned(), Some(Shape), "no object"),
            ("<html/>".to_owned(), Some(Shape), "no JSON"),
            (String::new(), Some(Shape), "nothing"),
        ];
        let discovery = discovery();
        for (document, expected, why) in table {
            assert_eq!(discovery.keys_url(document.as_bytes()).err(), expected, "{document}: {why}");
        }
    }
}

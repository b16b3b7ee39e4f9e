//! SPIFFE IDs: how workloads are named.
//!
//! Follows the SPIFFE-ID standard, sections 2.1 to 2.3. Comparison is byte for byte.

use std::fmt;
use std::str::FromStr;

/// The authority part of a SPIFFE ID: 1 to 255 characters of `a-z 0-9 . - _`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

/// A SPIFFE ID: a trust domain and a path, 2 048 bytes at most. A path of nothing names the trust domain itself
/// and no workload; see [`is_workload`](Self::is_workload).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: String,
    domain: TrustDomain,
}

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Not `spiffe://`.
    #[error("must start with `spiffe://`")]
    Scheme,
    /// Longer than 2 048 bytes.
    #[error("must have at most 2048 bytes")]
    Length,
    /// Empty, too long, or with other characters.
    #[error("the trust domain must be 1 to 255 characters of `a-z 0-9 . - _`")]
    TrustDomain,
    /// Empty, `.`, `..`, or with other characters; a trailing slash makes an empty one.
    #[error("each path segment must be characters of `a-z A-Z 0-9 . - _`, and neither empty nor `.` nor `..`")]
    Segment,
}

impl SpiffeId {
    /// Who vouches for the name.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// `/ns/prod/sa/web`, or nothing.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(SCHEME.len() + self.domain.0.len()..).unwrap_or_default()
    }

    /// Whether it can name a workload: its path is not empty (X509-SVID section 2).
    #[must_use]
    pub fn is_workload(&self) -> bool {
        !self.path().is_empty()
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

const SCHEME: &str = "spiffe://";

impl TrustDomain {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let fits = (1..=255).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
        if fits { Ok(Self(text.to_owned())) } else { Err(SpiffeIdError::TrustDomain) }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > 2048 {
            return Err(SpiffeIdError::Length);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = match rest.split_once('/') {
            Some((domain, path)) => (domain, Some(path)),
            None => (rest, None),
        };
        let domain: TrustDomain = domain.parse()?;
        let segment_fits = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        };
        if path.is_some_and(|path| !path.split('/').all(segment_fits)) {
            return Err(SpiffeIdError::Segment);
        }
        Ok(Self { text: text.to_owned(), domain })
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SPIFFE-ID sections 2.1 to 2.3. The corpus in `tests/conformance` has 551 more.
    #[test]
    fn a_spiffe_id_is_taken_whole_or_refused() {
        use SpiffeIdError::{Scheme, Segment, TrustDomain};
        let table = [
            ("spiffe://example.org/ns/prod/sa/web", Ok("example.org"), "the everyday shape"),
            ("spiffe://example.org", Ok("example.org"), "a trust domain, though no workload"),
            ("spiffe:///ns/prod", Err(TrustDomain), "nobody vouches for it"),
            ("spiffe://example.org/a/../b", Err(Segment), "climbs"),
            ("spiffe://example.org/", Err(Segment), "trailing slash"),
            ("spiffe://Example.org/a", Err(TrustDomain), "upper case"),
            ("SPIFFE://example.org/a", Err(Scheme), "scheme is compared as written"),
            ("spiffe://example.org:8443/a", Err(TrustDomain), "port"),
            ("spiffe://me@example.org/a", Err(TrustDomain), "user info"),
            ("spiffe://example.org/a?b", Err(Segment), "query"),
            ("https://example.org/a", Err(Scheme), "another scheme"),
        ];
        for (text, expected, why) in table {
            let parsed = text.parse::<SpiffeId>();
            let got = parsed.as_ref().map(|id| id.trust_domain().as_str()).map_err(Clone::clone);
            assert_eq!(got, expected, "{text}: {why}");
        }
        assert!(!"spiffe://example.org".parse::<SpiffeId>().unwrap().is_workload());
    }
}

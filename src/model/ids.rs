//! Names that Gatepost gives: decisions, requests, policy revisions.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use uuid::{NoContext, Timestamp, Uuid};

/// Names one answer, in the response and in the audit trail. A version 7 UUID (RFC 9562 section 5.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DecisionId(Uuid);

impl DecisionId {
    /// A fresh id; `now` gives its time part.
    #[must_use]
    pub fn mint(now: SystemTime) -> Self {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(Uuid::new_v7(Timestamp::from_unix(NoContext, since.as_secs(), since.subsec_nanos())))
    }

    /// As it is displayed: 36 bytes, all ASCII.
    #[must_use]
    pub fn text(&self) -> [u8; 36] {
        let mut text = [0; 36];
        self.0.hyphenated().encode_lower(&mut text);
        text
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The hash of one loaded, validated set of policies, schema and entities: 64 lower-case hex digits (SHA-256).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PolicyRevision(Arc<str>);

impl PolicyRevision {
    /// From the digest of the bundle's files.
    #[must_use]
    pub fn from_digest(digest: &[u8]) -> Self {
        Self(HEXLOWER.encode(digest).into())
    }

    /// The whole hash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for PolicyRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The caller's own name for its request (`x-request-id`): 1 to 128 characters of `A-Z a-z 0-9 . _ : / -`.
/// Anything else is dropped rather than cleaned, so that two different ids never look the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// The id, if it has the shape above.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits =
            (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b));
        fits.then(|| Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_taken_whole_or_not_at_all() {
        let long = "a".repeat(129);
        let table = [
            ("7f3a-1", true, "the everyday shape"),
            ("trace:01/02_x.y", true, "all the punctuation we allow"),
            ("", false, "nothing"),
            (long.as_str(), false, "past 128 characters"),
            ("a b", false, "space"),
            ("a\nb", false, "would forge a line"),
            ("\u{202e}a", false, "bidi"),
        ];
        for (text, expected, why) in table {
            assert_eq!(RequestId::parse(text).is_some(), expected, "{why}");
        }
    }
}

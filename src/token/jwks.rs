//! An issuer's public keys, as one JWKS document gave them (RFC 7517 section 5).
//!
//! A document that is not a key set within its limits is refused whole; a key in it that can't be used is left out,
//! and the rest stands. Does no I/O: [`ring`](super::ring) gets the documents.

use super::error::TokenError;
use super::json::{self, Json};
use super::key::{KeyRefusal, PublicKey};
use super::unverified::UnverifiedToken;
use crate::config::{Limits, TokenAlgorithm};

/// The usable keys of one document.
#[derive(Debug, Clone)]
pub struct KeySet {
    keys: Vec<PublicKey>,
    left_out: usize,
}

/// The document is not a JWKS within the limits; the keys from before stay in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Longer than the limit.
    #[error("the document is longer than its limit")]
    Size,
    /// Not strict JSON with a list of keys in it.
    #[error("the document is not a JWKS")]
    Shape,
    /// More keys than the limit.
    #[error("the document has too many keys")]
    Keys,
}

impl KeySet {
    /// Reads a document.
    ///
    /// # Errors
    /// [`DocumentError`] when the document is to be refused whole. A document whose every key is unusable is a set of
    /// none: an issuer that withdraws its keys is obeyed.
    pub fn read(document: &[u8], limits: &Limits) -> Result<Self, DocumentError> {
        if document.len() > limits.jwks_bytes {
            return Err(DocumentError::Size);
        }
        let members = json::read_object(document, limits.token_json_depth).map_err(|_| DocumentError::Shape)?;
        let Some(Json::List(listed)) = members.get("keys") else { return Err(DocumentError::Shape) };
        if listed.len() > limits.jwks_keys {
            return Err(DocumentError::Keys);
        }
        let mut keys: Vec<PublicKey> = Vec::new();
        for (position, jwk) in listed.iter().enumerate() {
            match PublicKey::from_jwk(jwk) {
                Ok(key) if keys.iter().any(|known| known.id == key.id && known.same_as(&key)) => {}
                Ok(key) => keys.push(key),
                // Whoever can read the document can sign tokens: for the operator of the issuer to know, at once.
                Err(refusal @ KeyRefusal::Secret) => {
                    tracing::error!(position, reason = %refusal, "an issuer publishes what should be secret; it is not used");
                }
                Err(refusal) => {
                    tracing::warn!(position, reason = %refusal, "a key of a JWKS document is left out");
                }
            }
        }
        let keys = without_ambiguity(keys);
        Ok(Self { left_out: listed.len() - keys.len(), keys })
    }

    /// The ids of the usable keys.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.id.as_str())
    }

    /// Finds the one key that `token` names and checks its signature. `pinned` are the issuer's algorithms.
    ///
    /// # Errors
    /// [`TokenError::Algorithm`], [`TokenError::NoKeyId`], [`TokenError::UnknownKey`] or [`TokenError::BadSignature`].
    ///
    /// Source: RFC 8725 sections 3.1 and 3.8: the algorithm from our configuration, the key from the issuer alone. No
    /// other key is tried.
    pub fn check(&self, token: &UnverifiedToken<'_>, pinned: &[TokenAlgorithm]) -> Result<&str, TokenError> {
        let algorithm = token.algorithm();
        if !pinned.contains(&algorithm) || algorithm == TokenAlgorithm::Hs256 {
            return Err(TokenError::Algorithm);
        }
        let id = token.key_id()?;
        let mut named = self.keys.iter().filter(|key| key.id == id && key.algorithms.contains(&algorithm));
        let (Some(key), None) = (named.next(), named.next()) else { return Err(TokenError::UnknownKey) };
        if key.verifies(token) { Ok(&key.id) } else { Err(TokenError::BadSignature) }
    }

    /// How many keys may be used with `algorithm`.
    pub(super) fn usable_with(&self, algorithm: TokenAlgorithm) -> usize {
        self.keys.iter().filter(|key| key.algorithms.contains(&algorithm)).count()
    }

    /// How many keys of the document can't be used, or stand there twice.
    pub(super) fn left_out(&self) -> usize {
        self.left_out
    }

    /// Whether any key has this id.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id == id)
    }
}

/// Keys of which nobody could say which one an id means are all left out.
fn without_ambiguity(keys: Vec<PublicKey>) -> Vec<PublicKey> {
    let alone = |at: usize, key: &PublicKey| {
        keys.iter().enumerate().all(|(other_at, other)| at == other_at || !key.clashes_with(other))
    };
    let kept: Vec<bool> = keys.iter().enumerate().map(|(at, key)| alone(at, key)).collect();
    if kept.contains(&false) {
        tracing::warn!("keys of a JWKS document that share an id are left out");
    }
    keys.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EC: &str = r#""kty":"EC","crv":"P-256","x":"Tl5I1_YZWY6DfNLwJ1QLjHaEcOXkKr1vOfmysUfAXk0","y":"2o1duNvAxYosTboU99yYfMM9i2ZeOkEacbf6ZJTcgXs""#;
    const EC_OTHER: &str = r#""kty":"EC","crv":"P-256","x":"_M-LYdlFkR6l8CX53xJ0vX8FgfA1BwasWgOXo1zI9Zg","y":"8nytHfpgpbByVfPDFVOoWkHh5tyJU_2zqUo0QWOTnHo""#;
    const ED: &str = r#""kty":"OKP","crv":"Ed25519","x":"VwSiNJZL4eXRghK3zRHrGl2Bs10HN5GXnzN69K9KsXs""#;

    /// The same shape twice: odd numbers of 2 048 bits.
    const RSA: &str = "_";
    const RSA_OTHER: &str = "-";

    fn rsa(filling: &str, algorithm: &str) -> String {
        let n = format!("{}w", filling.repeat(341));
        format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","kid":"a","alg":"{algorithm}"}}"#)
    }

    fn ids(keys: &[String]) -> Vec<String> {
        let document = format!(r#"{{"keys":[{}]}}"#, keys.join(","));
        let set = KeySet::read(document.as_bytes(), &Limits::default()).unwrap();
        set.ids().map(str::to_owned).collect()
    }

    /// RFC 7517, RFC 7518. `tests/conformance` has more documents.
    #[test]
    fn a_key_is_fit_for_verifying_or_left_out() {
        let table = [
            (vec![format!(r#"{{{EC},"kid":"a"}}"#)], vec!["a"], "the everyday shape"),
            (
                vec![format!(r#"{{{EC},"kid":"a","use":"sig","alg":"ES256","key_ops":["verify"]}}"#)],
                vec!["a"],
                "all said",
            ),
            (vec![format!(r#"{{{ED},"kid":"a","alg":"Ed25519"}}"#)], vec!["a"], "RFC 9864's name"),
            (vec![format!(r#"{{{EC},"kid":"a","use":"enc"}}"#)], vec![], "for encrypting"),
            (vec![format!(r#"{{{EC},"kid":"a","use":1}}"#)], vec![], "no text"),
            (vec![format!(r#"{{{EC},"kid":"a","key_ops":["sign"]}}"#)], vec![], "for signing alone"),
            (vec![format!(r#"{{{EC},"kid":"a","alg":"ES384"}}"#)], vec![], "another curve's algorithm"),
            (vec![format!(r#"{{{EC},"kid":"a","alg":"none"}}"#)], vec![], "no algorithm"),
            (vec![format!(r#"{{{EC},"kid":"a","d":"AQ"}}"#)], vec![], "a private key"),
            (vec![format!("{{{EC}}}")], vec![], "no id"),
            (vec![r#"{"kty":"oct","k":"AQ","kid":"a"}"#.into()], vec![], "symmetric"),
            (vec![r#"{"kty":"RSA","n":"AQ","e":"AQAB","kid":"a"}"#.into()], vec![], "tiny"),
            (vec!["null".into(), format!(r#"{{{EC},"kid":"a"}}"#)], vec!["a"], "the rest stands"),
            (
                vec![format!(r#"{{{EC},"kid":"a"}}"#), format!(r#"{{{ED},"kid":"a"}}"#)],
                vec!["a", "a"],
                "one id for two types",
            ),
            (vec![format!(r#"{{{EC},"kid":"a"}}"#), format!(r#"{{{EC},"kid":"a"}}"#)], vec!["a"], "one key twice"),
            (
                vec![
                    format!(r#"{{{EC},"kid":"a"}}"#),
                    format!(r#"{{{EC_OTHER},"kid":"a"}}"#),
                    format!(r#"{{{ED},"kid":"b"}}"#),
                ],
                vec!["b"],
                "one id for two keys of a type",
            ),
            (
                vec![rsa(RSA, "PS256"), rsa(RSA_OTHER, "RS256"), format!(r#"{{{ED},"kid":"b"}}"#)],
                vec!["b"],
                "one id for two keys of a type, though of different algorithms",
            ),
            (vec![rsa(RSA, "PS256"), rsa(RSA, "RS256")], vec!["a", "a"], "one key for two algorithms"),
        ];
        for (keys, expected, why) in table {
            assert_eq!(ids(&keys), expected, "{why}");
        }
    }

    #[test]
    fn a_document_is_a_key_set_within_its_limits_or_refused() {
        let limits = Limits { jwks_bytes: 1000, jwks_keys: 3, ..Limits::default() };
        let padded = |bytes: usize| format!(r#"{{"keys":[]{}}}"#, " ".repeat(bytes - 11));
        let table = [
            (r#"{"keys":[]}"#.to_owned(), Ok(()), "no keys is a key set"),
            (r#"{"keys":[1,1,1]}"#.to_owned(), Ok(()), "three keys"),
            (r#"{"keys":[1,1,1,1]}"#.to_owned(), Err(DocumentError::Keys), "four keys"),
            (padded(1000), Ok(()), "1 000 bytes"),
            (padded(1001), Err(DocumentError::Size), "1 001 bytes"),
            (r#"{"keys":{}}"#.to_owned(), Err(DocumentError::Shape), "no list"),
            ("<html/>".to_owned(), Err(DocumentError::Shape), "no JSON"),
            (r#"{"keys":[],"keys":[]}"#.to_owned(), Err(DocumentError::Shape), "said twice"),
        ];
        for (document, expected, why) in table {
            assert_eq!(KeySet::read(document.as_bytes(), &limits).map(|_| ()), expected, "{why}");
        }
    }
}

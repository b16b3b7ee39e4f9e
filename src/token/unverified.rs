//! A token's first life: well formed, and nothing more. It can tell which key it asks for; its claims stay shut.
//!
//! Follows RFC 7515 section 3.1 (compact serialization) and RFC 8725 sections 3.1 to 3.12. Everything that is not the
//! plainest signed JWT is refused: no extension, no encryption, no compression, no key from the token itself.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret as _, SecretString};

use super::error::TokenError;
use super::json::{self, Json, JsonObject};
use super::sha256;
use crate::config::{Limits, TokenAlgorithm};

/// The longest `kid`, in the token or in a key set, bytes.
pub(super) const KEY_ID_BYTES: usize = 256;

/// A token that has the right shape. It proves nothing yet.
pub struct UnverifiedToken<'t> {
    /// Lent: a copy would be one more to wipe.
    text: &'t str,
    header: Header,
    /// Where the signing input ends: at the second dot.
    signed_len: usize,
    claims: Vec<u8>,
    digest: [u8; 32],
}

/// What a header may say that we act on.
#[derive(Debug, Clone)]
struct Header {
    algorithm: TokenAlgorithm,
    key_id: KeyId,
    token_type: Option<String>,
}

#[derive(Debug, Clone)]
enum KeyId {
    Missing,
    Malformed,
    Named(String),
}

impl<'t> UnverifiedToken<'t> {
    /// Takes `text` apart. The size is checked before anything else is looked at.
    ///
    /// # Errors
    /// [`TokenError`] names the first check that failed.
    pub fn new(text: &'t SecretString, limits: &Limits) -> Result<Self, TokenError> {
        Self::digested(text, sha256(text.expose_secret().as_bytes()), limits)
    }

    /// The same of a text whose SHA-256 is known.
    pub(super) fn digested(text: &'t SecretString, digest: [u8; 32], limits: &Limits) -> Result<Self, TokenError> {
        let compact = text.expose_secret();
        if compact.len() > limits.token_bytes {
            return Err(TokenError::Size);
        }
        let mut parts = compact.splitn(4, '.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Shape);
        };
        // The engine refuses padding, other alphabets and set trailing bits: one spelling for one token.
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Shape);
        let header_bytes = decode(header)?;
        let claims_bytes = decode(claims)?;
        if decode(signature)?.is_empty() {
            return Err(TokenError::Shape);
        }
        let members = json::read_object(&header_bytes, limits.token_json_depth).map_err(|_| TokenError::Shape)?;
        Ok(Self {
            text: compact,
            header: Header::read(&members)?,
            signed_len: header.len() + 1 + claims.len(),
            claims: claims_bytes,
            digest,
        })
    }

    /// How long its text is.
    pub(super) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// SHA-256 of the whole compact token.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// `alg`.
    #[must_use]
    pub fn algorithm(&self) -> TokenAlgorithm {
        self.header.algorithm
    }

    /// `kid`.
    ///
    /// # Errors
    /// [`TokenError::NoKeyId`] when it is missing, empty or too long.
    pub fn key_id(&self) -> Result<&str, TokenError> {
        match &self.header.key_id {
            KeyId::Named(id) => Ok(id),
            KeyId::Missing | KeyId::Malformed => Err(TokenError::NoKeyId),
        }
    }

    /// `typ`, lower case and without `application/` (RFC 7515 section 4.1.9).
    pub(super) fn token_type(&self) -> Option<&str> {
        self.header.token_type.as_deref()
    }

    /// What the signature covers.
    pub(super) fn signed(&self) -> &[u8] {
        self.text.as_bytes().get(..self.signed_len).unwrap_or_default()
    }

    /// The signature, in base64url.
    pub(super) fn signature(&self) -> &str {
        self.text.get(self.signed_len + 1..).unwrap_or_default()
    }

    /// The claims, whom nobody has vouched for.
    pub(super) fn claims(&self) -> &[u8] {
        &self.claims
    }
}

impl Header {
    fn read(members: &JsonObject) -> Result<Self, TokenError> {
        // A header has few members: to compare each is less than to look nine names up.
        let any_of = |names: &[&str]| members.keys().any(|member| names.contains(&member.as_str()));
        // RFC 7515 section 4.1.11: what we don't understand must be refused, and we understand no extension.
        if any_of(&["crit"]) {
            return Err(TokenError::CriticalHeader);
        }
        // RFC 8725 section 3.10: a key, or the address of one, never comes from the token.
        if any_of(&["jku", "x5u", "x5c", "jwk"]) {
            return Err(TokenError::HeaderKey);
        }
        // `cty` on a claims set means a nested token (RFC 7519 section 5.2); b64 is RFC 7797.
        if any_of(&["b64", "zip", "enc", "cty"]) {
            return Err(TokenError::UnsupportedHeader);
        }
        let algorithm = members.get("alg").and_then(Json::as_text).and_then(algorithm_named);
        let key_id = match members.get("kid") {
            None => KeyId::Missing,
            Some(Json::Text(id)) if (1..=KEY_ID_BYTES).contains(&id.len()) => KeyId::Named(id.clone()),
            Some(_) => KeyId::Malformed,
        };
        let token_type = match members.get("typ") {
            None => None,
            Some(Json::Text(text)) => Some(plain_type(text)),
            Some(_) => return Err(TokenError::Type),
        };
        if matches!(key_id, KeyId::Malformed) {
            return Err(TokenError::NoKeyId);
        }
        Ok(Self { algorithm: algorithm.ok_or(TokenError::Algorithm)?, key_id, token_type })
    }
}

/// The algorithm of exactly that name; names are case-sensitive (RFC 7515 section 4.1.1).
pub(super) fn algorithm_named(name: &str) -> Option<TokenAlgorithm> {
    use TokenAlgorithm::{EdDsa, Es256, Es384, Hs256, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
    [Rs256, Rs384, Rs512, Ps256, Ps384, Ps512, Es256, Es384, EdDsa, Hs256]
        .into_iter()
        .find(|algorithm| algorithm.as_str() == name)
}

/// A media type as `typ` spells it: case does not matter, and `application/` may be left out when nothing else has a
/// slash (RFC 7515 section 4.1.9, RFC 9068 section 4).
pub(super) fn plain_type(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    match lower.strip_prefix("application/") {
        Some(rest) if !rest.contains('/') => rest.to_owned(),
        Some(_) | None => lower,
    }
}

impl fmt::Debug for UnverifiedToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnverifiedToken").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str) -> SecretString {
        format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode("{}")).into()
    }

    /// RFC 7515, RFC 8725. The corpus in `tests/conformance` has hundreds more.
    #[test]
    fn a_header_is_plain_or_refused() {
        use TokenError::{Algorithm, CriticalHeader, HeaderKey, NoKeyId, Shape, Type, UnsupportedHeader};
        let table = [
            (r#"{"alg":"RS256","kid":"a","typ":"at+jwt"}"#, Ok(()), "the everyday shape"),
            (r#"{"alg":"RS256","kid":"a","x5t":"abc"}"#, Ok(()), "a thumbprint offers nothing; ignored"),
            (r#"{"alg":"RS256"}"#, Ok(()), "the issuer decides whether a key must be named"),
            (r#"{"alg":"none","kid":"a"}"#, Err(Algorithm), "no algorithm"),
            (r#"{"alg":"rs256","kid":"a"}"#, Err(Algorithm), "names are case-sensitive"),
            (r#"{"alg":["RS256"],"kid":"a"}"#, Err(Algorithm), "no text"),
            (r#"{"kid":"a"}"#, Err(Algorithm), "missing"),
            (r#"{"alg":"RS256","alg":"none","kid":"a"}"#, Err(Shape), "said twice"),
            (r#"{"alg":"RS256","kid":"a","crit":[]}"#, Err(CriticalHeader), "even an empty list"),
            (r#"{"alg":"RS256","kid":"a","jku":"https://a.test"}"#, Err(HeaderKey), "where to fetch"),
            (r#"{"alg":"RS256","kid":"a","jwk":{}}"#, Err(HeaderKey), "brings its own"),
            (r#"{"alg":"RS256","kid":"a","b64":true}"#, Err(UnsupportedHeader), "RFC 7797"),
            (r#"{"alg":"RS256","kid":"a","zip":"DEF"}"#, Err(UnsupportedHeader), "compressed"),
            (r#"{"alg":"RS256","kid":"a","cty":"JWT"}"#, Err(UnsupportedHeader), "nested"),
            (r#"{"alg":"RS256","kid":""}"#, Err(NoKeyId), "empty"),
            (r#"{"alg":"RS256","kid":1}"#, Err(NoKeyId), "no text"),
            (r#"{"alg":"RS256","kid":"a","typ":null}"#, Err(Type), "no text"),
            ("[]", Err(Shape), "no object"),
        ];
        for (header, expected, why) in table {
            let got = UnverifiedToken::new(&token(header), &Limits::default()).map(|_| ());
            assert_eq!(got, expected, "{header}: {why}");
        }
    }

    #[test]
    fn a_compact_token_has_one_spelling() {
        let good = token(r#"{"alg":"RS256","kid":"a"}"#);
        let good = good.expose_secret();
        let table = [
            (good.to_owned(), true, "the everyday shape"),
            (format!("{good}."), false, "a fourth part"),
            (format!("{good}="), false, "padding"),
            (format!(" {good}"), false, "white space"),
            (format!("{}Z", good.strip_suffix('n').unwrap_or_default()), true, "another signature"),
            (format!("{good}_w"), true, "a longer signature"),
            (format!("{good}8"), false, "no whole byte"),
            (format!("{good}_9"), false, "set trailing bits"),
            (good.trim_end_matches("c2ln").to_owned(), false, "no signature"),
            (good.replace('.', ""), false, "one part"),
            (String::new(), false, "nothing"),
        ];
        for (text, expected, why) in table {
            assert_eq!(UnverifiedToken::new(&text.into(), &Limits::default()).is_ok(), expected, "{why}");
        }
    }

    #[test]
    fn size_is_checked_before_anything_else() {
        let limits = Limits { token_bytes: 100, ..Limits::default() };
        assert_eq!(
            UnverifiedToken::new(&".".repeat(100).into(), &limits).err(),
            Some(TokenError::Shape),
            "at the limit"
        );
        assert_eq!(UnverifiedToken::new(&".".repeat(101).into(), &limits).err(), Some(TokenError::Size), "one past it");
    }

    #[test]
    fn a_token_does_not_print() {
        let text = token(r#"{"alg":"RS256","kid":"canary"}"#);
        let printed = format!("{:?}", UnverifiedToken::new(&text, &Limits::default()));
        assert!(!printed.contains("canary") && !printed.contains("c2ln"), "{printed}");
    }
}

//! One status list token, read and verified: whose it is, which list it is, how long it lasts, and its bits.
//!
//! Follows draft-ietf-oauth-status-list-21, sections 4 (the list) and 5.1 (the JWT). It is held to the rules of every
//! other JWT of the issuer: its keys, its algorithms, no header of its own.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;

use super::super::claims::{Claims, IAT_AHEAD};
use super::super::json::Json;
use super::super::ring::KeyRing;
use super::super::unverified::UnverifiedToken;
use crate::clock::unix_seconds;
use crate::config::{Limits, TrustedIssuer};

/// The `typ` of a status list token (draft section 5.1).
const TYPE: &str = "statuslist+jwt";

/// A list that its issuer has signed.
#[derive(Debug)]
pub(super) struct Document {
    /// `iat`, seconds since 1970.
    pub(super) issued_at: u64,
    /// `exp`, seconds since 1970.
    pub(super) expires_at: Option<u64>,
    /// `ttl`, seconds: how long it may be kept before a newer one should be fetched.
    pub(super) ttl: Option<u64>,
    /// Bits of a status: 1, 2, 4 or 8.
    bits: u32,
    statuses: Vec<u8>,
}

/// Why a document is not the list that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("it is not a compact JWS of strict JSON within its limits")]
    Shape,
    #[error("it is not of type `statuslist+jwt`")]
    Type,
    #[error("no key of the issuer vouches for it")]
    Signature,
    #[error("it is another list: `sub` is not its URL")]
    Subject,
    #[error("`iss` is not the issuer")]
    Issuer,
    #[error("`iat`, `exp` or `ttl` is missing or of the wrong type")]
    Times,
    #[error("it has ended, or is from the future")]
    NotNow,
    #[error("`bits` is not 1, 2, 4 or 8")]
    Bits,
    #[error("`lst` is not zlib in base64url within its limit")]
    List,
}

impl Document {
    /// Reads what was fetched from `uri`, if it is that list, of that issuer, at this time.
    pub(super) fn read(
        bytes: Vec<u8>,
        uri: &str,
        issuer: &TrustedIssuer,
        keys: &KeyRing,
        limits: &Limits,
        now: SystemTime,
    ) -> Result<Self, DocumentError> {
        let text = String::from_utf8(bytes).map_err(|_| DocumentError::Shape)?;
        let limits = Limits { token_bytes: limits.status_list_bytes, ..limits.clone() };
        let text = text.trim_ascii().into();
        let token = UnverifiedToken::new(&text, &limits).map_err(|_| DocumentError::Shape)?;
        if token.token_type() != Some(TYPE) {
            return Err(DocumentError::Type);
        }
        keys.check(&token, &issuer.algorithms).map_err(|_| DocumentError::Signature)?;
        let claims = Claims::read(token.claims(), &limits).map_err(|_| DocumentError::Shape)?;
        // Any other list of the issuer is signed just as well.
        if claims.optional_text("sub").ok().flatten().as_deref() != Some(uri) {
            return Err(DocumentError::Subject);
        }
        if claims.optional_text("iss").map_err(|_| DocumentError::Issuer)?.is_some_and(|iss| iss != issuer.issuer) {
            return Err(DocumentError::Issuer);
        }
        let issued_at = claims.seconds("iat").map_err(|_| DocumentError::Times)?;
        let optional = |name: &str| claims.optional_seconds(name).map_err(|_| DocumentError::Times);
        let (expires_at, ttl) = (optional("exp")?, optional("ttl")?);
        let now = unix_seconds(now);
        if expires_at.is_some_and(|end| end <= now) || issued_at > now + IAT_AHEAD {
            return Err(DocumentError::NotNow);
        }
        let Some(Json::Object(list)) = claims.at("status_list") else { return Err(DocumentError::List) };
        let bits = match list.get("bits") {
            Some(Json::Integer(bits @ (1 | 2 | 4 | 8))) => u32::try_from(*bits).map_err(|_| DocumentError::Bits)?,
            Some(_) | None => return Err(DocumentError::Bits),
        };
        let compressed = list.get("lst").and_then(Json::as_text).ok_or(DocumentError::List)?;
        let compressed = URL_SAFE_NO_PAD.decode(compressed).map_err(|_| DocumentError::List)?;
        // A few bytes can be made to fill any memory (a compression bomb): the limit ends it.
        let statuses = decompress_to_vec_zlib_with_limit(&compressed, limits.status_list_inflated_bytes)
            .map_err(|_| DocumentError::List)?;
        Ok(Self { issued_at, expires_at, ttl, bits, statuses })
    }

    /// The status at `index`; nothing past the end. The lowest bits of a byte come first (draft section 4.1).
    pub(super) fn status(&self, index: u64) -> Option<u8> {
        let per_byte = u64::from(8 / self.bits);
        let byte = *self.statuses.get(usize::try_from(index / per_byte).ok()?)?;
        let shift = u32::try_from(index % per_byte).ok()? * self.bits;
        let mask = u8::MAX >> (8 - self.bits);
        Some((byte >> shift) & mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(bits: u32, statuses: &[u8]) -> Document {
        Document { issued_at: 0, expires_at: None, ttl: None, bits, statuses: statuses.to_vec() }
    }

    /// The examples of the draft's section 4.1 and its test vectors' way of counting.
    #[test]
    fn a_status_is_found_from_the_lowest_bits_up() {
        let one_bit = list(1, &[0xb9, 0xa3]);
        let expected = [1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1];
        for (index, status) in (0..).zip(expected) {
            assert_eq!(one_bit.status(index), Some(status), "1 bit, index {index}");
        }
        assert_eq!(one_bit.status(16), None, "past the end");
        let two_bits = list(2, &[0xc9, 0x44, 0xf9]);
        let expected = [1, 2, 0, 3, 0, 1, 0, 1, 1, 2, 3, 3];
        for (index, status) in (0..).zip(expected) {
            assert_eq!(two_bits.status(index), Some(status), "2 bits, index {index}");
        }
        assert_eq!(two_bits.status(12), None, "past the end");
        let table = [
            (4, 0, Some(0xa), "low half first"),
            (4, 1, Some(0xf), "then the high one"),
            (4, 2, None, "past the end"),
            (8, 0, Some(0xfa), "a whole byte"),
            (8, 1, None, "past the end"),
            (8, u64::MAX, None, "as far as can be said"),
        ];
        for (bits, index, expected, why) in table {
            assert_eq!(list(bits, &[0xfa]).status(index), expected, "{bits} bits, index {index}: {why}");
        }
    }

    /// Draft section 4.1: the compressed form of the two examples.
    #[test]
    fn the_draft_s_own_lists_inflate_to_its_bytes() {
        for (compressed, expected) in
            [("eNrbuRgAAhcBXQ", vec![0xb9, 0xa3]), ("eNo76fITAAPfAgc", vec![0xc9, 0x44, 0xf9])]
        {
            let bytes = URL_SAFE_NO_PAD.decode(compressed).unwrap();
            assert_eq!(decompress_to_vec_zlib_with_limit(&bytes, 3).unwrap(), expected);
        }
    }
}

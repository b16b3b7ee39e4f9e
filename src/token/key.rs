//! One public key of an issuer, taken from a JWK only when it is fit for verifying signatures.
//!
//! A key says itself what it is for: `kty`, `use`, `key_ops` and `alg` narrow the algorithms, the token does not widen
//! them (RFC 7517 section 4, RFC 8725 sections 3.1 and 3.4). Certificates beside a key (`x5c`, `x5u`) are not looked at.

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use data_encoding::HEXLOWER;
use jsonwebtoken::{Algorithm, DecodingKey};

use super::json::{Json, JsonObject};
use super::roca;
use super::unverified::{KEY_ID_BYTES, UnverifiedToken, algorithm_named};
use crate::config::TokenAlgorithm;

/// A key that may verify.
#[derive(Clone, Debug)]
pub(super) struct PublicKey {
    pub(super) id: String,
    /// `kty`.
    family: &'static str,
    /// The only algorithms it may be used with; never empty.
    pub(super) algorithms: Vec<TokenAlgorithm>,
    material: Vec<u8>,
    key: DecodingKey,
}

/// Why a JWK is left out. For the log: it says what kind of mistake the issuer made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyRefusal {
    #[error("not a JWK")]
    Shape,
    #[error("no usable kid")]
    KeyId,
    #[error("holds private or symmetric key material")]
    Secret,
    #[error("not for verifying signatures")]
    Purpose,
    #[error("alg does not fit the key")]
    Algorithm,
    #[error("unknown kty or crv")]
    Unknown,
    #[error("weak, malformed or off its curve")]
    Material,
}

/// RSA moduli, bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

impl PublicKey {
    /// Takes a JWK whole or says why not.
    pub(super) fn from_jwk(jwk: &Json) -> Result<Self, KeyRefusal> {
        let Json::Object(members) = jwk else { return Err(KeyRefusal::Shape) };
        // RFC 7518 section 6: d is every private key's member, k the symmetric one's.
        if ["d", "k", "p", "q", "dp", "dq", "qi", "oth"].iter().any(|name| members.contains_key(*name)) {
            return Err(KeyRefusal::Secret);
        }
        let id = match members.get("kid") {
            Some(Json::Text(id)) if (1..=KEY_ID_BYTES).contains(&id.len()) => id.clone(),
            Some(_) | None => return Err(KeyRefusal::KeyId),
        };
        if !is_for_verifying(members) {
            return Err(KeyRefusal::Purpose);
        }
        let (family, (able, material, key)) = match text(members, "kty")? {
            "RSA" => ("RSA", rsa(members)?),
            "EC" => ("EC", elliptic(members)?),
            "OKP" => ("OKP", edwards(members)?),
            _ => return Err(KeyRefusal::Unknown),
        };
        Ok(Self { id, family, algorithms: pinned(members, able)?, material, key })
    }

    /// Whether they are one key under one name, listed twice.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.material == other.material && self.algorithms == other.algorithms
    }

    /// Whether nobody could say which of the two an id means: both fit one algorithm, or they are different keys of one
    /// type. RFC 7517 section 4.5 allows one id for keys of different types, and for nothing else.
    pub(super) fn clashes_with(&self, other: &Self) -> bool {
        let share_an_algorithm = self.algorithms.iter().any(|algorithm| other.algorithms.contains(algorithm));
        let differ_within_a_type = self.family == other.family && self.material != other.material;
        self.id == other.id && (share_an_algorithm || differ_within_a_type)
    }

    /// Whether the signature of `token` holds under this key. The caller has checked the algorithm.
    pub(super) fn verifies(&self, token: &UnverifiedToken<'_>) -> bool {
        signature_holds(token, &self.key)
    }
}

/// Whether the signature of `token` holds under `key`; a key of another family never does.
pub(super) fn signature_holds(token: &UnverifiedToken<'_>, key: &DecodingKey) -> bool {
    let algorithm = match token.algorithm() {
        TokenAlgorithm::Rs256 => Algorithm::RS256,
        TokenAlgorithm::Rs384 => Algorithm::RS384,
        TokenAlgorithm::Rs512 => Algorithm::RS512,
        TokenAlgorithm::Ps256 => Algorithm::PS256,
        TokenAlgorithm::Ps384 => Algorithm::PS384,
        TokenAlgorithm::Ps512 => Algorithm::PS512,
        TokenAlgorithm::Es256 => Algorithm::ES256,
        TokenAlgorithm::Es384 => Algorithm::ES384,
        TokenAlgorithm::EdDsa => Algorithm::EdDSA,
        TokenAlgorithm::Hs256 => Algorithm::HS256,
    };
    jsonwebtoken::crypto::verify(token.signature(), token.signed(), key, algorithm).unwrap_or(false)
}

/// `use` and `key_ops` (RFC 7517 sections 4.2 and 4.3); a null is as good as absent.
fn is_for_verifying(members: &JsonObject) -> bool {
    let usage = match members.get("use") {
        None | Some(Json::Null) => true,
        Some(value) => value.as_text() == Some("sig"),
    };
    let operations = match members.get("key_ops") {
        None | Some(Json::Null) => true,
        Some(Json::List(operations)) => operations.iter().any(|operation| operation.as_text() == Some("verify")),
        Some(_) => false,
    };
    usage && operations
}

/// What the key can do, narrowed to its `alg` if it has one.
fn pinned(members: &JsonObject, able: Vec<TokenAlgorithm>) -> Result<Vec<TokenAlgorithm>, KeyRefusal> {
    let name = match members.get("alg") {
        None | Some(Json::Null) => return Ok(able),
        // RFC 9864 gives EdDSA on Ed25519 a name of its own.
        Some(Json::Text(name)) if name == "Ed25519" => "EdDSA",
        Some(Json::Text(name)) => name,
        Some(_) => return Err(KeyRefusal::Algorithm),
    };
    match algorithm_named(name) {
        Some(algorithm) if able.contains(&algorithm) => Ok(vec![algorithm]),
        Some(_) | None => Err(KeyRefusal::Algorithm),
    }
}

type Material = (Vec<TokenAlgorithm>, Vec<u8>, DecodingKey);

fn rsa(members: &JsonObject) -> Result<Material, KeyRefusal> {
    use TokenAlgorithm::{Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
    let modulus = number(members, "n")?;
    let exponent = number(members, "e")?;
    let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
    // A long exponent makes every verification slow; 1 and 2 sign nothing.
    let exponent_fits = exponent.len() <= 4 && odd(&exponent) && exponent != [1];
    if !RSA_BITS.contains(&bits(&modulus)) || !odd(&modulus) || !exponent_fits {
        return Err(KeyRefusal::Material);
    }
    if roca::is_guessable(&modulus) {
        return Err(KeyRefusal::Material);
    }
    let key = DecodingKey::from_rsa_raw_components(&modulus, &exponent);
    let material = [modulus, exponent].concat();
    Ok((vec![Rs256, Rs384, Rs512, Ps256, Ps384, Ps512], material, key))
}

fn elliptic(members: &JsonObject) -> Result<Material, KeyRefusal> {
    let (algorithm, size, curve): (_, _, &'static dyn VerificationAlgorithm) = match text(members, "crv")? {
        "P-256" => (TokenAlgorithm::Es256, 32, &signature::ECDSA_P256_SHA256_FIXED),
        "P-384" => (TokenAlgorithm::Es384, 48, &signature::ECDSA_P384_SHA384_FIXED),
        _ => return Err(KeyRefusal::Unknown),
    };
    let (x, y) = (bytes(members, "x")?, bytes(members, "y")?);
    // RFC 7518 section 6.2.1.2: the full length, leading zeros included.
    if x.len() != size || y.len() != size {
        return Err(KeyRefusal::Material);
    }
    let point = [vec![4], x, y].concat();
    // Parsing refuses a point that is not on the curve (RFC 8725 section 3.4).
    ParsedPublicKey::new(curve, &point).map_err(|_| KeyRefusal::Material)?;
    let key = DecodingKey::from_ec_der(&point);
    Ok((vec![algorithm], point, key))
}

fn edwards(members: &JsonObject) -> Result<Material, KeyRefusal> {
    if text(members, "crv")? != "Ed25519" {
        return Err(KeyRefusal::Unknown);
    }
    let point = bytes(members, "x")?;
    if point.len() != 32 || has_small_order(&point) {
        return Err(KeyRefusal::Material);
    }
    ParsedPublicKey::new(&signature::ED25519, &point).map_err(|_| KeyRefusal::Material)?;
    let key = DecodingKey::from_ed_der(&point);
    Ok((vec![TokenAlgorithm::EdDsa], point, key))
}

/// Whether an Ed25519 point has an order of 1, 2, 4 or 8: signatures under such a key can be made by anyone.
/// The y coordinates are those of the eight points, and the two that a lax reader would reduce to them.
/// Source: RFC 8032 section 5.1; Chalkias and others, "Taming the many EdDSAs" (2020), section 2.
fn has_small_order(point: &[u8]) -> bool {
    const EIGHT: [&str; 2] = [
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ];
    // The top bit is the sign of x; both signs count.
    let mut y = point.to_vec();
    if let Some(last) = y.last_mut() {
        *last &= 0x7f;
    }
    let (Some(head), Some(tail)) = (y.first(), y.get(1..)) else { return true };
    let zeros = tail.iter().all(|byte| *byte == 0);
    let ones = tail.iter().rev().skip(1).all(|byte| *byte == 0xff) && tail.last() == Some(&0x7f);
    let hex = HEXLOWER.encode(&y);
    // 0 and 1, then p - 1, p and p + 1 with p = 2^255 - 19.
    (zeros && [0, 1].contains(head)) || (ones && [0xec, 0xed, 0xee].contains(head)) || EIGHT.contains(&hex.as_str())
}

fn text<'a>(members: &'a JsonObject, name: &str) -> Result<&'a str, KeyRefusal> {
    members.get(name).and_then(Json::as_text).ok_or(KeyRefusal::Shape)
}

fn bytes(members: &JsonObject, name: &str) -> Result<Vec<u8>, KeyRefusal> {
    URL_SAFE_NO_PAD.decode(text(members, name)?).map_err(|_| KeyRefusal::Material)
}

/// A big-endian number without its leading zeros, which some issuers write though RFC 7518 section 2 forbids them.
fn number(members: &JsonObject, name: &str) -> Result<Vec<u8>, KeyRefusal> {
    Ok(bytes(members, name)?.into_iter().skip_while(|byte| *byte == 0).collect())
}

fn bits(number: &[u8]) -> usize {
    number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_of_small_order_is_known() {
        let table = [
            ("0100000000000000000000000000000000000000000000000000000000000000", true, "the neutral element"),
            ("0100000000000000000000000000000000000000000000000000000000000080", true, "the same, other sign"),
            ("0000000000000000000000000000000000000000000000000000000000000000", true, "order 4"),
            ("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", true, "order 2"),
            ("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", true, "1, not reduced"),
            ("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa", true, "order 8"),
            ("5866666666666666666666666666666666666666666666666666666666666666", false, "the base point"),
        ];
        for (hex, expected, why) in table {
            let point: Vec<u8> =
                (0..64).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2).unwrap(), 16).unwrap()).collect();
            assert_eq!(has_small_order(&point), expected, "{why}");
        }
    }
}

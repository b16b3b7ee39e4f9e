//! `cnf`: what whoever presents a token has to prove (RFC 7800), here by the client certificate of the connection.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::TokenError;
use super::json::Json;

/// The proof that a token demands. One method is known; a token that demands another can't be used here.
#[derive(Clone, PartialEq, Eq)]
pub enum Confirmation {
    /// `x5t#S256`: the SHA-256 of the DER of the client certificate (RFC 8705 section 3.1).
    CertificateSha256([u8; 32]),
}

impl Confirmation {
    /// Takes the value of `cnf`: exactly one member, and one that we can check. Two methods of which one stays unproven
    /// would be half a proof.
    pub(super) fn read(claim: &Json) -> Result<Self, TokenError> {
        let Json::Object(members) = claim else { return Err(TokenError::Confirmation) };
        let mut listed = members.iter();
        let (Some((name, Json::Text(value))), None) = (listed.next(), listed.next()) else {
            return Err(TokenError::Confirmation);
        };
        // Padding, other alphabets and set trailing bits are refused: a thumbprint has one spelling.
        let thumbprint = URL_SAFE_NO_PAD.decode(value).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        match (name.as_str(), thumbprint) {
            ("x5t#S256", Some(thumbprint)) => Ok(Self::CertificateSha256(thumbprint)),
            (_, _) => Err(TokenError::Confirmation),
        }
    }

    /// The method's name (RFC 7800 section 3), for the record: never what is to be proven.
    #[must_use]
    pub fn method(&self) -> &'static str {
        match self {
            Self::CertificateSha256(_) => "x5t#S256",
        }
    }

    /// Whether a connection with this client certificate (SHA-256 of its DER) is the proof.
    #[must_use]
    pub fn is_proven_by(&self, certificate_sha256: &[u8; 32]) -> bool {
        match self {
            Self::CertificateSha256(thumbprint) => {
                bool::from(subtle::ConstantTimeEq::ct_eq(&thumbprint[..], &certificate_sha256[..]))
            }
        }
    }
}

impl fmt::Debug for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirmation(x5t#S256)")
    }
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;

    /// RFC 7800 section 3.1, RFC 8705 section 3.1.
    #[test]
    fn a_token_demands_one_proof_that_we_can_check_or_is_refused() {
        const GOOD: &str = "-GwU4EmCK3fePkxr0YDBP0KoSdBz1Wntp9hfNvvrJHk";
        let table = [
            (format!(r#"{{"x5t#S256":"{GOOD}"}}"#), true, "the everyday shape"),
            ("{}".to_owned(), false, "no method"),
            (format!(r#""{GOOD}""#), false, "no object"),
            (format!(r#"{{"x5t#S256":"{GOOD}="}}"#), false, "padded"),
            (r#"{"x5t#S256":"-GwU4EmCK3fePkxr0YDB"}"#.to_owned(), false, "cut short"),
            (format!(r#"{{"x5t#S256":"{}l"}}"#, GOOD.trim_end_matches('k')), false, "set trailing bits"),
            (format!(r#"{{"x5t#S256":["{GOOD}"]}}"#), false, "a list"),
            (format!(r#"{{"x5t#S256":"{GOOD}","jkt":"x"}}"#), false, "a second method, unproven"),
            (format!(r#"{{"jkt":"{GOOD}"}}"#), false, "a method that we can't check"),
            ("null".to_owned(), false, "null is no proof"),
        ];
        for (text, expected, why) in table {
            let members = json::read_object(format!(r#"{{"cnf":{text}}}"#).as_bytes(), 8).unwrap();
            assert_eq!(Confirmation::read(&members["cnf"]).is_ok(), expected, "{text}: {why}");
        }
    }
}

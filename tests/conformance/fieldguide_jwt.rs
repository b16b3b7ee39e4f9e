//! The field guide's tokens: what PyJWT and Node's jsonwebtoken accept and should not, and what they refuse.
//!
//! The field guide's service wants no audience; Gatepost takes no token without one. So each token is judged twice: as it
//! is written, and, where its signature is good, once more with our audience put into its claims and signed again. A token
//! that must be refused has to be refused both times, the second time for a reason that the corpus names.
//!
//! Where we differ from the corpus the difference is in [`DIFFERENCES`], with its reason, and is told at every run. A
//! difference that is not there fails.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a corpus of another form is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::{hmac, rsa, signature};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatepost::clock::ManualClock;
use gatepost::config::{ClaimMapping, KeySource, Limits, TokenAlgorithm, TrustedIssuer};
use gatepost::model::entity::EntityType;
use gatepost::secret::SecretString;
use gatepost::token::{KeySet, TokenError, UnverifiedToken, VerifiedToken, Verifier};
use serde_json::Value;

use crate::jwt::{EVERY_ALGORITHM, list, text};
use crate::support::{corpus, say};

const AUDIENCE: &str = "gatepost";

/// What came of a case, and what is needed to say why it may differ.
struct Outcome<'c> {
    case: &'c Value,
    must_accept: bool,
    /// The first check that failed; nothing when the token was accepted.
    reason: Option<&'static str>,
    configured: bool,
    public_keys: bool,
    header: Value,
    claims: Value,
}

/// Where we differ on purpose.
struct Difference {
    what: &'static str,
    why: &'static str,
    applies: fn(&Outcome<'_>) -> bool,
}

const DIFFERENCES: [Difference; 11] = [
    Difference {
        what: "a token without `aud` is refused",
        why: "it could be meant for anybody (RFC 9068 section 2.2 requires it, RFC 8725 section 3.9)",
        applies: |it| it.must_accept && it.reason == Some("CLAIMS") && it.claims.get("aud").is_none(),
    },
    Difference {
        what: "a token without `iat` is refused",
        why: "its lifetime can't be told, and it can't be revoked by when it was issued (RFC 9068 section 2.2)",
        applies: |it| it.must_accept && it.reason == Some("CLAIMS") && it.claims.get("iat").is_none(),
    },
    Difference {
        what: "`iat` may lie up to 60 s ahead, whatever the clock skew",
        why: "issuers' clocks differ, and it makes no token live longer than `max_lifetime` and that minute; jwt-attacks has 60 s",
        applies: |it| {
            let ahead = it.claims["iat"].as_f64().unwrap_or_default() - it.case["now"].as_f64().unwrap_or_default();
            !it.must_accept && it.reason.is_none() && it.gives("IAT_FUTURE") && ahead > 0.0 && ahead <= 60.0
        },
    },
    Difference {
        what: "a fraction of a second never lengthens a token's life",
        why: "times are compared in whole seconds, the fraction of `exp` cut off; the corpus lets a token live on for half a second",
        applies: |it| {
            let (exp, now) =
                (it.claims["exp"].as_f64().unwrap_or_default(), it.case["now"].as_f64().unwrap_or_default());
            it.must_accept && it.reason == Some("EXPIRED") && exp > now && exp - now < 1.0
        },
    },
    Difference {
        what: "a token that names no key is refused where keys are public, even if there is one",
        why: "with the second key of a rotation it would be ambiguous; jwt-attacks requires `kid`",
        applies: |it| {
            it.must_accept && it.reason == Some("NO_KEY_ID") && it.public_keys && it.header.get("kid").is_none()
        },
    },
    Difference {
        what: "HMAC and public keys together are no configuration",
        why: "the corpus itself says that it would be better to refuse it: a public key must not become a password",
        applies: |it| it.must_accept && !it.configured,
    },
    Difference {
        what: "a token of an algorithm that is not offered is refused",
        why: "nobody can configure it",
        applies: |it| {
            let named = it.header["alg"].as_str();
            it.must_accept && named.is_some() && !EVERY_ALGORITHM.iter().any(|one| named == Some(one.as_str()))
        },
    },
    Difference {
        what: "an Authorization header is no token",
        why: "the service takes the token out of it; doors that read HTTP headers will read this one",
        applies: |it| it.must_accept && it.case["kind"] == "authorization_header",
    },
    Difference {
        what: "a symmetric key beside public ones is left out, and the rest stands",
        why: "it is never used, so it can't be confused with another; jwt-attacks/jwks-documents.json wants exactly that",
        applies: |it| !it.must_accept && it.gives("JWKS_MIXED_SYMMETRIC"),
    },
    Difference {
        what: "a private key in a key set is left out, with an error in the log, and the rest stands",
        why: "a mistake about one key must not take the others away; jwt-attacks/jwks-documents.json leaves it out too",
        applies: |it| !it.must_accept && it.gives("JWKS_PRIVATE_KEY"),
    },
    Difference {
        what: "a key without `alg` is taken",
        why: "the issuer's `algorithms` bind it, and one token algorithm fits one key; RFC 7517 section 4.4 makes `alg` optional",
        applies: |it| !it.must_accept && it.gives("JWKS_ALG_MISSING"),
    },
];

impl Outcome<'_> {
    /// Whether the corpus refuses it for this alone.
    fn gives(&self, reason: &str) -> bool {
        self.case["strict"]["reasons"] == serde_json::json!([reason])
    }
}

/// Which of our reasons stand for one of the corpus's.
fn ours(reason: &str) -> &'static [&'static str] {
    match reason {
        "ALG_KEY_MISMATCH" => &["UNKNOWN_KEY", "ALGORITHM", "BAD_SIGNATURE"],
        "ALG_MISSING" | "ALG_NOT_ALLOWED" => &["ALGORITHM"],
        "AUD_MISMATCH" | "AUD_MISSING" | "AUD_TYPE" | "AUD_UNEXPECTED" => &["AUDIENCE", "CLAIMS"],
        "B64_UNSUPPORTED" | "CTY_UNSUPPORTED" | "HEADER_UNSUPPORTED" | "ZIP_UNSUPPORTED" => &["UNSUPPORTED_HEADER"],
        "CRIT_UNSUPPORTED" => &["CRITICAL_HEADER"],
        "EXPIRED" => &["EXPIRED"],
        "EXP_MISSING" | "EXP_TYPE" | "EXP_RANGE" | "IAT_TYPE" | "IAT_RANGE" | "NBF_TYPE" | "JTI_TYPE" => &["CLAIMS"],
        "EXP_BEFORE_IAT" | "LIFETIME_TOO_LONG" => &["LIFETIME"],
        "DUPLICATE_MEMBER" | "HEADER_JSON" | "PAYLOAD_JSON" | "MALFORMED" | "SIGNATURE_MISSING" => &["SHAPE"],
        "HEADER_KEY_SOURCE" => &["HEADER_KEY"],
        "IAT_FUTURE" => &["ISSUED_IN_FUTURE"],
        "ISS_MISMATCH" => &["UNKNOWN_ISSUER"],
        "ISS_MISSING" | "ISS_TYPE" | "SUB_MISSING" | "SUB_TYPE" => &["CLAIMS"],
        "KEY_FORMAT" | "KEY_TOO_WEAK" | "KEY_UNSUPPORTED" | "KEY_USE" | "KID_UNKNOWN" => &["UNKNOWN_KEY"],
        "KID_MISSING" | "KID_TYPE" => &["NO_KEY_ID"],
        "NBF_AFTER_EXP" => &["NOT_YET_VALID", "EXPIRED"],
        "NOT_YET_VALID" => &["NOT_YET_VALID"],
        "SIGNATURE_INVALID" => &["BAD_SIGNATURE"],
        "SUB_FORMAT" => &["SUBJECT"],
        "TOKEN_TOO_LARGE" => &["SIZE"],
        "TYP_NOT_ALLOWED" => &["TYPE"],
        _ => &[],
    }
}

/// One of the corpus's profiles as settings of ours.
struct Profile {
    /// None: we refuse the configuration.
    verifier: Option<Verifier>,
    wants_audience: bool,
    public_keys: bool,
    limits: Limits,
    /// Holds the key file.
    _file: tempfile::NamedTempFile,
}

impl Profile {
    fn read(corpus: &Value, folder: &std::path::Path, profile: &Value) -> Self {
        let strict = &corpus["settings"]["strict"];
        let limit = |name: &str| usize::try_from(strict[name].as_u64().unwrap()).unwrap();
        let limits = Limits {
            token_bytes: limit("max_token_bytes"),
            token_json_depth: limit("max_json_depth"),
            id_bytes: limit("max_sub_chars"),
            ..Limits::default()
        };
        let keys: Value = serde_json::from_slice(&std::fs::read(folder.join(text(profile, "keys"))).unwrap()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), keys.to_string()).unwrap();
        let first = &keys["keys"][0];
        let public_keys = first["kty"] != "oct";
        let source = if public_keys {
            KeySource::File(file.path().to_owned())
        } else {
            let id = first["kid"].as_str().map(str::to_owned);
            KeySource::Shared { secret: bytes(first, "k").into(), id }
        };
        let issuer = TrustedIssuer {
            issuer: text(profile, "issuer").to_owned(),
            audiences: vec![profile["audience"].as_str().unwrap_or(AUDIENCE).to_owned()],
            algorithms: list(profile, "algorithms").iter().filter_map(algorithm).collect(),
            keys: source,
            token_types: Some(
                list(strict, "allowed_typ")
                    .iter()
                    .map(|one| one.as_str().filter(|one| *one != "absent").unwrap_or_default().to_ascii_lowercase())
                    .collect(),
            ),
            clock_skew: Duration::from_secs(profile["leeway"].as_u64().unwrap()),
            max_lifetime: Duration::from_secs(strict["max_lifetime_s"].as_u64().unwrap()),
            require_sender_constrained: false,
            require_token_id: false,
            introspection: None,
            status_lists: gatepost::config::StatusLists::default(),
            mapping: ClaimMapping {
                principal_type: EntityType::parse("User").unwrap(),
                id_claim: "sub".to_owned(),
                attributes: Vec::new(),
                parents: Vec::new(),
            },
        };
        let clock = ManualClock::at(SystemTime::UNIX_EPOCH);
        let verifier = Verifier::new(&[issuer], &limits, 0, clock).ok();
        Self { verifier, wants_audience: !profile["audience"].is_null(), public_keys, limits, _file: file }
    }

    async fn judge(&self, token: &str, now: u64) -> Result<Arc<VerifiedToken>, &'static str> {
        let Some(verifier) = &self.verifier else { return Err("CONFIGURATION") };
        let token = SecretString::from(token);
        let token = UnverifiedToken::new(&token, &self.limits).map_err(TokenError::reason)?;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
        verifier.verify(token, now).await.map_err(TokenError::reason)
    }
}

/// The last checks before a claim is looked at: a token that failed at one of them is not worth signing again.
const BEFORE_THE_CLAIMS: [&str; 10] = [
    "SIZE",
    "SHAPE",
    "ALGORITHM",
    "CRITICAL_HEADER",
    "HEADER_KEY",
    "UNSUPPORTED_HEADER",
    "NO_KEY_ID",
    "UNKNOWN_KEY",
    "BAD_SIGNATURE",
    "CONFIGURATION",
];

#[tokio::test]
async fn the_field_guide_s_tokens_come_out_as_a_strict_verifier_should_have_it() {
    let Some(path) = corpus("fieldguide/jwt/cases.json") else { return };
    let corpus: Value = serde_json::from_str(&without_surrogates(&std::fs::read_to_string(&path).unwrap())).unwrap();
    let folder = path.parent().unwrap();
    let signers = Signers::read(folder);
    let profiles: BTreeMap<&str, Profile> = corpus["profiles"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, profile)| (name.as_str(), Profile::read(&corpus, folder, profile)))
        .collect();

    let (mut written, mut again, mut failed) = (0, 0, Vec::new());
    let mut differing: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut settle = |id: &str, outcome: &Outcome<'_>, failed: &mut Vec<String>| {
        let as_expected = outcome.must_accept == outcome.reason.is_none();
        if as_expected {
            return;
        }
        match DIFFERENCES.iter().find(|one| (one.applies)(outcome)) {
            Some(difference) => differing.entry(difference.what).or_default().push(id.to_owned()),
            None => failed.push(format!("{id} ({}): {:?}", text(outcome.case, "title"), outcome.reason)),
        }
    };
    for case in list(&corpus, "cases") {
        let id = text(case, "id");
        let must_accept = text(&case["strict"], "verdict") == "accept";
        written += 1;
        if case["kind"] == "jwks_load" {
            // A set without a usable key is as good as none.
            let set = KeySet::read(case["jwks"].to_string().as_bytes(), &Limits::default());
            let usable = set.map_or(0, |set| set.ids().count());
            let reason = (usable == 0).then_some("NO_USABLE_KEY");
            let nothing = Value::Null;
            let outcome = Outcome {
                case,
                must_accept,
                reason,
                configured: true,
                public_keys: true,
                header: nothing.clone(),
                claims: nothing,
            };
            settle(id, &outcome, &mut failed);
            continue;
        }
        let profile = &profiles[text(case, "profile")];
        let token = case["token"].as_str().or(case["authorization"].as_str()).unwrap_or_default();
        let now = case["now"].as_u64().unwrap();
        let verdict = profile.judge(token, now).await;
        let (header, claims) = (part(token, 0), part(token, 1));
        let mut outcome = Outcome {
            case,
            must_accept,
            reason: verdict.as_ref().err().copied(),
            configured: profile.verifier.is_some(),
            public_keys: profile.public_keys,
            header,
            claims,
        };
        settle(id, &outcome, &mut failed);
        let wanted: Vec<&str> = list(&case["strict"], "reasons").iter().filter_map(Value::as_str).collect();
        let fits = |reason: &str| wanted.iter().any(|one| ours(one).contains(&reason));
        let stopped_early = outcome.reason.is_some_and(|reason| BEFORE_THE_CLAIMS.contains(&reason));
        if stopped_early || case["kind"] != "token" {
            let reason = outcome.reason.unwrap_or_default();
            if !must_accept && profile.verifier.is_some() && case["kind"] == "token" && !fits(reason) {
                failed.push(format!("{id} ({}): refused for {reason}, not {wanted:?}", text(case, "title")));
            }
            continue;
        }
        // Its signature is good, so the claims decide: with our audience among them.
        let Some(signed_again) = signers.sign_again(token, profile.wants_audience) else { continue };
        again += 1;
        let verdict = profile.judge(&signed_again, now).await;
        outcome.reason = verdict.as_ref().err().copied();
        outcome.claims = part(&signed_again, 1);
        settle(id, &outcome, &mut failed);
        if let (false, Some(reason)) = (must_accept, outcome.reason)
            && !fits(reason)
        {
            failed.push(format!("{id} ({}): refused for {reason}, not {wanted:?}", text(case, "title")));
        }
        if let Ok(verified) = &verdict {
            assert_eq!(verified.principal().uid.id.as_str(), outcome.claims["sub"], "{id}: the principal");
        }
    }
    say!("fieldguide/jwt: {written} cases ran, {again} of them again with our audience, {} failed", failed.len());
    for difference in &DIFFERENCES {
        if let Some(ids) = differing.get(difference.what) {
            let (what, why) = (difference.what, difference.why);
            say!("fieldguide/jwt: known difference in {}: {what}, because {why}: {}", ids.len(), ids.join(" "));
        }
    }
    assert!(written > 0 && again > 0 && failed.is_empty(), "{} differ:\n{}", failed.len(), failed.join("\n"));
}

/// The file tells what other readers made of half a surrogate pair, which ours does not read. Nothing that is judged is
/// written so: tokens are base64url.
fn without_surrogates(text: &str) -> String {
    let mut parts = text.split("\\ud");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, rest| match rest.as_bytes() {
        [b'8'..=b'9' | b'a'..=b'f', ..] => text + "\\ufffd" + rest.get(3..).unwrap_or_default(),
        _ => text + "\\ud" + rest,
    })
}

/// The corpus's test keys, to sign with.
struct Signers {
    keys: Vec<Value>,
}

impl Signers {
    fn read(folder: &std::path::Path) -> Self {
        let file = folder.join("keys/private_test_keys.jwks.json");
        let keys: Value = std::fs::read(file).map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap());
        Self { keys: keys["keys"].as_array().cloned().unwrap_or_default() }
    }

    /// The token with our audience among its claims, under its own header and signed by the key that signed it; nothing
    /// when its claims can't be added to or that key is not here.
    fn sign_again(&self, token: &str, has_audience: bool) -> Option<String> {
        let mut parts = token.split('.');
        let (head, payload) = (parts.next()?, parts.next()?);
        let mut claims = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let named = serde_json::from_str::<Value>(&claims).is_ok_and(|claims| claims.get("aud").is_some());
        if !has_audience && !named {
            // As text, so that whatever is odd about the claims stays as it is.
            let at = claims.find('{')? + 1;
            claims.insert_str(at, &format!(r#""aud":"{AUDIENCE}","#));
        }
        let header = part(token, 0);
        let algorithm = header["alg"].as_str()?;
        let fits = |key: &&Value| match header["kid"].as_str() {
            Some(kid) => key["kid"] == kid,
            None => key["alg"] == algorithm && !key["kid"].as_str().is_some_and(|kid| kid.starts_with("attacker")),
        };
        let key = self.keys.iter().find(|key| fits(key) && key["alg"] == algorithm)?;
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = sign(key, algorithm, signed.as_bytes())?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn sign(key: &Value, algorithm: &str, message: &[u8]) -> Option<Vec<u8>> {
    let random = SystemRandom::new();
    Some(match algorithm {
        "HS256" => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &bytes(key, "k")), message).as_ref().to_vec(),
        "ES256" | "ES384" => {
            let curve = if algorithm == "ES256" {
                &signature::ECDSA_P256_SHA256_FIXED_SIGNING
            } else {
                &signature::ECDSA_P384_SHA384_FIXED_SIGNING
            };
            let public = [vec![4], bytes(key, "x"), bytes(key, "y")].concat();
            let pair = signature::EcdsaKeyPair::from_private_key_and_public_key(curve, &bytes(key, "d"), &public);
            pair.unwrap().sign(&random, message).unwrap().as_ref().to_vec()
        }
        "EdDSA" => {
            let pair = signature::Ed25519KeyPair::from_seed_and_public_key(&bytes(key, "d"), &bytes(key, "x"));
            pair.unwrap().sign(message).as_ref().to_vec()
        }
        "RS256" | "PS256" => {
            let pair = rsa::KeyPair::from_der(&pkcs1(key)).unwrap();
            let padding: &dyn signature::RsaEncoding =
                if algorithm == "RS256" { &signature::RSA_PKCS1_SHA256 } else { &signature::RSA_PSS_SHA256 };
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(padding, &random, message, &mut signature).unwrap();
            signature
        }
        _ => return None,
    })
}

/// RSAPrivateKey (RFC 8017 appendix A.1.2).
fn pkcs1(key: &Value) -> Vec<u8> {
    let numbers = ["n", "e", "d", "p", "q", "dp", "dq", "qi"].map(|name| bytes(key, name));
    let integers: Vec<u8> = std::iter::once(vec![0])
        .chain(numbers)
        .flat_map(|number| {
            let sign = number.first().is_none_or(|first| first & 0x80 != 0);
            tagged(2, &[vec![0; usize::from(sign)], number].concat())
        })
        .collect();
    tagged(0x30, &integers)
}

/// DER: tag, length, content.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let head = if content.len() < 0x80 {
        vec![tag, u8::try_from(content.len()).unwrap()]
    } else {
        [vec![tag, 0x80 | u8::try_from(length.len()).unwrap()], length].concat()
    };
    [head, content.to_vec()].concat()
}

/// A member in base64url.
fn bytes(key: &Value, name: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text(key, name)).unwrap()
}

/// A token's header or claims, if they can be read at all.
fn part(token: &str, at: usize) -> Value {
    let part = token.split('.').nth(at).unwrap_or_default();
    URL_SAFE_NO_PAD.decode(part).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

/// Nothing for an algorithm that can't be configured.
fn algorithm(name: &Value) -> Option<TokenAlgorithm> {
    EVERY_ALGORITHM.into_iter().find(|one| name == one.as_str())
}

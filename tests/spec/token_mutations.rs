//! Tokens that somebody tampered with, by the hundred thousand: none is accepted. THREATS T2.
//!
//! `GATEPOST_LONG=1` tries a million. What may be accepted is the token itself, when a change changed nothing, and the
//! other half of an ECDSA signature (r, n - s), which is as valid as the first and says the same: that is why nothing is
//! ever keyed by a token's text but caches of what it says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use aws_lc_rs::{hmac, rsa};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use gatepost::clock::{ManualClock, SystemClock};
use gatepost::config::{ClaimMapping, KeySource, Limits, TokenAlgorithm, TrustedIssuer};
use gatepost::model::entity::EntityType;
use gatepost::secret::SecretString;
use gatepost::token::{UnverifiedToken, Verifier};
use serde_json::{Map, Value, json};

use crate::properties::Dice;

const SEED: u64 = 0x746f_6b65_6e73;
const NOW: u64 = 1_800_000_000;
const PUBLIC: &str = "https://public.test";
const SHARED: &str = "https://shared.test";
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// The order of P-256 (FIPS 186-5, SP 800-186 section 3.2.1.3).
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7,
    0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];
/// The order of Ed25519's base point, little-endian (RFC 8032 section 5.1).
const ED25519_ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// A valid token, in parts.
struct Token {
    algorithm: &'static str,
    text: String,
    header: Value,
    claims: Value,
    signature: Vec<u8>,
    /// As it stands in the key set; the shared one in its own form.
    public: String,
}

impl Token {
    fn parts(&self) -> [&str; 3] {
        let parts: Vec<&str> = self.text.split('.').collect();
        parts.try_into().unwrap()
    }
}

/// Five tokens, one for each family of algorithms, and verifiers that accept them, with a cache and without.
struct Bench {
    tokens: Vec<Token>,
    verifiers: [Verifier; 2],
    /// The other half of the ES256 token.
    twin: String,
    _file: tempfile::NamedTempFile,
}

impl Bench {
    fn set_up() -> Self {
        let random = SystemRandom::new();
        let (rs, ps) = (rsa_key(), rsa_key());
        let curve = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap();
        let ec = EcdsaKeyPair::from_pkcs8(curve, document.as_ref()).unwrap();
        let ed = Ed25519KeyPair::generate().unwrap();
        let rsa_jwk = |key: &rsa::KeyPair, name: &str| {
            // RSAPublicKey with 2 048 bits and an exponent of 65537 always looks like this (RFC 8017 appendix A.1.1).
            let der = key.public_key().as_ref();
            json!({ "kty": "RSA", "kid": name, "alg": name, "use": "sig", "n": encode(&der[9..265]), "e": "AQAB" })
        };
        let point = ec.public_key().as_ref();
        let keys = [
            rsa_jwk(&rs, "RS256"),
            rsa_jwk(&ps, "PS256"),
            json!({ "kty": "EC", "crv": "P-256", "kid": "ES256", "x": encode(&point[1..33]), "y": encode(&point[33..]) }),
            json!({ "kty": "OKP", "crv": "Ed25519", "kid": "EdDSA", "x": encode(ed.public_key().as_ref()) }),
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json!({ "keys": keys }).to_string()).unwrap();

        let sign = |algorithm: &str, message: &[u8]| match algorithm {
            "RS256" => rsa_sign(&rs, &signature::RSA_PKCS1_SHA256, message),
            "PS256" => rsa_sign(&ps, &signature::RSA_PSS_SHA256, message),
            "ES256" => ec.sign(&random, message).unwrap().as_ref().to_vec(),
            "EdDSA" => ed.sign(message).as_ref().to_vec(),
            _ => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), message).as_ref().to_vec(),
        };
        let tokens: Vec<Token> = ["RS256", "PS256", "ES256", "EdDSA", "HS256"]
            .into_iter()
            .enumerate()
            .map(|(at, algorithm)| {
                let issuer = if algorithm == "HS256" { SHARED } else { PUBLIC };
                let header = json!({ "alg": algorithm, "typ": "at+jwt", "kid": algorithm });
                let claims = json!({
                    "iss": issuer, "sub": format!("user-{at}"), "aud": "gatepost", "iat": NOW - 60, "exp": NOW + 600,
                    "jti": format!("j-{at}"), "scope": "read", "client_id": "web", "roles": ["customer"],
                });
                let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
                let signature = sign(algorithm, signed.as_bytes());
                let public = keys.get(at).map_or_else(|| encode(SECRET), Value::to_string);
                let text = format!("{signed}.{}", encode(&signature));
                Token { algorithm, text, header, claims, signature, public }
            })
            .collect();
        let es256 = &tokens[2];
        let mirrored = [&es256.signature[..32], &subtract(&P256_ORDER, &es256.signature[32..])].concat();
        let twin = format!("{}.{}.{}", es256.parts()[0], es256.parts()[1], encode(mirrored));
        let verifiers = [0, 10_000].map(|cached| verifier(file.path(), cached));
        Self { tokens, verifiers, twin, _file: file }
    }

    /// Whom the verifier takes the bearer for.
    async fn present(&self, with_cache: usize, text: &str) -> Option<String> {
        let text = SecretString::from(text);
        let token = UnverifiedToken::new(&text, &Limits::default()).ok()?;
        let verified = self.verifiers[with_cache].verify(token, at(NOW)).await.ok()?;
        Some(verified.principal().uid.id.as_str().to_owned())
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn verifier(keys: &std::path::Path, cached: u64) -> Verifier {
    use TokenAlgorithm::{EdDsa, Es256, Hs256, Ps256, Rs256};
    let issuer = |name: &str, algorithms: Vec<TokenAlgorithm>, keys: KeySource| TrustedIssuer {
        issuer: name.to_owned(),
        audiences: vec!["gatepost".to_owned()],
        algorithms,
        keys,
        token_types: Some(["at+jwt".to_owned()].into()),
        clock_skew: Duration::from_secs(30),
        max_lifetime: Duration::from_secs(900),
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
    let shared = KeySource::Shared { secret: SECRET.to_vec().into(), id: Some("HS256".to_owned()) };
    let issuers = [
        issuer(PUBLIC, vec![Rs256, Ps256, Es256, EdDsa], KeySource::File(keys.to_owned())),
        issuer(SHARED, vec![Hs256], shared),
    ];
    Verifier::new(&issuers, &Limits::default(), cached, ManualClock::at(at(NOW))).unwrap()
}

fn rsa_key() -> rsa::KeyPair {
    rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap()
}

fn rsa_sign(key: &rsa::KeyPair, padding: &'static dyn signature::RsaEncoding, message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Big-endian, of equal lengths, and not below zero.
fn subtract(from: &[u8], what: &[u8]) -> Vec<u8> {
    let mut borrow = 0;
    let mut digits: Vec<u8> = from
        .iter()
        .zip(what)
        .rev()
        .map(|(from, what)| {
            let digit = i16::from(*from) - i16::from(*what) - borrow;
            borrow = i16::from(digit < 0);
            u8::try_from(digit.rem_euclid(256)).unwrap()
        })
        .collect();
    digits.reverse();
    digits
}

/// Little-endian, of equal lengths; what does not fit falls off.
fn add(left: &[u8], right: &[u8]) -> Vec<u8> {
    let mut carry = 0;
    let sum = left.iter().zip(right).map(|(left, right)| {
        let digit = u16::from(*left) + u16::from(*right) + carry;
        carry = digit >> 8;
        u8::try_from(digit & 0xff).unwrap()
    });
    sum.collect()
}

/// One way to tamper with a token, and its name.
type Mutation = (&'static str, fn(&Bench, &Token, &mut Dice) -> String);

const MUTATIONS: [Mutation; 22] = [
    ("a bit flipped", |_, token, dice| {
        let mut bytes = token.text.clone().into_bytes();
        let at = dice.below(bytes.len());
        bytes[at] ^= 1 << dice.below(7);
        text(bytes)
    }),
    ("a byte changed", |_, token, dice| {
        let mut bytes = token.text.clone().into_bytes();
        let at = dice.below(bytes.len());
        bytes[at] = u8::try_from(dice.below(128)).unwrap();
        text(bytes)
    }),
    ("a letter changed", |_, token, dice| {
        let mut bytes = token.text.clone().into_bytes();
        let at = dice.below(bytes.len());
        bytes[at] = letter(dice);
        text(bytes)
    }),
    ("several letters changed", |_, token, dice| {
        let mut bytes = token.text.clone().into_bytes();
        for _ in 0..=dice.below(8) {
            let at = dice.below(bytes.len());
            bytes[at] = letter(dice);
        }
        text(bytes)
    }),
    ("the end cut off", |_, token, dice| token.text[..dice.below(token.text.len())].to_owned()),
    ("the beginning cut off", |_, token, dice| token.text[1 + dice.below(token.text.len() - 1)..].to_owned()),
    ("letters inserted", |_, token, dice| {
        let mut changed = token.text.clone();
        for _ in 0..=dice.below(4) {
            changed.insert(dice.below(changed.len() + 1), char::from(letter(dice)));
        }
        changed
    }),
    ("a strange character inserted", |_, token, dice| {
        let strange = ['.', '=', ' ', '\n', '\t', '\0', '+', '/', '~', '"', '%', 'é', '\u{200b}', '\u{ff0e}'];
        let mut changed = token.text.clone();
        changed.insert(dice.below(changed.len() + 1), strange[dice.below(strange.len())]);
        changed
    }),
    ("letters left out", |_, token, dice| {
        let begin = dice.below(token.text.len());
        let end = (begin + 1 + dice.below(12)).min(token.text.len());
        [&token.text[..begin], &token.text[end..]].concat()
    }),
    ("two letters swapped", |_, token, dice| {
        let mut bytes = token.text.clone().into_bytes();
        let (one, other) = (dice.below(bytes.len()), dice.below(bytes.len()));
        bytes.swap(one, other);
        text(bytes)
    }),
    ("parts of several tokens", |bench, _, dice| {
        let mut part = |at: usize| bench.tokens[dice.below(bench.tokens.len())].parts()[at].to_owned();
        [part(0), part(1), part(2)].join(".")
    }),
    ("parts in another order or number", |bench, token, dice| {
        let other = bench.tokens[dice.below(bench.tokens.len())].parts();
        let all = [token.parts(), other].concat();
        let count = dice.below(6);
        (0..count).map(|_| all[dice.below(all.len())]).collect::<Vec<_>>().join(".")
    }),
    ("another header", |bench, token, dice| {
        let mut header = token.header.clone();
        change_header(bench, token, &mut header, dice);
        format!("{}.{}.{}", encode(header.to_string()), token.parts()[1], token.parts()[2])
    }),
    ("other claims", |_, token, dice| {
        let mut claims = token.claims.clone();
        change_claims(&mut claims, dice);
        format!("{}.{}.{}", token.parts()[0], encode(claims.to_string()), token.parts()[2])
    }),
    ("another header and other claims", |bench, token, dice| {
        let (mut header, mut claims) = (token.header.clone(), token.claims.clone());
        change_header(bench, token, &mut header, dice);
        change_claims(&mut claims, dice);
        format!("{}.{}.{}", encode(header.to_string()), encode(claims.to_string()), token.parts()[2])
    }),
    ("the same claims in another spelling", |_, token, dice| {
        let spellings = [
            serde_json::to_string_pretty(&token.claims).unwrap(),
            format!(" {}", token.claims),
            format!("{}\n", token.claims),
            token.claims.to_string().replacen("sub", "s\\u0075b", 1),
            token.claims.to_string().replacen('{', r#"{"sub":"admin","#, 1),
            token.claims.to_string().replacen('}', r#","sub":"admin"}"#, 1),
        ];
        let claims = &spellings[dice.below(spellings.len())];
        format!("{}.{}.{}", token.parts()[0], encode(claims), token.parts()[2])
    }),
    ("the same bytes in another spelling", |_, token, dice| {
        let at = dice.below(3);
        let mut parts = token.parts().map(str::to_owned);
        let bytes = URL_SAFE_NO_PAD.decode(&parts[at]).unwrap();
        parts[at] = match dice.below(4) {
            0 => format!("{}=", parts[at]),
            1 => URL_SAFE.encode(&bytes),
            2 => STANDARD.encode(&bytes),
            // Bits that a lax reader does not look at.
            _ => {
                let last = parts[at].pop().unwrap();
                let value = ALPHABET.iter().position(|letter| char::from(*letter) == last).unwrap();
                format!("{}{}", parts[at], char::from(ALPHABET[value ^ (1 + dice.below(3))]))
            }
        };
        parts.join(".")
    }),
    ("another signature", |bench, token, dice| {
        let mut signature = token.signature.clone();
        let length = signature.len();
        match dice.below(9) {
            0 => signature.fill(0),
            1 => signature.fill(0xff),
            2 => signature = random(length, dice),
            3 => signature = random(1 + dice.below(600), dice),
            4 => signature.push(0),
            5 => signature.insert(0, 0),
            6 => signature.rotate_left(length / 2),
            7 => signature.truncate(dice.below(length)),
            _ => signature = bench.tokens[dice.below(bench.tokens.len())].signature.clone(),
        }
        format!("{}.{}.{}", token.parts()[0], token.parts()[1], encode(signature))
    }),
    ("a bit of the signature flipped", |_, token, dice| {
        let mut signature = token.signature.clone();
        let at = dice.below(signature.len());
        signature[at] ^= 1 << dice.below(8);
        format!("{}.{}.{}", token.parts()[0], token.parts()[1], encode(signature))
    }),
    ("the other half of an ECDSA signature", |bench, _, _| bench.twin.clone()),
    ("an Ed25519 signature past the order", |bench, _, dice| {
        let token = &bench.tokens[3];
        let mut scalar = token.signature[32..].to_vec();
        for _ in 0..=dice.below(6) {
            scalar = add(&scalar, &ED25519_ORDER);
        }
        let signature = [&token.signature[..32], &scalar].concat();
        format!("{}.{}.{}", token.parts()[0], token.parts()[1], encode(signature))
    }),
    ("signed with what everybody knows", |bench, token, dice| {
        let mut header = token.header.clone();
        header["alg"] = json!("HS256");
        let mut claims = token.claims.clone();
        if dice.below(2) == 0 {
            claims["iss"] = json!(SHARED);
        }
        let from = &bench.tokens[dice.below(4)];
        let jwk: Value = serde_json::from_str(&from.public).unwrap();
        let part = ["n", "x", "y", "e", "kid"].map(|name| jwk[name].as_str().unwrap_or_default().to_owned());
        let text = &part[dice.below(part.len())];
        let secret: Vec<u8> = match dice.below(6) {
            0 => Vec::new(),
            1 => from.public.clone().into_bytes(),
            2 => text.clone().into_bytes(),
            3 => URL_SAFE_NO_PAD.decode(text).unwrap_or_default(),
            4 => encode(SECRET).into_bytes(),
            _ => b"secret".to_vec(),
        };
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), signed.as_bytes());
        format!("{signed}.{}", encode(tag))
    }),
];

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn letter(dice: &mut Dice) -> u8 {
    ALPHABET[dice.below(64)]
}

fn random(length: usize, dice: &mut Dice) -> Vec<u8> {
    (0..length).map(|_| u8::try_from(dice.below(256)).unwrap()).collect()
}

fn change_header(bench: &Bench, token: &Token, header: &mut Value, dice: &mut Dice) {
    let algorithms =
        ["none", "None", "HS256", "HS512", "RS256", "PS256", "RS512", "ES256", "ES384", "EdDSA", "", "rs256"];
    let members: &mut Map<String, Value> = header.as_object_mut().unwrap();
    match dice.below(9) {
        0 => drop(members.insert("alg".into(), json!(algorithms[dice.below(algorithms.len())]))),
        1 => drop(members.insert("kid".into(), json!(bench.tokens[dice.below(bench.tokens.len())].algorithm))),
        2 => drop(members.insert("typ".into(), json!(["JWT", "dpop+jwt", "", "AT+JWT"][dice.below(4)]))),
        3 => {
            let name = ["alg", "typ", "kid"][dice.below(3)];
            members.remove(name);
        }
        4 => drop(members.insert("jwk".into(), serde_json::from_str(&token.public).unwrap_or_default())),
        5 => drop(members.insert(["jku", "x5u"][dice.below(2)].into(), json!("https://evil.test/jwks"))),
        6 => drop(members.insert("crit".into(), json!(["b64"]))),
        7 => drop(members.insert(["zip", "enc", "cty", "b64"][dice.below(4)].into(), json!("JWT"))),
        _ => drop(members.insert(format!("x{}", dice.below(1000)), json!(dice.below(1000)))),
    }
}

fn change_claims(claims: &mut Value, dice: &mut Dice) {
    let names = ["iss", "sub", "aud", "iat", "exp", "jti", "scope", "client_id", "roles"];
    let name = names[dice.below(names.len())];
    let members: &mut Map<String, Value> = claims.as_object_mut().unwrap();
    match dice.below(6) {
        0 => drop(members.remove(name)),
        1 => drop(members.insert("sub".into(), json!(format!("user-{}", 5 + dice.below(1000))))),
        2 => drop(members.insert("exp".into(), json!(NOW + 601 + dice.below(200) as u64))),
        3 => drop(members.insert("roles".into(), json!(["admin"]))),
        4 => drop(
            members
                .insert(name.into(), [json!(null), json!(0), json!([]), json!({}), json!("")][dice.below(5)].clone()),
        ),
        _ => drop(members.insert(format!("x{}", dice.below(1000)), json!("y"))),
    }
}

/// What one thread saw.
#[derive(Default)]
struct Tally {
    tried: BTreeMap<&'static str, usize>,
    unchanged: usize,
    twins: usize,
    accepted: Vec<String>,
}

#[test]
fn of_a_hundred_thousand_tampered_tokens_none_is_accepted() {
    let tries = if std::env::var_os("GATEPOST_LONG").is_some() { 1_000_000 } else { 100_000 };
    let watch = SystemClock::shared();
    let bench = Arc::new(Bench::set_up());
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime().block_on(async {
        for (at, token) in bench.tokens.iter().enumerate() {
            for with_cache in [0, 1] {
                let name = bench.present(with_cache, &token.text).await;
                assert_eq!(name, Some(format!("user-{at}")), "{}: untouched it is good", token.algorithm);
            }
        }
    });
    let working: Vec<_> = (0..threads)
        .map(|thread| {
            let (bench, runtime) = (Arc::clone(&bench), runtime());
            std::thread::spawn(move || {
                let mut dice = Dice(SEED + thread as u64);
                let mut tally = Tally::default();
                runtime.block_on(async {
                    for number in (thread..tries).step_by(threads) {
                        let (kind, mutate) = MUTATIONS[number / threads % MUTATIONS.len()];
                        let token = &bench.tokens[dice.below(bench.tokens.len())];
                        let changed = mutate(&bench, token, &mut dice);
                        *tally.tried.entry(kind).or_default() += 1;
                        let Some(name) = bench.present(number % 2, &changed).await else { continue };
                        if let Some(at) = bench.tokens.iter().position(|token| token.text == changed) {
                            assert_eq!(name, format!("user-{at}"));
                            tally.unchanged += 1;
                        } else if changed == bench.twin {
                            assert_eq!(name, "user-2", "the other half says the same");
                            tally.twins += 1;
                        } else {
                            tally.accepted.push(format!("{kind} of {}: {changed}", token.algorithm));
                        }
                    }
                });
                tally
            })
        })
        .collect();
    let mut all = Tally::default();
    for thread in working {
        let tally = thread.join().unwrap();
        for (kind, count) in tally.tried {
            *all.tried.entry(kind).or_default() += count;
        }
        all.unchanged += tally.unchanged;
        all.twins += tally.twins;
        all.accepted.extend(tally.accepted);
    }
    assert_eq!(all.tried.values().sum::<usize>(), tries);
    assert_eq!(all.tried.len(), MUTATIONS.len(), "every kind was tried");
    println!(
        "{tries} tampered tokens of 5 families, {} kinds, {threads} threads, {:?}: {} accepted; besides, {} were unchanged \
         and {} the other half of an ECDSA signature with the same claims",
        MUTATIONS.len(),
        watch.monotonic(),
        all.accepted.len(),
        all.unchanged,
        all.twins,
    );
    assert!(all.twins > 0 && all.unchanged > 0, "what is good is accepted, so the others had their chance");
    assert!(all.accepted.is_empty(), "{}", all.accepted.join("\n"));
}

//! JSON as a key server or a token may bring it: JSONTestSuite as key sets, as headers and as claims.
//!
//! The suite's `y_` texts have to be read and its `n_` texts refused; `i_` texts may be either. Nothing may take long, and
//! nothing may panic.

#![expect(clippy::unwrap_used, reason = "a corpus of another form is a failed test")]

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatepost::clock::{ManualClock, SystemClock};
use gatepost::config::{ClaimMapping, KeySource, Limits, TokenAlgorithm, TrustedIssuer};
use gatepost::model::entity::EntityType;
use gatepost::secret::SecretString;
use gatepost::token::{KeySet, UnverifiedToken, Verifier};

use crate::support::{corpus, say};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const LONGEST: Duration = Duration::from_millis(50);

/// Texts that are JSON, and that we refuse all the same.
const REFUSED: [(&str, &str); 2] = [
    ("y_object_duplicated_key.json", "a member named twice means two things to two readers (RFC 8725 section 2.4)"),
    ("y_object_duplicated_key_and_value.json", "the same, though here both are equal"),
];

#[tokio::test]
async fn json_of_every_kind_is_read_or_refused_as_the_suite_says() {
    let Some(folder) = corpus("jsontestsuite/test_parsing") else { return };
    let now = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let verifier = verifier(now);
    let limits = Limits::default();
    let (mut ran, mut failed, mut ours) = (0, Vec::new(), Vec::new());
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read(&file).unwrap();
        ran += 1;
        let within = |before: &[u8], after: &[u8]| [before, &text, after].concat();
        let watch = SystemClock::shared();
        let whole = KeySet::read(&text, &limits).is_ok();
        let as_key_set = KeySet::read(&within(br#"{"keys":[],"x":"#, b"}"), &limits).is_ok();
        let as_key = KeySet::read(&within(br#"{"keys":[1,"#, b"]}"), &limits).is_ok();
        let header = within(br#"{"alg":"HS256","typ":"at+jwt","x":"#, b"}");
        let as_header = presented(&verifier, &header, PLAIN, now).await;
        let claims = [PLAIN.strip_suffix(b"}").unwrap(), br#","x":"#, &text, b"}"].concat();
        let as_claims = presented(&verifier, HEADER, &claims, now).await;
        let took = watch.monotonic();
        if took > LONGEST {
            failed.push(format!("{name}: took {took:?}"));
        }
        let read = [as_key_set, as_key, as_header, as_claims];
        let consistent = read.iter().all(|one| *one == as_key_set);
        match name.as_bytes() {
            [b'y', ..] if read == [true; 4] => {}
            [b'y', ..] if REFUSED.iter().any(|(file, _)| *file == name) && read == [false; 4] => ours.push(name),
            [b'n', ..] if read == [false; 4] && !whole => {}
            [b'i', ..] if consistent => {}
            _ => failed.push(format!("{name}: {read:?}, by itself {whole}")),
        }
    }
    say!("jsontestsuite: {ran} texts as key set, key, header and claims, {} failed", failed.len());
    say!("jsontestsuite: {} that are JSON are refused by our own rules: {}", ours.len(), ours.join(" "));
    assert!(ran > 0 && failed.is_empty(), "{} differ:\n{}", failed.len(), failed.join("\n"));
}

const HEADER: &[u8] = br#"{"alg":"HS256","typ":"at+jwt"}"#;
const PLAIN: &[u8] = br#"{"iss":"i","sub":"s","aud":"a","iat":1799999940,"exp":1800000600}"#;

/// Whether a token of these parts, well signed, is accepted.
async fn presented(verifier: &Verifier, header: &[u8], claims: &[u8], now: std::time::SystemTime) -> bool {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    let token: SecretString = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)).into();
    let limits = Limits { token_bytes: 1 << 20, ..Limits::default() };
    let Ok(token) = UnverifiedToken::new(&token, &limits) else { return false };
    verifier.verify(token, now).await.is_ok()
}

fn verifier(now: std::time::SystemTime) -> Verifier {
    let issuer = TrustedIssuer {
        issuer: "i".to_owned(),
        audiences: vec!["a".to_owned()],
        algorithms: vec![TokenAlgorithm::Hs256],
        keys: KeySource::Shared { secret: SECRET.to_vec().into(), id: None },
        token_types: Some(["at+jwt".to_owned()].into()),
        clock_skew: Duration::from_secs(0),
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
    Verifier::new(&[issuer], &Limits::default(), 0, ManualClock::at(now)).unwrap()
}

//! Tokens and key sets of strangers: the attack tokens and hostile JWKS documents of `jwt-attacks`, and Wycheproof's
//! JWS vectors.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a corpus of another form is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatepost::caller::bond::Bond;
use gatepost::clock::{ManualClock, SystemClock, unix_seconds};
use gatepost::config::{
    ActionPattern, AttributeGrant, ClaimMapping, ClientNames, EnrolledCaller, IdentityConfig, KeySource, Limits,
    PresentGrant, Share, StatusLists, TenantGrant, TokenAlgorithm, TrustedIssuer, TypeGrant,
};
use gatepost::model::entity::EntityType;
use gatepost::revocation::{Key, Kind, Revocation, Revocations, Source};
use gatepost::secret::SecretString;
use gatepost::tls::peer;
use gatepost::token::{KeySet, TokenError, UnverifiedToken, VerifiedToken, Verifier};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;

use crate::support::{corpus, say};

/// What an issuer can be pinned to.
pub const EVERY_ALGORITHM: [TokenAlgorithm; 10] = [
    TokenAlgorithm::Rs256,
    TokenAlgorithm::Rs384,
    TokenAlgorithm::Rs512,
    TokenAlgorithm::Ps256,
    TokenAlgorithm::Ps384,
    TokenAlgorithm::Ps512,
    TokenAlgorithm::Es256,
    TokenAlgorithm::Es384,
    TokenAlgorithm::EdDsa,
    TokenAlgorithm::Hs256,
];

/// Every attack token comes out as the corpus expects, and comes out the same when it is presented again.
///
/// Keys come from files alone, so the verifier under test has no client and `must_not_fetch` can't be broken.
#[tokio::test]
async fn attack_tokens_come_out_as_expected() {
    let Some(corpus) = read("jwt-attacks/attacks.json") else { return };
    let bench = Bench::set_up(&corpus);
    let (mut ran, mut failed) = (0, Vec::new());
    for case in list(&corpus, "cases") {
        let id = text(case, "id");
        ran += 1;
        if let Err(difference) = bench.judge(case).await {
            failed.push(format!("{id} ({}): {difference}", text(case, "why")));
        }
    }
    say!("jwt-attacks/attacks.json: {ran} ran, {} failed", failed.len());
    assert!(ran > 0 && failed.is_empty(), "{} of {ran} differ:\n{}", failed.len(), failed.join("\n"));
}

/// The usable keys of every document are the ones the corpus names; a document to be refused whole is refused whole.
#[test]
fn hostile_key_sets_give_only_their_usable_keys() {
    let Some(corpus) = read("jwt-attacks/jwks-documents.json") else { return };
    let (mut ran, mut failed) = (0, Vec::new());
    for case in list(&corpus, "cases") {
        ran += 1;
        let usable: BTreeSet<&str> = list(case, "usable_kids").iter().map(|kid| kid.as_str().unwrap()).collect();
        let keep_previous = case["keep_previous"].as_bool().unwrap_or(false);
        let document = generated_document(case).unwrap_or_else(|| text(case, "body").to_owned());
        let set = KeySet::read(document.as_bytes(), &Limits::default());
        let ids = set.as_ref().map(|set| set.ids().collect::<BTreeSet<_>>());
        let as_expected = match &ids {
            Err(_) => keep_previous,
            // Where the corpus leaves it to us, leaving the key out is as good.
            Ok(ids) => !keep_previous && (*ids == usable || (case["policy"] == true && ids.is_empty())),
        };
        if !as_expected {
            failed.push(format!("{} ({}): {ids:?}", text(case, "id"), text(case, "why")));
        }
    }
    say!("jwt-attacks/jwks-documents.json: {ran} ran, {} failed", failed.len());
    assert!(ran > 0 && failed.is_empty(), "{} of {ran} differ:\n{}", failed.len(), failed.join("\n"));
}

/// Every invalid JWS is refused and every valid one holds, except those that our rules exclude: HMAC keys in a key set,
/// algorithms we don't have, and keys whose own `alg` is another.
#[test]
fn wycheproof_signatures_hold_exactly_when_valid() {
    let Some(corpus) = read("wycheproof/json_web_signature_test.json") else { return };
    let (mut ran, mut failed, mut ours) = (0, Vec::new(), Vec::new());
    for group in list(&corpus, "testGroups") {
        let key = if group["public"].is_null() { &group["private"] } else { &group["public"] };
        for case in list(group, "tests") {
            ran += 1;
            let name = format!("{} {} {}", case["tcId"], text(group, "comment"), text(case, "comment"));
            let jws = text(case, "jws");
            let verdict = check_jws(key, jws);
            let excluded = key["kty"] == "oct" || !algorithm_fits(key, jws);
            match (text(case, "result") == "valid", &verdict) {
                (true, Ok(())) | (false, Err(_)) => {}
                (true, Err(_)) if excluded => ours.push(name),
                (_, verdict) => failed.push(format!("{name}: {verdict:?}")),
            }
        }
    }
    say!("wycheproof/json_web_signature_test.json: {ran} ran, {} failed", failed.len());
    say!("wycheproof: {} valid ones are refused by our own rules: {}", ours.len(), ours.join(", "));
    assert!(ran > 0 && failed.is_empty(), "{} of {ran} differ:\n{}", failed.len(), failed.join("\n"));
}

/// A verifier as the corpus describes it, at the corpus's time.
struct Bench {
    verifier: Verifier,
    limits: Limits,
    now: SystemTime,
    leeway: u64,
    accepted_types: BTreeSet<String>,
    /// The corpus's callers as they would be enrolled, each with the SHA-256 of its certificate.
    callers: BTreeMap<String, (EnrolledCaller, [u8; 32])>,
    bond: Bond,
    issuers: Vec<String>,
    /// Holds the key files.
    _folder: tempfile::TempDir,
}

impl Bench {
    fn set_up(corpus: &Value) -> Self {
        let profile = &corpus["profile"];
        assert_eq!(profile["kid_required"], true, "we have no other rule");
        assert_eq!(profile["min_rsa_bits"], 2048, "we have no other rule");
        assert_eq!(profile["max_future_iat_s"], 60, "we have no other rule");
        let limits = Limits {
            token_bytes: size(profile, "max_token_chars"),
            token_json_depth: size(profile, "max_json_depth"),
            token_claims: size(profile, "max_claims"),
            ..Limits::default()
        };
        let leeway = profile["leeway_s"].as_u64().unwrap();
        let accepted_types: BTreeSet<_> =
            list(profile, "accepted_typ").iter().map(|one| one.as_str().unwrap().to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let issuers: Vec<_> = list(corpus, "issuers")
            .iter()
            .enumerate()
            .map(|(position, issuer)| {
                let file = folder.path().join(format!("{position}.json"));
                std::fs::write(&file, issuer["jwks"].to_string()).unwrap();
                TrustedIssuer {
                    issuer: text(issuer, "iss").to_owned(),
                    audiences: vec![text(profile, "audience").to_owned()],
                    algorithms: list(profile, "allowed_algs").iter().map(algorithm).collect(),
                    keys: KeySource::File(file),
                    token_types: Some(accepted_types.clone()),
                    clock_skew: Duration::from_secs(leeway),
                    require_sender_constrained: false,
                    max_lifetime: Duration::from_secs(profile["max_lifetime_s"].as_u64().unwrap()),
                    require_token_id: false,
                    mapping: ClaimMapping {
                        principal_type: EntityType::parse("User").unwrap(),
                        id_claim: "sub".to_owned(),
                        attributes: Vec::new(),
                        parents: Vec::new(),
                    },
                    introspection: None,
                    status_lists: StatusLists::default(),
                }
            })
            .collect();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(corpus["verify_at_unix"].as_u64().unwrap());
        let verifier = Verifier::new(&issuers, &limits, 10_000, ManualClock::at(now)).unwrap();
        let callers = callers(corpus, &issuers);
        let bond = Bond::new(&issuers);
        let issuers = issuers.into_iter().map(|issuer| issuer.issuer).collect();
        Self { verifier, limits, now, leeway, accepted_types, callers, bond, issuers, _folder: folder }
    }

    async fn present(&self, token: &SecretString) -> Result<Arc<VerifiedToken>, TokenError> {
        self.verifier.verify(UnverifiedToken::new(token, &self.limits)?, self.now).await
    }

    /// The list that a case wants: `sub_not_before`, `jti`, `sid`, each for every issuer. One of another kind is a failed
    /// test.
    fn revoked(&self, wanted: &Value) -> Result<Arc<Revocations>, String> {
        let list = Revocations::new(1000, ManualClock::at(self.now), Arc::new(|_, _, _| ()));
        let until = unix_seconds(self.now) + 86_400;
        let texts = |value: &Value| -> Vec<String> {
            let listed = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            listed.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        for (name, value) in wanted.as_object().into_iter().flatten() {
            for issuer in &self.issuers {
                let whole = |kind| {
                    let keys = texts(value).into_iter().map(move |id| Key::of(kind, issuer, &id));
                    keys.map(move |key| Revocation::whole(kind, key, until)).collect::<Vec<_>>()
                };
                let entries = match name.as_str() {
                    "jti" | "jtis" => whole(Kind::Token),
                    "sid" | "sids" => whole(Kind::Session),
                    "sub_not_before" => value
                        .as_object()
                        .into_iter()
                        .flatten()
                        .map(|(subject, cut_off)| Revocation {
                            kind: Kind::Subject,
                            key: Key::of(Kind::Subject, issuer, subject),
                            issued_before: cut_off.as_u64().unwrap(),
                            until,
                        })
                        .collect(),
                    other => return Err(format!("unknown kind of revocation `{other}`")),
                };
                if entries.is_empty() {
                    return Err(format!("`revoked.{name}` names nothing"));
                }
                list.take(Source::File, &entries);
            }
        }
        Ok(list)
    }

    /// Whether the case comes out as it says, twice; else how it differs.
    async fn judge(&self, case: &Value) -> Result<(), String> {
        let token: SecretString = generated_token(case)?.into();
        let watch = SystemClock::shared();
        let verdict = self.present(&token).await;
        let took = watch.monotonic();
        if case["max_ms"].as_u64().is_some_and(|most| took > Duration::from_millis(most)) {
            return Err(format!("took {took:?}"));
        }
        let again = self.present(&token).await;
        // What a token says of itself may be in order, and it may be revoked all the same.
        let revoked = match &again {
            Ok(token) => self.revoked(&case["revoked"])?.revoked(token.facts()).is_some(),
            Err(_) => false,
        };
        let (verdict, again) = (self.in_the_hands_of(case, verdict)?, self.in_the_hands_of(case, again)?);
        if verdict != again {
            return Err(format!("first {verdict:?}, then {again:?}"));
        }
        let expected = match text(case, "expect") {
            "accept" => Some(case["sub"].as_str().unwrap_or("user-42").to_owned()),
            "accept-literal" => Some(subject_in(text(case, "token"))),
            "accept-if-leeway" => {
                (case["leeway_needed_s"].as_u64().unwrap() <= self.leeway).then(|| "user-42".to_owned())
            }
            "reject" => None,
            "reject-when-revoked" if verdict.is_ok() && revoked => return Ok(()),
            "reject-when-revoked" => return Err(format!("{verdict:?}, revoked: {revoked}")),
            "reject-if-strict-typ" if !self.accepted_types.contains("jwt") => None,
            "reject-if-strict-typ" => Some("user-42".to_owned()),
            "any" | "policy" => {
                say!("{}: {verdict:?}, either is fine ({})", text(case, "id"), text(case, "why"));
                return Ok(());
            }
            other => return Err(format!("unknown expectation `{other}`")),
        };
        match (expected, verdict) {
            (Some(expected), Ok(id)) if id == expected && !revoked => Ok(()),
            (None, Err(_)) => Ok(()),
            (expected, verdict) => Err(format!("expected {expected:?}, got {verdict:?}")),
        }
    }
}

impl Bench {
    /// Whom the token makes, or the word why not: where the case is about the caller, only in that caller's hands.
    fn in_the_hands_of(
        &self,
        case: &Value,
        verdict: Result<Arc<VerifiedToken>, TokenError>,
    ) -> Result<Result<String, &'static str>, String> {
        let token = match verdict {
            Ok(token) => token,
            Err(error) => return Ok(Err(error.reason())),
        };
        let name = case["caller"].as_str().unwrap_or("orders-svc");
        let (caller, certificate) = self.callers.get(name).ok_or_else(|| format!("no caller `{name}`"))?;
        if let Err(unbound) = self.bond.hold_for(caller, certificate, token.facts()) {
            return Ok(Err(unbound.reason()));
        }
        Ok(Ok(token.principal().uid.id.as_str().to_owned()))
    }
}

/// The corpus's callers: each has the name that its certificate gives it, is the client of its own label at every issuer,
/// and presents for nobody else.
fn callers(corpus: &Value, issuers: &[TrustedIssuer]) -> BTreeMap<String, (EnrolledCaller, [u8; 32])> {
    let names = IdentityConfig { trust_domains: ["corp.test".parse().unwrap()].into(), dns_san: false };
    let one = |(label, caller): (&String, &Value)| {
        let leaf = CertificateDer::from_pem_slice(text(caller, "cert_pem").as_bytes()).unwrap();
        let name = peer::identify(&leaf, &names).unwrap();
        assert_eq!(name.to_string(), text(caller, "spiffe_id"), "the certificate's own word");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf);
        assert_eq!(URL_SAFE_NO_PAD.encode(digest.as_ref()), text(caller, "x5t_s256"), "RFC 8705 section 3.1");
        let mut clients = ClientNames::default();
        for issuer in issuers {
            clients.insert(issuer.issuer.clone(), label.clone());
        }
        let enrolled = EnrolledCaller {
            name,
            label: label.clone(),
            resource_types: TypeGrant::All,
            actions: vec![ActionPattern::All],
            assert_subjects: TypeGrant::Only(BTreeSet::new()),
            supply_attributes: AttributeGrant::Only { types: BTreeSet::new(), single: BTreeMap::new() },
            supply_parents: TypeGrant::Only(BTreeSet::new()),
            presents_api_keys: false,
            sees_policies: false,
            clients,
            presents_for: PresentGrant::Only(ClientNames::default()),
            tenants: TenantGrant::Only(BTreeSet::new()),
            batch_items: None,
            capacity: Share::WHOLE,
            explain: false,
        };
        (label.clone(), (enrolled, digest.as_ref().try_into().unwrap()))
    };
    corpus["callers"].as_object().unwrap().iter().map(one).collect()
}

/// The case's token, made longer where the case says so: `append "A"*8388608`.
fn generated_token(case: &Value) -> Result<String, String> {
    let token = text(case, "token").to_owned();
    let Some(recipe) = case["generate"].as_str() else { return Ok(token) };
    let parts = recipe.strip_prefix("append \"").and_then(|rest| rest.split_once("\"*"));
    let (what, times) = parts.ok_or_else(|| format!("unknown recipe `{recipe}`"))?;
    let times = times.parse().map_err(|_| format!("unknown recipe `{recipe}`"))?;
    Ok(token + &what.repeat(times))
}

/// A document that is too long to be written out: so many keys, each with an id of its own.
fn generated_document(case: &Value) -> Option<String> {
    let recipe = case["generate"].as_str()?;
    let (count, _) = recipe.strip_prefix("{\"keys\":[").and_then(|rest| rest.split_once(" x ")).unwrap();
    let count: usize = count.replace(' ', "").parse().unwrap();
    let keys: Vec<_> =
        (0..count).map(|at| format!(r#"{{"kty":"RSA","n":"nNPy","e":"AQAB","kid":"k{at}","use":"sig"}}"#)).collect();
    Some(format!(r#"{{"keys":[{}]}}"#, keys.join(",")))
}

/// Whether the signature of `jws` holds under `key`, a JWK or a key set.
pub fn check_jws(key: &Value, jws: &str) -> Result<(), TokenError> {
    let document = if key["keys"].is_array() { key.clone() } else { serde_json::json!({ "keys": [key] }) };
    let set = KeySet::read(document.to_string().as_bytes(), &Limits::default()).unwrap();
    let jws = jws.to_owned().into();
    let token = UnverifiedToken::new(&jws, &Limits::default())?;
    set.check(&token, &EVERY_ALGORITHM).map(|_| ())
}

/// Whether the key's own `alg` is the header's, and one that we have.
pub fn algorithm_fits(key: &Value, jws: &str) -> bool {
    let header = URL_SAFE_NO_PAD.decode(jws.split('.').next().unwrap()).unwrap_or_default();
    let header: Value = serde_json::from_slice(&header).unwrap_or_default();
    let named = header.get("alg").and_then(Value::as_str);
    named == key["alg"].as_str() && EVERY_ALGORITHM.iter().any(|one| named == Some(one.as_str()))
}

fn subject_in(token: &str) -> String {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    text(&claims, "sub").to_owned()
}

fn algorithm(name: &Value) -> TokenAlgorithm {
    *EVERY_ALGORITHM.iter().find(|one| name == one.as_str()).unwrap_or_else(|| panic!("no algorithm {name}"))
}

/// A corpus; nothing, said aloud, where it is not here.
pub fn read(relative: &str) -> Option<Value> {
    let Some(path) = corpus(relative) else {
        assert!(std::env::var_os("CI").is_none(), "{relative} is missing");
        say!("{relative}: skipped, it is not here");
        return None;
    };
    Some(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
}

/// A member that is a list.
pub fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap_or_else(|| panic!("`{name}` is no list"))
}

/// A member that is text.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("`{name}` is no text"))
}

fn size(value: &Value, name: &str) -> usize {
    usize::try_from(value[name].as_u64().unwrap()).unwrap()
}

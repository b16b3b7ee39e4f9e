//! JOSE as others test it: Wycheproof's keys, encryption and mixed-up keys, and the examples of RFC 7520, RFC 7797 and
//! RFC 8037. What is signed plainly and by an algorithm of ours holds; everything else is refused, by name.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a corpus of another form is a failed test")]

use std::path::Path;

use gatepost::config::Limits;
use gatepost::token::{KeySet, UnverifiedToken};
use serde_json::{Value, json};

use crate::jwt::{algorithm_fits, check_jws, list, read, text};
use crate::support::{corpus, say};

/// A valid JWS holds, an invalid one does not; valid ones that our rules exclude are named. Every JWE is refused, valid
/// or not.
#[test]
fn wycheproof_keys_and_mixed_up_keys_come_out_as_it_says() {
    for file in ["json_web_key_test", "json_web_crypto_test"] {
        let relative = format!("wycheproof/{file}.json");
        let Some(corpus) = read(&relative) else { continue };
        let (mut ran, mut failed, mut ours) = (0, Vec::new(), Vec::new());
        for group in list(&corpus, "testGroups") {
            let key = if group["public"].is_null() { &group["private"] } else { &group["public"] };
            for case in list(group, "tests") {
                ran += 1;
                let name = format!("{} {} {}", case["tcId"], text(group, "comment"), text(case, "comment"));
                // What is no text is one of the JSON forms.
                let written = |part: &Value| part.as_str().map_or_else(|| part.to_string(), str::to_owned);
                if case.get("jwe").is_some() {
                    if check_jws(key, &written(&case["jwe"])).is_ok() {
                        failed.push(format!("{name}: a JWE was taken"));
                    }
                    continue;
                }
                let jws = written(&case["jws"]);
                let holds = check_jws(key, &jws).is_ok();
                match (text(case, "result") == "valid", holds) {
                    (true, true) | (false, false) => {}
                    (true, false) if is_symmetric(key) || !algorithm_fits(key, &jws) => ours.push(name),
                    (_, holds) => failed.push(format!("{name}: holds is {holds}")),
                }
            }
        }
        say!("{relative}: {ran} ran, {} failed", failed.len());
        say!(
            "{relative}: {} valid ones are refused: a key set holds no symmetric keys: {}",
            ours.len(),
            ours.join(", ")
        );
        assert!(ran > 0 && failed.is_empty(), "{} of {ran} differ:\n{}", failed.len(), failed.join("\n"));
    }
}

/// We don't take encrypted tokens, so none is opened, and none is mistaken for a signed one.
#[test]
fn wycheproof_s_every_encrypted_token_is_refused() {
    let Some(corpus) = read("wycheproof/json_web_encryption_test.json") else { return };
    let (mut ran, mut taken) = (0, Vec::new());
    for group in list(&corpus, "testGroups") {
        for key in [&group["private"], &group["public"]].into_iter().filter(|key| !key.is_null()) {
            for case in list(group, "tests") {
                ran += 1;
                // What is no text is one of the JSON forms.
                let jwe = case["jwe"].as_str().map_or_else(|| case["jwe"].to_string(), str::to_owned);
                if check_jws(key, &jwe).is_ok() {
                    taken.push(case["tcId"].to_string());
                }
            }
        }
    }
    say!("wycheproof/json_web_encryption_test.json: {ran} tries to present one as a token, {} taken", taken.len());
    assert!(ran > 0 && taken.is_empty(), "{}", taken.join(" "));
}

/// Examples that hold, by file; all else in the cookbook is refused for a reason that the table gives.
const HOLD: [&str; 2] = ["jws/4_1.rsa_v15_signature.json", "jws/4_2.rsa-pss_signature.json"];

/// Compact JWS that are good and refused all the same.
const EXCLUDED: [(&str, &str); 6] = [
    ("jws/4_3.ecdsa_signature.json", "ES512 is not offered"),
    ("jws/4_4.hmac-sha2_integrity_protection.json", "a key set holds no symmetric keys"),
    ("jws/4_5.signature_with_detached_content.json", "the content is elsewhere (RFC 7515 appendix F)"),
    ("curve25519/jws.json", "names no key"),
    ("rfc7797/hmac-sha2_b64_false.json", "not encoded in base64url, and says that it is critical"),
    ("6.nesting_signatures_and_encryption.json", "names no key"),
];

#[test]
fn the_cookbook_s_plain_signatures_hold_and_its_other_forms_are_refused() {
    let Some(folder) = corpus("jose-cookbook") else { return };
    let (mut ran, mut forms, mut failed, mut excluded) = (0, 0, Vec::new(), Vec::new());
    for file in files(&folder) {
        let name = file.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
        let example: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        if name.starts_with("jwk/") {
            continue;
        }
        ran += 1;
        // The nested one has two parts, each an example of its own.
        let parts: Vec<&Value> =
            if example["output"].is_object() { vec![&example] } else { vec![&example["sign"], &example["encrypt"]] };
        for part in parts {
            let keys = public_halves(&part["input"]["key"]);
            for (form, output) in part["output"].as_object().unwrap() {
                forms += 1;
                let token = output.as_str().map_or_else(|| output.to_string(), str::to_owned);
                let holds = check_jws(&keys, &token).is_ok();
                let should = form == "compact" && HOLD.contains(&name.as_str());
                if holds != should {
                    failed.push(format!("{name} {form}: holds is {holds}"));
                }
                let encrypted = part["output"]["compact"].as_str().is_some_and(|text| text.split('.').count() == 5);
                if form == "compact" && !holds && !encrypted {
                    match EXCLUDED.iter().find(|(file, _)| *file == name) {
                        Some((file, why)) => excluded.push(format!("{file} ({why})")),
                        None => failed.push(format!("{name}: refused, and nobody said why")),
                    }
                }
            }
        }
    }
    say!("jose-cookbook: {ran} examples in {forms} forms, {} failed, {} hold", failed.len(), HOLD.len());
    say!("jose-cookbook: {} signed ones are refused: {}", excluded.len(), excluded.join(", "));
    say!("jose-cookbook: every JWE and every JSON form is refused");
    assert!(ran > 0 && failed.is_empty(), "{}", failed.join("\n"));
}

/// RFC 7520 section 3: of its keys, those are usable that are public and of a type we have.
#[test]
fn the_cookbook_s_keys_are_usable_when_public_and_of_a_type_we_have() {
    let Some(folder) = corpus("jose-cookbook/jwk") else { return };
    let (mut ran, mut left_out) = (0, Vec::new());
    for file in files(&folder) {
        ran += 1;
        let name = file.file_name().unwrap().to_str().unwrap();
        let key: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let set = KeySet::read(json!({ "keys": [key] }).to_string().as_bytes(), &Limits::default()).unwrap();
        let usable = set.ids().count() == 1;
        assert_eq!(usable, name == "3_3.rsa_public_key.json", "{name}");
        if !usable {
            left_out.push(name.to_owned());
        }
    }
    say!("jose-cookbook/jwk: {ran} keys; left out as private, symmetric or P-521: {}", left_out.join(" "));
    assert!(ran > 0);
}

/// The key without what is private in it: a key set may not hold that. The signature is checked all the same.
fn public_halves(keys: &Value) -> Value {
    let all = keys.as_array().cloned().unwrap_or_else(|| vec![keys.clone()]);
    let public = all.into_iter().map(|mut key| {
        if key["kty"] != "oct" {
            for name in ["d", "p", "q", "dp", "dq", "qi"] {
                key.as_object_mut().map(|members| members.remove(name));
            }
        }
        key
    });
    json!({ "keys": public.collect::<Vec<_>>() })
}

fn is_symmetric(key: &Value) -> bool {
    let keys = key["keys"].as_array().cloned().unwrap_or_else(|| vec![key.clone()]);
    keys.iter().all(|key| key["kty"] == "oct")
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false if path.extension().is_some_and(|ending| ending == "json") => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

/// The JSON forms are no tokens, however they are dressed (RFC 7515 section 7.2).
#[test]
fn a_json_serialization_is_no_token() {
    let limits = Limits::default();
    for text in [r#"{"payload":"e30","protected":"e30","signature":"AA"}"#, "{}", "[]"] {
        assert!(UnverifiedToken::new(&text.to_owned().into(), &limits).is_err(), "{text}");
    }
}

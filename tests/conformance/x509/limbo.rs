//! x509-limbo and BetterTLS: path building and validation, client cases through the very rules of the listener, server
//! cases through the same code with `serverAuth`. Where we differ, and why, is listed and told at every run.

use std::collections::BTreeMap;
use std::path::Path;

use gatepost::tls::server::verifier::Rules;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use webpki::{EndEntityCert, KeyUsage};

use super::{World, certificate, read};
use crate::support::{corpus, say};

#[derive(Deserialize)]
struct Limbo {
    testcases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    validation_kind: String,
    #[serde(default)]
    features: Option<Vec<String>>,
    trusted_certs: Vec<String>,
    untrusted_intermediates: Vec<String>,
    peer_certificate: String,
    validation_time: Option<String>,
    expected_result: String,
    expected_peer_name: Option<Name>,
    #[serde(default)]
    crls: Vec<String>,
}

#[derive(Deserialize)]
struct Name {
    kind: String,
    value: String,
}

/// What webpki's maintainers say of their own differences.
#[derive(Deserialize)]
struct Exception {
    actual: String,
    reason: String,
}

/// Differences that webpki's list does not name: id, our answer, reason.
const KNOWN: &[(&str, &str, &str)] = &[
    ("crl::crlnumber-missing", "SUCCESS", "a list without a number is taken; it loses to every one that has a number"),
    ("rfc5280::leaf-ku-keycertsign", "SUCCESS", "webpki does not look at it; a client with such a leaf gets no name"),
    ("rfc5280::nc::nc-permits-email-exact", "FAILURE", EMAIL),
    ("rfc5280::nc::nc-permits-email-domain", "FAILURE", EMAIL),
    ("rfc5280::nc::nc-permits-email-literal-asterisk-exact-match", "FAILURE", EMAIL),
    ("rfc5280::nc::nc-permits-email-literal-double-asterisk", "FAILURE", EMAIL),
    ("rfc5280::nc::nc-permits-email-literal-mid-asterisk", "FAILURE", EMAIL),
];
const EMAIL: &str = "webpki refuses every chain with a constraint on e-mail names: stricter than it must be";

#[test]
fn limbo_s_chains_are_judged_as_told_but_for_the_listed() {
    run("x509/limbo.json");
}

#[test]
fn bettertls_paths_are_built_as_told() {
    run("x509/bettertls-pathbuilding.limbo.json");
}

#[test]
fn bettertls_name_constraints_hold_as_told() {
    run("x509/bettertls-nameconstraints-sample.limbo.json");
}

fn run(file: &str) {
    let Some(path) = corpus(file) else { return };
    let limbo: Limbo = read(&path);
    let exceptions = exceptions(&path);
    let (mut ran, mut skipped, mut listed, mut failed) = (0, Vec::new(), Vec::new(), Vec::new());
    for case in &limbo.testcases {
        // How deep a chain may be is fixed here, and no setting that a case could choose.
        if case.features.iter().flatten().any(|feature| feature == "max-chain-depth") {
            skipped.push(&case.id);
            continue;
        }
        ran += 1;
        let judged = judge(case);
        let got = if judged.is_ok() { "SUCCESS" } else { "FAILURE" };
        if got == case.expected_result {
            continue;
        }
        let ours = KNOWN.iter().find(|(id, answer, _)| *id == case.id && *answer == got).map(|(_, _, why)| *why);
        let theirs = exceptions.get(&case.id).filter(|known| known.actual == got).map(|known| known.reason.as_str());
        match ours.or(theirs) {
            Some(why) => listed.push(format!("{} ({}): {got}: {why}", case.id, case.validation_kind)),
            None => failed.push(format!("{} ({}): {got}, {judged:?}", case.id, case.validation_kind)),
        }
    }
    say!("{file}: {ran} ran, {} known to differ, {} failed: {failed:#?}", listed.len(), failed.len());
    say!("known to differ: {listed:#?}");
    say!("skipped, they set how deep a chain may be: {skipped:?}");
    assert!(ran > 0 && failed.is_empty());
}

fn exceptions(beside: &Path) -> BTreeMap<String, Exception> {
    let path = beside.with_file_name("limbo-webpki-exceptions.json");
    if path.exists() { read(&path) } else { BTreeMap::new() }
}

fn judge(case: &Case) -> Result<(), String> {
    let world = World::of(&case.trusted_certs, &case.crls)?;
    let rules = match &*case.validation_kind {
        "CLIENT" => Rules::CLIENTS,
        // They come with up to 35 certificates between, of which a client could show 8.
        _ => Rules { usage: KeyUsage::server_auth(), intermediates: usize::MAX, ..Rules::CLIENTS },
    };
    let judged = world.judge(&case.peer_certificate, &case.untrusted_intermediates, time(case), rules);
    judged.map_err(|error| format!("{error:?}"))?;
    let Some(name) = case.expected_peer_name.as_ref().filter(|name| matches!(&*name.kind, "DNS" | "IP")) else {
        return Ok(());
    };
    let leaf = certificate(&case.peer_certificate);
    let leaf = EndEntityCert::try_from(&leaf).unwrap();
    let name = ServerName::try_from(name.value.as_str()).map_err(|error| error.to_string())?;
    leaf.verify_is_valid_for_subject_name(&name).map_err(|error| format!("{error:?}"))
}

/// The case's own time; where it names none, now.
fn time(case: &Case) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a case that names no time means the real one")]
    let now = std::time::SystemTime::now;
    match &case.validation_time {
        Some(time) => time.parse::<jiff::Timestamp>().unwrap().as_second().try_into().unwrap(),
        None => gatepost::clock::unix_seconds(now()),
    }
}

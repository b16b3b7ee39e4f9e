//! webpki's own tests of revocation, lists and odd certificates, through our choice of lists.

use gatepost::config::IdentityConfig;
use gatepost::tls::peer;
use gatepost::tls::server::verifier::Rules;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use std::collections::BTreeMap;
use webpki::{ExpirationPolicy, RevocationCheckDepth, UnknownStatusPolicy};

use super::{World, certificate, list, read};
use crate::support::{corpus, say};

#[derive(Deserialize)]
struct Suite<T> {
    cases: Vec<T>,
}

#[derive(Deserialize)]
struct RevocationCase {
    id: String,
    validation_unix_time: u64,
    peer_certificate: String,
    untrusted_intermediates: Vec<String>,
    trusted_certs: Vec<String>,
    crls: Vec<String>,
    revocation_check_depth: Option<String>,
    unknown_status_policy: Option<String>,
    crl_expiration_policy: Option<String>,
    expected: String,
    expected_error: Option<String>,
}

impl RevocationCase {
    fn rules(&self) -> Rules {
        Rules {
            depth: match self.revocation_check_depth.as_deref() {
                Some("EndEntity") => RevocationCheckDepth::EndEntity,
                _ => RevocationCheckDepth::Chain,
            },
            unknown: match self.unknown_status_policy.as_deref() {
                Some("Allow") => UnknownStatusPolicy::Allow,
                _ => UnknownStatusPolicy::Deny,
            },
            expiration: match self.crl_expiration_policy.as_deref() {
                Some("Ignore") => ExpirationPolicy::Ignore,
                _ => ExpirationPolicy::Enforce,
            },
            ..Rules::CLIENTS
        }
    }

    fn judge(&self, rules: Rules) -> Result<(), String> {
        let world = World::of(&self.trusted_certs, &self.crls)?;
        let time = self.validation_unix_time;
        let judged = world.judge(&self.peer_certificate, &self.untrusted_intermediates, time, rules);
        judged.map_err(|error| format!("{error:?}"))
    }
}

#[test]
fn revoked_clients_are_refused_as_webpki_s_own_tests_say() {
    let Some(path) = corpus("x509/webpki-client-auth-revocation.json") else { return };
    let suite: Suite<RevocationCase> = read(&path);
    let (mut failed, mut milder) = (Vec::new(), Vec::new());
    for case in &suite.cases {
        let got = case.judge(case.rules());
        let named = case.expected_error.as_deref().unwrap_or_default();
        let fits = match &got {
            Ok(()) => case.expected == "SUCCESS",
            Err(error) => case.expected != "SUCCESS" && error.starts_with(named),
        };
        if !fits {
            failed.push(format!("{}: expected {} {named}, got {got:?}", case.id, case.expected));
        }
        // By the rules of the listener no case that is refused passes.
        if case.expected != "SUCCESS" && case.judge(Rules::CLIENTS).is_ok() {
            milder.push(&case.id);
        }
    }
    say!("client revocation: {} ran, {} failed: {failed:#?}", suite.cases.len(), failed.len());
    assert!(!suite.cases.is_empty() && failed.is_empty() && milder.is_empty(), "milder: {milder:?}");
}

#[derive(Deserialize)]
struct ParseSuite {
    cases: Vec<ParseCase>,
}

#[derive(Deserialize)]
struct ParseCase {
    id: String,
    crl: String,
    expected: String,
    expected_error: Option<String>,
}

#[test]
fn revocation_lists_are_read_or_refused_as_webpki_s_own_tests_say() {
    let Some(path) = corpus("x509/webpki-crl-parse.json") else { return };
    let suite: ParseSuite = read(&path);
    let mut failed = Vec::new();
    for case in &suite.cases {
        let got = list(&case.crl).map(|_| ()).map_err(|error| format!("{error:?}"));
        let fits = match &got {
            Ok(()) => case.expected == "SUCCESS",
            Err(error) => {
                case.expected != "SUCCESS" && error.starts_with(case.expected_error.as_deref().unwrap_or_default())
            }
        };
        if !fits {
            failed.push(format!("{}: expected {} {:?}, got {got:?}", case.id, case.expected, case.expected_error));
        }
    }
    say!("revocation lists: {} ran, {} failed: {failed:#?}", suite.cases.len(), failed.len());
    assert!(!suite.cases.is_empty() && failed.is_empty());
    cut_and_bent(&suite);
}

/// RUSTSEC-2026-0104: a list must not bring anybody down before its signature is looked at. Every cut, and every byte of
/// every list changed in three ways.
fn cut_and_bent(suite: &ParseSuite) {
    let mut ran = 0;
    for case in &suite.cases {
        let der = CertificateRevocationListDer::from_pem_slice(case.crl.as_bytes()).unwrap();
        let file = std::sync::Arc::new("a case".into());
        for at in 0..der.len() {
            let mut bent = der.to_vec();
            let _ = gatepost::tls::revocation::list::RevocationList::read(&bent[..at], &file);
            for change in [0x01, 0x80, 0xff] {
                bent[at] = der[at] ^ change;
                let _ = gatepost::tls::revocation::list::RevocationList::read(&bent, &file);
                ran += 1;
            }
        }
    }
    say!("revocation lists, cut and bent: {ran} ran, 0 panicked");
}

#[derive(Deserialize)]
struct Misc {
    cases: Vec<MiscCase>,
    odd_leaf_certificates: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct MiscCase {
    id: String,
    peer_certificate: String,
    trusted_certs: Vec<String>,
    expected: String,
    #[serde(default)]
    validation_unix_time: Option<u64>,
}

#[test]
fn purposes_and_odd_certificates_are_judged_as_webpki_s_own_tests_say() {
    let Some(path) = corpus("x509/webpki-misc.json") else { return };
    let misc: Misc = read(&path);
    let mut failed = Vec::new();
    for case in &misc.cases {
        let got = World::of(&case.trusted_certs, &[]).and_then(|world| {
            let time = case.validation_unix_time.unwrap_or(0x1fed_f00d);
            let judged = world.judge(&case.peer_certificate, &[], time, Rules::CLIENTS);
            judged.map_err(|error| format!("{error:?}"))
        });
        if got.is_ok() != (case.expected == "SUCCESS") {
            failed.push(format!("{}: expected {}, got {got:?}", case.id, case.expected));
        }
    }
    // None of them has a SPIFFE ID: none gets a name, and none brings the reader down.
    let names = IdentityConfig { trust_domains: ["example.org".parse().unwrap()].into(), dns_san: false };
    for (name, pem) in &misc.odd_leaf_certificates {
        let identified = peer::identify(&certificate(pem), &names);
        say!("{name}: {:?}", identified.as_ref().map_err(|error| error.reason()));
        if identified.is_ok() {
            failed.push(format!("{name}: got a name"));
        }
    }
    let ran = misc.cases.len() + misc.odd_leaf_certificates.len();
    say!("purposes and odd certificates: {ran} ran, {} failed: {failed:#?}", failed.len());
    assert!(ran > 0 && failed.is_empty());
}

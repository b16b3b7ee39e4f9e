//! SPIFFE IDs and X509-SVIDs as go-spiffe's own tests judge them, and client certificates of many kinds.
#![expect(clippy::unwrap_used, reason = "a test stops at what it can't read and says what ran")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gatepost::config::{CallerName, IdentityConfig};
use gatepost::model::spiffe_id::SpiffeId;
use gatepost::tls::peer;
use gatepost::tls::server::verifier::ClientChains;
use rustls::RootCertStore;
use rustls::server::danger::ClientCertVerifier as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;

use crate::support::{corpus, say};

#[derive(Deserialize)]
struct Ids {
    cases: Vec<IdCase>,
}

#[derive(Deserialize)]
struct IdCase {
    id: String,
    valid: bool,
    trust_domain: Option<String>,
    path: Option<String>,
}

#[test]
fn spiffe_ids_are_parsed_as_the_corpus_says() {
    let Some(path) = corpus("spiffe/spiffe-ids.json") else { return };
    let ids: Ids = read(&path);
    let failed: Vec<_> = ids.cases.iter().filter(|case| !parses_as_told(case)).map(|case| &case.id).collect();
    say!("spiffe ids: {} ran, {} failed: {failed:?}", ids.cases.len(), failed.len());
    assert!(!ids.cases.is_empty() && failed.is_empty());
}

fn parses_as_told(case: &IdCase) -> bool {
    match case.id.parse::<SpiffeId>() {
        Ok(id) => {
            case.valid
                && Some(id.trust_domain().as_str()) == case.trust_domain.as_deref()
                && Some(id.path()) == case.path.as_deref()
                && id.as_str() == case.id
        }
        Err(_) => !case.valid,
    }
}

/// The leaf is judged. What is wrong between a leaf and its authority can't be, for no authority is in the corpus; the
/// client certificates below have such cases.
#[test]
fn x509_svids_are_taken_or_refused_as_their_file_names_say() {
    let Some(folder) = corpus("spiffe/go-spiffe/svid/x509svid/testdata") else { return };
    let names = IdentityConfig { trust_domains: ["example.org".parse().unwrap()].into(), dns_san: false };
    let (mut ran, mut failed) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_good = file.starts_with("good-");
        if !is_good && !file.starts_with("wrong-leaf-") && file != "corrupt-cert.pem" {
            continue;
        }
        ran += 1;
        let leaf = CertificateDer::from_pem_slice(&std::fs::read(&path).unwrap());
        let name = leaf.ok().and_then(|leaf| peer::identify(&leaf, &names).ok()).map(|name| name.to_string());
        if name.as_deref() != is_good.then_some("spiffe://example.org/workload-1") {
            failed.push((file, name));
        }
    }
    say!("x509-svids: {ran} ran, {} failed: {failed:?}", failed.len());
    assert!(ran > 0 && failed.is_empty());
}

#[derive(Deserialize)]
struct Chains {
    verify_at_unix: u64,
    trust_domain: String,
    trusted_roots_pem: Vec<String>,
    cases: Vec<ChainCase>,
}

#[derive(Deserialize)]
struct ChainCase {
    id: String,
    why: String,
    chain_pem: Vec<String>,
    crls_pem: Vec<String>,
    expect: String,
    expected_identity: Option<String>,
    /// What only a live handshake shows. Its keys are not in the corpus, so here the identity must be refused instead.
    #[serde(default)]
    needs_handshake: bool,
}

/// Where a client certificate ends.
enum Verdict {
    PathRefused(String),
    NameRefused(&'static str),
    Named(String),
}

#[test]
fn client_certificates_of_our_own_are_taken_or_refused_as_told() {
    judge_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/data/x509/client-auth.json"));
}

#[test]
fn client_certificates_of_the_corpus_are_taken_or_refused_as_told() {
    if let Some(path) = corpus("x509/client-auth.json") {
        judge_all(&path);
    }
}

fn judge_all(path: &Path) {
    let chains: Chains = read(path);
    let mut roots = RootCertStore::empty();
    for pem in &chains.trusted_roots_pem {
        roots.add(certificate(pem)).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = ClientChains::new(roots, &provider).unwrap();
    let names = IdentityConfig { trust_domains: [chains.trust_domain.parse().unwrap()].into(), dns_san: false };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(chains.verify_at_unix));

    let (mut ran, mut skipped, mut failed) = (0, Vec::new(), Vec::new());
    for case in &chains.cases {
        // Revocation lists are not taken yet.
        if !case.crls_pem.is_empty() {
            skipped.push(&case.id);
            continue;
        }
        ran += 1;
        let verdict = judge(case, &verifier, &names, now);
        if let Err(got) = compare(case, &verdict) {
            failed.push(format!("{} ({}): expected {}, got {got}", case.id, case.why, case.expect));
        }
    }
    say!("client certificates: {ran} ran, {} failed: {failed:#?}", failed.len());
    say!("skipped, they need revocation lists: {skipped:?}");
    assert!(ran > 0 && failed.is_empty());
}

fn judge(case: &ChainCase, verifier: &ClientChains, names: &IdentityConfig, now: UnixTime) -> Verdict {
    let chain: Vec<_> = case.chain_pem.iter().map(|pem| certificate(pem)).collect();
    let (leaf, intermediates) = chain.split_first().unwrap();
    if let Err(error) = verifier.verify_client_cert(leaf, intermediates, now) {
        return Verdict::PathRefused(error.to_string());
    }
    match peer::identify(leaf, names) {
        Ok(CallerName::Spiffe(id)) => Verdict::Named(id.to_string()),
        Ok(CallerName::Dns(name)) => Verdict::Named(format!("dns:{name}")),
        Err(error) => Verdict::NameRefused(error.reason()),
    }
}

/// What came instead, if something else did.
fn compare(case: &ChainCase, verdict: &Verdict) -> Result<(), String> {
    let (fits, got) = match verdict {
        Verdict::PathRefused(why) => (matches!(&*case.expect, "reject" | "reject-any"), format!("no path: {why}")),
        Verdict::NameRefused(why) => (
            matches!(&*case.expect, "reject-identity" | "reject-any")
                || (case.expect == "reject" && case.needs_handshake),
            format!("no name: {why}"),
        ),
        Verdict::Named(name) => {
            (case.expect == "accept" && Some(name) == case.expected_identity.as_ref(), format!("named {name}"))
        }
    };
    if case.expect == "policy" {
        say!("{} ({}): {got}", case.id, case.why);
        return Ok(());
    }
    if fits { Ok(()) } else { Err(got) }
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

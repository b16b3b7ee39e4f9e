//! Client certificates of our own, through the listener's verifier and the extractor of names.

use std::path::{Path, PathBuf};

use gatepost::config::{CallerName, IdentityConfig};
use gatepost::tls::peer;
use gatepost::tls::server::verifier::Rules;
use serde::Deserialize;

use super::{World, certificate, read};
use crate::support::{corpus, say};

#[derive(Deserialize)]
pub(super) struct Chains {
    pub(super) verify_at_unix: u64,
    pub(super) trust_domain: String,
    pub(super) trusted_roots_pem: Vec<String>,
    pub(super) cases: Vec<ChainCase>,
}

#[derive(Deserialize)]
pub(super) struct ChainCase {
    pub(super) id: String,
    pub(super) why: String,
    pub(super) chain_pem: Vec<String>,
    pub(super) crls_pem: Vec<String>,
    pub(super) expect: String,
    pub(super) expected_identity: Option<String>,
    /// What only a live handshake shows. Its key is not in the corpus, so here the identity must be refused instead.
    #[serde(default)]
    pub(super) needs_handshake: bool,
}

/// Our own copy, and the corpus if it is another.
pub(super) fn files() -> Vec<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/data/x509/client-auth.json");
    let text = |path: &Path| std::fs::read(path).unwrap();
    let theirs = corpus("x509/client-auth.json").filter(|theirs| text(theirs) != text(&ours));
    std::iter::once(ours).chain(theirs).collect()
}

/// Where a client certificate ends.
enum Verdict {
    PathRefused(String),
    NameRefused(&'static str),
    Named(String),
}

#[test]
fn client_certificates_are_taken_or_refused_as_told() {
    for file in files() {
        let chains: Chains = read(&file);
        let names = IdentityConfig { trust_domains: [chains.trust_domain.parse().unwrap()].into(), dns_san: false };
        let mut failed = Vec::new();
        for case in &chains.cases {
            let verdict = judge(case, &chains, &names);
            if let Err(got) = compare(case, &verdict) {
                failed.push(format!("{} ({}): expected {}, got {got}", case.id, case.why, case.expect));
            }
        }
        say!("client certificates: {} ran, {} failed: {failed:#?}", chains.cases.len(), failed.len());
        assert!(!chains.cases.is_empty() && failed.is_empty());
    }
}

fn judge(case: &ChainCase, chains: &Chains, names: &IdentityConfig) -> Verdict {
    let world = match World::of(&chains.trusted_roots_pem, &case.crls_pem) {
        Ok(world) => world,
        Err(why) => return Verdict::PathRefused(why),
    };
    let (leaf, between) = case.chain_pem.split_first().unwrap();
    if let Err(error) = world.judge(leaf, between, chains.verify_at_unix, Rules::CLIENTS) {
        return Verdict::PathRefused(error.to_string());
    }
    match peer::identify(&certificate(leaf), names) {
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
        // Where the corpus leaves it to us, we refuse.
        say!("{} ({}): {got}", case.id, case.why);
        return if matches!(verdict, Verdict::Named(_)) { Err(got) } else { Ok(()) };
    }
    if fits { Ok(()) } else { Err(got) }
}

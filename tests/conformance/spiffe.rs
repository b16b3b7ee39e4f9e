//! SPIFFE IDs and X509-SVIDs as go-spiffe's own tests judge them.
#![expect(clippy::unwrap_used, reason = "a test stops at what it can't read and says what ran")]

use std::path::Path;

use gatepost::config::IdentityConfig;
use gatepost::model::spiffe_id::SpiffeId;
use gatepost::tls::authorities::Authorities;
use gatepost::tls::peer;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
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

/// The leaf is judged by its name, and whatever stands above it by whether it could be an authority. No root is in the
/// corpus, so there are no paths; the client certificates of [`x509`](crate::x509) have them.
#[test]
fn x509_svids_are_taken_or_refused_as_their_file_names_say() {
    let Some(folder) = corpus("spiffe/go-spiffe/svid/x509svid/testdata") else { return };
    let (mut ran, mut failed) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_good = file.starts_with("good-");
        if !is_good && !file.starts_with("wrong-") && file != "corrupt-cert.pem" {
            continue;
        }
        ran += 1;
        let name = name_of(&std::fs::read(&path).unwrap());
        if name.as_deref() != is_good.then_some("spiffe://example.org/workload-1") {
            failed.push((file, name));
        }
    }
    say!("x509-svids: {ran} ran, {} failed: {failed:?}", failed.len());
    assert!(ran > 0 && failed.is_empty());
}

fn name_of(pem: &[u8]) -> Option<String> {
    let names = IdentityConfig { trust_domains: ["example.org".parse().unwrap()].into(), dns_san: false };
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().ok()?;
    let (leaf, above) = chain.split_first()?;
    Authorities::shared(above.to_vec()).ok()?;
    peer::identify(leaf, &names).ok().map(|name| name.to_string())
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

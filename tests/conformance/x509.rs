//! Certificates: chains and revocation lists as webpki's, x509-limbo's and BetterTLS' tests judge them, and clients'
//! certificates of our own, in the verifier and in live handshakes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gatepost::tls::authorities::Authorities;
use gatepost::tls::revocation::Lists;
use gatepost::tls::revocation::list::RevocationList;
use gatepost::tls::server::verifier::{ClientChains, Rules};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use serde::Deserialize;

mod clients;
mod limbo;
mod live;
mod rekey;
mod webpki_suite;

/// What a case trusts and holds against a chain.
struct World {
    chains: ClientChains,
}

impl World {
    /// As the listener would load it; the error says what it would not.
    fn of(authorities: &[String], lists: &[String]) -> Result<Self, String> {
        let authorities = authorities.iter().map(|pem| certificate(pem)).collect();
        let authorities = Authorities::shared(authorities).map_err(|error| error.to_string())?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let read = lists.iter().map(|pem| list(pem).map_err(|error| format!("{error:?}"))).collect::<Result<_, _>>()?;
        let none = Lists::none(provider.signature_verification_algorithms);
        let (lists, _) = none.renewed(read, &authorities);
        Ok(Self { chains: ClientChains::new(Arc::new(authorities), Arc::new(lists), &provider) })
    }

    fn judge(&self, leaf: &str, between: &[String], unix: u64, rules: Rules) -> Result<(), webpki::Error> {
        let between: Vec<_> = between.iter().map(|pem| certificate(pem)).collect();
        self.chains.verify(&certificate(leaf), &between, at(unix), rules)
    }
}

fn list(pem: &str) -> Result<RevocationList, webpki::Error> {
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap();
    RevocationList::read(&der, &Arc::new(PathBuf::from("a case")))
}

fn at(unix: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(unix))
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

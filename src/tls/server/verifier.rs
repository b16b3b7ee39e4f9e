//! What makes a client's chain good: rustls' own verifier, and two rules in front of it.
//!
//! The path is webpki's business: authorities, signatures, lifetimes, `clientAuth`, name constraints. It does not look
//! at `keyUsage` of the certificates between leaf and authority, so those that may not sign are taken away before it
//! builds a path (RFC 5280 section 6.1.4 (n)). Long chains are cut, so that a stranger's handshake costs little.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::tls::peer;

/// Certificates between a leaf and its authority that are looked at; real chains have one or two.
const MAX_INTERMEDIATES: usize = 8;

/// Requires a client certificate whose chain ends at one of our authorities.
#[derive(Debug)]
pub struct ClientChains {
    paths: Arc<dyn ClientCertVerifier>,
}

impl ClientChains {
    /// Believes `authorities`, of which there must be at least one.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(authorities: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Self, VerifierBuilderError> {
        let paths = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(provider)).build()?;
        Ok(Self { paths })
    }
}

impl ClientCertVerifier for ClientChains {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.paths.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let signers: Vec<_> =
            intermediates.iter().take(MAX_INTERMEDIATES).filter(|certificate| may_sign(certificate)).cloned().collect();
        self.paths.verify_client_cert(leaf, &signers, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.paths.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.paths.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.paths.supported_verify_schemes()
    }
}

/// Names no uses at all, or signing certificates among them. What can't be read signs nothing.
fn may_sign(certificate: &CertificateDer<'_>) -> bool {
    peer::parse(certificate)
        .is_some_and(|parsed| parsed.key_usage().is_ok_and(|uses| uses.is_none_or(|uses| uses.value.key_cert_sign())))
}

#[cfg(test)]
mod tests {
    use rcgen::KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign};

    use super::*;
    use crate::clock::unix_seconds;
    use crate::tls::fixture::{Authority, leaf, noon};

    /// RFC 5280 section 6.1.4 (n), which webpki leaves out.
    #[test]
    fn only_what_may_sign_certificates_stands_between_a_leaf_and_its_authority() {
        let root = Authority::new("root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chains = ClientChains::new(root.roots(), &provider).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(unix_seconds(noon())));
        let stranger = Authority::new("stranger").der();
        let rubbish = CertificateDer::from(vec![0x30, 0x03, 0x02, 0x01]);

        let table: [(&[rcgen::KeyUsagePurpose], Vec<CertificateDer<'static>>, bool, &str); 7] = [
            (&[KeyCertSign], vec![], true, "may sign certificates"),
            (&[], vec![], true, "names no uses"),
            (&[DigitalSignature, CrlSign], vec![], false, "names uses, and not this one"),
            (&[KeyCertSign], vec![stranger.clone()], true, "beside one that has nothing to do with it"),
            (&[KeyCertSign], vec![rubbish], true, "beside one that can't be read"),
            (&[KeyCertSign], vec![stranger.clone(); MAX_INTERMEDIATES - 1], true, "the last that is looked at"),
            (&[KeyCertSign], vec![stranger; MAX_INTERMEDIATES], false, "one past it"),
        ];
        for (uses, mut between, expected, why) in table {
            let subordinate = root.subordinate(uses);
            let leaf = subordinate.issue(&leaf(&["spiffe://corp.test/orders"], &[])).certificate;
            between.push(subordinate.der());
            assert_eq!(chains.verify_client_cert(&leaf, &between, now).is_ok(), expected, "{why}");
        }
    }
}

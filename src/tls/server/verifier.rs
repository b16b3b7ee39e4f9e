//! What makes a client's chain good: webpki's paths, and the rules that it leaves out.
//!
//! The path is webpki's business: authorities, signatures, lifetimes, `clientAuth`, name constraints. Around it stand:
//! which authorities are asked at all ([`Authorities`]); that certificates between leaf and authority may sign (RFC 5280
//! section 6.1.4 (n)); that the authority itself lives; and which revocation lists a path is held against ([`Lists`]):
//! with any in force the whole chain is checked, an unknown status refuses, and so does a list that has run out. Long
//! chains are cut, so that a stranger's handshake costs little.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertRevocationListError, CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
    VerifiedPath,
};

use crate::tls::authorities::{Anchors, Authorities};
use crate::tls::peer;
use crate::tls::revocation::Lists;

/// Requires a client certificate whose chain ends at one of our authorities and is not revoked.
#[derive(Debug)]
pub struct ClientChains {
    authorities: Arc<Authorities>,
    lists: Arc<Lists>,
    algorithms: WebPkiSupportedAlgorithms,
    subjects: Vec<DistinguishedName>,
}

/// What a chain is for, and how strictly revocation lists are asked. Clients are always judged by [`Rules::CLIENTS`]; the
/// other values are those of corpora that judge the libraries.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The purpose that every certificate of the path must have, if it names any.
    pub usage: KeyUsage,
    /// Which certificates must not be revoked.
    pub depth: RevocationCheckDepth,
    /// What it means that no list speaks of a certificate.
    pub unknown: UnknownStatusPolicy,
    /// What it means that a list has run out.
    pub expiration: ExpirationPolicy,
    /// Certificates between leaf and authority that are looked at; real chains have one or two.
    pub intermediates: usize,
}

impl Rules {
    /// For clients: the whole chain, and in doubt no.
    pub const CLIENTS: Self = Self {
        usage: KeyUsage::client_auth(),
        depth: RevocationCheckDepth::Chain,
        unknown: UnknownStatusPolicy::Deny,
        expiration: ExpirationPolicy::Enforce,
        intermediates: 8,
    };
}

impl ClientChains {
    /// Believes `authorities`, and asks `lists` unless there are none.
    #[must_use]
    pub fn new(authorities: Arc<Authorities>, lists: Arc<Lists>, provider: &CryptoProvider) -> Self {
        let subjects = authorities.subjects();
        Self { authorities, lists, algorithms: provider.signature_verification_algorithms, subjects }
    }

    /// Whether the chain holds at `now`.
    ///
    /// # Errors
    /// What is wrong with it, in webpki's words; of several paths the most telling.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        rules: Rules,
    ) -> Result<(), webpki::Error> {
        let anchors = self.authorities.vouching_for(leaf);
        let end = EndEntityCert::try_from(leaf)?;
        let between = intermediates.iter().take(rules.intermediates);
        let signers: Vec<_> = between.filter(|certificate| may_sign(certificate)).cloned().collect();
        let holds = |path: &VerifiedPath<'_>| self.holds(path, anchors, now, rules);
        end.verify_for_usage(
            self.algorithms.all,
            &anchors.anchors,
            &signers,
            now,
            rules.usage,
            None,
            // Asked of every path that webpki finds: it goes on to the next when this one does not hold.
            Some(&holds),
        )?;
        Ok(())
    }

    /// What webpki does not ask of a path. It is found again with the lists that its own keys have signed.
    fn holds(
        &self,
        path: &VerifiedPath<'_>,
        anchors: &Anchors,
        now: UnixTime,
        rules: Rules,
    ) -> Result<(), webpki::Error> {
        let authority = anchors.behind(path.anchor()).ok_or(webpki::Error::UnknownIssuer)?;
        if !authority.lives_at(now.as_secs()) {
            return Err(webpki::Error::UnknownIssuer);
        }
        if self.lists.is_empty() {
            return Ok(());
        }
        let chosen = self.lists.for_path(path, authority)?;
        let Ok(options) = RevocationOptionsBuilder::new(&chosen.asked) else {
            return match rules.unknown {
                UnknownStatusPolicy::Allow => Ok(()),
                UnknownStatusPolicy::Deny => Err(webpki::Error::UnknownRevocationStatus),
            };
        };
        let options = options
            .with_depth(rules.depth)
            .with_status_policy(rules.unknown)
            .with_expiration_policy(rules.expiration)
            .build();
        let between: Vec<_> = path.intermediate_certificates().map(|certificate| certificate.der()).collect();
        let anchor = std::slice::from_ref(path.anchor());
        let leaf = path.end_entity();
        leaf.verify_for_usage(self.algorithms.all, anchor, &between, now, rules.usage, Some(options), None)?;
        let depth = match rules.depth {
            RevocationCheckDepth::EndEntity => 1,
            RevocationCheckDepth::Chain => usize::MAX,
        };
        if chosen.name_one_of(path, depth)? { Err(webpki::Error::CertRevoked) } else { Ok(()) }
    }
}

impl ClientCertVerifier for ClientChains {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
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
        match self.verify(leaf, intermediates, now, Rules::CLIENTS) {
            Ok(()) => Ok(ClientCertVerified::assertion()),
            Err(error) => Err(alert(error)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The same in rustls' words, which choose the alert that the client gets (RFC 8446 section 6.2) and the word of the
/// record.
#[expect(clippy::wildcard_enum_match_arm, reason = "the library's enum is open, and the rest has one general word")]
fn alert(error: webpki::Error) -> Error {
    use webpki::Error as W;
    let certificate = match error {
        W::BadDer | W::BadDerTime | W::TrailingData(_) => CertificateError::BadEncoding,
        W::CertNotValidYet { .. } => CertificateError::NotValidYet,
        W::CertExpired { .. } | W::InvalidCertValidity => CertificateError::Expired,
        W::UnknownIssuer => CertificateError::UnknownIssuer,
        W::CertRevoked => CertificateError::Revoked,
        W::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        W::CrlExpired { .. } => CertificateError::ExpiredRevocationList,
        W::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        W::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        W::IssuerNotCrlSigner => return CertRevocationListError::IssuerInvalidForCrl.into(),
        W::InvalidCrlSignatureForPublicKey => return CertRevocationListError::BadSignature.into(),
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    certificate.into()
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
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let authorities = Authorities::shared(vec![root.der()]).unwrap();
        let lists = Lists::none(provider.signature_verification_algorithms);
        let chains = ClientChains::new(Arc::new(authorities), Arc::new(lists), &provider);
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(unix_seconds(noon())));
        let stranger = Authority::new("stranger").der();
        let rubbish = CertificateDer::from(vec![0x30, 0x03, 0x02, 0x01]);

        let table: [(&[rcgen::KeyUsagePurpose], Vec<CertificateDer<'static>>, bool, &str); 7] = [
            (&[KeyCertSign], vec![], true, "may sign certificates"),
            (&[], vec![], true, "names no uses"),
            (&[DigitalSignature, CrlSign], vec![], false, "names uses, and not this one"),
            (&[KeyCertSign], vec![stranger.clone()], true, "beside one that has nothing to do with it"),
            (&[KeyCertSign], vec![rubbish], true, "beside one that can't be read"),
            (
                &[KeyCertSign],
                vec![stranger.clone(); Rules::CLIENTS.intermediates - 1],
                true,
                "the last that is looked at",
            ),
            (&[KeyCertSign], vec![stranger; Rules::CLIENTS.intermediates], false, "one past it"),
        ];
        for (uses, mut between, expected, why) in table {
            let subordinate = root.subordinate(uses);
            let leaf = subordinate.issue(&leaf(&["spiffe://corp.test/orders"], &[])).certificate;
            between.push(subordinate.der());
            assert_eq!(chains.verify_client_cert(&leaf, &between, now).is_ok(), expected, "{why}");
        }
    }
}

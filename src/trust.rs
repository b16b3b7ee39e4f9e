//! The TLS of our own connections to others: whom we believe, and who we say we are.
//!
//! Knows PEM files and rustls; nothing of who connects where.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// A PEM file, bytes.
const PEM_BYTES: u64 = 1 << 20;

/// Which file is wrong. Its content is not quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrustProblem {
    /// The authorities can't be read, or there are none.
    #[error("its `ca` holds no authority that can be read")]
    Authorities,
    /// The certificate chain can't be read.
    #[error("its `certificate` can't be read")]
    Certificate,
    /// The key can't be read, or is another certificate's.
    #[error("its `private_key` can't be read, or is not the certificate's")]
    PrivateKey,
    /// The key is behind a passphrase.
    #[error("its `private_key` is encrypted: decrypt it with `openssl pkey -in .. -out ..`")]
    EncryptedKey,
}

/// Whether a PEM text holds a private key that is behind a passphrase: PKCS#8 as RFC 5958 has it, or the older way of
/// RFC 1421.
#[must_use]
pub fn is_encrypted_key(pem: &[u8]) -> bool {
    [&b"-----BEGIN ENCRYPTED PRIVATE KEY-----"[..], b"Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| pem.windows(mark.len()).any(|part| part == *mark))
}

/// Whether every user of the machine may read, change or run the file at `path`.
#[must_use]
pub fn is_open_to_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|facts| facts.permissions().mode() & 0o007 != 0)
}

/// TLS settings from PEM files of at most 1 MiB each: `ca` holds the only authorities that are believed, those of the
/// system are when there is none; `identity` is the chain and key that we show to whoever asks.
///
/// # Errors
/// [`TrustProblem`]
pub fn client_tls(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, TrustProblem> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let pem = small_file(path, PEM_BYTES).map_err(|_| TrustProblem::Authorities)?;
            for authority in CertificateDer::pem_slice_iter(&pem) {
                let authority = authority.map_err(|_| TrustProblem::Authorities)?;
                roots.add(authority).map_err(|_| TrustProblem::Authorities)?;
            }
        }
        None => {
            // The system's store may hold a certificate we can't read; the others still count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TrustProblem::Authorities);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // The provider has the default versions, so this can't fail; and if it did, nobody would be believed.
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| TrustProblem::Authorities)?
        .with_root_certificates(roots);
    let Some((certificate, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let pem = small_file(certificate, PEM_BYTES).map_err(|_| TrustProblem::Certificate)?;
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| TrustProblem::Certificate)?;
    let pem = small_file(key, PEM_BYTES).map_err(|_| TrustProblem::PrivateKey)?;
    if is_encrypted_key(&pem) {
        return Err(TrustProblem::EncryptedKey);
    }
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TrustProblem::PrivateKey)?;
    builder.with_client_auth_cert(chain, key).map_err(|_| TrustProblem::PrivateKey)
}

/// The bytes of a small file, wiped when dropped: it may hold a secret.
///
/// # Errors
/// The system's words, or that it is longer.
pub fn small_file(path: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if u64::try_from(read).is_ok_and(|read| read > most) {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_wrong_file_is_told_for_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(path("ca"), certificate.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        fs::write(path("other"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path("long"), vec![b'\n'; 1 + (1 << 20)]).unwrap();
        let made = |ca: &str, identity: Option<(&str, &str)>| {
            let identity = identity.map(|(certificate, key)| (path(certificate), path(key)));
            let identity = identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
            client_tls(Some(&path(ca)), identity).map(drop)
        };
        assert_eq!(made("ca", None), Ok(()));
        assert_eq!(made("ca", Some(("ca", "key"))), Ok(()));
        for ca in ["gone", "empty", "key", "long"] {
            assert_eq!(made(ca, None), Err(TrustProblem::Authorities), "{ca}");
        }
        assert_eq!(made("ca", Some(("gone", "key"))), Err(TrustProblem::Certificate));
        for key in ["gone", "other", "ca", "long"] {
            assert_eq!(made("ca", Some(("ca", key))), Err(TrustProblem::PrivateKey), "{key}");
        }
        let pkcs8 = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let older = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
        for text in [pkcs8, older] {
            fs::write(path("encrypted"), text).unwrap();
            assert_eq!(made("ca", Some(("ca", "encrypted"))), Err(TrustProblem::EncryptedKey), "{text}");
        }
    }
}

//! The TLS that sinks speak: given authorities or the system's, and a certificate of our own where the receiver asks.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::SinkTls;

/// Which file is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TlsProblem {
    /// The authorities.
    #[error("`ca` holds no authority that can be read")]
    Authorities,
    /// Our certificate or its key.
    #[error("`certificate` and `private_key` do not make an identity")]
    Identity,
}

/// Reads the files. They are read for each connection, so that renewed ones count.
///
/// # Errors
/// [`TlsProblem`]
pub(super) fn client(settings: &SinkTls) -> Result<ClientConfig, TlsProblem> {
    let mut roots = RootCertStore::empty();
    match &settings.ca {
        Some(path) => {
            for authority in CertificateDer::pem_file_iter(path).map_err(|_| TlsProblem::Authorities)? {
                let authority = authority.map_err(|_| TlsProblem::Authorities)?;
                roots.add(authority).map_err(|_| TlsProblem::Authorities)?;
            }
        }
        None => {
            // The system's store may hold a certificate we can't read; the others still count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TlsProblem::Authorities);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let trusting = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| TlsProblem::Authorities)?
        .with_root_certificates(roots);
    let Some((certificate, private_key)) = &settings.identity else { return Ok(trusting.with_no_client_auth()) };
    let chain = |path: &Path| -> Option<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_file_iter(path).ok()?.collect::<Result<_, _>>().ok()
    };
    let chain = chain(certificate).ok_or(TlsProblem::Identity)?;
    let key = PrivateKeyDer::from_pem_file(private_key).map_err(|_| TlsProblem::Identity)?;
    trusting.with_client_auth_cert(chain, key).map_err(|_| TlsProblem::Identity)
}

//! The TLS that sinks speak. Files are read for each connection, so that renewed ones count.

use rustls::ClientConfig;

use crate::config::SinkTls;
pub use crate::trust::TrustProblem as TlsProblem;
use crate::trust::client_tls;

/// Reads the files.
///
/// # Errors
/// [`TlsProblem`]
pub(super) fn client(settings: &SinkTls) -> Result<ClientConfig, TlsProblem> {
    let identity = settings.identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    client_tls(settings.ca.as_deref(), identity)
}

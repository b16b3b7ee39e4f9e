//! What a listener is served with, read and checked: our chain and key, and the authorities of clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize as _, Zeroizing};

use super::error::{TlsError, read_failed};
use crate::clock::{SharedClock, unix_seconds};
use crate::config::ListenerTls;
use crate::model::spiffe_id::TrustDomain;
use crate::tls::authorities::Authorities;
use crate::tls::peer;

/// A PEM file of ours is a few KiB; whatever is larger is not one.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// One set that belongs together.
#[derive(Debug)]
pub(super) struct Material {
    pub(super) identity: Arc<CertifiedKey>,
    pub(super) valid_from: SystemTime,
    pub(super) expires_at: SystemTime,
    pub(super) authorities: Arc<Authorities>,
    /// Of everything that was read; tells a touched file from a changed one.
    pub(super) content: blake3::Hash,
    /// Where it came from, for errors.
    pub(super) source: PathBuf,
}

/// The files of one listener.
#[derive(Debug, Clone)]
pub(super) struct Files {
    certificate: PathBuf,
    private_key: PathBuf,
    client_ca: PathBuf,
    domain_ca: Vec<(TrustDomain, PathBuf)>,
}

/// The bytes of one set of files; the key's are wiped.
struct Texts {
    certificate: Vec<u8>,
    private_key: Zeroizing<Vec<u8>>,
    client_ca: Vec<u8>,
    domain_ca: Vec<Vec<u8>>,
}

impl Files {
    pub(super) fn of(config: &ListenerTls) -> Self {
        Self {
            certificate: config.certificate.clone(),
            private_key: config.private_key.clone(),
            client_ca: config.client_ca.clone(),
            domain_ca: config.domain_ca.iter().map(|(domain, path)| (domain.clone(), path.clone())).collect(),
        }
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        let three = [&self.certificate, &self.private_key, &self.client_ca];
        three.into_iter().chain(self.domain_ca.iter().map(|(_, path)| path)).map(PathBuf::as_path)
    }

    /// What the files hold now; `before` itself when nothing changed.
    pub(super) fn material(
        &self,
        before: Option<&Arc<Material>>,
        clock: &SharedClock,
    ) -> Result<Arc<Material>, TlsError> {
        let texts = self.read()?;
        let content = texts.content();
        match before {
            Some(before) if before.content == content => Ok(Arc::clone(before)),
            _ => self.check(&texts, content, clock).map(Arc::new),
        }
    }

    fn read(&self) -> Result<Texts, TlsError> {
        Ok(Texts {
            certificate: read(&self.certificate)?,
            private_key: Zeroizing::new(read(&self.private_key)?),
            client_ca: read(&self.client_ca)?,
            domain_ca: self.domain_ca.iter().map(|(_, path)| read(path)).collect::<Result<_, _>>()?,
        })
    }

    fn check(&self, texts: &Texts, content: blake3::Hash, clock: &SharedClock) -> Result<Material, TlsError> {
        let (identity, (valid_from, expires_at)) = self.identity(texts)?;
        if unix_seconds(clock.now()) > unix_seconds(expires_at) {
            return Err(TlsError::Expired { path: self.certificate.clone() });
        }
        let authorities = self.authorities(texts)?;
        warn_of_readable_key(&self.private_key);
        Ok(Material {
            identity: Arc::new(identity),
            valid_from,
            expires_at,
            authorities: Arc::new(authorities),
            content,
            source: self.certificate.clone(),
        })
    }

    fn identity(&self, texts: &Texts) -> Result<(CertifiedKey, (SystemTime, SystemTime)), TlsError> {
        let no_certificate = || TlsError::Certificate { path: self.certificate.clone() };
        let no_key = || TlsError::PrivateKey { path: self.private_key.clone() };
        let chain = certificates(&texts.certificate).ok_or_else(no_certificate)?;
        let validity = chain.first().and_then(peer::validity).ok_or_else(no_certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&texts.private_key).map_err(|_| no_key())?;
        let identity = CertifiedKey::new(chain, signing_key(key).ok_or_else(no_key)?);
        // A key that can't tell its public half can't be proven to match: refused, like one that doesn't.
        identity.keys_match().map_err(|_| TlsError::Mismatch {
            certificate: self.certificate.clone(),
            private_key: self.private_key.clone(),
        })?;
        Ok((identity, validity))
    }

    fn authorities(&self, texts: &Texts) -> Result<Authorities, TlsError> {
        let none = |path: &Path| TlsError::ClientAuthorities { path: path.to_owned() };
        let shared = certificates(&texts.client_ca).ok_or_else(|| none(&self.client_ca))?;
        let mut authorities = Authorities::shared(shared).map_err(|_| none(&self.client_ca))?;
        for ((domain, path), text) in self.domain_ca.iter().zip(&texts.domain_ca) {
            let own = certificates(text).ok_or_else(|| none(path))?;
            authorities = authorities.with_own(domain.clone(), own).map_err(|_| none(path))?;
        }
        Ok(authorities)
    }
}

impl Texts {
    /// Each part is framed by its length, so that no two sets look alike.
    fn content(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let own = self.domain_ca.iter();
        for part in [&self.certificate, &*self.private_key, &self.client_ca].into_iter().chain(own) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize()
    }
}

/// The key, ready to sign; its bytes are wiped, which the provider's own way leaves out.
pub(super) fn signing_key(mut key: PrivateKeyDer<'static>) -> Option<Arc<dyn SigningKey>> {
    let signing = any_supported_type(&key);
    key.zeroize();
    signing.ok()
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read as _;
    let failed = |source| read_failed(path, source);
    let file = std::fs::File::open(path).map_err(failed)?;
    // Room for everything at once: a buffer that grows leaves copies of the key behind.
    let size = file.metadata().map_err(failed)?.len().min(MAX_FILE_BYTES);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default().saturating_add(1));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE_BYTES) {
        return Err(TlsError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Every certificate of a PEM text; nothing when there is none or one can't be read.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().ok()?;
    (!certificates.is_empty()).then_some(certificates)
}

/// The key's bytes are as secret as the file that holds them. A group may read it: Kubernetes gives a mounted Secret to
/// the pod's user in no other way.
fn warn_of_readable_key(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        if std::fs::metadata(path).is_ok_and(|facts| facts.permissions().mode() & 0o007 != 0) {
            tracing::warn!(file = %path.display(), "the private key is open to every user: make its mode 0600 or 0440");
        }
    }
}

//! What a listener is served with, read and checked: our chain and key, and the authorities of clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use zeroize::{Zeroize as _, Zeroizing};

use super::error::{TlsError, read_failed};
use crate::clock::{SharedClock, unix_seconds};
use crate::config::ListenerTls;
use crate::model::spiffe_id::TrustDomain;
use crate::tls::authorities::Authorities;
use crate::tls::peer;
use crate::trust::{is_encrypted_key, is_open_to_all};

/// A PEM file of ours is a few KiB; whatever is larger is not one.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// How far in the future a certificate's life may begin, seconds: clocks differ, and a new certificate begins now.
const CLOCKS_APART: u64 = 60;

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
    pub(super) certificate: PathBuf,
    pub(super) private_key: PathBuf,
    pub(super) client_ca: PathBuf,
    pub(super) domain_ca: Vec<(TrustDomain, PathBuf)>,
    names: Vec<String>,
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
            names: config.names.clone(),
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
        let chain = self.chain(&texts.certificate)?;
        let key = self.key(&texts.private_key)?;
        let (valid_from, expires_at) = self.life(&chain)?;
        let identity = self.pair(chain, key)?;
        self.check_life(&identity.cert, clock.now())?;
        self.check_names(&identity.cert)?;
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

    pub(super) fn chain(&self, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let chain = certificates(pem).ok_or_else(|| TlsError::Certificate { path: self.certificate.clone() })?;
        self.life(&chain).map(|_| chain)
    }

    pub(super) fn key(&self, pem: &[u8]) -> Result<Arc<dyn SigningKey>, TlsError> {
        let path = || self.private_key.clone();
        if is_encrypted_key(pem) {
            return Err(TlsError::EncryptedKey { path: path() });
        }
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| TlsError::PrivateKey { path: path() })?;
        signing_key(key).ok_or_else(|| TlsError::PrivateKey { path: path() })
    }

    /// A key that can't tell its public half can't be proven to match: refused, like one that doesn't.
    pub(super) fn pair(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: Arc<dyn SigningKey>,
    ) -> Result<CertifiedKey, TlsError> {
        let identity = CertifiedKey::new(chain, key);
        identity.keys_match().map_err(|_| TlsError::Mismatch {
            certificate: self.certificate.clone(),
            private_key: self.private_key.clone(),
        })?;
        Ok(identity)
    }

    fn life(&self, chain: &[CertificateDer<'_>]) -> Result<(SystemTime, SystemTime), TlsError> {
        let life = chain.first().and_then(peer::validity);
        life.ok_or_else(|| TlsError::Certificate { path: self.certificate.clone() })
    }

    /// Whether the first certificate is in force. Whoever issues it may have a clock that goes before ours by a little.
    pub(super) fn check_life(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), TlsError> {
        let (from, until) = self.life(chain)?;
        let path = || self.certificate.clone();
        if unix_seconds(now) > unix_seconds(until) {
            return Err(TlsError::Expired { path: path(), until, now });
        }
        if unix_seconds(now).saturating_add(CLOCKS_APART) < unix_seconds(from) {
            return Err(TlsError::NotYetValid { path: path(), from, now });
        }
        Ok(())
    }

    /// Whether the first certificate is for every name that the settings demand.
    pub(super) fn check_names(&self, chain: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        let leaf = chain.first().ok_or_else(|| TlsError::Certificate { path: self.certificate.clone() })?;
        match self.names.iter().find(|name| !is_for(leaf, name)) {
            None => Ok(()),
            Some(name) => Err(TlsError::Names {
                path: self.certificate.clone(),
                name: name.clone(),
                found: peer::names(leaf).join(", "),
            }),
        }
    }

    fn authorities(&self, texts: &Texts) -> Result<Authorities, TlsError> {
        let mut authorities =
            Authorities::shared(authorities(&self.client_ca, &texts.client_ca)?).map_err(|_| none(&self.client_ca))?;
        for ((domain, path), text) in self.domain_ca.iter().zip(&texts.domain_ca) {
            let own = self::authorities(path, text)?;
            authorities = authorities.with_own(domain.clone(), own).map_err(|_| none(path))?;
        }
        Ok(authorities)
    }
}

/// The certificates of a file of authorities.
pub(super) fn authorities(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = certificates(pem).ok_or_else(|| none(path))?;
    if Authorities::shared(found.clone()).is_err() { Err(none(path)) } else { Ok(found) }
}

fn none(path: &Path) -> TlsError {
    TlsError::ClientAuthorities { path: path.to_owned() }
}

/// Whether a client that looks for `name` would take this certificate.
pub(super) fn is_for(leaf: &CertificateDer<'_>, name: &str) -> bool {
    let (Ok(leaf), Ok(name)) = (webpki::EndEntityCert::try_from(leaf), ServerName::try_from(name)) else {
        return false;
    };
    leaf.verify_is_valid_for_subject_name(&name).is_ok()
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

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
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
    if is_open_to_all(path) {
        tracing::warn!(file = %path.display(), "the private key is open to every user: make its mode 0600 or 0440");
    }
}

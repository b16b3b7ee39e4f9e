//! Our own identity on the listener, and the authorities whose clients we believe.
//!
//! [`ServerIdentity`] reads three files (certificate chain, key, client authorities) into one rustls configuration and
//! keeps it behind an atomic pointer. A connection takes what is current when it comes; a reload touches no open one,
//! and a reload that fails leaves the old configuration in force. How changes are noticed is `watcher`'s business,
//! what makes a client's chain good is [`verifier`]'s.
//!
//! TLS 1.3 alone, client certificates required, no resumption, no tickets, no early data: a resumed session would not
//! show its certificate again (RFC 8446 sections 2.2 and 2.3).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::peer;
use crate::clock::{SharedClock, unix_seconds};
use crate::config::ListenerTls;

pub mod verifier;
mod watcher;

/// A PEM file of ours is a few KiB; whatever is larger is not one.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Who we are on the listener, always the last good set of files.
#[derive(Debug)]
pub struct ServerIdentity {
    files: Files,
    reload_interval: Duration,
    clock: SharedClock,
    current: ArcSwap<Loaded>,
    /// Counts the reloads that took an authority away.
    withdrawals: watch::Sender<u64>,
    /// One reload at a time, so that an older read can't overtake a newer one.
    reloading: Mutex<()>,
}

#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    private_key: PathBuf,
    client_ca: PathBuf,
}

#[derive(Debug)]
struct Loaded {
    tls: Arc<rustls::ServerConfig>,
    /// Of everything that was read; tells a touched file from a changed one.
    content: blake3::Hash,
    expires_at: SystemTime,
    authorities: HashSet<blake3::Hash>,
}

/// Why a set of files can't be served with. Names the file and the mend, never its content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It can't be opened or read.
    #[error("`{}` can't be read: check that it exists and that this user may read it", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Larger than a PEM file of this kind could be.
    #[error("`{}` is larger than 1 MiB: it should hold PEM and nothing else", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// No certificate, or something that is not one.
    #[error("`{}` does not hold certificates: it should be PEM with `BEGIN CERTIFICATE`, the server's own first", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
    },
    /// No private key, or one of a kind that can't be used.
    #[error(
        "`{}` does not hold a usable private key: it should be PEM with one unencrypted PKCS#8, SEC1 or PKCS#1 key (ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more)",
        .path.display()
    )]
    PrivateKey {
        /// The file.
        path: PathBuf,
    },
    /// The key belongs to another certificate.
    #[error("the key in `{}` does not belong to the first certificate in `{}`: replace both together", .private_key.display(), .certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
    },
    /// Our own certificate is past its end.
    #[error("the certificate in `{}` has expired: put a renewed one there, and its key", .path.display())]
    Expired {
        /// The file.
        path: PathBuf,
    },
    /// No authority, or a certificate that is none.
    #[error("`{}` does not hold authorities: it should be PEM with at least one certificate, each with `CA:TRUE`", .path.display())]
    ClientAuthorities {
        /// The file.
        path: PathBuf,
    },
    /// The TLS library refuses for a reason that is none of the above.
    #[error("TLS can't be set up with `{}`", .path.display())]
    Setup {
        /// The certificate's file.
        path: PathBuf,
        /// What the library says; it knows no key material.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ServerIdentity {
    /// Reads the three files that `config` names. `clock` gives the wall time at which clients' certificates are judged.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what to do about it.
    pub fn load(config: &ListenerTls, clock: SharedClock) -> Result<Arc<Self>, TlsError> {
        let files = Files {
            certificate: config.certificate.clone(),
            private_key: config.private_key.clone(),
            client_ca: config.client_ca.clone(),
        };
        let loaded = files.read()?.build(&files, &clock)?;
        Ok(Arc::new(Self {
            files,
            reload_interval: config.reload_interval,
            clock,
            current: ArcSwap::from_pointee(loaded),
            withdrawals: watch::Sender::new(0),
            reloading: Mutex::new(()),
        }))
    }

    /// What a connection that comes now is to be served with.
    #[must_use]
    pub fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.current.load().tls)
    }

    /// Reads the files again and, if they changed and belong together, serves every later connection with them.
    /// True when something changed. Blocks on the file system.
    ///
    /// # Errors
    /// [`TlsError`] says what is wrong with the new files; the old ones stay in force.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let _one_at_a_time = self.reloading.lock();
        let texts = self.files.read()?;
        if texts.content() == self.current.load().content {
            return Ok(false);
        }
        let loaded = texts.build(&self.files, &self.clock)?;
        let before = self.current.load_full();
        let withdrawn = !before.authorities.is_subset(&loaded.authorities);
        self.current.store(Arc::new(loaded));
        if withdrawn {
            self.withdrawals.send_modify(|count| *count += 1);
        }
        Ok(true)
    }

    /// Changes whenever an authority is believed no longer: connections that came before must come again. To be taken
    /// before [`current`](Self::current), so that no change falls between.
    #[must_use]
    pub fn withdrawals(&self) -> watch::Receiver<u64> {
        self.withdrawals.subscribe()
    }

    /// Until when our own certificate holds.
    #[must_use]
    pub fn certificate_expires_at(&self) -> SystemTime {
        self.current.load().expires_at
    }
}

/// The bytes of one set of files; the key's are wiped.
struct Texts {
    certificate: Vec<u8>,
    private_key: Zeroizing<Vec<u8>>,
    client_ca: Vec<u8>,
}

impl Files {
    fn read(&self) -> Result<Texts, TlsError> {
        Ok(Texts {
            certificate: read(&self.certificate)?,
            private_key: Zeroizing::new(read(&self.private_key)?),
            client_ca: read(&self.client_ca)?,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read as _;
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
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

impl Texts {
    /// Each part is framed by its length, so that no two sets look alike.
    fn content(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in [&self.certificate, &*self.private_key, &self.client_ca] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize()
    }

    fn build(&self, files: &Files, clock: &SharedClock) -> Result<Loaded, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (identity, expires_at) = self.identity(files, &provider)?;
        if unix_seconds(clock.now()) > unix_seconds(expires_at) {
            return Err(TlsError::Expired { path: files.certificate.clone() });
        }
        let setup = |source| TlsError::Setup { path: files.certificate.clone(), source };
        let (roots, authorities) = self.authorities(files)?;
        let clients = verifier::ClientChains::new(roots, &provider).map_err(|e| setup(Box::new(e)))?;
        let mut tls = rustls::ServerConfig::builder_with_details(provider, Arc::new(WallTime(Arc::clone(clock))))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| setup(Box::new(e)))?
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        tls.alpn_protocols = vec![b"h2".to_vec()];
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        tls.max_early_data_size = 0;
        warn_of_readable_key(&files.private_key);
        Ok(Loaded { tls: Arc::new(tls), content: self.content(), expires_at, authorities })
    }

    fn identity(&self, files: &Files, provider: &CryptoProvider) -> Result<(CertifiedKey, SystemTime), TlsError> {
        let no_certificate = || TlsError::Certificate { path: files.certificate.clone() };
        let no_key = || TlsError::PrivateKey { path: files.private_key.clone() };
        let chain = certificates(&self.certificate).ok_or_else(no_certificate)?;
        let (_, expires_at) = chain.first().and_then(peer::validity).ok_or_else(no_certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.private_key).map_err(|_| no_key())?;
        let key = provider.key_provider.load_private_key(key).map_err(|_| no_key())?;
        let identity = CertifiedKey::new(chain, key);
        // A key that can't tell its public half can't be proven to match: refused, like one that doesn't.
        identity.keys_match().map_err(|_| TlsError::Mismatch {
            certificate: files.certificate.clone(),
            private_key: files.private_key.clone(),
        })?;
        Ok((identity, expires_at))
    }

    /// A trust anchor's own constraints are not checked when a path is built, so they are checked here.
    fn authorities(&self, files: &Files) -> Result<(RootCertStore, HashSet<blake3::Hash>), TlsError> {
        let none = || TlsError::ClientAuthorities { path: files.client_ca.clone() };
        let (mut roots, mut authorities) = (RootCertStore::empty(), HashSet::new());
        for certificate in certificates(&self.client_ca).ok_or_else(none)? {
            let says_so = peer::parse(&certificate).is_some_and(|parsed| peer::is_authority(&parsed) == Ok(true));
            if !says_so {
                return Err(none());
            }
            authorities.insert(blake3::hash(&certificate));
            roots.add(certificate).map_err(|_| none())?;
        }
        Ok((roots, authorities))
    }
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

/// Our clock, for rustls.
#[derive(Debug)]
pub(super) struct WallTime(pub(super) SharedClock);

impl rustls::time_provider::TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

#[cfg(test)]
mod tests;

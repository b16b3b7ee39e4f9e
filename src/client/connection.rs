//! The connection to Gatepost: mutual TLS 1.3, and certificate files that may change under way.
//!
//! The files are looked at whenever a connection is made and, while questions are asked, once in every interval. A new
//! pair that holds together is used for a new connection and the old one is let go, its calls answered; a broken one
//! leaves the last good one in use. tonic's own TLS stays switched off.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use zeroize::Zeroizing;

use crate::clock::SharedClock;

/// How long TCP and TLS may take together. Longer than a question: a slow handshake serves the next one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a connection in use is probed, and how long the probe may take.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// A certificate or key file, bytes.
const FILE_BYTES: u64 = 1024 * 1024;

/// The files that say who this service is and whom it trusts, PEM.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Why the files are no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be read, or is larger than a mebibyte.
    #[error("cannot read `{path}`")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds no PEM of the kind that is needed.
    #[error("`{path}` holds no usable {what}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Certificate and key do not belong together, or cannot be used.
    #[error("certificate and key cannot be used together")]
    Pair(#[source] rustls::Error),
}

/// One state of the files, made ready.
struct Identity {
    tls: Arc<ClientConfig>,
    fingerprint: blake3::Hash,
}

/// Where Gatepost is and under which name.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) endpoint: Uri,
    pub(crate) server_name: ServerName<'static>,
}

/// A connection that is made when it is first needed and made again when it has to be.
pub(crate) struct Connection {
    target: Target,
    identity: Arc<Watched>,
    live: Mutex<Option<(blake3::Hash, Channel)>>,
}

/// The files and the last good state of them.
struct Watched {
    files: Files,
    current: ArcSwap<Identity>,
    clock: SharedClock,
    interval: Duration,
    looked_at: Mutex<Duration>,
}

impl Connection {
    /// Reads the files once; connects to nobody yet.
    pub(crate) fn prepare(
        target: Target,
        files: Files,
        clock: SharedClock,
        interval: Duration,
    ) -> Result<Self, IdentityError> {
        let current = ArcSwap::from_pointee(Identity::load(&files)?);
        let looked_at = Mutex::new(clock.monotonic());
        let identity = Arc::new(Watched { files, current, clock, interval, looked_at });
        Ok(Self { target, identity, live: Mutex::new(None) })
    }

    /// The channel to ask over. Calls on an earlier one, under an earlier certificate, run to their end.
    pub(crate) async fn channel(&self) -> Channel {
        if self.identity.is_due() {
            self.identity.look().await;
        }
        let now = self.identity.current.load().fingerprint;
        let mut live = self.live.lock();
        match &*live {
            Some((under, channel)) if *under == now => channel.clone(),
            _ => {
                let channel = self.open();
                *live = Some((now, channel.clone()));
                channel
            }
        }
    }

    /// A stream of its own, for whoever keeps connections himself: `gatepost bench`.
    pub(crate) async fn stream(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let tls = Arc::clone(&self.identity.current.load().tls);
        let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dial(&self.target, tls)).await;
        dialled.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    fn open(&self) -> Channel {
        let (identity, target) = (Arc::clone(&self.identity), self.target.clone());
        Endpoint::from(self.target.endpoint.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let (identity, target) = (Arc::clone(&identity), target.clone());
                async move {
                    identity.look().await;
                    let tls = Arc::clone(&identity.current.load().tls);
                    dial(&target, tls).await.map(TokioIo::new)
                }
            }))
    }
}

/// TCP, then TLS, then proof that the other side speaks HTTP/2.
async fn dial(target: &Target, tls: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let host = target.endpoint.host().unwrap_or_default().trim_matches(['[', ']']);
    let tcp = TcpStream::connect((host, target.endpoint.port_u16().unwrap_or(443))).await?;
    tcp.set_nodelay(true)?;
    let stream = TlsConnector::from(tls).connect(target.server_name.clone(), tcp).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(std::io::Error::other("the server does not speak HTTP/2"));
    }
    Ok(stream)
}

impl Watched {
    /// Whether the interval has passed; says so to one asker only, and again only after another interval, so that files
    /// on a disk that hangs delay one question in each.
    fn is_due(&self) -> bool {
        let now = self.clock.monotonic();
        let mut looked_at = self.looked_at.lock();
        let due = now.saturating_sub(*looked_at) >= self.interval;
        if due {
            *looked_at = now;
        }
        due
    }

    /// Reads the files and takes them if they hold together.
    async fn look(&self) {
        let files = self.files.clone();
        let loaded = tokio::task::spawn_blocking(move || Identity::load(&files)).await;
        match loaded {
            Ok(Ok(identity)) if identity.fingerprint != self.current.load().fingerprint => {
                tracing::info!("client certificate files have changed and are in use");
                self.current.store(Arc::new(identity));
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "client certificate files are broken; the last good ones stay in use"
                );
            }
            Err(_) => tracing::warn!("client certificate files could not be looked at"),
        }
    }
}

impl Identity {
    fn load(files: &Files) -> Result<Self, IdentityError> {
        let (ca, certificate, key) = (read(&files.ca)?, read(&files.certificate)?, read(&files.key)?);
        let mut hasher = blake3::Hasher::new();
        for part in [&ca, &certificate, &key] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let pem = |path: &Path, what| IdentityError::Pem { path: path.to_owned(), what };

        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&ca) {
            let authority = authority.map_err(|_| pem(&files.ca, "certificate"))?;
            roots.add(authority).map_err(|_| pem(&files.ca, "certificate"))?;
        }
        if roots.is_empty() {
            return Err(pem(&files.ca, "certificate"));
        }
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| pem(&files.certificate, "certificate"))?;
        if chain.is_empty() {
            return Err(pem(&files.certificate, "certificate"));
        }
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| pem(&files.key, "private key"))?;

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::Pair)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(IdentityError::Pair)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would skip the client certificate (RFC 8446 section 2.2), a rotated one too.
        tls.resumption = Resumption::disabled();
        Ok(Self { tls: Arc::new(tls), fingerprint: hasher.finalize() })
    }
}

/// The bytes of a file, wiped when dropped: one of the files is a private key.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    use std::io::Read as _;
    let failed = |source| IdentityError::Read { path: path.to_owned(), source };
    let mut bytes = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(failed)?;
    let read = file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if read as u64 > FILE_BYTES {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

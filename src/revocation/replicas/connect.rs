//! A connection to the store: TCP, TLS if it is meant to be, and a bound on what one answer may be.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::StoreError;
use crate::config::{RedisConfig, RedisTls};

/// TCP and TLS together.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// One answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// One answer, bytes. The longest that we ask for is a page of lines; a small set comes whole, in some 100 KiB.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// A password's file, bytes.
const PASSWORD_BYTES: u64 = 4096;
/// A PEM file, bytes.
const PEM_BYTES: u64 = 1024 * 1024;

/// A connection, and the task that moves its bytes; both end together.
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    driver: JoinHandle<()>,
    left: Arc<AtomicUsize>,
}

impl Connected {
    /// The next answer may be as long as answers may be.
    pub(super) fn allow_an_answer(&self) {
        self.left.store(ANSWER_BYTES, Ordering::Relaxed);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects and logs in. Files are read each time, so that a new password or certificate needs no restart.
pub(super) async fn connect(settings: &RedisConfig) -> Result<Connected, StoreError> {
    let failed = |source| StoreError::Connect { host: settings.host.clone(), port: settings.port, source };
    let mut info = RedisConnectionInfo::default().set_db(settings.database).set_skip_set_lib_name();
    if let Some(name) = &settings.username {
        info = info.set_username(name);
    }
    if let Some(path) = &settings.password_file {
        let refused = || StoreError::File { key: "revocation.redis.password_file" };
        let bytes = read(path, PASSWORD_BYTES).map_err(|_| refused())?;
        let text = std::str::from_utf8(&bytes).map_err(|_| refused())?;
        info = info.set_password(text.trim_end_matches(['\r', '\n']));
    }
    let tls = settings.tls.as_ref().map(client_tls).transpose()?;
    let left = Arc::new(AtomicUsize::new(ANSWER_BYTES));
    let dialled = tokio::time::timeout(CONNECT_WITHIN, dial(settings, tls)).await;
    let stream = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
    let stream = Bounded { stream, left: Arc::clone(&left) };
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_WITHIN));
    let greeting = MultiplexedConnection::new_with_config(&info, stream, config);
    let greeted = tokio::time::timeout(ANSWER_WITHIN, greeting).await;
    let (connection, driver) = greeted.map_err(|_| failed(io::ErrorKind::TimedOut.into()))??;
    Ok(Connected { connection, driver: tokio::spawn(driver), left })
}

/// A plain or a TLS stream.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn dial(settings: &RedisConfig, tls: Option<ClientConfig>) -> io::Result<Box<dyn Stream>> {
    let tcp = TcpStream::connect((settings.host.as_str(), settings.port)).await?;
    tcp.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(tcp)) };
    let name = ServerName::try_from(settings.host.clone()).map_err(io::Error::other)?;
    Ok(Box::new(tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?))
}

fn client_tls(settings: &RedisTls) -> Result<ClientConfig, StoreError> {
    let file = |key| StoreError::File { key };
    let mut roots = RootCertStore::empty();
    match &settings.ca {
        Some(path) => {
            let refused = || file("revocation.redis.ca");
            let pem = read(path, PEM_BYTES).map_err(|_| refused())?;
            for authority in CertificateDer::pem_slice_iter(&pem) {
                roots.add(authority.map_err(|_| refused())?).map_err(|_| refused())?;
            }
        }
        None => {
            // The system's store may hold a certificate we can't read; the others still count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(file("revocation.redis.ca"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| file("revocation.redis.ca"))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &settings.identity else { return Ok(builder.with_no_client_auth()) };
    let refused = || file("revocation.redis.certificate");
    let chain = read(certificate, PEM_BYTES).map_err(|_| refused())?;
    let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>().map_err(|_| refused())?;
    let refused = || file("revocation.redis.private_key");
    let key = read(key, PEM_BYTES).map_err(|_| refused())?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| refused())?;
    builder.with_client_auth_cert(chain, key).map_err(|_| refused())
}

/// The bytes of a small file, wiped when dropped: it may hold a secret.
fn read(path: &std::path::Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    use std::io::Read as _;
    let mut bytes = Zeroizing::new(Vec::new());
    let read = std::fs::File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if u64::try_from(read).is_ok_and(|read| read > most) {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Ends the connection when an answer is longer than answers may be: the library would keep it all.
struct Bounded {
    stream: Box<dyn Stream>,
    left: Arc<AtomicUsize>,
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let come = buffer.filled().len().saturating_sub(before);
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(come), Ordering::Relaxed);
        if come > left {
            return Poll::Ready(Err(io::Error::other("the answer is longer than answers may be")));
        }
        read
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

//! A connection to the store: TCP, TLS if it is meant to be, and a bound on what one answer may be.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::StoreError;
use crate::config::{RedisConfig, RedisTls};
use crate::trust::{self, TrustProblem};

/// TCP and TLS together.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// One answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// One answer, bytes. The longest that we ask for is a page of lines; a small set comes whole, in some 100 KiB.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// A password's file, bytes.
const PASSWORD_BYTES: u64 = 4096;

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
        let bytes = trust::small_file(path, PASSWORD_BYTES).map_err(|_| refused())?;
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
    let identity = settings.identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    trust::client_tls(settings.ca.as_deref(), identity).map_err(|problem| StoreError::File {
        key: match problem {
            TrustProblem::Authorities => "revocation.redis.ca",
            TrustProblem::Certificate => "revocation.redis.certificate",
            TrustProblem::PrivateKey | TrustProblem::EncryptedKey => "revocation.redis.private_key",
        },
    })
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

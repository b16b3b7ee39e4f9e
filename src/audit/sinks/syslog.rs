//! Syslog over TLS (RFC 5425) or TCP (RFC 6587), one message a record, each with its length before it.
//!
//! Nobody acknowledges a syslog message. A record counts as certain once the connection that it went over has lived for
//! `settle` after it; when a connection breaks, what is younger is sent again over the next.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::target::{Delivery, Fault, Outgoing, Settled, Taken, Target};
use super::tls::{TlsProblem, client};
use crate::audit::encode::syslog::frame;
use crate::config::SyslogTarget;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) struct SyslogSink {
    settings: SyslogTarget,
    timeout: Duration,
    connection: Option<Connection>,
    /// What was sent and is not certain yet: the last record of each batch, and when.
    young: VecDeque<(u64, Instant)>,
    /// The last record that is certain.
    certain: u64,
    /// A connection broke with something young on it.
    broken: bool,
}

struct Connection {
    write: WriteHalf<Box<dyn Duplex>>,
    /// Set when the other end has closed, or said anything at all that ends it.
    gone: watch::Receiver<bool>,
}

impl SyslogSink {
    pub(super) fn new(settings: &SyslogTarget, timeout: Duration) -> Result<Self, TlsProblem> {
        if let Some(tls) = &settings.tls {
            client(tls)?;
        }
        let settings = settings.clone();
        Ok(Self { settings, timeout, connection: None, young: VecDeque::new(), certain: 0, broken: false })
    }

    async fn connect(settings: &SyslogTarget) -> io::Result<Connection> {
        let tcp = TcpStream::connect((settings.host.as_str(), settings.port)).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Duplex> = match &settings.tls {
            None => Box::new(tcp),
            Some(tls) => {
                let config = client(tls).map_err(io::Error::other)?;
                let name = ServerName::try_from(settings.host.clone()).map_err(io::Error::other)?;
                Box::new(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?)
            }
        };
        let (mut read, write) = tokio::io::split(stream);
        let (tell, gone) = watch::channel(false);
        // A receiver says nothing. Its end, or a word of its own, ends the connection.
        tokio::spawn(async move {
            let mut byte = [0_u8];
            let _ = read.read(&mut byte).await;
            let _ = tell.send(true);
        });
        Ok(Connection { write, gone })
    }

    fn forget(&mut self) {
        if self.connection.take().is_some() && !self.young.is_empty() {
            self.young.clear();
            self.broken = true;
        }
    }

    async fn send(&mut self, batch: &[Outgoing]) -> io::Result<()> {
        if self.connection.as_ref().is_none_or(|open| *open.gone.borrow()) {
            self.forget();
            if self.broken {
                // First what the last connection may have lost.
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            self.connection = Some(tokio::time::timeout(self.timeout, Self::connect(&self.settings)).await??);
        }
        let Some(open) = &mut self.connection else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut bytes = Vec::new();
        for record in batch {
            let line = frame(self.settings.facility, &self.settings.app_name, &record.record, &record.encoded);
            bytes.extend_from_slice(line.len().to_string().as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(&line);
        }
        open.write.write_all(&bytes).await?;
        open.write.flush().await
    }
}

impl Target for SyslogSink {
    fn deliver<'a>(&'a mut self, batch: &'a [Outgoing]) -> Delivery<'a> {
        Box::pin(async move {
            let last = batch.last().map_or(0, |record| record.sequence);
            // Noted before it is sent: if this is called off half-way, part of it may be out.
            self.young.push_back((last, Instant::now()));
            match self.send(batch).await {
                Ok(()) => {
                    if let Some((_, at)) = self.young.back_mut() {
                        *at = Instant::now();
                    }
                    Ok(Taken::all())
                }
                Err(fault) => {
                    self.forget();
                    Err(Fault::new(&fault.to_string()))
                }
            }
        })
    }

    fn settled(&mut self) -> Settled {
        if self.connection.as_ref().is_some_and(|open| *open.gone.borrow()) {
            self.forget();
        }
        if std::mem::take(&mut self.broken) {
            return Settled::Broken(self.certain);
        }
        while let Some((last, at)) = self.young.front().copied()
            && at.elapsed() >= self.settings.settle
        {
            self.certain = last;
            self.young.pop_front();
        }
        Settled::UpTo(self.certain)
    }
}

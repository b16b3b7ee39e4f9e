//! Syslog over TLS (RFC 5425) or TCP (RFC 6587), one message a record, each with its length before it.
//!
//! Nobody acknowledges a syslog message. A record counts as certain once the connection that it went over has lived for
//! `settle` after it; when a connection breaks, what is younger is sent again over the next. At the end the connection is
//! closed in order: a receiver that answers with an end of its own, and no reset, has read everything.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

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
    /// What became of the other end.
    other_end: watch::Receiver<OtherEnd>,
    /// Listens to it, and ends with the connection: a receiver that hangs must not hold sockets of ours.
    _listening: AbortOnDropHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OtherEnd {
    Open,
    /// It has read to our end and closed, in order.
    Closed,
    /// It broke, or said something that no receiver says.
    Broken,
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
        let (tell, other_end) = watch::channel(OtherEnd::Open);
        // A receiver says nothing. Its end, or a word of its own, ends the connection.
        let listening = tokio::spawn(async move {
            let ended = match read.read(&mut [0_u8]).await {
                Ok(0) => OtherEnd::Closed,
                Ok(_) | Err(_) => OtherEnd::Broken,
            };
            let _ = tell.send(ended);
        });
        Ok(Connection { write, other_end, _listening: AbortOnDropHandle::new(listening) })
    }

    /// Gives the connection up, if there still is one, and what was young on it.
    fn forget(&mut self) {
        self.connection = None;
        if !self.young.is_empty() {
            self.young.clear();
            self.broken = true;
        }
    }

    async fn send(&mut self, batch: &[Outgoing]) -> io::Result<()> {
        // Out of our hands until all is written: whoever calls this off half-way takes the connection with it, so that no
        // message is ever begun in the middle of another.
        let mut open = match self.connection.take() {
            Some(open) if open.is_open() => open,
            Some(_) | None => {
                self.forget();
                if self.broken {
                    // First what the last connection may have lost.
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                tokio::time::timeout(self.timeout, Self::connect(&self.settings)).await??
            }
        };
        let mut bytes = Vec::new();
        for record in batch {
            let line = frame(self.settings.facility, &self.settings.app_name, &record.record, &record.encoded);
            bytes.extend_from_slice(line.len().to_string().as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(&line);
        }
        // Noted before it is sent: part of it may be out when this is called off.
        let last = batch.last().map_or(0, |record| record.sequence);
        self.young.push_back((last, Instant::now()));
        open.write.write_all(&bytes).await?;
        open.write.flush().await?;
        if let Some((_, at)) = self.young.back_mut() {
            *at = Instant::now();
        }
        self.connection = Some(open);
        Ok(())
    }

    /// Says that this is the end, and waits until the receiver has said so too.
    async fn part(&mut self) {
        let Some(mut open) = self.connection.take() else { return };
        let said = open.write.shutdown().await.is_ok();
        // A receiver that goes with something unread resets the connection instead (RFC 1122, 4.2.2.13).
        let closed = said
            && open.other_end.wait_for(|end| *end != OtherEnd::Open).await.is_ok_and(|end| *end == OtherEnd::Closed);
        if let Some((last, _)) = self.young.back().filter(|_| closed) {
            self.certain = *last;
            self.young.clear();
        }
        self.forget();
    }
}

impl Connection {
    fn is_open(&self) -> bool {
        *self.other_end.borrow() == OtherEnd::Open
    }
}

impl Target for SyslogSink {
    fn deliver<'a>(&'a mut self, batch: &'a [Outgoing]) -> Delivery<'a> {
        Box::pin(async move {
            match self.send(batch).await {
                Ok(()) => Ok(Taken::all()),
                Err(fault) => {
                    self.forget();
                    Err(Fault::new(&fault.to_string()))
                }
            }
        })
    }

    fn settled(&mut self) -> Settled {
        if !self.connection.as_ref().is_some_and(Connection::is_open) {
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

    fn finish(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.part())
    }
}

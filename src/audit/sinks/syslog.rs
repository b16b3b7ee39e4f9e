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
use tokio_util::task::AbortOnDropHandle;

use super::target::{Delivery, Fault, Outgoing, Settled, Taken, Target};
use super::tls::{TlsProblem, client};
use crate::audit::encode::syslog::frame;
use crate::clock::{SharedClock, SystemClock};
use crate::config::SyslogTarget;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) struct SyslogSink {
    settings: SyslogTarget,
    /// A connection lives by the machine's own time, whatever clock the rest goes by.
    clock: SharedClock,
    timeout: Duration,
    connection: Option<Connection>,
    /// What was sent and is not certain yet: the last record of each batch, and when.
    young: VecDeque<(u64, Duration)>,
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
        Ok(Self {
            settings,
            clock: SystemClock::shared(),
            timeout,
            connection: None,
            young: VecDeque::new(),
            certain: 0,
            broken: false,
        })
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
                // rsyslog says no goodbye in TLS. A forger could end it so; he could swallow messages as well, and nobody
                // would be told, as long as syslog acknowledges nothing.
                Err(end) if end.kind() == io::ErrorKind::UnexpectedEof => OtherEnd::Closed,
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
        self.young.push_back((last, self.clock.monotonic()));
        open.write.write_all(&bytes).await?;
        open.write.flush().await?;
        if let Some((_, at)) = self.young.back_mut() {
            *at = self.clock.monotonic();
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
            && self.clock.monotonic().saturating_sub(at) >= self.settings.settle
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn batch(numbers: std::ops::Range<u64>, bytes: usize) -> Vec<Outgoing> {
        let record = |sequence| Outgoing { sequence, encoded: vec![b'x'; bytes], ..Outgoing::default() };
        numbers.map(record).collect()
    }

    async fn receiver() -> (TcpListener, SyslogSink) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = SyslogTarget {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
            tls: None,
            facility: 10,
            app_name: "gatepost".to_owned(),
            settle: Duration::from_secs(3600),
        };
        (listener, SyslogSink::new(&settings, Duration::from_secs(10)).unwrap())
    }

    #[tokio::test]
    async fn a_receiver_that_hangs_in_a_message_gets_the_whole_of_it_over_a_connection_of_its_own() {
        let (listener, mut sink) = receiver().await;
        for round in 0..3 {
            // More than any socket holds.
            let large = batch(1..65, 1 << 20);
            let called_off = tokio::time::timeout(Duration::from_millis(200), sink.deliver(&large)).await;
            assert!(called_off.is_err(), "round {round}: nobody reads");
            let (mut held, _) = listener.accept().await.unwrap();
            assert_eq!(sink.settled(), Settled::Broken(0), "round {round}: all of it again");

            sink.deliver(&batch(1..2, 3)).await.unwrap();
            let (mut fresh, _) = listener.accept().await.unwrap();
            let mut begun = [0_u8; 7];
            fresh.read_exact(&mut begun).await.unwrap();
            let text = std::str::from_utf8(&begun).unwrap();
            let (length, rest) = text.split_once(' ').unwrap();
            assert!(length.parse::<u64>().is_ok() && rest.starts_with('<'), "round {round}: {text}");
            // The old connection is closed, not kept until the receiver thinks better of it.
            let mut rest = Vec::new();
            let ended = tokio::time::timeout(Duration::from_secs(10), held.read_to_end(&mut rest)).await;
            assert!(ended.is_ok() && rest.len() < 64 << 20, "round {round}: {} bytes", rest.len());
            drop(fresh);
            while sink.settled() != Settled::Broken(0) {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn at_the_end_a_receiver_has_everything_if_it_closes_in_order_and_nothing_is_certain_if_it_does_not() {
        for (reads_on, expected) in [(true, Settled::UpTo(9)), (false, Settled::Broken(0))] {
            let (listener, mut sink) = receiver().await;
            sink.deliver(&batch(1..10, 100)).await.unwrap();
            assert_eq!(sink.settled(), Settled::UpTo(0), "too young");
            let (mut connection, _) = listener.accept().await.unwrap();
            let reading = tokio::spawn(async move {
                connection.read_exact(&mut [0_u8; 10]).await.unwrap();
                if reads_on {
                    connection.read_to_end(&mut Vec::new()).await.unwrap();
                }
            });
            sink.finish().await;
            reading.await.unwrap();
            assert_eq!(sink.settled(), expected, "reads on: {reads_on}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_breaks_while_nothing_is_sent_is_noticed() {
        for last_words in [&b""[..], b"go away"] {
            let (listener, mut sink) = receiver().await;
            sink.deliver(&batch(5..8, 10)).await.unwrap();
            let (mut connection, _) = listener.accept().await.unwrap();
            assert_eq!(sink.settled(), Settled::UpTo(0));
            connection.write_all(last_words).await.unwrap();
            drop(connection);
            while sink.settled() != Settled::Broken(0) {
                tokio::task::yield_now().await;
            }
        }
    }
}

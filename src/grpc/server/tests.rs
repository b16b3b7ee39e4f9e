use std::future::Future;
use std::io;
use std::time::SystemTime;

use axum::routing::get;
use axum::{Extension, Router};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::SendRequest;
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::ListenerTls;
use crate::tls::fixture::{Authority, Leaf, client, client_of, clock, leaf, living, names, noon, write_server};

const ORDERS: &str = "spiffe://corp.test/orders";
const HOUR: Duration = Duration::from_secs(3600);

/// Everything that was told, to be waited for.
struct Heard(watch::Sender<Told>);

#[derive(Debug, Default, Clone)]
struct Told {
    refused: Vec<&'static str>,
    over: Vec<&'static str>,
    open: usize,
}

impl ConnectionEvents for Heard {
    fn handshake_refused(&self, _: SocketAddr, reason: &'static str) {
        self.0.send_modify(|told| told.refused.push(reason));
    }

    fn connections(&self, open: usize) {
        self.0.send_modify(|told| told.open = open);
    }

    fn over_cap(&self, _: SocketAddr, limit: &'static str) {
        self.0.send_modify(|told| told.over.push(limit));
    }
}

impl Heard {
    async fn until(&self, wanted: impl Fn(&Told) -> bool) -> Told {
        soon(self.0.subscribe().wait_for(|told| wanted(told))).await.unwrap().clone()
    }
}

/// Only for when what is awaited never comes.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it happens")
}

/// A door on a free port, its authority, and a router with a quick and a slow answer.
struct Open {
    address: SocketAddr,
    corp: Authority,
    identity: Arc<ServerIdentity>,
    files: ListenerTls,
    heard: Arc<Heard>,
    drain: CancellationToken,
    serving: JoinHandle<DrainReport>,
    /// One word for each slow call that began.
    begun: mpsc::UnboundedReceiver<()>,
    /// Each permit lets one slow call finish.
    finish: Arc<Semaphore>,
    _folder: TempDir,
}

async fn open(change: impl FnOnce(&mut Limits)) -> Open {
    open_for(change, Duration::from_secs(20)).await
}

async fn open_for(change: impl FnOnce(&mut Limits), drain_timeout: Duration) -> Open {
    let corp = Authority::new("corp");
    let folder = tempfile::tempdir().unwrap();
    let files = write_server(folder.path(), &corp.issue(&leaf(&[], &["gatepost.test"])), &corp.pem());
    let identity = ServerIdentity::load(&files, clock()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::new(Heard(watch::Sender::default()));
    let drain = CancellationToken::new();
    let (begin, begun) = mpsc::unbounded_channel();
    let finish = Arc::new(Semaphore::new(0));
    let may_finish = Arc::clone(&finish);
    let app = Router::new()
        .route(
            "/who",
            get(|Extension(peer): Extension<Arc<Peer>>| async move {
                peer.name(noon()).map_or_else(|error| error.reason().to_owned(), ToString::to_string)
            }),
        )
        .route(
            "/slow",
            get(move || async move {
                let _ = begin.send(());
                may_finish.acquire().await.unwrap().forget();
                "done"
            }),
        );
    let mut limits = Limits::default();
    change(&mut limits);
    let door = Door {
        listener,
        identity: Arc::clone(&identity),
        names: names(false),
        app,
        limits,
        clock: clock(),
        events: Arc::clone(&heard) as Arc<dyn ConnectionEvents>,
        drain_timeout,
        shards: None,
    };
    let serving = tokio::spawn(door.serve(drain.clone()));
    Open { address, corp, identity, files, heard, drain, serving, begun, finish, _folder: folder }
}

/// One end of a connection that shook hands, and its driver, which ends with it.
struct Line {
    send: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
    server_leaf: CertificateDer<'static>,
    resumed: bool,
}

impl Open {
    fn caller(&self, uri: &str) -> Arc<rustls::ClientConfig> {
        Arc::new(client(&self.corp, Some(&self.corp.issue(&leaf(&[uri], &[])))))
    }

    async fn dial(&self, config: Arc<rustls::ClientConfig>) -> io::Result<Line> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        dial_over(stream, config).await
    }

    /// Whether a client with this configuration gets an answer.
    async fn answers(&self, config: Arc<rustls::ClientConfig>) -> bool {
        match self.dial(config).await {
            Ok(mut line) => line.ask("/who").await.is_some(),
            Err(_) => false,
        }
    }
}

async fn dial_over<IO>(stream: IO, config: Arc<rustls::ClientConfig>) -> io::Result<Line>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let name = ServerName::try_from("gatepost.test").unwrap();
    let stream = soon(TlsConnector::from(config).connect(name, stream)).await?;
    let tls = stream.get_ref().1;
    let server_leaf = tls.peer_certificates().unwrap()[0].clone().into_owned();
    let resumed = tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    let (send, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(Line { send, driver, server_leaf, resumed })
}

impl Line {
    /// The body of a good answer.
    async fn ask(&mut self, path: &str) -> Option<String> {
        soon(self.begin(path)).await
    }

    fn begin(&mut self, path: &str) -> impl Future<Output = Option<String>> + use<> {
        let request = Request::get(format!("https://gatepost.test{path}")).body(Empty::new()).unwrap();
        let answer = self.send.send_request(request);
        async move {
            let answer = answer.await.ok()?;
            assert!(answer.status().is_success(), "{}", answer.status());
            let body = answer.into_body().collect().await.ok()?;
            Some(String::from_utf8(body.to_bytes().to_vec()).unwrap())
        }
    }
}

#[tokio::test]
async fn whoever_can_not_prove_a_name_is_refused_with_a_reason_while_others_are_served() {
    let house = open(|_| {}).await;
    let mut good = house.dial(house.caller(ORDERS)).await.unwrap();
    assert_eq!(good.ask("/who").await.as_deref(), Some(ORDERS));

    let other = Authority::new("other");
    let of = |leaf: &Leaf| client(&house.corp, Some(leaf));
    let aged = |from: SystemTime, until| house.corp.issue(&living(leaf(&[ORDERS], &[]), from, until));
    let mut server_only = leaf(&[ORDERS], &[]);
    server_only.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let mut http1 = client(&house.corp, Some(&house.corp.issue(&leaf(&[ORDERS], &[]))));
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    let old = client_of(&house.corp, Some(&house.corp.issue(&leaf(&[ORDERS], &[]))), &[&rustls::version::TLS12]);

    let table = [
        (client(&house.corp, None), "NO_CERTIFICATE", "no certificate"),
        (of(&other.issue(&leaf(&[ORDERS], &[]))), "UNKNOWN_ISSUER", "a foreign certificate with a good name"),
        (of(&aged(noon() - 2 * HOUR, noon() - HOUR)), "EXPIRED", "expired"),
        (of(&aged(noon() + HOUR, noon() + 2 * HOUR)), "NOT_YET_VALID", "not valid yet"),
        (of(&house.corp.issue(&server_only)), "WRONG_PURPOSE", "a server's certificate"),
        (old, "VERSION", "TLS 1.2"),
        (http1, "ALPN", "HTTP/1.1"),
        (client(&other, Some(&house.corp.issue(&leaf(&[ORDERS], &[])))), "CLIENT_ALERT", "does not believe us"),
    ];
    for (count, (config, expected, why)) in table.into_iter().enumerate() {
        assert!(!house.answers(Arc::new(config)).await, "{why}");
        let told = house.heard.until(|told| told.refused.len() > count).await;
        assert_eq!(told.refused[count], expected, "{why}");
    }

    // A name that is none of ours shakes hands: its calls are refused, and recorded, further in.
    let nameless = client(&house.corp, Some(&house.corp.issue(&leaf(&[], &[]))));
    let mut line = house.dial(Arc::new(nameless)).await.unwrap();
    assert_eq!(line.ask("/who").await.as_deref(), Some("NO_SPIFFE_ID"));
    assert_eq!(good.ask("/who").await.as_deref(), Some(ORDERS), "the first one never noticed");
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_newcomers_and_drops_nobody() {
    let house = open(|_| {}).await;
    let caller = house.caller(ORDERS);
    let mut first = house.dial(Arc::clone(&caller)).await.unwrap();
    assert!(first.ask("/who").await.is_some());

    let renewed = house.corp.issue(&leaf(&[], &["gatepost.test"]));
    std::fs::write(&house.files.certificate, &renewed.certificate_pem).unwrap();
    std::fs::write(&house.files.private_key, &renewed.key_pem).unwrap();
    assert!(house.identity.reload().unwrap());
    assert_ne!(first.server_leaf, renewed.certificate);
    assert_eq!(house.dial(Arc::clone(&caller)).await.unwrap().server_leaf, renewed.certificate);
    assert!(first.ask("/who").await.is_some(), "the open connection lives on");

    std::fs::write(&house.files.private_key, "not a key").unwrap();
    assert!(house.identity.reload().is_err());
    let mut later = house.dial(caller).await.unwrap();
    assert_eq!(later.server_leaf, renewed.certificate, "a broken key leaves the last good pair");
    assert!(later.ask("/who").await.is_some() && first.ask("/who").await.is_some());
}

/// RFC 8446 section 2.2: a resumed session does not show its certificate.
#[tokio::test]
async fn no_connection_is_resumed() {
    let house = open(|_| {}).await;
    // One configuration for all, so that its session store would hold a ticket if one had been given.
    let caller = house.caller(ORDERS);
    for _ in 0..5 {
        let mut line = house.dial(Arc::clone(&caller)).await.unwrap();
        assert!(line.ask("/who").await.is_some());
        assert!(!line.resumed);
    }
}

#[tokio::test]
async fn there_are_so_many_connections_and_no_more() {
    let house = open(|limits| limits.connections = 3).await;
    let mut lines = Vec::new();
    for caller in ["spiffe://corp.test/a", "spiffe://corp.test/b", "spiffe://corp.test/c"] {
        let mut line = house.dial(house.caller(caller)).await.unwrap();
        assert!(line.ask("/who").await.is_some(), "{caller}: up to the limit");
        lines.push(line);
    }
    assert!(!house.answers(house.caller("spiffe://corp.test/d")).await, "one past it");
    assert_eq!(house.heard.until(|told| !told.over.is_empty()).await.over, ["CONNECTIONS"]);
    assert!(lines[0].ask("/who").await.is_some(), "nobody else suffers");

    drop(lines.pop());
    house.heard.until(|told| told.open == 2).await;
    assert!(house.answers(house.caller("spiffe://corp.test/d")).await, "a free seat is a free seat");
}

#[tokio::test]
async fn one_caller_has_so_many_connections_and_others_have_theirs() {
    let house = open(|limits| limits.connections_per_caller = 2).await;
    let nameless = Arc::new(client(&house.corp, Some(&house.corp.issue(&leaf(&[], &[])))));
    for (count, caller) in [house.caller(ORDERS), nameless].into_iter().enumerate() {
        let mut first = house.dial(Arc::clone(&caller)).await.unwrap();
        let mut second = house.dial(Arc::clone(&caller)).await.unwrap();
        assert!(first.ask("/who").await.is_some() && second.ask("/who").await.is_some(), "up to the limit");
        assert!(!house.answers(Arc::clone(&caller)).await, "one past it");
        let told = house.heard.until(|told| told.over.len() > count).await;
        assert_eq!(told.over[count], "CONNECTIONS_PER_CALLER");
        assert!(house.answers(house.caller("spiffe://corp.test/billing")).await, "another caller");
        drop(first);
        house.heard.until(|told| told.open == 1).await;
        assert!(house.answers(caller).await, "a free seat is a free seat");
        drop(second);
        house.heard.until(|told| told.open == 0).await;
    }
}

#[tokio::test]
async fn a_drain_lets_calls_finish_and_newcomers_wait_outside() {
    let mut house = open(|_| {}).await;
    let caller = house.caller(ORDERS);
    let mut busy = house.dial(Arc::clone(&caller)).await.unwrap();
    let idle = house.dial(Arc::clone(&caller)).await.unwrap();
    let slow = busy.begin("/slow");
    let slow = tokio::spawn(slow);
    soon(house.begun.recv()).await.unwrap();

    house.drain.cancel();
    soon(idle.driver).await.unwrap();
    assert!(!house.answers(caller).await, "the door is shut");
    assert!(!house.serving.is_finished(), "a call is under way");
    house.finish.add_permits(1);
    assert_eq!(soon(slow).await.unwrap().as_deref(), Some("done"));
    assert_eq!(soon(house.serving).await.unwrap(), DrainReport { cut_off: 0 });
}

#[tokio::test]
async fn a_drain_has_an_end_and_counts_what_it_cut_off() {
    let mut house = open_for(|_| {}, Duration::from_millis(100)).await;
    let mut busy = house.dial(house.caller(ORDERS)).await.unwrap();
    let slow = [busy.begin("/slow"), busy.begin("/slow")].map(tokio::spawn);
    for _ in &slow {
        soon(house.begun.recv()).await.unwrap();
    }
    house.drain.cancel();
    assert_eq!(soon(house.serving).await.unwrap(), DrainReport { cut_off: 2 });
    for call in slow {
        assert_eq!(soon(call).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_thousand_connections_of_rubbish_leave_it_serving() {
    let house = open(|limits| limits.handshake_timeout = Duration::from_secs(20)).await;
    let mut good = house.dial(house.caller(ORDERS)).await.unwrap();
    let hello = {
        let name = ServerName::try_from("gatepost.test").unwrap();
        let mut connection = rustls::ClientConnection::new(house.caller(ORDERS), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    };
    // A small generator of our own: the same rubbish every time.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..20 {
        let rubbish = (0..50).map(|kind| match kind % 5 {
            0 => Vec::new(),
            1 => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            2 => (0..random() % 600).map(|_| random() as u8).collect(),
            3 => hello[..(random() as usize) % hello.len()].to_vec(),
            _ => {
                let mut bent = hello.clone();
                let at = (random() as usize) % bent.len();
                bent[at] ^= 1 << (random() % 8);
                bent
            }
        });
        let mut sockets = Vec::new();
        for bytes in rubbish {
            let mut socket = TcpStream::connect(house.address).await.unwrap();
            let _ = socket.write_all(&bytes).await;
            let _ = socket.shutdown().await;
            sockets.push(socket);
        }
        for mut socket in sockets {
            let _ = soon(socket.read_to_end(&mut Vec::new())).await;
        }
        assert_eq!(good.ask("/who").await.as_deref(), Some(ORDERS), "round {round}");
    }
    let told = house.heard.until(|told| told.refused.len() == 1000 && told.open == 1).await;
    for reason in ["CLOSED", "PROTOCOL"] {
        assert!(told.refused.contains(&reason), "{reason} in {:?}", told.refused);
    }
    assert!(told.over.is_empty());
    assert!(house.answers(house.caller(ORDERS)).await);
}

/// Writes one byte at a time, each in a segment of its own.
struct ByteByByte(TcpStream);

impl AsyncRead for ByteByByte {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for ByteByByte {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, &bytes[..1.min(bytes.len())])
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[tokio::test]
async fn a_greeting_may_come_byte_by_byte() {
    let house = open(|_| {}).await;
    let stream = TcpStream::connect(house.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut line = dial_over(ByteByByte(stream), house.caller(ORDERS)).await.unwrap();
    assert_eq!(line.ask("/who").await.as_deref(), Some(ORDERS));
}

#[tokio::test]
async fn silent_connections_are_let_go_and_keep_nobody_out() {
    let house = open(|limits| {
        limits.handshake_timeout = Duration::from_secs(4);
        limits.handshakes = 1;
    })
    .await;
    let mut silent = TcpStream::connect(house.address).await.unwrap();
    // This one greets, takes the only place, and then says no more.
    let mut stalled = TcpStream::connect(house.address).await.unwrap();
    let name = ServerName::try_from("gatepost.test").unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(house.caller(ORDERS), name).unwrap().write_tls(&mut hello).unwrap();
    stalled.write_all(&hello).await.unwrap();
    stalled.read_u8().await.unwrap();

    assert!(house.answers(house.caller(ORDERS)).await, "the place is free again before the stalled one is let go");
    let told = house.heard.until(|told| told.refused.len() == 2).await;
    assert_eq!(told.refused, ["TIMEOUT", "TIMEOUT"]);
    assert_eq!(soon(silent.read(&mut [0; 1])).await.unwrap_or(0), 0, "closed");
}

#[tokio::test]
async fn an_idle_connection_is_asked_to_go() {
    let house = open(|limits| limits.idle_timeout = Duration::from_millis(80)).await;
    let line = house.dial(house.caller(ORDERS)).await.unwrap();
    soon(line.driver).await.unwrap();
    house.heard.until(|told| told.open == 0).await;
}

#[tokio::test]
async fn an_old_connection_is_asked_to_go_and_its_calls_finish() {
    let mut house = open(|limits| limits.connection_age = Duration::from_millis(500)).await;
    let mut line = house.dial(house.caller(ORDERS)).await.unwrap();
    let slow = tokio::spawn(line.begin("/slow"));
    soon(house.begun.recv()).await.unwrap();
    // After GOAWAY no further call gets through.
    while line.ask("/who").await.is_some() {}
    house.finish.add_permits(1);
    assert_eq!(soon(slow).await.unwrap().as_deref(), Some("done"));
    soon(line.driver).await.unwrap();
}

#[tokio::test]
async fn an_old_connection_whose_calls_do_not_end_is_cut_off_after_the_grace() {
    let mut house = open(|limits| {
        limits.connection_age = Duration::from_millis(100);
        limits.connection_age_grace = Duration::from_millis(200);
    })
    .await;
    let mut line = house.dial(house.caller(ORDERS)).await.unwrap();
    let slow = tokio::spawn(line.begin("/slow"));
    soon(house.begun.recv()).await.unwrap();
    assert_eq!(soon(slow).await.unwrap(), None, "nobody let it finish");
    house.heard.until(|told| told.open == 0).await;
    assert!(house.answers(house.caller(ORDERS)).await, "the next connection is welcome");
}

/// As a listener's queue is when the machine is busy: connections that the kernel took and nobody has looked at.
#[tokio::test]
async fn whoever_knocked_before_the_drain_is_asked_to_go_and_not_cut_off() {
    let house = open(|_| {}).await;
    let caller = house.caller(ORDERS);
    // Nothing runs between these but the kernel: on this runtime the accept loop has no turn before the next await.
    let knocked: Vec<_> = (0..5).map(|_| std::net::TcpStream::connect(house.address).unwrap()).collect();
    house.drain.cancel();
    for stream in knocked {
        stream.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(stream).unwrap();
        let line = dial_over(stream, Arc::clone(&caller)).await.expect("the handshake is finished");
        soon(line.driver).await.unwrap();
    }
    assert!(!house.answers(caller).await, "the door is shut");
    assert_eq!(soon(house.serving).await.unwrap(), DrainReport { cut_off: 0 });
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_client_that_is_gone_without_a_word() {
    let house = open_for(|_| {}, HOUR).await;
    let stream = TcpStream::connect(house.address).await.unwrap();
    let name = ServerName::try_from("gatepost.test").unwrap();
    let mut silent = TlsConnector::from(house.caller(ORDERS)).connect(name, stream).await.unwrap();
    // The preface and empty settings of RFC 9113 section 3.4; from then on nothing, not even an answer to a ping.
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    soon(silent.read_u8()).await.unwrap();
    house.drain.cancel();
    assert_eq!(soon(house.serving).await.unwrap(), DrainReport { cut_off: 0 });
}

/// The kernel resets a socket that is closed over unread bytes, and an answer that is still on its way is lost with it.
#[tokio::test]
async fn a_connection_is_not_reset_under_a_client_that_still_writes() {
    let house = open_for(|_| {}, HOUR).await;
    let stream = TcpStream::connect(house.address).await.unwrap();
    let name = ServerName::try_from("gatepost.test").unwrap();
    let mut client = TlsConnector::from(house.caller(ORDERS)).connect(name, stream).await.unwrap();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    house.heard.until(|told| told.open == 1).await;
    house.drain.cancel();
    // RFC 9113 sections 4.1 and 6.7: only once its ping is answered does the server know that GOAWAY has arrived.
    let (mut head, mut answered) = ([0; 9], false);
    while soon(client.read_exact(&mut head)).await.is_ok() {
        let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        client.read_exact(&mut payload).await.unwrap();
        if head[3] == 6 && head[4] == 0 {
            client.write_all(&[&[0, 0, 8, 6, 1, 0, 0, 0, 0], payload.as_slice()].concat()).await.unwrap();
            answered = true;
        }
    }
    assert!(answered, "the server has said goodbye and written its last");
    for _ in 0..20 {
        client.write_all(b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01").await.expect("a window update finds an open socket");
        client.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    drop(client);
    assert_eq!(soon(house.serving).await.unwrap(), DrainReport { cut_off: 0 });
}

#[tokio::test]
async fn connections_come_again_when_an_authority_is_believed_no_longer() {
    let mut house = open(|_| {}).await;
    let mut line = house.dial(house.caller(ORDERS)).await.unwrap();
    let slow = tokio::spawn(line.begin("/slow"));
    soon(house.begun.recv()).await.unwrap();

    std::fs::write(&house.files.client_ca, Authority::new("other").pem()).unwrap();
    assert!(house.identity.reload().unwrap());
    while line.ask("/who").await.is_some() {}
    house.finish.add_permits(1);
    assert_eq!(soon(slow).await.unwrap().as_deref(), Some("done"), "what was under way finishes");
    soon(line.driver).await.unwrap();
    assert!(!house.answers(house.caller(ORDERS)).await, "and it does not come in again");
}

#[tokio::test]
async fn a_connection_has_so_many_calls_at_once() {
    let mut house = open(|limits| limits.streams_per_connection = 2).await;
    let mut line = house.dial(house.caller(ORDERS)).await.unwrap();
    // The first answer proves that the client has read our settings.
    assert!(line.ask("/who").await.is_some());
    let calls: Vec<_> = (0..3).map(|_| tokio::spawn(line.begin("/slow"))).collect();
    soon(house.begun.recv()).await.unwrap();
    soon(house.begun.recv()).await.unwrap();
    assert!(house.begun.try_recv().is_err(), "the third waits");
    house.finish.add_permits(1);
    soon(house.begun.recv()).await.expect("the third begins");
    house.finish.add_permits(2);
    for call in calls {
        assert_eq!(soon(call).await.unwrap().as_deref(), Some("done"));
    }
}

/// RFC 9113 section 6.5.2 counts name, value and 32 bytes for each field.
#[tokio::test]
async fn headers_past_their_limit_are_refused_and_the_connection_lives_on() {
    let house = open(|limits| limits.header_bytes = 1024).await;
    let mut line = house.dial(house.caller(ORDERS)).await.unwrap();
    let request = |length: usize| {
        let request = Request::get("https://gatepost.test/who").header("x", "v".repeat(length));
        request.body(Empty::<Bytes>::new()).unwrap()
    };
    // `:method GET`, `:scheme https`, `:path /who`, `:authority gatepost.test`, and `x`.
    let others: usize = [(7, 3), (7, 5), (5, 4), (10, 13), (1, 0)].iter().map(|(name, value)| name + value + 32).sum();
    for (length, expected) in [(1024 - others, Some(200)), (1024 - others + 1, None), (16, Some(200))] {
        let status = soon(line.send.send_request(request(length))).await.ok().map(|answer| answer.status().as_u16());
        match expected {
            Some(expected) => assert_eq!(status, Some(expected), "{length}"),
            None => assert!(status.is_none_or(|status| status == 431), "{length}: {status:?}"),
        }
    }
}

#[test]
fn connections_of_one_age_leave_at_different_times() {
    let age = Duration::from_secs(600);
    let ages: Vec<_> = (1..=200).map(|number| jittered(age, 10, number)).collect();
    assert!(ages.iter().all(|age| (540..=660).contains(&age.as_secs())), "{ages:?}");
    let early = ages.iter().filter(|jittered| **jittered < age).count();
    assert!((95..=105).contains(&early), "about half are early: {early}");
    // However few came together: each tenth of the two minutes sees its share of them leave.
    for came in [10_u64, 50, 200] {
        let mut tenths = [0_u64; 10];
        for number in 1..=came {
            let late = jittered(age, 10, number).saturating_sub(age * 9 / 10);
            tenths[usize::try_from(late.as_millis() * 10 / 120_001).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|left| *left <= came / 10 + 2), "{came}: {tenths:?}");
    }
    assert_eq!(jittered(age, 0, 7), age, "without jitter");
    assert!((1..=200).map(|number| jittered(age, 50, number)).all(|age| (300..=900).contains(&age.as_secs())));
    assert_eq!(jittered(Duration::MAX, 10, 7), jittered(Duration::MAX, 10, 7), "no overflow");
}

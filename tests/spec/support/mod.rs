//! Starts the real server in a world of its own.

pub mod agent;
pub mod authority;
pub mod balancer;
pub mod ground;
pub mod key_server;
pub mod load;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gatepost::app;
use gatepost::cli::demo::world::{ClientFiles, World, spiffe_id};
use gatepost::client::{Answer, Ask, AskError, Client};
use gatepost::clock::{ManualClock, SharedClock};
use gatepost::config::load::{Source, load};
use gatepost::pdp::Pdp;
use gatepost::proto::v1::decision_service_client::DecisionServiceClient;
use gatepost::telemetry::metrics::Metrics;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

pub mod ocsf;
pub mod operators;
pub mod process;

/// A running server, with the keys to its world.
pub struct Gatepost {
    pub world: World,
    pub clock: Arc<ManualClock>,
    pub address: SocketAddr,
    pub ops_address: SocketAddr,
    pub admin_address: Option<SocketAddr>,
    pub pdp: Arc<Pdp>,
    pub drain: CancellationToken,
    pub running: Option<JoinHandle<Result<app::Stopped, gatepost::audit::AuditError>>>,
    _folder: tempfile::TempDir,
}

/// Long enough for anything that has to happen, on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

impl Gatepost {
    /// The worked example, as the demo runs it.
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// The same with other settings.
    pub async fn start_with(change: impl FnOnce(&mut Value)) -> Self {
        Self::start_over(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"), change).await
    }

    /// Over a copy of another bundle.
    pub async fn start_over(policies: &Path, change: impl FnOnce(&mut Value)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::create(folder.path()).unwrap();
        copy_bundle(policies, &folder.path().join("policies"));
        let mut settings = world.configuration(Path::new("policies"));
        if !policies.join("shop.cedarschema").exists() {
            // Only the worked example has tenants.
            settings["policies"].as_object_mut().unwrap().remove("tenant_type");
            for caller in settings["callers"].as_array_mut().unwrap() {
                caller.as_object_mut().unwrap().remove("tenants");
            }
        }
        // A busy machine must not turn a decision into a missed deadline, nor into one too many.
        settings["limits"] = json!({ "default_deadline": "20s", "max_deadline": "20s", "overload_target": "10s" });
        change(&mut settings);
        world.write("gatepost.yaml", &settings.to_string()).unwrap();
        let config =
            load(&Source::file(folder.path().join("gatepost.yaml"))).unwrap_or_else(|report| panic!("{report}"));
        #[expect(clippy::disallowed_methods, reason = "certificates are made for the real time")]
        let clock = ManualClock::at(SystemTime::now());
        let shared: SharedClock = clock.clone();
        let (metrics, registry) = Metrics::new(None).unwrap();
        let server = app::build(config, shared, metrics, registry).await.unwrap();
        let (address, ops_address, pdp) = (server.address, server.ops_address, Arc::clone(&server.pdp));
        let admin_address = server.admin_address;
        let readiness = Arc::clone(&server.readiness);
        let drain = CancellationToken::new();
        let running = tokio::spawn(server.run(drain.clone()));
        eventually("the server is ready", || readiness.unmet().is_empty()).await;
        Self { world, clock, address, ops_address, admin_address, pdp, drain, running: Some(running), _folder: folder }
    }

    /// A file of the world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.world.folder().join(name)
    }

    /// Certificate files of one of the enrolled services, or of any other name.
    pub fn client_files(&self, service: &str) -> ClientFiles {
        self.world.client(service, &spiffe_id(service)).unwrap()
    }

    /// `https://..`, for clients.
    pub fn grpc_address(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The client library as `service`.
    pub fn client(&self, service: &str) -> Client {
        let files = self.client_files(service);
        Client::builder(self.grpc_address())
            .server_name("localhost")
            .ca(files.ca)
            .identity(files.certificate, files.private_key)
            .deadline(Duration::from_secs(10))
            .understands(["notify-account-owner"])
            .build()
            .unwrap()
    }

    /// A bare gRPC client as `service`, for requests that the library would not make.
    pub async fn raw(&self, service: &str) -> DecisionServiceClient<Channel> {
        let files = self.client_files(service);
        DecisionServiceClient::new(self.channel(&files).await.unwrap())
    }

    /// A connection with these files.
    pub async fn channel(&self, files: &ClientFiles) -> Result<Channel, tonic::transport::Error> {
        channel_to(self.address, files).await
    }

    /// A token of `subject` of tenant acme with these roles, good for five minutes.
    pub fn token(&self, subject: &str, roles: &[&str]) -> String {
        self.token_with(subject, &json!({ "tenant": "acme", "roles": roles }), minutes(5))
    }

    /// A token with any claims.
    pub fn token_with(&self, subject: &str, claims: &Value, lifetime: Duration) -> String {
        use gatepost::clock::Clock as _;
        self.world.token(subject, claims, self.clock.now(), lifetime).unwrap()
    }

    /// Asks as the storefront.
    pub async fn ask(&self, ask: Ask) -> Result<Answer, AskError> {
        self.client("storefront").check(ask).await
    }

    /// Every record so far, a line each, as it is in the spool.
    pub fn trail(&self) -> String {
        trail(&self.path("audit"))
    }

    /// Every record so far.
    pub fn records(&self) -> Vec<Value> {
        self.trail().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What was put aside for a sink so far. The last line may be under way: whoever waits for letters looks while they are written.
    pub fn dead_letters(&self, sink: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(&format!("audit/dead-letter/{sink}.jsonl"))).unwrap_or_default();
        whole_lines(&text).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How many records of a class there are, without reading each.
    pub fn count(&self, class: u32) -> usize {
        // An alert is about calls, and none itself.
        let of_class =
            |line: &&str| line.contains(&format!("\"class_uid\":{class},")) && !line.contains("\"gatepost.alert\"");
        self.trail().lines().filter(of_class).count()
    }

    /// The records of answered questions and refused calls.
    pub fn call_records(&self) -> Vec<Value> {
        self.records_about("gatepost.decision")
    }

    /// The records of unusual patterns of this name.
    pub fn alerts(&self, pattern: &str) -> Vec<Value> {
        let mut found = self.records_about("gatepost.alert");
        found.retain(|record| record["status_detail"] == pattern);
        found
    }

    fn records_about(&self, log_name: &str) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["metadata"]["log_name"] == log_name).collect()
    }

    /// The record of one answer.
    pub fn record_of(&self, decision_id: &str) -> Value {
        let mut found = self.call_records();
        found.retain(|record| record["metadata"]["original_event_uid"] == decision_id);
        assert_eq!(found.len(), 1, "exactly one record of {decision_id}");
        found.remove(0)
    }

    /// What `/metrics` says.
    pub async fn metrics(&self) -> String {
        self.ops("/metrics").await.1
    }

    /// Status and body of a path of the operators' door.
    pub async fn ops(&self, path: &str) -> (u16, String) {
        // Only so that this plain HTTP client can be built at all.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let response = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = response.get(format!("http://{}{path}", self.ops_address)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Drains and waits for the end.
    pub async fn stop(&mut self) -> app::Stopped {
        self.drain.cancel();
        let running = self.running.take().unwrap();
        tokio::time::timeout(PATIENCE, running).await.expect("it stops").unwrap().unwrap()
    }
}

impl Drop for Gatepost {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let count = ocsf::check(&self.trail());
            println!("{count} records of this test are valid OCSF, and one chain");
        }
    }
}

/// All of it but a line that is not at its end yet.
fn whole_lines(text: &str) -> &str {
    &text[..text.rfind('\n').map_or(0, |end| end + 1)]
}

/// The whole lines of a spool's segments, in order, without the segments' own first lines.
pub fn trail(spool: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(spool) else { return String::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut segments: Vec<PathBuf> = paths.filter(|path| path.to_str().unwrap().contains("/segment-")).collect();
    segments.sort();
    let mut records = String::new();
    for segment in segments {
        let text = std::fs::read_to_string(segment).unwrap();
        // Of a refused handshake nobody waits for the record: the last line may be under way.
        let lines = whole_lines(&text).split_inclusive('\n').filter(|line| !line.starts_with("{\"gatepost_spool\":"));
        records.extend(lines);
    }
    records
}

/// A segment's first line, made right: with the check over what stands in it.
pub fn first_line(members: &str) -> String {
    let before = format!("{{\"gatepost_spool\":1,{members}");
    let check = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, before.as_bytes());
    let check: String = check.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{before},\"check\":\"{check}\"}}\n")
}

/// A connection to `address` with these files.
pub async fn channel_to(address: SocketAddr, files: &ClientFiles) -> Result<Channel, tonic::transport::Error> {
    channel_of(Endpoint::from_static("https://localhost"), address, files).await
}

/// The same with other settings of HTTP/2.
pub async fn channel_of(
    endpoint: Endpoint,
    address: SocketAddr,
    files: &ClientFiles,
) -> Result<Channel, tonic::transport::Error> {
    let config = tls(files);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    endpoint
        .connect_with_connector(tower::service_fn(move |_: http::Uri| {
            let connector = connector.clone();
            async move {
                let socket = tokio::net::TcpStream::connect(address).await?;
                socket.set_nodelay(true)?;
                let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
                let stream = connector.connect(name, socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }))
        .await
}

/// A client's TLS settings.
pub fn tls(files: &ClientFiles) -> rustls::ClientConfig {
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_file_iter(&files.ca).unwrap() {
        roots.add(authority.unwrap()).unwrap();
    }
    let chain = CertificateDer::pem_file_iter(&files.certificate).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&files.private_key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Waits for a condition, not for a time.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain: {what}");
}

/// Copies a bundle's files, tests not included.
pub fn copy_bundle(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// A question about an order of tenant acme.
pub fn order(action: &str, id: &str, customer: &str) -> Ask {
    Ask::new(action)
        .resource("Order", id)
        .reference("tenant", "Tenant", "acme")
        .reference("customer", "User", customer)
        .attribute("status", "open")
        .attribute("total", 1250)
}

/// A question about an account of tenant acme.
pub fn account(action: &str, owner: &str) -> Ask {
    Ask::new(action)
        .resource("Account", format!("acc-{owner}"))
        .reference("tenant", "Tenant", "acme")
        .reference("owner", "User", owner)
}

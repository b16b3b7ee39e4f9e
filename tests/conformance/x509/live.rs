//! Client certificates of our own against the real listener, at the corpus' clock. Each chain with keys of ours in it, so
//! that it can shake hands, wherever that does not take away what is wrong with it; and each as it is, with somebody
//! else's key: nobody gets in with that.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gatepost::app;
use gatepost::cli::demo::world::World as Demo;
use gatepost::clock::{ManualClock, SharedClock};
use gatepost::config::load::{Source, load};
use gatepost::proto::v1;
use gatepost::proto::v1::decision_service_client::DecisionServiceClient;
use gatepost::telemetry::metrics::Metrics;
use gatepost::tls::server::verifier::Rules;
use rcgen::KeyPair;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Endpoint;

use super::clients::{ChainCase, Chains, files};
use super::rekey::{Keys, subject};
use super::{World, certificate, read};
use crate::support::say;

/// How a client fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fared {
    /// Its question was answered.
    Served,
    /// It shook hands, and its call was refused because nobody knows its name.
    Nameless,
    /// It got no connection.
    Outside,
}

/// The real server over a case's roots and lists.
struct Server {
    address: SocketAddr,
    demo: Demo,
    drain: CancellationToken,
    running: tokio::task::JoinHandle<Result<app::Stopped, gatepost::audit::AuditError>>,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start(chains: &Chains, roots: &str, lists: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let demo = Demo::create(folder.path()).unwrap();
        demo.write("clients.pem", roots).unwrap();
        let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
        let mut settings = demo.configuration(&policies);
        settings["server"]["client_ca"] = json!("clients.pem");
        if !lists.is_empty() {
            demo.write("lists.pem", &lists.concat()).unwrap();
            settings["server"]["client_crls"] = json!(["lists.pem"]);
        }
        settings["identity"]["trust_domains"] = json!([chains.trust_domain]);
        settings["limits"] = json!({ "default_deadline": "20s", "max_deadline": "20s" });
        let mut known: Vec<_> = chains.cases.iter().filter_map(|case| case.expected_identity.as_ref()).collect();
        known.sort();
        known.dedup();
        let enrolled = known.iter().enumerate().map(|(number, id)| {
            json!({ "spiffe_id": id, "name": format!("caller-{number}"), "resource_types": "*", "actions": "*" })
        });
        settings["callers"] = enrolled.collect();
        demo.write("gatepost.yaml", &settings.to_string()).unwrap();
        let config = load(&Source::file(folder.path().join("gatepost.yaml"))).unwrap_or_else(|wrong| panic!("{wrong}"));
        let clock: SharedClock = ManualClock::at(SystemTime::UNIX_EPOCH + Duration::from_secs(chains.verify_at_unix));
        let (metrics, registry) = Metrics::new(None).unwrap();
        let server = app::build(config, clock, metrics, registry).await.unwrap();
        let (address, drain) = (server.address, CancellationToken::new());
        let running = tokio::spawn(server.run(drain.clone()));
        Self { address, demo, drain, running, _folder: folder }
    }

    async fn meet(&self, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Fared {
        let Some(mut service) = self.connect(chain, key).await else { return Fared::Outside };
        let question = v1::CheckRequest {
            subject: Some(v1::check_request::Subject::Anonymous(())),
            action: "Order.read".into(),
            resource: Some(v1::Resource { r#type: "Order".into(), ..v1::Resource::default() }),
            ..v1::CheckRequest::default()
        };
        match service.check(question).await {
            Ok(_) => Fared::Served,
            Err(status) if status.code() == Code::Unauthenticated => Fared::Nameless,
            // In TLS 1.3 a client learns with its first call that its certificate was refused.
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                Fared::Outside
            }
            Err(status) => panic!("{status:?}"),
        }
    }

    async fn connect(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: &KeyPair,
    ) -> Option<DecisionServiceClient<tonic::transport::Channel>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = provider.key_provider.load_private_key(key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.demo.folder().join("ca.pem")).unwrap()).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            // Unlike the usual way this does not ask whether the key is that of the certificate.
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let address = self.address;
        let channel = Endpoint::from_static("https://localhost")
            .connect_with_connector(tower::service_fn(move |_: http::Uri| {
                let connector = connector.clone();
                async move {
                    let socket = tokio::net::TcpStream::connect(address).await?;
                    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
                    let stream = connector.connect(name, socket).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                }
            }))
            .await;
        channel.ok().map(DecisionServiceClient::new)
    }

    /// The words of calls that were refused because the caller has no name.
    fn words(&self) -> Vec<String> {
        let text =
            std::fs::read_to_string(self.demo.folder().join("audit/segment-000000000001.jsonl")).unwrap_or_default();
        let records = text.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap());
        records
            .filter_map(|record| Some(record["unmapped"]["gatepost"]["caller_refusal"].as_str()?.to_owned()))
            .collect()
    }

    async fn stop(self) {
        self.drain.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// A case with keys of our own.
struct Rekeyed {
    keys: Keys,
    root: String,
    chain: Vec<CertificateDer<'static>>,
    lists: Vec<String>,
}

impl Rekeyed {
    /// Nothing where that would take away what is wrong with it. Which lists have to be signed by somebody else for that
    /// is found by trying.
    fn of(case: &ChainCase, chains: &Chains) -> Option<Self> {
        let ways = 0..1_u32 << case.crls_pem.len();
        ways.map(|foreign| Self::signed(case, chains, foreign)).find(|rekeyed| rekeyed.is_like(case, chains))
    }

    /// With the lists whose bits are set signed by somebody else.
    fn signed(case: &ChainCase, chains: &Chains, foreign: u32) -> Self {
        let (mut keys, mut others) = (Keys::default(), Keys::default());
        let root = chains.trusted_roots_pem.iter();
        let root = root.map(|root| pem("CERTIFICATE", &keys.certificate(&certificate(root)))).collect();
        let chain = case.chain_pem.iter().map(|pem| keys.certificate(&certificate(pem)).into()).collect();
        let mut list = |(at, text): (usize, &String)| {
            let der = CertificateRevocationListDer::from_pem_slice(text.as_bytes()).unwrap();
            let signer = if foreign >> at & 1 == 1 { &mut others } else { &mut keys };
            pem("X509 CRL", &signer.list(&der))
        };
        let lists = case.crls_pem.iter().enumerate().map(&mut list).collect();
        Self { keys, root, chain, lists }
    }

    /// Whether it is still wrong, or good, in the way that it was.
    fn is_like(&self, case: &ChainCase, chains: &Chains) -> bool {
        let word = |roots: &[String], lists: &[String], chain: &[String]| {
            let world = World::of(roots, lists)?;
            let judged = world.judge(&chain[0], &chain[1..], chains.verify_at_unix, Rules::CLIENTS);
            judged.map_err(|error| format!("{error:?}"))
        };
        let chain: Vec<_> = self.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
        let before = word(&chains.trusted_roots_pem, &case.crls_pem, &case.chain_pem);
        word(std::slice::from_ref(&self.root), &self.lists, &chain) == before && !case.needs_handshake
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_are_let_in_or_kept_out_by_the_real_listener_as_told() {
    for file in files() {
        let chains: Chains = read(&file);
        let (mut shaken, mut as_they_are, mut failed) = (0, 0, Vec::new());
        let stranger = KeyPair::generate().unwrap();
        let common = Server::start(&chains, &chains.trusted_roots_pem.concat(), &[]).await;
        for case in &chains.cases {
            // As it is, with a key that is not its own.
            let original: Vec<_> = case.chain_pem.iter().map(|pem| certificate(pem)).collect();
            if case.crls_pem.is_empty() {
                as_they_are += 1;
                let fared = common.meet(original, &stranger).await;
                if fared != Fared::Outside {
                    failed.push(format!("{} ({}): {fared:?} with another's key", case.id, case.why));
                }
            }
            let Some(mut rekeyed) = Rekeyed::of(case, &chains) else { continue };
            shaken += 1;
            let server = Server::start(&chains, &rekeyed.root, &rekeyed.lists).await;
            let key = rekeyed.keys.of(&subject(&rekeyed.chain[0]));
            let fared = server.meet(rekeyed.chain.clone(), key).await;
            let fits = match &*case.expect {
                "accept" => fared == Fared::Served,
                "reject-identity" => fared == Fared::Nameless && server.words().len() == 1,
                "reject" => fared == Fared::Outside,
                _ => fared != Fared::Served,
            };
            if !fits {
                failed.push(format!("{} ({}): expected {}, {fared:?}", case.id, case.why, case.expect));
            }
            server.stop().await;
        }
        common.stop().await;
        say!(
            "client certificates live: {} cases, {shaken} with keys of ours, {as_they_are} as they are, {} failed: {failed:#?}",
            chains.cases.len(),
            failed.len()
        );
        assert!(shaken > 0 && failed.is_empty());
    }
}

//! The SPIFFE Workload API in place of files: what the agent says is in force without a restart, and when it says nothing,
//! or nonsense, what it said last.

use std::path::Path;
use std::process::{Command, Stdio};

use gatepost::cli::demo::world::{ClientFiles, World, spiffe_id};
use gatepost::proto::v1::decision_service_client::DecisionServiceClient;
use serde_json::{Value, json};
use tonic::Code;

use crate::failing_closed::wire;
use crate::support::agent::{Agent, X509SvidResponse, set};
use crate::support::authority::{Authority, Issued, host, uri};
use crate::support::{Gatepost, PATIENCE, copy_bundle};

const SERVER: &str = "spiffe://shop.example/gatepost";
const THEIRS: &str = "spiffe://partner.example/ns/shop/sa/orders";

/// Takes the files out and the agent in.
fn by_agent(settings: &mut Value, socket: &Path) {
    let server = settings["server"].as_object_mut().unwrap();
    for key in ["certificate", "private_key", "client_ca"] {
        server.remove(key);
    }
    server.insert("workload_api".to_owned(), json!(format!("unix://{}", socket.display())));
    settings["identity"]["trust_domains"] = json!(["shop.example", "partner.example", "elsewhere.example"]);
    let mut caller = settings["callers"][0].clone();
    caller["spiffe_id"] = json!(THEIRS);
    caller["name"] = json!("partner");
    settings["callers"].as_array_mut().unwrap().push(caller);
}

fn identity(authority: &Authority, serial: u64) -> Issued {
    authority.issue(serial, &[uri(SERVER), host("localhost")], None)
}

struct House {
    gatepost: Gatepost,
    agent: Agent,
    shop: Authority,
    partner: Authority,
    folder: tempfile::TempDir,
}

impl House {
    async fn open() -> Self {
        let (shop, partner) = (Authority::new("shop"), Authority::new("partner"));
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let federated = [("partner.example", partner.der())];
        let agent = Agent::start(&socket, set(SERVER, &identity(&shop, 1), shop.der(), &federated));
        let gatepost = Gatepost::start_with(|settings| by_agent(settings, &socket)).await;
        gatepost.world.write("ca.pem", shop.pem()).unwrap();
        Self { gatepost, agent, shop, partner, folder }
    }

    /// What the agent says: this identity, with the partner or without.
    fn says(&self, issued: &Issued, federated: bool) -> X509SvidResponse {
        let federated = if federated { vec![("partner.example", self.partner.der())] } else { Vec::new() };
        set(SERVER, issued, self.shop.der(), &federated)
    }

    fn client(&self, authority: &Authority, id: &str) -> ClientFiles {
        authority.client(&self.gatepost.world, "client", 7, id)
    }

    async fn ask(&self, files: &ClientFiles) -> Option<Code> {
        let channel = self.gatepost.channel(files).await.ok()?;
        let asked = DecisionServiceClient::new(channel).check(wire(&self.gatepost.token("alice", &[]))).await;
        match asked {
            Ok(_) => Some(Code::Ok),
            Err(status) if status.code() == Code::Unauthenticated => Some(Code::Unauthenticated),
            // The handshake was refused: in TLS 1.3 that shows with the first call.
            Err(_) => None,
        }
    }

    async fn until(&self, files: &ClientFiles, expected: Option<Code>, what: &str) {
        let reached = tokio::time::timeout(PATIENCE, async {
            while self.ask(files).await != expected {
                tokio::task::yield_now().await;
            }
        });
        assert!(reached.await.is_ok(), "waited in vain: {what}");
    }

    /// Sets that were looked at and not taken.
    async fn refused(&self) -> f64 {
        let metrics = self.gatepost.metrics().await;
        let mut lines = metrics.lines().filter(|line| line.starts_with("gatepost_tls_reloads_total"));
        let refused = lines.find(|line| line.contains("refused"));
        refused.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }

    /// The certificate that the listener shows.
    async fn shown(&self) -> Vec<u8> {
        let files = self.client(&self.shop, &spiffe_id("storefront"));
        let socket = tokio::net::TcpStream::connect(self.gatepost.address).await.unwrap();
        let config = std::sync::Arc::new(crate::support::tls(&files));
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, socket).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    async fn until_shown(&self, issued: &Issued, what: &str) {
        let reached = tokio::time::timeout(PATIENCE, async {
            while self.shown().await != issued.der {
                tokio::task::yield_now().await;
            }
        });
        assert!(reached.await.is_ok(), "waited in vain: {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_s_identity_and_bundles_are_in_force_and_renewed_without_a_restart() {
    let house = House::open().await;
    let ours = spiffe_id("storefront");
    let elsewhere = "spiffe://elsewhere.example/a";
    let table = [
        (&house.shop, ours.as_str(), Some(Code::Ok), "ours by our bundle"),
        (&house.partner, THEIRS, Some(Code::Ok), "a federated domain's by its own"),
        (&house.partner, &ours, None, "ours by a federated one"),
        (&house.shop, THEIRS, None, "a federated domain's by ours"),
        (&house.shop, elsewhere, None, "a configured domain's that is not federated, by ours"),
        (&house.partner, elsewhere, None, "and by another's"),
    ];
    for (authority, id, expected, why) in table {
        assert_eq!(house.ask(&house.client(authority, id)).await, expected, "{why}");
    }
    for serial in 2..6 {
        let next = identity(&house.shop, serial);
        house.agent.say(house.says(&next, true));
        house.until_shown(&next, "the renewed identity is shown").await;
    }
    // A live connection of the partner loses its next call when the federation ends.
    let theirs = house.client(&house.partner, THEIRS);
    let mut line = DecisionServiceClient::new(house.gatepost.channel(&theirs).await.unwrap());
    let token = house.gatepost.token("alice", &[]);
    assert!(line.check(wire(&token)).await.is_ok());
    house.agent.say(house.says(&identity(&house.shop, 9), false));
    let over = tokio::time::timeout(PATIENCE, async { while line.check(wire(&token)).await.is_ok() {} });
    assert!(over.await.is_ok());
    house.until(&theirs, None, "the partner is not federated any more").await;
    assert_eq!(house.ask(&house.client(&house.shop, &ours)).await, Some(Code::Ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_identity_serves_while_the_agent_is_away_or_talks_nonsense() {
    let house = House::open().await;
    let files = house.client(&house.shop, &spiffe_id("storefront"));
    assert_eq!(house.ask(&files).await, Some(Code::Ok));
    let good = house.shown().await;

    let (one, two) = (identity(&house.shop, 2), identity(&house.shop, 3));
    let mixed = Issued { key_der: two.key_der.clone(), ..identity(&house.shop, 4) };
    let leaf_as_authority = set(SERVER, &one, one.der.clone(), &[]);
    let nothing = X509SvidResponse::default();
    let nonsense = [
        (house.says(&mixed, true), "another's key"),
        (leaf_as_authority, "a leaf among the authorities"),
        (nothing, "nothing at all"),
    ];
    for (says, why) in nonsense {
        let before = house.refused().await;
        house.agent.say(says);
        let told = tokio::time::timeout(PATIENCE, async { while house.refused().await <= before {} });
        assert!(told.await.is_ok(), "{why}: nobody was told");
        assert_eq!(house.ask(&files).await, Some(Code::Ok), "{why}");
        assert_eq!(house.shown().await, good, "{why}: the last good one serves");
    }
    house.agent.say(house.says(&one, true));
    house.until_shown(&one, "a good one after all").await;

    let socket = house.folder.path().join("agent.sock");
    let House { gatepost, agent, shop, partner, folder } = house;
    agent.kill();
    std::fs::remove_file(&socket).unwrap();
    let idle = Agent::start(&folder.path().join("other.sock"), X509SvidResponse::default());
    let away = House { agent: idle, gatepost, shop, partner, folder };
    for _ in 0..20 {
        assert_eq!(away.ask(&files).await, Some(Code::Ok), "while the agent is away");
    }
    assert_eq!(away.shown().await, one.der);
    let back = House { agent: Agent::start(&socket, away.says(&two, true)), ..away };
    back.until_shown(&two, "the agent is back").await;

    // The key is with the TLS library and nowhere else.
    let keys = [&one, &two].map(|issued| issued.key_der[issued.key_der.len() - 70..].to_vec());
    for entry in std::fs::read_dir(back.gatepost.world.folder()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        for key in &keys {
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            let found = bytes.windows(key.len()).any(|part| part == key);
            assert!(!found && !String::from_utf8_lossy(&bytes).contains(&hex), "{}", path.display());
        }
    }
}

/// The start waits, but not for ever, and says what is missing.
#[test]
fn without_an_agent_the_start_fails_in_time_and_says_where_it_looked() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::create(folder.path()).unwrap();
    copy_bundle(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"), &folder.path().join("policies"));
    let socket = folder.path().join("nobody.sock");
    let mut settings = world.configuration(Path::new("policies"));
    by_agent(&mut settings, &socket);
    settings["server"]["workload_api_timeout"] = json!("1s");
    world.write("gatepost.yaml", &settings.to_string()).unwrap();
    #[expect(clippy::disallowed_methods, reason = "the real binary keeps real time")]
    let begun = std::time::Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_gatepost"))
        .args(["serve", "--config"])
        .arg(folder.path().join("gatepost.yaml"))
        .env_remove("GATEPOST_CONFIG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{told}");
    assert!(told.contains("nobody.sock") && told.contains("Workload API"), "{told}");
    assert!(begun.elapsed() < PATIENCE, "bounded: {:?}", begun.elapsed());
}

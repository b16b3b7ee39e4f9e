//! Certificates while their connections live: revoked, run out, disowned; and whose word counts for which name.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gatepost::cli::demo::world::{ClientFiles, spiffe_id};
use gatepost::clock::Clock as _;
use gatepost::proto::v1::decision_service_client::DecisionServiceClient;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::failing_closed::wire;
use crate::support::authority::Authority;
use crate::support::{Gatepost, PATIENCE, eventually, minutes};

/// A server that believes an authority of ours, and holds its clients against its lists.
struct House {
    gatepost: Gatepost,
    corp: Authority,
    folder: tempfile::TempDir,
}

impl House {
    async fn open() -> Self {
        Self::open_with(|_, _| ()).await
    }

    async fn open_with(change: impl FnOnce(&mut Value, &PathBuf)) -> Self {
        let (corp, folder) = (Authority::new("corp"), tempfile::tempdir().unwrap());
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("clients.pem"), corp.pem()).unwrap();
        std::fs::create_dir(path("lists")).unwrap();
        let (from, until) = real_times();
        std::fs::write(path("lists/corp.crl"), corp.list(1, from, until, &[])).unwrap();
        let gatepost = Gatepost::start_with(|settings| {
            settings["server"]["client_ca"] = json!(path("clients.pem"));
            settings["server"]["client_crls"] = json!([path("lists")]);
            change(settings, &folder.path().to_owned());
        })
        .await;
        Self { gatepost, corp, folder }
    }

    fn write(&self, name: &str, text: &str) {
        // As an operator's tool does: whole, and then put in place.
        let aside = self.folder.path().join(".new");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, self.folder.path().join(name)).unwrap();
    }

    fn list(&self, number: u64, revoked: &[u64]) -> String {
        let now = self.gatepost.clock.now();
        self.corp.list(number, now - minutes(1), now + minutes(60), revoked)
    }

    fn client(&self, name: &str, serial: u64) -> ClientFiles {
        self.corp.client(&self.gatepost.world, name, serial, &spiffe_id("storefront"))
    }

    async fn connect(&self, files: &ClientFiles) -> Line {
        let channel = self.gatepost.channel(files).await.unwrap();
        Line { service: DecisionServiceClient::new(channel), token: self.gatepost.token("alice", &[]) }
    }

    async fn is_refused_a_connection(&self, files: &ClientFiles) -> bool {
        // In TLS 1.3 the client learns of it with its first call.
        match self.gatepost.channel(files).await {
            Ok(channel) => {
                let mut line =
                    Line { service: DecisionServiceClient::new(channel), token: self.gatepost.token("alice", &[]) };
                let code = line.ask().await;
                code != Code::Ok && code != Code::Unauthenticated
            }
            Err(_) => true,
        }
    }

    fn last_refusal(&self) -> Option<String> {
        let records = self.gatepost.call_records();
        records.last()?["unmapped"]["gatepost"]["caller_refusal"].as_str().map(str::to_owned)
    }
}

/// The clock of a test begins at the real time.
fn real_times() -> (std::time::SystemTime, std::time::SystemTime) {
    #[expect(clippy::disallowed_methods, reason = "certificates are made for the real time")]
    let now = std::time::SystemTime::now();
    (now - minutes(1), now + minutes(60))
}

/// One connection; a call over it never makes another.
struct Line {
    service: DecisionServiceClient<Channel>,
    token: String,
}

impl Line {
    async fn ask(&mut self) -> Code {
        let asked = tokio::time::timeout(PATIENCE, self.service.check(wire(&self.token))).await.expect("an answer");
        asked.map_or_else(|status| status.code(), |_| Code::Ok)
    }

    /// Asks until the answer is this one, and tells how long that took.
    async fn until(&mut self, expected: Code) -> Duration {
        #[expect(clippy::disallowed_methods, reason = "how long it really took is the claim")]
        let begun = Instant::now();
        let asking = async {
            while self.ask().await != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("waited in vain for {expected:?}"));
        begun.elapsed()
    }
}

/// THREATS T1: within a second of the list, and only for those on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_loses_its_next_call_on_the_connection_it_has() {
    let house = House::open().await;
    let (revoked, other) = (house.client("revoked", 11), house.client("other", 12));
    let (mut line, mut neighbour) = (house.connect(&revoked).await, house.connect(&other).await);
    assert_eq!((line.ask().await, neighbour.ask().await), (Code::Ok, Code::Ok));

    house.write("lists/corp.crl", &house.list(2, &[11]));
    let took = line.until(Code::Unauthenticated).await;
    println!("refused {took:?} after the list was written");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(house.last_refusal().as_deref(), Some("CERTIFICATE_REVOKED"), "the word is on record");
    assert_eq!(neighbour.ask().await, Code::Ok, "the neighbour never noticed");
    assert!(house.is_refused_a_connection(&revoked).await, "nor does it get another connection");
    let refused = || house.gatepost.records().iter().any(|record| record.to_string().contains("\"REVOKED\""));
    eventually("the refused handshake is on record", refused).await;
    let metrics = house.gatepost.metrics().await;
    assert!(metrics.contains("gatepost_tls_revocation_expiry_seconds"), "{metrics}");

    // An old list is put back, then the file is lost: neither revives anybody.
    for (list, why) in [(Some(house.list(1, &[])), "an older list"), (None, "no list")] {
        let before = metric(&house, "gatepost_tls_reloads_total{result=\"").await;
        match list {
            Some(list) => house.write("lists/corp.crl", &list),
            None => std::fs::remove_file(house.folder.path().join("lists/corp.crl")).unwrap(),
        }
        house.write("clients.pem", &format!("{}\n", house.corp.pem()));
        reloaded(&house, before).await;
        assert_eq!(line.ask().await, Code::Unauthenticated, "{why}");
        assert_eq!(neighbour.ask().await, Code::Ok, "{why}");
    }
    house.write("lists/corp.crl", &house.list(3, &[]));
    line.until(Code::Ok).await;
}

/// The sum of a counter's lines that begin so.
async fn metric(house: &House, begins: &str) -> f64 {
    let metrics = house.gatepost.metrics().await;
    let lines = metrics.lines().filter(|line| line.starts_with(begins));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn reloaded(house: &House, before: f64) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while metric(house, "gatepost_tls_reloads_total{result=\"").await <= before {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "no reload");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_between_that_is_revoked_takes_its_clients_with_it() {
    let house = House::open().await;
    let team = house.corp.subordinate("team", 21);
    let (from, until) = real_times();
    house.write("lists/team.crl", &team.list(1, from, until, &[]));
    let files = team.client(&house.gatepost.world, "of-team", 1, &spiffe_id("storefront"));
    let reached = tokio::time::timeout(PATIENCE, async {
        while house.is_refused_a_connection(&files).await {
            tokio::task::yield_now().await;
        }
    });
    assert!(reached.await.is_ok(), "its list is in force");
    let mut line = house.connect(&files).await;
    assert_eq!(line.ask().await, Code::Ok);
    house.write("lists/corp.crl", &house.list(2, &[21]));
    line.until(Code::Unauthenticated).await;
    assert_eq!(house.last_refusal().as_deref(), Some("CERTIFICATE_REVOKED"));
}

/// RFC 5280 section 5.1.2.5: what a list says holds until `nextUpdate`; after it nothing is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_has_run_out_clears_nobody_until_a_newer_one_comes() {
    let house = House::open().await;
    let files = house.client("someone", 11);
    let mut line = house.connect(&files).await;
    assert_eq!(line.ask().await, Code::Ok);
    house.gatepost.clock.advance(minutes(59));
    // The token would have run out too.
    line.token = house.gatepost.token("alice", &[]);
    assert_eq!(line.ask().await, Code::Ok, "it has a minute left");
    house.gatepost.clock.advance(Duration::from_secs(61));
    line.token = house.gatepost.token("alice", &[]);
    assert_eq!(line.ask().await, Code::Unauthenticated, "at once, and not a minute later");
    assert_eq!(house.last_refusal().as_deref(), Some("CERTIFICATE_NOT_TRUSTED"));
    assert!(house.is_refused_a_connection(&files).await);
    house.write("lists/corp.crl", &house.list(2, &[]));
    line.until(Code::Ok).await;
}

/// One line in the log, each time: it is the cause of all the refusals that follow.
#[tokio::test]
async fn that_a_list_has_run_out_is_told_once() {
    let log = crate::canaries::Log::default();
    let _heard = crate::canaries::hear(&log);
    let house = House::open().await;
    let told = || log.text().matches("`server.client_crls` has run out").count();
    assert_eq!(told(), 0);
    house.gatepost.clock.advance(minutes(61));
    eventually("the first is told", || told() == 1).await;
    house.write("lists/corp.crl", &house.list(2, &[]));
    eventually("the second is there", || log.text().contains("lists were renewed")).await;
    let files = house.client("someone", 11);
    let mut line = house.connect(&files).await;
    line.until(Code::Ok).await;
    assert_eq!(told(), 1, "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_on_its_connection_loses_its_next_call() {
    let house = House::open().await;
    let until = house.gatepost.clock.now() + minutes(3);
    let world = &house.gatepost.world;
    let files = house.corp.client_until(world, "short", 11, &spiffe_id("storefront"), Some(until));
    let mut line = house.connect(&files).await;
    assert_eq!(line.ask().await, Code::Ok);
    house.gatepost.clock.advance(Duration::from_secs(3 * 60 + 1));
    assert_eq!(line.ask().await, Code::Unauthenticated);
    assert_eq!(house.last_refusal().as_deref(), Some("CERTIFICATE_EXPIRED"));
}

/// An authority that is taken out: its clients' connections are asked to go, and what they still ask is refused.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_an_authority_that_is_taken_out_are_refused_on_the_connection_they_have() {
    let house = House::open().await;
    let files = house.client("someone", 11);
    let mut line = house.connect(&files).await;
    assert_eq!(line.ask().await, Code::Ok);
    let other = Authority::new("other");
    house.write("clients.pem", other.pem());
    let begun = house.gatepost.call_records().len();
    let over = tokio::time::timeout(PATIENCE, async { while line.ask().await == Code::Ok {} });
    assert!(over.await.is_ok());
    assert!(house.is_refused_a_connection(&files).await);
    // The last call on the old connection was refused for its chain, or never came because the connection was let go.
    let late = house.gatepost.call_records().split_off(begun);
    let mut words = late.iter().filter_map(|record| record["unmapped"]["gatepost"]["caller_refusal"].as_str());
    assert!(words.all(|word| word == "CERTIFICATE_NOT_TRUSTED"), "{late:#?}");
}

/// SPIFFE Federation section 7.3.
#[tokio::test(flavor = "multi_thread")]
async fn a_partner_s_authority_names_the_partner_s_workloads_and_nobody_else_s() {
    let partner = Authority::new("partner");
    let pem = partner.pem().to_owned();
    let theirs = "spiffe://partner.example/ns/shop/sa/orders";
    let house = House::open_with(|settings, folder| {
        std::fs::write(folder.join("partner.pem"), pem).unwrap();
        let (from, until) = real_times();
        std::fs::write(folder.join("lists/partner.crl"), partner.list(1, from, until, &[])).unwrap();
        settings["identity"]["trust_domains"] =
            json!(["shop.example", { "name": "partner.example", "ca": folder.join("partner.pem") }]);
        let mut caller = settings["callers"][0].clone();
        caller["spiffe_id"] = json!(theirs);
        caller["name"] = json!("partner");
        settings["callers"].as_array_mut().unwrap().push(caller);
    })
    .await;
    let world = &house.gatepost.world;
    let table = [
        (house.corp.client(world, "a", 1, &spiffe_id("storefront")), true, "ours by ours"),
        (partner.client(world, "b", 1, theirs), true, "theirs by theirs"),
        (partner.client(world, "c", 2, &spiffe_id("storefront")), false, "ours by theirs"),
        (house.corp.client(world, "d", 2, theirs), false, "theirs by ours"),
    ];
    for (files, expected, why) in table {
        if expected {
            assert_eq!(house.connect(&files).await.ask().await, Code::Ok, "{why}");
        } else {
            assert!(house.is_refused_a_connection(&files).await, "{why}");
        }
    }
}

/// THREATS V-IDENT-1: nothing in a header says who calls.
#[tokio::test(flavor = "multi_thread")]
async fn no_header_changes_who_is_calling() {
    let gatepost = Gatepost::start().await;
    let mut service = gatepost.raw("storefront").await;
    let token = gatepost.token("alice", &[]);
    let other = spiffe_id("back-office");
    let uri = format!("By=spiffe://shop.example/x;Hash=00;URI={other}");
    let headers = [
        ("x-forwarded-client-cert", uri.as_str()),
        ("x-client-cert", "MIIB"),
        ("ssl-client-cert", "MIIB"),
        ("x-ssl-client-s-dn", "CN=back-office"),
        ("client-cert", ":MIIB:"),
        ("x-spiffe-id", other.as_str()),
        ("x-forwarded-for", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1;by=spiffe"),
        ("x-real-ip", "10.0.0.1"),
        ("x-envoy-external-address", "10.0.0.1"),
        ("x-envoy-peer-metadata-id", "back-office"),
    ];
    let callers = |gatepost: &Gatepost| {
        let record = gatepost.call_records().pop().unwrap();
        (record["src_endpoint"].clone(), record["unmapped"]["gatepost"]["certificate_sha256"].clone())
    };
    service.check(wire(&token)).await.unwrap();
    let before = callers(&gatepost);
    for (name, value) in headers {
        let mut request = tonic::Request::new(wire(&token));
        request.metadata_mut().insert(name, value.parse().unwrap());
        service.check(request).await.unwrap();
        assert_eq!(callers(&gatepost), before, "{name}");
    }
    println!("{} headers, 0 changed the caller", headers.len());
}

/// RFC 8446 section 2.2: a resumed session does not show its certificate. The client keeps sessions and would resume.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_attempts_no_session_is_resumed() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let gatepost = Gatepost::start().await;
    let mut config = crate::support::tls(&gatepost.client_files("storefront"));
    config.resumption = rustls::client::Resumption::in_memory_sessions(4096);
    config.enable_early_data = true;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let name = || rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let (mut resumed, mut tickets) = (0, 0);
    for _ in 0..1000 {
        let socket = tokio::net::TcpStream::connect(gatepost.address).await.unwrap();
        let mut stream = connector.connect(name(), socket).await.unwrap();
        // The preface of HTTP/2 and an empty SETTINGS; the server's own comes after any ticket that it would give.
        let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        stream.write_all(&hello).await.unwrap();
        stream.read_exact(&mut [0; 9]).await.unwrap();
        let connection = stream.get_ref().1;
        resumed += u32::from(connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed));
        tickets += connection.tls13_tickets_received();
    }
    println!("1000 resumption attempts: {resumed} resumed, {tickets} tickets");
    assert_eq!((resumed, tickets), (0, 0));

    // And nothing before TLS 1.3, whose sessions are resumed by an id that the server would have to forget.
    let files = gatepost.client_files("storefront");
    let modern = crate::support::tls(&files);
    let provider = std::sync::Arc::clone(modern.crypto_provider());
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let socket = tokio::net::TcpStream::connect(gatepost.address).await.unwrap();
    let refused = tokio_rustls::TlsConnector::from(std::sync::Arc::new(old)).connect(name(), socket).await;
    let told = refused.unwrap_err().to_string();
    assert!(told.contains("ProtocolVersion"), "{told}");
}

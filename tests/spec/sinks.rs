//! Whoever should have the records gets each of them, in order, whatever he does meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use gatepost::cli::demo::world::Authority;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::replicas::free_port;
use crate::support::{Gatepost, PATIENCE, eventually, order};

/// A receiver over HTTP that does what its script says, request by request, and then what is right.
#[derive(Clone, Default)]
struct Receiver {
    script: Arc<Mutex<Vec<Act>>>,
    /// Every record that it said it has, in the order in which they came.
    taken: Arc<Mutex<Vec<Value>>>,
    requests: Arc<AtomicUsize>,
    /// Records that it will not have, whenever they come.
    unwanted: Arc<Mutex<BTreeSet<String>>>,
    address: Arc<Mutex<String>>,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Status(u16),
    /// 429, come back after no time.
    Busy,
    Hang,
    Rubbish,
    /// Says that all is well, and not about which record.
    Lie,
    /// Breaks off in the middle of its answer.
    Torn,
    /// Answers without end.
    Endless,
    /// Takes no request that has more than one record.
    TooLarge,
    /// Each record meets this status, for somebody to mend.
    Item(u16),
    /// Takes them, and then says that it failed.
    TakeAndFail,
    /// Will never have the record at this place of the batch.
    Refuse(usize),
    /// Takes those before this one, and has no room for it.
    FullAt(usize),
}

impl Receiver {
    async fn start() -> Self {
        let receiver = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        *receiver.address.lock() = format!("http://{}", listener.local_addr().unwrap());
        let router = receiver.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        receiver
    }

    /// Over TLS, for clients of the world's authority alone.
    async fn start_tls(world: &Path) -> Self {
        let receiver = Self::default();
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        *receiver.address.lock() = format!("https://localhost:{}", tcp.local_addr().unwrap().port());
        let router = receiver.router();
        let listener = Secured { tcp, acceptor: crate::collectors::acceptor(world, None) };
        tokio::spawn(async move { axum::serve(listener, router).await });
        receiver
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/services/collector/event", axum::routing::post(splunk))
            .route("/_bulk", axum::routing::post(elastic))
            .with_state(self.clone())
    }

    /// Whether it will not have this record.
    fn unwanted(&self, record: &Value) -> bool {
        self.unwanted.lock().contains(&record["metadata"]["uid"].to_string())
    }

    fn will_not_have(&self, record: &Value) {
        self.unwanted.lock().insert(record["metadata"]["uid"].to_string());
    }

    fn address(&self) -> String {
        self.address.lock().clone()
    }

    fn next(&self) -> Option<Act> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut script = self.script.lock();
        (!script.is_empty()).then(|| script.remove(0))
    }

    fn take(&self, records: &[Value]) {
        self.taken.lock().extend_from_slice(records);
    }

    /// The records it has, each once, in the order in which they first came.
    fn once(&self) -> Vec<Value> {
        let mut seen = BTreeSet::new();
        self.taken.lock().iter().filter(|record| seen.insert(record["metadata"]["uid"].to_string())).cloned().collect()
    }
}

struct Secured {
    tcp: tokio::net::TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for Secured {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

fn inflated(headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    assert_eq!(headers["content-encoding"], "gzip");
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(body).read_to_end(&mut text).unwrap();
    text
}

async fn misbehave(act: Act) -> Response {
    match act {
        Act::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Act::Busy => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response(),
        Act::Hang => std::future::pending().await,
        Act::Lie => axum::Json(json!({ "took": 1, "errors": false, "items": [] })).into_response(),
        Act::Torn => {
            let pieces = [Ok(Bytes::from_static(b"{\"text\":\"Succ")), Err(std::io::Error::other("torn"))];
            axum::body::Body::from_stream(tokio_stream::iter(pieces)).into_response()
        }
        Act::Endless => {
            let piece = Bytes::from(vec![b' '; 1 << 16]);
            let pieces = std::iter::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
            axum::body::Body::from_stream(tokio_stream::iter(pieces)).into_response()
        }
        Act::TooLarge => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Act::Rubbish | Act::TakeAndFail | Act::Refuse(_) | Act::FullAt(_) | Act::Item(_) => {
            (StatusCode::OK, "<html>\u{0}not what you think").into_response()
        }
    }
}

async fn splunk(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> Response {
    assert_eq!(headers["authorization"], "Splunk a-token");
    let body = inflated(&headers, &body);
    let events: Vec<Value> =
        serde_json::Deserializer::from_slice(&body).into_iter::<Value>().map(Result::unwrap).collect();
    assert!(events.iter().all(|event| event["sourcetype"] == "gatepost:ocsf" && event["index"] == "main"));
    let records: Vec<Value> = events.iter().map(|event| event["event"].clone()).collect();
    let act = receiver.next();
    if let Some(Act::Refuse(at)) = act {
        receiver.will_not_have(&records[at]);
    }
    let unwanted = records.iter().position(|record| receiver.unwanted(record));
    match (act, unwanted) {
        (None | Some(Act::Refuse(_)), None) => {
            receiver.take(&records);
            axum::Json(json!({ "text": "Success", "code": 0 })).into_response()
        }
        // The strictest reading: nothing of such a request is indexed.
        (None | Some(Act::Refuse(_)), Some(at)) => {
            let answer = json!({ "text": "Invalid data format", "code": 6, "invalid-event-number": at });
            (StatusCode::BAD_REQUEST, axum::Json(answer)).into_response()
        }
        (Some(act), _) => splunk_misbehaves(&receiver, act, &records).await,
    }
}

async fn splunk_misbehaves(receiver: &Receiver, act: Act, records: &[Value]) -> Response {
    match act {
        Act::TakeAndFail => {
            let wanted: Vec<Value> = records.iter().filter(|record| !receiver.unwanted(record)).cloned().collect();
            receiver.take(&wanted);
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        act => misbehave(act).await,
    }
}

async fn elastic(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> Response {
    assert_eq!(headers["authorization"], "ApiKey a-token");
    let body = inflated(&headers, &body);
    let lines: Vec<Value> = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let records: Vec<Value> = lines.chunks(2).map(|pair| pair[1].clone()).collect();
    for pair in lines.chunks(2) {
        assert_eq!(pair[0]["create"]["_id"], pair[1]["metadata"]["uid"]);
    }
    let known: BTreeSet<String> =
        receiver.taken.lock().iter().map(|record| record["metadata"]["uid"].to_string()).collect();
    let act = receiver.next();
    let (full, missing_right) = match act {
        Some(Act::Refuse(at)) => {
            receiver.will_not_have(&records[at]);
            (usize::MAX, None)
        }
        Some(Act::FullAt(at)) => (at, None),
        Some(Act::Item(status)) => (usize::MAX, Some(status)),
        None => (usize::MAX, None),
        Some(act) => return misbehave(act).await,
    };
    let mut items = Vec::new();
    for (at, record) in records.iter().enumerate() {
        let status = match () {
            () if missing_right.is_some() => missing_right.unwrap(),
            () if receiver.unwanted(record) => 400,
            () if at >= full => 429,
            () if known.contains(&record["metadata"]["uid"].to_string()) => 409,
            () => {
                receiver.take(std::slice::from_ref(record));
                201
            }
        };
        items.push(json!({ "create": { "status": status, "error": { "type": "mapper_parsing_exception" } } }));
    }
    let errors = items.iter().any(|item| item["create"]["status"] != 201);
    axum::Json(json!({ "took": 1, "errors": errors, "items": items })).into_response()
}

fn token_file(folder: &Path) -> PathBuf {
    let path = folder.join("token");
    std::fs::write(&path, "a-token\n").unwrap();
    path
}

/// Questions, each with its answer.
async fn ask(gatepost: &Gatepost, count: usize) {
    let token = gatepost.token("alice", &[]);
    let client = gatepost.client("storefront");
    for _ in 0..count {
        let _ = client.check(order("Order.read", "o-1", "alice").token(&token)).await.unwrap();
    }
}

fn numbers(records: &[Value]) -> Vec<u64> {
    records.iter().map(|record| record["metadata"]["sequence"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_fail_in_every_way_have_every_record_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let token = token_file(folder.path());
    let world = gatepost::cli::demo::world::World::create(folder.path()).unwrap();
    let files = world.client("sender", "spiffe://shop.example/ns/gatepost/sa/gatepost").unwrap();
    let (one, other) = (Receiver::start_tls(folder.path()).await, Receiver::start().await);
    // What is taken and denied comes last: of what is refused before, nothing has been taken.
    *one.script.lock() = vec![
        Act::Status(500),
        Act::Busy,
        Act::Hang,
        Act::Rubbish,
        Act::Torn,
        Act::Endless,
        Act::Refuse(0),
        Act::TooLarge,
        Act::Status(403),
        Act::Refuse(1),
        Act::Status(503),
        Act::TakeAndFail,
    ];
    *other.script.lock() = vec![
        Act::Rubbish,
        Act::FullAt(0),
        Act::Hang,
        Act::Lie,
        Act::Torn,
        Act::Item(403),
        Act::Item(404),
        Act::TooLarge,
        Act::Refuse(0),
        Act::FullAt(1),
        Act::Status(404),
        Act::Status(429),
        Act::Refuse(0),
    ];
    let acts = one.script.lock().len() + other.script.lock().len();
    let sink = |name: &str| json!({ "name": name, "timeout": "300ms", "retry_max": "100ms", "batch_records": 7 });
    let mut gatepost = Gatepost::start_with(|settings| {
        let (mut splunk, mut elastic) = (sink("splunk"), sink("elastic"));
        splunk["splunk"] = json!({ "url": one.address(), "token_file": token, "index": "main" });
        for (key, path) in [("ca", &files.ca), ("certificate", &files.certificate), ("private_key", &files.private_key)]
        {
            splunk["splunk"][key] = json!(path);
        }
        elastic["elastic"] = json!({ "url": other.address(), "api_key_file": token });
        settings["audit"]["sinks"] = json!([splunk, elastic]);
    })
    .await;
    ask(&gatepost, 60).await;
    eventually("the scripts are played", || one.script.lock().is_empty() && other.script.lock().is_empty()).await;
    ask(&gatepost, 20).await;
    let told = |stored: &[Value], name: &str| -> u64 {
        let of_it = |record: &&Value| {
            record["activity_name"] == "Records Lost" && record["unmapped"]["gatepost"]["place"] == name
        };
        stored.iter().filter(of_it).map(|record| record["count"].as_u64().unwrap()).sum()
    };
    // What is refused while it stops comes again after the next start.
    eventually("what is refused is put aside", || {
        ["splunk", "elastic"].iter().all(|sink| gatepost.dead_letters(sink).len() == 2)
    })
    .await;
    gatepost.stop().await;
    let stored = gatepost.records();
    let lost = |sink: &str| -> BTreeSet<u64> {
        gatepost.dead_letters(sink).iter().map(|letter| letter["sequence"].as_u64().unwrap()).collect()
    };
    for (receiver, name, refused) in [(&one, "splunk", 2), (&other, "elastic", 2)] {
        let (received, dead) = (receiver.once(), lost(name));
        assert_eq!(dead.len(), refused, "{name}");
        let expected: Vec<u64> = numbers(&stored).into_iter().filter(|number| !dead.contains(number)).collect();
        assert_eq!(numbers(&received), expected, "{name}: each once, in order");
        assert_eq!(told(&stored, name), refused as u64, "{name}: what it will never have is on record");
        println!("{name}: {} stored, {} received, {refused} refused", stored.len(), received.len());
    }
    println!("{acts} misdeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_delays_no_decision_and_shows_its_lag() {
    let folder = tempfile::tempdir().unwrap();
    let token = token_file(folder.path());
    let receiver = Receiver::start().await;
    *receiver.script.lock() = vec![Act::Hang; 1000];
    let gatepost = Gatepost::start_with(|settings| {
        let splunk = json!({ "url": receiver.address(), "token_file": token, "index": "main" });
        settings["audit"]["sinks"] = json!([{ "name": "siem", "splunk": splunk, "timeout": "5m" }]);
    })
    .await;
    ask(&gatepost, 1000).await;
    assert_eq!(receiver.requests.load(Ordering::Relaxed), 1, "one delivery is under way, and nothing else");
    let metrics = gatepost.metrics().await;
    let line = metrics.lines().find(|line| line.starts_with("gatepost_audit_sink_lag{")).unwrap();
    let lag: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(line.contains("sink=\"siem\"") && lag >= 1000.0, "{line}");
    println!("1000 decisions, {lag} records behind");
    // Nor does it keep the server from ending.
    let mut gatepost = gatepost;
    gatepost.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_at_the_cursor_and_a_spoilt_cursor_sends_everything_again() {
    let folder = tempfile::tempdir().unwrap();
    let token = token_file(folder.path());
    let spool = folder.path().join("audit");
    let receiver = Receiver::start().await;
    let start = || {
        Gatepost::start_with(|settings| {
            let elastic = json!({ "url": receiver.address(), "api_key_file": token });
            settings["audit"]["spool"]["directory"] = json!(spool);
            settings["audit"]["sinks"] = json!([{ "name": "siem", "elastic": elastic, "retry_max": "100ms" }]);
        })
    };
    let mut total = 0;
    for run in 0..3 {
        let mut gatepost = start().await;
        ask(&gatepost, 10).await;
        gatepost.stop().await;
        let stored = crate::support::trail(&spool).lines().count();
        assert!(stored > total);
        let came = receiver.taken.lock().len();
        assert_eq!(came, stored, "run {run}: all of it, and nothing twice");
        total = stored;
    }
    std::fs::write(spool.join("cursors/siem.json"), "\u{0}garbage").unwrap();
    receiver.taken.lock().clear();
    let mut gatepost = start().await;
    gatepost.stop().await;
    let stored = crate::support::trail(&spool).lines().count();
    assert_eq!(numbers(&receiver.once()), (1..=stored as u64).collect::<Vec<_>>(), "rather twice than not at all");
    assert!(spool.join("cursors/siem.json.unusable").exists());
    // The support's own check looks into the world's folder, where this server wrote nothing.
    crate::support::ocsf::check(&crate::support::trail(&spool));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_waits_for_a_sink_that_must_have_it_and_not_for_one_that_may_skip() {
    let folder = tempfile::tempdir().unwrap();
    let token = token_file(folder.path());
    for when_full in ["skip", "wait"] {
        let receiver = Receiver::start().await;
        *receiver.script.lock() = vec![Act::Status(503); 100_000];
        let gatepost = Gatepost::start_with(|settings| {
            let elastic = json!({ "url": receiver.address(), "api_key_file": token });
            settings["audit"]["spool"]["segment_bytes"] = json!("64KiB");
            settings["audit"]["spool"]["max_bytes"] = json!("1MiB");
            settings["audit"]["sinks"] =
                json!([{ "name": "siem", "elastic": elastic, "retry_max": "100ms", "when_full": when_full }]);
        })
        .await;
        let token = gatepost.token("alice", &[]);
        let client = gatepost.client("storefront");
        let mut refused = None;
        for asked in 0..1500 {
            if client.check(order("Order.read", "o-1", "alice").token(&token)).await.is_err() {
                refused = Some(asked);
                break;
            }
        }
        match when_full {
            "wait" => {
                assert!(refused.is_some_and(|asked| asked > 300), "{refused:?}");
                assert_eq!(gatepost.ops("/readyz").await.0, 503);
                // It takes them again: so does the trail.
                receiver.script.lock().clear();
                eventually("there is room again", || gatepost.pdp.trail.healthy()).await;
                let _ = client.check(order("Order.read", "o-1", "alice").token(&token)).await.unwrap();
            }
            _ => {
                assert_eq!(refused, None, "nobody is held up");
                receiver.script.lock().clear();
                eventually("the loss is on record", || gatepost.trail().contains("\"skipped\"")).await;
                let first = numbers(&gatepost.records())[0];
                assert!(first > 1, "the oldest went");
                assert!(gatepost.trail().contains("Audit Segment Removed"));
                eventually("the rest arrives", || {
                    numbers(&receiver.once()).last() == numbers(&gatepost.records()).last()
                })
                .await;
                // Some of the records that tell of it have gone with the oldest themselves; the counter has them all.
                let metrics = gatepost.metrics().await;
                let counted = |line: &&str| line.starts_with("gatepost_audit_lost_total{") && line.contains("skipped");
                let line = metrics.lines().find(counted).unwrap();
                let lost: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
                let received = numbers(&receiver.once());
                assert_eq!(received[0], lost + 1, "exactly what was lost is missing");
            }
        }
    }
}

// ---- rsyslog ----

struct Rsyslog {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Rsyslog {
    /// `None`, said aloud, where it is not installed; in CI that is a failure.
    fn prepare(world: &Path) -> Option<Self> {
        let found = Command::new("rsyslogd").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "rsyslogd is missing, and CI may skip nothing");
            println!("SKIPPED: rsyslogd is not installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let port = free_port().port();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let pki = |name: &str| world.join(name).display().to_string();
        let config = format!(
            r#"global(defaultNetstreamDriver="gtls" defaultNetstreamDriverCAFile="{ca}" defaultNetstreamDriverCertFile="{cert}" defaultNetstreamDriverKeyFile="{key}" workDirectory="{work}" maxMessageSize="128k")
module(load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="x509/certvalid")
template(name="j" type="string" string="%msgid% %structured-data% %msg%\n")
input(type="imtcp" address="127.0.0.1" port="{port}")
*.* action(type="omfile" file="{out}" template="j" asyncWriting="off" flushOnTXEnd="on")
"#,
            ca = pki("ca.pem"),
            cert = pki("server.pem"),
            key = pki("server.key"),
            work = folder.path().display(),
            out = path("out.log"),
        );
        std::fs::write(folder.path().join("rsyslog.conf"), config).unwrap();
        Some(Self { folder, port, child: None })
    }

    async fn start(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        let mut command = Command::new("rsyslogd");
        command.arg("-n").arg("-f").arg(path("rsyslog.conf")).arg("-i").arg(path("pid"));
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let port = self.port;
        eventually("rsyslog listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The records it wrote down, by number, with how often each.
    fn received(&self) -> BTreeMap<u64, usize> {
        let text = std::fs::read_to_string(self.folder.path().join("out.log")).unwrap_or_default();
        let mut found = BTreeMap::new();
        for line in text.lines().filter(|line| line.contains("gatepost@32473")) {
            // A kill may cut its own last line.
            let Some(record) = line.find('{').and_then(|at| serde_json::from_str::<Value>(&line[at..]).ok()) else {
                continue;
            };
            assert_eq!(line.split(' ').next(), record["metadata"]["log_name"].as_str().unwrap().rsplit('.').next());
            *found.entry(record["metadata"]["sequence"].as_u64().unwrap()).or_default() += 1;
        }
        found
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A minute of it with `GATEPOST_LONG`.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_syslog_server_that_is_killed_under_load_has_every_record_in_the_end() {
    let long = std::env::var_os("GATEPOST_LONG").is_some();
    // The world is made by the server's own start; rsyslog needs a certificate of the same authority before.
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("Receivers").unwrap();
    let world = gatepost::cli::demo::world::World::create(folder.path()).unwrap();
    drop(authority);
    let Some(mut rsyslog) = Rsyslog::prepare(world.folder()) else { return };
    let files = world.client("storefront", "spiffe://shop.example/ns/gatepost/sa/gatepost").unwrap();
    rsyslog.start().await;
    let port = rsyslog.port;
    let mut gatepost = Gatepost::start_with(|settings| {
        let syslog = json!({
            "host": "localhost", "port": port, "ca": files.ca, "certificate": files.certificate,
            "private_key": files.private_key, "settle": "1s",
        });
        settings["audit"]["sinks"] =
            json!([{ "name": "syslog", "syslog": syslog, "retry_max": "200ms", "batch_records": 50 }]);
    })
    .await;
    ask(&gatepost, 100).await;
    eventually("the first arrive", || rsyslog.received().len() > 50).await;
    rsyslog.kill();
    let down = if long { Duration::from_secs(60) } else { Duration::from_secs(1) };
    let begun = tokio::time::Instant::now();
    let mut asked = 0;
    while begun.elapsed() < down || asked < 200 {
        ask(&gatepost, 50).await;
        asked += 50;
    }
    rsyslog.start().await;
    ask(&gatepost, 50).await;
    let all = || -> BTreeSet<u64> { numbers(&gatepost.records()).into_iter().collect() };
    let waited = tokio::time::timeout(PATIENCE, async {
        while rsyslog.received().keys().copied().collect::<BTreeSet<_>>() != all() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let stored = all();
    assert!(
        waited.await.is_ok(),
        "missing: {:?}",
        stored.iter().filter(|one| !rsyslog.received().contains_key(one)).collect::<Vec<_>>()
    );
    let received = rsyslog.received();
    let copies: usize = received.values().sum();
    println!(
        "{} stored, {} received, {} of them again, down for {down:?}",
        stored.len(),
        received.len(),
        copies - received.len()
    );
    gatepost.stop().await;
}

#[test]
fn a_real_server_writes_its_records_to_standard_output_a_line_each() {
    // See operations.rs for the life of the real binary; here only what it prints.
    let folder = tempfile::tempdir().unwrap();
    let world = gatepost::cli::demo::world::World::create(folder.path()).unwrap();
    crate::support::copy_bundle(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"),
        &folder.path().join("policies"),
    );
    let mut settings = world.configuration(Path::new("policies"));
    settings["audit"]["sinks"] = json!([
        { "name": "out", "stdout": {}, "encoding": "cef" },
        { "name": "file", "file": { "path": "audit.jsonl" }, "mask": ["device"] },
    ]);
    world.write("gatepost.yaml", &settings.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    command.arg("serve").arg("--config").arg(folder.path().join("gatepost.yaml"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert!(line.starts_with("CEF:0|Gatepost|Gatepost|") && line.contains("|Start|"), "{line}");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(rest.lines().count() == 1 && rest.contains("|Stop|"), "{rest}");
    let file = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    assert_eq!(file.lines().count(), 2);
    assert!(file.lines().all(|line| !line.contains("\"device\"") && serde_json::from_str::<Value>(line).is_ok()));
}

/// It closes the connection in order, and a receiver that does the same has read everything: nobody has to wait until
/// records are old enough, and none comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_parts_from_a_real_syslog_server_in_order_and_nothing_comes_twice() {
    let folder = tempfile::tempdir().unwrap();
    let world = gatepost::cli::demo::world::World::create(folder.path()).unwrap();
    let Some(mut rsyslog) = Rsyslog::prepare(world.folder()) else { return };
    let files = world.client("sender", "spiffe://shop.example/ns/gatepost/sa/gatepost").unwrap();
    let spool = folder.path().join("audit");
    rsyslog.start().await;
    for _ in 0..2 {
        let mut gatepost = Gatepost::start_with(|settings| {
            let syslog = json!({
                "host": "localhost", "port": rsyslog.port, "ca": files.ca, "certificate": files.certificate,
                "private_key": files.private_key, "settle": "1m",
            });
            settings["audit"]["spool"]["directory"] = json!(spool);
            settings["audit"]["sinks"] = json!([{ "name": "syslog", "syslog": syslog }]);
        })
        .await;
        ask(&gatepost, 20).await;
        gatepost.stop().await;
    }
    let stored = crate::support::trail(&spool).lines().count();
    let cursor: Value = serde_json::from_slice(&std::fs::read(spool.join("cursors/syslog.json")).unwrap()).unwrap();
    assert_eq!(cursor["sequence"], json!(stored));
    eventually("rsyslog has written all", || rsyslog.received().len() == stored).await;
    assert!(rsyslog.received().values().all(|copies| *copies == 1), "{:?}", rsyslog.received());
    crate::support::ocsf::check(&crate::support::trail(&spool));
}

/// Nor do the other sinks wait for it.
#[test]
fn a_real_server_whose_standard_output_nobody_reads_ends_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let world = gatepost::cli::demo::world::World::create(folder.path()).unwrap();
    crate::support::copy_bundle(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"),
        &folder.path().join("policies"),
    );
    let mut settings = world.configuration(Path::new("policies"));
    settings["audit"]["sinks"] =
        json!([{ "name": "out", "stdout": {} }, { "name": "file", "file": { "path": "audit.jsonl" } }]);
    settings["telemetry"]["logs"] = json!({ "format": "json", "filter": "info" });
    settings["server"]["drain_delay"] = json!("100ms");
    world.write("gatepost.yaml", &settings.to_string()).unwrap();
    // As much as a pipe of Linux holds.
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, &vec![b'\n'; 64 << 10]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    command.arg("serve").arg("--config").arg(folder.path().join("gatepost.yaml"));
    let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"serving\"") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut log, &mut line).unwrap() > 0, "it ended early");
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let (tell, ended) = std::sync::mpsc::channel();
    let id = child.id().to_string();
    std::thread::spawn(move || tell.send(child.wait().unwrap()));
    let status = ended.recv_timeout(PATIENCE);
    if status.is_err() {
        let _ = Command::new("kill").args(["-KILL", &id]).status();
    }
    assert_eq!(status.expect("it ends though nobody reads").code(), Some(0));
    let file = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    assert_eq!(file.lines().count(), 2, "the file has its start and its stop");
    drop(reader);
}

//! The secrets that prove who somebody is: keys, passwords, tokens of every kind, and what operators name when they
//! revoke. Planted in a real `gatepost serve` that logs all it can, so that no thread of it goes unheard.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatepost::cli::demo::world::{ClientFiles, World, spiffe_id};
use gatepost::client::{Ask, AskError, Client};
use gatepost::clock::{SystemClock, unix_seconds};
use gatepost::config::load::{Source, load};
use gatepost::proto::admin::v1 as admin;
use gatepost::proto::v1;
use gatepost::proto::v1::decision_service_client::DecisionServiceClient;
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};

use crate::authorization_server::{AuthorizationServer, Reply, active};
use crate::opaque_tokens::{machine_settings, machines, thing};
use crate::support::operators::{
    Operators, certificate_request, client, hex, session_request, subject_request, token_request,
};
use crate::support::{channel_to, copy_bundle, eventually};
use crate::wire::{call, framed};

const HS_ISSUER: &str = "https://shared.test";

/// What must come out nowhere, and what it was.
#[derive(Default)]
struct Planted(Vec<(String, String)>);

impl Planted {
    /// A new secret.
    fn plant(&mut self, what: &str) -> String {
        let text = format!("zk{:02}canary", self.0.len());
        self.know(what, &text);
        text
    }

    /// A secret that was made elsewhere.
    fn know(&mut self, what: &str, text: &str) {
        assert!(text.len() >= 8, "{what}: too short to be searched for");
        self.0.push((what.to_owned(), text.to_owned()));
    }

    /// Every secret that stands in `text`: as it is, in hex, in base64 at any place, as a list of bytes.
    fn in_text(&self, place: &str, text: &str, searched: &mut usize) -> Vec<String> {
        let mut leaks = Vec::new();
        for (what, secret) in &self.0 {
            let mut spellings = vec![
                secret.clone(),
                secret.bytes().fold(String::new(), |mut hex, byte| {
                    write!(hex, "{byte:02x}").unwrap();
                    hex
                }),
            ];
            spellings.push(format!("{:?}", secret.as_bytes()).trim_matches(['[', ']']).to_owned());
            for before in 0..3 {
                let whole = STANDARD.encode([&vec![0; before], secret.as_bytes()].concat());
                let (from, to) = ((before * 8).div_ceil(6), (before + secret.len()) * 8 / 6);
                spellings.push(whole[from..to].to_owned());
            }
            for spelling in &spellings {
                *searched += 1;
                if let Some(at) = text.find(spelling.as_str()) {
                    let near: String = text[..at].chars().rev().take(160).collect();
                    let near: String = near.chars().rev().collect();
                    leaks.push(format!("{what} in {place}: ..{near}<here>"));
                }
            }
        }
        leaks
    }
}

/// `gatepost serve` at its most talkative.
struct Serving {
    child: Child,
    log: Arc<Mutex<String>>,
    folder: tempfile::TempDir,
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Serving {
    fn start(folder: tempfile::TempDir) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gatepost"))
            .args(["serve", "--config"])
            .arg(folder.path().join("gatepost.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        hear(child.stdout.take().unwrap(), &log);
        hear(child.stderr.take().unwrap(), &log);
        Self { child, log, folder }
    }

    async fn until_it_says(&self, text: &str) {
        eventually(text, || self.log.lock().contains(text)).await;
    }

    fn address(&self, message: &str) -> SocketAddr {
        let log = self.log.lock();
        let line = log.lines().find(|line| line.contains(&format!("\"message\":\"{message}\""))).unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        line["fields"]["address"].as_str().unwrap().parse().unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }
}

fn hear(mut pipe: impl std::io::Read + Send + 'static, log: &Arc<Mutex<String>>) {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        let (mut buffer, mut whole) = (vec![0; 1 << 16], Vec::new());
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            whole.extend_from_slice(&buffer[..count]);
            // Up to the last whole line, so that lines of the two pipes do not mix.
            if let Some(end) = whole.iter().rposition(|byte| *byte == b'\n') {
                let lines: Vec<u8> = whole.drain(..=end).collect();
                log.lock().push_str(&String::from_utf8_lossy(&lines));
            }
        }
        log.lock().push_str(&String::from_utf8_lossy(&whole));
    });
}

fn apikey(arguments: &[&str], folder: &Path, told: &mut String) -> Output {
    let (command, rest) = arguments.split_first().unwrap();
    let file = folder.join("apikeys.json");
    let mut apikey = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    let output = apikey.arg("apikey").arg(command).arg("--file").arg(file).args(rest).output().unwrap();
    *told += &String::from_utf8_lossy(&output.stderr);
    if *command != "new" {
        *told += &String::from_utf8_lossy(&output.stdout);
    }
    output
}

/// A key's text; whole, secret and hash are known from now on.
fn new_key(what: &str, arguments: &[&str], folder: &Path, planted: &mut Planted, told: &mut String) -> String {
    let output = apikey(&[&["new", "--owner", "nightly", "--expires", "90d"], arguments].concat(), folder, told);
    let key = String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
    planted.know(&format!("an API key, {what}: the whole"), &key);
    planted.know(&format!("an API key, {what}: its secret"), &key[21..85]);
    planted.know(&format!("an API key, {what}: its hash"), &hex(&key.as_bytes()[21..85]));
    key
}

fn everything(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut next = error.source();
    while let Some(error) = next {
        write!(text, " {error} {error:?}").unwrap();
        next = error.source();
    }
    text
}

/// Issue 3: THREATS V-ADM-1, V-AUD-2, T11. Each step below brings secrets to a place of its own.
#[tokio::test(flavor = "multi_thread")]
async fn no_key_password_or_token_comes_out_of_a_server_that_logs_all_it_can() {
    let (mut planted, mut answers, mut told) = (Planted::default(), String::new(), String::new());
    let mut only_records = Planted::default();
    let server = AuthorizationServer::start().await;
    let operators = Operators::new();
    let folder = tempfile::tempdir().unwrap();
    let world = World::create(folder.path()).unwrap();
    copy_bundle(&machines(), &folder.path().join("policies"));
    let path = |name: &str| folder.path().join(name);

    // 1. What the configuration names: files with secrets, and a store that is not there.
    let shared = format!("{}-of-at-least-thirty-two-bytes", planted.plant("an HS256 key"));
    let client_secret = planted.plant("an introspection client's secret");
    planted.know("the same as it is sent", &STANDARD.encode(format!("gate%3Apost:{client_secret}")));
    let password = planted.plant("a Redis password");
    for (name, text) in [("shared.key", &shared), ("redis.password", &password)] {
        world.write(name, text).unwrap();
    }
    std::fs::write(server.file("secret"), format!("{client_secret}\n")).unwrap();
    for name in ["server.key", "jwks.json"] {
        let text = std::fs::read_to_string(path(name)).unwrap();
        if name == "server.key" {
            planted.know("the listener's key", text.lines().nth(1).unwrap());
        }
    }
    let good = new_key("good", &["--scope", "things:read"], folder.path(), &mut planted, &mut told);
    let note = planted.plant("a key's note");
    let elsewhere =
        new_key("of a network", &["--network", "10.0.0.0/8", "--note", &note], folder.path(), &mut planted, &mut told);
    let revoked = new_key("revoked", &[], folder.path(), &mut planted, &mut told);
    let late = new_key("expired", &[], folder.path(), &mut planted, &mut told);
    apikey(&["revoke", &revoked[4..20]], folder.path(), &mut told);
    let mut file: Value = serde_json::from_slice(&std::fs::read(path("apikeys.json")).unwrap()).unwrap();
    file["keys"][3]["created"] = json!("2020-01-01T00:00:00Z");
    file["keys"][3]["expires"] = json!("2020-01-02T00:00:00Z");
    std::fs::write(path("apikeys.json"), file.to_string()).unwrap();

    let (closed, ops_address) = (crate::replicas::free_port(), crate::replicas::free_port());
    let mut settings = world.configuration(Path::new("policies"));
    let mut issuers = settings["issuers"].clone();
    issuers[0]["principal"] = json!({ "type": "User" });
    let mut opaque = server.issuer();
    opaque["principal"] = json!({ "type": "User" });
    let hs = json!({ "issuer": HS_ISSUER, "audiences": ["gatepost"], "shared_key_file": "shared.key",
                     "principal": { "type": "User" } });
    let mut all = json!([issuers[0], opaque, hs]);
    for issuer in all.as_array_mut().unwrap() {
        issuer["principal"]["shared_type"] = json!(true);
    }
    machine_settings(&mut settings, all);
    settings["callers"][0]["explain"] = json!(true);
    settings["policies"].as_object_mut().unwrap().remove("tenant_type");
    settings["api_keys"] = json!({ "file": "apikeys.json" });
    settings["admin"] = operators.section(&[("weak", &["ListRevocations"])]);
    settings["revocation"] = json!({ "file": "revocations.jsonl", "redis": {
        "url": format!("redis://gatepost@{closed}"), "password_file": "redis.password",
    }});
    settings["server"]["ops_listen"] = json!(ops_address);
    settings["server"]["reload_interval"] = json!("1s");
    settings["limits"] = json!({ "default_deadline": "20s", "max_deadline": "20s", "introspection_timeout": "1s",
        "jwks_refresh_floor": "1s" });
    settings["telemetry"]["logs"] = json!({ "format": "json", "filter": "trace" });
    world.write("gatepost.yaml", &settings.to_string()).unwrap();
    let config = load(&Source::file(path("gatepost.yaml"))).unwrap_or_else(|report| panic!("{report}"));
    let mut debug = format!("{config:?}\n{config:#?}");

    let files = world.client("storefront", &spiffe_id("storefront")).unwrap();
    let stranger = world.client("stranger", &spiffe_id("stranger")).unwrap();
    let office = world.client("back-office", &spiffe_id("back-office")).unwrap();
    let (ops, weak) = (operators.files(&world, "ops"), operators.files(&world, "weak"));
    let clock = SystemClock::shared();
    let serving = Serving::start(folder);
    serving.until_it_says("\"message\":\"serving\"").await;
    serving.until_it_says("out of touch with the store").await;
    let address = serving.address("serving");
    let library = |files: &ClientFiles| {
        let client = Client::builder(format!("https://{address}")).server_name("localhost").ca(&files.ca);
        let client = client.identity(&files.certificate, &files.private_key).deadline(Duration::from_secs(10));
        client.build().unwrap()
    };
    let (storefront, nobody, unentitled) = (library(&files), library(&stranger), library(&office));
    let mut outcomes: Vec<(String, bool)> = Vec::new();
    let mut ask = async |client: &Client, what: &str, question: Ask, debug: &mut String| {
        write!(debug, "{question:?}").unwrap();
        let answer = client.check(question).await;
        outcomes.push((what.to_owned(), matches!(&answer, Ok(answer) if answer.allowed())));
        match answer {
            Ok(answer) => write!(answers, "{answer:?}").unwrap(),
            Err(error @ AskError::Refused { .. }) => answers += &everything(&error),
            Err(other) => panic!("{what}: {other:?}"),
        }
    };

    // 2. Opaque tokens, and everything that their server says of them.
    let now = clock.now();
    let mut claims = json!({});
    for name in ["jti", "sid", "email", "acr", "nonce"] {
        claims[name] = json!(planted.plant(&format!("`{name}` of an opaque token")));
    }
    claims["scope"] = json!(format!("things:read {}", planted.plant("a scope")));
    let replies = [
        ("active", Reply::Body(active("alice", now, &claims).to_string()), true),
        ("inactive", Reply::Body("{\"active\":false}".to_owned()), false),
        ("no JSON", Reply::Body(planted.plant("an answer that is no JSON")), false),
        ("no yes", Reply::Body(json!({ "active": planted.plant("an answer that is no yes") }).to_string()), false),
        (
            "another's",
            Reply::Body(active("alice", now, &json!({ "iss": planted.plant("another's `iss`") })).to_string()),
            false,
        ),
        (
            "bound",
            Reply::Body(active("a", now, &json!({ "cnf": { "x5t#S256": planted.plant("a `cnf`") } })).to_string()),
            false,
        ),
        ("redirect", Reply::Redirect, false),
        ("broken", Reply::Status(500), false),
        ("silent", Reply::Silence, false),
    ];
    let mut expected = Vec::new();
    for (why, reply, allowed) in replies {
        server.answer(move |_| reply.clone());
        let token = planted.plant(&format!("an opaque token, {why}"));
        ask(&storefront, why, thing("read").token(&token), &mut debug).await;
        expected.push(allowed);
    }
    let key = v1::ApiKeyCredential { value: good.clone(), client_address: "10.0.0.1".into() };
    let subject = Some(v1::batch_check_request::Subject::ApiKey(key.clone()));
    write!(debug, "{key:?} {:?}", v1::BatchCheckRequest { subject, ..Default::default() }).unwrap();
    for (why, client) in [("a stranger", &nobody), ("unentitled", &unentitled)] {
        server.answer(|_| Reply::Status(404));
        let token = planted.plant(&format!("an opaque token, from {why}"));
        ask(client, why, thing("read").token(token), &mut debug).await;
        expected.push(false);
    }

    // 3. API keys in every state, in every hand, and where they do not belong.
    let wrong = format!("{}{}", &good[..21], &elsewhere[21..]);
    planted.know("an API key's id with another's secret", &wrong);
    let odd = format!("{}{}", &good[..85], planted.plant("an API key's wrong end"));
    let any = planted.plant("no API key at all");
    let table = [
        ("good", &good, None, true),
        ("wrong secret", &wrong, None, false),
        ("wrong end", &odd, None, false),
        ("not a key", &any, None, false),
        ("revoked", &revoked, None, false),
        ("expired", &late, None, false),
        ("from nowhere", &elsewhere, None, false),
        ("from another network", &elsewhere, Some("192.0.2.1"), false),
    ];
    for (why, key, from, allowed) in table {
        let question = thing("read").api_key(key, from.map(|from: &str| from.parse().unwrap()));
        ask(&storefront, why, question, &mut debug).await;
        expected.push(allowed);
    }
    ask(&storefront, "a key as a token", thing("read").token(&good), &mut debug).await;
    ask(&unentitled, "a key, without the right", thing("read").api_key(&good, None), &mut debug).await;
    ask(&nobody, "a stranger's key", thing("read").api_key(&good, None), &mut debug).await;
    expected.extend([false; 3]);

    // 4. JWTs: what no list lets into a record.
    let mut claim = |name: &str| planted.plant(&format!("{name} of a JWT"));
    let table = [
        (
            "plain",
            json!({ "scope": "things:read", "jti": claim("jti"), "sid": claim("sid"), "email": claim("email") }),
            true,
        ),
        (
            "acted for",
            json!({ "scope": "things:read", "act": { "sub": "web", "name": claim("act.name"), "act": {
                "sub": "batch", "email": claim("act.act.email") } } }),
            true,
        ),
        ("bound to another", json!({ "cnf": { "x5t#S256": claim("cnf.x5t#S256") } }), false),
        ("bound by DPoP", json!({ "cnf": { "jkt": claim("cnf.jkt") } }), false),
        ("bound by a key", json!({ "cnf": { "jwk": { "k": claim("cnf.jwk.k") } } }), false),
        (
            "status",
            json!({ "status": { "status_list": { "idx": 0, "uri": format!("https://x/{}", claim("status.uri")) } } }),
            false,
        ),
        ("no number", json!({ "exp": claim("exp") }), false),
        ("two clients", json!({ "azp": claim("azp") }), false),
        ("hidden", json!({ "sub": format!("{}\u{202e}", claim("sub")) }), false),
        ("no id", json!({ "jti": { "x": claim("jti.x") } }), false),
        ("no session", json!({ "sid": [claim("sid[0]")] }), false),
        ("no actor", json!({ "act": { "name": claim("act.name without sub") } }), false),
    ];
    let mut tokens = Vec::new();
    for (why, claims, allowed) in table {
        tokens.push((why, world.token("alice", &claims, now, Duration::from_secs(300)).unwrap(), allowed));
    }
    let seconds = unix_seconds(now);
    let mut signed = |key: &str, why: &'static str, allowed: bool, planted: &mut Planted| {
        let claims = json!({ "iss": HS_ISSUER, "aud": "gatepost", "sub": "hs", "iat": seconds, "exp": seconds + 300,
            "client_id": "web", "scope": "things:read", "jti": planted.plant("jti of an HS256 token") });
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        header.typ = Some("at+jwt".to_owned());
        let key = jsonwebtoken::EncodingKey::from_secret(key.as_bytes());
        tokens.push((why, jsonwebtoken::encode(&header, &claims, &key).unwrap(), allowed));
    };
    signed(&shared, "HS256", true, &mut planted);
    let forged = planted.plant("a forger's HS256 key").repeat(4);
    signed(&forged, "HS256, forged", false, &mut planted);
    let channel = channel_to(address, &files).await.unwrap();
    for (why, token, allowed) in &tokens {
        for part in token.split('.').skip(1) {
            planted.know(&format!("a part of a JWT, {why}"), part);
        }
        ask(&storefront, why, thing("read").token(token), &mut debug).await;
        expected.push(*allowed);
        let check = v1::CheckRequest {
            subject: Some(v1::check_request::Subject::Token(token.clone())),
            action: "read".into(),
            resource: Some(crate::wire::object::<String>("Thing", "t-1", [])),
            ..v1::CheckRequest::default()
        };
        write!(debug, "{check:?}").unwrap();
        let explained =
            DecisionServiceClient::new(channel.clone()).explain(v1::ExplainRequest { check: Some(check) }).await;
        told += &format!("{explained:?}");
    }

    // 5. Operators: what they revoke by is as secret as it was; their reason is for the record alone.
    let at = serving.address("operators may revoke");
    let mut good_office = client(at, &ops).await;
    let mut weak_office = client(at, &weak).await;
    let mut said = Vec::new();
    let reason = "zr00canary, case 4711".to_owned();
    only_records.know("an operator's reason", &reason);
    let mut request = token_request(&planted.plant("a revoked token's id"));
    request.reason = reason.clone();
    write!(debug, "{request:?} {:?}", request.token).unwrap();
    said.push(format!("{:?}", good_office.revoke_token(request.clone()).await));
    request.issuer = planted.plant("an issuer that is none of ours");
    said.push(format!("{:?}", good_office.revoke_token(request.clone()).await));
    request = token_request(&format!("{}\u{200b}", planted.plant("a token's id with a hidden character")));
    said.push(format!("{:?}", good_office.revoke_token(request).await));
    said.push(format!("{:?}", weak_office.revoke_token(token_request(&planted.plant("what he may not revoke"))).await));
    let session = session_request(&planted.plant("a revoked session's id"));
    write!(debug, "{session:?}").unwrap();
    said.push(format!("{:?}", good_office.revoke_session(session).await));
    let digest = admin::revoke_token_request::Token::TokenIdSha256(planted.plant("no SHA-256 of an id"));
    let by_digest = admin::RevokeTokenRequest { token: Some(digest), ..token_request("") };
    said.push(format!("{:?}", good_office.revoke_token(by_digest).await));
    let certificate = certificate_request(&planted.plant("no SHA-256 of a certificate"), seconds + 600);
    said.push(format!("{:?}", good_office.revoke_certificate(certificate).await));
    let mut page = admin::ListRevocationsRequest { page_token: planted.plant("a page token"), ..Default::default() };
    said.push(format!("{:?}", good_office.list_revocations(page.clone()).await));
    page.page_token = String::new();
    said.push(format!("{:?}", good_office.list_revocations(page).await));
    let channel = channel_to(at, &ops).await.unwrap();
    let bearer = format!("Bearer {}", planted.plant("an operator's bearer token"));
    let service = "/gatepost.admin.v1.RevocationService";
    let torn = [&subject_request("bob").encode_to_vec()[..], planted.plant("a torn message").as_bytes()].concat();
    for (method, body) in [("RevokeSubject".to_owned(), torn), (planted.plant("a method"), Vec::new())] {
        let headers = [("authorization", bearer.as_bytes()), ("cookie", bearer.as_bytes())];
        let reply = call(channel.clone(), &format!("{service}/{method}"), &headers, framed(0, &body)).await;
        said.push(String::from_utf8_lossy(&reply.whole).into_owned());
    }
    assert_eq!(said.iter().filter(|outcome| outcome.starts_with("Ok(")).count(), 3, "{said:#?}");

    // 6. Files that break while it runs, with a secret in every place.
    let garbage = |planted: &mut Planted, what: &str| planted.plant(&format!("garbage in {what}"));
    let mut entry = file.clone();
    entry["keys"][0]["id"] = json!(garbage(&mut planted, "a key's id"));
    serving.write("apikeys.json", &entry.to_string());
    serving.until_it_says("the changed API keys are not usable").await;
    let mut entry = file.clone();
    entry["keys"][0]["secret_sha256"] = json!(garbage(&mut planted, "a key's hash"));
    entry["keys"][0][garbage(&mut planted, "a key's members")] = json!(1);
    serving.write("apikeys.json", &entry.to_string());
    eventually("told again", || serving.log.lock().matches("the changed API keys are not usable").count() >= 2).await;
    let line = garbage(&mut planted, "the revocation file");
    let unknown = json!({ "kind": garbage(&mut planted, "a line's kind"), "key": "x", "until": 1 });
    let revocations = serving.folder.path().join("revocations.jsonl");
    let mut lines = std::fs::OpenOptions::new().append(true).open(revocations).unwrap();
    std::io::Write::write_all(&mut lines, format!("{line}\n{unknown}\n").as_bytes()).unwrap();
    serving.until_it_says("a line of the revocation file revokes nothing").await;
    let keys = garbage(&mut planted, "the JWKS");
    let document = json!({ "keys": [{ "kty": "oct", "k": keys, "kid": keys }, keys] }).to_string();
    serving.write("jwks.json", &document);
    serving.until_it_says("the issuer's keys have changed").await;
    serving.write("jwks.json", &garbage(&mut planted, "what is no JWKS"));
    serving.until_it_says("keys could not be refreshed").await;
    serving.write("jwks.json", &document);
    serving.until_it_says("keys can be refreshed again").await;
    serving.write("server.key", &format!("-----BEGIN PRIVATE KEY-----\n{}\n", garbage(&mut planted, "the key's file")));
    serving.until_it_says("what was renewed for TLS is not usable").await;

    // 7. All that was written.
    // Only so that this plain HTTP client can be built at all.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut pages = String::new();
    let secret_path = planted.plant("a path of the operators' door");
    for page in ["metrics", "readyz", "livez", &secret_path] {
        let response = http.get(format!("http://{ops_address}/{page}")).header("cookie", &bearer).send().await.unwrap();
        pages += &format!("{:?} {}", response.headers().clone(), response.text().await.unwrap());
    }
    let records = crate::support::trail(&serving.folder.path().join("audit"));
    let log = serving.log.lock().clone();
    assert!(records.contains(&reason), "a reason is for the record");
    assert_eq!(log.matches("log lines were lost").count(), 0, "every line was heard");
    for word in ["TRACE", "\"target\":\"h2", "no decision", "an operator's call was refused", "no usable answer"] {
        assert!(log.contains(word), "the log is heard: {word}");
    }
    for ((what, allowed), expected) in outcomes.iter().zip(&expected) {
        assert_eq!(allowed, expected, "{what}: the secrets got as far as they should");
    }
    assert_eq!(outcomes.len(), expected.len());
    let places = [
        ("an answer", &answers),
        ("an answer to an operator", &said.concat()),
        ("an explanation, or what `apikey` said", &told),
        ("a record", &records),
        ("a page of the operators' door", &pages),
        ("the log", &log),
        ("Debug output", &debug),
    ];
    let (mut leaks, mut searched) = (Vec::new(), 0);
    for (place, text) in places {
        assert!(text.len() > 100, "{place}: there is something to search");
        leaks.extend(planted.in_text(place, text, &mut searched));
        if place != "a record" {
            leaks.extend(only_records.in_text(place, text, &mut searched));
        }
    }
    let canaries = planted.0.len() + only_records.0.len();
    println!(
        "{canaries} secrets of credentials, {searched} searches over {} answers, {} records, {} log lines, {} bytes of Debug",
        outcomes.len() + said.len() + tokens.len(),
        records.lines().count(),
        log.lines().count(),
        debug.len()
    );
    assert!(canaries >= 60, "{canaries}");
    assert!(leaks.is_empty(), "{leaks:#?}");
}

/// Whoever puts a secret where its file's name belongs finds it in no message: those end up in logs of their own.
#[test]
fn a_secret_in_the_wrong_place_of_the_configuration_is_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::create(folder.path()).unwrap();
    let good = world.configuration(Path::new("policies"));
    let mut planted = Planted::default();
    let mut secret = |what: &str| planted.plant(what);
    let (user, host) = (secret("a password in a URL"), secret("a password after a user"));
    let (url, file) = (format!("https://u:{user}@as.test/"), secret("a secret as a file's name"));
    let inline = secret("a secret in the place of a file");
    let table = [
        ("introspection.url", json!({ "issuers": [{ "introspection": { "url": url, "client_id": "a" } }] })),
        ("client_secret", json!({ "issuers": [{ "introspection": { "client_secret": inline, "client_id": "a" } }] })),
        ("client_secret_file", json!({ "issuers": [{ "introspection": { "client_secret_file": file } }] })),
        ("shared_key_file", json!({ "issuers": [{ "shared_key_file": file }] })),
        ("shared_key", json!({ "issuers": [{ "shared_key": inline }] })),
        ("jwks_url", json!({ "issuers": [{ "jwks_url": url }] })),
        ("status_lists", json!({ "issuers": [{ "status_lists": [url] }] })),
        ("redis.url", json!({ "revocation": { "redis": { "url": format!("rediss://gatepost:{host}@redis.test") } } })),
        ("redis", json!({ "revocation": { "redis": format!("rediss://:{host}@redis.test") } })),
        ("redis.password", json!({ "revocation": { "redis": { "url": "redis://a", "password": inline } } })),
        ("password_file", json!({ "revocation": { "redis": { "url": "redis://a", "password_file": [inline] } } })),
        ("api_keys.file", json!({ "api_keys": { "file": file } })),
        ("api_keys.keys", json!({ "api_keys": { "keys": [inline] } })),
        ("private_key", json!({ "admin": { "private_key": { "pem": inline } } })),
    ];
    let (mut searched, rows) = (0, table.len());
    for (key, wrong) in table {
        let mut settings = good.clone();
        for (section, value) in wrong.as_object().unwrap() {
            settings[section] = value.clone();
        }
        world.write("wrong.yaml", &settings.to_string()).unwrap();
        let report = load(&Source::file(folder.path().join("wrong.yaml"))).unwrap_err();
        let told = format!("{report} {report:?} {report:#?}");
        assert!(told.contains(key), "{key}: {told}");
        assert_eq!(planted.in_text(key, &told, &mut searched), [""; 0]);
    }
    println!("{} secrets in {rows} wrong places of a configuration, {searched} searches", planted.0.len());
}

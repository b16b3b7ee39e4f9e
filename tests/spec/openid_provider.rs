//! A real OpenID provider (`oidc-provider`, certified) in a process of its own: its JWTs are verified while its keys
//! rotate, its opaque tokens introspected and revoked, and its clients' secrets come out nowhere.
//!
//! `tests/run` installs it; without it these tests say that they are skipped, and in CI they fail.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use gatepost::cli::demo::world::Authority;
use gatepost::model::decision::DenialCode;
use rcgen::SanType;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::opaque_tokens::{machine_settings, machines, thing};
use crate::support::{Gatepost, PATIENCE};

/// Longer than any secret that happens; in no file but those that have to have it.
const SECRET: &str = "zq-client-canary: 100% s3cret/+";

/// The folder with the provider's `node_modules`; nothing, said aloud, where there is none.
fn installed() -> Option<PathBuf> {
    let named = std::env::var_os("GATEPOST_TEST_NODE").map(PathBuf::from);
    let folder = named.clone().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/node"));
    let found = folder.join("node_modules/oidc-provider").exists().then_some(folder);
    if found.is_none() {
        println!("SKIPPED: no `oidc-provider` for node in target/test-tools/node; tests/run installs it");
        assert!(named.is_none(), "GATEPOST_TEST_NODE has no node_modules/oidc-provider");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "the OpenID provider is missing, and CI may skip none");
    }
    found
}

/// A running provider; it ends when this is dropped, and when the test's process does.
struct Provider {
    process: Child,
    commands: ChildStdin,
    output: Option<BufReader<ChildStdout>>,
    issuer: String,
    folder: tempfile::TempDir,
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Provider {
    async fn start(node_modules: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("OpenID provider CA").unwrap();
        let dns = |name: &str| vec![SanType::DnsName(name.try_into().unwrap())];
        let (certificate, key) = authority.issue(dns("localhost"), true).unwrap();
        let (client, client_key) = authority.issue(dns("gatepost"), false).unwrap();
        let settings = json!({ "certificate": certificate, "key": key, "ca": authority.pem(), "secret": SECRET });
        let files = [
            ("ca.pem", authority.pem()),
            ("client.pem", client.as_str()),
            ("client.key", client_key.as_str()),
            ("secret", SECRET),
            ("settings.json", &settings.to_string()),
        ];
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut process = Command::new("node")
            .arg("--no-warnings")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/openid_provider.mjs"))
            .arg(folder.path().join("settings.json"))
            .current_dir(node_modules)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.path().join("stderr")).unwrap())
            .spawn()
            .expect("node starts");
        let (commands, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut provider = Self { process, commands, output: Some(output), issuer: String::new(), folder };
        provider.issuer = provider.says("up").await;
        provider
    }

    /// The value of `key` in the next JSON line it says; what else it says is not ours.
    async fn says(&mut self, key: &'static str) -> String {
        let mut output = self.output.take().unwrap();
        let errors = self.file("stderr");
        let reading = tokio::task::spawn_blocking(move || {
            loop {
                let mut line = String::new();
                let errors = || std::fs::read_to_string(&errors).unwrap_or_default();
                assert!(output.read_line(&mut line).unwrap() > 0, "the provider has ended: {}", errors());
                let told = serde_json::from_str::<Value>(&line).ok();
                if let Some(Value::String(value)) = told.as_ref().and_then(|told| told.get(key)) {
                    return (output, value.clone());
                }
            }
        });
        let (output, value) = tokio::time::timeout(PATIENCE, reading).await.expect("it says so in time").unwrap();
        self.output = Some(output);
        value
    }

    async fn command(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
        assert_eq!(self.says("done").await, command);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A form to one of its endpoints, as the client `shop`.
    async fn post(&self, path: &str, form: &[(&str, &str)]) -> String {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.file("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
        let request = client
            .post(format!("{}{path}", self.issuer))
            .basic_auth(encoded("shop"), Some(encoded(SECRET)))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        text
    }

    async fn token(&self, resource: &str) -> String {
        let form = [("grant_type", "client_credentials"), ("scope", "things:read"), ("resource", resource)];
        let answer: Value = serde_json::from_str(&self.post("/token", &form).await).unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    }

    /// Settings of this issuer.
    fn settings(&self, introspection: Value) -> Value {
        json!({
            "issuer": self.issuer, "audiences": ["gatepost"], "algorithms": ["ES256"],
            "jwks_url": format!("{}/jwks", self.issuer), "jwks_ca": self.file("ca.pem"),
            "allow_private_addresses": true,
            "principal": { "type": "User", "id": "client_id", "attributes": { "tenant": "tenant" } },
            "introspection": introspection,
        })
    }

    fn with_secret(&self) -> Value {
        json!({
            "url": format!("{}/token/introspection", self.issuer), "client_id": "gate:post",
            "client_secret_file": self.file("secret"), "ca": self.file("ca.pem"), "allow_private_addresses": true,
            "max_cache": "30s",
        })
    }

    fn with_certificate(&self) -> Value {
        json!({
            "url": format!("{}/token/introspection", self.issuer), "client_id": "gatepost-mtls",
            "client_certificate": self.file("client.pem"), "client_key": self.file("client.key"),
            "ca": self.file("ca.pem"), "allow_private_addresses": true, "max_cache": "0s",
        })
    }

    async fn gatepost(&self, introspection: Value) -> Gatepost {
        let issuer = self.settings(introspection);
        let gatepost = Gatepost::start_over(&machines(), |settings| {
            machine_settings(settings, json!([issuer]));
            for limit in ["jwks_refresh_floor", "jwks_refresh_interval"] {
                settings["limits"][limit] = json!("1s");
            }
            settings["limits"]["introspection_timeout"] = json!("20s");
            settings["limits"]["jwks_timeout"] = json!("20s");
        })
        .await;
        keys_are_fetched(&gatepost).await;
        gatepost
    }
}

/// Lets Gatepost's clock go on until it has fetched the keys once more.
async fn keys_are_fetched(gatepost: &Gatepost) {
    let fetched = async || {
        let metrics = gatepost.metrics().await;
        let mut lines = metrics.lines().filter(|line| line.starts_with("gatepost_jwks_refreshes_total"));
        let line = lines.find(|line| line.contains("result=\"ok\"")).unwrap_or("none 0");
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let before = fetched().await;
    let waiting = async {
        while fetched().await == before {
            gatepost.clock.advance(Duration::from_millis(20));
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the keys are fetched");
}

async fn denial(gatepost: &Gatepost, token: &str) -> Option<DenialCode> {
    gatepost.ask(thing("read").token(token)).await.unwrap().denial()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_keys_rotate_and_no_valid_token_is_refused() {
    let Some(folder) = installed() else { return };
    let mut provider = Provider::start(&folder).await;
    let gatepost = provider.gatepost(provider.with_secret()).await;
    let mut tokens = vec![provider.token("urn:gatepost:jwt").await];
    let mut asked = 0;
    // Published before it signs, as every provider should (OpenID Connect Core section 10.1.1).
    for command in ["publish", "sign", "publish", "sign"] {
        provider.command(command).await;
        if command == "publish" {
            keys_are_fetched(&gatepost).await;
        }
        tokens.push(provider.token("urn:gatepost:jwt").await);
        for token in &tokens {
            for _ in 0..25 {
                let answer = gatepost.ask(thing("read").token(token)).await.unwrap();
                assert_eq!(answer.denial(), None, "{command}: {:?}", gatepost.record_of(answer.decision_id()));
                asked += 1;
            }
        }
        // The one from before the last but one was signed by a key that is published no more.
        if command == "sign" {
            tokens.drain(..tokens.len() - 1);
        }
    }
    println!("2 rotations of the provider's keys, {asked} questions with valid tokens: 0 refused");
    let record = gatepost.call_records().pop().unwrap();
    assert_eq!(record["unmapped"]["gatepost"]["token_alg"], "ES256");
    assert_eq!(record["unmapped"]["gatepost"]["principal"], "User::\"shop\"");

    provider.command("publish").await;
    provider.command("sign").await;
    provider.command("retire").await;
    keys_are_fetched(&gatepost).await;
    assert_eq!(denial(&gatepost, &tokens[0]).await, Some(DenialCode::TokenRejected), "its key was withdrawn");
}

#[tokio::test]
async fn its_opaque_tokens_are_introspected_until_they_are_revoked() {
    let Some(folder) = installed() else { return };
    let log = crate::canaries::Log::default();
    let heard = crate::canaries::hear(&log);
    let provider = Provider::start(&folder).await;
    let gatepost = provider.gatepost(provider.with_secret()).await;
    let token = provider.token("urn:gatepost:opaque").await;
    assert_eq!(token.matches('.').count(), 0, "opaque: {token}");

    assert_eq!(denial(&gatepost, &token).await, None);
    let record = gatepost.call_records().pop().unwrap();
    assert_eq!(record["unmapped"]["gatepost"]["token_alg"], "introspection");
    assert_eq!(record["unmapped"]["gatepost"]["principal"], "User::\"shop\"");
    assert_eq!(record["actor"]["user"]["uid"], format!("{}|alice", provider.issuer));
    let theirs = provider.token("urn:somebody:else").await;
    assert_eq!(denial(&gatepost, &theirs).await, Some(DenialCode::TokenRejected), "for another audience");
    assert_eq!(denial(&gatepost, "made-up").await, Some(DenialCode::TokenRejected), "never issued");

    provider.post("/token/revocation", &[("token", &token)]).await;
    assert_eq!(denial(&gatepost, &token).await, None, "known for `max_cache`");
    gatepost.clock.advance(Duration::from_secs(30));
    assert_eq!(denial(&gatepost, &token).await, Some(DenialCode::TokenRejected), "and no longer");
    let record = gatepost.call_records().pop().unwrap();
    assert_eq!(record["unmapped"]["gatepost"]["token_refusal"], "INACTIVE");

    let metrics = gatepost.metrics().await;
    let records = gatepost.trail();
    drop(heard);
    for (place, text) in [("log", &log.text()), ("metrics", &metrics), ("records", &records)] {
        for secret in ["canary", token.as_str()] {
            assert!(!text.contains(secret), "a secret in the {place}");
        }
    }
    assert!(!log.text().is_empty(), "something was heard");
}

/// RFC 8705 section 2, as the provider checks it.
#[tokio::test(flavor = "multi_thread")]
async fn it_knows_us_by_our_certificate() {
    let Some(folder) = installed() else { return };
    let provider = Provider::start(&folder).await;
    let gatepost = provider.gatepost(provider.with_certificate()).await;
    let token = provider.token("urn:gatepost:opaque").await;
    assert_eq!(denial(&gatepost, &token).await, None);
    provider.post("/token/revocation", &[("token", &token)]).await;
    assert_eq!(denial(&gatepost, &token).await, Some(DenialCode::TokenRejected), "`max_cache: 0s` asks every time");

    let mut stranger = provider.with_certificate();
    stranger["client_id"] = json!("gate:post");
    let gatepost = provider.gatepost(stranger).await;
    let token = provider.token("urn:gatepost:opaque").await;
    assert_eq!(denial(&gatepost, &token).await, Some(DenialCode::IssuerUnavailable), "a certificate is no secret");
}

//! An issuer of our own: keys, tokens, and an https server that answers as badly as a test wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatepost::cli::demo::world::{AUDIENCE, Authority, ISSUER};
use gatepost::clock::unix_seconds;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

/// Everything that an issuer with public keys can be pinned to.
pub const ALGORITHMS: [&str; 9] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

/// An Ed25519 key of the issuer, by its id.
pub struct Signer {
    pub id: String,
    issuer: String,
    pair: Ed25519KeyPair,
}

impl Signer {
    pub fn new(id: &str) -> Self {
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).unwrap();
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        Self { id: id.to_owned(), issuer: ISSUER.to_owned(), pair }
    }

    /// The same of another issuer.
    pub fn of(self, issuer: &str) -> Self {
        Self { issuer: issuer.to_owned(), ..self }
    }

    pub fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": self.id, "use": "sig", "alg": "EdDSA" })
    }

    /// A token of a customer of tenant acme, good for ten minutes.
    pub fn token(&self, subject: &str, now: SystemTime) -> String {
        self.token_with(&json!({ "kid": self.id }), subject, now)
    }

    /// The same with other members in its header.
    pub fn token_with(&self, header: &Value, subject: &str, now: SystemTime) -> String {
        let mut whole = json!({ "alg": "EdDSA", "typ": "at+jwt" });
        whole.as_object_mut().unwrap().extend(header.as_object().unwrap().clone());
        let mut claims = claims(subject, now);
        claims["iss"] = json!(self.issuer);
        let signed = format!("{}.{}", part(&whole), part(&claims));
        let signature = self.pair.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// What the issuer's tokens say.
pub fn claims(subject: &str, now: SystemTime) -> Value {
    let now = unix_seconds(now);
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "client_id": "shop-app", "tenant": "acme", "roles": [],
        "iat": now, "exp": now + 600,
    })
}

/// A token that names this key and this algorithm, and that nobody signed.
pub fn forged(algorithm: &str, kid: &str, now: SystemTime) -> String {
    let header = json!({ "alg": algorithm, "typ": "at+jwt", "kid": kid });
    format!("{}.{}.{}", part(&header), part(&claims("mallory", now)), URL_SAFE_NO_PAD.encode([1; 64]))
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A JWKS of these keys.
pub fn jwks<'s>(signers: impl IntoIterator<Item = &'s Signer>) -> String {
    json!({ "keys": signers.into_iter().map(Signer::jwk).collect::<Vec<_>>() }).to_string()
}

/// How the server answers.
#[derive(Clone)]
pub enum Answer {
    /// 200 with this body.
    Document(String),
    /// These bytes, and then the end.
    Bytes(Vec<u8>),
    /// A head and then a byte every tenth of a second.
    Drip,
    /// A head and then this, over and over.
    Endless(&'static [u8]),
    /// Nothing for so long, and then the document.
    Late(Duration, String),
}

impl Answer {
    /// Status, headers and body as written.
    pub fn with(head: &str, body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        Self::Bytes([head.as_bytes(), body].concat())
    }
}

/// The issuer's server on loopback, with a certificate of an authority of its own.
pub struct KeyServer {
    pub port: u16,
    ca: tempfile::NamedTempFile,
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
    answered: Arc<AtomicUsize>,
}

impl KeyServer {
    /// Answers `/jwks` so, and everything else with 404.
    pub async fn start(answer: Answer) -> Self {
        let authority = Authority::new("keys of the issuer").unwrap();
        let name = rcgen::SanType::DnsName("localhost".try_into().unwrap());
        let (certificate, key) = authority.issue(vec![name], true).unwrap();
        let ca = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca.path(), authority.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self {
            port,
            ca,
            answers: Arc::new(Mutex::new([("/jwks".to_owned(), answer)].into())),
            asked: Arc::default(),
            answered: Arc::default(),
        };
        let (answers, asked, answered) =
            (Arc::clone(&server.answers), Arc::clone(&server.asked), Arc::clone(&server.answered));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answers, asked, answered) =
                    (acceptor.clone(), Arc::clone(&answers), Arc::clone(&asked), Arc::clone(&answered));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let mut stream = BufReader::new(stream);
                    let Ok(path) = path(&mut stream).await else { return };
                    *asked.lock().entry(path.clone()).or_default() += 1;
                    let missing = || Answer::with("404 Not Found", b"");
                    let answer = answers.lock().get(&path).cloned().unwrap_or_else(missing);
                    // A client that has had enough hangs up; that is its good right.
                    if reply(stream, answer).await.is_ok() {
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// The authority of its certificate, PEM.
    pub fn authority(&self) -> String {
        std::fs::read_to_string(self.ca.path()).unwrap()
    }

    /// How `path` is answered from now on.
    pub fn answers(&self, path: &str, answer: Answer) {
        self.answers.lock().insert(path.to_owned(), answer);
    }

    /// How often `path` was asked for.
    pub fn asked(&self, path: &str) -> usize {
        self.asked.lock().get(path).copied().unwrap_or_default()
    }

    /// Every path that was asked for.
    pub fn paths(&self) -> BTreeSet<String> {
        self.asked.lock().keys().cloned().collect()
    }

    /// How many answers went out whole.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    /// Makes the world's issuer one whose keys are at `/jwks` here.
    pub fn take_over(&self, settings: &mut Value) {
        self.give_keys_to(&mut settings["issuers"][0]);
    }

    /// Makes `issuer` one whose keys are at `/jwks` here.
    pub fn give_keys_to(&self, issuer: &mut Value) {
        issuer.as_object_mut().unwrap().remove("jwks_file");
        issuer["algorithms"] = json!(ALGORITHMS);
        issuer["jwks_url"] = json!(self.url("/jwks"));
        issuer["jwks_ca"] = json!(self.ca.path());
        issuer["allow_private_addresses"] = json!(true);
    }

    /// The same by way of the discovery document at `/discovery`, which may lead to these hosts besides.
    pub fn take_over_discovery(&self, settings: &mut Value, hosts: &[String]) {
        self.take_over(settings);
        let issuer = &mut settings["issuers"][0];
        issuer.as_object_mut().unwrap().remove("jwks_url");
        issuer["discovery_url"] = json!(self.url("/discovery"));
        issuer["jwks_hosts"] = json!(hosts);
    }
}

/// The path of the next request.
async fn path<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<String> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? <= 2 {
            break;
        }
        lines.push(line);
    }
    let first = lines.first().ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(first.split(' ').nth(1).unwrap_or_default().to_owned())
}

async fn reply<S: AsyncRead + AsyncWrite + Unpin>(mut stream: BufReader<S>, answer: Answer) -> std::io::Result<()> {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\n";
    match answer {
        Answer::Document(body) => {
            let Answer::Bytes(bytes) = Answer::with("200 OK", body.as_bytes()) else { unreachable!() };
            stream.write_all(&bytes).await?;
        }
        Answer::Bytes(bytes) => stream.write_all(&bytes).await?,
        Answer::Drip => {
            stream.write_all(&[HEAD, b"\r\n{\"keys\":"].concat()).await?;
            loop {
                stream.write_all(b" ").await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Answer::Endless(what) => {
            stream.write_all(HEAD).await?;
            loop {
                stream.write_all(&what.repeat(100)).await?;
            }
        }
        Answer::Late(wait, body) => {
            tokio::time::sleep(wait).await;
            let Answer::Bytes(bytes) = Answer::with("200 OK", body.as_bytes()) else { unreachable!() };
            stream.write_all(&bytes).await?;
        }
    }
    stream.shutdown().await
}

/// A place where nobody has any business: counts who comes.
pub struct Trap {
    pub port: u16,
    came: Arc<AtomicUsize>,
}

impl Trap {
    pub async fn set() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let came = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&came);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { port, came }
    }

    pub fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }
}

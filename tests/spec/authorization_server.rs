//! An issuer's authorization server on loopback: https with an authority of its own, answers that a test chooses, a ledger
//! of every question. It signs as its issuer would, with a key of its own.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatepost::cli::demo::world::Authority;
use gatepost::clock::unix_seconds;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use rcgen::{KeyPair, SanType};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

/// `iss` of everything it says.
pub const ISSUER: &str = "https://as.test";

/// One question to the server.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub form: HashMap<String, String>,
    /// Whether the client showed a certificate.
    pub certificate: bool,
}

/// How the server answers.
#[derive(Debug, Clone)]
pub enum Reply {
    /// 200 with this body.
    Body(String),
    /// Another status, without a body.
    Status(u16),
    /// To the cloud's metadata.
    Redirect,
    /// Spaces for ever.
    Endless,
    /// A byte now and then.
    Drip,
    /// Says it is compressed; a mebibyte of zeros if anybody unpacked it.
    Compressed,
    /// Nothing, until somebody else is to answer.
    Silence,
    /// Hangs up.
    HangUp,
}

type Answers = dyn Fn(&Asked) -> Reply + Send + Sync;

pub struct AuthorizationServer {
    pub port: u16,
    folder: tempfile::TempDir,
    answers: Arc<Mutex<Arc<Answers>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    changed: Arc<tokio::sync::watch::Sender<u64>>,
    key: KeyPair,
}

impl AuthorizationServer {
    /// It answers nothing but 404 at first.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("Authorization server CA").unwrap();
        let (certificate, key) =
            authority.issue(vec![SanType::DnsName("localhost".try_into().unwrap())], true).unwrap();
        let (client, client_key) =
            authority.issue(vec![SanType::DnsName("gatepost".try_into().unwrap())], false).unwrap();
        let files = [
            ("ca.pem", authority.pem()),
            ("client.pem", client.as_str()),
            ("client.key", client_key.as_str()),
            ("secret", "s3cret: 100%\n"),
        ];
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nothing: Arc<Answers> = Arc::new(|_| Reply::Status(404));
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            folder,
            answers: Arc::new(Mutex::new(nothing)),
            asked: Arc::default(),
            changed: Arc::new(tokio::sync::watch::Sender::new(0)),
            key: KeyPair::generate().unwrap(),
        };
        std::fs::write(server.file("jwks.json"), server.jwks().to_string()).unwrap();
        let (answers, asked, changed) =
            (Arc::clone(&server.answers), Arc::clone(&server.asked), Arc::clone(&server.changed));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answers, asked) = (acceptor.clone(), Arc::clone(&answers), Arc::clone(&asked));
                let changed = changed.subscribe();
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        // A client that has had enough hangs up; that is its good right.
                        let _ = serve(stream, &answers, &asked, changed).await;
                    }
                });
            }
        });
        server
    }

    /// From now on it answers so, also to whom it has kept waiting.
    pub fn answer(&self, answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static) {
        *self.answers.lock() = Arc::new(answers);
        self.changed.send_modify(|version| *version += 1);
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// `ca.pem`, `client.pem`, `client.key`, `secret`, `jwks.json`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Every question so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }

    /// Settings of an issuer whose tokens are opaque.
    pub fn issuer(&self) -> Value {
        json!({
            "issuer": ISSUER, "audiences": ["gatepost"],
            "principal": { "type": "User", "attributes": { "tenant": "tenant" } },
            "introspection": {
                "url": self.url("/introspect"), "client_id": "gate:post", "client_secret_file": self.file("secret"),
                "ca": self.file("ca.pem"), "allow_private_addresses": true,
            },
        })
    }

    /// A JWT of this type, signed as the issuer.
    pub fn sign(&self, kind: &str, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        (header.typ, header.kid) = (Some(kind.to_owned()), Some("as-1".to_owned()));
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ec_der(self.key.serialized_der())).unwrap()
    }

    fn jwks(&self) -> Value {
        let point = self.key.public_key_raw();
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "kid": "as-1", "alg": "ES256", "x": part(1..33), "y": part(33..65),
        }]})
    }
}

/// The answer about a token of `subject` that is active for five minutes, with `changes` laid over it; a null takes a
/// member away.
pub fn active(subject: &str, now: SystemTime, changes: &Value) -> Value {
    let now = unix_seconds(now);
    let mut answer = json!({
        "active": true, "iss": ISSUER, "sub": subject, "aud": "gatepost", "client_id": "web", "token_type": "Bearer",
        "iat": now - 10, "exp": now + 290, "scope": "things:read openid",
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            answer.as_object_mut().unwrap().remove(name);
        } else {
            answer[name] = value.clone();
        }
    }
    answer
}

async fn serve(
    stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    answers: &Mutex<Arc<Answers>>,
    ledger: &Mutex<Vec<Asked>>,
    mut changed: tokio::sync::watch::Receiver<u64>,
) -> std::io::Result<()> {
    let certificate = stream.get_ref().1.peer_certificates().is_some();
    let mut stream = BufReader::new(stream);
    let Some(asked) = read(&mut stream, certificate).await? else { return Ok(()) };
    ledger.lock().push(asked.clone());
    loop {
        changed.mark_unchanged();
        let answers = Arc::clone(&answers.lock());
        let text = match answers(&asked) {
            Reply::Body(body) => {
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
            }
            Reply::Status(status) => {
                format!("HTTP/1.1 {status} Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            }
            Reply::Redirect => {
                "HTTP/1.1 307 There\r\nlocation: https://169.254.169.254/\r\ncontent-length: 0\r\n\r\n".to_owned()
            }
            Reply::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
                loop {
                    stream.write_all(&[b' '; 4096]).await?;
                }
            }
            Reply::Drip => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
                loop {
                    stream.write_all(b" ").await?;
                    stream.flush().await?;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Reply::Compressed => {
                let body = miniz_oxide::deflate::compress_to_vec_zlib(&vec![b' '; 1 << 20], 9);
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-encoding: deflate\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(&body).await?;
                return stream.shutdown().await;
            }
            Reply::Silence => {
                if changed.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            }
            Reply::HangUp => return Ok(()),
        };
        stream.write_all(text.as_bytes()).await?;
        return stream.shutdown().await;
    }
}

/// One HTTP/1.1 request, whole.
async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    certificate: bool,
) -> std::io::Result<Option<Asked>> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? <= 2 {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let form = url::form_urlencoded::parse(&body).into_owned().collect();
    Ok(Some(Asked { method, path, headers, form, certificate }))
}

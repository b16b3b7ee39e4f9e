//! Tokens from end to end: signed here, verified with keys from files, secrets and a real https server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::claims::instant;
use super::fetch::{FetchError, Fetcher};
use super::{SetupProblem, TokenError, UnverifiedToken, VerifiedToken, Verifier};
use crate::clock::ManualClock;
use crate::config::{
    ClaimMapping, ClientAuthentication, IntrospectionConfig, KeySource, Limits, StatusLists, TokenAlgorithm,
    TrustedIssuer,
};
use crate::model::entity::EntityType;
use crate::secret::{ExposeSecret as _, SecretString};

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// An Ed25519 key of an issuer, by its id.
struct Signer {
    id: &'static str,
    pair: Ed25519KeyPair,
}

impl Signer {
    fn new(id: &'static str, seed: u8) -> Self {
        Self { id, pair: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap() }
    }

    fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": self.id}]}).to_string()
    }

    /// A token with `changes` laid over claims that are in order; a null takes a claim away.
    fn token(&self, changes: &Value) -> SecretString {
        let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": self.id});
        let signed = signing_input(&header, changes);
        let signature = self.pair.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)).into()
    }
}

fn signing_input(header: &Value, changes: &Value) -> String {
    let mut claims = json!({
        "iss": "https://issuer.test", "sub": "alice", "aud": "gatepost", "iat": NOW - 60, "exp": NOW + 600,
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    format!("{}.{}", encode(header), encode(&claims))
}

fn issuer(algorithm: TokenAlgorithm, keys: KeySource) -> TrustedIssuer {
    TrustedIssuer {
        issuer: "https://issuer.test".to_owned(),
        audiences: vec!["gatepost".to_owned()],
        algorithms: vec![algorithm],
        keys,
        token_types: Some(["at+jwt".to_owned()].into()),
        clock_skew: Duration::from_secs(30),
        require_sender_constrained: false,
        max_lifetime: Duration::from_secs(900),
        require_token_id: false,
        mapping: ClaimMapping {
            principal_type: EntityType::parse("User").unwrap(),
            id_claim: "sub".to_owned(),
            attributes: Vec::new(),
            parents: Vec::new(),
        },
        introspection: None,
        status_lists: StatusLists::default(),
    }
}

fn shared(secret: &str) -> KeySource {
    KeySource::Shared { secret: secret.as_bytes().to_vec().into(), id: None }
}

struct Bench {
    verifier: Arc<Verifier>,
    clock: Arc<ManualClock>,
    cancel: CancellationToken,
}

impl Bench {
    fn new(issuer: TrustedIssuer) -> Self {
        let clock = ManualClock::at(instant(NOW));
        let verifier = Verifier::new(&[issuer], &Limits::default(), 100, clock.clone()).unwrap();
        Self { verifier: Arc::new(verifier), clock, cancel: CancellationToken::new() }
    }

    /// Keys of `signer` from a file that is gone afterwards: nothing changes any more.
    fn with_keys_of(signer: &Signer) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), signer.jwks()).unwrap();
        Self::new(issuer(TokenAlgorithm::EdDsa, KeySource::File(file.path().to_owned())))
    }

    async fn verify_at(&self, token: &SecretString, now: SystemTime) -> Result<Arc<VerifiedToken>, TokenError> {
        self.verifier.verify(UnverifiedToken::new(token, &Limits::default())?, now).await
    }

    async fn verify(&self, token: &SecretString) -> Result<Arc<VerifiedToken>, TokenError> {
        self.verify_at(token, instant(NOW)).await
    }

    fn ready(&self) -> bool {
        self.verifier.issuers_ready() == [("https://issuer.test".to_owned(), true)]
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Lets the background work until `condition` holds.
async fn until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it never came to pass");
}

#[tokio::test]
async fn a_verified_token_says_who_and_what() {
    let signer = Signer::new("a", 1);
    let bench = Bench::with_keys_of(&signer);
    let token = signer.token(&json!({"scope": "read write", "jti": "j", "azp": "web", "amr": ["otp"], "acr": "2"}));

    let verified = bench.verify(&token).await.unwrap();

    assert_eq!(verified.principal().uid.to_string(), r#"User::"alice""#);
    assert_eq!(verified.expires_at(), instant(NOW + 600));
    let facts = verified.facts();
    assert_eq!(facts.scopes, ["read".to_owned(), "write".to_owned()].into());
    assert_eq!(
        (facts.client_id.as_deref(), facts.key_id.as_deref(), facts.algorithm),
        (Some("web"), Some("a"), "EdDSA")
    );
    assert_eq!(facts.id_sha256.as_ref().map(String::len), Some(64));
    assert!(Arc::ptr_eq(&verified, &bench.verify(&token).await.unwrap()), "the second time it comes from the cache");
}

#[tokio::test]
async fn claims_are_in_order_or_the_token_is_refused() {
    use TokenError::{
        Audience, ClaimLimit, Claims, Expired, IssuedInFuture, Lifetime, NotYetValid, Subject, UnknownIssuer,
    };
    let signer = Signer::new("a", 1);
    let bench = Bench::with_keys_of(&signer);
    let audiences = |count: usize| -> Vec<String> {
        std::iter::once("gatepost".to_owned()).chain((1..count).map(|at| format!("a{at}"))).collect()
    };
    let table = [
        (json!({}), None, "the everyday shape"),
        (json!({"iss": "https://issuer.test/"}), Some(UnknownIssuer), "compared byte for byte"),
        (json!({"iss": null}), Some(Claims), "missing"),
        (json!({"aud": ["other", "gatepost"]}), None, "one of several"),
        (json!({"aud": "gatepost other"}), Some(Audience), "one text is one name"),
        (json!({"aud": ["gatepost", 1]}), Some(Claims), "names are text"),
        (json!({"aud": audiences(16)}), None, "16 audiences"),
        (json!({"aud": audiences(17)}), Some(ClaimLimit), "17 audiences"),
        (json!({"exp": NOW - 29}), None, "within the skew"),
        (json!({"exp": NOW - 30}), Some(Expired), "just past the skew"),
        (json!({"exp": null}), Some(Claims), "missing"),
        (json!({"nbf": NOW + 30}), None, "within the skew"),
        (json!({"nbf": NOW + 31}), Some(NotYetValid), "just past the skew"),
        (json!({"nbf": "0"}), Some(Claims), "a date is a number"),
        (json!({"iat": NOW + 60}), None, "clocks differ"),
        (json!({"iat": NOW + 61}), Some(IssuedInFuture), "but not by so much"),
        (json!({"iat": null}), Some(Claims), "missing"),
        (json!({"exp": NOW - 60 + 900}), None, "as long as it may live"),
        (json!({"exp": NOW - 60 + 901}), Some(Lifetime), "a second longer"),
        (json!({"iat": NOW + 10, "exp": NOW + 5}), Some(Lifetime), "over before it began"),
        (json!({"sub": ""}), Some(Claims), "nobody"),
        (json!({"sub": "a".repeat(1024)}), None, "1 024 bytes"),
        (json!({"sub": "a".repeat(1025)}), Some(Subject), "1 025 bytes"),
        (json!({"sub": "a\u{202e}b"}), Some(Subject), "reorders text"),
        (json!({"client_id": ["a"]}), Some(Claims), "a client has one name"),
    ];
    for (changes, expected, why) in table {
        let got = bench.verify(&signer.token(&changes)).await.err();
        assert_eq!(got, expected, "{changes}: {why}");
    }
    let stranger = Signer::new("a", 9);
    assert_eq!(bench.verify(&stranger.token(&json!({}))).await.err(), Some(TokenError::BadSignature));
    let expired = stranger.token(&json!({"exp": NOW - 999}));
    assert_eq!(bench.verify(&expired).await.err(), Some(TokenError::BadSignature), "the signature goes first");
}

/// Nothing that a forger chooses, but `iss`, decides before the signature does: so it can't be told by time either.
#[tokio::test]
async fn no_claim_but_the_issuer_is_looked_at_before_the_signature() {
    let bench = Bench::with_keys_of(&Signer::new("a", 1));
    let stranger = Signer::new("a", 9);
    let deep = |depth: usize| (0..depth).fold(json!(0), |inner, _| json!([inner]));
    let table = [
        json!({}),
        json!({"aud": "other"}),
        json!({"aud": null}),
        json!({"aud": vec!["a"; 17]}),
        json!({"exp": 1}),
        json!({"exp": "soon"}),
        json!({"nbf": NOW + 9999}),
        json!({"iat": NOW + 9999}),
        json!({"exp": NOW + 999_999}),
        json!({"sub": null}),
        json!({"sub": "a\u{202e}b"}),
        json!({"sub": "a".repeat(2000)}),
        json!({"client_id": "a", "azp": "b"}),
        json!({"cnf": {"jkt": "x"}}),
        json!({"act": {}}),
        json!({"scope": 1}),
        json!({"x": deep(20)}),
    ];
    for changes in table {
        let got = bench.verify(&stranger.token(&changes)).await.err();
        assert_eq!(got, Some(TokenError::BadSignature), "{changes}");
    }
}

/// A cached token must not outlive its `exp`, nor a clock that was set back.
#[tokio::test]
async fn a_cached_token_is_held_against_the_clock_each_time() {
    let signer = Signer::new("a", 1);
    let bench = Bench::with_keys_of(&signer);
    let token = signer.token(&json!({"nbf": NOW - 60}));
    bench.verify(&token).await.unwrap();

    assert!(bench.verify_at(&token, instant(NOW + 629)).await.is_ok());
    assert_eq!(bench.verify_at(&token, instant(NOW + 630)).await.err(), Some(TokenError::Expired));
    assert_eq!(bench.verify_at(&token, instant(NOW - 91)).await.err(), Some(TokenError::NotYetValid));
}

/// The cache is keyed by the whole token: a signature that is known vouches for nothing else.
#[tokio::test]
async fn another_payload_under_a_cached_signature_is_refused() {
    let signer = Signer::new("a", 1);
    let bench = Bench::with_keys_of(&signer);
    let token = signer.token(&json!({}));
    bench.verify(&token).await.unwrap();

    let signature = token.expose_secret().rsplit('.').next().unwrap();
    let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "a"});
    let forged = format!("{}.{signature}", signing_input(&header, &json!({"sub": "admin"})));
    assert_eq!(bench.verify(&forged.into()).await.err(), Some(TokenError::BadSignature));
}

/// Whatever one character is replaced by, it is another token, and nobody signed it.
#[tokio::test]
async fn a_token_with_any_one_character_changed_is_refused() {
    let signer = Signer::new("a", 1);
    let bench = Bench::with_keys_of(&signer);
    let token = signer.token(&json!({}));
    bench.verify(&token).await.unwrap();
    let good = token.expose_secret().as_bytes();
    for at in 0..good.len() {
        for other in [b'A', b'B', b'_', b'.', b'=', b'\n', b'"', 0] {
            let mut changed = good.to_vec();
            if std::mem::replace(&mut changed[at], other) != other {
                let changed = String::from_utf8(changed).unwrap().into();
                assert!(bench.verify(&changed).await.is_err(), "character {at} replaced by {other}");
            }
        }
    }
}

#[tokio::test]
async fn a_shared_key_verifies_hs256_and_nothing_else() {
    let bench = Bench::new(issuer(TokenAlgorithm::Hs256, shared(SECRET)));
    let sign = |secret: &str| -> SecretString {
        let signed = signing_input(&json!({"alg": "HS256", "typ": "at+jwt"}), &json!({}));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)).into()
    };
    assert!(bench.ready());
    assert!(bench.verify(&sign(SECRET)).await.is_ok());
    assert_eq!(bench.verify(&sign("another")).await.err(), Some(TokenError::BadSignature));
    let public = Signer::new("a", 1).token(&json!({}));
    assert_eq!(bench.verify(&public).await.err(), Some(TokenError::Algorithm));
}

/// There is one shared key: a token that names a key names that one.
#[tokio::test]
async fn a_token_may_name_the_shared_key_by_its_id_and_by_no_other() {
    let keys =
        |id: Option<&str>| KeySource::Shared { secret: SECRET.as_bytes().to_vec().into(), id: id.map(str::to_owned) };
    let token = |header: &Value| -> SecretString {
        let signed = signing_input(header, &json!({}));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)).into()
    };
    let plain = json!({"alg": "HS256", "typ": "at+jwt"});
    let named = |id: &str| json!({"alg": "HS256", "typ": "at+jwt", "kid": id});
    let table = [
        (None, plain.clone(), None, "neither has a name"),
        (Some("main"), plain, None, "a token need not name it"),
        (Some("main"), named("main"), None, "and may"),
        (Some("main"), named("Main"), Some(TokenError::UnknownKey), "names are compared as written"),
        (Some("main"), named("../main"), Some(TokenError::UnknownKey), "another"),
        (None, named("main"), Some(TokenError::UnknownKey), "a key without a name is not the one"),
    ];
    for (id, header, expected, why) in table {
        let bench = Bench::new(issuer(TokenAlgorithm::Hs256, keys(id)));
        assert_eq!(bench.verify(&token(&header)).await.err(), expected, "{header}: {why}");
    }
}

/// RFC 8725 section 3.11: a token of another kind is not an access token.
#[tokio::test]
async fn a_token_without_a_type_is_taken_where_that_is_written_and_an_empty_type_nowhere() {
    let signer = Signer::new("a", 1);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), signer.jwks()).unwrap();
    let token = |header: &Value| -> SecretString {
        let signed = signing_input(header, &json!({}));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signer.pair.sign(signed.as_bytes()))).into()
    };
    let plain = json!({"alg": "EdDSA", "kid": "a"});
    let typed = |name: &str| json!({"alg": "EdDSA", "kid": "a", "typ": name});
    let (strict, absent): (&[&str], &[&str]) = (&["at+jwt"], &["at+jwt", ""]);
    let table = [
        (Some(strict), plain.clone(), false, "none, and it is not written"),
        (Some(absent), plain.clone(), true, "none, and it is written"),
        (Some(absent), typed("at+jwt"), true, "the other one"),
        (Some(absent), typed("application/AT+JWT"), true, "spelled in full"),
        (Some(absent), typed(""), false, "an empty type is not none"),
        (Some(absent), typed("application/"), false, "nor is this"),
        (Some(absent), typed("dpop+jwt"), false, "a proof is no token"),
        (None, plain, true, "any"),
        (None, typed(""), true, "any at all"),
    ];
    for (types, header, expected, why) in table {
        let settings = TrustedIssuer {
            token_types: types.map(|types| types.iter().map(|&one| one.to_owned()).collect()),
            ..issuer(TokenAlgorithm::EdDsa, KeySource::File(file.path().to_owned()))
        };
        let got = Bench::new(settings).verify(&token(&header)).await.err();
        assert_eq!(got, (!expected).then_some(TokenError::Type), "{header}: {why}");
    }
}

#[test]
fn an_issuer_that_could_not_be_safe_is_refused_at_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let keys = || KeySource::File(file.path().to_owned());
    let good = issuer(TokenAlgorithm::Hs256, shared(SECRET));
    let nobody = TrustedIssuer { audiences: Vec::new(), ..good.clone() };
    let mixed = TrustedIssuer { algorithms: vec![TokenAlgorithm::Hs256, TokenAlgorithm::Rs256], ..good.clone() };
    let missing = KeySource::File("/nonexistent/jwks.json".into());
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s3cret").unwrap();
    let asking = |name: &str, prefix: &str, authentication: ClientAuthentication| TrustedIssuer {
        issuer: name.to_owned(),
        introspection: Some(IntrospectionConfig {
            url: "https://as.test/introspect".parse().unwrap(),
            client_id: "us".to_owned(),
            authentication,
            ca: None,
            allow_private_addresses: false,
            token_prefix: prefix.to_owned(),
            max_cache: Duration::from_secs(30),
            require_audience: true,
        }),
        ..issuer(TokenAlgorithm::EdDsa, KeySource::Nowhere)
    };
    let with_secret = || ClientAuthentication::SecretFile(secret.path().to_owned());
    let no_certificate = ClientAuthentication::Certificate {
        certificate: secret.path().to_owned(),
        private_key: secret.path().to_owned(),
    };
    let no_secret = ClientAuthentication::SecretFile(file.path().to_owned());
    let table = [
        (vec![asking("a", "a_", with_secret()), asking("b", "b_", with_secret())], None, "letters tell whose it is"),
        (
            vec![asking("a", "a", with_secret()), asking("b", "ab", with_secret())],
            Some(SetupProblem::Prefix),
            "letters that could be both's",
        ),
        (
            vec![asking("a", "", with_secret()), asking("b", "b", with_secret())],
            Some(SetupProblem::Prefix),
            "no letters are everybody's",
        ),
        (vec![asking("a", "", no_secret)], Some(SetupProblem::ClientSecret), "an empty client secret"),
        (vec![asking("a", "", no_certificate)], Some(SetupProblem::ClientCertificate), "no certificate in the file"),
        (vec![good.clone()], None, "the everyday shape"),
        (vec![good.clone(), good.clone()], Some(SetupProblem::Duplicate), "listed twice"),
        (vec![nobody], Some(SetupProblem::Audiences), "tokens for anybody"),
        (vec![mixed], Some(SetupProblem::Algorithms), "symmetric beside public"),
        (vec![issuer(TokenAlgorithm::Rs256, shared(SECRET))], Some(SetupProblem::Algorithms), "a secret for RSA"),
        (vec![issuer(TokenAlgorithm::Hs256, keys())], Some(SetupProblem::Algorithms), "public keys for HMAC"),
        (
            vec![issuer(TokenAlgorithm::Hs256, shared("0123456789abcdef0123456789abcde"))],
            Some(SetupProblem::ShortSecret),
            "31 bytes",
        ),
        (vec![issuer(TokenAlgorithm::Rs256, missing)], Some(SetupProblem::KeyFile), "no file"),
        (vec![issuer(TokenAlgorithm::Rs256, keys())], Some(SetupProblem::KeyDocument), "an empty file"),
    ];
    for (issuers, expected, why) in table {
        let clock = ManualClock::at(instant(NOW));
        let got = Verifier::new(&issuers, &Limits::default(), 0, clock).err();
        assert_eq!(got.map(|error| error.problem), expected, "{why}");
    }
}

/// What the issuer's server answers.
#[derive(Debug, Clone)]
enum Answer {
    Document(String),
    Broken,
    Redirect,
    Endless,
    Silence,
    /// A byte every tenth of a second, for as long as anybody listens.
    Drip,
    /// This body, said to be encoded in this way, or not said.
    Encoded(Option<&'static str>, Vec<u8>),
}

/// An issuer's https server on loopback, with a certificate of its own authority.
struct Server {
    port: u16,
    ca: tempfile::NamedTempFile,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    async fn start(answer: Answer) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca_params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca_params.self_signed(&ca_key).unwrap();
        let ca = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca.path(), ca_certificate.pem()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::Issuer::new(ca_params, ca_key);
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self { port, ca, answer: Arc::new(Mutex::new(answer)), asked: Arc::new(AtomicUsize::new(0)) };
        let (answer, asked) = (Arc::clone(&server.answer), Arc::clone(&server.asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer, asked) = (acceptor.clone(), Arc::clone(&answer), Arc::clone(&asked));
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        asked.fetch_add(1, Ordering::SeqCst);
                        let answer = answer.lock().clone();
                        // A client that has had enough hangs up; that is its good right.
                        let _ = reply(BufReader::new(stream), answer, port).await;
                    }
                });
            }
        });
        server
    }

    fn url(&self) -> Url {
        format!("https://localhost:{}/jwks", self.port).parse().unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn fetcher(&self, private: bool) -> Fetcher {
        let timeout = Duration::from_millis(500);
        Fetcher::new(&self.url(), Some(self.ca.path()), private, 100_000, timeout).unwrap()
    }

    fn bench(&self) -> Bench {
        let ca = Some(self.ca.path().to_owned());
        let keys = KeySource::Url { url: self.url(), ca, allow_private_addresses: true };
        let bench = Bench::new(issuer(TokenAlgorithm::EdDsa, keys));
        bench.verifier.start(&bench.cancel, Arc::new(|_, _| ()));
        bench
    }
}

async fn reply<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    mut stream: BufReader<S>,
    answer: Answer,
    port: u16,
) -> std::io::Result<()> {
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let text = match answer {
        Answer::Document(body) => {
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
        }
        Answer::Broken => "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
        Answer::Redirect => {
            format!("HTTP/1.1 302 Found\r\nlocation: https://localhost:{port}/\r\ncontent-length: 0\r\n\r\n")
        }
        Answer::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
            loop {
                stream.write_all(&[b' '; 4096]).await?;
            }
        }
        Answer::Silence => return std::future::pending().await,
        Answer::Drip => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n").await?;
            loop {
                stream.write_all(b" ").await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Answer::Encoded(encoding, body) => {
            let said = encoding.map_or_else(String::new, |encoding| format!("content-encoding: {encoding}\r\n"));
            let head = format!("HTTP/1.1 200 OK\r\n{said}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body).await?;
            return stream.shutdown().await;
        }
    };
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// THREATS T16: no redirect, no endless body, no silence, no address of our own network.
#[tokio::test]
async fn a_key_server_is_believed_only_when_it_answers_plainly() {
    let table = [
        (Answer::Document("{}".into()), Ok(2), "the everyday shape"),
        (Answer::Broken, Err(FetchError::Status), "an error"),
        (Answer::Redirect, Err(FetchError::Status), "a redirect is not followed"),
        (Answer::Endless, Err(FetchError::Size), "an endless body is cut off"),
        (Answer::Silence, Err(FetchError::Timeout), "nobody waits for long"),
        (Answer::Drip, Err(FetchError::Timeout), "nor for a byte now and then"),
        (Answer::Encoded(Some("gzip"), vec![0x1f, 0x8b, 8]), Err(FetchError::Encoding), "nothing is unpacked"),
        (Answer::Encoded(Some("br"), vec![b'{', b'}']), Err(FetchError::Encoding), "whatever it is"),
        (Answer::Encoded(Some("identity"), vec![b'{', b'}']), Ok(2), "not encoded, and said so"),
        (Answer::Encoded(None, vec![0x1f, 0x8b, 8]), Ok(3), "taken as it is: three bytes, and no JSON"),
    ];
    let server = Server::start(Answer::Broken).await;
    for (at, (answer, expected, why)) in table.into_iter().enumerate() {
        *server.answer.lock() = answer;
        assert_eq!(server.fetcher(true).fetch().await.map(|fetched| fetched.document.len()), expected, "{why}");
        assert_eq!(server.asked(), at + 1, "{why}: asked once");
    }
    assert_eq!(server.fetcher(false).fetch().await, Err(FetchError::Address), "a name for a private address");
    let stranger = Server::start(Answer::Broken).await;
    let timeout = Duration::from_secs(2);
    let distrusting = Fetcher::new(&server.url(), Some(stranger.ca.path()), true, 1000, timeout).unwrap();
    assert_eq!(distrusting.fetch().await, Err(FetchError::Connection), "another authority");
}

#[tokio::test]
async fn a_flood_of_unknown_keys_makes_one_fetch_a_floor() {
    let signer = Signer::new("a", 1);
    let server = Server::start(Answer::Document(signer.jwks())).await;
    let bench = server.bench();
    until(|| bench.ready()).await;
    assert_eq!(server.asked(), 1);

    let floor = Limits::default().jwks_refresh_floor;
    for round in 1..=3 {
        for number in 0..3334 {
            let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": format!("{round}-{number}")});
            let token = format!("{}.c2ln", signing_input(&header, &json!({}))).into();
            assert_eq!(bench.verify(&token).await.err(), Some(TokenError::UnknownKey));
            if number % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        until(|| server.asked() >= round).await;
        assert_eq!(server.asked(), round, "one for every floor that has passed");
        assert!(bench.verify(&signer.token(&json!({}))).await.is_ok(), "and nobody suffers");
        bench.clock.advance(floor);
    }
}

#[tokio::test]
async fn a_rotated_key_is_picked_up_and_the_old_one_stops_working() {
    let (old, new) = (Signer::new("old", 1), Signer::new("new", 2));
    let server = Server::start(Answer::Document(old.jwks())).await;
    let bench = server.bench();
    let (old_token, new_token) = (old.token(&json!({})), new.token(&json!({})));
    assert_eq!(bench.verify(&old_token).await.err(), Some(TokenError::IssuerUnavailable), "no keys yet");
    until(|| bench.ready()).await;
    assert!(bench.verify(&old_token).await.is_ok(), "and now it is cached");

    *server.answer.lock() = Answer::Document(new.jwks());
    bench.clock.advance(Limits::default().jwks_refresh_floor);
    assert_eq!(bench.verify(&new_token).await.err(), Some(TokenError::UnknownKey), "nobody waits for the fetch");
    let before = bench.verifier.generations();
    until(|| bench.verifier.generations() != before).await;

    assert!(bench.verify(&new_token).await.is_ok());
    assert_eq!(bench.verify(&old_token).await.err(), Some(TokenError::UnknownKey), "though it was cached");
}

#[tokio::test]
async fn the_last_good_keys_serve_through_an_outage_until_they_are_too_old() {
    let signer = Signer::new("a", 1);
    let server = Server::start(Answer::Document(signer.jwks())).await;
    let bench = server.bench();
    until(|| bench.ready()).await;
    let (token, stranger) = (signer.token(&json!({})), Signer::new("b", 2).token(&json!({})));
    let limits = Limits::default();

    for (outage, round) in [Answer::Broken, Answer::Document("<html>".into())].into_iter().zip(2..) {
        *server.answer.lock() = outage;
        bench.clock.advance(limits.jwks_refresh_floor);
        assert_eq!(bench.verify(&stranger).await.err(), Some(TokenError::UnknownKey));
        until(|| server.asked() == round).await;
        assert!(bench.verify(&token).await.is_ok());
    }
    bench.clock.advance(limits.jwks_max_stale - limits.jwks_refresh_floor * 2);
    assert!(bench.verify(&token).await.is_ok(), "just young enough");
    bench.clock.advance(Duration::from_nanos(1));
    assert_eq!(bench.verify(&token).await.err(), Some(TokenError::IssuerUnavailable), "too old, cached or not");
    assert!(!bench.ready());
}

#[tokio::test]
async fn a_key_file_is_read_again_and_a_broken_one_changes_nothing() {
    let (old, new) = (Signer::new("old", 1), Signer::new("new", 2));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), old.jwks()).unwrap();
    let bench = Bench::new(issuer(TokenAlgorithm::EdDsa, KeySource::File(file.path().to_owned())));
    let (old_token, new_token) = (old.token(&json!({})), new.token(&json!({})));
    assert!(bench.verify(&old_token).await.is_ok());

    std::fs::write(file.path(), "{\"keys\":[").unwrap();
    bench.verifier.refresh_all().await;
    assert!(bench.verify(&old_token).await.is_ok(), "half a file");

    std::fs::write(file.path(), new.jwks()).unwrap();
    bench.verifier.refresh_all().await;
    assert!(bench.verify(&new_token).await.is_ok());
    assert_eq!(bench.verify(&old_token).await.err(), Some(TokenError::UnknownKey));
}

/// A fault in the middle of a refresh is not the end of all refreshing.
#[tokio::test]
async fn keys_are_looked_for_again_after_a_fault_of_ours() {
    let (old, new) = (Signer::new("a", 1), Signer::new("b", 2));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), old.jwks()).unwrap();
    let bench = Bench::new(issuer(TokenAlgorithm::EdDsa, KeySource::File(file.path().to_owned())));
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let told = move |_: &str, _| assert!(counted.fetch_add(1, Ordering::SeqCst) > 0, "a fault that this test is about");
    bench.verifier.start(&bench.cancel, Arc::new(told));
    until(|| attempts.load(Ordering::SeqCst) == 1).await;
    std::fs::write(file.path(), new.jwks()).unwrap();
    bench.clock.advance(Limits::default().jwks_refresh_floor);
    until(|| attempts.load(Ordering::SeqCst) == 2).await;
    assert!(bench.verify(&new.token(&json!({}))).await.is_ok());
    assert_eq!(bench.verify(&old.token(&json!({}))).await.unwrap_err(), TokenError::UnknownKey);
}

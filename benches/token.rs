//! What it takes to verify a token that was never seen, beside what the verification itself takes.
//!
//! ```text
//! cargo bench --bench token
//! ```
//!
//! Every token is signed beforehand and is another one, so that none is found in the cache that is filled with them, as in
//! the server. The same tokens are verified by `jsonwebtoken` alone (signature, issuer, audience, times, into a struct with the
//! registered claims), in the same process, batch by batch in turn. Times are what the kernel charged to the thread; medians
//! over batches.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use clap::Parser;
use futures_util::FutureExt as _;
use gatepost::cli::demo::world::{AUDIENCE, CLIENT, ISSUER, World};
use gatepost::clock::{SystemClock, unix_seconds};
use gatepost::config::load::{Source, load};
use gatepost::secret::SecretString;
use gatepost::token::Verifier;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, RsaKeySize};
use serde::Deserialize;
use serde_json::{Value, json};

#[expect(dead_code, reason = "the other benches ask for more")]
mod support;

use support::Failure;
use support::process::charged;

/// The same as in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the first sight of tokens.
#[derive(Parser)]
struct Options {
    /// Batches of each measurement; the median is printed
    #[arg(long, default_value_t = 11)]
    batches: usize,
    /// Tokens in a batch
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

/// A key to sign with, and its other half.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    public: Jwk,
}

/// Microseconds a token.
struct Found {
    algorithm: Algorithm,
    gatepost: f64,
    bare: f64,
}

/// What any service would read.
#[derive(Deserialize)]
#[expect(dead_code, reason = "reading them is the work")]
struct Registered {
    iss: String,
    sub: String,
    aud: String,
    exp: u64,
    iat: u64,
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let folder = tempfile::tempdir()?;
    let world = World::create(folder.path())?;
    let signers = [Signer::es256()?, Signer::rs256()?];
    let mut settings = world.configuration(&folder.path().join("policies"));
    *settings.pointer_mut("/issuers/0/algorithms").ok_or("the demo's configuration has changed")? =
        json!(["ES256", "RS256"]);
    std::fs::create_dir(folder.path().join("policies"))?;
    world.write("gatepost.yaml", &settings.to_string())?;
    world.write("jwks.json", &json!({ "keys": signers.each_ref().map(|signer| &signer.public) }).to_string())?;
    let config = load(&Source::file(folder.path().join("gatepost.yaml"))).map_err(|report| report.to_string())?;
    let verifier = Verifier::new(&config.issuers, &config.limits, config.cache.tokens, SystemClock::shared())?;
    let found = signers.iter().map(|signer| measure(&options, signer, &verifier)).collect::<Result<Vec<_>, _>>()?;
    print(&options, &found)
}

fn measure(options: &Options, signer: &Signer, verifier: &Verifier) -> Result<Found, Failure> {
    let now = SystemClock::shared().now();
    let bare = Bare::new(signer)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for batch in 0..=options.batches {
        let tokens =
            (0..options.tokens).map(|number| signer.sign(batch, number, now)).collect::<Result<Vec<_>, _>>()?;
        let secrets: Vec<SecretString> = tokens.iter().map(|token| token.as_str().into()).collect();
        let start = charged()?;
        for token in &tokens {
            bare.verify(token)?;
        }
        let between = charged()?;
        for token in &secrets {
            // It waits for nothing: the token is a JWT.
            verifier.check(token, now).now_or_never().ok_or("it had to wait")??;
        }
        let end = charged()?;
        // The first batch warms up.
        if batch > 0 {
            theirs.push(between.saturating_sub(start));
            ours.push(end.saturating_sub(between));
        }
    }
    let each = |times: &mut Vec<Duration>| median(times).as_secs_f64() * 1e6 / options.tokens as f64;
    Ok(Found { algorithm: signer.algorithm, gatepost: each(&mut ours), bare: each(&mut theirs) })
}

impl Signer {
    fn es256() -> Result<Self, Failure> {
        let pair = KeyPair::generate()?;
        Self::new(Algorithm::ES256, EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes())?)
    }

    fn rs256() -> Result<Self, Failure> {
        let pair = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        Self::new(Algorithm::RS256, EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes())?)
    }

    fn new(algorithm: Algorithm, key: EncodingKey) -> Result<Self, Failure> {
        let mut public = Jwk::from_encoding_key(&key, algorithm)?;
        public.common.key_id = Some(format!("{algorithm:?}"));
        Ok(Self { algorithm, key, public })
    }

    /// One of many; no other batch or number has the same.
    fn sign(&self, batch: usize, number: usize, now: SystemTime) -> Result<String, Failure> {
        let issued = unix_seconds(now);
        let claims: Value = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": format!("user-{number}"), "iat": issued, "nbf": issued,
            "exp": issued + 14 * 60, "client_id": CLIENT, "jti": format!("{batch}-{number}"), "tenant": "acme",
            "roles": ["support"], "scope": "openid profile orders",
        });
        let mut header = Header::new(self.algorithm);
        header.typ = Some("at+jwt".to_owned());
        header.kid.clone_from(&self.public.common.key_id);
        Ok(jsonwebtoken::encode(&header, &claims, &self.key)?)
    }
}

/// Verification itself, as the library does it that is under ours too.
struct Bare {
    key: DecodingKey,
    rules: Validation,
}

impl Bare {
    fn new(signer: &Signer) -> Result<Self, Failure> {
        let mut rules = Validation::new(signer.algorithm);
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[ISSUER]);
        rules.validate_nbf = true;
        Ok(Self { key: DecodingKey::from_jwk(&signer.public)?, rules })
    }

    fn verify(&self, token: &str) -> Result<(), Failure> {
        let verified = jsonwebtoken::decode::<Registered>(token, &self.key, &self.rules)?;
        std::hint::black_box(verified);
        Ok(())
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn print(options: &Options, found: &[Found]) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    if options.json {
        let row = |row: &Found| json!({ "algorithm": format!("{:?}", row.algorithm), "gatepost_us": row.gatepost, "bare_us": row.bare });
        return Ok(writeln!(out, "{:#}", json!(found.iter().map(row).collect::<Vec<_>>()))?);
    }
    for row in found {
        let (algorithm, ratio) = (row.algorithm, row.gatepost / row.bare);
        writeln!(out, "{algorithm:?}: {:.1} µs, bare {:.1} µs: {ratio:.2} times as much", row.gatepost, row.bare)?;
    }
    Ok(())
}

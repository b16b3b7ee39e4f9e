//! Whatever an issuer's key server does, good tokens are allowed and bad ones denied: over real TLS, with real answers,
//! and through the gRPC door. THREATS T16, F6, F7 and F9.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use gatepost::cli::demo::world::ISSUER;
use gatepost::clock::{Clock as _, SystemClock};
use gatepost::config::Limits;
use gatepost::proto::v1;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::support::key_server::{ALGORITHMS, Answer, KeyServer, Signer, Trap, forged, jwks};
use crate::support::{Gatepost, PATIENCE, eventually};
use crate::wire::{Reply, channel, check, object, reference, text, with_token};

/// A question about one's own order.
fn question(token: &str, subject: &str) -> v1::CheckRequest {
    let resource = object(
        "Order",
        "o-1",
        [
            ("tenant", reference("Tenant", "acme")),
            ("customer", reference("User", subject)),
            ("status", text("open")),
            ("total", crate::wire::number(1250.0)),
        ],
    );
    with_token(token, "Order.read", resource)
}

/// Gatepost with an issuer whose keys come from a server of ours.
struct Bench {
    gatepost: Gatepost,
    channel: Channel,
    signer: Signer,
    /// Attempts to get keys, counted by their end.
    attempts: usize,
}

impl Bench {
    /// Waits for the keys of `signer`, which `server` gives away.
    async fn start(signer: Signer, change: impl FnOnce(&mut Value)) -> Self {
        let gatepost = Gatepost::start_with(|settings| {
            settings["limits"]["jwks_timeout"] = json!("500ms");
            change(settings);
        })
        .await;
        let channel = channel(&gatepost, "storefront").await;
        let mut bench = Self { gatepost, channel, signer, attempts: 0 };
        bench.attempt_ends(1).await;
        bench
    }

    fn now(&self) -> SystemTime {
        self.gatepost.clock.now()
    }

    async fn ask(&self, token: &str) -> Reply {
        check(&self.channel, &question(token, "alice")).await
    }

    /// A token of the good key is allowed.
    async fn good(&self, why: &str) {
        assert_eq!(self.ask(&self.signer.token("alice", self.now())).await.told(), "ALLOW", "{why}");
    }

    /// Lets the floor pass and gives a cause to fetch.
    async fn wish(&self) {
        self.gatepost.clock.advance(Limits::default().jwks_refresh_floor);
        let told = self.ask(&forged("EdDSA", "nobody-has-this", self.now())).await.told();
        assert_eq!(told, "DENY TOKEN_REJECTED", "nobody waits for the fetch");
    }

    /// Waits until `count` more attempts have ended, and sees that there were no more.
    async fn attempt_ends(&mut self, count: usize) {
        self.attempts += count;
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.attempts_so_far().await < self.attempts {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "the attempt does not end");
        assert_eq!(self.attempts_so_far().await, self.attempts);
    }

    async fn attempts_so_far(&self) -> usize {
        let metrics = self.gatepost.metrics().await;
        let counts = metrics.lines().filter(|line| line.starts_with("gatepost_jwks_refreshes_total{"));
        counts.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
    }

    /// What became of every question so far: the first check that its token failed, by decision id.
    fn refusals(&self) -> BTreeMap<String, String> {
        let records = self.gatepost.call_records();
        let refusal = |record: &Value| {
            let id = record["metadata"]["original_event_uid"].as_str()?.to_owned();
            Some((id, record["unmapped"]["gatepost"]["token_refusal"].as_str()?.to_owned()))
        };
        records.iter().filter_map(refusal).collect()
    }
}

/// Answers that must change nothing, and why.
fn bad_answers(trap: &Trap) -> Vec<(Answer, String)> {
    let redirect = |status: &str, to: &str| {
        (Answer::with(&format!("{status}\r\nlocation: {to}"), b""), format!("{status} to {to}"))
    };
    let elsewhere = format!("https://127.0.0.1:{}/", trap.port);
    let mut answers = vec![
        redirect("301 Moved", "https://169.254.169.254/latest/meta-data/"),
        redirect("302 Found", &elsewhere),
        redirect("303 See Other", &elsewhere),
        redirect("307 Temporary", &format!("http://127.0.0.1:{}/", trap.port)),
        redirect("308 Permanent", &format!("https://localhost:{}/", trap.port)),
        redirect("200 OK\r\nrefresh: 0", &elsewhere),
    ];
    let evil = Signer::new("nobody-has-this");
    let keys = jwks([&evil]);
    let bomb = {
        // 8 MiB of white space between brackets, in a few kilobytes.
        let plain = format!("{{\"keys\":[{}]}}", " ".repeat(8 << 20));
        gzip(plain.as_bytes())
    };
    assert!(bomb.len() < 100_000, "small on the wire");
    let plain: Vec<(Answer, &str)> = vec![
        (Answer::with("500 Oops", keys.as_bytes()), "an error, with keys"),
        (Answer::with("404 Not Found", keys.as_bytes()), "nothing there, with keys"),
        (Answer::with("204 No Content", b""), "nothing at all"),
        (Answer::with("206 Partial Content", keys.as_bytes()), "a part"),
        (Answer::with("200 OK", b"<html><body>sign in</body></html>"), "a page for people"),
        (Answer::with("200 OK", b""), "an empty body"),
        (Answer::with("200 OK", b"{}"), "no key set"),
        (Answer::with("200 OK", &[0; 1000]), "zeros"),
        (Answer::with("200 OK", &[&b"\xef\xbb\xbf"[..], keys.as_bytes()].concat()), "a byte order mark"),
        (Answer::with("200 OK\r\ncontent-encoding: gzip", &gzip(keys.as_bytes())), "good keys, compressed"),
        (Answer::with("200 OK\r\ncontent-encoding: gzip", &bomb), "a bomb"),
        (Answer::with("200 OK", &bomb), "a bomb in plain clothes"),
        (
            Answer::with("200 OK\r\ncontent-encoding: identity\r\ncontent-encoding: br", keys.as_bytes()),
            "encoded twice",
        ),
        (Answer::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"keys\":[]}".to_vec()), "cut short"),
        (Answer::Bytes(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec()), "no chunk"),
        (Answer::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 9\r\n\r\n{}".to_vec()), "two lengths"),
        (Answer::Bytes(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), "not HTTP"),
        (Answer::Bytes(Vec::new()), "hung up"),
        (Answer::Drip, "a byte now and then"),
        (Answer::Endless(b"\r\n                "), "an endless body"),
        (Answer::Endless(b"x-more: and more\r\n"), "endless headers"),
        (Answer::Late(Duration::from_secs(3600), keys.clone()), "an answer too late"),
        (Answer::Document(format!("{{\"keys\":[]{}}}", " ".repeat(256 << 10))), "256 KiB and a few bytes"),
        (Answer::Document(json!({ "keys": vec![evil.jwk(); 65] }).to_string()), "65 keys"),
    ];
    answers.extend(plain.into_iter().map(|(answer, why)| (answer, why.to_owned())));
    answers
}

/// RFC 1952 around RFC 1951.
fn gzip(plain: &[u8]) -> Vec<u8> {
    let deflated = miniz_oxide::deflate::compress_to_vec(plain, 9);
    let crc = !plain.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1)))
    });
    let size = u32::try_from(plain.len()).unwrap();
    [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &deflated, &crc.to_le_bytes(), &size.to_le_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_a_key_server_takes_the_good_keys_away_or_leads_elsewhere() {
    let (trap, signer) = (Trap::set().await, Signer::new("good"));
    let server = KeyServer::start(Answer::Document(jwks([&signer]))).await;
    let good_document = jwks([&signer]);
    let mut bench = Bench::start(signer, |settings| server.take_over(settings)).await;
    bench.good("the keys are there").await;
    let answers = bad_answers(&trap);
    let count = answers.len();
    for (at, (answer, why)) in answers.into_iter().enumerate() {
        server.answers("/jwks", answer);
        bench.wish().await;
        // More causes while the attempt is under way.
        for number in 0..5 {
            bench.ask(&forged("EdDSA", &format!("kid-{number}"), bench.now())).await;
            bench.good(&why).await;
        }
        bench.attempt_ends(1).await;
        assert_eq!(server.asked("/jwks"), at + 2, "{why}: asked once");
        bench.good(&why).await;
        let forged = forged("EdDSA", "nobody-has-this", bench.now());
        assert_eq!(bench.ask(&forged).await.told(), "DENY TOKEN_REJECTED", "{why}: nothing of it was taken");
        assert_eq!(bench.refusals().values().filter(|word| *word == "BAD_SIGNATURE").count(), 0, "{why}");
    }
    let metrics = bench.gatepost.metrics().await;
    let failed = metrics.lines().find(|line| line.contains("refreshes_total") && line.contains("failed")).unwrap();
    assert!(failed.ends_with(&format!(" {count}")), "each one failed: {failed}");
    assert_eq!((server.paths().len(), trap.came()), (1, 0), "nobody went anywhere else");

    // Flapping: every second answer is good.
    for round in 0..10 {
        let bad = Answer::with("503 Unavailable", b"");
        server.answers("/jwks", if round % 2 == 0 { bad } else { Answer::Document(good_document.clone()) });
        bench.wish().await;
        bench.attempt_ends(1).await;
        bench.good("flapping").await;
    }
    println!("{count} bad answers and 10 flapping ones: good tokens allowed throughout, 0 connections elsewhere");
}

/// The usable keys of a document, seen from outside: a token that names a usable key fails at its signature, one that
/// names another fails at its key.
#[tokio::test(flavor = "multi_thread")]
async fn every_hostile_key_set_that_is_served_gives_exactly_its_usable_keys() {
    let (trap, signer) = (Trap::set().await, Signer::new("good"));
    let good_document = jwks([&signer]);
    let server = KeyServer::start(Answer::Document(good_document.clone())).await;
    let mut bench = Bench::start(signer, |settings| server.take_over(settings)).await;
    let corpus = hostile_documents();
    let mut asked: Vec<(String, String, String, bool)> = Vec::new();
    for case in corpus["cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        server.answers("/jwks", Answer::Document(good_document.clone()));
        bench.wish().await;
        bench.attempt_ends(1).await;
        bench.good(id).await;

        let body = generated(case).unwrap_or_else(|| case["body"].as_str().unwrap().to_owned());
        let pointed = pointing_at(&body, &trap);
        server.answers("/jwks", Answer::Document(pointed));
        bench.wish().await;
        bench.attempt_ends(1).await;
        let keep = case["keep_previous"] == true;
        let told = bench.ask(&bench.signer.token("alice", bench.now())).await.told();
        assert_eq!(told, if keep { "ALLOW" } else { "DENY TOKEN_REJECTED" }, "{id}: the key from before");
        let usable: BTreeSet<&str> =
            case["usable_kids"].as_array().unwrap().iter().map(|kid| kid.as_str().unwrap()).collect();
        for kid in kids(&body).iter().map(String::as_str).chain(usable.iter().copied()).collect::<BTreeSet<_>>() {
            for algorithm in ALGORITHMS {
                let reply = bench.ask(&forged(algorithm, kid, bench.now())).await;
                assert_eq!(reply.told(), "DENY TOKEN_REJECTED", "{id}: nobody signed");
                let either = case["policy"] == true;
                asked.push((format!("{id} {kid}"), reply.decision_id().unwrap(), algorithm.to_owned(), either));
            }
        }
        let refusals = bench.refusals();
        let found: BTreeSet<&str> = asked
            .iter()
            .filter(|(_, decision, ..)| refusals[decision] == "BAD_SIGNATURE")
            .map(|(name, ..)| name.split_once(' ').unwrap().1)
            .collect();
        let left_to_us = case["policy"] == true && found.is_empty();
        assert!(found == usable || left_to_us, "{id}: {found:?} instead of {usable:?}");
        asked.clear();
    }
    assert_eq!((server.paths().len(), trap.came()), (1, 0), "0 connections elsewhere");
    println!(
        "{} key sets served over https: usable keys as the corpus says",
        corpus["cases"].as_array().unwrap().len()
    );
}

/// The corpus, from the folder of corpora or from our own copy.
fn hostile_documents() -> Value {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("GATEPOST_CONFORMANCE").map(std::path::PathBuf::from);
    let folders = [named.unwrap_or_else(|| here.join("../shared/conformance")), here.join("tests/conformance/data")];
    let mut files = folders.iter().map(|folder| folder.join("jwt-attacks/jwks-documents.json"));
    let file = files.find(|file| file.exists()).unwrap();
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// A document that is too long to be written out.
fn generated(case: &Value) -> Option<String> {
    let recipe = case["generate"].as_str()?;
    let count: usize = recipe.strip_prefix("{\"keys\":[")?.split_once(" x ")?.0.replace(' ', "").parse().unwrap();
    let key = |at: usize| json!({ "kty": "RSA", "n": "nNPy", "e": "AQAB", "kid": format!("k{at}"), "use": "sig" });
    Some(json!({ "keys": (0..count).map(key).collect::<Vec<_>>() }).to_string())
}

/// The document with an address in every key that nobody may follow.
fn pointing_at(body: &str, trap: &Trap) -> String {
    let Ok(mut document) = serde_json::from_str::<Value>(body) else { return body.to_owned() };
    // Only where reading and writing it again loses nothing.
    if document.to_string().len() != body.chars().filter(|c| !c.is_whitespace()).collect::<String>().len() {
        return body.to_owned();
    }
    let keys = document.get_mut("keys").and_then(Value::as_array_mut);
    for key in keys.into_iter().flatten().filter_map(Value::as_object_mut) {
        for name in ["x5u", "jku"] {
            key.entry(name).or_insert_with(|| json!(format!("https://127.0.0.1:{}/{name}", trap.port)));
        }
    }
    document.to_string()
}

/// Every id in the document that a token could name.
fn kids(body: &str) -> BTreeSet<String> {
    let document: Value = serde_json::from_str(body).unwrap_or_default();
    let keys = document.get("keys").and_then(Value::as_array).cloned().unwrap_or_default();
    let named = keys.iter().filter_map(|key| key["kid"].as_str()).filter(|kid| (1..=256).contains(&kid.len()));
    named.take(4).map(str::to_owned).collect()
}

/// No token says where its key is to be had.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_points_somewhere_makes_nobody_go_there() {
    let (trap, signer) = (Trap::set().await, Signer::new("good"));
    let server = KeyServer::start(Answer::Document(jwks([&signer]))).await;
    let bench = Bench::start(signer, |settings| server.take_over(settings)).await;
    let elsewhere = format!("https://127.0.0.1:{}/jwks", trap.port);
    let evil = Signer::new("good");
    let headers = [
        json!({ "kid": "good", "jku": elsewhere }),
        json!({ "kid": "good", "x5u": elsewhere }),
        json!({ "kid": "good", "x5c": ["MIIB"] }),
        json!({ "kid": "good", "jwk": evil.jwk() }),
        json!({ "kid": elsewhere }),
        json!({ "kid": "good", "iss": elsewhere }),
        json!({ "jku": elsewhere }),
    ];
    for header in &headers {
        let told = bench.ask(&evil.token_with(header, "alice", bench.now())).await.told();
        assert_eq!(told, "DENY TOKEN_REJECTED", "{header}");
    }
    // Not even when the signature is good.
    for name in ["jku", "x5u", "x5c", "jwk"] {
        let header = json!({ "kid": "good", name: elsewhere });
        let told = bench.ask(&bench.signer.token_with(&header, "alice", bench.now())).await.told();
        assert_eq!(told, "DENY TOKEN_REJECTED", "{header}");
    }
    bench.good("a plain token").await;
    assert_eq!((server.paths().len(), trap.came()), (1, 0));
}

/// F7: a fetch that takes half a minute is nobody's business but its own.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_key_server_that_takes_thirty_seconds() {
    let signer = Signer::new("good");
    let document = jwks([&signer]);
    let server = KeyServer::start(Answer::Document(document.clone())).await;
    let bench = Bench::start(signer, |settings| {
        server.take_over(settings);
        settings["limits"]["jwks_timeout"] = json!("60s");
    })
    .await;
    let answered = server.answered();
    server.answers("/jwks", Answer::Late(Duration::from_secs(30), document));
    bench.wish().await;
    eventually("the fetch is under way", || server.asked("/jwks") == 2).await;

    let watch = SystemClock::shared();
    let mut slowest = Duration::ZERO;
    for number in 0..200 {
        let begun = watch.monotonic();
        if number % 2 == 0 {
            bench.good("while the fetch is under way").await;
        } else {
            let token = forged("EdDSA", &format!("kid-{number}"), bench.now());
            assert_eq!(bench.ask(&token).await.told(), "DENY TOKEN_REJECTED");
        }
        slowest = slowest.max(watch.monotonic() - begun);
        bench.gatepost.clock.advance(Duration::from_secs(1));
    }
    assert_eq!((server.asked("/jwks"), server.answered()), (2, answered), "still the one fetch, and it has no answer");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    println!("200 questions while one fetch hangs: the slowest took {slowest:?}");
}

/// THREATS T16: a flood of ids that nobody has costs one fetch a floor, and nobody's decision.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_unknown_keys_cost_one_fetch_a_floor_and_nobody_s_decision() {
    const FLOOD: usize = 10_000;
    let signer = Signer::new("good");
    let server = KeyServer::start(Answer::Document(jwks([&signer]))).await;
    let bench = Arc::new(Bench::start(signer, |settings| server.take_over(settings)).await);
    assert_eq!(server.asked("/jwks"), 1);
    let over = Arc::new(AtomicBool::new(false));
    let watching = {
        let (bench, over) = (Arc::clone(&bench), Arc::clone(&over));
        tokio::spawn(async move {
            let (watch, mut times) = (SystemClock::shared(), Vec::new());
            while !over.load(Ordering::Relaxed) {
                let begun = watch.monotonic();
                bench.good("in the flood").await;
                times.push(watch.monotonic() - begun);
            }
            times.sort();
            times
        })
    };
    let mut channels = Vec::new();
    for _ in 0..8 {
        channels.push(channel(&bench.gatepost, "back-office").await);
    }
    for round in 1..=2 {
        bench.gatepost.clock.advance(Limits::default().jwks_refresh_floor);
        let floods: Vec<_> = channels
            .iter()
            .enumerate()
            .map(|(task, channel)| {
                let (bench, channel) = (Arc::clone(&bench), channel.clone());
                tokio::spawn(async move {
                    for number in 0..FLOOD / 16 {
                        let kid = format!("{round}-{task}-{number}");
                        let reply = check(&channel, &question(&forged("EdDSA", &kid, bench.now()), "alice")).await;
                        assert_eq!(reply.told(), "DENY TOKEN_REJECTED");
                    }
                })
            })
            .collect();
        for flood in floods {
            flood.await.unwrap();
        }
        eventually("the one fetch of this floor", || server.asked("/jwks") > round).await;
        assert_eq!(server.asked("/jwks"), round + 1, "one for every floor that has passed");
    }
    over.store(true, Ordering::Relaxed);
    let times = watching.await.unwrap();
    let (count, worst) = (times.len(), times[times.len() - 1]);
    let late = times[times.len() * 99 / 100];
    assert!(count > 10 && worst < Duration::from_secs(5), "{count} good tokens, the slowest after {worst:?}");
    println!(
        "{FLOOD} unknown ids: 2 fetches in 2 floors; {count} good tokens beside them, p99 {late:?}, worst {worst:?}"
    );
}

/// OpenID Connect Discovery section 4, RFC 8414 section 3.
#[tokio::test(flavor = "multi_thread")]
async fn a_discovery_document_leads_to_the_keys_and_to_nothing_else() {
    let (trap, signer) = (Trap::set().await, Signer::new("good"));
    let server = KeyServer::start(Answer::Document(jwks([&signer]))).await;
    let metadata = |issuer: &str, keys: &str| {
        let elsewhere = format!("https://127.0.0.1:{}/", trap.port);
        let document = json!({
            "issuer": issuer, "jwks_uri": keys, "token_endpoint": elsewhere, "authorization_endpoint": elsewhere,
            "response_types_supported": ["code"], "claims_supported": ["sub"],
        });
        Answer::Document(document.to_string())
    };
    server.answers("/discovery", metadata(ISSUER, &server.url("/jwks")));
    let second = KeyServer::start(Answer::Document("{}".into())).await;
    let hosts = [format!("localhost:{}", second.port)];
    let authorities = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(authorities.path(), server.authority() + &second.authority()).unwrap();
    let mut bench = Bench::start(signer, |settings| {
        server.take_over_discovery(settings, &hosts);
        settings["issuers"][0]["jwks_ca"] = json!(authorities.path());
    })
    .await;
    bench.good("found").await;
    assert_eq!((server.asked("/discovery"), server.asked("/jwks")), (1, 1), "one attempt, one fetch of each");

    // The issuer moves its keys and signs with another.
    let moved = Signer::new("moved");
    server.answers("/keys/2", Answer::Document(jwks([&bench.signer, &moved])));
    server.answers("/discovery", metadata(ISSUER, &server.url("/keys/2")));
    bench.wish().await;
    bench.attempt_ends(1).await;
    assert_eq!(bench.ask(&moved.token("alice", bench.now())).await.told(), "ALLOW");
    assert_eq!((server.asked("/discovery"), server.asked("/jwks"), server.asked("/keys/2")), (2, 1, 1));

    let port = trap.port;
    let table = [
        (metadata("https://evil.example", &server.url("/jwks")), "another issuer's"),
        (metadata(&format!("{ISSUER}/"), &server.url("/jwks")), "an issuer that is nearly this one"),
        (metadata(ISSUER, &format!("https://localhost:{port}/jwks")), "another port"),
        (metadata(ISSUER, &format!("https://127.0.0.1:{}/jwks", server.port)), "another name of the host"),
        (metadata(ISSUER, &format!("https://127.0.0.1:{port}/jwks")), "an address"),
        (metadata(ISSUER, "https://169.254.169.254/latest/meta-data"), "cloud metadata"),
        (metadata(ISSUER, &server.url("/jwks").replace("https", "http")), "in the clear"),
        (metadata(ISSUER, &format!("https://localhost:{}@127.0.0.1:{port}/", server.port)), "a user like the host"),
        (Answer::with(&format!("302 Found\r\nlocation: https://127.0.0.1:{port}/"), b""), "a redirect"),
        (Answer::Document(jwks([&moved])), "a key set in its place"),
        (Answer::Document(" ".repeat((256 << 10) + 1)), "too long"),
        (Answer::Drip, "a byte now and then"),
    ];
    let count = table.len();
    for (at, (answer, why)) in table.into_iter().enumerate() {
        server.answers("/discovery", answer);
        bench.wish().await;
        bench.good(why).await;
        bench.attempt_ends(1).await;
        bench.good(why).await;
        assert_eq!((server.asked("/discovery"), server.asked("/jwks")), (at + 3, 1), "{why}");
    }

    // Both fetches have one time-out between them: half of it each is fine, most of it each is too much.
    server.answers("/slow", Answer::Late(Duration::from_millis(400), jwks([&moved])));
    let slow = json!({ "issuer": ISSUER, "jwks_uri": server.url("/slow") }).to_string();
    server.answers("/discovery", Answer::Late(Duration::from_millis(400), slow));
    bench.wish().await;
    bench.attempt_ends(1).await;
    bench.good("the attempt took too long, so the keys from before are still there").await;

    // Another host that was named may be led to.
    let third = Signer::new("third");
    second.answers("/jwks", Answer::Document(jwks([&bench.signer, &third])));
    server.answers("/discovery", metadata(ISSUER, &second.url("/jwks")));
    bench.wish().await;
    bench.attempt_ends(1).await;
    assert_eq!(bench.ask(&third.token("alice", bench.now())).await.told(), "ALLOW");
    assert_eq!(second.asked("/jwks"), 1);
    assert_eq!(trap.came(), 0, "0 connections elsewhere");
    println!("{count} discovery documents that lead elsewhere: 0 followed");
}

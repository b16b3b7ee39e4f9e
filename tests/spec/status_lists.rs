//! Token status lists: a token that points to one counts while the list says so, and not a moment on hearsay.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatepost::clock::{Clock as _, unix_seconds};
use gatepost::config::Limits;
use gatepost::model::decision::DenialCode;
use serde_json::{Value, json};

use crate::authorization_server::{AuthorizationServer, ISSUER, Reply};
use crate::opaque_tokens::{machine_settings, machines, thing};
use crate::support::{Gatepost, PATIENCE};

const FLOOR: Duration = Duration::from_secs(10);

/// An issuer with a list at `/lists/1`, and the Gatepost that believes it.
struct Bench {
    server: AuthorizationServer,
    gatepost: Gatepost,
    attempts: usize,
}

impl Bench {
    /// Serves `list` (claims laid over good ones) from the beginning, and waits until it was fetched.
    async fn start(list: Value, change: impl FnOnce(&mut Value)) -> Self {
        let server = AuthorizationServer::start().await;
        #[expect(clippy::disallowed_methods, reason = "the server that is about to start begins with the real time")]
        let now = unix_seconds(std::time::SystemTime::now());
        serve(&server, signed(&server, "statuslist+jwt", now, &list));
        let mut issuer = json!({
            "issuer": ISSUER, "audiences": ["gatepost"], "algorithms": ["ES256"], "jwks_file": server.file("jwks.json"),
            "principal": { "type": "User" },
            "status_lists": [server.url("/lists/1")], "jwks_ca": server.file("ca.pem"), "allow_private_addresses": true,
        });
        let gatepost = Gatepost::start_over(&machines(), |settings| {
            change(&mut issuer);
            machine_settings(settings, json!([issuer]));
            if let Some(limits) = issuer.get("limits").cloned() {
                settings["issuers"][0].as_object_mut().unwrap().remove("limits");
                for (name, value) in limits.as_object().unwrap() {
                    settings["limits"][name] = value.clone();
                }
            }
        })
        .await;
        let mut bench = Self { server, gatepost, attempts: 0 };
        if issuer["status_lists"] != json!("ignore") {
            bench.attempted().await;
        }
        bench
    }

    fn now(&self) -> u64 {
        unix_seconds(self.gatepost.clock.now())
    }

    /// Waits until one more fetch has ended; gives how many went well so far.
    async fn attempted(&mut self) -> usize {
        self.attempts += 1;
        let waiting = async {
            loop {
                let (ok, failed) = self.fetched().await;
                if ok + failed >= self.attempts {
                    assert_eq!(ok + failed, self.attempts, "no more fetches than there was cause for");
                    return ok;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the list is fetched")
    }

    async fn fetched(&self) -> (usize, usize) {
        let metrics = self.gatepost.metrics().await;
        let count = |result: &str| {
            let name = format!("gatepost_status_list_refreshes_total{{issuer=\"{ISSUER}\",result=\"{result}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
        };
        (count("ok"), count("failed"))
    }

    /// What becomes of a new token with this `status`: the denial, and the record's word.
    async fn ask(&self, status: &Value) -> (Option<DenialCode>, Value) {
        let mut claims = json!({
            "iss": ISSUER, "aud": "gatepost", "sub": "alice", "scope": "things:read", "iat": self.now(),
            "exp": self.now() + 600,
        });
        if !status.is_null() {
            claims["status"] = status.clone();
        }
        self.ask_with(&self.server.sign("at+jwt", &claims)).await
    }

    async fn ask_with(&self, token: &str) -> (Option<DenialCode>, Value) {
        let answer = self.gatepost.ask(thing("read").token(token)).await.unwrap();
        let record = self.gatepost.record_of(answer.decision_id());
        (answer.denial(), record["unmapped"]["gatepost"]["token_refusal"].clone())
    }

    fn at(&self, index: impl Into<Value>) -> Value {
        json!({ "status_list": { "idx": index.into(), "uri": self.server.url("/lists/1") } })
    }
}

fn serve(server: &AuthorizationServer, list: String) {
    server.answer(move |asked| match asked.path.as_str() {
        "/lists/1" => Reply::Body(list.clone()),
        _ => Reply::Status(404),
    });
}

/// A status list token with `changes` laid over claims that are in order; a null takes a claim away.
fn signed(server: &AuthorizationServer, kind: &str, now: u64, changes: &Value) -> String {
    let mut claims = json!({
        "iss": ISSUER, "sub": server.url("/lists/1"), "iat": now, "exp": now + 3600, "ttl": 10,
        "status_list": list(1, &[0]),
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    server.sign(kind, &claims)
}

fn list(bits: u32, statuses: &[u8]) -> Value {
    let packed = miniz_oxide::deflate::compress_to_vec_zlib(statuses, 9);
    json!({ "bits": bits, "lst": URL_SAFE_NO_PAD.encode(packed) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_while_its_list_says_so() {
    use DenialCode::{TokenRejected, TokenRevoked};
    let good = (None, Value::Null);
    let revoked = || (Some(TokenRevoked), json!("STATUS_REVOKED"));
    let rejected = || (Some(TokenRejected), json!("STATUS_LIST"));
    // Two bits: valid, invalid, suspended, and one of no known meaning.
    let bench = Bench::start(json!({ "status_list": list(2, &[0b11_10_01_00]) }), |_| ()).await;
    let uri = bench.server.url("/lists/1");
    let table = [
        (Value::Null, good.clone(), "no status at all"),
        (bench.at(0), good.clone(), "valid"),
        (bench.at(1), revoked(), "invalid"),
        (bench.at(2), revoked(), "suspended"),
        (bench.at(3), rejected(), "of no known meaning"),
        (bench.at(4), rejected(), "past the end"),
        (bench.at(i64::MAX), rejected(), "far past the end"),
        (bench.at(-1), rejected(), "before the beginning"),
        (bench.at("0"), rejected(), "an index is a number"),
        (bench.at(0.5), rejected(), "a whole one"),
        (json!({ "status_list": { "idx": 0, "uri": format!("{uri}/") } }), rejected(), "another spelling"),
        (json!({ "status_list": { "idx": 0, "uri": bench.server.url("/lists/2") } }), rejected(), "another list"),
        (json!({ "status_list": { "idx": 0, "uri": "https://169.254.169.254/" } }), rejected(), "the cloud's metadata"),
        (json!({ "status_list": { "idx": 0 } }), rejected(), "no list"),
        (json!({ "status_list": [] }), rejected(), "no object"),
        (json!({ "identifier_list": {} }), rejected(), "another mechanism alone"),
        (json!({}), rejected(), "none"),
        (json!("active"), rejected(), "an issuer's own idea of a status"),
    ];
    for (status, expected, why) in table {
        assert_eq!(bench.ask(&status).await, expected, "{status}: {why}");
    }
    // A null is in the token, and says nothing that could be checked.
    let mut claims =
        json!({ "iss": ISSUER, "aud": "gatepost", "sub": "a", "iat": bench.now(), "exp": bench.now() + 60 });
    claims["status"] = Value::Null;
    assert_eq!(bench.ask_with(&bench.server.sign("at+jwt", &claims)).await, rejected(), "null");
    assert_eq!(bench.server.asked().len(), 1, "nothing was fetched but the list, and that once");

    let ignoring = Bench::start(json!({}), |issuer| {
        for key in ["jwks_ca", "allow_private_addresses"] {
            issuer.as_object_mut().unwrap().remove(key);
        }
        issuer["status_lists"] = json!("ignore");
    })
    .await;
    assert_eq!(ignoring.ask(&ignoring.at(9)).await, good, "`ignore`");
    assert_eq!(ignoring.ask(&json!("active")).await, (None, Value::Null), "`ignore`, whatever it says");
    assert_eq!(ignoring.server.asked().len(), 0, "nothing is fetched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_good_stops_when_its_list_changes_whatever_is_cached() {
    let mut bench = Bench::start(json!({ "ttl": 20 }), |_| ()).await;
    let claims = json!({
        "iss": ISSUER, "aud": "gatepost", "sub": "alice", "scope": "things:read", "iat": bench.now(),
        "exp": bench.now() + 600, "status": bench.at(3),
    });
    let token = bench.server.sign("at+jwt", &claims);
    for _ in 0..3 {
        assert_eq!(bench.ask_with(&token).await, (None, Value::Null), "verified, then cached");
    }
    let newer = json!({ "ttl": 20, "status_list": list(1, &[0b1000]), "iat": bench.now() + 1 });
    serve(&bench.server, signed(&bench.server, "statuslist+jwt", bench.now(), &newer));
    bench.gatepost.clock.advance(Duration::from_secs(19));
    assert_eq!(bench.ask_with(&token).await.0, None, "the list may be kept for 20 s");
    assert_eq!(bench.server.asked().len(), 1);
    bench.gatepost.clock.advance(Duration::from_secs(1));
    assert_eq!(bench.ask_with(&token).await.0, None, "nobody waits for the fetch");
    assert_eq!(bench.attempted().await, 2);
    let revoked = (Some(DenialCode::TokenRevoked), json!("STATUS_REVOKED"));
    assert_eq!(bench.ask_with(&token).await, revoked, "the same token, the same question");
    assert_eq!(bench.server.asked().len(), 2);
}

/// What a list says of itself is the issuer's wish; how old news may be is the operator's word.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_would_be_kept_for_years_is_fetched_all_the_same() {
    let far = json!({ "ttl": 10_000_000_000_u64, "exp": 200_000_000_000_u64 });
    let mut bench = Bench::start(far.clone(), |_| ()).await;
    let mut newer = far;
    newer["status_list"] = revoking();
    serve(&bench.server, signed(&bench.server, "statuslist+jwt", bench.now(), &newer));
    let longest = Limits::default().status_list_max_age;
    bench.gatepost.clock.advance(longest - Duration::from_secs(1));
    assert_eq!(bench.ask(&bench.at(0)).await.0, None);
    assert_eq!(bench.server.asked().len(), 1, "not due yet");
    bench.gatepost.clock.advance(Duration::from_secs(1));
    assert_eq!(bench.ask(&bench.at(0)).await.0, None, "nobody waits for the fetch");
    assert_eq!(bench.attempted().await, 2);
    assert_eq!(bench.ask(&bench.at(0)).await.0, Some(DenialCode::TokenRevoked));
}

/// Each document says that the token is revoked; none is taken, and the good list from before stays in force.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_not_the_issuer_s_own_changes_nothing() {
    let mut bench = Bench::start(json!({}), |issuer| {
        issuer["limits"] = json!({
            "status_list_bytes": "16KiB", "status_list_inflated_bytes": "64KiB", "status_list_timeout": "500ms",
        });
    })
    .await;
    let stranger = AuthorizationServer::start().await;
    let packed = |bytes: usize| list(1, &vec![0xff; bytes]);
    let forged = json!({ "status_list": revoking(), "sub": bench.server.url("/lists/1") });
    let forged = signed(&stranger, "statuslist+jwt", bench.now(), &forged);
    let rows = [
        (Reply::Status(500), "an error"),
        (Reply::Redirect, "a redirect"),
        (Reply::Endless, "endless"),
        (Reply::Drip, "a byte now and then"),
        (Reply::Silence, "silence"),
        (Reply::Body("<html>".into()), "no JWT"),
        (Reply::Body(forged), "signed by somebody else under the same key id"),
    ];
    let mut documents: Vec<(String, Value, &str)> = vec![
        ("at+jwt".into(), json!({}), "an access token in a list's place"),
        ("JWT".into(), json!({}), "of no particular type"),
        ("statuslist+jwt".into(), json!({ "sub": "https://as.test/lists/2" }), "another list"),
        ("statuslist+jwt".into(), json!({ "sub": null }), "no list in particular"),
        ("statuslist+jwt".into(), json!({ "iss": "https://other.test" }), "another issuer's"),
        ("statuslist+jwt".into(), json!({ "iat": null }), "of no date"),
        ("statuslist+jwt".into(), json!({ "ttl": "10" }), "a time that is text"),
        ("statuslist+jwt".into(), json!({ "exp": 1 }), "over"),
        ("statuslist+jwt".into(), json!({ "iat": 4_000_000_000_u64 }), "from the future"),
        ("statuslist+jwt".into(), json!({ "iat": 1_000_000_000 }), "older than the one from before"),
        ("statuslist+jwt".into(), json!({ "status_list": list(3, &[0xff]) }), "three bits"),
        ("statuslist+jwt".into(), json!({ "status_list": list(0, &[0xff]) }), "no bits"),
        ("statuslist+jwt".into(), json!({ "status_list": { "bits": 1 } }), "no list in it"),
        ("statuslist+jwt".into(), json!({ "status_list": { "bits": 1, "lst": "AAAA" } }), "not zlib"),
        ("statuslist+jwt".into(), json!({ "status_list": { "bits": 1, "lst": "eNrb uRgA" } }), "not base64url"),
        (
            "statuslist+jwt".into(),
            json!({ "status_list": packed((64 << 10) + 1) }),
            "a byte past `status_list_inflated_bytes`",
        ),
        ("statuslist+jwt".into(), json!({ "status_list": packed(4 << 20) }), "a compressed bomb of 4 MiB"),
        ("statuslist+jwt".into(), json!({ "pad": "x".repeat(16 << 10) }), "longer than `status_list_bytes`"),
    ];
    for (_, changes, _) in &mut documents {
        if changes.get("status_list").is_none() {
            changes["status_list"] = revoking();
        }
    }
    let count = rows.len() + documents.len();
    for (reply, why) in rows {
        bench.server.answer(move |_| reply.clone());
        stays(&mut bench, why).await;
    }
    for (kind, changes, why) in documents {
        let text = signed(&bench.server, &kind, bench.now(), &changes);
        serve(&bench.server, text);
        stays(&mut bench, why).await;
    }
    let filled = |bench: &Bench, bytes: usize| {
        let good = signed(&bench.server, "statuslist+jwt", bench.now(), &json!({}));
        format!("{good}{}", "\n".repeat(bytes - good.len()))
    };
    serve(&bench.server, filled(&bench, (16 << 10) + 1));
    stays(&mut bench, "a byte past `status_list_bytes`").await;
    serve(&bench.server, filled(&bench, 16 << 10));
    bench.gatepost.clock.advance(FLOOR);
    bench.ask(&bench.at(0)).await;
    assert_eq!(bench.attempted().await, 2, "at `status_list_bytes`");
    // And a good one of the largest size that may be is taken.
    let largest = json!({ "status_list": packed(64 << 10) });
    serve(&bench.server, signed(&bench.server, "statuslist+jwt", bench.now(), &largest));
    bench.gatepost.clock.advance(FLOOR);
    bench.ask(&bench.at(0)).await;
    assert_eq!(bench.attempted().await, 3, "at `status_list_inflated_bytes`");
    assert_eq!(bench.ask(&bench.at(0)).await.0, Some(DenialCode::TokenRevoked));
    println!("{count} documents that are not the issuer's list: none taken");
}

fn revoking() -> Value {
    list(1, &[0xff])
}

/// The document that is served now is fetched and not taken.
async fn stays(bench: &mut Bench, why: &str) {
    bench.gatepost.clock.advance(FLOOR);
    bench.ask(&bench.at(0)).await;
    assert_eq!(bench.attempted().await, 1, "{why}: not taken");
    assert_eq!(bench.ask(&bench.at(0)).await, (None, Value::Null), "{why}: the last good list stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_nobody_can_tell_is_no_status() {
    let unknown = || (Some(DenialCode::IssuerUnavailable), json!("STATUS_UNKNOWN"));
    let end = |bench: &Bench| bench.now() + 3600;
    let mut bench = Bench::start(json!({}), |_| ()).await;
    assert_eq!(bench.ask(&bench.at(0)).await.0, None);
    bench.server.answer(|_| Reply::Status(503));
    let last = end(&bench);
    // An outage: the last good list is believed until it ends, and not a second longer.
    bench.gatepost.clock.advance(Duration::from_secs(3590));
    assert!(bench.now() < last);
    assert_eq!(bench.ask(&bench.at(0)).await.0, None, "the last good one");
    bench.attempted().await;
    bench.gatepost.clock.advance(FLOOR);
    assert_eq!(bench.ask(&bench.at(0)).await, unknown(), "it has ended");
    bench.attempted().await;
    assert_eq!(bench.ask(&Value::Null).await, (None, Value::Null), "tokens without a status do not care");
    // It comes back: the next question finds the floor passed, and the one after it the list.
    serve(&bench.server, signed(&bench.server, "statuslist+jwt", bench.now(), &json!({})));
    for _ in 0..200 {
        assert_eq!(bench.ask(&bench.at(0)).await, unknown());
    }
    assert_eq!(bench.server.asked().len(), 3, "200 questions within the floor: no fetch");
    bench.gatepost.clock.advance(FLOOR);
    assert_eq!(bench.ask(&bench.at(0)).await, unknown(), "nobody waits");
    assert_eq!(bench.attempted().await, 2);
    assert_eq!(bench.ask(&bench.at(0)).await.0, None, "and there it is");

    // A list that does not say when it ends is believed for `status_list_max_age`; without `ttl` it is due after
    // `status_list_refresh_interval`.
    let mut bench = Bench::start(json!({ "exp": null, "ttl": null }), |_| ()).await;
    bench.server.answer(|_| Reply::Status(503));
    let limits = Limits::default();
    bench.gatepost.clock.advance(limits.status_list_refresh_interval - Duration::from_secs(1));
    assert_eq!(bench.ask(&bench.at(0)).await.0, None);
    assert_eq!(bench.server.asked().len(), 1, "not due yet");
    bench.gatepost.clock.advance(Duration::from_secs(1));
    assert_eq!(bench.ask(&bench.at(0)).await.0, None);
    bench.attempted().await;
    assert_eq!(bench.server.asked().len(), 2, "due");
    bench.gatepost.clock.advance(limits.status_list_max_age - limits.status_list_refresh_interval);
    assert_eq!(bench.ask(&bench.at(0)).await.0, None, "just young enough");
    bench.attempted().await;
    bench.gatepost.clock.advance(Duration::from_nanos(1));
    assert_eq!(bench.ask(&bench.at(0)).await, unknown(), "too old");
}

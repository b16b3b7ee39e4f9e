//! Opaque tokens: what their issuer says of them counts (RFC 7662), for a short time; what it does not say plainly does not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatepost::client::{Answer, Ask, AskError};
use gatepost::clock::Clock as _;
use gatepost::model::decision::DenialCode;
use gatepost::secret::ExposeSecret as _;
use serde_json::{Value, json};
use tonic::Code;

use crate::authorization_server::{AuthorizationServer, Reply, active};
use crate::support::{Gatepost, PATIENCE, eventually};

/// The bundle with scopes.
pub fn machines() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spec/bundles/machines")
}

/// Settings that fit it, with these issuers; the storefront may present API keys.
pub fn machine_settings(settings: &mut Value, issuers: Value) {
    settings["callers"] = json!([
        { "spiffe_id": gatepost::cli::demo::world::spiffe_id("storefront"), "name": "storefront",
          "resource_types": ["Thing"], "actions": ["read", "write"], "presents_api_keys": true, "presents_for": "*" },
        { "spiffe_id": gatepost::cli::demo::world::spiffe_id("back-office"), "name": "back-office",
          "resource_types": ["Thing"], "actions": ["read", "write"], "presents_for": "*" },
    ]);
    settings["issuers"] = issuers;
    settings["audit"]["attributes"] = json!({});
}

/// A server whose only issuer is `server`, with changes to its introspection and to the limits.
async fn start(server: &AuthorizationServer, introspection: Value, limits: Value) -> Gatepost {
    let mut issuer = server.issuer();
    lay_over(&mut issuer["introspection"], introspection);
    Gatepost::start_over(&machines(), |settings| {
        machine_settings(settings, json!([issuer]));
        lay_over(&mut settings["limits"], limits);
    })
    .await
}

fn lay_over(under: &mut Value, over: Value) {
    for (name, value) in over.as_object().unwrap() {
        under[name] = value.clone();
    }
}

pub fn thing(action: &str) -> Ask {
    Ask::new(action).resource("Thing", "t-1")
}

/// The denial, or nothing when it is an allow.
fn denial(answer: Result<Answer, AskError>) -> Option<DenialCode> {
    let answer = answer.unwrap();
    assert_eq!(answer.allowed(), answer.denial().is_none());
    answer.denial()
}

/// What the last record says of the token.
fn recorded(gatepost: &Gatepost) -> Value {
    gatepost.call_records().last().unwrap()["unmapped"]["gatepost"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opaque_token_is_whom_its_issuer_says() {
    let server = AuthorizationServer::start().await;
    let gatepost = start(&server, json!({}), json!({})).await;
    let clock = Arc::clone(&gatepost.clock);
    server.answer(move |asked| match asked.form["token"].as_str() {
        "good~token+/==" => Reply::Body(active("alice", clock.now(), &json!({ "jti": "j-1" })).to_string()),
        "no-scope" => Reply::Body(active("bob", clock.now(), &json!({ "scope": "openid" })).to_string()),
        _ => Reply::Body(json!({ "active": false }).to_string()),
    });

    assert_eq!(denial(gatepost.ask(thing("read").token("good~token+/==")).await), None);
    let record = gatepost.call_records().pop().unwrap();
    assert_eq!(record["actor"]["user"]["uid"], "https://as.test|alice");
    let ours = &record["unmapped"]["gatepost"];
    assert_eq!((&ours["token_alg"], &ours["principal"]), (&json!("introspection"), &json!("User::\"alice\"")));
    assert!(record["actor"]["session"]["uid"].as_str().unwrap().starts_with("sha256:"), "{record}");
    assert_eq!(denial(gatepost.ask(thing("read").token("no-scope")).await), Some(DenialCode::NoPermit));
    assert_eq!(denial(gatepost.ask(thing("read").token("unknown")).await), Some(DenialCode::TokenRejected));
    assert_eq!(recorded(&gatepost)["token_refusal"], "INACTIVE");

    // What was asked, and how: RFC 7662 section 2.1, RFC 6749 section 2.3.1.
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    for one in &asked {
        assert_eq!((one.method.as_str(), one.path.as_str()), ("POST", "/introspect"));
        assert_eq!(one.form["token_type_hint"], "access_token");
        assert_eq!(one.headers["authorization"], format!("Basic {}", STANDARD.encode("gate%3Apost:s3cret%3A+100%25")));
        assert!(!one.certificate && !one.form.contains_key("client_id"));
    }
    let metrics = gatepost.metrics().await;
    for (result, count) in [("active", 2), ("inactive", 1)] {
        let line = format!("gatepost_introspections_total{{issuer=\"https://as.test\",result=\"{result}\"}} {count}");
        assert!(metrics.contains(&line), "{line} in\n{metrics}");
    }
}

/// What introspection says of a token binds it as its own claims would: to its client, and to a certificate.
#[tokio::test(flavor = "multi_thread")]
async fn an_opaque_token_counts_in_its_client_s_hands_alone() {
    let server = AuthorizationServer::start().await;
    let issuer = server.issuer();
    let gatepost = Gatepost::start_over(&machines(), |settings| {
        machine_settings(settings, json!([issuer]));
        settings["callers"][0]["presents_for"] = json!([{ "client": "web" }]);
    })
    .await;
    let clock = Arc::clone(&gatepost.clock);
    server.answer(move |asked| {
        let changes = match asked.form["token"].as_str() {
            "ours" => json!({}),
            "another-client" => json!({ "client_id": "batch" }),
            "no-client" => json!({ "client_id": null }),
            "another-actor" => json!({ "act": { "sub": "batch" } }),
            _ => json!({ "cnf": { "x5t#S256": STANDARD.encode([0; 32]).replace('=', "") } }),
        };
        Reply::Body(active("alice", clock.now(), &changes).to_string())
    });
    assert_eq!(denial(gatepost.ask(thing("read").token("ours")).await), None);
    let table = [
        ("another-client", "CLIENT_NOT_CALLER"),
        ("no-client", "NO_CLIENT"),
        ("another-actor", "ACTOR_NOT_CALLER"),
        ("another-certificate", "WRONG_CERTIFICATE"),
    ];
    for (token, word) in table {
        // Asked twice: what is known of the token is kept, and its bearer looked at all the same.
        for _ in 0..2 {
            assert_eq!(denial(gatepost.ask(thing("read").token(token)).await), Some(DenialCode::TokenNotForCaller));
            assert_eq!(recorded(&gatepost)["token_refusal"], word, "{token}");
        }
    }
    assert_eq!(server.asked().len(), 5, "once each");
}

/// RFC 9068 section 2.2 wants a `jti` of every token; RFC 7662 section 2.2 leaves it open.
#[tokio::test(flavor = "multi_thread")]
async fn an_opaque_token_without_an_id_is_refused_where_ids_are_demanded() {
    let server = AuthorizationServer::start().await;
    let mut issuer = server.issuer();
    issuer["require_token_id"] = json!(true);
    let gatepost = Gatepost::start_over(&machines(), |settings| machine_settings(settings, json!([issuer]))).await;
    let clock = Arc::clone(&gatepost.clock);
    server.answer(move |asked| match asked.form["token"].as_str() {
        "with" => Reply::Body(active("alice", clock.now(), &json!({ "jti": "j-1" })).to_string()),
        _ => Reply::Body(active("alice", clock.now(), &json!({})).to_string()),
    });
    assert_eq!(denial(gatepost.ask(thing("read").token("with")).await), None);
    assert_eq!(denial(gatepost.ask(thing("read").token("without")).await), Some(DenialCode::TokenRejected));
    assert_eq!(recorded(&gatepost)["token_refusal"], "NO_TOKEN_ID");
}

/// Each row is asked twice: what is no plain yes or no is not kept, so the server is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_plain_lets_nobody_in_and_is_not_kept() {
    use DenialCode::{IssuerUnavailable, TokenExpired, TokenRejected};
    let server = AuthorizationServer::start().await;
    let gatepost =
        start(&server, json!({}), json!({ "introspection_timeout": "500ms", "introspection_bytes": "4KiB" })).await;
    let now = gatepost.clock.now();
    let seconds = gatepost::clock::unix_seconds(now);
    let with = |changes: Value| Reply::Body(active("alice", now, &changes).to_string());
    let body = |text: &str| Reply::Body(text.to_owned());
    let deep = format!("{{\"active\":true,\"x\":{}0{}}}", "[".repeat(40), "]".repeat(40));
    let twice = with(json!({}));
    let Reply::Body(twice) = twice else { unreachable!() };
    let twice = format!("{{\"active\":false,{}", &twice[1..]);
    let long = format!("{}{}", active("alice", now, &json!({})), " ".repeat(4096));
    let table = [
        (Reply::Silence, IssuerUnavailable, "ISSUER_UNAVAILABLE", "says nothing"),
        (Reply::Drip, IssuerUnavailable, "ISSUER_UNAVAILABLE", "a byte now and then"),
        (Reply::Redirect, IssuerUnavailable, "ISSUER_UNAVAILABLE", "sends us to the cloud's metadata"),
        (Reply::Endless, IssuerUnavailable, "ISSUER_UNAVAILABLE", "has no end"),
        (Reply::Compressed, IssuerUnavailable, "ISSUER_UNAVAILABLE", "a compressed bomb is not unpacked"),
        (Reply::HangUp, IssuerUnavailable, "ISSUER_UNAVAILABLE", "hangs up"),
        (Reply::Status(500), IssuerUnavailable, "ISSUER_UNAVAILABLE", "is broken"),
        (Reply::Status(401), IssuerUnavailable, "ISSUER_UNAVAILABLE", "does not know us"),
        (Reply::Status(204), IssuerUnavailable, "ISSUER_UNAVAILABLE", "nothing, successfully"),
        (body(&long), IssuerUnavailable, "ISSUER_UNAVAILABLE", "longer than `limits.introspection_bytes`"),
        (body("<html>"), IssuerUnavailable, "ISSUER_UNAVAILABLE", "no JSON"),
        (body(""), IssuerUnavailable, "ISSUER_UNAVAILABLE", "empty"),
        (body("true"), IssuerUnavailable, "ISSUER_UNAVAILABLE", "no object"),
        (body("{}"), IssuerUnavailable, "ISSUER_UNAVAILABLE", "neither yes nor no"),
        (body(&deep), IssuerUnavailable, "ISSUER_UNAVAILABLE", "nested too deeply"),
        (body(&twice), IssuerUnavailable, "ISSUER_UNAVAILABLE", "no and yes in one"),
        (with(json!({ "active": "true" })), IssuerUnavailable, "ISSUER_UNAVAILABLE", "text is no truth"),
        (with(json!({ "active": 1 })), IssuerUnavailable, "ISSUER_UNAVAILABLE", "nor is a number"),
        (with(json!({ "active": null })), IssuerUnavailable, "ISSUER_UNAVAILABLE", "nor is it missing"),
        (with(json!({ "iss": "https://other.test" })), TokenRejected, "UNKNOWN_ISSUER", "another issuer's"),
        (with(json!({ "iss": 1 })), TokenRejected, "CLAIMS", "an issuer has a name"),
        (with(json!({ "aud": "other" })), TokenRejected, "AUDIENCE", "for somebody else"),
        (with(json!({ "aud": null })), TokenRejected, "AUDIENCE", "for anybody"),
        (with(json!({ "token_type": "DPoP" })), TokenRejected, "TYPE", "demands a proof we can't check"),
        (with(json!({ "token_type": "refresh_token" })), TokenRejected, "TYPE", "no access token"),
        (with(json!({ "exp": seconds - 31 })), TokenExpired, "EXPIRED", "over, whatever `active` says"),
        (with(json!({ "exp": null })), TokenRejected, "CLAIMS", "without an end"),
        (with(json!({ "exp": seconds + 100_000 })), TokenRejected, "LIFETIME", "lives longer than it may"),
        (with(json!({ "nbf": seconds + 31 })), TokenRejected, "NOT_YET_VALID", "not yet"),
        (with(json!({ "iat": seconds + 61 })), TokenRejected, "ISSUED_IN_FUTURE", "from the future"),
        (with(json!({ "sub": null })), TokenRejected, "CLAIMS", "nobody's"),
        (with(json!({ "sub": "a\u{202e}b" })), TokenRejected, "SUBJECT", "no id"),
        (with(json!({ "azp": "other" })), TokenRejected, "CLAIMS", "two clients"),
        (with(json!({ "cnf": { "jkt": "x" } })), TokenRejected, "CONFIRMATION", "a proof we can't check"),
        (with(json!({ "act": { "iss": "x" } })), TokenRejected, "CLAIMS", "an actor without a name"),
        (with(json!({ "tenant": [null] })), TokenRejected, "MAPPING", "no value that the mapping takes"),
        (
            with(json!({ "status": { "status_list": { "idx": 0, "uri": "https://x.test" } } })),
            TokenRejected,
            "STATUS_LIST",
            "a list that is not ours",
        ),
    ];
    let rows = table.len();
    for (index, (reply, expected, reason, why)) in table.into_iter().enumerate() {
        server.answer(move |_| reply.clone());
        for round in 1..=2 {
            let before = server.asked().len();
            let begun = gatepost::clock::SystemClock::shared();
            assert_eq!(denial(gatepost.ask(thing("read").token("opaque")).await), Some(expected), "{why}");
            assert!(begun.monotonic() < Duration::from_secs(5), "{why}: bounded");
            assert_eq!(recorded(&gatepost)["token_refusal"], reason, "{why}");
            assert_eq!(
                server.asked().len(),
                before + 1,
                "row {index}, {why}, round {round}: asked each time, and once"
            );
        }
    }
    let padded = |bytes: usize| {
        let answer = active("alice", now, &json!({})).to_string();
        Reply::Body(format!("{answer}{}", " ".repeat(bytes - answer.len())))
    };
    for (token, bytes, expected) in [("at", 4096, None), ("past", 4097, Some(IssuerUnavailable))] {
        let reply = padded(bytes);
        server.answer(move |_| reply.clone());
        assert_eq!(denial(gatepost.ask(thing("read").token(token)).await), expected, "{token} `introspection_bytes`");
    }
    // And nothing of it sticks: the next plain yes counts.
    let clock = Arc::clone(&gatepost.clock);
    server.answer(move |_| Reply::Body(active("alice", clock.now(), &json!({})).to_string()));
    assert_eq!(denial(gatepost.ask(thing("read").token("opaque")).await), None);
    println!("{rows} kinds of answers that are not plain: each refused twice, none kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_kept_for_its_time_and_never_past_the_token_s_end() {
    let server = AuthorizationServer::start().await;
    let gatepost = start(&server, json!({ "max_cache": "1m" }), json!({})).await;
    let clock = Arc::clone(&gatepost.clock);
    // This one lives for five minutes, the other for twenty seconds.
    let ends = gatepost::clock::unix_seconds(clock.now()) + 20;
    server.answer(move |asked| match asked.form["token"].as_str() {
        "long" => Reply::Body(active("alice", clock.now(), &json!({})).to_string()),
        _ => Reply::Body(active("alice", clock.now(), &json!({ "exp": ends })).to_string()),
    });
    let ask = |token: &'static str| gatepost.ask(thing("read").token(token));
    for token in ["long", "long", "short", "short"] {
        assert_eq!(denial(ask(token).await), None);
    }
    assert_eq!(server.asked().len(), 2, "once each");
    gatepost.clock.advance(Duration::from_secs(19));
    assert_eq!((denial(ask("long").await), denial(ask("short").await)), (None, None));
    assert_eq!(server.asked().len(), 2, "still known");
    gatepost.clock.advance(Duration::from_secs(1));
    assert_eq!(denial(ask("long").await), None);
    assert_eq!(server.asked().len(), 2, "still known");
    // Its end has come; the issuer says what it thinks of the skew, not the cache.
    assert_eq!(denial(ask("short").await), None);
    assert_eq!(server.asked().len(), 3, "asked again at `exp`");
    gatepost.clock.advance(Duration::from_secs(40));
    server.answer(|_| Reply::Body(json!({ "active": false }).to_string()));
    assert_eq!(denial(ask("long").await), Some(DenialCode::TokenRejected), "revoked, and known after the cache's time");
    assert_eq!(server.asked().len(), 4);

    // No for three seconds, so that a flood of one bad token is no flood at the server.
    for _ in 0..100 {
        assert_eq!(denial(ask("long").await), Some(DenialCode::TokenRejected));
    }
    assert_eq!(server.asked().len(), 4, "100 questions, none passed on");
    gatepost.clock.advance(Duration::from_secs(3));
    assert_eq!(denial(ask("long").await), Some(DenialCode::TokenRejected));
    assert_eq!(server.asked().len(), 5, "asked again");
}

/// THREATS T16: one flight a token, so many in all, and nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_opaque_tokens_is_bounded_and_others_do_not_notice() {
    let server = AuthorizationServer::start().await;
    let gatepost = {
        let issuer = server.issuer();
        Gatepost::start_over(&machines(), |settings| {
            let mut jwts = settings["issuers"][0].clone();
            jwts["principal"] = json!({ "type": "User", "shared_type": true });
            let mut issuer = issuer;
            issuer["principal"]["shared_type"] = json!(true);
            machine_settings(settings, json!([issuer, jwts]));
            settings["limits"]["introspection_flights"] = json!(2);
            settings["limits"]["introspection_timeout"] = json!("20s");
        })
        .await
    };
    server.answer(|_| Reply::Silence);
    let client = gatepost.client("storefront");
    let ask = |token: &str| {
        let (client, ask) = (client.clone(), thing("read").token(token));
        tokio::spawn(async move { denial(client.check(ask).await) })
    };
    let first: Vec<_> = (0..40).map(|_| ask("one")).collect();
    let second: Vec<_> = (0..40).map(|_| ask("two")).collect();
    eventually("both are under way", || server.asked().len() == 2).await;
    for number in 0..50 {
        let shed = ask(&format!("more-{number}")).await.unwrap();
        assert_eq!(shed, Some(DenialCode::IssuerUnavailable), "past `limits.introspection_flights`: denied at once");
    }
    let jwt = gatepost.token_with("alice", &json!({ "scope": "things:read" }), Duration::from_secs(60));
    assert_eq!(ask(&jwt).await.unwrap(), None, "a JWT does not care");

    let now = gatepost.clock.now();
    server.answer(move |_| Reply::Body(active("alice", now, &json!({})).to_string()));
    for answer in first.into_iter().chain(second) {
        assert_eq!(answer.await.unwrap(), None, "whoever waited gets the answer");
    }
    assert_eq!(server.asked().len(), 2, "80 questions about two tokens: two introspections");
    assert_eq!(ask("three").await.unwrap(), None, "and there is room again");
    assert!(gatepost.metrics().await.contains("result=\"shed\"} 50"));
}

/// A server that does not answer keeps half of the decisions busy and no more, however popular one token is.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_silent_server_leaves_room_for_others() {
    let server = AuthorizationServer::start().await;
    let mut issuer = server.issuer();
    issuer["principal"]["shared_type"] = json!(true);
    let gatepost = Gatepost::start_over(&machines(), |settings| {
        let mut jwts = settings["issuers"][0].clone();
        jwts["principal"] = json!({ "type": "User", "shared_type": true });
        machine_settings(settings, json!([issuer, jwts]));
        settings["limits"]["concurrent_decisions"] = json!(8);
        settings["limits"]["introspection_timeout"] = json!("20s");
    })
    .await;
    server.answer(|_| Reply::Silence);
    let client = gatepost.client("storefront");
    let (told, mut news) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..8 {
        let (client, told) = (client.clone(), told.clone());
        tokio::spawn(async move { told.send(client.check(thing("read").token("popular")).await) });
    }
    for _ in 0..4 {
        let shed = tokio::time::timeout(PATIENCE, news.recv()).await.expect("half of them don't wait").unwrap();
        assert_eq!(denial(shed), Some(DenialCode::IssuerUnavailable));
    }
    let jwt = gatepost.token_with("alice", &json!({ "scope": "things:read" }), Duration::from_secs(60));
    assert_eq!(denial(client.check(thing("read").token(jwt)).await), None, "a JWT does not care");

    let now = gatepost.clock.now();
    server.answer(move |_| Reply::Body(active("alice", now, &json!({})).to_string()));
    for _ in 0..4 {
        assert_eq!(denial(news.recv().await.unwrap()), None, "whoever waited gets the answer");
    }
    assert_eq!(server.asked().len(), 1);
}

/// The question's own deadline holds, and what was begun for it is there for the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_flight_goes_on_when_whoever_asked_has_gone() {
    let server = AuthorizationServer::start().await;
    let gatepost = start(&server, json!({}), json!({ "introspection_timeout": "20s" })).await;
    server.answer(|_| Reply::Silence);
    let files = gatepost.client_files("storefront");
    let hasty = gatepost::client::Client::builder(gatepost.grpc_address())
        .server_name("localhost")
        .ca(files.ca)
        .identity(files.certificate, files.private_key)
        .deadline(Duration::from_millis(300))
        .build()
        .unwrap();
    let gone = hasty.check(thing("read").token("opaque")).await;
    assert!(gone.is_err(), "nobody waits longer than they said: {gone:?}");
    eventually("the question was asked", || server.asked().len() == 1).await;
    let now = gatepost.clock.now();
    server.answer(move |_| Reply::Body(active("alice", now, &json!({})).to_string()));
    let answer = tokio::time::timeout(PATIENCE, gatepost.ask(thing("read").token("opaque"))).await.unwrap();
    assert_eq!(denial(answer), None);
    assert_eq!(server.asked().len(), 1, "the flight that the first one began");
}

/// RFC 8705 section 2: the certificate says who we are, and `client_id` whose it should be. A renewed one is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_proves_who_asks() {
    let server = AuthorizationServer::start().await;
    let now = std::sync::Arc::new(parking_lot::Mutex::new(None));
    let at = Arc::clone(&now);
    server.answer(move |_| Reply::Body(active("alice", at.lock().unwrap(), &json!({})).to_string()));
    let gatepost = {
        let mut issuer = server.issuer();
        issuer["introspection"]["client_secret_file"] = Value::Null;
        issuer["introspection"]["client_certificate"] = json!(server.file("client.pem"));
        issuer["introspection"]["client_key"] = json!(server.file("client.key"));
        Gatepost::start_over(&machines(), |settings| machine_settings(settings, json!([issuer]))).await
    };
    *now.lock() = Some(gatepost.clock.now());
    assert_eq!(denial(gatepost.ask(thing("read").token("opaque")).await), None);
    let asked = server.asked().pop().unwrap();
    assert!(asked.certificate && !asked.headers.contains_key("authorization"), "{asked:?}");
    assert_eq!(asked.form["client_id"], "gate:post");
}

/// A token goes to the one issuer whose letters it starts with, and to nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_to_its_own_issuer_alone() {
    let (left, right) = (AuthorizationServer::start().await, AuthorizationServer::start().await);
    let issuer = |server: &AuthorizationServer, name: &str| {
        let mut issuer = server.issuer();
        issuer["issuer"] = json!(format!("https://{name}.test"));
        issuer["principal"]["shared_type"] = json!(true);
        issuer["introspection"]["token_prefix"] = json!(format!("{name}_"));
        issuer
    };
    let issuers = json!([issuer(&left, "left"), issuer(&right, "right")]);
    let gatepost = Gatepost::start_over(&machines(), |settings| machine_settings(settings, issuers)).await;
    let clock = Arc::clone(&gatepost.clock);
    let says = move |name: &str, now| Reply::Body(active(name, now, &json!({ "iss": null })).to_string());
    let (one, other) = (Arc::clone(&clock), clock);
    left.answer(move |_| says("lena", one.now()));
    right.answer(move |_| says("rita", other.now()));
    let table = [
        ("left_abc", None, (1, 0), "User::\"lena\"", "left's"),
        ("right_abc", None, (1, 1), "User::\"rita\"", "right's"),
        ("Left_abc", Some(DenialCode::TokenRejected), (1, 1), "", "letters are compared as written"),
        ("abc", Some(DenialCode::TokenRejected), (1, 1), "", "nobody's"),
        ("left_a.b.c", Some(DenialCode::TokenRejected), (1, 1), "", "three parts are a JWT, whatever they start with"),
        ("left_a b", Some(DenialCode::TokenRejected), (1, 1), "", "no bearer token at all"),
    ];
    for (token, expected, asked, principal, why) in table {
        assert_eq!(denial(gatepost.ask(thing("read").token(token)).await), expected, "{token}: {why}");
        assert_eq!((left.asked().len(), right.asked().len()), asked, "{token}: {why}");
        if !principal.is_empty() {
            assert_eq!(recorded(&gatepost)["principal"], principal, "{token}: {why}");
        }
    }
    let long = format!("left_{}", "x".repeat(16 * 1024));
    assert_eq!(denial(gatepost.ask(thing("read").token(long)).await), Some(DenialCode::TokenRejected));
    assert_eq!((recorded(&gatepost)["token_refusal"].clone(), left.asked().len()), (json!("SIZE"), 1));
}

/// A key in the token's field of the message is refused where it is: whoever runs an authorization server could use it.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_in_a_token_s_place_is_shown_to_nobody() {
    let server = AuthorizationServer::start().await;
    let gatepost = start(&server, json!({}), json!({})).await;
    let clock = Arc::clone(&gatepost.clock);
    server.answer(move |_| Reply::Body(active("alice", clock.now(), &json!({})).to_string()));
    let key = gatepost::token::api_key::text::new_key().unwrap();
    let ask = |token: &str| gatepost.ask(thing("read").token(token));
    assert_eq!(denial(ask(key.expose_secret()).await), Some(DenialCode::TokenRejected));
    assert_eq!((recorded(&gatepost)["token_refusal"].clone(), server.asked().len()), (json!("SHAPE"), 0));
    assert_eq!(denial(ask(&key.expose_secret().replace("gpk_", "tok_")).await), None, "what is no key is asked about");
}

/// Neither the token nor the client's secret comes out anywhere, whatever the server does with them.
#[tokio::test]
async fn neither_a_token_nor_the_client_s_secret_is_written_down() {
    let log = crate::canaries::Log::default();
    let heard = crate::canaries::hear(&log);
    let server = AuthorizationServer::start().await;
    std::fs::write(server.file("secret"), "zq-secret-canary").unwrap();
    let gatepost = start(&server, json!({}), json!({ "introspection_timeout": "300ms" })).await;
    let clock = Arc::clone(&gatepost.clock);
    let replies = [
        Reply::Body(
            active("alice", clock.now(), &json!({ "email": "zq-claim-canary", "jti": "zq-jti-canary" })).to_string(),
        ),
        Reply::Body("{\"active\":\"zq-answer-canary\"}".to_owned()),
        Reply::Body("zq-garbage-canary".to_owned()),
        Reply::Status(500),
        Reply::Redirect,
        Reply::Silence,
    ];
    let mut told = Vec::new();
    for (number, reply) in replies.into_iter().enumerate() {
        server.answer(move |_| reply.clone());
        told.push(format!("{:?}", gatepost.ask(thing("read").token(format!("zq-token-canary-{number}"))).await));
    }
    let asked = server.asked();
    assert_eq!(asked.len(), 6, "the canaries were there");
    assert!(
        asked
            .iter()
            .all(|one| STANDARD.decode(&one.headers["authorization"][6..]).unwrap().ends_with(b"zq-secret-canary"))
    );
    let metrics = gatepost.metrics().await;
    drop(heard);
    let records = gatepost.trail();
    let log = log.text();
    assert!(log.contains("gave no usable answer"), "what failed is logged");
    for (place, text) in [("log", &log), ("metrics", &metrics), ("records", &records), ("answers", &told.concat())] {
        let at = text.find("canary").map(|at| text[at.saturating_sub(80)..].chars().take(120).collect::<String>());
        assert_eq!(at, None, "in the {place}");
    }
    let code = |answer: Result<Answer, AskError>| match answer {
        Err(AskError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    };
    let unlucky = gatepost.client("stranger").check(thing("read").token("zq-token-canary")).await;
    assert_eq!(code(unlucky), Code::PermissionDenied);
    assert_eq!(server.asked().len(), 6, "a stranger's token is not even looked at");
}

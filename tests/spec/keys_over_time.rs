//! Issuers' keys over time: rotation under load, outages, ages, and what operators see of them. THREATS F6 and F8.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gatepost::client::AskError;
use gatepost::clock::Clock as _;
use gatepost::config::Limits;
use gatepost::model::decision::DenialCode;
use serde_json::{Value, json};
use tokio::sync::RwLock;

use crate::support::key_server::{Answer, KeyServer, Signer, forged, jwks};
use crate::support::{Gatepost, eventually, minutes, order};

/// Lets the floor pass, gives a cause to fetch, and waits for the attempt's end, told by the age of the keys.
async fn fetch_again(gatepost: &Gatepost, server: &KeyServer) {
    let before = server.asked("/jwks");
    gatepost.clock.advance(Limits::default().jwks_refresh_floor);
    let unknown = forged("EdDSA", "nobody-has-this", gatepost.clock.now());
    let answer = loop {
        match gatepost.ask(order("Order.read", "o-1", "alice").token(unknown.clone())).await {
            Err(AskError::Refused { reason: Some(reason), .. }) if reason == "OVERLOADED" => calm(gatepost).await,
            answered => break answered.unwrap(),
        }
    };
    assert_eq!(answer.denial(), Some(DenialCode::TokenRejected));
    let fresh = || gatepost.pdp.tokens.key_ages().iter().any(|(_, age)| age.is_zero());
    eventually("the keys are fetched again", || server.asked("/jwks") > before && fresh()).await;
}

/// Calls that are under way while the clock is moved seem to take minutes, and whoever has less time is turned away until time
/// has passed in which none did.
async fn calm(gatepost: &Gatepost) {
    gatepost.clock.advance(Duration::from_secs(1));
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// An issuer adds a key, signs with it, and takes the old one away, over and over; those who know a key before it signs
/// lose no token. That they do is what the next test is about.
#[tokio::test(flavor = "multi_thread")]
async fn rotation_under_load_refuses_no_valid_token() {
    const ROTATIONS: usize = 25;
    let first = Signer::new("key-0");
    let server = KeyServer::start(Answer::Document(jwks([&first]))).await;
    let gatepost = Arc::new(Gatepost::start_with(|settings| server.take_over(settings)).await);
    eventually("the first key is there", || !gatepost.pdp.tokens.key_ages().is_empty()).await;

    let signing = Arc::new(RwLock::new(first));
    let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut load = Vec::new();
    for task in 0..4 {
        let client = gatepost.client("storefront");
        let (gatepost, signing, over, asked) =
            (Arc::clone(&gatepost), Arc::clone(&signing), Arc::clone(&over), Arc::clone(&asked));
        load.push(tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                // While this is held the issuer does not take the key away.
                let signer = signing.read().await;
                let token = signer.token("alice", gatepost.clock.now());
                let question = order("Order.read", &format!("o-{task}"), "alice").token(token);
                let answer = match client.check(question).await {
                    // The clock is moved by minutes while calls are under way. Then their time is over; and as calls seem to
                    // take minutes, one with less time is not begun. Neither says anything of a token.
                    Err(AskError::Deadline) => continue,
                    Err(AskError::Refused { reason: Some(reason), .. }) if reason == "OVERLOADED" => {
                        calm(&gatepost).await;
                        continue;
                    }
                    answered => answered.unwrap(),
                };
                assert!(answer.allowed(), "signed with {}: {:?}", signer.id, answer.denial());
                asked.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for rotation in 1..=ROTATIONS {
        let new = Signer::new(&format!("key-{rotation}"));
        server.answers("/jwks", Answer::Document(jwks([&*signing.read().await, &new])));
        fetch_again(&gatepost, &server).await;
        let document = jwks([&new]);
        let old = std::mem::replace(&mut *signing.write().await, new);
        server.answers("/jwks", Answer::Document(document));
        let so_far = asked.load(Ordering::Relaxed);
        eventually("the new key signs", || asked.load(Ordering::Relaxed) >= so_far + 20).await;
        fetch_again(&gatepost, &server).await;
        let late = order("Order.read", "o-1", "alice").token(old.token("alice", gatepost.clock.now()));
        assert_eq!(gatepost.ask(late).await.unwrap().denial(), Some(DenialCode::TokenRejected), "{} is gone", old.id);
    }
    over.store(true, Ordering::Relaxed);
    for load in load {
        load.await.unwrap();
    }
    println!("{ROTATIONS} rotations, {} valid tokens beside them: 0 refused", asked.load(Ordering::Relaxed));
}

/// Keys are fetched without a cause too, so that a new one is known before it signs.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_again_though_nobody_asks() {
    let limits = Limits::default();
    let longest = limits.jwks_refresh_interval * 5 / 4 + limits.jwks_timeout;
    assert!(longest < minutes(1), "a key that is published for a minute is known: {longest:?}");

    let signer = Signer::new("good");
    let server = KeyServer::start(Answer::Document(jwks([&signer]))).await;
    let gatepost = Gatepost::start_with(|settings| {
        server.take_over(settings);
        settings["limits"]["jwks_refresh_interval"] = json!("1s");
        settings["limits"]["jwks_refresh_floor"] = json!("1s");
    })
    .await;
    eventually("it is fetched and fetched", || {
        gatepost.clock.advance(Duration::from_secs(1));
        server.asked("/jwks") >= 3
    })
    .await;
}

/// F6: who is down takes his own tokens away, and nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_down_is_shown_and_takes_nothing_from_the_others() {
    const SECOND: &str = "https://second.example";
    let signer = Signer::new("good").of(SECOND);
    let server = KeyServer::start(Answer::with("503 Unavailable", b"")).await;
    let gatepost = Gatepost::start_with(|settings| {
        settings["issuers"][0]["principal"]["shared_type"] = json!(true);
        let mut second: Value = settings["issuers"][0].clone();
        server.give_keys_to(&mut second);
        second["issuer"] = json!(SECOND);
        settings["issuers"].as_array_mut().unwrap().push(second);
        // The storefront presents for its app, whichever of the two issued the token.
        let mut app = settings["callers"][0]["presents_for"][0].clone();
        app["issuer"] = json!(SECOND);
        settings["callers"][0]["presents_for"].as_array_mut().unwrap().push(app);
    })
    .await;
    let of_first = |subject: &str| gatepost.token(subject, &[]);
    let ask = |token: String| gatepost.ask(order("Order.read", "o-1", "alice").token(token));
    let first = "issuer https://idp.shop.example ready\n";
    eventually("it was asked", || server.asked("/jwks") > 0).await;

    let page = gatepost.ops("/readyz").await;
    assert_eq!(page, (200, format!("ok\n{first}issuer {SECOND} not ready\n")), "down from the start");
    let now = gatepost.clock.now();
    assert_eq!(ask(signer.token("alice", now)).await.unwrap().denial(), Some(DenialCode::IssuerUnavailable));
    assert!(ask(of_first("alice")).await.unwrap().allowed());
    let metrics = gatepost.metrics().await;
    let ages = |page: &str| page.lines().filter(|line| line.starts_with("gatepost_issuer_keys_age")).count();
    assert_eq!(ages(&metrics), 1, "keys that were never there have no age");

    // It comes back.
    server.answers("/jwks", Answer::Document(jwks([&signer])));
    gatepost.clock.advance(Limits::default().jwks_refresh_floor);
    let now = gatepost.clock.now();
    assert_eq!(ask(signer.token("alice", now)).await.unwrap().denial(), Some(DenialCode::IssuerUnavailable));
    eventually("its keys are there", || gatepost.pdp.tokens.key_ages().len() == 2).await;
    assert_eq!(gatepost.ops("/readyz").await, (200, format!("ok\n{first}issuer {SECOND} ready\n")));
    assert!(ask(signer.token("alice", now)).await.unwrap().allowed());

    // It goes away for good: the last good keys serve, their age is told, and then they are too old.
    server.answers("/jwks", Answer::with("503 Unavailable", b""));
    let stale = Limits::default().jwks_max_stale;
    gatepost.clock.advance(stale);
    let now = gatepost.clock.now();
    assert!(ask(signer.token("alice", now)).await.unwrap().allowed(), "just young enough");
    let metrics = gatepost.metrics().await;
    let line = format!("gatepost_issuer_keys_age_seconds{{issuer=\"{SECOND}\"}} {}", stale.as_secs());
    assert!(metrics.contains(&line), "{line} in:\n{metrics}");
    gatepost.clock.advance(Duration::from_secs(1));
    assert_eq!(ask(signer.token("alice", now)).await.unwrap().denial(), Some(DenialCode::IssuerUnavailable));
    let (status, page) = gatepost.ops("/readyz").await;
    assert!(status == 200 && page.contains(&format!("issuer {SECOND} not ready\n")), "{page}");
}

//! What is revoked counts no longer: at once, whatever is cached, whoever is asking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gatepost::client::Client;
use gatepost::clock::{Clock as _, SystemClock, unix_seconds};
use gatepost::model::decision::DenialCode;
use gatepost::proto::admin::v1;
use gatepost::revocation::{Key, Kind, Revocation};
use serde_json::json;
use tonic::Code;

use crate::support::operators::{
    ISSUER, Operators, at, certificate_request, fingerprint, session_request, subject_request, token_request, told,
};
use crate::support::{Gatepost, eventually, minutes, order};

async fn reads(client: &Client, token: &str) -> Result<(), DenialCode> {
    let answer = client.check(order("Order.read", "o-1", "alice").token(token)).await.unwrap();
    if answer.allowed() { Ok(()) } else { Err(answer.denial().unwrap()) }
}

fn last_refusal(gatepost: &Gatepost) -> serde_json::Value {
    gatepost.call_records().pop().unwrap()["unmapped"]["gatepost"]["token_refusal"].clone()
}

/// THREATS T6. Each by itself, on a ruling and a token that are both cached; and nothing beside it is touched.
#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_revocation_counts_on_cached_decisions_and_on_nothing_else() {
    let (gatepost, operators) = Operators::start(|_, _| ()).await;
    let mut ops = operators.client(&gatepost, "ops").await;
    let client = gatepost.client("storefront");
    let token = |id: &str, session: &str| {
        gatepost.token_with("alice", &json!({ "tenant": "acme", "jti": id, "sid": session }), minutes(5))
    };
    let (first, second, third) = (token("t-1", "s-1"), token("t-2", "s-1"), token("t-3", "s-2"));
    for _ in 0..2 {
        for token in [&first, &second, &third] {
            assert_eq!(reads(&client, token).await, Ok(()));
        }
    }
    assert_eq!(gatepost.call_records().pop().unwrap()["unmapped"]["gatepost"]["cache"], "hit");

    ops.revoke_token(token_request("t-1")).await.unwrap();
    assert_eq!(reads(&client, &first).await, Err(DenialCode::TokenRevoked));
    assert_eq!(last_refusal(&gatepost), "REVOKED_TOKEN");
    assert_eq!((reads(&client, &second).await, reads(&client, &third).await), (Ok(()), Ok(())), "others count");

    ops.revoke_session(session_request("s-1")).await.unwrap();
    assert_eq!(reads(&client, &second).await, Err(DenialCode::TokenRevoked));
    assert_eq!(last_refusal(&gatepost), "REVOKED_SESSION");
    assert_eq!(reads(&client, &third).await, Ok(()));

    ops.revoke_subject(subject_request("alice")).await.unwrap();
    assert_eq!(reads(&client, &third).await, Err(DenialCode::TokenRevoked));
    assert_eq!(last_refusal(&gatepost), "REVOKED_SUBJECT");
    gatepost.clock.advance(Duration::from_secs(1));
    assert_eq!(reads(&client, &token("t-4", "s-3")).await, Ok(()), "she signed in again");

    // Another service, and another subject, notice nothing.
    let sam = gatepost.token("sam", &["support"]);
    let other = gatepost.client("back-office");
    assert!(other.check(order("Order.read", "o-1", "alice").token(&sam)).await.unwrap().allowed());

    let files = gatepost.client_files("fulfilment");
    let bound = Client::builder(gatepost.grpc_address())
        .server_name("localhost")
        .ca(&files.ca)
        .identity(&files.certificate, &files.private_key)
        .deadline(Duration::from_secs(10))
        .build()
        .unwrap();
    let ask = || order("Order.read", "o-1", "alice").token(&sam);
    assert!(bound.check(ask()).await.is_ok());
    let until = unix_seconds(gatepost.clock.now()) + 3600;
    ops.revoke_certificate(certificate_request(&fingerprint(&files.certificate), until)).await.unwrap();
    let calls = gatepost.call_records().len();
    assert!(bound.check(ask()).await.is_err());
    let records = gatepost.call_records();
    assert_eq!(records.len(), calls + 1, "the next call on a connection that lives is refused, and on record");
    let record = records.last().unwrap();
    assert_eq!(
        (&record["status_code"], &record["status_detail"]),
        (&json!("UNAUTHENTICATED"), &json!("CALLER_NOT_IDENTIFIED"))
    );
    assert!(other.check(ask()).await.is_ok());
    // The same at the other door: an operator's certificate.
    let deputy = operators.files(&gatepost.world, "ops");
    let mut with = crate::support::operators::client(gatepost.admin_address.unwrap(), &deputy).await;
    with.list_revocations(v1::ListRevocationsRequest::default()).await.unwrap();
    with.revoke_certificate(certificate_request(&fingerprint(&deputy.certificate), until)).await.unwrap();
    let status = with.list_revocations(v1::ListRevocationsRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), told(&status).0.as_str()), (Code::Unauthenticated, "CALLER_NOT_IDENTIFIED"));
}

/// A token without an id can't be revoked by one: whoever wants to can turn it away.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_an_id_counts_unless_its_issuer_must_give_one() {
    for (required, expected) in [(false, Ok(())), (true, Err(DenialCode::TokenRejected))] {
        let gatepost = Gatepost::start_with(|settings| {
            settings["issuers"][0]["require_token_id"] = json!(required);
        })
        .await;
        let client = gatepost.client("storefront");
        assert_eq!(reads(&client, &gatepost.token("alice", &[])).await, expected);
        let with = gatepost.token_with("alice", &json!({ "tenant": "acme", "jti": "t-1" }), minutes(5));
        assert_eq!(reads(&client, &with).await, Ok(()));
        if required {
            let refusals: Vec<_> = gatepost.call_records();
            assert_eq!(refusals[0]["unmapped"]["gatepost"]["token_refusal"], "NO_TOKEN_ID");
        }
    }
}

/// THREATS T6: "revoke under load: last stale ALLOW <= 1 s". Ours is measured from the operator's answer on.
#[tokio::test(flavor = "multi_thread")]
async fn under_load_no_question_that_begins_after_the_operator_s_answer_is_allowed() {
    let (gatepost, operators) = Operators::start(|_, _| ()).await;
    let mut ops = operators.client(&gatepost, "ops").await;
    let clock = SystemClock::shared();
    let (mut worst, mut questions, mut spent) = (Duration::ZERO, 0, Duration::ZERO);
    for round in 0..5 {
        gatepost.clock.advance(Duration::from_secs(2));
        let claims = json!({ "tenant": "acme", "jti": format!("t-{round}"), "sid": format!("s-{round}") });
        let token = gatepost.token_with("alice", &claims, minutes(5));
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = gatepost.client("storefront");
        let asking: Vec<_> = (0..4)
            .map(|_| {
                let (client, token, clock) = (client.clone(), token.clone(), Arc::clone(&clock));
                let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
                tokio::spawn(async move {
                    // When the last allow that there was began, and when it came.
                    let mut last = (Duration::ZERO, Duration::ZERO);
                    while !stop.load(Ordering::Relaxed) {
                        let begun = clock.monotonic();
                        if reads(&client, &token).await.is_ok() {
                            last = (begun, clock.monotonic());
                        }
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                    last
                })
            })
            .collect();
        let started = clock.monotonic();
        eventually("there is load", || asked.load(Ordering::Relaxed) > 200).await;
        match round {
            0 => drop(ops.revoke_token(token_request("t-0")).await.unwrap()),
            1 => drop(ops.revoke_session(session_request("s-1")).await.unwrap()),
            _ => drop(ops.revoke_subject(subject_request("alice")).await.unwrap()),
        }
        let answered = clock.monotonic();
        let seen = asked.load(Ordering::Relaxed);
        eventually("and it goes on", || asked.load(Ordering::Relaxed) > seen + 200).await;
        stop.store(true, Ordering::Relaxed);
        for asking in asking {
            let (begun, came) = asking.await.unwrap();
            assert!(begun <= answered, "round {round}: an allow began {:?} after the answer", begun - answered);
            worst = worst.max(came.saturating_sub(answered));
        }
        questions += asked.load(Ordering::Relaxed);
        spent += clock.monotonic() - started;
    }
    println!(
        "{questions} questions in {spent:?} over 5 revocations; the last stale allow came {worst:?} after the answer"
    );
    assert!(worst <= Duration::from_secs(1));
}

/// THREATS V-KEY-4 in spirit: whatever is being verified, evaluated and cached at that moment, nothing that begins after
/// the revocation took effect is allowed. Each try is a new token, so that every cache is being filled.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_wins_every_race_against_the_caches() {
    let tries: usize = if std::env::var_os("GATEPOST_LONG").is_some() { 100_000 } else { 10_000 };
    const WORKERS: usize = 8;
    let gatepost = Arc::new(Gatepost::start().await);
    let client = gatepost.client("storefront");
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let (gatepost, client) = (Arc::clone(&gatepost), client.clone());
            tokio::spawn(async move {
                let list = &gatepost.pdp.revocations;
                let (mut before, mut after) = (0, 0);
                for number in 0..tries / WORKERS {
                    let id = format!("w{worker}-{number}");
                    let claims = json!({ "tenant": "acme", "jti": id });
                    let token = gatepost.token_with("alice", &claims, minutes(5));
                    let filling = {
                        let (client, token) = (client.clone(), token.clone());
                        tokio::spawn(async move { reads(&client, &token).await })
                    };
                    for _ in 0..number % 7 {
                        tokio::task::yield_now().await;
                    }
                    let key = Key::of(Kind::Token, ISSUER, &id);
                    let until = unix_seconds(gatepost.clock.now()) + 600;
                    // What the admin listener does when all else is done.
                    let _ = list.make_room(Revocation::whole(Kind::Token, key, until)).unwrap().fill();
                    after += usize::from(reads(&client, &token).await.is_ok());
                    before += usize::from(filling.await.unwrap().is_ok());
                }
                (before, after)
            })
        })
        .collect();
    let (mut before, mut after) = (0, 0);
    for worker in workers {
        let (allowed, stale) = worker.await.unwrap();
        before += allowed;
        after += stale;
    }
    println!("{tries} tries: {before} questions that began before were allowed, {after} that began after");
    assert_eq!(after, 0);
    assert!(before > 0, "some fills were under way, or nothing was tried");
}

/// A line that somebody else writes into the file is in force within a second; a bad one is counted, and nothing that was
/// known goes.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_watched_and_believed_line_by_line() {
    use std::io::Write as _;
    let (gatepost, operators) = Operators::start(|_, settings| {
        settings["revocation"] = json!({ "file": "revocations.jsonl" });
    })
    .await;
    let mut ops = operators.client(&gatepost, "ops").await;
    let client = gatepost.client("storefront");
    let clock = SystemClock::shared();
    let token = |id: &str| gatepost.token_with("alice", &json!({ "tenant": "acme", "jti": id }), minutes(5));
    let until = unix_seconds(gatepost.clock.now()) + 600;
    let mut worst = Duration::ZERO;
    for number in 0..20 {
        let id = format!("t-{number}");
        let token = token(&id);
        assert_eq!(reads(&client, &token).await, Ok(()));
        let line = Revocation::whole(Kind::Token, Key::of(Kind::Token, ISSUER, &id), until).line().unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).open(gatepost.path("revocations.jsonl")).unwrap();
        writeln!(file, "{line}").unwrap();
        let written = clock.monotonic();
        while reads(&client, &token).await.is_ok() {
            assert!(clock.monotonic() - written < Duration::from_secs(10), "{id} is still allowed");
        }
        worst = worst.max(clock.monotonic() - written);
    }
    println!("20 lines of somebody else: in force {worst:?} after they were written, at the latest");
    assert!(worst <= Duration::from_secs(1));

    let mut file = std::fs::OpenOptions::new().append(true).open(gatepost.path("revocations.jsonl")).unwrap();
    writeln!(file, "{{\"kind\":\"token\",\"key\":\"alice\",\"until\":1}}").unwrap();
    let bad = "gatepost_revocation_entries_total{result=\"malformed\",source=\"file\"} 1";
    let mut told = false;
    while !told {
        told = gatepost.metrics().await.contains(bad);
    }
    assert_eq!(gatepost.ops("/readyz").await.0, 200, "it serves on");
    ops.revoke_token(token_request("t-x")).await.unwrap();
    let lines = || std::fs::read_to_string(gatepost.path("revocations.jsonl")).unwrap().lines().count();
    assert_eq!(lines(), 22);
    std::fs::write(gatepost.path("revocations.jsonl"), "").unwrap();
    eventually("an emptied file is filled again", || lines() == 21).await;
    assert_eq!(reads(&client, &token("t-x")).await, Err(DenialCode::TokenRevoked));
    assert_eq!(reads(&client, &token("t-3")).await, Err(DenialCode::TokenRevoked));
}

/// What is revoked stays so over a restart, and a cut-off that lies between two of a subject's tokens parts them.
#[tokio::test(flavor = "multi_thread")]
async fn revocations_outlast_a_restart_and_end_by_themselves() {
    let (gatepost, operators) = Operators::start(|operators, settings| {
        settings["revocation"] = json!({ "file": operators.folder().join("revocations.jsonl") });
    })
    .await;
    let mut ops = operators.client(&gatepost, "ops").await;
    let now = unix_seconds(gatepost.clock.now());
    let request = v1::RevokeSubjectRequest { issued_before: Some(at(now)), ..subject_request("alice") };
    let entry = ops.revoke_subject(request).await.unwrap().into_inner().revocation.unwrap();
    assert_eq!(entry.expire_time, Some(at(now + 15 * 60 + 30 + 60)), "when the last token of before has ended");
    let second = Gatepost::start_with(|settings| {
        settings["revocation"] = json!({ "file": operators.folder().join("revocations.jsonl") });
    })
    .await;
    assert_eq!(second.pdp.revocations.len(), 1);
    let metrics = second.metrics().await;
    assert!(metrics.contains("gatepost_revocation_staleness_seconds 0"), "{metrics}");
    let client = second.client("storefront");
    let claims = |issued: u64| json!({ "tenant": "acme", "iat": issued, "nbf": issued });
    let token = |issued: u64| second.token_with("alice", &claims(issued), minutes(5));
    assert_eq!(reads(&client, &token(now - 1)).await, Err(DenialCode::TokenRevoked), "issued a second before");
    assert_eq!(reads(&client, &token(now)).await, Ok(()), "issued at the cut-off");
    second.clock.advance(minutes(15) + Duration::from_secs(90 + 121));
    second.pdp.revocations.purge();
    assert!(second.pdp.revocations.is_empty());
}

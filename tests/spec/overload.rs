//! More comes than can be answered: what is refused says when to come back and is on record, who asks for little is answered
//! all the same, and whoever looks after the house is never kept out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gatepost::clock::{Clock as _, SystemClock};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc::Receiver;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::failing_closed::wire;
use crate::support::{Gatepost, PATIENCE, eventually};
use crate::wire::{Reply, channel, check};

const CONNECTIONS: usize = 8;
const AT_ONCE: usize = 8;

/// A piece of a message on its way.
type Piece = Result<http_body::Frame<bytes::Bytes>, std::io::Error>;

/// Within what a refusal may say, and the same for clients that retry by themselves.
fn says_when_to_come_back(reply: &Reply) -> Duration {
    let told = reply.status.get_details_retry_info().and_then(|info| info.retry_delay).expect("RetryInfo");
    assert!((Duration::from_millis(50)..=Duration::from_secs(5)).contains(&told), "{told:?}");
    let pushback = reply.status.metadata().get("grpc-retry-pushback-ms").expect("pushback").to_str().unwrap();
    assert_eq!(pushback, told.as_millis().to_string());
    told
}

async fn is_healthy(channel: &Channel) -> bool {
    let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
    answer.unwrap().into_inner().status() == ServingStatus::Serving
}

/// THREATS F13 and T20, over real connections. Records are kept by the disk before an answer leaves, so that places fill up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_is_shed_on_record_and_keeps_neither_a_modest_caller_nor_health_from_an_answer() {
    let gatepost = Gatepost::start_with(|settings| settings["limits"]["concurrent_decisions"] = json!(4)).await;
    let question = Arc::new(wire(&gatepost.token("alice", &[])));
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let shed: Arc<Mutex<Vec<Reply>>> = Arc::default();
    let mut flood = Vec::new();
    for _ in 0..CONNECTIONS {
        let greedy = channel(&gatepost, "storefront").await;
        for _ in 0..AT_ONCE {
            let (greedy, question) = (greedy.clone(), Arc::clone(&question));
            let (over, answered, shed) = (Arc::clone(&over), Arc::clone(&answered), Arc::clone(&shed));
            flood.push(tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let reply = check(&greedy, &question).await;
                    match reply.code() {
                        Code::Ok => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Code::ResourceExhausted => shed.lock().push(reply),
                        code => panic!("{code:?}: {:?}", reply.status),
                    }
                    // There are few processors here, for both sides.
                    tokio::time::sleep(Duration::from_millis(4)).await;
                }
            }));
        }
    }
    eventually("the flood is shed", || shed.lock().len() >= 20).await;

    let modest = channel(&gatepost, "back-office").await;
    let clock = SystemClock::shared();
    // Whoever comes into a house that one caller has filled comes too early, until one of the other's calls has ended.
    let mut early = 0;
    while check(&modest, &question).await.code() == Code::ResourceExhausted {
        early += 1;
        assert!(early < 100, "it never gets in");
    }
    let mut health = Vec::new();
    for _ in 0..40 {
        assert_eq!(check(&modest, &question).await.told(), "ALLOW", "the modest caller goes on");
        let begun = clock.monotonic();
        assert!(is_healthy(&modest).await);
        health.push(clock.monotonic().saturating_sub(begun));
    }
    let begun = clock.monotonic();
    assert_eq!(gatepost.ops("/readyz").await.0, 200, "an overload is no reason to send the load elsewhere at once");
    let metrics = gatepost.metrics().await;
    let looked = clock.monotonic().saturating_sub(begun);
    over.store(true, Ordering::Relaxed);
    for task in flood {
        tokio::time::timeout(PATIENCE, task).await.expect("it ends").unwrap();
    }

    health.sort_unstable();
    assert!(health[health.len() / 2] <= Duration::from_millis(100), "{health:?}");
    assert!(metrics.contains("gatepost_refused_total{reason=\"CALLER_OVER_SHARE\",status=\"RESOURCE_EXHAUSTED\"}"));
    for name in ["gatepost_decisions_places 4", "gatepost_decisions_accepted 1", "gatepost_runtime_lag_seconds "] {
        assert!(metrics.contains(name), "{name}");
    }
    let shed = std::mem::take(&mut *shed.lock());
    let waits: BTreeSet<_> = shed.iter().map(says_when_to_come_back).collect();
    assert!(waits.len() * 2 > shed.len().min(200), "they do not all come back together: {} times", waits.len());
    let ids: BTreeSet<_> = shed.iter().map(|reply| reply.decision_id().unwrap()).collect();
    assert_eq!(ids.len(), shed.len());
    let recorded = || {
        let records = gatepost.call_records();
        let ours = records
            .iter()
            .filter(|record| record["status_detail"] == "OVERLOADED" || record["status_detail"] == "CALLER_OVER_SHARE");
        let named = ours.filter_map(|record| record["metadata"]["original_event_uid"].as_str());
        let named: Vec<String> = named.map(str::to_owned).collect();
        let different: BTreeSet<&String> = named.iter().collect();
        (named.len(), ids.iter().all(|id| different.contains(id)))
    };
    eventually("every shed call has its record, and one", || recorded() == (ids.len() + early, true)).await;
    println!(
        "{} calls of the flood were shed and {} answered; health took {:?} at most, the operators' door {looked:?}",
        ids.len(),
        answered.load(Ordering::Relaxed),
        health.last().unwrap(),
    );

    // And then it is as before.
    let greedy = channel(&gatepost, "storefront").await;
    for _ in 0..10 {
        assert_eq!(check(&greedy, &question).await.told(), "ALLOW");
    }
}

/// What a runtime's probe would tell when calls wait for `lag` milliseconds before anybody looks at them. The server has
/// probes of its own, which find all well.
fn late(gatepost: &Gatepost, lag: u64) {
    let admission = &gatepost.pdp.admission;
    for _ in 0..2 {
        admission.lag(200, Duration::from_millis(lag));
    }
    gatepost.clock.advance(Duration::from_millis(100));
    admission.lag(200, Duration::from_millis(lag));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_runtime_is_late_calls_are_refused_before_they_are_read_and_then_no_more() {
    let gatepost = Gatepost::start_with(|settings| settings["limits"]["overload_target"] = json!("20ms")).await;
    let (storefront, health) = (channel(&gatepost, "storefront").await, channel(&gatepost, "back-office").await);
    let question = wire(&gatepost.token("alice", &[]));
    let admission = &gatepost.pdp.admission;
    let late = |lag: u64| late(&gatepost, lag);
    let mut shed = Vec::new();
    for _ in 0..10 {
        for _ in 0..30 {
            // Not even its words are looked at.
            let malformed = gatepost::proto::v1::CheckRequest { action: String::new(), ..question.clone() };
            let reply = check(&storefront, &malformed).await;
            match reply.code() {
                Code::InvalidArgument => {}
                Code::ResourceExhausted => shed.push(reply),
                code => panic!("{code:?}"),
            }
        }
        late(50);
        assert!(is_healthy(&health).await);
    }
    assert!(shed.len() > 10, "{}", shed.len());
    for reply in &shed {
        assert_eq!(reply.reason().as_deref(), Some("OVERLOADED"));
        says_when_to_come_back(reply);
    }
    let id = shed[0].decision_id().unwrap();
    eventually("it is on record", || gatepost.trail().contains(&id)).await;
    assert_eq!(gatepost.record_of(&id)["status_detail"], "OVERLOADED");

    let begun = gatepost.clock.monotonic();
    while admission.accepted() < 1.0 || admission.limit() < 1024 {
        late(0);
    }
    assert!(gatepost.clock.monotonic().saturating_sub(begun) <= Duration::from_secs(5));
    assert_eq!(check(&storefront, &question).await.told(), "ALLOW");
}

/// Were it refused at once, the rest of its message would come for a call that is over, and a connection on which that
/// happens often is closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_refused_unread_is_let_come_in_and_its_connection_goes_on() {
    let gatepost = Gatepost::start_with(|settings| settings["limits"]["overload_target"] = json!("20ms")).await;
    let storefront = channel(&gatepost, "storefront").await;
    let question = wire(&gatepost.token("alice", &[]));
    // Long enough that windows of HTTP/2 take part.
    let bytes = crate::wire::framed(0, &vec![0xff; 600 << 10]);
    let (head, rest) = (bytes.slice(..10), bytes.slice(10..));
    let (mut shed, mut asked) = (0, 0);
    while shed < 100 {
        // A few calls in a window are no overload.
        while gatepost.pdp.admission.accepted() > 0.9 {
            for _ in 0..30 {
                check(&storefront, &question).await;
            }
            late(&gatepost, 50);
        }
        let (sender, message) = tokio::sync::mpsc::channel(2);
        let body = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(message));
        let body = tonic::body::Body::new(body);
        let call = tokio::spawn(crate::wire::call_with(storefront.clone(), crate::wire::CHECK, &[], body));
        sender.send(Piece::Ok(http_body::Frame::data(head.clone()))).await.unwrap();
        // It comes after that, over the same connection.
        assert!(is_healthy(&storefront).await);
        assert!(!call.is_finished(), "it waits for the rest");
        sender.send(Ok(http_body::Frame::data(rest.clone()))).await.unwrap();
        drop(sender);
        let reply = tokio::time::timeout(PATIENCE, call).await.expect("it ends").unwrap();
        match reply.code() {
            Code::InvalidArgument => {}
            Code::ResourceExhausted => {
                says_when_to_come_back(&reply);
                shed += 1;
            }
            code => panic!("{code:?}: {:?}", reply.status),
        }
        asked += 1;
        assert!(asked < 10_000, "{shed} of {asked} are refused");
    }
    assert!(gatepost.metrics().await.contains("gatepost_connections 1\n"), "it is the first one still");
    println!("{shed} of {asked} calls of 600 KiB were refused over one connection");
}

/// What the caller named counts from when the call came; its message may have been on its way for a while.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_caller_waits_no_longer_is_not_worked_on() {
    let gatepost = Gatepost::start().await;
    let storefront = channel(&gatepost, "storefront").await;
    let (sender, message) = tokio::sync::mpsc::channel(2);
    let slow = |headers: &'static [(&'static str, &'static [u8])], message: Receiver<Piece>| {
        let body = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(message));
        let body = tonic::body::Body::new(body);
        tokio::spawn(crate::wire::call_with(storefront.clone(), crate::wire::CHECK, headers, body))
    };
    let bytes = crate::wire::framed(0, &prost::Message::encode_to_vec(&wire(&gatepost.token("alice", &[]))));
    let (head, rest) = (bytes.slice(..10), bytes.slice(10..));

    let call = slow(&[("grpc-timeout", b"10S")], message);
    sender.send(Ok(http_body::Frame::data(head.clone()))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    gatepost.clock.advance(Duration::from_secs(11));
    sender.send(Ok(http_body::Frame::data(rest.clone()))).await.unwrap();
    drop(sender);
    let reply = call.await.unwrap();
    assert_eq!(reply.code(), Code::DeadlineExceeded, "{:?}", reply.status);
    assert_eq!(gatepost.record_of(&reply.decision_id().unwrap())["status_detail"], "DEADLINE_EXCEEDED");

    // A slow sender that named no time has its time, and is no overload.
    let (sender, message) = tokio::sync::mpsc::channel(2);
    let call = slow(&[], message);
    sender.send(Ok(http_body::Frame::data(head))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    gatepost.clock.advance(Duration::from_secs(60));
    sender.send(Ok(http_body::Frame::data(rest))).await.unwrap();
    drop(sender);
    assert_eq!(call.await.unwrap().told(), "ALLOW");
}

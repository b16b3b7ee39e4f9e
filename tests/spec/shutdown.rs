//! How the real binary ends: by one signal, by two, and before it began; and that services and the audit trail lose
//! nothing by it.

use std::collections::BTreeSet;
use std::time::Duration;

use gatepost::clock::SystemClock;
use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::balancer::Balancer;
use crate::support::load::{InPython, Load, ids, recorded};
use crate::support::process::{Place, Process};
use crate::support::{Gatepost, PATIENCE, trail};

/// Services that do as docs/for-services.md says.
const CLIENTS: usize = 4;
/// The same in Python.
const CLIENTS_IN_PYTHON: usize = 2;
/// Services that never ask a second time.
const STUBBORN: usize = 2;

/// THREATS F17, and a rollout: two replicas behind a balancer are stopped in turn while everybody asks. 50 times with
/// `GATEPOST_LONG`.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_are_stopped_in_turn_under_load_drop_no_call() {
    let stops = if std::env::var_os("GATEPOST_LONG").is_some() { 50 } else { 10 };
    let place = Place::new(|settings| settings["server"]["drain_delay"] = json!("200ms"));
    let token = place.token_for(Duration::from_secs(890));
    let balancer = Balancer::start().await;
    let names = ["left", "right"];
    let mut replicas: Vec<Process> = Vec::new();
    for name in names {
        let replica = place.start_replica(name).await;
        balancer.put(name, replica.address, replica.ops).await;
        replicas.push(replica);
    }
    let (load, stubborn) = (Load::new(), Load::new());
    for number in 0..CLIENTS {
        load.ask(&number.to_string(), place.client_of(balancer.address).build().unwrap(), token.clone());
    }
    for number in 0..STUBBORN {
        let client = place.client_of(balancer.address).retries(0).build().unwrap();
        stubborn.ask(&format!("stubborn-{number}"), client, token.clone());
    }
    load.ask_in_python(&InPython::new(balancer.address, place.files(), CLIENTS_IN_PYTHON), &token);

    let clock = SystemClock::shared();
    let mut longest = Duration::ZERO;
    for stop in 0..stops {
        let which = stop % names.len();
        load.more(100).await;
        assert!(balancer.open(names[which]) > 0, "stop {stop}: it has something to drain");
        let began = clock.monotonic();
        replicas[which].signal("TERM");
        assert_eq!(replicas[which].ended().await, Some(0), "stop {stop}: {:#?}", replicas[which].log.lock());
        longest = longest.max(clock.monotonic() - began);
        assert!(load.failed().is_empty(), "stop {stop}: {:?}", load.failed());
        replicas[which] = place.start_replica(names[which]).await;
        balancer.put(names[which], replicas[which].address, replicas[which].ops).await;
    }
    load.more(100).await;
    let (calls, more) = (load.stop().await, stubborn.stop().await);
    for mut replica in replicas {
        replica.signal("TERM");
        assert_eq!(replica.ended().await, Some(0));
    }

    // Whatever was not answered was never looked at, or it would have a record that nobody knows.
    let mut answered = ids(&calls);
    answered.extend(ids(&more));
    let on_record: BTreeSet<String> = names.iter().flat_map(|name| recorded(&trail(&place.path(name)))).collect();
    let without = |all: &BTreeSet<String>, others: &BTreeSet<String>| all.difference(others).count();
    let refused = stubborn.failed();
    println!(
        "{stops} stops: {} calls, {} failed, {} answers, {} without a record, {} records without an answer; \
         of those that never ask twice {} calls, {} turned away unasked; the longest stop took {longest:?}",
        calls.len(),
        load.failed().len(),
        answered.len(),
        without(&answered, &on_record),
        without(&on_record, &answered),
        more.len(),
        refused.len(),
    );
    assert_eq!((without(&answered, &on_record), without(&on_record, &answered)), (0, 0));
    assert!(load.failed().is_empty(), "{:?}", load.failed());
    assert!(refused.iter().all(|error| error.contains("Unavailable")), "told to ask again: {refused:?}");
    for name in names {
        let verified = place.audit(&["verify", place.path(name).to_str().unwrap()]);
        assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
    }
}

/// Whoever sends the second has lost patience; the audit trail must not be what pays for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once_and_every_answer_is_on_record() {
    let place = Place::new(|settings| settings["server"]["drain_delay"] = json!("5m"));
    for (first, second) in [("TERM", "TERM"), ("INT", "INT"), ("TERM", "INT")] {
        let mut process = place.start().await;
        let load = Load::new();
        for number in 0..CLIENTS {
            load.ask(&number.to_string(), place.client(&process), place.token());
        }
        load.more(20).await;
        process.signal(first);
        process.until_it_says("draining").await;
        assert_eq!(process.ops("/readyz").await, Some(503));
        load.more(20).await;
        assert!(load.failed().is_empty(), "it answers while it waits for the balancer: {:?}", load.failed());
        let clock = SystemClock::shared();
        let began = clock.monotonic();
        process.signal(second);
        assert_eq!(process.ended().await, Some(130));
        let took = clock.monotonic() - began;
        assert!(took < Duration::from_secs(3), "{took:?}, of five minutes");
        let answered = ids(&load.stop().await);
        let on_record = recorded(&trail(&place.path("audit")));
        assert_eq!(answered.difference(&on_record).count(), 0, "{first}, {second}");
        println!("{first}, {second}: gone after {took:?}; {} answers, each on record", answered.len());
    }
    let place = place.with(|settings| settings["server"]["drain_delay"] = json!("0s"));
    let mut process = place.start().await;
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0), "what was cut short is taken up again");
    let verified = place.audit(&["verify", place.path("audit").to_str().unwrap()]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
}

/// As process 1 of a container it would not even hear a signal that it has not asked for, and would be killed much later.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_before_it_serves_ends_the_start_in_order() {
    let place = Place::new(|_| ());
    let socket = place.path("agent.sock");
    let agent = tokio::net::UnixListener::bind(&socket).unwrap();
    let place = place.with(|settings| {
        let server = settings["server"].as_object_mut().unwrap();
        server.retain(|key, _| !["certificate", "private_key", "client_ca"].contains(&key.as_str()));
        settings["server"]["workload_api"] = json!(format!("unix://{}", socket.display()));
        settings["server"]["workload_api_timeout"] = json!("10m");
    });
    let mut process = place.spawn();
    // It has come as far as to ask who it is; nobody answers.
    let asked = tokio::time::timeout(PATIENCE, agent.accept()).await.expect("it asks").unwrap();
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0));
    drop(asked);
    assert!(process.log.lock().iter().any(|line| line.contains("before anybody was served")));
    assert!(!place.path("audit").exists() || place.records().is_empty(), "nothing began that would have to be ended");
}

/// gRPC clients watch health over the connection that they ask on. They hear of the end, and do not hold it up.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_health_hears_of_the_drain_and_does_not_hold_it_up() {
    let mut gatepost = Gatepost::start_with(|settings| settings["server"]["drain_timeout"] = json!("10m")).await;
    let channel = gatepost.channel(&gatepost.client_files("storefront")).await.unwrap();
    let mut watching = Vec::new();
    for service in ["", "gatepost.v1.DecisionService"] {
        let mut health = HealthClient::new(channel.clone());
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut statuses = health.watch(request).await.unwrap().into_inner();
        let first = statuses.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving, "`{service}`");
        watching.push((service, statuses));
    }
    let stopped = gatepost.stop().await;
    assert_eq!((stopped.cut_off, stopped.by_itself), (0, false));
    for (service, mut statuses) in watching {
        let last = statuses.message().await.unwrap().unwrap();
        assert_eq!(last.status(), ServingStatus::NotServing, "`{service}`");
        assert!(statuses.message().await.unwrap().is_none(), "`{service}`: then it ends, as a call should");
    }
}

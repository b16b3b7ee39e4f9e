//! Connections end by age and by idleness while services go on, and that is how a new replica gets its share.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::failing_closed::wire;
use crate::support::balancer::Balancer;
use crate::support::load::{InPython, Load, ids, recorded};
use crate::support::process::Place;
use crate::support::{Gatepost, channel_to, eventually, trail};

const CLIENTS: usize = 8;
const CLIENTS_IN_PYTHON: usize = 2;
const AGE: Duration = Duration::from_secs(1);
/// Either way.
const JITTER: u32 = 30;
/// What a busy machine may add to a connection's life.
const LATE: Duration = Duration::from_secs(2);

/// THREATS section 6. Ages in seconds, where a cluster has minutes.
#[tokio::test(flavor = "multi_thread")]
async fn connections_grow_old_at_different_times_lose_no_call_and_find_new_replicas() {
    let place = Place::new(|settings| {
        settings["limits"]["connection_age"] = json!("1s");
        settings["limits"]["connection_age_jitter"] = json!(JITTER);
    });
    let balancer = Balancer::start().await;
    let mut left = place.start_replica("left").await;
    balancer.put("left", left.address, left.ops).await;
    let load = Load::new();
    let token = place.token();
    for number in 0..CLIENTS {
        load.ask(&number.to_string(), place.client_of(balancer.address).build().unwrap(), token.clone());
    }
    load.ask_in_python(&InPython::new(balancer.address, place.files(), CLIENTS_IN_PYTHON), &token);
    let all = CLIENTS + CLIENTS_IN_PYTHON;
    eventually("every connection was made anew several times", || {
        balancer.lives().len() >= 5 * all || !load.failed().is_empty()
    })
    .await;
    let lives = balancer.lives();
    let (shortest, longest) = (lives.iter().min().unwrap(), lives.iter().max().unwrap());
    let different: BTreeSet<u128> = lives.iter().map(|life| life.as_millis() / 20).collect();

    let mut right = place.start_replica("right").await;
    balancer.put("right", right.address, right.ops).await;
    eventually("the new replica has its share", || {
        balancer.open("right") >= all / 3 && balancer.open("left") >= all / 3 || !load.failed().is_empty()
    })
    .await;
    println!(
        "{} connections lived {shortest:?} to {longest:?}, {} different times by 20 ms; then {} left and {} right; \
         {} calls, {} failed",
        lives.len(),
        different.len(),
        balancer.open("left"),
        balancer.open("right"),
        load.answered(),
        load.failed().len(),
    );
    let answered = ids(&load.stop().await);
    for replica in [&mut left, &mut right] {
        assert_eq!(replica.stop(), Some(0));
    }
    let on_record: BTreeSet<String> =
        ["left", "right"].iter().flat_map(|name| recorded(&trail(&place.path(name)))).collect();
    assert!(load.failed().is_empty(), "{:?}", load.failed());
    assert_eq!(answered, on_record, "and no call was decided that nobody heard of");
    let jitter = AGE * JITTER / 100;
    assert!(*shortest >= AGE - jitter && *longest <= AGE + jitter + LATE, "{shortest:?} to {longest:?}");
    assert!(different.len() >= 15, "they do not all leave together: {lives:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_nobody_asks_over_ends_though_its_client_would_keep_it() {
    let gatepost = Gatepost::start_with(|settings| settings["limits"]["idle_timeout"] = json!("1s")).await;
    let balancer = Balancer::start().await;
    balancer.put("it", gatepost.address, gatepost.ops_address).await;
    let channel = channel_to(balancer.address, &gatepost.client_files("storefront")).await.unwrap();
    let mut client = gatepost::proto::v1::decision_service_client::DecisionServiceClient::new(channel);
    let token = gatepost.token("alice", &[]);
    assert!(client.check(wire(&token)).await.is_ok());
    assert_eq!(balancer.open("it"), 1);
    eventually("it is asked to go", || balancer.open("it") == 0).await;
    assert!(balancer.lives().iter().all(|life| *life >= Duration::from_secs(1)), "{:?}", balancer.lives());
    assert!(client.check(wire(&token)).await.is_ok(), "and comes again when there is something to ask");
}

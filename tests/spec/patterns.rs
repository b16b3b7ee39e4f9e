//! What nobody would notice in one record: somebody who tries ids, and a token in two hands.

use gatepost::cli::demo::world::{CLIENT, ISSUER};
use gatepost::client::Batch;
use serde_json::json;

use crate::support::{Gatepost, eventually, minutes, order};

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_25_orders_of_others_in_a_row_is_told_of_once_for_each_thing_that_is_odd() {
    let mut gatepost = Gatepost::start().await;
    let alice = gatepost.token("alice", &[]);
    let mut asked = Vec::new();
    for number in 1001..1026 {
        let answer = gatepost.ask(order("Order.read", &format!("o-{number}"), "bob").token(&alice)).await.unwrap();
        assert!(!answer.allowed());
        asked.push(answer.decision_id().to_owned());
    }
    eventually("all three are on record", || {
        ["ENUM_DENIED", "ENUM_SEQUENTIAL", "SLOW_ENUM"].iter().all(|pattern| !gatepost.alerts(pattern).is_empty())
    })
    .await;
    let metrics = gatepost.metrics().await;
    gatepost.stop().await;

    for (pattern, severity, count, last) in
        [("ENUM_DENIED", "High", 5, 4), ("ENUM_SEQUENTIAL", "Medium", 10, 9), ("SLOW_ENUM", "High", 25, 24)]
    {
        let alerts = gatepost.alerts(pattern);
        assert_eq!(alerts.len(), 1, "{pattern}: once");
        let alert = &alerts[0];
        let table = [
            ("/severity", json!(severity), "how bad"),
            ("/is_alert", json!(true), "what it is"),
            ("/disposition", json!("Alert"), "nothing was stopped"),
            ("/count", json!(count), "how many"),
            ("/actor/user/uid", json!("User::\"alice\""), "who"),
            ("/actor/app_name", json!("storefront"), "through whom"),
            ("/resources/0/type", json!("Order"), "of what"),
            ("/unmapped/gatepost/alert/first_id", json!("o-1001"), "from here"),
            ("/unmapped/gatepost/alert/last_id", json!(format!("o-{}", 1001 + last)), "to here"),
        ];
        for (pointer, expected, why) in table {
            assert_eq!(alert.pointer(pointer), Some(&expected), "{pattern}, {why}: {alert:#}");
        }
        let samples: Vec<&str> = alert["unmapped"]["gatepost"]["alert"]["sample_decision_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_str().unwrap())
            .collect();
        assert_eq!(samples, asked[(last + 1_usize).saturating_sub(10)..=last], "{pattern}: the answers it is about");
        assert!(metrics.contains(&format!("gatepost_audit_alerts_total{{pattern=\"{pattern}\"}} 1\n")), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_comes_from_two_services_is_told_of_and_one_that_comes_twice_from_one_is_not() {
    // The storefront's own, and nobody else's to present.
    let mut gatepost = Gatepost::start_with(|settings| {
        settings["callers"][0].as_object_mut().unwrap().remove("presents_for");
        settings["callers"][0]["clients"] = json!([{ "issuer": ISSUER, "id": CLIENT }]);
        settings["callers"][1].as_object_mut().unwrap().remove("presents_for");
    })
    .await;
    for (id, services) in [("one-hand", ["storefront", "storefront"]), ("two-hands", ["storefront", "back-office"])] {
        let token = gatepost.token_with("alice", &json!({ "tenant": "acme", "roles": [], "jti": id }), minutes(5));
        for service in services {
            let answer = gatepost.client(service).check(order("Order.read", "o-1", "alice").token(&token)).await;
            assert_eq!(answer.unwrap().allowed(), service == "storefront", "{service}");
        }
    }
    gatepost.stop().await;
    let alerts = gatepost.alerts("TOKEN_SHARED");
    assert_eq!(alerts.len(), 1, "{alerts:#?}");
    assert_eq!(alerts[0]["actor"]["user"]["uid"], "User::\"alice\"");
    assert_eq!(alerts[0]["actor"]["app_name"], "back-office", "who came last");
    assert_eq!(alerts[0]["unmapped"]["gatepost"]["alert"]["sample_decision_ids"].as_array().unwrap().len(), 2);
    assert!(!gatepost.trail().contains("two-hands"), "the token's id stands nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_switched_off_or_known_is_not_told_and_a_batch_is_not_somebody_who_tries_ids() {
    let alerts = |patterns: serde_json::Value, batch: bool| async move {
        let mut gatepost = Gatepost::start_with(|settings| settings["audit"]["patterns"] = patterns).await;
        let alice = gatepost.token("alice", &[]);
        let asks = || (1001..1013).map(|number| order("Order.read", &format!("o-{number}"), "bob"));
        if batch {
            let batch = asks().fold(Batch::new().token(&alice), Batch::ask);
            let answers = gatepost.client("storefront").batch(batch).await.unwrap();
            assert!(answers.iter().all(|answer| !answer.as_ref().unwrap().allowed()));
        } else {
            for ask in asks() {
                assert!(!gatepost.ask(ask.token(&alice)).await.unwrap().allowed());
            }
        }
        gatepost.stop().await;
        gatepost.alerts("ENUM_DENIED").len()
    };
    let table = [
        (json!({}), false, 1, "as it comes"),
        (json!({}), true, 0, "a service filters a list"),
        (json!({ "off": true }), false, 0, "nothing is looked for"),
        (json!({ "rules": { "ENUM_DENIED": { "off": true } } }), false, 0, "this is not"),
        (json!({ "rules": { "ENUM_DENIED": { "threshold": 13 } } }), false, 0, "one more than there were"),
        (json!({ "rules": { "ENUM_DENIED": { "threshold": 12 } } }), false, 1, "as many as there were"),
        (
            json!({ "rules": { "ENUM_DENIED": { "actions": [{ "actions": ["Order.*"], "off": true }] } } }),
            false,
            0,
            "not at orders",
        ),
        (
            json!({ "exempt": [{ "principals": ["User::\"alice\""], "patterns": ["ENUM_DENIED"] }] }),
            false,
            0,
            "she always does that",
        ),
        (json!({ "exempt": [{ "callers": ["storefront"], "patterns": ["ENUM_DENIED"] }] }), false, 0, "so does it"),
        (json!({ "exempt": [{ "callers": ["storefront"], "patterns": ["BULK_READ"] }] }), false, 1, "but not this"),
    ];
    let rows = table.len();
    for (patterns, batch, expected, why) in table {
        assert_eq!(alerts(patterns.clone(), batch).await, expected, "{patterns}: {why}");
    }
    println!("{rows} settings tried");
}

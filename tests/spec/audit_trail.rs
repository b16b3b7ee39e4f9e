//! A row for every way a record could be missing, doubled, or tell too much.

use std::collections::BTreeSet;

use gatepost::client::Batch;
use gatepost::proto::v1;
use serde_json::json;

use crate::failing_closed::wire;
use crate::support::{Gatepost, account, minutes, order};

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_and_its_record_tell_the_same() {
    let gatepost = Gatepost::start().await;
    let claims = json!({ "tenant": "acme", "roles": ["support"], "jti": "token-4711" });
    let token = gatepost.token_with("sam", &claims, minutes(5));
    let ask = account("Account.read", "alice").fields_all().token(&token).request_id("req-7");
    let answer = gatepost.ask(ask).await.unwrap();
    let record = gatepost.record_of(answer.decision_id());
    let table = [
        ("/class_uid", json!(6003), "API Activity"),
        ("/action_id", json!(1), "allowed"),
        ("/api/operation", json!("Account.read"), "the action"),
        ("/actor/app_uid", json!("spiffe://shop.example/ns/shop/sa/storefront"), "the calling service"),
        ("/actor/app_name", json!("storefront"), "as people call it"),
        ("/resources/0/type", json!("Account"), "the resource's type"),
        ("/resources/0/uid", json!("acc-alice"), "and id"),
        ("/metadata/correlation_uid", json!("req-7"), "the caller's request id"),
    ];
    for (pointer, expected, why) in table {
        assert_eq!(record.pointer(pointer), Some(&expected), "{why}: {record:#}");
    }
    let shown = record.to_string();
    assert!(shown.contains("account.support-reads"), "the deciding policy");
    assert!(shown.contains(answer.policy_revision()), "the revision");
    for path in answer.mask().unwrap().paths() {
        assert!(shown.contains(path.as_str()), "the mask: {path}");
    }
    for secret in ["token-4711", token.rsplit('.').next().unwrap(), "eyJ"] {
        assert!(!shown.contains(secret), "{secret} must not be on record");
    }
}

/// THREATS V-KEY-6 and I1: under concurrency every answer is its own, and has exactly one record.
#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_callers_at_once_each_get_their_own_answer_and_record() {
    let gatepost = Gatepost::start().await;
    let services = ["storefront", "back-office"];
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..64 {
        let (client, owner) = (gatepost.client(services[n % 2]), format!("user-{}", n / 2));
        let token = gatepost.token(&owner, &[]);
        asking.spawn(async move {
            let mut answers = Vec::new();
            for round in 0..10 {
                let customer = if round % 2 == 0 { owner.clone() } else { "somebody".to_owned() };
                let answer = client.check(order("Order.read", "o-1", &customer).token(&token)).await.unwrap();
                assert_eq!(answer.allowed(), round % 2 == 0, "{owner} asks about an order of {customer}");
                answers.push((answer.decision_id().to_owned(), services[n % 2], owner.clone()));
            }
            answers
        });
    }
    let answers: Vec<_> = asking.join_all().await.into_iter().flatten().collect();
    let records = gatepost.call_records();
    assert_eq!(records.len(), 640);
    let ids: BTreeSet<&str> = records.iter().map(|r| r["metadata"]["original_event_uid"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 640, "no record twice");
    for (id, service, owner) in answers {
        let record = records.iter().find(|record| record["metadata"]["original_event_uid"] == id.as_str()).unwrap();
        assert_eq!(record["actor"]["app_name"], service);
        assert!(record["actor"]["user"]["uid"].as_str().unwrap().contains(&owner));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_item_of_a_batch_has_a_record_of_its_own() {
    let gatepost = Gatepost::start().await;
    let alice = gatepost.token("alice", &[]);
    let batch = ["alice", "bob", "alice"]
        .into_iter()
        .fold(Batch::new().token(&alice), |batch, customer| batch.ask(order("Order.read", "o-1", customer)));
    let answers = gatepost.client("storefront").batch(batch).await.unwrap();
    let records = gatepost.call_records();
    assert_eq!(records.len(), 3);
    for (index, answer) in answers.iter().enumerate() {
        let record = gatepost.record_of(answer.as_ref().unwrap().decision_id());
        assert_eq!(record["unmapped"]["gatepost"]["batch"]["index"], json!(index));
        assert_eq!(record["unmapped"]["gatepost"]["batch"]["of"], json!(3));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_a_bad_token_denies_every_item_and_a_bad_item_spoils_no_other() {
    let gatepost = Gatepost::start().await;
    let item = |id: &str| v1::BatchCheckItem {
        action: "Order.read".into(),
        resource: wire("").resource.map(|resource| v1::Resource { id: Some(id.into()), ..resource }),
        fields: None,
    };
    let batch = |token: &str| v1::BatchCheckRequest {
        subject: Some(v1::batch_check_request::Subject::Token(token.into())),
        items: vec![item("o-1"), item("bad\u{0}id"), item("o-3")],
        ..Default::default()
    };
    let mut raw = gatepost.raw("storefront").await;
    let good = raw.batch_check(batch(&gatepost.token("alice", &[]))).await.unwrap().into_inner();
    use v1::batch_check_result::Result as Item;
    let told: Vec<String> = good
        .results
        .iter()
        .map(|result| match result.result.as_ref().unwrap() {
            Item::Response(response) => format!("{:?}", response.decision()),
            Item::Error(error) => format!("{} {}", error.reason, error.field),
        })
        .collect();
    assert_eq!(told, ["Allow", "INVALID_QUESTION resource.id", "Allow"]);
    let bad = raw.batch_check(batch("rubbish")).await.unwrap().into_inner();
    for (index, result) in bad.results.iter().enumerate() {
        match result.result.as_ref().unwrap() {
            Item::Response(response) => {
                assert_eq!(response.denial.as_ref().unwrap().code(), v1::DenialCode::TokenRejected)
            }
            Item::Error(error) => assert_eq!((index, error.reason.as_str()), (1, "INVALID_QUESTION")),
        }
    }
    assert_eq!(gatepost.call_records().len(), 6);
}

/// THREATS 5b: valid OCSF 1.8 where the schemas are at hand, whatever happened.
#[tokio::test(flavor = "multi_thread")]
async fn every_record_of_a_lively_run_is_one_line_of_valid_ocsf() {
    let mut gatepost = Gatepost::start().await;
    let alice = gatepost.token("alice", &[]);
    let _ = gatepost.ask(account("Account.read", "alice").fields_all().token(&alice)).await;
    let _ = gatepost.ask(account("Account.update", "alice").fields(["role"]).token(&alice)).await;
    let _ = gatepost.ask(order("Order.read", "o-1", "bob").token("rubbish")).await;
    let _ = gatepost.raw("warehouse").await.check(wire(&alice)).await;
    gatepost.world.write("policies/broken.cedar", "permit (").unwrap();
    crate::support::eventually("the broken bundle is on record", || {
        gatepost.records().iter().any(|record| record["class_uid"] == 3004)
    })
    .await;
    gatepost.stop().await;
    let records = gatepost.records();
    let classes: BTreeSet<u64> = records.iter().filter_map(|record| record["class_uid"].as_u64()).collect();
    assert_eq!(classes, [3004, 6002, 6003].into(), "policy change, start and stop, calls");
    assert_eq!(crate::support::ocsf::check(&gatepost.trail()), records.len());
}

/// A rule that matches nothing would be a gap that nobody sees: told at the start, and no later bundle makes one.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_about_a_value_that_the_schema_lacks_is_refused_at_the_start_and_at_each_reload() {
    let folder = tempfile::tempdir().unwrap();
    let world = gatepost::cli::demo::world::World::create(folder.path()).unwrap();
    let policies = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    for (rule, message) in [
        ("Order.stauts", "declares no attribute `stauts` of `Order`, which `audit.attributes` names as `Order.stauts`"),
        ("Ordre.status", "declares no attribute `status` of `Ordre`"),
        ("context.chanel", "declares no context with `chanel`"),
    ] {
        let mut settings = world.configuration(&policies);
        settings["audit"]["attributes"] = json!({ rule: "keep" });
        world.write("gatepost.yaml", &settings.to_string()).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gatepost"));
        let output =
            command.args(["serve", "--check", "--config"]).arg(folder.path().join("gatepost.yaml")).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
        assert_eq!(output.status.code(), Some(65), "{rule}: {told}");
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&told).contains(&words(message)), "{rule}: {told}");
    }

    let gatepost = Gatepost::start_with(|settings| {
        settings["audit"]["attributes"] = json!({ "Order.items": "keep" });
    })
    .await;
    let schema = gatepost.path("policies/shop.cedarschema");
    let text = std::fs::read_to_string(&schema).unwrap();
    let without = text.replacen("  @read(\"basic\")\n  items?: Set<String>,\n", "", 1);
    assert_ne!(text, without);
    std::fs::write(&schema, without).unwrap();
    crate::support::eventually("the bundle is refused", || {
        gatepost.records().iter().any(|record| record["status_detail"] == "REFUSED")
    })
    .await;
    let token = gatepost.token("alice", &[]);
    assert!(
        gatepost.ask(order("Order.read", "o-1", "alice").token(&token)).await.unwrap().allowed(),
        "the old one serves"
    );
}

/// Who asked stands under a name that only the key's holder can find again.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_a_pseudonym_is_nowhere_in_the_trail_by_name_and_can_be_found_with_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("pseudonyms.key");
    std::fs::write(&key, [7; 32]).unwrap();
    let gatepost = Gatepost::start_with(|settings| {
        settings["audit"]["pseudonyms"] = json!({ "key_file": key, "ids": ["User"] });
    })
    .await;
    let token = gatepost.token("alice-who-is-a-person", &[]);
    let answer = gatepost.ask(order("Order.read", "o-1", "alice-who-is-a-person").token(&token)).await.unwrap();
    assert!(answer.allowed(), "the decision is made with the true id");
    assert!(!gatepost.trail().contains("alice-who-is-a-person"));
    let config = gatepost.path("gatepost.yaml");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gatepost"));
    let output =
        command.args(["audit", "pseudonym", "User", "alice-who-is-a-person", "--config"]).arg(config).output().unwrap();
    let name = String::from_utf8(output.stdout).unwrap();
    let record = gatepost.record_of(answer.decision_id());
    assert_eq!(record["unmapped"]["gatepost"]["principal"], format!("User::\"{}\"", name.trim()));
    assert_eq!(record["actor"]["user"]["name"], name.trim());
}

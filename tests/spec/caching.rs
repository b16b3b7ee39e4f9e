//! The caches are never wrong: nothing outlives what it was earned by, and nothing is shared that must not be.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use gatepost::cli::demo::world::spiffe_id;
use gatepost::client::{Ask, Batch, EntityData};
use gatepost::model::decision::DenialCode;
use gatepost::proto::v1;
use serde_json::json;

use crate::support::{Gatepost, eventually, minutes, order};
use crate::wire::{attributes, number, reference, text, told, with_token};

fn cache_of(gatepost: &Gatepost, decision_id: &str) -> String {
    gatepost.record_of(decision_id)["unmapped"]["gatepost"]["cache"].as_str().unwrap().to_owned()
}

async fn cached(gatepost: &Gatepost, service: &str, ask: Ask) -> String {
    let answer = gatepost.client(service).check(ask).await.unwrap();
    cache_of(gatepost, answer.decision_id())
}

/// A cached allow must not outlive the token that earned it.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_denied_even_when_its_ruling_is_cached() {
    let gatepost = Gatepost::start_with(|settings| settings["cache"] = json!({ "decision_ttl": "10m" })).await;
    let alice = gatepost.token("alice", &[]);
    let question = || order("Order.read", "o-1", "alice").token(&alice);
    assert!(gatepost.ask(question()).await.unwrap().allowed());
    assert_eq!(cached(&gatepost, "storefront", question()).await, "hit");

    gatepost.clock.advance(minutes(6));

    assert_eq!(gatepost.ask(question()).await.unwrap().denial(), Some(DenialCode::TokenExpired));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ruling_is_kept_for_its_lifetime_and_no_longer_whatever_the_wall_clock_does() {
    let gatepost = Gatepost::start_with(|settings| settings["cache"] = json!({ "decision_ttl": "30s" })).await;
    let alice = gatepost.token("alice", &[]);
    let question = || order("Order.read", "o-1", "alice").token(&alice);
    assert_eq!(cached(&gatepost, "storefront", question()).await, "miss");
    gatepost.clock.advance(Duration::from_secs(29));
    assert_eq!(cached(&gatepost, "storefront", question()).await, "hit");
    use gatepost::clock::Clock as _;
    gatepost.clock.jump_to(gatepost.clock.now() - Duration::from_secs(3));
    gatepost.clock.advance(Duration::from_secs(2));
    assert_eq!(cached(&gatepost, "storefront", question()).await, "miss", "a clock set back lengthens nothing");
}

/// THREATS T5, V-KEY: whatever may alter the answer is in the key.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_differs_in_anything_is_asked_anew() {
    let gatepost = Gatepost::start().await;
    let (alice, staff) = (gatepost.token("alice", &[]), gatepost.token("alice", &["support"]));
    let base = || order("Order.read", "o-1", "alice").token(&alice);
    assert_eq!(cached(&gatepost, "storefront", base()).await, "miss");
    assert_eq!(cached(&gatepost, "storefront", base()).await, "hit");
    let plain = || {
        Ask::new("Order.read")
            .resource("Order", "o-1")
            .reference("tenant", "Tenant", "acme")
            .reference("customer", "User", "alice")
            .token(&alice)
    };
    let table = [
        ("storefront", order("Order.read", "o-1", "alice").token(&staff), "another parent of the principal"),
        ("storefront", order("Order.read", "o-1", "alic").token(&alice), "another attribute"),
        ("storefront", order("Order.read", "o-11", "alice").token(&alice), "another resource"),
        ("storefront", order("Order.cancel", "o-1", "alice").token(&alice), "another action"),
        ("storefront", base().fields_all(), "fields"),
        ("storefront", base().fields(["status"]), "other fields"),
        ("storefront", base().fields(["status"]).strict(), "another mode"),
        ("storefront", plain().attribute("status", "open").attribute("total", 1251), "a number"),
        ("storefront", plain().attribute("status", "paid").attribute("total", 1250), "a text"),
        ("back-office", base(), "another caller: no entry is shared between them"),
    ];
    for (service, ask, why) in table {
        assert_eq!(cached(&gatepost, service, ask).await, "miss", "{why}");
    }
    assert_eq!(cached(&gatepost, "storefront", base()).await, "hit", "the first one is still there");
    assert_eq!(cached(&gatepost, "storefront", base().bypass_cache()).await, "bypass");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ruling_that_reads_the_time_is_never_kept() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spec/bundles/timely");
    let gatepost = Gatepost::start_over(&bundle, |settings| {
        settings["callers"] = json!([{
            "spiffe_id": spiffe_id("storefront"), "name": "storefront", "resource_types": "*", "actions": "*",
            "assert_subjects": "*", "supply_attributes": "*",
        }]);
        settings["issuers"] = json!([]);
        settings["audit"]["attributes"] = json!({});
    })
    .await;
    use gatepost::clock::Clock as _;
    let opens = gatepost::clock::unix_seconds(gatepost.clock.now()) + 60;
    let opens = jiff::Timestamp::from_second(opens as i64).unwrap().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let ask = |action: &str| {
        Ask::new(action)
            .resource("Doc", "d")
            .attribute("opens", opens.as_str())
            .asserted(EntityData::new("User", "ann"))
    };
    assert!(!gatepost.ask(ask("read")).await.unwrap().allowed());
    gatepost.clock.advance(Duration::from_secs(61));
    let opened = gatepost.ask(ask("read")).await.unwrap();
    assert!(opened.allowed());
    assert_eq!(cache_of(&gatepost, opened.decision_id()), "bypass");
}

/// THREATS T7: a ruling of one revision is never an answer of the next.
#[tokio::test(flavor = "multi_thread")]
async fn new_policies_are_obeyed_at_once_although_old_rulings_are_cached() {
    let gatepost = Gatepost::start().await;
    let alice = gatepost.token("alice", &[]);
    let question = || order("Order.read", "o-1", "alice").token(&alice);
    let before = gatepost.ask(question()).await.unwrap();
    assert!(before.allowed());
    let forbid =
        "@id(\"closed\") @owner(\"t\") @reason(\"t\") forbid (principal, action == Action::\"Order.read\", resource);";
    gatepost.world.write("policies/zz.cedar", forbid).unwrap();
    let revision = before.policy_revision().to_owned();
    eventually("the change is in force", || gatepost.pdp.store.current().revision().as_str() != revision).await;
    let after = gatepost.ask(question()).await.unwrap();
    assert_eq!(after.denial(), Some(DenialCode::Forbidden));
    assert_ne!(after.policy_revision(), before.policy_revision());
}

/// THREATS 2a, OpenFGA CVE-2026-34972: duplicates and near-duplicates in one batch.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_answers_each_question_as_if_it_were_asked_alone() {
    let gatepost = Gatepost::start().await;
    let alice = gatepost.token("alice", &[]);
    let client = gatepost.client("storefront");
    let asks: Vec<Ask> = (0..100)
        .map(|n| match n % 4 {
            0 => order("Order.read", "o-1", "alice"),
            1 => order("Order.read", "o-1", "bob"),
            2 => order("Order.read", "o-1", "alice").fields(["total"]),
            _ => order("Order.cancel", "o-1", "alice"),
        })
        .collect();
    let batch = asks.iter().fold(Batch::new().token(&alice), |batch, ask| batch.ask(ask.clone()));
    let answers = client.batch(batch).await.unwrap();
    assert_eq!(answers.len(), 100);
    for (ask, answer) in asks.into_iter().zip(answers) {
        let (alone, answer) = (client.check(ask.token(&alice)).await.unwrap(), answer.unwrap());
        assert_eq!(answer.decision(), alone.decision());
        assert_eq!(answer.denial(), alone.denial());
        let paths = |mask: Option<&gatepost::client::Mask>| mask.map(|mask| mask.paths().cloned().collect::<Vec<_>>());
        assert_eq!(paths(answer.mask()), paths(alone.mask()));
    }
}

/// Details of a question: which of so many each has.
const DETAILS: [usize; 9] = [3, 3, 3, 4, 3, 3, 3, 3, 2];

/// A question made of details, on behalf of one of the tokens.
fn made_of(details: [usize; 9], tokens: &[String]) -> v1::CheckRequest {
    let [token, action, id, customer, tenant, status, total, fields, about] = details;
    let members = [
        ("tenant", reference("Tenant", ["acme", "globex", "none"][tenant])),
        ("customer", reference("User", ["alice", "bob", "root", "alic"][customer])),
        ("status", text(["open", "paid", "cancelled"][status])),
        ("total", number([0.0, 1250.0, 1251.0][total])),
    ];
    let resource = v1::Resource {
        r#type: "Order".into(),
        id: Some(["o-1", "o-11", "o-2"][id].into()),
        attributes: Some(attributes(members)),
        parents: Vec::new(),
    };
    let fields = match fields {
        // Who cancels an order asks for no fields.
        _ if action == 2 => None,
        0 => None,
        1 => Some(v1::FieldQuery { all: true, ..v1::FieldQuery::default() }),
        _ => Some(v1::FieldQuery {
            paths: Some(prost_types::FieldMask { paths: vec!["status".into(), "total".into()] }),
            mode: about as i32,
            ..v1::FieldQuery::default()
        }),
    };
    let action = ["Order.read", "Order.update", "Order.cancel"][action];
    let request = with_token(&tokens[token], action, resource);
    v1::CheckRequest { fields, ..request }
}

/// All that a service can see of an answer, but its name and how long it holds.
fn bare(response: v1::CheckResponse) -> v1::CheckResponse {
    v1::CheckResponse { decision_id: String::new(), cache: None, ..response }
}

/// THREATS T5, V-KEY: questions that differ from one of a few in one detail, asked alone and in batches, again and again. What is
/// remembered, by its meaning or by its bytes, is what the policies say. `GATEPOST_LONG=1` asks a million.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_is_what_the_policies_say_whichever_detail_differs() {
    let count = if std::env::var_os("GATEPOST_LONG").is_some() { 1_000_000 } else { 10_000 };
    let gatepost = Gatepost::start_with(|settings| {
        let storefront = &mut settings["callers"][0];
        for right in ["tenants", "supply_attributes"] {
            storefront[right] = json!("*");
        }
        settings["cache"] = json!({ "decision_ttl": "10m" });
        // A million questions over one connection can take longer than one is let grow old.
        settings["limits"]["connection_age"] = json!("6h");
    })
    .await;
    let tokens =
        [gatepost.token("alice", &[]), gatepost.token("bob", &["support"]), gatepost.token("root", &["admin"])];
    let client = gatepost.raw("storefront").await;
    let mut dice = fastrand::Rng::with_seed(41);
    let bases: Vec<[usize; 9]> = (0..20).map(|_| DETAILS.map(|of| dice.usize(0..of))).collect();
    let mut expected: HashMap<[usize; 9], v1::CheckResponse> = HashMap::new();
    let (mut asked, mut hits, mut outcomes) = (0, 0, BTreeMap::<String, usize>::new());
    while asked < count {
        let several: Vec<[usize; 9]> = (0..20)
            .map(|_| {
                let mut details = bases[dice.usize(0..bases.len())];
                let at = dice.usize(0..details.len());
                details[at] = dice.usize(0..DETAILS[at]);
                details
            })
            .collect();
        // What the policies say, asked past every cache.
        for details in &several {
            if !expected.contains_key(details) {
                let options = Some(v1::CheckOptions { bypass_cache: true });
                let request = v1::CheckRequest { options, ..made_of(*details, &tokens) };
                let said = client.clone().check(request).await.unwrap().into_inner();
                *outcomes.entry(told(&said)).or_default() += 1;
                expected.insert(*details, bare(said));
            }
        }
        let alone = several.iter().map(|details| {
            let (mut client, request) = (client.clone(), made_of(*details, &tokens));
            async move { client.check(request).await.unwrap().into_inner() }
        });
        let alone = futures_util::future::join_all(alone).await;
        for (details, said) in several.iter().zip(alone) {
            assert_eq!(bare(said), expected[details], "{details:?} alone");
        }
        // A batch is of one subject.
        for (number, token) in tokens.iter().enumerate() {
            let of_one: Vec<_> = several.iter().filter(|details| details[0] == number).collect();
            let items: Vec<_> = of_one
                .iter()
                .map(|details| {
                    let v1::CheckRequest { action, resource, fields, .. } = made_of(**details, &tokens);
                    v1::BatchCheckItem { action, resource, fields }
                })
                .collect();
            if items.is_empty() {
                continue;
            }
            let subject = Some(v1::batch_check_request::Subject::Token(token.clone()));
            let batch = v1::BatchCheckRequest { subject, items, ..v1::BatchCheckRequest::default() };
            let results = client.clone().batch_check(batch).await.unwrap().into_inner().results;
            assert_eq!(results.len(), of_one.len());
            for (details, result) in of_one.into_iter().zip(results) {
                let Some(v1::batch_check_result::Result::Response(said)) = result.result else {
                    panic!("{details:?} in a batch: {result:?}");
                };
                assert_eq!(bare(said), expected[details], "{details:?} in a batch");
            }
        }
        asked += 2 * several.len();
        hits = asked - 2 * expected.len().min(asked / 2);
    }
    println!("{asked} answers to {} questions, {outcomes:?}", expected.len());
    assert!(hits * 10 > asked * 8, "most were asked before: {hits} of {asked}");
    assert!(outcomes.len() >= 3 && outcomes.contains_key("ALLOW"), "{outcomes:?}");
}

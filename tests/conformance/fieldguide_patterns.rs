//! The field guide's sequences of events, each with the patterns that must be found in it and where.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gatepost::audit::patterns::{Asked, Detector, Ending, Event, What};
use gatepost::config::{Exemption, Pattern, PatternsConfig};
use gatepost::model::entity::{EntityId, EntityType, EntityUid};
use serde_json::Value as Json;

use crate::support::say;

/// Those that the field guide's own detector knows.
const THEIRS: usize = 11;

fn uid(name: &str) -> EntityUid {
    EntityUid { entity_type: EntityType::parse("User").unwrap(), id: EntityId::parse(name, 256).unwrap() }
}

/// Their entitlements are our exemptions.
fn settings(entitlements: &Json) -> PatternsConfig {
    let exempt = entitlements.as_object().unwrap().iter().flat_map(|(name, held)| {
        held.as_array().unwrap().iter().map(|entitlement| Exemption {
            principals: vec![uid(name)],
            callers: Vec::new(),
            patterns: match entitlement.as_str().unwrap() {
                "batch" => vec![Pattern::EnumSequential],
                "export" => vec![Pattern::BulkExport, Pattern::PageWalk],
                other => panic!("an entitlement that we don't know: {other}"),
            },
        })
    });
    PatternsConfig { exempt: exempt.collect(), ..PatternsConfig::default() }
}

fn id(value: &Json) -> Option<String> {
    if value.is_null() { None } else { Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned)) }
}

/// What is found at this event.
fn observe(detector: &mut Detector, event: &Json) -> Vec<Pattern> {
    let text = |name: &str| event[name].as_str();
    let principal = text("principal").map(|name| uid(name).to_string());
    let object = id(&event["id"]);
    let listed: Vec<String> = event["listed_ids"].as_array().into_iter().flatten().filter_map(id).collect();
    let listed: Vec<&str> = listed.iter().map(String::as_str).collect();
    let root: Vec<(&str, u64)> = event["root"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(field, times)| (field.as_str(), times.as_u64().unwrap()))
        .collect();
    let allowed = text("decision") == Some("allow");
    let what = match text("kind").unwrap() {
        "decision" => What::Question(Asked {
            action: text("action").unwrap_or_default(),
            resource_type: text("type").unwrap_or_default(),
            id: object.as_deref(),
            ending: if allowed { Ending::Allowed } else { Ending::Denied },
            reason: text("reason"),
            records: event["records"].as_u64().unwrap_or(0),
            bytes: event["bytes"].as_u64().unwrap_or(0),
            offset: event["offset"].as_u64(),
            listed: &listed,
            admin: event["admin"] == true,
            ..Asked::default()
        }),
        "auth" => What::Authentication { account: text("account").unwrap(), tenant: text("tenant"), failed: !allowed },
        "graphql" => What::GraphQl { root: &root },
        "ratelimit" => What::RateLimited,
        other => panic!("a kind of event that we don't know: {other}"),
    };
    let found = detector.observe(&Event {
        at: Duration::from_millis(event["t"].as_u64().unwrap()),
        principal: principal.as_deref(),
        caller: None,
        address: text("ip").map(|address| address.parse().unwrap()),
        decision_id: None,
        what,
    });
    found.into_iter().map(|alert| alert.pattern).collect()
}

#[test]
fn every_sequence_of_the_field_guide_raises_the_alerts_it_should_where_it_should() {
    let Some(path) = crate::support::corpus("fieldguide/logging/sequences.json") else { return };
    let corpus: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let theirs: Vec<&str> = Pattern::ALL.iter().take(THEIRS).map(|pattern| pattern.as_str()).collect();
    let named: Vec<&String> = corpus["thresholds"].as_object().unwrap().keys().collect();
    assert!(named.len() == THEIRS && named.iter().all(|name| theirs.contains(&name.as_str())), "{named:?}");

    let (mut sequences, mut events, mut alerts, mut failures) = (0, 0, 0, Vec::new());
    for case in corpus["cases"].as_array().unwrap() {
        let mut detector = Detector::new(settings(&case["entitlements"]));
        let mut first = BTreeMap::<&str, usize>::new();
        for (index, event) in case["events"].as_array().unwrap().iter().enumerate() {
            events += 1;
            for pattern in observe(&mut detector, event) {
                alerts += 1;
                first.entry(pattern.as_str()).or_insert(index);
            }
        }
        sequences += 1;
        let expected: BTreeSet<&str> =
            case["expected_alerts"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let found: BTreeSet<&str> = first.keys().copied().collect();
        let at: BTreeMap<&str, usize> = case["first_alert_at_event"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, index)| (name.as_str(), usize::try_from(index.as_u64().unwrap()).unwrap()))
            .collect();
        if found != expected || at.iter().any(|(name, index)| first.get(name) != Some(index)) {
            failures.push(format!("{} ({}): {first:?} and not {at:?}", case["id"], case["title"]));
        }
    }
    say!("patterns: {sequences} sequences of {events} events, {alerts} alerts, {} sequences wrong", failures.len());
    assert!(failures.is_empty(), "{failures:#?}");
}

//! The field guide's logging cases: what must never stand in a record, whatever somebody wants to record.
//!
//! Each event goes where such data would come from, the context of a question whose every value the operator has allowed,
//! and is written by the real trail to a real spool. What must be kept is looked for where a record holds such values.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gatepost::audit::{CallEntry, Entry, HostFacts, Outcome, Place, QuestionFacts, Redaction, Trail};
use gatepost::clock::SystemClock;
use gatepost::config::{
    AuditConfig, AuditMode, Keeping, KeptValue, Limits, OnAuditFailure, PatternsConfig, RedactRule, SpoolConfig,
};
use gatepost::model::entity::{RawRecord, RawValue};
use serde_json::Value as Json;

use crate::support::say;

fn config(folder: &Path, names: &[String]) -> AuditConfig {
    AuditConfig {
        keeping: Keeping { mode: AuditMode::Written, on_failure: OnAuditFailure::Refuse },
        actions: Vec::new(),
        write_timeout: Duration::from_secs(30),
        queue: 10,
        spool: SpoolConfig {
            directory: folder.to_owned(),
            segment_bytes: 1 << 20,
            max_bytes: 1 << 30,
            max_age: Duration::from_secs(86_400),
            reserve_bytes: 64 << 10,
        },
        checkpoints: None,
        attributes: names.iter().map(|name| (KeptValue::Context(name.clone()), RedactRule::Keep)).collect(),
        pseudonyms: None,
        patterns: PatternsConfig::default(),
        sinks: Vec::new(),
    }
}

fn raw(value: &Json) -> RawValue {
    match value {
        Json::Bool(value) => RawValue::Bool(*value),
        Json::Number(number) => {
            number.as_i64().map_or_else(|| RawValue::Number(number.as_f64().unwrap()), RawValue::Integer)
        }
        Json::String(text) => RawValue::Text(text.clone()),
        Json::Array(items) => RawValue::List(items.iter().map(raw).collect()),
        Json::Object(members) => {
            RawValue::Record(members.iter().map(|(name, value)| (name.clone(), raw(value))).collect())
        }
        Json::Null => RawValue::Text("null".to_owned()),
    }
}

/// Every text of a value, names included.
fn texts(value: &Json, found: &mut Vec<String>) {
    match value {
        Json::String(text) => found.push(text.clone()),
        Json::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Json::Object(members) => {
            for (name, member) in members {
                found.push(name.clone());
                texts(member, found);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

#[tokio::test]
async fn no_record_holds_what_the_field_guide_says_it_must_not() {
    let Some(path) = crate::support::corpus("fieldguide/logging/redaction.json") else { return };
    let corpus: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (mut ran, mut forbidden, mut failures) = (0, 0, Vec::new());
    for case in corpus["cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let event = case["event"].as_object().unwrap();
        let names: Vec<String> = event.keys().cloned().collect();
        let folder = tempfile::tempdir().unwrap();
        let config = config(&folder.path().join("audit"), &names);
        let record: RawRecord = event.iter().map(|(name, value)| (name.clone(), raw(value))).collect();
        let kept = Redaction::new(&config).kept(Place::Context, &record, SystemTime::UNIX_EPOCH);
        let entry = CallEntry {
            question: Some(QuestionFacts {
                action: "Order.read".to_owned(),
                resource_type: "Order".to_owned(),
                resource_id: Some("o-1".to_owned()),
                fields: None,
                context_sha256: None,
                kept,
                asserted: Vec::new(),
            }),
            ..crate::ocsf::call(Outcome::Refused { status: "INVALID_ARGUMENT", reason: "CONTEXT_INVALID" })
        };
        let host = HostFacts { hostname: "gatepost-0".to_owned() };
        let limits = Limits { audit_record_bytes: 1 << 20, ..Limits::default() };
        let trail = Trail::open(&config, &limits, host, SystemClock::shared(), Arc::new(|_| ())).unwrap();
        trail.write(&Entry::Call(Box::new(entry))).await.unwrap();
        trail.close().await;
        let segment = std::fs::read_to_string(folder.path().join("audit/segment-000000000001.jsonl")).unwrap();
        let [_, line] = segment.lines().collect::<Vec<_>>()[..] else { panic!("{id}: one line: {segment}") };
        let written: Json = serde_json::from_str(line).unwrap();
        let mut decoded = Vec::new();
        texts(&written, &mut decoded);
        // Where a text holds a line break or a hidden character, the line as it is written is what counts.
        for text in case["must_not_contain"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()) {
            forbidden += 1;
            let raw_only = text.chars().any(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
            if line.contains(text) || (!raw_only && decoded.iter().any(|decoded| decoded.contains(text))) {
                failures.push(format!("{id} ({}): {:.60?} is in it", case["title"], text));
            }
        }
        let keep: BTreeMap<String, Json> = serde_json::from_value(case["must_keep"].clone()).unwrap();
        for (path, expected) in keep {
            let (first, rest) = path.split_once('.').map_or((path.as_str(), None), |(first, rest)| (first, Some(rest)));
            let mut found = &written["unmapped"]["gatepost"]["kept"][format!("context.{first}")];
            for step in rest.into_iter().flat_map(|rest| rest.split('.')) {
                found = &found[step];
            }
            if *found != expected {
                failures.push(format!("{id} ({}): {path} is {found}", case["title"]));
            }
        }
        ran += 1;
    }
    say!("fieldguide/logging/redaction: {ran} cases ran, {forbidden} texts looked for, {} failed", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

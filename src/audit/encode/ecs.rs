//! The Elastic Common Schema, 8.17: what it has a field for goes there, all else under `gatepost`.
//!
//! Source: ECS 8.17 field reference (event, user, source, destination, host, service, trace, related).

use serde_json::{Map, Value, json};

use super::{ending, kind, resource, summary, text};

/// The record in ECS.
pub(super) fn ecs(record: &Value) -> Value {
    let kind_name = kind(record);
    let ending = ending(record);
    let (category, types): (&str, Vec<&str>) = match (kind_name, ending) {
        ("decision", Some("allow")) => ("api", vec!["access", "allowed"]),
        ("decision", Some("failed")) => ("api", vec!["access", "error"]),
        ("decision", _) => ("api", vec!["access", "denied"]),
        ("handshake", _) => ("authentication", vec!["start"]),
        ("policy" | "revocation", _) => ("configuration", vec!["change"]),
        ("alert", _) => ("intrusion_detection", vec!["info"]),
        _ => (
            "process",
            vec![match text(record, "/activity_name") {
                Some("Start") => "start",
                Some("Stop") => "end",
                _ => "info",
            }],
        ),
    };
    let alert = record.get("is_alert").and_then(Value::as_bool).unwrap_or(false);
    let outcome = match (ending, text(record, "/status")) {
        (Some("allow"), _) | (None, Some("Success")) => "success",
        (Some("conditional"), _) => "unknown",
        _ => "failure",
    };
    let nanoseconds = record.pointer("/unmapped/gatepost/decision_us").and_then(Value::as_u64).map(|us| us * 1000);
    let action = text(record, "/api/operation").or_else(|| text(record, "/activity_name"));

    let mut out = Map::new();
    out.insert("@timestamp".to_owned(), record.get("time_dt").cloned().unwrap_or(Value::Null));
    out.insert("ecs".to_owned(), json!({ "version": "8.17.0" }));
    out.insert("message".to_owned(), summary(record).into());
    let mut event = json!({
        "kind": if alert { "alert" } else { "event" },
        "category": [category],
        "type": types,
        "action": action,
        "outcome": outcome,
        "id": record.pointer("/metadata/uid"),
        "sequence": record.pointer("/metadata/sequence"),
        "severity": record.get("severity_id"),
        "dataset": record.pointer("/metadata/log_name"),
        "module": "gatepost",
        "provider": "gatepost",
        "reason": record.get("status_detail"),
        "code": record.get("status_code"),
        "duration": nanoseconds,
    });
    prune(&mut event);
    out.insert("event".to_owned(), event);
    let session = |name: &str| record.pointer(&format!("/actor/session/{name}"));
    let groups = [
        (
            "user",
            json!({
                "id": record.pointer("/actor/user/uid"), "name": record.pointer("/actor/user/name"),
                "domain": record.pointer("/actor/user/domain"),
            }),
        ),
        ("source", json!({ "ip": record.pointer("/src_endpoint/ip"), "port": record.pointer("/src_endpoint/port") })),
        (
            "destination",
            json!({ "ip": record.pointer("/dst_endpoint/ip"), "port": record.pointer("/dst_endpoint/port") }),
        ),
        ("host", json!({ "hostname": record.pointer("/device/hostname"), "name": record.pointer("/device/hostname") })),
        (
            "service",
            json!({
                "name": "gatepost", "type": "gatepost", "version": record.pointer("/metadata/product/version"),
                "node": { "name": record.pointer("/device/hostname") },
            }),
        ),
        ("trace", json!({ "id": record.pointer("/trace/uid") })),
        ("span", json!({ "id": record.pointer("/trace/span/uid") })),
        ("related", related(record)),
    ];
    for (name, mut group) in groups {
        prune(&mut group);
        if group.as_object().is_some_and(|group| !group.is_empty()) {
            out.insert(name.to_owned(), group);
        }
    }
    let mut ours = record.pointer("/unmapped/gatepost").cloned().unwrap_or_else(|| json!({}));
    let mut more = json!({
        "decision_id": record.pointer("/metadata/original_event_uid"),
        "correlation_id": record.pointer("/metadata/correlation_uid"),
        "class_uid": record.get("class_uid"),
        "activity": record.get("activity_name"),
        "ending": ending,
        "disposition": record.get("disposition"),
        "caller": { "name": record.pointer("/actor/app_name"), "id": record.pointer("/actor/app_uid") },
        "session": {
            "id": session("uid"), "issuer": session("issuer"), "created": session("created_time"),
            "expires": session("expiration_time"), "mfa": session("is_mfa"),
        },
        "resource": {
            "type": record.pointer("/resources/0/type"), "id": record.pointer("/resources/0/uid"), "name": resource(record),
        },
        "policy_version": record.pointer("/policy/version"),
        "count": record.get("count"),
        "comment": record.get("comment"),
        "entity": record.get("entity"),
        "entity_result": record.get("entity_result"),
    });
    prune(&mut more);
    if let (Value::Object(ours), Value::Object(more)) = (&mut ours, more) {
        ours.extend(more);
    }
    out.insert("gatepost".to_owned(), ours);
    Value::Object(out)
}

/// What a search for a person or a machine should find.
fn related(record: &Value) -> Value {
    let all = |pointers: &[&str]| {
        let mut found: Vec<&Value> = pointers.iter().filter_map(|pointer| record.pointer(pointer)).collect();
        found.dedup();
        if found.is_empty() { Value::Null } else { json!(found) }
    };
    json!({
        "user": all(&["/actor/user/uid", "/actor/user/name", "/unmapped/gatepost/principal"]),
        "ip": all(&["/src_endpoint/ip", "/unmapped/gatepost/client_address"]),
    })
}

/// Takes out what is not there, and objects that become empty.
fn prune(value: &mut Value) {
    if let Value::Object(members) = value {
        members.values_mut().for_each(prune);
        members.retain(|_, member| !member.is_null() && member.as_object().is_none_or(|inner| !inner.is_empty()));
    }
}

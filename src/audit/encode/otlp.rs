//! Records as OTLP logs: what people search for as attributes, and the record itself as the body.
//!
//! The body is a string, the very line: as a map it could no longer be held to its chain, for a map knows no order of its
//! members and no hash of its bytes.
//!
//! Source: OpenTelemetry logs data model 1.x, with its appendix on severities; semantic conventions for `service.*`,
//! `host.*`, `log.record.uid`, `user.id` and `client.address`.

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde_json::Value;

use super::{ending, kind, resource, text};

/// The scope that records come from.
const SCOPE: &str = "gatepost.audit";

/// A batch of records, each beside its form. Their order stays; where the run of the process changes, a new group begins.
pub(crate) fn resource_logs<'a>(records: impl Iterator<Item = (&'a Value, &'a [u8])>) -> Vec<ResourceLogs> {
    let mut groups: Vec<ResourceLogs> = Vec::new();
    for (record, encoded) in records {
        let origin = origin(record);
        let log = log_record(record, encoded);
        match groups.last_mut() {
            Some(group) if group.resource.as_ref() == Some(&origin) => {
                if let Some(scope) = group.scope_logs.last_mut() {
                    scope.log_records.push(log);
                }
            }
            _ => {
                let version = text(record, "/metadata/product/version").unwrap_or_default().to_owned();
                let scope = InstrumentationScope { name: SCOPE.to_owned(), version, ..InstrumentationScope::default() };
                let scope = ScopeLogs { scope: Some(scope), log_records: vec![log], schema_url: String::new() };
                let group = ResourceLogs { resource: Some(origin), scope_logs: vec![scope], schema_url: String::new() };
                groups.push(group);
            }
        }
    }
    groups
}

/// One record.
pub(crate) fn log_record(record: &Value, encoded: &[u8]) -> LogRecord {
    let (number, name) = severity(record.get("severity_id").and_then(Value::as_u64));
    let nanoseconds = record.get("time").and_then(Value::as_u64).unwrap_or(0).saturating_mul(1_000_000);
    let resource = resource(record);
    let words = [
        ("log.record.uid", text(record, "/metadata/uid")),
        ("gatepost.kind", Some(kind(record))),
        ("gatepost.ending", ending(record)),
        ("gatepost.decision_id", text(record, "/metadata/original_event_uid")),
        ("gatepost.reason", text(record, "/status_detail")),
        ("gatepost.caller", text(record, "/actor/app_name")),
        ("gatepost.caller_id", text(record, "/actor/app_uid")),
        ("gatepost.principal", text(record, "/unmapped/gatepost/principal")),
        ("gatepost.action", text(record, "/api/operation")),
        ("gatepost.resource", resource.as_deref()),
        ("gatepost.alert", text(record, "/unmapped/gatepost/alert/pattern")),
        ("user.id", text(record, "/actor/user/uid")),
        ("client.address", text(record, "/src_endpoint/ip")),
    ];
    let mut attributes: Vec<KeyValue> =
        words.into_iter().filter_map(|(key, word)| Some(attribute(key, Any::StringValue(word?.to_owned())))).collect();
    let sequence = record.pointer("/metadata/sequence").and_then(Value::as_i64);
    attributes.extend(sequence.map(|number| attribute("gatepost.sequence", Any::IntValue(number))));
    LogRecord {
        time_unix_nano: nanoseconds,
        // It was observed by whom it happened to.
        observed_time_unix_nano: nanoseconds,
        severity_number: number,
        severity_text: name.to_owned(),
        body: Some(AnyValue { value: Some(Any::StringValue(String::from_utf8_lossy(encoded).into_owned())) }),
        attributes,
        trace_id: id::<16>(text(record, "/trace/uid")),
        span_id: id::<8>(text(record, "/trace/span/uid")),
        event_name: format!("gatepost.{}", kind(record)),
        ..LogRecord::default()
    }
}

/// Who speaks: this service, in this run of it.
fn origin(record: &Value) -> Resource {
    let words = [
        ("service.name", Some("gatepost")),
        ("service.version", text(record, "/metadata/product/version")),
        ("service.instance.id", text(record, "/unmapped/gatepost/boot")),
        ("host.name", text(record, "/device/hostname")),
    ];
    let attributes =
        words.into_iter().filter_map(|(key, word)| Some(attribute(key, Any::StringValue(word?.to_owned())))).collect();
    Resource { attributes, ..Resource::default() }
}

/// The number and the word for OCSF's `severity_id`.
fn severity(id: Option<u64>) -> (i32, &'static str) {
    match id {
        Some(2) => (10, "INFO2"),
        Some(3) => (13, "WARN"),
        Some(4) => (17, "ERROR"),
        Some(5) => (18, "ERROR2"),
        Some(6) => (21, "FATAL"),
        _ => (9, "INFO"),
    }
}

fn attribute(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The bytes of a trace's or span's id; nothing when it is none, or all zero (W3C Trace Context section 3.2.2).
fn id<const N: usize>(text: Option<&str>) -> Vec<u8> {
    let Some(text) = text.filter(|text| text.len() == 2 * N && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
    else {
        return Vec::new();
    };
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).filter_map(|digit| digit.try_into().ok()).collect();
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    if bytes.iter().all(|byte| *byte == 0) { Vec::new() } else { bytes }
}

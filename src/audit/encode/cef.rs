//! ArcSight's Common Event Format, version 0.
//!
//! `CEF:0|Gatepost|Gatepost|<version>|<class>|<name>|<severity>|<key>=<value> ..`. In the header `\` and `|` are escaped, in
//! values `\` and `=`; line breaks become `\n` and `\r`, and every other character that could hide or break becomes a
//! visible `\\uXXXX`.
//!
//! Source: "Implementing ArcSight Common Event Format (CEF)", version 25.

use std::fmt::Write as _;

use serde_json::Value;

use super::{ending, kind, resource, summary, text};
use crate::audit::text::is_unsafe;

/// The record in CEF.
pub(super) fn cef(record: &Value) -> String {
    let ending = ending(record);
    let detail = text(record, "/status_detail");
    let class: Vec<&str> = [Some(kind(record)), ending, detail].into_iter().flatten().collect();
    let name = match ending {
        Some(ending) => format!("{} {ending}", text(record, "/api/operation").unwrap_or("call")),
        None => text(record, "/activity_name").unwrap_or("record").to_owned(),
    };
    // 0 to 10: 4 to 6 is medium, 7 and 8 high.
    let severity = match record.get("severity_id").and_then(Value::as_u64) {
        Some(0 | 1) | None => 1,
        Some(2) => 3,
        Some(3) => 5,
        Some(4) => 8,
        Some(_) => 10,
    };
    let version = text(record, "/metadata/product/version").unwrap_or_default();
    let mut out = String::with_capacity(1024);
    out.push_str("CEF:0|Gatepost|Gatepost");
    for part in [version, &class.join(":"), &name] {
        out.push('|');
        push(&mut out, part, "\\|");
    }
    // Writing to a String can't fail.
    let _ = write!(out, "|{severity}|");

    let number = |pointer: &str| record.pointer(pointer).and_then(Value::as_i64).map(|number| number.to_string());
    let owned = |pointer: &str| text(record, pointer).map(str::to_owned);
    let policies = record
        .pointer("/unmapped/gatepost/determining_policies")
        .and_then(Value::as_array)
        .map(|ids| ids.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "));
    let fields = [
        ("rt", number("/time")),
        ("externalId", owned("/metadata/uid")),
        ("cat", owned("/metadata/log_name")),
        ("act", owned("/action")),
        ("outcome", ending.or_else(|| text(record, "/status")).map(str::to_owned)),
        ("reason", owned("/status_detail")),
        ("suser", owned("/actor/user/name")),
        ("suid", owned("/actor/user/uid")),
        ("sntdom", owned("/actor/user/domain")),
        ("sourceServiceName", owned("/actor/app_name")),
        ("src", owned("/src_endpoint/ip")),
        ("spt", number("/src_endpoint/port")),
        ("dst", owned("/dst_endpoint/ip")),
        ("dpt", number("/dst_endpoint/port")),
        ("dvchost", owned("/device/hostname")),
        ("msg", Some(summary(record))),
        ("cs1Label", resource(record).map(|_| "resource".to_owned())),
        ("cs1", resource(record)),
        ("cs2Label", policies.as_ref().map(|_| "determiningPolicies".to_owned())),
        ("cs2", policies),
        ("cs3Label", owned("/policy/version").map(|_| "policyVersion".to_owned())),
        ("cs3", owned("/policy/version")),
        ("cs4Label", owned("/metadata/original_event_uid").map(|_| "decisionId".to_owned())),
        ("cs4", owned("/metadata/original_event_uid")),
        ("cs5Label", owned("/metadata/correlation_uid").map(|_| "correlationId".to_owned())),
        ("cs5", owned("/metadata/correlation_uid")),
        ("cs6Label", owned("/actor/app_uid").map(|_| "callerId".to_owned())),
        ("cs6", owned("/actor/app_uid")),
        ("cn1Label", Some("sequence".to_owned())),
        ("cn1", number("/metadata/sequence")),
        ("gatepostAction", owned("/api/operation")),
        ("gatepostLevel", owned("/unmapped/gatepost/level")),
        ("gatepostBoot", owned("/unmapped/gatepost/boot")),
        ("gatepostAlert", owned("/unmapped/gatepost/alert/pattern")),
    ];
    let mut first = true;
    for (key, value) in fields {
        let Some(value) = value else { continue };
        if !first {
            out.push(' ');
        }
        first = false;
        let _ = write!(out, "{key}=");
        push(&mut out, &value, "\\=");
    }
    out
}

/// Adds text with these characters escaped, and none that hides or breaks.
fn push(out: &mut String, text: &str, escaped: &str) {
    for c in text.chars() {
        match c {
            '\n' if escaped.contains('=') => out.push_str("\\n"),
            '\r' if escaped.contains('=') => out.push_str("\\r"),
            c if is_unsafe(c) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(out, "\\\\u{unit:04x}");
                }
            }
            c => {
                if escaped.contains(c) {
                    out.push('\\');
                }
                out.push(c);
            }
        }
    }
}

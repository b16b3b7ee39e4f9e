//! Syslog lines, RFC 5424: `<PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA MSG`.
//!
//! PROCID names the run of the process, MSGID what the record is about. No byte order mark precedes the message: receivers
//! that take it for JSON would stumble over it, and RFC 5424 section 6.4 lets a message be of any form.

use std::fmt::Write as _;

use serde_json::Value;

use super::{ending, kind, text};
use crate::audit::text::is_unsafe;

/// The enterprise number of our structured data: the one that RFC 5612 keeps for documentation, as ours is no enterprise's.
const SD_ID: &str = "gatepost@32473";

/// The whole line; `msg` is the record in whatever form.
pub(crate) fn frame(facility: u8, app_name: &str, record: &Value, msg: &[u8]) -> Vec<u8> {
    let severity = match record.get("severity_id").and_then(Value::as_u64) {
        Some(2) => 5,
        Some(3) => 4,
        Some(4..=6) => 3,
        _ => 6,
    };
    let priority = u32::from(facility.min(23)) * 8 + severity;
    let time = text(record, "/time_dt").unwrap_or("-");
    let host = header(text(record, "/device/hostname"), 255);
    let boot = header(text(record, "/unmapped/gatepost/boot"), 128);
    let about = header(Some(kind(record)), 32);
    let mut line = format!("<{priority}>1 {time} {host} {} {boot} {about} [{SD_ID}", header(Some(app_name), 48));
    let sequence = record.pointer("/metadata/sequence").and_then(Value::as_u64).map(|number| number.to_string());
    let parameters = [
        ("seq", sequence.as_deref()),
        ("uid", text(record, "/metadata/uid")),
        ("ending", ending(record)),
        ("reason", text(record, "/status_detail")),
        ("caller", text(record, "/actor/app_name")),
        ("alert", text(record, "/unmapped/gatepost/alert/pattern")),
    ];
    for (name, value) in parameters {
        let Some(value) = value else { continue };
        // Writing to a String can't fail.
        let _ = write!(line, " {name}=\"");
        for c in value.chars() {
            match c {
                '"' | '\\' | ']' => line.extend(['\\', c]),
                c if is_unsafe(c) => {
                    let _ = write!(line, "\\\\u{:04x}", u32::from(c));
                }
                c => line.push(c),
            }
        }
        line.push('"');
    }
    line.push_str("] ");
    let mut bytes = line.into_bytes();
    bytes.extend_from_slice(msg);
    bytes
}

/// PRINTUSASCII of at most so many characters; `-` for nothing (RFC 5424 section 6.2).
fn header(text: Option<&str>, most: usize) -> String {
    let text: String =
        text.unwrap_or_default().chars().map(|c| if c.is_ascii_graphic() { c } else { '?' }).take(most).collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

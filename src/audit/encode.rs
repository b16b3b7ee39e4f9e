//! Records in the forms that receivers read: OCSF as it is in the spool, ECS, CEF, and syslog lines.
//!
//! Made from the record itself, so that whatever a sink's mask took out is in no form of it. Knows what a record's members
//! are called; nothing of sinks.

use serde::Serialize as _;
use serde_json::Value;

use super::text::OneLine;
use crate::config::Encoding;

mod cef;
mod ecs;
pub(crate) mod otlp;
pub(crate) mod syslog;

/// The facility of lines that do not go to a syslog receiver: `local0`.
const FACILITY: u8 = 16;
/// And what they are from.
const APP_NAME: &str = "gatepost";

/// A record in one of its forms, without a line break.
///
/// `line` is the record as it stands in the spool, if it is whole; `None` when a mask took something out.
pub(crate) fn encode(encoding: Encoding, line: Option<&[u8]>, record: &Value) -> Vec<u8> {
    let ocsf = || line.map_or_else(|| json(record), <[u8]>::to_vec);
    match encoding {
        Encoding::Ocsf => ocsf(),
        Encoding::Ecs => json(&ecs::ecs(record)),
        Encoding::Cef => cef::cef(record).into_bytes(),
        Encoding::Rfc5424 => syslog::frame(FACILITY, APP_NAME, record, &ocsf()),
    }
}

/// One line of JSON, without a character that could hide or break.
pub(crate) fn json(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    // Writing JSON that was parsed, to memory, can't fail.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine));
    out
}

/// The text at a JSON pointer.
fn text<'a>(record: &'a Value, pointer: &str) -> Option<&'a str> {
    record.pointer(pointer)?.as_str()
}

/// What a record is about: the end of its `metadata.log_name`.
pub(crate) fn kind(record: &Value) -> &str {
    text(record, "/metadata/log_name").and_then(|name| name.rsplit('.').next()).unwrap_or("unknown")
}

/// How a call ended: `allow`, `deny`, `conditional`; `refused` by our choice, `failed` by our fault; `None`: it was no call.
pub(crate) fn ending(record: &Value) -> Option<&str> {
    if kind(record) != "decision" {
        return None;
    }
    let failed = text(record, "/disposition") == Some("Error");
    Some(text(record, "/unmapped/gatepost/decision").unwrap_or(if failed { "failed" } else { "refused" }))
}

/// `Order::"o-1"`, or `Order` at the function level.
fn resource(record: &Value) -> Option<String> {
    let kind = text(record, "/resources/0/type")?;
    Some(text(record, "/resources/0/uid").map_or_else(|| kind.to_owned(), |id| format!("{kind}::{id:?}")))
}

/// One line for people.
fn summary(record: &Value) -> String {
    let Some(ending) = ending(record) else {
        let name = text(record, "/activity_name").unwrap_or("record");
        return match text(record, "/status_detail") {
            Some(detail) => format!("{}: {name}: {detail}", kind(record)),
            None => format!("{}: {name}", kind(record)),
        };
    };
    let caller = text(record, "/actor/app_name").unwrap_or("unknown");
    let user =
        text(record, "/unmapped/gatepost/principal").or_else(|| text(record, "/actor/user/uid")).unwrap_or("nobody");
    let action = text(record, "/api/operation").unwrap_or("unknown");
    let resource = resource(record).unwrap_or_else(|| "nothing".to_owned());
    let why = text(record, "/status_detail").map(|why| format!(": {why}")).unwrap_or_default();
    format!("{ending} {action} on {resource} to {user} through {caller}{why}")
}

#[cfg(test)]
mod tests;

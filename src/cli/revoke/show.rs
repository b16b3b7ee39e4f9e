//! What came of it: a table for people, one object for machines.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use super::Format;
use super::office::Failure;
use crate::proto::admin::v1;

/// What there is to show.
pub(super) enum Shown {
    Revoked { revocation: v1::Revocation, call_id: String },
    List { revocations: Vec<v1::Revocation>, total: i64 },
}

impl Shown {
    pub(super) fn revoked(revocation: Option<v1::Revocation>, call_id: String) -> Result<Self, Failure> {
        let revocation = revocation.ok_or_else(|| Failure::Refused {
            told: "the server's answer says nothing of what it revoked".to_owned(),
        })?;
        Ok(Self::Revoked { revocation, call_id })
    }
}

/// Writes it.
///
/// # Errors
/// The console's own.
pub(super) fn outcome(console: &mut impl Write, shown: &Shown, format: Format) -> io::Result<()> {
    match (shown, format) {
        (Shown::Revoked { revocation, call_id }, Format::Human) => {
            let before = revocation.issued_before.as_ref();
            let before = before.map(|before| format!(", issued before {}", instant(before))).unwrap_or_default();
            let until = revocation.expire_time.as_ref().map(instant).unwrap_or_default();
            writeln!(console, "revoked: {} {}{before}, kept until {until}", kind(revocation), revocation.key)?;
            writeln!(console, "on record as call {call_id}")
        }
        (Shown::Revoked { revocation, call_id }, Format::Json) => {
            let mut object = object(revocation);
            object.insert("callId".to_owned(), json!(call_id));
            writeln!(console, "{}", Value::Object(object))
        }
        (Shown::List { revocations, total }, Format::Human) => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            table.set_header(["kind", "key", "issued before", "kept until"]);
            for one in revocations {
                let told = |time: Option<&Timestamp>| time.map(instant).unwrap_or_default();
                let (before, until) = (told(one.issued_before.as_ref()), told(one.expire_time.as_ref()));
                table.add_row([kind(one).to_owned(), one.key.clone(), before, until]);
            }
            for line in table.to_string().lines() {
                writeln!(console, "{}", line.trim_end())?;
            }
            writeln!(console, "{} of {total}", revocations.len())
        }
        (Shown::List { revocations, total }, Format::Json) => {
            let all: Vec<_> = revocations.iter().map(object).collect();
            writeln!(console, "{}", json!({ "revocations": all, "total": total }))
        }
    }
}

fn object(one: &v1::Revocation) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("kind".to_owned(), json!(kind(one)));
    object.insert("key".to_owned(), json!(one.key));
    for (name, time) in [("issuedBefore", &one.issued_before), ("expireTime", &one.expire_time)] {
        if let Some(time) = time {
            object.insert(name.to_owned(), json!(instant(time)));
        }
    }
    object
}

fn kind(one: &v1::Revocation) -> &'static str {
    match one.kind() {
        v1::RevocationKind::Unspecified => "unknown",
        v1::RevocationKind::Token => "token",
        v1::RevocationKind::Subject => "subject",
        v1::RevocationKind::Session => "session",
        v1::RevocationKind::Certificate => "certificate",
    }
}

fn instant(time: &Timestamp) -> String {
    jiff::Timestamp::from_second(time.seconds)
        .map_or_else(|_| "an unknown time".to_owned(), |instant| instant.to_string())
}
